# The targets do all their set-up, once: a second call starts at once.
#   make demo          SFT, then GRPO, on this machine's CPU
#   make demo-rlhf     SFT, then a reward model, then PPO against it
#   make demo-embedding  an embedding model from nothing, then a reranker for a weak first stage
#   make test          lint, types, tests
#   make oracle        losses, advantages and their gradients compared with TRL's, in an environment of its own
#   make interop       exports, read by transformers 4.57 and gguf, in an environment of its own, and served by vLLM
#   make docs          the pages in docs/ that are made from the code
#   make families      every family of models through vLLM, of which docs/models.md tells: 20 minutes
#   make chaos         200 faults in runs of every kind of process, at random: does each run get over them? an hour
#   make sweep         a sweep of six learning rates, which is killed and goes on: does it find the best? 3 minutes
#   make mutants       small changes to the maths and its bookkeeping: which of them does no test see? 15 minutes
# PYTHON=python3.11 chooses the interpreter, TORCH_INDEX=URL where torch is when pip's own indexes have no CPU build of it
# (default: PyTorch's, https://download.pytorch.org/whl/cpu).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ORACLE := .venv-oracle
INTEROP := .venv-interop
SEED ?= 0
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# An environment that is there keeps its interpreter: one that is asked for must be that one.
ifneq ($(origin PYTHON),file)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(MAKECMDGOALS),clean)
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
THERE := $(shell $(BIN)/python -c '$(VERSION)')
ASKED := $(shell $(PYTHON) -c '$(VERSION)')
ifneq ($(THERE),$(ASKED))
$(error PYTHON: must be that of the environment in $(VENV), Python $(THERE) (`make clean` removes it), got $(PYTHON), $(if $(ASKED),Python $(ASKED),which does not run))
endif
endif
endif
endif

.PHONY: demo demo-rlhf demo-embedding test pytest check oracle interop docs families chaos sweep mutants setup clean

setup: $(VENV)/.cpu

# Whatever is interrupted, a second `make setup` goes on from what is there.
$(VENV)/.made:
	@command -v $(PYTHON) > /dev/null || { echo "error: PYTHON: must be a Python 3.11 or later, got $(PYTHON), which is not on the PATH" >&2; exit 2; }
	@$(PYTHON) requirements/check_machine.py --engine
	@echo "set-up 1 of 3: a virtual environment in $(VENV)"
	@$(BIN)/python -m pip install --help > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.cpu: requirements/cpu.txt requirements/torch.txt requirements/install_torch.py requirements/install_parts.py pyproject.toml setup.py | $(VENV)/.made
	@echo "set-up 2 of 3: the CPU build of torch and $$(grep -c == requirements/cpu.txt) packages of requirements/cpu.txt, 0.8 GB to load, 2.7 GB on disk: 2 minutes or more"
	@$(BIN)/python requirements/install_parts.py requirements/cpu.txt --torch requirements/torch.txt
	@$(BIN)/python requirements/install_torch.py --check requirements/torch.txt
	@echo "set-up 3 of 3: Tandem itself"
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@
	@echo "set-up is complete: $(BIN)/tandem, or after \`. $(BIN)/activate\` tandem"

$(VENV)/.dev: requirements/dev.txt $(VENV)/.cpu
	@echo "tools for tests and checks, of requirements/dev.txt: 0.5 GB on disk, half a minute"
	@$(BIN)/python requirements/install_torch.py requirements/torch.txt
	@$(BIN)/python requirements/install_parts.py requirements/dev.txt
	@touch $@

demo: $(VENV)/.cpu
	$(BIN)/tandem run configs/demo-sft.yaml run.name=demo-sft-$(SEED) run.seed=$(SEED) model.init.seed=$(SEED) checkpoint.resume=false
	$(BIN)/tandem run configs/demo-grpo.yaml run.name=demo-grpo-$(SEED) run.seed=$(SEED) model.path=outputs/demo-sft-$(SEED)/export checkpoint.resume=false
	$(BIN)/tandem chat outputs/demo-grpo-$(SEED) --prompt robot

RLHF := checkpoint.resume=false run.seed=$(SEED)
STAGE = outputs/demo-rlhf-$(1)-$(SEED)/export

demo-rlhf: $(VENV)/.cpu
	$(BIN)/tandem run configs/demo-rlhf-sft.yaml run.name=demo-rlhf-sft-$(SEED) model.init.seed=$(SEED) $(RLHF)
	$(BIN)/tandem run configs/demo-rlhf-reward.yaml run.name=demo-rlhf-reward-$(SEED) model.path=$(call STAGE,sft) $(RLHF)
	$(BIN)/tandem run configs/demo-rlhf-ppo.yaml run.name=demo-rlhf-ppo-$(SEED) model.path=$(call STAGE,sft) \
		'reward.models=[$(call STAGE,reward)]' $(RLHF)
	$(BIN)/tandem chat outputs/demo-rlhf-ppo-$(SEED) --prompt fadcbe

