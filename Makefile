# `make demo` shows the operator on a local cluster, `make test` runs all tests. Both install
# everything they need; slow results are cached outside the repository.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
GROUPS := build runtime dashboard test lint docs grafana examples
LOCKS := $(GROUPS:%=requirements/%.txt)
PYTEST := $(BIN)/python -m pytest
# Two processes for the tests that share nothing; the others share a cluster.
UNIT := $(PYTEST) -n 2 tests/unit

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(INSTALLED): $(LOCKS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/build.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes \
	  -r requirements/runtime.txt -r requirements/dashboard.txt -r requirements/test.txt \
	  -r requirements/lint.txt -r requirements/docs.txt -r requirements/grafana.txt \
	  -r requirements/examples.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: install
install: $(INSTALLED) ## Create the virtual environment

# --- The cluster and the demo ---------------------------------------------------------------

.PHONY: demo
demo: $(INSTALLED) ## Show a local cluster, the operator, pools and a claim step by step
	@$(BIN)/python -m demo up

.PHONY: down
down: $(INSTALLED) ## Undo the demo: remove the cluster and everything started for it
	@$(BIN)/python -m demo down

.PHONY: cluster-up
cluster-up: $(INSTALLED) ## Start the local cluster, or reuse a running one
	@$(BIN)/python -m localcluster up

.PHONY: cluster-down
cluster-down: $(INSTALLED) ## Remove the local cluster
	@$(BIN)/python -m localcluster down

.PHONY: cluster-status
cluster-status: $(INSTALLED) ## Show which parts of the local cluster run, and the nodes' handlers
	@$(BIN)/python -m localcluster status

.PHONY: kubeconfig
kubeconfig: $(INSTALLED) ## Print the path of the local cluster's kubeconfig (make -s kubeconfig)
	@$(BIN)/python -m localcluster kubeconfig

.PHONY: image
image: $(INSTALLED) ## Build the operator's image and load it into the local cluster
	@$(BIN)/python -m localcluster build-operator-image

# --- Checks ----------------------------------------------------------------------------------

.PHONY: lint
lint: $(INSTALLED) ## Format, lint, types, import rules, generated files
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m crdgen --check
	@$(BIN)/python -m refgen --check
	@$(BIN)/python -m dashboards --check
	@$(BIN)/python -m diagrams --check

.PHONY: test
test: lint ## Lint, unit, integration (real API server), faults, e2e (kind with real gVisor)
	@$(UNIT)
	@$(PYTEST) tests/browser tests/integration tests/chaos tests/e2e

.PHONY: unit
unit: $(INSTALLED) ## Unit tests only: pure and fast
	@$(UNIT)

SIMULATIONS ?= 500

.PHONY: model
model: $(INSTALLED) ## Simulated clusters with random faults: SIMULATIONS=500 of each kind
	@SANDBOXPOOL_SIMULATIONS=$(SIMULATIONS) $(PYTEST) tests/unit/model

.PHONY: integration
integration: $(INSTALLED) ## Integration tests only: a real API server, fake nodes
	@$(PYTEST) tests/integration

VERSIONS ?=

.PHONY: compat
compat: $(INSTALLED) ## Integration tests on each VERSIONS=1.30,1.37 of Kubernetes; writes docs/compatibility.md
	@$(BIN)/python -m compat $(if $(VERSIONS),--versions $(VERSIONS))

.PHONY: browser
browser: $(INSTALLED) ## The dashboard in Debian's Chromium; SANDBOXPOOL_GOLDEN=1 writes its pictures
	@$(PYTEST) tests/browser

.PHONY: e2e
e2e: $(INSTALLED) ## End-to-end tests only: real kubelets and gVisor
	@$(PYTEST) tests/e2e

# --- Faults -----------------------------------------------------------------------------------

KILLS ?= 50
SEED ?=

.PHONY: chaos
chaos: $(INSTALLED) ## All fault tests, KILLS kills, each guard disabled once; SEED replays a run
	@CHAOS_FULL=1 CHAOS_KILLS=$(KILLS) CHAOS_SEED=$(SEED) $(PYTEST) tests/chaos

MINUTES ?= 60

.PHONY: soak
soak: $(INSTALLED) ## MINUTES of mixed load, to find leaks; writes docs/benchmarks/soak.md
	@PYTHONPATH=tests $(BIN)/python -m bench.soak --minutes $(MINUTES)

# --- Benchmarks ------------------------------------------------------------------------------

NODES ?= 5000
ROUNDS ?= 3
PLOTS := $(VENV)/.plots

$(PLOTS): $(INSTALLED) requirements/bench.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/bench.txt
	@touch $@

.PHONY: bench
bench: $(PLOTS) ## Claims against the bare two writes; ROUNDS=1 is short. Writes docs/benchmarks.md
	@PYTHONPATH=tests $(BIN)/python -m bench.claims --rounds $(ROUNDS)

.PHONY: bench-scale
bench-scale: $(INSTALLED) ## 10,000 warm pods, 200 pools, NODES nodes; writes docs/benchmarks/scale.md
	@PYTHONPATH=tests $(BIN)/python -m bench.scale --nodes $(NODES)

.PHONY: bench-handover
bench-handover: $(INSTALLED) ## How long claims wait when the leader ends; writes docs/benchmarks/handover.md
	@PYTHONPATH=tests $(BIN)/python -m bench.handover

.PHONY: bench-fleet
bench-fleet: $(INSTALLED) ## CPU and writes with a fleet of NODES fake nodes; writes docs/benchmarks/fleet.md
	@PYTHONPATH=tests $(BIN)/python -m bench.fleet --nodes $(NODES)

.PHONY: bench-client
bench-client: $(INSTALLED) ## The Python client on the local cluster, beside kubectl; writes docs/benchmarks/client.md
	@PYTHONPATH=tests $(BIN)/python -m bench.client

.PHONY: bench-opensandbox
bench-opensandbox: $(INSTALLED) ## OpenSandbox's SDK beside bare claims; ROUNDS=1 is short. Writes docs/benchmarks/opensandbox.md
	@PYTHONPATH=tests $(BIN)/python -m bench.opensandbox --rounds $(ROUNDS)

# --- Documentation ---------------------------------------------------------------------------

.PHONY: site
site: $(INSTALLED) ## The documentation as a site in build/site; fails for broken links
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

.PHONY: diagrams
diagrams: $(INSTALLED) ## Draw the diagrams of docs/ for the site; needs npm, fetches Debian's Chromium
	@$(BIN)/python -m diagrams

# --- Generated files -------------------------------------------------------------------------

.PHONY: format
format: $(INSTALLED) ## Format the code and apply automatic fixes
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

.PHONY: generate
generate: $(INSTALLED) ## Generate the CRDs, docs/reference and the dashboards from the code
	@$(BIN)/python -m crdgen
	@$(BIN)/python -m refgen
	@$(BIN)/python -m dashboards

.PHONY: lock
lock: $(INSTALLED) ## Lock the dependencies again, with hashes (after a change of pyproject.toml)
	@lock() { $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	    --generate-hashes --no-annotate --no-header "$$@"; }; \
	lock --extra operator pyproject.toml -o requirements/runtime.txt; \
	lock --extra dashboard -c requirements/runtime.txt pyproject.toml -o requirements/dashboard.txt; \
	for group in build test lint docs grafana examples bench; do \
	  lock --group $$group -c requirements/runtime.txt -o requirements/$$group.txt; \
	done; \
	lock --group opensandbox -o requirements/opensandbox.txt
