"""Time and memory of quantizing ResNet-50: a process for each quantizer, method and number of images, one at a time.

Weights are random (benches/peers/models.py) and pictures made up: time does not depend on either. A process counts
from its start to its end, Python's imports and Octet's evaluation on a few pictures included.
"""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time

from accuracy import OUT_OF_MEMORY, STRIDE, last_line, say

HERE = pathlib.Path(__file__).resolve().parent
MODEL, INPUT = "resnet50.b1", "image"
METHODS = ["minmax", "percentile", "entropy"]
RANGES = {"minmax": "minmax", "percentile": {"percentile": 99.999}, "entropy": "entropy"}
# What ONNX Runtime's quantizer does, and no more.
PLAIN = {"rounding": "nearest", "bias_correction": False, "smooth": "off"}
# Octet also compares the two models: on so few pictures that it does not count.
EVALUATION_IMAGES = 4
LIMIT_GIB = 12
TIMEOUT_S = 3600


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """A program with its options."""

    name: str
    method: str
    # ONNX Runtime's: samples at a time; Octet's: whether it does only the same work.
    stride: int | None = None
    recipe: dict | None = None


QUANTIZERS = [
    *(Quantizer(f"ort {m}", m) for m in METHODS),
    *(Quantizer(f"ort {m} {STRIDE} at a time", m, stride=STRIDE) for m in METHODS if m != "minmax"),
    *(Quantizer(f"octet {m}", m, recipe={"ranges": RANGES[m]}) for m in METHODS),
    *(Quantizer(f"octet {m} plain", m, recipe={"ranges": RANGES[m]} | PLAIN) for m in METHODS),
    Quantizer("octet default", "auto", recipe={}),
]


def chosen(asked):
    """Those whose names begin as asked."""
    found = [q for q in QUANTIZERS if asked is None or any(q.name.startswith(a) for a in asked.split(","))]
    if not found:
        sys.exit(f"--only: none begins so, only {', '.join(q.name for q in QUANTIZERS)}")
    return found


def spend(folder, command, limit_gib):
    """What a process cost: {"wall_s", "cpu_s", "peak_mb", and "error" if it failed}."""
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (limit_gib << 30,) * 2)

    with tempfile.TemporaryFile("w+") as said:
        start = time.monotonic()
        # In a folder of ours: ONNX Runtime's tools leave files in theirs.
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=said, cwd=folder,
                                   preexec_fn=limit)
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        # wait4 tells this child's own use; what others used before does not count.
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - start
        watchdog.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        found = {"wall_s": round(wall, 2), "cpu_s": round(used.ru_utime + used.ru_stime, 2),
                 "peak_mb": round(used.ru_maxrss / 1024)}
        said.seek(0)
        text = said.read()
    if process.returncode != 0:
        if any(word in text for word in OUT_OF_MEMORY):
            found["error"] = f"out of memory after {wall:.0f} s"
        elif wall >= TIMEOUT_S:
            found["error"] = f"still running after {TIMEOUT_S} s"
        else:
            found["error"] = last_line(text) if process.returncode > 0 else f"signal {-process.returncode}"
    return found


def command(python, octet, folder, quantizer, calibration):
    model, out = folder / f"{MODEL}.onnx", folder / "out.onnx"
    if quantizer.recipe is None:
        more = ["--stride", quantizer.stride] if quantizer.stride else []
        return [python, HERE / "theirs.py", model, calibration, out, quantizer.method, "--preprocess", *more]
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(quantizer.recipe))
    return [octet, "quantize", model, "--calibration", calibration, "--evaluation", folder / "evaluation.npz",
            "--output", out, "--recipe", recipe]


def data(python, path, count):
    if not path.exists():
        part = path.with_name("part.npz")
        subprocess.run([python, HERE / "images.py", part, str(count), INPUT], check=True)
        part.rename(path)
    return path


def measure(python, octet, folder, counts, limit_gib, only):
    """A row for each quantizer and number of images."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"{MODEL}.json").exists():
        say(f"Making {MODEL}")
        subprocess.run([python, HERE.parent / "peers/models.py", folder, MODEL], check=True)
    data(python, folder / "evaluation.npz", EVALUATION_IMAGES)
    rows = []
    for count in counts:
        calibration = data(python, folder / f"images{count}.npz", count)
        for quantizer in chosen(only):
            if octet is None and quantizer.recipe is not None:
                continue
            row = {"quantizer": quantizer.name, "method": quantizer.method, "images": count, "limit_gib": limit_gib,
                   "load": round(os.getloadavg()[0], 1)}
            row |= spend(folder, command(python, octet, folder, quantizer, calibration), limit_gib)
            told = row.get("error", "")
            say(f"{quantizer.name:28}{count:5} images {row['wall_s']:8.1f} s, {row['cpu_s']:8.1f} s of CPU, "
                f"{row['peak_mb']:6} MB  {told}")
            rows.append(row)
            (folder / "out.onnx").unlink(missing_ok=True)
    return rows
