"""Kill commands at random moments and look at what is left: nothing half-written, no earlier output lost.

Each trial starts a command that replaces an earlier output (`fit`, `distill`, `score`, `sample`, `export`, all with
--force), ends it by SIGKILL, SIGTERM or SIGINT after a random share of the time that it takes, or lets it run into a
limit of the size of files, as a full disk would, and then asks:

whole      the output is the earlier one to the bit, or a complete new one
clean      no temporary file is left, unless by SIGKILL; the next command clears these
resumed    a fit or a distillation that was killed ends, with --resume, with the weights of an undisturbed one
ended      no process that it had started is left

    python benchmarks/crash.py [--trials 200] [--seed 0]
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from diffeo.training.weights import digest, load_tensors

DIFFEO = [sys.executable, "-m", "diffeo"]
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
FULL = "full"
SMALL = ["--folds", "1", "--hidden", "32", "--transforms", "2", "--epochs", "20", "--no-figures"]
COMMANDS = {
    "fit": ["fit", "rows.csv", "--out", "run", "--seed", "1", *SMALL],
    "fit by folds": [
        "fit",
        "few.csv",
        "--out",
        "run",
        "--seed",
        "1",
        "--epochs",
        "8",
        "--hidden",
        "16",
        "--no-figures",
    ],
    "distill": ["distill", "teacher", "--out", "student", "--epochs", "4", "--no-figures", "--seed", "1"],
    "score": ["score", "teacher", "rows.csv", "--out", "scores.csv"],
    "sample": ["sample", "teacher", "-n", "200000", "--out", "samples.csv"],
    "export": ["export", "teacher", "--out", "teacher.onnx"],
}


def run(words: list[str], folder: Path, limit: int | None = None) -> subprocess.Popen:
    """Start a command; `limit` is the size in bytes that no file may exceed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def begin() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    return subprocess.Popen(
        [*DIFFEO, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=begin,
    )


def finish(words: list[str], folder: Path) -> float:
    """Run a command that must succeed; return its seconds."""
    since = time.monotonic()
    process = run(words, folder)
    _, error = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{error.decode()}")
    return time.monotonic() - since


def state(output: Path) -> str | bytes:
    """What identifies an output: of a run its weights."""
    if output.is_dir():
        return digest(load_tensors(output / "model.safetensors", "")[0])
    return output.read_bytes()


def leftovers(output: Path) -> list[str]:
    """Temporary files of an output, but for a replacement that can be resumed."""
    folder = output.parent
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")]
    names = [name for name in names if name.startswith(output.name)]
    return [name for name in names if not name.split("/")[0].endswith(".new.tmp") or name.count(".tmp") > 1]


def trial(name: str, how: str, folder: Path, seconds: float, new: str | bytes, rng: random.Random) -> list[str]:
    """One trial; return what is wrong."""
    words = [*COMMANDS[name], "--force"]
    output = folder / words[words.index("--out") + 1]
    before, earlier = state(output), set(leftovers(output))  # of a SIGKILL: this command may end before it clears them
    process = run(words, folder, 2000 if how == FULL else None)
    if how != FULL:
        time.sleep(rng.uniform(0, 1.05) * seconds)
        process.send_signal(SIGNALS[how])
    try:
        _, error = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:  # whoever has inherited its standard error is there
        return [f"{name}, {how}: it, or a process that it has started, does not end"]
    wrong = []
    if how == FULL and (process.returncode != 2 or error.count(b"\n") > 3):
        wrong.append(f"full: exit code {process.returncode}: {error.decode()[-200:]}")
    try:
        after = state(output)
    except Exception as damage:
        return [f"{name}, {how}: lost: {damage}"]
    trained = name in ("fit", "fit by folds", "distill")
    interrupted = how in ("TERM", "INT") and trained  # keeps its best weights so far
    if after not in (before, new) and not interrupted:
        wrong.append("neither the earlier output nor the whole new one")
    left = [name for name in leftovers(output) if name not in earlier]
    if how != "KILL" and left:
        wrong.append(f"left behind: {left}")
    if trained and after != new and how != FULL and ((folder / f"{output.name}.new.tmp").exists() or after != before):
        finish([*COMMANDS[name], "--resume"], folder)
        if state(output) != new:
            wrong.append("resumed to other weights")
        if leftovers(output) or (folder / f"{output.name}.new.tmp").exists():
            wrong.append(f"left behind after --resume: {leftovers(output)}")
    return [f"{name}, {how}: {what}" for what in wrong]


def main() -> None:
    """Run the trials and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    faults: list[str] = []
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = np.random.default_rng(0).normal(size=(4000, 3)).cumsum(1)
        for file, count in (("rows.csv", 4000), ("few.csv", 300)):
            np.savetxt(folder / file, rows[:count], delimiter=",", header="a,b,c", comments="")
        finish(["fit", "rows.csv", "--out", "teacher", *SMALL], folder)
        seconds, whole = {}, {}
        for name, words in COMMANDS.items():
            seconds[name] = finish([*words, "--force"], folder)
            output = folder / words[words.index("--out") + 1]
            whole[name] = state(output)
            if output.is_dir():  # an earlier one, of another seed
                other = [word if word != "1" or words[k - 1] != "--seed" else "2" for k, word in enumerate(words)]
                finish([*other, "--force"], folder)
                shutil.copytree(output, folder / f"earlier {output.name} {name}")
            print(f"{name}: {seconds[name]:.1f} s", flush=True)
        reported = 0
        for number in range(arguments.trials):
            name = list(COMMANDS)[number % len(COMMANDS)]
            how = [*SIGNALS, "KILL", FULL][number // len(COMMANDS) % 5]
            output = folder / COMMANDS[name][COMMANDS[name].index("--out") + 1]
            if output.is_dir():
                shutil.rmtree(output)
                shutil.copytree(folder / f"earlier {output.name} {name}", output)
            else:
                output.write_text("an earlier file\n")
            faults += trial(name, how, folder, seconds[name], whole[name], rng)
            counts[f"{name}, {how}"] += 1
            if (number + 1) % 20 == 0:
                print(f"{number + 1} trials, {len(faults)} faults", flush=True)
            print(*faults[reported:], sep="\n", end="\n" * (len(faults) > reported), flush=True)
            reported = len(faults)
    for what, count in sorted(counts.items()):
        print(f"{what:24} {count:4} trials")
    print(f"{arguments.trials} trials, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
