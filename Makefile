# Abyssal in eleven words. `make setup` needs python 3.11 or newer and pip, nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KERNELS := $(VENV)/.kernels
PAGE := web/node_modules/.ready

.PHONY: setup demo chat test check web web-check node bench claims docs clean

## setup: a virtual environment with Abyssal and its tools, made anew when pyproject.toml changes,
## and the native kernels, compiled for this machine
setup: $(KERNELS)

# pip works on the new environment from outside, so the ensurepip package need not be installed.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Abyssal needs Python 3.11 or newer; say `make setup PYTHON=/path/to/python3.11`'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --editable '.[dev]'
	@touch $@

# Without a compiler this says what to install, and everything runs on the slower references.
$(KERNELS): $(READY) $(wildcard abyssal/kernels/*.cpp abyssal/kernels/*.h)
	@if $(BIN)/python -m abyssal.kernels.registry; then touch $@; fi

## demo: text to chat on this machine
demo: setup
	$(BIN)/python -m abyssal demo

## chat: the demo's model in a browser
chat: setup
	$(BIN)/python -m abyssal serve --open

## test: the whole suite; `make test ARGS="-m 'not slow' tests/plan"` for a part of it
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

## check: layout, lint and types
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

## web: the chat page, built from web/ into the package; what it makes is committed
web: node $(PAGE)
	cd web && npm run --silent build

## web-check: lint, types and tests of the page, and whether what is committed is what web/ builds
web-check: node $(PAGE)
	cd web && npm run --silent lint && npm run --silent check && npm run --silent test
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		(cd web && ABYSSAL_WEB_OUT="$$folder" npm run --silent build) && \
		{ diff -r "$$folder" abyssal/serve/web || \
			{ echo 'abyssal/serve/web is stale: commit what `make web` builds'; exit 1; }; }

$(PAGE): web/package.json web/package-lock.json | node
	cd web && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

# Said here, in one line: older ones fail in ways nobody understands.
node:
	@node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null && \
		npm --version >/dev/null 2>&1 || \
		{ echo 'the page needs Node 20.19 or newer with npm; install them (https://nodejs.org, or Debian: nodejs npm)'; exit 1; }

## bench: all figures of speed, beside the peers that are installed; `make bench ARGS=--quick`
bench: setup
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/cpu.py $(ARGS)

## claims: published figures beside ours, each computed; fails where one does not hold
claims: setup
	$(BIN)/python benchmarks/claims.py $(ARGS)

## docs: write the command reference from the commands
docs: setup
	$(BIN)/python -m abyssal.cli.reference > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md

## clean: remove everything that setup, tests and tools made; runs in out/ stay
clean:
	rm -rf $(VENV) web/node_modules build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find abyssal tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
