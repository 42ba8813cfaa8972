# Everything happens in one virtual environment, .venv/, which is built on first use and again when
# settings.ini or setup.py change. `make` alone lists the commands.
PYTHON ?= python3
# Where torch is missing. Options may follow: TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
TORCH  ?= torch==2.13.0
PRESET ?= laptop

BIN   := .venv/bin
PIP   := $(BIN)/python -m pip --disable-pip-version-check -qq
READY := .venv/.ready
JS    := .venv/js/.ready

.PHONY: help site test lab reproduce readme bench clean programs
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

site: programs $(READY) $(if $(shell command -v quarto),,$(JS)) ## run the notebooks and render _site/ (open _site/index.html)
	@$(BIN)/python nbs/build_site.py

test: programs $(READY) ## export check, every notebook at the smoke preset, pytest
	@echo "== sepnb/ is what the notebooks export"
	@rm -rf _build/exported && mkdir -p _build && cp -r sepnb _build/exported
	@$(BIN)/nbdev_export
	@diff -rq -x __pycache__ _build/exported sepnb || { \
	  echo "make test: sepnb/ was not what nbs/ exports. It has been exported again just now: look at it, and commit it." >&2; exit 1; }
	@echo "== notebooks at the smoke preset"
	@SEPNB_PRESET=smoke OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests

lab: $(READY) ## open JupyterLab on the notebooks
	@cd nbs && ../$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root)

reproduce: $(READY) ## compute every stored result again (PRESET=laptop, or paper on a GPU)
	@$(BIN)/sepnb reproduce all --preset $(PRESET)

readme: $(READY) ## write README.md again, its numbers from the stored results
	@$(BIN)/python nbs/build_readme.py

bench: $(READY) ## measure the speed of the models on this machine
	@$(BIN)/sepnb bench

clean: ## remove what was built, but for .venv/
	rm -rf _site _build _proc

# $(call need,CHECK,NAME,PACKAGE): where CHECK fails, install the Debian PACKAGE as root, or say that NAME is missing
need = $(1) >/dev/null 2>&1 || { \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing $(3) with apt-get"; apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(3) >/dev/null; \
	else echo "make: $(2) is missing; install it (Debian: apt-get install $(3)), then run make again" >&2; exit 1; fi; }

# museval and musdb refuse to be imported without the first two. Songs are rendered by FluidSynth, sentences are spoken by espeak-ng; where these cannot be had, the excerpts that are shipped serve.
programs:
	@$(call need,sh -c 'ffmpeg -version && ffprobe -version',the program ffmpeg or ffprobe,ffmpeg)
	@( $(call need,sh -c 'ldconfig -p | grep libfluidsynth && ls /usr/share/sounds/sf3/MuseScore_General_Lite.sf3',FluidSynth or its SoundFont,libfluidsynth3 musescore-general-soundfont-small) ) || \
	  echo "make: going on without: songs are not rendered, the excerpts that are shipped serve"
	@( $(call need,espeak-ng --version,the program espeak-ng,espeak-ng) ) || \
	  echo "make: going on without: nothing is spoken, the sentences that are shipped serve"

$(READY): settings.ini setup.py
	@$(call need,$(PYTHON) -c 'import venv$(comma) ensurepip',a Python ($(PYTHON)) with its venv module,python3-venv)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	@[ -x $(BIN)/python ] || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@# torch first: left to the requirements, pip would take the newest build and gigabytes of CUDA with it
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || { \
	  echo "installing $(TORCH)"; $(PIP) install --no-compile $(TORCH); }
	@echo "installing sepnb and what the notebooks need"
	@# what is imported is compiled then; most of what is installed never is, and compiling all takes half a minute
	@$(PIP) install --no-compile -e '.[dev]'
	@# Processes that import librosa for the first time at the same time leave a cache that crashes all later ones
	@# (numba issue 10128), as two notebooks would: one process alone fills it.
	@$(BIN)/python -c 'import librosa; librosa.pyin, librosa.cqt, librosa.onset.onset_strength'
	@touch $@

comma := ,

# The scripts that the Sphinx site needs to work from disk: math, and widgets
$(JS): | $(READY)
	@$(call need,npm --version,npm,npm)
	@echo "fetching MathJax and the widget scripts"
	@mkdir -p .venv/js && cd .venv/js && \
	npm pack --silent mathjax@3.2.2 @jupyter-widgets/html-manager@1.0.15 requirejs@2.3.7 >/dev/null && \
	tar -xzOf mathjax-3.2.2.tgz package/es5/tex-svg-full.js > tex-svg-full.js && \
	tar -xzOf jupyter-widgets-html-manager-1.0.15.tgz package/dist/embed-amd.js > embed-amd.js && \
	tar -xzOf requirejs-2.3.7.tgz package/require.js > require.js && rm *.tgz
	@touch $@
