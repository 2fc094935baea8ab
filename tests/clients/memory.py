"""The peak memory of a job does not grow with the number of calibration samples."""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import support

FEW, MANY = 64, 4096
MIB = 1 << 20
# The samples of the larger set alone are 4,096 x 3,136 bytes = 12.25 MiB, and what the network makes of them is some
# hundred times that. Two runs of the same job differ by one or two MiB (allocator, threads).
GROWTH_BYTES_MAX = 6 * MIB


def datasets(folder):
    samples = support.images()[0]
    paths = {}
    for count in (FEW, MANY):
        paths[count] = folder / f"calib{count}.npz"
        np.savez(paths[count], input=samples[:count])
    np.savez(folder / "eval.npz", input=samples[-FEW:])
    return paths


def compare(peak):
    growth = peak[MANY] - peak[FEW]
    assert growth <= GROWTH_BYTES_MAX, f"{peak[FEW] / MIB:.1f} -> {peak[MANY] / MIB:.1f} MiB"
    return f"{peak[FEW] / MIB:.1f} MiB with {FEW} samples, {peak[MANY] / MIB:.1f} MiB with {MANY}"


def check_octet_quantize(binary):
    peak = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for count, path in datasets(folder).items():
            command = [binary, "quantize", support.model_path("fm_resnet8"), "--calibration", path,
                       "--evaluation", folder / "eval.npz", "-o", folder / "out.onnx"]
            process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0, f"exit {process.returncode}: {command}"
            peak[count] = usage.ru_maxrss * 1024
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
