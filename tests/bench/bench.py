#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Speed of networks: `make bench`, `make bench-peers`. See docs/performance.md.

    bench.py [--only TEXT,...] [--formats F,...] [--isa I,...] [--threads N,...] [--seconds S] [--rounds N]
             [--peers] [--prepare] [--report [--markdown] [--svg FILE]]

Every engine that is compared is a process of its own, opened before anything is timed and stopped (SIGSTOP) while
another one runs: no pool of threads that spins, no allocator, no cache line of a neighbour in the figures but what the
last round left in the shared cache. They take turns, a short slice each, round after round, so that a clock that drifts
falls on all. The figure is the median of all slices, the spread p10..p90.

Each network's result goes to build/bench/NAME.json (NAME.peers.json with --peers). --prepare makes models and packages
and measures nothing; --report prints the tables of what has been measured before.
A format may name its block: msfp16/64.
Environment, in place of the options: BW_BENCH_ONLY, BW_BENCH_FORMATS, BW_BENCH_ISA, BW_BENCH_THREADS,
BW_BENCH_SECONDS, BW_BENCH_ROUNDS. BW_SHARED: the shared data (default ../shared/data). BW_PEERS: the environment of the
peers (default build/peers). BW_BENCH_OUT: where results go (default build/bench).
"""
import argparse
import datetime
import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time

import networks
import report

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.environ.get("BW_SHARED") or os.path.join(TOP, "..", "shared", "data")
BIN = os.environ.get("BW_BIN") or os.path.join(TOP, "build", "bin")
WORKER = os.environ.get("BW_BENCH_WORKER") or os.path.join(TOP, "build", "bench", "bench_network")
PEERS = os.environ.get("BW_PEERS") or os.path.join(TOP, "build", "peers")
OUT = os.environ.get("BW_BENCH_OUT") or os.path.join(TOP, "build", "bench")
ISAS = ["amx", "avx512vnni", "avx2", "portable"]
LARGE = 16e6  # bytes of a model
WARM_UP = 0.15  # seconds, in the first round


def say(text=""):
    print(text, flush=True)


def output_of(command, **more):
    """Standard output; RuntimeError with the last line of standard error."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    if done.returncode:
        lines = [l for l in done.stderr.splitlines() if l.strip()]
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")
    return done.stdout


class Worker:
    """A process that measures when it is told to, and is stopped in between."""

    def __init__(self, key, command, env=None):
        self.key, self.samples = key, []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, env=dict(os.environ, **(env or {})))
        try:
            self.info = self._read()
        except RuntimeError:
            self.close()
            raise
        self.process.send_signal(signal.SIGSTOP)

    def _read(self):
        line = self.process.stdout.readline()
        if line:
            answer = json.loads(line)
            if not (isinstance(answer, dict) and "error" in answer):
                return answer
        code = self.process.wait()
        errors = [l for l in self.process.stderr.read().splitlines() if l.strip()]
        raise RuntimeError(errors[-1] if errors else signal.strsignal(-code) if code < 0 else f"exit status {code}")

    def ask(self, question):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer = self._read()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


def quantile(ordered, q):
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]


def open_workers(jobs, failed):
    workers = []
    for key, command, env in jobs:
        try:
            workers.append(Worker(key, command, env))
        except (RuntimeError, OSError, ValueError) as e:
            failed.append({**key, "failed": str(e)})
    return workers


def busy_seconds(pids):
    """Processor seconds of the whole machine, and of these processes, so far."""
    tick = os.sysconf("SC_CLK_TCK")
    with open("/proc/stat") as f:
        user, nice, system, _, _, irq, softirq, steal = map(int, f.readline().split()[1:9])
    own = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as f:
            own += sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13]))
    return (user + nice + system + irq + softirq + steal) / tick, own / tick


