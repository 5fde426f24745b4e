# make setup   .venv with everything      make demo   the main job on the bundled set
# make test    checks and all tests       make check  lint, types, import contracts
# make test-mds  the one test that needs an environment of its own (part of make test)
# make gauntlet  every fault with all its seeds (two hours), and the page benchmarks/results/gauntlet.md

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: setup demo test test-mds check format gauntlet

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
	@$(MAKE) --no-print-directory test-mds

# MosaicML Streaming holds numpy below 2.2, so its test has an environment of its own, over the project's.
MDS = .venv-mds

$(MDS)/.installed: $(STAMP)
	$(PYTHON) -m venv $(MDS)
	@echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> "$$($(MDS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(MDS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		mosaicml-streaming transformers brotli python-snappy cramjam zstd catalogue
	touch $@

test-mds: $(MDS)/.installed
	$(MDS)/bin/python -m pytest -n 0 tests/test_export.py -k streaming

gauntlet: setup
	$(BIN)/python -m benchmarks.gauntlet $(ARGS)

format: setup
	$(BIN)/ruff format mmdata tests benchmarks recipes
	$(BIN)/ruff check --fix mmdata tests benchmarks recipes
