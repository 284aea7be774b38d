"""What a student loses of its teacher, and what it gains in speed: a MAF distilled into students that sample at once.

    python benchmarks/distill.py planar [--sets moons 8gaussians checkerboard] [--student NAME ...] [--minutes 5]
    python benchmarks/distill.py protein [--minutes 10]

For each set: `diffeo fit SET --model maf`, then `diffeo distill` with its default recipe for every student named, and
beside it the same student trained as long by the reverse KL alone, which leaves modes out. KLs are means of log-ratios
over 20,000 draws, in nats per row; recall is that of the weakest mode (8gaussians: the eight Gaussians; else clusters
of the teacher's rows); the log-likelihood is that of real rows held out of the teacher's training. Asked for: both KLs
at most 0.1 nats per row in the plane, 0.05 nats per column on protein, and every mode kept.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffeo
import peers
from diffeo import commands
from diffeo.distillation.density import REPORTED, DensityMethod
from diffeo.report.distillation import compare_draws, draw_both, warnings
from protein import locate

SETS = ("moons", "8gaussians", "checkerboard")


def centres(name: str) -> np.ndarray | None:
    """The known modes of a built-in set, in its own units."""
    if name != "8gaussians":
        return None
    angles = np.arange(8) * math.pi / 4
    return 4 / math.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], 1)


def judge(teacher: diffeo.Flow, student: diffeo.Flow, modes: np.ndarray | None, seed: int) -> dict[str, Any]:
    """The report of a pair of runs' flows, by known modes where there are some."""
    core, preprocessing = teacher.core, teacher.preprocessing
    if modes is not None:
        points = torch.as_tensor(modes, dtype=torch.float32)
        for part in reversed(preprocessing):
            points = part.inverse(points)
        modes = points.numpy()
    report = compare_draws(draw_both(student.core, core, None, REPORTED, seed), seed, modes)
    return report | {"warnings": warnings(report)}


def reverse_only(teacher: diffeo.Flow, like: diffeo.Flow, seconds: float, seed: int) -> diffeo.Flow:
    """A student of the same kind, trained by the reverse KL alone for as long."""
    assert like.recipe is not None
    torch.manual_seed(seed)
    flow = diffeo.recipes.build(like.recipe["name"], like.recipe["arguments"])
    core = teacher.core
    diffeo.fit(
        diffeo.Distillation(flow.core, core, forward_share=0.0),
        diffeo.training.SampleStream(
            core, batch_size=DensityMethod.batch_size, batches=DensityMethod.batches, seed=seed
        ),
        validation=core.sample(2048), minutes=seconds / 60, patience=math.inf, seed=seed,
    )  # fmt: skip
    return flow.eval()


def line(name: str, recipe: str, report: dict[str, Any], seconds: float, extra: dict[str, Any]) -> str:
    """One row of the table."""
    kls = [
        f"{part['mean']:.4f} ± {part['stderr']:.4f} ({part['per_dimension']:.4f})"
        for part in (report["reverse_kl"], report["forward_kl"])
    ]
    modes, auc = report["modes"], report["classifier"]
    difference = report["entropy"]["student"]["mean"] - report["entropy"]["teacher"]["mean"]
    real, speed = extra.get("real_rows"), extra.get("rows_per_second", {})
    cells = [
        name, recipe, *kls, f"{modes['kept']} of {modes['modes']}", f"{modes['lowest']:.2f} ± {modes['stderr']:.2f}",
        f"{difference:+.3f}", f"{report['effective_sample_size']:.0%}", f"{auc['auc']:.3f} ± {auc['stderr']:.3f}",
        f"{real['mean']:+.4f} ± {real['stderr']:.4f}" if real else "-",
        *(f"{speed[key]:,.0f}" if key in speed else "-" for key in ("student", "teacher", "teacher_naive")),
        f"{seconds:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEAD = [
    "| set | recipe | KL(student, teacher), nats per row (per column) | KL(teacher, student) | modes kept"
    " | weakest mode | H(S) - H(T) | effective sample size | classifier's AUC"
    " | held-out log-likelihood, student - teacher | student, rows/s | teacher | one pass per column | seconds |",
    "| --- | --- " + "| ---: " * 12 + "|",
]


def measure(name: str, source: str, options: argparse.Namespace, folder: Path) -> None:
    """Fit the teacher, distil it into every student, and print a row for each recipe."""
    started = time.monotonic()
    run = folder / f"{name}-teacher"
    fitted = commands.fit(source, run, model="maf", minutes=options.teacher_minutes, seed=options.seed, figures=False)
    teacher = diffeo.load(run)
    nll = fitted["validation"]
    print(f"\n{name}: MAF, held-out NLL {nll['nll']:.4f} ± {nll['stderr']:.4f}, {time.monotonic() - started:.0f} s\n")
    print("\n".join(HEAD), flush=True)
    for kind in options.student:
        out = folder / f"{name}-{kind}"
        summary = commands.distill(
            run, out, student=kind, minutes=options.minutes, seed=options.seed, figures=options.figures
        )
        student = diffeo.load(out)
        report = judge(teacher, student, centres(name), options.seed)
        print(line(name, f"{kind}, default", report, summary["seconds"], summary["distillation"]), flush=True)
        warned = report["warnings"]
        if options.ablation:
            alone = reverse_only(teacher, student, summary["seconds"], options.seed)
            report = judge(teacher, alone, centres(name), options.seed)
            print(line(name, f"{kind}, reverse KL alone", report, summary["seconds"], {}), flush=True)
            warned += [f"reverse KL alone: {text}" for text in report["warnings"]]
        print("".join(f"\nwarning: {text}" for text in warned))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("planar", "protein"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--student", nargs="+", choices=tuple(DensityMethod.students), default=["nsf-inverse"])
    parser.add_argument("--minutes", type=float, help="of distillation (10,000 steps)")
    parser.add_argument("--teacher-minutes", type=float, default=2.0)
    parser.add_argument("--no-ablation", dest="ablation", action="store_false", help="leave out the reverse KL alone")
    parser.add_argument("--data", type=Path, help="protein's file; else below the folder in DIFFEO_DATA")
    parser.add_argument("--out", type=Path, help="keep runs and figures in this folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads (all processors)")
    options = parser.parse_args()
    options.figures = options.out is not None
    threads = peers.use_threads(options.threads)
    print(f"diffeo {diffeo.__version__}, torch {torch.__version__}, {threads} threads, seed {options.seed}")
    sources = {name: name for name in options.sets} if options.what == "planar" else {"protein": locate(options.data)}
    with tempfile.TemporaryDirectory() as temporary:
        for name, source in sources.items():
            measure(name, str(source), options, options.out or Path(temporary))


if __name__ == "__main__":
    main()
