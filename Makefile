# The two commands that matter: `make demo` and `make test`. Both set up what they need on a fresh machine.
SHELL := /bin/bash
PYTHON := .venv/bin/python
STAMP := .venv/.installed

.PHONY: help setup system-packages demo six test test-matrix test-slow fast check format static bench soak clean

help: ## What there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: system-packages $(STAMP) ## Debian packages (as root) and the Python packages of the lock file

system-packages:
	@scripts/system-packages

$(STAMP): requirements/dev.txt pyproject.toml
	@scripts/venv
	@touch $@

demo: setup ## A farm on this machine builds GNU hello in three environments at once
	@scripts/demo

static: system-packages ## dist/biruda, the one executable, with the static workers of all architectures
	./build-static.sh

six: static ## GNU hello in six kinds of places by one `biruda run` of the executable: root, and an hour
	@scripts/six-kinds

test: setup ## Everything that CI runs
	@scripts/test

test-matrix: setup ## The executables in other systems' roots, in containers, for every architecture
	BIRUDA_MATRIX=1 $(PYTHON) -m pytest -q -rs tests/static

fast: $(STAMP) ## The tests that end in seconds
	$(PYTHON) -m pytest -q -m "not slow and not system"

check: $(STAMP) ## Format, lint, strict types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: $(STAMP)
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: setup ## Latency, throughput and memory, as ratios in one run
	$(PYTHON) -m tests.bench

test-slow: setup static ## All tests with those that take minutes, on every architecture
	@scripts/system-packages --slow
	$(PYTHON) -m pytest -q -m "system or slow"

soak: setup dist/workers ## Break a farm for ten minutes and look what it lost; ROUNDS=1000, SEED=7: docs/reliability.md
	$(PYTHON) -m tests.soak $(SOAK)

dist/workers:
	./build-static.sh --workers --arch own

clean:
	rm -rf .venv build dist .six .mypy_cache .ruff_cache .pytest_cache .hypothesis
