# SPDX-License-Identifier: Apache-2.0
"""Tables of what bench.py measured, and the roofline."""
import glob
import json
import os

# What bounds a layer: its time is near that of one of these.
CACHE, MEMORY = "8m", "256m"


def label(r):
    return " ".join(str(r[k]) for k in ("engine", "format", "isa") if k in r)


def print_network(r):
    print(f"\n{r['network']}  {r['program'].get('macs', 0) * 1e-9:.3f} G multiply-adds, {r['date']}")
    print(f"  {'':34} threads {'ms':>9} {'p10':>9} {'p90':>9} {'images/s':>9} {'GMAC/s':>8} {'% peak':>7} {'runs':>5}")
    for x in r["results"]:
        percent = f"{x['peak_percent']:.1f}" if "peak_percent" in x else ""
        print(f"  {label(x):34} {x['threads']:>7} {x['ms']:9.3f} {x['p10']:9.3f} {x['p90']:9.3f} {x['images_per_s']:9.1f} "
              f"{x['gmacs_per_s']:8.1f} {percent:>7} {x['runs']:>5}")
    for x in r["failed"]:
        print(f"  {label(x):34} {x['threads']:>7} failed: {x['failed']}")
    for c in r["checks"]:
        bad = "outputs" in c or not c["finite"]
        if bad:
            print(f"  {label(c):34} the outputs are not those of the reference: {c}")
    f = r.get("facts")
    if f and (f["subnormal"] > f["values"] // 1000 or f["not_finite"] or not f["output_depends_on_input"]):
        print(f"  suspicious values inside: {f}")
    print(end="", flush=True)


def pick(r, threads, engine, fmt=""):
    """The fastest of the engine's formats that begin with `fmt`; blockwave: the first. None if there is none."""
    found = [x for x in r["results"]
             if x["threads"] == threads and x["engine"] == engine and x["format"].startswith(fmt)]
    if engine == "blockwave":
        return found[0] if found else None
    return min(found, key=lambda x: x["ms"], default=None)


# Columns beside blockwave: title, engine, format.
COLUMNS = [("ort fp32", "onnxruntime", "fp32"), ("ort int8", "onnxruntime", "int8"), ("OV fp32", "openvino", "fp32"),
           ("OV int8", "openvino", "int8"), ("oneDNN fp32", "onednn", "fp32")]


def print_peers(all_, threads):
    columns = [c for c in COLUMNS if any(pick(r, threads, *c[1:]) for r in all_)]
    heads = " ".join(f"{c[0]:>11}" for c in columns)
    print(f"\n{f'batch 1, {threads} thread' + 's' * (threads > 1) + ', ms':20} {'':>8} {'blockwave':>9} {heads}   "
          f"times as fast as fp32, best int8")
    for r in all_:
        own = pick(r, threads, "blockwave")
        if not own:
            continue
        cells = {c[0]: pick(r, threads, *c[1:]) for c in columns}
        text = " ".join(f"{c['ms']:11.3f}" if c else f"{'-':>11}" for c in cells.values())
        fp32 = next((c["ms"] for c in (cells.get("ort fp32"), cells.get("oneDNN fp32")) if c), None)
        int8 = min((c["ms"] for c in (cells.get("ort int8"), cells.get("OV int8")) if c), default=None)
        against = " ".join(f"{c / own['ms']:8.2f}" if c else f"{'-':>8}" for c in (fp32, int8))
        print(f"{r['network']:20} {own['format']:>8} {own['ms']:9.3f} {text}   {against}")


def print_scaling(all_):
    counts = sorted({x["threads"] for r in all_ for x in r["results"]})
    if len(counts) < 2:
        return
    print(f"\n{counts[-1]} threads against {counts[0]}, times as fast")
    for r in all_:
        cells = []
        for one in (x for x in r["results"] if x["threads"] == counts[0]):
            more = [x for x in r["results"] if x["threads"] == counts[-1] and label(x) == label(one)]
            if more:
                cells.append(f"{label(one)} {one['ms'] / more[0]['ms']:.2f}")
        print(f"{r['network']:16} {', '.join(cells)}")


# --- roofline ----------------------------------------------------------------------------------------------------------


def bounds(r):
    """Per instruction: what the machine's limits alone would take, in milliseconds."""
    p, peaks = r["profile"], r["peaks"]
    peak = p["peak"]["int8_gmacs_per_s"]
    read = peaks["read_gb_per_s"]
    rows = []
    for row in p["rows"]:
        if "instruction" not in row:
            continue
        total = sum(row["bytes"].values())
        rows.append({"row": row, "bytes": total, "compute": row["macs"] / peak * 1e-6, "cache": total / read[CACHE] * 1e-6})
    # Weights that do not fit the caches together come from memory, every time.
    weights = sum(x["row"]["bytes"]["weights"] for x in rows)
    for x in rows:
        x["memory"] = x["row"]["bytes"]["weights"] / read[MEMORY] * 1e-6 if weights > 32e6 else 0.0
        x["least"] = max(x["compute"], x["cache"], x["memory"])
    return rows


def print_roofline(all_):
    shown = [r for r in all_ if r.get("profile")]
    if not shown:
        return
    p, read = shown[-1]["profile"], shown[-1]["peaks"]["read_gb_per_s"]
    print(f"\nroofline, 1 thread, {p['isa']}: {p['peak']['int8_gmacs_per_s']:.0f} GMAC/s of int8, reads {read['16k']:.0f} GB/s "
          f"of L1, {read['512k']:.0f} of L2, {read[CACHE]:.0f} of L3, {read[MEMORY]:.0f} of memory")
    print(f"{'network':16} {'MAC/byte':>8} {'GMAC/s':>7} {'ms':>8} {'bound':>8} {'by':>8} {'CONV %':>7} {'of peak':>7} "
          f"{'DWCONV':>7} {'other':>7} {'host':>6}")
    for r in shown:
        rows, p = bounds(r), r["profile"]
        macs, total = sum(x["row"]["macs"] for x in rows), sum(x["bytes"] for x in rows)
        ms = p["timed_ms"]["median"]
        limits = {k: sum(x[k] for x in rows) for k in ("compute", "cache", "memory")}
        by = max(limits, key=limits.get)
        part = lambda test: 100 * sum(x["ms"] for x in p["rows"] if test(x)) / p["sum_ms"]
        conv = part(lambda x: x["operation"] == "CONV")
        depth = part(lambda x: x["operation"] == "DWCONV")
        host = part(lambda x: "instruction" not in x)
        peak = 100 * p["conv"]["macs"] / p["conv"]["ms"] * 1e-6 / p["peak"]["int8_gmacs_per_s"] if p["conv"]["ms"] else 0
        print(f"{r['network']:16} {macs / total:8.1f} {macs / ms * 1e-6:7.1f} {ms:8.3f} {sum(x['least'] for x in rows):8.3f} "
              f"{by:>8} {conv:7.1f} {peak:7.1f} {depth:7.1f} {100 - conv - depth - host:7.1f} {host:6.1f}")


def print_summary(all_):
    counts = sorted({x["threads"] for r in all_ for x in r["results"]})
    if any(x["engine"] not in ("blockwave",) for r in all_ for x in r["results"]):
        for threads in counts:
            print_peers(all_, threads)
    print_scaling(all_)
    print_roofline(all_)


def main(out):
    for pattern in ("*.peers.json", "*.json"):
        found = []
        for path in glob.glob(os.path.join(out, pattern)):
            if pattern == "*.json" and path.endswith(".peers.json"):
                continue
            with open(path) as f:
                found.append(json.load(f))
        found.sort(key=lambda r: r["program"].get("macs", 0))
        if found:
            print_summary(found)
    return 0
