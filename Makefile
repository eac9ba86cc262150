# SPDX-License-Identifier: Apache-2.0
# Blockwave. `make help` lists the targets. Sources are found by folder: a new file is built without an edit here.

CC      ?= cc
CFLAGS  ?= -O2 -g
LDFLAGS ?=
PREFIX  ?= /usr/local
DESTDIR ?=
# Of the benchmarks: Debian's, which has python3-onnx.
PYTHON  ?= /usr/bin/python3
# Seconds for each fuzz target of `make fuzz`.
FUZZ_SECONDS ?= 60
# address | undefined | thread | address,undefined
SAN ?=

# --- flags ------------------------------------------------------------------------------------------------------
# The numerics forbid contraction and reassociation: -ffp-contract=off is not optional.
override BASE_FLAGS := -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
    -ffp-contract=off -fno-math-errno -fPIC -pthread -fvisibility=default
SAN_FLAGS := $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)

# Objects live in a directory per compiler and flag set, so that `make asan` after `make` never mixes them.
VARIANT := $(shell printf '%s' '$(CC) $(CFLAGS) $(BASE_FLAGS) $(SAN_FLAGS) $(LDFLAGS)' | sha256sum | cut -c1-10)
BUILD   := build/$(VARIANT)
GEN     := build/gen

PKGS     := grpc libprotobuf-c jansson libpng libjpeg libcrypto libmicrohttpd zlib
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
ALL_FLAGS = $(BASE_FLAGS) $(CFLAGS) $(SAN_FLAGS) -I. -I$(GEN) $(PKG_CFLAGS)

LIBS_kernels := -lm
LIBS_hal     := -lcrypto -ljansson -ldl
LIBS_host    := -ldnnl -ljansson -lpng -ljpeg -lz
LIBS_proto   := -lprotobuf-c
LIBS_service := -lgrpc -lgpr -lprotobuf-c -lmicrohttpd

# --- sources ----------------------------------------------------------------------------------------------------
FOLDERS := kernels hal sim host quantize service
PROTOS  := $(wildcard quantize/*.proto service/proto/*.proto)
PB_C    := $(PROTOS:%.proto=$(GEN)/%.pb-c.c)
PB_H    := $(PROTOS:%.proto=$(GEN)/%.pb-c.h)

# FOLDER/main.c and FOLDER/main_NAME.c are programs, everything else is the folder's library.
MAINS := $(foreach f,$(FOLDERS),$(wildcard $(f)/main.c $(f)/main_*.c))
srcs   = $(filter-out $(1)/main.c $(1)/main_%.c,$(wildcard $(1)/*.c $(1)/*/*.c))
objs   = $(patsubst %.c,$(BUILD)/%.o,$(call srcs,$(1)))
pbobjs = $(patsubst $(GEN)/%.c,$(BUILD)/gen/%.o,$(filter $(GEN)/$(1)/%,$(PB_C)))
prog_name = $(if $(filter main,$(basename $(notdir $(1)))),blockwave,blockwave-$(subst _,-,$(patsubst main_%,%,$(basename $(notdir $(1))))))

PROGRAMS := $(foreach m,$(MAINS),$(BUILD)/bin/$(call prog_name,$(m)))
# Started by others, not by people: installed to libexec.
PRIVATE  := $(BUILD)/bin/blockwave-card
LIBS     := $(foreach f,$(FOLDERS),$(BUILD)/lib/libbw_$(f).a)
# Link order, top to bottom.
LINK     := $(foreach f,service quantize host sim hal kernels,$(BUILD)/lib/libbw_$(f).a)
SYSLIBS  := $(LIBS_service) $(LIBS_proto) $(LIBS_host) $(LIBS_hal) $(LIBS_kernels)

