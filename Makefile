# Everything runs in $(VENV), which is filled with what requirements/ pins. On a machine whose Python already has torch,
# `make test PYTHON=python3 VENV=` uses that one: it installs nothing, and takes cmake and ninja from the PATH.
# `make test TORCH=2.14.1` uses another torch than the pinned one, in an environment and a build folder of its own.
PYTHON ?= python3
TORCH ?=
VENV ?= $(if $(TORCH),.venv-torch-$(TORCH),.venv)

ifneq ($(VENV),)
  build := build/$(if $(TORCH),torch-$(TORCH),venv)
  python := $(VENV)/bin/python
  environment := $(VENV)/.requirements
  export PATH := $(abspath $(VENV)/bin):$(PATH)
else
  build := build/system
  python := $(PYTHON)
  export PYTHONPATH := $(abspath $(build)/site)
endif
package := $(build)/.package
sources := $(shell find CMakeLists.txt pyproject.toml cpp python tests/cpp -type f -not -name '*.pyc')
cpp := $(shell find cpp tests/cpp profiling -name third_party -prune -o -regex '.*\.\(h\|cpp\|cuh?\)' -print)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help build test cuda-check compare lint format clean
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

build: $(package) ## make .venv, compile the library and install the package there, editable

test: $(package) ## run the C++ tests, then the Python tests
	ctest --test-dir $(build) --output-on-failure
	$(python) -m pytest

cuda-check: ## build the CUDA kernels against the CUDA build of torch, and test them; needs nvcc, but no GPU
	PYTHON=$(PYTHON) .ci/cuda_check

compare: $(package) ## compare with native batch norm on a real network; writes a report
	$(python) -m profiling compare

lint: $(environment) ## check style and types
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run -Werror $(cpp)

format: $(environment) ## bring all sources into that style
	ruff check --fix
	ruff format
	clang-format -i $(cpp)

clean: ## remove what was built; the environment stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache

ifneq ($(TORCH),)
# What another torch depends on is not what constraints.txt pins: it is installed by itself.
$(environment): $(wildcard requirements/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install torch==$(TORCH)
	grep -h '^[a-z].*==' requirements/build.txt requirements/test.txt | grep -v '^torch==' | \
	  xargs $(python) -m pip install -c requirements/constraints.txt
	touch $@
else ifneq ($(VENV),)
$(environment): $(wildcard requirements/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install $(addprefix -r requirements/,build.txt test.txt compare.txt lint.txt)
	touch $@
endif

ifneq ($(VENV),)

$(package): $(environment) $(sources)
	$(python) -m pip install --verbose --no-build-isolation --no-deps --editable . \
	  -C build-dir=$(build) -C cmake.define.MY_OPS_BUILD_TESTS=ON
	touch $@
else
$(package): $(sources)
	cmake -S . -B $(build) $(if $(shell command -v ninja),-G Ninja) -DMY_OPS_BUILD_TESTS=ON \
	  -DPython_EXECUTABLE=$(shell $(python) -c 'import sys; print(sys.executable)') $(CMAKE_ARGS)
	cmake --build $(build) --parallel
	rm -rf $(build)/site
	cmake --install $(build) --component python --prefix $(build)/site
	cp -r python/my_ops $(build)/site
	$(python) -c 'import my_ops; place = my_ops.__path__[0]; \
	  assert place.startswith("$(PYTHONPATH)"), f"uninstall the my_ops in {place}: it hides the one built here"'
	touch $@
endif
