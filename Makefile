PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
INSTALL := $(RUN) -m pip install --constraint constraints.txt --config-settings editable_mode=compat --editable

.PHONY: quickstart test test-full lint ui server tables paper docs

# what the full tests run for real
TOOLS := chromium iproute2 munge postgresql slurm-client slurmctld slurmd

quickstart: $(STAMP)  ## the main job on the bundled digits, and its tables
	$(RUN) -m pipelines.attack experiment=quickstart hydra/launcher=joblib hydra.launcher.n_jobs=2
	$(RUN) -m analysis.tables --study quickstart --out outputs/quickstart
	@echo "runs:   $(CURDIR)/mlflow.db   browse them with: make ui"

test: $(STAMP) lint  ## every check
	$(RUN) -m pytest -n auto --dist loadscope

test-full: $(VENV)/.extra-server $(VENV)/.extra-slurm  ## the tests with a browser, PostgreSQL or Slurm, or of minutes
	[ "$$(id -u)" != 0 ] || ! command -v apt-get || { apt-get update --quiet && \
		DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends $(TOOLS); } || \
		echo "some of $(TOOLS) could not be installed"
	$(RUN) -m pytest -m full -n 2 --dist loadscope -r s

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

ui: $(STAMP)  ## the MLflow UI on this machine
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(VENV)/bin/mlflow server --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --artifacts-destination $(CURDIR)/mlartifacts --host 127.0.0.1 --port 5000

server: $(VENV)/.extra-server  ## a tracking server on PostgreSQL, on this machine
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" deploy/server.sh

tables: $(STAMP)
	$(RUN) -m analysis.tables

paper: $(STAMP)  ## tables, figures, verdicts and the report of the study, from the runs in results/runs
	$(RUN) -m analysis.paper

docs: $(STAMP)  ## this project's documentation, in docs/_build/html
	$(RUN) -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "open $(CURDIR)/docs/_build/html/index.html"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(INSTALL) ".[dev,docs]"
	touch $(STAMP)

$(VENV)/.extra-%: $(STAMP)
	$(INSTALL) ".[$*]"
	touch $@
