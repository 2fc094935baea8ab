"""One artifact, one answer: instruction set, threads, batch size and passes change no bit of it."""

import itertools
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

import support

COUNT = 64


def outputs(path):
    with np.load(path) as z:
        return {name: z[name] for name in z.files}


def isas(binary):
    """What this processor has, from the message that refuses what it has not: `this CPU has scalar, avx2`."""
    command = [binary, "run", support.model_path("fm_mlp"), "--inputs", "x.npz", "-o", "y.npz", "--isa", "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.findall(r"[a-z0-9_]+", done.stderr.split("this CPU has", 1)[1])
    assert "scalar" in found and done.returncode == 2, done
    return found


def one_model(binary, model):
    samples = support.images()[0][:COUNT]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        artifact = folder / "int8.onnx"
        support.run_octet(binary, "quantize", support.model_path(model), "--calibration",
                          support.calibration_path(model), "-o", artifact)
        for n in (1, COUNT):
            np.savez(folder / f"in{n}.npz", input=samples[:n])

        def run(inputs, *flags):
            support.run_octet(binary, "run", artifact, "--inputs", inputs, "-o", folder / "y.npz", *flags)
            return outputs(folder / "y.npz")

        want = run(folder / f"in{COUNT}.npz")
        assert all(v.shape[0] == COUNT for v in want.values()), {k: v.shape for k, v in want.items()}

        def same(got, says, rows=slice(None)):
            assert got.keys() == want.keys(), f"{says}: {got.keys()}"
            for name, value in want.items():
                assert value[rows].tobytes() == got[name].tobytes(), (
                    f"{says}: {name} differs by up to {np.abs(value[rows] - got[name]).max()}")

        ways = list(itertools.product(isas(binary), (1, 2), ([], ["--no-passes"])))
        for isa, threads, passes in ways:
            flags = ["--isa", isa, "--threads", threads, *passes]
            same(run(folder / f"in{COUNT}.npz", *flags), f"batch {COUNT} {flags}")
            same(run(folder / "in1.npz", *flags), f"batch 1 {flags}", slice(0, 1))
        for at in range(1, 16):
            np.savez(folder / "one.npz", input=samples[at:at + 1])
            same(run(folder / "one.npz"), f"sample {at} alone", slice(at, at + 1))
        for batch in (1, 7):
            same(run(folder / f"in{COUNT}.npz", "--batch", batch), f"--batch {batch}")
    return f"{', '.join(isas(binary))}: {2 * len(ways) + 17} ways"


def check_fm_lenet(binary):
    return one_model(binary, "fm_lenet")


def check_fm_mlp(binary):
    return one_model(binary, "fm_mlp")


def check_fm_resnet8(binary):
    return one_model(binary, "fm_resnet8")


def check_fm_mbv2(binary):
    return one_model(binary, "fm_mbv2")


def check_fm_vit(binary):
    return one_model(binary, "fm_vit")


if __name__ == "__main__":
    support.main(sys.modules[__name__])
