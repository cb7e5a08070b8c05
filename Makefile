# One environment in .venv; every target that needs it makes it first. `make` alone lists the targets.
PYTHON = $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed

# DeepSpeed's CPU operator is compiled once per environment (by `make install`, a minute), with the ninja that is installed there.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions

.PHONY: help install demo test test-kernels soak fuzz audit check bench docs lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

install: $(STAMP) ## make .venv with the locked versions (again only when setup.cfg or the lock changed)

$(STAMP): setup.cfg pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "needs Python 3.11, 3.12 or 3.13 on PATH: apt-get install python3.11-venv, or make install PYTHON=/path/to/python"; exit 2; }
	@command -v g++ >/dev/null || { echo "needs a C++ compiler for DeepSpeed's CPU communication: apt-get install g++"; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	DS_ACCELERATOR=cpu $(BIN)/python -c 'from pipeline.engine.zero import start_deepspeed; start_deepspeed()' >/dev/null
	@touch $@

data/digits/manifest.json: | $(STAMP)
	$(BIN)/dtem shards make digit_scenes data/digits --train 12000

HALVES := engine.type=deepspeed $(patsubst %,tasks.%.data.batch_size=16,digits digits_captioning digits_segmentation)
# Two processes on the CPU, whatever else the machine has, so that the demo is the same everywhere.
demo: export CUDA_VISIBLE_DEVICES :=
demo: export DS_ACCELERATOR := cpu
demo: export OMP_NUM_THREADS := 1
demo: $(STAMP) data/digits/manifest.json ## one ViT learns three tasks, then what merging costs them: tables, a plot, a page of pictures (10 to 15 minutes on 2 cores)
	$(BIN)/deepspeed --num_accelerators 2 launch/train.py --config configs/digits_multitask.py --cfg-options train.steps=1500 $(HALVES)
	$(BIN)/deepspeed --num_accelerators 2 launch/train.py --config configs/digits_multitask_dtem.py --cfg-options $(HALVES)
	$(BIN)/dtem sweep runs/digits_multitask_dtem --macs 0.8,0.65,0.5 --within 0.5 --rounds 1
	$(BIN)/dtem visualise runs/digits_multitask_dtem

test: export OMP_NUM_THREADS := 1
test: export DS_ACCELERATOR := cpu
test: export HF_HUB_OFFLINE := 1
test: export WDS_SECURE := 1
test: $(STAMP) ## run the tests, CPU only, without network, a file of tests at a time on each core
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

NUMERICAL := tests/parity tests/laws tests/merging tests/backbone tests/objectives
KERNELS := X=X ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2
# X=X changes nothing. Other seeds find what holds by chance, other roundings stand for another machine (tests/helpers/rounding.py).
test-kernels: export DS_ACCELERATOR := cpu
# Two threads that spin while they wait for one another take minutes where other processes want the cores.
test-kernels: export OMP_WAIT_POLICY := PASSIVE
test-kernels: export HF_HUB_OFFLINE := 1
test-kernels: $(STAMP) ## the numerical tests under other matrix kernels, threads, seeds and roundings (half an hour)
	set -e; for setting in $(foreach kernels,$(KERNELS),$(kernels),DTEM_TEST_THREADS=1 $(kernels),DTEM_TEST_THREADS=2) \
		$(foreach seed,1 2 3,DTEM_TEST_SEED=$(seed)) $(foreach seed,1 2 3,DTEM_TEST_ROUNDING=$(seed)); do \
		echo "$$setting"; env $$(echo $$setting | tr , ' ') $(BIN)/python -m pytest $(NUMERICAL); done

soak: $(STAMP) ## kills, signals, stops, full disks at random moments, counted into benchmarks/records/reliability.json (3 hours on 2 idle cores)
	$(BIN)/python benchmarks/run_all.py --record --only crashes soak cache_soak
	$(BIN)/python benchmarks/reliability_table.py

CASES := 1000000
fuzz: export OMP_NUM_THREADS := 1
fuzz: export DS_ACCELERATOR := cpu
fuzz: export HF_HUB_OFFLINE := 1
fuzz: $(STAMP) ## spoiled inputs for every reader of strangers' data, CASES=1000000 of them (hours); what fails becomes a test
	$(BIN)/python tests/security/fuzz.py --cases $(CASES) --record benchmarks/records/reliability.json

audit: ## known vulnerabilities of the locked packages; exit code 3: nothing is known, for lack of network
	PYTHON=$(PYTHON) .ci/audit requirements.lock

check: $(STAMP) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(STAMP) ## run each script of benchmarks/ with a short setting; what lacks data, a peer or time is named (ends within 15 minutes)
	$(BIN)/python benchmarks/run_all.py

docs: $(STAMP) ## these pages as a site, with the docstrings of the public names, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: ## write requirements.lock anew from what setup.cfg allows today, with torch and torchvision as they are locked
	rm -rf .cache/lock && $(PYTHON) -m venv .cache/lock
	.cache/lock/bin/python -m pip install --quiet --upgrade pip
	grep -E '^(torch|torchvision)==' requirements.lock > .cache/torch.lock
	.cache/lock/bin/python -m pip install --quiet --constraint .cache/torch.lock --editable '.[dev]'
	.cache/lock/bin/python -m pip freeze --all --exclude-editable > requirements.lock
	rm -rf .cache/lock .cache/torch.lock

clean: ## remove the environment and the caches; data/ and runs/ stay
	rm -rf .venv .cache .pytest_cache .ruff_cache *.egg-info