SEARCH := checkpoint.resume=false run.seed=$(SEED) tracking.wandb=false
FIRST_STAGE := outputs/demo-first-stage-$(SEED).jsonl

demo-embedding: $(VENV)/.cpu
	$(BIN)/tandem run configs/demo-embedding.yaml run.name=demo-embedding-$(SEED) model.init.seed=$(SEED) $(SEARCH)
	$(BIN)/tandem search outputs/demo-embedding-$(SEED) --query "three lamps of a red fox in oslo"
	$(BIN)/tandem run configs/demo-embedding.yaml run.name=demo-embedding-weak-$(SEED) model.init.seed=$(SEED) $(SEARCH) \
		algorithm.steps=18 algorithm.best_by=null
	rm -rf $(FIRST_STAGE) $(FIRST_STAGE).partial
	$(BIN)/tandem mine outputs/demo-embedding-weak-$(SEED) --data data.eval --rank --negatives 20 --output $(FIRST_STAGE)
	$(BIN)/tandem run configs/demo-reranker.yaml run.name=demo-reranker-$(SEED) $(SEARCH) \
		model.path=outputs/demo-embedding-$(SEED)/export data.eval=$(FIRST_STAGE)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# The checks and the tests at one time, and the tests in two processes: each has moments that need one core only. The
# tests of a file stay together, as they share what they start.
test: $(VENV)/.dev
	+$(MAKE) --jobs=2 check pytest

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

$(ORACLE)/.ready: requirements/oracle.txt requirements/torch.txt requirements/install_torch.py
	@$(PYTHON) requirements/check_machine.py
	@echo "an environment of its own for TRL in $(ORACLE): 1.5 GB on disk, 2 minutes"
	@$(PYTHON) -m venv --clear $(ORACLE)
	@$(ORACLE)/bin/python requirements/install_torch.py requirements/torch.txt
	@$(ORACLE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/oracle.txt
	@$(ORACLE)/bin/python requirements/install_torch.py --check requirements/torch.txt
	@touch $@

oracle: $(ORACLE)/.ready
	TRL_EXPERIMENTAL_SILENCE=1 HF_HUB_OFFLINE=1 $(ORACLE)/bin/python -m pytest tests/oracle

$(INTEROP)/.ready: requirements/interop.txt requirements/torch.txt requirements/install_torch.py
	@$(PYTHON) requirements/check_machine.py
	@echo "an environment of its own for transformers 4.57 in $(INTEROP): 1.2 GB on disk, 2 minutes"
	@$(PYTHON) -m venv --clear $(INTEROP)
	@$(INTEROP)/bin/python requirements/install_torch.py requirements/torch.txt
	@$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/interop.txt
	@$(INTEROP)/bin/python requirements/install_torch.py --check requirements/torch.txt
	@touch $@

# What this project's environment writes, the other one reads; tests/conftest.py is of the former.
interop: $(VENV)/.dev $(INTEROP)/.ready
	TANDEM_PYTHON=$(BIN)/python HF_HUB_OFFLINE=1 $(INTEROP)/bin/python -m pytest --confcutdir=tests/interop tests/interop

docs: $(VENV)/.cpu
	$(BIN)/python -m launch help --markdown > docs/settings.md
	$(BIN)/python -m launch help --migrating > docs/migrating.md
	$(BIN)/python tests/tree.py

families: $(VENV)/.dev
	$(BIN)/python -m tests.engine_families --page docs/models.md

# Of each seed a run of PPO and one of GRPO, with 20 faults each.
CHAOS_SEEDS ?= 1 2 3 4 5

chaos: $(VENV)/.dev
	CHAOS_SEEDS="$(CHAOS_SEEDS)" $(BIN)/python -m pytest -s tests/chaos
	CHAOS_NODES=1 $(BIN)/python -m pytest tests/cluster/test_cluster_faults.py tests/cluster/test_head_restart.py

sweep: $(VENV)/.dev
	SWEEP=6 $(BIN)/python -m pytest -s tests/test_sweep_run.py

$(VENV)/.mutants: requirements/mutants.txt $(VENV)/.dev
	@echo "the mutation tool, of requirements/mutants.txt: 25 MB on disk"
	@$(INSTALL) --no-deps --require-hashes -r requirements/mutants.txt
	@touch $@

mutants: $(VENV)/.mutants
	$(BIN)/python tests/mutants.py

clean:
	rm -rf $(VENV) $(ORACLE) $(INTEROP) outputs mutants
