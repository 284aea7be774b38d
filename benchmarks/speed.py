"""Times diffeo beside zuko, nflows, normflows, FlowJAX and FrEIA: same model, batch and threads, one interleaved run.

Every number is the median over rounds in which the libraries take turns, so that a machine whose speed drifts slows
them alike. Each turn starts with an untimed call: it wakes the library's threads and lets the others' fall asleep.
Scoring and sampling run without gradients; a train step is the gradient of the mean negative log-likelihood plus Adam.
The floor is the arithmetic that the masks leave, at the best rate of a large matrix product measured here; a train step
counts three times the forward pass. `--isa avx2` holds every library to AVX2 on a machine that has more.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import peers

OPERATIONS = ("log_prob", "train step", "sample")
DISTURBED = 15.0  # percent of one processor taken by others, above which the numbers mean little
SLOW, TOO_SLOW = 2.0, 12.0  # seconds per call: from the first on, two calls only; from the second on, only with --slow


@dataclass(frozen=True)
class Row:
    """One model and batch of the table."""

    spec: peers.Spec
    batch: int

    def title(self) -> str:
        """How the table names it."""
        name = {"maf": "MAF", "nsf": "NSF", "realnvp": "RealNVP", "nsf-coupling": "NSF coupling"}[self.spec.family]
        return f"{name} {self.spec.features}, {self.spec.hidden}, {self.batch}"


ROWS = {
    "maf-64": Row(peers.Spec("maf", 64, 512), 1000),
    "maf-6": Row(peers.Spec("maf", 6, 128), 1000),
    "maf-64-small": Row(peers.Spec("maf", 64, 512), 128),
    "nsf-64": Row(peers.Spec("nsf", 64, 512), 1000),
    "realnvp-64": Row(peers.Spec("realnvp", 64, 512, transforms=6), 1000),
    "realnvp-6": Row(peers.Spec("realnvp", 6, 128, transforms=6), 1000),
    "nsfc-64": Row(peers.Spec("nsf-coupling", 64, 512, transforms=6), 1000),
    "nsfc-6": Row(peers.Spec("nsf-coupling", 6, 128, transforms=6), 1000),
    "maf-784": Row(peers.Spec("maf", 784, 1024), 100),
}
QUICK = ("maf-64", "maf-6", "realnvp-6")
ISAS = {"avx512": "avx512f", "avx2": "avx2"}  # and the processor's flag; the widest first
AVX2_ONLY = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    # XLA's products by YNNPACK choose by the processor; without them they are oneDNN's, which is held
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type=",
}


@dataclass
class Timing:
    """Seconds of each timed call of one library at one operation."""

    seconds: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        """Median seconds per call; NaN where nothing was timed."""
        return float(np.median(self.seconds)) if self.seconds else float("nan")

    def cell(self) -> str:
        """Median and quartiles in milliseconds; below four calls the extremes."""
        if not self.seconds:
            return self.note or "-"
        low, high = np.percentile(self.seconds, [25, 75] if len(self.seconds) > 3 else [0, 100])
        return f"{_ms(self.median)} ({_ms(low)}-{_ms(high)})"


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _calls(row: Row, models: dict[str, Any], operation: str) -> dict[str, Callable[[], Any]]:
    """For each library the call to time; train steps go round eight batches."""
    random = np.random.default_rng(0)
    number = 8 if operation == "train step" else 1
    batches = [random.standard_normal((row.batch, row.spec.features)) for _ in range(number)]

    def call_of(model: Any) -> Callable[[], Any]:
        if operation == "sample":
            return lambda: model.sample(row.batch)
        arrays = [model.array(x) for x in batches]
        if operation == "log_prob":
            return lambda: model.log_prob(arrays[0])

        def step() -> None:
            arrays.append(arrays.pop(0))
            model.train_step(arrays[0])

        return step

    return {name: call_of(model) for name, model in models.items()}


def measure(
    calls: dict[str, Callable[[], Any]], expected: dict[str, float], *, rounds: int, seconds: float, slow: bool
) -> dict[str, Timing]:
    """Times the calls in turns; `expected` holds what is known of a call's seconds before it is first made."""
    result = {name: Timing() for name in calls}
    first: dict[str, float] = {}
    for name, call in calls.items():
        if expected.get(name, 0) > TOO_SLOW and not slow:
            result[name].note = f"(about {expected[name]:.0f} s)"
            continue
        first[name] = _clock(call)  # compiles, allocates, fills the caches
        if expected.get(name, 0) < SLOW:
            first[name] = _clock(call)
    gc.collect()
    gc.disable()
    names = list(first)
    for i in range(rounds):
        for name in names[i % max(1, len(names)) :] + names[: i % max(1, len(names))]:
            if first[name] > SLOW:
                gc.enable()  # some libraries leave gigabytes of cycles within one such call
                if len(result[name].seconds) < 2:
                    result[name].seconds.append(_clock(calls[name]))
                gc.disable()
                continue
            calls[name]()
            repeats = int(np.clip(seconds / rounds / max(first[name], 1e-6), 1, 20))
            result[name].seconds += [_clock(calls[name]) for _ in range(repeats)]
    gc.enable()
    return result


