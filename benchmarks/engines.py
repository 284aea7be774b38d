"""Score Parquet files by the workers of each engine: rows per second, and whether the bytes are the same.

    python benchmarks/engines.py                                  # local, and every engine that is installed
    python benchmarks/engines.py --rows 20000000 --engines local ray --workers 2

Three files of random rows are scored by one, two and three workers of this machine, by two workers of every engine, and
by the command without an engine. The time of an engine is that of the whole command but for its start: from the first
part to the last. Beside it stands what it is of the rows per second of as many local workers. Then the largest
difference of log-likelihoods between batches of 1, 7, 1,024 and 65,536 rows, by one thread and two.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import diffeo
from score10m import run, write_table

PACKAGES = {"local": "diffeo", "ray": "ray", "spark": "pyspark", "dask": "distributed"}
TIMED = """
import sys, time
from diffeo import commands
if __name__ == "__main__":
    run, data, out, engine, workers = sys.argv[1:]
    marks = []
    note = lambda done, total: marks.append((time.perf_counter(), done))
    commands.score(run, data, out, engine=engine, workers=int(workers), progress=note)
    written = [(at, done) for at, done in marks if done]
    (first, before), (last, rows) = written[0], written[-1]
    print((rows - before) / (last - first), rows / (last - marks[0][0]))
"""


def scored(script: Path, model: Path, data: Path, out: Path, engine: str, workers: int) -> tuple[float, float]:
    """Score by an engine; rows per second once it runs, and with its start."""
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, str(script), *map(str, (model, data, out, engine, workers))]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"failed: {engine}: {done.stderr[-2000:]}")
    once, whole = done.stdout.split()[-2:]
    return float(once), float(whole)


def digest(folder: Path) -> str:
    """The first digits of the SHA-256 of the results in a folder, in the order of their names."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.parquet")):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


@torch.no_grad()
def batches(rows: int) -> None:
    """Print how far log-likelihoods of batches of other sizes are from those of one batch."""
    torch.manual_seed(0)
    x = torch.randn(rows, 10)
    for name in ("nice", "realnvp", "maf", "nsf", "iaf"):
        flow = getattr(diffeo, name)(10).eval()
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        torch.set_num_threads(1)
        expected, worst = flow.log_prob(x), 0.0
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for size in (1, 7, 1024, 65536):
                last = min(rows, 300 * size)
                parts = [flow.log_prob(x[i : min(i + size, last)]) for i in range(0, last, size)]
                difference = (torch.cat(parts) - expected[:last]).abs() / (1 + expected[:last].abs())
                worst = max(worst, float(difference.max()))
        print(f"{name:8} batches of 1, 7, 1,024, 65,536, threads 1, 2: at most {worst:.1e} (1 + |log p|)", flush=True)


def main() -> None:
    """Generate, train a little, score by every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6_000_000)
    known = [engine for engine, package in PACKAGES.items() if find_spec(package)]
    parser.add_argument("--engines", nargs="+", choices=[*PACKAGES], default=known)
    parser.add_argument("--model", default="nsf")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3], help="of this machine; two in any case")
    parser.add_argument("--rounds", type=int, default=1, help="the engines take turns; the best of so many counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        (folder / "timed.py").write_text(TIMED)
        write_table(folder / "train.parquet", 20_000, seed=1)
        for k in range(3):
            write_table(folder / "data" / f"part-{k}.parquet", options.rows // 3, seed=2 + k)
        words = ["--model", options.model, "--folds", 1, "--epochs", 1, "--no-figures"]
        run("fit", folder / "train.parquet", "--out", folder / "run", *words)
        started = time.perf_counter()
        run("score", folder / "run", folder / "data", "--out", folder / "plain")
        pace = options.rows / (time.perf_counter() - started)
        expected = digest(folder / "plain")
        print(f"{options.rows:,} rows of 10 columns, {options.model}; load of the machine {os.getloadavg()[0]:.1f}")
        print(f"{'no engine':10}            {pace:>10,.0f} rows/s with its start       bytes {expected}", flush=True)
        cases = [("local", count) for count in sorted({2, *options.workers})]
        cases += [(each, 2) for each in options.engines if each != "local"]
        best: dict[tuple[str, int], tuple[float, float]] = {}
        for turn in range(options.rounds):
            for engine, workers in cases:
                out = folder / f"{engine}-{workers}-{turn}"
                paces = scored(folder / "timed.py", folder / "run", folder / "data", out, engine, workers)
                best[engine, workers] = max(best.get((engine, workers), paces), paces)
                same = "the same bytes" if digest(out) == expected else f"OTHER BYTES {digest(out)}"
                once, whole = best[engine, workers]
                of = f"{once / best['local', workers][0]:.0%} of local"
                print(
                    f"{engine:10} {workers} workers {once:>10,.0f} rows/s, {whole:,.0f} with its start; {of}; {same}",
                    flush=True,
                )
    batches(int(np.clip(options.rows, 1, 65_536)))


if __name__ == "__main__":
    main()
