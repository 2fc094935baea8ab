"""Faults that are planted in a model or in its data: the report finds each and names it, and says who is to blame."""

import hashlib
import io
import json
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import support

SAMPLES = 1000
# How the bundled images are normalized.
MEAN, STD = 0.286, 0.353


def bytes_of(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def data(samples=SAMPLES, mean=MEAN, labels=True, **more):
    """Test images as a dataset."""
    with np.load(support.EVALUATION_PATH) as z:
        arrays = {"input_u8": z["input_u8"][:samples], "input_mean": np.float32(mean), "input_std": np.float32(STD)}
        if labels:
            arrays["labels"] = z["labels"][:samples]
    return arrays | more


def calibration(mean=MEAN):
    """Test images that nothing is judged on."""
    with np.load(support.EVALUATION_PATH) as z:
        return {"input_u8": z["input_u8"][-64:], "input_mean": np.float32(mean), "input_std": np.float32(STD)}


def spread(model, channel, factor, upper, lower):
    """A model whose `upper` constants have one channel times a factor, and whose `lower` weights take it back."""
    model = onnx.load(model)
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant).copy()
        if constant.name in upper:
            values[channel] *= factor
        elif constant.name == lower:
            values[:, channel] /= factor
        else:
            continue
        constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    return model.SerializeToString()


def quantize(server, model, calibration, evaluation, recipe):
    """Sees a job through, however it ends."""
    files = {"models/planted": model, "datasets/calibration": bytes_of(calibration), "datasets/evaluation": bytes_of(evaluation)}
    names = []
    for path, body in files.items():
        # What was uploaded before keeps its version, so every content has a name of its own.
        path = f"{path}-{hashlib.sha256(body).hexdigest()[:16]}"
        answer = server.put(f"/v1/{path}", body)
        assert answer.status in (200, 201), f"PUT {path}: {answer.status} {answer.text()}"
        names.append(path.split("/")[1])
    return server.wait(server.submit(model=names[0], calibration=names[1], evaluation=names[2], recipe=recipe))


def report(server, model, calibration, evaluation, **recipe):
    """Sees a job through; gives the report and the page."""
    model = model if isinstance(model, bytes) else support.model_path(model).read_bytes()
    job = quantize(server, model, calibration, evaluation, recipe)
    assert job["state"] == "succeeded", json.dumps(job, indent=1)
    base = f"/v1/artifacts/{job['result']['artifact']['id']}"
    return server.get(f"{base}/report").json(), server.get(f"{base}/report.html").text()


def found(report, code):
    """The one warning of this code; what it says and what it advises."""
    checks = [c for c in report["data_checks"] if c["code"] == code and c["severity"] == "warning"]
    assert len(checks) == 1, f"{code}: {json.dumps(report['data_checks'], indent=1)}"
    return checks[0]["text"], checks[0]["remedy"]


def warned(report):
    return sorted({c["code"] for c in report["data_checks"] if c["severity"] != "note"})


def check_healthy_models_and_data_are_not_warned_of(server):
    for model in support.MODELS:
        got, _ = report(server, model, calibration(), data())
        assert warned(got) == [], f"{model}: {json.dumps(got['data_checks'], indent=1)}"
        spread = [a for a in got["advice"] if a["cause"] == "channel_spread"]
        assert not spread, f"{model}: {spread}"


def check_one_channel_a_thousand_times_the_others_is_named(server):
    plants = [
        ("fm_resnet8", ["body.0.b1.weight", "body.0.b1.bias"], "body.0.c2.weight", "/body/body.0/c1/Conv"),
        ("fm_lenet", ["f.0.weight", "f.0.bias"], "f.3.weight", "/f/f.0/Conv"),
    ]
    for model, upper, lower, node in plants:
        planted = spread(support.model_path(model), 3, 1000, upper, lower)
        for per_channel in (True, False):
            what = f"{model}, per_channel={per_channel}"
            got, page = report(server, planted, calibration(), data(), weights={"per_channel": per_channel},
                               rounding="nearest", ranges="mse")
            first = got["advice"][0]
            assert (first["node"], first["cause"]) == (node, "channel_spread"), f"{what}: {json.dumps(got['advice'], indent=1)}"
            assert "channel 3 of" in first["finding"], f"{what}: {first}"
            remedies = [first["recipe"], *first["alternatives"]]
            assert {"equalize": True} in remedies, f"{what}: {remedies}"
            assert any(node in r.get("keep_float", []) for r in remedies), f"{what}: {remedies}"
            assert ({"weights": {"per_channel": True}} in remedies) == (not per_channel), f"{what}: {remedies}"
            assert "channel spread" in page and warned(got) == [], f"{what}: {warned(got)}"


def check_what_eight_bits_do_not_hold_stays_in_float_and_is_named(server):
    planted = spread(support.model_path("fm_resnet8"), 3, 1000, ["body.0.b1.weight", "body.0.b1.bias"], "body.0.c2.weight")
    got, page = report(server, planted, calibration(), data())
    unheld = [a for a in got["advice"] if a["cause"] == "unheld"]
    assert any("/body/body.0/c1" in a["finding"] or "/body/body.0/c2" in a["node"] for a in unheld), json.dumps(got["advice"], indent=1)
    assert "kept in float" in page


