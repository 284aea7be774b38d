# Two commands set everything up by themselves: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-processors check bench format clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## learn scikit-learn's handwritten digits and a table of its; look into demo/ afterwards
	$(BIN)/diffeo fit digits --out demo/digits --force --minutes 1.5
	$(BIN)/diffeo score demo/digits digits --out demo/bits.csv --force
	$(BIN)/diffeo sample demo/digits -n 64 --out demo/digits.png --force
	$(BIN)/diffeo fit wine --out demo/wine --force --minutes 1
	$(BIN)/diffeo score demo/wine wine --out demo/scores.csv --force
	$(BIN)/diffeo sample demo/wine -n 1000 --out demo/fake.csv --force
	$(BIN)/diffeo check demo/wine wine
	@echo 'Pictures: demo/digits/figures, demo/wine/figures. New digits: demo/digits.png. Scores of every row: demo/scores.csv.'

test: $(READY)  ## the laws, the bad input, the whole life of a run
	$(BIN)/python -m pytest

test-processors: $(READY)  ## the kernel tests for each compiler and instruction set at hand; some 4 minutes of two cores
	$(BIN)/python tests/processors.py

check: $(READY)  ## style and types; both can fail
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench:  ## speed beside the other flow libraries for each instruction set at hand, in an environment of its own (.venv-bench)
	bash benchmarks/setup.sh
	set -e; for isa in $$(.venv-bench/bin/python benchmarks/speed.py --isas); do \
	    .venv-bench/bin/python benchmarks/speed.py --isa $$isa --slow --profile --seconds 2 --rounds 4 --out docs/speed-$$isa.md; \
	done

clean:
	rm -rf $(VENV) .venv-bench demo .pytest_cache .ruff_cache .mypy_cache
