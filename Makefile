# Two commands on a fresh machine (Python 3.11, gcc, make):
#   make quickstart [SEED=n]   train the tiny policy; run directory runs/quickstart[-seedN]
#   make test                  run the whole suite
# Also: make setup, make lint, make check (both gates).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
SEED ?= 1
VENV := .venv
BIN := $(VENV)/bin
RUN_DIR := runs/quickstart$(if $(filter-out 1,$(SEED)),-seed$(SEED))

# uv reads no pip settings: hand on the local wheels where pip has some.
INSTALL := $(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)") $(BIN)/python -m uv pip install --compile-bytecode --python $(BIN)/python

export OMP_WAIT_POLICY := passive

.PHONY: help setup quickstart test lint check
help:
	@sed -n '2,5s/^# \{0,1\}//p' Makefile

setup: $(VENV)/.dev

# One stamp an extra; each is made anew when pyproject.toml changes.
$(VENV)/.uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

$(VENV)/.cpu: pyproject.toml | $(VENV)/.uv
	$(INSTALL) --quiet -e '.[cpu]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.uv
	$(INSTALL) --quiet -e '.[cpu,dev]'
	@touch $@ $(VENV)/.cpu

# An earlier run that ended is moved aside; one that is still going is named by braid itself.
quickstart: $(VENV)/.cpu
	@if [ -e "$(RUN_DIR)/run.json" ] && flock --nonblock "$(RUN_DIR)/run.lock" true; then \
	    aside="$(RUN_DIR).$$(date +%Y%m%d-%H%M%S)"; \
	    mv "$(RUN_DIR)" "$$aside"; echo "the earlier $(RUN_DIR) is now $$aside"; \
	fi
	$(BIN)/braid run configs/recipes/quickstart.yaml --set seed=$(SEED) --run-dir $(RUN_DIR)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: lint test
