# Every target does the set-up it needs, says what it installs, and can be run again; `make` lists them.
# ARGS is passed on:  make up ARGS="--client-port 9443"   make test ARGS="tests/unit -k queue"
# PYTHON names the Python to build .venv with, where the system's is too old.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup up test conformance dcv-check archive install-check desktops-check bench torture lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

setup: ## set up what `make up` needs, and nothing else
	@scripts/setup run
	@echo "deskfleet is set up. Start it: make up"

up: ## set up and run broker, agent and desktops on this machine
	@scripts/setup run
	@exec .venv/bin/deskfleet up $(ARGS)

test: ## set up, check the sources, run the tests
	@scripts/setup test
	.venv/bin/ruff check src tests
	.venv/bin/ruff format --check src tests
	.venv/bin/mypy
	.venv/bin/mypy --platform win32 --cache-dir .mypy_cache/win32 -m deskfleet.cli.main \
	    -m deskfleet.cli.agent -m deskfleet.cli.agent_program -m deskfleet.agent.drivers.dcv
	.venv/bin/lint-imports
	.venv/bin/pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(ARGS)

conformance: ## hold a broker to the documented API: its own, or URL=… CLIENT_ID=… CLIENT_PASSWORD_FILE=… CA=…
	@scripts/setup test
	@CONFORMANCE_URL='$(URL)' CONFORMANCE_CLIENT_ID='$(CLIENT_ID)' CONFORMANCE_CA='$(CA)' \
	    CONFORMANCE_CLIENT_PASSWORD_FILE='$(CLIENT_PASSWORD_FILE)' \
	    .venv/bin/pytest -v -p no:randomly tests/conformance $(ARGS)

dcv-check: ## hold a real DCV server to what the agent expects of it: DCV=/usr/bin/dcv, on a server without sessions
	@scripts/setup test
	@DESKFLEET_DCV='$(or $(DCV),/usr/bin/dcv)' .venv/bin/pytest -v -p no:randomly \
	    tests/contract/test_session_driver.py -k dcv $(ARGS)

archive: ## build what is taken to production machines: dist/deskfleet-VERSION.tar.gz
	@scripts/setup build
	@scripts/archive

install-check: ## prove installation and removal in a bare Debian under systemd (needs root and debootstrap)
	@scripts/setup build
	@scripts/install-check $(ARGS)

desktops-check: ## try desktop environments in bare Debians (needs root and debootstrap; ARGS="xfce mate")
	@scripts/desktops-check $(ARGS)

bench: ## set up and measure
	@scripts/setup test
	.venv/bin/pytest -m bench --capture=no $(ARGS)

torture: ## set up and run the long campaigns (kill -9, partitions, races)
	@scripts/setup test
	.venv/bin/pytest -m torture $(ARGS)

lock: ## regenerate requirements/*.txt (ARGS="--upgrade" or ARGS="-P name" for newer versions)
	@scripts/setup run
	@scripts/lock $(ARGS)

clean: ## remove all that the set-up and the tests made in this folder
	rm -rf .venv .setup build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf src/*.egg-info src/deskfleet/agent/desktop/page/{bundle,node_modules}
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
