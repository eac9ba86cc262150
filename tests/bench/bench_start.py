#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From the start of blockwave-serve to its first answer, with a package in the page cache.

usage: bench_start.py BIN_DIR PACKAGE.bw [--runs N] [--json FILE]

ready: the port file is there. first answer: a client that has waited for that file, and connects then, has its
ModelInfer answered (its own connecting included). Medians.
"""
import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import grpc

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
TARGETS = {"load": 50, "answer": 150}


def inputs_of(options):
    out = subprocess.run([os.path.join(options.bin, "blockwave"), "inspect", "--json", options.package],
                         stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out)["inputs"]


def request(pb2, inputs):
    q = pb2.ModelInferRequest()
    for t in inputs:
        shape = [1 if d < 0 else d for d in t["shape"]]
        q.inputs.add(name=t["name"], datatype="FP32", shape=shape)
        count = 1
        for d in shape:
            count *= d
        q.raw_input_contents.append(bytes(4 * count))
    return q.SerializeToString()


def once(options, work, number, message):
    port_file, log = os.path.join(work, f"port{number}"), os.path.join(work, f"log{number}")
    with open(log, "w") as out:
        started = time.monotonic()
        server = subprocess.Popen([os.path.join(options.bin, "blockwave-serve"), options.package, "--grpc",
                                   "127.0.0.1:0", "--port-file", port_file, "--lame-duck-ms", "0"], stderr=out)
    try:
        while not os.path.exists(port_file):
            if server.poll() is not None:
                sys.exit(f"bench_start: the server ended: {open(log).read()}")
            time.sleep(0.0002)
        ready = time.monotonic()
        with open(port_file) as f:
            channel = grpc.insecure_channel(f"127.0.0.1:{int(f.read())}", options=[("grpc.use_local_subchannel_pool", 1)])
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        call(message, wait_for_ready=True, timeout=30)
        first = time.monotonic()
        call(message, timeout=30)
        second = time.monotonic()
        channel.close()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    text = open(log).read()
    load = re.search(r"from .* in ([0-9.]+) ms", text)
    return {"load": float(load.group(1)), "ready": 1e3 * (ready - started), "answer": 1e3 * (first - started),
            "first": 1e3 * (first - ready), "second": 1e3 * (second - first)}


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n\n")[0])
    parser.add_argument("bin")
    parser.add_argument("package")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{TOP}/service/proto", f"--python_out={work}",
                        "inference.proto"], check=True)
        sys.path.insert(0, work)
        import inference_pb2
        message = request(inference_pb2, inputs_of(options))
        runs = [once(options, work, number, message) for number in range(options.runs + 1)][1:]
    median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"{os.path.basename(options.package)}, {os.path.getsize(options.package) / 1e6:.1f} MB, {options.runs} runs, "
          f"medians (best)")
    for key, label in (("load", "load the package, trial run included"), ("ready", "process start to ready"),
                       ("answer", "process start to first answer"), ("first", "first request, connecting included"),
                       ("second", "second request")):
        target = f"   target: below {TARGETS[key]}" if key in TARGETS else ""
        print(f"  {label:38} {median[key]:8.1f} ms ({min(run[key] for run in runs):.1f}){target}")
    if options.json:
        with open(options.json, "w") as out:
            json.dump({"package": os.path.basename(options.package), "runs": runs, "median": median}, out, indent=2)
            out.write("\n")


main()
