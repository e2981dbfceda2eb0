# Everything here runs in its own .venv, installed from constraints.txt; nothing else on the machine is touched.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check browser clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## quantize the bundled reader to 4 bits, export it, read documents, compare with FP16
	rm -rf demo && mkdir demo
	$(BIN)/python -m quantize --bits 4 --output demo/reader-w4
	cp -r calib_data/reader demo/reader-fp16
	$(BIN)/python -m export --model demo/reader-w4
	$(BIN)/python -m export --model demo/reader-fp16
	$(BIN)/python -m bench.demo --model demo/reader-w4 --baseline demo/reader-fp16 --output demo
	$(BIN)/python -m runtime compare --model demo/reader-w4 --baseline demo/reader-fp16 --count 40 --max-drop-anls 0.05 --output demo/report

test: $(READY)  ## run all tests; those in a browser are skipped without Chromium
	$(PYTEST)

test-fast: $(READY)  ## run the tests not marked slow, up to the first failure: for the edit loop
	$(PYTEST) -m "not slow" --maxfail=1

check: $(READY)  ## check lint, formatting, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

browser: $(READY)  ## install Chromium for the browser tests; system libraries only as root
	$(BIN)/python -m playwright install $$([ "$$(id -u)" != 0 ] || echo --with-deps) chromium

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:  ## remove .venv, the demo and build folders
	rm -rf .venv demo build *.egg-info
