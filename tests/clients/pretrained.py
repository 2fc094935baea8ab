"""Jobs on models that come quantized: kept as they were trained, compared with the float model behind them, and completed
where the recipe asks for it.

The models are the bundled ones as ONNX Runtime's static quantizer leaves them, whole and in part, and in the form that
training with quantization in mind exports: weights in float that a QuantizeLinear makes codes of before every run.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime import quantization as q
from onnxruntime.quantization.shape_inference import quant_pre_process

import quantized
import support

SAMPLES = 1000
# As a job runs them: ranges that each run takes of all its samples depend on how many there are.
BATCH = 32
# What stays in float of a model that is quantized in part, by the number of its product.
LEFT = {"fm_lenet": (0, 2), "fm_resnet8": (0, 3, 4)}
# Points that the accuracy of the float model behind a quantized one may differ from that of the model it was made of.
REFERENCE_MAX = 0.005
# Points that a completed model may lose against one that was quantized in part.
COMPLETED_MAX = 0.01


def products(model):
    return [n.name for n in onnx.load(model).graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]


def made(model, folder, form="qdq", activations="u8", left=()):
    """The bundled model as ONNX Runtime quantizes it, but for the products `left`."""
    prepared, path = folder / "prepared.onnx", folder / f"{form}_{activations}_{len(left)}.onnx"
    quant_pre_process(str(support.model_path(model)), str(prepared), skip_symbolic_shape=True)
    names = products(prepared)
    with np.load(support.calibration_path(model)) as z:
        samples = z["input"][:64]
    q.quantize_static(
        str(prepared), str(path), quantized.Samples("input", samples),
        quant_format=q.QuantFormat.QDQ if form == "qdq" else q.QuantFormat.QOperator,
        activation_type=q.QuantType.QInt8 if activations == "s8" else q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8, per_channel=True, nodes_to_exclude=[names[i] for i in left])
    return path


def fake(model, folder, left=()):
    """The same as training exports it: weights are reals, which are made codes in the file. Biases are reals too."""
    path = made(model, folder, left=left)
    file = onnx.load(path)
    graph = file.graph
    tensors = {i.name: i for i in graph.initializer}
    nodes = []
    for node in graph.node:
        tensor = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is None:
            nodes.append(node)
            continue
        codes, scale = numpy_helper.to_array(tensor), numpy_helper.to_array(tensors[node.input[1]])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        each = scale.reshape([-1 if i == axis else 1 for i in range(codes.ndim)]) if scale.ndim and codes.ndim > 1 else scale
        zero = numpy_helper.to_array(tensors[node.input[2]]) if len(node.input) > 2 else np.zeros(1, np.int32)
        zero = zero.reshape(each.shape) if zero.size == each.size else zero
        reals = ((codes.astype(np.int32) - zero.astype(np.int32)) * each).astype(np.float32)
        graph.initializer.remove(tensor)
        if codes.dtype == np.int32:
            graph.initializer.append(numpy_helper.from_array(reals, node.output[0]))
            continue
        graph.initializer.append(numpy_helper.from_array(reals, f"{tensor.name}_real"))
        # PyTorch clips weights to the codes that it trains with.
        wide = f"{tensor.name}_wide" if codes.dtype == np.int8 else tensor.name
        nodes.append(helper.make_node("QuantizeLinear", [f"{tensor.name}_real", *node.input[1:]], [wide],
                                      f"{node.name}_codes", axis=axis))
        if wide != tensor.name:
            nodes.append(helper.make_node("Clip", [wide, "least", "most"], [tensor.name], f"{node.name}_clip"))
        nodes.append(node)
    graph.initializer.extend(numpy_helper.from_array(np.int8(x), n) for x, n in ((-127, "least"), (127, "most")))
    del graph.node[:]
    graph.node.extend(nodes)
    path = folder / f"fake_{len(left)}.onnx"
    onnx.save(file, path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def data(folder, samples=SAMPLES):
    images, labels = support.images()
    path = folder / "evaluation.npz"
    np.savez(path, input=images[:samples], labels=labels[:samples])
    return path, images[:samples], labels[:samples]


def quantize(binary, path, folder, recipe, *more):
    artifact, wanted = folder / "artifact.onnx", folder / "recipe.json"
    wanted.write_text(json.dumps(recipe))
    support.run_octet(binary, "quantize", path, "--recipe", wanted, "-o", artifact, "--report", folder, *more)
    onnx.checker.check_model(str(artifact), full_check=True)
    return artifact, json.loads((folder / "report.json").read_text())


def scores(binary, path, images, folder):
    return next(iter(quantized.octet_run(binary, path, images, folder, "input", BATCH).values()))


def parameters(path):
    """Scale and zero point of every value that goes through codes, by its name, and every constant of codes."""
    graph = onnx.load(path).graph
    tensors = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    values, codes = {}, {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in tensors:
            values[node.input[0]] = (float(tensors[node.input[1]]), tensors[node.input[2]].dtype.name, int(tensors[node.input[2]]))
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            codes[node.output[0]] = (tensors[node.input[0]], tensors[node.input[1]])
    return values, codes


def on_integers(binary, path):
    return json.loads(support.run_octet(binary, "inspect", "--json", path))["integer"]


def accuracy(scores, labels):
    return float(np.mean(scores.argmax(1) == labels))


def kept_as_trained(binary, model, path, folder, evaluation, images, labels):
    """The artifact gives what the model gives, to the bit; both accuracies are the true ones."""
    artifact, report = quantize(binary, path, folder, {}, "--evaluation", evaluation)
    theirs, mine = scores(binary, path, images, folder), scores(binary, artifact, images, folder)
    assert np.array_equal(theirs, mine), f"{path.stem}: {np.abs(theirs - mine).max()}"
    assert on_integers(binary, artifact) == on_integers(binary, path), path.stem
    found = report["evaluation"]
    float_scores = scores(binary, support.model_path(model), images, folder)
    assert found["metric"] == "top1" and abs(found["int8"]["value"] - accuracy(mine, labels)) < 1e-9, found
    off = found["float"]["value"] - accuracy(float_scores, labels)
    assert abs(off) <= REFERENCE_MAX, f"{path.stem}: float {found['float']}, the model it was made of {off:+.4f}"
    notes = " ".join(report["notes"])
    assert "the model comes quantized" in notes and "float stands for the model without its quantization" in notes, notes
    assert "comes quantized" in (folder / "report.html").read_text()
    session, _ = quantized.onnx_runtime(artifact)
    other = quantized.run_all(session, "input", images, BATCH)[session.get_outputs()[0].name]
    agree = float(np.mean(other.argmax(1) == mine.argmax(1)))
    assert agree >= 0.995, f"{path.stem}: ONNX Runtime agrees on {agree:.2%}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["calibration"]["samples"] == 0 and manifest["recipe"]["complete"] is False, manifest
    seen = any(layer["noise"] for layer in report["layers"]) or "dynamic" in path.stem
    assert report["layers"] and seen, report["layers"]
    return artifact, (f"{path.stem}: equal bits on {len(images)}, float {found['float']['value']:.4f} ({off:+.4f}), "
                      f"INT8 {found['int8']['value']:.4f}, SQNR {found['sqnr_db']:.1f} dB, ONNX Runtime {agree:.2%}")


def check_what_was_trained_is_kept(binary):
    says = []
    for model in LEFT:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            evaluation, images, labels = data(folder)
            for path in [made(model, folder), made(model, folder, activations="s8"), made(model, folder, "qoperator"),
                         made(model, folder, left=LEFT[model]), fake(model, folder),
                         quantized.dynamic(folder / "prepared.onnx", folder, "u8")]:
                artifact, say = kept_as_trained(binary, model, path, folder, evaluation, images, labels)
                says.append(f"{model} {say}")
                if "qdq" not in path.stem and "fake" not in path.stem:
                    continue
                (values, codes), (kept, kept_codes) = parameters(path), parameters(artifact)
                assert kept == values and values, f"{path.stem}: {values.items() ^ kept.items()}"
                for name, (q_codes, q_scales) in codes.items():
                    assert np.array_equal(kept_codes[name][0], q_codes) and np.array_equal(kept_codes[name][1], q_scales), name
                if "fake" in path.stem:
                    # The weights are those codes that the other tool stored, and no reals of them are left.
                    _, stored = parameters(made(model, folder))
                    for name, (q_codes, _) in stored.items():
                        if q_codes.dtype == np.int8:
                            assert np.array_equal(kept_codes[name][0], q_codes), name
                    assert artifact.stat().st_size < 0.5 * path.stat().st_size, artifact.stat().st_size
    return "\n  ".join(says)


def check_the_rest_is_quantized_where_asked(binary):
    says = []
    for model, left in LEFT.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            evaluation, images, labels = data(folder)
            calibration = ["--calibration", support.calibration_path(model), "--evaluation", evaluation]
            for path, target in [(made(model, folder, left=left), "octet"), (made(model, folder, left=left), "onnxruntime"),
                                 (made(model, folder, activations="s8", left=left), "octet"),
                                 (made(model, folder, "qoperator", left=left), "octet"), (fake(model, folder, left), "octet")]:
                what = f"{model} {path.stem} for {target}"
                recipe = {"complete": True, "target": target}
                artifact, report = quantize(binary, path, folder, recipe, *calibration)
                before, after = on_integers(binary, path), on_integers(binary, artifact)
                names = {products(folder / "prepared.onnx")[i] for i in left}
                assert set(after) > set(before) and names <= set(after) and not names & set(before), f"{what}: {before} {after}"
                if "qoperator" not in path.stem:
                    (values, codes), (kept, kept_codes) = parameters(path), parameters(artifact)
                    assert values.items() <= kept.items(), f"{what}: {dict(values.items() - kept.items())}"
                    for name, (q_codes, q_scales) in codes.items():
                        assert np.array_equal(kept_codes[name][0], q_codes) and np.array_equal(kept_codes[name][1], q_scales), name
                mine = scores(binary, artifact, images, folder)
                base = accuracy(scores(binary, path, images, folder), labels)
                lost = base - report["evaluation"]["int8"]["value"]
                assert abs(report["evaluation"]["int8"]["value"] - accuracy(mine, labels)) < 1e-9
                session, level = quantized.onnx_runtime(artifact)
                other = quantized.run_all(session, "input", images, BATCH)[session.get_outputs()[0].name]
                agree = float(np.mean(other.argmax(1) == mine.argmax(1)))
                left_float = quantized.float_products(artifact, folder)
                says.append(f"{what}: integer nodes {len(before)} to {len(after)}, accuracy {base:.4f} {-lost:+.4f}, ONNX Runtime "
                            f"agrees on {agree:.2%} with {left_float} products in float ({level.name})")
                assert lost <= COMPLETED_MAX and agree >= 0.99, says[-1]
                assert target != "onnxruntime" or left_float == 0, says[-1]
                assert any("were quantized here by calibration" in note for note in report["notes"]), report["notes"]
    return "\n  ".join(says)


def check_a_job_of_the_server_takes_them(server):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        path = made("fm_lenet", folder, left=LEFT["fm_lenet"])
        for address, file in [("/v1/models/partial", path), ("/v1/datasets/fm_lenet-calib", support.calibration_path("fm_lenet")),
                              ("/v1/datasets/fm-eval", data(folder)[0])]:
            answer = server.put(address, file)
            assert answer.status in (200, 201), answer.text()
        spec = {"model": "partial", "calibration": "fm_lenet-calib", "evaluation": "fm-eval", "keep": True}
        ended, linted = {}, {}
        for complete in (False, True):
            planned = server.post("/v1/jobs", {"kind": "quantize", "dry_run": True, "recipe": {"complete": complete}} | spec)
            assert planned.status == 200, planned.text()
            planned = planned.json()
            gate = {"gate": {"max_drop": 0.02}}
            job = server.wait(server.submit(recipe={"complete": complete} | gate, endpoint="partial", **spec))
            assert job["state"] == "succeeded", json.dumps(job, indent=1)
            ended[complete] = planned["coverage"]["integer"], job["result"]["accuracy"]["int8"]
            answer = server.post("/v1/lint?target=octet", {"artifact": job["result"]["artifact"]["id"]})
            assert answer.status == 200, answer.text()
            linted[complete] = sum(answer.json()["reports"][0]["fused"].values())
            got = server.infer("partial", "input", support.images()[0][:4])
            assert got.shape == (4, 10), got.shape
            if complete:
                again = server.wait(server.submit(recipe={"complete": True, "ranges": "mse"}, model="partial",
                                                  calibration_of=job["id"], evaluation="fm-eval"))
                assert again["state"] == "succeeded", json.dumps(again, indent=1)
            else:
                nothing = server.wait(server.submit(recipe={"complete": True}, model="partial", calibration_of=job["id"],
                                                    evaluation="fm-eval"))
                assert nothing["state"] == "failed" and "calibrate again" in json.dumps(nothing["error"]), nothing
        # The gate is judged on what was trained, too.
        strict = server.wait(server.submit(recipe={"gate": {"min_sqnr_db": 90}}, **spec))
        assert strict["state"] == "gate_failed" and "dB" in json.dumps(strict["error"]), json.dumps(strict, indent=1)
        assert ended[True][0] > ended[False][0] and linted[True] > linted[False], (ended, linted)
        assert abs(ended[True][1] - ended[False][1]) <= COMPLETED_MAX, ended
        return f"nodes on integers, accuracy: {ended}; linted {linted}"


def check_what_cannot_be_is_refused_by_name(binary):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        path, wanted = made("fm_lenet", folder), folder / "recipe.json"
        first = products(path)[0]
        for recipe, says in [
            ({"scheme": "dynamic"}, "`scheme`: the model comes quantized"),
            ({"scheme": "float16"}, "`scheme`: the model comes quantized"),
            ({"target": "tensorrt"}, "`target`: tensorrt wants codes of int8 with zero at code 0; the model comes with uint8"),
            ({"target": "tflite_rules", "complete": True}, "`target`: tflite_rules: a model that comes quantized"),
            ({"keep_float": [first]}, f"`keep_float`: `{first}`: node `{first}` comes quantized"),
            ({"sixteen_bit": ["*"]}, "`sixteen_bit`: the model comes quantized"),
            ({"activations": "s8", "complete": True}, "`activations`: the model comes with codes of u8"),
        ]:
            wanted.write_text(json.dumps(recipe))
            for more in (["--dry-run"], ["-o", folder / "a.onnx", "--calibration", support.calibration_path("fm_lenet")]):
                command = [binary, "quantize", path, "--recipe", wanted, *more]
                done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
                assert done.returncode != 0 and says in done.stderr, f"{recipe} {more}: {done.returncode} {done.stderr}"
        # What is to be chosen by calibration needs data of its own.
        wanted.write_text(json.dumps({"complete": True}))
        evaluation, _, _ = data(folder, 100)
        command = [binary, "quantize", path, "--recipe", wanted, "-o", folder / "a.onnx", "--evaluation", evaluation]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        assert done.returncode != 0 and "calibration data: there are none" in done.stderr, done.stderr


if __name__ == "__main__":
    support.main(sys.modules[__name__])
