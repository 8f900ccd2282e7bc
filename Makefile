# SPDX-License-Identifier: Apache-2.0
VENV ?= .venv
OUT ?= out/qemu-aarch64

.PHONY: help demo test test-boot systems lint compare bench power-cuts fuzz clean

help:
	@echo "make demo   build the stock system, boot and update it in QEMU (fetches what it lacks; no root)"
	@echo "make test   all tests, with the reference tools as oracles"
	@echo "make test-boot  every tamper scenario, boot chain and bypass in QEMU"
	@echo "make systems  builds every stock system and boots it until its checks pass (about 15 minutes)"
	@echo "make lint   ruff and mypy"
	@echo "make fuzz   hostile EROFS images and signed containers, trees for the writer; FUZZ=\"--cases 1000000\", FUZZ_SIGNED, FUZZ_WRITER likewise"
	@echo "make power-cuts  a million power cuts while simulated boards are flashed; CUTS=\"--cuts 10000\""
	@echo "make compare  the stock system configured by its packages' own scripts in QEMU, against the declarative way"
	@echo "make bench  the benchmarks against the peers (hours; docs/benchmarks.md); BENCH=\"--runs 1 --only reader.py\""

demo:
	@tools/bootstrap $(VENV)
	@tools/demo $(VENV) $(OUT)

test:
	@tools/bootstrap $(VENV) dev
	@$(VENV)/bin/erofs-edge tools fetch --oracles
	$(VENV)/bin/python -m pytest -n 2 --dist loadgroup $(PYTEST)

test-boot:
	@tools/bootstrap $(VENV) dev
	@$(VENV)/bin/erofs-edge tools fetch --oracles
	$(VENV)/bin/python -m pytest -m long $(PYTEST)

systems:
	@tools/bootstrap $(VENV)
	@$(VENV)/bin/erofs-edge tools fetch
	@for name in edge-minimal edge-base edge-container kiosk; do \
	    $(VENV)/bin/erofs-edge build boards/qemu-aarch64.yaml --system manifests/$$name.yaml -o out/systems/$$name \
	        --relock-if-gone && \
	    $(VENV)/bin/erofs-edge boot boards/qemu-aarch64.yaml -o out/systems/$$name --smoke --timeout 600 || exit 1; \
	done

lint:
	@tools/bootstrap $(VENV) dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

compare:
	@tools/bootstrap $(VENV)
	@$(VENV)/bin/erofs-edge tools fetch
	$(VENV)/bin/erofs-edge system compare manifests/edge-base.yaml
	$(VENV)/bin/erofs-edge system configure manifests/edge-base.yaml --check-reproducible

bench:
	@tools/bootstrap $(VENV) dev
	@$(VENV)/bin/erofs-edge tools fetch --oracles
	$(VENV)/bin/python benchmarks/run.py $(BENCH)

fuzz:
	@tools/bootstrap $(VENV) dev
	@$(VENV)/bin/erofs-edge tools fetch --oracles
	$(VENV)/bin/python tools/fuzz-erofs $(FUZZ)
	$(VENV)/bin/python tools/fuzz-erofs-peer $(FUZZ_PEER)
	$(VENV)/bin/python tools/fuzz-signed $(FUZZ_SIGNED)
	$(VENV)/bin/python tools/fuzz-writer $(FUZZ_WRITER)

power-cuts:
	@tools/bootstrap $(VENV) dev
	$(VENV)/bin/python tools/power-cuts $(CUTS)

clean:
	rm -rf out build dist
