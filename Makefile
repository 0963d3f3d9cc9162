# Two commands matter: `make run` and `make test`. Both start from a fresh clone, need no root and
# leave everything in .venv/ and build/; what the broker keeps is in data/.

PYTHON ?= python3
JOBS ?= logical
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml LICENSE $(shell find mqttd device_sim plugins -name '*.py' -o -name '*.sql')
STATIC := mqttd device_sim plugins tools bench fuzz tests
# One run must not fill the other's half-built directories.
.NOTPARALLEL:
.DELETE_ON_ERROR:

.PHONY: help run test suite lint format types conformance check-conformance bench fuzz coverage clean

help:
	@echo 'make run          start the broker (ARGS="-c config/dev.yaml")'
	@echo 'make test         everything: lint, types, conformance, the suite on both builds and both loops, fuzzing'
	@echo 'make suite        the test suite once, on the source tree (ARGS="tests/core -k trie")'
	@echo 'make lint         ruff, ruff format, mypy --strict'
	@echo 'make format       let ruff correct what it can'
	@echo 'make conformance  write docs/conformance.md from the tags in code and tests'
	@echo 'make coverage     branches that the suite reaches, on the source tree'
	@echo 'make bench        compare with other brokers (ARGS="--help")'
	@echo 'make fuzz         random bytes into every entry point, for a bounded time'

# The environment

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mqttd needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Try: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "On Debian the module venv comes with: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.run: pyproject.toml tools/requirements.py | $(BIN)/python
	$(BIN)/python tools/requirements.py build run > $(VENV)/requirements-run.txt
	$(BIN)/pip install --quiet --requirement $(VENV)/requirements-run.txt
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python tools/requirements.py test dev > $(VENV)/requirements-test.txt
	$(BIN)/pip install --quiet --requirement $(VENV)/requirements-test.txt
	@touch $@

# The two builds: one wheel each, as pip would make it, unpacked beside the source tree. Old
# build/lib* would bring back modules that were deleted since.

define wheel
	@echo "building the $(1) wheel; the log is build/$(1).log"
	@rm -rf build/lib* build/bdist* build/$(1) build/$(1)-wheel
	@mkdir -p build/$(1)-wheel
	@$(2) $(BIN)/python -c 'from setuptools.build_meta import build_wheel; build_wheel("build/$(1)-wheel")' \
	  > build/$(1).log || { tail -n 40 build/$(1).log; exit 1; }
	@grep ': error: ' build/$(1).log || true
	@$(BIN)/python -m zipfile --extract build/$(1)-wheel/mqttd-*.whl build/$(1)
	@touch $@
endef

build/compiled/.done: $(SOURCES) $(VENV)/.run
	$(call wheel,compiled,)

build/pure/.done: $(SOURCES) $(VENV)/.run
	$(call wheel,pure,MQTTD_PURE=1)

$(VENV)/.installed: build/compiled/.done
	$(BIN)/pip install --quiet --no-deps --force-reinstall build/compiled-wheel/mqttd-*.whl
	@touch $@

run: $(VENV)/.installed
	@$(BIN)/mqttd --version
	@exec $(BIN)/mqttd run $(ARGS)

# What is checked

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy --strict $(STATIC)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

conformance: $(VENV)/.run
	$(BIN)/python tools/conformance.py

check-conformance: $(VENV)/.run
	$(BIN)/python tools/conformance.py --check

suite: $(VENV)/.test
	$(BIN)/pytest $(ARGS)

# tests/conftest.py puts the build on sys.path before anything is imported, and fails when the suite
# would run on anything else. Without a C compiler there is no compiled build to test.
define pytest
	@if [ $(1) = compiled ] && ! ls build/compiled/mqttd/core/*.so >/dev/null 2>&1; then \
	  echo "== the compiled build is missing (see build/compiled.log): skipped on $(2)"; \
	else \
	  echo "== the $(1) build on $(2)$(if $(3), ($(3)),)"; \
	  MQTTD_BUILD=build/$(1) MQTTD_LOOP=$(2) $(BIN)/pytest -n $(JOBS) --dist loadgroup --timeout=120 $(3); \
	fi
endef

test: lint check-conformance build/compiled/.done build/pure/.done
	$(call pytest,compiled,uvloop)
	$(call pytest,compiled,asyncio,-m "loop and not once")
	$(call pytest,pure,asyncio,-m "not once")
	@echo "== the fuzz targets"
	$(BIN)/python -m fuzz --seconds 28

coverage: $(VENV)/.test
	$(BIN)/coverage run --branch --source=mqttd,device_sim,mqttd_plugins -m pytest $(ARGS)
	$(BIN)/coverage report --skip-covered --show-missing

bench: $(VENV)/.test
	$(BIN)/python -m bench.macro $(ARGS)

fuzz: $(VENV)/.test
	$(BIN)/python -m fuzz $(ARGS)

clean:
	rm -rf build .venv mqttd.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
