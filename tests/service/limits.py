#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bounds: the queue, connections, descriptors, slow uploads; and starts that must fail."""
import os
import socket
import struct
import subprocess
import time

import grpc
import health_pb2
import numpy as np
from support import (SLOW, SLOW_DEVICE, WORK, Client, Server, expect, fails, infer_request, infer_value, package, quantized, run,
                     same, slow_request, start, trailing)

ONES = np.ones((1, 4), "<f4")


def works(client):
    same(infer_value(client.kserve.ModelInfer(infer_request("double", {"x": ONES}), timeout=30 * SLOW)), ONES * 2)


def until(condition, seconds=10):
    end = time.time() + seconds * SLOW
    while not condition():
        assert time.time() < end, "this did not come true in time"
        time.sleep(0.02)


# --- the queue ----------------------------------------------------------------------------------------------------


def full_queue_is_refused_at_once():
    with Server(quantized(), *SLOW_DEVICE, "--workers", "1", "--queue", "1") as server:
        started = time.time()
        calls = [server.client.kserve.ModelInfer.future(slow_request(), timeout=60 * SLOW) for _ in range(6)]
        refused = []
        for call in calls:
            error = call.exception()
            if error is not None:
                refused.append(error)
        assert time.time() - started > 1.3, "two runs in less time than they take"
        assert len(refused) == 4, refused  # one runs, one waits
        for error in refused:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
            assert "queue is full" in error.details() and "--queue" in error.details()
            assert 1 <= int(trailing(error)["grpc-retry-pushback-ms"]) <= 60000, trailing(error)


def a_cancelled_request_leaves_the_queue():
    with Server(quantized(), *SLOW_DEVICE, "--workers", "1", "--queue", "1") as server:
        call = lambda: server.client.kserve.ModelInfer.future(slow_request(), timeout=60 * SLOW)
        running = call()
        time.sleep(0.1)
        waiting = call()
        time.sleep(0.1)
        third = call()
        assert third.exception().code() == grpc.StatusCode.RESOURCE_EXHAUSTED, third.exception()
        waiting.cancel()
        time.sleep(0.1)
        fourth = call()
        time.sleep(0.1)
        assert not running.done(), "this machine is too busy to tell"
        assert fourth.exception() is None, fourth.exception()
        assert running.exception() is None


# --- connections --------------------------------------------------------------------------------------------------


def two_hundred_connections():
    with Server(package("double")) as server:
        clients = [Client(server.address) for _ in range(200)]
        calls = [c.kserve.ModelInfer.future(infer_request("double", {"x": ONES}), timeout=60 * SLOW) for c in clients]
        for call in calls:
            same(infer_value(call.result()), ONES * 2)
        for client in clients:
            client.channel.close()
        works(server.client)


def flood(port, count):
    """Sockets that connect and say nothing; those the server closes show it."""
    sockets = []
    for _ in range(count):
        s = socket.socket()
        s.settimeout(5)
        s.connect(("127.0.0.1", port))
        sockets.append(s)
    return sockets


def connection_limit():
    with Server(package("double"), "--max-connections", "20") as server:
        works(server.client)
        sockets = flood(server.port, 60)
        closed = 0
        for s in sockets:
            s.settimeout(0.05)
            try:
                while data := s.recv(4096):  # the server's SETTINGS come first
                    assert data
                closed += 1
            except ConnectionResetError:
                closed += 1
            except TimeoutError:
                pass
        assert 30 <= closed <= 50, closed
        works(server.client)
        for s in sockets:
            s.close()
        until(lambda: works_anew(server.address))
        assert "too many connections" in server.text()


def works_anew(address):
    client = Client(address)
    try:
        works(client)
        return True
    except grpc.RpcError:
        return False
    finally:
        client.channel.close()


def few_descriptors():
    """Running out of descriptors must not kill the listener for good."""
    with Server(package("double"), before=("prlimit", "--nofile=64:64")) as server:
        sockets = flood(server.port, 100)
        for s in sockets:
            s.close()
        until(lambda: works_anew(server.address))


# --- idle connections -----------------------------------------------------------------------------------------------


def idle_connections_are_closed():
    """After --idle-seconds, unless a call is under way, and the client connects anew without noticing."""
    with Server(package("double"), "--idle-seconds", "1") as server:
        idle = socket.create_connection(("127.0.0.1", server.port))
        idle.settimeout(20 * SLOW)
        watch = server.client.health.Watch(health_pb2.HealthCheckRequest(), timeout=60 * SLOW)
        assert next(watch).status == 1
        while idle.recv(65536):
            pass
        idle.close()
        time.sleep(2)
        works(server.client)
        server.term()
        assert next(watch).status == 2
    with Server(package("double"), "--idle-seconds", "1") as server:
        works(server.client)
        time.sleep(2.5)
        works(server.client)


