# make run    set up .venv, run the default experiment, write and verify the report
# make test   everything that must hold: format, lint, import contracts, tests
# make bench  ratios against peers, into benchmarks/results/; PARTS=generation for one part
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
PARTS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-quick format lint bench setup

run: $(VENV)/.installed
	$(BIN)/needlework run $(ARGS)

setup: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needlework needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Run: make run PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[dev]'
	@touch $@

format: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakemake --lint

# The library's own tests: about a minute.
test-quick: setup
	$(BIN)/pytest -n 2 -m "not workflow and not slurm and not browser"

test: setup
	bash tests/setup.sh
	$(MAKE) lint
	$(BIN)/pytest -n 2 --dist loadfile

bench: setup .venv-lm-eval/.installed
	$(BIN)/python benchmarks/run.py $(PARTS)

# A peer that `make bench` is measured beside, in an environment of its own.
.venv-lm-eval/.installed:
	$(PYTHON) -m venv .venv-lm-eval
	.venv-lm-eval/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) 'lm-eval[ruler,hf]==0.4.13' torch==2.13.0
	@touch $@
