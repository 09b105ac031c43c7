# Every target does its own set-up: a virtual environment in .venv, made from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export LITELLM_LOCAL_MODEL_COST_MAP := true

.PHONY: demo test lint record bench selection searched notebook chaos fuzz outside exits clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[notebook,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m benchmarks.demo

test: $(STAMP)
	$(BIN)/ruff check dse signatures datasets tests benchmarks
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check dse signatures datasets tests benchmarks
	$(BIN)/mypy dse

# A new recording: make record LM=openai/gpt-5-mini (any dspy model string, with its key in the environment).
record: $(STAMP)
	$(BIN)/python -m benchmarks.record $(if $(LM),--lm $(LM)) $(RECORD_ARGS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.durable --write
	$(BIN)/python -m benchmarks.scripts --write
	$(BIN)/python -m benchmarks.compile_cost --write
	$(BIN)/python -m benchmarks.fanout --write

# How well candidates are chosen: planted worlds and published outcomes; about half an hour.
selection: $(STAMP)
	$(BIN)/python -m benchmarks.selection --write

# What searching gained on the shipped tasks, by replay.
searched: $(STAMP)
	$(BIN)/python -m benchmarks.searched --write

notebook: $(STAMP)
	$(BIN)/python -m benchmarks.notebook

# Long runs: kills at random points, coverage-guided fuzzing, faults of endpoints.
chaos: $(STAMP)
	$(BIN)/python -m benchmarks.chaos --kills 300
	$(BIN)/python -m benchmarks.compile_chaos --kills 60

fuzz: $(STAMP)
	$(BIN)/python -m benchmarks.fuzz --seconds 60 --target all

outside: $(STAMP)
	$(BIN)/python -m benchmarks.outside

exits: $(STAMP)
	$(BIN)/python -m benchmarks.exits --rounds 10

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
