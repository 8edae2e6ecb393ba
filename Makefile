# Two commands do it all on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
OLDEST := $(VENV)-oldest
OLDEST_LIGHTNING := $(shell sed -n 's/.*"pytorch-lightning>=\([0-9.]*\),.*/\1/p' pyproject.toml)

.PHONY: demo test test-slow test-oldest test-cuda bench bench-peers docs lint format clean

demo: $(VENV)/.installed  ## Train FedBABU on the embedded digits, under a minute.
	$(BIN)/python -m fedlightning fit --config quickstart.yaml

test: $(VENV)/.installed  ## All tests but the slow ones, two files at a time; the docs' examples are among them.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(VENV)/.installed  ## The longer checks.
	$(BIN)/python -m pytest -q -m slow $(ARGS)

test-oldest: $(OLDEST)/.installed  ## All tests but the slow ones with the oldest Lightning that is supported, and today's torch.
	$(OLDEST)/bin/python -m pytest -q -n 2 --dist loadfile $(ARGS)

test-cuda: $(VENV)/.installed  ## What needs a GPU; all of it is skipped without one.
	$(BIN)/python -m pytest -q -rs -m cuda tests/engine/test_cuda.py $(ARGS)

bench: $(VENV)/.installed  ## Our engine and its switches beside a hand-written loop; tables in .bench.
	$(BIN)/python benchmarks/rounds.py engine $(ARGS)
	$(BIN)/python benchmarks/personalization.py
	$(BIN)/python benchmarks/population.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/per_client.py

bench-peers: $(VENV)/.installed  ## Rounds beside other libraries', in environments of their own.
	$(BIN)/python benchmarks/rounds.py peers $(ARGS)

docs: $(VENV)/.docs  ## The documentation as a site, in site/; nothing is loaded from elsewhere.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.installed  ## What pre-commit checks: style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## Mend what can be mended.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) build dist site lightning_logs .pytest_cache .mypy_cache .ruff_cache .bench

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .[dev]
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable .[docs]
	touch $@

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --editable .[dev] pytorch-lightning==$(OLDEST_LIGHTNING)
	touch $@
