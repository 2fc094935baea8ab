"""Five models through HTTP: the contract on accuracy and size, and ONNX Runtime as the outside judge of our integers."""

import collections
import hashlib
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

import support

# Operators of ONNX Runtime that multiply integers, and which input of each is the weight.
INTEGER_OPERATORS = {
    "QLinearConv": 3,
    "ConvInteger": 1,
    "QGemm": 3,
    "QLinearMatMul": 3,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
}
FLOAT_OPERATORS = {"Conv": 1, "FusedConv": 1, "Gemm": 1, "FusedGemm": 1, "MatMul": 1, "FusedMatMul": 1}


STATIC = {"scheme": "static"}


def nodes_with_constant_weights(graph, operators):
    """The nodes of these operators whose weight is constant."""
    constant = {i.name for i in graph.initializer}
    for node in graph.node:  # in topological order
        if node.op_type == "Constant" or (
            node.op_type in ("Identity", "DequantizeLinear", "Transpose") and node.input[0] in constant
        ):
            constant.update(node.output)
    return [n for n in graph.node if n.op_type in operators and n.input[operators[n.op_type]] in constant]


def constant_weights(graph, operators):
    """How many of them there are of each operator."""
    return collections.Counter(n.op_type for n in nodes_with_constant_weights(graph, operators))


def onnx_runtime(artifact, optimized_path=None):
    options = ort.SessionOptions()
    # The exact kernels: without this, ONNX Runtime saturates on x86 processors without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    if optimized_path:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized_path)
    return ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])


def one_model(server, model):
    samples, labels = support.images()
    # The static scheme is what ONNX Runtime fuses; the default takes the ranges of rows where that is more exact.
    job = server.quantize(model, endpoint=model, recipe=STATIC)
    result = job["result"]
    accuracy, latency = result["accuracy"], result["latency"]
    assert accuracy["metric"] == "top1" and accuracy["samples"] == len(labels), accuracy
    assert accuracy["int8"] >= accuracy["float"] - 0.005, accuracy
    assert abs(accuracy["int8"] - accuracy["float"] - accuracy["delta"]) < 1e-6, accuracy
    assert latency["float_ms"] > 0 and latency["int8_ms"] > 0, latency

    # The file: whole, standard, small, and the same when the job is done again.
    artifact = server.download(job)
    assert len(artifact) == result["artifact"]["bytes"], result
    assert hashlib.sha256(artifact).hexdigest() == result["artifact"]["sha256"], result
    float_bytes = support.model_path(model).stat().st_size
    assert abs(result["size_ratio"] - len(artifact) / float_bytes) < 1e-4, result
    limit = support.SIZE_RATIO_MAX[model]
    assert len(artifact) / float_bytes <= limit, f"size ratio {len(artifact) / float_bytes:.4f}, want {limit}"
    onnx.checker.check_model(onnx.load_from_string(artifact), full_check=True)
    again = server.download(server.quantize(model, recipe=STATIC))
    assert hashlib.sha256(artifact).digest() == hashlib.sha256(again).digest(), "the same job gave other bytes"

    # Our answers and ONNX Runtime's on the same file.
    session = onnx_runtime(artifact)
    name = session.get_inputs()[0].name
    ours, theirs = [], []
    for at in range(0, len(samples), 500):
        ours.append(server.infer(model, name, samples[at:at + 500]))
        theirs.append(session.run(None, {name: samples[at:at + 500]})[0])
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    agree = float(np.mean(ours.argmax(1) == theirs.argmax(1)))
    assert agree >= 0.999, f"ONNX Runtime agrees on {agree:.4%} of the images"
    top1 = float(np.mean(ours.argmax(1) == labels))
    assert abs(top1 - accuracy["int8"]) < 5e-4, f"served top-1 {top1}, reported {accuracy['int8']}"

    # Float as ONNX Runtime computes it is what the job compared with.
    reference = ort.InferenceSession(str(support.model_path(model)), providers=["CPUExecutionProvider"])
    scores = np.concatenate([reference.run(None, {name: samples[a:a + 500]})[0] for a in range(0, len(samples), 500)])
    float_top1 = float(np.mean(scores.argmax(1) == labels))
    assert abs(float_top1 - accuracy["float"]) < 5e-4, f"float top-1 {float_top1}, reported {accuracy['float']}"

    # ONNX Runtime fuses every Conv, Gemm and MatMul with constant weights into an integer operator.
    wanted = constant_weights(onnx.load(support.model_path(model)).graph, FLOAT_OPERATORS)
    with tempfile.TemporaryDirectory() as folder:
        optimized = pathlib.Path(folder) / "optimized.onnx"
        onnx_runtime(artifact, optimized)
        graph = onnx.load(optimized).graph
    fused, left = constant_weights(graph, INTEGER_OPERATORS), constant_weights(graph, FLOAT_OPERATORS)
    assert fused.total() == wanted.total() and not left, f"wanted {dict(wanted)}, fused {dict(fused)}, left {dict(left)}"
    exact = float(np.mean(np.all(ours == theirs, axis=1)))
    return (f"top-1 {accuracy['float']:.4f} -> {accuracy['int8']:.4f}, size {len(artifact) / float_bytes:.3f}, "
            f"ONNX Runtime agrees on {agree:.2%} and to the bit on {exact:.2%}, fused {dict(fused)}")


def check_fm_lenet(server):
    return one_model(server, "fm_lenet")


def check_fm_mlp(server):
    return one_model(server, "fm_mlp")


def check_fm_resnet8(server):
    return one_model(server, "fm_resnet8")


def check_fm_mbv2(server):
    return one_model(server, "fm_mbv2")


def check_fm_vit(server):
    return one_model(server, "fm_vit")


if __name__ == "__main__":
    support.main(sys.modules[__name__])
