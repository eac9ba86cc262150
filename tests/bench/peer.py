# SPDX-License-Identifier: Apache-2.0
"""Another inference engine as a worker of bench.py; runs under the python of the peers' environment.

    peer.py onnxruntime|openvino MODEL.onnx THREADS    speaks what bench_network.c speaks
    peer.py versions                                   {"onnxruntime": "1.2.3" or null, ...}
    peer.py quantize all|matrix MODEL.onnx INT8.onnx   onnxruntime's static quantization, calibrated on random inputs
    peer.py facts MODEL.onnx                           what the intermediate values are: subnormal, zero, not finite

int8 is what onnxruntime recommends for x86 with VNNI: QDQ, activations uint8, weights int8, a scale per channel.
OpenVINO reads the same file. Which is faster differs from network to network: all operators that onnxruntime quantizes,
or those alone that multiply matrices.
"""
import json
import os
import sys
import time

RUNS_MIN = 3
CALIBRATION = 4


def numbers(shapes, seed=1):
    """The inputs of bench_network.c: see fill() there."""
    import numpy as np
    state, arrays = seed, []
    for shape in shapes:
        n = int(np.prod(shape)) if shape else 1
        a = np.empty(n, np.float64)
        for i in range(n):
            state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
            a[i] = state - (1 << 32) if state >> 31 else state
        # The C side converts the integer to float32 before it scales it.
        arrays.append((a.astype(np.float32) * np.float32(2.0 ** -31)).reshape(shape))
    return arrays


def shape_of(dims):
    return [d if isinstance(d, int) and d > 0 else 1 for d in dims]


def onnxruntime_session(model, threads, extra=None):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return ort.InferenceSession(extra or model, options, providers=["CPUExecutionProvider"])


def open_onnxruntime(model, threads):
    session = onnxruntime_session(model, threads)
    inputs = session.get_inputs()
    arrays = numbers([shape_of(i.shape) for i in inputs])
    feed = {i.name: a for i, a in zip(inputs, arrays)}
    return lambda: session.run(None, feed)[0]


def open_openvino(model, threads):
    import openvino as ov
    core = ov.Core()
    network = core.read_model(model)
    shapes = [[d.get_length() if d.is_static else 1 for d in i.partial_shape] for i in network.inputs]
    network.reshape({i.get_any_name(): s for i, s in zip(network.inputs, shapes)})
    compiled = core.compile_model(network, "CPU", {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32"})  # f32: no bfloat16 behind our back; int8 stays int8
    request = compiled.create_infer_request()
    feed = {i.get_any_name(): a for i, a in zip(network.inputs, numbers(shapes))}
    first = compiled.outputs[0]
    return lambda: request.infer(feed)[first]


def serve(run):
    for line in sys.stdin:
        if line.startswith("check"):
            print(json.dumps([float(v) for v in run().reshape(-1)]), flush=True)
            continue
        times, end = [], time.perf_counter() + float(line)
        while len(times) < RUNS_MIN or time.perf_counter() < end:
            start = time.perf_counter_ns()
            run()
            times.append(time.perf_counter_ns() - start)
        print(json.dumps(times), flush=True)


def versions():
    found = {}
    for name in ("onnxruntime", "openvino"):
        try:
            found[name] = __import__(name).__version__.split("-")[0]
        except Exception as e:  # whatever keeps it from loading, it is absent
            found[name] = None
            print(f"peer.py: {name}: {e}", file=sys.stderr)
    return found


def quantize(which, source, target):
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inputs = onnxruntime_session(source, 1).get_inputs()
    names, shapes = [i.name for i in inputs], [shape_of(i.shape) for i in inputs]

    class Reader(CalibrationDataReader):
        left = [dict(zip(names, numbers(shapes, seed))) for seed in range(1, CALIBRATION + 1)]

        def get_next(self):
            return self.left.pop() if self.left else None

    prepared, made = target + ".prepared", target + ".tmp"
    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(prepared, made, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        op_types_to_quantize=["Conv", "Gemm", "MatMul"] if which == "matrix" else None)
        os.replace(made, target)
    finally:
        for path in (prepared, made):
            if os.path.exists(path):
                os.remove(path)
    return {"by": f"onnxruntime {ort.__version__} quantize_static"}


def facts(model):
    """Figures that would be unreal with subnormal or infinite numbers, or if nothing depended on the input."""
    import numpy as np
    import onnx
    network = onnx.load(model)
    known = {o.name for o in network.graph.output}
    network.graph.output.extend(onnx.ValueInfoProto(name=o) for n in network.graph.node for o in n.output
                                if o and o not in known)
    path = model + ".facts"
    onnx.save(network, path)
    try:
        session = onnxruntime_session(path, 1)
    finally:
        os.remove(path)
    inputs = session.get_inputs()
    shapes = [shape_of(i.shape) for i in inputs]
    run = lambda seed: session.run(None, {i.name: a for i, a in zip(inputs, numbers(shapes, seed))})  # outputs first
    first, second = run(1), run(2)
    total = subnormal = zero = wild = same = floats = 0
    largest = 0.0
    for a, b in zip(first, second):
        if a.dtype != np.float32:
            continue
        floats += 1
        same += bool(np.array_equal(a, b))
        total += a.size
        finite = np.isfinite(a)
        wild += int((~finite).sum())
        size = np.abs(a[finite])
        zero += int((size == 0).sum())
        subnormal += int(((size > 0) & (size < np.finfo(np.float32).tiny)).sum())
        largest = max(largest, float(size.max(initial=0)))
    return {"values": total, "subnormal": subnormal, "zero": zero, "not_finite": wild, "largest": largest,
            "tensors": floats, "tensors_independent_of_input": same,
            "output_depends_on_input": not np.array_equal(first[0], second[0])}


def main():
    what = sys.argv[1]
    if what == "versions":
        print(json.dumps(versions()))
    elif what == "quantize":
        print(json.dumps(quantize(*sys.argv[2:5])))
    elif what == "facts":
        print(json.dumps(facts(sys.argv[2])))
    else:
        run = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[what](sys.argv[2], int(sys.argv[3]))
        print(json.dumps({"version": versions()[what]}), flush=True)
        serve(run)


main()
