#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The built-in commands on the shipped digits network: output, exit codes, one line for every error, nothing left behind.
set -u
bin="${BW_BIN:?}"
top="${BW_TOP:?}"
digits="$top/host/demo/digits"
python="${PYTHON:-/usr/bin/python3}"
bw="$bin/blockwave"
program="$bw"
. "$top/tests/support/tap.sh"
says() { # one line on stderr with the text, nothing on stdout
    [ "$(wc -l <"$work/err")" = 1 ] && grep -q -e "$1" "$work/err" && [ ! -s "$work/out" ]
}

# --- the program itself
run 0 --version && has '^blockwave 0\.1\.0$'
result $? "--version"
run 0 help && has '^  eval  ' && has '^  quantize  ' && run 0 --help && has '^usage: blockwave COMMAND' && run 2 &&
    grep -q '^usage' "$work/err"
result $? "help, and usage without a command"
ok=0
for c in devices load bitstream sign inspect run eval profile featurize; do
    run 0 $c --help && has "^usage: blockwave $c" && run 0 help $c && has "^usage: blockwave $c" || ok=1
    run 2 $c --frobnicate && says "^blockwave $c: unknown option '--frobnicate', see 'blockwave $c --help'$" || ok=1
done
result $ok "--help and unknown options of every command"
run 2 evla && says "^blockwave: 'evla' is not a command, did you mean 'eval'?$" && run 2 insp &&
    says "did you mean 'inspect'" && run 2 xyzzy && says "see 'blockwave help'" && run 2 ../inspect &&
    says "is not a command"
result $? "unknown commands get a suggestion"
mkdir "$work/path"
printf '#!/bin/sh\necho "argument: $1"\nexit 7\n' >"$work/path/blockwave-greet"
chmod +x "$work/path/blockwave-greet"
PATH="$work/path:$PATH" run 7 greet you && has '^argument: you$'
result $? "blockwave-X in PATH is the command X"
"$bw" devices >/dev/full 2>"$work/err"
[ $? = 1 ] && grep -q 'standard output' "$work/err"
result $? "a full disk behind standard output is a failure"

# --- devices, load
run 0 devices && has '^sim:$' && has '^  formats .*msfp12' && has '^opencl: not usable: \|^opencl:'
result $? "devices lists the simulator and says why others are absent"
run 0 devices --json && "$python" -c '
import json, sys
d = json.load(open(sys.argv[1]))
s = [x for x in d["devices"] if x["uri"] == "sim:"][0]
assert "msfp12" in s["offers"]["formats"] and 16 in s["offers"]["blocks"] and "CONV" in s["offers"]["opcodes"]
assert isinstance(d["absent"], list)
keys = {"uri", "name", "part", "address", "bitstream", "interface_id", "health", "reason", "memory_bytes",
        "temperature_c", "power_w", "counters", "offers"}
for x in d["devices"]:  # the same members for every device, null where nothing is known
    assert set(x) == keys, set(x) ^ keys
    assert x["health"] == "ok" and x["reason"] is None and x["counters"] is None
    assert all(v is None or isinstance(v, float) for v in (x["temperature_c"], x["power_w"]))
assert s["address"] is None and s["temperature_c"] is None and s["power_w"] is None' "$work/out" 2>>"$work/err"
result $? "devices --json"
run 0 devices && has '^  address    none$' && has '^  sensors    temperature unknown, power unknown$' && has '^  health     ok$' &&
    ! has '^  counters'
result $? "devices shows address, sensors and health"
run 0 devices --check --json && "$python" -c '
import json, sys
for x in json.load(open(sys.argv[1]))["devices"]:
    c = x["counters"]
    assert x["health"] == "ok" and x["reason"] is None
    assert (c["runs"], c["inferences"], c["images"], c["faults"], c["resets"], c["evictions"]) == (1, 3, 1, 0, 0, 0), c
    assert c["busy_ns"] > 0 and c["memory_used_bytes"] == 0 and c["memory_budget_bytes"] == 0' "$work/out" 2>>"$work/err"
