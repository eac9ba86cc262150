#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A quantized network behind the service: the bits of the command line, deadlines, and devices that fail."""
import os
import subprocess
import threading
import time

import grpc
import health_pb2
import inference_pb2
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


def a_fault_is_tried_on_another_device():
    """Once: a request that two devices cannot bear is answered."""
    with Server(quantized(), "--device", "sim:?fault=error@2&fault=error@3", "--device", "sim:reference?fault=error@3") as server:
        call = server.client.kserve.ModelInfer
        first = infer_value(call(slow_request(), timeout=30 * SLOW))
        fails("UNAVAILABLE", "injected fault", call, slow_request())
        same(infer_value(call(slow_request(), timeout=30 * SLOW)), first)
        assert server.text().count("injected fault in run") >= 3, server.text()


def a_lost_device_is_replaced_by_the_other():
    with Server(quantized(), "--device", "sim:?fault=lost@2", "--device", "sim:reference") as server:
        for _ in range(6):
            reply = server.client.kserve.ModelInfer(slow_request(), timeout=30 * SLOW)
            assert infer_value(reply).shape == (1, 10)
        assert "is lost: nothing is sent to it until" in server.text()
        assert server.client.health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1


def without_devices_health_says_so():
    with Server(quantized(), "--device", "sim:?fault=lost@2") as server:
        watching = server.client.health.Watch(health_pb2.HealthCheckRequest(), timeout=60 * SLOW)
        assert next(watching).status == 1
        fails("UNAVAILABLE", ".", server.client.kserve.ModelInfer, slow_request())
        assert next(watching).status == 2
        fails("UNAVAILABLE", "every device of this model is lost, and being tried again", server.client.kserve.ModelInfer,
              slow_request())
        assert not server.client.kserve.ModelReady(inference_pb2.ModelReadyRequest(name="slow"), timeout=10 * SLOW).ready
        watching.cancel()


def until(condition, what, server, seconds=10):
    end = time.time() + seconds * SLOW
    while not condition():
        assert time.time() < end, f"{what}: not within {seconds} s: {server.text()}"
        time.sleep(0.01)


def picture_request(seed):
    return infer_request("slow", {"image": np.random.default_rng(seed).random((1, 1, 32, 32), "<f4")})


def expected_values(model, seeds):
    with Server(model, "--device", "sim:") as server:
        return [infer_value(server.client.kserve.ModelInfer(picture_request(s), timeout=30 * SLOW)) for s in seeds]


def a_lost_device_comes_back():
    """Three resets fail, then it lives: trial run, health, the right bits."""
    model = quantized()
    wanted = expected_values(model, range(4))
    with Server(model, "--device", "sim:?fault=lost@3&reset=3") as server:
        call = server.client.kserve.ModelInfer
        watching = server.client.health.Watch(health_pb2.HealthCheckRequest(), timeout=60 * SLOW)
        assert next(watching).status == 1
        same(infer_value(call(picture_request(0), timeout=30 * SLOW)), wanted[0])
        fails("UNAVAILABLE", ".", call, picture_request(1))
        assert next(watching).status == 2
        fails("UNAVAILABLE", "being tried again", call, picture_request(1))
        assert next(watching).status == 1  # by itself
        ready = inference_pb2.ModelReadyRequest(name="slow")
        assert server.client.kserve.ModelReady(ready, timeout=10 * SLOW).ready
        for seed in range(4):
            same(infer_value(call(picture_request(seed), timeout=30 * SLOW)), wanted[seed])
        watching.cancel()
        text = server.text()
        assert "is back after" in text and "1 model gives the right bits" in text, text
        assert "every model has a device again: health is SERVING" in text, text


def another_device_answers_until_it_is_back():
    model = quantized()
    wanted = expected_values(model, range(4))
    with Server(model, "--device", "sim:?fault=lost@3&reset=4", "--device", "sim:?threads=1&isa=portable") as server:
        call = server.client.kserve.ModelInfer
        for i in range(12):  # no request is lost: nothing had been answered yet
            same(infer_value(call(picture_request(i % 4), timeout=30 * SLOW)), wanted[i % 4])
        until(lambda: "is back after" in server.text(), "back", server)
        for i in range(12):
            same(infer_value(call(picture_request(i % 4), timeout=30 * SLOW)), wanted[i % 4])
        assert "NOT_SERVING" not in server.text(), server.text()
        assert server.client.health.Check(health_pb2.HealthCheckRequest(), timeout=10 * SLOW).status == 1


def wrong_bits_keep_a_device_out():
    """It comes back and computes wrongly: found by the trial run, not by a client. The next reset cures it."""
    model = quantized()
    wanted = expected_values(model, range(4))
    with Server(model, "--device", "sim:?fault=lost@2&reset=1&fault=wrong@3") as server:
        call = server.client.kserve.ModelInfer
        fails("UNAVAILABLE", ".", call, picture_request(0))
        until(lambda: "is back after" in server.text(), "back", server)
        text = server.text()
        assert "is still out, tries: 1" in text and "gives other bits than it gave at the start" in text, text
        for seed in range(4):
            same(infer_value(call(picture_request(seed), timeout=30 * SLOW)), wanted[seed])
    expect(1, "gives other bits than the first one gave", model, "--device", "sim:", "--device", "sim:?fault=wrong@1",
           "--grpc", "127.0.0.1:0")


