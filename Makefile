# Everything a user or CI needs; 'make help' lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
REPORT ?= runs/demo/comparison.html

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint types unit validation bench study docs picture clean

help: ## list what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with everything (once; 3 minutes, 6 GB)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "qatval needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@echo "qatval: setting up $(VENV) (PyTorch with CUDA among it: about 3 minutes and 6 GB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "qatval: installing packages ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { echo "qatval: OpenCV lacks a system library:" \
		"apt-get install libgl1 libglib2.0-0 (or your system's counterpart), then make again"; exit 1; }
	@touch $@
	@echo "qatval: $(VENV) is ready"

demo: $(READY) ## is training in 4 bits better than rounding? three seeds, embedded data (2 to 10 minutes)
	@$(BIN)/qatval demo

test: unit validation ## run the unit tests and the CPU validation scenarios

check: lint types unit ## run lint, types and unit tests (2 minutes)

lint: $(READY) ## check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY) ## check types
	@$(BIN)/mypy

unit: $(READY) ## run the unit tests
	@$(BIN)/pytest tests/unit -n auto

validation: $(READY) ## run the validation scenarios that need no GPU
	@$(BIN)/pytest tests/validation -m "not gpu"

bench: $(READY) ## run the CPU benchmarks and print their tables (10 minutes, on a quiet machine)
	@for name in step tracking qc matrix startup summarize subset; do \
		$(BIN)/python benchmarks/$$name.py || exit 1; done

study: $(READY) ## run every method, control and precision with five seeds; write docs/study.md (an hour or two)
	@$(BIN)/python benchmarks/study.py

docs: $(READY) ## write the tables of docs/options.md from the parsers
	@$(BIN)/python docs/options.py

picture: ## take docs/report.png of REPORT, a comparison.html (needs Chromium)
	@chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1200,1450 \
		--screenshot=docs/report.png $(abspath $(REPORT))

clean: ## remove the environment, runs and drawn data
	rm -rf $(VENV) runs datasets/shapes .pytest_cache .mypy_cache .ruff_cache
