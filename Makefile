# Everything a fresh checkout needs: `make serve` and `make test`.
PORT ?= 8000
JOBS ?= 2
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup native serve lint test attack audit check lock models

# Where there is no GPU, onnxruntime does what onnxruntime-gpu would, at a tenth of the size.
ONNX := $(if $(shell command -v nvidia-smi),onnx,onnx-cpu)
SETUP := pyproject.toml clients/pyproject.toml constraints.txt setup.py $(wildcard models/executors/cpu/native/*.cpp models/executors/cpu/native/*.h)
# `constraints.txt` is the lock file: the exact versions, with which the tests passed.
INSTALL = $(BIN)/pip install --quiet --constraint constraints.txt --editable 'clients[video]' --editable

setup: .venv/.ready

# With the tools of tests and development, too.
.venv/.ready: $(SETUP)
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[dev,$(ONNX)]'
	touch $@

# With what serving needs.
.venv/.serves: $(SETUP)
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[$(ONNX)]'
	touch $@

# The newest versions that fit, for the next `make setup`. triton is left out: each build of torch wants its own.
lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/pip install --quiet --editable '.[dev,onnx,onnx-cpu]' --editable 'clients[video]'
	build/lock/bin/pip freeze --exclude-editable | sed 's/+.*//' | grep -v '^triton==' > constraints.txt

# The kernels again, after a change or once there is a compiler.
native:
	$(BIN)/pip install --quiet --no-deps --editable .

# In JOBS processes, all tests of a file in the same one.
# Memory that nobody has written is full of huge numbers, not of zeros that look right.
test: export MALLOC_PERTURB_ = 128

# An environment with the tools of tests serves as well.
serve: $(or $(wildcard .venv/.ready),.venv/.serves)
	$(BIN)/python -m server --port $(PORT)

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Real servers under attack, for minutes. No other program should run.
attack: setup
	for program in $$(grep -l __main__ tests/attack/*.py); do \
		PYTHONPATH=tests $(BIN)/python $$program || exit 1; \
	done

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy server models clients/adpc_client

# Known vulnerabilities of the locked versions. This asks the network, which `lint` and `test` do not; it says which
# packages it could not ask about.
audit: setup
	$(BIN)/pip-audit --no-deps --disable-pip --requirement constraints.txt

check: lint test audit

# The shipped models anew, in runs/, from data alone; stopped, it goes on where it was. See models/zoo/README.md.
models: runs/camvid-adpc-w18/quality.json runs/lsp-adpc-w18/quality.json

runs/camvid-adpc-w18/quality.json: DATA = $(or $(CAMVID),$(error name the data set's folder: make models CAMVID=DIR LSP=DIR))
runs/lsp-adpc-w18/quality.json: DATA = $(or $(LSP),$(error name the data set's folder: make models CAMVID=DIR LSP=DIR))
runs/%/quality.json: .venv/.ready
	$(BIN)/python -m models train $* --data $(DATA) --output runs/$* $(if $(wildcard runs/$*/checkpoint.pt),--resume)
	$(BIN)/python -m models evaluate runs/$* --data $(DATA) --split val
	$(BIN)/python -m models calibrate runs/$* --data $(DATA) --split val
