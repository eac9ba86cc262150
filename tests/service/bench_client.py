# SPDX-License-Identifier: Apache-2.0
"""blockwave-bench-client against real servers: what it sends, what it counts, how it ends."""
import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import time

import grpc
import inference_pb2
import inference_pb2_grpc
import numpy as np
from PIL import Image
from support import SLOW, SLOW_DEVICE, WORK, Server, Skip, package, quantized, run

BENCH = os.path.join(os.environ["BW_BIN"], "blockwave-bench-client")


def bench(port, *args, expect=0, address=None):
    done = subprocess.run([BENCH, address or f"127.0.0.1:{port}", *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=60 * SLOW)
    assert done.returncode == expect, f"exit {done.returncode}, expected {expect}: {done.stdout} {done.stderr}"
    return done


def figures(port, *args, expect=0):
    return json.loads(bench(port, "--json", "--warmup", "0.1", *args, expect=expect).stdout)


def refused(text, *args, port=1, expect=1):
    done = bench(port, *args, expect=expect)
    assert text in done.stderr and done.stderr.count("\n") == 1 and not done.stdout, (done.stdout, done.stderr)


class Recorder(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """A server without metadata that keeps requests, and answers as told."""

    def __init__(self, answer=lambda number: None, workers=8):
        self.requests, self.answer = [], answer
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(workers))
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def ModelInfer(self, request, context):
        self.requests.append(request)
        self.answer(len(self.requests))
        if request.model_name == "cancel":
            context.abort(grpc.StatusCode.CANCELLED, "changed my mind")
        if request.model_name == "refuse":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room today")
        return inference_pb2.ModelInferResponse()

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.server.stop(None).wait()


server = Server(package("double"), package("sum"), package("picture"), package("one"))


def closed_loop_in_each_protocol():
    for protocol in ("kserve", "kserve-typed", "predict"):
        f = figures(server.port, "--model", "double", "--protocol", protocol, "--duration", "0.5", "--batch", "3",
                    "--connections", "2", "--outstanding", "2")
        assert f["ok"] > 10 and f["failed"] == 0 and f["unfinished"] == 0 and f["errors"] == {}, f
        assert f["protocol"] == protocol and f["loop"] == "closed" and f["batch"] == 3 and not f["interrupted"], f
        l = f["latency_us"]
        assert 0 < l["min"] <= l["p50"] <= l["p90"] <= l["p99"] <= l["p99.9"] <= l["max"] and l["count"] == f["ok"], l
        assert l["min"] <= l["mean"] <= l["max"], l
        # Little's law: four callers that always wait.
        assert 0.5 < f["throughput_per_second"] * l["mean"] * 1e-6 / 4 < 1.5, f
        assert f["server_us"]["total"]["mean"] < l["mean"], f


def two_inputs_and_fixed_batch():
    f = figures(server.port, "--model", "sum", "--batch", "2", "--input", "a=zeros", "--input", "b=random",
                "--duration", "0.2")
    assert f["ok"] > 0 and f["failed"] == 0, f
    assert figures(server.port, "--model", "one", "--duration", "0.2")["ok"] > 0
    refused("fixed batch of 1", "--model", "one", "--batch", "2", port=server.port)


def open_loop_keeps_its_rate():
    for arrival in ("fixed", "poisson"):
        f = figures(server.port, "--model", "double", "--rate", "200", "--arrival", arrival, "--duration", "2")
        assert f["loop"] == "open" and f["arrival"] == arrival and f["not_sent"] == 0, f
        # 400 expected; 5 standard deviations of a Poisson count.
        low, high = (398, 402) if arrival == "fixed" else (300, 500)
        assert low <= f["ok"] + f["failed"] <= high, f
        assert f["send_delay_us"]["count"] == f["ok"] + f["failed"], f


def a_stall_is_seen_by_all_who_wait():
    """One second without answers at 100 requests a second: about 100 requests wait, half a second on the mean. Counted
    from their sending in the manner of closed loops only one would have."""
    stall = lambda number: time.sleep(1) if number == 30 else None
    with Recorder(stall, workers=1) as r:
        f = figures(r.port, "--shape", "x=1,4", "--model", "m", "--rate", "100", "--arrival", "fixed", "--duration",
                    "2", "--warmup", "0")
    l = f["latency_us"]
    assert f["ok"] == f["latency_us"]["count"] >= 195, f
    assert l["max"] > 950e3 and l["p90"] > 600e3 and l["mean"] > 150e3, l


def too_few_allowed_on_their_way_is_said():
    with Recorder(lambda number: time.sleep(0.1), workers=1) as r:
        f = figures(r.port, "--shape", "x=1,4", "--model", "m", "--rate", "100", "--arrival", "fixed", "--outstanding",
                    "2", "--duration", "1", "--warmup", "0")
    assert 80 <= f["not_sent"] <= 95 and f["ok"] + f["not_sent"] in (99, 100), f
    assert f["latency_us"]["max"] > 500e3, f


def what_is_sent():
    rows = np.arange(12, dtype="<f4").reshape(3, 4)
    np.save(os.path.join(WORK, "rows.npy"), rows)
    np.save(os.path.join(WORK, "wide.npy"), np.zeros((3, 5)))
    Image.fromarray(np.zeros((8, 8, 3), "u1")).save(os.path.join(WORK, "black.png"))
    with open(os.path.join(WORK, "black.png"), "rb") as f:
        png = f.read()
    with Recorder() as r:
        args = ("--shape", "x=2,4", "--batch", "2", "--model", "m", "--model-version", "7", "--duration", "0.1")
        figures(r.port, *args, "--input", os.path.join(WORK, "rows.npy"))
        first = r.requests[0]
        assert first.model_name == "m" and first.model_version == "7", first
        assert [first.inputs[0].name, first.inputs[0].datatype, *first.inputs[0].shape] == ["x", "FP32", 2, 4], first
        assert first.raw_input_contents[0] == rows[:2].tobytes() and all(q == first for q in r.requests)
        for protocol in ("kserve", "kserve-typed"):
            r.requests.clear()
            figures(r.port, *args, "--input", os.path.join(WORK, "black.png"), "--protocol", protocol)
            q = r.requests[0]
            assert q.inputs[0].datatype == "BYTES" and list(q.inputs[0].shape) == [2], q
            if protocol == "kserve":
                assert q.raw_input_contents[0] == (len(png).to_bytes(4, "little") + png) * 2
            else:
                assert list(q.inputs[0].contents.bytes_contents) == [png, png]
        r.requests.clear()
        figures(r.port, "--shape", "x=1,1000", "--model", "m", "--duration", "0.1", "--seed", "5")
        values = np.frombuffer(r.requests[0].raw_input_contents[0], "<f4")
        assert values.min() >= -1 and values.max() < 1 and abs(values.mean()) < 0.1 and values.std() > 0.5
        refused("shape [3,5], input 'x' takes [2,4]", *args, "--input", os.path.join(WORK, "wide.npy"), port=r.port)
        refused("neither .npy nor PNG nor JPEG", *args, "--input", BENCH, port=r.port)
    f = figures(server.port, "--model", "picture", "--input", os.path.join(WORK, "black.png"), "--duration", "0.3",
                "--batch", "2", "--protocol", "predict")
    assert f["ok"] > 0 and f["failed"] == 0 and f["server_us"]["preprocess"]["mean"] > 0, f


def other_datatypes():
    rows = np.array([[0, 1, 2.5, -3], [255, 128, 0.1, 65504]], "<f4")
    whole = np.array([[0, 1, 127, 3], [9, 8, 7, 100]], "<f8")
    np.save(os.path.join(WORK, "reals.npy"), rows)
    np.save(os.path.join(WORK, "whole.npy"), whole)
    with Recorder() as r:
        args = ("--shape", "x=2,4", "--batch", "2", "--model", "m", "--duration", "0.1", "--input")
        for name, kind, file, values in (("UINT8", "u1", "whole", whole), ("INT8", "i1", "whole", whole),
                                         ("FP16", "<f2", "reals", rows), ("FP32", "<f4", "reals", rows)):
            r.requests.clear()
            figures(r.port, *args, os.path.join(WORK, file + ".npy"), "--datatype", name)
            assert r.requests[0].inputs[0].datatype == name, r.requests[0]
            assert r.requests[0].raw_input_contents[0] == values.astype(kind).tobytes(), r.requests[0]
        r.requests.clear()
        figures(r.port, *args, os.path.join(WORK, "whole.npy"), "--datatype", "BF16")
        sent = np.frombuffer(r.requests[0].raw_input_contents[0], "<u2").astype("<u4") << 16
        assert np.array_equal(sent.view("<f4"), whole.ravel()) and r.requests[0].inputs[0].datatype == "BF16"
        for name, low, high in (("UINT8", 0, 255), ("INT8", -128, 127)):
            r.requests.clear()
            figures(r.port, "--shape", "x=1,4000", "--model", "m", "--duration", "0.1", "--datatype", name)
            values = np.frombuffer(r.requests[0].raw_input_contents[0], "u1" if name == "UINT8" else "i1")
            assert len(values) == 4000 and values.min() == low and values.max() == high and len(set(values)) == 256
        refused("value 2.5 at index 2 is no UINT8, whole numbers from 0 to 255: send FP32", *args,
                os.path.join(WORK, "reals.npy"), "--datatype", "UINT8", port=r.port)
        np.save(os.path.join(WORK, "large.npy"), np.full((2, 4), 70000, "<f4"))
        refused("value 70000 at index 0, FP16 ends at 65504: send FP32", *args, os.path.join(WORK, "large.npy"),
                "--datatype", "FP16", port=r.port)
        Image.fromarray(np.zeros((8, 8, 3), "u1")).save(os.path.join(WORK, "black.png"))
        refused("a picture is sent as it is", *args, os.path.join(WORK, "black.png"), "--datatype", "UINT8", port=r.port)
    for name in ("FP16", "BF16", "UINT8", "INT8"):
        for protocol in ("kserve", "predict"):
            f = figures(server.port, "--model", "double", "--datatype", name, "--protocol", protocol, "--duration", "0.2")
            assert f["ok"] > 0 and f["failed"] == 0, f


def left_segments():
    return [name for name in os.listdir("/dev/shm") if name.startswith("blockwave-bench-")]


def tensors_in_shared_memory():
    png = os.path.join(WORK, "small.png")
    Image.fromarray(np.full((8, 8, 3), 7, "u1")).save(png)
    with Server(package("double"), package("sum"), package("picture"), "--shared-memory") as sharing:
        regions = lambda: list(sharing.client.kserve.SystemSharedMemoryStatus(
            inference_pb2.SystemSharedMemoryStatusRequest(), timeout=10).regions.values())
        for args, sent, answered in ((("--model", "double", "--batch", "3"), 48, 48),
                                     (("--model", "double", "--batch", "3", "--datatype", "UINT8"), 12, 48),
                                     (("--model", "sum", "--outstanding", "5", "--connections", "2"), 24, 24),
                                     (("--model", "double", "--rate", "300", "--outstanding", "40"), 16, 16),
                                     (("--model", "picture", "--input", png, "--batch", "2"),
                                      2 * (4 + os.path.getsize(png)), 2 * 3 * 8 * 8 * 4),
                                     (("--model", "double", "--shape", "x=2,4"), 32, 32),
                                     (("--model", "double", "--shape", "x=2,4", "--batch", "2"), 32, 32)):
            f = figures(sharing.port, *args, "--shared-memory", "--duration", "0.5")
            assert f["ok"] > 10 and not f["failed"] and not f["unfinished"], f
            named = any("=" in arg for arg in args)  # no metadata: sizes of outputs are not known
            assert f["shared_request_bytes"] == sent and f["shared_reply_bytes"] == (0 if named else answered), f
            assert f["request_bytes"] < 1000, f
            assert not regions() and not left_segments(), (regions(), left_segments())
        text = bench(sharing.port, "--model", "double", "--shared-memory", "--duration", "0.2", "--warmup", "0").stdout
        assert "16 in shared memory, 16 of the answer" in text, text
        assert "shared_request_bytes" not in figures(sharing.port, "--model", "double", "--duration", "0.1")
        # Interrupted, and killed: no segment; the server is told in the first case.
        for sign, code in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)):
            process = subprocess.Popen([BENCH, sharing.address, "--model", "double", "--shared-memory", "--duration", "60",
                                        "--json"], stdout=subprocess.PIPE, text=True)
            until = time.time() + 30 * SLOW
            while not regions() and time.time() < until:
                time.sleep(0.05)
            assert len(regions()) == 1 and f"-{process.pid}-" in regions()[0].key and not left_segments()
            process.send_signal(sign)
            process.communicate(timeout=10 * SLOW)
            assert process.returncode == code, process.returncode
            assert bool(regions()) == (code == -9) and not left_segments(), regions()
    refused("shared memory is not offered: start the server with --shared-memory", "--model", "double", "--shared-memory",
            port=server.port)
    with Recorder() as r:
        refused("UNIMPLEMENTED", "--shape", "x=1,4", "--model", "m", "--shared-memory", port=r.port)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        refused("no server answered within 1 s", "--connect-seconds", "1", "--shape", "x=1,4", "--model", "m",
                "--shared-memory", port=s.getsockname()[1])
    refused("--shared-memory with --protocol predict: only kserve has it", "--shared-memory", "--protocol", "predict",
            port=server.port, expect=2)
    assert not left_segments()


