#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The service on an OpenCL device: the simulator's bits, bitstreams with kernels, weights that change in its memory."""
import glob
import os
import subprocess

import grpc
import health_pb2
import numpy as np
from support import SLOW, WORK, Server, expect, fails, infer_request, infer_value, quantized, run, same

BLOCKWAVE = os.path.join(os.environ["BW_BIN"], "blockwave")
INPUTS = np.random.default_rng(5).random((6, 1, 32, 32), "<f4")


def skip_reason():
    lines = subprocess.run([BLOCKWAVE, "devices"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    if "opencl:0" in lines:
        return None
    return ([line for line in lines if line.startswith("opencl: not usable")] or ["there is no OpenCL device"])[0]


def request(i):
    return infer_request("slow", {"image": INPUTS[i:i + 1]})


def ask(server, i):
    return infer_value(server.client.kserve.ModelInfer(request(i), timeout=60 * SLOW))


def expected():
    with Server(quantized(), "--device", "sim:") as server:
        return [ask(server, i) for i in range(len(INPUTS))]


def same_bits_as_the_simulator():
    """Both at once, too: the trial run at the start compares them."""
    wanted = expected()
    for devices in (["--device", "opencl:0"], ["--device", "opencl:0", "--device", "sim:", "--device", "opencl:0?scrub=1"]):
        with Server(quantized(), *devices) as server:
            for i in range(len(INPUTS)):
                same(ask(server, i), wanted[i])


def bitstreams():
    """Kernels as source and as a binary, onto the device of their part and onto one that is named."""
    wanted = expected()
    folder = os.path.join(os.environ["BW_TOP"], "kernels/opencl")
    source = os.path.join(WORK, "kernels.cl")
    with open(source, "w") as out:
        for name in ("op.h", "formats.cl", "tile.cl", "vector.cl", "conv.cl"):
            with open(os.path.join(folder, name)) as f:
                out.write(f.read())
    cache = os.path.join(WORK, "binaries")
    with Server(quantized(), "--device", "opencl:0", before=("env", f"BW_CACHE_DIR={cache}")):
        pass
    made = []
    for name, file in (("source", source), ("binary", glob.glob(os.path.join(cache, "opencl-*.bin"))[0])):
        made.append(os.path.join(WORK, f"{name}.bwbit"))
        subprocess.run([BLOCKWAVE, "bitstream", file, "-o", made[-1]], check=True, stdout=subprocess.DEVNULL)
    for option in (made[0], made[0] + "@opencl:0", made[1], made[1] + "@opencl:0"):
        with Server(quantized(), "--device", "sim:", "--device", "opencl:0", "--bitstream", option) as server:
            text = server.text()
            assert "device opencl:0 holds bitstream 'OpenCL kernels'" in text and "device sim: holds" not in text, text
            for i in range(len(INPUTS)):
                same(ask(server, i), wanted[i])
    # A reset keeps the kernels.
    uri = "opencl:0?scrub=1&fault=flip@3"
    with Server(quantized(), "--device", uri, "--bitstream", f"{made[0]}@{uri}") as server:
        same(ask(server, 0), wanted[0])
        fails("UNAVAILABLE", "memory changed", server.client.kserve.ModelInfer, request(0))
        for i in range(len(INPUTS)):
            same(ask(server, i), wanted[i])
    expect(1, "is for part 'opencl', the device is a 'sim'", quantized(), "--device", "sim:", "--bitstream", made[0], "--grpc",
           "127.0.0.1:0")
    expect(1, "there is no --device opencl:1 to load it onto", quantized(), "--device", "opencl:0", "--bitstream",
           made[0] + "@opencl:1", "--grpc", "127.0.0.1:0")
    with open(made[0], "rb") as f:
        damaged = bytearray(f.read())
    damaged[len(damaged) // 2] ^= 4
    with open(made[0], "wb") as f:
        f.write(damaged)
    expect(1, "source.bwbit", quantized(), "--device", "opencl:0", "--bitstream", made[0], "--grpc", "127.0.0.1:0")


def a_turned_bit_costs_one_request():
    wanted = expected()
    with Server(quantized(), "--device", "opencl:0?scrub=1&fault=flip@3&fault=flip@6") as server:
        answers = []
        for i in (0, 1, 2, 3, 4, 5, 0):
            try:
                same(ask(server, i), wanted[i])
                answers.append(1)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE and "memory changed" in error.details(), error
                answers.append(0)
        assert answers == [1, 0, 1, 1, 0, 1, 1], answers  # the trial run was the first
        text = server.text()
        assert text.count("the weights in the device's memory changed: sum") >= 2 and "resetting the device" in text, text
        assert server.client.health.Check(health_pb2.HealthCheckRequest(), timeout=10 * SLOW).status == 1


why = skip_reason()
if why:
    print(f"1..1\nok 1 - the service on an OpenCL device # SKIP {why}")
else:
    run([same_bits_as_the_simulator, bitstreams, a_turned_bit_costs_one_request])
