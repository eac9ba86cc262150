#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the network that Blockwave ships: a small residual CNN on scikit-learn's handwritten digits.

    apt-get install python3-torch python3-sklearn python3-pil python3-onnx
    /usr/bin/python3 host/demo/train_digits.py            # writes host/demo/digits/, about two minutes on one core
    /usr/bin/python3 host/demo/train_digits.py --check    # trains again and compares with what is there

Data: sklearn.datasets.load_digits (UCI "Optical Recognition of Handwritten Digits", 1797 pictures of 8 x 8 pixels,
17 grey levels), upscaled to 32 x 32. A third (599 pictures, seeded permutation) is held back: never trained on nor
used to choose anything; it is written as PNG files with labels.csv. The seed fixes the split, the initial weights and
the order of training; one thread keeps the sums in one order.
"""
import argparse
import os
import sys
import tempfile

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "digits")
SEED = 20181107
EPOCHS = 24
MEAN, STD = 0.5, 0.5  # of pixels scaled to 0..1; recorded in preprocess.json


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.short = None
        if stride != 1 or cin != cout:
            self.short = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (self.short(x) if self.short else x))


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.body = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.body(F.relu(self.stem(x)))
        return F.softmax(self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)), dim=1)


def pictures():
    """All digits as uint8 [1797, 32, 32] and their labels; first the training two thirds, then the held-back third."""
    d = load_digits()
    small = np.round(d.images * (255.0 / 16.0)).astype(np.uint8)
    big = np.stack([np.asarray(Image.fromarray(p).resize((32, 32), Image.BILINEAR)) for p in small])
    order = np.random.RandomState(SEED).permutation(len(big))
    return big[order], d.target[order].astype(np.int64)


def normalise(p):
    return torch.from_numpy(((p.astype(np.float32) / 255.0 - MEAN) / STD)[:, None])


def shift(x, generator):
    """Augmentation: each batch is moved by up to 3 pixels each way."""
    dy, dx = torch.randint(-3, 4, (2,), generator=generator).tolist()
    return torch.roll(F.pad(x, (3, 3, 3, 3), value=-1.0), (dy, dx), (2, 3))[:, :, 3:-3, 3:-3]


def train(x, y):
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    net = Digits()
    steps = EPOCHS * ((len(x) + 31) // 32)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
    for epoch in range(EPOCHS):
        net.train()
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator).split(32):
            optimiser.zero_grad()
            loss = F.nll_loss(torch.log(net(shift(x[batch], generator)) + 1e-12), y[batch])
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1:2}/{EPOCHS}  loss {total / len(x):.4f}", file=sys.stderr)
    return net.eval()


def export(net, path):
    # PRESERVE keeps the batch normalisations as they were trained: folding them is the importer's work.
    torch.onnx.export(net, torch.zeros(1, 1, 32, 32), path, input_names=["image"], output_names=["probabilities"],
                      dynamic_axes={"image": {0: "N"}, "probabilities": {0: "N"}}, opset_version=13, do_constant_folding=False,
                      training=torch.onnx.TrainingMode.PRESERVE)


def main():
    ap = argparse.ArgumentParser(description="train the shipped digits network")
    ap.add_argument("--check", action="store_true", help="train again and compare with the files that are there")
    args = ap.parse_args()
    images, labels = pictures()
    cut = len(images) - len(images) // 3
    net = train(normalise(images[:cut]), torch.from_numpy(labels[:cut]))
    with torch.no_grad():
        right = (net(normalise(images[cut:])).argmax(1).numpy() == labels[cut:])
    print(f"held-back third: {right.sum()} of {len(right)} right = {100 * right.mean():.2f} %")
    if right.mean() < 0.98:
        sys.exit("train_digits: accuracy below 98 %: not written")
    if args.check:
        with tempfile.TemporaryDirectory() as tmp:
            export(net, os.path.join(tmp, "digits.onnx"))
            same = open(os.path.join(tmp, "digits.onnx"), "rb").read() == \
                open(os.path.join(HERE, "digits.onnx"), "rb").read()
        print("digits.onnx: " + ("the same bytes" if same else "other bytes (another CPU or library version sums in "
                                 "another order); the accuracy above is what counts"))
        return
    folder = os.path.join(HERE, "pictures")
    os.makedirs(folder, exist_ok=True)
    export(net, os.path.join(HERE, "digits.onnx"))
    with open(os.path.join(folder, "labels.csv"), "w") as f:
        f.write("file,label\n")
        for i, (p, label) in enumerate(zip(images[cut:], labels[cut:])):
            name = f"digit-{i:03}.png"
            Image.fromarray(p).save(os.path.join(folder, name), optimize=True)
            f.write(f"{name},{label}\n")
    calib = os.path.join(HERE, "calib")
    os.makedirs(calib, exist_ok=True)
    for i, p in enumerate(images[:64]):  # from the training part
        Image.fromarray(p).save(os.path.join(calib, f"train-{i:03}.png"), optimize=True)
    with open(os.path.join(HERE, "labels.txt"), "w") as f:
        f.writelines(f"{w}\n" for w in "zero one two three four five six seven eight nine".split())
    with open(os.path.join(HERE, "preprocess.json"), "w") as f:
        f.write('{"resize": "exact", "resize_size": [32, 32], "size": [32, 32], "channels": "GRAY",\n'
                ' "scale": 0.00392156862745098, "mean": [0.5], "std": [0.5]}\n')


if __name__ == "__main__":
    main()
