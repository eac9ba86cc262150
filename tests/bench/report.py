# SPDX-License-Identifier: Apache-2.0
"""Tables of what bench.py measured."""
import glob
import json
import os

import roofline
from tables import show

# Columns beside blockwave: title, engine, formats that begin with.
COLUMNS = [("ort fp32", "onnxruntime", "fp32"), ("ort int8", "onnxruntime", "int8"), ("OV fp32", "openvino", "fp32"),
           ("OV int8", "openvino", "int8"), ("oneDNN fp32", "onednn", "fp32")]


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
        if "outputs" in c or not c["finite"]:
            print(f"  {label(c):34} the outputs are not those of the reference: {c}")
    for threads, part in r["others"].items():
        if part > 0.03:
            print(f"  with {threads} threads: other processes took {100 * part:.0f} % of the machine, measure again")
    f = r.get("facts")
    if f and (f["subnormal"] > f["values"] // 1000 or f["not_finite"] or not f["output_depends_on_input"]):
        print(f"  suspicious values inside: {f}")
    print(end="", flush=True)


def pick(r, threads, engine, fmt):
    """The fastest of the engine's formats that begin with `fmt`. None if there is none."""
    found = [x for x in r["results"]
             if x["threads"] == threads and x["engine"] == engine and x["format"].startswith(fmt)]
    return min(found, key=lambda x: x["ms"], default=None)


def counts_of(all_):
    return sorted({x["threads"] for r in all_ for x in r["results"]})


def digits(ms):
    return f"{ms:.1f}" if ms >= 100 else f"{ms:.2f}" if ms >= 1 else f"{ms:.3f}"


def print_peers(all_, threads, markdown):
    """Ratios: of blockwave's first format, and of its fastest if there are several."""
    columns = [c for c in COLUMNS if any(pick(r, threads, *c[1:]) for r in all_)]
    formats = list(dict.fromkeys(x["format"] for r in all_ for x in r["results"] if x["engine"] == "blockwave"))
    rows = []
    for r in all_:
        own = {x["format"]: x for x in r["results"] if x["threads"] == threads and x["engine"] == "blockwave"}
        if not own:
            continue
        first = next(iter(own.values()))
        ours = [first["ms"]] + ([min(x["ms"] for x in own.values())] if len(formats) > 1 else [])
        cells = {c[0]: pick(r, threads, *c[1:]) for c in columns}
        fp32 = next((c["ms"] for c in (cells.get("ort fp32"), cells.get("oneDNN fp32")) if c), None)
        int8 = min((c["ms"] for c in (cells.get("ort int8"), cells.get("OV int8")) if c), default=None)
        rows.append([r["network"]]
                    + [f"{digits(own[f]['ms'])} ({digits(own[f]['p10'])}-{digits(own[f]['p90'])})" if f in own else "-"
                       for f in formats]
                    + [digits(c["ms"]) if c else "-" for c in cells.values()]
                    + [" / ".join(f"{c / ms:.2f}" for ms in ours) if c else "-" for c in (fp32, int8)])
    versions = sorted({f"{x['engine']} {x['version']}" for r in all_ for x in r["results"] if x.get("version")})
    show(f"batch 1, {threads} thread{'s' if threads > 1 else ''}, ms ({', '.join(versions)})",
         ["network"] + ["blockwave " + f for f in formats] + [c[0] for c in columns] + ["x fp32", "x best int8"], rows,
         markdown)


def print_scaling(all_, markdown):
    counts = counts_of(all_)
    if len(counts) < 2:
        return
    labels = list(dict.fromkeys(label(x) for r in all_ for x in r["results"]))
    rows = []
    for r in all_:
        by = {(label(x), x["threads"]): x["ms"] for x in r["results"]}
        rows.append([r["network"]] + [f"{by[l, counts[0]] / by[l, counts[-1]]:.2f}"
                                      if (l, counts[0]) in by and (l, counts[-1]) in by else "-" for l in labels])
    show(f"{counts[-1]} threads against {counts[0]}, times as fast", ["network"] + labels, rows, markdown)


def print_own(all_, markdown):
    """Every format and ISA, one row a network and thread count."""
    labels = list(dict.fromkeys(label(x)[10:] for r in all_ for x in r["results"] if x["engine"] == "blockwave"))
    rows = []
    for r in all_:
        for threads in counts_of([r]):
            by = {label(x)[10:]: x for x in r["results"] if x["threads"] == threads}
            best = by.get(labels[0])
            rows.append([r["network"], f"{r['program']['macs'] * 1e-9:.3f}", str(threads)]
                        + [digits(by[l]["ms"]) if l in by else "-" for l in labels]
                        + ([f"{best['gmacs_per_s']:.1f}", f"{best['peak_percent']:.1f}"] if best else ["-", "-"]))
    if labels:
        show("batch 1, ms; GMAC/s and percent of the int8 peak are the first column's",
             ["network", "GMAC", "threads"] + labels + ["GMAC/s", "% peak"], rows, markdown)


def print_summary(all_, markdown=False):
    if any(x["engine"] != "blockwave" for r in all_ for x in r["results"]):
        for threads in counts_of(all_):
            print_peers(all_, threads, markdown)
    elif markdown:
        print_own(all_, markdown)
    print_scaling(all_, markdown)
    roofline.print_table(all_, markdown)


def main(out, markdown, svg):
    drawn = False
    for peers in (True, False):
        found = []
        for path in glob.glob(os.path.join(out, "*.json")):
            if path.endswith(".peers.json") == peers:
                with open(path) as f:
                    found.append(json.load(f))
        found.sort(key=lambda r: r["program"].get("macs", 0))
        if found:
            print_summary(found, markdown)
        if svg and not peers and found:
            roofline.draw([r for r in found if r.get("profile")], svg)
            drawn = True
    if svg and not drawn:
        print(f"{svg}: not drawn, nothing measured by `make bench` in {out}")
        return 1
    return 0
