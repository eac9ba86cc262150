#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Emulated cards behind XRT from the outside: the device suite on them, commands on them, what is missing or wrong in one
# line, and what the helper leaves behind.
program=$BW_BIN/blockwave
helper=$BW_BIN/blockwave-xrt-emulation
. "$BW_TOP/tests/support/tap.sh"
cd "$work" || exit 1
if ! "$helper" run -- true 2>"$work/err"; then
    echo "1..1"
    echo "ok 1 - emulated cards # SKIP $(head -n 1 "$work/err")"
    exit 0
fi
if [ ! -e "$BW_BIN/../lib/libbw_hal_xrt.so" ]; then
    echo "1..1"
    echo "ok 1 - emulated cards # SKIP the plug-in xrt was not built (Debian: libxrt-dev, uuid-dev)"
    exit 0
fi
# XRT leaks in every call: LeakSanitizer has nothing to find there.
[ -z "${BW_SAN:-}" ] || export BW_XRT_REPLY_MS=3000 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1

# The suites for all devices, as any other device passes them; and where XRT writes every register by itself (hw_emu).
suite() { # name, mode, devices
    name=$1 mode=$2
    shift 2
    if [ ! -e "$BW_BIN/../lib/xrt/libxrt_$(echo "$mode" | tr -d _).so.2" ]; then
        n=$((n + 1))
        echo "ok $n - $name, $mode # SKIP its library is not installed (Debian: libxrt-dev)"
        return
    fi
    BW_DEVICES="$*" timeout 280 "$helper" run --mode "$mode" --cards 2 -- "$BW_BIN/../tests/conformance/$name" >"$work/out" 2>"$work/err"
    result $? "$name, $mode, $*"
}
suite test_devices sw_emu xrt:0 'xrt:1?scrub=1'
suite test_instructions sw_emu xrt:0
suite test_devices hw_emu xrt:0
suite test_instructions hw_emu xrt:0

# Commands on a card: the same bits as on the simulator.
digits=$BW_TOP/host/demo/digits
"$program" quantize "$digits/digits.onnx" -o d.bw --quiet --preprocess "$digits/preprocess.json" --labels "$digits/labels.txt"
"$program" featurize d.bw --data "$digits/pictures" -o sim.npz >/dev/null 2>"$work/err"
"$helper" run -- "$program" featurize d.bw --data "$digits/pictures" --device xrt:0 -o xrt.npz >"$work/out" 2>"$work/err"
cmp sim.npz xrt.npz >>"$work/err" 2>&1
result $? "featurize on xrt:0 is the simulator's, byte by byte"
"$helper" run --cards 3 -- "$program" devices >"$work/out" 2>"$work/err"
[ "$(grep -c '^xrt:[012]$' "$work/out")" = 3 ] && has 'blockwave_emulated_4x16g_1'
result $? "devices lists three cards"
timeout 20 "$helper" run --cards 2 --opencl -- "$program" devices >"$work/out" 2>"$work/err"
[ "$(grep -c '^xrt:[01]$' "$work/out")" = 2 ] && { has "^opencl: not usable: the device 'blockwave_emulated_4x16g_1' takes binaries only" ||
    [ ! -e "$BW_BIN/../lib/libbw_hal_opencl.so" ]; }
result $? "devices says of the cards' OpenCL devices that they take no source"
"$helper" write a.bwbit && "$helper" write b.bwbit && cmp a.bwbit b.bwbit && "$helper" write a.xclbin
result $? "write is deterministic"
"$helper" run -- "$program" load a.bwbit --device xrt:0 >"$work/out" 2>"$work/err" && has '^loaded emulated'
result $? "load a container"
"$program" bitstream a.xclbin -o made.bwbit >"$work/out" 2>"$work/err" && cmp a.bwbit made.bwbit
result $? "bitstream makes the same container of the xclbin"
"$program" load made.bwbit --device sim: >"$work/out" 2>"$work/err"
[ $? = 1 ] && says 'blockwave_emulated_4x16g_1' && says "'sim'"
result $? "a container for another part: both are named"
"$helper" run -- env BW_XRT_XCLBIN="$work/a.bwbit" "$program" load a.bwbit --device xrt:0 >"$work/out" 2>"$work/err" && has '^already holds'
result $? "a container named by BW_XRT_XCLBIN is held already"

# The commands of docs/xrt.md that end by themselves.
cp d.bw model.bw && cp "$digits/pictures/digit-000.png" picture.png
sed -n 's/^\(blockwave xrt-emulation run -- .*\)/\1/p' "$BW_TOP/docs/xrt.md" >commands
[ "$(wc -l <commands)" -ge 2 ]
result $? "docs/xrt.md has commands"
while read -r command; do
    PATH="$BW_BIN:$PATH" timeout 60 sh -c "$command" >"$work/out" 2>"$work/err" </dev/null
    result $? "$command"
