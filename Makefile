# Everything here runs in its own .venv, installed from constraints.txt; nothing else on the machine is touched.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.installed

.PHONY: demo test check clean

demo: $(READY)  ## quantize the bundled reader to 4 bits, export it, read documents, judge the distance to FP16
	rm -rf demo && mkdir demo
	$(BIN)/python -m quantize --bits 4 --output demo/reader-w4
	cp -r calib_data/reader demo/reader-fp16
	$(BIN)/python -m export --model demo/reader-w4
	$(BIN)/python -m export --model demo/reader-fp16
	$(BIN)/python -m bench.demo --model demo/reader-w4 --baseline demo/reader-fp16 --picture demo/result.png
	$(BIN)/python -m runtime compare --model demo/reader-w4 --baseline demo/reader-fp16 --count 40 --max-drop-anls 0.05 --output demo/report

test: $(READY)  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(READY)  ## lint, formatting, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv demo build *.egg-info
