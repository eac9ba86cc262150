#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Bad input of every kind from outside: one line that names the thing and what to do, a failing exit code, and a
# directory that holds the same files with the same bytes as before.
set -u
bin="${BW_BIN:?}"
top="${BW_TOP:?}"
digits="$top/host/demo/digits"
python="${PYTHON:-/usr/bin/python3}"
bw="$bin/blockwave"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
out="$work/out"
err="$work/err"
room="$work/room" # what the commands can see and must not change
mkdir "$room"
cd "$room" || exit 1
n=0
fail=0
ok=0
note() { # what went wrong; fails the current result
    ok=1
    echo "$1" >>"$work/notes"
}
result() { # name
    n=$((n + 1))
    if [ "$ok" = 0 ]; then echo "ok $n - $1"; else
        echo "not ok $n - $1"
        head -n 40 "$work/notes" | sed 's/^/# /'
        fail=1
    fi
    ok=0
    : >"$work/notes"
}
skip() {
    n=$((n + 1))
    echo "ok $n - $1 # SKIP $2"
}
listing() { find . | sort | while read -r f; do if [ -f "$f" ]; then cksum "$f"; else ls -ld "$f" | cut -c1-10; fi; done; }
errors() { grep -v -E '^[0-9-]+T[0-9:.]+Z (info|warn) ' "$err"; } # without the server's log
refused() { # expected line (extended regular expression), command...
    want=$1
    shift
    timeout 60 "$@" >"$out" 2>"$err" </dev/null
    code=$?
    [ "$code" = 1 ] || note "$*: exit code $code, expected 1: $(errors | head -n 3)"
    [ "$(errors | wc -l)" = 1 ] || note "$*: not one line: $(head -n 5 "$err")"
    errors | grep -q -E -e "^blockwave [a-z]+: $want" || note "$*: '$(errors)', expected '$want'"
}
unchanged() {
    listing >"$work/after"
    cmp -s "$work/before" "$work/after" || note "files changed: $(diff "$work/before" "$work/after" | head -n 5)"
}
serve="$bw serve --grpc 127.0.0.1:0 --port-file port"

# --- what all of it starts from: models, pictures, arrays, packages
"$python" - "$digits/pictures/digit-000.png" <<'PY' || exit 1
import sys
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
rng = np.random.default_rng(1)
def save(name, nodes, weights, shape_in, shape_out):
    value = lambda n, shape: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, name, [value("x", shape_in)], [value("y", shape_out)],
                              [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), name + ".onnx")
w = rng.standard_normal((16, 8)) / 4
dense = lambda out: helper.make_node("MatMul", ["x", "w"], [out], name="dense")
save("good", [dense("y")], {"w": w}, ["N", 16], ["N", 8])
for name, number in (("nan", np.nan), ("infinite", -np.inf)):
    bad = w.copy()
    bad[3, 5] = number
    save(name, [dense("y")], {"w": bad}, ["N", 16], ["N", 8])
for name, extra in (("unsupported", {"op_type": "Einsum", "equation": "ij->ij"}),
                    ("foreign", {"op_type": "Warp", "domain": "com.example"})):
    save(name, [dense("a"), helper.make_node(extra.pop("op_type"), ["a"], ["y"], name="odd", **extra)], {"w": w},
         ["N", 16], ["N", 8])
save("dynamic", [helper.make_node("Conv", ["x", "k"], ["y"], name="conv", pads=[1, 1, 1, 1])],
     {"k": rng.standard_normal((4, 3, 3, 3)) / 5}, ["N", 3, "height", 8], ["N", 4, "height", 8])
