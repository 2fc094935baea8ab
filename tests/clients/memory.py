"""The peak memory of a job does not grow with the number of calibration samples."""

import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

import support

FEW, MANY = 64, 9900
MIB = 1 << 20
# Half of what the samples alone take, and a hundredth of what the network makes of them. Two runs of one job differ by
# up to 9 MiB: how far it reads ahead, and what the allocator keeps for each thread.
GROWTH_BYTES_MAX = 14 * MIB


def datasets(folder):
    samples = support.images()[0]
    paths = {}
    for count in (FEW, MANY):
        paths[count] = folder / f"calib{count}.npz"
        np.savez(paths[count], input=samples[:count])
    np.savez(folder / "eval.npz", input=samples[-FEW:])
    return paths


def compare(peak):
    shown = ", ".join(f"{bytes / MIB:.1f} MiB with {count} samples" for count, bytes in peak.items())
    assert peak[MANY] - peak[FEW] <= GROWTH_BYTES_MAX, shown
    return shown


def check_octet_quantize(binary):
    peak = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for count, path in datasets(folder).items():
            command = [binary, "quantize", support.model_path("fm_resnet8"), "--calibration", path,
                       "--evaluation", folder / "eval.npz", "-o", folder / "out.onnx"]
            process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            # Not ru_maxrss: a child begins with that of its parent, and Python with NumPy is the larger.
            while process.poll() is None:
                peak[count] = support.peak_bytes(process.pid) or peak[count]
                time.sleep(0.002)
            assert process.returncode == 0, f"exit {process.returncode}: {command}"
    return compare(peak)


def check_a_job_of_the_server(binary):
    peak = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for count, path in datasets(folder).items():
            with support.Server(binary) as server:
                assert server.put("/v1/models/resnet8", support.model_path("fm_resnet8")).status == 201
                assert server.put("/v1/datasets/eval", folder / "eval.npz").status == 201
                assert server.put("/v1/datasets/calib", path).status == 201
                job = server.wait(server.submit(model="resnet8", calibration="calib", evaluation="eval"))
                assert job["state"] == "succeeded", job
                peak[count] = server.peak_bytes()
    return compare(peak)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
