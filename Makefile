# Everything a person or CI runs. Python 3.11 or newer, git and make are all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test check proto models accuracy left-out bench bench-peers bench-peer-servers bench-servers fuzz clean

# The environment: one extra of each kind, at the versions in constraints.txt.
setup: $(VENV)/.done
$(VENV)/.done: pyproject.toml constraints.txt hatch_build.py
	$(PYTHON) -c 'import sys; sys.exit("seisserve needs Python 3.11 or newer; set PYTHON=python3.12, say" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group test
	touch $@

demo: setup
	$(BIN)/seisserve demo

test: check
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The messages, with the protobuf that the package's lower bound names.
proto:
	$(PYTHON) -m venv $(VENV)-proto
	$(VENV)-proto/bin/python -m pip install --quiet "grpcio-tools==1.76.0"
	cd client && ../$(VENV)-proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. seisserve/proto/*.proto

# The shipped models by task; make models trains them anew (about three hours on two cores) and exports them.
PICKING ?= onset phasenet eqtransformer basicphaseae gpd deepphasepick
DETECTION ?= eqtransformer cred
DENOISING ?= deepdenoiser dncnn
RECOVERY ?= recovery
# onset before the others: it teaches eqtransformer
MODELS = $(filter onset,$(PICKING)) $(filter-out onset,$(sort $(PICKING) $(DETECTION) $(DENOISING) $(RECOVERY)))
models: setup
	for model in $(MODELS); do \
	  $(BIN)/seisserve train configs/$$model.toml -o runs/$$model && \
	  $(BIN)/seisserve export runs/$$model/bundle -o models/$$model/1 --force || exit 1; \
	done

# The accuracy tables in docs/tables and in the shipped cards, of all models of each task beside its baselines; DATA is
# the folder with waveforms/ and weights/. Every model is scored on test once, when it is final: SPLITS=dev until then.
DATA ?= ../shared/data
SPLITS ?= dev test
accuracy: setup
	$(BIN)/seisserve import phasenet-tf1 $(DATA)/weights/phasenet_original_tf1 -o runs/published/phasenet_original/1 --force
	for split in $(SPLITS); do \
	  $(call tables,picking,$(PICKING),runs/published/phasenet_original/1 sta-lta ar-aic template-matching) && \
	  $(call tables,detection,$(DETECTION),sta-lta template-matching) && \
	  $(call tables,denoising,$(DENOISING)) && \
	  $(call tables,recovery,$(RECOVERY)) || exit 1; \
	done
	for model in $(MODELS); do $(BIN)/seisserve card models/$$model/1 || exit 1; done
# A table of one task and split: task, shipped models (none: no table), what stands beside them.
tables = { [ -z "$(strip $(2))" ] || $(BIN)/seisserve evaluate --task $(1) $(2) $(3) $(DATA)/waveforms --split $$split \
  --write -o docs/tables/$(1)_$$split.md; }

# What networks make of three regions that they have not seen: trained without them, scored on them, beside the published
# PhaseNet, which has not seen them either. An hour on one core.
ELSEWHERE = eqcorrscan_nz_nordic quakemigrate_vt_iceland uturuncu_nll_auto
LEFT_OUT = onset phasenet phasenet_scratch eqtransformer eqtransformer_taught
left-out: setup
	$(BIN)/seisserve import phasenet-tf1 $(DATA)/weights/phasenet_original_tf1 -o runs/published/phasenet_original/1 --force
	for name in $(LEFT_OUT); do \
	  $(BIN)/seisserve train configs/left_out/$$name.toml -o runs/left_out/$$name || exit 1; \
	done
	$(elsewhere) -o docs/tables/left_out.md
	$(elsewhere) --threshold 0.3 -o docs/tables/left_out_at_0.3.md
elsewhere = $(BIN)/seisserve evaluate --runtime tensorflow $(LEFT_OUT:%=runs/left_out/%/bundle) \
  runs/published/phasenet_original/1 $(DATA)/waveforms --split train $(ELSEWHERE:%=--source %)

bench: setup
	$(BIN)/python tests/benchmarks/station_day.py -o docs/tables/station_day
	$(BIN)/python tests/benchmarks/edge.py

# What the server carries, three times that, and reloads, a stop and a crash under load; about ten minutes.
bench-servers: setup
	$(BIN)/python tests/benchmarks/server_load.py
	$(BIN)/python tests/benchmarks/overload.py
	$(BIN)/python tests/benchmarks/reload.py

# A hundred thousand hostile requests, then every decoder for FUZZ seconds, with new bytes each time. atheris, which has
# no wheels for every Python, finds more than without.
FUZZ ?= 60
fuzz: setup
	$(BIN)/python tests/fuzz/many.py
	$(BIN)/python -m pip install --quiet atheris || true
	$(BIN)/python tests/fuzz/decoders.py --seconds $(FUZZ)

# The same weights, file and processors with SeisBench, in an environment of its own (PyTorch first, at its version).
PEERS := $(VENV)-peers
PEER_WEIGHTS ?= $(wildcard $(DATA)/weights/seisbench_phasenet_instance/*_MEDIUM_*.json)
bench-peers: setup $(PEERS)/.done
	$(BIN)/python tests/benchmarks/peers.py "$(PEER_WEIGHTS)" --python $(PEERS)/bin/python \
	  --data $(DATA)/waveforms -o docs/tables/peers_seisbench
$(PEERS)/.done:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet "torch==2.13.0"
	$(PEERS)/bin/python -m pip install --quiet "seisbench==0.12.6"
	touch $@

# Other model servers with the same ONNX file and calls, each in an environment of its own in that folder.
bench-peer-servers: setup
	$(BIN)/python tests/benchmarks/peers_servers.py --environments $(PEERS) -o docs/tables/peers_servers

clean:
	rm -rf $(VENV) $(VENV)-proto $(PEERS) build dist seisserve-demo
