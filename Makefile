# `make demo` sets up .venv and draws the first pictures, `make test` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo install docs test lint slow browser clean

demo: $(VENV)/.installed
	$(BIN)/mvader demo --out outputs/demo

install: $(VENV)/.installed

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n auto --dist loadfile

slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html is the first page; its search needs a server: $(BIN)/mkdocs serve"

# Chromium of the system, which every test_browser.py drives; without it these tests are left out.
browser:
	apt-get update -qq && apt-get install -y -q --no-install-recommends chromium

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mvader: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	@echo "installing what the site needs ..."
	$(PIP) -e '.[docs]'
	@touch $@

# clip-anytorch and pytorch-fid hold what the parity tests compare with; their own requirements
# (torchvision among them) would break the CPU build of torch.
$(VENV)/.test: $(VENV)/.installed
	@echo "installing what the tests need ..."
	$(PIP) -e '.[test]'
	$(PIP) --no-deps clip-anytorch==2.6.0 pytorch-fid==0.3.0
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info outputs