done <commands

# What is wrong is said in one line.
refuse() { # name, text, command...
    name=$1 text=$2
    shift 2
    timeout 20 "$@" >"$work/out" 2>"$work/err"
    code=$?
    [ $code = 1 ] && says "$text"
    result $? "$name"
}
run_xrt="run d.bw $digits/pictures/digit-000.png --device xrt:0"
# shellcheck disable=SC2086
{
    refuse "no such card" 'lists 1 cards, there is no number 3' "$helper" run -- "$program" run d.bw x.png --device xrt:3
    refuse "no such target" "there is no target 'one'" "$helper" run -- "$program" run d.bw x.png --device xrt:one
    refuse "no such option" "there is no option 'speed'" "$helper" run -- "$program" run d.bw x.png --device 'xrt:0?speed=9'
    refuse "no XILINX_XRT" 'XILINX_XRT is not set' "$helper" run -- env -u XILINX_XRT "$program" $run_xrt
    refuse "no emulation library" 'libxrt_swemu.so.2 is missing' "$helper" run -- env XILINX_XRT=/nowhere "$program" $run_xrt
    refuse "no USER" 'USER is not set' "$helper" run -- env -u USER "$program" $run_xrt
    refuse "no emconfig.json" 'emconfig.json' "$helper" run -- env EMCONFIG_PATH=/nowhere "$program" $run_xrt
    refuse "no model of the card" 'genericpciemodel: No such file' "$helper" run -- env XILINX_VITIS=/nowhere "$program" $run_xrt
    refuse "no such mode" "XCL_EMULATION_MODE is 'fast'" "$helper" run -- env XCL_EMULATION_MODE=fast "$program" $run_xrt
    refuse "no xclbin" 'BW_XRT_XCLBIN' "$helper" run -- env BW_XRT_XCLBIN=/nowhere "$program" $run_xrt
    refuse "not an xclbin" 'it is no xclbin' "$helper" run -- env BW_XRT_XCLBIN="$BW_TOP/LICENSE" "$program" $run_xrt
    head -c 3000 a.xclbin >cut.xclbin
    refuse "a cut xclbin" 'it was cut short' "$helper" run -- env BW_XRT_XCLBIN="$work/cut.xclbin" "$program" $run_xrt
    refuse "not configured" 'holds no configuration' "$helper" run -- env -u BW_XRT_XCLBIN "$program" $run_xrt
    refuse "no card outside the emulation" 'no PCI device is bound to the driver xocl' "$program" $run_xrt
    mkdir -p shipped/lib && for f in /usr/lib/*/libxrt_swemu.so.2; do cp "$f" shipped/lib/; done
    refuse "Debian's own emulation library" 'spoils the memory' "$helper" run -- env XILINX_XRT="$work/shipped" "$program" $run_xrt
}
# A card that another process has: it is listed, and whoever wants it hears who has it. Killed, that process has it no more.
cat >occupied.sh <<'END'
"$BW_BIN/blockwave" serve d.bw --device xrt:0 --grpc 127.0.0.1:0 --port-file held --quiet &
server=$!
for _ in $(seq 200); do [ -s held ] && break; sleep 0.1; done
echo $server >server
"$BW_BIN/blockwave" devices >devices.out 2>&1; echo $? >devices.code
"$BW_BIN/blockwave" devices --check --json >check.json 2>/dev/null; echo $? >check.code
for c in "run d.bw $1" "featurize d.bw --data $1 -o no.npz" "profile d.bw" "load a.bwbit" "serve d.bw --grpc 127.0.0.1:0"; do
    # shellcheck disable=SC2086
    "$BW_BIN/blockwave" $c --device xrt:0 >/dev/null 2>"busy.${c%% *}"; echo $? >"busy.${c%% *}.code"
done
"$BW_BIN/blockwave" featurize d.bw --data "$2" --device xrt:1 -o other.npz >/dev/null 2>&1; echo $? >other.code
kill -9 $server
wait
"$BW_BIN/blockwave" featurize d.bw --data "$2" --device xrt:0 -o after.npz >/dev/null 2>after.err; echo $? >after.code
END
timeout 100 "$helper" run --cards 2 -- sh occupied.sh "$digits/pictures/digit-000.png" "$digits/pictures" >"$work/out" 2>"$work/err"
server=$(cat server)
cp devices.out "$work/out"
[ "$(cat devices.code)" = 0 ] && has "^  name .*in use by process $server (blockwave-serve)" && [ "$(grep -c '^xrt:[01]$' devices.out)" = 2 ] &&
    [ "$(grep -c 'in use by' devices.out)" = 1 ]
result $? "devices lists a card that another process has, and says who"
cp check.json "$work/out"
[ "$(cat check.code)" = 1 ] && "${PYTHON:-/usr/bin/python3}" -c '
import json, sys
d = {x["uri"]: x for x in json.load(open("check.json"))["devices"]}
assert d["xrt:0"]["health"] == "busy" and d["xrt:0"]["counters"] is None
assert "in use by process " + sys.argv[1] + " (blockwave-serve)" in d["xrt:0"]["reason"], d["xrt:0"]["reason"]
assert d["xrt:1"]["health"] == "ok" and d["xrt:1"]["counters"]["runs"] == 1 and d["xrt:1"]["reason"] is None
for x in (d["xrt:0"], d["xrt:1"]):  # an emulated card is on no bus and has no sensors
    assert x["address"] is None and x["temperature_c"] is None and x["power_w"] is None' "$server" 2>"$work/err"
result $? "devices --check runs on the card that is free and says who has the other"
for c in run featurize profile load serve; do
    grep '^blockwave' "busy.$c" >"$work/err"
    [ "$(cat "busy.$c.code")" = 1 ] &&
        says "xrt:0: card 0 (/tmp/blockwave-xrt.*) is in use by process $server (blockwave-serve): end that, or take another card"
    result $? "$c on a card that another process has"
done
[ "$(cat other.code)" = 0 ] && cmp sim.npz other.npz
result $? "two processes, a card each: the simulator's bits"
cp after.err "$work/err"
[ "$(cat after.code)" = 0 ] && cmp sim.npz after.npz
result $? "the process that had the card was killed: the card is free"
refuse "load onto a card that is not there" 'xrt:7: .*lists 2 cards, there is no number 7: take one of them' \
    "$helper" run --cards 2 -- "$program" load a.bwbit --device xrt:7
# XRT's library under a name that nobody has.
mkdir -p patched && LC_ALL=C sed 's/libxrt_coreutil\.so\.2/libxrt_nowhere1.so.2/g' "$BW_BIN/../lib/libbw_hal_xrt.so" >patched/libbw_hal_xrt.so
refuse "load without XRT's library" 'xrt:0: XRT cannot be loaded: libxrt_nowhere1.so.2: .*apt-get install libxrt1' \
    "$helper" run -- env BW_PLUGIN_PATH="$work/patched" "$program" load a.bwbit --device xrt:0

# A card's program that ends at once, or never comes: the load fails, the process does not.
model=shipped/data/emulation/unified/cpu_em/generic_pcie/model
mkdir -p "$model" && ln -s /bin/false "$model/genericpciemodel"
# shellcheck disable=SC2086
refuse "a card that ends at once" 'cannot be loaded onto card 0' "$helper" run -- env XILINX_VITIS="$work/shipped" "$program" $run_xrt
printf '#!/bin/sh\nexec sleep 60\n' >"$work/sleeper" && chmod +x "$work/sleeper" && ln -sf "$work/sleeper" "$model/genericpciemodel"
# shellcheck disable=SC2086
refuse "a card that never comes" 'cannot be loaded onto card 0' "$helper" run -- env BW_XRT_START_MS=300 XILINX_VITIS="$work/shipped" "$program" $run_xrt

# The helper: exit codes, signals, nothing left.
"$helper" run -- sh -c 'exit 7'
[ $? = 7 ]
result $? "exit code of the command"
"$helper" run -- no-such-command 2>"$work/err"
[ $? = 127 ] && says 'no-such-command'
result $? "command not found"
for bad in "run" "run --cards 99 -- true" "run --mode fast -- true" "run --faults /nowhere -- true" "write" "write x.txt" "fly"; do
    # shellcheck disable=SC2086
    "$helper" $bad >"$work/out" 2>"$work/err"
    [ $? = 2 ] && says blockwave
    result $? "usage: $bad"
done
"$helper" run -- sh -c 'echo "$XILINX_XRT" >tree; exec sleep 30' &
pid=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -s tree ] && break; sleep 0.2; done
tree=$(dirname "$(cat tree)")
[ -d "$tree" ] && kill -TERM $pid && wait $pid
[ $? = 143 ] && [ ! -e "$tree" ]
result $? "SIGTERM is handed on, and the folder is gone"
# A command that is killed leaves its card to the helper.
"$helper" run -- sh -c 'dirname "$XILINX_XRT" >tree; "$0" serve d.bw --device xrt:0 --grpc 127.0.0.1:0 --port-file port & wait_for=$!
    for i in $(seq 100); do [ -s port ] && break; sleep 0.1; done; kill -9 $wait_for; kill -9 $$' "$program" >"$work/out" 2>"$work/err"
[ $? = 137 ] && [ -s tree ] && [ ! -e "$(cat tree)" ]
result $? "a killed command: the folder is gone"
echo "1..$n"
exit $fail
