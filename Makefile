# demo · closed-loop · test · test-fast · test-vllm · check · bench: each sets up what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# lm-eval's tokenizers and torch fight over two cores when tests run side by side.
export OMP_NUM_THREADS ?= 2
# Beside other tests a second thread costs more than it brings, most of all one that spins.
test test-fast test-vllm: export OMP_NUM_THREADS := 1
test test-fast test-vllm: export OMP_WAIT_POLICY ?= PASSIVE
# Slow tests wait for one thing or another a third of the time, so there is one more than cores.
WORKERS ?= $(shell expr $$(nproc) + 1)
test-fast: WORKERS := $(shell nproc)
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder -o tmp_path_retention_policy=failed
# In memory, where that is possible: tests make and remove tens of thousands of small files.
test test-fast test-vllm: export TMPDIR := $(shell scripts/test-folder.sh)
export HF_HUB_OFFLINE := 1
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
# Some images forbid it, and then every process compiles what it imports: seconds each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo closed-loop test test-fast test-vllm check bench setup setup-dev clean

demo: setup
	$(BIN)/penstock demo

# Users change, an alarm, one retraining, a trial, a better model; then poisoned feedback.
closed-loop: setup-dev
	$(BIN)/python -m benchmarks.closed_loop

test: setup-dev
	scripts/install-services.sh
	@# What cannot be made is said by the tests that are skipped for it.
	-printf '%s\n' actionlint airflow compose dagster deepspeed feast hadolint phoenix prefect soda spark | xargs -n 1 -P 2 scripts/make-env.sh
	$(BIN)/pytest $(SIDE_BY_SIDE) --durations 40 --durations-min 10

test-fast: setup-dev
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not slow"

# vLLM takes gigabytes and minutes to install, so its tests are apart.
test-vllm: setup-dev
	PENSTOCK_TEST_VLLM=1 $(BIN)/pytest -k vllm tests/end_to_end/test_vllm_loop.py \
		tests/end_to_end/test_vllm_serving.py tests/conformance/test_evaluators.py

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup-dev
	$(BIN)/python -m benchmarks

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

# torch goes first and pinned: any later resolution would bring a CUDA build.
$(VENV)/.ready: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[all]"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,check]"
	touch $@

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
