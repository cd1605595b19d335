# make run    set up .venv, run the default experiment, write and verify the report
# make test   everything that must hold: format, lint, import contracts, tests
# make bench  ratios against peers, into benchmarks/results/
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
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
	$(BIN)/lint-imports
	$(BIN)/snakemake --lint

# The library's own tests: about a minute.
test-quick: setup
	$(BIN)/pytest -n 2 -m "not workflow and not slurm and not browser"

test: setup
	bash tests/setup.sh
	$(MAKE) lint
	$(BIN)/pytest -n 2 --dist loadfile

bench: setup
	$(BIN)/python benchmarks/run.py
