#!/bin/sh
# Makes the benchmark environment: sh benchmarks/setup.sh [folder, .venv-bench unless told]. PYTHON names the interpreter.
set -eu
cd "$(dirname "$0")/.."
venv="${1:-.venv-bench}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
# torch comes first and alone; everything else without its dependencies, which could ask for another torch.
"$venv/bin/python" -m pip install --quiet -c constraints.txt torch
"$venv/bin/python" -m pip install --quiet --no-deps -r benchmarks/requirements.txt
"$venv/bin/python" -m pip install --quiet --no-deps --editable .
"$venv/bin/python" benchmarks/peers.py --versions
