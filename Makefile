# `make demo` and `make test` are all a newcomer needs: each makes its own environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(shell cat pyproject.toml requirements/*.txt | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-dev-$(STAMP)
READY_FOR_DEMO := $(VENV)/.ready-demo-$(STAMP)
# The lock is whole, so that pip has nothing to resolve; what is imported is compiled then.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps
TORCH := $(INSTALL) --require-hashes -r requirements/torch.txt
TORCH_INDEX := https://download.pytorch.org/whl/cpu
LOCK := .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-package torch --custom-compile-command "make lock" pyproject.toml requirements/build.in
MODEL ?= examples/demo/model

.DEFAULT_GOAL := help
.PHONY: help demo gate test test-slow engines test-engines lint lock release try-out docs format clean

help: ## Show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# $(1): demo or dev, whose packages `make lock` has written down.
define packages
	$(PYTHON) -m venv $(VENV)
	$(TORCH) 2>/dev/null || $(TORCH) --extra-index-url $(TORCH_INDEX)
	$(INSTALL) --require-hashes -r requirements/$(1).txt
endef

$(READY):
	$(call packages,dev)
	$(INSTALL) --no-build-isolation -e .
	@rm -f $(VENV)/.ready-* && touch $@ $(READY_FOR_DEMO)

$(READY_FOR_DEMO):
	$(call packages,demo)
	$(INSTALL) --no-build-isolation -e .
	@rm -f $(VENV)/.ready-* && touch $@

demo: $(READY_FOR_DEMO) ## Compress the embedded model for ONNX Runtime and TensorRT-LLM, and show what was measured
	@rm -rf out/demo
	$(BIN)/llmc compress $(MODEL) --recipe examples/demo/recipe.yaml --target onnx-int4 --target trt-int4 -o out/demo
	$(BIN)/python examples/demo/talk.py $(MODEL) out/demo/onnx-int4/artifact

gate: $(READY_FOR_DEMO) ## Compress the embedded model in two ways, and see one pass, one fail and one be neither
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

engines: ## Make the environments of the real runtimes: 8 GB, half an hour on two cores; ENGINES="vllm llama-cpp" for some
	$(PYTHON) benchmarks/environments.py $(ENGINES)

test-engines: $(READY) ## Open artifacts in the real runtimes that `make engines` has made
	$(BIN)/pytest -m engines

lock: ## Resolve all packages anew and write them down with their hashes: requirements/dev.txt and demo.txt
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(LOCK) --upgrade --extra dev -o requirements/dev.txt
	$(LOCK) --upgrade --extra onnx -c requirements/dev.txt -o requirements/demo.txt

release: $(READY_FOR_DEMO) ## Build wheel and sdist in dist/, and try each in a clean environment
	rm -rf dist
	$(BIN)/hatchling build
	$(MAKE) --no-print-directory try-out VENV=.venv-release BUILT='dist/*.whl'
	$(MAKE) --no-print-directory try-out VENV=.venv-release BUILT='dist/*.tar.gz'

try-out:
	@rm -rf $(VENV)
	$(call packages,demo)
	$(INSTALL) --no-build-isolation $(BUILT)
	cd dist && ../$(BIN)/llmc --version && ../$(BIN)/llmc doctor
	cd dist && ../$(BIN)/llmc compress ../$(MODEL) -t onnx-int4 --pass rtn:group_size=32 --measure none -o tried
	@rm -rf dist/tried $(VENV)

docs: $(READY) ## Build the documentation site in build/site; a broken link or anchor breaks it
	rm -rf build/site-source && mkdir -p build/site-source
	git ls-files -z -- '*.md' '*.py' docs examples benchmarks .github LICENSE Makefile pyproject.toml requirements \
		| xargs -0 cp --parents -t build/site-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment and what runs left behind
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
