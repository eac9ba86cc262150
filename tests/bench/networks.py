# SPDX-License-Identifier: Apache-2.0
"""The networks of bench.py, and how those without weights get some.

The light/ models of ONNX have the architecture of well-known networks and one constant in place of every weight. With
it activations grow or die and nothing measured would mean much, so each gets seeded random weights of the size that
keeps the scale of activations, and everybody (blockwave and its peers) reads the resulting file. Batch normalisations
followed by a separate scale and shift (as Caffe had them) become one, as these networks are exported today.

MobileNetV1 and V2 at full size are in no test suite: they are written here from their papers' tables (Howard et al. 2017,
Sandler et al. 2018), with batch normalisations folded and seeded weights of the same kind.
"""
import os

# Name, file below the shared data (digits: below the project).
NETWORKS = [
    ("digits", "host/demo/digits/digits.onnx"),
    ("resnet8", "models/resnet8_cifar10_bn.onnx"),
    ("resnet20", "models/resnet20_cifar10.onnx"),
    ("kws_dscnn", "models/kws_dscnn_folded.onnx"),
    ("vww_mobilenet", "models/vww_mobilenet_bn.onnx"),
    ("mobilenet_v1", "models/mobilenet_v1_0.25_128_quant_deq.onnx"),
    ("squeezenet11", "models/squeezenet11_fp32.onnx"),
    ("ad01_fcae", "models/ad01_fcae_bn.onnx"),
    ("shufflenet", "onnx/light/light_shufflenet.onnx"),
    ("squeezenet", "onnx/light/light_squeezenet.onnx"),
    ("inception_v1", "onnx/light/light_inception_v1.onnx"),
    ("inception_v2", "onnx/light/light_inception_v2.onnx"),
    ("resnet50", "onnx/light/light_resnet50.onnx"),
    ("densenet121", "onnx/light/light_densenet121.onnx"),
    ("alexnet", "onnx/light/light_bvlc_alexnet.onnx"),
    ("zfnet512", "onnx/light/light_zfnet512.onnx"),
    ("vgg19", "onnx/light/light_vgg19.onnx"),
    ("mobilenet_v1_full", None),
    ("mobilenet_v2", None),
]

OPSET = 13  # the oldest that has per-channel QuantizeLinear, which the int8 peers need


def find(name, path, top, shared):
    """The source file (of a network that is written here: this one), or None."""
    if path is None:
        return os.path.abspath(__file__)
    full = os.path.join(top if name == "digits" else shared, path)
    return full if os.path.isfile(full) else None


def _weights(graph, node, slot, shape, rng):
    """What input `slot` of the node gets."""
    import numpy as np
    if node.op_type in ("Conv", "Gemm", "MatMul") and slot == 1:
        return rng.normal(0, (2.0 / max(1, int(np.prod(shape[1:])))) ** 0.5, shape)
    if node.op_type == "BatchNormalization" and slot in (1, 4):
        # Where branches are added up they are damped, or every block would make the numbers larger.
        added = slot == 1 and any(n.op_type in ("Sum", "Add") for n, _ in _users(graph, node.output[0]))
        return rng.uniform(0.8, 1.2, shape) * (0.3 if added else 1)
    if node.op_type == "Mul":
        return rng.uniform(0.8, 1.2, shape)
    return rng.normal(0, 0.1, shape)


def _users(graph, name):
    for node in graph.node:
        for slot, value in enumerate(node.input):
            if value != name:
                continue
            if node.op_type in ("Unsqueeze", "Reshape", "Identity") and slot == 0:
                yield from _users(graph, node.output[0])
            else:
                yield node, slot


def _fold_scale_shift(graph, arrays):
    """BatchNormalization, Mul, Add with constants: one BatchNormalization."""
    import numpy as np
    through = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Unsqueeze"}
    uses = {}
    for n in graph.node:
        for i in n.input:
            uses.setdefault(i, []).append(n)

    def constant(name):
        name = through.get(name, name)
        return name if name in arrays else None

    gone = []
    for bn in graph.node:
        if bn.op_type != "BatchNormalization":
            continue
        value, found = bn.output[0], []
        for op in ("Mul", "Add"):
            after = uses.get(value, [])
            other = [constant(i) for i in after[0].input if i != value] if len(after) == 1 else []
            if not other or after[0].op_type != op or not other[0]:
                break
            found.append((after[0], other[0]))
            value = after[0].output[0]
        if len(found) != 2:
            continue
        scale, shift = (arrays[name].reshape(-1) for _, name in found)
        arrays[bn.input[2]] = (arrays[bn.input[2]] * scale + shift).astype(np.float32)
        arrays[bn.input[1]] = (arrays[bn.input[1]] * scale).astype(np.float32)
        bn.output[0] = value
        gone += [n for n, _ in found]
    for n in gone:
        graph.node.remove(n)


