# `make help` lists the targets. Everything is installed into .venv (set VENV to put it elsewhere).
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CATEGORIES := carpet grid leather tile wood

.PHONY: help setup test bench bench-scale lint clean $(CATEGORIES)
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z$$()A-Z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/\$$(CATEGORIES)/carpet grid leather tile wood/' | awk -F ':.*## ' '{printf "  make %-32s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

setup: $(VENV)/.installed ## install the package and its tests' needs

$(CATEGORIES): setup ## run the experiment on this texture
	$(BIN)/python -m texture_ad.run +experiment=$@

test: setup ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile # one process a core, each with one thread

bench: setup ## measure against baselines, about 15 minutes; writes experiments/results/bench.md
	$(BIN)/python -m experiments.bench

bench-scale: setup ## measure time against images, size and atoms; writes experiments/results/bench_scale.png
	$(BIN)/python -m experiments.bench_scale

lint: setup ## check the style
	$(BIN)/ruff check .

clean: ## remove .venv and caches, never runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache
