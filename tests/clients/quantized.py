"""INT8 files that other tools wrote: they run on integers, and ONNX Runtime's exact kernels get the same codes.

Files are made here by `onnxruntime.quantization`: QDQ and QOperator, signed and unsigned activations, and with ranges
that are left to the run; and one as training with quantization in mind exports it.
"""

import collections
import json
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxruntime import quantization as q
from onnxruntime.quantization.shape_inference import quant_pre_process

import support

# Most images that one file is compared on: inner codes are compared as well, which are many.
SAMPLES = 500
CALIBRATION = 64
FLOAT_PRODUCTS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
# Operators whose first result is codes.
GIVES_CODES = ("QuantizeLinear", "QLinear", "QGemm")


class Samples(q.CalibrationDataReader):
    def __init__(self, name, samples):
        self.batches = iter([{name: samples[i:i + 1]} for i in range(len(samples))])

    def get_next(self):
        return next(self.batches, None)


def quantized(model, samples, folder, form, activations):
    """The model as ONNX Runtime quantizes it, per channel."""
    prepared, path = folder / "prepared.onnx", folder / f"{form}_{activations}.onnx"
    if not prepared.exists():
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    name = onnx.load(prepared).graph.input[0].name
    q.quantize_static(
        str(prepared), str(path), Samples(name, samples),
        quant_format=q.QuantFormat.QDQ if form == "qdq" else q.QuantFormat.QOperator,
        activation_type=q.QuantType.QInt8 if activations == "s8" else q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8, per_channel=True)
    return path


def dynamic(model, folder, weights):
    path = folder / f"dynamic_{weights}.onnx"
    # ONNX Runtime has no ConvInteger of u8 and s8, so convolutions are only quantized with u8 weights.
    only = {"op_types_to_quantize": ["MatMul", "Gemm"]} if weights == "s8" else {}
    q.quantize_dynamic(str(model), str(path), per_channel=weights == "s8",
                       weight_type=q.QuantType.QInt8 if weights == "s8" else q.QuantType.QUInt8, **only)
    return path


