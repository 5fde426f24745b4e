# make setup   .venv with everything      make demo   the main job on the bundled set
# make test    checks and all tests       make check  lint, types, import contracts
# make gauntlet  every fault with all its seeds (two hours), and the page benchmarks/results/gauntlet.md

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: setup demo test check format gauntlet

setup: $(STAMP)

$(STAMP): pyproject.toml
	@start=$$(date +%s); \
	$(PYTHON) -m venv $(VENV) && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' && \
	touch $@ && echo "installed in $$(( $$(date +%s) - start )) s" >&2

demo: setup
	$(BIN)/mmdata demo --out runs/demo $(ARGS)

check: setup
	$(BIN)/ruff format --check mmdata tests benchmarks recipes
	$(BIN)/ruff check mmdata tests benchmarks recipes
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	@$(BIN)/python -m compileall -q mmdata tests benchmarks  # tests start hundreds of processes: none has to compile first
	$(BIN)/python -m pytest -n 2 --dist loadfile

gauntlet: setup
	$(BIN)/python -m benchmarks.gauntlet $(ARGS)

format: setup
	$(BIN)/ruff format mmdata tests benchmarks recipes
	$(BIN)/ruff check --fix mmdata tests benchmarks recipes
