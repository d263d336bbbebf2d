# `make demo` and `make test` are all a newcomer needs: each makes its own environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
MODEL ?= examples/demo/model

.DEFAULT_GOAL := help
.PHONY: help demo gate test test-slow engines test-engines lint format clean

help: ## Show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	# torch by itself and pinned: a range would bring the newest CUDA build, several gigabytes.
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.ready-* && touch $@

demo: $(READY) ## Compress the embedded model for ONNX Runtime and TensorRT-LLM, and show what was measured
	@rm -rf out/demo
	$(BIN)/llmc compress $(MODEL) --recipe examples/demo/recipe.yaml --target onnx-int4 --target trt-int4 -o out/demo
	$(BIN)/python examples/demo/talk.py $(MODEL) out/demo/onnx-int4/artifact

gate: $(READY) ## Compress the embedded model in two ways, and see one pass, one fail and one be neither
	@rm -rf out/gate-rtn out/gate-gptq
	$(BIN)/llmc compress --recipe examples/demo/gate.yaml --pass rtn:group_size=32 -o out/gate-rtn
	$(BIN)/llmc compress --recipe examples/demo/gate.yaml --pass gptq:group_size=32 -o out/gate-gptq
	$(BIN)/llmc gate out/gate-gptq --against out/gate-rtn --max-perplexity-increase 0.1%
	$(BIN)/llmc gate out/gate-rtn --max-perplexity-increase 0.05% || test $$? -eq 1
	$(BIN)/llmc gate out/gate-rtn --max-perplexity-increase 0.15% || test $$? -eq 3

lint: $(READY) ## Style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## Lint, then every fast test, on all cores
	# Byte code is kept, whatever the environment says: every process that a test starts would compile it again.
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "not slow and not engines"

test-slow: $(READY) ## The end-to-end checks that are too slow for every commit
	$(BIN)/pytest -m "slow and not engines"

engines: $(READY) ## Make the environments of the real runtimes: 6.3 GB, and an hour or two on two cores; ENGINES="vllm" for some
	$(BIN)/python benchmarks/environments.py $(ENGINES)

test-engines: $(READY) ## Open artifacts in the real runtimes that `make engines` has made
	$(BIN)/pytest -m engines

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment and what runs left behind
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