result $? "devices --check runs a program on each and counts"
run 0 devices --check && has '^  counters   runs 1, inferences 3, images 1, faults 0, resets 0, evictions 0, busy .* ms, memory used 0 '
result $? "devices --check shows the counters"
echo nonsense >"$work/bad.bwbit"
run 1 load "$work/bad.bwbit" --device sim: && says 'bad.bwbit' && run 1 load "$work/none.bwbit" --device sim: &&
    says 'none.bwbit' && run 2 load "$work/bad.bwbit" && says 'device is missing' && run 2 load --device sim: &&
    says 'one bitstream'
result $? "load refuses what is no bitstream"
run 0 bitstream u250 -o "$work/u250.bwbit" && run 0 load "$work/u250.bwbit" --device sim:u250 &&
    has '^loaded u250 (.*) on sim:u250$' && run 1 load "$work/u250.bwbit" --device sim: && says 'sim-u250' &&
    run 1 bitstream u999 -o "$work/x.bwbit" && says 'u999' && [ ! -e "$work/x.bwbit" ] && run 2 bitstream u250 && says 'output'
result $? "bitstream writes what load takes"
run 1 load "$work/u250.bwbit" --device sim:unknown && says "sim:unknown: there is no target 'unknown', expected '', fast, reference or u250" &&
    run 1 load "$work/u250.bwbit" --device cart:0 && says "backend 'cart' cannot be used: plug-in libbw_hal_cart.so is not installed (looked in .*); the known ones are: sim"
result $? "load onto what is not there"
mkdir "$work/trust" "$work/others"
openssl genpkey -algorithm ed25519 -out "$work/key.pem" 2>>"$work/err" &&
    openssl pkey -in "$work/key.pem" -pubout -out "$work/trust/builds.pem" &&
    openssl genpkey -algorithm ed25519 -out "$work/other.pem" 2>>"$work/err" &&
    openssl pkey -in "$work/other.pem" -pubout -out "$work/others/them.pem"
result $? "keys to sign with"
load="load $work/u250.bwbit --device sim:u250"
run 1 $load --require-signed && says 'u250.bwbit: .*--trust' && run 1 $load --require-signed --trust "$work/trust" &&
    says 'u250.bwbit: .*not signed' && run 0 $load --trust "$work/trust"
result $? "an unsigned bitstream is refused where signatures are required"
run 0 sign "$work/u250.bwbit" --key "$work/key.pem" && has '1 signature$' &&
    run 0 $load --require-signed --trust "$work/trust" && has 'signed by builds$' && BW_TRUST_DIR="$work/trust" run 0 $load &&
    has 'signed by builds$' && run 0 $load && run 1 $load --trust "$work/others" && says 'none of the 1 keys'
result $? "a bitstream signed by a trusted key, and by another"
cp "$work/u250.bwbit" "$work/changed.bwbit"
printf 'X' | dd of="$work/changed.bwbit" bs=1 seek=300 conv=notrunc 2>/dev/null
run 1 load "$work/changed.bwbit" --device sim:u250 --trust "$work/trust" && says 'builds.* does not fit' &&
    run 1 sign "$work/changed.bwbit" --key "$work/key.pem" && says 'changed.bwbit: .*damaged' &&
    run 1 sign "$work/u250.bwbit" --key "$work/trust/builds.pem" && says 'private key' && run 2 sign "$work/u250.bwbit" &&
    says 'key is missing'
result $? "a changed bitstream is neither loaded nor signed"

# --- inspect
"$bin/blockwave-quantize" "$digits/digits.onnx" -o "$work/d.bw" --format msfp16 --name digits \
    --preprocess "$digits/preprocess.json" --labels "$digits/labels.txt" >"$work/out" 2>"$work/err"
result $? "a package to work with"
run 0 inspect "$work/d.bw" --verify && has '^model  *digits version 1$' && has '^inputs  *image  fp32 \[-1, 1, 32, 32\]$' &&
    has 'msfp16' && has 'stage0/program.bin' && has '^verified' && has 'instructions: .*CONV'
