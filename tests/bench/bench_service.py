#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the scoring service costs: blockwave-serve with a network that does nothing against a C++ echo server on the same
gRPC (tests/bench/echo), under the same load by blockwave-bench-client, turn by turn.

usage: bench_service.py BIN_DIR ECHO_DIR [--rounds N] [--seconds S] [--payload BYTES]... [--connections N]
           [--outstanding N] [--network PACKAGE.bw] [--json FILE]

CPU time is the server process's (user and system). Medians over the rounds. With --network the service's share of that
package's latency is measured too, one request at a time.
"""
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MAKE_PACKAGE = os.path.join(HERE, "..", "service", "make_package.py")
TICK = os.sysconf("SC_CLK_TCK")
CPU_TARGET = 1.15
SHARE_TARGET = 0.03


class Server:
    def __init__(self, work, name, command, address=None):
        self.name = name
        self.port_file = os.path.join(work, name.replace(" ", "-") + ".port")
        self.log = open(os.path.join(work, name.replace(" ", "-") + ".log"), "w")
        self.process = subprocess.Popen([arg.replace("PORT_FILE", self.port_file) for arg in command],
                                        stdout=self.log, stderr=self.log)
        until = time.time() + 60
        while not os.path.exists(self.port_file):
            if self.process.poll() is not None or time.time() > until:
                sys.exit(f"bench_service: {name} did not start, see {self.log.name}")
            time.sleep(0.01)
        with open(self.port_file) as f:
            self.address = address or f"127.0.0.1:{int(f.read())}"

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


class SharedMemory:
    """The same server, tensors in shared memory."""

    def __init__(self, server):
        self.name, self.address, self.cpu_seconds = f"{server.name}, shared", server.address, server.cpu_seconds


def client(options, server, *args):
    command = [os.path.join(options.bin, "blockwave-bench-client"), server.address, "--json", *args]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"bench_service: {' '.join(command)} failed against {server.name}")
    figures = json.loads(done.stdout)
    if figures["failed"] or figures["unfinished"]:
        sys.exit(f"bench_service: {figures['failed']} requests to {server.name} failed: {figures['errors']}")
    return figures


def load(options, server, model, values, seconds, outstanding, connections):
    before = server.cpu_seconds()
    # With a shape nothing is asked before the run; outputs go to shared memory only if their size can be asked for.
    inputs = ["--shared-memory"] if isinstance(server, SharedMemory) else ["--shape", f"x=1,{values}"]
    figures = client(options, server, "--model", model, *inputs, "--warmup", "0",
                     "--duration", str(seconds), "--outstanding", str(outstanding), "--connections", str(connections))
    cpu = server.cpu_seconds() - before
    # The first request of each connection comes before the run.
    return {"cpu_us": 1e6 * cpu / (figures["ok"] + connections), "p50_us": figures["latency_us"]["p50"],
            "p99_us": figures["latency_us"]["p99"], "rps": figures["throughput_per_second"],
            "client_cpu_us": figures["client_cpu_us_per_request"]}


def compare(options, servers, payload):
    """Rows of medians: ours, and each reference."""
    values = payload // 4
    model = f"same-{values}"
    load_of = lambda server, seconds: load(options, server, model, values, seconds, options.outstanding,
                                           options.connections)
    rounds = {server.name: [] for server in servers}
    ratios = {server.name: [] for server in servers}
    for server in servers:
        load_of(server, 0.3)
    for number in range(options.rounds):
        turn = servers if number % 2 == 0 else servers[::-1]
        got = {server.name: load_of(server, options.seconds) for server in turn}
        for name, row in got.items():
            rounds[name].append(row)
            ratios[name].append({key: got[servers[0].name][key] / row[key] for key in row})
    median = lambda rows: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return [{"payload_bytes": payload, "server": server.name, **median(rounds[server.name]),
             "ours_to_this": median(ratios[server.name])} for server in servers]


def print_rows(rows):
    print(f"{rows[0]['payload_bytes']} bytes")
    print(f"  {'':23} {'CPU us':>8} {'client CPU':>10} {'p50 us':>9} {'p99 us':>9} {'requests/s':>11}   ours to it: CPU, "
          "p99, requests/s")
    for row in rows:
        ratio = row["ours_to_this"]
        compared = "" if row is rows[0] else f"   {ratio['cpu_us']:.2f} x, {ratio['p99_us']:.2f} x, {ratio['rps']:.2f} x"
        print(f"  {row['server']:23} {row['cpu_us']:8.1f} {row['client_cpu_us']:10.1f} {row['p50_us']:9.0f} "
              f"{row['p99_us']:9.0f} {row['rps']:11.0f}"
              f"{compared}", flush=True)


def verdict(rows):
    return [f"{row['payload_bytes']} bytes, {row['server']}: CPU {row['ours_to_this']['cpu_us']:.2f} x (target "
            f"{CPU_TARGET}), p99 {row['ours_to_this']['p99_us']:.2f} x (target 1)"
            for row in rows[1:] if "echo" in row["server"] and (row["ours_to_this"]["cpu_us"] > CPU_TARGET
                                                                or row["ours_to_this"]["p99_us"] > 1)]


def print_share(network, device, way, run):
    stages = {name: round(h["mean"], 1) for name, h in run["server_us"].items()}
    latency = run["latency_us"]
    shared = f" and {run['shared_request_bytes']} in shared memory" if "shared_request_bytes" in run else ""
    print(f"{os.path.basename(network)}{f' on {device}' if device else ''} over {way}: {run['request_bytes']} bytes a "
          f"request{shared}, one at a time: p50 {latency['p50'] / 1e3:.2f} ms, p99 {latency['p99'] / 1e3:.2f} ms")
    print(f"  of the mean latency {latency['mean'] / 1e3:.2f} ms: device {100 * run['device_share']:.2f} %, "
          f"network's CPU stages {100 * run['cpu_stage_share']:.2f} %, service {100 * run['service_share']:.2f} % "
          f"(target {100 * SHARE_TARGET:g})")
    total, on_device = stages["total"], stages["device"]
    outside = latency["mean"] - total
    rest = outside + total - on_device
    print(f"  all but the device: {rest:.0f} us, {100 * rest / latency['mean']:.2f} %: client, kernel and gRPC before and "
          f"after the server's clock {outside:.0f}, server {total - on_device:.0f} (values into the device's order and CPU "
          f"stages included)")
    print(f"  server's own times in us: {stages}", flush=True)


def share(options, work, address, device=None):
    """The service's part of a network's latency: all but the device and the network's own stages on the CPU. Tensors in
    the messages, in shared memory, and in the messages as UINT8, turn by turn; the medians of each."""
    local = address.startswith("unix:")
    way = "a Unix-domain socket" if local else "TCP, loopback"
    ways = {"message": [], "shared_memory": ["--shared-memory"], "uint8": ["--datatype", "UINT8"]}
    server = Server(work, "network", [os.path.join(options.bin, "blockwave-serve"), options.network, "--grpc", address,
                                      "--port-file", "PORT_FILE", "--lame-duck-ms", "0", "--quiet", "--shared-memory"]
                    + (["--device", device] if device else []), address if local else None)
    runs = {name: [] for name in ways}
    try:
        for number in range(options.rounds):
            for name in sorted(ways, key=lambda name: (list(ways).index(name) + number) % len(ways)):
                runs[name].append(client(options, server, "--warmup", "0.5", "--duration", str(max(2, options.seconds)),
                                         *ways[name]))
    finally:
        server.stop()
    medians = {name: sorted(of, key=lambda r: r["service_share"])[len(of) // 2] for name, of in runs.items()}
    for run in medians.values():
        print_share(options.network, device, way, run)
    return medians


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n\n")[0])
    parser.add_argument("bin")
    parser.add_argument("echo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--payload", type=int, action="append")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--outstanding", type=int, default=8)
    parser.add_argument("--network")
    parser.add_argument("--json")
    options = parser.parse_args()
    payloads = options.payload or [64, 150528, 602112]
    result = {"rounds": options.rounds, "seconds": options.seconds, "rows": [], "network": None}
    with tempfile.TemporaryDirectory() as work:
        packages = []
        for payload in payloads:
            packages.append(os.path.join(work, f"same-{payload // 4}.bw"))
            subprocess.run([sys.executable, MAKE_PACKAGE, f"same-{payload // 4}", packages[-1]], check=True)
        echo = os.path.join(options.echo, "echo_server")
        servers = [Server(work, "blockwave-serve", [os.path.join(options.bin, "blockwave-serve"), *packages, "--grpc",
                                                    "127.0.0.1:0", "--port-file", "PORT_FILE", "--lame-duck-ms", "0",
                                                    "--quiet", "--shared-memory"])]
        try:
            if os.access(echo, os.X_OK):
                servers += [Server(work, f"C++ echo, {kind}", [echo, "PORT_FILE", kind]) for kind in ("tuned", "plain")]
            else:
                print("no C++ echo server: blockwave-serve alone")
            print(f"{options.connections} connections x {options.outstanding} outstanding, {options.rounds} rounds of "
                  f"{options.seconds:g} s, medians")
            missed = []
            for payload in payloads:
                rows = compare(options, [*servers, SharedMemory(servers[0])], payload)
                print_rows(rows)
                missed += verdict(rows)
                result["rows"] += rows
        finally:
            for server in servers:
                server.stop()
        for line in missed:
            print(f"target missed: {line}")
        if options.network:
            result["network"] = share(options, work, "127.0.0.1:0")
            result["network_one_thread"] = share(options, work, "127.0.0.1:0", "sim:?threads=1")
            result["network_unix"] = share(options, work, f"unix:{work}/network.sock")
    if options.json:
        with open(options.json, "w") as out:
            json.dump(result, out, indent=2)
            out.write("\n")


main()
