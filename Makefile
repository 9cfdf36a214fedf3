# `make` lists the targets. Needs make and Python 3.11 or newer; PYTHON selects the interpreter.
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Where the demo listens.
PORT ?= 10042
# Test processes. They mostly wait for sockets and subprocesses.
AT_ONCE ?= 4

bin := $(VENV)/bin
# Stamp files. The first contains the name of the interpreter, so another PYTHON creates a new venv.
made := $(VENV)/.made-with-$(subst /,-,$(PYTHON))
demo := $(VENV)/.installed-demo
dev := $(VENV)/.installed-dev
pins := pyproject.toml constraints.txt

# constraints.txt pins the installed packages and the build packages. -qq shows errors only.
install = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
  $(bin)/python -m pip --disable-pip-version-check -qq install

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
	  printf 'make %-14s %s\n' "$$name" "$$what"; done

.PHONY: demo
demo: $(demo) ## run the exporter on a simulated AWS, without an account; the first run downloads packages (PORT=8080 ARGS="...")
	@$(bin)/python -c 'import socket; socket.create_server(("", $(PORT)))' 2>/dev/null || \
	  { echo "Port $(PORT) is taken: make demo PORT=18042" >&2; exit 1; }
	@echo "Open http://localhost:$(PORT)/ to see what is failing; the metrics are at http://localhost:$(PORT)/metrics."
	@echo "Every state is there after 30 s. Ctrl-C stops."
	@exec $(bin)/ecr-replication-exporter --demo --web.listen-address=:$(PORT) $(ARGS)

# Each process begins with an equal part of the tests, which tests/conftest.py mixes, and at its end takes over
# tests of the others.
.PHONY: test
test: $(dev) ## run the tests (ARGS="tests/deploy/test_iam.py -k action" selects some)
	@$(bin)/python -m pytest --numprocesses=$(AT_ONCE) --dist=worksteal $(ARGS)

# Tests that need no system package, chart or image.
UNIT := tests/aws tests/commands tests/config tests/demo tests/http tests/metrics tests/polling tests/replication $(wildcard tests/test_*.py)

.PHONY: test-unit
test-unit: $(dev) ## run the unit tests (PYTHON=python3.13 VENV=.venv-3.13 runs them on another Python)
	@$(bin)/python -m pytest --numprocesses=$(AT_ONCE) --dist=loadfile $(UNIT)

.PHONY: check
check: $(dev) ## check lint, format, types and the imports between packages
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/lint-imports --no-cache

.PHONY: fix
fix: $(dev) ## fix lint and format where that is automatic
	@$(bin)/ruff check --fix .
	@$(bin)/ruff format .

.PHONY: bench
bench: bench-scrape bench-polling ## run the scrape and the polling benchmarks (about fifteen minutes)

.PHONY: bench-scrape
bench-scrape: $(dev) ## run the scrape benchmarks (ARGS="times first together polling memory" selects some)
	@$(bin)/python benchmarks/scrape.py $(ARGS)

.PHONY: simulate
simulate: $(dev) ## simulate a week of 100,000 images in virtual time, reproducibly (ARGS="--days 1 --seed 2" changes it)
	@PYTHONHASHSEED=0 PYTHONPATH=tests $(bin)/python benchmarks/simulate.py $(ARGS)

.PHONY: soak
soak: $(dev) ## run the command for ten minutes under changes, faults, reloads and scrapes (ARGS="--minutes 60": an hour)
	@PYTHONPATH=tests $(bin)/python benchmarks/soak.py $(ARGS)

.PHONY: bench-page
bench-page: $(dev) ## compare the status page with a scrape of the same facts (ARGS="times beside" selects some)
	@$(bin)/python benchmarks/page.py $(ARGS)

.PHONY: bench-polling
bench-polling: $(dev) ## run the polling benchmarks (ARGS="first-pass stalls rest memory budget slow-answers operation" selects some)
	@$(bin)/python benchmarks/polling.py $(ARGS)

.PHONY: bench-million
bench-million: $(dev) ## a million images in one exporter (half an hour; ARGS="--images 50000 --repositories 100 --rest 60")
	@$(bin)/python benchmarks/million.py $(ARGS)

.PHONY: bench-heap
bench-heap: $(dev) ## where the bytes of an image are, by type (ARGS="--baseline DIR")
	@$(bin)/python benchmarks/heap.py $(ARGS)

.PHONY: bench-events
bench-events: $(dev) ## compare events with polling, and what foreign events cost (ARGS="--baseline DIR")
	@$(bin)/python benchmarks/events.py $(ARGS)

.PHONY: bench-servers
bench-servers: $(dev) ## compare scrapes during a first listing with another checkout (ARGS="--baseline DIR")
	@$(bin)/python benchmarks/servers.py $(ARGS)

.PHONY: bench-hostile
bench-hostile: $(dev) ## scrapes beside hostile clients, against another checkout (ARGS="--baseline DIR")
	@PYTHONPATH=tests $(bin)/python benchmarks/hostile.py $(ARGS)

.PHONY: bench-alert
bench-alert: $(dev) ## time a failing push to its notification, with Prometheus and Alertmanager (four minutes)
	@PYTHONPATH=tests $(bin)/python benchmarks/alert.py $(ARGS)

.PHONY: docs
docs: $(demo) ## generate docs/metrics.md from the catalogue, and docs/api.schema.json from the report
	@$(bin)/python -m exporter.metrics.reference > $(VENV)/metrics.md && cp $(VENV)/metrics.md docs/metrics.md
	@$(bin)/python -m exporter.http.report > $(VENV)/api.json && cp $(VENV)/api.json docs/api.schema.json

.PHONY: helm
helm: $(dev) ## generate the chart's values.schema.json, values table and dashboard, and the example's rules
	@$(bin)/python helm/generate.py
	@$(bin)/python helm/dashboard.py
	@$(bin)/python helm/rules.py --write

.PHONY: constraints
constraints: $(made) ## pin the newest releases that pyproject.toml allows
	@echo "Resolving the newest releases"
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(PYTHON) -m venv "$$fresh" && \
	  "$$fresh/bin/python" -m pip --disable-pip-version-check -qq install '.[dev]' hatchling editables && \
	  { echo '# What `make demo` and `make test` install. Written by `make constraints`. Another'; \
	    echo '# installation may use any version that pyproject.toml allows.'; \
	    "$$fresh/bin/python" -m pip --disable-pip-version-check -qq freeze --exclude ecr-replication-exporter; \
	  } > "$$fresh/constraints.txt" && cp "$$fresh/constraints.txt" constraints.txt

.PHONY: clean
clean: ## remove the venv, builds and caches
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(made): $(pins)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "$(PYTHON) is absent or older than Python 3.11: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot create virtual environments: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(demo): $(made)
	@echo "Installing into $(VENV) ..."
	@$(install) --editable '.[demo]'
	@touch $@

$(dev): $(made)
	@echo "Installing into $(VENV) ..."
	@$(install) --editable '.[dev]'
	@touch $(demo) $@
