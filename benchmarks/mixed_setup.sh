#!/bin/sh
# Makes the environment of the benchmark of mixed tables: sh benchmarks/mixed_setup.sh [folder, .venv-mixed unless told].
# It is not that of setup.sh, because sdmetrics needs pandas below 3. PYTHON names the interpreter.
set -eu
cd "$(dirname "$0")/.."
venv="${1:-.venv-mixed}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
printf '*\n' > "$venv/.gitignore"
# torch comes first and alone; everything else without its dependencies, which could ask for another torch.
"$venv/bin/python" -m pip install --quiet -c constraints.txt torch
"$venv/bin/python" -m pip install --quiet --no-deps -r benchmarks/mixed_requirements.txt
"$venv/bin/python" -m pip install --quiet --no-deps --editable .
"$venv/bin/python" -m pip list | grep -iE '^(torch|xgboost|sdmetrics|scikit-learn|pandas|numpy|diffeo) '
