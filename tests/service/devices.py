#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A quantized network behind the service: the bits of the command line, deadlines, and devices that fail."""
import os
import subprocess
import threading
import time

import grpc
import health_pb2
import numpy as np
import predict_pb2
from support import (SLOW, SLOW_DEVICE, WORK, Server, expect, fails, infer_request, infer_value, quantized, run, same,
                     slow_request, tensor_value, trailing)

PICTURES = os.path.join(os.environ["BW_TOP"], "host/demo/digits/pictures")
ZERO = np.zeros((1, 1, 32, 32), "<f4")


def pictures():
    names = sorted(n for n in os.listdir(PICTURES) if n.endswith(".png"))
    out = []
    for name in names:
        with open(os.path.join(PICTURES, name), "rb") as f:
            out.append(f.read())
    return [os.path.join(PICTURES, n) for n in names], out


def same_bits_as_the_command_line():
    paths, files = pictures()
    model = quantized("digits", "--format", "msfp12")
    npy = os.path.join(WORK, "expected.npy")
    subprocess.run([os.path.join(os.environ["BW_BIN"], "blockwave"), "run", model, "--output", npy, *paths],
                   check=True, stdout=subprocess.DEVNULL)
    expected = np.load(npy).reshape(len(files), -1)

    def request(pictures):
        q = predict_pb2.PredictRequest()
        tensor = q.inputs["images"]
        tensor.dtype = 7
        tensor.tensor_shape.dim.add().size = len(pictures)
        tensor.string_val.extend(pictures)
        return q

    with Server(model, "--device", "sim:", "--device", "sim:?threads=1&isa=portable") as server:
        call = lambda pictures: tensor_value(server.client.predict(request(pictures),
                                                                   timeout=60 * SLOW).outputs["output_alias"])
        same(call(files), expected)
        wrong = []

        def work(start):
            try:
                for i in range(start, len(files), 6):
                    same(call(files[i:i + 1]), expected[i:i + 1])
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong, wrong[0]


def deadlines():
    with Server(quantized(), *SLOW_DEVICE, "--workers", "2") as server:
        call = server.client.kserve.ModelInfer
        started = time.time()
        fails("DEADLINE_EXCEEDED", "", call, slow_request(), timeout=0.2)
        assert time.time() - started < 0.6 * SLOW
        # What expires in the queue leaves it and never runs: ten of 0.7 s would hold the device for 7 s.
        calls = [call.future(slow_request(), timeout=0.5) for _ in range(10)]
        for c in calls:
            assert c.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED, c.exception()
        started = time.time()
        assert infer_value(call(slow_request(), timeout=30 * SLOW)).shape == (1, 10)
        assert time.time() - started < 4 * SLOW, time.time() - started


def the_server_has_a_deadline_of_its_own():
    with Server(quantized(), "--device", "sim:?fault=hang@2", "--timeout-seconds", "1") as server:
        error = fails("DEADLINE_EXCEEDED", ".", server.client.kserve.ModelInfer, slow_request())
        assert int(trailing(error)["bw-total-us"]) > 900000, trailing(error)
        assert infer_value(server.client.kserve.ModelInfer(slow_request(), timeout=30 * SLOW)).shape == (1, 10)


def a_fault_costs_one_request():
    with Server(quantized(), "--device", "sim:?fault=error@2") as server:
        call = server.client.kserve.ModelInfer
        fails("UNAVAILABLE", ".", call, slow_request())
        first = infer_value(call(slow_request(), timeout=30 * SLOW))
        same(infer_value(call(slow_request(), timeout=30 * SLOW)), first)


def a_lost_device_is_replaced_by_the_other():
    with Server(quantized(), "--device", "sim:?fault=lost@2", "--device", "sim:reference") as server:
        for _ in range(6):
            reply = server.client.kserve.ModelInfer(slow_request(), timeout=30 * SLOW)
            assert infer_value(reply).shape == (1, 10)
        assert "is lost: nothing is sent to it any more" in server.text()
        assert server.client.health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1


def without_devices_health_says_so():
    with Server(quantized(), "--device", "sim:?fault=lost@2") as server:
        watching = server.client.health.Watch(health_pb2.HealthCheckRequest(), timeout=60 * SLOW)
        assert next(watching).status == 1
        fails("UNAVAILABLE", ".", server.client.kserve.ModelInfer, slow_request())
        assert next(watching).status == 2
        fails("UNAVAILABLE", "every device of this model is lost: restart", server.client.kserve.ModelInfer,
              slow_request())
        watching.cancel()


