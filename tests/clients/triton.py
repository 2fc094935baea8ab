"""The Open Inference Protocol as Triton's own Python client speaks it."""

import json
import sys

import numpy as np
import tritonclient.http as triton

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

    def refused(*says, model="lenet", name="input", shape=(1, 1, 28, 28), dtype="FP32"):
        tensor = triton.InferInput(name, list(shape), dtype)
        tensor.set_data_from_numpy(np.zeros(shape, np.float32 if dtype == "FP32" else np.int64))
        support.refused(lambda: client.infer(model, [tensor]), *says)

    refused("nobody", model="nobody")
    refused("inptu", name="inptu")
    refused("input", "27", shape=(1, 1, 28, 27))
    refused("input", "INT64", dtype="INT64")


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


def check_compressed_answers_when_asked_and_only_of_inference(binary):
    batch = np.zeros((1700, 1, 28, 28), np.float32)  # 68 kB of answers
    with support.Server(binary, settings={"OCTET_SERVING__COMPRESS_BYTES": "65536"}) as server:
        server.serve("lenet", "fm_lenet")
        client = triton.InferenceServerClient(server.address)
        out = client.get_model_metadata("lenet")["outputs"][0]["name"]
        tensor = triton.InferInput("input", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        want = client.infer("lenet", [tensor]).as_numpy(out)
        for coding in ("gzip", "deflate"):
            for binary_out in (True, False):
                wanted = [triton.InferRequestedOutput(out, binary_data=binary_out)]
                got = client.infer("lenet", [tensor], outputs=wanted, request_compression_algorithm=coding,
                                   response_compression_algorithm=coding).as_numpy(out)
                assert np.array_equal(got, want), (coding, binary_out)

        def coding_of(path, body=None, accept="gzip, deflate, br", **headers):
            answer = server.request("POST" if body else "GET", path, body, {"Accept-Encoding": accept, **headers})
            assert answer.status == 200, answer.text()
            return answer.headers.get("content-encoding")

        raw = {"Inference-Header-Content-Length": "0"}
        assert coding_of("/v2/models/lenet/infer", batch.tobytes(), **raw) == "gzip"
        assert coding_of("/v2/models/lenet/infer", batch.tobytes(), accept="br", **raw) is None
        assert coding_of("/v2/models/lenet/infer", batch[:100].tobytes(), **raw) is None, "below the threshold"
        assert coding_of("/v2/models/lenet") is None and coding_of("/metrics") is None
    with support.Server(binary) as server:
        server.serve("lenet", "fm_lenet")
        assert coding_of("/v2/models/lenet/infer", batch.tobytes(), **raw) is None, "off by default"


def check_classification(server):
    client = triton.InferenceServerClient(server.address)
    batch = support.images()[0][:4]
    out = client.get_model_metadata("lenet")["outputs"][0]["name"]
    tensor = triton.InferInput("input", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(batch)
    best = client.infer("lenet", [tensor]).as_numpy(out).argmax(axis=1)
    for binary in (True, False):
        wanted = [triton.InferRequestedOutput(out, binary_data=binary, class_count=3)]
        classes = client.infer("lenet", [tensor], outputs=wanted).as_numpy(out)
        assert classes.shape == (4, 3), classes
        texts = [c.decode() if isinstance(c, bytes) else c for c in classes[:, 0]]
        assert [int(t.split(":")[1]) for t in texts] == list(best), (texts, best)


def check_load_and_unload_with_a_file(server):
    client = triton.InferenceServerClient(server.address)
    model = support.model_path("fm_mlp").read_bytes()
    config = json.dumps({"backend": "onnxruntime", "max_batch_size": 4})

    def refused(says, **given):
        support.refused(lambda: client.load_model("fresh", **given), says)

    file = {"file:1/model.onnx": model}
    refused("config", files=file)
    refused("no endpoint `fresh`")
    refused("`sequence_batching`", config='{"sequence_batching": {}}', files=file)
    refused("no input `nobody`", config='{"input": [{"name": "nobody"}]}', files=file)
    refused("file:1/model.plan", config=config, files={"file:1/model.plan": model})
    refused("more than one file", config=config, files=file | {"file:1/model.data": b""})
    refused("not", config=config, files={"file:1/model.onnx": b"no model"})
    assert not client.is_model_ready("fresh")
    client.load_model("fresh", config=config, files=file)
    assert client.is_model_ready("fresh", "1")
    x = support.images()[0][:2]
    shape = client.get_model_metadata("fresh")["inputs"][0]["shape"]
    x = x.reshape([2] + [d for d in shape[1:]])
    name = client.get_model_metadata("fresh")["inputs"][0]["name"]
    tensor = triton.InferInput(name, list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    first = client.infer("fresh", [tensor]).as_numpy(client.get_model_metadata("fresh")["outputs"][0]["name"])
    assert first.shape[0] == 2
    client.load_model("fresh", config=config, files=file)
    assert client.get_model_metadata("fresh")["versions"] == ["1"], "the same file makes no version"
    client.unload_model("fresh")
    assert not client.is_model_ready("fresh")
    index = {m["name"]: m for m in client.get_model_repository_index()}
    assert index["fresh"]["state"] == "UNAVAILABLE" and index["fresh"]["reason"] == "unloaded", index
    client.load_model("fresh")
    assert client.is_model_ready("fresh")
    assert server.get("/v1/models/fresh").json()["version"] == 1
    refused("no input `nobody`", config='{"input": [{"name": "nobody"}]}')
    # As long as a model may be, in base64; and beyond.
    with support.Server(server.binary, settings={"OCTET_LIMITS__MODEL_BYTES": str(len(model))}) as small:
        client = triton.InferenceServerClient(small.address)
        client.load_model("fresh", config=config, files=file)
        refused("longer than", config=config, files={"file:1/model.onnx": model + b"x"})
        refused("longer than", config=config, files={"file:1/model.onnx": bytes(len(model) * 2 + (2 << 20))})


def check_settings_of_log_and_traces(server):
    client = triton.InferenceServerClient(server.address)
    assert "logging" in client.get_server_metadata()["extensions"]
    assert "trace" not in client.get_server_metadata()["extensions"], "there are none"
    before = client.get_log_settings()
    assert before["log_info"] is True and before["log_verbose_level"] == 0, before
    assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
    client.is_server_live()
    server.until(lambda: "/v2/health/live" in server.log(), "requests are logged")
    assert client.update_log_settings({"log_verbose_level": 0}) == before
    trace = client.get_trace_settings()
    assert trace["trace_level"] == ["OFF"], trace
    assert client.update_trace_settings("lenet", {"trace_level": ["OFF"], "trace_rate": None}) == trace
    assert client.get_trace_settings("lenet") == trace

    support.refused(lambda: client.update_log_settings({"log_file": "/tmp/x"}), "log_file")
    support.refused(lambda: client.update_log_settings({"log_colour": 1}), "log_colour")
    support.refused(lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}), "trace_level")
    support.refused(lambda: client.get_trace_settings("nobody"), "nobody")
    assert client.get_log_settings() == before
    for path in ("systemsharedmemory", "cudasharedmemory"):
        assert server.get(f"/v2/{path}/status").status == 501


if __name__ == "__main__":
    support.main(sys.modules[__name__])
