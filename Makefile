# Building, testing and trying Spore. `make help` lists the targets.
#
# Variables: SPORE_CACHE (kernels and bases; nothing of it is in the tree), CARGO_TARGET_DIR,
# CARGOFLAGS (for every cargo call, e.g. --locked), DEMO_FLAGS, BASE_FLAGS, BENCH_DIR,
# MATRIX_FLAGS.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Phases follow each other, and the first that fails ends it all. Each keeps all cores busy by itself.
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

# As `spore` finds it.
export SPORE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/spore
CARGO ?= cargo
CARGOFLAGS ?=
DEMO_FLAGS ?=
BASE_FLAGS ?=
BENCH_DIR ?=
MATRIX_FLAGS ?=
target := $(abspath $(or $(CARGO_TARGET_DIR),target))
programs := -p spore-api -p spore-vmm
shell_scripts := .ci/run $(wildcard bench/*.sh scripts/*.sh guest/kernel/*.sh guest/bases/*.sh guest/bases/lib/*.sh)

.PHONY: help setup kernel base base-debian build build-release build-dev demo bench matrix test test-setup lint unit sdk-python sdk-typescript fuzz guest-test daemon-test soak clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## install the Debian packages that are missing (needs root or sudo only then)
	@scripts/setup.sh

kernel: ## build the guest kernel, or find it in the cache
	@guest/kernel/build.sh

base: ## build the base "busybox" with the agent, or find it in the cache
	@guest/bases/build.sh busybox

base-debian: ## build the base "debian" from the host's apt sources, or find it in the cache (BASE_FLAGS=--refresh asks the archive)
	@guest/bases/build.sh $(BASE_FLAGS) debian

build: build-release build-dev ## build spore and spore-vm, release (target/release) and dev (target/debug)

build-release:
	$(CARGO) build $(CARGOFLAGS) --release $(programs)

# As `unit` and `guest-test` build them: what cargo selects decides the features, and other features are other builds.
build-dev:
	$(CARGO) build $(CARGOFLAGS) --workspace --all-targets

demo: setup kernel base build-release ## all set-up, then the whole idea on real guests (DEMO_FLAGS="--json", "--full")
	$(target)/release/spore demo $(DEMO_FLAGS)

bench: setup kernel base build-release ## all set-up, then every benchmark; prints Markdown tables (BENCH_DIR keeps the raw results)
	SPORE=$(target)/release/spore bench/run.sh $(BENCH_DIR)

matrix: setup kernel base-debian build-release ## all set-up, then a step of every kind, built and forked at many sizes; half an hour and more (MATRIX_FLAGS="--builds 1024 --floors 512 --sizes 1024")
	$(target)/release/spore bench matrix $(MATRIX_FLAGS)

test: test-setup lint unit fuzz guest-test daemon-test ## all set-up, then every check and every test

# Without KVM no guest runs, and what only guests need is not asked for.
test-setup:
	@if scripts/kvm-usable.sh; then scripts/setup.sh; else scripts/setup.sh host; fi

lint: ## formatting, clippy, rustdoc, all with warnings as errors; syntax of the shell scripts
	@for script in $(shell_scripts); do bash -n "$$script"; done
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy $(CARGOFLAGS) --workspace --all-targets -- -D warnings
	$(CARGO) clippy $(CARGOFLAGS) --workspace --test guest -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(CARGOFLAGS) --workspace --no-deps

unit: ## tests of every crate but those on guests
	$(CARGO) test $(CARGOFLAGS) --workspace --no-fail-fast

sdk-python: ## the Python SDK: lint, types, tests (SPORE_SOCKET, SPORE_TEST_IMAGE: also those with a real daemon)
	@$(CARGO) run -q $(CARGOFLAGS) -p spore-api --bin spore -- serve --openapi >$(target)/openapi.json
	@SPORE_OPENAPI=$(target)/openapi.json scripts/sdk-python.sh

sdk-typescript: ## the TypeScript SDK: types, tests, lint (SPORE_SOCKET, SPORE_TEST_IMAGE: against a real daemon)
	@$(CARGO) run -q $(CARGOFLAGS) -p spore-api --bin spore -- serve --openapi >$(target)/openapi.json
	@SPORE_OPENAPI=$(target)/openapi.json scripts/sdk-typescript.sh

fuzz: ## a short run of every fuzz target (SPORE_FUZZ_SECONDS each, 5; scripts/fuzz.sh TARGET for one)
	@CARGOFLAGS='$(CARGOFLAGS)' scripts/fuzz.sh

# The tests skip themselves without KVM, and say so: hence --show-output.
guest-test: ## tests on real guests (`guest` in crate spore-tests); builds kernel, base and programs first
	@if scripts/kvm-usable.sh; then \
		$(MAKE) --no-print-directory kernel base build-dev; \
		if scripts/registry-usable.sh; then \
			$(MAKE) --no-print-directory base-debian; \
		else \
			printf '\n*** SKIPPED: no package registry: no base is made of it, and no guest installs packages.\n\n'; \
		fi; \
	else \
		printf '\n*** SKIPPED: no usable KVM: no guest runs, and the guest kernel is not built.\n\n'; \
	fi
	SPORE_VM=$(target)/debug/spore-vm env $$(! scripts/registry-usable.sh || echo SPORE_REGISTRY=1) \
		$(CARGO) test $(CARGOFLAGS) --workspace --test guest -- --show-output

# Without KVM there is no daemon, and the SDKs meet only servers of their own tests.
daemon-test: ## both SDKs, and the interface fuzzed, against a real daemon; the tutorial as its readers do it
	@if scripts/kvm-usable.sh; then \
		$(MAKE) --no-print-directory kernel base build-dev && scripts/daemon-test.sh $(target)/debug; \
	else \
		printf '\n*** SKIPPED: no usable KVM: the SDKs meet no real daemon, the interface is not fuzzed, and nobody does the tutorial.\n\n'; \
		$(MAKE) --no-print-directory sdk-python sdk-typescript; \
	fi

# What guest-test has for a minute each. SPORE_SOAK_SEED repeats one.
soak: kernel base build-dev ## half an hour of clients and accidents on a daemon, then of forks, growth and kills on the engine, against models (SPORE_SOAK_SECONDS)
	for test in daemon::soak fork_correctness::walk; do \
		SPORE_SOAK_SECONDS=$${SPORE_SOAK_SECONDS:-1800} SPORE_VM=$(target)/debug/spore-vm \
			$(CARGO) test $(CARGOFLAGS) --workspace --test guest -- $$test --show-output || exit 1; \
	done

clean: ## remove what cargo built; kernels and bases stay in the cache
	$(CARGO) clean
