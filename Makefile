# Every target does its own set-up: a virtual environment in .venv, from the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help benchmark benchmark-full test check clean

help: ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

benchmark: $(INSTALLED) ## Train STORM+ and PPO on CartPole, print the table, write plots and raw runs.
	$(BIN)/python -m experiments quickstart

# About 8.5 core hours, from the times of stored runs: 4.5 hours on two cores (docs/benchmark.md).
benchmark-full: $(INSTALLED) ## Every agent, all five tasks, ten seeds, and the report: hours; resumed if interrupted.
	$(BIN)/python -m experiments benchmark --all --workers $(shell nproc 2>/dev/null || echo 2)
	$(BIN)/python -m experiments report

test: $(INSTALLED) ## Run the tests.
	$(BIN)/python -m pytest --numprocesses 2

check: $(INSTALLED) ## Lint, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "storm-rl needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -qq torch
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -qq --editable '.[dev]'
	touch $@

clean: ## Remove the virtual environment and caches; results stay.
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
