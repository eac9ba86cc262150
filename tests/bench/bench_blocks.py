#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What long blocks cost trained networks of many channels: `make bench-blocks`. See docs/quantize.md.

    bench_blocks.py BIN_DIR [--format F] [--count N]

Quantizes the trained SqueezeNets and MobileNetV1 in blocks of 16 to 128 and by --block auto, and prints how far each is
from the float network on the first N pictures (default 64) of the CIFAR-10 calibration set, enlarged bilinearly: real
pictures, if not of the networks' classes. BW_SHARED: the shared data (default ../shared/data).
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

import numpy as np

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHARED = os.environ.get("BW_SHARED") or os.path.join(TOP, "..", "shared", "data")
PICTURES = os.path.join(SHARED, "images", "cifar10_jpg_ship_calib500.bin")
MEAN, STD = (np.array(v, "<f4").reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
# model, side of its pictures, whether they are normalised by ImageNet's mean and deviation, else to -1..1
NETWORKS = (("squeezenet11_fp32", 224, True), ("squeezenet10_dc_fp32", 227, True),
            ("mobilenet_v1_0.25_128_quant_deq", 128, False))
BLOCKS = ("16", "32", "64", "128", "auto")


def enlarge(pictures, side):
    """[N, C, S, S] -> [N, C, side, side], half-pixel centres."""
    size = pictures.shape[2]
    at = (np.arange(side) + 0.5) * size / side - 0.5
    first = np.clip(np.floor(at).astype(int), 0, size - 2)
    part = np.clip(at - first, 0, 1).astype("<f4")
    rows = pictures[:, :, first] * (1 - part[:, None]) + pictures[:, :, first + 1] * part[:, None]
    return rows[..., first] * (1 - part) + rows[..., first + 1] * part


def quantize(options, model, block, samples, work):
    command = [os.path.join(options.bin, "blockwave-quantize"), model, "-o", os.path.join(work, "x.bw"), "--format",
               options.format, "--block", block, "--calib", samples]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"bench_blocks: {' '.join(command)}: {done.stderr.strip()}")
    if block == "auto":
        return re.search(r"block (\d+),", done.stdout).group(1)
    sqnr, agreement = re.search(r"SQNR (\S+) dB, top-1 agreement with fp32 (\S+) %", done.stdout).groups()
    return f"{sqnr} dB, {agreement} %"


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].strip())
    parser.add_argument("bin")
    parser.add_argument("--format", default="msfp16")
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    if not os.path.exists(PICTURES):
        sys.exit(f"bench_blocks: {PICTURES}: no such file: name the shared data in BW_SHARED")
    records = np.fromfile(PICTURES, "u1").reshape(-1, 3073)[:options.count, 1:]
    print(f"{options.format}, {len(records)} pictures: SQNR of the output and top-1 agreement, against fp32\n")
    print("| network | " + " | ".join(BLOCKS) + " |\n|---" + "|---" * len(BLOCKS) + "|")
    with tempfile.TemporaryDirectory() as work:
        for name, side, normalised in NETWORKS:
            x = enlarge(records.reshape(-1, 3, 32, 32).astype("<f4"), side)
            samples = os.path.join(work, "x.npy")
            np.save(samples, ((x / 255 - MEAN) / STD if normalised else x / 127.5 - 1).astype("<f4"))
            model = os.path.join(SHARED, "models", name + ".onnx")
            print(f"| {name} | " + " | ".join(quantize(options, model, b, samples, work) for b in BLOCKS) + " |",
                  flush=True)


main()
