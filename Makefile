# The daily commands. Each sets up what it needs: a bare machine needs python3 (3.11 or later), make and a package registry.

PYTHON ?= python3
TORCH := torch==2.13.0
VENV := .venv
COMPAT := .venv-compat
DOCS := .venv-docs
BIN := $(VENV)/bin
TESTS ?=
BENCH ?=
DOCS_COMMAND ?= build
RUN_TESTS = EFFCONV_COMPAT_PYTHON="$(CURDIR)/$(COMPAT)/bin/python" $(BIN)/python -m pytest
MACHINES ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv venv-compat demo quick test nightly compat machines lint format matrix bench docs wheel clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(VENV)/.installed  ## create .venv with effconv (editable) and what development needs, pinned

venv-compat: $(COMPAT)/.installed  ## create .venv-compat: effconv with the oldest versions that it declares

demo: venv  ## convert a real sentence encoder to 4,096 tokens, verify it, encode a long text
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo.sh

quick: venv  ## run the unit tests, in under two minutes on two cores
	$(BIN)/python -m pytest -m quick tests/unit $(TESTS)

test: venv venv-compat  ## run the tests of every change (TESTS="tests/hub -k word" for some)
	$(RUN_TESTS) -m "not nightly" $(TESTS)

nightly: venv venv-compat  ## run all tests: every combination, the other Pythons too
	$(RUN_TESTS) -m "" $(TESTS)

compat: venv venv-compat  ## run only the tests of the second environment
	$(RUN_TESTS) -m compat $(TESTS)

machines: venv  ## run checks and recorded cases under what differs between machines (MACHINES="modulo" for some settings)
	$(BIN)/python tests/support/machines.py $(MACHINES)

lint: venv build/typing/effconv  ## ruff (rules and format) and mypy (strict on the engine and the targets)
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 --exclude tests .  # text files name their encoding
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

matrix: venv  ## run every family with every head on tiny models, and write the table in docs/reference/families.md
	$(BIN)/python tests/support/matrix.py

bench: venv  ## every bar of the project in one table, on one thread and on all (BENCH="--quick", "--only lsg", ...)
	$(BIN)/python -m benchmarks $(BENCH)

# The installed package, not the checkout: the reference then shows what users import.
docs: $(DOCS)/.installed  ## build the docs site in site/, without a warning (DOCS_COMMAND=serve shows it while you write)
	rm -rf build/lib build/bdist.*
	$(DOCS)/bin/python -m pip install -q --no-deps --force-reinstall .
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs $(DOCS_COMMAND) --strict

wheel: venv  ## build dist/effconv-*.whl
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove what the other commands made, the environments included
	rm -rf $(VENV) $(COMPAT) $(DOCS) site build dist effconv.egg-info demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone, so that the resolver never meets a second candidate for the largest download.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(COMPAT)/.installed: pyproject.toml constraints-compat.txt
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install -q $(TORCH)
	$(COMPAT)/bin/python -m pip install -q -c constraints-compat.txt -e '.[sentence]' accelerate psutil pytest
	touch $@

# pip 25.1 is the first that installs dependency groups.
$(DOCS)/.installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install -q 'pip>=25.1'
	$(DOCS)/bin/python -m pip install -q -c constraints.txt --group docs
	touch $@

# mypy names modules by folder: the link gives the checkout's root, whatever it is called, the package's name.
build/typing/effconv:
	mkdir -p $(@D)
	ln -sfn ../.. $@
