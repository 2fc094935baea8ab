"""The Open Inference Protocol as Triton's own Python client speaks it."""

import json
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

import support


def check_health_and_metadata(server):
    server.quantize("fm_lenet", endpoint="lenet", evaluation=False)
    client = triton.InferenceServerClient(server.address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("lenet")
    assert not client.is_model_ready("nobody")
    about = client.get_server_metadata()
    assert about["name"] == "octet" and about["version"], about
    assert "binary_tensor_data" in about["extensions"], about
    model = client.get_model_metadata("lenet")
    assert model["name"] == "lenet" and model["versions"], model
    assert [(p["name"], p["datatype"], p["shape"]) for p in model["inputs"]] == [("input", "FP32", [-1, 1, 28, 28])]
    assert [(p["datatype"], p["shape"]) for p in model["outputs"]] == [("FP32", [-1, 10])], model
    config = client.get_model_config("lenet")
    assert config["name"] == "lenet" and config["max_batch_size"] >= 1, config
    # Shapes of a model that batches leave the batch out.
    assert config["input"] == [{**config["input"][0], "name": "input", "data_type": "TYPE_FP32", "dims": [1, 28, 28]}]


def check_json_binary_and_raw_give_the_same(server):
    client = triton.InferenceServerClient(server.address)
    batch = support.images()[0][:5]
    out = client.get_model_metadata("lenet")["outputs"][0]["name"]
    answers = {}
    for binary in (True, False):
        tensor = triton.InferInput("input", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch, binary_data=binary)
        for binary_out in (True, False):
            wanted = [triton.InferRequestedOutput(out, binary_data=binary_out)]
            result = client.infer("lenet", [tensor], outputs=wanted, request_id="request-7")
            assert result.get_response()["id"] == "request-7"
            assert result.get_response()["model_name"] == "lenet"
            answers[binary, binary_out] = result.as_numpy(out)
    first = answers[True, True]
    assert first.shape == (5, 10) and first.dtype == np.float32
    for how, other in answers.items():
        assert np.array_equal(first, other), f"{how}: {other} instead of {first}"
    assert np.array_equal(first, client.infer("lenet", [tensor]).as_numpy(out)), "no outputs asked for"
    # One by one, and the JSON of a plain client without any header.
    body = {"inputs": [{"name": "input", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": batch[:1].tolist()}]}
    plain = server.request("POST", "/v2/models/lenet/infer", json.dumps(body)).json()["outputs"][0]
    assert np.array_equal(np.float32(plain["data"]).reshape(plain["shape"]), first[:1])
    # The whole body is the one input.
    raw = server.request("POST", "/v2/models/lenet/infer", batch[:1].tobytes(), {
        "Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"})
    assert raw.status == 200, raw.text()
    size = int(raw.headers["inference-header-content-length"])
    assert np.array_equal(np.frombuffer(raw.body[size:], np.float32), first[0])


def check_compressed_requests(server):
    client = triton.InferenceServerClient(server.address)
    tensor = triton.InferInput("input", [1, 1, 28, 28], "FP32")
    tensor.set_data_from_numpy(support.images()[0][:1])
    out = client.get_model_metadata("lenet")["outputs"][0]["name"]
    want = client.infer("lenet", [tensor]).as_numpy(out)
    for coding in ("gzip", "deflate"):
        got = client.infer("lenet", [tensor], request_compression_algorithm=coding).as_numpy(out)
        assert np.array_equal(got, want), coding


def check_what_is_wrong_is_said(server):
    client = triton.InferenceServerClient(server.address)

    def refused(says, model="lenet", name="input", shape=(1, 1, 28, 28), dtype="FP32"):
        tensor = triton.InferInput(name, list(shape), dtype)
        tensor.set_data_from_numpy(np.zeros(shape, np.float32 if dtype == "FP32" else np.int64))
        try:
            client.infer(model, [tensor])
        except InferenceServerException as e:
            missing = [s for s in says if s not in e.message()]
            assert not missing, f"«{e.message()}» does not name {missing}"
            return
        raise AssertionError(f"{model} {name} {shape} {dtype}: was not refused")

    refused(["nobody"], model="nobody")
    refused(["inptu"], name="inptu")
    refused(["input", "27"], shape=(1, 1, 28, 27))
    refused(["input", "INT64"], dtype="INT64")


def check_repository_index_and_statistics(server):
    client = triton.InferenceServerClient(server.address)
    extensions = client.get_server_metadata()["extensions"]
    if "model_repository" in extensions:
        index = client.get_model_repository_index()
        assert [(m["name"], m["state"]) for m in index if m["name"] == "lenet"][0] == ("lenet", "READY"), index
    if "statistics" in extensions:
        stats = client.get_inference_statistics("lenet")["model_stats"][0]
        assert stats["name"] == "lenet" and stats["inference_stats"]["success"]["count"] >= 1, stats
    return ", ".join(extensions)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
