#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The service on emulated cards behind XRT: the simulator's bits, and cards that are killed in the middle of requests."""
import os
import random
import signal
import subprocess
import threading
import time

import grpc
import health_pb2
import numpy as np
from support import SLOW, WORK, Server, infer_request, infer_value, quantized, run, same

HELPER = os.path.join(os.environ["BW_BIN"], "blockwave-xrt-emulation")
LONG = bool(os.environ.get("BW_LONG"))
if os.environ.get("BW_SAN"):  # XRT leaks in every call
    os.environ["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1"
    os.environ["BW_XRT_REPLY_MS"] = "5000"


def skip_reason():
    probe = subprocess.run([HELPER, "run", "--", os.path.join(os.environ["BW_BIN"], "blockwave"), "devices"],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if probe.returncode:
        return probe.stderr.strip()
    lines = [line for line in probe.stdout.splitlines() if line.startswith("xrt: not usable")]
    return lines[0] if lines else None


def emulation(cards=1):
    return ["setsid", HELPER, "run", "--cards", str(cards), "--"]


def name(pid):
    try:
        with open(f"/proc/{pid}/comm") as f:
            return f.read().strip()
    except OSError:
        return ""


def below(pid):
    """All processes below this one."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children") as f:
                for word in f.read().split():
                    found += [int(word)] + below(int(word))
        except OSError:
            pass
    return found


def cards(server):
    return [pid for pid in below(server.process.pid) if name(pid) == "blockwave-card"]


def service(server):
    return [pid for pid in below(server.process.pid) if name(pid).startswith("blockwave-serve"[:15])]


def pictures(count=8):
    return np.random.default_rng(3).random((count, 1, 32, 32), "<f4")


def expected(model, inputs):
    with Server(model, "--device", "sim:") as server:
        return [infer_value(server.client.kserve.ModelInfer(infer_request("slow", {"image": inputs[i:i + 1]}),
                                                            timeout=30 * SLOW)) for i in range(len(inputs))]


def same_bits_as_the_simulator():
    model, inputs = quantized(), pictures()
    wanted = expected(model, inputs)
    with Server(model, "--device", "xrt:0", "--device", "xrt:1", before=emulation(2)) as server:
        for i in range(len(inputs)):
            reply = server.client.kserve.ModelInfer(infer_request("slow", {"image": inputs[i:i + 1]}), timeout=30 * SLOW)
            same(infer_value(reply), wanted[i])
        assert len(cards(server)) == 2, cards(server)


def footprint(pid):
    """Descriptors, threads and KiB of anonymous memory of a process."""
    with open(f"/proc/{pid}/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    return len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]), int(fields["RssAnon"].split()[0])


class Load:
    """Four clients that call without a pause, with batches of different lengths, and look at every answer."""

    def __init__(self, server, inputs, wanted, deadline):
        self.server, self.inputs, self.wanted, self.deadline = server, inputs, wanted, deadline
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.counts, self.wrong, self.worst, self.good = {}, [], 0.0, []
        self.threads = [threading.Thread(target=self.work, args=(i,)) for i in range(4)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        for t in self.threads:
            t.join()

    def work(self, i):
        while not self.stop.is_set() and not self.wrong:
            i = (i + 1) % len(self.inputs)
            begun = time.monotonic()
            try:
                request = infer_request("slow", {"image": self.inputs[i]})
                same(infer_value(self.server.client.kserve.ModelInfer(request, timeout=self.deadline)), self.wanted[i])
                outcome = "ok"
            except grpc.RpcError as error:
                outcome = error.code().name
                if outcome != "UNAVAILABLE":
                    self.wrong.append(f"{outcome}: {error.details()}")
            except Exception as error:
                self.wrong.append(str(error))
                return
            ended = time.monotonic()
            with self.lock:
                self.counts[outcome] = self.counts.get(outcome, 0) + 1
                self.worst = max(self.worst, ended - begun)
                if outcome == "ok":
                    self.good.append((begun, ended))

    def right_since(self, moment, patience):
        """Seconds from the moment until the end of a right answer to a request that was sent after it; or None."""
        until = time.monotonic() + patience
        while time.monotonic() < until and not self.wrong:
            with self.lock:
                ends = [ended for begun, ended in self.good if begun >= moment]
                self.good.clear()
            if ends:
                return min(ends) - moment
            time.sleep(0.002)
        return None


def killed_in_the_middle():
    """Each request ends with the right bits or UNAVAILABLE within its deadline; the process stays; the card is back
    within 2 s; nothing is left. Every fifth card is killed again while it comes back."""
    kills = 100 if LONG else 25
    deadline = 5 * SLOW
    model = quantized()
    inputs = [np.random.default_rng(n).random((n, 1, 32, 32), "<f4") for n in (1, 8, 32, 64)]
    with Server(model, "--device", "sim:") as server:
        wanted = [infer_value(server.client.kserve.ModelInfer(infer_request("slow", {"image": x}), timeout=30 * SLOW))
                  for x in inputs]
    with Server(model, "--device", "xrt:0", "--workers", "4", before=emulation()) as server:
        alive = service(server)
        assert len(alive) == 1, alive
        random.seed(1)
        done, back = 0, []
        with Load(server, inputs, wanted, deadline) as load:
            assert load.right_since(time.monotonic(), 10 * SLOW) is not None, load.wrong
            time.sleep(1)  # gRPC's own threads and buffers grow to what the load needs
            before = footprint(alive[0])
            while done < kills and not load.wrong:
                time.sleep(random.random() * 0.06 * SLOW)
                for again in range(2 if done % 5 == 4 else 1):
                    if again:
                        time.sleep(random.random() * 0.006)
                    moment = time.monotonic()
                    for pid in cards(server):
                        os.kill(pid, signal.SIGKILL)
                        done += 1
                took = load.right_since(moment, 2 * SLOW)
                assert took is not None, f"not back 2 s after kill {done}: {load.wrong} {server.text()[-600:]}"
                back.append(took)
            after = footprint(alive[0])
        print(f"# {done} kills: {load.counts}, the longest request took {load.worst:.3f} s, the card was back after "
              f"{sorted(back)[len(back) // 2]:.3f} s (median), {max(back):.3f} s (longest)", flush=True)
        print(f"# the service before: {before[0]} descriptors, {before[1]} threads, {before[2]} KiB; after: "
              f"{after[0]}, {after[1]}, {after[2]}", flush=True)
        assert not load.wrong, load.wrong[0]
        assert done >= kills and load.counts["ok"] > kills and load.worst < deadline, (done, load.counts, load.worst)
        assert service(server) == alive, "the service's process has died"
        assert after[0] <= before[0] + 2 and after[1] <= before[1] + 8, "descriptors or threads are left"
        assert SLOW > 1 or after[2] - before[2] < 8192, "memory is left"
        assert server.client.health.Check(health_pb2.HealthCheckRequest(), timeout=10 * SLOW).status == 1
        left = below(server.process.pid)
    assert not [pid for pid in left if name(pid)], "processes are left"


def a_turned_bit_costs_one_request():
    """In the weights in the card's memory: found before a run, loaded again; the answers are right before and after."""
    model, inputs, faults = quantized(), pictures(), os.path.join(WORK, "faults")
    wanted = expected(model, inputs)
    os.makedirs(faults, exist_ok=True)
    before = ["setsid", HELPER, "run", "--faults", faults, "--"]
    with Server(model, "--device", "xrt:0?scrub=1", before=before) as server:
        answers = []
        for i in range(len(inputs)):
            if i in (2, 5):
                with open(os.path.join(faults, "new"), "w") as f:
                    f.write("1")
                os.rename(os.path.join(faults, "new"), os.path.join(faults, "flip"))
            try:
                request = infer_request("slow", {"image": inputs[i:i + 1]})
                same(infer_value(server.client.kserve.ModelInfer(request, timeout=30 * SLOW)), wanted[i])
                answers.append(1)
            except grpc.RpcError as error:
                assert error.code().name == "UNAVAILABLE" and "memory changed: sum" in error.details(), error
                answers.append(0)
        assert answers == [1, 1, 0, 1, 1, 0, 1, 1], answers
        assert server.text().count("the constants in the card's memory changed") >= 2, server.text()
        assert server.client.health.Check(health_pb2.HealthCheckRequest(), timeout=10 * SLOW).status == 1


def one_card_of_two_is_killed():
    model, inputs = quantized(), pictures()
    wanted = expected(model, inputs)
    with Server(model, "--device", "xrt:0", "--device", "xrt:1", before=emulation(2)) as server:
        for i in range(24):
            if i % 6 == 3:
                os.kill(cards(server)[0], signal.SIGKILL)
            # The other card answers what this one has not.
            reply = server.client.kserve.ModelInfer(infer_request("slow", {"image": inputs[i % 8:i % 8 + 1]}),
                                                    timeout=10 * SLOW)
            same(infer_value(reply), wanted[i % 8])
        until(lambda: len(cards(server)) == 2, "two cards", server)
        assert len(cards(server)) == 2


def until(condition, what, server, seconds=20):
    end = time.monotonic() + seconds * SLOW
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s: {server.text()}"
        time.sleep(0.02)


def a_card_that_is_away_for_a_while():
    """No card's process can be started: hot removal. The card is tried again, and used when it is back, without a leak
    however often it was tried."""
    model, inputs = quantized(), pictures()
    wanted = expected(model, inputs)

    def ask(i):
        request = infer_request("slow", {"image": inputs[i:i + 1]})
        return infer_value(server.client.kserve.ModelInfer(request, timeout=10 * SLOW))

    with Server(model, "--device", "xrt:0", before=emulation()) as server:
        pid = service(server)[0]
        with open(f"/proc/{pid}/environ", "rb") as f:
            environment = dict(v.split(b"=", 1) for v in f.read().split(b"\0") if b"=" in v)
        program = os.path.join(environment[b"XILINX_VITIS"].decode(),
                               "data/emulation/unified/cpu_em/generic_pcie/model/genericpciemodel")
        health = lambda: server.client.health.Check(health_pb2.HealthCheckRequest(), timeout=10 * SLOW).status
        for i in range(len(inputs)):
            same(ask(i), wanted[i])
        for away in range(2):
            before, tries = footprint(pid), server.text().count("is still out")
            os.rename(program, program + ".away")
            os.kill(cards(server)[0], signal.SIGKILL)
            try:
                ask(0)
                raise AssertionError("an answer without a card")
            except grpc.RpcError as error:
                assert error.code().name == "UNAVAILABLE", error
            until(lambda: health() == 2, "NOT_SERVING", server)
            until(lambda: server.text().count("is still out") >= tries + 4, "four tries", server)
            os.rename(program + ".away", program)
            until(lambda: health() == 1, "SERVING", server)
            for i in range(len(inputs)):
                same(ask(i), wanted[i])
            after = footprint(pid)
            assert after[0] <= before[0] + 2 and after[1] <= before[1] + 3, f"left behind: {before} {after}"
            print(f"# away for {server.text().count('is still out') - tries} tries: {before[1]} threads before, {after[1]} after", flush=True)
        assert server.text().count("is back after") == 2, server.text()
        assert service(server) == [pid]


def bitstreams():
    """--bitstream configures a card that holds none, and one that holds another; a reset and a lost card keep it."""
    bits, model, inputs = os.path.join(WORK, "card.bwbit"), quantized(), pictures()
    subprocess.run([HELPER, "write", bits], check=True)
    subprocess.run([os.path.join(os.environ["BW_BIN"], "blockwave"), "bitstream", "sim", "-o",
                    os.path.join(WORK, "sim.bwbit")], check=True, stdout=subprocess.DEVNULL)
    wanted = expected(model, inputs)

    def ask_all():
        for i in range(len(inputs)):
            request = infer_request("slow", {"image": inputs[i:i + 1]})
            same(infer_value(server.client.kserve.ModelInfer(request, timeout=30 * SLOW)), wanted[i])

    for option in (bits, bits + "@xrt:0", bits + "@xrt:0?scrub=3"):
        uri = option.split("@")[-1] if "@" in option else "xrt:0"
        for before in (emulation() + ["env", "-u", "BW_XRT_XCLBIN"], emulation()):
            with Server(model, "--device", uri, "--bitstream", option, before=before) as server:
                assert f"device {uri} holds bitstream" in server.text(), server.text()
                ask_all()
                os.kill(cards(server)[0], signal.SIGKILL)
                try:
                    ask_all()
                except grpc.RpcError as error:
                    assert error.code().name == "UNAVAILABLE", error
                until(lambda: cards(server), "a card", server)
                ask_all()
    # Both kinds at once: each file goes to the devices of its part.
    with Server(model, "--device", "xrt:0", "--device", "sim:", "--device", "xrt:1", "--bitstream", bits, "--bitstream",
                os.path.join(WORK, "sim.bwbit"), before=emulation(2)) as server:
        for uri in ("xrt:0", "xrt:1", "sim:"):
            assert f"device {uri} holds bitstream" in server.text(), server.text()
        ask_all()

    def refused(text, *args):
        done = subprocess.run([*emulation(), os.path.join(os.environ["BW_BIN"], "blockwave-serve"), model, "--grpc",
                               "127.0.0.1:0", "--quiet", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=60 * SLOW)
        lines = done.stderr.splitlines()
        assert done.returncode == 1 and len(lines) == 1 and text in lines[0], done.stderr

    refused("is for part 'blockwave_emulated_4x16g_1', but sim: is a 'sim', sim:u250 is a 'sim-u250'", "--device", "sim:",
            "--device", "sim:u250", "--bitstream", bits)
    refused("is for part 'sim', the device is a 'blockwave_emulated_4x16g_1'", "--device", "xrt:0", "--bitstream",
            os.path.join(WORK, "sim.bwbit"))
    refused("there is no --device xrt:1 to load it onto", "--device", "xrt:0", "--bitstream", bits + "@xrt:1")


why = skip_reason()
if why:
    print(f"1..1\nok 1 - the service on emulated cards # SKIP {why}")
else:
    run([same_bits_as_the_simulator, killed_in_the_middle, one_card_of_two_is_killed, a_turned_bit_costs_one_request, a_card_that_is_away_for_a_while,
         bitstreams])
