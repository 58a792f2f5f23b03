# Everything a person or CI runs. `make help` lists it.
SHELL := /bin/bash
PROFILE ?= demo
SEED ?=
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
REGISTRY ?= localhost/toolwise
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' toolwise/__init__.py)
TAG ?= $(VERSION)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
PINS ?= constraints-trainer.txt
IMAGES ?= trainer rollout operator agent sandbox
COMMA := ,
DEPLOYED := runs/$(PROFILE)/steps/deploy
# Only one that is named: the default is where `make images` builds, not where a cluster pulls.
REGISTRY_OPTION := $(if $(filter-out file,$(origin REGISTRY)),--registry $(REGISTRY))
TAG_OPTION := $(if $(filter-out file,$(origin TAG)),--tag $(TAG))
SEED_OPTION := $(if $(SEED),--seed $(SEED))

.DEFAULT_GOAL := help
.PHONY: help setup sandbox demo test test-services test-images pin-trainer browser lint bench compile submit-pipeline images serve stop mlflow-ui clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) sandbox ## create .venv with everything in it (once), and install bubblewrap where that is allowed

# torch first, so that no other package draws in its CUDA build, which is ten times the size. Where
# the index of CPU builds cannot be reached, pip goes on without it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make setup PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt --retries 0 --no-deps --extra-index-url $(TORCH_INDEX) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,pipeline,serve,dev]'
	@touch $@

sandbox:
	@command -v bwrap >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing bubblewrap, the sandbox of the python tool"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bubblewrap >/dev/null; \
	else \
		echo "bubblewrap is missing, the sandbox of the python tool. Install it with:" >&2; \
		echo "    sudo apt-get install bubblewrap      (Debian, Ubuntu)" >&2; \
		echo "    sudo dnf install bubblewrap          (Fedora)" >&2; \
		exit 1; \
	fi

demo: setup ## train, prove, promote and serve on this machine; PROFILE=…, SEED=…
	$(BIN)/toolwise run --profile $(PROFILE) $(SEED_OPTION)

test: setup ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 10

browser: ## install Chromium, for the tests of the pages (Debian, Ubuntu; as root)
	command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; }

test-services: setup ## storage and tracking tests against real PostgreSQL and Swift (root, Debian)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[services]'
	$(BIN)/python tests/services/run.py

test-images: setup ## build images with buildah, run them in podman, record size and time (root, Debian)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[images]'
	$(BIN)/python -m tests.images

# vLLM holds back FastAPI and numpy. Wheels only: the image's builder has no compiler. What stands in
# the file already stays as it is where it can.
pin-trainer: setup ## resolve what the trainer image installs: constraints-trainer.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[images]'
	sed -n 's/^ARG VLLM=/vllm==/p' components/Dockerfile | $(BIN)/uv pip compile --quiet --no-config \
		--constraints <(grep -vE '^(fastapi|numpy)==' constraints.txt) --extra train --extra pipeline \
		--python-version 3.11 --python-platform x86_64-manylinux_2_36 \
		--only-binary :all: --no-binary kfp-server-api \
		--no-annotate --custom-compile-command 'make pin-trainer' --output-file $(PINS) pyproject.toml -

lint: setup ## ruff, pyright, the Helm chart and what it renders to
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m tests.manifests

bench: setup ## measure speed and memory; PARTS="engine serve" for some of it
	$(BIN)/python -m bench $(PARTS)

compile: setup ## write build/metis-<profile>.yaml for every profile
	@for profile in $(basename $(notdir $(wildcard pipelines/profiles/*.yaml))); do \
		$(BIN)/toolwise compile --profile $$profile || exit 1; \
	done

submit-pipeline: PROFILE := $(if $(filter demo,$(PROFILE)),qwen3-vl-8b,$(PROFILE))
submit-pipeline: setup ## submit to Kubeflow Pipelines (KFP_HOST, or found) and follow the run; PROFILE=…, REGISTRY=…, TAG=…
	$(BIN)/toolwise submit --profile $(PROFILE) $(SEED_OPTION) $(REGISTRY_OPTION) $(TAG_OPTION)

# The first that works: a docker without its daemon is passed over. Without `--format docker`,
# podman and buildah would drop the health checks.
images: ## build the container images; REGISTRY=…, TAG=…, BASE=…, IMAGES="agent …", PUSH=1
	@for tool in docker podman buildah none; do $$tool version >/dev/null 2>&1 && break; done; \
	case $$tool in \
		none) echo "docker, podman or buildah is needed to build images, and none of them works here" >&2; exit 1;; \
		docker) format=;; \
		*) format="--format docker";; \
	esac; \
	for image in $(IMAGES); do \
		$$tool build $$format --target $$image --tag $(REGISTRY)/$$image:$(TAG) \
			--build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
			$(if $(BASE),--build-arg BASE=$(BASE)) $(if $(PIP_CONF),--secret id=pip$(COMMA)src=$(PIP_CONF)) \
			--file components/Dockerfile . || exit 1; \
		$(if $(PUSH),$$tool push $(REGISTRY)/$$image:$(TAG) || exit 1;) \
	done

serve: setup stop ## serve the model the last run promoted, in the foreground
	$(BIN)/toolwise serve --profile $(PROFILE) --model $(DEPLOYED)/model --corpus $(DEPLOYED)/corpus

stop: setup ## stop the endpoint the last run left serving
	$(BIN)/toolwise stop --run-dir runs/$(PROFILE)

mlflow-ui: setup ## open the runs in MLflow at http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server \
		--backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///runs/mlflow.db} --port 5000

clean: ## remove what runs and builds left, the environment excepted
	@test ! -x $(BIN)/toolwise || for run in runs/*/; do $(BIN)/toolwise stop --run-dir $$run; done
	rm -rf runs build dist .pytest_cache .ruff_cache .hypothesis
