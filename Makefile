# Everything is installed into $(VENV), from the pinned set in $(CONSTRAINTS), the first time a target needs it.
#   no GPU, public PyPI:  make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#   an NVIDIA GPU:        make demo CONSTRAINTS=constraints/cuda.txt
PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints/cpu.txt
PIP_ARGS    ?=

BIN := $(abspath $(VENV))/bin
PIP  = $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint $(CONSTRAINTS)
# The native CPU kernels are an option: without a C++ compiler this prints one line, and PyTorch does their work.
BUILD = $(BIN)/hybridlm doctor --build || true
# DeepSpeed builds its C++ operators with the ninja it finds on PATH.
export PATH := $(BIN):$(PATH)

.PHONY: demo test test-all lint format bench clean

demo: $(VENV)/.demo
	$(BIN)/hybridlm train demo

# The same draws, hashes and examples every time; test-all adds the slow tests and a random search for examples.
test: $(VENV)/.dev
	PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

test-all: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --hypothesis-profile=search

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/hybridlm bench ops
	$(BIN)/hybridlm bench train

# runs/ holds results and stays.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.torch: $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"hybridlm needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	@echo "creating $(VENV) and installing torch: half a minute and the download (pip is silent until it is done)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	@echo "installing hybridlm and what the demo needs: one to two minutes"
	@$(PIP) --editable '.[demo]'
	@$(BUILD)
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	@echo "installing hybridlm and what its tests need: about two minutes, less after make demo"
	@$(PIP) --editable '.[dev]'
	@$(BUILD)
	@touch $@ $(VENV)/.demo
