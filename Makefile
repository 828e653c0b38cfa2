# `make demo` runs the whole job; `make test` checks everything. Both install what they need into
# .venv at the first call, and again when pyproject.toml or constraints.txt changed; with the packages
# installed, none of it needs a network.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= train,report
GPU_VENV ?= build/gpu-venv
BIN := $(VENV)/bin
ROOMS := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))
# With the folders: theirs is the time at which a file was removed.
files = $(shell find $(1) -mindepth 1 -name '*.py' -o -mindepth 1 -type d ! -name __pycache__)
SOURCES := $(wildcard *.py) $(ROOMS) $(call files,$(ROOMS))
CHECKED := $(SOURCES) $(call files,tests benchmarks docs examples)
TYPED := build/typed/fr_edge

.PHONY: help demo test check lint types unit test-gpu examples docs man dist release-check accessibility resolve clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.ready  ## the whole job on synthetic faces; finished stages are not repeated: rm -r demo
	$(BIN)/fr-edge demo --out demo

test: check unit  ## everything: lint, types, import rules, documentation, tests

check: lint types  ## all but the tests

lint: build/.linted  ## ruff and the import rules

types: build/.typed  ## mypy --strict over the package; needs torch

# Two processes with one thread each are faster than one with two; a large machine gains little more.
unit: $(VENV)/.dev  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-gpu: $(GPU_VENV)/.ready  ## on a board or GPU, without torch: accept, then the tests marked gpu and cuda
	@$(GPU_VENV)/bin/fr-edge accept --out build/accept.json; accepted=$$?; \
	$(GPU_VENV)/bin/python tests/acceptance.py; tested=$$?; \
	echo "fr-edge accept ended with $$accepted, the tests with $$tested; to send: build/accept.json"; \
	test $$accepted -eq 0 && test $$tested -eq 0

examples: $(VENV)/.ready  ## run every example on drawn faces, in build/examples
	rm -rf build/examples && mkdir -p build/examples
	cd build/examples && PATH="$(abspath $(BIN)):$$PATH" sh ../../examples/all.sh

# -E: what Sphinx kept of the last build lacks the words of unchanged pages in the search.
docs: $(VENV)/.docs  ## write docs/cli.md from the commands, and the site build/site/index.html
	$(BIN)/python docs/write_cli.py
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs build/site

man: $(VENV)/.ready  ## write man pages of all commands, docs/man
	$(BIN)/python docs/write_man.py

# The wheel is built from the sdist. With the time of the last commit, two builds give the same wheel.
dist: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct 2>/dev/null || echo 1764288000)
dist: $(VENV)/.release man  ## sdist and wheel in dist, checked as an index checks them
	rm -rf dist *.egg-info/SOURCES.txt build/lib build/bdist.*
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

release-check: dist  ## all of a release but its publication: docs/releasing.md
	PYTHON=$(PYTHON) BIN=$(abspath $(BIN)) .ci/release-check

# The pages that `make demo`, `make examples` and `make docs` have made; axe-core comes from the npm registry.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
PAGES = $(abspath $(wildcard demo/student.bundle/report.html build/examples/evidence/fleet.html \
	$(addprefix build/site/,index.html cli.html results/int8.html)))
accessibility:  ## axe-core in Chromium on the report, the fleet's page and the site; light and dark, three widths
	@test -n "$(CHROMIUM)" && command -v node npm >/dev/null || { echo "accessibility: not checked, Chromium, node or npm is missing"; exit 0; }; \
	mkdir -p build/axe && cp .ci/accessibility.js build/axe/ && \
	npm install --silent --no-save --prefix build/axe axe-core@4.14.1 puppeteer-core@24.43.1 || \
	{ echo "accessibility: not checked, the npm registry does not answer"; exit 0; }; \
	CHROMIUM=$(CHROMIUM) node build/axe/accessibility.js $(PAGES)

resolve: $(VENV)/.ready  ## ask the index for wheels of all dependencies: Python 3.10 to 3.13, x86-64, aarch64
	BIN=$(abspath $(BIN)) .ci/resolve

clean:  ## remove what make made
	rm -rf $(VENV) $(GPU_VENV) build dist docs/man demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

build/.linted: $(CHECKED) pyproject.toml $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@mkdir -p build && touch $@

# mypy wants a folder named like the package: links to the sources, as a wheel lays them.
build/.typed: $(SOURCES) pyproject.toml $(VENV)/.dev
	@rm -rf $(TYPED) && mkdir -p $(TYPED)
	@ln -s $(foreach f,$(wildcard *.py) py.typed $(ROOMS),$(CURDIR)/$(f)) $(TYPED)/
	@if $(BIN)/python -c "import torch" 2>/dev/null; then MYPYPATH=build/typed $(BIN)/mypy -p fr_edge; \
	else echo "types: not checked, torch is not installed (EXTRAS=$(EXTRAS))"; fi
	@touch $@

# Without build isolation pip needs no index when everything is installed.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt setuptools
	$(BIN)/pip install -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	touch $@

# With the system's packages, for JetPack's tensorrt is one of them; without torch, whose wheels are
# large and of no use to an engine. constraints.txt pins CI's cuda-bindings; a board needs one that
# is not newer than its driver, hence the second call.
$(GPU_VENV)/.ready: pyproject.toml constraints.txt
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv --system-site-packages $(GPU_VENV)
	$(GPU_VENV)/bin/pip install -c constraints.txt -e . pytest
	$(GPU_VENV)/bin/pip install "$$($(GPU_VENV)/bin/python -c 'from fr_edge.runtime.machine.device \
	import cuda_python_requirement as r, find_gpus as g; print(r(g().driver))')"
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/pip install -c constraints.txt --no-build-isolation -e ".[$(EXTRAS),dev,docs]"
	touch $@

$(VENV)/.release: $(VENV)/.ready
	$(BIN)/pip install -c constraints.txt --no-build-isolation -e ".[$(EXTRAS),release]"
	touch $@

$(VENV)/.dev: $(VENV)/.ready
	$(BIN)/pip install -c constraints.txt --no-build-isolation -e ".[$(EXTRAS),dev]"
	touch $@