class _Layers:
    """A chain of convolutions, each with bias and activation."""

    def __init__(self, channels, seed):
        import numpy as np
        self.nodes, self.arrays, self.rng, self.now, self.channels = [], {}, np.random.default_rng(seed), "image", channels

    def add(self, op, inputs, **attributes):
        from onnx import helper
        self.now = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [self.now], self.now, **attributes))
        return self.now

    def constant(self, values):
        import numpy as np
        name = f"w{len(self.arrays)}"
        self.arrays[name] = np.asarray(values, np.float32)
        return name

    def conv(self, channels, kernel=1, stride=1, depthwise=False, activation=None):
        """activation: None, "Relu", or the upper limit of a Clip."""
        groups = self.channels if depthwise else 1
        fan = self.channels // groups * kernel * kernel
        shape = (channels, self.channels // groups, kernel, kernel)
        gain = 1.0 if activation is None else 2.0
        self.add("Conv", [self.now, self.constant(self.rng.normal(0, (gain / fan) ** 0.5, shape)),
                          self.constant(self.rng.normal(0, 0.1, channels))], kernel_shape=[kernel] * 2,
                 strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups)
        self.channels = channels
        if activation == "Relu":
            self.add("Relu", [self.now])
        elif activation is not None:
            self.add("Clip", [self.now, self.constant(0.0), self.constant(activation)])

    def head(self, classes):
        self.add("GlobalAveragePool", [self.now])
        self.add("Flatten", [self.now])
        weights = self.rng.normal(0, (1.0 / self.channels) ** 0.5, (classes, self.channels))
        self.add("Gemm", [self.now, self.constant(weights), self.constant(self.rng.normal(0, 0.1, classes))], transB=1)

    def model(self, size, classes):
        from onnx import TensorProto, helper, numpy_helper
        graph = helper.make_graph(
            self.nodes, "network", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
            [helper.make_tensor_value_info(self.now, TensorProto.FLOAT, [1, classes])],
            [numpy_helper.from_array(a, n) for n, a in self.arrays.items()])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=7)


def _mobilenet_v1(seed):
    net = _Layers(3, seed)
    net.conv(32, 3, 2, activation="Relu")
    for channels, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]:
        net.conv(net.channels, 3, stride, depthwise=True, activation="Relu")
        net.conv(channels, activation="Relu")
    net.head(1000)
    return net.model(224, 1000)


def _mobilenet_v2(seed):
    net = _Layers(3, seed)
    net.conv(32, 3, 2, activation=6.0)
    for expand, channels, repeat, first in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                            (6, 160, 3, 2), (6, 320, 1, 1)]:
        for i in range(repeat):
            start, stride, same = net.now, first if i == 0 else 1, net.channels == channels
            if expand > 1:
                net.conv(net.channels * expand, activation=6.0)
            net.conv(net.channels, 3, stride, depthwise=True, activation=6.0)
            net.conv(channels)
            if stride == 1 and same:
                net.add("Add", [start, net.now])
    net.conv(1280, activation=6.0)
    net.head(1000)
    return net.model(224, 1000)


MADE = {"mobilenet_v1_full": _mobilenet_v1, "mobilenet_v2": _mobilenet_v2}


def write(name, target, seed=1):
    """Writes `target`: a network that has no file."""
    import onnx
    model = MADE[name](seed)
    onnx.checker.check_model(model)
    onnx.save(model, target + ".tmp")
    os.replace(target + ".tmp", target)


def materialise(source, target, seed=1):
    """Writes `target`: the network of `source` with weights, at opset 13 or its own newer one."""
    import numpy as np
    import onnx
    from onnx import numpy_helper, version_converter
    model = onnx.load(source)
    graph, rng = model.graph, np.random.default_rng(seed)
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    made = []
    for node in list(graph.node):
        if node.op_type == "ConstantOfShape" and node.input[0] in arrays:
            users = list(_users(graph, node.output[0]))
            shape = [int(d) for d in arrays[node.input[0]]]
            arrays[node.output[0]] = _weights(graph, *users[0], shape, rng).astype(np.float32) if users else np.zeros(shape)
            made.append(node)
    for node in made:
        graph.node.remove(node)
    if made:
        _fold_scale_shift(graph, arrays)
    # Nothing that nobody reads: constants, nodes between them, inputs that stood for constants.
    outputs = {o.name for o in graph.output}
    while True:
        read = {i for n in graph.node for i in n.input} | outputs
        idle = [n for n in graph.node if not any(o in read for o in n.output)]
        if not idle:
            break
        for n in idle:
            graph.node.remove(n)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(a), k) for k, a in arrays.items() if k in read)
    inputs = [i for i in graph.input if i.name not in arrays and i.name in read]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 7)
    if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < OPSET:
        model = version_converter.convert_version(model, OPSET)
    onnx.checker.check_model(model)
    onnx.save(model, target + ".tmp")
    os.replace(target + ".tmp", target)
    return len(made)
