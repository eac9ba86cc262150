#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time, memory and progress of `blockwave quantize` on ResNet-50, beside onnxruntime's quantize_static.

bench_quantize.py BIN [--runs N] [--samples N] [--formats F,F] [--json FILE] [--work DIR]

The network is ResNet-50 of the shared test material ($BW_SHARED, onnx/light) with seeded random weights in place of its
constant ones, written as an ordinary model of 102 MB; the samples are seeded smooth noise, 3 x 224 x 224. Each program
reads the model and the samples from files and writes its result, in a process of its own; its time is from start to
end, its memory the largest resident set. Runs alternate, medians count. The peer runs in the virtual environment
$BW_PEERS (default build/peers); whatever is missing is reported as absent, never replaced.
"""
import argparse
import json
import os
import pty
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Runs in a child, so that numpy and onnx do not count as memory of what this process starts.
GENERATE = r"""
import sys
import numpy as np, onnx
from onnx import helper, numpy_helper, version_converter, TensorProto
source, model, samples, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
rng = np.random.default_rng(1)
light = onnx.load(source).graph
known = {i.name: numpy_helper.to_array(i) for i in light.initializer}
nodes = [n for n in light.node if n.op_type != "ConstantOfShape"]
shapes = {n.output[0]: [int(d) for d in known[n.input[0]]] for n in light.node if n.op_type == "ConstantOfShape"}
roles = {}
for n in nodes:
    for role, name in zip({"Conv": "-wc", "Gemm": "-wc", "BatchNormalization": "-sbmv"}.get(n.op_type, ""), n.input):
        roles[name] = role
    if n.op_type == "Reshape":  # the batch is free
        known[n.input[1]] = np.array([-1, *known[n.input[1]].ravel()[1:]], np.int64)
        roles[n.input[1]] = "-"
constants = []
for name in sorted(roles):
    if name not in shapes and name not in known:
        continue
    shape, role = shapes.get(name) or list(known[name].shape), roles[name]
    if role == "-":
        if name in known:
            constants.append(numpy_helper.from_array(known[name], name))
        continue
    if role == "w":
        a = rng.normal(0, (2 / np.prod(shape[1:])) ** .5 if len(shape) == 4 else .02, shape)
    else:
        a = {"s": lambda: rng.uniform(.3, 1.2, shape), "v": lambda: rng.uniform(.5, 2, shape)}.get(
            role, lambda: rng.normal(0, .1, shape))()
    constants.append(numpy_helper.from_array(a.astype(np.float32), name))
value = lambda v, dims: helper.make_tensor_value_info(v.name, TensorProto.FLOAT, dims)
graph = helper.make_graph(nodes, "resnet50", [value(light.input[0], ["N", 3, 224, 224])],
                          [value(light.output[0], ["N", 1000])], constants)
