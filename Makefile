# make run         create .venv, run the default experiment, verify it and write its report
# make test        everything that CI checks: format, lint, types, import contracts, tests
# make test-quick  the fast tests of the library
# make format      apply the formatters
# make bench       compare speed with other tools, into benchmarks/results/; PARTS=generation for one
# make wheel       build dist/needlework-*.whl, which holds the workflow
#
# PYTHON    Python to create .venv with, 3.11 or newer
# PIP_ARGS  further arguments of pip, such as an index of other builds of PyTorch
# ARGS      further arguments of `needlework run`, such as ARGS="mine.yaml"
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
PARTS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: run test test-quick format lint bench wheel setup

run: $(VENV)/.installed
	$(BIN)/needlework run $(ARGS)

setup: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needlework needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Run: make run PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(PIP_ARGS) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
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

test-quick: setup
	$(BIN)/pytest -n 2 -m "not slow and not workflow and not slurm and not browser"

test: setup
	bash tests/setup.sh
	$(MAKE) lint
	$(BIN)/pytest -n 2 --dist loadfile

bench: setup .venv-lm-eval/.installed
	$(BIN)/python benchmarks/run.py $(PARTS)

wheel: setup
	$(PIP) wheel $(PIP_ARGS) --no-deps --wheel-dir dist .

# A tool that `make bench` compares with, in its own environment.
.venv-lm-eval/.installed:
	$(PYTHON) -m venv .venv-lm-eval
	.venv-lm-eval/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) 'lm-eval[ruler,hf]==0.4.13' torch==2.13.0
	@touch $@
