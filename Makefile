# Two commands matter:  make demo  (set up, train on real images)   make test  (set up, check, test)
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help demo test lint format clean

help:            ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

demo: $(VENV)/installed          ## set up, then train a GaterNet on handwritten digits (about a minute)
	$(PY) -m gaternet_jax.main --config=configs/digits.py

test: $(VENV)/installed-test lint          ## set up, lint, type-check, and run the test suite
	$(PY) -m pytest -n 2

lint: $(VENV)/installed-test          ## ruff and pyright
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/shellcheck launch/*.sh launch/*.sbatch

format: $(VENV)/installed-test          ## apply ruff's formatting and safe fixes
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:           ## remove the virtual environment, caches and build outputs (never runs/)
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .ruff_cache

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gaternet-jax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(PY)
	@echo "Installing gaternet-jax and its dependencies into $(VENV) ..."
	$(PY) -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml | $(PY)
	@echo "Installing gaternet-jax with its test dependencies into $(VENV) ..."
	$(PY) -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/installed
