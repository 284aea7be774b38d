"""Score 10 million rows of 10 columns from parquet: memory must not grow with the rows.

    python benchmarks/score10m.py                    # 10 million rows, beside 1 million; about 0.9 GB of disk
    python benchmarks/score10m.py --rows 2000000     # shorter

Prints, for a tenth of the rows and for all of them, rows per second and the peak memory of the process that scores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = 10
GROUP = 250_000  # rows generated, and written as a row group, at a time


def write_table(path: Path, rows: int, seed: int) -> None:
    """Write correlated columns, some of them skewed, one of whole numbers, group by group."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(COLUMNS, COLUMNS)) / COLUMNS**0.5
    names = [f"x{i}" for i in range(COLUMNS)]
    types = [pa.int32() if i == 3 else pa.float32() for i in range(COLUMNS)]
    with pq.ParquetWriter(path, pa.schema(list(zip(names, types, strict=True)))) as writer:
        for start in range(0, rows, GROUP):
            x = generator.normal(size=(min(GROUP, rows - start), COLUMNS)) @ mixing
            x[:, 1] = np.exp(x[:, 1])
            x[:, 3] = np.round(5 * x[:, 3])
            columns = [pa.array(x[:, i].astype(t.to_pandas_dtype())) for i, t in enumerate(types)]
            writer.write_table(pa.table(columns, names=names))


def run(*argv: object) -> tuple[dict, float]:
    """Run a command of diffeo, and return what it reports and the peak memory of its process in MB."""
    words = [sys.executable, "-m", "diffeo", *map(str, argv), "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    report = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(words)}")
    return json.loads(report), usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Generate, train a little, score twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--model", help="a recipe; the default one of diffeo fit if none is named")
    parser.add_argument("--folder", type=Path, help="where the files go for the while")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_table(folder / "train.parquet", 50_000, seed=1)
        model = ["--model", options.model] if options.model else []
        trained, memory = run(
            "fit", folder / "train.parquet", "--out", folder / "run", "--epochs", 1, "--no-figures", *model
        )
        print(f"{trained['model']} of {trained['parameters']:,} parameters; training took {memory:,.0f} MB at most")
        peaks = []
        for rows in (options.rows // 10, options.rows):
            write_table(folder / "rows.parquet", rows, seed=2)
            size = (folder / "rows.parquet").stat().st_size / 1e6
            report, memory = run(
                "score", folder / "run", folder / "rows.parquet", "--out", folder / "scores.parquet", "--force"
            )
            assert report["rows"] == pq.read_metadata(folder / "scores.parquet").num_rows == rows
            peaks.append(memory)
            print(
                f"{rows:>11,} rows ({size:,.0f} MB of parquet): {report['rows_per_second']:>9,.0f} rows/s, "
                f"{report['seconds']:,.0f} s, peak memory {memory:,.0f} MB",
                flush=True,
            )
        print(f"ten times the rows, {peaks[1] / peaks[0]:.2f} times the memory")


if __name__ == "__main__":
    main()
