"""INT8 files that other tools wrote: they run on integers, and ONNX Runtime's exact kernels get the same codes.

Files are made here by `onnxruntime.quantization`: QDQ and QOperator, signed and unsigned activations, and with ranges
that are left to the run; and one as training with quantization in mind exports it.
"""

import collections
import json
import pathlib
import platform
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxruntime import quantization as q
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from onnxruntime.quantization.shape_inference import quant_pre_process

import support

# Most images that one file is compared on: inner codes are compared as well, which are many.
SAMPLES = 500
CALIBRATION = 64
# Without byte dot products ONNX Runtime's 16-bit sums of signed activations saturate, whatever its session says, but for
# weights of seven bits.
SATURATES = "vnni" not in pathlib.Path("/proc/cpuinfo").read_text() and platform.machine() == "x86_64"
FLOAT_PRODUCTS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
# Operators whose first result is codes.
GIVES_CODES = ("QuantizeLinear", "QLinear", "QGemm")


class Samples(q.CalibrationDataReader):
    def __init__(self, name, samples):
        self.batches = iter([{name: samples[i:i + 1]} for i in range(len(samples))])

    def get_next(self):
        return next(self.batches, None)


def quantized(model, samples, folder, form, activations, without=()):
    """The model as ONNX Runtime quantizes it, per channel, but for the operators `without`."""
    prepared, path = folder / "prepared.onnx", folder / f"{form}_{activations}.onnx"
    if not prepared.exists():
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    graph = onnx.load(prepared).graph
    name = graph.input[0].name
    q.quantize_static(
        str(prepared), str(path), Samples(name, samples),
        quant_format=q.QuantFormat.QDQ if form == "qdq" else q.QuantFormat.QOperator,
        activation_type=q.QuantType.QInt8 if activations == "s8" else q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8, per_channel=True,
        nodes_to_exclude=[n.name for n in graph.node if n.op_type in without])
    return path


def dynamic(model, folder, weights):
    path = folder / f"dynamic_{weights}.onnx"
    # One file has convolutions of codes, the other products alone.
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
            elif name not in initializers and not name.endswith("transposed") and (node.op_type != "Add" or i > 0):
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


def unsigned(path):
    """The same QDQ file with u8 activations: codes and zero points are 128 more. ONNX Runtime leaves part of a file
    with signed activations in float, so this is the file that its integer kernels can judge."""
    model = onnx.load(path)
    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    constants |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    for output in graph.output:
        if output.type.tensor_type.elem_type == onnx.TensorProto.INT8:
            output.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    readers = collections.defaultdict(list)
    for node in graph.node:
        for i, name in enumerate(node.input):
            readers[name].append((node.op_type, i))
    made = set()

    def moved(name):
        if name + ".u8" not in made:
            made.add(name + ".u8")
            codes = (constants[name].astype(np.int32) + 128).astype(np.uint8)
            graph.initializer.append(numpy_helper.from_array(codes, name + ".u8"))
        return name + ".u8"

    weights = set()
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        is_weight = any(
            op == "Transpose" or (i > 0 and op in ("Conv", "Gemm", "MatMul")) for op, i in readers[node.output[0]])
        if node.input[0] in weights or (node.input[0] in constants and (is_weight or node.op_type == "QuantizeLinear")):
            weights.add(node.output[0])
            continue
        if constants[node.input[2]].dtype == np.int8:
            node.input[2] = moved(node.input[2])
            if node.input[0] in constants:
                node.input[0] = moved(node.input[0])
    del graph.value_info[:]
    copy = path.with_name(path.stem + "_unsigned.onnx")
    onnx.save(model, copy)
    return copy


def onnx_runtime(path, optimized=None):
    """A session, and whether its graph is optimized."""
    levels = ort.GraphOptimizationLevel
    for level in (levels.ORT_ENABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_DISABLE_ALL):
        options = ort.SessionOptions()
        # The exact kernels: without this, ONNX Runtime saturates on x86 processors without VNNI.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 4
        options.graph_optimization_level = level
        if optimized:
            options.optimized_model_filepath = str(optimized)
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), level
        except (ort_errors.NotImplemented, ort_errors.Fail):
            # Its passes over signed activations write graphs that it cannot run itself (1.32).
            if level == levels.ORT_DISABLE_ALL:
                raise


def float_products(path, folder):
    """How many products ONNX Runtime leaves in float; none where it cannot run the graph that its passes make."""
    optimized = folder / "optimized.onnx"
    if onnx_runtime(path, optimized)[1] != ort.GraphOptimizationLevel.ORT_ENABLE_ALL:
        return 0
    return sum(n.op_type in FLOAT_PRODUCTS for n in onnx.load(optimized).graph.node)


