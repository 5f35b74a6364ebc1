# fastclip: `make demo` runs the demo, `make test` runs every test, `make` lists all targets.
#
# Requires Python 3.10 or newer (`make PYTHON=/path/to/python3` chooses one) and a Rust toolchain.
# All files are created in .venv, target and dist, which `make clean` removes.

PYTHON ?= python3
CARGO ?= cargo
PYTEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

ASAN_TARGET := x86_64-unknown-linux-gnu

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-rust test-python test-frameworks test-aarch64 lint lint-rust lint-python format asan asan-module asan-fuzz bench wheel fresh-wheel-check clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' Makefile

# Targets -------------------------------------------------------------------------------

demo: $(STAMPS)/demo ## train with and without clipping, draw a plot, run a short benchmark
	$(BIN)/fastclip demo

test: test-rust test-python ## run every test

test-rust: ## run the tests of the Rust crate, which need no Python
	$(CARGO) test --no-default-features --features gpu

test-python: $(STAMPS)/test ## run the tests of the package
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# PyTorch's Linux build on PyPI contains gigabytes of CUDA. pip takes the newest build of all places, so that a CPU build
# comes from PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, or from a folder with PIP_FIND_LINKS=folder and
# PIP_CONSTRAINT=file, where the file has a line such as torch==2.13.0+cpu. A test whose library is absent fails.
test-frameworks: $(STAMPS)/frameworks ## install PyTorch's training frameworks, and run the tests that use them
	FASTCLIP_REQUIRE_INTEROP=1 $(BIN)/python -m pytest tests/frameworks

# Shell code that prints why the tests cannot be built and run for AArch64 on this machine, or nothing if they can.
# RUSTC_AARCH64 is Debian's compiler, whose packages include the standard library for AArch64. rustup's compiler would have
# to download it.
RUSTC_AARCH64 ?= /usr/bin/rustc
AARCH64_TARGET := aarch64-unknown-linux-gnu
AARCH64_LACKS = if [ ! -x $(RUSTC_AARCH64) ]; then \
        echo "no $(RUSTC_AARCH64) (Debian: rustc-web)"; \
    elif ! ls "$$($(RUSTC_AARCH64) --print sysroot)"/lib/rustlib/$(AARCH64_TARGET)/lib/libstd-*.rlib >/dev/null 2>&1; then \
        echo "no standard library of Rust for $(AARCH64_TARGET) (Debian: libstd-rust-web-dev:arm64)"; \
    elif ! command -v aarch64-linux-gnu-gcc >/dev/null 2>&1; then \
        echo "no aarch64-linux-gnu-gcc (Debian: gcc-aarch64-linux-gnu)"; \
    elif ! command -v qemu-aarch64-static >/dev/null 2>&1; then \
        echo "no qemu-aarch64-static (Debian: qemu-user-static)"; fi

# The emulator is run without -L. It finds the loader and libc of the arm64 packages without that option, and with the cross
# compiler's libc in its search path, creating a thread hangs.
test-aarch64: ## run the Rust tests for AArch64 (NEON) in an emulator, if one is installed
	@lacks=$$($(AARCH64_LACKS)); if [ -n "$$lacks" ]; then echo "test-aarch64: skipped, $$lacks"; exit; fi; \
	set -x; RUSTC=$(RUSTC_AARCH64) CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64-static \
	    $(CARGO) test --no-default-features --lib --target $(AARCH64_TARGET) --target-dir target/aarch64

bench: $(STAMPS)/demo ## run the benchmarks of the kernels and of the calls
	$(CARGO) bench --no-default-features
	$(BIN)/fastclip bench $(BENCH_ARGS)

lint: lint-rust lint-python ## check format, lints, types and the stub of the extension module

lint-rust: $(STAMPS)/python
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --no-default-features -- -D warnings
	PYO3_PYTHON=$(CURDIR)/$(BIN)/python $(CARGO) clippy --no-default-features --features python -- -D warnings
	PYO3_PYTHON=$(CURDIR)/$(BIN)/python $(CARGO) clippy --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps --no-default-features --features gpu --document-private-items

