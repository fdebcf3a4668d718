# `make demo` and `make test` set up what they need: a virtual environment in .venv, Java for Spark, and for the tests
# Chromium.

.PHONY: demo test check lint java chromium soak

demo: .venv/.installed java
	.venv/bin/python examples/word2vec.py

test: .venv/.installed java chromium
	.venv/bin/python -m pytest -n 2 --dist loadfile

check: lint test

lint: .venv/.installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# As many bad days for a simulated swarm as you like; `deepdist simulate --seed N` tells the story of one.
SEEDS ?= 3000
soak: .venv/.installed
	.venv/bin/deepdist soak --seeds $(SEEDS)

java:
	@.ci/java

chromium:
	@.ci/chromium

# A Python that can make a virtual environment; `make PYTHON=... demo` chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; \
	done)

.venv/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "No Python 3.11 or newer with the venv module found; this is $$(python3 --version 2>&1)." >&2; \
		echo "Install one (Debian, Ubuntu: apt-get install python3-venv) or name it: make PYTHON=/path/to/python3 ..." >&2; \
		exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version). The first time this downloads 450 MB of PySpark: minutes."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --upgrade pip
	@.venv/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@
	@echo "Set up. It also holds the command .venv/bin/deepdist."
