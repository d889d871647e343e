# Two targets are enough to start: `make run` and `make test`. Both install what they need.
SHELL := /bin/sh
PYTHON ?= python3
# The environment is created once, and again when the lock file changes.
VENV ?= .venv
BIN := $(VENV)/bin
# pip installs torch, so that pip's configuration decides which build (CPU or CUDA) is installed; uv installs the
# rest from the lock. On a machine without a GPU, point pip at an index of CPU wheels, or set TORCH to a wheel's path.
TORCH ?= torch==2.13.0
UV := uv==0.13.9
READY := $(VENV)/.ready
OUT ?= out
BUF := $(CURDIR)/infra/tools/node_modules/@bufbuild/buf-linux-x64/bin/buf

.PHONY: run up test test-servers lint type format lock proto proto-baseline proto-check tools kernels gpu clean help

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

run: $(READY) ## install, start all services, generate a dozen videos and show what reuse saved
	$(BIN)/python -m bench.quickstart.run --out $(OUT) --install-seconds $$(cat $(VENV)/install_seconds) \
	    $$(sed 's/^/--test-seconds /' $(VENV)/test_seconds 2>/dev/null)

up: $(READY) ## start all services on this machine; stop them with Ctrl-C
	$(BIN)/chorus up

test: $(READY) tools ## run every check and test that needs no root and no GPU
	@begin=$$(date +%s) && \
	$(MAKE) --no-print-directory lint type && \
	$(BIN)/python -m pytest -m "not servers and not gpu" --numprocesses 2 --dist loadfile && \
	echo $$(( $$(date +%s) - begin )) > $(VENV)/test_seconds && \
	echo "tested in $$(cat $(VENV)/test_seconds) s"

test-servers: $(READY) ## run the tests that need a real Milvus, a real S3 or a browser (root, Debian)
	infra/testservers/run $(BIN)/python -m pytest -m servers

lint: $(READY) ## run ruff and check the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(READY) ## run mypy
	$(BIN)/mypy
	$(BIN)/mypy examples docs infra/testservers client/hatch_build.py

format: $(READY) ## fix what ruff can fix, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: ## generate proto/gen from the .proto files
	proto/generate

proto-baseline: tools ## record the contract in proto/baseline.json; lists the breaking changes that this accepts
	cd proto && $(BUF) breaking --against baseline.json || echo "accepted the breaking changes above"
	cd proto && $(BUF) build --exclude-source-info -o '-#format=json' | \
	    $(abspath $(BIN))/python -m json.tool --indent 1 > baseline.tmp && mv baseline.tmp baseline.json

proto-check: $(READY) tools ## lint the contract, compare it with its baseline and with the generated code
	$(BIN)/python -m pytest tests/infra/test_proto.py

tools: $(READY) ## install helm and buf for the tests
	PATH="$(abspath $(BIN)):$$PATH" infra/tools/install

kernels: $(READY) ## compile the amplified attention kernel for every supported GPU; needs no GPU
	$(BIN)/python -m services.denoiser.kernels --out $(OUT)/kernels

gpu: $(READY) ## run the tests and measurements that need a GPU: docs/gpu.md
	$(BIN)/python -m pytest -m gpu tests/gpu
	PYTHON=$(BIN)/python bench/gpu/run.sh

lock: $(READY) ## resolve versions again and write requirements.lock
	infra/lock

$(READY): requirements.lock pyproject.toml client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Chorus needs Python 3.11 or newer, for instance: make PYTHON=python3.12 ..." \
	    if sys.version_info < (3, 11) else 0)'
	@begin=$$(date +%s) && \
	$(PYTHON) -m venv $(VENV) && \
	$(BIN)/pip install --quiet --disable-pip-version-check $(UV) '$(TORCH)' && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . --editable ./client && \
	$(BIN)/uv pip check --quiet --python $(BIN)/python && \
	echo $$(( $$(date +%s) - begin )) > $(VENV)/install_seconds && \
	echo "installed in $$(cat $(VENV)/install_seconds) s" && touch $@

clean: ## remove everything that make created
	rm -rf $(VENV) build out .chorus .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
