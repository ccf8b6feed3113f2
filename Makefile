# Every target uses .venv and makes it first where it is absent or older than the lock.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Fresh machines have no compiler: DeepSpeed builds none of its kernels at installation.
export DS_BUILD_OPS := 0
export HF_HUB_OFFLINE ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
# Images of containers often set it; without bytecode every start of a command takes two to three seconds longer.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup quickstart studies test check format lock bench clean
help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## build the environment (.venv) from requirements.lock

$(STAMP): requirements.lock setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "promptmeup needs Python 3.11 or newer; this is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(STAMP)

quickstart: $(STAMP)  ## generate a small news world, pack, train the teacher, label, pre-train, evaluate
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/quickstart.sh

# those of the tiny chain: chain_*.yaml are no studies, and real_*.yaml need corpora of one's own
STUDIES := $(filter-out configs/study/chain_%.yaml configs/study/real_%.yaml,$(wildcard configs/study/*.yaml))
studies: $(STAMP)  ## run every study of the small news world, one after the other; what is done stays
	@for config in $(STUDIES); do \
	  echo "$$ python launch/study.py --config $$config"; \
	  $(BIN)/python launch/study.py --config "$$config" || exit; \
	done

test: $(STAMP)  ## run the whole test suite
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=40

check: $(STAMP)  ## lint, types, import contracts, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@for script in launch/*.sh slurm/*.sh tests/slurm/*.sh; do bash -n $$script || exit; done

format: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP)  ## pin the newest versions that setup.cfg allows, with hashes
	$(BIN)/uv pip compile setup.cfg --all-extras --generate-hashes --universal --python-version 3.11 \
	  --no-emit-index-url --no-annotate --upgrade --custom-compile-command "make lock" -o requirements.lock
	$(BIN)/uv pip compile requirements-bench.in --no-deps --generate-hashes --universal --python-version 3.11 \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" -o requirements-bench.lock

# without their dependencies: see requirements-bench.in
$(VENV)/.peers: $(STAMP) requirements-bench.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements-bench.lock
	@touch $@

BENCHMARKS := $(filter-out __init__ harness,$(basename $(notdir $(wildcard tests/benchmarks/*.py))))
bench: $(addprefix bench-,$(BENCHMARKS))  ## run every benchmark
bench-%: $(STAMP) $(VENV)/.peers
	@mkdir -p benchmarks
	$(BIN)/python -m tests.benchmarks.$* --json benchmarks/$*.json

clean:  ## remove the environment and what the quickstart made
	rm -rf $(VENV) quickstart benchmarks