def detector():
    """A head that joins boxes of 0 to 640 and scores of 0 to 1: one scale for both would leave no score."""
    random = np.random.default_rng(3)
    images = (data(256)["input_u8"].astype(np.float32) / 255 - MEAN) / STD
    constants, nodes = {}, []

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=f"n_{output}", **attributes))

    def conv(x, channels, inner, output, kernel):
        constants[f"{output}_w"] = random.normal(0, (inner * kernel**2) ** -0.5, (channels, inner, kernel, kernel)).astype(np.float32)
        constants[f"{output}_b"] = np.zeros(channels, np.float32)
        node("Conv", [x, f"{output}_w", f"{output}_b"], output, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)

    conv("input", 16, 1, "a", 3)
    node("Relu", ["a"], "r")
    conv("r", 16, 16, "b", 3)
    node("Relu", ["b"], "s")
    conv("s", 4, 16, "box", 1)
    conv("s", 10, 16, "class", 1)
    node("Sigmoid", ["box"], "place")
    constants["side"], constants["flat"] = np.float32(640), np.array([0, 14, -1], np.int64)
    node("Mul", ["place", "side"], "boxes")
    node("Sigmoid", ["class"], "scores")
    node("Concat", ["boxes", "scores"], "joined", axis=1)
    node("Reshape", ["joined", "flat"], "found")

    def model(outputs):
        value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
        graph = helper.make_graph(nodes, "detector", [value("input", ["n", 1, 28, 28])],
                                  [value(name, shape) for name, shape in outputs.items()], tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        return made.SerializeToString()

    # Logits as a trained head has them: few scores above a half.
    logits = run(model({"box": ["n", 4, 28, 28], "class": ["n", 10, 28, 28]}), images)
    for name, values, deviation, mean in zip(["box", "class"], logits, [1.5, 1.3], [0, -3]):
        gain = deviation / values.std((0, 2, 3))
        constants[f"{name}_w"] *= gain[:, None, None, None].astype(np.float32)
        constants[f"{name}_b"] = (mean - gain * values.mean((0, 2, 3))).astype(np.float32)
    return model({"found": ["n", 14, 784]}), images


def run(model, images):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})


def check_a_detector_keeps_its_scores(server):
    model, images = detector()
    job = quantize(server, model, calibration(), data(256, labels=False), {})
    assert job["state"] == "succeeded", json.dumps(job, indent=1)
    (float_found,), (int8_found,) = run(model, images), run(server.download(job), images)
    for what, rows, least in [("boxes", slice(4), 25), ("scores", slice(4, None), 20)]:
        a, b = float_found[:, rows], int8_found[:, rows]
        db = 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum())
        assert db >= least, f"{what}: {db:.1f} dB"
    float_hits, int8_hits = (found[:, 4:].max(1) > 0.5 for found in (float_found, int8_found))
    lost = (float_hits & ~int8_hits).sum() / float_hits.sum()
    assert float_hits.mean() > 0.01 and lost < 0.05, f"{lost:.3f} of {float_hits.sum()} boxes are lost"


def check_a_wrong_mean_is_named_normalization(server):
    for model in support.MODELS:
        got, page = report(server, model, calibration(0.9), data(mean=0.9))
        texts = [c["text"] + c["remedy"] for c in got["data_checks"] if c["code"] == "normalization"]
        assert texts and "not the quantization" in " ".join(texts), f"{model}: {json.dumps(got['data_checks'], indent=1)}"
        assert "labels" not in warned(got), f"{model}: {warned(got)}"
        assert ">normalization<" in page


def check_calibration_data_that_are_normalized_otherwise_are_named_so(server):
    got, _ = report(server, "fm_lenet", calibration(0.6), data())
    text, remedy = found(got, "normalization")
    assert "normalized in two ways" in text and "not the quantization" in remedy, (text, remedy)


def check_shuffled_labels_are_named_labels(server):
    labels = data()["labels"]
    shuffled = np.random.default_rng(1).permutation(labels)
    for model in ["fm_resnet8", "fm_vit"]:
        for kind, given, says in [("shuffled", shuffled, "shuffled"), ("numbered from another end", 9 - labels, "other names"),
                                  ("one off", (labels + 1) % 10, "label - 1")]:
            got, page = report(server, model, calibration(), data(labels=False) | {"labels": given})
            text, remedy = found(got, "labels")
            assert "float model itself" in text and says in text, f"{model}, {kind}: {text}"
            assert "not the quantization" in remedy, remedy
            assert warned(got) == ["labels"] and "What float answers for each label" in page


def check_two_labels_that_are_exchanged_are_named(server):
    labels = data()["labels"]
    exchanged = np.select([labels == 3, labels == 7], [7, 3], labels)
    for model in ["fm_resnet8", "fm_mlp"]:
        got, _ = report(server, model, calibration(), data(labels=False) | {"labels": exchanged})
        text, remedy = found(got, "labels")
        assert "of class 3 are answered 7" in text and "of class 7 are answered 3" in text, text
        assert "not the quantization" in remedy and warned(got) == ["labels"], (remedy, warned(got))


