# `make help` lists the targets. The first hour: `make build unit` with Go alone, then `make demo`.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION   ?= $(shell git describe --tags --always --dirty --match 'v*' 2>/dev/null | grep '^v' || echo 0.1.0-dev)
GO        ?= go
# The version comes in by the linker; stamping it from git fails where somebody else owns the checkout.
GO_BUILD  := CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags "-s -w -X main.version=$(VERSION)"

# Linters are built from the module proxy, once per machine and version.
GOLANGCI_VERSION := v2.15.0
GOLANGCI_DIR     ?= $(shell $(GO) env GOPATH)/lint/$(GOLANGCI_VERSION)
GOLANGCI         := $(GOLANGCI_DIR)/golangci-lint
CLANG_FORMAT     ?= clang-format-19
C_FILES           = $(wildcard bpf/*.c bpf/lib/*.h test/bench/*/*.c)
GENERATED         = $(wildcard bpf/*_bpfel.* test/bench/*/*_bpfel.*)
GO_FILES          = $(shell git ls-files --cached --others --exclude-standard '*.go')

PREFIX    ?= /usr/local
CNI_BIN   ?= /opt/cni/bin
UNIT_DIR  ?= /etc/systemd/system
FUZZTIME  ?= 20s
FUZZ      ?= .
BENCH     ?= full
# The demo's: 1 or 2.
NODES     ?= 1
# Of the mutants: how many at random and by which seed, or which by name or item.
SAMPLE    ?= 0
SEED      ?= 0
ONLY      ?=

##@ Build

.PHONY: build
build: ## bin/tclb and bin/tclb-cni, static; needs Go only
	$(GO_BUILD) -o bin/tclb ./proxy
	$(GO_BUILD) -o bin/tclb-cni ./plugin

.PHONY: generate
generate: ## the BPF objects and their Go bindings, bit for bit (clang 19; installed if missing)
	.ci/deps generate
	$(GO) generate ./bpf ./test/bench/...

.PHONY: generate-check
generate-check: ## fails if `make generate` changes a file
	@before=$$(sha256sum $(sort $(GENERATED))); \
	$(MAKE) --no-print-directory generate; \
	after=$$(sha256sum $$(ls bpf/*_bpfel.* test/bench/*/*_bpfel.* 2>/dev/null | sort)); \
	diff <(echo "$$before") <(echo "$$after") || { echo "generated files were stale: commit what 'make generate' wrote" >&2; exit 1; }

.PHONY: install
install: build ## into PREFIX, CNI_BIN and, with systemd, UNIT_DIR; DESTDIR is honoured
	install -D -m 755 bin/tclb "$(DESTDIR)$(PREFIX)/bin/tclb"
	install -D -m 755 bin/tclb-cni "$(DESTDIR)$(CNI_BIN)/tclb-cni"
	@for dir in /usr/lib/cni /usr/libexec/cni; do \
		if [ -d "$(DESTDIR)$$dir" ] && [ "$$dir" != "$(CNI_BIN)" ]; then ln -sfn "$(CNI_BIN)/tclb-cni" "$(DESTDIR)$$dir/tclb-cni"; fi; \
	done
	@if [ -f conf/tclb.service ] && { [ -n "$(DESTDIR)" ] || [ -d /run/systemd/system ]; }; then \
		install -D -m 644 conf/tclb.service "$(DESTDIR)$(UNIT_DIR)/tclb.service"; \
		sed -i 's|/usr/local/bin/tclb|$(PREFIX)/bin/tclb|' "$(DESTDIR)$(UNIT_DIR)/tclb.service"; \
	fi

.PHONY: clean
clean: ## what make wrote
	rm -rf bin test/bench/out coverage.out

##@ Test

.PHONY: unit
unit: ## tests that need neither root nor anything installed
	$(GO) test -count=1 $$($(GO) list ./... | grep -v '/test/\(datapath\|e2e\|runtimes\)')

.PHONY: datapath
datapath: ## the BPF programs on packets; as root
	REQUIRE_ROOT=1 $(GO) test -count=1 -timeout 10m ./test/datapath/... ./pkg/datapath/... ./pkg/attach/...

.PHONY: e2e
e2e: build ## real binaries, namespaces and container runtimes; as root
	.ci/deps test
	REQUIRE_ROOT=1 $(GO) test -count=1 -timeout 20m -v ./test/e2e/... ./test/runtimes/...

.PHONY: test
test: build ## every test; as root; installs what is missing, skips nothing
	.ci/deps test
	REQUIRE_ROOT=1 $(GO) test -count=1 -p 2 -timeout 20m ./...

.PHONY: demo
demo: build ## four podman containers behind one VIP, for real; as root; installs what is missing; NODES=2: on two nodes
	.ci/deps demo $(if $(filter 2,$(NODES)),etcd)
	test/demo/$(if $(filter 2,$(NODES)),nodes,demo).sh

.PHONY: bench
bench: build ## the benchmark beside its peers, as root: BENCH=quick for a short one; table and plot in test/bench/out
	.ci/deps bench
	test/bench/run.sh $(BENCH)

.PHONY: mutants
mutants: ## breaks the code on purpose, as root: a test must notice each time; SAMPLE=5 SEED=1 for some, ONLY=icmp by name
	.ci/deps generate
	$(GO) run ./test/mutants -sample $(SAMPLE) -seed $(SEED) -only '$(ONLY)'

.PHONY: fuzz
fuzz: ## every fuzz target, or those that match FUZZ, for FUZZTIME; packets as root
	@$(GO) list ./... | while read -r pkg; do \
		for target in $$($(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' | grep '$(FUZZ)' || true); do \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 200x "$$pkg"; \
		done; \
	done

.PHONY: cover
cover: ## test coverage by function, in coverage.out; as root for all of it
	$(GO) test -count=1 -p 2 -timeout 20m -coverpkg=./pkg/...,./plugin/...,./proxy/... -coverprofile=coverage.out ./...
	$(GO) tool cover -func=coverage.out | tail -n 1

##@ Style

$(GOLANGCI):
	GOBIN=$(GOLANGCI_DIR) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

.PHONY: lint
lint: $(GOLANGCI) ## go vet, gofmt, golangci-lint, clang-format
	.ci/deps lint
	$(GO) vet ./...
	@unformatted=$$(gofmt -l $(GO_FILES)); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted" >&2; exit 1; }
	$(GOLANGCI) run ./...
	$(CLANG_FORMAT) --dry-run -Werror $(C_FILES)

.PHONY: fmt
fmt: $(GOLANGCI) ## rewrite Go and C sources in the project's format
	.ci/deps lint
	$(GOLANGCI) fmt ./...
	$(CLANG_FORMAT) -i $(C_FILES)

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
