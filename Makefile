# make without a goal runs the unit tests; make help lists the goals.
.DEFAULT_GOAL := test-unit
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
DATE    ?= $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null || echo 0))
# Most tests wait for timeouts rather than compute, so more of them run at once than there are processors. They are vetted
# before that, and linking them without debug information takes half the time.
TEST_FLAGS = -p 6 -parallel 8 -vet=off -ldflags=-w
# go test begins with what it is given first: the packages that take longest do not run alone at the end.
TESTS = ./core/server ./core/exec ./core/criu ./core/cache ./core/image ./core/sandbox ./cmd/berthd ./core/engine/... ./core/logs \
	./core/image/... ./core/stats/diskusage ./network ./streaming ./...
LDFLAGS  = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# Without nri_no_wasm berthd has 2.6 MB more, for NRI plugins that are WebAssembly. Without grpcnotrace gRPC imports
# golang.org/x/net/trace, whose templates make the linker keep every exported method (network/cnitemplate).
TAGS     = nri_no_wasm,grpcnotrace

.PHONY: help build packages vet-machines test-packages test-vm test-kubeadm demo test test-unit test-race test-engine test-engines test-kubelet test-conformance test-kubeadm test-vm-critest test-changeover test-runtime-install test-faults soak fuzz bench bench-check lint clean

help: ## lists the goals
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

build: ## bin/berthd and bin/berth-oci, static
	CGO_ENABLED=0 go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/ ./cmd/berthd ./cmd/berth-oci

packages: ## dist/packages: deb, rpm, SBOM, SHA256SUMS; MACHINES=amd64,arm64 SIGNING_KEY=file SIGNING_PASSPHRASE_FILE=file
	cd packaging && go run . -version '$(VERSION)' -commit '$(COMMIT)' -date '$(DATE)' -out ../dist -machines '$(MACHINES)' \
		-key '$(abspath $(SIGNING_KEY))' -passphrase-file '$(abspath $(SIGNING_PASSPHRASE_FILE))'

demo: ## runs a pod on this machine's Docker through the CRI and cleans up (root)
	contrib/e2e/demo.sh

test: test-race test-engine ## unit tests with the race detector, live tests on a private Docker Engine, critest (root)

test-unit: ## go build, go vet and unit tests; needs neither root nor Docker (default)
	go build ./...
	go vet ./...
	go test $(TEST_FLAGS) $(TESTS)

test-race: ## the unit tests with the race detector, without cached results
	go build ./...
	go vet ./...
	go test -race -count=1 $(TEST_FLAGS) $(TESTS)

test-engine: ## live tests and critest on a private Docker Engine (root)
	contrib/e2e/test.sh

test-engines: ## live tests and critest on Docker 20.10 to 29 (root); ENGINES="24.0 29"
	contrib/e2e/engines.sh $(ENGINES)

test-packages: packages ## packages are reproducible, clean, start on each architecture, install, upgrade, remove; signatures (root)
	packaging/machines-test.sh
	VERSION='$(VERSION)' COMMIT='$(COMMIT)' DATE='$(DATE)' packaging/test.sh
	VERSION='$(VERSION)' COMMIT='$(COMMIT)' DATE='$(DATE)' packaging/sign-test.sh

test-vm: packages ## the deb in a virtual machine: units, pods, restarts, an upgrade, a reboot (root)
	contrib/e2e/vm-test.sh

test-kubelet: ## a real kubelet (KUBE=1.31.14: of that release) on a private Docker Engine, and what users do with kubectl (root)
	contrib/e2e/kubelet.sh

test-conformance: ## the conformance specs of Kubernetes that are about the node, on a private Docker Engine (root)
	contrib/e2e/conformance.sh

test-vm-critest: ## critest and the live tests in a virtual machine with cgroup v2, systemd and AppArmor (root)
	contrib/e2e/vm-critest.sh

test-changeover: ## from a real cri-dockerd to berthd and back, under running pods (root)
	contrib/e2e/changeover.sh

test-runtime-install: ## berthd runtime install and remove on a private Docker Engine (root); ENGINE=forky for another
	LIVE_ONLY=contrib/live LIVE_FLAGS='-v -run TestRuntimeInstall' contrib/e2e/live.sh

test-faults: ## pods under faults of Docker, plugins, disks and clients, in ten minutes (root); FAULTS=pattern
	FAULTS='$(FAULTS)' contrib/e2e/faults.sh

soak: ## an hour of pods under random faults on a private Docker Engine (root); SOAK=5m SEED=number
	SEED='$(SEED)' contrib/e2e/faults.sh soak $(SOAK)

test-kubeadm: packages ## kubeadm init from the deb to a Deployment, and a reboot, in a virtual machine (root)
	contrib/e2e/vm-kubeadm.sh

bench: ## measures berthd beside direct calls to Docker, containerd and cri-dockerd (root); PEERS, SHIMS, DENSITY, BENCH_FLAGS=--help
	contrib/bench/bench.sh $(BENCH_FLAGS)

bench-check: ## the same, and fails if a row got worse than in dist/bench/history.jsonl by more than its spread (root)
	contrib/bench/bench.sh --check $(BENCH_FLAGS)

fuzz: ## each fuzz target for FUZZ_TIME (1m); FUZZ=pattern
	FUZZ='$(FUZZ)' contrib/e2e/fuzz.sh $(FUZZ_TIME)

vet-machines: ## go vet for each architecture that packages are built for
	for a in amd64 arm64 arm ppc64le riscv64 s390x; do GOARCH=$$a GOARM=7 CGO_ENABLED=0 go vet ./... || exit 1; done

lint: ## golangci-lint v2; that the programs build for a machine of 32 bits
	GOARCH=arm GOARM=7 CGO_ENABLED=0 go build -tags '$(TAGS)' -o /dev/null ./cmd/berthd ./cmd/berth-oci
	CGO_ENABLED=0 go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.6.2 run ./...

clean: ## what a build leaves here
	rm -rf bin dist
