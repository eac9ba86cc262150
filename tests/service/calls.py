#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every RPC of the service with a stock client: values, names, pictures, errors."""
import io
import os
import struct
import threading

import grpc
import health_pb2
import inference_pb2
import numpy as np
import predict_pb2
from PIL import Image
from support import (SLOW, Client, Server, Skip, fails, infer_request, infer_value, package, predict_request, quantized,
                     run, same,
                     slow_request, tensor_value, trailing)

server = Server(package("double"), package("sum"), package("picture"), quantized("slow"), package("wide"), package("one"),
                package("double", "many", "9"), package("double", "many", "10"),
                package("golden", "resnet20", "7"), "--max-message-mb", "32")
client = server.client
rng = np.random.default_rng(1)


def infer(request):
    return client.kserve.ModelInfer(request, timeout=30 * SLOW)


def predict(request):
    return client.predict(request, timeout=30 * SLOW)


# --- what there is ------------------------------------------------------------------------------------------------


def health_and_readiness():
    check = lambda name: client.health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
    assert check("") == health_pb2.HealthCheckResponse.SERVING
    assert check("tensorflow.serving.PredictionService") == health_pb2.HealthCheckResponse.SERVING
    fails("NOT_FOUND", "'no.such.Service' is not known", client.health.Check,
          health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert client.kserve.ServerLive(inference_pb2.ServerLiveRequest(), timeout=10).live
    assert client.kserve.ServerReady(inference_pb2.ServerReadyRequest(), timeout=10).ready
    assert client.kserve.ModelReady(inference_pb2.ModelReadyRequest(name="double"), timeout=10).ready
    fails("NOT_FOUND", "'nobody' is not served here: served are 'double'", client.kserve.ModelReady,
          inference_pb2.ModelReadyRequest(name="nobody"))


def metadata():
    m = client.kserve.ServerMetadata(inference_pb2.ServerMetadataRequest(), timeout=10)
    assert m.name == "blockwave" and m.version
    m = client.kserve.ModelMetadata(inference_pb2.ModelMetadataRequest(name="sum"), timeout=10)
    assert (m.name, list(m.versions), m.platform) == ("sum", ["1"], "blockwave"), m
    assert [(t.name, t.datatype, list(t.shape)) for t in m.inputs] == [("a", "FP32", [-1, 3]), ("b", "FP32", [-1, 3])]
    assert [(t.name, t.datatype, list(t.shape)) for t in m.outputs] == [("y", "FP32", [-1, 3]), ("d", "FP32", [-1, 3])]
    m = client.kserve.ModelMetadata(inference_pb2.ModelMetadataRequest(name="many"), timeout=10)
    assert list(m.versions) == ["9", "10"], m
    fails("NOT_FOUND", "no version '3'", client.kserve.ModelMetadata,
          inference_pb2.ModelMetadataRequest(name="sum", version="3"))


# --- values -------------------------------------------------------------------------------------------------------


def predict_values():
    for shape in ((1, 4), (7, 4), (4096, 4)):
        x = rng.standard_normal(shape).astype("<f4")
        for form in ("float_val", "tensor_content"):
            reply = predict(predict_request("double", "x", x, form))
            same(tensor_value(reply.outputs["y"]), x * 2)
            assert reply.model_spec.name == "double" and reply.model_spec.version.value == 1


def predict_names():
    x = np.ones((1, 4))
    keys = lambda key, **fields: sorted(predict(predict_request("double", key, x, **fields)).outputs)
    assert keys("x") == ["y"]
    assert keys("x:0") == ["y", "y:0"]
    assert keys("images") == ["output_alias", "y"]
    assert keys("x", output_filter=["output_alias"]) == ["output_alias"]
    assert keys("x", output_filter=["y:0", "y"]) == ["y", "y:0"]


def predict_route_of_original_clients():
    x = np.ones((1, 4))
    route = (("x-ms-aml-grpc-service-route", "/api/v1/service/double"),)
    reply = client.predict(predict_request("", "images", x), metadata=route, timeout=10)
    same(tensor_value(reply.outputs["output_alias"]), x * 2)
    assert reply.model_spec.name == "double"


def predict_two_inputs():
    a, b = rng.standard_normal((2, 5, 3)).astype("<f4")
    request = predict_request("sum", "a", a)
    request.inputs["b"].CopyFrom(predict_request("sum", "b", b).inputs["b"])
    reply = predict(request)
    same(tensor_value(reply.outputs["y"]), a + b)
    same(tensor_value(reply.outputs["d"]), a - b)


def predict_versions():
    x = np.ones((1, 4))
    assert predict(predict_request("many", "x", x)).model_spec.version.value == 10
    request = predict_request("many", "x", x)
    request.model_spec.version.value = 9
    assert predict(request).model_spec.version.value == 9
    request.model_spec.version.value = 8
    fails("NOT_FOUND", "no version '8'", client.predict, request)


def infer_values():
    for raw in (True, False):
        a, b = rng.standard_normal((2, 6, 3)).astype("<f4")
        reply = infer(infer_request("sum", {"b": b, "a": a}, raw, id="request-1"))
        assert reply.id == "request-1" and reply.model_name == "sum" and reply.model_version == "1"
        assert bool(reply.raw_output_contents) == raw
        assert [o.name for o in reply.outputs] == ["y", "d"]
        same(infer_value(reply, 0), a + b)
        same(infer_value(reply, 1), a - b)
        request = infer_request("sum", {"b": b, "a": a}, raw)
        request.outputs.add(name="d")
        reply = infer(request)
        assert [o.name for o in reply.outputs] == ["d"]
        same(infer_value(reply, 0), a - b)


def infer_number_types():
    values = [0, 1, 2, 100]
    for datatype, dtype in (("FP64", "<f8"), ("FP16", "<f2"), ("INT64", "<i8"), ("INT32", "<i4"), ("INT16", "<i2"),
                            ("INT8", "i1"), ("UINT64", "<u8"), ("UINT32", "<u4"), ("UINT16", "<u2"), ("UINT8", "u1")):
        request = inference_pb2.ModelInferRequest(model_name="double")
        request.inputs.add(name="x", datatype=datatype, shape=[1, 4])
        request.raw_input_contents.append(np.array(values, dtype).tobytes())
        same(infer_value(infer(request)), np.array([values]) * 2.0)


def large_messages():
    x = rng.standard_normal((4096, 1024)).astype("<f4")
    same(infer_value(infer(infer_request("wide", {"x": x}))), x * 2)
    x = x[:300]
    same(tensor_value(predict(predict_request("wide", "x", x, "tensor_content")).outputs["y"]), x * 2)


def concurrent_calls():
    wrong = []

    def work(seed):
        own = np.random.default_rng(seed)
        for i in range(25):
            x = own.standard_normal((int(own.integers(1, 50)), 4)).astype("<f4")
            try:
                if i % 2:
                    same(infer_value(infer(infer_request("double", {"x": x}))), x * 2)
                else:
                    same(tensor_value(predict(predict_request("double", "x", x)).outputs["y"]), x * 2)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[0]


def golden_messages_of_protoc():
    folder = os.path.join(os.environ.get("BW_SHARED", os.path.join(os.environ["BW_TOP"], "../shared/data")),
                          "serving_messages")
    path = os.path.join(folder, "predict_request_floatval.bin")
    if not os.path.exists(path):
        raise Skip(f"{path} is not there: set BW_SHARED")
    with open(path, "rb") as f:
        message = f.read()
    bytes_out = client.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(message, timeout=10)
    reply = predict_pb2.PredictResponse.FromString(bytes_out)
    # 2 * FLT_MAX overflows, as fp32 does.
    same(tensor_value(reply.outputs["logits"]), [[1, -2.5, np.inf, 2 * np.float32(1.17549435e-38)]])
    with open(os.path.join(folder, "health_response.bin"), "rb") as f:
        expected = f.read()
    assert client.channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10) == expected


