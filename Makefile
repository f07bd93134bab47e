# One environment, made once: .venv holds the package, and for the tests what the `test` extra names.
PYTHON ?= python3
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3
export CUDA_VISIBLE_DEVICES ?= -1

.PHONY: help demo quick test test-all test-floors test-wheel lint format bench-match bench-ops bench-pairs soundness fuzz clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[torch]'
	@touch $@

.venv/.installed-test: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@ .venv/.installed

demo: .venv/.installed  ## write a seeded checkpoint in SAM's layout, convert its mask decoder, print the proof
	@mkdir -p demo
	$(BIN)/python -m torch_refs.sam.seeded_checkpoint vit_b demo/sam_vit_b.pth
	$(BIN)/convert --model sam_decoder demo/sam_vit_b.pth --output demo/sam_decoder.weights.h5 --overwrite

# What most changes touch, and what answers soon: texts, mappings, readers, plans, the way back, and conversions of a decoder.
QUICK := $(addprefix tests/,checkpoints hardening/test_reading_changes.py \
	hardening/test_reading_commands.py hardening/test_reading_shards.py hardening/test_writing_atomic.py \
	kinds/test_kinds.py planning runtime pairs test_restore.py) \
	'tests/test_convert.py::test_the_loaded_model_computes_what_torch_does[zip]'

# Two workers share the cores: threads of each that wait for the other's cost a fifth of the time.
quick test test-all: export OMP_NUM_THREADS ?= 1
quick test test-all: export TF_NUM_INTRAOP_THREADS ?= 1

quick: .venv/.installed-test  ## the tests to work with, under 2 minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(QUICK)

# In the order of the files, so that the long ones come first and none is left over for one worker alone.
test: .venv/.installed-test  ## the tests, about 11 minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: .venv/.installed-test  ## the tests and the exhaustive ones
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# An environment of its own, with the lowest version of all that pyproject.toml names for users.
.venv-floors/.installed: pyproject.toml tests/floors.txt
	$(PYTHON) -m venv .venv-floors
	.venv-floors/bin/pip install --quiet --constraint tests/floors.txt --editable '.[test]'
	@touch $@

test-floors: export OMP_NUM_THREADS ?= 1
test-floors: export TF_NUM_INTRAOP_THREADS ?= 1
test-floors: .venv-floors/.installed  ## the tests with the lowest versions that are allowed; PYTHON is 3.10 to 3.12
	.venv-floors/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-wheel: .venv/.installed-test  ## build the wheel, install it into an empty environment, and try it there
	$(BIN)/python -m pytest tests/test_installed.py

lint: .venv/.installed-test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed-test  ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-ops: .venv/.installed-test  ## the sampling ops against torch: a table and a plot
	$(BIN)/python -m benchmarks.ops

bench-pairs: .venv/.installed-test  ## layers and models against their torch references: a table
	$(BIN)/python -m benchmarks.pairs

# The libraries whose ports are looked at, without what they depend on, beside all that the tests need.
.venv-peers/.installed: pyproject.toml benchmarks/ports/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --editable '.[test]'
	.venv-peers/bin/pip install --quiet --no-deps --requirement benchmarks/ports/peers.txt
	@touch $@

bench-match: export OMP_NUM_THREADS ?= 1
bench-match: export TF_NUM_INTRAOP_THREADS ?= 1
bench-match: .venv-peers/.installed  ## `match` and `audit` on public ports, held against their libraries' converters
	.venv-peers/bin/python -m benchmarks.ports match
	.venv-peers/bin/python -m benchmarks.ports file
	.venv-peers/bin/python -m benchmarks.ports audit

soundness: .venv/.installed-test  ## how often the proof errs: planted faults, and 2,000 proofs of right networks
	$(BIN)/python -m benchmarks.soundness power
	$(BIN)/python -m benchmarks.soundness alarms --proofs 2000

fuzz: .venv/.installed-test  ## 100,000 mutants of every file format; prints what it saw
	$(BIN)/python -m tests.hardening.fuzzing --mutants 100000

clean:  ## remove what the targets above made, except weights/
	rm -rf .venv .venv-floors .venv-peers demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
