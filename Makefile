# `make demo` runs the whole job; `make test` checks everything. Both install what they need.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= train,report
BIN := $(VENV)/bin

.PHONY: help demo test check lint types unit test-gpu docs clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.ready  ## teacher -> student -> ONNX -> INT8 engine -> proof, on drawn faces
	$(BIN)/fr-edge demo --out demo

test: check unit  ## everything: lint, types, import rules, documentation, tests

check: lint types  ## all but the tests

lint: $(VENV)/.dev  ## ruff and the import rules
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev  ## mypy over the package as a wheel lays it; needs torch
	rm -rf build/typed && $(BIN)/pip install -q --no-deps --target build/typed .
	if $(BIN)/pip show -q torch 2>/dev/null; then MYPYPATH=build/typed $(BIN)/mypy -p fr_edge; \
	else echo "types: not checked, torch is not installed (EXTRAS=$(EXTRAS))"; fi

unit: $(VENV)/.dev  ## the tests
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.dev  ## what needs a GPU; writes docs/results/<device>.json
	$(BIN)/python tests/acceptance.py

docs: $(VENV)/.dev  ## write docs/cli.md anew from the commands
	$(BIN)/python docs/write_cli.py

clean:  ## remove what make made
	rm -rf $(VENV) build demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

$(VENV)/.dev: $(VENV)/.ready
	$(BIN)/pip install -c constraints.txt -e ".[$(EXTRAS),dev]"
	touch $@
