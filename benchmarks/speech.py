"""Spoken digits: a WaveNet, and a Parallel WaveNet distilled from it. Speaker jackson of fsdd, 8 kHz.

    DIFFEO_DATA=data python benchmarks/speech.py all --keep runs --minutes 25 --student-minutes 30
    DIFFEO_DATA=data python benchmarks/speech.py teacher --keep runs --minutes 25
    DIFFEO_DATA=data python benchmarks/speech.py student --keep runs --student-minutes 30

`teacher`: `diffeo fit fsdd-jackson --model wavenet --context mel,label`; takes 0 to 4 of every digit are the test. Its
bits per 16-bit sample stand beside those of Gaussian models (benchmarks/audio_bars.py). `student`: `diffeo distill` of
the teacher in the folder, with its whole report, on the test recordings; then what is asked for, and what came out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffeo
import peers
from diffeo import commands
from diffeo.cli import show

SET = "fsdd-jackson"
BARS = {"independent Gaussian samples": 13.51, "stationary AR(16)": 11.77}
TARGET = 9.8  # bits per sample of the teacher


def teach(run: Path, options: argparse.Namespace) -> None:
    """Train the teacher and print its bits beside the bars."""
    started = time.monotonic()
    summary = commands.fit(
        SET, run, model="wavenet", context=["mel", "label"], minutes=options.minutes, seed=options.seed, force=True,
        progress=True,
    )  # fmt: skip
    test = summary["test"]
    print(show.fit(summary))
    print(f"\n| {SET}, test takes 0-4 | bits per 16-bit sample |\n| --- | ---: |")
    for name, bits in BARS.items():
        print(f"| {name} | {bits:.2f} |")
    print(f"| asked for, at most | {TARGET:.2f} |")
    print(f"| WaveNet | {test['bits_per_sample']:.3f} ± {test['bits_per_sample_stderr']:.3f} |")
    print(f"\n{time.monotonic() - started:.0f} s of wall-clock time in all\n", flush=True)


def learn(run: Path, out: Path, options: argparse.Namespace) -> None:
    """Distil the teacher and print what the student lost and gained."""
    started = time.monotonic()
    summary = commands.distill(
        run, out, minutes=options.student_minutes, forward_share=options.forward_share,
        power=options.power, contrast=options.contrast, seed=options.seed,
        force=True, progress=True, say=print,
    )  # fmt: skip
    print(show.distill(summary))
    print("\n| | asked for | measured |\n| --- | --- | ---: |")
    for name, wanted, measured in verdicts(summary["distillation"], summary["rate"]):
        print(f"| {name} | {wanted} | {measured} |")
    print(f"\n{time.monotonic() - started:.0f} s of wall-clock time in all\n", flush=True)


def verdicts(report: Mapping[str, Any], rate: int) -> list[tuple[str, str, str]]:
    """What is asked of a student, and what it came to."""
    sound, speed = report["sound"], report["samples_per_second"]
    reverse, forward = report["reverse_kl"], report["forward_kl"]
    distances = {name: sound[name]["log_spectral_distance"] for name in ("teacher", "student")}
    difference = distances["student"]["mean"] - distances["teacher"]["mean"]
    loud = sound["student"]["rms"]["mean"] / sound["real"]["rms"]["mean"]
    flat, voiced = (", ".join(f"{part[key]['mean']:.3f} {name}" for name, part in sound.items())
                    for key in ("flatness", "voiced_share"))  # fmt: skip
    real = report.get("real_rows", {"mean": float("nan"), "stderr": float("nan")})
    return [
        ("KL(student, teacher), nats per sample", "<= 0.2",
         f"{reverse['per_dimension']:.4f} ± {reverse['stderr_per_dimension']:.4f}"),
        ("KL(teacher, student), nats per sample", "reported",
         f"{forward['per_dimension']:.4f} ± {forward['stderr_per_dimension']:.4f}"),
        ("likelihood lost on test recordings, bits per sample", "reported",
         f"{real['mean']:.3f} ± {real['stderr']:.3f}"),
        ("log-spectral distance, student's - teacher's, dB", "<= 1", f"{difference:+.2f}"),
        ("RMS, student's / real", "0.9 .. 1.1", f"{loud:.3f}"),
        ("spectral flatness", "beside real", flat),
        ("voiced share", "beside real", voiced),
        ("student, times real time", ">= 20", f"{speed['student'] / rate:.1f}"),
        ("student, times the naive teacher", ">= 1000", f"{speed['student'] / speed['teacher_naive']:,.0f}"),
        ("incremental teacher, times the naive one", ">= 30", f"{speed['teacher'] / speed['teacher_naive']:,.0f}"),
    ]  # fmt: skip


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("teacher", "student", "all"))
    parser.add_argument("--minutes", type=float, default=25.0, help="of the teacher's training")
    parser.add_argument("--student-minutes", type=float, default=30.0, help="of the distillation")
    parser.add_argument("--forward-share", type=float, help="weight of the forward KL in the last stage")
    parser.add_argument("--power", type=float, help="weight of the power loss")
    parser.add_argument("--contrast", type=float, help="weight of the contrastive term")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder; 'student' takes its teacher from it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads (all processors)")
    options = parser.parse_args()
    if options.what == "student" and options.keep is None:
        parser.error("where is the teacher? give the folder that holds it (--keep)")
    threads = peers.use_threads(options.threads)
    print(f"diffeo {diffeo.__version__}, {threads} threads, seed {options.seed}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.what != "student":
            teach(folder / "teacher", options)
        if options.what != "teacher":
            learn(folder / "teacher", folder / "student", options)


if __name__ == "__main__":
    main()
