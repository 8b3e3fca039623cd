# One command each: `make help` lists them. Everything is installed into .venv, at the versions of constraints.txt.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 10 --timeout 120 -c constraints.txt

.PHONY: help install quickstart test lint bench ui clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

install: $(STAMP) ## create .venv and install the pinned set

# `PYTHON=/path/to/python3.12 make install` chooses an interpreter; otherwise the first one new enough is taken.
$(STAMP): pyproject.toml constraints.txt
	@python=; \
	for name in "$$PYTHON" python3 python3.11 python3.12 python3.13 python3.14; do \
	  if [ -n "$$name" ] && "$$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; \
	  then python="$$name"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "posttrain needs Python 3.11 to 3.14 with its venv module; none was found on PATH." >&2; \
	  echo "Install one (Debian, Ubuntu: apt-get install python3-venv), or name it: make install PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "Installing into $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)
	@for attempt in 1 2 3; do \
	  $(PIP_INSTALL) hatchling && $(PIP_INSTALL) --no-build-isolation -e '.[dev]' && break; \
	  if [ $$attempt = 3 ]; then echo "The installation failed three times; the reason is above." >&2; exit 1; fi; \
	  echo "The installation failed; attempt $$((attempt + 1)) of 3 in $$((attempt * 10)) s" >&2; sleep $$((attempt * 10)); \
	done
	@touch $@

quickstart: install ## post-train SmolLM2-135M from end to end (15 minutes on 2 cores)
	$(BIN)/posttrain run quickstart

# A worker for each processor, with one thread each: two that compute with two threads each slow each other down tenfold.
test: install ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal --durations 30 --durations-min 5

lint: install ## ruff, its formatter excepted, and pyright
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The last TRL with a PPO trainer is not the TRL of the pinned set: it gets a folder of its own, which only that peer reads.
PPO_PEER := $(VENV)/trl-1.12

$(PPO_PEER): | $(STAMP)
	@rm -rf $@.part
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 10 --timeout 120 --no-deps --target $@.part trl==1.12.0
	@mv $@.part $@

# `make bench BENCH="sft scaling --laps 3"` chooses; `.venv/bin/python -m tests.bench --help` lists what there is.
bench: install | $(PPO_PEER) ## speed beside TRL and transformers (an hour on 2 cores); JSON, table and plot in output/
	@mkdir -p output
	$(BIN)/python -m tests.bench --out output/bench.json --ppo-path $(PPO_PEER) $(BENCH)

ui: install ## Prefect and MLflow in the browser, on loopback
	$(BIN)/posttrain ui

clean: ## remove .venv and tool caches; output/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find flows tasks models data tests -name __pycache__ -type d -prune -exec rm -rf {} +
