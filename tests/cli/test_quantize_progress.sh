#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# blockwave-quantize while it runs: the bar on a terminal and its absence elsewhere, interruption, memory, threads.
set -u
bin="${BW_BIN:?}"
top="${BW_TOP:?}"
python="${PYTHON:-/usr/bin/python3}"
export OMP_NUM_THREADS=1
program="$bin/blockwave-quantize"
. "$top/tests/support/tap.sh"

# A small network on large pictures: 1.8 MB a sample, four samples a batch.
"$python" - "$work" <<'PY' || exit 1
import sys
import numpy as np, onnx
from onnx import helper, numpy_helper, TensorProto
work, rng = sys.argv[1], np.random.default_rng(5)
w = [numpy_helper.from_array(rng.normal(0, .1, s).astype(np.float32), n)
     for n, s in (("w0", (16, 3, 4, 4)), ("w1", (32, 16, 3, 3)), ("w2", (10, 32)))]
nodes = [helper.make_node("Conv", ["x", "w0"], ["a"], strides=[4, 4], kernel_shape=[4, 4]), helper.make_node("Relu", ["a"], ["b"]),
         helper.make_node("Conv", ["b", "w1"], ["c"], strides=[2, 2], kernel_shape=[3, 3]), helper.make_node("Relu", ["c"], ["d"]),
         helper.make_node("GlobalAveragePool", ["d"], ["e"]), helper.make_node("Flatten", ["e"], ["f"]),
         helper.make_node("Gemm", ["f", "w2"], ["y"], transB=1)]
value = lambda n, d: helper.make_tensor_value_info(n, TensorProto.FLOAT, d)
g = helper.make_graph(nodes, "pictures", [value("x", ["N", 3, 384, 384])], [value("y", ["N", 10])], w)
onnx.save(helper.make_model(g, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), work + "/pictures.onnx")
x = np.lib.format.open_memmap(work + "/pictures.npy", "w+", np.float32, (40, 3, 384, 384))
for i in range(40):
    x[i] = rng.normal(0, 1, (3, 384, 384))
PY
model="$work/pictures.onnx"

# On a terminal: runs the program on one, interrupts it at a percentage (0: not) and prints what it showed, one JSON object.
cat >"$work/terminal.py" <<'PY'
import json, os, pty, re, signal, sys
stop_at, command = int(sys.argv[1]), sys.argv[2:]
child, fd = pty.fork()
if child == 0:
    os.environ["TERM"] = "xterm"
    os.execv(command[0], command)
text, sent = b"", False
while True:
    try:
        chunk = os.read(fd, 4096)
    except OSError:
        break
    if not chunk:
        break
    text += chunk
    seen = [int(v) for v in re.findall(rb"\] +(\d+) %", text)]
    if stop_at and not sent and seen and seen[-1] >= stop_at:
        sent = True
        os.kill(child, signal.SIGINT)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps({"code": code, "sent": sent, "percent": [int(v) for v in re.findall(rb"\] +(\d+) %", text)],
                  "labels": re.findall(r"%  ([a-z ]+?)(?:  | ?\x1b)", text.decode()), "text": text.decode()}))
PY
"$python" "$work/terminal.py" 0 "$program" "$model" -o "$work/t.bw" --calib "$work/pictures.npy" >"$work/out" 2>"$work/err" &&
    "$python" - "$work/out" <<'PY' 2>>"$work/err"
import json, sys
r = json.load(open(sys.argv[1]))
p = r["percent"]
assert r["code"] == 0, r
assert p == sorted(p), p                       # never back
assert p[-1] == 100 and p.count(100) == 1, p   # and full only at the end
assert len(p) >= 5 and p[0] < 50, p
seen = list(dict.fromkeys(r["labels"]))
assert [s for s in ("reading", "folding", "packing weights", "calibrating", "writing") if s in seen] == seen, seen
assert "calibrating" in seen and "writing" in seen, seen
PY
result $? "a terminal sees a bar that rises to 100 %"

"$python" "$work/terminal.py" 0 "$program" "$model" -q -o "$work/q.bw" --calib "$work/pictures.npy" --calib-count 4 >"$work/out" 2>"$work/err" &&
    grep -q '"code": 0, .*"text": ""' "$work/out"
result $? "and with -q nothing at all"

mkdir "$work/clean"
"$python" "$work/terminal.py" 30 "$program" "$model" -o "$work/clean/i.bw" --calib "$work/pictures.npy" >"$work/out" 2>"$work/err" &&
    "$python" - "$work/out" <<'PY' 2>>"$work/err" && [ -z "$(ls -A "$work/clean")" ]
import json, sys
r = json.load(open(sys.argv[1]))
assert r["sent"] and r["code"] == 130, r
assert 100 not in r["percent"], r
assert "\nblockwave quantize: interrupted: nothing was written" in r["text"], r
PY
result $? "an interrupt on a terminal ends with 130, a line of its own, and no file"

run 0 "$model" -o "$work/p.bw" --calib "$work/pictures.npy" --calib-count 8 &&
    [ "$(cat "$work/err")" = "calibrating on 8 samples" ] && ! grep -q "$(printf '\033')" "$work/err"
result $? "a file gets a line for the long phase and no bar"

# Threads, and with them the order in which pieces are done, leave no trace.
same=0
for threads in 1 2 5; do
    BW_CPU_THREADS=$threads BW_SIM_THREADS=$threads OMP_NUM_THREADS=$threads "$program" "$model" -q -o "$work/n$threads.bw" \
        --format msfp12 --scale-rule mse --calib "$work/pictures.npy" --calib-count 6 >"$work/out" 2>"$work/err" &&
        cmp "$work/n1.bw" "$work/n$threads.bw" >>"$work/out" 2>>"$work/err" || same=1
done
result $same "the same bytes with 1, 2 and 5 threads"

cat >"$work/peak.py" <<'PY'
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
PY
if [ -n "${BW_SAN:-}" ]; then
    n=$((n + 1))
    echo "ok $n - memory does not grow with the samples # SKIP sanitizers keep freed memory"
else
    few=$("$python" "$work/peak.py" "$program" "$model" -q -o "$work/8.bw" --calib "$work/pictures.npy" --calib-count 8) &&
        many=$("$python" "$work/peak.py" "$program" "$model" -q -o "$work/40.bw" --calib "$work/pictures.npy") &&
        echo "peak: $few kB with 8 samples, $many kB with 40" >"$work/out" && [ "$many" -le $((few + 6144)) ]
    result $? "memory does not grow with the samples: 40 take at most 6 MB more than 8, of 57 MB"
fi
echo "1..$n"
exit $fail
