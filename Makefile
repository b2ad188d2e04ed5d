# make demo    the whole path on this Python's own documentation     make test   everything CI runs
# make check   formatting, types and the fast tests                   make clean  forget the demo
# make serve-demo   search the demo's index on http://127.0.0.1:8000     make test-faults   faults: two hours

PYTHON ?=
BIN = .venv/bin

.PHONY: demo test check test-faults serve-demo clean
.NOTPARALLEL:

demo: .venv/ready
	@$(BIN)/zerogr demo --folder demo

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto --maxprocesses 4 -p no:schemathesis -p no:anyio -m "not model and not ray and not vllm and not slow and not gpu and not fault"

test: check
	@infra/browser.sh
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "(model or ray or vllm or slow) and not gpu and not fault" --durations=20

test-faults: .venv/ready
	$(BIN)/pytest -m fault --durations=0 -rs

serve-demo: .venv/ready
	@test -d demo/index || $(BIN)/zerogr demo --folder demo
	@$(BIN)/zerogr serve docs=demo/index

.venv/ready: pyproject.toml infra/setup.sh
	@PYTHON="$(PYTHON)" infra/setup.sh

clean:
	rm -rf demo .cache
