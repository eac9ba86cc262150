# SPDX-License-Identifier: Apache-2.0
"""The metrics that Prometheus scrapes: their form, the devices' counters as requests come and devices fail."""
import http.client
import os
import re
import socket
import threading
import time

import grpc
import health_pb2
import numpy as np
from support import SLOW, WORK, Server, expect, fails, infer_request, quantized, run

SAMPLE = re.compile(r'^([a-z_]+)(?:\{([^}]*)\})? (\S+)$')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def fetch(server, method="GET", path="/metrics"):
    found = re.search(r"metrics on (\S+):(\d+)", server.text())
    connection = http.client.HTTPConnection(found.group(1), int(found.group(2)), timeout=20 * SLOW)
    connection.request(method, path)
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    return reply, body


def parse(text):
    """{(name, label values...): value}; every sample under a heading of its own, none twice, all in one group."""
    samples, heads, group = {}, {}, None
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            group = line.split()[2]
            assert group not in heads, line
            heads[group] = None
        elif line.startswith("# TYPE "):
            assert line.split()[2] == group, line
            heads[group] = line.split()[3]
            assert heads[group] in ("gauge", "counter") and (heads[group] == "counter") == group.endswith("_total"), line
        else:
            m = SAMPLE.match(line)
            assert m and m.group(1) == group and heads[group], line
            labels = LABEL.findall(m.group(2) or "")
            assert ",".join(f'{k}="{v}"' for k, v in labels) == (m.group(2) or ""), line
            key = (m.group(1), *(v for _, v in labels))
            assert key not in samples, line
            samples[key] = float(m.group(3))
    return samples


def scrape(server):
    reply, body = fetch(server)
    assert reply.status == 200 and reply.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    return parse(body)


def request(batch=1):
    return infer_request("slow", {"image": np.zeros((batch, 1, 32, 32), "<f4")})


def of(samples, what, device="sim:?threads=1"):
    return samples[f"blockwave_device_{what}", device]


def counters_follow_requests():
    model = quantized()
    with Server(model, "--metrics", "127.0.0.1:0", "--device", "sim:?threads=1", "--device", "sim:?threads=1",
                "--device", "sim:u250") as server:
        before = scrape(server)
        assert before["blockwave_build_info", "0.1.0"] == 1 and before["blockwave_serving",] == 1
        assert before["blockwave_requests_waiting",] == before["blockwave_requests_running",] == 0
        info = [k for k in before if k[0] == "blockwave_device_info"]
        assert sorted((k[1], k[3], k[4], k[5]) for k in info) == [("sim:?threads=1", "sim", "", ""), ("sim:u250", "sim-u250", "", "")], info
        for device in ("sim:?threads=1", "sim:u250"):
            assert of(before, "in_use", device) == 1 and of(before, "queued_runs", device) == 0
            assert [before["blockwave_device_health", device, s] for s in ("ok", "resetting", "dead")] == [1, 0, 0]
            assert 0 < of(before, "memory_used_bytes", device) < of(before, "memory_bytes", device)
            assert of(before, "memory_budget_bytes", device) == of(before, "memory_bytes", device)
            for name in ("faults_total", "resets_total", "evictions_total"):
                assert of(before, name, device) == 0
        # The simulator has no sensors: no sample, and no invented one.
        assert not [k for k in before if "temperature" in k[0] or "power" in k[0]]
        for batch in (1, 3, 1):
            server.client.kserve.ModelInfer(request(batch), timeout=30 * SLOW)
        after = scrape(server)
        grown = {what: sum(of(after, what, d) - of(before, what, d) for d in ("sim:?threads=1", "sim:u250"))
                 for what in ("runs_total", "inferences_total", "images_total", "busy_seconds_total")}
        assert grown["inferences_total"] == 5 and 3 <= grown["runs_total"] <= 5 and grown["images_total"] == 0, grown
        assert grown["busy_seconds_total"] > 0
        server.term()
        until(lambda: scrape(server)["blockwave_serving",] == 0, server)


def until(condition, server, seconds=10):
    end = time.time() + seconds * SLOW
    while not condition():
        assert time.time() < end, server.text()
        time.sleep(0.02)


def a_fault_is_counted():
    device = "sim:?threads=1&fault=error@2"
    with Server(quantized(), "--metrics", "127.0.0.1:0", "--device", device, lame_duck_ms=0) as server:
        fails("UNAVAILABLE", ".", server.client.kserve.ModelInfer, request())
        until(lambda: scrape(server)["blockwave_device_health", device, "ok"] == 1, server)
        now = scrape(server)
        assert of(now, "faults_total", device) == of(now, "resets_total", device) == of(now, "in_use", device) == 1
        server.client.kserve.ModelInfer(request(), timeout=30 * SLOW)
        assert of(scrape(server), "faults_total", device) == 1


