# One-line recipes; each does its own set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: setup run test unit lint bench bench-peers demo clean system

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

run: setup
	$(BIN)/parley serve

demo: setup
	$(BIN)/parley demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest -q -n auto -m "not e2e and not browser and not models"

test: setup system lint
	$(BIN)/pytest

system:
	@sh tests/system_packages.sh

bench: setup
	$(BIN)/python -m tests.bench

bench-peers: setup
	$(BIN)/python -m tests.bench.peers

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
