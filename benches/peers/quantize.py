"""INT8 models for the peers, made by ONNX Runtime's own quantizer.

    python quantize.py FLOAT.onnx CALIBRATION.npz static OUT.onnx
    python quantize.py FLOAT.onnx CALIBRATION.npz dynamic OUT.onnx

static: QuantizeLinear and DequantizeLinear, activations of 8 bits unsigned, weights of 8 bits signed with a scale
for each channel and their full range. dynamic: the same weights, activations quantized while running.
Otherwise ONNX Runtime's defaults, its preparation of the graph included.
"""

import pathlib
import sys
import tempfile

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process


class Batches(quantization.CalibrationDataReader):
    """The samples of an `.npz`, as many at a time as the model takes; the last few wrap around."""

    def __init__(self, path, batch):
        with np.load(path) as z:
            self.arrays = {name: z[name] for name in z.files}
        count = len(next(iter(self.arrays.values())))
        self.starts = iter(range(0, count, batch))
        self.pick = lambda start: np.arange(start, start + batch) % count

    def get_next(self):
        start = next(self.starts, None)
        return None if start is None else {k: v[self.pick(start)] for k, v in self.arrays.items()}


def main():
    model, calibration, kind, out = sys.argv[1:]
    batch = onnx.load(model, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[0].dim_value
    with tempfile.TemporaryDirectory() as folder:
        prepared = pathlib.Path(folder) / "prepared.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
        weights = {"weight_type": quantization.QuantType.QInt8, "per_channel": True, "reduce_range": False}
        if kind == "dynamic":
            quantization.quantize_dynamic(prepared, out, **weights)
        else:
            quantization.quantize_static(
                prepared, out, Batches(calibration, batch), quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8, **weights)


if __name__ == "__main__":
    main()
