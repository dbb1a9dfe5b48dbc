# make setup | demo | test | soak | card | lint | bench: each sets itself up on a bare machine (Python 3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# one retry: the wheel index in requirements.txt is asked for every package, and where it is out of reach five retries take minutes
PIP := --quiet --disable-pip-version-check --retries 1
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test soak card lint fmt bench browser clean

setup: $(VENV)/.dev

$(VENV)/.base: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP) -r requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install $(PIP) -e ".[dev]"
	touch $@

demo: $(VENV)/.base
	$(BIN)/python app.py

# The browser tests need a chromium; as root on Debian it is installed, otherwise they are skipped and say so.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } ; } || echo "no chromium: browser tests will be skipped"

test: setup browser
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The round trips through every fault of the way, and visitors by the dozen; one after the other, because load is measured.
soak: setup browser
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m soak -n 0

card: setup
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/embed.py

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

fmt: setup
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: setup
	$(BIN)/python scripts/benchmark.py --quick --json artifacts/benchmark.json

clean:
	rm -rf $(VENV) build dist *.egg-info
