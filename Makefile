.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: help install demo test coverage check campaign-ledger campaign-planted campaign-audit campaign-faults digits rare-class screenshot format clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{sub(/%/, "NAME", $$1); printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

install: $(VENV)/installed ## Install everything into .venv (Python 3.11 or later)

demo: install ## Run the main job on embedded phantoms: three private sites, report in runs/demo/report.html
	rm -rf runs/demo
	$(BIN)/fedmedgen simulate study=demo --out runs/demo

test: install ## Run the tests
	$(BIN)/python -m pytest -n 3 --dist worksteal

coverage: install ## Run the tests and see which lines they reach, at least 85 % (half as long again)
	$(BIN)/python -m pytest -n 3 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=85

check: install ## Check format, lint, types and the floors of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

campaign-ledger: install ## Kill a site 500 times and look for a lost spend: docs/results/ledger-campaign.md
	$(BIN)/python -m simulations.ledger_campaign --kills 500 --out docs/results

campaign-planted: install ## Plant privacy faults one at a time; each must turn tests red: table in docs/privacy.md
	$(BIN)/python -m simulations.planted_faults

campaign-faults: install ## Deployments of real processes under fault after fault: docs/results/faults.md (an hour; root)
	$(BIN)/python -m simulations.fault_campaign --out docs/results

campaign-audit: install ## Do audits catch planted faults, and stay silent without: docs/results/audit-campaign.md
	$(BIN)/python -m simulations.audit_campaign --out docs/results

grid-%: simulations/grids/%.yaml install ## Run a grid of studies, or go on with it: docs/results/NAME.csv and .md
	$(BIN)/python -m simulations.grid $< --out docs/results

digits: install ## Fetch ten thousand digits and run their grid beside published work: docs/results/digits.md
	$(BIN)/python -m simulations.digits --out docs/results

rare-class: install ## Does synthetic data help with a rare class: docs/results/rare-class.md
	$(BIN)/python -m simulations.rare_class --out docs/results

screenshot: install ## See runs/demo/report.html as a browser shows it (needs Chromium): runs/demo/report.png
	$(BIN)/python -m simulations.screenshot runs/demo/report.html --out runs/demo/report.png

format: install ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove runs and caches (not .venv)
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
