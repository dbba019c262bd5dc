# The project's entry points: .ci/run and the README call these and nothing else.
#
# `make demo` and `make test` install what is missing below .venv by themselves. One release build
# of the extension serves the demo and every test; stamp files in .venv remember what is done.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
DEVELOP := PIP_QUIET=1 maturin develop --release --locked --quiet
ROOMS := scoreboard supervisor worker pool wsgi server executor amqp
# Everything but the boundary: needs no Python and no libpython to link against.
CORE := supervisor worker server executor amqp
FUZZED := $(notdir $(wildcard fuzz/corpus/*))
NATIVE := Cargo.toml Cargo.lock pyproject.toml $(shell find src -name '*.rs') $(wildcard data/scripts/*)

export PYTHON
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PYO3_PYTHON := $(CURDIR)/$(PY)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport CONDA_PREFIX PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help deployments demo test check setup build fmt lint mypy walls clippy docs site rust simulation simulate fuzz fuzz-coverage python stubs parity eventlet \
	services services-setup rpc messaging pythons pythons-page test-pythons test-free-threaded test-musl cover releasenotes deb debian wheels release release-page bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ---- the newcomer's two commands ---------------------------------------------------------------

demo: $(VENV)/.native $(VENV)/.cinder ## real cinder on osloxide: set up, run, drive, kill, reload, stop
	@$(PY) examples/cinder/demo.py

CHECKS := fmt lint mypy clippy walls docs site
SUITES := rust simulation stubs parity
# Three lists that take about as long, and mostly wait: they run beside each other.
BOUNDARY := python
SERVICES := services demo deployments pythons eventlet messaging
MESSAGING := rpc
# Their failed tests are run once more, alone (tools/stages.py).
AGAIN := python services deployments rpc
test: $(VENV)/.rust-tools $(VENV)/.release ## every check and every suite, quick ones first
	@$(PY) tools/stages.py --again "$(AGAIN)" setup services-setup $(CHECKS) $(SUITES) \
	    -- $(BOUNDARY) -- $(SERVICES) -- $(MESSAGING)

check: $(VENV)/.rust-tools ## the quick checks alone, no suite
	@$(PY) tools/stages.py setup $(CHECKS)

# ---- what is installed -------------------------------------------------------------------------

setup: $(VENV)/.native $(VENV)/.test ## .venv with the extension (release build), cinder and the test tools

$(VENV)/.build: requirements/build.lock tools/venv.sh
	@echo "python environment in $(VENV)"
	@tools/venv.sh
	@$(PIP) --no-deps -r $<
	@touch $@

$(VENV)/.cinder: requirements/cinder.lock $(VENV)/.build
	@echo "cinder and what it needs (pinned by $<)"
	@$(PIP) --no-deps -r $<
	@touch $@

$(VENV)/.test: requirements/test.lock $(VENV)/.cinder
	@echo "test tools (pinned by $<)"
	@$(PIP) --no-deps -r $<
	@touch $@

# Compiling and installing cinder take about as long: run them side by side.
$(VENV)/.native: $(NATIVE) $(VENV)/.build requirements/cinder.lock
	@echo "extension, release build (a minute or two the first time)"
	@$(MAKE) --no-print-directory --silent -j2 $(VENV)/.compiled $(VENV)/.cinder
	@$(DEVELOP) >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@touch $@

$(VENV)/.compiled: $(NATIVE) $(VENV)/.build
	@$(DEVELOP) --skip-install >$(VENV)/compile.log 2>&1 || { cat $(VENV)/compile.log; exit 1; }
	@touch $@

$(VENV)/.rust-tools: $(VENV)/.build
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	@touch $@

build: $(VENV)/.native ## the extension alone

# ---- checks ------------------------------------------------------------------------------------

fmt: $(VENV)/.rust-tools ## formatting of the Rust code
	cargo fmt --check

lint: $(VENV)/.test ## ruff
	ruff check

mypy: $(VENV)/.test ## strict types of python/osloxide, the tools and the benches
	mypy

clippy: $(VENV)/.rust-tools ## clippy, warnings are errors, all features
	cargo clippy --quiet --locked --all-targets --all-features -- -D warnings

walls: $(VENV)/.rust-tools ## each room compiles alone (docs/architecture.md)
	@for room in $(ROOMS); do \
	    echo "cargo clippy --lib --no-default-features --features $$room -- -D warnings"; \
	    cargo clippy --quiet --locked --lib --no-default-features --features $$room -- -D warnings || exit 1; \
	done

docs: $(VENV)/.build ## rustdoc, warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps --all-features

$(VENV)/.docs: requirements/docs.lock $(VENV)/.native
	@$(PIP) --no-deps -r $<
	@touch $@

site: $(VENV)/.docs $(VENV)/.test ## the documentation site in target/site, warnings are errors
	$(PY) -m sphinx --quiet --fail-on-warning --keep-going -b html docs target/site

stubs: $(VENV)/.native $(VENV)/.test ## _native.pyi says what the compiled module has
	$(PY) -m mypy.stubtest osloxide._native

# ---- suites ------------------------------------------------------------------------------------

rust: ## Rust tests of every room (no Python needed)
	cargo test --quiet --locked --no-fail-fast --no-default-features --features "$(CORE) fuzzing"

# cfg(simulate) puts simulated locks, threads and time below the pool, in a folder of its own: what
# is shipped never sees it. Set OSLOXIDE_SIM_SEED to the seed that a failure printed to run that one.
SIMULATED := RUSTFLAGS="--cfg simulate" CARGO_TARGET_DIR=target/simulate CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo test --release --locked --no-default-features --features "supervisor executor"

simulation: ## schedules of the pool and the executor, a fixed number (docs/simulation.md)
	$(SIMULATED) --quiet --test pool_simulation

simulate: export OSLOXIDE_SIM_SECONDS ?= 600
simulate: ## every simulation for ten minutes, or for OSLOXIDE_SIM_SECONDS
	$(SIMULATED) --no-fail-fast --test pool_simulation --test supervisor_simulation -- --nocapture

fuzz: export RUSTUP_TOOLCHAIN = nightly
fuzz: ## coverage-guided fuzzing, a minute for each target (fuzz/README.md)
	@if ! rustup toolchain list 2>/dev/null | grep -q '^nightly'; then \
	    echo "skipped: no nightly toolchain (rustup toolchain install nightly)"; \
	elif ! cargo fuzz --version >/dev/null 2>&1; then \
	    echo "skipped: no cargo-fuzz (cargo install cargo-fuzz --locked)"; \
	else \
	    cd fuzz && cargo fuzz build -s none && \
	    for target in $(FUZZED); do \
	        mkdir -p found/$$target && \
	        cargo fuzz run -s none $$target found/$$target corpus/$$target -- \
	            -max_total_time=$${OSLOXIDE_FUZZ_SECONDS:-60} -max_len=2048 -print_final_stats=1 || exit 1; \
	    done; \
	fi

fuzz-coverage: ## how much of what is fuzzed the corpus reaches (needs: rustup component add llvm-tools)
	@$(PYTHON) tools/fuzz_coverage.py

python: TESTS ?= tests/python
python: $(VENV)/.native $(VENV)/.test ## tests through the boundary, with real processes; TESTS names some of them
	$(PY) -m pytest -q $(TESTS)

# The tests mostly wait, so both backends run at once.
parity: $(VENV)/.native $(VENV)/.test ## oslo.service's own tests against osloxide
	@$(MAKE) --no-print-directory --silent --output-sync=target -j2 parity-eventlet parity-threading

parity-%:
	@echo "tests/parity/run.py --backend $*"
	@$(PY) tests/parity/run.py --backend $*

eventlet: $(VENV)/.native $(VENV)/.test ## eventlet's own tests and examples on osloxide
	$(PY) tests/green/run.py
	$(PY) -m pytest -q tests/green/test_examples.py

services-setup: ## the Debian packages of the service tests: RabbitMQ and MariaDB
	@tools/debian.sh rabbitmq-server mariadb-server nginx-light apache2-bin haproxy systemd

deployments: TESTS ?= tests/deployments
deployments: $(VENV)/.native $(VENV)/.test ## ini files of deployment tools, unedited, in a sandbox (root)
	$(PY) -m pytest -q $(TESTS)

services: TESTS ?= tests/services --ignore-glob='*/test_rpc_*'
services: $(VENV)/.native $(VENV)/.test services-setup ## real services on RabbitMQ and MariaDB
	$(PY) -m pytest -q $(TESTS)

rpc: TESTS ?= $(wildcard tests/services/test_rpc_*.py)
rpc: $(VENV)/.native $(VENV)/.test services-setup ## RPC services on RabbitMQ as people run it, and its faults
	$(PY) -m pytest -q $(TESTS)

messaging: $(VENV)/.native $(VENV)/.test services-setup ## oslo.messaging's, py-amqp's and kombu's own tests against osloxide
	$(PY) tests/messaging/clients.py
	$(PY) tests/messaging/unit.py
	$(PY) tests/messaging/run.py
	$(PY) tests/messaging/run.py --subject native-client

# ---- other CPythons, and what is released ------------------------------------------------------

$(VENV)/.release: requirements/release.lock $(VENV)/.build
	@$(PIP) --no-deps -r $<
	@touch $@

pythons: $(VENV)/.release ## wheel, empty environment and smoke part on every CPython found here
	@$(PY) tools/pythons.py --unoptimised --oslo-service --at-least 1

pythons-page: $(VENV)/.release ## the same with Debian sid's CPythons (root), counts entered in docs/pythons.md
	@$(PY) tools/pythons.py --unoptimised --oslo-service --debian sid --page docs/pythons.md

$(VENV)/.tox: requirements/tox.lock $(VENV)/.test
	@$(PIP) --no-deps -r $<
	@touch $@

cover: TESTS ?= tests/python
cover: $(VENV)/.native $(VENV)/.tox ## which lines of the Python package TESTS runs in half an hour, child processes included
	@$(PY) tools/cover.py $(TESTS)

releasenotes: $(VENV)/.tox ## release notes: checked, and as target/releasenotes.rst
	reno lint
	@mkdir -p target
	reno --quiet report --output target/releasenotes.rst

# DEBIAN=sid: on those of that release instead, in a tree made by debootstrap (root).
test-pythons: OF_DEBIAN = --only-debian --debian $(DEBIAN) --unoptimised --at-least 1
test-pythons: $(VENV)/.release ## all tests through the boundary on every CPython found here; counts entered in docs/pythons.md
	@$(PY) tools/pythons.py --full --beside 2 --page docs/pythons.md $(if $(DEBIAN),$(OF_DEBIAN),--oslo-service)

test-free-threaded: $(VENV)/.release ## server, executor and launchers on a free-threaded CPython, built where it is missing
	@$(PY) tools/pythons.py --unoptimised --free-threaded

deb: $(VENV)/.native ## dist/: the Debian package, built in a tree of Debian sid (root)
	@$(PY) tools/deb.py

debian: $(VENV)/.test services-setup ## Debian sid's own nova and cinder on that package, in the tree (root)
	@# Built first: the clock of a test is not for compilers, which take an hour on a busy machine.
	@$(PY) tools/deb.py --unoptimised
	$(PY) -m pytest -q tests/debian

test-musl: $(VENV)/.release ## the musllinux wheel on a CPython that is linked against musl, built where it is missing
	@$(PY) tools/musl.py

wheels: $(VENV)/.release ## dist/: a manylinux and a musllinux wheel for every CPython found here
	@$(PY) tools/pythons.py --build-only --musl

release: wheels ## dist/: wheels, proven in empty environments, and the source distributions
	@$(PY) tools/wheels.py --sdist --vendor
	@$(PY) tools/pythons.py
	@$(PY) tools/publishable.py || true
	@echo "nothing was published; RELEASING.md says what comes next"

release-page: $(VENV)/.release ## names and sizes of what dist/ has, entered in docs/packaging.md
	@$(PY) tools/wheels.py --page docs/packaging.md

bench: $(VENV)/.native $(VENV)/.test ## measure (see benches/README.md)
	$(PY) benches/run.py

clean: ## remove everything that the other targets made
	rm -rf $(VENV) .cache dist target python/osloxide/_native.*.so
