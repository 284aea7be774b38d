"""Count of hostile and broken files that the command line does not meet as it should, by kind; names them.

The files are made by `tests/hostile/`, and `tests/hostile/judge.py` says what is asked of a command: exit code 0 or 2,
one line of error that names the file and a remedy, no traceback, nothing that steers a terminal, no line of more than
500 characters, bounded time and memory, nothing left behind by a refusal, and no input changed.

    python benchmarks/hostile_files.py [runs tables pictures recordings bombs] [--only TEXT]
"""

import argparse
import contextlib
import importlib
import io
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile.judge import judged
from hostile.models import make

KINDS = ("runs", "tables", "pictures", "recordings", "bombs")


def main() -> None:
    """Meet them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND", help=" ".join(KINDS))
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            models = make(place)
        counts = []
        for kind in options.kinds:
            cases = [
                case for case in importlib.import_module(f"hostile.{kind}").cases(models) if options.only in case.name
            ]
            began, short = time.monotonic(), 0
            for number, case in enumerate(cases):
                faults = judged(case, place / f"{kind}-{number}")
                short += bool(faults)
                for fault in faults:
                    print(f"{kind}: {case.name!r:.80}: {fault:.300}", flush=True)
            counts.append((kind, len(cases), short, time.monotonic() - began))
    print(f"{'kind':<12}{'cases':>8}{'short':>8}{'seconds':>10}")
    for kind, all_, short, seconds in counts:
        print(f"{kind:<12}{all_:>8}{short:>8}{seconds:>10.0f}")


if __name__ == "__main__":
    main()
