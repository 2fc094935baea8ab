"""A trained model and its data, made ready for both quantizers and for the judge.

    python prepare.py ZOO NAME FOLDER SAMPLES

ZOO/NAME holds model.onnx, calib.npz, eval.npz and meta.json; an eval.npz that several models share lies in
ZOO/fashion_mnist. Writes into FOLDER

    prepared.onnx   the model as ONNX Runtime's quantizer wants it: opset 13 or later, quant_pre_process
    calib.npz       an array for each input, in the types that the model takes
    eval.npz        the same for at most SAMPLES evaluation samples (0: all), and `labels` where there are any
    float.npy       the float model's first output for each of them, by ONNX Runtime
    facts.json      {"score": "top1" | "frames" | "mask", "threshold", "samples", "whole_runs", "opset",
                    "preprocessed": "all" | "without shapes"}
"""

import json
import pathlib
import sys

import numpy as np
import onnx
from onnxruntime.quantization.shape_inference import quant_pre_process

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import judge
import zoo


def evaluation_path(root, name):
    """The model's own evaluation data, or those of all models of Fashion-MNIST."""
    own = root / name / "eval.npz"
    return own if own.exists() else root / "fashion_mnist/eval.npz"


def prepare_model(source, folder):
    """Writes prepared.onnx; gives the opset and how much of the preparation worked."""
    model = onnx.load(source)
    # Weights with a scale for each channel need opset 13, and ONNX Runtime's quantizer does not see to that.
    if model.opset_import[0].version < 13:
        model = onnx.version_converter.convert_version(model, 13)
    # As a file: it changes a model in memory even where it fails.
    converted, out = str(folder / "converted.onnx"), str(folder / "prepared.onnx")
    onnx.save(model, converted)
    opset = model.opset_import[0].version
    try:
        quant_pre_process(converted, out)
        return opset, "all"
    except Exception as error:  # It raises plain Exception where symbolic shape inference is incomplete.
        print(f"symbolic shape inference: {error}", file=sys.stderr)
        quant_pre_process(converted, out, skip_symbolic_shape=True)
        return opset, "without shapes"


def main():
    root, name, folder, most = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]), int(sys.argv[4])
    source = root / name
    opset, preprocessed = prepare_model(source / "model.onnx", folder)
    calibration = zoo.samples(source / "calib.npz")
    evaluation = zoo.samples(evaluation_path(root, name))
    if most:
        # The first ones: data of these sets are in no order.
        evaluation = {k: v[:most] for k, v in evaluation.items()}
    np.savez(folder / "calib.npz", **{k: v for k, v in calibration.items() if k != "labels"})
    np.savez(folder / "eval.npz", **evaluation)

    session = judge.exact_session(source / "model.onnx")
    ports = {i.name: len(i.shape) for i in session.get_inputs()}
    # An array with a dimension more than the input: every sample is a whole run.
    whole_runs = all(evaluation[n].ndim == rank + 1 for n, rank in ports.items())
    meta = json.loads((source / "meta.json").read_text())
    score = meta.get("score", "top1")
    if score not in judge.SCORES:
        sys.exit(f"{source / 'meta.json'}: `score` is {score!r}, known are {', '.join(judge.SCORES)}")
    inputs = {n: evaluation[n] for n in ports}
    facts = {"score": score, "threshold": meta.get("thr"), "samples": len(next(iter(inputs.values()))),
             "whole_runs": whole_runs, "opset": opset, "preprocessed": preprocessed}
    np.save(folder / "float.npy", judge.run_onnx_runtime(session, inputs, whole_runs))
    # Last: whoever finds it finds the others whole.
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
