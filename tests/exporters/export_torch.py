"""Writes ONNX files from PyTorch by both exporters: `export_torch.py FOLDER [name ...]`.

For each file NAME.onnx also NAME.npz with inputs and the outputs that PyTorch gives (`in_0`, `out_0`, ...).
"""

import pathlib
import sys
import traceback
import warnings

import numpy as np
import torch

import torch_models

# Opsets of the exporter by TorchScript, each model another one; some operators ask for a later one.
OPSETS = [11, 12, 13, 14, 15, 16, 17]
LEAST = {"spatial_transformer": 16, "llama": 14, "mobilenet_v3": 14, "gpt": 14}
DYNAMO_OPSETS = [18, 19, 20]


def export(make, opset, dynamo, path):
    torch.manual_seed(7)
    module, inputs, axes = make()
    module = torch_models.randomize(module)
    names = [f"in_{i}" for i in range(len(inputs))]
    with torch.no_grad():
        outputs = module(*inputs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    more = {"dynamo": dynamo, "opset_version": opset, "input_names": names,
            "output_names": [f"out_{i}" for i in range(len(outputs))]}
    if not dynamo:
        dynamic = {n: {a: s for a, s in axes.items() if a < i.dim()} for n, i in zip(names, inputs)}
        more["dynamic_axes"] = dynamic
    else:
        more["external_data"] = False
        more["verbose"] = False
    torch.onnx.export(module, inputs, str(path), **more)
    arrays = {n: i.numpy() for n, i in zip(names, inputs)} | {f"out_{i}": o.detach().numpy() for i, o in enumerate(outputs)}
    np.savez(path.with_suffix(".npz"), **arrays)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    failed = 0
    for index, make in enumerate(torch_models.MODELS):
        name = make.__name__
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        script = max(OPSETS[index % len(OPSETS)], LEAST.get(name, 0))
        for dynamo, opset in ((False, script), (True, DYNAMO_OPSETS[index % len(DYNAMO_OPSETS)])):
            kind = "dynamo" if dynamo else "script"
            try:
                export(make, opset, dynamo, folder / f"{name}.{kind}.{opset}.onnx")
            except Exception as e:  # the exporter's own refusals are not ours to judge
                failed += 1
                print(f"{name}.{kind}.{opset}: not exported: {str(e).splitlines()[0][:200] if str(e) else e!r}")
                if "-v" in sys.argv:
                    traceback.print_exc()
    print(f"{failed} not exported", flush=True)


if __name__ == "__main__":
    main()
