# `make` alone explains each verb.

PYTHON ?= python3
BIN = .venv/bin

.DEFAULT_GOAL := help

help:  ## explain the verbs
	@grep -E '^[a-z.-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

.venv: .venv/installed
.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "Kassa needs Python 3.11 to 3.13: name one with PYTHON=... make"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv is missing: install python3-venv, or name another PYTHON"; exit 1; }
	@echo "installing the pinned requirements into .venv (a minute or so) ..."
	@$(BIN)/pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@

run: .venv  ## run all of Kassa on this machine: api on :8000, admin on :8001, Flower on :5555; Ctrl-C stops it
	@exec ./kassa run

test: .venv  ## run the whole suite on a private PostgreSQL and Redis (some 10 minutes)
	@$(BIN)/python -m pytest

check: .venv  ## lint, types, import rules, schema against migrations, Dockerfiles and compose file
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/integration/test_migrations.py
	@$(BIN)/hadolint Dockerfile.api Dockerfile.worker
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

model: .venv  ## play new sequences of steps against a ledger in dicts, MODEL_SEQUENCES=100000 (an hour and more)
	@MODEL_SEQUENCES=$${MODEL_SEQUENCES:-100000} $(BIN)/python -m pytest -q -s tests/model

bench: .venv  ## measure Kassa beside pgbench on the same PostgreSQL (some 7 minutes; needs wrk)
	@exec ./kassa bench

chaos: .venv  ## put Kassa under faults, ROUNDS=300, and check all that its clients were told (some 45 minutes)
	@exec ./kassa chaos --rounds $${ROUNDS:-300}

failpoints: .venv  ## strike every statement of accepting and applying in every way, and name each case (two minutes)
	@FAILPOINTS=all $(BIN)/python -m pytest -q -s tests/integration/test_failpoints.py | grep -E "statement|passed|failed"

mutants: .venv  ## show that the chaos has teeth: fifteen broken builds must each be caught (some 25 minutes)
	@exec ./kassa chaos --mutants

fuzz: .venv .venv-fuzz/installed  ## make 20,000 good and bad requests from the OpenAPI document (some 10 minutes)
	@$(BIN)/python -m tests.fuzz

audit: .venv-audit/installed  ## look for known vulnerabilities of what is pinned; says so where it cannot look
	@.ci/audit

.venv-fuzz/installed .venv-audit/installed: .venv-%/installed: requirements-%.txt
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/pip install --disable-pip-version-check -r $<
	@touch $@

clean:  ## remove .venv and caches; the data in .data stays
	rm -rf .venv .venv-fuzz .venv-audit .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.PHONY: help run test check model bench chaos failpoints mutants fuzz audit clean
