# SPDX-License-Identifier: Apache-2.0
# A front for Meson, Ninja and the scripts. `make` alone builds and installs nothing.

BUILD  ?= build
PREFIX ?= /usr/local
# Seconds that each fuzz target runs under `make fuzz`.
SECONDS ?= 60
# Another place for what scripts/setup lays down beside the system (default: see README.md).
PRIVATE_PREFIX ?=
export PRIVATE_PREFIX
# Not whatever python a version manager puts first in PATH: pytest comes with the system's.
PYTHON := /usr/bin/python3

.PHONY: all setup demo check lint bench sanitize fuzz install clean

all: $(BUILD)/build.ninja
	ninja -C $(BUILD)

$(BUILD)/build.ninja:
	meson setup $(BUILD) $(if $(PRIVATE_PREFIX),-Dprivate_prefix=$(PRIVATE_PREFIX))

setup:
	scripts/setup

demo: setup
	$(MAKE) all
	scripts/demo

# All of it, or some stages: make check STAGES="unit e2e"
check: setup
	$(PYTHON) scripts/check $(STAGES)

lint: setup
	$(MAKE) all
	$(PYTHON) scripts/lint

sanitize: setup
	$(PYTHON) scripts/check asan tsan

fuzz: setup
	$(PYTHON) scripts/check --fuzz-seconds $(SECONDS) fuzz

bench:
	scripts/setup --with-bench
	$(MAKE) all
	bench/build-client
	$(if $(wildcard bench/run),bench/run,@echo "built $(BUILD)/vub-bench; bench/README.md says how to use it")

install: all
	meson configure $(BUILD) -Dprefix=$(PREFIX)
	meson install -C $(BUILD)

clean:
	rm -rf $(BUILD) build-asan build-tsan build-fuzz build-check
