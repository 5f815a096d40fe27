# `make help` lists the targets. Everything is installed into .venv (set VENV to put it elsewhere).
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CATEGORIES := carpet grid leather tile wood
# The pages are written for mkdocs 1; without this each build prints a notice about its successor.
export NO_MKDOCS_2_WARNING := 1

.PHONY: help setup test bench bench-scale mvtec lint format docs clean $(CATEGORIES)
.DEFAULT_GOAL := help

help: ## list these targets
	@grep -hE '^[a-z$$()A-Z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/\$$(CATEGORIES)/carpet grid leather tile wood/' | awk -F ':.*## ' '{printf "  make %-32s %s\n", $$1, $$2}'

# uv takes a quarter of pip's time; pip stands in where an index is set for it alone.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[dev]" \
		|| $(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	touch $@

setup: $(VENV)/.installed ## install the package with what its tests, checks and pages need

$(CATEGORIES): setup ## run the experiment on this texture
	$(BIN)/python -m texture_ad.run +experiment=$@

# One process a core, each with one thread. Where one ends early, xdist would wait for its tests for ever: it stops.
test: setup ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart=0

bench: setup ## measure speed beside baselines, about 17 minutes; writes benchmarks/results/bench.md
	$(BIN)/python -m benchmarks.bench

bench-scale: setup ## measure time against images, size, atoms, tiles and threads; writes benchmarks/results/bench_scale.png
	$(BIN)/python -m benchmarks.bench_scale

mvtec: setup ## compare methods on MVTec AD's five textures, beside printed figures; MVTEC_AD_ROOT names its folder
	$(BIN)/python -m experiments.mvtec root=$(MVTEC_AD_ROOT)

lint: setup ## check format, rules, types and layers, and that the pages build
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

format: setup ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## build the pages into site/
	$(BIN)/mkdocs build --strict

clean: ## remove .venv, site/ and the tools' caches, never runs/
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
