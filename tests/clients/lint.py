"""What the linter says of ONNX Runtime against the graph that ONNX Runtime makes of the same file."""

import collections
import json
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime import quantization as q

import support

CALIBRATION = 32
# Operators that ONNX Runtime writes for what it fuses, and those that multiply on reals.
FUSED = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "MatMulNBits")
FLOAT = {"Conv": "Conv", "FusedConv": "Conv", "Gemm": "Gemm", "FusedGemm": "Gemm", "MatMul": "MatMul",
         "FusedMatMul": "MatMul", "Add": "Add", "Mul": "Mul", "Concat": "Concat", "AveragePool": "AveragePool",
         "GlobalAveragePool": "GlobalAveragePool", "Softmax": "Softmax"}
# Operators that stay what they are, on codes.
MOVES = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Resize")


class Samples(q.CalibrationDataReader):
    def __init__(self, name, samples):
        self.batches = iter([{name: samples[i:i + 1]} for i in range(len(samples))])

    def get_next(self):
        return next(self.batches, None)


def optimized(path, folder):
    """The graph that ONNX Runtime makes of a file."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    out = folder / "optimized.onnx"
    options.optimized_model_filepath = str(out)
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:  # it writes the file first, and has no kernel for part of what its passes make (1.32)
        if not out.exists():
            raise
    graph = onnx.load(out).graph
    out.unlink()
    return graph


def counts_of(graph):
    """Integer operators of an optimized graph, and products and their like on reals."""
    codes = set()
    fused, real = collections.Counter(), collections.Counter()
    constants = {i.name for i in graph.initializer}
    for node in graph.node:
        op = node.op_type
        if op == "DequantizeLinear" and node.input[0] in constants:
            constants.update(node.output)
        if all(i in constants for i in node.input if i) and node.input:
            continue
        made = op == "QuantizeLinear" or (op.startswith("QLinear") and op != "QLinearSoftmax_")
        if op == "QGemm":
            made = len(node.input) > 7 and node.input[7] != ""
        moved = op in MOVES and node.input[0] in codes
        if made or moved or (op == "Transpose" and node.input[0] in codes):
            codes.update(node.output)
        if op.startswith(FUSED):
            fused[op] += 1
        elif moved:
            fused[op] += 1
        elif op in FLOAT:
            real[FLOAT[op]] += 1
    return fused, real


def lint(binary, path, target="onnxruntime"):
    found = json.loads(support.run_octet(binary, "lint", path, "--target", target, "--json"))
    [report] = found["reports"]
    return report


def compare(binary, path, folder):
    """Predicted against real counts."""
    report = lint(binary, path)
    fused, real = counts_of(optimized(path, folder))
    predicted = {op: n for op, n in report["fused"].items() if op.startswith(FUSED) or op in MOVES}
    products = {op: report["float"].get(op, 0) for op in ("Conv", "Gemm", "MatMul")}
    # ONNX Runtime writes a product and a sum on reals as one operator: they are counted together.
    theirs = {op: real.get(op, 0) for op in products}
    say = f"{path.stem}: {', '.join(f'{n} {op}' for op, n in sorted(predicted.items())) or 'nothing fuses'}"
    assert predicted == dict(fused), f"{say}\npredicted {predicted}\nfound     {dict(fused)}\n{report['findings']}"
    assert sum(products.values()) == sum(theirs.values()), f"{say}\npredicted {products}\nfound {theirs}"
    return say


def written_by_onnxruntime(model, folder):
    """Files of `onnxruntime.quantization`: QDQ and QOperator, both kinds of activations, and with dynamic ranges."""
    with np.load(support.calibration_path(model)) as z:
        samples = z["input"][:CALIBRATION]
    prepared = folder / "prepared.onnx"
    q.shape_inference.quant_pre_process(str(support.model_path(model)), str(prepared), skip_symbolic_shape=True)
    name = onnx.load(prepared).graph.input[0].name
    kinds = {"u8": q.QuantType.QUInt8, "s8": q.QuantType.QInt8}
    for form in (q.QuantFormat.QDQ, q.QuantFormat.QOperator):
        for activations, kind in kinds.items():
            path = folder / f"{model}_{form.name.lower()}_{activations}.onnx"
            q.quantize_static(str(prepared), str(path), Samples(name, samples), quant_format=form,
                              activation_type=kind, weight_type=q.QuantType.QInt8, per_channel=True)
            yield path
    path = folder / f"{model}_dynamic.onnx"
    q.quantize_dynamic(str(prepared), str(path), weight_type=q.QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    yield path


def one_model(binary, model):
    says = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        artifact = folder / f"{model}_octet.onnx"
        support.run_octet(binary, "quantize", support.model_path(model), "--calibration",
                          support.calibration_path(model), "-o", artifact)
        says.append(compare(binary, artifact, folder))
        says.extend(compare(binary, path, folder) for path in written_by_onnxruntime(model, folder))
    return "\n  ".join(says)


def check_fm_lenet(binary):
    return one_model(binary, "fm_lenet")


def check_fm_resnet8(binary):
    return one_model(binary, "fm_resnet8")


def check_fm_mbv2(binary):
    return one_model(binary, "fm_mbv2")


def check_fm_vit(binary):
    return one_model(binary, "fm_vit")


def check_weights_alone(binary):
    """Products with weights in codes: with the option that the linter names, ONNX Runtime rounds no activation."""
    images = {"input": support.images()[0][:50]}

    def run(path, optimize, level=None):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if level:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, images)[0]

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        path, recipe = folder / "fm_vit_weights.onnx", folder / "recipe.json"
        recipe.write_text(json.dumps({"scheme": "weight_only"}))
        support.run_octet(binary, "quantize", support.model_path("fm_vit"), "--calibration",
                          support.calibration_path("fm_vit"), "--recipe", recipe, "-o", path)
        say = compare(binary, path, folder)
        [note] = [n for n in lint(binary, path)["notes"] if n["rule"] == "rounded_activations"]
        assert "session.qdq_matmulnbits_accuracy_level" in note["remedy"], note
        want = run(path, False)
        far = {level: float(np.abs(run(path, True, level) - want).max()) for level in (None, "1")}
    assert far["1"] < 1e-4 < 1e-3 < far[None], far
    return f"{say}; logits are off by {far[None]:.1g}, with the option by {far['1']:.1g}"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
