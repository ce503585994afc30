VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: help setup train test test-fast bench check docs results results-run dashboard clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment and install the project into it, once

$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[all,dev]"; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check \
			--constraint constraints.txt --editable ".[all,dev]" | grep -v "already satisfied"; \
		$(BIN)/python -c "import kd, torch, lightning, hydra"; \
	fi
	@touch $(STAMP)

train: $(STAMP) ## teacher, baseline and student on the embedded digits, compared; ARGS="..." overrides
	@$(BIN)/python -m kd.train model=resnet18_to_cnn $(ARGS)

# As many tests at once as there are cores, so one thread for each; ARGS="-n 0" runs them in one process.
# Plugins that other packages bring take two seconds of each process, and no test needs them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --disable-plugin-autoload -p xdist -p timeout \
	--numprocesses auto --maxprocesses 8 --dist worksteal

test: $(STAMP) check ## lint, types, and all tests, the slow ones too
	@$(PYTEST) $(ARGS)

test-fast: $(STAMP) ## the tests that train nothing and run no command
	@$(PYTEST) -m "not slow" $(ARGS)

# One process and all cores, as the two sides of a comparison take turns.
bench: $(STAMP) ## speed next to a plain loop and torchdistill, an hour; needs CIFAR-10; ARGS="-k step"
	@$(BIN)/python -m pytest tests/benchmarks --timeout 0 -s $(ARGS)

check: $(STAMP) ## lint, types and spelling
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(BIN)/codespell

docs: $(STAMP) ## build the pages of docs/ as a site in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

results: $(STAMP) ## write RESULTS.md, the pictures in docs/img and the table of losses
	@$(BIN)/python -m results.make && $(BIN)/python -m results.methods

results-run: $(STAMP) ## run or resume the tables of results/; ARGS="NAME", ARGS="--estimate"
	@$(BIN)/python -m results.make run $(ARGS)

dashboard: $(STAMP) ## TensorBoard over all runs and sweeps, those in progress too; ARGS="outputs/sweeps/NAME --port 6007"
	@$(BIN)/python -m kd.dashboard $(ARGS)

clean: ## remove caches; keeps the virtual environment, the data and the outputs
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	@find kd tests -name __pycache__ -type d -prune -exec rm -rf {} +
