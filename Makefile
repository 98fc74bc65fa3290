# `make up` needs Python 3.11 or newer and nothing else.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

# The newest fitting Python on the PATH, unless PYTHON names one.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint ops/constraints.txt
PINS := setup.cfg pyproject.toml ops/constraints.txt

.PHONY: help up demo test check chaos bench clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

up: $(VENV)/runtime.stamp  ## install what is needed, start everything, keep it running until Ctrl-C
	@LEASH_PARENT=$$PPID exec $(BIN)/python -I -S orchestrator_cli/leash.py SIGTERM - $(BIN)/python -m orchestrator_cli up

demo: $(VENV)/runtime.stamp  ## walk through the API of the running service
	@exec $(BIN)/python -m orchestrator_cli.demo

test: $(VENV)/dev.stamp  ## run all tests on real embedded servers
	@exec $(BIN)/python -m pytest

check: $(VENV)/dev.stamp  ## lint, format, types, layers, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg
	$(BIN)/python -m pytest tests/architecture -q

MINUTES ?= 3
chaos: $(VENV)/dev.stamp  ## break everything for MINUTES=3 minutes under load (SEED= repeats) and check what was promised
	@exec $(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

BENCH ?=
bench: $(VENV)/bench.stamp  ## measure the service beside its peers (BENCH="--quick --measures creates"), 15 minutes
	@exec $(BIN)/python -m benchmarks $(BENCH)

clean:  ## remove the environment and caches; the data in .orchestrator stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "  · Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) >/dev/null || { rm -rf $(VENV); \
		echo "make: '$(PYTHON) -m venv' does not work here; install the package python3-venv or name another PYTHON" >&2; exit 1; }

$(VENV)/runtime.stamp: $(PINS) | $(VENV)/bin/python
	@echo "  · Installing the pinned dependencies (once)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/dev.stamp: $(PINS) | $(VENV)/bin/python
	@echo "  · Installing the pinned dependencies and development tools (once)"
	@$(PIP) --editable '.[dev,bench]'
	@touch $(VENV)/runtime.stamp $(VENV)/bench.stamp $@

$(VENV)/bench.stamp: $(PINS) | $(VENV)/bin/python
	@echo "  · Installing the pinned dependencies and the peers to be measured (once)"
	@$(PIP) --editable '.[bench]'
	@touch $(VENV)/runtime.stamp $@