def ranges_of(model, name, samples):
    """Largest magnitude of every value of a float model."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.output[:]
    names = [name] + [o for n in model.graph.node for o in n.output]
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names[1:])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = [samples, *session.run(None, {name: samples})]
    return {n: float(np.abs(v).max()) for n, v in zip(names, values)}


def trained(samples, folder):
    """A small network as PyTorch and TensorRT export it after training with quantization in mind: symmetric signed
    activations, weights in float that a QuantizeLinear makes codes of, scales in Constant nodes, float biases."""
    random = np.random.default_rng(7)
    nodes, constants = [], []

    def constant(array):
        name = f"c{len(constants)}"
        constants.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array))))
        return name

    def weights(*shape):
        return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    def layer(op, x, weight, out, **attributes):
        initial = f"{out}.weight"
        initializers[initial] = weight
        bias = f"{out}.bias"
        initializers[bias] = (random.standard_normal(weight.shape[0]) * 0.1).astype(np.float32)
        nodes.append(helper.make_node(op, [x, initial, bias], [out], out, **attributes))
        return out

    def unary(op, x, out, **attributes):
        nodes.append(helper.make_node(op, [x], [out], out, **attributes))
        return out

    initializers = {}
    x = unary("Relu", layer("Conv", "input", weights(16, 1, 3, 3), "stem", strides=[2, 2], pads=[1] * 4), "stem_relu")
    y = unary("Relu", layer("Conv", x, weights(16, 1, 3, 3), "depthwise", group=16, pads=[1] * 4), "depthwise_relu")
    y = layer("Conv", y, weights(16, 16, 1, 1), "pointwise")
    nodes.append(helper.make_node("Add", [y, x], ["sum"], "sum"))
    y = unary("MaxPool", unary("Relu", "sum", "sum_relu"), "pool", kernel_shape=[2, 2], strides=[2, 2])
    y = unary("Flatten", unary("GlobalAveragePool", y, "mean"), "flat")
    initializers["head.weight"] = weights(10, 16)
    nodes.append(helper.make_node("Transpose", ["head.weight"], ["head.transposed"], "transpose", perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", [y, "head.transposed"], ["head"], "head"))

    def model():
        tensors = [numpy_helper.from_array(v, n) for n, v in initializers.items()]
        info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
                for n, s in (("input", ["batch", 1, 28, 28]), ("head", ["batch", 10]))]
        graph = helper.make_graph(constants + nodes, "trained", info[:1], info[1:], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    largest = ranges_of(model(), "input", samples)

    def pair(x, scale, axis=None):
        """`x` through codes and back."""
        scale = np.asarray(scale, np.float32)
        operands = [constant(scale), constant(np.zeros(scale.shape, np.int8))]
        more = {} if axis is None else {"axis": axis}
        for op, source, to in (("QuantizeLinear", x, f"{x}.codes"), ("DequantizeLinear", f"{x}.codes", f"{x}.back")):
            if all(to not in n.output for n in quantizers):
                quantizers.append(helper.make_node(op, [source, *operands], [to], to, **more))
        return f"{x}.back"

    quantizers, old = [], list(nodes)
    nodes.clear()
    for node in old:
        quantizers.clear()
        inputs = list(node.input)
        known = {o for n in nodes for o in n.output}
        for i, name in enumerate(inputs):
            if name in initializers and name.endswith("weight"):
                axes = tuple(range(1, initializers[name].ndim))
                inputs[i] = pair(name, np.abs(initializers[name]).max(axes) / 127, 0)
            # Two operands of a sum: only the one that skips the layers, as TensorRT wants it.
            elif name not in initializers and not name.endswith("transposed") and not (node.op_type == "Add" and i == 0):
                inputs[i] = f"{name}.back" if f"{name}.back" in known else pair(name, largest[name] / 127)
        if node.op_type in ("Relu", "MaxPool", "Flatten", "GlobalAveragePool"):
            # Only what multiplies, adds or averages is quantized.
            keep = node.op_type == "GlobalAveragePool"
            inputs = inputs if keep else list(node.input)
            nodes.extend(quantizers if keep else [])
        else:
            nodes.extend(quantizers)
        del node.input[:]
        node.input.extend(inputs)
        nodes.append(node)
    path = folder / "trained.onnx"
    onnx.save(model(), path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def with_codes(path):
    """A copy that also gives the codes inside, and their names."""
    model = onnx.load(path)
    outputs = {o.name for o in model.graph.output}
    constant = {i.name for i in model.graph.initializer}
    constant |= {o for n in model.graph.node if n.op_type == "Constant" for o in n.output}
    types = {}
    for info in onnx.shape_inference.infer_shapes(model).graph.value_info:
        types[info.name] = info.type.tensor_type.elem_type
    names = []
    for node in model.graph.node:
        name = node.output[0]
        inside = node.op_type.startswith(GIVES_CODES) and node.input[0] not in constant and name not in outputs
        if inside:
            zero_point = node.input[2] if node.op_type == "QuantizeLinear" else None
            kinds = {i.name: i.data_type for i in model.graph.initializer} | {
                n.output[0]: n.attribute[0].t.data_type for n in model.graph.node if n.op_type == "Constant"}
            kind = types.get(name) or kinds.get(zero_point)
            if kind is None:
                kind = next(kinds[i] for i in reversed(node.input) if kinds.get(i) in (2, 3))
            if kind in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
                names.append(name)
                model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    copy = path.with_name(path.stem + "_codes.onnx")
    onnx.save(model, copy)
    return copy, names


def onnx_runtime(path, optimized=None):
    options = ort.SessionOptions()
    # The exact kernels: without this, ONNX Runtime saturates on x86 processors without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def float_products(path, folder):
    """How many products ONNX Runtime leaves in float."""
    optimized = folder / "optimized.onnx"
    onnx_runtime(path, optimized)
    return sum(n.op_type in FLOAT_PRODUCTS for n in onnx.load(optimized).graph.node)


def octet_run(binary, path, samples, folder, name, batch=100):
    inputs, outputs = folder / "in.npz", folder / "out.npz"
    np.savez(inputs, **{name: samples})
    support.run_octet(binary, "run", path, "--inputs", inputs, "-o", outputs, "--batch", batch)
    with np.load(outputs) as z:
        return {n: z[n] for n in z.files}


def compare(binary, path, samples, folder, batch=100, equal_min=0.999, agree_min=0.999):
    """Our answers against ONNX Runtime's: (top-1 agreement, share of equal codes, worst tensor, its share)."""
    with_inner, names = with_codes(path)
    session = onnx_runtime(with_inner)
    name, wanted = session.get_inputs()[0].name, [o.name for o in session.get_outputs()]
    runs = [session.run(None, {name: samples[i:i + batch]}) for i in range(0, len(samples), batch)]
    theirs = dict(zip(wanted, (np.concatenate(parts) for parts in zip(*runs))))
    ours = octet_run(binary, with_inner, samples, folder, name, batch)
    same = total = 0
    worst = (1.0, "none")
    for n in names:
        assert ours[n].dtype == theirs[n].dtype and ours[n].shape == theirs[n].shape, n
        far = np.abs(ours[n].astype(int) - theirs[n].astype(int)).max(initial=0)
        equal = float(np.mean(ours[n] == theirs[n]))
        worst = min(worst, (equal, f"{n} (differs by up to {far})"))
        same, total = same + np.sum(ours[n] == theirs[n]), total + ours[n].size
    # The scores are those of the file as it is, without the extra outputs.
    session = onnx_runtime(path)
    out = session.get_outputs()[0].name
    scores = np.concatenate([session.run([out], {name: samples[i:i + batch]})[0] for i in range(0, len(samples), batch)])
    mine = octet_run(binary, path, samples, folder, name, batch)[out]
    agree = float(np.mean(mine.argmax(1) == scores.argmax(1)))
    exact = float(np.mean(np.all(mine == scores, axis=1)))
    share = float(same / total) if total else 1.0
    # What multiplies: nothing of it in float that ONNX Runtime does in integers.
    found = json.loads(support.run_octet(binary, "inspect", "--json", path))
    left = [row for row in found["float"] if row["op"] in FLOAT_PRODUCTS]
    allowed = float_products(path, folder)
    say = (f"{path.stem}: top-1 agreement {agree:.4%}, equal rows {exact:.2%}, equal codes {share:.5%} of {total}, worst "
           f"{worst[0]:.4%} {worst[1]}, float products {len(left)} (ONNX Runtime {allowed})")
    assert found["quantized"] and len(left) <= allowed, f"{say}: {left}"
    assert agree >= agree_min and share >= equal_min, say
    return say


def one_model(binary, model):
    samples = support.images()[0][:SAMPLES]
    with np.load(support.calibration_path(model)) as z:
        calibration = z["input"][:CALIBRATION]
    says = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for form in ("qdq", "qoperator"):
            for activations in ("s8", "u8"):
                path = quantized(support.model_path(model), calibration, folder, form, activations)
                says.append(compare(binary, path, samples, folder))
        says.append(compare(binary, dynamic(folder / "prepared.onnx", folder, "s8"), samples, folder, batch=1))
    return "\n  ".join(says)


def check_fm_resnet8(binary):
    return one_model(binary, "fm_resnet8")


def check_fm_mbv2(binary):
    return one_model(binary, "fm_mbv2")


def check_fm_vit(binary):
    return one_model(binary, "fm_vit")


def check_trained(binary):
    samples = support.images()[0][:SAMPLES]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        return compare(binary, trained(samples[:CALIBRATION], folder), samples, folder)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
