# Everything a person or CI does here. `make help` lists it; the first target that needs .venv sets it up.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
DEMO := examples/traces/pc-seabios-smp2.log

# Tests of rooms with compiled functions: `make test` runs them in both forms (tests/test_house.py keeps the list whole).
BOTH_FORMS := $(wildcard tests/test_atomics.py tests/test_cache_lines.py tests/test_futex.py tests/test_clock.py tests/test_words.py tests/test_structure.py tests/test_system.py \
	tests/test_patience.py tests/rcu tests/ranges tests/dirty tests/memslots tests/gmem tests/stage2 tests/engines tests/designs)

KVM_ROOMS := tests/engines_kvm tests/abi tests/conform tests/vm tests/demo

# These show something only if vCPUs and updater have the cores to themselves.
ALONE := tests/compare/test_many_replays.py tests/test_fence.py tests/engines_kvm tests/vm tests/demo
BESIDE := tests/explore tests/stage2 tests/abi

# pip: -qq leaves errors, and drops warnings about indices that are configured but away.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
INSTALL := $(PIP) install --root-user-action=ignore

.PHONY: help demo test night test-compiled test-beside test-interpreted testkvm check check-tests check-beside lint installs bench lock clean newer coverage
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

demo: .venv/stamp ## replay a real QEMU boot under each design and print the table
	@$(BIN)/guestmem compare $(DEMO)

# First what needs the cores, then the rest, two runs of pytest at a time.
test: lint ## lint, doctests, tests compiled, the quick ones interpreted too (CI)
	$(PYTEST) $(ALONE)
	@$(MAKE) --no-print-directory -j2 test-compiled test-beside test-interpreted

test-compiled: .venv/stamp
	$(PYTEST) --doctest-modules src/guestmem tests $(addprefix --ignore=,$(ALONE) $(BESIDE))

# What it prints is shown when it is done, as a whole: only its last lines, unless something failed.
quietly = @log=$$(mktemp) && trap 'rm -f "$$log"' EXIT && if $(1) >"$$log" 2>&1; then \
	echo; grep -hE '^SKIPPED| passed' "$$log"; else cat "$$log"; exit 1; fi

test-beside: .venv/stamp
	$(call quietly,$(PYTEST) $(BESIDE))

test-interpreted: .venv/stamp
	$(call quietly,GUESTMEM_INTERPRET=1 $(PYTEST) -m "not compiled_only and not slow" $(BOTH_FORMS))

testkvm: .venv/stamp ## only the rooms that drive /dev/kvm; `make test` runs them too
	$(PYTEST) $(KVM_ROOMS)

# Two runs at a time. GUESTMEM_KVM=0: what drives the kernel takes its time.
check: lint ## under a minute: lint, and the tests that are not slow
	@$(MAKE) --no-print-directory -j2 check-tests check-beside

quick = GUESTMEM_KVM=0 $(PYTEST) -q -m "not slow"
HALF := $(BESIDE) tests/conform tests/engines tests/memslots

check-tests: .venv/stamp
	$(quick) --doctest-modules src/guestmem tests $(addprefix --ignore=,$(HALF))

check-beside: .venv/stamp
	$(call quietly,$(quick) $(HALF))

# NIGHT: options, such as NIGHT="--hours 1 --seed 7 results.json".
night: .venv/stamp ## campaigns that `make test` runs slices of: <= 2 hours, to night.json
	$(BIN)/python benchmarks/night.py $(NIGHT)

lint: .venv/stamp ## ruff, its formatter, mypy --strict
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check --quiet || { $(BIN)/ruff format --check; exit 1; }
	@$(BIN)/mypy

# In an environment of its own, interpreted: what the newer Python could break is in the language, not in machine code.
NEWER ?= python3.13
NEWER_TESTS := tests/history tests/rcu tests/memslots tests/dirty tests/test_structure.py
newer: ## the quick tests of some rooms on Python 3.13, where there is one
	@if ! $(NEWER) -c "" 2>/dev/null; then echo "$(NEWER): not installed, skipped"; exit 0; fi; \
	test -x .venv-newer/bin/python || $(NEWER) -m venv .venv-newer; \
	.venv-newer/bin/python -m pip --disable-pip-version-check -qq install --root-user-action=ignore -r requirements/lock.txt || \
		{ echo "$(NEWER): its packages cannot be had here, skipped"; exit 0; }; \
	PYTHONPATH=src GUESTMEM_INTERPRET=1 GUESTMEM_KVM=0 .venv-newer/bin/python -m pytest -q -p no:cacheprovider \
		-m "not slow and not compiled_only" $(NEWER_TESTS)

# Lines and branches of the sources, interpreted: machine code is not seen. coverage comes by itself, beside .venv.
coverage: .venv/stamp ## lines and branches that the rooms' quick tests reach, in per cent
	@test -d .coverage-tool || $(INSTALL) --target .coverage-tool coverage
	PYTHONPATH=.coverage-tool GUESTMEM_INTERPRET=1 GUESTMEM_KVM=0 $(BIN)/python -m coverage run --branch \
		--source=src/guestmem -m pytest -q -p no:cacheprovider -m "not slow and not compiled_only" $(COVERED)
	@PYTHONPATH=.coverage-tool $(BIN)/python -m coverage report --skip-covered --sort=cover | tail -1
COVERED ?= tests

installs: .venv/stamp ## wheel and sdist in clean environments of each Python (needs an index)
	GUESTMEM_INSTALL=1 $(PYTEST) tests/test_installs_clean.py

bench: .venv/stamp ## run every benchmark, each beside its peers in the same run
	@set -e; for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

lock: .venv/stamp ## pin versions again, from pyproject.toml (UPGRADE=--upgrade: newest)
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet $(UPGRADE) --extra=dev --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
		--output-file requirements/lock.txt pyproject.toml
	@sed -i '/^guestmem @ /,+1d' requirements/lock.txt  # itself, by the path of this checkout

clean: ## remove .venv and all that tools left here
	rm -rf .venv .venv-newer .coverage-tool .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again in place when the pinned versions or the project's description change.
.venv/stamp: requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python {v[0]}.{v[1]} found, 3.11 needed: set PYTHON")'
	@echo "setting up .venv: some 100 MB to fetch, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(INSTALL) -r requirements/lock.txt
	@$(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@