def memory_that_is_not_there():
    """More than /dev/shm has: one line, and nothing left."""
    with Server(package("wide"), "--shared-memory") as sharing:
        whole = os.statvfs("/dev/shm")  # what is more than all of it is refused before any is taken
        requests = min(whole.f_blocks * whole.f_frsize // (1024 * 4096 * 4) + 1, 65536)
        if requests == 65536:
            raise Skip("/dev/shm has more than 1 TB")
        connections = max(1, requests // 4096 + 1)
        refused("MB of shared memory for", "--model", "wide", "--batch", "4096", "--shared-memory", "--outstanding",
                str(requests // connections + 1), "--connections", str(connections), port=sharing.port)
    assert not left_segments()


def errors_are_counted_by_code():
    with Recorder(lambda number: time.sleep(0.2 if number > 1 else 0)) as r:
        f = figures(r.port, "--shape", "x=1,4", "--model", "m", "--deadline-ms", "50", "--duration", "0.5", expect=1)
    assert f["ok"] == 0 and f["errors"]["DEADLINE_EXCEEDED"]["count"] == f["failed"] > 3, f
    with Recorder() as r:
        refused("the first request: /inference.GRPCInferenceService/ModelInfer: RESOURCE_EXHAUSTED: no room today",
                "--shape", "x=1,4", "--model", "refuse", "--duration", "0.5", port=r.port)
        refused("CANCELLED: changed my mind", "--shape", "x=1,4", "--model", "cancel", port=r.port)
        refused("--batch 3 and --shape 2,4 of input 'x' disagree", "--shape", "x=2,4", "--batch", "3", "--model", "m",
                port=r.port)
        assert figures(r.port, "--shape", "x=2,4", "--model", "m", "--duration", "0.1")["batch"] == 2


def a_server_that_dies():
    with Recorder() as r:
        process = subprocess.Popen([BENCH, f"127.0.0.1:{r.port}", "--shape", "x=1,4", "--model", "m", "--duration", "2",
                                    "--warmup", "0", "--json"], stdout=subprocess.PIPE, text=True)
        while not r.requests:
            time.sleep(0.01)
        time.sleep(0.5)
    f = json.loads(process.communicate(timeout=30 * SLOW)[0])
    # Those who are refused ask a hundred times a second, no more.
    assert process.returncode == 0 and f["ok"] > 0 and 1 <= f["errors"]["UNAVAILABLE"]["count"] <= 250, f


def time_on_the_device():
    with Server(quantized(), *SLOW_DEVICE) as slow:
        f = figures(slow.port, "--duration", "2")
    # Sanitizers slow the service down, not the device's sleep: its share is only bounded without them.
    bound = 0.5 if os.environ.get("BW_SAN") else 0.1
    assert f["server_us"]["device"]["mean"] > 650e3 and 0 <= f["service_share"] < bound, f
    assert f["device_share"] > 1 - bound, f
    text = bench(server.port, "--model", "double", "--duration", "0.2", "--warmup", "0").stdout
    for word in ("closed loop: 1 connections x 1 outstanding", " good, 0 failed", "p99.9", "decode", "total"):
        assert word in text, text


def ctrl_c_prints_the_figures_so_far():
    for sign in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen([BENCH, f"127.0.0.1:{server.port}", "--model", "double", "--duration", "60",
                                    "--warmup", "0", "--json"], stdout=subprocess.PIPE, text=True)
        time.sleep(1.5 * SLOW)
        process.send_signal(sign)
        out, started = process.communicate(timeout=10 * SLOW)[0], time.time()
        f = json.loads(out)
        assert process.returncode == 130 and f["interrupted"] and f["ok"] > 0 and f["seconds"] < 30 * SLOW, f


def nobody_there():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        refused("no server answered within 1 s", "--connect-seconds", "1", port=s.getsockname()[1])
        refused("no server answered within 1 s", "--connect-seconds", "1", "--shape", "x=1,4", "--model", "m",
                port=s.getsockname()[1])
    refused("model 'nope' is not served", "--model", "nope", port=server.port)
    with Recorder() as r:
        refused("does not tell its models' inputs", port=r.port)


def wrong_usage():
    for text, *args in (("no address given",), ("one address expected", "a:1", "b:2"),
                        ("--batch 0: expected", "a:1", "--batch", "0"), ("--rate x: expected", "a:1", "--rate", "x"),
                        ("--protocol http: expected", "a:1", "--protocol", "http"),
                        ("--datatype FP64: expected FP32, FP16", "a:1", "--datatype", "FP64"),
                        ("kserve-typed: only", "a:1", "--datatype", "FP16", "--protocol", "kserve-typed"),
                        ("--arrival never: expected", "a:1", "--arrival", "never"),
                        ("at most 65536", "a:1", "--connections", "1024", "--outstanding", "1024"),
                        ("unknown option '--frob'", "a:1", "--frob"), ("--input needs a value", "a:1", "--input")):
        done = subprocess.run([BENCH, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and text in done.stderr and done.stderr.count("\n") == 1, (text, done.stderr)
    refused("expected 1..8 positive numbers", "--model", "double", "--shape", "x=1,,4", port=server.port)
    refused("write NAME=VALUE", "--model", "double", "--input", "z=random", port=server.port)


with server:
    run([closed_loop_in_each_protocol, two_inputs_and_fixed_batch, open_loop_keeps_its_rate,
         a_stall_is_seen_by_all_who_wait, too_few_allowed_on_their_way_is_said, what_is_sent, other_datatypes,
         tensors_in_shared_memory, memory_that_is_not_there, errors_are_counted_by_code, a_server_that_dies,
         time_on_the_device, ctrl_c_prints_the_figures_so_far, nobody_there, wrong_usage])
