# Every command sets up what it needs: a virtual environment in .venv, torch pinned so that the CPU
# build is taken where one is at hand.
PYTHON ?= $(shell for name in python3.11 python3.12; do $$name -c "" 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
OLDEST := .venv-oldest

.PHONY: demo test lint benchmarks clean

demo: $(VENV)/installed
	@$(BIN)/glmfuse demo

test: $(VENV)/installed $(OLDEST)/installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest tests/test_oldest.py

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

benchmarks: $(VENV)/installed
	$(BIN)/python benchmarks/compile_time.py
	$(BIN)/python benchmarks/pypto_check.py
	$(BIN)/python benchmarks/pypto_times.py && $(BIN)/python benchmarks/pypto_tables.py

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "glmfuse needs Python 3.11 or 3.12; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==$(TORCH)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# The oldest transformers whose GLM compiles whole; it takes the place of the newest, and shares all the rest.
$(OLDEST)/installed: $(VENV)/installed
	@$(BIN)/pip install --quiet --disable-pip-version-check --target $(OLDEST) transformers==5.0.0
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache
