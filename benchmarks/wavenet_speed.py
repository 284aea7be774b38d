"""One second of audio at 8 kHz, batch 1: a naive WaveNet, diffeo's incremental one, and a Parallel WaveNet student.

    python benchmarks/wavenet_speed.py                       # all of them, in one run
    python benchmarks/wavenet_speed.py --channels 40         # conditioned on that many channels per frame
    python benchmarks/wavenet_speed.py --student paper       # the student of the paper: 60 layers of 64 channels
    python benchmarks/wavenet_speed.py --train               # training steps per second as well

The naive teacher reads its whole receptive field for every sample, as implementations without a cache do: `plain` in
PyTorch's operations, `kernel` with the kernel that diffeo trains with, which makes the baseline several times faster
than others have it. Both are timed on part of the second and scaled up. All three draw the same kind of sample; the
naive one is checked against the incremental one. Rows: samples per second, times real time, and times the naive ones,
each the median of several runs with their range.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import diffeo
from diffeo import ops
from diffeo.modalities.audio.distillation import generate_end_naively

HOP = 80


def spread(flow: diffeo.Flow) -> diffeo.Flow:
    """Give the flow weights that do something."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) / max(1, parameter.shape[-1]) ** 0.5)
    return flow.eval()


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each run, after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)


def main() -> None:
    """Time them one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=8000, help="samples in the second")
    parser.add_argument("--channels", type=int, default=0, help="channels of the context, 0 for none")
    parser.add_argument("--head", choices=["gaussian", "logistics"], default="gaussian")
    parser.add_argument("--student", choices=["laptop", "paper"], default="laptop")
    parser.add_argument("--naive-steps", type=int, default=200, help="samples that the naive ones draw")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--train", action="store_true", help="time a training step of 8 crops of a second")
    options = parser.parse_args()
    torch.manual_seed(0)
    rate, channels = options.rate, options.channels
    context = torch.randn(1, channels, -(-rate // HOP)) if channels else None
    teacher = spread(diffeo.wavenet(rate, channels, hop=HOP, head=options.head))
    preset = {"preset": "paper"} if options.student == "paper" else {}
    student = spread(diffeo.parallel_wavenet(rate, channels, hop=HOP, **preset))
    count = [sum(p.numel() for p in flow.parameters()) for flow in (teacher, student)]
    print(
        f"teacher {count[0]:,} parameters, student {count[1]:,}; {torch.get_num_threads()} threads; one second = {rate}"
    )

    z, steps = teacher.base.sample((1,)), min(options.naive_steps, rate)
    with torch.no_grad():
        x = teacher.decode(z, context)
    if not channels:  # at the end of a window the convolution over frames has no neighbour
        gap = (generate_end_naively(teacher, x, z, None, steps) - x[:, -steps:]).abs().max().item()
        print(f"naive against incremental: largest difference {gap:.1e} in {steps} samples")

    def plain() -> None:
        with ops.using("reference"):
            generate_end_naively(teacher, x, z, context, steps)

    with torch.no_grad():
        rows = {
            "naive, plain": [s * rate / steps for s in timed(plain, 1)],
            "naive, kernel": [
                s * rate / steps for s in timed(lambda: generate_end_naively(teacher, x, z, context, steps), 3)
            ],
            "incremental": timed(lambda: teacher.decode(z, context), options.repeats),
            "student": timed(lambda: student.decode(z, context), options.repeats),
        }
    slowest = {name: statistics.median(rows[name]) for name in ("naive, plain", "naive, kernel")}
    print(f"\n{'':<14} {'samples/s':>12} {'range':>24} {'x real time':>12} {'x plain':>9} {'x kernel':>9}")
    for name, seconds in rows.items():
        middle = statistics.median(seconds)
        span = f"{rate / seconds[-1]:,.0f} .. {rate / seconds[0]:,.0f}"
        ratios = " ".join(f"{base / middle:>9,.1f}" for base in slowest.values())
        print(f"{name:<14} {rate / middle:>12,.0f} {span:>24} {1 / middle:>12,.2f} {ratios}", flush=True)

    if options.train:
        crops = torch.randn(8, rate)
        contexts = None if context is None else context.expand(8, -1, -1)

        def step() -> None:
            teacher.zero_grad()
            (-teacher.log_prob(crops, contexts).sum()).backward()

        seconds = statistics.median(timed(step, options.repeats))
        print(f"\ntraining: {seconds:.3f} s for 8 crops of a second, {8 * rate / seconds:,.0f} samples/s")


if __name__ == "__main__":
    main()
