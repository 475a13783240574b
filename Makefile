# The commands of the house; `make` alone lists them. Everything they start or build lies in .telecine/ and target/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup up demo demo-stop test lint deny bench bench-scheduling bench-autoscaling images

export TELECINE_STATE ?= $(CURDIR)/.telecine/state
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
stage := scripts/stage

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: ## install what this machine lacks
	scripts/setup

# A Docker engine and an image registry that answer.
up: setup
	scripts/docker-up
	scripts/registry-up

demo: up ## start everything and transcode a clip
	cargo build --profile demo -p telecine -p telecine-transform
	scripts/build-transform-image --profile demo --no-build
	scripts/demo

demo-stop: ## end what `make demo` started
	scripts/demo-stop

# One build serves the tests and the images: the same flags and the same features everywhere.
test: export CARGO_INCREMENTAL := 0
# A test that cannot run here fails; TELECINE_NO_SKIP=0 counts it instead.
test: export TELECINE_NO_SKIP ?= 1
test: ## every test, with real Docker, FUSE and ffmpeg
	@mkdir -p "$(TELECINE_STATE)" && : >"$(TELECINE_STATE)/stages"
	@$(stage) setup scripts/setup
	@$(stage) docker scripts/docker-up
	@$(stage) registry scripts/registry-up
	@$(stage) scripts scripts/test-scripts
	@$(stage) build cargo build --workspace --bins --tests
	@$(stage) images scripts/build-test-images
	@$(stage) transform-image scripts/build-transform-image --profile debug --no-build
	@$(stage) lint scripts/lint
	@$(stage) test scripts/test --workspace

lint: ## formatting and clippy, warnings as errors
	scripts/lint

deny: ## bans, licences and sources of what we depend on
	scripts/deny

bench: up ## what Telecine adds, against floors measured in the same run
	cargo build --release --workspace
	scripts/build-test-images
	scripts/build-transform-image --profile release --no-build
	scripts/with-images target/release/telecine-bench

bench-scheduling: ## what a decision of the scheduler costs, and how well it packs (TRACES=folder for the packing)
	CARGO_INCREMENTAL=0 cargo bench --target-dir target/pure --package telecine-domain --bench telecine-bench-scheduling

bench-autoscaling: ## the autoscaler against its targets and what others do; public traces from TRACES=DIR
	cargo run --release --target-dir target/pure -p telecine-simulator --bin telecine-bench-autoscaling -- "$(TRACES)"

images: up ## build and push the engine's image and the test images
	scripts/build-test-images
	scripts/build-transform-image
