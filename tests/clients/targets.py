"""Artifacts for other runtimes: each passes ONNX's checker and keeps the rules of its target, and whoever can be run
here agrees with us. The rules of TensorRT are checked on the file itself, by what NVIDIA says and not by our linter."""

import collections
import json
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import lint
import support

MODELS = ("fm_lenet", "fm_resnet8", "fm_mbv2", "fm_vit")
SAMPLES = 200
# Least share of images on which another runtime's answer is ours. Kernels round otherwise here and there.
AGREE_MIN = 0.985


def artifact(binary, model, folder, **recipe):
    """The artifact of a bundled model for a recipe."""
    path = folder / f"{model}_{recipe['target']}_{recipe.get('activations', 'own')}.onnx"
    written = folder / "recipe.json"
    written.write_text(json.dumps(recipe))
    support.run_octet(binary, "quantize", support.model_path(model), "--calibration",
                      support.calibration_path(model), "--recipe", written, "-o", path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def octet_run(binary, path, samples, folder):
    inputs, outputs = folder / "in.npz", folder / "out.npz"
    np.savez(inputs, **{onnx.load(path).graph.input[0].name: samples})
    support.run_octet(binary, "run", path, "--inputs", inputs, "-o", outputs, "--batch", 100)
    with np.load(outputs) as z:
        return z[z.files[0]]


def reference_run(path, samples):
    """The file as ONNX defines it, node by node: no fusion, no integer kernels."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: samples})[0]


def agree(ours, theirs):
    return float(np.mean(ours.argmax(1) == theirs.argmax(1)))


class File:
    """A file, and who makes and reads each value."""

    def __init__(self, path):
        model = onnx.load(path)
        self.graph = model.graph
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.constants = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        self.maker = {o: n for n in self.graph.node for o in n.output}
        self.readers = collections.defaultdict(list)
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                self.readers[name].append((node, i))
        self.outputs = {o.name for o in self.graph.output}

    def of(self, *ops):
        return [n for n in self.graph.node if n.op_type in ops]

    def dequantizer(self, name):
        node = self.maker.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def axis(self, node):
        return next((a.i for a in node.attribute if a.name == "axis"), 1)


def tensorrt_rules(path):
    """The rules of explicit quantization; one sentence for each fault."""
    file = File(path)
    wrong = []
    if file.opset < 13:
        wrong.append(f"opset {file.opset}: int8 Q and DQ are taken from 13 on")
    for node in file.of("QuantizeLinear", "DequantizeLinear"):
        zero = file.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.dtype != np.int8:
            wrong.append(f"{node.name}: its zero point is no constant int8")
        if zero is not None and np.any(zero != 0):
            wrong.append(f"{node.name}: its zero point is not 0")
        scale = file.constants.get(node.input[1])
        if scale is None or np.any(scale <= 0):
            wrong.append(f"{node.name}: its scale is no positive constant")
        elif scale.ndim == 0 and any(a.name == "axis" for a in node.attribute):
            wrong.append(f"{node.name}: an axis for one scale")
        elif scale.ndim == 1 and node.input[0] not in file.constants:
            wrong.append(f"{node.name}: an activation with many scales")
        if node.op_type == "QuantizeLinear" and any(r.op_type != "DequantizeLinear" for r, _ in file.readers[node.output[0]]):
            wrong.append(f"{node.name}: its codes go to something else than a DQ")
    products = 0
    for node in file.of("Conv", "Gemm", "MatMul", "ConvTranspose"):
        data, weights = (file.dequantizer(i) for i in node.input[:2])
        if weights is None:
            continue  # not quantized
        products += 1
        codes = file.constants.get(weights.input[0])
        if data is None:
            wrong.append(f"{node.name}: weights are quantized, data are not")
        if codes is None or codes.dtype != np.int8:
            wrong.append(f"{node.name}: its weights are no int8 constant")
            continue
        if codes.min() < -127:
            wrong.append(f"{node.name}: weights hold -128")
        trans_b = any(a.name == "transB" and a.i for a in node.attribute)
        want = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if trans_b else 1, "MatMul": 1}[node.op_type]
        if file.constants[weights.input[1]].ndim == 1 and file.axis(weights) != want:
            wrong.append(f"{node.name}: scales of weights along axis {file.axis(weights)}, not {want}")
        if len(node.input) > 2 and (file.dequantizer(node.input[2]) is not None or
                                    file.constants[node.input[2]].dtype != np.float32):
            wrong.append(f"{node.name}: its bias is not real")
    if not products:
        wrong.append("no product is quantized")
    for node in file.of("Add"):
        quantized = [file.dequantizer(i) is not None for i in node.input]
        from_conv = [file.maker.get(i) is not None and file.maker[i].op_type == "Conv" for i in node.input]
        through = []  # a convolution that reaches the sum through Q and DQ
        for name in node.input:
            dq = file.dequantizer(name)
            q = file.maker.get(dq.input[0]) if dq is not None else None
            source = file.maker.get(q.input[0]) if q is not None else None
            through.append(source is not None and source.op_type == "Conv")
        if all(quantized) and any(through):
            wrong.append(f"{node.name}: Q and DQ stand between a convolution and its sum")
        if any(from_conv) and not any(quantized):
            wrong.append(f"{node.name}: the operand that skips is not quantized")
    for node in file.of("Concat"):
        scales = {float(file.constants[dq.input[1]]) for i in node.input if (dq := file.dequantizer(i)) is not None}
        if len(scales) > 1:
            wrong.append(f"{node.name}: its operands have the scales {sorted(scales)}")
    for name in file.outputs:
        if file.dequantizer(name) is not None:
            wrong.append(f"output {name} is quantized")
    return wrong


def tflite_rules(path):
    """The rules of TensorFlow Lite's int8 on the operators that are quantized."""
    file = File(path)
    shared = ("MaxPool", "AveragePool", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice",
              "Pad", "Gather", "Split")
    fixed = {"Sigmoid": (1 / 256, -128), "Softmax": (1 / 256, -128), "Tanh": (1 / 128, 0)}
    wrong = []

    def params(node):
        zero = file.constants[node.input[2]]
        return float(file.constants[node.input[1]]), int(zero), zero.dtype

    for node in file.of("QuantizeLinear"):
        if params(node)[2] != np.int8:
            wrong.append(f"{node.name}: codes are not int8")
    for node in file.graph.node:
        dqs = [dq for i in node.input if (dq := file.dequantizer(i)) is not None]
        qs = [r for o in node.output for r, _ in file.readers[o] if r.op_type == "QuantizeLinear"]
        if not dqs or not qs:
            continue
        if node.op_type in shared and len({params(n) for n in dqs + qs}) > 1:
            wrong.append(f"{node.name} ({node.op_type}): scales differ")
        if node.op_type in fixed and params(qs[0])[:2] != fixed[node.op_type]:
            wrong.append(f"{node.name} ({node.op_type}): its result has {params(qs[0])}")
        if node.op_type in ("Conv", "Gemm") and len(dqs) > 1:
            codes, scale = file.constants[dqs[1].input[0]], file.constants[dqs[1].input[1]]
            if codes.min() < -127 or codes.dtype != np.int8:
                wrong.append(f"{node.name}: weights are not from -127 to 127")
            if node.op_type == "Gemm" and scale.ndim > 0:
                wrong.append(f"{node.name}: a scale for each row of a matrix")
            if len(node.input) > 2:
                bias = file.dequantizer(node.input[2])
                near = bias is not None and np.allclose(
                    file.constants[bias.input[1]], file.constants[dqs[0].input[1]] * scale, rtol=1e-6, atol=0)
                if not near or file.constants[bias.input[0]].dtype != np.int32:
                    wrong.append(f"{node.name}: its bias is not int32 of scale_x * scale_w")
    return wrong


def openvino_run(path, samples):
    """The answers of OpenVINO in float32 around its INT8 primitives, and how many products had one."""
    import openvino as ov

    core = ov.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", config)
    products = collections.Counter()
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = {k: str(getattr(v, "value", v)) for k, v in op.get_rt_info().items()}
        if info.get("layerType") in ("Convolution", "FullyConnected"):
            products[info["runtimePrecision"]] += 1
    return np.concatenate([compiled(samples[i:i + 50])[0] for i in range(0, len(samples), 50)]), products


def one_target(binary, target, look):
    """Every model for a target: `look(path, folder, ours)` gives what to say of it."""
    samples = support.images()[0][:SAMPLES]
    says = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for model in MODELS:
            path = artifact(binary, model, folder, target=target)
            report = lint.lint(binary, path, target)
            assert not report["refused"], f"{model}: {[f for f in report['findings'] if f['verdict'] == 'refused']}"
            ours = octet_run(binary, path, samples, folder)
            same = agree(ours, reference_run(path, samples))
            assert same >= AGREE_MIN, f"{model}: agrees with the file's own definition on {same:.2%}"
            says.append(f"{model}: {look(path, folder, ours, report)}; agreement with its definition {same:.1%}")
    return "\n  ".join(says)


def check_onnxruntime(binary):
    def look(path, folder, ours, report):
        left = [f["node"] for f in report["findings"] if f["verdict"] != "fuses" and f["rule"] not in ("not_quantized",)
                and f["op"] in ("Conv", "Gemm", "MatMul", "Add") and f["rule"] != "operand_is_real"]
        assert not left, left
        return lint.compare(binary, path, folder)

    return one_target(binary, "onnxruntime", look)


def check_openvino(binary):
    samples = support.images()[0][:SAMPLES]

    def look(path, folder, ours, report):
        theirs, products = openvino_run(path, samples)
        predicted = sum(n for op, n in report["fused"].items() if op in ("INT8 Convolution", "INT8 FullyConnected"))
        integer = products["u8"] + products["i8"]
        assert integer == predicted, f"{predicted} INT8 products are predicted: {dict(products)}"
        same = agree(ours, theirs)
        assert same >= AGREE_MIN, f"OpenVINO agrees on {same:.2%}"
        return f"{integer} INT8 products of {sum(products.values())}, OpenVINO agrees on {same:.1%}"

    return one_target(binary, "openvino", look)


def check_tensorrt(binary):
    def look(path, folder, ours, report):
        wrong = tensorrt_rules(path)
        assert not wrong, wrong
        return f"{sum(report['fused'].values())} fused"

    return one_target(binary, "tensorrt", look)


def check_tflite_rules(binary):
    def look(path, folder, ours, report):
        wrong = tflite_rules(path)
        assert not wrong, wrong
        return f"{sum(report['fused'].values())} fused"

    return one_target(binary, "tflite_rules", look)


def check_signed_activations_run_here(binary):
    samples = support.images()[0][:SAMPLES]
    says = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for model in MODELS:
            path = artifact(binary, model, folder, target="octet", activations="s8")
            found = json.loads(support.run_octet(binary, "inspect", "--json", path))
            left = [row for row in found["float"] if row["op"] in ("Conv", "Gemm")]
            assert not left, left
            same = agree(octet_run(binary, path, samples, folder), reference_run(path, samples))
            assert same >= AGREE_MIN, f"{model}: {same:.2%}"
            says.append(f"{model} {same:.1%}")
    return ", ".join(says)


def check_shared_weights(binary):
    """Weights that three layers share: ONNX Runtime opens the artifact in its exact mode too, and says what we say."""
    random = np.random.default_rng(7)
    weights = {"k": (random.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32),
               "w": (random.standard_normal((8, 8)) / 3).astype(np.float32)}
    nodes = [onnx.helper.make_node("Conv", [a, "k"], [b], b, pads=[1] * 4) for a, b in zip("xcd", "cde")]
    nodes += [onnx.helper.make_node("GlobalAveragePool", ["e"], ["p"], "p"),
              onnx.helper.make_node("Flatten", ["p"], ["f"], "f"),
              onnx.helper.make_node("MatMul", ["f", "w"], ["g"], "g"),
              onnx.helper.make_node("Tanh", ["g"], ["t"], "t"),
              onnx.helper.make_node("MatMul", ["t", "w"], ["y"], "y")]
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8, 12, 12])
    made = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])
    initializers = [numpy_helper.from_array(v, n) for n, v in weights.items()]
    graph = onnx.helper.make_graph(nodes, "shared", [given], [made], initializers)
    samples = random.standard_normal((64, 8, 12, 12)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model, data, recipe, path = (folder / n for n in ("m.onnx", "x.npz", "recipe.json", "a.onnx"))
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), model)
        np.savez(data, x=samples)
        recipe.write_text(json.dumps({"target": "onnxruntime"}))
        support.run_octet(binary, "quantize", model, "--calibration", data, "--recipe", recipe, "-o", path)
        say = lint.compare(binary, path, folder)
        notes = [n["rule"] for n in lint.lint(binary, path)["notes"]]
        assert "shared_weights" not in notes, notes
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        ours, theirs = octet_run(binary, path, samples, folder), session.run(None, {"x": samples})[0]
        types = {i.data_type for i in onnx.load(path).graph.initializer if len(i.dims) > 1}
        assert types == {onnx.TensorProto.UINT8}, types
        assert np.abs(ours - theirs).max() < 1e-5, np.abs(ours - theirs).max()
    return say


def check_the_rules_find_faults(binary):
    """A file for this program breaks most rules of TensorRT, and says so."""
    with tempfile.TemporaryDirectory() as folder:
        wrong = tensorrt_rules(artifact(binary, "fm_resnet8", pathlib.Path(folder), target="octet"))
    for word in ("zero point is not 0", "no constant int8", "bias is not real", "between a convolution"):
        assert any(word in w for w in wrong), (word, wrong[:20])
    return f"{len(wrong)} faults"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