result $? "inspect --verify"
run 0 inspect --json "$work/d.bw" && tar xOf "$work/d.bw" manifest.json >"$work/manifest.json" && "$python" -c '
import json, sys
a, b = json.load(open(sys.argv[1])), json.load(open(sys.argv[2]))
assert a == b and a["format"] == "blockwave-package"' "$work/out" "$work/manifest.json" 2>>"$work/err"
result $? "inspect --json is the manifest that tar finds"
size=$(wc -c <"$work/d.bw")
dd if="$work/d.bw" of="$work/flip.bw" 2>/dev/null
printf 'X' | dd of="$work/flip.bw" bs=1 seek=$((size - 20000)) conv=notrunc 2>/dev/null
dd if="$work/d.bw" of="$work/cut.bw" bs=1000 count=9 2>/dev/null
run 1 inspect "$work/flip.bw" && says 'flip.bw: .*SHA-256' && run 1 inspect "$work/cut.bw" && says 'cut.bw: .*truncated' &&
    run 1 run "$work/flip.bw" "$digits/labels.txt" && says 'SHA-256' && run 1 inspect "$digits/digits.onnx" &&
    says 'not a package\|truncated'
result $? "damaged packages are refused, in one line"

# --- run
picture=$(ls "$digits"/pictures/*.png | head -n 1)
run 0 run "$work/d.bw" "$picture" --top 3 && [ "$(grep -c '^ ' "$work/out")" = 3 ] && has '^ .* [0-9]  [a-z]*$' &&
    ! has latency
result $? "run prints the best classes"
run 0 run "$work/d.bw" "$digits"/pictures/*0.png --repeat 2 --top 1 && has '^latency of [0-9]* runs, ms' && has '^  device queue '
result $? "several runs tell the latencies"
run 0 run "$work/d.bw" "$digits"/pictures/*1.png --output "$work/a.npy" --device sim: && cp "$work/a.npy" "$work/b.npy" &&
    run 0 run "$work/d.bw" "$digits"/pictures/*1.png --output "$work/a.npy" --device sim:reference &&
    cmp "$work/a.npy" "$work/b.npy" && run 0 run "$work/d.bw" "$digits"/pictures/*1.png -o - && cmp "$work/a.npy" "$work/out"
result $? "both engines write the same bytes, to a file and to standard output"
"$python" -c '
import sys, numpy as np
from PIL import Image
y = np.load(sys.argv[1])
x = np.stack([(np.asarray(Image.open(p).convert("L").resize((32, 32), Image.BILINEAR), np.float32) / 255 - 0.5) / 0.5
              for p in sys.argv[3:]])[:, None]
assert y.shape == (len(x), 10) and y.dtype == np.float32
np.save(sys.argv[2], x)' "$work/a.npy" "$work/x.npy" "$digits"/pictures/*1.png 2>>"$work/err" &&
    run 0 run "$work/d.bw" --input image="$work/x.npy" -o "$work/c.npy" && "$python" -c '
import sys, numpy as np
a, c = np.load(sys.argv[1]), np.load(sys.argv[2])
assert np.abs(a - c).max() < 1e-3 and (a.argmax(1) == c.argmax(1)).all()' "$work/a.npy" "$work/c.npy" 2>>"$work/err"
result $? "an array made by Pillow and NumPy scores like the pictures"
run 1 run "$work/d.bw" "$digits/labels.txt" && says 'labels.txt: .*neither a PNG nor a JPEG' && run 1 run "$work/d.bw" /none.png &&
    says '/none.png' && run 2 run "$work/d.bw" && says 'nothing to score' && run 2 run && says 'no package' &&
    run 2 run "$work/d.bw" --input nix="$picture" && says "'image'" && run 2 run "$work/d.bw" --top 0 "$picture" &&
    says "top is '0'" && run 1 run "$work/d.bw" "$picture" --device nix: && says 'nix' &&
    run 2 run "$work/d.bw" --input image="$picture" "$picture" && says 'name it too'
result $? "mistakes of run get one line and the right exit code"
run 1 run "$work/d.bw" "$picture" "$digits/labels.txt" --output "$work/never.npy" && [ ! -e "$work/never.npy" ] &&
    run 1 run "$work/d.bw" "$picture" --output "$work/no/such.npy" && grep -q 'such.npy' "$work/err"
result $? "a failed run writes nothing"

# --- eval, featurize
mkdir "$work/data"
for p in "$digits"/pictures/*[05].png; do cp "$p" "$work/data/"; done
count=$(ls "$work/data" | wc -l)
run 1 eval "$work/d.bw" --data "$work/data" && grep -q 'has no labels' "$work/err"
result $? "eval wants labels"
"$bw" run "$work/d.bw" "$work"/data/*.png --top 1 | "$python" -c '
import os, sys
lines = sys.stdin.read().split("\n\n")[0].splitlines()
for name, best in zip(lines[0::2], lines[1::2]):
    print(os.path.basename(name) + "," + best.split()[2])' >"$work/data/labels.csv"
run 0 eval "$work/d.bw" --data "$work/data" --batch 7 && has "^top-1  *100.00 %  ($count of $count)$" && has '^latency' &&
    grep -q "eval $count/$count" "$work/err"
result $? "eval agrees with run, labels as text"
run 0 eval "$work/d.bw" --data "$work/data" --count 3 --json --quiet && [ ! -s "$work/err" ] && "$python" -c '
import json, sys
r = json.load(open(sys.argv[1]))
assert r["samples"] == 3 and r["top1"] == 1 and r["top5"] == 1 and r["latency_ms"]["median"] > 0 and r["device"] == "sim:"' \
    "$work/out" 2>>"$work/err"
result $? "eval --json --count"
run 0 featurize "$work/d.bw" --data "$work/data" -o "$work/f.npz" --quiet && "$python" -c '
import sys, numpy as np
f = np.load(sys.argv[1])
assert f["x"].shape[0] == int(sys.argv[2]) == f["y"].shape[0] and f["x"].dtype == np.float32 and (f["y"] >= 0).all()' \
    "$work/f.npz" "$count" 2>>"$work/err"
result $? "featurize writes what NumPy reads"
run 0 featurize "$work/d.bw" --data "$work/data" -o "$work/g.npz" --quiet --batch 1 && cmp "$work/f.npz" "$work/g.npz"
result $? "features do not depend on the batch"
run 2 featurize "$work/d.bw" --data "$work/data" -o "$work/f.txt" && says 'neither .npz nor .npy' &&
    run 2 featurize "$work/d.bw" --data "$work/data" && says 'output is missing' && run 2 eval "$work/d.bw" && says 'data is missing' &&
    run 1 eval "$work/d.bw" --data /none && says '/none' && run 1 eval "$work/d.bw" --data "$work/x.npy" && grep -q labels "$work/err"
result $? "mistakes of eval and featurize"
cp "$digits/labels.txt" "$work/data/zzz.png"
run 1 featurize "$work/d.bw" --data "$work/data" -o "$work/h.npz" --quiet && says 'zzz.png: .*neither' &&
    [ -z "$(ls "$work" | grep '^h')" ]
result $? "a damaged picture leaves no half of a file"
"$bw" featurize "$work/d.bw" --data "$digits/pictures" -o "$work/i.npz" --batch 1 --device 'sim:?delay=20' >"$work/out" 2>"$work/err" &
pid=$!
for _ in $(seq 200); do
    [ -n "$(ls "$work" | grep '^i\.')" ] && break # it writes: signals are caught
    sleep 0.1
done
kill -INT "$pid"
wait "$pid"
code=$?
[ "$code" = 130 ] && grep -q 'interrupted after' "$work/err" && [ -z "$(ls "$work" | grep '^i\.')" ]
result $? "an interrupted featurize exits 130 and leaves nothing"

echo "1..$n"
exit $fail
