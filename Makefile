# `make` lists the targets. Each does the set-up it needs, once; nothing outside this directory is written
# (inside an active conda environment named `recipes`, packages go there instead of .venv).

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo train evaluate combine test lint bench soak clean

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
RECIPE ?= llama32_qlora
RUN ?=
ARGS ?=

ifeq ($(notdir $(CONDA_PREFIX)),recipes)
ENV := $(CONDA_PREFIX)
else
ENV := .venv
endif

# The build of torch: `pypi` is what PyPI has; cu130, cu126 and cpu come from torch's own index. A driver of 580 or newer runs
# CUDA 13, one of 525 to 579 runs CUDA 12 (the cu126 build). Without a GPU in sight, what was installed before stays: that
# is a cluster's login node after `make install TORCH_BUILD=cu126`.
DRIVER := $(firstword $(subst ., ,$(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null)))
ifneq ($(shell [ "$(DRIVER)" -ge 580 ] 2>/dev/null && echo yes),)
FOUND := cu130
else ifneq ($(shell [ "$(DRIVER)" -ge 525 ] 2>/dev/null && echo yes),)
FOUND := cu126
else ifneq ($(shell [ "$(DRIVER)" -ge 1 ] 2>/dev/null && echo yes),)
FOUND := driver-too-old
else
FOUND := $(firstword $(patsubst $(ENV)/.installed-%,%,$(wildcard $(ENV)/.installed-*)) pypi)
endif
TORCH_BUILD ?= $(FOUND)
STAMP := $(ENV)/.installed-$(TORCH_BUILD)

TORCH := $(shell sed -n 's/^torch==//p' requirements.lock)
XFORMERS := $(shell sed -n 's/^xformers==//p' requirements-gpu.lock)
ifeq ($(TORCH_BUILD),pypi)
torch_from := "torch==$(TORCH)"
else
torch_index := https://download.pytorch.org/whl/$(TORCH_BUILD)
torch_from := --extra-index-url $(torch_index) "torch==$(TORCH)+$(TORCH_BUILD)"
endif

export PATH := $(abspath $(ENV))/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
PIP := $(ENV)/bin/python -m pip install -q

# $(call step,what is done,command): one line; the command's own output only when it fails.
define step
@echo "$(1)"; $(2) >$(ENV)/install.log 2>&1 || { cat $(ENV)/install.log >&2; echo "failed: $(1)" >&2; exit 1; }
endef

help: ## list the targets
	@echo "make ..."
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1 \2/p' $(MAKEFILE_LIST) | while read -r target words; do printf '  %-10s %s\n' "$$target" "$$words"; done

install: $(STAMP) ## set up .venv, or the active conda environment `recipes`; a GPU's packages too where there is one

demo: $(STAMP) ## train the tiny recipe on this machine, judge every checkpoint, write the report (a CPU is enough)
	@run=outputs/demo-$$(date +%Y%m%d-%H%M%S); \
	python recipes/llama32_qlora.py --tiny --run-name "$$(basename "$$run")"; \
	bash eval/eval_all_checkpoints.sh "$$run"; \
	echo "report: $$run/report.html"

train: $(STAMP) ## train one recipe: make train RECIPE=llama32_qlora ARGS="--learning-rate 1e-4"
	@[ -f "recipes/$(RECIPE).py" ] || { echo "error: RECIPE='$(RECIPE)' is no recipe; choose one of:" $(basename $(notdir $(wildcard recipes/*.py))) >&2; exit 2; }
	@python recipes/$(RECIPE).py $(ARGS)

evaluate: $(STAMP) ## judge every checkpoint of the newest run, or of RUN=outputs/llama32_qlora
	@bash eval/eval_all_checkpoints.sh $(RUN)

combine: $(STAMP) ## write the weighted mixture of the training files to data/combined.jsonl
	@python prepare/combine.py $(ARGS)

test: $(STAMP) ## prove the repository, within ten minutes on two cores
	@python -m pytest -n 2 --dist loadfile $(ARGS)

soak: $(STAMP) ## long learning, kill and fault runs
	@python -m pytest -m soak $(ARGS)

lint: $(STAMP) ## ruff, the import floors, shellcheck
	@ruff check --quiet .
	@floors=$$(lint-imports --no-logo --no-cache 2>&1) || { echo "$$floors"; exit 1; }
	@shellcheck $(wildcard *.sh */*.sh .ci/run)

bench: $(STAMP) ## measure against peers, one script after another
	@for script in bench/*.py; do echo "$$script"; python "$$script"; done

clean: ## remove .venv and every cache; data/ and outputs/ stay
	@rm -rf .venv .cache .pytest_cache .ruff_cache .import_linter_cache unsloth_compiled_cache *.egg-info $(ENV)/.installed-*
	@find . -name __pycache__ -not -path './data/*' -not -path './outputs/*' -prune -exec rm -rf {} +

$(STAMP): requirements.lock requirements-gpu.lock pyproject.toml | $(ENV)/bin/python
	@[ "$(TORCH_BUILD)" != driver-too-old ] || { echo "error: the NVIDIA driver here is $(DRIVER); torch $(TORCH) needs 525 or newer" \
	  "(580 or newer for CUDA 13). Update the driver, or go without the GPU: make install TORCH_BUILD=pypi" >&2; exit 2; }
	@$(ENV)/bin/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "error: $$($(ENV)/bin/python -V) in $(ENV); the pinned packages need Python 3.11, 3.12 or 3.13." \
	  "Name one and start over: make clean, then make install PYTHON=python3.11" >&2; exit 2; }
	@command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || { \
	  echo "error: no C++ compiler found, and DeepSpeed compiles its communication with one; install it (Debian: apt install g++)" >&2; exit 2; }
	@rm -f $(ENV)/.installed-*
	$(call step,installing torch $(TORCH) ($(TORCH_BUILD)),$(PIP) -c requirements.lock $(torch_from))
	$(call step,installing $$(grep -c == requirements.lock) pinned packages,$(PIP) --no-deps -r requirements.lock)
ifneq ($(filter cu%,$(TORCH_BUILD)),)
	$(call step,installing what a GPU needs on top,grep -v '^xformers==' requirements-gpu.lock | $(PIP) --no-deps --index-url $(torch_index) -r /dev/stdin)
	@$(PIP) --no-deps --index-url $(torch_index) xformers==$(XFORMERS) >$(ENV)/install.log 2>&1 || \
	  echo "xformers $(XFORMERS) was not installed (see $(ENV)/install.log); Unsloth uses PyTorch's attention instead, which is slower on packed rows"
endif
	$(call step,installing this repository,$(PIP) --no-deps --no-build-isolation -e .)
	@touch $@

$(ENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); the pinned packages need Python 3.11, 3.12 or 3.13." \
	  "Name one: make install PYTHON=python3.11" >&2; exit 2; }
	@echo "creating $(ENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(ENV) || { rm -f $@; echo "error: $(PYTHON) could not make $(ENV) (Debian: apt install python3-venv)" >&2; exit 2; }
