# make help says what there is. The environment is made once, and again when its recipe changes.
VENV := .venv
PYTHON := $(VENV)/bin/python
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train evaluate repro test lint bench ui docs dashboard pins clean

help:  ## Say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-9s %s\n", $$1, $$2}'

setup: $(VENV)/.run  ## Make the environment (.venv)

train: $(VENV)/.run  ## Train: make train ARGS="model=deep"
	$(PYTHON) train.py $(ARGS)

evaluate: $(VENV)/.run  ## Test a run: make evaluate ARGS="run=best"
	$(PYTHON) evaluate.py $(ARGS)

repro: $(VENV)/.repro  ## Replay everything that has changed, from the data to the page
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" dvc repro $(ARGS)

ui: $(VENV)/.run  ## Look at the runs in MLflow's pages
	$(VENV)/bin/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/mlflow.db $(ARGS)

docs: $(VENV)/.dev  ## Build the documentation: docs/_build/index.html
	$(VENV)/bin/sphinx-build -W -q -b html docs docs/_build $(ARGS)
	@echo docs/_build/index.html

STUDY ?= searches/xor/study.journal
dashboard: $(VENV)/.dev  ## Look at a search: make dashboard STUDY=searches/NAME/study.journal
	$(VENV)/bin/optuna-dashboard $(STUDY) $(ARGS)

test: $(VENV)/.dev  ## Run all tests: make test ARGS="-m 'not slow'"
	$(PYTHON) -m pytest -n 2 $(ARGS)

lint: $(VENV)/.dev  ## Style, types, and imports that only point down
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.run $(VENV)-bench/.bench  ## Measure against peers: make bench ARGS="speed --rounds 5"
	$(VENV)-bench/bin/python -m benchmarks --python $(PYTHON) $(ARGS)

pins: $(VENV)/bin/uv  ## Renew constraints.txt: make pins ARGS=--upgrade
	$(VENV)/bin/uv pip compile --quiet $(ARGS) --all-extras --no-header --no-annotate \
		--python-version 3.11 --output-file constraints.txt pyproject.toml

clean:  ## Remove the environment and caches; data, runs and records stay
	rm -rf $(VENV) $(VENV)-bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/uv:
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt uv

INSTALL = $(VENV)/bin/uv pip install --quiet --compile-bytecode --constraint constraints.txt

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/uv
	$(INSTALL) --python $(PYTHON) --editable '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/uv
	$(INSTALL) --python $(PYTHON) --editable '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.repro: pyproject.toml constraints.txt | $(VENV)/bin/uv
	$(INSTALL) --python $(PYTHON) --editable '.[repro]'
	@touch $@ $(VENV)/.run

# Apart, because the peers are large, and nothing else needs them.
$(VENV)-bench/.bench: pyproject.toml constraints.txt | $(VENV)/bin/uv
	python3 -m venv $(VENV)-bench
	$(INSTALL) --python $(VENV)-bench/bin/python --editable '.[bench]'
	@touch $@
