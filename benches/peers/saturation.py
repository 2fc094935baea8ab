"""Do the peers' integer kernels saturate on this processor? Prints {"ort": bool, "ort-exact": bool, "openvino": bool}.

Without VNNI the usual instruction, vpmaddubsw, adds two products of 8 bits in 16: 2 * 255 * 127 does not fit. A
convolution of 64 channels of the largest codes tells: 64 * 255 * 127 = 2,072,640 if exact, about half otherwise.
"""

import json
import pathlib
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import worker

CHANNELS, SIDE = 64, 8
EXACT = CHANNELS * 255 * 127
# Step of the output's codes; the answer is right to half a step.
STEP = 20000


def model():
    """A quantized 1x1 convolution, every scale 1 but the output's."""
    shape = [1, CHANNELS, SIDE, SIDE]
    constants = {
        "one": np.float32(1), "step": np.float32(STEP), "zero": np.uint8(0),
        "codes": np.full((CHANNELS, CHANNELS, 1, 1), 127, np.int8),
        "scales": np.ones(CHANNELS, np.float32), "zeros": np.zeros(CHANNELS, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["xd", "w"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "step", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "step", "zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "saturation", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main():
    inputs = {"x": np.full((1, CHANNELS, SIDE, SIDE), 255, np.float32)}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "model.onnx")
        onnx.save(model(), path)
        for engine in ("ort", "ort-exact", "openvino"):
            run, named = worker.LOADERS[engine]()(path, inputs, 1)
            found[engine] = bool(abs(named(run())["y"] - EXACT).max() > STEP)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