# --- slow uploads, by hand over HTTP/2 ------------------------------------------------------------------------------


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def slow_upload_is_cut_off():
    with Server(package("double"), "--upload-seconds", "1") as server:
        s = socket.create_connection(("127.0.0.1", server.port))
        headers = b"".join(literal(n, v) for n, v in (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
            (b":authority", b"localhost"), (b"te", b"trailers"), (b"content-type", b"application/grpc")))
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(1, 4, 1, headers)
                  + frame(0, 0, 1, b"\0" + struct.pack(">I", 1000) + b"x" * 10))
        started, data = time.time(), b""
        s.settimeout(20 * SLOW)
        ended = False
        while not ended:
            more = s.recv(65536)
            assert more, "the connection was closed instead of the stream"
            data += more
            rest = data
            while len(rest) >= 9:
                size = int.from_bytes(rest[:3], "big")
                kind, flags, stream = rest[3], rest[4], int.from_bytes(rest[5:9], "big")
                ended |= stream == 1 and (kind == 3 or (kind == 1 and flags & 1))
                rest = rest[9 + size:]
        took = time.time() - started
        assert 0.9 < took < 10 * SLOW, took
        s.close()
        works(server.client)


# --- starts that fail ---------------------------------------------------------------------------------------------


def bad_arguments():
    double = package("double")
    expect(2, "no model given")
    expect(2, "unknown option '--nope'", "--nope", double)
    expect(2, "--queue needs a value", double, "--queue")
    expect(2, "--max-message-mb 0: expected a whole number of 1..1024", double, "--max-message-mb", "0")
    expect(2, "--workers -3: expected", double, "--workers", "-3")
    expect(2, "--queue 1x: expected", double, "--queue", "1x")
    for address, text in (("nonsense", "expected HOST:PORT"), ("127.0.0.1:70000", "expected HOST:PORT"),
                          ("::1:50051", "in brackets"), ("256.0.0.1:0", "256.0.0.1:0")):
        expect(1, text, double, "--grpc", address)
    done = start("--help")
    assert done.returncode == 0 and "usage: blockwave serve" in done.stdout
    done = start("--version")
    assert done.returncode == 0 and done.stdout.startswith("blockwave-serve ")


def bad_packages():
    free = ("--grpc", "127.0.0.1:0")
    double = package("double")
    expect(1, "missing.bw", os.path.join(WORK, "missing.bw"), *free)
    broken = os.path.join(WORK, "broken.bw")
    with open(double, "rb") as f:
        data = bytearray(f.read())
    data[-1100] ^= 1
    with open(broken, "wb") as f:
        f.write(data)
    expect(1, "broken.bw", broken, *free)
    expect(1, "is there twice", double, double, *free)
    expect(1, "no *.bw in it", "--models", os.path.join(WORK, "stubs"), *free)
    expect(1, "/no/such/dir", "--models", "/no/such/dir", *free)
    expect(1, "nosuch", double, "--device", "nosuch:", *free)
    port_file = os.path.join(WORK, "never")
    expect(1, "broken.bw", broken, "--port-file", port_file, *free)
    assert not os.path.exists(port_file)


def port_in_use():
    with Server(package("double")) as server:
        expect(1, "is in use by another process", package("double"), "--grpc", f"127.0.0.1:{server.port}")
        works(server.client)


def unix_domain_socket():
    path = os.path.join(WORK, "serve.sock")
    with Server(package("double"), listen="unix:" + path) as server:
        works(server.client)
        assert f"ready on unix:{path}" in server.text(), server.text()
        expect(1, "is in use by another process", package("double"), "--grpc", "unix:" + path)
        works(server.client)
        done = subprocess.run([os.path.join(os.environ["BW_BIN"], "blockwave-bench-client"), "unix:" + path, "--warmup", "0",
                               "--duration", "0.2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
    assert not os.path.exists(path), "it is left behind"
    # What is under way when the end begins is finished.
    with Server(quantized(), *SLOW_DEVICE, listen="unix:" + path) as server:
        call = server.client.kserve.ModelInfer.future(slow_request(), timeout=60 * SLOW)
        time.sleep(0.2)
        server.term()
        assert call.exception() is None, call.exception()
    # What a killed server left behind is replaced.
    with Server(package("double"), listen="unix:" + path, expect=-9) as server:
        server.process.kill()
    assert os.path.exists(path)
    with Server(package("double"), listen="unix://" + path) as server:
        works(server.client)
    # But nothing else is.
    with open(path, "w") as f:
        f.write("a file")
    expect(1, "is in use by another process, or no socket", package("double"), "--grpc", "unix:" + path)
    with open(path) as f:
        assert f.read() == "a file"
    expect(1, "expected a path of 1..107 bytes", package("double"), "--grpc", "unix:" + "/tmp" * 30)
    expect(1, "No such file or directory", package("double"), "--grpc", "unix:" + os.path.join(WORK, "nowhere", "s"))


def a_directory_of_models_on_two_devices():
    folder = os.path.join(WORK, "models")
    os.makedirs(folder)
    for name in ("double", "sum"):
        os.link(package(name), os.path.join(folder, f"{name}.bw"))
    with open(os.path.join(folder, "notes.txt"), "w") as f:
        f.write("not a package\n")
    with Server("--models", folder, "--device", "sim:", "--device", "sim:reference") as server:
        works(server.client)
        assert "model 'sum'" in server.text() and server.text().count(" device sim:") == 2, server.text()


def quiet_says_nothing():
    with Server(package("double"), "--quiet") as server:
        works(server.client)
        server.term()
        server.wait()
        assert server.text() == "", server.text()


run([full_queue_is_refused_at_once, a_cancelled_request_leaves_the_queue, two_hundred_connections, connection_limit,
     few_descriptors, idle_connections_are_closed, slow_upload_is_cut_off, bad_arguments, bad_packages, port_in_use,
     unix_domain_socket, a_directory_of_models_on_two_devices, quiet_says_nothing])
