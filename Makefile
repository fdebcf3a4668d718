# `make demo` and `make test` set up what they need: a virtual environment in .venv, Java for Spark, and for the tests
# Chromium. `make PYTHON=/path/to/python3 ...` chooses the Python.

.PHONY: demo test test-long test-extras check lint environment lock java chromium soak fuzz mutation test-newest test-lowest

demo: environment java
	.venv/bin/python examples/word2vec.py

test: environment java chromium
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

# What `make test` has no time for: all strategies of mixing under churn, and short runs of the benchmarks.
test-long: environment java
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long

# The tests of what `make test` leaves out, since it takes too much: torch modules (850 MB), and objects of S3 from a server
# on loopback (forty packages, and with them requests, which the client of WebHDFS needs). They are in an environment of their own, on top of .venv. On Linux a plain pip downloads a
# build of torch with CUDA, of gigabytes, unless it is told of the builds for CPUs (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS):
# where one of this release is found, pip takes that.
TORCH ?= torch==2.13.0
S3 ?= s3fs==2026.9.0 moto[server]==5.2.5
test-extras: environment .venv-extras/.installed java
	.venv-extras/bin/python -m pytest -n 2 --dist loadfile tests/p2p/models/torch tests/benchmarks/test_torch.py \
		tests/p2p/models/test_checkpoints.py tests/p2p/data/test_s3.py tests/p2p/data/test_webhdfs.py

.venv-extras/.installed: Makefile | environment
	.venv/bin/python -m venv --clear --without-pip .venv-extras
	.venv/bin/python -c "import site; print(site.getsitepackages()[0], '$(CURDIR)', sep='\n')" \
		>"$$(.venv-extras/bin/python -c "import site; print(site.getsitepackages()[0])")/project.pth"
	.venv-extras/bin/python -m pip install --quiet --disable-pip-version-check --root-user-action ignore "$(TORCH)" $(S3)
	touch $@

check: lint test test-long test-extras

lint: environment
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# As many bad days for a simulated swarm as you like; `deepdist simulate --seed N` tells the story of one.
SEEDS ?= 3000
soak: environment
	.venv/bin/deepdist soak --seeds $(SEEDS)

# Frames and messages as nobody honest sends them, for so many minutes: decoders are bounded, and peers raise nothing.
MINUTES ?= 5
SLOW_MS ?= 10
fuzz: environment
	.venv/bin/python .ci/fuzz.py --minutes $(MINUTES) --slow-ms $(SLOW_MS) $(if $(SEED),--seed $(SEED))

# Changes the pure core of gossip in thousands of small ways and looks which of them no test notices: hours for all of it,
# minutes for `make mutation MODULES="wire marks"`. AGAIN=1 tries only what survived last time; EVERY=13 takes each 13th
# change only, and BUDGET_S=20 lets the tests of one take so many seconds: for wings of p2p. CONTROL=1 changes nothing.
mutation: .venv-mutation/.installed
	.venv-mutation/bin/python .ci/mutation.py $(if $(AGAIN),--again) $(if $(CONTROL),--control) $(if $(EVERY),--every=$(EVERY)) \
		$(if $(BUDGET_S),--budget-s=$(BUDGET_S)) $(MODULES)

.venv-mutation/.installed: locks/mutation.txt | environment
	.venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv-mutation
	.venv/bin/uv pip install --quiet --require-hashes --python .venv-mutation/bin/python -r locks/mutation.txt
	.venv/bin/python -c "import site; print(site.getsitepackages()[0])" \
		>"$$(.venv-mutation/bin/python -c "import site; print(site.getsitepackages()[0])")/project.pth"
	touch $@

# .venv holds the releases that locks/ names, which were tried. These try the newest that pyproject.toml allows, and the
# lowest that it declares, with the quick part of the tests, and with Spark, whose own cloudpickle carries functions.
test-newest: RESOLUTION = highest
test-lowest: RESOLUTION = lowest-direct
test-newest test-lowest: test-%: environment java
	@.ci/environment .venv-$* $(RESOLUTION)
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not spark"
	.venv-$*/bin/python -m pytest tests/p2p/engines/test_spark_engine.py -k "executor_is_a_peer or error_of_the_user"

environment:
	@PYTHON="$(PYTHON)" .ci/environment .venv

# Writes locks/ anew: the newest releases that pyproject.toml allows, for all its Pythons, with the hashes of all their
# files. Then run `make check`: what is in there must have been tried.
LOCK = .venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"
lock:
	@test -x .venv/bin/uv || PYTHON="$(PYTHON)" .ci/environment .venv
	$(LOCK) --group pyproject.toml:setup --output-file locks/setup.txt
	$(LOCK) --extra dev pyproject.toml --output-file locks/dev.txt
	$(LOCK) --group pyproject.toml:mutation --constraints locks/dev.txt --output-file locks/mutation.txt

java:
	@.ci/java

chromium:
	@.ci/chromium
