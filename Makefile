# `make demo` and `make test` need Python >= 3.11, git and make; `setup` does the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-sgi demo-crossmodal demo-zero-shot demo-dvf demo-agents \
    demo-rewards test test-slow test-docs golden lint docs setup clean

demo: setup
	bash launch/demo.sh $(BIN)/python

demo-sgi: setup
	bash launch/demo_sgi.sh $(BIN)/python

demo-crossmodal: setup
	bash launch/demo_crossmodal.sh $(BIN)/python

demo-zero-shot: setup
	bash launch/demo_zero_shot.sh $(BIN)/python

demo-dvf: setup
	bash launch/demo_dvf.sh $(BIN)/python

demo-agents: setup
	bash launch/demo_agents.sh $(BIN)/python

demo-rewards: setup
	bash launch/demo_rewards.sh $(BIN)/python

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-docs: setup
	$(BIN)/python -m pytest -m docs -n 2

golden: setup
	$(BIN)/python -m tests.golden

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck -x launch/*.sh
	$(BIN)/python -m mypy

docs: setup
	$(BIN)/sphinx-build -q -W -b html docs build/docs
	@echo "docs: build/docs/index.html"

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is required: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "Python cannot create environments: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) build runs