lint-python: $(STAMPS)/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml fastclip._core

format: $(STAMPS)/test ## format the sources as lint requires
	$(CARGO) fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Shell code that prints why AddressSanitizer cannot run on this machine, or nothing if it can.
ASAN_LACKS = if ! RUSTUP_AUTO_INSTALL=0 $(CARGO) +nightly --version >/dev/null 2>&1; then \
        echo "no nightly Rust toolchain (rustup toolchain install nightly)"; \
    elif [ "$$($(CARGO) +nightly -vV | sed -n 's/^host: //p')" != $(ASAN_TARGET) ]; then \
        echo "it is set up for $(ASAN_TARGET) alone"; \
    elif [ ! -e "$$(cc -print-file-name=libasan.so)" ]; then \
        echo "no libasan, which comes with GCC"; fi
ASAN_CARGO := RUSTFLAGS=-Zsanitizer=address $(CARGO) +nightly
ASAN_FLAGS := --target $(ASAN_TARGET) --target-dir target/asan

# Doctests are not run: rustdoc does not read the sanitizer option from RUSTFLAGS, and they contain no unsafe code.
# allocator_may_return_null makes allocations that are too large fail as with the system's allocator, which tests rely on.
asan: ## run the Rust tests under AddressSanitizer, if a nightly toolchain is installed
	@lacks=$$($(ASAN_LACKS)); if [ -n "$$lacks" ]; then echo "asan: skipped, $$lacks"; exit; fi; \
	set -x; ASAN_OPTIONS=allocator_may_return_null=1 $(ASAN_CARGO) test --no-default-features --lib --tests $(ASAN_FLAGS)

# Shell code that builds the module with AddressSanitizer, and sets the environment in which it is used. The interpreter
# is built without the sanitizer, so GCC's runtime is preloaded, together with the C++ library, whose exceptions the
# runtime intercepts. A call that reads past the end of an array checks that the sanitizer works.
define ASAN_MODULE
set -e; echo "$@: building"; \
PYO3_BUILD_EXTENSION_MODULE=1 PYO3_PYTHON=$(CURDIR)/$(BIN)/python CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 $(ASAN_CARGO) build --release --lib --no-default-features --features python $(ASAN_FLAGS); \
rm -rf target/asan/package; mkdir target/asan/package; \
cp -R python/fastclip target/asan/package; rm -f target/asan/package/fastclip/_core*.so; \
cp target/asan/$(ASAN_TARGET)/release/libfastclip.so target/asan/package/fastclip/_core.abi3.so; \
export LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0:handle_segv=0:allocator_may_return_null=1 PYTHONPATH=$(CURDIR)/target/asan/package; \
if ! $(BIN)/python -c $(ASAN_CONTROL) 2>&1 | grep -m 1 heap-buffer-overflow; then \
    echo "$@: a read past the end was not caught"; exit 1; fi; \
echo "$@: a read past the end is caught, as it should be"; \
rm -f target/asan/report.*; export ASAN_OPTIONS=$$ASAN_OPTIONS:log_path=$(CURDIR)/target/asan/report
endef

# The module has no GPU path: a driver in software compiles shaders to code that the sanitizer does not know. Not run are
# the tests of other frameworks, of the memory usage (which a sanitizer changes) and of the command line.
asan-module: $(STAMPS)/test ## run the Python tests with an extension module built with AddressSanitizer
	@lacks=$$($(ASAN_LACKS)); if [ -n "$$lacks" ]; then echo "asan-module: skipped, $$lacks"; exit; fi; \
	$(ASAN_MODULE); \
	$(BIN)/python -m pytest tests -m 'not interop' -p no:cacheprovider $(ASAN_LEAVES_OUT:%=--ignore tests/%) || \
	    { cat target/asan/report.* 2>/dev/null; exit 1; }