def build_all(row: Row, libraries: list[str]) -> dict[str, Any]:
    """The row's model in every library that is installed and has it."""
    models = {}
    for name in libraries:
        try:
            models[name] = peers.build(name, row.spec)
        except (ImportError, NotImplementedError) as error:
            print(f"  {name}: left out ({error})", flush=True)
    return models


def run_row(row: Row, libraries: list[str], operations: list[str], **how: Any) -> dict[str, dict[str, Timing]]:
    """All timings of a row: operation -> library -> timing."""
    models = build_all(row, libraries)
    result: dict[str, dict[str, Timing]] = {}
    score: dict[str, float] = {}
    for operation in operations:
        expected: dict[str, float] = {}
        if operation == "sample" and not row.spec.coupling:  # every peer inverts by one pass per feature
            expected = {name: s * row.spec.features for name, s in score.items() if name not in peers.OWN}
        result[operation] = measure(_calls(row, models, operation), expected, **how)
        if operation == "log_prob":
            score = {name: timing.median for name, timing in result[operation].items()}
        print(f"  {operation}: " + "  ".join(f"{n} {t.cell()}" for n, t in result[operation].items()), flush=True)
    return result


def best_rate(device: str) -> dict[str, float]:
    """GFLOP/s of large float32 products, by the way of computing them."""
    ways: dict[str, Callable[..., torch.Tensor]] = {"F.linear": F.linear}
    if device == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways["oneDNN linear"] = lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
    result = dict.fromkeys(ways, 0.0)
    for rows, inner, columns in ((1000, 512, 512), (2048, 2048, 2048), (4096, 1024, 1024)):
        x = torch.randn(rows, inner, device=device)
        w = torch.randn(columns, inner, device=device)

        def product(way: Callable[..., torch.Tensor], x: torch.Tensor = x, w: torch.Tensor = w) -> None:
            way(x, w)
            if device != "cpu":
                torch.cuda.synchronize()

        for name, way in ways.items():
            product(way)
            fastest = min(_clock(lambda way=way: product(way)) for _ in range(12))
            result[name] = max(result[name], 2e-9 * rows * inner * columns / fastest)
    return result


def floor_seconds(row: Row, operation: str, gflops: float) -> float:
    """Seconds that the unmasked arithmetic alone would take."""
    passes = 3 if operation == "train step" else 1
    return passes * 2e-9 * row.spec.multiply_adds() * row.batch / gflops


