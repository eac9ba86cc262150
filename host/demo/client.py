#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scores pictures over gRPC with the stock client library: TensorFlow Serving's Predict, one picture per request.

usage: client.py HOST:PORT PICTURE_DIRECTORY MODEL...     (stubs generated from service/proto on PYTHONPATH)
"""
import csv
import os
import sys
import time

import grpc
import health_pb2
import health_pb2_grpc
import predict_pb2
import predict_pb2_grpc

SHOWN = 8


def main():
    address, folder, models = sys.argv[1], sys.argv[2], sys.argv[3:]
    with open(os.path.join(folder, "labels.csv"), newline="") as f:
        expected = [(row["file"], int(row["label"])) for row in csv.DictReader(f)]
    wrong = 0
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        status = health.Check(health_pb2.HealthCheckRequest(), timeout=10).status
        print("health:", health_pb2.HealthCheckResponse.ServingStatus.Name(status))
        stub = predict_pb2_grpc.PredictionServiceStub(channel)
        for model in models:
            print(f"\n{model}\n  {'picture':<16} label  score    round trip   queue  picture  device   total (us)")
            for name, label in expected[:SHOWN]:
                with open(os.path.join(folder, name), "rb") as f:
                    picture = f.read()
                request = predict_pb2.PredictRequest()
                request.model_spec.name = model
                tensor = request.inputs["image"]
                tensor.dtype = 7  # DT_STRING
                tensor.tensor_shape.dim.add().size = 1
                tensor.string_val.append(picture)
                started = time.perf_counter()
                reply, call = stub.Predict.with_call(request, timeout=10)
                took = (time.perf_counter() - started) * 1e6
                scores = reply.outputs["probabilities"].float_val
                best = max(range(len(scores)), key=lambda i: scores[i])
                times = {k: v for k, v in call.trailing_metadata()}
                split = "".join(f"{times.get('bw-' + k + '-us', '?'):>{w}}"
                                for k, w in (("queue", 8), ("preprocess", 9), ("device", 8), ("total", 8)))
                mark = "" if best == label else f"  WRONG, is {label}"
                wrong += best != label
                print(f"  {name:<16} {best:>5}  {scores[best]:.4f} {took:>9.0f} us{split}{mark}")
    if wrong:
        print(f"demo: {wrong} labels wrong", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
