#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bad requests to a quantized network with a stock client: the code, a line that says what was expected, and after each
of them the same answer as before to a good request."""
import atexit
import io
import os
import subprocess

import inference_pb2
import numpy as np
import predict_pb2
from PIL import Image
from support import (SERVE, SLOW, WORK, Client, Server, fails, infer_request, infer_value, predict_request, run, same,
                     tensor_value)

DIGITS = os.path.join(os.environ["BW_TOP"], "host", "demo", "digits")
PICTURE = os.path.join(DIGITS, "pictures", "digit-000.png")


def quantized(name, *options):
    path = os.path.join(WORK, f"{name}.bw")
    subprocess.run([os.path.join(os.environ["BW_BIN"], "blockwave-quantize"), os.path.join(DIGITS, "digits.onnx"), "-o",
                    path, "--name", name, "--preprocess", os.path.join(DIGITS, "preprocess.json"), "--quiet", *options],
                   check=True)
    return path


DIGITS_BW = quantized("digits")
FP8_BW = quantized("fp8", "--format", "mxfp8_e4m3")
server = Server(DIGITS_BW)
atexit.register(server.process.kill)
client = server.client
x = np.random.default_rng(1).standard_normal((2, 1, 32, 32)).astype("<f4")
with open(PICTURE, "rb") as f:
    png = f.read()
jpeg = io.BytesIO()
Image.open(PICTURE).convert("L").resize((64, 64)).save(jpeg, "JPEG")
jpeg = jpeg.getvalue()
DT_INT32, DT_STRING, DT_INT64, DT_HALF = 3, 7, 9, 19


def answers():
    return (infer_value(client.kserve.ModelInfer(infer_request("digits", {"image": x}), timeout=30 * SLOW)),
            tensor_value(client.predict(pictures([png, png]), timeout=30 * SLOW).outputs["probabilities"]))


def pictures(list_of_bytes, key="image"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.inputs[key].dtype = DT_STRING
    request.inputs[key].tensor_shape.dim.add().size = len(list_of_bytes)
    request.inputs[key].string_val.extend(list_of_bytes)
    return request


def kserve_pictures(list_of_bytes):
    request = inference_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="BYTES", shape=[len(list_of_bytes)]).contents.bytes_contents.extend(
        list_of_bytes)
    return request


def refused(code, text, call, request):
    fails(code, text, call, request)
    for now, before in zip(answers(), first):
        same(now, before)


def predict(code, text, request):
    refused(code, text, client.predict, request)


def infer(code, text, request):
    refused(code, text, client.kserve.ModelInfer, request)


def good_requests():
    global first
    first = answers()
    assert first[0].shape == first[1].shape == (2, 10) and np.isfinite(first).all()


def unknown_models():
    for name in ("digit", "Digits", "../digits", "x" * 500, "d\nigits"):
        predict("NOT_FOUND", "is not served here: served .*'digits'", predict_request(name, "image", x))
        infer("NOT_FOUND", "is not served here: served .*'digits'", infer_request(name, {"image": x}))
    infer("NOT_FOUND", "'digits' has no version '2'", infer_request("digits", {"image": x}, model_version="2"))
    refused("NOT_FOUND", "is not served here", client.kserve.ModelMetadata, inference_pb2.ModelMetadataRequest(name="x"))


def wrong_names():
    expected = r"no input 'picture': expected 'image' FP32 \[-1,1,32,32\]"
    predict("INVALID_ARGUMENT", expected, predict_request("digits", "picture", x))
    predict("INVALID_ARGUMENT", expected, pictures([png], "picture"))
    infer("INVALID_ARGUMENT", expected, infer_request("digits", {"picture": x}))
    predict("INVALID_ARGUMENT", "no output 'class': expected '",
            predict_request("digits", "image", x, output_filter=["class"]))
    request = infer_request("digits", {"image": x})
    request.outputs.add(name="class")
    infer("INVALID_ARGUMENT", "no output 'class': expected '", request)
    predict("INVALID_ARGUMENT", "'image' of model 'digits' is missing", predict_pb2.PredictRequest(
        model_spec={"name": "digits"}))
    infer("INVALID_ARGUMENT", "'image'", inference_pb2.ModelInferRequest(model_name="digits"))


def wrong_types():
    for dtype in (DT_INT32, DT_INT64, DT_HALF, 0, 99, 101):
        request = predict_request("digits", "image", x)
        request.inputs["image"].dtype = dtype
        predict("INVALID_ARGUMENT", "'image'.*(expected|send)", request)
    for datatype in ("FP33", "BOOL", "fp32", "", "BYTES"):
        request = infer_request("digits", {"image": x})
        request.inputs[0].datatype = datatype
        infer("INVALID_ARGUMENT", "'image'", request)


def wrong_shapes():
    for shape in ((2, 1, 32, 31), (2, 3, 32, 32), (2, 1024), (1, 32, 32), (2, 1, 32, 32, 1), (0, 1, 32, 32)):
        values = np.zeros(shape, "<f4")
        predict("INVALID_ARGUMENT", "'image'.*expected", predict_request("digits", "image", values))
        infer("INVALID_ARGUMENT", "'image'.*expected", infer_request("digits", {"image": values}))
    for size in (-1, 3, 1 << 40, (1 << 63) - 1):  # not the number of values that came
        request = predict_request("digits", "image", x, "tensor_content")
        request.inputs["image"].tensor_shape.dim[0].size = size
        predict("INVALID_ARGUMENT", "'image'", request)
        request = infer_request("digits", {"image": x})
        request.inputs[0].shape[0] = size
        infer("INVALID_ARGUMENT", "'image'", request)
    request = infer_request("digits", {"image": x})
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    infer("INVALID_ARGUMENT", "'image'.*bytes", request)
    request = predict_request("digits", "image", x, "tensor_content")
    request.inputs["image"].tensor_content += b"\0"
    predict("INVALID_ARGUMENT", "'image'.*bytes", request)
    bad = x.copy()
    bad[1, 0, 3, 3] = np.nan
    predict("INVALID_ARGUMENT", "'image'.*finite", predict_request("digits", "image", bad))
    infer("INVALID_ARGUMENT", "'image'.*finite", infer_request("digits", {"image": bad}))


def pictures_that_are_none():
    cases = ((b"no pixels\n", "10 bytes starting with 6e 6f 20 70 are neither a PNG nor a JPEG"), (b"", "0 bytes, expected"),
             (png[:len(png) // 2], "damaged PNG: the file ends early"), (png[:8], "damaged PNG"),
             (jpeg[:len(jpeg) // 2], "damaged JPEG: .*end"), (jpeg[:4], "damaged JPEG"), (jpeg[:-2], "damaged JPEG"))
    for data, text in cases:
        predict("INVALID_ARGUMENT", f"picture 1 of input 'image'.*{text}", pictures([png, data, png]))
        infer("INVALID_ARGUMENT", f"picture 1 of input 'image'.*{text}", kserve_pictures([png, data, png]))
    infer("INVALID_ARGUMENT", "'image'", kserve_pictures([]))


def devices_that_cannot():
    """One that lacks the format is passed over while another has it; alone, it is an error, and no port is told."""
    with Server(FP8_BW, DIGITS_BW, "--device", "sim:u250", "--device", "sim:") as mixed:
        value = infer_value(mixed.client.kserve.ModelInfer(infer_request("fp8", {"image": x}), timeout=30 * SLOW))
        assert value.shape == (2, 10)
        assert "fp8.bw: stage" in mixed.text() and "uses format mxfp8_e4m3" in mixed.text(), mixed.text()
    port = os.path.join(WORK, "no-port")
    alone = subprocess.run([SERVE, DIGITS_BW, FP8_BW, "--device", "sim:u250", "--grpc", "127.0.0.1:0", "--port-file", port,
                            "--quiet"], capture_output=True, text=True, timeout=60 * SLOW)
    assert alone.returncode == 1 and alone.stdout == "" and not os.path.exists(port), alone
    lines = alone.stderr.splitlines()
    assert len(lines) == 1 and lines[0].count("fp8.bw") == 1 and "the device has" in lines[0], lines


def a_device_that_fails_comes_back():
    """UNAVAILABLE for the run that the device failed, the same answer as ever for the next."""
    with Server(DIGITS_BW, "--device", "sim:?fault=error@3&fault=error@5") as faulty:
        call = lambda: faulty.client.kserve.ModelInfer(infer_request("digits", {"image": x}), timeout=30 * SLOW)
        same(infer_value(call()), first[0])
        fails("UNAVAILABLE", "fault", faulty.client.kserve.ModelInfer, infer_request("digits", {"image": x}))
        same(infer_value(call()), first[0])
        fails("UNAVAILABLE", "fault", faulty.client.kserve.ModelInfer, infer_request("digits", {"image": x}))
        same(infer_value(call()), first[0])


def the_server_still_serves():
    """To a new connection too; nothing beyond the log's usual lines was said, and it ends well."""
    again = Client(server.address)
    same(infer_value(again.kserve.ModelInfer(infer_request("digits", {"image": x}), timeout=30 * SLOW)), first[0])
    again.channel.close()
    wrong = [line for line in server.text().splitlines() if " info " not in line]
    assert not wrong, wrong
    with server:
        pass


run([good_requests, unknown_models, wrong_names, wrong_types, wrong_shapes, pictures_that_are_none, devices_that_cannot,
     a_device_that_fails_comes_back, the_server_still_serves])
