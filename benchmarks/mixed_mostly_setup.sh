#!/bin/sh
# Makes the environment in which mixed_peers.py runs mostlyai-engine: sh benchmarks/mixed_mostly_setup.sh [folder,
# .venv-mostly unless told]. It is not that of mixed_setup.sh, whose pandas is older. PYTHON names the interpreter.
set -eu
cd "$(dirname "$0")/.."
venv="${1:-.venv-mostly}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
printf '*\n' > "$venv/.gitignore"
"$venv/bin/python" -m pip install --quiet -c constraints.txt torch
"$venv/bin/python" -m pip install --quiet --no-deps -r benchmarks/mixed_mostly_requirements.txt
"$venv/bin/python" -c 'import mostlyai.engine'
"$venv/bin/python" -m pip list | grep -iE '^(torch|mostlyai-engine|opacus|scikit-learn|pandas|numpy) '