def check_one_class_is_no_fault(server):
    arrays = data()
    of_one = arrays["labels"] == 7
    arrays |= {"input_u8": arrays["input_u8"][of_one], "labels": arrays["labels"][of_one]}
    got, _ = report(server, "fm_resnet8", calibration(), arrays)
    assert "labels" not in warned(got), json.dumps(got["data_checks"], indent=1)
    assert f"all {of_one.sum()} samples are of class 7" in json.dumps(got["data_checks"])


def check_calibration_data_of_another_kind_are_named(server):
    """Mean and deviation are about the same, what the values are is not."""
    images = calibration()["input_u8"]
    noise = np.random.default_rng(2).normal(size=images.shape).astype(np.float32)
    negative = -((images / np.float32(255)) - np.float32(MEAN)) / np.float32(STD)
    for given, code in [(negative, "normalization"), (noise, "shift")]:
        got, _ = report(server, "fm_resnet8", {"input": given}, data())
        found(got, code)
    assert "outside of the calibrated range" not in found(got, "shift")[0]


def check_a_slice_beyond_the_calibrated_range_is_named(server):
    def dim(images):
        return (images * 0.25).astype(np.uint8)

    images, arrays = calibration(), data()
    images["input_u8"] = dim(images["input_u8"])
    slices = np.array(["dim", "bright"])[(np.arange(SAMPLES) % 10 == 0).astype(int)]
    is_dim = slices == "dim"
    arrays["input_u8"] = arrays["input_u8"].copy()
    arrays["input_u8"][is_dim] = dim(arrays["input_u8"][is_dim])
    got, _ = report(server, "fm_resnet8", images, arrays | {"slice": slices})
    text = " ".join(c["text"] for c in got["data_checks"] if c["severity"] == "warning")
    assert "outside of the calibrated range" in text and "in slice `bright`" in text, text


def check_a_slice_that_is_turned_is_named(server):
    arrays = data()
    slices = np.array(["upright", "turned"])[(np.arange(SAMPLES) % 5 == 0).astype(int)]
    arrays["input_u8"] = arrays["input_u8"].copy()
    turned = slices == "turned"
    arrays["input_u8"][turned] = arrays["input_u8"][turned][:, :, ::-1, ::-1]
    for model in ["fm_resnet8", "fm_mlp"]:
        got, page = report(server, model, calibration(), arrays | {"slice": slices})
        text, remedy = found(got, "slice")
        assert text.startswith("slice `turned`") and "turned by 180 degrees" in text, text
        assert "not the quantization" in remedy and warned(got) == ["slice"], (remedy, warned(got))
        assert "<code>turned</code>" in page


def check_labels_that_are_no_classes_stop_the_job_at_once(server):
    arrays = data()
    arrays["labels"] = arrays["labels"].copy()
    arrays["labels"][7] = 10
    model = support.model_path("fm_lenet").read_bytes()
    job = quantize(server, model, calibration(), arrays, {})
    assert job["state"] == "failed", job
    assert "label 10 of sample 7 is no class of the model, which has 10: 0 to 9" in json.dumps(job), job["error"]


def check_what_repeats_and_what_is_blank_is_told(server):
    images = calibration()
    images["input_u8"] = images["input_u8"].copy()
    images["input_u8"][1:9] = images["input_u8"][0]
    images["input_u8"][20] = 0
    got, _ = report(server, "fm_mlp", images, data(labels=False))
    text, _ = found(got, "duplicate_samples")
    assert "8 of 64" in text, text
    text, _ = found(got, "constant_samples")
    assert "1 of 64" in text and "sample 20" in text, text


def check_two_artifacts_are_compared(server):
    jobs = [server.quantize("fm_lenet", recipe=recipe) for recipe in ({}, {"weights": {"max_code": 64}})]
    ids = [job["result"]["artifact"]["id"] for job in jobs]
    answer = server.get(f"/v1/artifacts/{ids[0]}/diff/{ids[1]}")
    assert answer.status == 200, answer.text()
    found = answer.json()
    assert found["same_model"] is True and found["same_data"] is True
    assert found["recipe"] == [{"field": "weights.max_code", "a": 127, "b": 64}], found["recipe"]
    changed = {layer["node"]: layer["changed"] for layer in found["layers"]}
    assert "max_code" in changed["/f/f.0/Conv"], changed
    order = [layer["change"] for layer in found["layers"]]
    assert order == sorted(order, reverse=True), order
    page = server.request("GET", f"/v1/artifacts/{ids[0]}/diff/{ids[1]}", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html") and "weights.max_code" in page.text()
    same = server.get(f"/v1/artifacts/{ids[0]}/diff/{ids[0]}").json()
    assert same["layers"] == [] and same["recipe"] == [], same
    assert server.get(f"/v1/artifacts/{ids[0]}/diff/art_{'0' * 32}").status == 404


if __name__ == "__main__":
    support.main(sys.modules[__name__])