m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
m = version_converter.convert_version(m, 13)
m.ir_version = 7
onnx.checker.check_model(m)
onnx.save(m, model)
x = np.lib.format.open_memmap(samples, "w+", np.float32, (count, 3, 224, 224))
for i in range(count):
    a = sum(np.kron(rng.normal(0, s ** -.5, (3, s, s)), np.ones((1, 224 // s, 224 // s))) for s in (7, 14, 28, 56, 112, 224))
    x[i] = (a - a.mean()) / a.std()
"""

PEER = r"""
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
import onnx
model, samples, out = sys.argv[1:]
class Reader(CalibrationDataReader):
    def __init__(self):
        m = onnx.load(model, load_external_data=False)
        constant = {i.name for i in m.graph.initializer}
        self.name = [i.name for i in m.graph.input if i.name not in constant][0]
        self.data, self.at = np.load(samples, mmap_mode="r"), 0
    def get_next(self):
        if self.at == len(self.data):
            return None
        self.at += 1
        return {self.name: np.ascontiguousarray(self.data[self.at - 1:self.at])}
quantize_static(model, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                calibrate_method=CalibrationMethod.MinMax)
"""


def measure(command):
    """Seconds, MiB of the largest resident set, and how it ended."""
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        child = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            raise RuntimeError(f"{command[0]} ended with {child.returncode}: {log.read().decode(errors='replace')[-500:]}")
    return {"seconds": seconds, "peak_mib": usage.ru_maxrss / 1024}


def progress(command):
    """The bar on a terminal: (seconds, share shown) of every redraw, and the whole time."""
    start = time.monotonic()
    child, fd = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm"
        os.execv(command[0], command)
    seen, text = [], b""
    while True:
        if not select.select([fd], [], [], 600)[0]:
            os.kill(child, 9)
            raise RuntimeError("no sign of life for ten minutes")
        try:
            chunk = os.read(fd, 4096)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        text += chunk
        *whole, text = re.split(rb"[\r\n]", text)
        for line in whole:
            m = re.search(rb"\] +(\d+) %", line)
            if m:
                seen.append((time.monotonic() - start, int(m[1]) / 100))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(fd)
    if status or not seen:
        raise RuntimeError(f"the run on a terminal ended with {status} and showed {len(seen)} bars")
    return seen, time.monotonic() - start


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("bin")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--samples", type=int, default=100)
    p.add_argument("--formats", default="msfp16,msfp12")
    p.add_argument("--json")
    p.add_argument("--work", help="keeps the model and the samples from run to run")
    a = p.parse_args()
    shared = os.environ.get("BW_SHARED") or os.path.join(TOP, "..", "shared", "data")
    source = os.path.join(shared, "onnx", "light", "light_resnet50.onnx")
    if not os.path.exists(source):
        print(f"bench-quantize: absent: {source} is not there, set BW_SHARED to the shared test material")
        return 0
    work = a.work or tempfile.mkdtemp(prefix="bw-bench-quantize.")
    os.makedirs(work, exist_ok=True)
    try:
        return run(a, source, work)
    finally:
        if not a.work:
            shutil.rmtree(work, ignore_errors=True)


def run(a, source, work):
    model, samples = os.path.join(work, "resnet50.onnx"), os.path.join(work, f"samples-{a.samples}.npy")
    if not (os.path.exists(model) and os.path.exists(samples)):
        subprocess.run([sys.executable, "-c", GENERATE, source, model, samples, str(a.samples)], check=True)
    out = os.path.join(work, "out")
    quantize = os.path.join(a.bin, "blockwave-quantize")
    jobs = {}
    for f in a.formats.split(","):
        jobs[f"blockwave {f}"] = [quantize, model, "-o", out + ".bw", "--format", f, "--calib", samples]
    peers = os.environ.get("BW_PEERS") or os.path.join(TOP, "build", "peers")
    python, peer = os.path.join(peers, "bin", "python"), "absent"
    if os.path.exists(python):
        probe = subprocess.run([python, "-c", "import onnxruntime, onnxruntime.quantization as q; print(onnxruntime.__version__)"],
                               capture_output=True, text=True)
        if probe.returncode == 0:
            peer = "onnxruntime " + probe.stdout.strip()
            jobs[peer] = [python, "-c", PEER, model, samples, out + ".onnx"]
    if peer == "absent":
        print(f"bench-quantize: peer absent: no onnxruntime.quantization in {peers} (set BW_PEERS)")
    figures = {name: [] for name in jobs}
    for _ in range(a.runs):  # alternating: what disturbs the machine disturbs all of them
        for name, command in jobs.items():
            figures[name].append(measure(command))
    size = os.path.getsize(model)
    result = {"network": "ResNet-50, seeded random weights", "model_bytes": size, "samples": a.samples, "runs": a.runs,
              "cpus": len(os.sched_getaffinity(0)), "date": time.strftime("%Y-%m-%d"), "peer": peer, "programs": {},
              "progress": {}}
    print(f"ResNet-50, {size / 1e6:.1f} MB of model, {a.samples} samples of 3 x 224 x 224, {result['cpus']} CPUs, "
          f"median of {a.runs}")
    print(f"{'program':28} {'seconds':>8} {'peak MiB':>9} {'of model':>9}")
    for name, f in figures.items():
        median = {k: statistics.median(x[k] for x in f) for k in f[0]}
        median["of_model"] = median["peak_mib"] * 2 ** 20 / size
        median["all"] = f
        result["programs"][name] = median
        print(f"{name:28} {median['seconds']:8.2f} {median['peak_mib']:9.0f} {median['of_model']:8.2f}x")
    for name, command in jobs.items():
        if not name.startswith("blockwave"):
            continue
        seen, whole = progress(command)
        worst = max(seen, key=lambda s: abs(s[1] - s[0] / whole))
        backwards = any(b[1] < a[1] for a, b in zip(seen, seen[1:]))
        result["progress"][name] = {"worst_deviation": abs(worst[1] - worst[0] / whole), "at_second": worst[0],
                                    "seconds": whole, "redraws": len(seen), "falls_back": backwards, "last": seen[-1][1]}
        print(f"progress of {name}: at most {100 * abs(worst[1] - worst[0] / whole):.1f} points off, after "
              f"{worst[0]:.1f} of {whole:.1f} s ({len(seen)} redraws, ends at {100 * seen[-1][1]:.0f} %"
              f"{', FALLS BACK' if backwards else ''})")
    if a.json:
        with open(a.json, "w") as f:
            json.dump(result, f, indent=1)
            f.write("\n")
    return 0


sys.exit(main())
