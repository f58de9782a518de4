# Every target sets up what it needs in .venv. Needs Python >= 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*/pyproject.toml)
# A file of tests stays in one process, for what its tests share (conftest.py says which come first); each process takes about a gigabyte.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile
EDITABLE := -e . $(foreach p,$(PLUGINS),-e $(dir $(p)))

.PHONY: quickstart test test-all lint docs schema clean
.DEFAULT_GOAL := quickstart

$(VENV)/.installed: pyproject.toml $(PLUGINS)
	$(PYTHON) -c 'import sys; sys.exit("sslkit needs Python >= 3.11, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet "hatchling>=1.26" "editables>=0.5"
	$(BIN)/python -m pip install --quiet --no-build-isolation $(EDITABLE)
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group $*
	touch $@

quickstart: $(VENV)/.installed  ## Trains SimCLR on scikit-learn's digits, two minutes
	$(BIN)/sslkit run recipes/quickstart.yaml

test: $(VENV)/.installed-test  ## The tests of the core and of every plugin
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-test $(VENV)/.installed-parity $(VENV)/.installed-docs $(VENV)/.installed-lint  ## With the slow ones
	$(PYTEST)

lint: $(VENV)/.installed-lint  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(wildcard plugins/*/src)

docs: $(VENV)/.installed-docs  ## HTML in docs/_build
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

schema: $(VENV)/.installed  ## The schema that the recipes of this checkout name in their first line
	for folder in recipes plugins/*/src/*/recipes; do $(BIN)/sslkit schema -O $$folder; done

clean:
	rm -rf $(VENV) docs/_build
