# make demo and make test set everything up by themselves; make help lists the rest.
#   make demo PYTHON=python3.12             another Python
#   make demo ARGS="--data coupons"         arguments for the command (of demo) or for pytest (of test)
#   make .venv TORCH_INDEX=                 the PyTorch of the package index, whatever this machine has
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# One thread each: the tests run side by side, and threads that wait for one another would be slower.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# On Linux the default PyTorch brings gigabytes of CUDA. Without an NVIDIA driver the CPU build does the same work.
TORCH_INDEX ?= $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 && echo https://download.pytorch.org/whl/cpu)

.PHONY: help .venv demo test test-all bench lab preview slides exercises grade export docs clean
.DEFAULT_GOAL := help

help: ## list these targets
	@echo "multiscene_rec: what make can do here"
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.venv: $(VENV)/.ready ## the environment in .venv, with all that notebooks and tests need

$(VENV)/.ready: setup.py settings.ini constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "multiscene_rec needs Python 3.11 or newer; \"$(PYTHON)\" is $$($(PYTHON) --version 2>&1 || echo not there)."; \
	  echo "Name another one: make $(or $(MAKECMDGOALS),.venv) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "\"$(PYTHON)\" cannot make environments: its venv module is missing."; \
	  echo "On Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "Setting up $(VENV): a few minutes and about 2 GB, once."
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --timeout 20 --retries 1 --no-compile --no-deps \
	    --index-url $(TORCH_INDEX) "$$(grep '^torch==' constraints.txt)" \
	  || echo "No CPU build of PyTorch from $(TORCH_INDEX): taking the default one."; fi
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Ready: $$($(BIN)/python -c 'import torch; print("PyTorch", torch.__version__)') in $(VENV)."

demo: $(VENV)/.ready ## train, compare and recommend on the toy mall (ARGS="--data coupons" for the real data)
	@$(BIN)/multiscene-rec demo $(if $(findstring --data,$(ARGS)),,--data mall) $(ARGS)

test: $(VENV)/.ready ## rules, second opinions and all notebooks, two at a time (under 20 minutes)
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(VENV)/.ready ## test, with the slow tests and the full tables of the notebooks
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[export,privacy]'
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal --slow $(ARGS)

bench: $(VENV)/.ready ## what it costs, as ratios to the bare limit, into bench/results/ (about 25 minutes; ARGS=--quick for a minute)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	for name in rank train preprocess notebooks; do $(ONE_THREAD) $(BIN)/python -m bench.$$name $(ARGS) || exit 1; done

lab: $(VENV)/.ready ## JupyterLab at the home page; make exercises puts the exercises beside it (ARGS=--no-browser)
	PYTHONPATH="$(CURDIR)/exercises:$$PYTHONPATH" PATH="$(BIN):$$PATH" $(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb $(ARGS)

preview: $(VENV)/.ready ## all pages as HTML in _preview/, without Quarto (ARGS="05_fusion --open")
	PATH="$(BIN):$$PATH" $(BIN)/python -m tools.preview $(ARGS)

slides: $(VENV)/.ready ## a lecture per lesson in _slides/, by reveal.js, without Quarto (ARGS="05_fusion --open")
	PATH="$(BIN):$$PATH" $(BIN)/python -m tools.slides $(ARGS)

exercises: $(VENV)/.ready ## student copies of all exercises in exercises/release/
	@PATH="$(BIN):$$PATH" $(BIN)/python -m tools.exercises build

grade: $(VENV)/.ready ## marks of SUBMISSIONS=folder (folder/student/exercise/exercise.ipynb) as folder/marks.csv
	@[ -n "$(SUBMISSIONS)" ] || { echo "Say which folder: make grade SUBMISSIONS=exercises/submitted"; exit 1; }
	@$(ONE_THREAD) $(BIN)/python -m tools.exercises grade "$(SUBMISSIONS)" $(ARGS)

export: $(VENV)/.ready ## after an edit in nbs/: modules, clean notebooks, made pages, README.md, sidebar
	@$(BIN)/python -m tools.export

docs: $(VENV)/.ready ## build the site into _docs/ (needs Quarto; without it, this says how to get it)
	@PYTHONPATH=. $(BIN)/python -m tools.site

clean: ## remove what was built (rm -r .venv removes the environment too)
	rm -rf build dist *.egg-info _docs _proc _preview _slides nbs/nbdev.yml nbs/sidebar.yml .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
