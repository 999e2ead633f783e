# `make table1` and `make test` work on a bare machine that has Python (>= 3.11) and make; everything else is installed
# into .venv on the first call. `make help` lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SCALE  ?= embedded
ARGS   ?=

# A caller's environment must not leak into ours.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
# uv trusts the machine's certificates, as pip does: a mirror behind a company's own authority works.
export UV_SYSTEM_CERTS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install table1 full retrain cifar10 test test-slow test-slurm slurm-demo lint format clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/^([a-z0-9-]+):.*## */\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "Variables: PYTHON (interpreter, $(PYTHON)), SCALE ($(SCALE)), ARGS (more options for pagoda-bench or pytest)."

install: $(STAMP)  ## install the pinned versions into .venv (a second call takes no time)

table1: $(STAMP)  ## Table 1: sample and score every row with the released models (SCALE=smoke, embedded)
	@$(BIN)/pagoda-bench reproduce table1 --scale $(SCALE) $(ARGS)

full: $(STAMP)  ## the same at N = 10,000 and 3 disjoint sample seeds
	@$(BIN)/pagoda-bench reproduce table1 --scale $(SCALE) --full $(ARGS)

retrain: $(STAMP)  ## the same with every model trained from scratch, two at a time
	@$(BIN)/pagoda-bench reproduce table1 --scale $(SCALE) --retrain --executor local --jobs 2 $(ARGS)

cifar10: $(STAMP)  ## Table 1 on photographs: make cifar10 DATA=folder-or-zip
	@test -n "$(DATA)" || { echo "make cifar10: say where the images are: make cifar10 DATA=path/to/cifar10.zip" >&2; exit 2; }
	@$(BIN)/pagoda-bench reproduce table1 --scale cifar10 --data "$(DATA)" $(ARGS)

test: $(STAMP)  ## all tests that take seconds
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

test-slow: $(STAMP)  ## the tests that take minutes
	@$(BIN)/python -m pytest -m "slow and not gpu and not slurm" $(ARGS)

test-slurm: $(STAMP)  ## the tests on a private SLURM (needs root, slurm-wlm, munge; skipped otherwise)
	@$(BIN)/python -m pytest -m slurm -p no:xdist -rs $(ARGS)

slurm-demo: $(STAMP)  ## a private SLURM up, the smoke table through it, the cluster down (root, slurm-wlm, munge)
	@$(BIN)/python tests/slurm/private_cluster.py bash -c 'set -e; d=$$(mktemp -d); trap "rm -rf $$d" EXIT; \
	  export PAGODA_BENCH_STORE=$$d/store PATH="$(CURDIR)/$(BIN):$$PATH"; sinfo; \
	  pagoda-bench reproduce table1 --scale smoke --executor slurm --cluster tests/slurm/demo.toml; \
	  pagoda-bench status --wait --every 2 --tasks; pagoda-bench collect --out $$d/out'

lint: $(STAMP)  ## ruff, its formatter (check only) and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)  ## let ruff mend and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv and what tools leave behind; artifacts and results stay
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The interpreter is checked first, because every later message would be worse. The environment comes from the standard
# library's venv, or from a uv that is there already when the interpreter was shipped without ensurepip (Debian without
# python3-venv). uv installs the packages; pip does it, slower, where uv cannot be had.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "make: no $(PYTHON) here: install Python >= 3.11, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is `"$(PYTHON)" --version 2>&1`, and 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@if "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
	  $(BIN)/python -c '' 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV); \
	elif command -v uv >/dev/null; then \
	  uv venv --quiet --seed --clear --python "$(PYTHON)" $(VENV); \
	else \
	  echo "make: $(PYTHON) has no ensurepip: install it (Debian and Ubuntu: apt install python3-venv), or name another: make PYTHON=..." >&2; exit 1; \
	fi
	@echo "Installing the pinned dependencies and pagoda-bench into $(VENV) (once; with PyTorch this is a large download) ..."
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv >$(VENV)/uv.log 2>&1 \
	  && $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --build-constraints constraints.txt -e '.[dev]' \
	    >>$(VENV)/uv.log 2>&1; then :; \
	else \
	  echo "uv could not do it (see $(VENV)/uv.log); going on with pip, which is slower ..."; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@
	@echo "Installed: `$(BIN)/python --version`, torch `$(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))'`."
