# `make` alone lists what there is. Needs: make, and Python 3.11 or newer (PYTHON picks which).
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Test files under way at once: most of their time they wait for something real.
AT_ONCE ?= 3

bin := $(VENV)/bin
# Stamp files. The first bears the name of the interpreter, so that another PYTHON makes the venv anew.
made := $(VENV)/.made-with-$(subst /,-,$(PYTHON))
demo := $(VENV)/.installed-demo
dev := $(VENV)/.installed-dev
pins := pyproject.toml constraints.txt

# What is installed, and what builds it, is what constraints.txt says. -qq: errors only.
install = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
  $(bin)/python -m pip --disable-pip-version-check -qq install

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
	  printf 'make %-14s %s\n' "$$name" "$$what"; done

.PHONY: demo
demo: $(demo) ## run the exporter on a make-believe AWS: no account, no network (ARGS="..." adds flags)
	@echo "Look at http://localhost:10042/metrics (Ctrl-C stops)"
	@exec $(bin)/ecr-replication-exporter --demo $(ARGS)

# In the order of the folders: the acceptance tests are few and slow, so they begin first.
.PHONY: test
test: $(dev) ## run the tests (ARGS="tests/deploy/test_iam.py -k action" picks some)
	@$(bin)/python -m pytest --numprocesses=$(AT_ONCE) --dist=loadfile --no-loadscope-reorder $(ARGS)

# What needs no package of the system, no chart and no image.
UNIT := tests/aws tests/config tests/demo tests/http tests/metrics tests/polling tests/replication $(wildcard tests/test_*.py)

.PHONY: test-unit
test-unit: $(dev) ## run the unit tests (PYTHON=python3.13 VENV=.venv-3.13 runs them on another Python)
	@$(bin)/python -m pytest --numprocesses=$(AT_ONCE) --dist=loadfile $(UNIT)

.PHONY: check
check: $(dev) ## check lint, format, types and which package imports which
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/lint-imports --no-cache

.PHONY: fix
fix: $(dev) ## repair what can be repaired by itself
	@$(bin)/ruff check --fix .
	@$(bin)/ruff format .

.PHONY: bench
bench: bench-scrape bench-polling ## measure what scrapes and polling cost (some fifteen minutes)

.PHONY: bench-scrape
bench-scrape: $(dev) ## scrapes alone (ARGS="times first together polling memory" picks some)
	@$(bin)/python benchmarks/scrape.py $(ARGS)

.PHONY: simulate
simulate: $(dev) ## play a week of 100,000 images in virtual time, the same each time (ARGS="--days 1 --seed 2" varies it)
	@PYTHONHASHSEED=0 PYTHONPATH=tests $(bin)/python benchmarks/simulate.py $(ARGS)

.PHONY: soak
soak: $(dev) ## run it for ten minutes under churn, faults, reloads and scrapes (ARGS="--minutes 60" for an hour)
	@PYTHONPATH=tests $(bin)/python benchmarks/soak.py $(ARGS)

.PHONY: bench-polling
bench-polling: $(dev) ## polling alone (ARGS="first-pass rest memory budget slow-answers operation" picks some)
	@$(bin)/python benchmarks/polling.py $(ARGS)

.PHONY: bench-servers
bench-servers: $(dev) ## scrapes beside a first listing, against another checkout (ARGS="--baseline DIR")
	@$(bin)/python benchmarks/servers.py $(ARGS)

.PHONY: bench-hostile
bench-hostile: $(dev) ## scrapes beside hostile clients, against another checkout (ARGS="--baseline DIR")
	@PYTHONPATH=tests $(bin)/python benchmarks/hostile.py $(ARGS)

.PHONY: docs
docs: $(demo) ## write docs/metrics.md anew from the catalogue
	@$(bin)/python -m exporter.metrics.catalogue > $(VENV)/metrics.md && cp $(VENV)/metrics.md docs/metrics.md

.PHONY: helm
helm: $(dev) ## write the chart's values.schema.json, table of values and dashboard anew, and the example's rules
	@$(bin)/python helm/generate.py
	@$(bin)/python helm/dashboard.py
	@$(bin)/python helm/rules.py --write

.PHONY: constraints
constraints: $(made) ## pin the newest releases that pyproject.toml allows
	@echo "Resolving anew"
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(PYTHON) -m venv "$$fresh" && \
	  "$$fresh/bin/python" -m pip --disable-pip-version-check -qq install '.[dev]' hatchling editables && \
	  { echo '# What `make demo` and `make test` install. Written by `make constraints`; any version that'; \
	    echo '# pyproject.toml allows will do for those who install the exporter by other means.'; \
	    "$$fresh/bin/python" -m pip --disable-pip-version-check -qq freeze --exclude ecr-replication-exporter; \
	  } > "$$fresh/constraints.txt" && cp "$$fresh/constraints.txt" constraints.txt

.PHONY: clean
clean: ## remove everything that was made
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(made): $(pins)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is not that: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
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
