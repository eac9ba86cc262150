#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# tests/bench/bench.py on the shipped digits network, in slices too short to mean anything: all engines and ISAs give
# figures and the same outputs, absent networks and peers are said, results are kept.
set -u
top="${BW_TOP:?}"
build="${BW_BUILD:?}"
program="${PYTHON:-/usr/bin/python3}"
. "$top/tests/support/tap.sh"
bench="$top/tests/bench/bench.py"
case "$build" in /*) ;; *) build="$top/$build" ;; esac
export BW_BENCH_WORKER="$build/tests/bench/bench_network" BW_BENCH_OUT="$work/bench" BW_SHARED="$work/none" BW_PEERS="$work/none"
export BW_BENCH_SECONDS=0.01 BW_BENCH_ROUNDS=2 BW_BENCH_THREADS=1,2

run 0 "$bench" --only digits,vgg19 && has '^vgg19: absent (onnx/light/light_vgg19.onnx' && has '^digits  0.0[0-9]* G multiply-adds' &&
    has '^  blockwave msfp16 .* 2 .*[0-9]$' && has '^  blockwave mxint8 ' && has '^2 threads against 1' && has '^roofline, 1 thread' &&
    ! has 'failed'
result $? "make bench's tables; a network that is not there is said to be absent"
"$program" - "$work/bench/digits.json" >"$work/out" 2>"$work/err" <<'EOF'
import json, sys
r = json.load(open(sys.argv[1]))
own = [x for x in r["results"] if x["engine"] == "blockwave"]
assert {x["threads"] for x in own} == {1, 2} and {x["format"] for x in own} == {"msfp16", "msfp12", "mxint8"}
for x in own:
    assert 0 < x["p10"] <= x["ms"] <= x["p90"] and x["runs"] >= 6, x
    assert abs(x["images_per_s"] * x["ms"] - 1000) < 1e-6
    assert abs(x["gmacs_per_s"] - r["program"]["macs"] / x["ms"] * 1e-6) < 1e-9 * x["gmacs_per_s"]
    assert abs(x["peak_percent"] - 100 * x["gmacs_per_s"] / x["threads"] / r["peaks"][x["isa"]]["int8"]) < 1e-6
isas = [i for i in r["peaks"] if i != "read_gb_per_s"]
assert {x["isa"] for x in own} == set(isas), isas
assert r["profile"]["conv"]["macs"] <= r["program"]["macs"] and r["machine"]["cpu"] and len(r["sha256"]) == 64
assert all(v > 0 for v in r["peaks"]["read_gb_per_s"].values())
EOF
result $? "build/bench/NAME.json has every combination, and figures that agree"
run 0 "$bench" --only digits --peers && has '^no environment for peers at ' && has 'compared with the float CPU operators' &&
    has '^  onednn fp32 ' && has 'oneDNN fp32' && "$program" - "$work/bench/digits.peers.json" >>"$work/out" 2>"$work/err" <<'EOF'
import json, sys
r = json.load(open(sys.argv[1]))
assert {(x["engine"], x["threads"]) for x in r["results"]} == {(e, t) for e in ("blockwave", "onednn") for t in (1, 2)}
own = [c for c in r["checks"] if c["engine"] == "blockwave"]
assert own and all(c["finite"] and c["top1_same"] and c["sqnr_db"] > 20 for c in own), r["checks"]
EOF
result $? "without peers the float CPU operators stand in, and compute the same"
run 0 "$bench" --report --markdown --svg "$work/r.svg" && has '^| digits ' && grep -q '</svg>' "$work/r.svg" && grep -q 'GMAC/s' "$work/r.svg" &&
    "$program" -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' "$work/r.svg" 2>>"$work/err"
result $? "--report shows what was kept, as text and as a picture"
run 1 "$bench" --only nothing-of-this-name && run 1 "$bench" --isa neon --only digits && says "isa neon: this CPU has .*portable" &&
    run 1 "$bench" --only digits --formats msfp99 && has "^  blockwave msfp99 .* failed: .*msfp99" &&
    BW_BENCH_WORKER="$work/none" run 1 "$bench" && says "no worker at .*make bench"
result $? "mistakes end in status 1 and say what is wrong"

echo "1..$n"
exit $fail
