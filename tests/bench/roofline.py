# SPDX-License-Identifier: Apache-2.0
"""What the machine's limits alone would take, against what was measured: a table and a drawing.

Per instruction: work / int8 peak, or traffic / bandwidth, whichever is longer. Traffic counts every tensor once; it
comes from the last-level cache, but for weights that do not fit there (those of all layers together), which come from
memory in every run. Both limits are measured in the same run (sim/peak.c): no instruction can beat its bound but by
what stays in the nearer caches.
"""
import math

CACHE, MEMORY, LLC_BYTES = "8m", "256m", 32e6


def bounds(r):
    """Per instruction with its least times in milliseconds: compute, cache, memory, least."""
    p, read = r["profile"], r["peaks"]["read_gb_per_s"]
    rows = []
    for row in p["rows"]:
        if "instruction" in row:
            total = sum(row["bytes"].values())
            rows.append({"row": row, "bytes": total, "compute": row["macs"] / p["peak"]["int8_gmacs_per_s"] * 1e-6,
                         "cache": total / read[CACHE] * 1e-6})
    streamed = sum(x["row"]["bytes"]["weights"] for x in rows) > LLC_BYTES
    for x in rows:
        x["memory"] = x["row"]["bytes"]["weights"] / read[MEMORY] * 1e-6 if streamed else 0.0
        x["least"] = max(x["compute"], x["cache"], x["memory"])
    return rows


def print_table(all_, markdown=False):
    from tables import show
    shown = [r for r in all_ if r.get("profile")]
    if not shown:
        return
    rows = []
    for r in shown:
        limits, p = bounds(r), r["profile"]
        macs, total = sum(x["row"]["macs"] for x in limits), sum(x["bytes"] for x in limits)
        ms = p["timed_ms"]["median"]
        # The limit that holds for the larger part of the least time.
        held = {k: sum(x["least"] for x in limits if x[k] == x["least"]) for k in ("compute", "cache", "memory")}
        part = lambda test: 100 * sum(x["ms"] for x in p["rows"] if test(x)) / p["sum_ms"]
        conv, depth = part(lambda x: x["operation"] == "CONV"), part(lambda x: x["operation"] == "DWCONV")
        host = part(lambda x: "instruction" not in x)
        peak = 100 * p["conv"]["macs"] / p["conv"]["ms"] * 1e-6 / p["peak"]["int8_gmacs_per_s"] if p["conv"]["ms"] else 0
        least = sum(x["least"] for x in limits)
        rows.append([r["network"], f"{macs / total:.1f}", f"{macs / ms * 1e-6:.1f}", f"{ms:.3f}", f"{least:.3f}",
                     max(held, key=held.get), f"{ms / least:.1f}", f"{conv:.1f}", f"{peak:.1f}", f"{depth:.1f}",
                     f"{100 - conv - depth - host:.1f}", f"{host:.1f}"])
    p, read = shown[-1]["profile"], shown[-1]["peaks"]["read_gb_per_s"]
    show(f"roofline, 1 thread, {p['isa']}: {p['peak']['int8_gmacs_per_s']:.0f} GMAC/s of int8; reads {read['16k']:.0f} GB/s from "
         f"16 kB, {read['512k']:.0f} from 512 kB, {read[CACHE]:.0f} from 8 MB, {read[MEMORY]:.0f} from 256 MB",
         ["network", "MAC/byte", "GMAC/s", "ms", "least ms", "limit", "x least", "CONV %", "of peak %", "DWCONV %", "other %",
          "host %"], rows, markdown)


# --- the drawing: layers that multiply, intensity across, speed up, both logarithmic -----------------------------------

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 520, 64, 48, 30, 170
X_RANGE, Y_RANGE = (0.25, 1000.0), (0.25, 500.0)
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"]


def place(x, y):
    along = lambda v, range_: math.log(min(max(v, range_[0]), range_[1]) / range_[0]) / math.log(range_[1] / range_[0])
    return (LEFT + along(x, X_RANGE) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - along(y, Y_RANGE) * (HEIGHT - BOTTOM - TOP))


def line(points, colour, extra=""):
    return f'<polyline fill="none" stroke="{colour}" {extra} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def text(x, y, words, extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {extra}>{words}</text>'


def draw(all_, path):
    p, read = all_[-1]["profile"], all_[-1]["peaks"]["read_gb_per_s"]
    peak = p["peak"]["int8_gmacs_per_s"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">',
           "<!-- SPDX-License-Identifier: Apache-2.0, drawn by tests/bench/roofline.py -->",
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           text(LEFT, 18, f"CONV and DWCONV layers on one core ({p['isa']}, int8 peak {peak:.0f} GMAC/s)", 'font-size="13"')]
    ticks = lambda range_: [10.0 ** e * m for e in range(-1, 4) for m in (1, 3) if range_[0] <= 10.0 ** e * m <= range_[1]]
    for v in ticks(X_RANGE):
        x, bottom = place(v, Y_RANGE[0])
        out += [line([(x, bottom), place(v, Y_RANGE[1])], "#ddd"), text(x, bottom + 16, f"{v:g}", 'text-anchor="middle"')]
    for v in ticks(Y_RANGE):
        x, y = place(X_RANGE[0], v)
        out += [line([(x, y), place(X_RANGE[1], v)], "#ddd"), text(x - 6, y + 4, f"{v:g}", 'text-anchor="end"')]
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "multiply-adds per byte of tensors and weights", 'text-anchor="middle"'))
    out.append(text(16, HEIGHT / 2, "GMAC/s", f'transform="rotate(-90 16 {HEIGHT / 2:.0f})" text-anchor="middle"'))
    for key, name in (("512k", "L2"), (CACHE, "L3"), (MEMORY, "memory")):
        start = max(X_RANGE[0], Y_RANGE[0] / read[key])
        knee = peak / read[key]
        out.append(line([place(start, start * read[key]), place(knee, peak)], "#444", 'stroke-dasharray="5 3"'))
        x, y = place(start * 1.4, start * 1.4 * read[key])
        out.append(text(x, y - 6, f"{name} {read[key]:.0f} GB/s", 'fill="#444"'))
    out.append(line([place(peak / read["512k"], peak), place(X_RANGE[1], peak)], "#444"))
    for i, r in enumerate(all_):
        colour = COLOURS[i % len(COLOURS)]
        shape = i // len(COLOURS)
        mark = lambda x, y: (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.6"/>' if shape == 0 else
                             f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="{colour}" fill-opacity="0.6"/>')
        for row in r["profile"]["rows"]:
            if row.get("macs") and row["ms"] > 0:
                out.append(mark(*place(row["macs"] / sum(row["bytes"].values()), row["gmacs_per_s"])))
        y = TOP + 12 + 16 * i
        out += [mark(WIDTH - RIGHT + 16, y - 4), text(WIDTH - RIGHT + 26, y, r["network"])]
    out.append("</svg>")
    with open(path, "w") as f:
        f.write("\n".join(out) + "\n")
