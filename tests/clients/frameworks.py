"""Models as PyTorch's two exporters and tf2onnx write them: our float answers are ONNX Runtime's.

`tests/exporters` makes the files, each framework in an environment of its own (.venv-torch, .venv-tensorflow beside
.venv; TORCH_PYTHON and TENSORFLOW_PYTHON name other interpreters).
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime as ort

import support

# Largest |ours - theirs| as a part of the largest |theirs|. Recurrent layers feed their own rounding back; float16
# has ten bits.
RELATIVE_MAX = 1e-4
RELATIVE_MAX_OF = {"lstm": 1e-3, "gru": 1e-3, "crnn": 1e-3, "recurrent": 1e-3, "half": 5e-3}
# Files that an exporter must have written, lest the check passes over nothing.
MODELS_MIN = {"torch": 60, "tensorflow": 7}


def relative_error(ours, theirs):
    """The largest difference as a part of the largest value; whole numbers and truth values must be equal."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, (ours.shape, ours.dtype, theirs.shape, theirs.dtype)
    if ours.dtype.kind != "f":
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.max(np.abs(ours - theirs), initial=0.0) / max(np.max(np.abs(theirs), initial=0.0), 1e-9))


def onnx_runtime(path, inputs):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {i.name: inputs[i.name] for i in session.get_inputs()})))


def compare(binary, path, inputs, folder):
    """The largest relative error of any output over these inputs."""
    given, made = folder / "given.npz", folder / "made.npz"
    np.savez(given, **inputs)
    support.run_octet(binary, "run", path, "--inputs", given, "--output", made)
    theirs = onnx_runtime(path, inputs)
    with np.load(made) as ours:
        return max(relative_error(ours[name], value) for name, value in theirs.items())


def varied(inputs, axes_of):
    """The same inputs with another batch size, where the first axis may vary."""
    return {n: np.concatenate([a, a[:1]]) if axes_of[n] else a for n, a in inputs.items()}


def all_in(binary, folder):
    wrong, worst, models, scratch = [], 0.0, 0, pathlib.Path(folder)
    for path in sorted(pathlib.Path(folder).glob("*.onnx")):
        models += 1
        family = path.name.split(".")[0]
        with np.load(path.with_suffix(".npz")) as z:
            inputs = {n: z[n] for n in z.files if n.startswith("in_")}
        try:
            session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            axes = {i.name: isinstance(i.shape[0], str) or i.shape[0] is None for i in session.get_inputs()}
            error = compare(binary, path, inputs, scratch)
            if all(axes.values()):
                error = max(error, compare(binary, path, varied(inputs, axes), scratch))
            limit = RELATIVE_MAX_OF.get(family, RELATIVE_MAX)
            worst = max(worst, error / limit)
            if not error <= limit:
                wrong.append(f"{path.name}: relative error {error:.2g}, allowed {limit:.0e}")
        except Exception as e:  # every model is tried; what is wrong is told at the end
            wrong.append(f"{path.name}: {str(e).strip().splitlines()[-1][:300]}")
    assert not wrong, f"{len(wrong)} of {models} differ:\n" + "\n".join(wrong)
    return models, worst


def framework(binary, name, variable):
    if os.environ.get("SKIP_EXPORTERS"):
        return None
    python = os.environ.get(variable, support.ROOT / f".venv-{name}/bin/python")
    assert pathlib.Path(python).exists(), f"{python} is missing: tests/run makes it"
    with tempfile.TemporaryDirectory(prefix="octet-test-") as folder:
        script = support.ROOT / f"tests/exporters/export_{name}.py"
        done = subprocess.run([str(python), str(script), folder], capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"{script.name}: exit {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
        models, worst = all_in(binary, folder)
    assert models >= MODELS_MIN[name], f"{models} models were exported"
    return f"{models} files, worst error {worst:.2f} of what is allowed"


def check_torch(binary):
    return framework(binary, "torch", "TORCH_PYTHON") or "SKIPPED: no room for PyTorch"


def check_tensorflow(binary):
    return framework(binary, "tensorflow", "TENSORFLOW_PYTHON") or "SKIPPED: no room for TensorFlow"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