# --- pictures -----------------------------------------------------------------------------------------------------


def encoded(pixels, kind, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def predict_pictures_request(pictures, shape=None, key="images"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "picture"
    tensor = request.inputs[key]
    tensor.dtype = 7
    for size in shape if shape is not None else [len(pictures)]:
        tensor.tensor_shape.dim.add().size = size
    tensor.string_val.extend(pictures)
    return request


def infer_pictures_request(pictures, raw):
    request = inference_pb2.ModelInferRequest(model_name="picture")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[len(pictures)])
    if raw:
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(p)) + p for p in pictures))
    else:
        tensor.contents.bytes_contents.extend(pictures)
    return request


def pictures():
    pixels = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    sent = [encoded(p, "PNG") for p in pixels]
    expected = pixels.transpose(0, 3, 1, 2).astype("<f4") * 2
    same(tensor_value(predict(predict_pictures_request(sent)).outputs["output_alias"]), expected)
    same(tensor_value(predict(predict_pictures_request(sent[:1], [])).outputs["y"]), expected[:1])
    same(infer_value(infer(infer_pictures_request(sent, True))), expected)
    same(infer_value(infer(infer_pictures_request(sent, False))), expected)
    flat = np.full((8, 8, 3), 200, np.uint8)
    out = infer_value(infer(infer_pictures_request([encoded(flat, "JPEG", quality=95)], True)))
    assert np.abs(out - 400).max() <= 8, out


