# `make` lists the targets. Each one first brings .venv up to pyproject.toml and constraints.txt;
# the stamp file makes a second call quick.

SHELL  := /bin/bash
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS ?= demo,dev
# An interpreter of your choice: make install PYTHON=/path/to/python
PYTHON ?=
# A folder of images for the demo: make demo DATA=some/folder
DATA   ?=
# Folders or files of tests for `make coverage`, and modules or functions for `make mutate`
TESTS   ?=
MUTANTS ?=
# Its time: make demo DATA=some/folder BUDGET=5m
BUDGET ?=

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: help install demo test test-all coverage mutate lint format site site-serve bench audit package \
	wheel-check installs fuzz clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## create .venv with everything in it
	@echo "installed; type next: . $(BIN)/activate"

demo: $(STAMP)  ## the whole job in minutes; DATA=folder for images of your own
	$(BIN)/beit demo $(if $(DATA),--data "$(DATA)") $(if $(BUDGET),--budget $(BUDGET))
	@echo "        type first: . $(BIN)/activate"

test: lint  ## lint, types, import contracts, and every test that is quick
	$(PYTEST) -m "not slow and not gpu"

test-all: lint  ## the same with the slow tests, and those for a GPU where there is one
	$(PYTEST)

coverage: $(STAMP)  ## lines and branches of src that the quick tests run; TESTS="tests/nn tests/run" runs some
	$(PYTEST) -m "not slow and not gpu" --cov --cov-report=term --cov-report=html:build/coverage $(TESTS)

mutate: $(STAMP)  ## mutants of five modules, and whether tests notice; MUTANTS="beit.nn.masking*" tries some
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2 $(MUTANTS)
	$(BIN)/mutmut results

lint: $(STAMP)  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(STAMP)  ## the documentation as a site in build/site; a warning or a dead link is an error
	rm -rf build/site
	$(BIN)/python docs/site/pages.py write
	$(BIN)/zensical build --strict
	$(BIN)/python docs/site/pages.py check

site-serve: site  ## the site at http://localhost:8000; after a change, `make site` again elsewhere
	$(BIN)/zensical serve

bench: $(STAMP)  ## the table of docs/performance.md, about 12 minutes on two cores; results are kept
	$(BIN)/python -W ignore benchmarks/table.py

audit: $(STAMP)  ## licences of the packages, and their known vulnerabilities (docs/security.md)
	$(BIN)/python benchmarks/audit.py

package: $(STAMP)  ## wheel and sdist in dist/, checked, and tried in an empty environment
	$(BIN)/python tests/package/check.py

wheel-check: $(STAMP)  ## wheel and sdist, and from the wheel in an empty environment the demo and the notebooks
	$(BIN)/python tests/package/check.py --python --whole

installs: $(STAMP)  ## both with each Python, and with the oldest and newest dependencies: five environments of some gigabytes
	$(BIN)/python tests/package/check.py --python 3.11 3.12 3.13 --whole 3.14 --oldest 3.11

fuzz: $(STAMP)  ## 100,000 damaged files for each reader, or ten minutes each; hours on one core
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py

clean:  ## remove .venv and the caches, never a run
	rm -rf $(VENV) build dist mutants .coverage* .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# The first Python of at least 3.11 on the path, unless PYTHON names one. A .venv that a broken-off
# call left without pip is made anew. pip is quiet: what it still prints is a warning or an error.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		found=; \
		for candidate in $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.14); do \
			if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
			then found="$$candidate"; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "beit needs Python 3.11 or newer and found none: looked for" \
				"$(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.14)." \
				"Install one, or name it: make install PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "creating $(VENV) with $$("$$found" --version); this takes minutes"; \
		"$$found" -m venv --clear $(VENV) || { \
			echo "$$found cannot make a virtual environment: see above" \
				"(on Debian and Ubuntu the package python3-venv is missing)" >&2; exit 1; }; \
	fi
	@echo "installing beit[$(EXTRAS)] into $(VENV): some gigabytes the first time, a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@
