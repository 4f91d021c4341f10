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
	@echo "installing the pinned requirements into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

run: .venv  ## run all of Kassa on this machine: api on :8000, admin on :8001, Flower on :5555; Ctrl-C stops it
	@exec ./kassa run

test: .venv  ## run the whole suite on a private PostgreSQL and Redis (some 3 minutes)
	@$(BIN)/python -m pytest

check: .venv  ## lint, types, import rules, schema against migrations, Dockerfiles and compose file
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/integration/test_migrations.py
	@$(BIN)/hadolint Dockerfile.api Dockerfile.worker
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

model: .venv  ## play new sequences of steps against a ledger in dicts, MODEL_SEQUENCES=100000 (some 50 minutes)
	@MODEL_SEQUENCES=$${MODEL_SEQUENCES:-100000} $(BIN)/python -m pytest -q -s tests/model

bench: .venv  ## measure Kassa beside pgbench on the same PostgreSQL (some 4 minutes; needs wrk)
	@exec ./kassa bench

clean:  ## remove .venv and caches; the data in .data stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.PHONY: help run test check model bench clean