def bad_pictures():
    good = encoded(np.zeros((8, 8, 3), np.uint8), "PNG")
    fails("INVALID_ARGUMENT", "picture 1 of input 'image'.*neither a PNG nor a JPEG", client.predict,
          predict_pictures_request([good, b"\xff\xd8\xff\xe0fakejpeg"[:1]]))
    fails("INVALID_ARGUMENT", "picture 0", client.predict, predict_pictures_request([good[:40]]))
    fails("INVALID_ARGUMENT", "picture 0", client.predict, predict_pictures_request([b""]))
    fails("INVALID_ARGUMENT", "2 pictures in shape", client.predict, predict_pictures_request([good, good], [3]))
    fails("INVALID_ARGUMENT", "takes no pictures", client.predict,
          (lambda r: (r.model_spec.__setattr__("name", "double"), r)[1])(predict_pictures_request([good])))


# --- errors -------------------------------------------------------------------------------------------------------


def errors_name_thing_value_and_expectation():
    x = np.ones((1, 4))
    bad = lambda text, request: fails("INVALID_ARGUMENT", text, client.predict, request)
    bad(r"no input 'z': expected 'x' FP32 \[-1,4\]", predict_request("double", "z", x))
    bad(r"shape \[1,5\], expected \[-1,4\]", predict_request("double", "x", np.ones((1, 5))))
    bad(r"shape \[4\], expected \[-1,4\]", predict_request("double", "x", np.ones(4)))
    bad(r"shape \[2,4\], expected \[1,4\]", predict_request("one", "x", np.ones((2, 4))))
    bad("NHWC, transpose it to NCHW", predict_request("picture", "image", np.ones((1, 8, 8, 3))))
    bad("no output 'q'", predict_request("double", "x", x, output_filter=["q"]))
    bad("signature 'other'", predict_request("double", "x", x, signature_name="other"))
    bad("several are served", predict_request("", "x", x))
    bad("'b' of model 'sum' is missing", predict_request("sum", "a", np.ones((1, 3))))
    fails("NOT_FOUND", "label 'stable'", client.predict, predict_request("double", "x", x, version_label="stable"))
    fails("NOT_FOUND", "model 'nobody' is not served here", client.predict, predict_request("nobody", "x", x))
    request = infer_request("double", {"x": x})
    request.inputs[0].datatype = "FP33"
    fails("INVALID_ARGUMENT", "datatype 'FP33'", client.kserve.ModelInfer, request)
    request = infer_request("double", {"x": x})
    request.raw_input_contents.append(b"")
    fails("INVALID_ARGUMENT", "2 raw_input_contents for 1 inputs", client.kserve.ModelInfer, request)
    request = infer_request("sum", {"a": np.ones((2, 3)), "b": np.ones((1, 3))})
    fails("INVALID_ARGUMENT", "batch 2, input 'b' has 1", client.kserve.ModelInfer, request)


