"""Float models with a free first dimension, so that a server may batch, and calibration data for those that have layers.

    python free_batch.py FOLDER NAME...     empty, image, heavy, mobilenetv2, resnet18

`empty` gives back four numbers: all of its time is the server's. `image` takes 3x224x224 and averages it: the time is
that of moving and reading the picture. The others are those of benches/peers.
"""

import pathlib
import sys

import numpy
import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import models


def tiny(op, shape_in, shape_out):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape_in])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *shape_out])
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "model", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", models.OPSET)], ir_version=8)


def heavy():
    """Much to compute for few bytes, so that a client on the same cores can ask for more than the server can do."""
    g = models.Graph(1)
    x = g.input("x", (1, 1, 28, 28))
    for _ in range(12):
        x = g.relu(g.conv(x, 128, 3))
    return g.model([g.classes(x, 10)]), models.made_up({"x": (1, 1, 28, 28)}, models.CALIBRATION_SAMPLES, 1)


def freed(name):
    model, calibration = heavy() if name == "heavy" else models.make(f"{name}.b1")[::3]
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model, calibration


def main():
    folder = pathlib.Path(sys.argv[1])
    for name in sys.argv[2:]:
        calibration = None
        if name == "empty":
            model = tiny("Identity", [4], [4])
        elif name == "image":
            model = tiny("GlobalAveragePool", [3, 224, 224], [3, 1, 1])
        else:
            model, calibration = freed(name)
        onnx.checker.check_model(model, full_check=True)
        if calibration:
            numpy.savez(folder / f"{name}.calib.npz", **calibration)
        # Last: whoever finds it finds the data too.
        onnx.save(model, folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
