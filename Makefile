.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
RIVALS := .venv-bench/.installed

.PHONY: help demo check test test-fast bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# Everything at the versions of constraints.txt; done again when these or the dependencies change.
$(READY): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## compare five recipes on SciFact: six to fifteen minutes on two cores
	$(BIN)/stillhouse compare experiments/quickstart.yaml

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(READY)  ## all tests; those of the whole flow one after the other, because each has all cores
	$(BIN)/python -m pytest tests/unit --numprocesses logical --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest tests/integration tests/cluster

test-fast: $(READY)  ## the tests that take seconds
	$(BIN)/python -m pytest -m 'not ray and not slow'

# What benchmarks measure us against, apart from our own environment.
$(RIVALS): benchmarks/requirements.txt
	python3 -m venv $(dir $@)
	$(dir $@)bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench: $(READY) $(RIVALS)  ## the benchmarks, one after the other
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:  ## remove the environment and what tools leave behind; stores and results stay
	rm -rf $(VENV) .venv-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