def take_turns(workers, seconds, rounds):
    """Returns the part of the machine that other processes took meanwhile, 0..1."""
    for w in workers:
        w.ask(str(WARM_UP))
    pids = [w.process.pid for w in workers] + [os.getpid()]
    all_before, own_before = busy_seconds(pids)
    start = time.monotonic()
    for r in range(rounds):
        for w in workers[r % len(workers):] + workers[:r % len(workers)]:
            w.samples += w.ask(str(seconds))
    all_after, own_after = busy_seconds(pids)
    others = (all_after - all_before) - (own_after - own_before)
    return max(0.0, others / ((time.monotonic() - start) * os.cpu_count()))


def result_of(w, peaks, macs):
    ordered = sorted(w.samples)
    median = quantile(ordered, 0.5)
    r = {**w.key, "runs": len(ordered), "ms": median * 1e-6, "p10": quantile(ordered, 0.1) * 1e-6,
         "p90": quantile(ordered, 0.9) * 1e-6, "images_per_s": 1e9 / median, "gmacs_per_s": macs / median}
    if w.key["engine"] == "blockwave":
        r["peak_percent"] = 100 * r["gmacs_per_s"] / (peaks[w.key["isa"]]["int8"] * w.key["threads"])
    if "version" in w.info:
        r["version"] = w.info["version"]
    return r


def compare(workers, reference):
    """Signal to noise of each first output against one worker's, and whether the largest number is at the same place."""
    answers = {id(w): w.ask("check") for w in workers}
    base = answers[id(reference)]
    checks = []
    for w in workers:
        a = answers[id(w)]
        if len(a) != len(base):
            checks.append({**w.key, "outputs": len(a), "expected": len(base)})
            continue
        signal_, noise = sum(v * v for v in base), sum((u - v) ** 2 for u, v in zip(a, base))
        checks.append({**w.key, "sqnr_db": 10 * math.log10(signal_ / noise) if noise and signal_ else None,
                       "top1_same": a.index(max(a)) == base.index(max(base)), "finite": all(map(math.isfinite, a))})
    return checks


