# From a fresh clone: `make repro` (everything, sample data to evaluated models), `make test` (the tests).

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
JOBS   ?= 2
FIRST  ?= navier_stokes2d
STAMP   = $(VENV)/.installed
CHECKER = $(VENV)/.checker
BASE   ?= main
HOOKS   = $(shell git rev-parse --git-path hooks)
SHELL  := bash
.SHELLFLAGS := -o pipefail -c
export PATH := $(abspath $(BIN)):$(PATH)
# Packages are compiled when they are first used: without that every command would compile them anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env setup repro test test-slow lint format docs check-lock release report push sync lock clean

help:            ## list the commands
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 12

env: $(STAMP)    ## create .venv with the pinned packages

$(STAMP): requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, got {v[0]}.{v[1]}; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	touch $@

$(CHECKER): $(STAMP) requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-dev.txt
	touch $@

setup: env       ## the environment, and DVC's git hooks: status at commit, data at checkout, `make push` at git push
	grep -qs 'make push' $(HOOKS)/pre-push || $(BIN)/dvc install
	for hook in pre-commit post-checkout; do \
	  printf '#!/bin/sh\nexec "%s/dvc" git-hook %s "$$@"\n' "$(abspath $(BIN))" $$hook > $(HOOKS)/$$hook; done
	printf '#!/bin/sh\nexec make push\n' > $(HOOKS)/pre-push

# A stage at the default knobs keeps one core busy, so datasets run side by side, the longest begun first; what they share
# comes before and after.
repro: env       ## run the whole pipeline on the sample data, then print the metrics
	$(BIN)/dvc repro --quiet code
	$(BIN)/dvc stage list --name-only | awk -F@ 'BEGIN { names[n = 1] = "$(FIRST)"; of["$(FIRST)"] = "" } \
	  NF == 2 { if (!($$2 in of)) names[++n] = $$2; of[$$2] = of[$$2] " " $$0 } \
	  END { for (i = 1; i <= n; i++) print of[names[i]] }' | \
	  xargs -P $(JOBS) -L 1 $(BIN)/dvc --wait-for-lock repro --single-item 2>&1 | cat
	$(BIN)/dvc repro
	$(BIN)/dvc metrics show

test: $(CHECKER) ## the tests, a few minutes on two cores
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(CHECKER) ## the tests that take longer; CI runs both
	$(BIN)/python -m pytest -m slow

lint: $(CHECKER) ## style and types of public functions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(CHECKER) ## mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(CHECKER) ## the documentation into site/, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir site

check-lock: env  ## does dvc.lock match the code and the knobs? The data may be absent
	$(BIN)/python -m stages.release --check

push: env        ## push what is worth it: archives, models, the gallery (everything: dvc push)
	$(BIN)/dvc push package autoencoder train baseline gallery

release: env     ## tag a dataset's version: make release NAME=burgers1d-subset VERSION=v1.0.0
	$(BIN)/python -m stages.release $(NAME) $(VERSION)

report: env      ## Markdown for a pull request, against where the branch left BASE (main)
	@$(BIN)/python -m stages.report --base $(BASE)

sync: env        ## upload to W&B what is waiting, and note it in the registry
	$(BIN)/python -m stages.sync
	$(BIN)/dvc repro -s sync registry

lock:            ## pin requirements*.in and all they need into requirements*.txt
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.in
	.lock/bin/python -m pip freeze --all --exclude pip | sed 's/+cpu$$//' > requirements.txt
	.lock/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -r requirements-dev.in
	.lock/bin/python -m pip freeze --all --exclude pip | sed 's/+cpu$$//' | grep -vxFf requirements.txt > requirements-dev.txt
	rm -rf .lock

# What was put into data/raw by hand stays, and uploads and downloads that wait.
clean:           ## remove what can be made again (not the DVC cache, nor raw files)
	rm -rf data/pdebench data/latent_cache data/gallery artifacts models site
	[ ! -d .state ] || find .state -mindepth 1 -maxdepth 1 ! -name sync ! -name download -exec rm -rf {} +
