# Everything a fresh checkout needs: `make serve` and `make test`.
PORT ?= 8000
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup native serve test check

setup: .venv/.ready

.venv/.ready: pyproject.toml clients/pyproject.toml setup.py $(wildcard models/executors/native/*.cpp models/executors/native/*.h)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]' --editable clients
	touch $@

# The kernels again, after a change or once there is a compiler.
native:
	$(BIN)/pip install --quiet --no-deps --editable .

serve: setup
	$(BIN)/python -m server --port $(PORT)

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy server models clients/adpc_client
	$(BIN)/python -m pytest
