# Every target works on a machine that has only python3 (3.11 or newer), pip and make.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
export DAGSTER_HOME ?= $(CURDIR)
# As in the Dockerfile: one heap for each library.
export ARROW_DEFAULT_MEMORY_POOL ?= system
export MALLOC_ARENA_MAX ?= 1
export _RJEM_MALLOC_CONF ?= narenas:1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help env demo ui test test-docs test-ui docs torture torture-writes oracle operation celery fresh conformance axe bench audit sbom lock clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

env: .venv/.synced  ## build .venv from requirements.lock

# uv is installed into the environment and fills it: seconds, where pip alone takes minutes.
# The lock names no package index, so the machine's own settings decide where packages come from.
.venv/.synced: requirements.lock pyproject.toml
	@echo "Building .venv (half a minute on a fresh machine) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: env  ## read a sandbox's whole history into tables, through Dagster
	@$(BIN)/st-memberships demo

ui: env  ## run the Dagster web UI and daemon; beside the sandbox while no tenant is configured
	@$(BIN)/st-memberships ui

# A fifth of the time tests wait for servers and processes: three at a time keep two cores busy.
test: env  ## set up, check style and types, and run the tests
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/pyright st_memberships_orchestration st_memberships_orchestration_tests
	@$(BIN)/python -m pytest -n 3 --dist worksteal

docs: env  ## build the documentation as a site into site/, warnings as errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test-docs: env  ## run the commands of README and docs, as a reader would, and try the wheel
	@$(BIN)/python -m pytest -n 2 -m documentation

test-ui: env  ## walk the web UI and the report in Chromium, as a person would (skips without one)
	@$(BIN)/python -m pytest -n 0 st_memberships_orchestration_tests/ui_walk.py \
	  st_memberships_orchestration_tests/report_walk.py

torture-writes: env  ## 1,500 random schedules over all writes: faults, kills, and a hostile ServiceTitan
	@$(BIN)/python -m st_memberships_orchestration_tests.torture_writes --schedules 500
	@$(BIN)/python -m st_memberships_orchestration_tests.torture_hostile --schedules 1000

oracle: env  ## recompute the derived tables of thirty unkind contractors, and of twenty that contradict themselves, in SQL, from raw/ alone
	@$(BIN)/python -W ignore -m st_memberships_orchestration_tests.oracle

celery: env  ## two Celery workers share a backfill, one is killed (needs PostgreSQL and Redis)
	@$(BIN)/python -W ignore -m st_memberships_orchestration_tests.celery_workers

fresh: env  ## an hour of 200 tenants that all change, with four Celery workers (needs PostgreSQL and Redis; TENANTS=n QUARTERS=n)
	@$(BIN)/python -W ignore benchmarks/fresh.py --tenants $(or $(TENANTS),200) --quarters $(or $(QUARTERS),4)

conformance: env  ## check client and sandbox against ServiceTitan's document (needs npm; DOCUMENT=a newer one)
	@conformance/run $(DOCUMENT)

axe: env  ## look for accessibility faults in report and documentation (needs npm and Chromium)
	@conformance/axe

torture: env  ## kill 200 runs at random points, with faults; nothing may be lost or doubled
	@$(BIN)/python -m st_memberships_orchestration_tests.torture --schedules 200

operation: env  ## two hours of operation with a real daemon; nobody may have to do anything
	@$(BIN)/python -m st_memberships_orchestration_tests.operation --minutes 120

audit: env  ## look for known vulnerabilities of what is locked (asks a service on the network)
	@$(BIN)/uv tool run pip-audit --strict --requirement requirements.lock --disable-pip

sbom: env  ## write what is installed to sbom.json, as CycloneDX
	@$(BIN)/uv tool run --from cyclonedx-bom cyclonedx-py environment --output-file sbom.json $(BIN)/python

bench: env  ## measure reading beside its peers into docs/benchmarks.md (MEMBERSHIPS=n TAP=checkout PART=one)
	@$(BIN)/python benchmarks/reading.py --memberships $(or $(MEMBERSHIPS),10000) $(if $(TAP),--tap $(TAP)) $(if $(PART),--part $(PART))

lock: env  ## resolve pyproject.toml anew into requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate \
	  --upgrade --python-version 3.11 --all-extras --group dev --group docs pyproject.toml -o requirements.lock

clean:  ## remove the environment and all local data, the demo's lake included
	rm -rf .venv .data
