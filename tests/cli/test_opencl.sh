#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The commands on an OpenCL device: the same output as on the simulator, and the kernels built once.
set -u
bin="${BW_BIN:?}"
top="${BW_TOP:?}"
digits="$top/host/demo/digits"
python="${PYTHON:-/usr/bin/python3}"
program="$bin/blockwave"
. "$top/tests/support/tap.sh"

run 0 devices
if ! has '^opencl:0$'; then
    echo "ok 1 - opencl:0 # SKIP $(grep '^opencl: ' "$work/out")"
    echo "1..1"
    exit 0
fi
grep -A 7 '^opencl:0$' "$work/out" >"$work/device"
grep -q '^  name  .* driver ' "$work/device" && grep -q '^  part  *opencl$' "$work/device" &&
    grep -q '^  formats .*msfp12.*mxfp8_e5m2.*mx9' "$work/device" && grep -q '^  blocks  *16 32 64 128$' "$work/device"
result $? "devices lists it with what it offers"

"$bin/blockwave-quantize" -q "$digits/digits.onnx" -o "$work/d.bw" --preprocess "$digits/preprocess.json" \
    --labels "$digits/labels.txt" >"$work/out" 2>"$work/err"
result $? "a package to work with"
run 0 run "$work/d.bw" --device sim: "$digits"/pictures/*.png && sed '/^latency/,$d' "$work/out" >"$work/sim" &&
    run 0 run "$work/d.bw" --device opencl:0 "$digits"/pictures/*.png && sed '/^latency/,$d' "$work/out" >"$work/opencl" &&
    [ -s "$work/sim" ] && cmp -s "$work/sim" "$work/opencl"
result $? "run prints what the simulator's run prints"
run 0 run "$work/d.bw" --device sim: --output "$work/a.npy" "$digits"/pictures/*.png &&
    run 0 run "$work/d.bw" --device opencl:0 --output "$work/b.npy" "$digits"/pictures/*.png &&
    cmp "$work/a.npy" "$work/b.npy" >>"$work/err"
result $? "run --output writes the same bytes"
run 0 profile "$work/d.bw" --device opencl:0 --runs 3 --json && "$python" -c '
import json, sys
d = json.load(open(sys.argv[1]))
rows = [r for r in d["rows"] if "instruction" in r]
assert d["device"] == "opencl:0" and rows and all(r["ms"] > 0 for r in rows), rows' "$work/out" 2>>"$work/err"
result $? "profile times every instruction"

export BW_CACHE_DIR="$work/cache" BW_LOG=info
run 0 run "$work/d.bw" --device opencl:0 "$digits/pictures/digit-000.png" && grep -q 'kernels built from source' "$work/err" &&
    run 0 run "$work/d.bw" --device opencl:0 "$digits/pictures/digit-000.png" && grep -q 'kernels from the cache' "$work/err"
result $? "kernels are built once and then taken from the cache"
run 1 run "$work/d.bw" --device opencl:77 "$digits/pictures/digit-000.png" && grep -q 'there is no OpenCL device 77, expected 0' "$work/err"
result $? "a number that no device has"
OCL_ICD_VENDORS="$work/nowhere" run 0 devices && has '^opencl: not usable: there is no OpenCL platform: install '
result $? "without a driver the reason is listed"
# Two processes at once: OpenCL devices are shared.
twice() { # which
    for _ in 1 2 3; do
        "$program" run "$work/d.bw" --device opencl:0 --output "$work/twice$1.npy" "$digits"/pictures/*.png >/dev/null 2>>"$work/err$1" &&
            cmp "$work/a.npy" "$work/twice$1.npy" >>"$work/err$1" 2>&1 || return 1
    done
}
twice 1 &
first=$!
twice 2 &
wait $first
one=$?
wait $!
[ "$?$one" = 00 ]
result $? "two processes at once give the same bytes"
# Containers with kernels, as source and as a binary.
export BW_LOG=warn
(cd "$top/kernels/opencl" && cat op.h formats.cl tile.cl vector.cl conv.cl) >"$work/kernels.cl"
run 0 bitstream "$work/kernels.cl" -o "$work/k.bwbit" && run 0 load "$work/k.bwbit" --device opencl:0 && has '^loaded OpenCL kernels '
result $? "a container with source"
run 0 bitstream "$(ls "$work"/cache/opencl-*.bin | head -n 1)" -o "$work/b.bwbit" && run 0 load "$work/b.bwbit" --device opencl:0 && has '^loaded OpenCL kernels '
result $? "a container with a binary"
run 1 load "$work/k.bwbit" --device opencl:7 && says 'opencl:7: there is no OpenCL device 7, expected 0..*blockwave devices lists them'
result $? "load onto a device that is not there"
mkdir -p "$work/patched" && LC_ALL=C sed 's/libOpenCL\.so\.1/libNoOpen.so.1/g' "$bin/../lib/libbw_hal_opencl.so" >"$work/patched/libbw_hal_opencl.so"
BW_PLUGIN_PATH="$work/patched" run 1 load "$work/k.bwbit" --device opencl:0 && says "backend 'opencl' cannot be used: libNoOpen.so.1: .*apt-get install ocl-icd-libopencl1"
result $? "load without the loader's library"
run 1 load "$work/k.bwbit" --device sim: && says "'opencl'" && says "'sim'"
result $? "for another part: both are named"
run 1 bitstream "$top/README.md" -o "$work/x.bwbit" && says 'it is no xclbin, no program binary' && [ ! -e "$work/x.bwbit" ]
result $? "what is no payload"
head -c 20000 "$work/k.bwbit" >"$work/cut.bwbit"
run 1 load "$work/cut.bwbit" --device opencl:0 && says cut.bwbit
result $? "a damaged container"
# XRT's library would end the process.
mkdir -p "$work/icd" && echo libxilinxopencl.so.2 >"$work/icd/xilinx.icd"
run_devices() { # XILINX_XRT, or nothing
    env -u XILINX_XRT -u XCL_EMULATION_MODE OCL_ICD_VENDORS="$work/icd" ${1:+XILINX_XRT="$1"} "$program" devices >"$work/out" 2>"$work/err"
}
run_devices && has '^opencl: not usable: .*/icd/xilinx.icd names XRT.s OpenCL library, which ends a process without XILINX_XRT'
result $? "XRT's OpenCL library without XILINX_XRT"
run_devices "$work/nowhere" && has '^opencl: not usable: .* without .*/nowhere/lib/libxrt_core.so.2: correct XILINX_XRT'
result $? "XRT's OpenCL library with a wrong XILINX_XRT"
echo "1..$n"
[ "$fail" = 0 ]
