# Each target makes .venv and installs what it needs; PYTHON chooses the interpreter that makes it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

.PHONY: demo test check bench clean

demo: $(VENV)/run-time
	$(BIN)/python llama-eval.py --simulate 0.8 --dataset practice --threads 4 --report --output demo.json --overwrite

test: $(VENV)/development
	$(BIN)/python -m pytest -n 2 --dist worksteal

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
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(1)
	touch $@
endef

$(VENV)/run-time: requirements.txt
	$(call install,requirements.txt)

$(VENV)/development: requirements.txt requirements-dev.txt
	$(call install,requirements-dev.txt)
	touch $(VENV)/run-time