def octet_run(binary, path, samples, folder, name, batch=100):
    inputs, outputs = folder / "in.npz", folder / "out.npz"
    np.savez(inputs, **{name: samples})
    support.run_octet(binary, "run", path, "--inputs", inputs, "-o", outputs, "--batch", batch)
    with np.load(outputs) as z:
        return {n: z[n] for n in z.files}


def run_all(session, name, samples, batch):
    wanted = [o.name for o in session.get_outputs()]
    runs = [session.run(None, {name: samples[i:i + batch]}) for i in range(0, len(samples), batch)]
    return dict(zip(wanted, (np.concatenate(parts) for parts in zip(*runs))))


def compare(binary, path, samples, folder, batch=100, equal_min=0.999, agree_min=0.999):
    """Our answers against ONNX Runtime's: the codes inside, the scores, and what is left in float."""
    with_inner, names = with_codes(path)
    shifted = "qdq_s8" in path.stem or path.stem == "trained"
    session, level = onnx_runtime(unsigned(with_inner) if shifted else with_inner)
    name = session.get_inputs()[0].name
    theirs = run_all(session, name, samples, batch)
    ours = octet_run(binary, with_inner, samples, folder, name, batch)
    same = total = 0
    worst = (1.0, "none")
    for n in names:
        assert ours[n].shape == theirs[n].shape, n
        shift = 128 if shifted and ours[n].dtype == np.int8 else 0
        far = np.abs(ours[n].astype(int) + shift - theirs[n].astype(int))
        equal = float(np.mean(far == 0))
        worst = min(worst, (equal, f"{n} (differs by up to {far.max(initial=0)})"))
        same, total = same + np.sum(far == 0), total + far.size
    # The scores are those of the file as it is, without the extra outputs.
    session, own_level = onnx_runtime(path)
    out = session.get_outputs()[0].name
    scores = run_all(session, name, samples, batch)[out]
    mine = octet_run(binary, path, samples, folder, name, batch)[out]
    agree = float(np.mean(mine.argmax(1) == scores.argmax(1)))
    exact = float(np.mean(np.all(mine == scores, axis=1)))
    share = float(same / total) if total else 1.0
    # What multiplies: nothing of it in float that ONNX Runtime does in integers.
    found = json.loads(support.run_octet(binary, "inspect", "--json", path))
    left = [row for row in found["float"] if row["op"] in FLOAT_PRODUCTS]
    allowed = float_products(path, folder)
    say = (f"{path.stem}: top-1 agreement {agree:.2%}, equal scores {exact:.2%}, equal codes {share:.4%} of {total}, "
           f"worst {worst[0]:.3%} {worst[1]}; float products {len(left)}, ONNX Runtime {allowed} "
           f"({level.name}, {own_level.name})")
    assert found["quantized"] and len(left) <= allowed, f"{say}: {left}"
    assert agree >= agree_min and share >= equal_min, say
    return say


def one_model(binary, model, samples=SAMPLES, without=(), **more):
    samples = support.images()[0][:samples]
    with np.load(support.calibration_path(model)) as z:
        calibration = z["input"][:CALIBRATION]
    says = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for form in ("qdq", "qoperator"):
            for activations in ("s8", "u8"):
                path = quantized(support.model_path(model), calibration, folder, form, activations, without)
                says.append(compare(binary, path, samples, folder, **more))
        for weights in ("s8", "u8"):
            path = dynamic(folder / "prepared.onnx", folder, weights)
            says.append(compare(binary, path, samples[:200], folder, batch=1))
    return "\n  ".join(says)


def check_fm_resnet8(binary):
    return one_model(binary, "fm_resnet8")


def check_fm_mbv2(binary):
    return one_model(binary, "fm_mbv2")


def check_fm_vit(binary):
    # ONNX Runtime takes 254 for 1 / (1 / 255) where it makes Softmax an integer operator: one code less in 6 % of
    # the places, and everything after it follows. LayerNormalization and GELU stay float, and the last bit of their
    # results decides a rounding here and there, which everything after it follows as well (99.596 % on AVX2).
    return one_model(binary, "fm_vit", samples=200, without=("Softmax",), equal_min=0.995)


def check_trained(binary):
    samples = support.images()[0][:SAMPLES]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        return compare(binary, trained(samples[:CALIBRATION], folder), samples, folder)