def numbers_that_are_none():
    for value in (np.nan, np.inf, -np.inf):
        fails("INVALID_ARGUMENT", "'x'", client.predict, predict_request("double", "x", [[0, 1, value, 3]]))


def what_is_no_request():
    raw = lambda path: client.channel.unary_unary(path)
    fails("UNIMPLEMENTED", "'/a.b.C/D' is not served here", raw("/a.b.C/D"), b"")
    fails("UNIMPLEMENTED", "is not served here", raw("/inference.GRPCInferenceService/Nope"), b"x" * 100000)
    for path in ("/tensorflow.serving.PredictionService/Predict", "/inference.GRPCInferenceService/ModelInfer",
                 "/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ModelMetadata"):
        fails("INVALID_ARGUMENT", "malformed", raw(path), b"\xff\xff\xff")
        empty = client.channel.stream_unary(path)
        fails("INVALID_ARGUMENT", "no message", empty, iter([]))


def compressed_requests_are_refused():
    fails("UNIMPLEMENTED", "", client.predict, predict_request("double", "x", np.ones((1, 4))),
          compression=grpc.Compression.Gzip)


def oversize_messages():
    request = infer_request("double", {"x": np.zeros((1, 4))})
    request.raw_input_contents[0] = b"\0" * (33 << 20)
    fails("RESOURCE_EXHAUSTED", "larger than max", client.kserve.ModelInfer, request)
    same(tensor_value(predict(predict_request("double", "x", np.ones((1, 4)))).outputs["y"]), np.ones((1, 4)) * 2)
    # A constant tensor may be sent as one value.
    request = predict_request("wide", "x", np.ones((1, 1024)))
    del request.inputs["x"].float_val[1:]
    request.inputs["x"].tensor_shape.dim[0].size = 300
    same(tensor_value(predict(request).outputs["y"]), np.full((300, 1024), 2))


# --- time ---------------------------------------------------------------------------------------------------------


def timing_in_trailing_metadata():
    reply, call = client.kserve.ModelInfer.with_call(slow_request(16), timeout=30 * SLOW)
    times = {k: int(v) for k, v in trailing(call).items() if k.startswith("bw-")}
    parts = ("decode", "queue", "preprocess", "cpu-before", "device-queue", "device", "cpu-after")
    assert {f"bw-{p}-us" for p in ("decode", "device", "total")} <= set(times), times
    assert set(times) <= {f"bw-{p}-us" for p in (*parts, "total")}, times
    assert sum(times.get(f"bw-{p}-us", 0) for p in parts) <= times["bw-total-us"] + 10, times
    assert times["bw-device-us"] > 50, times


def clients_that_leave():
    for _ in range(5):
        leaving = Client(server.address)
        calls = [leaving.kserve.ModelInfer.future(slow_request(64)) for _ in range(4)]
        calls[3].cancel()
        leaving.channel.close()
    same(infer_value(infer(infer_request("double", {"x": np.ones((1, 4))}))), np.ones((1, 4)) * 2)


def server_ends_well():
    with server:
        pass


run([health_and_readiness, metadata, predict_values, predict_names, predict_route_of_original_clients,
     predict_two_inputs, predict_versions, infer_values, infer_number_types, large_messages, concurrent_calls,
     golden_messages_of_protoc, pictures, bad_pictures, errors_name_thing_value_and_expectation, numbers_that_are_none,
     what_is_no_request, compressed_requests_are_refused, oversize_messages, timing_in_trailing_metadata,
     clients_that_leave, server_ends_well])