# How many calls asan-fuzz makes.
FUZZ_RUNS ?= 1000000
asan-fuzz: $(STAMPS)/test ## fuzz the tensor arguments of the functions under AddressSanitizer (minutes)
	@lacks=$$($(ASAN_LACKS)); if [ -n "$$lacks" ]; then echo "asan-fuzz: skipped, $$lacks"; exit; fi; \
	$(ASAN_MODULE); \
	cd tests && ../$(BIN)/python -m fuzz.tensors --runs $(FUZZ_RUNS) --last-case ../target/asan/last_case || \
	    { cat ../target/asan/report.* ../target/asan/last_case 2>/dev/null; exit 1; }

ASAN_CONTROL := 'import fastclip, numpy; \
    fastclip.global_norm([numpy.lib.stride_tricks.as_strided(numpy.ones(4096), shape=(4200,))])'
ASAN_LEAVES_OUT := engine/test_memory.py cli autodiff gpu train/test_tensorflow_training.py

wheel: $(STAMPS)/python ## build a wheel in dist
	@rm -rf dist
	$(PIP) wheel --no-deps --wheel-dir dist .
	@ls dist

fresh-wheel-check: wheel ## install the wheel in a fresh environment, with NumPy only, and test it
	@set -e; \
	fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(BIN)/python -m venv "$$fresh/venv"; \
	"$$fresh/venv/bin/python" -m pip --disable-pip-version-check --quiet install dist/fastclip_grad-*.whl; \
	cp tests/package/wheel_smoke.py "$$fresh"; \
	cd "$$fresh"; venv/bin/python -I wheel_smoke.py

clean: ## remove all built files
	rm -rf $(VENV) dist target .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f python/fastclip/_core*.so
	find python tests benches examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The environment -------------------------------------------------------------------------------
#
# Two stamp files record what the installation was built from: the interpreter, and the checksums of all sources of the
# extension module. Each run compares them with the present state and rewrites them only if they differ, so that changed
# sources are rebuilt and unchanged ones are not. The Python sources need no stamp, because the installation is editable.

$(STAMPS)/python: FORCE
	@set -e; \
	if ! command -v $(PYTHON) >/dev/null 2>&1; then \
	    echo "fastclip: there is no '$(PYTHON)' here. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
	    echo "fastclip needs Python 3.10 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	if ! command -v $(CARGO) >/dev/null 2>&1; then \
	    echo "fastclip: there is no '$(CARGO)' here. Building from source needs a Rust toolchain, such as rustup installs" >&2; exit 1; fi; \
	base=$$($(PYTHON) -c 'import sys; print(sys._base_executable)'); \
	now=$$("$$base" -c 'import sys, sysconfig; print(sys.executable, sys.version.split()[0], sysconfig.get_config_var("SOABI"))'); \
	if [ "$$now" != "$$(cat $@ 2>/dev/null)" ] || ! $(BIN)/python -c '' 2>/dev/null; then \
	    echo "fastclip: making $(VENV) with $$now"; \
	    rm -rf $(VENV); "$$base" -m venv $(VENV); \
	    $(PIP) install --upgrade pip; \
	    mkdir -p $(STAMPS); echo "$$now" > $@; \
	fi

# Two makes may do this at the same time.
$(STAMPS)/sources: FORCE $(STAMPS)/python
	@new=$@.$$$$; \
	{ find src Cargo.toml pyproject.toml $(wildcard Cargo.lock build.rs .cargo) -type f | LC_ALL=C sort | xargs cksum; \
	   echo 'RUSTFLAGS $(RUSTFLAGS) MATURIN_PEP517_ARGS $(MATURIN_PEP517_ARGS)'; } > $$new; \
	ls python/fastclip/_core*.so >/dev/null 2>&1 || rm -f $@; \
	if cmp -s $$new $@; then rm $$new; else mv $$new $@; fi

# The stamps of the extras "demo", "test" and "frameworks" of the package. Each one installs the extra.
$(STAMPS)/demo $(STAMPS)/test $(STAMPS)/frameworks: $(STAMPS)/sources
	@echo "fastclip: building and installing .[$(@F)] (minutes the first time, seconds after)"
	$(PIP) install --editable '.[$(@F)]'
	@touch $@
