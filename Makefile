# Two commands do everything, set-up included:  make demo   make test
# TORCH is the torch that is installed, e.g. a CPU build: make TORCH="torch --index-url https://download.pytorch.org/whl/cpu" test
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
OUTPUT ?= runs/demo
# In order of value; what has no data in $$ZEROSUM_EXT_DATA is skipped.
EXPERIMENTS ?= $(patsubst %,benchmarks/paper/%.toml,synthetic synthetic4 ml-1m-mf-leak ml-1m-mf-half-leak ml-1m-mf ml-1m-mf-sweeps-leak ml-1m-frontier ml-1m-ncf-leak \
  ml-1m-ngcf-leak ml-1m-lightgcn-leak ml-1m-released-ngcf-leak ml-1m-released-lightgcn-leak ciao-mf-leak ciao-mf lastfm-hetrec-mf amazon-beauty-mf gowalla-mf yelp2018-mf \
  gowalla-lightgcn-split-mf yelp2018-lightgcn-split-mf gowalla-lightgcn yelp2018-lightgcn goodreads-comics-mf)
# Every method tuned in the same way, smallest data first: accuracy against bias.
TUNED ?= $(patsubst %,benchmarks/paper/tuned-%.toml,lastfm lastfm-balanced ciao beauty ml-1m gowalla yelp2018 gowalla-random yelp2018-random ml-1m-lightgcn gowalla-lightgcn)
CXX_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cuh' 'csrc/*.cu' 'tests/*.h' 'tests/*.cpp' 'tests/*.cuh')
SOURCES = setup.py pyproject.toml $(shell find csrc zerosum_ext -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.py' \) 2>/dev/null)

.PHONY: adapters fuzz mutate reproduce tuned demo test bench lint format types sanitize cuda-check wheel sdist installs docs linkcheck notebooks nightly release clean help

help:
	@echo "make demo        train BPR, Pos2Neg2 and Zerosum on the paper's synthetic data; figures in $(OUTPUT)"
	@echo "make test        the whole test suite"
	@echo "make tuned       every method tuned alike on six data sets (hours; resumable), report in benchmarks/paper/TUNED.md"
	@echo "make reproduce   the paper's experiments (hours; resumable), report in benchmarks/paper/REPORT.md"
	@echo "make bench       the sampling benchmark (minutes)"
	@echo "make lint types  ruff, clang-format, the rule of imports, mypy"
	@echo "make sanitize    the host runner for CUDA kernels under ASan, UBSan and TSan"
	@echo "make cuda-check  compiles the CUDA kernels for every architecture: registers, spills, occupancy (needs nvcc)"
	@echo "make fuzz        hostile calls of every compiled op, 10 000 random ones each: none may end the process"
	@echo "make adapters    the adapters for other libraries with the real packages, in a virtual environment of its own"
	@echo "make mutate      makes small mistakes in the sources, which the tests must notice (hours)"
	@echo "make wheel       one wheel for Python >= 3.10 and torch >= 2.11, in dist/"
	@echo "make sdist       the source distribution, in dist/"
	@echo "make docs        the documentation as a web site, in docs/_build/html"
	@echo "make notebooks   executes the tutorials, and writes them to docs/tutorials"
	@echo "make installs    every way to install, each in a fresh environment"
	@echo "make linkcheck   asks the web whether the links of the documentation lead somewhere"
	@echo "make nightly     sdist, installs, notebooks, docs, linkcheck and adapters"
	@echo "make release     checks what a release needs, and prints the text of its tag"

# ---- set-up: a virtual environment, torch, the package with its compiled part
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install -q --upgrade "pip<27" "setuptools>=77" wheel ninja
	touch $@

$(VENV)/.torch: $(VENV)/.created
	$(RUN)/python -m pip install -q $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	MAX_JOBS=$(JOBS) $(RUN)/python -m pip install -q --no-build-isolation ".[test]"
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(RUN)/python -m pip install -q ".[dev]" --no-build-isolation
	touch $@

# Tests and the demo run from a folder that holds no zerosum_ext/, so that they meet the installed package.
demo: $(VENV)/.installed
	$(RUN)/zerosum-ext demo --output $(OUTPUT)

# A process for each core, with one thread each; tests/conftest.py says which tests stay together. pytest-xdist would
# wait for ever after a process was lost, so none is replaced. What takes long is left to test-slow.
PYTEST = $(RUN)/pytest -q -n $(JOBS) --dist loadgroup --max-worker-restart 0 --timeout 600 --timeout-method thread
test: $(VENV)/.installed
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed
	$(PYTEST) -m slow $(PYTEST_ARGS)

# Data are found in the folder that ZEROSUM_EXT_DATA names. What is finished is not run again.
reproduce: $(VENV)/.installed
	$(RUN)/zerosum-ext reproduce --experiment $(EXPERIMENTS) --jobs $(JOBS) --output benchmarks/paper/results --report benchmarks/paper/REPORT.md

tuned: $(VENV)/.installed
	$(RUN)/zerosum-ext reproduce --experiment $(TUNED) --jobs 1 --output benchmarks/paper/results --report benchmarks/paper/TUNED.md --findings benchmarks/paper/tuned-findings.md --renew benchmarks/paper/FINDINGS.md benchmarks/paper/REPORT.md

bench: $(VENV)/.installed
	$(RUN)/python benchmarks/bench_sampling.py

# Hostile calls of every compiled op, in children: one argument damaged at a time, then at random.
fuzz: $(VENV)/.installed
	$(RUN)/python tests/fuzz/fuzz.py --mode systematic
	$(RUN)/python tests/fuzz/fuzz.py --mode random --examples 10000 $(FUZZ_ARGS)

# The packages of others want their own versions of what they depend on. implicit's own tests are those of its sources.
ADAPTERS ?= .venv-adapters
$(ADAPTERS)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(ADAPTERS)
	$(ADAPTERS)/bin/python -m pip install -q --upgrade "pip<27" "setuptools>=77" wheel ninja
	$(ADAPTERS)/bin/python -m pip install -q $(TORCH)
	MAX_JOBS=$(JOBS) $(ADAPTERS)/bin/python -m pip install -q --no-build-isolation ".[test,adapters]"
	rm -rf $(ADAPTERS)/implicit && mkdir -p $(ADAPTERS)/implicit
	$(ADAPTERS)/bin/python -m pip download -q --no-deps --no-binary implicit -d $(ADAPTERS)/implicit implicit
	tar xzf $(ADAPTERS)/implicit/*.tar.gz -C $(ADAPTERS)/implicit --strip-components 1
	touch $@

adapters: $(ADAPTERS)/.installed
	IMPLICIT_TESTS=$(abspath $(ADAPTERS))/implicit/tests $(ADAPTERS)/bin/pytest -q --timeout 600 tests/adapters $(PYTEST_ARGS)

# Small mistakes in the sources, each of which its tests must notice; what is known of one is not tried again.
mutate: $(VENV)/.dev
	$(RUN)/python tools/mutate.py $(MUTATE_ARGS)

sanitize: $(VENV)/.installed
	$(RUN)/python tests/cuda_on_host/sanitize.py $(SANITIZE_ARGS)

cuda-check: $(VENV)/.installed
	$(RUN)/python tools/cuda_check.py --jobs $(JOBS) $(CUDA_CHECK_ARGS)

lint: $(VENV)/.dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(RUN)/lint-imports
	$(RUN)/python tools/generate_losses.py --check

format: $(VENV)/.dev
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .
	$(RUN)/clang-format -i $(CXX_FILES)

types: $(VENV)/.dev
	$(RUN)/mypy

wheel: $(VENV)/.torch
	MAX_JOBS=$(JOBS) $(RUN)/python -m pip wheel -q --no-build-isolation --no-deps -w dist .

sdist: $(VENV)/.torch
	rm -rf dist/*.tar.gz
	ZEROSUM_EXT_PURE=1 $(RUN)/python setup.py -q sdist -d dist

# What a source distribution holds is enough to build from: where no git is, a wheel is built of it and repaired as the
# published one is. Then each way to install is tried in an environment of its own. WAYS names some of them.
installs: sdist
	MAX_JOBS=$(JOBS) $(RUN)/python tools/try_installs.py dist/*.tar.gz --torch "$(TORCH)" $(if $(WAYS),--ways $(WAYS)) $(INSTALLS_ARGS)

$(VENV)/.docs: $(VENV)/.installed
	$(RUN)/python -m pip install -q --no-build-isolation ".[docs,notebooks]"
	touch $@

# Every warning is an error: a broken link, a name that does not exist, an example that does not do what it shows.
docs: $(VENV)/.docs
	$(RUN)/python -m sphinx -q -W --keep-going -j auto -b html docs docs/_build/html
	$(RUN)/python -m sphinx -q -W --keep-going -b doctest docs docs/_build/doctest

# Links to other sites. Where none answers, as on a machine without a network, that is said and nothing is checked.
linkcheck: $(VENV)/.docs
	$(RUN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck

notebooks: $(VENV)/.docs
	$(RUN)/python tools/notebooks.py

nightly: sdist installs notebooks docs linkcheck adapters

release: $(VENV)/.dev
	$(RUN)/python tools/release.py

clean:
	rm -rf build dist docs/_build *.egg-info $(VENV) $(ADAPTERS) zerosum_ext/*.so