def models_take_turns_on_a_small_device():
    names = ["turn-a", "turn-b", "turn-c"]
    models = [quantized(name, "--format", "msfp12") for name in names]
    with Server(*models, "--device", "sim:?threads=1") as server:
        expected = [infer_value(server.client.kserve.ModelInfer(infer_request(n, {"image": ZERO}), timeout=30 * SLOW))
                    for n in names]
    with Server(*models, "--device", "sim:?threads=1", "--device-memory", "200K", before=("env", "BW_LOG=info")) as server:
        for _ in range(4):
            for name, value in zip(names, expected):
                reply = server.client.kserve.ModelInfer(infer_request(name, {"image": ZERO}), timeout=30 * SLOW)
                same(infer_value(reply), value)
        assert "makes way" in server.text(), server.text()
    expect(1, "budget", models[0], "--device", "sim:", "--device-memory", "20K", "--grpc", "127.0.0.1:0")
    expect(2, "expected a size", models[0], "--device-memory", "12X")


def a_package_that_no_device_can_run():
    model = quantized("wide-blocks", "--format", "msfp16", "--block", "64")
    expect(1, "block", model, "--device", "sim:u250", "--grpc", "127.0.0.1:0")
    with Server(model, "--device", "sim:u250", "--device", "sim:") as server:
        assert "not on sim:u250: " in server.text(), server.text()
        reply = server.client.kserve.ModelInfer(infer_request("wide-blocks", {"image": ZERO}), timeout=30 * SLOW)
        assert infer_value(reply).shape == (1, 10)


def bitstreams():
    def path(name):
        return os.path.join(WORK, name)

    def blockwave(*args):
        subprocess.run([os.path.join(os.environ["BW_BIN"], "blockwave"), *args], check=True, stdout=subprocess.DEVNULL)

    for target in ("sim", "u250-msfp", "u250-mx"):
        blockwave("bitstream", target, "-o", path(f"{target}.bwbit"))
    for key in ("key", "other"):
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path(f"{key}.pem")], check=True)
        os.makedirs(path(f"trust-{key}"), exist_ok=True)
        subprocess.run(["openssl", "pkey", "-in", path(f"{key}.pem"), "-pubout", "-out",
                        path(f"trust-{key}/builds.pem")], check=True)
    signed = path("signed.bwbit")
    blockwave("sign", path("u250-msfp.bwbit"), "--key", path("key.pem"), "-o", signed)
    model = quantized()
    rule = ("--trust", path("trust-key"), "--require-signed")
    with Server(model, "--device", "sim:u250", "--device", "sim:", "--bitstream", signed, *rule) as server:
        text = server.text()
        assert "device sim:u250 holds bitstream 'u250-msfp'" in text and "signed by builds" in text, text
        assert "device sim: holds" not in text, text  # another part
        assert infer_value(server.client.kserve.ModelInfer(slow_request(), timeout=30 * SLOW)).shape == (1, 10)
    # A reset in between changes no answer (that the bitstream stays: tests/unit/test_sim_device.c).
    with Server(model, "--device", "sim:u250?fault=error@2", "--bitstream", f"{signed}@sim:u250?fault=error@2",
                *rule) as server:
        call = server.client.kserve.ModelInfer
        fails("UNAVAILABLE", ".", call, slow_request())
        first = infer_value(call(slow_request(), timeout=30 * SLOW))
        same(infer_value(call(slow_request(), timeout=30 * SLOW)), first)
        assert server.client.health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
    u250 = ("--device", "sim:u250", "--grpc", "127.0.0.1:0")
    expect(1, "format", model, *u250, "--bitstream", path("u250-mx.bwbit"))
    expect(1, "is not signed", model, *u250, "--bitstream", path("u250-msfp.bwbit"), *rule)
    expect(1, "none of the 1 keys in", model, *u250, "--bitstream", signed, "--trust", path("trust-other"))
    expect(1, "needs keys to trust", model, *u250, "--bitstream", signed, "--require-signed")
    expect(1, "is for part 'sim', the device is a 'sim-u250'", model, *u250, "--bitstream", path("sim.bwbit"))
    expect(1, "there is no --device sim:", model, *u250, "--bitstream", path("sim.bwbit") + "@sim:")
    expect(1, "absent.bwbit", model, *u250, "--bitstream", path("absent.bwbit"))
    with open(signed, "rb") as f:
        damaged = bytearray(f.read())
    damaged[len(damaged) // 3] ^= 1
    with open(path("damaged.bwbit"), "wb") as f:
        f.write(damaged)
    expect(1, "damaged.bwbit", model, *u250, "--bitstream", path("damaged.bwbit"), *rule)
    expect(2, "no file to verify", model, *u250, "--require-signed")


run([same_bits_as_the_command_line, deadlines, the_server_has_a_deadline_of_its_own, a_fault_costs_one_request,
     a_lost_device_is_replaced_by_the_other, without_devices_health_says_so, models_take_turns_on_a_small_device,
     a_package_that_no_device_can_run, bitstreams])
