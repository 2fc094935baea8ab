"""What a measurement needs: virtual environments of the peers, wrk, model files with data, bodies of requests."""

import json
import math
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Its run.py sets up Python and builds Octet.
sys.path.insert(0, str(ROOT / "benches/peers"))
import run as peers  # noqa: E402

TARGET = ROOT / "target/serving"


def environment(name):
    """The `bin` of a virtual environment with the versions of requirements/NAME.txt."""
    TARGET.mkdir(parents=True, exist_ok=True)
    venv = TARGET / f"venv-{name}"
    peers.set_up_python(HERE / "requirements" / f"{name}.txt", venv)
    return venv / "bin"


def unpack(folder, *packages):
    """Packages of Debian, unpacked into a folder instead of installed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", "--quiet=2", *packages]
    if subprocess.run(command, cwd=folder, stderr=subprocess.DEVNULL, check=False).returncode:
        if os.geteuid() == 0:
            subprocess.run(["apt-get", "update", "--quiet=2"], check=False)
        subprocess.run(command, cwd=folder, check=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
        package.unlink()


def wrk():
    """The load tool and the variables that it runs with."""
    installed = shutil.which("wrk")
    if installed:
        return installed, {}
    folder = TARGET / "wrk"
    program = folder / "usr/bin/wrk"
    if not (program.exists() and list(folder.glob("usr/lib/*/libluajit-5.1.so.2"))):
        peers.say("Fetching wrk")
        try:
            unpack(folder, "wrk", "libluajit-5.1-2", "libluajit-5.1-common")
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"wrk is not installed and apt-get cannot fetch it ({error}): install wrk")
    library = next(folder.glob("usr/lib/*/libluajit-5.1.so.2")).parent
    return str(program), {"LD_LIBRARY_PATH": str(library)}


class Model:
    """A float model, what it is calibrated on (None: served in float), and the shape of one request."""

    def __init__(self, name, path, calibration, tensor, shape):
        self.name, self.path, self.calibration = name, path, calibration
        self.tensor, self.shape = tensor, shape


def models(names):
    """The models with these names; those that are not in the repository are made in target/serving/models."""
    folder = TARGET / "models"
    folder.mkdir(parents=True, exist_ok=True)
    made = [n for n in names if n not in BUNDLED and peers.older(folder / f"{n}.onnx", HERE / "free_batch.py")]
    if made:
        peers.say(f"Making {', '.join(made)}")
        subprocess.run([environment("tools") / "python", HERE / "free_batch.py", folder, *made], check=True)
    found = {}
    for name in names:
        if name in BUNDLED:
            source = BUNDLED[name]
            model = Model(name, source / "model.onnx", source / "calib.npz", "input", [1, 1, 28, 28])
        else:
            tensor, shape = MADE[name]
            calibration = folder / f"{name}.calib.npz"
            model = Model(name, folder / f"{name}.onnx", calibration if calibration.exists() else None, tensor, shape)
        found[name] = model
    return found


def openloop():
    """The program that asks without waiting for answers."""
    return peers.compiled(HERE / "openloop.c") or sys.exit("overload needs a C compiler")


BUNDLED = {"mlp": ROOT / "tests/data/fm_mlp", "resnet8": ROOT / "examples/demo"}
MADE = {
    "empty": ("x", [1, 4]),
    "image": ("x", [1, 3, 224, 224]),
    "heavy": ("x", [1, 1, 28, 28]),
    "mobilenetv2": ("image", [1, 3, 224, 224]),
    "resnet18": ("image", [1, 3, 224, 224]),
}


# The one region of shared memory that a request names.
REGION = "input"


def bodies(model, folder):
    """Files with the same request as JSON, as binary tensors and with its tensor in shared memory: {encoding: (path,
    headers)}. What belongs into shared memory is the file `MODEL.tensor` beside them.

    Numbers have six digits, as a client that rounds writes them; the binary tensor has the same values.
    """
    draw = random.Random(3)
    values = [round(draw.gauss(0, 1), 6) for _ in range(math.prod(model.shape))]
    tensor = {"name": model.tensor, "shape": model.shape, "datatype": "FP32"}
    text = json.dumps({"inputs": [tensor | {"data": values}]}).encode()
    raw = struct.pack(f"<{len(values)}f", *values)
    tensor["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    tensor["parameters"] = {"shared_memory_region": REGION, "shared_memory_byte_size": len(raw)}
    place = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{model.name}.tensor").write_bytes(raw)
    found = {}
    for encoding, body, headers in [
        ("json", text, {"Content-Type": "application/json"}),
        ("shared", place, {"Content-Type": "application/json"}),
        ("binary", head + raw, {"Content-Type": "application/octet-stream",
                                "Inference-Header-Content-Length": str(len(head))}),
    ]:
        path = folder / f"{model.name}.{encoding}"
        path.write_bytes(body)
        found[encoding] = (path, headers)
    return found
