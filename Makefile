# Two commands: `make demo` trains, samples and evaluates small; `make test` lints and tests.
# Both build .venv themselves and leave it alone the second time.

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := image,audio,c2pa,datasets,demo,diffusers,export,hub,lora,serve,text,test,docs
# Their own dependencies are not needed here, and some need a compiler: docs/dependencies.md.
ALONE := tinysoundfont 'openwakeword==0.5.1' torchcrepe
RUN := runs/demo
SOUND := runs/demo-audio
CLIPS := runs/demo-video
# A process of tests for each CPU, so one thread for each of them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
DOWNLOAD := apt-get -o APT::Sandbox::User=root download dataset-fashion-mnist
FASHION := /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

.PHONY: demo test test-all lint docs data clean

demo: .venv/installed data
	$(BIN)/python -m scm_core.train modality=image preset=demo out=$(RUN)
	$(BIN)/python -m scm_core.sample checkpoint=$(RUN)/student.safetensors steps=2 n=64 out=$(RUN)/samples
	$(BIN)/python -m scm_core.evaluate checkpoint=$(RUN)/student.safetensors preset=demo
	$(BIN)/python -m scm_core.train modality=audio preset=demo out=$(SOUND)
	$(BIN)/python -m scm_core.sample checkpoint=$(SOUND)/student.safetensors family=piano pitch=[48,55,60,64] steps=2 n=4 out=$(SOUND)/samples
	$(BIN)/python -m scm_core.train modality=video preset=demo out=$(CLIPS)
	$(BIN)/python -m scm_core.sample checkpoint=$(CLIPS)/student.safetensors steps=2 n=8 out=$(CLIPS)/samples
	@echo "Open $(RUN)/samples/overview.png   64 images, each drawn in two steps"
	@echo "     $(RUN)/quality_time.png       quality against time, teacher and student"
	@echo "     $(RUN)/metrics.json           every figure behind it"
	@echo "     $(SOUND)/samples/00000.wav    the first of four notes of a piano, in two steps"
	@echo "     $(CLIPS)/samples/overview.png  eight clips, a row each; 00000.mp4 to 00007.mp4 beside it"

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m ""

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Without the system package, unpack it into data/; without Debian, training downloads it itself.
data:
	@test -e $(FASHION) || test -e data/fashion-mnist/train-images-idx3-ubyte.gz || { \
	  mkdir -p data/deb && cd data/deb && \
	  command -v apt-get >/dev/null && { $(DOWNLOAD) || \
	    { test "$$(id -u)" = 0 && apt-get update -qq && $(DOWNLOAD); }; } && \
	  dpkg-deb -x dataset-fashion-mnist_*.deb . && \
	  mv usr/share/datasets/fashion-mnist ../fashion-mnist; \
	} || echo "No Debian package dataset-fashion-mnist here: training will download the set itself."
	@rm -rf data/deb

.venv/installed: pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv || { \
	  test "$$(id -u)" = 0 && apt-get update && apt-get install -y python3-venv && \
	  $(PYTHON) -m venv --clear .venv; } || { \
	  echo "error: python3 cannot make a virtual environment: install python3-venv." >&2; exit 2; }
	@echo "Installing into .venv: once, about 5 GB, most of it PyTorch."
	$(BIN)/pip install -e '.[$(EXTRAS)]'
	$(BIN)/pip install --no-deps $(ALONE)
	@touch $@

clean:
	rm -rf build dist site *.egg-info
