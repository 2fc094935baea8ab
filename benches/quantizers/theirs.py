"""An INT8 model by ONNX Runtime's quantizer. Prints {"samples": N, "stride": N or null}.

    python theirs.py PREPARED.onnx CALIB.npz OUT.onnx METHOD [--operators A,B] [--per-tensor] [--whole-runs]
                     [--samples N] [--stride N] [--preprocess]

METHOD: minmax, percentile (99.999), entropy: QuantizeLinear and DequantizeLinear, activations of 8 bits unsigned,
weights of 8 bits signed with a scale for each channel and their full range. dynamic: the same weights, activations
quantized while running. Otherwise ONNX Runtime's defaults.

The histograms of percentile and entropy keep every tensor of the graph for every sample. `--stride N` hands them N
samples at a time (the option is called after min-max, the code serves all).
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

METHODS = {"minmax": quantization.CalibrationMethod.MinMax, "percentile": quantization.CalibrationMethod.Percentile,
           "entropy": quantization.CalibrationMethod.Entropy}
PERCENTILE = 99.999


class Reader(quantization.CalibrationDataReader):
    """One run's inputs after the other; pictures in bytes become reals when it is their turn."""

    def __init__(self, path, whole_runs, most):
        with np.load(path) as z:
            arrays = {name: z[name] for name in z.files}
        self.scaled = {k.removesuffix("_u8"): (arrays.pop(f"{k.removesuffix('_u8')}_mean").reshape(-1, 1, 1),
                                               arrays.pop(f"{k.removesuffix('_u8')}_std").reshape(-1, 1, 1))
                       for k in list(arrays) if k.endswith("_u8")}
        self.arrays = {k.removesuffix("_u8"): v for k, v in arrays.items() if k != "labels"}
        self.whole_runs = whole_runs
        self.count = min(len(v) for v in self.arrays.values())
        self.count = min(self.count, most) if most else self.count
        self.set_range(0, self.count)

    def __len__(self):
        return self.count

    def set_range(self, start_index, end_index):
        self.left = iter(range(start_index, end_index))

    def get_next(self):
        n = next(self.left, None)
        return None if n is None else {name: self.one(name, n) for name in self.arrays}

    def one(self, name, n):
        array = self.arrays[name][n] if self.whole_runs else self.arrays[name][n : n + 1]
        if name in self.scaled:
            mean, deviation = self.scaled[name]
            array = ((array.astype(np.float32) / 255 - mean) / deviation).astype(np.float32)
        return array


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("out")
    parser.add_argument("method", choices=[*METHODS, "dynamic"])
    parser.add_argument("--operators")
    parser.add_argument("--per-tensor", action="store_true")
    parser.add_argument("--whole-runs", action="store_true")
    parser.add_argument("--preprocess", action="store_true")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--stride", type=int)
    return parser.parse_args()


def quantize(arguments, model):
    operators = arguments.operators.split(",") if arguments.operators else None
    common = {"op_types_to_quantize": operators, "weight_type": quantization.QuantType.QInt8,
              "per_channel": not arguments.per_tensor, "reduce_range": False}
    if arguments.method == "dynamic":
        quantization.quantize_dynamic(model, arguments.out, **common)
        return 0
    reader = Reader(arguments.calibration, arguments.whole_runs, arguments.samples)
    options = {"CalibPercentile": PERCENTILE} if arguments.method == "percentile" else {}
    if arguments.stride:
        options["CalibStridedMinMax"] = arguments.stride
    quantization.quantize_static(
        model, arguments.out, reader, quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8, calibrate_method=METHODS[arguments.method],
        extra_options=options, **common)
    return len(reader)


def main():
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.preprocess:
            model = str(pathlib.Path(folder) / "prepared.onnx")
            quant_pre_process(arguments.model, model)
        count = quantize(arguments, model)
    print(json.dumps({"samples": count, "stride": arguments.stride}))


if __name__ == "__main__":
    main()
