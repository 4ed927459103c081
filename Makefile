# Each target makes .venv and installs what it needs; PYTHON chooses the interpreter that makes it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Of the tests: two for each of two cores, since many of them wait.
WORKERS ?= 4
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

.PHONY: demo test test-quick check bench clean

demo: $(VENV)/run-time
	$(BIN)/python llama-eval.py --simulate 0.8 --dataset practice --threads 4 --report --output demo.json --overwrite

test: $(VENV)/development
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-quick: $(VENV)/development
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

check: $(VENV)/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy llama-eval.py llama-server-simulator.py llama-eval-report.py benchmarks

bench: $(VENV)/development
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/grading.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/matching.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/comparison.py
	$(BIN)/python benchmarks/gate.py
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# An environment counts as made once pip is in it: Debian's python3 without python3-venv leaves one without.
define install
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON): install Python 3.10 or later, or make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/pip || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); \
	    echo "no virtual environment could be made; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(1)
	touch $@
endef

$(VENV)/run-time: requirements.txt
	$(call install,requirements.txt)

$(VENV)/development: requirements.txt requirements-dev.txt
	$(call install,requirements-dev.txt)
	touch $(VENV)/run-time
