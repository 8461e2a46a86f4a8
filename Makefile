# Everything runs in its own environment, .venv, made on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := $(VENV)/bin/python

DATA := datasets/quickstart
QUICK := runs/quickstart

.PHONY: help install test test-slow test-lowest fuzz check docs quickstart online bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(VENV)/.installed  ## make the environment, with the tools for development

PIP = $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed: $(VENV)/.runtime
	$(PIP) --editable '.[dev]'
	touch $@

# One thread per process: several processes with several threads each are slower than either.
# In the order of the folders, else the files with few but long tests would come last.
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: install  ## run the tests, 8 to 11 minutes on two cores
	$(PYTEST)

# make test-slow SHARDS=4 SHARD=1 runs the first quarter of them.
SHARDS ?= 1
SHARD ?= 1
test-slow: install  ## run the long tests too
	$(PYTEST) -m '' --splits $(SHARDS) --group $(SHARD)

# The oldest torch and lightning that pyproject.toml admits, in an environment of their own. torch
# pins sympy. On PyPI this torch brings CUDA, 6 GB; PIP_EXTRA_INDEX_URL and TORCH choose a CPU build.
LOWEST ?= .venv-lowest
TORCH ?= 2.8.0
LIGHTNING ?= 2.6.4
UNPINNED := torch|lightning|pytorch-lightning|sympy
$(LOWEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	grep -vE '^($(UNPINNED))==' constraints.txt > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt \
		torch==$(TORCH) lightning==$(LIGHTNING) --editable '.[dev]'
	touch $@

test-lowest: $(LOWEST)/.installed  ## run the fast tests with the oldest torch and lightning
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist loadfile \
		tests/core tests/nets tests/methods tests/app tests/online

# make fuzz FUZZ=500 SEED=7 tries fewer inputs, and others.
FUZZ ?= 3000
SEED ?= 1
fuzz: install  ## a trial of bad inputs, 20 minutes; its table goes to docs/fuzz_table.md
	$(RUN) -m tests.fuzz --cases $(FUZZ) --seed $(SEED) --table docs/fuzz_table.md

check: install  ## lint and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: install  ## build the site in build/docs; a warning is an error
	$(RUN) -m sphinx -q -W --keep-going -b html docs build/docs

quickstart: $(DATA)/cube-single-play-v0.npz  ## collect data, train QAM, score it: 10 minutes on two cores
	$(RUN) train.py fit --config quickstart.yaml \
		$$(test -e $(QUICK)/checkpoints/last.ckpt && echo --ckpt_path last)
	$(RUN) eval.py $(QUICK) --policy behavior
	$(RUN) eval.py $(QUICK) --picture

online: $(DATA)/cube-single-play-v0.npz  ## a quarter of the data, then online fine-tuning
	$(RUN) train.py fit --config quickstart.yaml --run_dir $(QUICK)-online --data.fraction 0.25 \
		--trainer.max_steps 4000 --model.lr_decay_steps 12000 \
		--online.learning_starts 1000 --online.steps 9000 --evaluation.episodes 50 \
		$$(test -e $(QUICK)-online/checkpoints/last.ckpt && echo --ckpt_path last)
	$(RUN) eval.py $(QUICK)-online --picture

$(DATA)/cube-single-play-v0.npz: | $(VENV)/.runtime
	$(RUN) train.py generate --env cube-single --dataset play --episodes 100 --directory $(DATA)

bench: install  ## how fast QAM's update is, 5 minutes on two cores
	$(RUN) benchmarks/update.py --methods qam

clean:  ## remove the environments; runs and datasets stay
	rm -rf $(VENV) $(LOWEST)
