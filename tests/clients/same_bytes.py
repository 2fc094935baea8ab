"""One artifact, one answer: instruction set, threads, batch size and passes change no bit of it."""

import itertools
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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


def decoder():
    """Functions of sums, squeeze and excitation, and windows that lie side by side, as a detector of text has them."""
    rng = np.random.default_rng(5)
    nodes, constants = [], {}

    def constant(*shape, value=None):
        name = f"c{len(constants)}"
        data = rng.normal(0, 0.5, shape) if value is None else np.full(shape, value)
        constants[name] = numpy_helper.from_array(data.astype(np.float32), name)
        return name

    def node(op, *inputs, **attributes):
        nodes.append(helper.make_node(op, inputs, [f"v{len(nodes)}"], f"n{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    def hard_swish(x):
        gate = node("Clip", node("Add", x, constant(1, value=3)), constant(value=0), constant(value=6))
        return node("Div", node("Mul", x, gate), constant(1, value=6))

    x = node("Conv", "input", constant(16, 1, 3, 3), constant(16), strides=[2, 2], pads=[1] * 4)
    x = hard_swish(x)
    x = hard_swish(node("Conv", x, constant(16, 1, 3, 3), group=16, pads=[1] * 4))
    gate = node("Conv", node("GlobalAveragePool", x), constant(16, 16, 1, 1), constant(16))
    x = node("Mul", x, node("HardSigmoid", gate, alpha=0.2, beta=0.5))
    x = node("ConvTranspose", x, constant(16, 6, 2, 2), strides=[2, 2])
    x = node("Add", x, constant(1, 6, 1, 1))
    x = node("Relu", node("BatchNormalization", x, *(constant(6) for _ in range(3)), constant(6, value=0.3)))
    x = node("ConvTranspose", x, constant(6, 3, 2, 2), constant(3), strides=[2, 2])
    node("Sigmoid", x)
    nodes[-1].output[0] = "output"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
             for name, shape in [("input", ["n", 1, 28, 28]), ("output", ["n", 3, 56, 56])]]
    graph = helper.make_graph(nodes, "decoder", ports[:1], ports[1:], list(constants.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def one_model(binary, model, path=None):
    samples = support.images()[0][:COUNT]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        artifact = folder / "int8.onnx"
        support.run_octet(binary, "quantize", path or support.model_path(model), "--calibration",
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


def check_decoder(binary):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        onnx.save(decoder(), folder / "decoder.onnx")
        np.savez(folder / "in.npz", input=support.images()[0][:9])
        made = []
        for passes in (["--no-passes"], ["--without-pass", "fold_affine"], []):
            support.run_octet(binary, "run", folder / "decoder.onnx", "--inputs", folder / "in.npz",
                              "-o", folder / "y.npz", *passes)
            made.append(outputs(folder / "y.npz")["output"])
        assert made[0].std() > 0.1 and made[0].tobytes() == made[1].tobytes(), "the float model"
        # This pass rounds otherwise.
        assert np.abs(made[0] - made[2]).max() < 1e-5, "factors that move into weights"
        return one_model(binary, "fm_mbv2", folder / "decoder.onnx")


if __name__ == "__main__":
    support.main(sys.modules[__name__])
