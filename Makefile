# Two commands set everything up by themselves: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

DOCS := build/docs

.PHONY: demo test test-processors check docs translations bench wheel format clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## learn scikit-learn's handwritten digits and a table of 273,280 rows; look into demo/ afterwards
	$(BIN)/diffeo fit digits --context label --out demo/digits --force --minutes 1
	$(BIN)/diffeo score demo/digits digits --out demo/bits.csv --force
	$(BIN)/diffeo sample demo/digits -n 100 --out demo/digits.png --force
	$(BIN)/diffeo fit flower --test 0.1 --out demo/flower --force --minutes 1
	$(BIN)/diffeo check demo/flower flower
	$(BIN)/diffeo score demo/flower flower --out demo/scores.csv --force
	$(BIN)/diffeo sample demo/flower -n 100000 --out demo/pixels.csv --force
	$(BIN)/python examples/flower.py demo/pixels.csv demo/flower.png
	@echo 'Look at demo/digits.png (ten new digits of each class), demo/flower.png (a photograph and its pixels, drawn anew),'
	@echo 'demo/digits/figures and demo/flower/figures. Scores of every image and row: demo/bits.csv, demo/scores.csv.'

test: $(READY)  ## the laws, the bad input, the whole life of a run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile  # a process for each core; threads of each would wait

test-processors: $(READY)  ## the kernel tests for each compiler and instruction set at hand; some 4 minutes of two cores
	$(BIN)/python tests/processors.py

check: $(READY)  ## style and types; both can fail
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready-docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

# One process more than the usual two cores: pages take unequal times, and the last ones would be waited for.
SPHINX := OMP_NUM_THREADS=1 DIFFEO_DOCS=$(CURDIR)/$(DOCS) $(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --jobs 3

docs: $(VENV)/.ready-docs  ## the site, every code block run: open build/docs/html/index.html
	rm -rf $(DOCS)
	$(SPHINX) docs $(DOCS)/html
	$(SPHINX) --tag zh docs $(DOCS)/html/zh
	$(BIN)/python docs/links.py $(DOCS)/html
	$(SPHINX) --tag zh --builder gettext docs $(DOCS)/gettext
	$(BIN)/python docs/translated.py $(DOCS)/gettext

translations: $(VENV)/.ready-docs  ## brings the files of translations up to date with the lecture
	$(SPHINX) --tag zh --builder gettext docs $(DOCS)/gettext
	$(BIN)/sphinx-intl update --pot-dir $(DOCS)/gettext --locale-dir docs/locale --language zh_CN --line-width 0 --no-obsolete

bench:  ## speed beside the other flow libraries for each instruction set at hand, in an environment of its own (.venv-bench)
	bash benchmarks/setup.sh
	set -e; for isa in $$(.venv-bench/bin/python benchmarks/speed.py --isas); do \
	    .venv-bench/bin/python benchmarks/speed.py --isa $$isa --slow --profile --seconds 2 --rounds 4 --out docs/speed-$$isa.md; \
	done

$(VENV)/.ready-release: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[release]'
	touch $@

wheel: $(VENV)/.ready-release  ## dist/: the sdist, and a wheel that carries the kernels for this machine's processor family
	rm -rf build/kernels build/wheel dist
	$(BIN)/python -c 'from diffeo.ops.cpu import prebuilt; prebuilt.build("build/kernels")'
	DIFFEO_PREBUILT=$(CURDIR)/build/kernels $(BIN)/python -m build --outdir build/wheel
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl  # names the oldest C library that will do
	mv build/wheel/*.tar.gz dist/
	$(BIN)/twine check --strict dist/*
	ls -l dist

clean:
	rm -rf $(VENV) .venv-bench demo .pytest_cache .ruff_cache .mypy_cache
