# make demo    the whole path on this Python's own documentation     make test   everything CI runs
# make check   formatting, types and the fast tests                   make clean  forget the demo

PYTHON ?=
BIN = .venv/bin

.PHONY: demo test check clean
.NOTPARALLEL:

demo: .venv/ready
	@$(BIN)/zerogr demo --folder demo

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto --maxprocesses 4 -m "not model and not ray and not vllm and not slow and not gpu"

test: check
	$(BIN)/pytest -m "(model or ray or vllm or slow) and not gpu" --durations=10

.venv/ready: pyproject.toml infra/setup.sh
	@PYTHON="$(PYTHON)" infra/setup.sh

clean:
	rm -rf demo .cache