def a_device_that_came_back_has_its_counters():
    device = "sim:?threads=1&fault=lost@2&reset=2"
    with Server(quantized(), "--metrics", "127.0.0.1:0", "--device", device, lame_duck_ms=0) as server:
        fails("UNAVAILABLE", ".", server.client.kserve.ModelInfer, request())
        # It may be back before anyone has looked: what it went through has been counted.
        until(lambda: of(scrape(server), "resets_total", device) == 3, server)
        until(lambda: of(scrape(server), "in_use", device) == 1, server)
        until(lambda: scrape(server)["blockwave_serving",] == 1, server)
        now = scrape(server)
        assert of(now, "faults_total", device) == 1
        assert [now["blockwave_device_health", device, s] for s in ("ok", "resetting", "dead")] == [1, 0, 0]
        server.client.kserve.ModelInfer(request(), timeout=30 * SLOW)


def a_dead_device_stays_dead():
    device = "sim:?threads=1&fault=lost@2"
    with Server(quantized(), "--metrics", "127.0.0.1:0", "--device", device) as server:
        fails("UNAVAILABLE", ".", server.client.kserve.ModelInfer, request())
        until(lambda: of(scrape(server), "in_use", device) == 0, server)
        until(lambda: scrape(server)["blockwave_device_health", device, "dead"] == 1, server)
        assert scrape(server)["blockwave_serving",] == 0


def evictions_are_counted():
    a, b = quantized("one"), quantized("two")
    with Server(a, b, "--metrics", "127.0.0.1:0", "--device", "sim:", "--device-memory", "200K") as server:
        before = scrape(server)
        budget = of(before, "memory_budget_bytes", "sim:")
        for name in ("one", "two", "one", "two"):
            server.client.kserve.ModelInfer(infer_request(name, {"image": np.zeros((1, 1, 32, 32), "<f4")}), timeout=30 * SLOW)
        after = scrape(server)
        assert budget == 200 * 1024 and of(after, "memory_used_bytes", "sim:") <= budget
        assert of(after, "evictions_total", "sim:") - of(before, "evictions_total", "sim:") >= 3, after


def http_is_refused_politely():
    with Server(quantized(), "--metrics", "127.0.0.1:0", lame_duck_ms=0) as server:
        reply, body = fetch(server, path="/")
        assert reply.status == 404 and body == "nothing here: the metrics are at /metrics\n"
        reply, body = fetch(server, method="POST")
        assert reply.status == 405 and reply.getheader("Allow") == "GET, HEAD" and body.count("\n") == 1
        reply, body = fetch(server, method="HEAD")
        assert reply.status == 200 and body == "" and int(reply.getheader("Content-Length")) > 1000
        # Nonsense, silence and many at once (more than are allowed) hurt nobody, again and again; half a request does not hold up the end.
        port = int(re.search(r"metrics on \S+:(\d+)", server.text()).group(1))
        for _ in range(5):
            sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            for s in sockets[::2]:
                try:
                    s.sendall(b"\x00\xff nonsense \r\n\r\n")
                except OSError:
                    pass
            for s in sockets:
                s.close()
            until(lambda: answered(server), server)
        half = socket.create_connection(("127.0.0.1", port))
        half.sendall(b"GET /metrics HT")
        started = time.time()
        server.term()
        server.wait()
        assert time.time() - started < 5 * SLOW
        half.close()


def answered(server):
    try:
        return fetch(server)[0].status == 200
    except (OSError, http.client.HTTPException):
        return False


def scraped_under_load():
    with Server(quantized(), "--metrics", "127.0.0.1:0", "--device", "sim:?threads=1", lame_duck_ms=0) as server:
        wrong, stop = [], threading.Event()

        def score():
            while not stop.is_set():
                try:
                    server.client.kserve.ModelInfer(request(), timeout=30 * SLOW)
                except grpc.RpcError as e:
                    wrong.append(str(e))

        threads = [threading.Thread(target=score) for _ in range(4)]
        for t in threads:
            t.start()
        last = {}
        for _ in range(100):
            now = scrape(server)
            for key, value in now.items():
                assert not key[0].endswith("_total") or value >= last.get(key, 0), key
            last = now
        stop.set()
        for t in threads:
            t.join()
        assert not wrong, wrong[0]
        assert of(scrape(server), "runs_total") == of(scrape(server), "inferences_total")


def where_it_listens():
    with Server(quantized(), "--metrics", "127.0.0.1:0", lame_duck_ms=0) as server:
        port = re.search(r"metrics on \S+:(\d+)", server.text()).group(1)
        expect(1, f"metrics: address 127.0.0.1:{port}", quantized(), "--grpc", "127.0.0.1:0", "--metrics", f"127.0.0.1:{port}")
    expect(1, "metrics: ", quantized(), "--grpc", "127.0.0.1:0", "--metrics", "nowhere")
    with Server(quantized(), lame_duck_ms=0) as server:
        assert "metrics" not in server.text()
    path = os.path.join(WORK, "m.sock")
    with Server(quantized(), "--metrics", f"unix:{path}", lame_duck_ms=0) as server:
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        s.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b""
        while piece := s.recv(65536):
            text += piece
        s.close()
        assert text.startswith(b"HTTP/1.") and parse(text.split(b"\r\n\r\n", 1)[1].decode())["blockwave_serving",] == 1
    assert not os.path.exists(path)


run([counters_follow_requests, a_fault_is_counted, a_device_that_came_back_has_its_counters, a_dead_device_stays_dead, evictions_are_counted,
     http_is_refused_politely, scraped_under_load, where_it_listens])