class Bench:
    def __init__(self, args):
        self.args = args
        self.models = os.path.join(OUT, "models")
        os.makedirs(self.models, exist_ok=True)
        self.python = os.path.join(PEERS, "bin", "python")
        self.versions = {}
        if args.peers:
            self.versions = self.find_peers()
        self.has_onnx = True
        try:
            import onnx  # noqa: F401
        except ImportError:
            self.has_onnx = False
            say("python3-onnx is absent: networks keep the weights of their files, constant ones for light/")

    def find_peers(self):
        try:
            found = json.loads(output_of([self.python, os.path.join(HERE, "peer.py"), "versions"]))
        except (RuntimeError, OSError) as e:
            found = {"onnxruntime": None, "openvino": None}
            say(f"no environment for peers at {PEERS}: {e}")
        for name, version in found.items():
            say(f"peer {name}: {version or 'absent'}")
        if not any(found.values()):
            say("compared with the float CPU operators of this project (oneDNN) alone")
        return {k: v for k, v in found.items() if v}

    # --- what is made before anything is timed

    def fresh(self, target, *sources):
        return os.path.exists(target) and all(os.path.getmtime(target) >= os.path.getmtime(s) for s in sources)

    def model(self, name, source):
        made = name in networks.MADE
        if not self.has_onnx:
            if made:
                raise RuntimeError("its weights are made by python3-onnx, which is absent")
            return source
        target = os.path.join(self.models, name + ".onnx")
        if not self.fresh(target, source, os.path.join(HERE, "networks.py")):
            if made:
                networks.write(name, target)
            else:
                networks.materialise(source, target)
        return target

    def package(self, name, model, fmt):
        """fmt: a format, or FORMAT/BLOCK."""
        target = os.path.join(self.models, f"{name}.{fmt.replace('/', '-')}.bw")
        tool = os.path.join(BIN, "blockwave-quantize")
        if not self.fresh(target, model, tool):
            number, _, block = fmt.partition("/")
            output_of([tool, "-q", model, "-o", target, "--format", number, "--name", name]
                      + (["--block", block] if block else []))
        return target

    def int8(self, name, model, which):
        target = os.path.join(self.models, f"{name}.int8-{which}.onnx")
        if not self.fresh(target, model, os.path.join(HERE, "peer.py")):
            output_of([self.python, os.path.join(HERE, "peer.py"), "quantize", which, model, target])
        return target

    def facts(self, name, model):
        target = os.path.join(self.models, name + ".facts.json")
        if not self.fresh(target, model, os.path.join(HERE, "peer.py")):
            with open(target, "w") as f:
                f.write(output_of([self.python, os.path.join(HERE, "peer.py"), "facts", model]))
        with open(target) as f:
            return json.load(f)

    # --- jobs

    def own_jobs(self, name, model, threads, failed):
        jobs = []
        best = self.args.isa[0]
        for fmt in self.args.formats:
            for isa in self.args.isa:
                if isa != best and (self.args.peers or fmt != self.args.formats[0]):
                    continue  # the others show one format, and none beside peers
                if isa == "portable" and len(self.args.isa) > 1 and os.path.getsize(model) > LARGE:
                    say(f"  {fmt} portable: left out, a run takes seconds; --isa portable asks for it")
                    continue
                key = {"engine": "blockwave", "format": fmt, "isa": isa, "threads": threads}
                try:
                    package = self.package(name, model, fmt)
                except RuntimeError as e:
                    failed.append({**key, "failed": str(e)})
                    continue
                jobs.append((key, [WORKER, "run", package, f"sim:?threads={threads}&isa={isa}"], None))
        return jobs

    def peer_jobs(self, name, model, threads, failed):
        jobs = []
        if "onnxruntime" not in self.versions:
            key = {"engine": "onednn", "format": "fp32", "threads": threads}
            jobs.append((key, [WORKER, "float", model], {"OMP_NUM_THREADS": str(threads)}))
        for engine in self.versions:
            for fmt in ("fp32", "int8-all", "int8-matrix"):
                key = {"engine": engine, "format": fmt, "threads": threads}
                try:
                    file = model if fmt == "fp32" else self.int8(name, model, fmt[5:])
                except RuntimeError as e:
                    failed.append({**key, "failed": "quantize_static: " + str(e)})
                    continue
                jobs.append((key, [self.python, os.path.join(HERE, "peer.py"), engine, file, str(threads)], None))
        return jobs

    def jobs(self, name, model, threads, failed):
        jobs = self.own_jobs(name, model, threads, failed)
        return jobs + self.peer_jobs(name, model, threads, failed) if self.args.peers else jobs

    def prepare(self, name, model):
        failed = []
        self.jobs(name, model, 1, failed)
        if self.args.peers and "onnxruntime" in self.versions:
            self.facts(name, model)
        for f in failed:
            say(f"  {f['engine']} {f['format']}: {f['failed']}")

    def measure(self, name, source, model):
        peaks = json.loads(output_of([WORKER, "peak"]))
        failed, results, checks, about, load = [], [], [], {}, {}
        for threads in self.args.threads:
            workers = open_workers(self.jobs(name, model, threads, failed), failed)
            try:
                own = [w for w in workers if w.key["engine"] == "blockwave"]
                macs = own[0].info["macs"] if own else 0
                about = own[0].info if own else about
                others = [w for w in workers if w.key["format"] == "fp32"]
                if threads == self.args.threads[0] and others:
                    checks = compare(workers, others[0])
                if workers:
                    load[threads] = round(take_turns(workers, self.args.seconds, self.args.rounds), 4)
                results += [result_of(w, peaks, macs) for w in workers]
            finally:
                for w in workers:
                    w.close()
        profile = None
        if not self.args.peers and results:
            uri = f"sim:?isa={self.args.isa[0]}&threads=1"
            package = self.package(name, model, self.args.formats[0])
            profile = json.loads(output_of([os.path.join(BIN, "blockwave"), "profile", package, "--device", uri, "--runs",
                                            "30" if about["macs"] < 1e10 else "10", "--json"]))
        with open(source, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        facts = self.facts(name, model) if self.args.peers and "onnxruntime" in self.versions else None
        return {"network": name, "source": os.path.basename(source), "sha256": digest, "machine": machine(),
                "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "batch": 1,
                "peaks": peaks, "program": {k: v for k, v in about.items() if k not in ("isa", "threads")},
                "others": load, "results": results, "failed": failed, "checks": checks, "facts": facts, "profile": profile}

    def run(self):
        done = []
        for name, path in networks.NETWORKS:
            if self.args.only and not any(text in name for text in self.args.only):
                continue
            source = networks.find(name, path, TOP, SHARED)
            if not source:
                say(f"{name}: absent ({path} of the shared data, see BW_SHARED)")
                continue
            try:
                model = self.model(name, source)
                if self.args.prepare:
                    self.prepare(name, model)
                    continue
                r = self.measure(name, source, model)
            except RuntimeError as e:
                say(f"{name}: failed: {e}")
                done.append(None)
                continue
            target = os.path.join(OUT, name + (".peers.json" if self.args.peers else ".json"))
            with open(target + ".tmp", "w") as f:
                json.dump(r, f, indent=1)
            os.replace(target + ".tmp", target)
            report.print_network(r)
            done.append(r)
        good = [r for r in done if r]
        if good:
            say()
            report.print_summary(good)
        if self.args.prepare:
            return 0
        return 0 if any(r["results"] for r in good) and None not in done else 1


def machine():
    cpu = "?"
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    try:
        commit = output_of(["git", "-C", TOP, "describe", "--always", "--dirty"]).strip()
    except (RuntimeError, OSError):
        commit = "?"
    return {"cpu": cpu, "cpus": len(os.sched_getaffinity(0)), "system": f"{platform.system()} {platform.release()}",
            "compiler": os.environ.get("BW_BENCH_CC", "?"), "commit": commit}


def words(text):
    return [w for w in text.split(",") if w]


def main():
    env = os.environ.get
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--only", type=words, default=words(env("BW_BENCH_ONLY", "")), help="networks whose name contains one")
    p.add_argument("--formats", type=words, default=words(env("BW_BENCH_FORMATS", "")))
    p.add_argument("--isa", type=words, default=words(env("BW_BENCH_ISA", "")), help="best first")
    p.add_argument("--threads", type=words, default=words(env("BW_BENCH_THREADS", "")))
    p.add_argument("--seconds", type=float, default=float(env("BW_BENCH_SECONDS", "0.1")), help="of a slice")
    p.add_argument("--rounds", type=int, default=int(env("BW_BENCH_ROUNDS", "5")))
    p.add_argument("--peers", action="store_true", help="beside onnxruntime and OpenVINO")
    p.add_argument("--prepare", action="store_true", help="make models and packages only")
    p.add_argument("--report", action="store_true", help="print what build/bench holds")
    p.add_argument("--markdown", action="store_true", help="with --report: tables as docs/performance.md has them")
    p.add_argument("--svg", help="with --report: draw the roofline to this file")
    args = p.parse_args()
    args.formats = args.formats or (["msfp16", "msfp16/32", "msfp16/64"] if args.peers else ["msfp16", "msfp12", "mxint8"])
    cpus = len(os.sched_getaffinity(0))
    args.threads = [int(t) for t in args.threads] or sorted({1, cpus})
    if args.report:
        return report.main(OUT, args.markdown, args.svg)
    if not os.access(WORKER, os.X_OK):
        sys.exit(f"bench.py: no worker at {WORKER}: start this with `make bench`, or set BW_BENCH_WORKER")
    available = json.loads(output_of([WORKER, "peak"]))
    args.isa = args.isa or [i for i in ISAS if i in available]
    missing = [i for i in args.isa if i not in available]
    if missing:
        sys.exit(f"bench.py: --isa {missing[0]}: this CPU has {', '.join(i for i in ISAS if i in available)}")
    return Bench(args).run()


if __name__ == "__main__":
    sys.exit(main())
