#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# `blockwave profile` on the shipped digits network: the table, JSON and the trace agree with the program and with
# themselves; wrong use and devices without clocks get one line and leave no file.
set -u
bin="${BW_BIN:?}"
top="${BW_TOP:?}"
digits="$top/host/demo/digits"
python="${PYTHON:-/usr/bin/python3}"
program="$bin/blockwave"
. "$top/tests/support/tap.sh"

"$bin/blockwave-quantize" -q "$digits/digits.onnx" -o "$work/d.bw" >"$work/out" 2>"$work/err"
result $? "a package to work with"

# --- names
tar xOf "$work/d.bw" stage0/program.bin >"$work/program.bin" && tar xOf "$work/d.bw" manifest.json >"$work/manifest.json" &&
    "$python" - "$work" "$digits/digits.onnx" >"$work/out" 2>"$work/err" <<'EOF'
import json, struct, sys
import onnx
work, model = sys.argv[1:]
stage = json.load(open(work + "/manifest.json"))["stages"][0]
count = struct.unpack("<III", open(work + "/program.bin", "rb").read(12))[2]
assert len(stage["layers"]) == count, (len(stage["layers"]), count)
graph = onnx.load(model).graph
names = {n.name for n in graph.node} | {o for n in graph.node for o in n.output} | {i.name for i in graph.input}
opcodes = open(work + "/program.bin", "rb").read()[64::256]
convs = [l for l, o in zip(stage["layers"], opcodes) if o == 1]
assert convs and all(l in names for l in convs), convs
assert len(set(convs)) == len(convs), convs
EOF
result $? "the package names the source node of every instruction"

# --- table
run 0 profile "$work/d.bw" --runs 5 --threads 1 && has '^digits version 1 on sim:?threads=1: ' &&
    has '^batch 1, 5 runs, medians$' && has '^peak of one core: [0-9.]* G multiply-adds/s of int8' && has '^ *0 .* CONV\|^ *0 .* PATCH\|^ *0 .* COPY' &&
    has '^ .* to device  ' && has '^all CONV  .* % of the int8 peak; layers weighted by work: [0-9.]* %$' && has '^sum of the rows ' &&
    has '^a run, instructions timed ' && has '^a run, not timed ' && [ ! -s "$work/err" ]
result $? "the table has the rows and the sums"

# --- JSON, trace
run 0 profile "$work/d.bw" --json --runs 9 --batch 3 --threads 2 --trace "$work/trace.json" && "$python" - "$work" \
    >>"$work/err" 2>&1 <<'EOF'
import json, struct, sys
work = sys.argv[1]
d, t = json.load(open(work + "/out")), json.load(open(work + "/trace.json"))
count = struct.unpack("<III", open(work + "/program.bin", "rb").read(12))[2]
assert (d["batch"], d["runs"], d["threads"], d["device"]) == (3, 9, 2, "sim:?threads=2"), d
ins = [r for r in d["rows"] if "instruction" in r]
assert [r["instruction"] for r in ins] == list(range(count))
# Patches take no time of their own where the convolution after them makes them.
assert all((r["ms"] > 0 or r["operation"] == "PATCH") and r["p10"] <= r["ms"] <= r["p90"] for r in ins)
convs = [r for r in ins if r["operation"] == "CONV"]
assert all(r["layer"] and r["macs"] > 0 and r["gmacs_per_s"] > 0 and r["peak_percent"] > 0 for r in convs)
assert all(min(r["bytes"].values()) > 0 for r in convs)
r = convs[0]
h, w, c = map(int, r["shape"].split(" -> ")[1].split()[0].split("x"))
assert r["macs"] % (h * w * c * 3) == 0, r
assert abs(r["gmacs_per_s"] - r["macs"] / r["ms"] * 1e-6) <= 1e-3 * r["gmacs_per_s"]
assert abs(sum(r["share"] for r in d["rows"]) - 1) < 1e-6
by_work = sum(r["macs"] * r["peak_percent"] for r in convs) / sum(r["macs"] for r in convs)
assert abs(d["conv"]["peak_percent_by_work"] - by_work) < 1e-6 * by_work
# Medians of parts against the median of the whole: rough, but a stage that is missing or counted twice shows.
assert 0.5 < d["sum_ms"] / d["timed_ms"]["median"] < 1.5, (d["sum_ms"], d["timed_ms"])
assert {"to device", "hand over", "from device", "check inputs", "deliver"} <= {r["operation"] for r in d["rows"]}
events = [e for e in t["traceEvents"] if e["ph"] == "X"]
assert len(events) == len(d["rows"])
for a, b in zip(events, events[1:]):
    assert a["dur"] >= 0 and abs(a["ts"] + a["dur"] - b["ts"]) < 0.01, (a, b)
total = events[-1]["ts"] + events[-1]["dur"]
assert abs(total - d["timed_ms"]["median"] * 1000) < 1, (total, d["timed_ms"])
assert {e["args"]["name"] for e in t["traceEvents"] if e["ph"] == "M"} >= {"host"}
EOF
result $? "JSON and trace: every instruction, sums that add up"

# --- the same without names: packages written before them
mkdir "$work/unpacked" && tar xf "$work/d.bw" -C "$work/unpacked" && "$python" - "$work" >"$work/out" 2>"$work/err" <<'EOF'
import json, sys
work = sys.argv[1]
path = work + "/unpacked/"
m = json.load(open(path + "manifest.json"))
for s in m["stages"]:
    s.pop("layers", None)
m.pop("manifest_sha256", None)
with open(work + "/old.bw", "wb") as out:
    for name in ["manifest.json"] + [s["name"] for s in m["sections"]]:
        data = json.dumps(m, sort_keys=True).encode() if name == "manifest.json" else open(path + name, "rb").read()
        field = lambda text, width: text.encode().ljust(width, b"\0")
        before = field(name, 100) + b"0000644\0" + b"0000000\0" * 2 + field(f"{len(data):011o}", 12) + field("0" * 11, 12)
        after = b"0" + b"\0" * 100 + b"ustar\00000" + b"\0" * 64 + b"0000000\0" * 2
        after += b"\0" * (512 - len(before) - 8 - len(after))
        header = before + f"{sum(before) + 8 * 32 + sum(after):06o}".encode() + b"\0 " + after
        out.write(header + data + b"\0" * (-len(data) % 512))
    out.write(b"\0" * 1024)
EOF
run 0 profile "$work/old.bw" --runs 2 && has ' CONV ' && has '^sum of the rows '
result $? "a package without names is profiled all the same"

# --- mistakes
run 1 profile "$work/d.bw" --runs 2 --device sim:reference --trace "$work/none.json" &&
    says "^blockwave profile: .*sim:reference: the reference interpreter does not time instructions: take a device of the fast engine (sim:)$" &&
    [ ! -s "$work/out" ] && [ ! -e "$work/none.json" ]
result $? "a device without clocks is told, with the next step"
run 2 profile && says 'expected one package, got 0' && run 2 profile "$work/d.bw" --runs 0 &&
    says "runs is '0', expected a whole number from 1" && run 2 profile "$work/d.bw" --batch 5000 && says 'from 1 to 4096' &&
    run 2 profile "$work/d.bw" --threads many && says "threads is 'many'" && run 1 profile "$work/none.bw" && says 'none.bw' &&
    run 1 profile "$work/d.bw" --device nix: && says "nix"
result $? "wrong use"
run 1 profile "$work/d.bw" --runs 1 --trace "$work/no/such/dir/t.json" && says 'no/such/dir/t.json' && [ ! -s "$work/out" ]
result $? "a trace that cannot be written is an error"

echo "1..$n"
exit $fail