# Plug-ins of the HAL: hal/plugins/NAME/*.c becomes lib/libbw_hal_NAME.so, found at run time from the program's folder.
# It is built if pkg-config knows all of PLUGIN_PKGS_NAME, and reported as missing otherwise (`make report`). It takes
# hal/base.h from the program that loads it, the rest of hal/ and kernels/ from the archives that it links below.
# PLUGIN_FLAGS_NAME, PLUGIN_LIBS_NAME: more flags, more libraries; PLUGIN_GEN_NAME: generated C files below $(GEN).
PLUGIN_PKGS_opencl := OpenCL
PLUGIN_GEN_opencl  := $(GEN)/kernels/opencl/source.c
# In the order of what they build on.
CL_SOURCES := $(addprefix kernels/opencl/,op.h formats.cl tile.cl vector.cl conv.cl)
# XRT's pkg-config file names a folder that is not there: its headers are looked for, its libraries loaded at run time.
XRT_INCLUDE := $(patsubst %/xclbin.h,%,$(firstword $(wildcard /usr/include/xrt/xclbin.h /opt/xilinx/xrt/include/xclbin.h)))
PLUGIN_PKGS_xrt    := uuid
PLUGIN_FLAGS_xrt   := $(XRT_INCLUDE:%=-isystem %)
PLUGIN_LIBS_xrt    := -ljansson -lcrypto -ldl
PLUGIN_MISSING_xrt := $(if $(XRT_INCLUDE),,xrt)
$(BUILD)/kernels/xclbin.o: PKG_CFLAGS += $(XRT_INCLUDE:%=-isystem %)