def operators(random):
    """Operators on codes for models of one node: name, operands (the first is given, the others are constants) and
    attributes."""
    def codes(dtype, *shape):
        info = np.iinfo(dtype)
        return random.integers(info.min, info.max + 1, shape).astype(dtype)

    def weights(dtype, *shape):
        # Seven bits where ONNX Runtime's sums saturate.
        whole = codes(dtype, *shape)
        return whole // 2 if SATURATES else whole

    def tensor(dtype, *shape):
        return [codes(dtype, *shape), np.float32(random.uniform(0.01, 0.05)), codes(dtype, 1)[0]]

    def to(dtype, scale):
        return [np.float32(scale), codes(dtype, 1)[0]]

    u8, image, rows = np.uint8, (2, 6, 11, 12), (3, 17, 30)
    window = {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1], "strides": [1, 2]}
    sums = random.integers(-9000, 9000, 24).astype(np.int32)
    floats = random.standard_normal(rows).astype(np.float32)
    for x in (np.uint8, np.int8):
        yield "QLinearAdd", tensor(x, *image) + tensor(x, *image) + to(x, 0.06), {}
        yield "QLinearMul", tensor(x, *image) + tensor(x, 6, 1, 1) + to(x, 0.02), {}
        yield "QLinearSigmoid", tensor(x, 4000) + to(x, 0.005), {}
        yield "QLinearLeakyRelu", tensor(x, 4000) + to(x, 0.03), {"alpha": 0.2}
        yield "QLinearAveragePool", tensor(x, *image) + to(x, 0.02), window
        yield "QLinearAveragePool", tensor(x, *image) + to(x, 0.02), window | {"count_include_pad": 1}
        yield "QLinearGlobalAveragePool", tensor(x, *image) + to(x, 0.003), {}
        yield "QLinearSoftmax", tensor(x, *rows) + to(x, 1 / 255), {"axis": -1, "opset": 13}
        for w in (np.int8, np.uint8):
            yield "ConvInteger", [codes(x, *image), weights(w, 24, 2, 3, 3), codes(x, 1)[0], codes(w, 1)[0]], {"group": 3}
            yield "MatMulInteger", [codes(x, *rows), weights(w, 30, 24), codes(x, 1)[0], codes(w, 24)], {}
            if x == np.int8:
                continue  # ONNX Runtime has no kernel on x86 for these with signed activations.
            yield "QLinearConv", tensor(x, *image) + tensor(w, 24, 6, 3, 3) + to(x, 0.2) + [sums], {"pads": [1] * 4}
            yield "QLinearConv", tensor(x, *image) + tensor(w, 6, 1, 3, 3) + to(x, 0.2) + [sums[:6]], {"group": 6}
            yield "QLinearMatMul", tensor(x, *rows) + tensor(w, 30, 24) + to(x, 0.2), {}
            yield "QGemm", tensor(x, 17, 30) + tensor(w, 24, 30) + [sums] + to(x, 0.3), {"transB": 1}
            yield "QGemm", tensor(x, 17, 30) + tensor(w, 30, 24) + [sums], {}
            yield "MatMulIntegerToFloat", [codes(u8, *rows), codes(w, 30, 24), np.float32(0.02), np.float32(0.03),
                                           codes(u8, 1)[0], codes(w, 1)[0]], {}
            yield "DynamicQuantizeMatMul", [floats, codes(w, 30, 24), np.float32(0.03), codes(w, 1)[0]], {}


def check_operators(binary):
    """Each operator by itself gives what ONNX Runtime gives, to the bit, in integers and by the definition."""
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        path, inputs, outputs = folder / "one.onnx", folder / "in.npz", folder / "out.npz"
        for name, operands, attributes in operators(np.random.default_rng(11)):
            own = name in ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
            node = helper.make_node(name, [f"x{i}" for i in range(len(operands))], ["y"], "one",
                                    domain="" if own else "com.microsoft", **attributes)
            tensors = [numpy_helper.from_array(np.asarray(v), f"x{i}") for i, v in enumerate(operands)]
            given = helper.make_tensor_value_info("x0", tensors[0].data_type, operands[0].shape)
            real = name in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat") or (name == "QGemm" and len(operands) == 7)
            kind = onnx.TensorProto.FLOAT if real else tensors[0].data_type
            if name in ("ConvInteger", "MatMulInteger"):
                kind = onnx.TensorProto.INT32
            made = helper.make_tensor_value_info("y", kind, None)
            graph = helper.make_graph([node], "one", [given], [made], tensors[1:])
            sets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
            onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), path)
            want = onnx_runtime(path)[0].run(None, {"x0": operands[0]})[0]
            np.savez(inputs, x0=operands[0])
            for flags in ([], ["--no-integers"]):
                support.run_octet(binary, "run", path, "--inputs", inputs, "-o", outputs, *flags)
                with np.load(outputs) as z:
                    got = z["y"]
                assert got.dtype == want.dtype and np.array_equal(got, want), (
                    f"{name} of {operands[0].dtype} {attributes} {flags}: {np.mean(got != want):.3%} differ")
                count += 1
    return f"{count} runs"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
