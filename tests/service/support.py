# SPDX-License-Identifier: Apache-2.0
"""What the black-box tests of the service share: packages, servers, clients, TAP."""
import os
import re
import signal
import subprocess
import sys
import time
import traceback

import grpc
import health_pb2
import health_pb2_grpc
import inference_pb2
import inference_pb2_grpc
import numpy as np
import predict_pb2
import predict_pb2_grpc

WORK = os.environ["BW_WORK"]
HERE = os.path.dirname(os.path.abspath(__file__))
SERVE = os.path.join(os.environ["BW_BIN"], "blockwave-serve")
SLOW = 20 if os.environ.get("BW_SAN") else 1  # sanitizers take their time
DT_FLOAT, DT_STRING = 1, 7


class Skip(Exception):
    pass


def package(kind, name=None, version="1"):
    path = os.path.join(WORK, f"{name or kind}-{version}.bw")
    if not os.path.exists(path):
        subprocess.run([sys.executable, os.path.join(HERE, "make_package.py"), kind, path, name or kind, version],
                       check=True)
    return path


def quantized(name="slow", *options):
    """The network of the demo, for an accelerator: image [-1,1,32,32] -> probabilities [-1,10]."""
    path = os.path.join(WORK, f"{name}-quantized.bw")
    digits = os.path.join(os.environ["BW_TOP"], "host/demo/digits")
    if not os.path.exists(path):
        subprocess.run([os.path.join(os.environ["BW_BIN"], "blockwave-quantize"), os.path.join(digits, "digits.onnx"),
                        "-o", path, "--name", name, "--quiet", "--preprocess", os.path.join(digits, "preprocess.json"),
                        *options], check=True)
    return path


# Every run takes so long on this device, whatever the machine; runs do not overlap.
SLOW_DEVICE = ("--device", "sim:?delay=700")


class Server:
    """A running blockwave-serve; leaving the block stops it and checks that it ends well (also under LeakSanitizer)."""
    count = 0

    def __init__(self, *args, before=(), expect=0, lame_duck_ms=200, listen="127.0.0.1:0"):
        Server.count += 1
        self.port_file = os.path.join(WORK, f"port{Server.count}")
        self.log = os.path.join(WORK, f"log{Server.count}")
        self.expect = expect
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([*before, SERVE, *args, "--grpc", listen, "--port-file",
                                             self.port_file, "--lame-duck-ms", str(lame_duck_ms)], stderr=log)
        until = time.time() + 30 * SLOW
        while not os.path.exists(self.port_file):
            if self.process.poll() is not None or time.time() > until:
                raise AssertionError(f"the server did not become ready: {self.text()}")
            time.sleep(0.02)
        with open(self.port_file) as f:
            self.port = int(f.read())
        self.address = f"127.0.0.1:{self.port}" if self.port else listen
        self.client = Client(self.address)

    def text(self):
        with open(self.log) as log:
            return log.read()

    def term(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds=60):
        return self.process.wait(seconds * SLOW)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.client.channel.close()
        if self.process.poll() is None:
            self.term()
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not end: {self.text()}")
        if kind:
            print("# " + self.text().replace("\n", "\n# "))
        elif code != self.expect:
            raise AssertionError(f"exit code {code}, expected {self.expect}: {self.text()}")


def start(*args):
    return subprocess.run([SERVE, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=30 * SLOW)


def expect(code, text, *args):
    """A start that must end with this exit code and one line that contains the text."""
    done = start(*args)
    assert done.returncode == code, f"exit {done.returncode}: {done.stderr}"
    last = [line for line in done.stderr.splitlines() if line.startswith("blockwave serve: ")]
    assert len(last) == 1 and text in last[0], done.stderr


class Client:
    def __init__(self, address, **options):
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
                                          ("grpc.use_local_subchannel_pool", 1), *options.items()])
        self.predict = predict_pb2_grpc.PredictionServiceStub(self.channel).Predict
        self.kserve = inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)


def predict_request(model, key, values, form="float_val", **fields):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    tensor = request.inputs[key]
    values = np.asarray(values, dtype="<f4")
    tensor.dtype = DT_FLOAT
    for size in values.shape:
        tensor.tensor_shape.dim.add().size = size
    if form == "float_val":
        tensor.float_val.extend(values.ravel())
    else:
        tensor.tensor_content = values.tobytes()
    for name, value in fields.items():
        if name == "output_filter":
            request.output_filter.extend(value)
        else:
            setattr(request.model_spec, name, value)
    return request


def infer_request(model, inputs, raw=True, **fields):
    """inputs: name -> float32 array."""
    request = inference_pb2.ModelInferRequest(model_name=model, **fields)
    for name, values in inputs.items():
        values = np.asarray(values, dtype="<f4")
        tensor = request.inputs.add(name=name, datatype="FP32", shape=values.shape)
        if raw:
            request.raw_input_contents.append(values.tobytes())
        else:
            tensor.contents.fp32_contents.extend(values.ravel())
    return request


def tensor_value(tensor):
    assert tensor.dtype == DT_FLOAT
    return np.array(tensor.float_val, dtype="<f4").reshape([d.size for d in tensor.tensor_shape.dim])


def infer_value(reply, index=0):
    out = reply.outputs[index]
    assert out.datatype == "FP32"
    flat = (np.frombuffer(reply.raw_output_contents[index], "<f4") if reply.raw_output_contents
            else np.array(out.contents.fp32_contents, dtype="<f4"))
    return flat.reshape(out.shape)


def slow_request(batch=1):
    """For the model `slow` of quantized(), on SLOW_DEVICE."""
    return infer_request("slow", {"image": np.zeros((batch, 1, 32, 32), "<f4")})


def same(a, b):
    a, b = np.asarray(a, dtype="<f4"), np.asarray(b, dtype="<f4")
    assert a.shape == b.shape, f"shape {a.shape}, expected {b.shape}"
    assert a.tobytes() == b.tobytes(), f"{a} is not {b}"


def fails(code, text, call, *args, **kwargs):
    """The call must end with this code and a one-line message that contains the text. Returns the error."""
    kwargs.setdefault("timeout", 30 * SLOW)
    try:
        reply = call(*args, **kwargs)
    except grpc.RpcError as error:
        assert error.code().name == code, f"{error.code().name}: {error.details()}, expected {code}"
        assert re.search(text, error.details()), f"'{error.details()}' does not contain '{text}'"
        assert "\n" not in error.details()
        return error
    raise AssertionError(f"no error, expected {code}: {str(reply)[:200]}")


def trailing(call):
    return {item.key: item.value for item in call.trailing_metadata()}


def run(tests):
    failed = 0
    for number, test in enumerate(tests, 1):
        name = test.__name__.replace("_", " ")
        try:
            test()
            print(f"ok {number} - {name}", flush=True)
        except Skip as why:
            print(f"ok {number} - {name} # SKIP {why}", flush=True)
        except Exception:
            failed += 1
            print(f"not ok {number} - {name}")
            print("# " + traceback.format_exc().replace("\n", "\n# "), flush=True)
    print(f"1..{len(tests)}")
    sys.exit(1 if failed else 0)
