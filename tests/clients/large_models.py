"""Models far larger than what their upload may take of memory: the data lie beside the ONNX file, in a tar or zip file.

MIB=4096 uploads that many MiB of data; without it, 512."""

import json
import os
import sys
import tarfile
import tempfile
import zipfile

import numpy as np
from onnx import TensorProto, helper

import support

MIB = 1 << 20
DATA_MIB = int(os.environ.get("MIB", "512"))
WIDE, NARROW = 16384, 4096  # one matrix: 256 MiB
MOST_MIB = 64


def matrix(layer):
    """Ones among many zeros, so that sums are exact in float32 in any order."""
    shape = (NARROW, WIDE) if layer % 2 == 0 else (WIDE, NARROW)
    i, j = np.arange(shape[0], dtype=np.int32)[:, None], np.arange(shape[1], dtype=np.int32)[None, :]
    return ((i * 3 + j * 5 + layer) % 1021 == 0).astype(np.float32)


def write_model(folder):
    """`x @ w0 @ w1 …`, and what it gives for ones."""
    layers = 2 * max(1, DATA_MIB // 512)
    tensors, nodes, offset = [], [], 0
    value, name = np.ones((1, NARROW), np.float32), "x"
    with open(f"{folder}/weights.bin", "wb") as file:
        for layer in range(layers):
            w = matrix(layer)
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=w.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in (("location", "weights.bin"), ("offset", offset), ("length", w.nbytes)):
                tensor.external_data.add(key=key, value=str(entry))
            tensors.append(tensor)
            file.write(memoryview(w).cast("B"))
            offset += w.nbytes
            nodes.append(helper.make_node("MatMul", [name, f"w{layer}"], [f"y{layer}"], name=f"layer{layer}"))
            value, name = value @ w, f"y{layer}"
            # Powers of two: as exact, and no overflow.
            scale = 2.0 ** -np.ceil(np.log2(np.abs(value).max() + 1))
            tensors.append(helper.make_tensor(f"s{layer}", TensorProto.FLOAT, [], [scale]))
            nodes.append(helper.make_node("Mul", [name, f"s{layer}"], [f"z{layer}"], name=f"scale{layer}"))
            value, name = (value * np.float32(scale)).astype(np.float32), f"z{layer}"
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", NARROW]) for n in ("x", name)]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with open(f"{folder}/model.onnx", "wb") as file:
        file.write(model.SerializeToString())
    return name, value, offset


def check_an_upload_takes_little_memory_however_large(binary):
    limit = str(16 * 1024 * MIB)
    settings = {"OCTET_LIMITS__MODEL_BYTES": limit, "OCTET_LIMITS__MODEL_MEMORY_BYTES": limit}
    said = []
    with tempfile.TemporaryDirectory() as folder, support.Server(binary, settings=settings) as server:
        output, expected, data = write_model(folder)
        files = [f"{folder}/model.onnx", f"{folder}/weights.bin"]
        with tarfile.open(f"{folder}/model.tar", "w") as tar:
            for file in files:
                tar.add(file, arcname=os.path.basename(file))
        archives = ["model.tar"]
        if DATA_MIB <= 512:
            # Dense: it is unpacked beside the upload first.
            with zipfile.ZipFile(f"{folder}/model.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for file in files:
                    archive.write(file, os.path.basename(file))
            archives.append("model.zip")
        os.remove(files[1])
        for archive in archives:
            with open(f"{folder}/{archive}", "rb") as body:
                before = server.peak_bytes()
                answer = server.request("PUT", f"/v1/models/large-{archive[-3:]}", body)
            assert answer.status == 201, answer.text()
            grown = (server.peak_bytes() - before) / MIB
            said.append(f"{archive}: {grown:.0f} MiB more")
            assert grown < MOST_MIB, said
            os.remove(f"{folder}/{archive}")
            model = answer.json()
            info = model["info"]
            assert model["bytes"] > data and info["memory"]["weights"] == 2 * info["parameters"] * 4, info
            assert info["operators"] == {"MatMul": data // (256 * MIB), "Mul": data // (256 * MIB)}, info
            assert [p["name"] for p in info["inputs"]] == ["x"] and [p["name"] for p in info["outputs"]] == [output]
        # It is loaded tensor by tensor: no more than the tensors and their packed form at a time.
        before = server.peak_bytes()
        answer = server.request("PUT", "/v1/endpoints/large", json.dumps({"model": "large-tar"}))
        assert answer.status == 201 and answer.json()["state"] == "READY", answer.text()
        got = server.infer("large", "x", np.ones((1, NARROW), np.float32))
        grown = (server.peak_bytes() - before) / MIB
        got = np.asarray(got).reshape(expected.shape)
        assert np.array_equal(got, expected) and expected.any(), (got, expected)
        assert grown < 2.2 * data / MIB, f"loading took {grown:.0f} MiB for {data / MIB:.0f} of weights"
    return f"{data / MIB:.0f} MiB of data; {', '.join(said)}; loading: {grown:.0f} MiB more"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
