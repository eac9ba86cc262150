#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes small packages of one CPU stage for the tests of the service, straight from docs/package.md.

usage: make_package.py KIND OUT.bw [NAME [VERSION]]
  double   x [-1,4]      -> y = 2x
  wide     x [-1,1024]   -> y = 2x
  sum      a, b [-1,3]   -> y = a + b, d = a - b
  picture  image [-1,3,8,8] with pre-processing -> y = 2 image
  golden   input [-1,4]  -> logits = 2 input
  one      x [1,4]       -> y = 2x, batch fixed
  same-N   x [-1,N]      -> y = x
"""
import hashlib
import json
import struct
import sys


class Graph:
    def __init__(self):
        self.values, self.nodes, self.blob = [], [], b""

    def value(self, name, dims):
        self.values.append({"name": name, "dtype": "fp32", "dims": dims})
        return len(self.values) - 1

    def constant(self, name, dims, data):
        self.blob += b"\0" * (-len(self.blob) % 64)
        self.values.append({"name": name, "constant": {"dtype": "fp32", "dims": dims, "offset": len(self.blob),
                                                        "bytes": len(data)}})
        self.blob += data
        return len(self.values) - 1

    def node(self, op, inputs, outputs):
        self.nodes.append({"op": op, "name": f"{op}{len(self.nodes)}", "inputs": inputs, "outputs": outputs,
                           "attrs": []})

    def text(self, name, inputs, outputs):
        return json.dumps({"name": name, "version": 1, "values": self.values, "nodes": self.nodes, "inputs": inputs,
                           "outputs": outputs}).encode()


def build(kind):
    g, preprocess = Graph(), None
    if kind in ("double", "wide", "one", "picture", "golden"):
        dims = {"double": [-1, 4], "wide": [-1, 1024], "golden": [-1, 4], "one": [1, 4], "picture": [-1, 3, 8, 8]}[kind]
        x = g.value({"picture": "image", "golden": "input"}.get(kind, "x"), dims)
        two = g.constant("two", [1], struct.pack("<f", 2.0))
        y = g.value("logits" if kind == "golden" else "y", dims)
        g.node("Mul", [x, two], [y])
        if kind == "picture":
            preprocess = {"resize": "exact", "resize_size": [8, 8], "size": [8, 8], "channels": "RGB", "scale": 1.0,
                          "mean": [0, 0, 0], "std": [1, 1, 1]}
        return g, [x], [y], preprocess
    if kind.startswith("same-"):
        dims = [-1, int(kind[5:])]
        x, y = g.value("x", dims), g.value("y", dims)
        g.node("Identity", [x], [y])
        return g, [x], [y], None
    if kind == "sum":
        a, b = g.value("a", [-1, 3]), g.value("b", [-1, 3])
        y, d = g.value("y", [-1, 3]), g.value("d", [-1, 3])
        g.node("Add", [a, b], [y])
        g.node("Sub", [a, b], [d])
        return g, [a, b], [y, d], None
    sys.exit(f"make_package.py: unknown kind {kind}")


def header(name, size):
    """A ustar header of owner 0, mode 0644, time 0."""
    field = lambda text, width: text.encode().ljust(width, b"\0")
    before = field(name, 100) + b"0000644\0" + b"0000000\0" * 2 + field(f"{size:011o}", 12) + field("0" * 11, 12)
    after = b"0" + b"\0" * 100 + b"ustar\00000" + b"\0" * 64 + b"0000000\0" * 2
    after += b"\0" * (512 - len(before) - 8 - len(after))
    return before + f"{sum(before) + 8 * 32 + sum(after):06o}".encode() + b"\0 " + after


def main():
    kind, path = sys.argv[1], sys.argv[2]
    name = sys.argv[3] if len(sys.argv) > 3 else kind
    version = sys.argv[4] if len(sys.argv) > 4 else "1"
    g, inputs, outputs, preprocess = build(kind)
    io_of = lambda ids: [{"name": g.values[i]["name"], "dtype": "fp32", "shape": g.values[i]["dims"]} for i in ids]
    names = lambda ids: [g.values[i]["name"] for i in ids]
    sections = [("stage0/graph.json", g.text(name, inputs, outputs)), ("stage0/constants.bin", g.blob)]
    manifest = {
        "format": "blockwave-package", "version": 1,
        "sections": [{"name": n, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in sections],
        "model": {"name": name, "version": version}, "inputs": io_of(inputs), "outputs": io_of(outputs),
        "numerics": {"weights": "msfp16", "activations": "msfp16", "vector": "fp16", "block": 16, "rounding": "even",
                     "scale_rule": "floor", "first_last": "float"},
        "stages": [{"kind": "cpu", "graph": "stage0/graph.json", "constants": "stage0/constants.bin",
                    "inputs": names(inputs), "outputs": names(outputs)}],
        "features": [],
        "requirements": {"isa_version": 1, "formats": [], "opcodes": [], "blocks": [], "act_bytes": 0,
                         "const_bytes": 0},
        "provenance": {"source_file": "test.onnx", "source_sha256": "0" * 64, "opset": 13, "producer": "test",
                       "recipe": {}, "tool": "test"},
    }
    if preprocess:
        manifest["preprocess"] = preprocess
    with open(path, "wb") as out:
        for n, b in [("manifest.json", json.dumps(manifest, sort_keys=True).encode())] + sections:
            out.write(header(n, len(b)) + b + b"\0" * (-len(b) % 512))
        out.write(b"\0" * 1024)


main()
