# The commands of the book. `make book` and `make test` need Python 3.11 or newer and make, nothing else.
#   make book [PROFILE=embedded|ci|gpt2|qwen] [MODEL=a name, a folder or a hub id] [TORCH=cpu|cuda]
#   make check | test | test-rare
#   make run CHAPTER=induction_heads_notebook PARAMS="n_sequences=8 seed=1"
#   make grid MODELS="a b" CHAPTERS="induction_heads_notebook" SEEDS="0 1 2" [PROFILE=ci]
#   make new-chapter NAME=day15_my_question
#   make lab | record | bench | pair | lint | environment.yml | clean

VENV_PYTHON := .venv/bin/python
# With an environment of your own (conda, say): make book PY=python
PY ?= $(VENV_PYTHON)
PROFILE ?= embedded
MODEL ?=
TORCH ?=
CHAPTER ?=
NAME ?=
PARAMS ?=
TESTS ?=
# Where Linux finds torch without CUDA, when the package index at hand has no such build.
export TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# The newest Python for which all packages come as wheels; else python3, which then says what is wrong.
SYSTEM_PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; done; echo python3)

.PHONY: book check test test-rare run grid new-chapter lab record bench pair lint clean environment environment.yml model
.DEFAULT_GOAL := book

book: environment model
	@$(PY) -m workflow.book build "$(PROFILE)$(if $(MODEL),@$(MODEL))"

# Two files of tests at a time, each on one core: most of them wait, or are too small for two. The longest come first.
PYTEST = OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# For the inner loop, under two minutes: style, types, and the tests that need no site, no browser and no kernel.
check: lint model
	@$(PYTEST) -q -m "not site and not slow and not rare" $(TESTS)

# Everything over a built site, under five minutes.
test: environment model
	@test -f _build/html/index.html || $(PY) -m workflow.book build ci
	@$(PYTEST) -m "not rare" $(TESTS)

# What `make test` leaves out, which CI runs besides: chapters on further families, all API pages, pictures of pages.
test-rare: environment model
	@BOOK_PICTURES=1 $(PYTEST) -m rare

run: environment model
	@$(PY) -m workflow.book run "$(CHAPTER)" "$(PARAMS)"

# Every chapter named, or all, on every model with every seed: a table of what is done, and all claims in one file.
grid: environment model
	@$(PY) -m workflow.grid $(PROFILE) $(if $(MODELS),--models $(MODELS)) \
	  $(if $(CHAPTERS),--chapters $(CHAPTERS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(EXECUTOR),--executor $(EXECUTOR))

# A chapter that runs as it stands, to be filled: the pair, its sizes, its line in _toc.yml.
new-chapter: environment
	@$(PY) -m workflow.book new-chapter "$(NAME)"

lab: environment
	@BOOK_LIVE=1 $(PY) -m jupyterlab book

record: environment model
	@$(PY) -m workflow.book record "$(patsubst embedded,record,$(PROFILE))$(if $(MODEL),@$(MODEL))"

# Ratios to other tools, side by side; on two cores about half an hour.
bench: environment model
	@$(PY) -m benchmarks

# Write each .ipynb anew from its .py, stripped.
pair: environment
	@$(PY) -m workflow.book pair

# Style, types, and whether what is imported is declared: everything with all extras, the packages with none.
lint: environment
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .
	@$(PY) -m pyright --pythonpath "$$(command -v $(PY))"
	@$(PY) -m deptry .
	@$(PY) -m deptry helpers studies --optional-dependencies-dev-groups book,dev

clean:
	rm -rf _build .snakemake

environment:
ifeq ($(PY),$(VENV_PYTHON))
	@command -v $(SYSTEM_PYTHON) >/dev/null || { echo "error: there is no python3 here: Python 3.11 or newer is needed" >&2; exit 1; }
	@$(SYSTEM_PYTHON) workflow/set_up.py $(TORCH)
endif

# conda's list, from pyproject.toml
environment.yml: environment
	@$(PY) -m workflow.environment

model: environment
	@$(PY) -m helpers.models fetch smollm2-135m-instruct-q4 >/dev/null
