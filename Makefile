# Every target works on a machine that has only python3 (3.11+), pip and make.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: env lock

env: $(VENV)/.synced  ## build .venv from requirements.lock

# uv is installed into the environment itself and then fills it: pip alone would take minutes.
# The lock names no package index, so the machine's own pip/uv settings decide where packages come from.
$(VENV)/.synced: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

lock:  ## resolve pyproject.toml anew into requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate \
	  --upgrade --python-version 3.11 --group dev --extra-index-url "" pyproject.toml -o requirements.lock
