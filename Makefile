# make train   train uniform and importance sampling on two tasks, three seeds each, and compare them
# make test    run the tests
# make soak    run the long tests
# make coverage   run the tests and say which lines and branches of the packages none of them takes
# make mutate  put small faults into the sampler and count those its tests see: an hour
# make fuzz    try ten million states on what reads them: hours
# make check   lint, format and types
# make docs    build the pages under docs/_build, where a warning is an error
# make bench   measure the sampler's throughput
# make bench-pipeline   measure the input pipelines
# make bench-step   measure what the feedback and the loss of each sample cost a training step
# make bench-learning   train every method on every task and say what each was worth: 80 minutes
# make bench-scale   measure a store in shards and draws from blocks, and simulate larger ones: twelve minutes, 10 GB
# make peers   install what others offer under .peers, for make bench ARGS=--peers and make bench-pipeline ARGS=--peers
#
# Each sets up .venv first, where that was not done yet: Python 3.11 to 3.13, make and a package index are
# all that is needed. PYTHON names the interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MUTATION := cosmic-ray==8.7.0 parso==0.8.7 stevedore==5.10.0 attrs==26.1.0
INSTALLED := $(VENV)/installed

.PHONY: train test soak coverage mutate fuzz check docs format bench bench-pipeline bench-step bench-learning bench-scale peers clean

train: $(INSTALLED)
	$(BIN)/python train.py --dataset digits --compare uniform,importance --seeds 3 --epochs 20 $(ARGS)
	$(BIN)/python train.py --dataset checker --compare uniform,importance --seeds 3 --epochs 3 $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov $(ARGS)

soak: $(INSTALLED)
	$(BIN)/python -m pytest -m soak $(ARGS)

mutate: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --target .mutation/lib $(MUTATION)
	PYTHONPATH=.mutation/lib $(BIN)/python -m tests.mutation $(ARGS)

fuzz: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,fuzz]"
	$(BIN)/python tests/fuzz/state_bytes.py -runs=10000000 -rss_limit_mb=6000 $(ARGS) .fuzz

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build $(ARGS)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.sampler_throughput $(ARGS)

bench-pipeline: $(INSTALLED)
	$(BIN)/python -m benchmarks.pipeline_throughput $(ARGS)

bench-step: $(INSTALLED)
	$(BIN)/python -m benchmarks.step_overhead $(ARGS)

bench-learning: $(INSTALLED)
	$(BIN)/python -m benchmarks.learning $(ARGS)

bench-scale: $(INSTALLED)
	$(BIN)/python -m benchmarks.scale $(ARGS)

peers: $(INSTALLED)
	$(BIN)/python -m benchmarks.peers.install $(ARGS)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
