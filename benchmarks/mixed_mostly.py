"""mostlyai-engine for mixed_peers.py, in an environment of its own (mixed_mostly_setup.sh): log P of rows, and speeds.

Writes log_prob.npy and facts.json into --out. ``log_prob`` of TabularARGN is that of its codes; here it becomes that of
the recorded values, as mixed_peers.py says.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CHUNK = 4096  # rows at a time
LONG = 30.0  # seconds after which a call is not repeated


def read(path: Path) -> pd.DataFrame:
    """Return the rows of a csv file; only an empty cell is a gap."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def refined(rows: pd.DataFrame, stats: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return what to add to log P of the codes, and which rows have a number that the codes cannot tell, (n,) each.

    A bin's numbers are drawn uniformly and cut off after the column's decimals: each has its share of the bin's mass.
    The smallest and the largest number of a binned column have codes of their own.
    """
    from mostlyai.engine._encoding_types.tabular.numeric import decode_numeric, encode_numeric

    shares, unknown = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
    for name in rows.columns:
        column = stats[name]
        if "numeric" not in column["encoding_type"].lower():
            continue
        if rows[name].isna().any():
            raise SystemExit(f"expected numbers without gaps, got some in column {name}")
        values = rows[name].to_numpy(dtype="float64")
        if "bins" in column:
            bins = np.array(column["bins"], dtype="float64")
            counts = np.maximum(np.rint(np.diff(bins) * 10.0 ** -column["min_decimal"]), 1)
            place = np.searchsorted(bins, values, side="right").clip(1, len(counts)) - 1
            inner = (values > bins[0]) & (values < bins[-1])
            shares -= np.where(inner, np.log(counts[place]), 0)
            unknown |= (values < bins[0]) | (values > bins[-1])
            continue
        if "codes" in column:
            known = {float(code) for code in column["codes"] if not code.startswith(("_", "<"))}  # not special ones
            unknown |= ~np.isin(values, list(known))
            continue
        digits = decode_numeric(encode_numeric(rows[name].copy(), column), column)
        unknown |= ~np.isclose(digits.to_numpy(dtype="float64"), values, rtol=1e-9, atol=1e-9)
    return shares, unknown


def clocked(call: Callable[[], Any], repeats: int = 1) -> float:
    """Return the median of the seconds that a call takes; it is not repeated after half a minute."""
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < LONG:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def main() -> None:
    """Fits, scores, samples, imputes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "test", "gaps", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3, help="of each speed; 0: none is measured")
    args = parser.parse_args()
    from mostlyai.engine import TabularARGN

    args.out.mkdir(parents=True, exist_ok=True)
    train, test, gaps = map(read, (args.train, args.test, args.gaps))
    gaps = gaps.astype({name: kind for name, kind in train.dtypes.items() if gaps[name].notna().all()})
    model = TabularARGN(
        max_training_time=args.minutes, max_epochs=math.inf, value_protection=False, random_state=args.seed,
        workspace_dir=args.out / "workspace", device="cpu",
    )  # fmt: skip
    seconds = clocked(lambda: model.fit(train))
    parts = [test[start : start + CHUNK] for start in range(0, len(test), CHUNK)]
    log_prob = np.concatenate([model.log_prob(part) for part in parts]).astype("float64")
    shares, unknown = refined(test, model._get_column_stats())
    np.save(args.out / "log_prob.npy", log_prob + shares)
    progress = pd.read_csv(next((args.out / "workspace").rglob("progress-messages.csv"))).iloc[-1]
    speeds = {}
    if args.repeats:
        speeds = {
            "training": float(progress["samples"] / progress["total_time"]),
            "scoring": len(test) / clocked(lambda: [model.log_prob(part) for part in parts], args.repeats),
            "sampling": args.rows / clocked(lambda: model.sample(args.rows), args.repeats),
            "imputing": len(gaps) / clocked(lambda: model.impute(gaps), args.repeats),
        }
    facts = {
        "version": version("mostlyai-engine"),
        "torch": version("torch"),
        "seconds": seconds,
        "epochs": float(progress["epoch"]),
        "unknown": int(unknown.sum()),
        "kinds": {name: column["encoding_type"] for name, column in model._get_column_stats().items()},
        "speeds": speeds,
    }
    (args.out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
