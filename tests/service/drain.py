#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The end of a server: drain under load, its bound, a second signal; and what Health/Watch tells meanwhile."""
import os
import threading
import time

import grpc
import health_pb2
import numpy as np
from support import (SLOW, SLOW_DEVICE, Client, Server, infer_request, infer_value, package, quantized, run, same, slow_request)

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
ONES = np.ones((1, 4), "<f4")


def watch(client, service=""):
    return client.health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60 * SLOW)


def drain_under_load():
    """Whoever got through before the end is answered in full; whoever comes late is sent elsewhere, by UNAVAILABLE."""
    with Server(package("double"), quantized(), *SLOW_DEVICE, lame_duck_ms=1000) as server:
        watching = watch(server.client)
        assert next(watching).status == SERVING
        stop, done, wrong = threading.Event(), [], []

        def load():
            client = Client(server.address)
            while not stop.is_set():
                try:
                    reply = client.kserve.ModelInfer(infer_request("double", {"x": ONES}), timeout=30 * SLOW)
                    same(infer_value(reply), ONES * 2)
                    done.append(time.time())
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        wrong.append(error)
                    break
            client.channel.close()

        threads = [threading.Thread(target=load) for _ in range(8)]
        for t in threads:
            t.start()
        in_flight = [server.client.kserve.ModelInfer.future(slow_request(), timeout=60 * SLOW) for _ in range(2)]
        time.sleep(0.3)
        signalled = time.time()
        server.term()
        assert next(watching).status == NOT_SERVING
        for call in in_flight:
            assert call.exception() is None, call.exception()
        try:
            next(watching)
            raise AssertionError("the watch goes on after the end")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        code = server.wait()
        stop.set()
        for t in threads:
            t.join()
        assert code == 0 and not wrong, (code, wrong[:1])
        assert any(t > signalled for t in done), "nothing was answered in the lame duck"
        assert not os.path.exists(server.port_file)
        assert "draining" in server.text() and "stopped after" in server.text() and "cut" not in server.text()


def watches():
    with Server(package("double")) as server:
        unknown = watch(server.client, "no.such.Service")
        assert next(unknown).status == SERVICE_UNKNOWN
        unknown.cancel()
        known = watch(server.client, "inference.GRPCInferenceService")
        assert next(known).status == SERVING
        many = [watch(server.client) for _ in range(50)]
        for w in many:
            assert next(w).status == SERVING
        for w in many[::2]:
            w.cancel()
        server.term()
        for w in [known, *many[1::2]]:
            assert next(w).status == NOT_SERVING
        assert server.wait() == 0


def the_drain_is_bounded():
    with Server(quantized(), *SLOW_DEVICE, "--drain-seconds", "1", "--workers", "1") as server:
        calls = [server.client.kserve.ModelInfer.future(slow_request(), timeout=60 * SLOW) for _ in range(8)]
        time.sleep(0.3)
        server.term()
        started = time.time()
        assert server.wait() == 0, server.text()
        assert time.time() - started < 6 * SLOW
        failed = [c.exception() for c in calls]
        failed = [e for e in failed if e is not None]
        assert failed, "many seconds of work in one: the bound was not kept"
        for error in failed:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        assert "cut off" in server.text(), server.text()


def a_second_signal_ends_it_now():
    with Server(quantized(), *SLOW_DEVICE, "--workers", "1", expect=130) as server:
        calls = [server.client.kserve.ModelInfer.future(slow_request(), timeout=60 * SLOW) for _ in range(8)]
        time.sleep(0.3)
        server.term()
        time.sleep(0.5)
        started = time.time()
        server.term()
        assert server.wait() == 130, server.text()
        assert time.time() - started < 5 * SLOW
        assert any(c.exception() is not None for c in calls)


def a_signal_while_idle():
    with Server(package("double")) as server:
        server.term()
        time.sleep(0.05)
        if server.process.poll() is None:
            server.term()
        assert server.wait() == 0, server.text()


run([drain_under_load, watches, the_drain_is_bounded, a_second_signal_ends_it_now, a_signal_while_idle])
