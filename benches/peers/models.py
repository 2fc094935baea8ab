"""Float ONNX models to measure, with data to calibrate and to check them on.

    python models.py FOLDER NAME...     such as resnet18.b1 or resnet18.b8, at batch 1 and 8

Writes for each NAME into FOLDER
    NAME.onnx         the model, every shape fixed
    NAME.calib.npz    calibration samples, one array for each input, along its first dimension
    NAME.input.npz    one run's inputs, none of them calibrated on
    NAME.json         {"macs": multiply-accumulates a run, null if not counted, "shapes": {input: shape}}

Random weights say nothing of accuracy, but time does not depend on values: they are scaled so that activations
keep their size (He et al. 2015), and batch normalization counts as folded into the convolution before it.
"""

import json
import math
import pathlib
import sys
import typing

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
# Static quantizers get this many samples of each model; time does not depend on it.
CALIBRATION_SAMPLES = 8


class Value(typing.NamedTuple):
    """A tensor of a graph that is being built."""

    name: str
    shape: tuple


class Graph:
    """Builds a model layer by layer and counts its multiply-accumulates.

    A layer's method takes and gives `Value`s; its weights come from a generator with a fixed seed.
    """

    def __init__(self, batch):
        self.batch = batch
        self.macs = 0
        self.nodes, self.weights, self.inputs = [], [], []
        self.random = np.random.default_rng(20)
        self.constants = {}

    def input(self, name, shape, integer=False):
        kind = TensorProto.INT64 if integer else TensorProto.FLOAT
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return Value(name, tuple(shape))

    def node(self, op, inputs, *shapes, **attributes):
        """Adds a node; gives its result, or a list where it has several shapes."""
        made = [Value(f"{op.lower()}{len(self.nodes)}_{i}", tuple(s)) for i, s in enumerate(shapes)]
        names = [i if isinstance(i, str) else i.name for i in inputs]
        self.nodes.append(helper.make_node(op, names, [m.name for m in made], made[0].name, **attributes))
        return made if len(made) > 1 else made[0]

    def weight(self, array):
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return Value(name, array.shape)

    def constant(self, value, dtype=np.float32):
        """A small constant; equal ones are one."""
        array = np.asarray(value, dtype)
        key = (array.dtype.char, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.weight(array)
        return self.constants[key]

    def normal(self, shape, deviation):
        return self.weight(self.random.standard_normal(shape, np.float32) * np.float32(deviation))

    def unary(self, op, x):
        return self.node(op, [x], x.shape)

    def binary(self, op, a, b):
        return self.node(op, [a, b], np.broadcast_shapes(a.shape, b.shape))

    def concat(self, values, axis):
        shape = list(values[0].shape)
        shape[axis] = sum(v.shape[axis] for v in values)
        return self.node("Concat", values, shape, axis=axis)

    # Pictures.

    def conv(self, x, channels, kernel, stride=1, groups=1, pad=None):
        n, c, h, w = x.shape
        pad = kernel // 2 if pad is None else pad
        terms = c // groups * kernel * kernel
        out = (n, channels, *((side + 2 * pad - kernel) // stride + 1 for side in (h, w)))
        self.macs += math.prod(out) * terms
        weight = self.normal((channels, c // groups, kernel, kernel), math.sqrt(2 / terms))
        bias = self.normal((channels,), 0.05)
        return self.node("Conv", [x, weight, bias], out, kernel_shape=[kernel] * 2, strides=[stride] * 2,
                         pads=[pad] * 4, group=groups)

    def max_pool(self, x, kernel, stride):
        n, c, h, w = x.shape
        pad = kernel // 2
        out = (n, c, *((side + 2 * pad - kernel) // stride + 1 for side in (h, w)))
        return self.node("MaxPool", [x], out, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def relu(self, x):
        return self.unary("Relu", x)

    def relu6(self, x):
        return self.node("Clip", [x, self.constant(0), self.constant(6)], x.shape)

    def silu(self, x):
        return self.binary("Mul", x, self.unary("Sigmoid", x))

    def dense(self, x, channels):
        n, c = x.shape
        self.macs += n * c * channels
        weight, bias = self.normal((channels, c), 1 / math.sqrt(c)), self.normal((channels,), 0.05)
        return self.node("Gemm", [x, weight, bias], (n, channels), transB=1)

    def classes(self, x, count=1000):
        n, c = x.shape[:2]
        x = self.node("GlobalAveragePool", [x], (n, c, 1, 1))
        return self.dense(self.node("Flatten", [x], (n, c)), count)

    # Sequences, [batch, length, width].

    def product(self, a, b):
        out = (*a.shape[:-1], b.shape[-1])
        self.macs += math.prod(out) * a.shape[-1]
        return self.node("MatMul", [a, b], out)

    def linear(self, x, width):
        y = self.product(x, self.normal((x.shape[-1], width), 1 / math.sqrt(x.shape[-1])))
        return self.binary("Add", y, self.normal((width,), 0.05))

    def layer_norm(self, x, epsilon):
        width = x.shape[-1]
        scale, bias = self.weight(np.ones(width, np.float32)), self.weight(np.zeros(width, np.float32))
        return self.node("LayerNormalization", [x, scale, bias], x.shape, axis=-1, epsilon=epsilon)

    def gelu(self, x):
        erf = self.unary("Erf", self.binary("Div", x, self.constant(math.sqrt(2))))
        twice = self.binary("Mul", x, self.binary("Add", erf, self.constant(1)))
        return self.binary("Mul", twice, self.constant(0.5))

    def reshape(self, x, shape):
        return self.node("Reshape", [x, self.constant(shape, np.int64)], shape)

    def transpose(self, x, order):
        return self.node("Transpose", [x], [x.shape[i] for i in order], perm=order)

    def attention(self, x, heads, mask=None):
        n, length, width = x.shape

        def split(order):
            parts = self.reshape(self.linear(x, width), (n, length, heads, width // heads))
            return self.transpose(parts, order)

        queries, keys, values = split((0, 2, 1, 3)), split((0, 2, 3, 1)), split((0, 2, 1, 3))
        scores = self.product(queries, keys)
        scores = self.binary("Div", scores, self.constant(math.sqrt(width // heads)))
        if mask is not None:
            scores = self.binary("Add", scores, mask)
        weights = self.node("Softmax", [scores], scores.shape, axis=-1)
        joined = self.transpose(self.product(weights, values), (0, 2, 1, 3))
        return self.linear(self.reshape(joined, x.shape), width)

    def model(self, outputs):
        infos = [helper.make_tensor_value_info(v.name, TensorProto.FLOAT, v.shape) for v in outputs]
        graph = helper.make_graph(self.nodes, "model", self.inputs, infos, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def picture(g, side=224):
    return g.input("image", (g.batch, 3, side, side))


def resnet(g, blocks, widen):
    """ResNet (He et al. 2016), strides in the 3x3 as in torchvision; `widen` 1: basic blocks, 4: bottlenecks."""
    x = g.max_pool(g.relu(g.conv(picture(g), 64, 7, 2)), 3, 2)
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            if widen == 1:
                y = g.relu(g.conv(x, width, 3, stride))
                y = g.conv(y, width, 3)
            else:
                y = g.relu(g.conv(x, width, 1))
                y = g.relu(g.conv(y, width, 3, stride))
                y = g.conv(y, width * widen, 1)
            if x.shape != y.shape:
                x = g.conv(x, width * widen, 1, stride)
            x = g.relu(g.binary("Add", y, x))
    return [g.classes(x)]


def inverted_residuals(g, stages):
    """MobileNetV2 (Sandler et al. 2018) and its kin; a stage is (expansion, channels, blocks, stride, kernel)."""
    x = g.relu6(g.conv(picture(g), 32, 3, 2))
    for expansion, channels, blocks, first_stride, kernel in stages:
        for block in range(blocks):
            wide = x.shape[1] * expansion
            y = g.relu6(g.conv(x, wide, 1)) if expansion > 1 else x
            y = g.relu6(g.conv(y, wide, kernel, first_stride if block == 0 else 1, groups=wide))
            y = g.conv(y, channels, 1)
            x = g.binary("Add", x, y) if x.shape == y.shape else y
    return [g.classes(g.relu6(g.conv(x, 1280, 1)))]


MOBILENETV2 = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3),
               (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)]
# Tan and Le 2019 without squeeze-and-excitation.
EFFICIENTNET_LITE0 = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
                      (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]


def yolov8n(g):
    """YOLOv8n: backbone, neck and the raw heads, without the decoding of boxes."""

    def conv(x, channels, kernel=3, stride=1):
        return g.silu(g.conv(x, channels, kernel, stride))

    def c2f(x, channels, count, add):
        n, _, h, w = x.shape
        half = (n, channels // 2, h, w)
        parts = g.node("Split", [conv(x, channels, 1), g.constant([channels // 2] * 2, np.int64)], half, half, axis=1)
        for _ in range(count):
            y = conv(conv(parts[-1], channels // 2), channels // 2)
            parts.append(g.binary("Add", parts[-1], y) if add else y)
        return conv(g.concat(parts, 1), channels, 1)

    def twice(x):
        n, c, h, w = x.shape
        return g.node("Resize", [x, "", g.constant([1, 1, 2, 2])], (n, c, 2 * h, 2 * w), mode="nearest",
                      coordinate_transformation_mode="asymmetric", nearest_mode="floor")

    x = c2f(conv(conv(picture(g, 640), 16, 3, 2), 32, 3, 2), 32, 1, True)
    at8 = c2f(conv(x, 64, 3, 2), 64, 2, True)
    at16 = c2f(conv(at8, 128, 3, 2), 128, 2, True)
    x = c2f(conv(at16, 256, 3, 2), 256, 1, True)
    pooled = [conv(x, 128, 1)]
    for _ in range(3):
        pooled.append(g.max_pool(pooled[-1], 5, 1))
    at32 = conv(g.concat(pooled, 1), 256, 1)
    middle = c2f(g.concat([twice(at32), at16], 1), 128, 1, False)
    fine = c2f(g.concat([twice(middle), at8], 1), 64, 1, False)
    middle = c2f(g.concat([conv(fine, 64, 3, 2), middle], 1), 128, 1, False)
    coarse = c2f(g.concat([conv(middle, 128, 3, 2), at32], 1), 256, 1, False)
    heads = []
    for x in (fine, middle, coarse):
        boxes = g.conv(conv(conv(x, 64), 64), 64, 1)
        classes = g.conv(conv(conv(x, 80), 80), 80, 1)
        heads.append(g.concat([boxes, classes], 1))
    return heads


def minilm(g, layers=6, width=384, heads=12, length=128, vocabulary=30522):
    """A BERT encoder (Devlin et al. 2019) of MiniLM's size; gives the last hidden state."""
    ids, mask, kinds = (g.input(name, (g.batch, length), integer=True)
                        for name in ("input_ids", "attention_mask", "token_type_ids"))
    shape = (g.batch, length, width)
    words = g.node("Gather", [g.normal((vocabulary, width), 0.05), ids], shape)
    words = g.binary("Add", words, g.node("Gather", [g.normal((2, width), 0.05), kinds], shape))
    x = g.layer_norm(g.binary("Add", words, g.normal((1, length, width), 0.05)), 1e-12)
    mask = g.node("Unsqueeze", [mask, g.constant([1, 2], np.int64)], (g.batch, 1, 1, length))
    mask = g.node("Cast", [mask], mask.shape, to=TensorProto.FLOAT)
    mask = g.binary("Mul", g.binary("Sub", g.constant(1), mask), g.constant(-10000))
    for _ in range(layers):
        x = g.layer_norm(g.binary("Add", x, g.attention(x, heads, mask)), 1e-12)
        x = g.layer_norm(g.binary("Add", x, g.linear(g.gelu(g.linear(x, 4 * width)), width)), 1e-12)
    return [x]


def deit_tiny(g, layers=12, width=192, heads=3):
    """DeiT-Tiny (Touvron et al. 2021), patches of 16."""
    patches = g.conv(picture(g), width, 16, 16, pad=0)
    patches = g.transpose(g.reshape(patches, (g.batch, width, 196)), (0, 2, 1))
    token = g.normal((g.batch, 1, width), 0.02)
    x = g.binary("Add", g.concat([token, patches], 1), g.normal((1, 197, width), 0.02))
    for _ in range(layers):
        x = g.binary("Add", x, g.attention(g.layer_norm(x, 1e-6), heads))
        x = g.binary("Add", x, g.linear(g.gelu(g.linear(g.layer_norm(x, 1e-6), 4 * width)), width))
    first = g.node("Gather", [g.layer_norm(x, 1e-6), g.constant(0, np.int64)], (g.batch, width), axis=1)
    return [g.dense(first, 1000)]


MAKERS = {
    "resnet18": lambda g: resnet(g, [2, 2, 2, 2], 1),
    "resnet50": lambda g: resnet(g, [3, 4, 6, 3], 4),
    "mobilenetv2": lambda g: inverted_residuals(g, MOBILENETV2),
    "efficientnet_lite0": lambda g: inverted_residuals(g, EFFICIENTNET_LITE0),
    "yolov8n": yolov8n,
    "minilm_l6": minilm,
    "deit_tiny": deit_tiny,
}


def made_up(inputs, samples, seed):
    """Arrays for each input: pictures are noise, tokens any, masks all ones."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in inputs.items():
        shape = (samples, *shape[1:])
        if name == "input_ids":
            arrays[name] = random.integers(1000, 30000, shape)
        elif name == "attention_mask":
            arrays[name] = np.ones(shape, np.int64)
        elif name == "token_type_ids":
            arrays[name] = np.zeros(shape, np.int64)
        else:
            arrays[name] = random.standard_normal(shape, np.float32)
    return arrays


def make(name):
    """A model of ours: (model, shapes of inputs, multiply-accumulates, calibration data, one input)."""
    family, batch = name.rsplit(".b", 1)
    g = Graph(int(batch))
    model = g.model(MAKERS[family](g))
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return model, shapes, g.macs, made_up(shapes, CALIBRATION_SAMPLES, 1), made_up(shapes, g.batch, 2)


def write(folder, name, model, shapes, macs, calibration, inputs):
    """Writes the four files of a model."""
    onnx.save(model, folder / f"{name}.onnx")
    np.savez(folder / f"{name}.calib.npz", **calibration)
    np.savez(folder / f"{name}.input.npz", **inputs)
    # Last: whoever finds it finds the others whole.
    (folder / f"{name}.json").write_text(json.dumps({"macs": macs, "shapes": shapes}))


def main():
    folder = pathlib.Path(sys.argv[1])
    for name in sys.argv[2:]:
        write(folder, name, *make(name))


if __name__ == "__main__":
    main()