def another_bitstream_after_the_reset():
    """The reset finds a foreign configuration. Nobody has to call for the device to be tried again."""
    bits = os.path.join(WORK, "own.bwbit")
    subprocess.run([os.path.join(os.environ["BW_BIN"], "blockwave"), "bitstream", "u250-msfp", "-o", bits], check=True,
                   stdout=subprocess.DEVNULL)
    model = quantized()
    wanted = expected_values(model, range(4))
    with Server(model, "--device", "sim:u250?fault=uuid@3", "--bitstream", bits) as server:
        call = server.client.kserve.ModelInfer
        same(infer_value(call(picture_request(0), timeout=30 * SLOW)), wanted[0])
        fails("UNAVAILABLE", ".", call, picture_request(1))
        until(lambda: "is back after" in server.text(), "back", server)
        for seed in range(4):
            same(infer_value(call(picture_request(seed), timeout=30 * SLOW)), wanted[seed])
        assert "after the reset the device holds bitstream ffffffff" in server.text(), server.text()


def a_bitstream_is_loaded_again():
    """The reset succeeds and leaves nothing: the bytes that were verified at the start go there again."""
    bits, model = os.path.join(WORK, "own.bwbit"), quantized()
    wanted = expected_values(model, range(4))
    with Server(model, "--device", "sim:u250?fault=blank@3", "--bitstream", bits) as server:
        call = server.client.kserve.ModelInfer
        same(infer_value(call(picture_request(0), timeout=30 * SLOW)), wanted[0])
        os.unlink(bits)
        fails("UNAVAILABLE", ".", call, picture_request(1))
        until(lambda: "is back after" in server.text(), "back", server)
        text = server.text()
        assert "holds bitstream none, expected " in text and "back: bitstream " in text, text
        for seed in range(4):
            same(infer_value(call(picture_request(seed), timeout=30 * SLOW)), wanted[seed])


def stuck_backend():
    """The plug-in of docs/backend.md, whose third run ignores cancellation and abort for good."""
    folder = os.path.join(WORK, "stuck")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(os.environ["BW_TOP"], "docs/backend.md")) as f:
        code = f.read().split("```c\n", 1)[1].split("```", 1)[0]
    body = "    atomic_store(&d->aborted, 0);\n"
    assert code.count(body) == 1
    code = code.replace(body, body + "    static atomic_int runs;\n    if (atomic_fetch_add(&runs, 1) == 2)\n"
                                     "        for (;;)\n            pause();\n")
    code = code.replace("1u << BW_FORMAT_BF16", "1u << BW_FORMAT_BF16 | 1u << BW_FORMAT_FP16")
    source = os.path.join(folder, "mine.c")
    with open(source, "w") as f:
        f.write("#define _GNU_SOURCE\n#include <unistd.h>\n" + code)
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-shared", "-fPIC", f"-I{os.environ['BW_TOP']}", "-o",
                    os.path.join(folder, "libbw_hal_mine.so"), source], check=True)
    return folder


def a_run_that_nothing_ends():
    """The device is given up, its thread left behind; the service opens it anew and goes on."""
    model = quantized("msfp12", "--format", "msfp12")
    wanted, before = [], ("env", f"BW_PLUGIN_PATH={stuck_backend()}")
    ask = lambda server, seed: infer_value(server.client.kserve.ModelInfer(
        infer_request("msfp12", {"image": np.random.default_rng(seed).random((1, 1, 32, 32), "<f4")}), timeout=30 * SLOW))
    with Server(model, "--device", "sim:") as server:
        wanted = [ask(server, seed) for seed in range(4)]
    with Server(model, "--device", "mine:0", "--timeout-seconds", "1" if SLOW == 1 else "10", before=before) as server:
        same(ask(server, 0), wanted[0])
        started = time.time()
        try:
            ask(server, 1)
            raise AssertionError("an answer of a run that never ends")
        except grpc.RpcError as error:
            assert error.code().name in ("UNAVAILABLE", "DEADLINE_EXCEEDED"), error
        assert time.time() - started < (5 if SLOW == 1 else 20)
        until(lambda: "is back after" in server.text(), "back", server)
        for seed in range(4):
            same(ask(server, seed), wanted[seed])
        assert "a run did not end within" in server.text(), server.text()
        assert server.client.health.Check(health_pb2.HealthCheckRequest(), timeout=10 * SLOW).status == 1


def a_server_ends_while_a_device_is_out():
    with Server(quantized(), "--device", "sim:?fault=lost@2") as server:
        fails("UNAVAILABLE", ".", server.client.kserve.ModelInfer, slow_request())
        until(lambda: "tries: 3" in server.text(), "tries", server)


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
     a_fault_is_tried_on_another_device,
     a_lost_device_is_replaced_by_the_other, without_devices_health_says_so, a_lost_device_comes_back,
     another_device_answers_until_it_is_back, wrong_bits_keep_a_device_out, another_bitstream_after_the_reset,
     a_bitstream_is_loaded_again,
     a_run_that_nothing_ends, a_server_ends_while_a_device_is_out, models_take_turns_on_a_small_device,
     a_package_that_no_device_can_run, bitstreams])
