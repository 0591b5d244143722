# make quickstart   sets up, makes data, trains, evaluates and serves: the whole pipeline on this machine
# make test         sets up, then lints, checks the format and runs all tests but the longest
# make test-slow    runs the longest tests, among them a training struck in every way it can die or hang
# make seeds        runs the quickstart's training and evaluation with five seeds and prints a table
.PHONY: setup quickstart test test-slow lint seeds clean

VENV := .venv
PYTHON := $(VENV)/bin/python
# The newest supported version on this machine; PYTHON3=/path/to/python3.12 chooses another.
PYTHON3 ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON3)" || { echo "Python 3.11 or 3.12 with venv is needed; set PYTHON3=/path/to/python3.12" >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON3): about 6 GB, 2 to 5 minutes, once"
	$(PYTHON3) -m venv --clear $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[data,test]'
	@touch $@

quickstart: setup
	$(PYTHON) -m ray_jobs.quickstart ray_jobs/configs/quickstart.yaml

seeds: setup
	$(PYTHON) -m ray_jobs.seeds ray_jobs/configs/quickstart.yaml

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: lint
	$(PYTHON) -m pytest

test-slow: setup
	$(PYTHON) -m pytest -m slow

clean:
	rm -rf $(VENV) runs data *.egg-info