PLUGIN_NAMES := $(sort $(patsubst hal/plugins/%/,%,$(dir $(wildcard hal/plugins/*/*.c))))
# Packages that are missing, and whether that leaves the plug-in buildable.
$(foreach p,$(PLUGIN_NAMES),$(foreach k,$(PLUGIN_PKGS_$(p)),\
    $(if $(shell pkg-config --exists $(k) && echo yes),,$(eval PLUGIN_MISSING_$(p) += $(k)))))
# XRT's emulation libraries, linked again from Debian's archives with sim/card/shim in front; only for emulated cards.
XRT_SHIM_MODES := $(foreach m,swemu hwemu,$(if $(filter /%,$(shell $(CC) -print-file-name=libxrt_$(m).a)),$(m)))
XRT_SHIMS      := $(XRT_SHIM_MODES:%=$(BUILD)/lib/xrt/libxrt_%.so.2)
PLUGINS_BUILT := $(foreach p,$(PLUGIN_NAMES),$(if $(PLUGIN_MISSING_$(p)),,$(p)))
PLUGINS       := $(PLUGINS_BUILT:%=$(BUILD)/lib/libbw_hal_%.so)

TEST_SUPPORT := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support/*.c))
UNIT_TESTS   := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/*.c))
CONF_TESTS   := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/conformance/*.c))
BENCHES      := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/bench/*.c))
FUZZERS      := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_REPLAY  := $(FUZZERS:%=$(BUILD)/tests/fuzz/replay_%)
FUZZ_BIN     := $(FUZZERS:%=$(BUILD)/tests/fuzz/fuzz_%)
SCRIPT_TESTS := $(wildcard tests/cli/test_*.sh tests/service/test_*.sh tests/docs/test_*.sh)

.DEFAULT_GOAL := all
.PHONY: all help deps check test test-long conformance asan ubsan tsan fuzz fuzz-build bench bench-service bench-start bench-quantize bench-blocks bench-xrt install uninstall demo clean report \
    unit-tests tests-build format FORCE
.SECONDARY:
.DELETE_ON_ERROR:

## all: build the programs and libraries (default)
all: $(PROGRAMS) $(LIBS) $(PLUGINS) $(XRT_SHIMS) build/bin report

build/bin: FORCE
	@mkdir -p build $(BUILD)/bin
	@ln -sfn $(VARIANT)/bin build/bin
FORCE:

report: $(PROGRAMS) $(PLUGINS) $(XRT_SHIMS)
	@$(if $(XRT_SHIMS),echo 'XRT emulation: built ($(XRT_SHIM_MODES))',echo 'XRT emulation: NOT built: libxrt_swemu.a is not installed (see '"'make deps'"')')
	@sh tests/support/plugin_report.sh $(BUILD) $(foreach p,$(PLUGIN_NAMES),'$(p):$(strip $(PLUGIN_MISSING_$(p)))')

## help: this list
help:
	@sed -n 's/^## //p' Makefile | awk -F': ' '{printf "  make %-14s %s\n", $$1, $$2}'

# Debian 12 packages of the build, the demo and the tests.
DEPS := gcc libc6-dev pkg-config libgrpc-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler libdnnl-dev \
    libjansson-dev libpng-dev libjpeg-dev libssl-dev openssl libmicrohttpd-dev zlib1g-dev libcmocka-dev \
    ocl-icd-opencl-dev opencl-c-headers pocl-opencl-icd libxrt-dev libxrt1 uuid-dev \
    python3 python3-grpcio python3-grpc-tools python3-numpy python3-onnx python3-pil
## deps: install what is missing with apt (Debian 12), saying so
deps:
	@sh .ci/deps $(DEPS)

# --- compile ----------------------------------------------------------------------------------------------------
ISA_FLAGS_avx2       := -mavx2 -mfma -mf16c
ISA_FLAGS_avx512f    := -mavx512f -mavx2
ISA_FLAGS_avx512vnni := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma -mf16c
ISA_FLAGS_amx        := $(ISA_FLAGS_avx512vnni) -mamx-tile -mamx-int8 -mprfchw
# NAME__ISA.c is compiled for that instruction set and reached through run-time dispatch only.
isa_flags = $(ISA_FLAGS_$(lastword $(subst __, ,$(basename $(notdir $(1))))))

$(BUILD)/%.o: %.c | $(PB_H)
	@mkdir -p $(@D)
	$(CC) $(ALL_FLAGS) $(if $(findstring __,$(notdir $<)),$(call isa_flags,$<)) -MMD -MP -c -o $@ $<

$(BUILD)/gen/%.o: $(GEN)/%.c
	@mkdir -p $(@D)
	$(CC) $(filter-out -Wmissing-prototypes -Wshadow,$(ALL_FLAGS)) -Wno-unused-parameter -MMD -MP -c -o $@ $<

$(GEN)/%.pb-c.c $(GEN)/%.pb-c.h: %.proto
	@mkdir -p $(@D)
	protoc-c --proto_path=. --c_out=$(GEN) $<

$(GEN)/kernels/opencl/source.c: kernels/opencl/embed.sh $(CL_SOURCES) FORCE
	@mkdir -p $(@D)
	@sh kernels/opencl/embed.sh $@ $(CL_SOURCES)

define folder_rules
$(BUILD)/lib/libbw_$(1).a: $$(call objs,$(1)) $$(call pbobjs,$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	ar rcsD $$@ $$^
endef
$(foreach f,$(FOLDERS),$(eval $(call folder_rules,$(f))))

define program_rules
$(BUILD)/bin/$(call prog_name,$(1)): $(BUILD)/$(1:.c=.o) $(LIBS)
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) $$(SAN_FLAGS) -pthread -rdynamic -o $$@ $$< -Wl,--as-needed $$(LINK) $$(LDFLAGS) $$(SYSLIBS)
endef
$(foreach m,$(MAINS),$(eval $(call program_rules,$(m))))

define plugin_rules
PLUGIN_CFLAGS_$(1)  := $$(if $$(PLUGIN_PKGS_$(1)),$$(shell pkg-config --cflags $$(PLUGIN_PKGS_$(1)))) $$(PLUGIN_FLAGS_$(1))
PLUGIN_LDLIBS_$(1)  := $$(if $$(PLUGIN_PKGS_$(1)),$$(shell pkg-config --libs $$(PLUGIN_PKGS_$(1)))) $$(PLUGIN_LIBS_$(1))
PLUGIN_OBJS_$(1)    := $$(patsubst %.c,$(BUILD)/%.o,$$(wildcard hal/plugins/$(1)/*.c)) \
    $$(patsubst $(GEN)/%.c,$(BUILD)/gen/%.o,$$(PLUGIN_GEN_$(1)))
$$(PLUGIN_OBJS_$(1)): | $$(PLUGIN_GEN_$(1))
$$(PLUGIN_OBJS_$(1)): PKG_CFLAGS += $$(PLUGIN_CFLAGS_$(1))
$(BUILD)/lib/libbw_hal_$(1).so: $$(PLUGIN_OBJS_$(1))
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) $$(SAN_FLAGS) -shared -pthread -o $$@ $$^ -Wl,--as-needed $$(LDFLAGS) $$(PLUGIN_LDLIBS_$(1))
endef
$(foreach p,$(PLUGINS_BUILT),$(eval $(call plugin_rules,$(p))))
$(BUILD)/lib/libbw_hal_xrt.so: $(BUILD)/lib/libbw_hal.a $(BUILD)/lib/libbw_kernels.a
$(BUILD)/lib/libbw_hal_opencl.so: $(BUILD)/lib/libbw_hal.a $(BUILD)/lib/libbw_kernels.a

# Wraps functions of the C library: no prototypes; and never with a sanitizer, whose runtime is the program's.
$(BUILD)/sim/card/shim/shim.o: sim/card/shim/shim.c
	@mkdir -p $(@D)
	$(CC) $(filter-out -Wmissing-prototypes,$(BASE_FLAGS)) -O2 -g -MMD -MP -c -o $@ $<
$(BUILD)/lib/xrt/libxrt_%.so.2: $(BUILD)/sim/card/shim/shim.o sim/card/shim/build.sh
	@mkdir -p $(@D)
	sh sim/card/shim/build.sh '$(CC)' $* $@ $<

# --- tests ------------------------------------------------------------------------------------------------------
link_test = $(CC) $(CFLAGS) $(SAN_FLAGS) -pthread -rdynamic -o $@ $(filter %.o,$^) -Wl,--as-needed $(LINK) $(LDFLAGS) $(SYSLIBS)

$(BUILD)/tests/unit/%: $(BUILD)/tests/unit/%.o $(TEST_SUPPORT) $(LIBS)
	$(link_test) -lcmocka
$(BUILD)/tests/conformance/%: $(BUILD)/tests/conformance/%.o $(TEST_SUPPORT) $(LIBS)
	$(link_test) -lcmocka
$(BUILD)/tests/bench/%: $(BUILD)/tests/bench/%.o $(TEST_SUPPORT) $(LIBS)
	$(link_test) -lcmocka
# Fuzz targets twice: with a driver that replays the corpus (any compiler), and with libFuzzer (clang).
$(BUILD)/tests/fuzz/replay_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/tests/fuzz/driver.o $(LIBS)
	$(link_test)
$(BUILD)/tests/fuzz/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(LIBS)
	$(link_test) -fsanitize=fuzzer

tests-build: all $(UNIT_TESTS) $(CONF_TESTS) $(FUZZ_REPLAY) $(BENCHES)

run_tests = BW_BUILD=$(BUILD) BW_BIN=$(CURDIR)/$(BUILD)/bin BW_SAN='$(SAN)' sh tests/support/run_tests.sh

## check: prove the include boundaries, forbid unfinished marks, check formatting
check:
	@sh tests/support/check_includes.sh
	@sh tests/support/check_sources.sh

## test: everything that must be green before a change lands (under 6 minutes on 2 cores)
test: check tests-build
	$(run_tests) $(UNIT_TESTS) $(CONF_TESTS) $(FUZZ_REPLAY) $(SCRIPT_TESTS)

## conformance: the device conformance suite alone, at full length
conformance: tests-build
	BW_LONG=1 $(run_tests) $(CONF_TESTS)

## test-long: every suite at full length
test-long: check tests-build
	BW_LONG=1 $(run_tests) $(UNIT_TESTS) $(CONF_TESTS) $(FUZZ_REPLAY) $(SCRIPT_TESTS)

## asan: make test under AddressSanitizer and LeakSanitizer
asan:
	$(MAKE) test SAN=address CFLAGS='-O1 -g'
## ubsan: make test under UndefinedBehaviorSanitizer
ubsan:
	$(MAKE) test SAN=undefined CFLAGS='-O1 -g'
## tsan: make test under ThreadSanitizer
tsan:
	$(MAKE) test SAN=thread CFLAGS='-O1 -g'

## fuzz: coverage-guided fuzzing under ASan with clang, FUZZ_SECONDS each (default 60), FUZZ=name for one target
fuzz:
	$(MAKE) fuzz-build CC=clang SAN=address CFLAGS='-O1 -g -fsanitize=fuzzer-no-link'
	@sh tests/support/run_fuzz.sh $(FUZZ_SECONDS) $(or $(FUZZ),$(FUZZERS))
fuzz-build: $(FUZZ_BIN)
	@mkdir -p build && ln -sfn $(VARIANT)/tests/fuzz build/fuzz

# What tests/bench/bench.py needs to know of this build.
bench_env = BW_BIN=$(CURDIR)/$(BUILD)/bin BW_BENCH_WORKER=$(CURDIR)/$(BUILD)/tests/bench/bench_network \
    BW_BENCH_CC='$(shell $(CC) --version 2>/dev/null | head -n 1), $(CFLAGS)'

## bench: measure networks x formats x ISA x threads (docs/performance.md), tables and build/bench/*.json
bench: all $(BENCHES)
	@$(bench_env) $(PYTHON) tests/bench/bench.py
.PHONY: bench-layers bench-peers
## bench-layers: measure layer shapes, and from a file to ready
bench-layers: all $(BENCHES)
	@for b in bench_sim bench_open; do $(BUILD)/tests/bench/$$b || exit 1; done
## bench-peers: the same networks beside onnxruntime and OpenVINO, installed from PyPI to build/peers if it can be reached
bench-peers: all $(BENCHES)
	@PYTHON=$(PYTHON) sh tests/bench/peers.sh
	@$(bench_env) $(PYTHON) tests/bench/bench.py --peers

## bench-service: what the service costs, against a C++ echo server on the same gRPC; BENCH_SERVICE='--network X.bw ...'
bench-service: all
	@sh tests/bench/echo/build.sh $(BUILD)/echo || test $$? = 3
	@/usr/bin/python3 tests/bench/bench_service.py $(BUILD)/bin $(BUILD)/echo $(BENCH_SERVICE)

## bench-quantize: time, memory and progress of quantizing ResNet-50; BENCH_QUANTIZE='--runs 5 --json FILE ...'
bench-quantize: all
	@/usr/bin/python3 tests/bench/bench_quantize.py $(BUILD)/bin $(BENCH_QUANTIZE)

## bench-blocks: what long blocks cost trained networks; BENCH_BLOCKS='--format F --count N'
bench-blocks: all
	@/usr/bin/python3 tests/bench/bench_blocks.py $(BUILD)/bin $(BENCH_BLOCKS)

## bench-start: from the start of the server to its first answer; BENCH_START='X.bw ...'
bench-start: all
	@/usr/bin/python3 tests/bench/bench_start.py $(BUILD)/bin $(BENCH_START)

## bench-xrt: what a run costs on an emulated card, above the simulator; BENCH_XRT='X.bw ...'
bench-xrt: all $(BENCHES)
	@BW_PLUGIN_PATH=$(CURDIR)/$(BUILD)/lib BW_BENCH_MODELS='$(BENCH_XRT)' $(BUILD)/bin/blockwave-xrt-emulation run -- $(BUILD)/tests/bench/bench_xrt

## demo: dependencies, build, then the main job on real pictures
demo: deps
	@$(MAKE) --no-print-directory all
	@BW_BIN=$(CURDIR)/$(BUILD)/bin sh host/demo/demo.sh

## install: programs, plug-ins, library, headers, pkg-config file, man pages to PREFIX (default /usr/local)
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 $(filter-out $(PRIVATE),$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin/
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/libexec/blockwave $(PRIVATE)
	rm -f $(BUILD)/lib/libblockwave.a
	sh .ci/merge_archives $(BUILD)/lib/libblockwave.a $(foreach f,kernels hal sim host,$(BUILD)/lib/libbw_$(f).a)
	install -m 644 $(BUILD)/lib/libblockwave.a $(DESTDIR)$(PREFIX)/lib/
	for h in kernels/status.h kernels/formats.h kernels/isa.h hal/hal.h hal/backend.h hal/bitstream.h hal/signature.h sim/sim.h \
	    host/graph.h host/package.h host/preprocess.h host/session.h; do \
	    install -D -m 644 $$h $(DESTDIR)$(PREFIX)/include/blockwave/$$h; done
	if [ -n '$(PLUGINS)' ]; then install -d $(DESTDIR)$(PREFIX)/lib/blockwave && \
	    install -m 755 $(PLUGINS) $(DESTDIR)$(PREFIX)/lib/blockwave/; fi
	if [ -n '$(XRT_SHIMS)' ]; then install -D -m 755 -t $(DESTDIR)$(PREFIX)/lib/blockwave/xrt $(XRT_SHIMS); fi
	sed 's|@PREFIX@|$(PREFIX)|' host/blockwave.pc.in > $(DESTDIR)$(PREFIX)/lib/pkgconfig/blockwave.pc
	install -m 644 docs/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/

## uninstall: remove what install put there
uninstall:
	cd $(DESTDIR)$(PREFIX) && rm -rf include/blockwave lib/libblockwave.a lib/pkgconfig/blockwave.pc \
	    libexec/blockwave lib/blockwave/xrt $(addprefix lib/blockwave/,$(notdir $(PLUGINS))) $(addprefix bin/,$(notdir $(PROGRAMS))) $(addprefix share/man/man1/,$(notdir $(wildcard docs/man/*.1)))
	rmdir $(DESTDIR)$(PREFIX)/lib/blockwave 2>/dev/null || true

## format: clang-format every source
format:
	clang-format -i $$(git ls-files '*.c' '*.h')

## clean: remove everything built
clean:
	rm -rf build

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
