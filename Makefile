# Every target sets itself up: the environment is made once, and again when its inputs change.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
QUIET  := $(if $(CI),--quiet --progress-bar off)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-oldest fuzz lint bench gpu bundled clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | while IFS='|' read -r name what; \
		do printf '  make %-11s %s\n' "$$name" "$$what"; done

demo: $(STAMP) ## train, save, reload and sample two small models (6 minutes on 2 CPU cores)
	$(BIN)/python examples/demo.py

test: $(STAMP) ## run the tests
	$(BIN)/pytest -n auto --maxprocesses 8 -m "not slow"

test-slow: $(STAMP) ## run the tests that are slow and rarely break
	$(BIN)/pytest -n auto --maxprocesses 8 -m slow

test-oldest: ## run the tests with the oldest versions of what the zoo is built on, in an environment of their own
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install $(QUIET) -c constraints-oldest.txt -e '.[dev]'
	.venv-oldest/bin/pytest -n auto --maxprocesses 8 -W ignore::DeprecationWarning -W ignore::FutureWarning \
		-W "ignore:Sparse invariant checks:UserWarning" # of old versions

fuzz: $(STAMP) ## compare every operation with plain loops on random inputs, for five minutes
	PYTHONPATH=tests $(BIN)/python -m fuzz

lint: $(STAMP) ## ruff check, ruff format --check, pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: $(STAMP) ## time layers and kernels side by side with their peers; writes benchmarks/results/
	$(BIN)/zoo bench layers
	$(BIN)/zoo bench kernels

gpu: ## on a CUDA GPU: check, time and tune everything in 9 minutes, without installing anything; goes on where it ended
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m zoo.benchmarks.gpu --install

bundled: $(STAMP) ## train the nano models whose weights come with the package again (an hour on 2 CPU cores)
	$(BIN)/python -m zoo.train.bundle

clean: ## remove the environment, the caches and what runs left
	rm -rf $(VENV) .venv-oldest build dist *.egg-info runs lightning_logs .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "efficient-zoo needs Python >= 3.10; $(PYTHON) is $$($(PYTHON) --version). Choose one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(QUIET) -c constraints.txt -e '.[dev]'
	@touch $@
