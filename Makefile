# Everything that a fresh clone needs: `make demo` and `make test` set up their own environment in .venv.
#   make demo         an invented cohort is segmented from a few labels, and a report is written
#   make test         lint, type check and tests
#   make test-slicer  the tests of the panel in 3D Slicer alone
#   make test-long    the tests that train for minutes
#   make test-lowest  the tests again, with the oldest version of each dependency that pyproject.toml allows
# Another interpreter: make PYTHON=/path/to/python3.12 test

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slicer test-long test-lowest screenshots lint format setup clean

PYTHON ?=
PYTEST := python -m pytest -n auto --dist worksteal
STAMP := .venv/.installed
LOWEST_STAMP := .venv-lowest/.installed
SLICER_STAMP := .venv-slicer/.installed

# Prints the first Python from 3.11 to 3.14 that runs, or says what is missing.
define find_python
	chosen=""; \
	for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; \
	  then chosen="$$candidate"; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo "SFR needs Python 3.11 to 3.14, and none was found on this machine." >&2; \
	  echo "Install it (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python)," >&2; \
	  echo "or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; \
	fi
endef

# $(1): folder of the environment.  $(2): what to install, as pip says it.  $(3): options of uv, which resolves many times quicker than pip.
define make_environment
	@set -e; \
	if ! $(1)/bin/python -c '' 2>/dev/null; then \
	  $(find_python); \
	  echo "Making $(1) with $$("$$chosen" --version)"; \
	  if command -v uv >/dev/null 2>&1; then uv venv --quiet --clear --python "$$("$$chosen" -c 'import sys; print(sys.executable)')" $(1); \
	  elif ! "$$chosen" -m venv --clear $(1); then \
	    echo "Python's venv is missing. Debian, Ubuntu: apt-get install python3-venv" >&2; rm -rf $(1); exit 1; \
	  fi; \
	fi; \
	echo "Installing into $(1) (large packages: a few minutes the first time)"; \
	uv="$$(command -v uv || true)"; \
	if [ -z "$$uv" ]; then \
	  pip="$(1)/bin/python -m pip --quiet --disable-pip-version-check"; \
	  $$pip --version >/dev/null 2>&1 || $(1)/bin/python -m ensurepip >/dev/null; \
	  if $$pip install uv 2>/dev/null; then uv=$(1)/bin/uv; fi; \
	fi; \
	if [ -n "$$uv" ]; then "$$uv" pip install --quiet --python $(1)/bin/python $(3) $(2); \
	else $$pip install $(2); fi
	@touch $(1)/.installed
endef

help:
	@sed -n 's/^#   //p' Makefile

$(STAMP): pyproject.toml
	$(call make_environment,.venv,-e '.[test]',)

$(LOWEST_STAMP): pyproject.toml
	$(call make_environment,.venv-lowest,-e '.[test]',--resolution lowest-direct)

# What a bare Slicer has, without it: its MRML (slicer-core), its Python packages, Qt. The worker is .venv's.
$(SLICER_STAMP): Testing/Slicer/requirements.txt
	$(call make_environment,.venv-slicer,-r Testing/Slicer/requirements.txt,)

setup: $(STAMP)

demo: $(STAMP)
	.venv/bin/sfr demo --output demo-output

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint
	.venv/bin/$(PYTEST)
	$(MAKE) test-slicer

# The panel's tests. Where a system library is missing they are left out, and the reason is printed.
test-slicer: $(STAMP) $(SLICER_STAMP)
	@PYTHONPATH=Testing/Slicer .venv-slicer/bin/python -m headless; started=$$?; \
	if [ $$started -eq 3 ]; then echo "SKIPPED: the tests of the Slicer panel (see above)" >&2; \
	elif [ $$started -ne 0 ]; then exit $$started; \
	else SFR_PYTHON="$$PWD/.venv/bin/python" .venv-slicer/bin/python -m pytest Testing/Slicer; fi

# Pictures for docs/images, rendered off-screen by the harness of the panel's tests.
screenshots: $(SLICER_STAMP)
	.venv-slicer/bin/python Testing/Slicer/screenshots.py docs/images

test-long: $(STAMP)
	.venv/bin/python -m pytest -m long --timeout 3600

test-lowest: $(LOWEST_STAMP)
	.venv-lowest/bin/$(PYTEST)

format: $(STAMP)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf demo-output build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
