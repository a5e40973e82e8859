# From a fresh clone: `make repro` (everything, sample data to evaluated models), `make test` (the tests).

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help env repro test test-slow lint format lock clean

help:            ## list the commands
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 12

env: $(STAMP)    ## create .venv with the pinned packages

$(STAMP): requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, got {v[0]}.{v[1]}; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

repro: env       ## run the whole pipeline on the sample data, then print the metrics
	$(BIN)/dvc repro
	$(BIN)/dvc metrics show

test: env        ## the tests, a few minutes on two cores
	$(BIN)/python -m pytest -m "not slow"

test-slow: env   ## the tests that take longer; CI runs both
	$(BIN)/python -m pytest -m slow

lint: env        ## style and types of public functions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env      ## mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:            ## pin requirements.in and all it needs into requirements.txt
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.in
	.lock/bin/python -m pip freeze --all --exclude pip | sed 's/+cpu$$//' > requirements.txt
	rm -rf .lock

clean:           ## remove what can be made again (not the DVC cache)
	rm -rf data/raw data/pdebench data/latent_cache artifacts models .state