class Busy:
    """How much of the machine other processes took since it was made: their share of one processor, in percent."""

    def __init__(self) -> None:
        self.start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        try:
            fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return (0.0, 0.0, 0.0)
        user, nice, system, _, _, irq, softirq, steal = fields
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        times = os.times()
        return busy, times.user + times.system, time.monotonic()

    def others(self) -> float:
        """Percent of one processor taken by others, stolen time included."""
        busy, ours, now = (b - a for a, b in zip(self.start, self._read(), strict=True))
        return 100 * max(0.0, busy - ours) / max(now, 1e-9)


def processor_entries() -> dict[str, str]:
    """What the system says of the first processor: "model name", "flags" and others."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def machine_isas() -> list[str]:
    """The instruction sets of `ISAS` that the machine has, the widest first; "native" where it has none of them."""
    flags = processor_entries().get("flags", "").split()
    return [isa for isa, flag in ISAS.items() if flag in flags] or ["native"]


def hold_to(isa: str | None) -> None:
    """Start again in an environment that keeps every library to an instruction set, unless it is the widest here."""
    here = machine_isas()
    if isa in (None, here[0]) or all(os.environ.get(name) == value for name, value in AVX2_ONLY.items()):
        return
    if isa not in here:
        sys.exit(f"expected one of {', '.join(here)}, which this machine has, got {isa}")
    compiler = f"{os.environ.get('CC', 'cc')} -march=x86-64-v3"
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **AVX2_ONLY, "CC": compiler})


def machine(threads: int, device: str) -> str:
    """Processor or GPU, threads and system in one line."""
    entries = processor_entries()
    name = entries.get("model name", platform.processor() or platform.machine())
    flags = ", AMX" if "amx_tile" in entries.get("flags", "") and "ONEDNN_MAX_CPU_ISA" not in os.environ else ""
    processor = f"{name} ({torch.backends.cpu.get_cpu_capability()}{flags}), {threads} threads, {platform.system()}"
    return processor if device == "cpu" else f"{torch.cuda.get_device_name()} beside {processor}"


def _ratio(timings: dict[str, Timing], peers_in: list[str]) -> str:
    """How many times slower than diffeo the fastest of the peers is, and which one that is."""
    rivals = {name: timings[name].median for name in peers_in if name in timings and timings[name].seconds}
    if not rivals or "diffeo" not in timings:
        return "-"
    fastest = min(rivals, key=rivals.__getitem__)
    return f"{rivals[fastest] / timings['diffeo'].median:.2f}x ({fastest})"


def table(results: dict[str, dict[str, dict[str, Timing]]], libraries: list[str], gflops: float) -> list[str]:
    """The markdown table; the last columns set diffeo against the fastest peers and against the floor."""
    shown = [n for n in libraries if any(n in timings for row in results.values() for timings in row.values())]
    rivals = [n for n in shown if n not in peers.OWN]
    head = [
        *shown,
        "fastest peer / diffeo",
        "fastest PyTorch peer / diffeo",
        "reference / diffeo",
        "floor",
        "diffeo / floor",
    ]
    lines = ["| model D, H, batch | | " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * len(head)]
    for key, operations in results.items():
        for i, (operation, timings) in enumerate(operations.items()):
            floor = floor_seconds(ROWS[key], operation, gflops)
            cells = [timings[n].cell() if n in timings else "-" for n in shown]
            cells += [_ratio(timings, rivals), _ratio(timings, [n for n in rivals if n != "flowjax"])]
            cells += [_ratio(timings, ["reference"]).removesuffix(" (reference)"), _ms(floor)]
            cells.append(f"{timings['diffeo'].median / floor:.1f}x" if "diffeo" in timings else "-")
            lines.append(f"| {'' if i else ROWS[key].title()} | {operation} | " + " | ".join(cells) + " |")
    return lines


def profile(row: Row, operations: list[str], calls: int = 5) -> list[str]:
    """Where diffeo's time goes: torch.profiler's table of each operation."""
    models = build_all(row, ["diffeo"])
    lines = []
    for operation in operations:
        call = _calls(row, models, operation)["diffeo"]
        for _ in range(3):
            call()
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if row.spec.device != "cpu" else []
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(calls):
                call()
        by = "self_cpu_time_total" if row.spec.device == "cpu" else "self_cuda_time_total"
        text = profiler.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=45)
        lines += [f"## {row.title()}, {operation}, {calls} calls", "", "```", text.rstrip(), "```", ""]
    return lines


def arguments_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="rows of the table (all)")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--libraries", nargs="+", choices=peers.LIBRARIES, default=peers.LIBRARIES)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, a fifth of the time each")
    parser.add_argument("--slow", action="store_true", help=f"also calls that take over {TOO_SLOW:.0f} s, twice each")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each library (7)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per library and operation (5)")
    parser.add_argument("--threads", type=int, help="threads of every library (all processors)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--isa", choices=(*ISAS, "native"), help="hold every library to it (the widest at hand)")
    parser.add_argument("--isas", action="store_true", help="print the instruction sets of this machine, and stop")
    parser.add_argument("--profile", action="store_true", help="append a profile of diffeo for every row")
    parser.add_argument("--out", type=Path, help="write the table (markdown) to this file, renewed after every row")
    parser.add_argument("--json", type=Path, help="write every timed call (seconds) to this file")
    return parser.parse_args()


def main() -> None:
    """Runs the rows asked for and writes the table."""
    args = arguments_of()
    if args.isas:
        print(*machine_isas())
        return
    hold_to(args.isa)
    threads = peers.use_threads(args.threads)
    libraries = list(args.libraries)
    rates = best_rate(args.device)
    held = {name: os.environ[name] for name in ("CC", *AVX2_ONLY) if name in os.environ}
    gflops = max(rates.values())
    keys = args.rows or (QUICK if args.quick else list(ROWS))
    how = {"rounds": args.rounds, "seconds": args.seconds, "slow": args.slow}
    if args.quick:
        how |= {"rounds": 3, "seconds": args.seconds / 5}
    head = [
        f"# Speed beside the other libraries: {args.isa or machine_isas()[0]}\n",
        f"Median (quartiles) in ms, float32, {datetime.now(UTC):%Y-%m-%d}, {machine(threads, args.device)}.",
        ", ".join(f"{name} {v}" for name, v in peers.versions(tuple(libraries)).items() if v != "-") + ".",
        *(["Held to it by " + ", ".join(f"`{name}={value}`" for name, value in held.items()) + "."] if held else []),
        "Best float32 matrix product: " + ", ".join(f"{n} {r:.0f} GFLOP/s" for n, r in rates.items()) + ".",
    ]
    print("\n".join(head), flush=True)
    results: dict[str, dict[str, dict[str, Timing]]] = {}
    profiles: list[str] = []
    loads: dict[str, float] = {}
    for key in keys:
        ROWS[key] = row = replace(ROWS[key], spec=replace(ROWS[key].spec, device=args.device))
        print(f"{key}: {row.title()}", flush=True)
        busy = Busy()
        results[key] = run_row(row, libraries, list(args.operations), **how)
        loads[key] = busy.others()
        if args.profile and "diffeo" in libraries:
            profiles += profile(row, list(args.operations))
        note = "Other processes took, of one processor: " + ", ".join(f"{k} {v:.0f} %" for k, v in loads.items()) + "."
        if max(loads.values()) > DISTURBED:
            note += " **Disturbed: do not quote.** Threads that wait for each other suffer most."
        text = "\n".join([*head, note, "", *table(results, libraries, gflops), "", *profiles])
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(text)
        if args.json:
            raw = {k: {o: {n: t.seconds for n, t in ts.items()} for o, ts in ops.items()} for k, ops in results.items()}
            args.json.write_text(json.dumps({"head": head, "gflops": rates, "seconds": raw}, indent=1))
    print("\n" + text)


if __name__ == "__main__":
    main()
