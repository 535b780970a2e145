# `make demo` and `make test` need only Python 3.11 or newer; each installs what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS ?= --quiet --disable-pip-version-check

# A run has many processes; without bytecode each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench bench-peers faults kills mini clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The demo needs only the package; the tests also need the libraries that they compare with, and tools. Each stamp file
# says what is installed.
$(VENV)/package: pyproject.toml constraints.txt hatch_build.py $(wildcard xlmr_ray/model/kernels/*.cpp)
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), sys.version' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3-venv is needed: apt-get install python3-venv"; exit 1; }
	@echo "installing the package into $(VENV)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/everything: $(VENV)/package
	@echo "installing what the tests need into $(VENV)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[test,dev,quantization]'
	@touch $@

install: $(VENV)/everything  ## make .venv with everything

demo: $(VENV)/package  ## label the embedded corpus with the embedded checkpoint
	@$(BIN)/xlmr-ray demo

lint: $(VENV)/everything  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two files at once: many tests wait, for Ray to start above all. Threads of torch that wait give their core away.
test: lint  ## ruff, mypy and the tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

bench: $(VENV)/everything  ## the pipeline against the script that people write first, in the same run
	$(BIN)/python -m tests.benchmarks.naive

faults: $(VENV)/everything  ## inject each fault that a run must survive, and count rows (SIGKILL at random: make kills)
	$(BIN)/python -m tests.faults

kills: $(VENV)/everything  ## 200 runs in which drivers, actors and nodes are killed at random moments
	$(BIN)/python -m tests.faults.kills --rounds 200

# ONNX Runtime and OpenVINO in an environment beside the package's, not in it.
.venv-peers/there: $(VENV)/everything tests/benchmarks/peers.txt
	@$(BIN)/python -m venv .venv-peers
	@.venv-peers/bin/python -m pip install $(PIP_FLAGS) --no-deps --requirement tests/benchmarks/peers.txt
	@realpath $(VENV)/lib/python3*/site-packages > $$(echo .venv-peers/lib/python3*/site-packages)/package.pth
	@touch $@

bench-peers: .venv-peers/there  ## the engine against transformers, sentence-transformers, ONNX Runtime and OpenVINO, in the same run
	.venv-peers/bin/python -W ignore -m tests.benchmarks.peers

mini: $(VENV)/everything  ## train the embedded checkpoints again (needs Debian's apt-get, npm, an hour)
	$(BIN)/python -m pipelines.mini

clean:  ## remove the environment and what runs wrote
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
