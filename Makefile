# make demo    the main job, end to end, on this machine
# make test    all tests                     (make test-unit: the fast ones)
# make test-histories   its last part: random histories, faults at every request, programs under kills; minutes
# make test-gromacs   a real simulation under kills; needs gmx (not part of make test)
# make test-long   outages at their real length, a quarter of an hour (not part of make test)
# make test-torch   the example with PyTorch under kills; installs torch (not part of make test)
# make test-gpu   a training on an NVIDIA GPU under kills, its metrics and its preflight (not part of make test)
# make test-containers   the images, built and run; needs podman or docker with compose (not part of make test)
# make test-browser   Flower in a real browser; needs chromium (not part of make test)
# make check   lint, formatting, types, import contracts
# make bench   the benchmarks                (ONLY=name: one of them)
#
# Each sets up .venv by itself. It needs make and a Python >= 3.11 with venv; PYTHON=/path/to/python3 names another.
# PYTEST_ARGS is passed on to pytest, WORKERS is the number of test processes.

PYTHON ?=
PYTEST_ARGS ?=
ONLY ?=
WORKERS ?= 4

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
SOURCES := kelpie_celery workers/kelpie_worker scaler/kelpie_scaler tests $(wildcard benchmarks containers/*.py)
# The longest first: whoever is done early takes over from the others.
SLOW_TESTS := $(wildcard tests/acceptance tests/integration tests/contract)

# A minute each, with all that the machine has: beside others they would wait for each other.
LONG_TESTS := tests/acceptance/test_programs.py tests/integration/test_commit_faults.py

# One thing at a time, also under make -j: both `check` and `test` would set up the same .venv otherwise.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-slow test-gromacs test-long test-torch test-gpu test-containers test-browser check bench clean test-histories

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml
	@set -eu; \
	seen=; python=; \
	for candidate in $(if $(PYTHON),'$(PYTHON)',python3 python3.14 python3.13 python3.12 python3.11); do \
	  version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  seen="$$seen$$candidate is $$version; "; \
	  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue; \
	  if ! "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then \
	    seen="$$seen(without venv; on Debian and Ubuntu: apt install python$$version-venv) "; continue; \
	  fi; \
	  python=$$candidate; break; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "no Python >= 3.11 with venv here. Seen: $${seen:-none }- name one: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "setting up $(VENV) with $$python ($$version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi; \
	echo "installing kelpie-celery and what it needs into $(VENV) (once; about a minute)"; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'; \
	touch $@

demo: $(STAMP)
	$(BIN)/python -m kelpie_celery.demo

test: test-unit test-slow test-histories

test-unit: $(STAMP)
	$(BIN)/python -m pytest tests/unit tests/models $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(SLOW_TESTS) $(LONG_TESTS:%=--ignore=%) -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-histories: $(STAMP)
	$(BIN)/python -m pytest tests/histories $(LONG_TESTS) -n $(WORKERS) $(PYTEST_ARGS)

test-gromacs: $(STAMP)
	$(BIN)/python -m pytest tests/acceptance/test_gromacs.py -m gromacs -s $(PYTEST_ARGS)

test-long: $(STAMP)
	$(BIN)/python -m pytest tests/acceptance/test_long_outages.py -m long -s $(PYTEST_ARGS)

# torch comes into .venv where it is missing: for a CPU some 200 MB, as a wheel with CUDA several GB.
test-torch: $(STAMP)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check torch
	$(BIN)/python -m pytest tests/acceptance/test_examples.py -m torch -s $(PYTEST_ARGS)

test-gpu: $(STAMP)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check torch
	$(BIN)/python -m pytest tests/acceptance/test_gpu.py -m gpu -s $(PYTEST_ARGS)

test-containers: $(STAMP)
	$(BIN)/python -m pytest tests/acceptance/test_containers.py -m containers -s $(PYTEST_ARGS)

# Its own extra: nobody else needs it.
test-browser: $(STAMP)
	@$(BIN)/python -c 'import selenium' 2>/dev/null || \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev,browser]'
	$(BIN)/python -m pytest tests/acceptance/test_flower_browser.py -m browser -s $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ONLY)

clean:
	rm -rf $(VENV) .kelpie bench.json .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
