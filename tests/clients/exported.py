"""What the program writes is ONNX: ONNX's own checker takes it, with the shapes, as it is and simplified."""

import pathlib
import subprocess
import sys
import tempfile

import onnx
import onnx.backend.test
import onnx.checker

import support

# Cases whose operators stand for what is special: bodies, another domain's functions, types of late opsets.
CASES = ("test_if", "test_loop11", "test_scan9_sum", "test_maxpool_2d_ceil_output_size_reduce_by_one",
         "test_add_uint8", "test_reshape_allowzero_reordered", "test_reduce_max_bool_inputs", "test_layer_normalization_2d_axis0")


def models():
    yield from (support.model_path(model) for model in support.MODELS)
    data = pathlib.Path(onnx.backend.test.__file__).parent / "data/node"
    yield from (data / case / "model.onnx" for case in CASES)


def check_converted_models(binary):
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.onnx"
        for path in models():
            for flags in ([], ["--simplify"]):
                subprocess.run([binary, "convert", *flags, str(path), str(out)], check=True)
                onnx.checker.check_model(onnx.load(out), full_check=True)
                count += 1
    return f"{count} files"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
