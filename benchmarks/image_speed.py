"""Images per second beside normflows: `python benchmarks/image_speed.py --out docs/image_speed.md`.

Glow is the same in both libraries: scales, couplings, convolutions (3x3, 1x1, 3x3) and their widths. RealNVP has the
same scales and couplings, but a checkerboard is read differently (normflows lays one colour out as an image of half the
width, diffeo as channels of half the width and height), so that its width is chosen for about as many multiplications.
ReLU, float32, fused Adam; log-likelihood, a training step, and samples, in turns within one run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import diffeo
from peers import Spec, TorchModel
from speed import measure

BATCH = 64
SHAPES = {"28 x 28 grey": (1, 28, 28), "32 x 32 RGB": (3, 32, 32)}
STEPS, WIDTH = 8, 64  # of a scale of Glow
PACKED = 46  # diffeo's width for RealNVP, doubled with every squeeze
COUPLINGS = 3  # of each kind at each scale of RealNVP


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="for each cell")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    head = "| model | images | parameters | million multiplications | log_prob | train | sample |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for family in ("glow", "realnvp"):
        for name, shape in SHAPES.items():
            models = {"diffeo": _diffeo(family, shape), "normflows": _normflows(family, shape)}
            x = np.random.default_rng(0).standard_normal((BATCH, *shape))
            cells = []
            for operation in ("log_prob", "train", "sample"):
                calls = {}
                for library, model in models.items():
                    batch = model.array(x)
                    calls[library] = {
                        "log_prob": lambda m=model, b=batch: m.log_prob(b),
                        "train": lambda m=model, b=batch: m.train_step(b),
                        "sample": lambda m=model: m.sample(BATCH),
                    }[operation]
                timed = measure(calls, {}, rounds=args.rounds, seconds=args.seconds, slow=True)
                ours, theirs = (BATCH / float(np.median(timed[library].seconds)) for library in models)
                cells.append(f"{ours:,.0f} / {theirs:,.0f} = {ours / theirs:.2f}x")
            sizes = " / ".join(f"{model.parameters():,}" for model in models.values())
            products = " / ".join(f"{_products(model, shape) / 1e6:.1f}" for model in models.values())
            lines.append(f"| {family} | {name} | {' | '.join([sizes, products, *cells])} |")
            print(lines[-1], flush=True)
    if args.out:
        note = f"Images per second, diffeo / normflows; batches of {BATCH}, {args.threads} threads; medians."
        args.out.write_text("\n".join(["# Images beside normflows", "", note, "", *lines]) + "\n")


def _diffeo(family: str, shape: tuple[int, int, int]) -> TorchModel:
    arguments = {"kernels": [1], "residual": False, "activation": "relu", "preprocess": []}
    if family == "glow":
        flow = diffeo.glow(shape, transforms=STEPS, hidden=[WIDTH], scales=_scales(shape), **arguments)
    else:
        flow = diffeo.realnvp(shape, transforms=COUPLINGS, hidden=[PACKED], scales=2, **arguments)
    return _model(flow, shape, flow.log_prob, lambda n: flow.sample(n))


def _normflows(family: str, shape: tuple[int, int, int]) -> TorchModel:
    import normflows as nf

    channels, height, width = shape
    levels, merges, bases = [], [], []

    def couplings(wide: int, hidden: int, mode: str, count: int) -> list[nn.Module]:
        inside, out = (wide, 2 * wide) if mode == "checkerboard" else (wide // 2, wide)
        made: list[nn.Module] = []
        for index in range(count):
            net = nf.nets.ConvNet2d((inside, hidden, hidden, out), (3, 1, 3), leaky=0.0, init_zeros=True)
            split = mode + "_inv" * (index % 2)
            made += [nf.flows.ActNorm((wide, 1, 1)), nf.flows.AffineCouplingBlock(net, True, "exp", split)]
        return made

    scales = _scales(shape) if family == "glow" else 2
    for scale in range(scales):  # from the data inwards
        last, flows = scale == scales - 1, []
        if family == "glow":
            channels, height, width = 4 * channels, height // 2, width // 2
            flows = [nf.flows.GlowBlock(channels, WIDTH) for _ in range(STEPS)] + [nf.flows.Squeeze()]
        else:
            flows = couplings(channels, WIDTH * 2**scale, "checkerboard", COUPLINGS + last)
            if not last:
                channels, height, width = 4 * channels, height // 2, width // 2
                flows = [*couplings(channels, 2 * WIDTH * 2**scale, "channel", COUPLINGS), nf.flows.Squeeze(), *flows]
        levels.insert(0, flows)
        if not last:
            merges.insert(0, nf.flows.Merge())
            bases.insert(0, nf.distributions.DiagGaussian((channels // 2, height, width), trainable=False))
            channels //= 2
    bases.insert(0, nf.distributions.DiagGaussian((channels, height, width), trainable=False))
    flow = nf.MultiscaleFlow(bases, levels, merges, class_cond=False)
    return _model(flow, shape, lambda x: flow.log_prob(x, None), lambda n: flow.sample(n)[0])


def _products(model: TorchModel, shape: tuple[int, int, int]) -> int:
    """Multiplications of all convolutions for the log-likelihood of one image."""
    total = 0

    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * output.shape[-2:].numel()

    hooks = [part.register_forward_hook(count) for part in model.module.modules() if hasattr(part, "in_channels")]
    model.log_prob(torch.randn(1, *shape))
    for hook in hooks:
        hook.remove()
    return total


def _scales(shape: tuple[int, int, int]) -> int:
    """As many as even sides allow, 3 at most."""
    return next(scale for scale in range(3, 0, -1) if all(side % 2**scale == 0 for side in shape[1:]))

    main()


def _model(flow: nn.Module, shape: tuple[int, int, int], log_prob: Any, sample: Any) -> TorchModel:
    model = TorchModel(Spec("realnvp", 1, WIDTH), flow, log_prob, sample)
    model.log_prob(torch.randn(BATCH, *shape))  # lets actnorms set themselves
    return model


if __name__ == "__main__":
    main()
