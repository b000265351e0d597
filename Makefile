# Everything runs in $(VENV), which is filled with what requirements/ pins. On a machine whose Python already has torch,
# `make test PYTHON=python3 VENV=` uses that one: it installs nothing, and takes cmake and ninja from the PATH.
# `make test LOCKED=1` lets nothing in but the files whose hashes requirements/lock.txt has, torch's own apart.
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

.PHONY: help build test sanitize sanitize-quick coverage coverage-python fuzz fuzz-cpp soak mutants lock audit cuda-check \
  compare examples load-test throughput docs wheel release-check lint format clean
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

build: $(package) ## make .venv, compile the library and install the package there, editable

test: $(package) ## run the C++ tests, then the Python tests
	ctest --test-dir $(build) --output-on-failure
	$(python) -m pytest

sanitize: $(environment) ## C++ and Python tests under three sanitizers, and valgrind on the C++ tests
	PYTHON=$(python) .ci/sanitize address
	PYTHON=$(python) .ci/sanitize thread
	PYTHON=$(python) .ci/sanitize valgrind

sanitize-quick: $(environment) ## of that, AddressSanitizer on the operators' forward and backward passes
	PYTHON=$(python) MY_OPS_INSTRUCTION_SETS= .ci/sanitize address \
	  tests/test_forward.py tests/test_backward.py tests/test_out.py tests/test_in_place.py tests/test_threads.py

coverage: $(environment) ## lines and branches of cpp/src that the tests run; a report in build/coverage/report
	PYTHON=$(python) .ci/coverage

SECONDS_OF_FUZZING ?= 60
fuzz-cpp: $(environment) ## libFuzzer on the cut of the work, the layouts and the checks; needs clang
	cmake -S . -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DMY_OPS_CUDA=OFF -DMY_OPS_BUILD_TESTS=ON \
	  '-DMY_OPS_SANITIZER=address;undefined;fuzzer-no-link' -DPython_EXECUTABLE=$(abspath $(shell command -v $(python)))
	cmake --build build/fuzz --parallel --target my_ops_fuzz_plan
	mkdir -p build/fuzz/corpus
	build/fuzz/tests/cpp/my_ops_fuzz_plan -max_total_time=$(SECONDS_OF_FUZZING) -print_final_stats=1 build/fuzz/corpus

cuda-check: ## build the CUDA kernels against the CUDA build of torch, and test them; needs nvcc, but no GPU
	PYTHON=$(PYTHON) .ci/cuda_check

compare: $(package) ## compare with native batch norm on a real network; writes a report
	$(python) -m profiling compare

# Where the C++ package is, as CMake wants to know it.
cmake_paths = import torch, my_ops; \
  print(f"-DCMAKE_PREFIX_PATH={my_ops.cmake_prefix_path} -DMY_OPS_TORCH_DIR={torch.__path__[0]}")

examples: $(package) ## build cpp/examples against the installed C++ package
	cmake -S cpp/examples -B $(build)/examples $$($(python) -c '$(cmake_paths)')
	cmake --build $(build)/examples --parallel

CALLS ?= 125000
load-test: examples ## CALLS calls of both models, by 1, 2, 4 and 8 C++ threads: same bits, no growth of memory
	$(python) cpp/examples/export_models.py $(build)/models
	cd $(build)/models && ../examples/load_test scripted.pt native.pt images.pt $(CALLS) 1 2 4 8

throughput: examples ## ResNet-50 from C++, images per second beside native and beside native folded away
	$(python) cpp/examples/export_models.py --resnet50 $(build)/models
	cd $(build)/models && for peer in resnet50_native resnet50_folded; do \
	  echo "my_ops and $$peer, batch 1, 8 and 32"; \
	  ../examples/load_test resnet50.pt $$peer.pt batch_1.pt 100 1; \
	  ../examples/load_test resnet50.pt $$peer.pt batch_8.pt 40 1; \
	  ../examples/load_test resnet50.pt $$peer.pt batch_32.pt 20 1; \
	done

CASES ?= 10000
fuzz: $(package) ## CASES random calls of all operators against the reference; a fixed 500 are part of the tests
	MY_OPS_FUZZ_CASES=$(CASES) $(python) -m pytest tests/test_fuzz.py --hypothesis-show-statistics

MINUTES ?= 10
soak: $(package) ## MINUTES of mixed random work on threads: right results and counters, no growth of memory
	PYTHONPATH=tests:$$PYTHONPATH $(python) tests/soak.py $(MINUTES)

mutants: $(package) ## wrong formulas, one at a time: some test must notice each
	$(python) tests/mutation/run.py build/mutants

coverage-python: $(package) ## lines and branches of python/my_ops and profiling/ that the tests reach
	$(python) -m coverage erase
	$(python) -m coverage run -m pytest --fill-memory
	$(python) -m coverage combine
	$(python) -m coverage report

lock: $(environment) ## renew requirements/lock.txt: what the other files there pin, with hashes
	$(python) requirements/lock.py

audit: ## look for known vulnerabilities in what requirements/lock.txt names; fails where it cannot ask about one
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install pip-audit==2.10.1
	build/audit/bin/pip-audit --strict --require-hashes --disable-pip -r requirements/lock.txt

docs: $(package) ## build the documentation, in build/docs; a warning is an error
	$(python) -m sphinx -W --keep-going -b html docs build/docs

wheel: $(environment) ## build a wheel in dist/, with the torch that it fits in its name
	$(python) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist . \
	  -C wheel.build-tag=1torch$$($(python) -c 'import torch; print(torch.__version__)')

release-check: $(environment) ## from a clean clone: source distribution, its wheel, that in a fresh environment; docs
	PYTHON=$(abspath $(shell command -v $(python))) .ci/release_check

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
	$(if $(LOCKED),$(python) -m pip install --require-hashes --no-deps -r requirements/lock.txt)
	$(python) -m pip install $(addprefix -r requirements/,build.txt test.txt compare.txt docs.txt lint.txt)
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
