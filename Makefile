# Every target does its own set-up: a virtual environment in .venv, from the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Test processes at a time.
WORKERS ?= 2
# Of MkDocs's next version, which is another program; constraints.txt pins this one.
export NO_MKDOCS_2_WARNING := 1

# Off-policy agents take many times as long: they are run by name.
PUBLISHED = storm_plus_pg ppo_zoo ppo_default a2c_zoo trpo_zoo svrpg gpomdp srvrpg stormpg pagepg defpg

.PHONY: help benchmark benchmark-full test test-fast check format docs docs-serve dist test-wheel clean

help: ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

benchmark: $(INSTALLED) ## Train STORM+ and PPO on CartPole, print the table, write plots and raw runs.
	$(BIN)/python -m experiments quickstart

# About 8 core hours, 4 hours on two cores; docs/benchmark.md says by which measurements.
benchmark-full: $(INSTALLED) ## Every published agent, five tasks, ten seeds, the report: hours; resumed if interrupted.
	$(BIN)/python -m experiments benchmark $(PUBLISHED:%=--agent %) --workers $(shell nproc 2>/dev/null || echo 2)
	$(BIN)/python -m experiments report

test: $(INSTALLED) ## Run the tests.
	$(BIN)/python -m pytest --numprocesses $(WORKERS)

test-fast: $(INSTALLED) ## Run the tests but for those of more than five seconds.
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m "not slow"

check: $(INSTALLED) ## Lint, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code, and repair what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## Build the documentation into site.
	$(BIN)/python -m mkdocs build --strict

docs-serve: $(INSTALLED) ## Serve the documentation and rebuild it on changes.
	$(BIN)/python -m mkdocs serve

dist: $(INSTALLED) ## Build sdist and wheel into dist.
	rm -rf dist
	$(BIN)/python -m build --no-isolation

# A second environment that sees the first one's packages, and the wheel in place of the checkout. The tests are copied
# away, so that nothing of the checkout can be imported; only those that need nothing else of it are.
WHEEL_TESTS = $(filter-out tests/test_docs.py tests/test_packaging.py, \
	$(shell grep -rLE '^(from|import) (agents|envs|experiments)\b' tests --include='*.py'))

test-wheel: dist ## Run the library's tests against the installed wheel.
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m venv build/wheel/env
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > build/wheel/packages.pth
	cp build/wheel/packages.pth "$$(build/wheel/env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	build/wheel/env/bin/python -m pip install --disable-pip-version-check -qq --no-deps --ignore-installed dist/*.whl
	folder=$$(mktemp -d) && cp --parents -r $(WHEEL_TESTS) $$folder && python=$$PWD/build/wheel/env/bin/python && \
		cd $$folder && $$python -c 'import storm_rl; assert "build/wheel" in storm_rl.__file__' && \
		$$python -m pytest tests --import-mode=importlib -q --numprocesses $(WORKERS) && \
		$${python%python}storm-rl-zoo train --algo storm_plus_pg --env CartPole-v1 -n 512 --eval-freq -1 && rm -r $$folder

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "storm-rl needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -qq torch
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -qq --editable '.[dev]'
	touch $@

clean: ## Remove the virtual environment and caches; results stay.
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
