# Every command sets up what it needs: a virtual environment in .venv, torch pinned so that the CPU
# build is taken where one is at hand.
PYTHON ?= $(shell for name in python3.11 python3.12; do $$name -c "" 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
TORCH_NPU := 2.13.0
OLDEST := .venv-oldest
ASCEND := .venv-ascend
STAND_INS := $(ASCEND)/cann

.PHONY: demo test test-ascend lint benchmarks clean

demo: $(VENV)/installed
	@$(BIN)/glmfuse demo

# Two processes on two cores: threads of torch's would only wait for each other.
test: $(VENV)/installed $(OLDEST)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest tests/test_oldest.py

# torch_npu without CANN breaks `import torch`, so it has an environment of its own; torchair (ge) and npugraph_ex
# get in each other's way, so each has a process of its own.
OFFLINE := OMP_NUM_THREADS=1 CANN_STAND_INS=$(STAND_INS) TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(ASCEND)/bin/python
test-ascend: $(STAND_INS)/stand_ins.json
	$(OFFLINE) -m pytest -n 2 tests/offline_ascend --ignore tests/offline_ascend/ge
	$(OFFLINE) -m pytest tests/offline_ascend/ge

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

benchmarks: $(VENV)/installed
	$(BIN)/python benchmarks/compile_time.py
	$(BIN)/python benchmarks/pypto_check.py
	$(BIN)/python benchmarks/pypto_times.py && $(BIN)/python benchmarks/pypto_tables.py
	$(BIN)/python benchmarks/pypto_quant.py

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

$(ASCEND)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "glmfuse needs Python 3.11 or 3.12; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(ASCEND) (once)"
	@$(PYTHON) -m venv $(ASCEND)
	@$(ASCEND)/bin/pip install --quiet --disable-pip-version-check torch==$(TORCH)
	@$(ASCEND)/bin/pip install --quiet --disable-pip-version-check --no-deps torch_npu==$(TORCH_NPU)
	@$(ASCEND)/bin/pip install --quiet --disable-pip-version-check -e '.[offline-ascend]'
	@touch $@

$(STAND_INS)/stand_ins.json: $(ASCEND)/installed $(wildcard tests/offline_ascend/standin/*.c) \
		$(addprefix tests/offline_ascend/standin/,build.py libraries.py symbols.py)
	@TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(ASCEND)/bin/python -m tests.offline_ascend.standin.build $(STAND_INS)

clean:
	rm -rf $(VENV) $(OLDEST) $(ASCEND) .pytest_cache .mypy_cache .ruff_cache
