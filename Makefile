# Two commands: `make demo` and `make test`. Both set up .venv first.
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV ?= .venv
DEMO_RUN ?= demo-run
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := dev,fast
# The first of these that is 3.11, 3.12 or 3.13.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test test-all test-cudf lint docs bench bench-text bench-gpu clean

demo: $(STAMP)
	@$(BIN)/nemo-sdg run examples/recipes/nemotron-cc.yaml --output $(DEMO_RUN)

test: $(STAMP)
	@$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(STAMP)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,fast,serve,gpu-build]"
	@$(BIN)/python -m pytest --junit-xml=.pytest-junit.xml
	@$(BIN)/python ci/rows.py --junit .pytest-junit.xml

# No card is needed: cuDF imports without one. In an environment of its own, for its size.
test-cudf:
	@$(MAKE) --no-print-directory VENV=.venv-cudf EXTRAS=dev,fast,cuda13 .venv-cudf/.installed
	@.venv-cudf/bin/python -m pytest tests/gpu/test_gpu_signatures.py

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(STAMP)
	@$(BIN)/python ci/docs.py

bench: $(STAMP)
	@for script in $(filter-out benchmarks/text_chain.py benchmarks/end_to_end.py benchmarks/gpu_%,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python $$script $(if $(QUICK),--quick); done
	@$(MAKE) --no-print-directory bench-text

bench-text: $(STAMP)
	@$(BIN)/python benchmarks/text_chain.py $(if $(QUICK),--quick)
	@$(BIN)/python benchmarks/end_to_end.py $(if $(QUICK),--quick)

bench-gpu: $(STAMP)
	@PYTHON=$(BIN)/python benchmarks/gpu_lease.sh

clean:
	rm -rf $(VENV) .venv-cudf $(DEMO_RUN) build *.egg-info

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "nemo_sdg needs Python 3.11, 3.12 or 3.13 with its venv module; found $$( (python3 --version) 2>/dev/null || echo none). Install one, or name it: make PYTHON=/path/to/python3.12"; exit 2; }
	@$(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { echo "$(PYTHON) is no Python 3.11 to 3.13 with the venv module (on Debian: apt install python3-venv)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; about a minute)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]" || \
		{ echo "pip could not install what nemo_sdg needs: is there a network? Behind a mirror: PIP_INDEX_URL=https://... make demo"; exit 2; }
	@touch $@
