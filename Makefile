# make demo    samples the shipped model with and without safety guidance into demo/
# make test    lint, types, and every test that can run here
# make test-fast  the tests that need no ComfyUI
# make browser installs what the tests in a browser need (not Chromium and Node.js: those are your system's)
#
# Needs Python 3.10 to 3.13 and make, nothing else; everything is installed into .venv on the first run.

PYTHON ?= python3
VENV ?= .venv
# Captions per group in the demo; 300 gives figures with narrow intervals.
COUNT ?= 8
# Any torch from 2.4 on works (make TORCH="torch>=2.4"). One version is pinned so that figures can be compared between
# machines. Without an NVIDIA GPU the CPU build is enough: where your pip is set up with a source of CPU builds it is
# taken by itself; elsewhere pip takes the larger default build, which runs on the CPU too.
TORCH ?= torch==2.13.0

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-fast browser lint types format clean

demo: $(STAMP)
	$(RUN) -m safeguidance bench --methods none,negative,safecfg --count $(COUNT) --out demo
	$(RUN) -m tools demo --out demo

test: lint
	$(RUN) -m tools test

# The core alone, on every core of the machine: for the loop while you write.
test-fast: $(STAMP)
	$(RUN) -m tools test --core-only

# The newest frontend is tested besides the one each ComfyUI asks for.
browser: $(STAMP)
	@command -v npm >/dev/null || { echo "npm is missing; on Debian and Ubuntu: apt install nodejs npm"; exit 1; }
	cd tests/browser && npm install --no-package-lock --no-audit --no-fund
	$(PIP) --no-deps --upgrade --target tests/browser/frontend comfyui-frontend-package
	@$(RUN) -c 'import sys; from tools.browser import find_chromium; sys.exit(not find_chromium())' || \
		echo "Chromium is missing; on Debian and Ubuntu: apt install chromium fonts-dejavu-core"

# ruff and mypy are pinned in pyproject.toml; `make format` repairs what it can.
lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	@$(MAKE) --no-print-directory types

# The tools import the core by its name, the nodes as a part of the package that the whole checkout is to the host; there
# mypy sees it under a name that is one, whatever the folder is called.
types: $(STAMP)
	$(RUN) -m mypy -p safeguidance -p tools
	@mkdir -p $(VENV)/pack && ln -sfn "$(CURDIR)" $(VENV)/pack/pack
	cd $(VENV)/pack && ../bin/python -m mypy --config-file pack/pyproject.toml -p pack.nodes

format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# The stamp is written last, so an installation that was broken off starts again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "$(PYTHON) is missing or not Python 3.10 to 3.13; name another one: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV); the first time this takes some minutes."
	@$(PYTHON) -m venv --clear $(VENV) || \
		{ echo "$(PYTHON) can not make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) demo bench screenshots tests/browser/node_modules tests/browser/frontend build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
