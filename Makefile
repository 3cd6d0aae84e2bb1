# `make run` and `make test` set up what they need; everything they create lies in .venv and var.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help run demo test server-test lint bench faults contracts clean

help:
	@echo "make run        set up and start a node with a real model on a real local chain"
	@echo "make demo       a paid job from deposit to refund, against the running node"
	@echo "make test       set up and run the tests"
	@echo "make lint       format check, lint, types, import contracts, migrations check"
	@echo "make bench      measure start, memory, streaming and settlement; JSON and a table"
	@echo "make faults     kill the worker at every commit and every RPC, 20 times each; writes docs/faults.md"
	@echo "make contracts  compile the contracts and derive the bindings"

$(VENV)/run.stamp: requirements.txt constraints.txt
	@echo "fabstir: setting up $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fabstir: cannot start: Python 3.11 or newer is needed ($(PYTHON) is older). Set PYTHON=/path/to/python3.11."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt || { echo "fabstir: cannot start: the requirements could not be installed (see above). Check the network and try again."; exit 1; }
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/run.stamp
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

run: $(VENV)/run.stamp
	@exec $(BIN)/python -m fabstir_site.embedded

demo: $(VENV)/run.stamp
	@$(BIN)/python manage.py demo

test: $(VENV)/dev.stamp
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not server and not browser" $(ARGS)

lint: $(VENV)/dev.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python manage.py makemigrations --check --dry-run

bench: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.benchmarks

faults: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.faults matrix --repeats 20
	@$(BIN)/python -m tests.faults race
	@$(BIN)/python -m tests.faults report

contracts: $(VENV)/run.stamp
	@$(BIN)/python -m settlement.contracts.compile

clean:
	rm -rf $(VENV) var
