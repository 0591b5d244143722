# make setup TORCH=cpu   installs the packages without CUDA, 2 GB rather than 6; torch comes from PyTorch's own index
# make quickstart   sets up, makes data, trains, evaluates and serves: the whole pipeline on this machine
# make test         sets up, then lints, checks the format and runs all tests but the longest
# make test-slow    runs the longest tests, among them a training struck in every way it can die or hang
# make seeds        runs the quickstart's training and evaluation with five seeds and prints a table
# make sbom         writes sbom.json: the installed packages, as CycloneDX
# make licences     writes licences.md: the licence of each package
# make lock         renews the hashes in cluster/requirements, after a change to pyproject.toml or constraints.txt; minutes
.PHONY: setup quickstart test test-slow lint seeds sbom licences lock clean

VENV := .venv
PYTHON := $(VENV)/bin/python
# A supported version on this machine; PYTHON3=/path/to/python3.11 chooses another.
PYTHON3 ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)

# TORCH=cpu installs torch without CUDA.
TORCH ?= cuda
LOCKS := cluster/requirements
PIP := $(PYTHON) -m pip --disable-pip-version-check
# Tools that look at the packages from outside, with packages of their own.
TOOLS := .tools

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(LOCKS)/run.txt $(LOCKS)/dev.txt $(LOCKS)/torch_$(TORCH).txt
	@test -n "$(PYTHON3)" || { echo "Python 3.11 to 3.13 with venv is needed; set PYTHON3=/path/to/python3.12" >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON3): about $(if $(filter cpu,$(TORCH)),2,6) GB, 2 to 5 minutes, once"
	$(PYTHON3) -m venv --clear $(VENV)
ifeq ($(TORCH),cpu)
	$(PIP) install --quiet --no-deps --index-url https://download.pytorch.org/whl/cpu -r $(LOCKS)/torch_cpu.txt
	$(PIP) install --quiet --no-deps --require-hashes -r $(LOCKS)/run.txt -r $(LOCKS)/dev.txt
else
	$(PIP) install --quiet --no-deps --require-hashes -r $(LOCKS)/torch_cuda.txt -r $(LOCKS)/run.txt -r $(LOCKS)/dev.txt
endif
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PIP) check
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

$(TOOLS)/installed: Makefile
	$(PYTHON3) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-licenses==5.5.5 pip-tools==7.6.2
	@touch $@

sbom: setup $(TOOLS)/installed
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file sbom.json $(PYTHON)

licences: setup $(TOOLS)/installed
	$(TOOLS)/bin/pip-licenses --python $(PYTHON) --from mixed --order license --format markdown --output-file licences.md

# The lock of everything is parted: torch and CUDA, what else the product needs, what tests need beside it.
COMPILE := $(TOOLS)/bin/pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-options --constraint constraints.txt
CUDA := (torch|torchaudio|triton|nvidia-[a-z0-9-]*|cuda-[a-z]*)==
lock: $(TOOLS)/installed
	$(COMPILE) --extra s3 --output-file $(TOOLS)/product.txt pyproject.toml
	$(COMPILE) --all-extras --output-file $(TOOLS)/all.txt pyproject.toml
	(sed -n 1p $(LOCKS)/run.txt; awk '/^[a-z]/ {keep = !/^$(CUDA)/} keep' $(TOOLS)/product.txt) > $(TOOLS)/run.txt
	(sed -n 1p $(LOCKS)/torch_cuda.txt; awk '/^[a-z]/ {keep = /^$(CUDA)/} keep' $(TOOLS)/product.txt) > $(TOOLS)/torch_cuda.txt
	(sed -n 1p $(LOCKS)/dev.txt; awk 'FNR == NR {seen[$$1]; next} /^[a-z]/ {keep = !($$1 in seen)} keep' \
		$(TOOLS)/product.txt $(TOOLS)/all.txt) > $(TOOLS)/dev.txt
	mv $(TOOLS)/run.txt $(TOOLS)/torch_cuda.txt $(TOOLS)/dev.txt $(LOCKS)/

clean:
	rm -rf $(VENV) $(TOOLS) runs data *.egg-info sbom.json licences.md
