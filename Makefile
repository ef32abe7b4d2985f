# Everything a developer runs. Each target sets up .venv first, which takes no time when it is there.
# One test: make unit ARGS="-k weights". One override: make demo ARGS="training.iterations=2".

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup colbert-env pylate-env demo paper-demo test lint format unit integration e2e bench bench-gpu docs lock wheel clean

BIN := .venv/bin
ARGS ?=
PYTEST := $(BIN)/python -m pytest

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv from the lock file of this machine (CPU or NVIDIA GPU)
	@bash scripts/setup.sh

colbert-env: setup ## .venv-colbert, for retrieval.kind: colbert (2 GB)
	@bash scripts/retrieval_env.sh colbert

pylate-env: setup ## .venv-pylate, for retrieval.kind: pylate (2 GB)
	@bash scripts/retrieval_env.sh pylate

demo: setup ## DRO on the built-in world, end to end; ARGS are overrides
	@$(BIN)/dro-rl train recipes/demo.yaml $(ARGS)

paper-demo: setup ## the paper's analyses on the built-in world, about an hour on 2 cores; ARGS="--jobs 2"
	@[ -d runs/twenty-warmup/generator ] || $(BIN)/dro-rl warmup recipes/twenty.yaml
	@for f in table_3_figure_5 figure_3 figure_6 initialisation retriever_quality; do \
		$(BIN)/dro-rl compare recipes/paper/$$f.yaml $(ARGS) || exit; \
	done
	@$(BIN)/dro-rl variance runs/paper/table_3_figure_5/dro/seed-0

test: lint unit integration e2e ## lint, then all tests

lint: setup ## ruff, pyright, the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup ## mend what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# A file's tests stay together, for they share what is slow to make. ARGS="-n0" for a debugger. Unit
# tests compute in these two processes alone, and a second thread in each would be in the other's way.
TWO := -n 2 --dist loadfile

unit: setup ## tests of one module, seconds
	OMP_NUM_THREADS=1 $(PYTEST) tests/unit $(TWO) $(ARGS)

integration: setup ## tests with real vLLM and Ray, minutes
	$(PYTEST) tests/integration $(TWO) $(ARGS)

e2e: setup ## tests of the command line, minutes
	$(PYTEST) tests/e2e $(TWO) $(ARGS)

BENCHMARKS := startup rollouts prompt_order selector_update generator_update iteration growth

bench: setup ## speed against peers, some 25 minutes on 2 quiet cores
	@for f in $(BENCHMARKS); do $(BIN)/python benchmarks/$$f.py || failed="$$failed $$f"; done; \
	[ -z "$$failed" ] || { echo "missed or failed:$$failed"; exit 1; }

bench-gpu: setup ## the same of 0.5B parameters in bfloat16, on an NVIDIA GPU
	@for f in selector_update generator_update iteration; do \
		$(BIN)/python benchmarks/$$f.py --gpu || exit; \
	done

PYTHON ?= python3

docs: ## the documentation as a site, in site/; links are checked
	@[ -x .venv-docs/bin/mkdocs ] || { $(PYTHON) -m venv .venv-docs && \
		.venv-docs/bin/pip install -q "pip>=25.1" && .venv-docs/bin/pip install -q --group docs; }
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

lock: ## requirements/*.txt from pyproject.toml; UPGRADE=1 for the newest versions
	@bash scripts/lock.sh

wheel: setup ## dist/*.whl, with recipes and rewards inside
	@rm -rf build dist
	$(BIN)/python -m build --no-isolation

clean: ## build products and caches; .venv and runs stay
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
