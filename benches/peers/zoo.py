"""Trained models with their own data, written as models.py writes its made-up ones.

    python zoo.py FOLDER ZOO NAME...

ZOO/NAME holds model.onnx, calib.npz and eval.npz, which have an array for each input, samples along the first
dimension; or, for pictures in bytes, `INPUT_u8` with `INPUT_mean` and `INPUT_std`: (x / 255 - mean) / std is what
the model takes. The files in FOLDER are called zoo_NAME.
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import helper

import models


def samples(path):
    """The arrays of a dataset, in the types that the model takes."""
    with np.load(path) as z:
        arrays = {k: z[k] for k in z.files}
    for key in [k for k in arrays if k.endswith("_u8")]:
        name = key.removesuffix("_u8")
        mean, std = (arrays.pop(f"{name}_{k}").reshape(-1, 1, 1) for k in ("mean", "std"))
        arrays[name] = ((arrays.pop(key).astype(np.float32) / 255 - mean) / std).astype(np.float32)
    return arrays


def fixed(folder):
    """A model at batch 1, its dimensions fixed to those of its data: what `models.write` takes after the name."""
    model = onnx.load(folder / "model.onnx")
    # Weights with a scale for each channel need opset 13, and ONNX Runtime's quantizer does not see to that.
    if model.opset_import[0].version < 13:
        model = onnx.version_converter.convert_version(model, 13)
    data, unseen = samples(folder / "calib.npz"), samples(folder / "eval.npz")
    inputs = {i.name: i for i in model.graph.input if i.name in data}
    shapes = {name: [1, *data[name].shape[1:]] for name in inputs}
    for name, value in inputs.items():
        value.CopyFrom(helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, shapes[name]))
    for value in model.graph.output:  # Their lengths follow.
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    calibration = {name: data[name][: models.CALIBRATION_SAMPLES] for name in inputs}
    return model, shapes, None, calibration, {name: unseen[name][:1] for name in inputs}


def main():
    folder, zoo = map(pathlib.Path, sys.argv[1:3])
    for name in sys.argv[3:]:
        models.write(folder, f"zoo_{name}", *fixed(zoo / name))


if __name__ == "__main__":
    main()
