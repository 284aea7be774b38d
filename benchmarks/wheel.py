"""The kernels that a wheel carries beside those that this machine's compiler builds for it: time of each, and sizes.

    python benchmarks/wheel.py [--wheel dist/diffeo-*.whl] [--rounds 5]

Every case of the race that kernels go through (``diffeo.race``) is computed by both libraries, one thread, in processes
that take turns; the best time of each counts. A ratio of 1 means as fast. Without --wheel the libraries that a wheel
would carry are compiled first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch

CALLS = 7


def times(library: str) -> dict[str, float]:
    """The best seconds of each case by one library, in this process."""
    from diffeo.ops import using
    from diffeo.ops.cpu import build
    from diffeo.race import CONTENDERS

    build.adopt(library)
    torch.set_num_threads(1)
    best: dict[str, float] = {}
    for kind, cases in CONTENDERS.items():
        for name, make in cases.items():
            torch.manual_seed(0)
            with using("cpu"):
                run = make()
                run()
                for _ in range(CALLS):
                    started = time.thread_time()
                    run()
                    best[f"{kind}: {name}"] = min(best.get(f"{kind}: {name}", math.inf), time.thread_time() - started)
    return best


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="its library is taken")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.times:
        print(json.dumps(times(options.times)))
        return
    from diffeo.ops.cpu import build, compiler, prebuilt

    with tempfile.TemporaryDirectory() as work:
        folder, native = Path(work) / "builds", Path(work) / "native"
        native.mkdir()
        if options.wheel is None:
            prebuilt.build(folder)
        else:
            with zipfile.ZipFile(options.wheel) as wheel:
                members = [name for name in wheel.namelist() if "ops/cpu/builds/" in name and not name.endswith("/")]
                for name in members:
                    folder.mkdir(exist_ok=True)
                    (folder / Path(name).name).write_bytes(wheel.read(name))
            print(f"{options.wheel.name}: {options.wheel.stat().st_size / 1e6:.2f} MB")
        prebuilt.FOLDER = folder
        carried, found = prebuilt.shipped(compiler.sources(Path(build.__file__).parent)), compiler.find()
        if carried is None or found is None:
            raise SystemExit("expected a build for this processor, and a compiler to hold it against")
        library, facts = found.make(compiler.sources(Path(build.__file__).parent), native, 300.0)
        print(f"{carried} ({carried.facts['version']}) beside {facts['version']} {' '.join(facts['flags'])}")
        best: dict[str, dict[str, float]] = {"wheel": {}, "native": {}}
        for _ in range(options.rounds):
            for name, path in (("wheel", carried.path), ("native", library)):
                done = subprocess.run(
                    [sys.executable, __file__, "--times", str(path)], capture_output=True, text=True, check=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )  # fmt: skip
                for case, seconds in json.loads(done.stdout).items():
                    best[name][case] = min(best[name].get(case, math.inf), seconds)
    print("\n| case | wheel, ms | native, ms | ratio |\n| --- | ---: | ---: | ---: |")
    ratios = []
    for case, seconds in best["wheel"].items():
        ratios.append(seconds / best["native"][case])
        print(f"| {case} | {1e3 * seconds:.2f} | {1e3 * best['native'][case]:.2f} | {ratios[-1]:.2f} |")
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"\nGeometric mean {mean:.3f}, worst {max(ratios):.2f}; torch {torch.__version__}, {platform.machine()}.")


if __name__ == "__main__":
    main()
