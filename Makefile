# make demo   sets everything up and runs the whole job on embedded data: pretrain, four tasks, report
# make test   sets everything up and runs every test
# one name a call: dash looks at the first one only
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
VENV ?= .venv
BIN := $(VENV)/bin
# one process a core, each with one thread: the tests are many small models, and two-thread processes wait for each other
PYTEST_FLAGS ?= -n auto --maxprocesses 8 --dist loadfile
BENCH ?= all
BENCH_JSON ?=

.PHONY: setup demo test test-fast lint bench clean

setup: $(VENV)/.installed

# uv installs the pinned set in seconds where its cache is warm; it goes into the venv itself, nothing else is touched
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python found; install Python 3.11, 3.12 or 3.13, or call make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; call make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/s3prl-ekd demo --out demo_out $(DEMO_FLAGS)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks --bench $(BENCH) $(if $(BENCH_JSON),--json $(BENCH_JSON))

clean:
	rm -rf demo_out result build dist *.egg-info
