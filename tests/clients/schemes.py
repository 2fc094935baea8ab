"""What a recipe can ask for besides integers from end to end: weight-only, dynamic, float16, 16-bit activations. Each
artifact is a whole ONNX file that ONNX Runtime runs too, and both give the same answers.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import support

SAMPLES = 200
# An artifact as a part of its model, at most.
QUARTER, HALF = 0.34, 0.56


def onnx_runtime(path):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    # Without this, ONNX Runtime makes MatMulNBits of weights in codes and rounds the activations as well.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def sqnr(want, got):
    want, got = want.astype(np.float64), got.astype(np.float64)
    return 10 * np.log10((want ** 2).sum() / max(((want - got) ** 2).sum(), 1e-30))


def quantize(binary, model, calibration, recipe, folder):
    """The artifact, and its report."""
    artifact, wanted = folder / "artifact.onnx", folder / "recipe.json"
    wanted.write_text(json.dumps(recipe))
    support.run_octet(binary, "quantize", model, "--calibration", calibration, "--recipe", wanted, "-o", artifact,
                      "--report", folder)
    onnx.checker.check_model(str(artifact), full_check=True)
    return artifact, json.loads((folder / "report.json").read_text())


def octet_run(binary, path, feeds, folder, *more):
    inputs, outputs = folder / "in.npz", folder / "out.npz"
    np.savez(inputs, **feeds)
    support.run_octet(binary, "run", path, "--inputs", inputs, "-o", outputs, *more)
    with np.load(outputs) as z:
        return z[z.files[0]]


def compare(binary, model, calibration, feeds, recipe, least_db, size, same_db=60, folder=None):
    """The artifact against float, and in Octet against ONNX Runtime."""
    artifact, report = quantize(binary, model, calibration, recipe, folder)
    want = onnx_runtime(model).run(None, feeds)[0]
    mine, theirs = octet_run(binary, artifact, feeds, folder), onnx_runtime(artifact).run(None, feeds)[0]
    slow = octet_run(binary, artifact, feeds, folder, "--no-integers")
    ratio = artifact.stat().st_size / pathlib.Path(model).stat().st_size
    say = (f"{recipe}: size {ratio:.3f}, SQNR {sqnr(want, mine):.1f} dB, in ONNX Runtime {sqnr(want, theirs):.1f} dB, "
           f"the two {sqnr(theirs, mine):.1f} dB, one by one {sqnr(slow, mine):.1f} dB")
    assert ratio <= size and sqnr(want, mine) >= least_db and sqnr(want, theirs) >= least_db, say
    assert sqnr(theirs, mine) >= same_db and sqnr(slow, mine) >= same_db, say
    assert mine.dtype == want.dtype == np.float32, say
    return say, report, artifact


def one_model(binary, model, rows):
    feeds = {"input": support.images()[0][:SAMPLES]}
    says = []
    for recipe, least_db, size, same_db in rows:
        with tempfile.TemporaryDirectory() as folder:
            say, _, _ = compare(binary, support.model_path(model), support.calibration_path(model), feeds, recipe,
                                least_db, size, same_db, pathlib.Path(folder))
            says.append(say)
    return "\n  ".join(says)


def check_fm_resnet8(binary):
    return one_model(binary, "fm_resnet8", [
        ({"scheme": "weight_only"}, 40, QUARTER, 60),
        ({"scheme": "dynamic"}, 36, QUARTER, 60),
        # Rounded after every operator here; ONNX Runtime rounds where it has no kernel for float16.
        ({"scheme": "float16"}, 45, HALF, 45),
    ])


def check_fm_vit(binary):
    return one_model(binary, "fm_vit", [
        ({"scheme": "weight_only"}, 44, 0.5, 60),
        # A code on a tie may be another one, and what comes after it follows.
        ({"scheme": "dynamic"}, 38, 0.5, 40),
        ({"scheme": "float16"}, 45, 0.72, 45),
    ])


def check_rows_do_not_see_each_other(binary):
    """What a sample becomes does not depend on its batch."""
    images = support.images()[0][:16]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        artifact, _ = quantize(binary, support.model_path("fm_vit"), support.calibration_path("fm_vit"),
                               {"scheme": "dynamic"}, folder)
        all_at_once = octet_run(binary, artifact, {"input": images}, folder)
        one_by_one = octet_run(binary, artifact, {"input": images}, folder, "--batch", 1)
    assert np.array_equal(all_at_once, one_by_one)
    return "16 samples, equal bits"


def check_sixteen_bits(binary):
    """Sixteen bits lose less than eight, and the file needs opset 21."""
    model, calibration = support.model_path("fm_resnet8"), support.calibration_path("fm_resnet8")
    feeds = {"input": support.images()[0][:SAMPLES]}
    with tempfile.TemporaryDirectory() as folder:
        say, report, artifact = compare(binary, model, calibration, feeds, {"sixteen_bit": ["*"]}, 48, 0.4, 60,
                                        pathlib.Path(folder))
        types = {i.data_type for i in onnx.load(artifact).graph.initializer}
    assert TensorProto.UINT16 in types, types
    assert any("16 bits" in row["reason"] for row in report["float_nodes"]), report["float_nodes"]
    return say


def recurrent(op, directions, folder):
    """A layer of a sequence `[steps, batch, 24]`, and a Gemm over its last state."""
    random = np.random.default_rng(5)
    inputs, hidden, gates = 24, 32, {"LSTM": 4, "GRU": 3, "RNN": 1}[op]

    def weights(*shape):
        # Each gate has another size, as scales a gate are for.
        spread = np.exp(random.uniform(-2, 1, shape[:-1] + (1,)))
        return (random.standard_normal(shape) * spread / np.sqrt(shape[-1])).astype(np.float32)

    tensors = {
        "w": weights(directions, gates * hidden, inputs), "r": weights(directions, gates * hidden, hidden),
        "b": weights(directions, 2 * gates * hidden), "head": weights(hidden, 10),
    }
    attributes = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    nodes = [
        helper.make_node(op, ["x", "w", "r", "b"], ["all", "last"], "layer", **attributes),
        helper.make_node("ReduceSum", ["last", "axes"], ["state"], "sum", keepdims=0),
        helper.make_node("MatMul", ["state", "head"], ["y"], "head"),
    ]
    initializers = [numpy_helper.from_array(v, n) for n, v in tensors.items()]
    initializers.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "batch", inputs])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, op, [given], [made], initializers)
    path = folder / f"{op}_{directions}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), path)
    # Every sample is a whole run.
    data = folder / "calibration.npz"
    runs = random.standard_normal((16, 20, 3, inputs)).astype(np.float32)
    np.savez(data, x=runs)
    return path, data, {"x": runs[0]}


def check_recurrent(binary):
    says = []
    for op in ("LSTM", "GRU", "RNN"):
        for directions in (1, 2):
            for scheme in ("static", "dynamic", "weight_only"):
                with tempfile.TemporaryDirectory() as folder:
                    folder = pathlib.Path(folder)
                    model, data, feeds = recurrent(op, directions, folder)
                    say, _, artifact = compare(binary, model, data, feeds, {"scheme": scheme}, 28, 0.5, 60, folder)
                    codes = {i.name for i in onnx.load(artifact).graph.initializer if i.data_type == TensorProto.INT8}
                    assert {"w_q", "r_q"} <= codes, codes
                    says.append(f"{op} {directions}: {say}")
    return "\n  ".join(says)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
