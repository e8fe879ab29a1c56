# Everything a contributor needs; each target makes the environment it runs in.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Fixed once, so that a target that needs the demo finds the same run.
DEMO_RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: install demo test lint format records events history screenshots overhead clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	touch $@

# What the demo needs; an environment that is there already is left as it is.
$(BIN)/sapflow:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,tui]'

demo: $(BIN)/sapflow  ## a healthy, a vanishing and an exploding seed on real digits; the latter two are pruned
	$(BIN)/sapflow train --plant 1:mid:sigmoid --plant 2:mid:explosive --run-dir $(DEMO_RUN)

test: install  ## three processes, a file of tests in each: two cores, and what waits for others
	$(BIN)/python -m pytest -n 3 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

history: install  ## docs/history.md: what its commands print now
	$(BIN)/python scripts/sessions.py docs/history.md

events: install  ## docs/events.md from the types of the events
	$(BIN)/python scripts/event_page.py

records: install  ## docs/records/ from the records and from a verification that runs now
	$(BIN)/python scripts/record_pages.py

screenshots: install demo  ## the pictures in docs/, drawn by Sanctum itself: the demo as it stands after epoch 5, a watched run
	$(BIN)/python scripts/screenshots.py $(DEMO_RUN) docs --epoch 5
	folder=$$(mktemp -d) && \
	(cd $$folder && $(abspath $(BIN))/python $(abspath examples/planted_nan.py)) && \
	$(BIN)/python scripts/screenshots.py $$folder/runs/planted-nan docs/watched --only overview detail && rm -rf $$folder
	$(BIN)/python scripts/report_screenshots.py $(DEMO_RUN) docs/report

overhead: install  ## docs/performance.md: what watching costs beside other ways, in about half an hour
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	$(BIN)/python benchmarks/overhead.py --write docs/performance.md

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
