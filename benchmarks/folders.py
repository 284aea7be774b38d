"""Train on and score a folder of parquet files: neither memory may grow with the rows.

    python benchmarks/folders.py                                   # 10, 30 and 100 million rows; 8 GB of disk
    python benchmarks/folders.py --rows 2000000 4000000 --minutes 0.2
    python benchmarks/folders.py --processes 2                     # training by torchrun

Generates rows of 8 columns in files of a million, sorted by the first column. Prints, for each number of rows, peak
memory and rows per second: of scoring all of them into a folder, and of training for some minutes, a part of an epoch;
then the slopes of memory against rows. Training keeps 128 MiB of rows in memory (--memory), less than any of these
folders has, so that it reads all of them by row groups.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = 8
FILE = 1_000_000  # rows
MODEL = ("--model", "maf", "--transforms", 1, "--hidden", 32, "--set", "univariate=affine")


def write_files(folder: Path, files: range, group: int, total: int) -> None:
    """Write correlated columns: of each file those with the first column in a quantile of its own."""
    mixing = np.random.default_rng(0).normal(size=(COLUMNS, COLUMNS)) / COLUMNS**0.5
    mixing[1:, 0] = 0
    for number in files:
        z = np.random.default_rng((1, number)).normal(size=(FILE, COLUMNS))
        z[:, 0] = 4 * ((number + np.linspace(0, 1, FILE)) / total - 0.5)
        x = (z @ mixing).astype(np.float32)
        columns = pa.table([pa.array(column) for column in x.T], names=[f"x{i}" for i in range(COLUMNS)])
        pq.write_table(columns, folder / f"{number:05}.parquet", row_group_size=group)


def watch(words: list[str]) -> tuple[str, float]:
    """Run a process; return what it printed, and the peak memory in MB of it or of one that it started."""
    peak = 0.0
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as noted:
        process = subprocess.Popen(words, stdout=printed, stderr=noted)
        while process.poll() is None:
            for number in family(process.pid):
                try:
                    status = Path(f"/proc/{number}/status").read_text()
                except OSError:  # it has ended
                    continue
                memory = re.search(r"VmHWM:\s+(\d+)", status)
                peak = max(peak, int(memory[1]) / 1e3 if memory else 0.0)
            time.sleep(0.2)
        printed.seek(0)
        noted.seek(0)
        if process.returncode:
            raise SystemExit(f"failed: {noted.read()}")
        return printed.read(), peak


def family(process: int) -> list[int]:
    """Return a process and those that it started."""
    members = [process]
    for member in members:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            with suppress(OSError):
                members += map(int, children.read_text().split())
    return members


def run(processes: int, *argv: object) -> tuple[dict, float, float]:
    """Run a command of diffeo: what it reports, the peak memory of a process in MB, and seconds."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [sys.executable, *(launch if processes > 1 else []), "-m", "diffeo", *map(str, argv), "--json"]
    started = time.monotonic()
    printed, peak = watch(words)
    return json.loads(printed), peak, time.monotonic() - started


def slope(rows: list[int], peaks: list[float]) -> float:
    """Return by how many bytes memory grows with each row, by least squares."""
    return float(np.polyfit(rows, np.array(peaks) * 1e6, 1)[0])


def main() -> None:
    """Generate more and more files; score and train on each number of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e7, 3e7, 1e8], help="multiples of a million")
    parser.add_argument("--group", type=int, default=100_000, help="rows of a row group")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training, for each number of rows")
    parser.add_argument("--memory", type=float, default=0.125, help="GiB of rows that training may keep")
    parser.add_argument("--processes", type=int, default=1, help="that train together, by torchrun")
    parser.add_argument("--no-scoring", action="store_true", help="train only")
    parser.add_argument("--folder", type=Path, help="where the files go for the while")
    options = parser.parse_args()
    counts = sorted({max(1, round(rows / FILE)) for rows in options.rows})
    scoring: list[float] = []
    training: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "data").mkdir()
        files = 0
        for count in counts:
            write_files(folder / "data", range(files, count), options.group, counts[-1])
            files = count
            size = sum(path.stat().st_size for path in (folder / "data").iterdir()) / 1e9
            print(f"{count * FILE:,} rows of {COLUMNS} columns in {count} files, {size:.1f} GB", flush=True)
            trained, memory, seconds = run(
                options.processes, "fit", folder / "data", "--out", folder / "run", "--force", "--no-figures",
                "--memory", options.memory, "--minutes", options.minutes, "--batch-size", 4096, *MODEL,
            )  # fmt: skip
            training.append(memory)
            before, rows = seconds - trained["seconds"], trained["steps"] * 4096
            print(
                f"  training: {rows / trained['seconds']:>9,.0f} rows/s, {rows:,} rows in {trained['seconds']:.0f} s,"
                f" after {before:.0f} s of looking at all of them, peak memory {memory:,.0f} MB",
                flush=True,
            )
            if options.no_scoring:
                continue
            report, memory, _ = run(1, "score", folder / "run", folder / "data", "--out", folder / "scored", "--force")
            written = sum(pq.read_metadata(path).num_rows for path in (folder / "scored").iterdir())
            assert report["rows"] == written == count * FILE
            scoring.append(memory)
            print(
                f"  scoring:  {report['rows_per_second']:>9,.0f} rows/s, all of them in {report['seconds']:.0f} s,"
                f" peak memory {memory:,.0f} MB",
                flush=True,
            )
    if len(counts) > 1:
        rows_of = [count * FILE for count in counts]
        for what, peaks in (("training", training), ("scoring", scoring)):
            if peaks:
                print(f"slope of peak memory, {what}: {slope(rows_of, peaks):+.2f} bytes a row, of {4 * COLUMNS}")


if __name__ == "__main__":
    main()
