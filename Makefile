# Thin calls into tools/. Every target sets up what it needs; the second time that takes a fraction of a second.
# Variables: PYTHON, VENV, BEVDET_VENV, CHECK_VENV, CORE_VENV; DATA and OUT for demo; DEST for upstream; ARGS for demo, pytest and the benchmark; BENCH names a benchmark.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo check test test-long test-bevdet test-core lint format bench upstream clean setup setup-bevdet setup-check setup-core

ifndef PYTHON
# run it, since a version manager's shim may exist and yet fail
PYTHON := $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null </dev/null && { echo $$p; break; }; done)
endif
BOOTSTRAP = $(or $(PYTHON),$(error no working python3.11 or python3 found; name one with PYTHON=)) tools/bootstrap.py
VENV ?= .venv
BEVDET_VENV ?= .venv-bevdet
CHECK_VENV ?= .venv-check
CORE_VENV ?= .venv-core
BENCH ?= bev_pool
# the rooms that need torch alone; the command line and the comparison with the published code use no more
CORE_TESTS = tests/method tests/checkpoints tests/teachers tests/adapter tests/commands
ARGS ?=
# one thread a process: the tensors are small
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist loadscope

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: setup ## world, teacher, pretraining, finetuning, report; DATA=nuscenes/root takes real data; results go to OUT
	@$(VENV)/bin/python tools/demo/demo.py $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)") $(ARGS)

check: lint ## lint, then the core's tests, in an environment without mm packages: for those who change the method
	@OMP_NUM_THREADS=1 $(CHECK_VENV)/bin/python -m pytest -n auto $(CORE_TESTS) $(ARGS)

test: setup ## all tests but the long ones, on all cores
	@$(PYTEST) -m 'not long' $(ARGS)

test-long: setup ## the long tests: trainings that resume, learn, spread over processes
	@$(PYTEST) -m long $(ARGS)

test-bevdet: setup-bevdet ## the core and the plugin under Python 3.8, torch 1.10, mmcv 1.x and mmdet3d 1.0.0rc4; skipped likewise
	@if [ -x $(BEVDET_VENV)/bin/python ]; then $(BEVDET_VENV)/bin/python -m pytest $(CORE_TESTS) tests/plugin $(ARGS); fi

test-core: setup-core ## the core's tests under Python 3.8 and torch 1.10, skipped where there is no Python 3.8
	@if [ -x $(CORE_VENV)/bin/python ]; then $(CORE_VENV)/bin/python -m pytest $(CORE_TESTS) $(ARGS); fi

lint: setup-check ## linter, format, type checker, spelling
	@status=0; for tool in 'ruff check .' 'ruff format --check .' mypy codespell; do \
		echo "$$tool"; $(CHECK_VENV)/bin/$$tool || status=1; \
	done; exit $$status

format: setup-check ## format the code in place
	@$(CHECK_VENV)/bin/ruff check --fix .
	@$(CHECK_VENV)/bin/ruff format .

bench: setup ## benchmarks/$(BENCH).py
	@$(VENV)/bin/python benchmarks/$(BENCH).py $(ARGS)

upstream: setup ## lay projects/GeoMIM, formatted as upstream wants it, into the mmdet3d 1.4 checkout DEST
	@$(VENV)/bin/python tools/upstream/lay_out.py $(if $(DEST),"$(DEST)")

setup:
	@$(BOOTSTRAP) --host mmdet3d --venv "$(VENV)"

setup-bevdet:
	@$(BOOTSTRAP) --host bevdet --venv "$(BEVDET_VENV)" || \
		{ status=$$?; [ $$status -eq 3 ] && echo 'Skipped: the tests with mmcv 1.x, which need Python 3.8.' || exit $$status; }

setup-check:
	@$(BOOTSTRAP) --host check --venv "$(CHECK_VENV)"

setup-core:
	@$(BOOTSTRAP) --host check --python python3.8 --venv "$(CORE_VENV)" || \
		{ status=$$?; [ $$status -eq 3 ] && echo 'Skipped: the tests under Python 3.8.' || exit $$status; }

clean: ## remove environments and build output; the cached wheels stay
	for venv in "$(VENV)" "$(BEVDET_VENV)" "$(CHECK_VENV)" "$(CORE_VENV)"; do rm -rf "$$venv" "$$venv.log" "$$venv.lock"; done
	rm -rf build dist projects/GeoMIM/*.egg-info *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
