# Everything runs in .venv, made by plain pip from python3; nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo

.PHONY: demo test lint bench figures reference docs

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev]'
	touch $@

# Fit, sample, rank, export, evaluate and report on the embedded digits. Two more networks are trained as
# long for comparison: one without gates, and one whose gates drop at one fixed rate.
demo: .venv/installed
	$(BIN)/pgnas fit --run $(RUN) --target-params 40% --groups channel --force
	$(BIN)/pgnas sample --run $(RUN) --n 300
	$(BIN)/pgnas rank --run $(RUN) --top 5
	$(BIN)/pgnas export $(RUN)/best.safetensors --run $(RUN) --force
	$(BIN)/pgnas fit --run $(RUN)-random --fixed-drop $(RUN) --force --quiet
	$(BIN)/pgnas sample --run $(RUN)-random --n 300 --quiet
	$(BIN)/pgnas export $(RUN)/random.safetensors --run $(RUN)-random --force --quiet
	$(BIN)/pgnas fit --run $(RUN)-whole --fixed-drop 0 --force --quiet
	$(BIN)/pgnas export $(RUN)/whole.safetensors --run $(RUN)-whole --candidate whole --force --quiet
	$(BIN)/pgnas evaluate --run $(RUN) $(RUN)/whole.safetensors \
	  $(RUN)/random.safetensors $(RUN)/best.safetensors
	$(BIN)/pgnas report --run $(RUN)
	@echo "whole   the network without gates"
	@echo "random  best of 300 candidates of a network whose gates drop at one fixed rate"
	@echo "best    $(RUN)/best.safetensors: best of 300 of the posterior, not fine-tuned"

test: .venv/installed
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# docs/commands.md, from --help.
reference: .venv/installed
	COLUMNS=80 $(BIN)/python -m typer pgnas_cli.cli utils docs --name pgnas --title Commands \
	  --output docs/commands.md

# README and docs as a site: site/index.html. A warning, such as a link that leads nowhere, is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# README and docs, from docs/data; the table of the demo from a run of it.
figures: demo
	cp $(RUN)/evaluation.json docs/data/demo.json
	$(BIN)/python -m bench.tables

bench: .venv/installed
	$(BIN)/python -m bench.digits
	$(BIN)/python -m bench.families
	$(BIN)/python -m bench.latency
