"""The README's table of speed, from the tables of `speed.py`: `python benchmarks/summary.py docs/speed-*.md`.

A cell is diffeo's median in ms and, in brackets, how many times as long the fastest peer takes; † marks models during
which other processes took more of a processor than `speed.py` allows.
"""

import argparse
import re
from pathlib import Path

OPERATIONS = ("log_prob", "train step", "sample")
NAMES = {"speed-avx2": "AVX2", "speed-avx512": "AVX-512"}
DISTURBED = 15.0  # percent of one processor, as in speed.py


def cells(path: Path) -> dict[str, dict[str, str]]:
    """Return by model and operation what one table of `speed.py` says."""
    text = path.read_text()
    header, _, *lines = [row.strip("|").split("|") for row in text.splitlines() if row.startswith("|")]
    columns = [name.strip() for name in header]
    ours, ahead = columns.index("diffeo"), columns.index("fastest peer / diffeo")
    taken = re.search(r"Other processes took, of one processor: (.*)", text)
    # Models are listed there in the order of the table.
    percents = [float(percent) for percent in re.findall(r"(\d+) %", taken[1])] if taken else []
    result: dict[str, dict[str, str]] = {}
    model = ""
    for row in ([cell.strip() for cell in line] for line in lines):
        if len(row) != len(columns) or row[1] not in OPERATIONS:
            continue
        model = row[0] or model
        times = result.setdefault(model, {})
        ratio = re.match(r"[\d.,]+", row[ahead])
        compared = f" ({_three_digits(float(ratio[0].replace(',', '')))}x)" if ratio else ""
        disturbed = percents[len(result) - 1] > DISTURBED if len(result) <= len(percents) else False
        times[row[1]] = row[ours].split(" (")[0] + compared + (" †" if disturbed else "")
    return result


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    """Print one table with a column for each operation and file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+", help="what speed.py wrote by --out")
    paths = parser.parse_args().tables
    names = [NAMES.get(path.stem, path.stem) for path in paths]
    tables = [cells(path) for path in paths]
    print("| model: D, hidden, rows |", " | ".join(f"{op}: {name}" for op in OPERATIONS for name in names), "|")
    print("| --- |", " | ".join("---:" for _ in OPERATIONS for _ in names), "|")
    for model in dict.fromkeys(model for table in tables for model in table):
        row = [table.get(model, {}).get(op, "-") for op in OPERATIONS for table in tables]
        print(f"| {model} |", " | ".join(row), "|")


if __name__ == "__main__":
    main()
