"""Writes corpus/npz, corpus/json_tensors, corpus/binary_tensors and corpus/manifest anew: small files that are taken, and
some that are nearly so. Needs numpy, onnx, and the built program, which makes artifacts: `seeds.py path/to/octet`."""

import io
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CORPUS = pathlib.Path(__file__).resolve().parent / "corpus"
OCTET = sys.argv[1]


def write(target, files):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def npy(array, version=None):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version)
    return out.getvalue()


def npz(**arrays):
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def stored(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def header(descr, shape, order="False"):
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


def members(kind, *arrays):
    return kind + b"\n--\n".join(name.encode() + b"\n" + content for name, content in arrays)


def datasets():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    image = np.arange(16, dtype=np.uint8).reshape(2, 2, 2, 2)
    images = {"x_u8": image, "x_mean": np.float32([0.5, 0.4]), "x_std": np.float32([0.2, 0.3])}
    files = {
        "one.npy": npy(x),
        "version_2.npy": npy(x, (2, 0)),
        "halves.npy": npy(x.astype(np.float16)),
        "bools.npy": npy(np.array([[True, False]])),
        "scalar.npy": npy(np.float64(1.5)),
        "texts.npy": npy(np.array(["a", "bc"])),
        "empty.npy": npy(np.zeros((0, 3), np.float32)),
        "column_major.npy": npy(np.asfortranarray(x)),
        "big_endian.npy": npy(x.astype(">f4")),
        "structured.npy": npy(np.zeros(2, [("a", "<f4")])),
        "cut.npy": npy(x)[:-1],
        "longer.npy": npy(x) + b"\0",
        "one.npz": npz(x=x),
        "two.npz": npz(x=x, h=x.reshape(4, 1, 3)),
        "labels.npz": npz(x=x, labels=np.int64([0, 1, 2, 3]), slice=np.array(["a", "b", "a", "c"])),
        "images.npz": npz(**images, labels=np.int32([1, 0])),
        "nan.npz": npz(x=np.float32([[1, np.nan]])),
        "stored.npz": stored([("x.npy", npy(x))]),
        "no_array.npz": stored([("x.npy", npy(x)), ("readme.txt", b"x")]),
        "folder.npz": stored([("a/../b.npy", npy(x)), ("/c.npy", npy(x))]),
        "none.npz": stored([]),
        "statistics.npz": stored([("statistics", b"OCTSTAT\x01")]),
    }
    plain = ("x.npy", header("<f4", "(2, 3)") + x[:2].tobytes())
    labels = ("labels.npy", header("<i8", "(2,)") + np.int64([1, 0]).tobytes())
    files |= {
        "one.members": members(b"s", plain),
        "labels.members": members(b"d", plain, labels, ("slice.npy", header("|S2", "(2,)") + b"a\0bc")),
        "letters.members": members(b"d", plain, ("slice.npy", header("<U1", "(2,)") + "ab".encode("utf-32-le"))),
        "images.members": members(
            b"d",
            ("x_u8.npy", header("|u1", "(2, 3, 1, 2)") + b"*\0\1\xff"),
            ("x_mean.npy", header("<f4", "(3,)") + b"*\0\0\0\x3f"),
            ("x_std.npy", header("<f8", "(1,)") + struct.pack("<d", 0.5)),
        ),
        "many_channels.members": members(
            b"d",
            ("x_u8.npy", header("|u1", "(1, 500)") + b"*\1"),
            ("x_mean.npy", header("<f4", "(500,)") + b"*\0\0\0\x3f"),
            ("x_std.npy", header("<f4", "(500,)") + b"*\0\0\0\x3f"),
        ),
        "zeros.members": members(b"d", ("x.npy", header("<f4", "(256, 16)") + b"*\0")),
        "integers.members": members(
            b"d", *((f"{t}.npy", header(f"<{t}", "(2, 2)") + b"*\1") for t in ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
        ),
        "wide.members": members(b"s", ("x.npy", header("<u8", "(1, 2)") + b"*\xff")),
        "no_samples.members": members(b"s", ("x.npy", header("<f4", "(1152921504606846976, 0)"))),
        "overflow.members": members(b"s", ("x.npy", header("<f4", "(4294967296, 4294967296)"))),
        "twice.members": members(b"s", plain, plain),
        "bare.members": members(b"s", ("x", npy(x)), ("y.npy", npy(x))),
    }
    return files


def tensor(name, datatype, shape, data=None, **parameters):
    fields = {"name": name, "shape": shape, "datatype": datatype}
    if data is not None:
        fields["data"] = data
    if parameters:
        fields["parameters"] = parameters
    return fields


INTEGERS = ["INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8"]


def json_bodies():
    def body(*inputs, **fields):
        return json.dumps({"inputs": list(inputs), **fields}, separators=(",", ":"))

    one = tensor("x", "FP32", [1, 4], [0.1, -2, 3e0, 4.5e-3])
    numbers = "[1,-0,0.5,1e22,1.7976931348623157e308,4.9e-324,16777217.0000000001,123456789012345678901,0.1e-400]"
    return {
        "one.json": body(one),
        "nested.json": body(tensor("x", "FP64", [2, 1, 2], [[[1, 2]], [[3.25, 4]]])),
        "integers.json": body(*(tensor(t, t, [2], [[1], [127]]) for t in INTEGERS)),
        "largest.json": body(
            tensor("a", "INT64", [2], [-(2**63), 2**63 - 1]), tensor("b", "UINT64", [1], [2**64 - 1])
        ),
        "bools.json": body(tensor("x", "BOOL", [4], [True, False, 1, 0])),
        "no_elements.json": body(tensor("x", "FP32", [0, 4], []), tensor("y", "FP32", [0], None)),
        "scalar.json": body(tensor("x", "FP32", [], [7])),
        "halves.json": body(tensor("x", "FP16", [1], [1])),
        "strings.json": body(tensor("x", "BYTES", [1], ["a"])),
        "asked.json": body(
            one,
            id='4"2\u00e9',
            outputs=[
                {"name": "x", "parameters": {"classification": 2}},
                {"name": "y", "parameters": {"binary_data": True, "classification": 3}},
                {"name": "z", "parameters": {"binary_data": False}},
            ],
            parameters={"binary_data_output": True, "priority": 1, "timeout": "5000", "precision": "fp32", "a": [None, {}]},
        ),
        "asked_twice.json": body(one, outputs=[{"name": "x"}, {"name": "x"}]),
        "tokens.json": '{"inputs":[{"name":"x","shape":[5],"datatype":"FP32","data":[NaN,Infinity,-Infinity,Inf,-Inf]}]}',
        "numbers.json": '{"inputs":[{"name":"x","shape":[9],"datatype":"FP64","data":%s}]}' % numbers,
        "singles.json": '{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[3.4028235e38,1e-45,0.50000002980232238769,1e39]}]}',
        "spaces.json": ' {\n"inputs" : [ {"data" :[ 1 , 2\t] ,"datatype":"INT8", "name" :"\\u0078\\n\\ud83d\\ude00" ,"shape":[ 2 ]}\r\n] }\n',
        "null.json": '{"id":"","inputs":[{"name":"x","shape":[0],"datatype":"FP32","data":null}],"outputs":[]}',
        "twice.json": '{"inputs":[],"inputs":[{"name":"x","name":"y","shape":[1],"datatype":"FP32","data":[1],"data":[2]}]}',
        "deep.json": '{"a":%s,"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":%s}]}'
        % ("[" * 63 + "]" * 63, "[" * 60 + "1" + "]" * 60),
        "deeper.json": '{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":%s}]}' % ("[" * 70),
        "large_shape.json": body(tensor("x", "INT8", [2305843009213693952, 8], [1]), tensor("y", "INT8", [2**40], [1])),
        "negative.json": body(tensor("x", "INT8", [-1], [1])),
        "nothing.json": "{}",
        "cut.json": body(one)[:-3],
    }


def binary_bodies():
    def body(inputs, tail, split=b"\x1e", **fields):
        return b"j" + json.dumps({"inputs": inputs, **fields}, separators=(",", ":")).encode() + split + tail

    floats = struct.pack("<4f", 0.1, -2, float("nan"), float("inf"))
    one = tensor("x", "FP32", [1, 4], binary_data_size=16)
    header_text = json.dumps({"inputs": [one]}).encode()
    files = {
        "one.bin": body([one], floats),
        "asked.bin": body(
            [one],
            floats,
            id="7",
            outputs=[{"name": "x", "parameters": {"binary_data": True, "classification": 2}}, {"name": "y"}],
            parameters={"binary_data_output": True},
        ),
        "mixed.bin": body(
            [
                tensor("a", "FP16", [2], binary_data_size=4),
                tensor("b", "INT32", [2], [7, 8]),
                tensor("c", "BOOL", [3], binary_data_size=3),
                tensor("d", "FP32", [0, 4], binary_data_size=0),
                tensor("e", "BF16", [1], binary_data_size=2),
            ],
            b"\0\x3c\0\xbc\1\0\1\x80\x3f",
        ),
        "all.bin": body([tensor(t, t, [1], binary_data_size=s) for t, s in zip(INTEGERS, [8, 4, 2, 1] * 2)], bytes(range(30))),
        "both.bin": body([{**one, "data": [1, 2, 3, 4]}], floats),
        "too_short.bin": body([one], floats[:-1]),
        "too_long.bin": body([one], floats + b"\0"),
        "another_size.bin": body([tensor("x", "FP32", [1, 4], binary_data_size=12)], floats),
        "no_bool.bin": body([tensor("x", "BOOL", [2], binary_data_size=2)], b"\1\2"),
        "huge.bin": body([tensor("x", "INT8", [2**62], binary_data_size=2**62)], b"\1"),
        "no_split.bin": body([one], b"", b""),
        "header.bin": b"h%d\n" % len(header_text) + header_text + floats,
        "header_spaces.bin": b"h %d \n" % len(header_text) + header_text + floats,
        "header_too_large.bin": b"h999\n" + header_text + floats,
        "header_zero.bin": b"h0\n" + floats,
        "header_no_number.bin": b"h-1\n{}",
    }
    for kind in range(32):
        files[f"raw_{kind:02}.bin"] = bytes([kind]) + bytes(24)
    return files


def kept():
    def text(kind, *values):
        return kind + b"\x1e".join(json.dumps(value).encode() for value in values)

    recipe = {
        "scheme": "static",
        "weights": {"per_channel": False, "max_code": "auto"},
        "activations": "s8",
        "sixteen_bit": ["*conv*", "a"],
        "ranges": {"percentile": 99.9},
        "equalize": True,
        "smooth": {"alpha": 0.1},
        "bias_correction": False,
        "rounding": "nearest",
        "keep_float": ["fc*"],
        "gate": {"metric": "top1", "max_drop": 0.005, "max_drop_per_slice": 0.02, "min_agreement": 0.99, "min_sqnr_db": 20.5},
        "search": {"trials": 7},
        "target": "onnxruntime",
        "complete": True,
    }
    report = {
        "engine": "octet 1",
        "model": {"name": "<fz>m", "sha256": "ab"},
        "recipe": recipe,
        "evaluation": {
            "int8": {"value": 0.9},
            "float": {"value": 0.91},
            "agreement": {"value": 0.99},
            "sqnr_db": 30.0,
            "cosine": 0.999,
            "samples": 100,
            "classes": [{"name": "<fz0", "int8": {"value": 0.9}}, {"name": "1", "int8": {"value": 0.8}}],
            "slices": [{"name": "é", "int8": {"value": 0.9}}],
        },
        "size": {"int8_bytes": 1000},
        "latency": {"int8_ms": 1.5, "float_ms": 3.0, "speedup": 2.0},
        "coverage": {"integer": 2},
        "layers": [
            {"node": "<fza", "value": "va", "weight_max_code": 127, "noise": {"sqnr_db": 40.0}, "weight_sqnr_db": 44.0},
            {"node": "b", "value": "vb", "noise": {"sqnr_db": 30.0}},
        ],
        "float_nodes": [{"node": "c", "reason": "kept <fz by the recipe"}],
        "activations": [
            {"value": "x", "lo": -1.0, "hi": 1.0, "scale": 0.01, "zero_point": 128},
            {"value": "va", "lo": 0.0, "hi": 2.0, "scale": 0.01, "zero_point": 0},
        ],
    }
    other = json.loads(json.dumps(report))
    other["recipe"]["ranges"] = "mse"
    other["layers"][0]["weight_max_code"] = 64
    other["activations"][0]["scale"] = 1e-300
    other["evaluation"]["classes"][0]["int8"]["value"] = -1e308
    other["evaluation"]["slices"][0]["int8"]["value"] = 0.1
    other["float_nodes"][0]["node"] = "b"
    manifest = {
        "engine": "octet 1",
        "contract": 1,
        "recipe": {},
        "values": [{"name": "x", "dtype": "uint8", "scale": 0.1, "zero_point": 3}],
        "layers": [{"node": "conv", "max_code": 64}],
    }
    pinned = {"name": "m", "version": 1}
    files = {
        "recipe.r": text(b"r", recipe),
        "defaults.r": b"rnull",
        "auto.r": text(b"r", {"scheme": "auto", "ranges": "auto", "smooth": "auto", "search": "auto", "weights": {"max_code": 64}}),
        "words.r": text(b"r", {"ranges": "mean_minmax", "smooth": "off", "search": "off", "scheme": "dynamic"}),
        "digits.r": b'r{"smooth":{"alpha":0.12345678901234567},"ranges":{"percentile":99.99999999999999}}',
        "unknown.r": text(b"r", {"range": "mse"}),
        "beyond.r": text(b"r", {"gate": {"max_drop": 1.5}}),
        "no_object.r": b"r[1]",
        "reports.d": text(b"d", report, other),
        "manifests.d": text(b"d", manifest, {**manifest, "layers": []}),
        "odd.d": text(b"d", {"layers": [{"node": ""}, 1], "values": 7}, [1]),
        "settings.e": text(
            b"e",
            {
                "shadow": {"fraction": 0.1, "statistics": True},
                "rollback": {"min_agreement": 0.95, "max_error_ratio": 0.01, "min_requests": 50},
                "batching": {"max": 8, "delay_us": 100},
                "queue_limit": 9,
                "concurrency": 2,
                "required": True,
                "warm_up": 3,
            },
        ),
        "patch.e": b'e{"shadow":null,"rollback":{"min_agreement":0.5},"batching":null,"queue_limit":null,"warm_up":1}',
        "versions.e": text(b"e", [{"version": 1, "artifact": "art_0198c0de00007000800000000000abcd", "model": pinned}, {"version": 2, "artifact": None, "model": pinned}]),
        "routes.e": text(b"e", [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}]),
        "accuracy.e": text(b"e", {"metric": "top1", "float": 0.9, "int8": 0.89, "delta": -0.01, "agreement": 0.99, "sqnr_db": 31.4, "samples": 100}),
        "latency.e": text(b"e", {"float_ms": 1.25, "int8_ms": 0.3}),
        "progress.e": text(b"e", {"phase": "calibrate", "done": 3, "total": 9}),
        "upload.e": text(
            b"e",
            {
                "id": "upload_0198c0de00007000800000000000abcd",
                "plan": {"becomes": "dataset", "name": "d", "bytes": 10, "metadata": "name ZA==", "key": "0123456789abcdef", "quota": 5},
                "offset": 4,
                "expires_ms": 1700000000000,
                "became": None,
            },
        ),
    }
    head = b"OCTSTAT\x01" + bytes(64)
    nothing = struct.pack("<i", -100) + bytes(2) + struct.pack("<2f", float("inf"), float("-inf")) + bytes(5)
    files |= {
        "none.s": b"s" + head + b"\x01\x00",
        "nothing.s": b"s" + head + b"\x03\x01\x01x" + nothing,
        "no_number.s": b"s" + head + b"\xff" * 11,
    }
    for name, recipe in [("codes", {}), ("symmetric", {"activations": "s8", "target": "tensorrt"}), ("rows", {"scheme": "dynamic"})]:
        made = quantized(recipe)
        files[f"{name}.a"] = b"a" + made["model.onnx"]
        files[f"{name}.d"] = b"d" + made["manifest.json"]
        with zipfile.ZipFile(io.BytesIO(made["statistics.bin"])) as archive:
            files[f"{name}.s"] = b"s" + archive.read("statistics")
    return files


def quantized(recipe):
    """What `octet quantize` makes of a convolution and a product, by name."""
    rng = np.random.default_rng(1)
    constants = {"w": rng.normal(size=(2, 1, 3, 3)), "m": rng.normal(size=(32, 3)), "b": np.zeros(3)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "m", "b"], ["y"], "fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "float.onnx")
        np.savez(folder / "data.npz", x=rng.normal(size=(8, 1, 4, 4)).astype(np.float32))
        (folder / "recipe.json").write_text(json.dumps(recipe))
        arguments = ["--calibration", folder / "data.npz", "--recipe", folder / "recipe.json"]
        arguments += ["-o", folder / "model.onnx", "--report", folder]
        subprocess.run([OCTET, "quantize", folder / "float.onnx", *arguments], check=True, stdout=subprocess.DEVNULL)
        return {name: (folder / name).read_bytes() for name in ["model.onnx", "manifest.json", "statistics.bin"]}


write("npz", datasets())
write("json_tensors", json_bodies())
write("binary_tensors", binary_bodies())
write("manifest", kept())
