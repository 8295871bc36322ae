# make demo: environment, then the digits table under every head.  make test: environment, then the default tests.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
# Tests start a hundred processes: each compiles the package anew where Python may keep no bytecode.
export PYTHONDONTWRITEBYTECODE =

CORE = $(addprefix tests/models/test_,heads.py matrices.py layers.py backbones.py) \
  $(addprefix tests/training/test_,optim.py loop.py resume.py)
TEST = $(RUN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-newest lint install full clean

demo: $(VENV)/.base
	$(RUN)/jaxclf table experiments/digits_heads.py --workdir runs/digits_heads --jobs 2

test: $(VENV)/.dev
	$(TEST)

test-slow: $(VENV)/.dev
	$(TEST) -m slow --durations=10

# The core under the newest JAX, which needs a newer Python: make test-newest PYTHON=python3.13 VENV=.venv313
test-newest: $(VENV)/.dev
	$(TEST) $(CORE)

lint: $(VENV)/.dev
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/pyright

# The environment of the tests, without the other extras.
install: $(VENV)/.dev

# Everything: with TensorFlow to prepare TFDS sets, PyTorch to compare with, Ray. CI runs the tests with these.
full: $(VENV)/.dev $(VENV)/.full

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "jaxclf needs Python 3.11 to 3.13; $(PYTHON) is %d.%d. Give another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(VENV)/bin/python pyproject.toml
	$(RUN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(RUN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/.full: $(VENV)/.dev
	$(RUN)/python -m pip install -q --disable-pip-version-check -e '.[parity]'
	$(RUN)/python -m pip install -q --disable-pip-version-check -e '.[dev,prepare,fast,ray,tensorboard,parity,gcs,s3,emulators]'
	$(RUN)/python -m pip install -q --disable-pip-version-check --no-deps torchvision==0.28.0
	@touch $@

clean:
	rm -rf $(VENV) .venv313 build runs