np.save("x.npy", np.ones((2, 16), np.float32))
np.save("wide.npy", np.ones((2, 17), np.float32))
np.save("nan.npy", np.full((2, 16), np.nan, np.float32))
np.save("text.npy", np.array(["a", "b"]))
np.save("many.npy", rng.standard_normal((4096, 16)).astype(np.float32))
np.savez("calib.npz", x=rng.standard_normal((640, 1, 32, 32)).astype(np.float32))
open("cut.npy", "wb").write(open("x.npy", "rb").read()[:-5])
png = open(sys.argv[1], "rb").read()
Image.open(sys.argv[1]).convert("RGB").resize((64, 64)).save("whole.jpg")
jpeg = open("whole.jpg", "rb").read()
open("whole.png", "wb").write(png)
open("cut.png", "wb").write(png[:len(png) // 2])
open("cut.jpg", "wb").write(jpeg[:len(jpeg) // 2])
open("early.jpg", "wb").write(jpeg[:20])
open("empty.png", "wb").close()
open("text.png", "w").write("these are no pixels\n")
PY
"$bw" quantize "$digits/digits.onnx" -o digits.bw --preprocess "$digits/preprocess.json" --labels "$digits/labels.txt" -q &&
    "$bw" quantize good.onnx -o good.bw -q &&
    "$bw" quantize good.onnx -o fp8.bw --format mxfp8_e4m3 -q &&
    "$bw" quantize "$digits/digits.onnx" -o wide.bw --format msfp12 --block 64 -q || note "no packages to work with"
listing >"$work/before"
result "models, pictures and packages to work with"

# --- networks
odd='node .odd. \(Einsum\), opset 13: the operator is not supported: cut the model before it or replace it'
refused "unsupported.onnx: $odd" "$bw" quantize unsupported.onnx -o new.bw
refused "unsupported.onnx: $odd" "$bw" check unsupported.onnx
refused "foreign.onnx: node 'odd' \(Warp\): .*'com.example' are not supported: export the model with" \
    "$bw" quantize foreign.onnx -o new.bw
unchanged
result "an unsupported operator"
axis="dynamic.onnx: input 'x': axis 2 is dynamic \('height'\), only the batch may be: .*--bind height="
refused "$axis" "$bw" quantize dynamic.onnx -o new.bw
refused "$axis" "$bw" check dynamic.onnx
refused ".*'?width(=8)?'?" "$bw" quantize dynamic.onnx -o new.bw --bind height=8 --bind width=8
unchanged
"$bw" quantize dynamic.onnx -o "$work/bound.bw" --bind height=8 -q && "$bw" inspect "$work/bound.bw" |
    grep -q 'fp32 \[-1, 3, 8, 8\]' || note "--bind height=8 gave no package"
result "a dynamic dimension: refused, and fine with --bind"
for v in 'nan NaN' 'infinite -?infinity'; do
    refused "${v% *}.onnx: initialiser 'w': ${v#* } at index 29: " "$bw" quantize "${v% *}.onnx" -o new.bw
    refused "${v% *}.onnx: initialiser 'w': ${v#* } at index 29: " "$bw" check "${v% *}.onnx"
done
unchanged
result "weights that are no numbers"

# --- packages: cut and with one bit flipped, in every part of the file
mkdir "$work/damaged"
"$python" - "$work/damaged" <<'PY' || note "no damaged packages"
import sys, tarfile
whole = open("digits.bw", "rb").read()
parts = {}
with tarfile.open("digits.bw") as t:
    for m in t:
        parts[m.name] = (m.offset, m.offset_data, m.size)
def save(name, data):
    open(f"{sys.argv[1]}/{name}.bw", "wb").write(data)
def flip(name, at, bit=0):
    save(f"flip-{name}-{at}", whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:])
def cut(name, at):
    save(f"cut-{name}-{at}", whole[:at])
for name in ("manifest.json", "stage0/program.bin", "stage0/constants.bin"):
    header, data, size = parts[name]
    short = name.split("/")[-1].split(".")[0]
    flip(short + "-name", header + 2)
    flip(short + "-size", header + 133, 1)
    flip(short + "-sum", header + 150)
    flip(short + "-magic", header + 257)
    for at in (0, size // 3, size - 1):
        flip(short, data + at, at % 8)
    cut(short + "-header", header + 100)
    cut(short, data + size // 2)
flip("program-header", parts["stage0/program.bin"][1] + 5)
flip("padding", parts["stage0/program.bin"][1] + parts["stage0/program.bin"][2] + 1)
flip("end", len(whole) - 1)
cut("nothing", 0)
cut("end", len(whole) - 1)
cut("end", len(whole) - 1024)
PY
[ "$(ls "$work/damaged" | wc -l)" -ge 28 ] || note "damaged packages: $(ls "$work/damaged")"
for f in "$work"/damaged/*.bw; do
    refused "$f: .*(damaged|truncated|expected|manifest)" "$bw" inspect "$f"
    refused "$f: " "$bw" run "$f" whole.png
done
unchanged
result "damaged packages: inspect, run"
for f in "$work"/damaged/*program*.bw "$work"/damaged/cut*.bw; do
    refused "$f: " "$bw" eval "$f" --data "$digits/pictures"
    refused "$f: " "$bw" featurize "$f" --data "$digits/pictures" -o new.npz
    refused "$f: " $serve "$f"
done
refused "$work/damaged/.*: " $serve good.bw --models "$work/damaged"
unchanged
result "damaged packages: eval, featurize, serve"

# --- pictures and arrays
refused "text.png: 20 bytes starting with 74 68 65 73 are neither a PNG nor a JPEG picture: " "$bw" run digits.bw text.png
refused "empty.png: 0 bytes, expected a PNG or a JPEG picture: " "$bw" run digits.bw empty.png
refused "cut.png: damaged PNG: the file ends early: " "$bw" run digits.bw cut.png
refused "cut.jpg: damaged JPEG: .*end" "$bw" run digits.bw cut.jpg
refused "early.jpg: damaged JPEG: .*end" "$bw" run digits.bw early.jpg -o new.npy
refused "none.png: cannot open: No such file or directory: check the name" "$bw" run digits.bw none.png
mkdir "$work/pictures"
cp "$digits"/pictures/digit-00[0-4].png "$work/pictures"
printf 'name,label\n' >"$work/pictures/labels.csv"
for p in "$work"/pictures/*.png; do echo "${p##*/},1" >>"$work/pictures/labels.csv"; done
for bad in text.png empty.png cut.png; do
    cp "$bad" "$work/pictures/digit-003.png"
    refused "$work/pictures/digit-003.png: " "$bw" featurize digits.bw --data "$work/pictures" -o new.npz --quiet
    refused "$work/pictures/digit-003.png: " "$bw" eval digits.bw --data "$work/pictures" --quiet
    refused "$work/pictures/digit-003.png: " "$bw" quantize "$digits/digits.onnx" -o new.bw --quiet \
        --preprocess "$digits/preprocess.json" --calib "$work/pictures"
done
unchanged
result "pictures that are none"
refused "wide.npy: input 'x' is fp32 \[2, 17\], expected fp32 \[-1, 16\]" "$bw" run good.bw wide.npy
refused "nan.npy: input 'x': element 0 is nan, expected finite numbers" "$bw" run good.bw nan.npy
refused "text.npy: " "$bw" run good.bw text.npy
refused "cut.npy: " "$bw" run good.bw cut.npy
refused "whole.png: the package records no pre-processing for input 'x': give a .npy file" "$bw" run good.bw whole.png
unchanged
result "arrays of another shape, type or length"

# --- devices
lacks="stage 0: sim:u250: program: uses format mxfp8_e4m3, the device has .*msfp12.*: quantize to one of these or"
for c in 'run fp8.bw x.npy' 'eval fp8.bw --data x.npy' 'featurize fp8.bw --data x.npy -o new.npz'; do
    refused "fp8.bw: $lacks" "$bw" $c --device sim:u250
done
refused "fp8.bw: $lacks" $serve fp8.bw --device sim:u250
refused "wide.bw: stage 0: sim:u250: program: uses blocks of 64, the device has 16 32: " "$bw" run wide.bw x.npy --device sim:u250
for d in sim: sim:reference; do
    "$bw" run fp8.bw x.npy --device $d >"$out" 2>"$err" || note "fp8.bw on $d: $(cat "$err")"
done
refused ".*vu9p" "$bw" run good.bw x.npy --device sim:vu9p
unchanged
result "packages that the device cannot run"

# --- outputs
for c in 'quantize good.onnx -o' 'featurize good.bw --data x.npy -o' 'run good.bw x.npy -o'; do
    refused "none/new.npy: cannot write: No such file or directory: make its directory first" "$bw" $c none/new.npy
    refused "x.npy/new.npy: cannot write: Not a directory: " "$bw" $c x.npy/new.npy
    mkdir "$work/dir.npy"
    refused "$work/dir.npy: is a directory, expected the name of a file to write" "$bw" $c "$work/dir.npy"
    rmdir "$work/dir.npy" || note "not empty: $(ls "$work/dir.npy")"
done
refused "none/port: cannot write: No such file or directory: make its directory first" $serve good.bw --port-file none/port
refused "the output's name is empty" "$bw" quantize good.onnx -o ''
ln -s /dev/full full.npy
refused "full.npy: cannot write: No space left on device: make room or pick another place" "$bw" quantize good.onnx -o full.npy
refused "full.npy: is not a regular file" "$bw" run good.bw x.npy -o full.npy
refused "full.npy: is not a regular file" "$bw" featurize good.bw --data x.npy -o full.npy
[ -c /dev/full ] && [ -L full.npy ] || note "/dev/full or the link to it was replaced"
rm -f full.npy
unchanged
result "outputs that cannot be written"
cat >"$work/mounted.sh" <<'SH'
mount -t tmpfs -o "$1" none "$2" || exit 77
[ "$1" != "${1#ro}" ] || echo old >"$2/keep"
dir=$2
shift 2
"$@"
code=$?
ls -A "$dir" >"$dir.list"
exit $code
SH
mkdir "$work/disk"
inside="unshare -rm sh $work/mounted.sh"
if $inside size=48k "$work/disk" true 2>"$err"; then
    for c in "quantize $digits/digits.onnx -q -o" 'featurize good.bw --data many.npy --quiet -o' \
        'run good.bw many.npy --top 1 -o'; do
        refused "$work/disk/new.npz: cannot write: No space left on device: make room or pick another place" \
            $inside size=48k "$work/disk" "$bw" $c "$work/disk/new.npz"
        [ "$(cat "$work/disk.list")" = keep ] || note "$c: left on the full disk: $(cat "$work/disk.list")"
        refused "$work/disk/new.npz: cannot write: Read-only file system: pick another place" \
            $inside ro,size=48k "$work/disk" "$bw" $c "$work/disk/new.npz"
    done
    unchanged
    result "a full and a read-only disk"
else
    skip "a full and a read-only disk" "no user namespaces here: $(tail -n 1 "$err")"
fi

# --- interruption
interrupt() { # signal, options...: while samples are measured, which the lines of progress tell
    signal=$1
    shift
    : >"$err" # not the progress of the one before
    "$bw" quantize "$digits/digits.onnx" -o new.bw --calib calib.npz "$@" >"$out" 2>"$err" &
    pid=$!
    for _ in $(seq 600); do
        grep -q " samples$" "$err" && break
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.02
    done
    kill -"$signal" "$pid" 2>/dev/null || note "it ended before SIG$signal"
    wait "$pid"
    code=$?
    [ "$code" = 130 ] || note "SIG$signal: exit code $code, expected 130"
    [ "$(grep -c -v " samples$" "$err")" = 1 ] || note "SIG$signal: not one line beside the progress: $(cat "$err")"
    tail -n 1 "$err" | grep -q '^blockwave quantize: interrupted: nothing was written$' || note "$(tail -n 1 "$err")"
    [ -s "$out" ] && note "standard output: $(cat "$out")"
    unchanged
}
interrupt INT
interrupt TERM --bias-correction
result "an interrupted quantization writes nothing"
echo "1..$n"
exit $fail
