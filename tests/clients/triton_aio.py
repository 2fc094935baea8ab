"""Triton's asynchronous HTTP client. It asks for compression with every request and reads compressed metadata wrong,
so answers other than those of inference must never be compressed."""

import asyncio
import json
import sys

import numpy as np
import tritonclient.http.aio as triton
from tritonclient.utils import InferenceServerException

import support

# Compressed as soon as that is allowed.
SETTINGS = {"OCTET_SERVING__COMPRESS_BYTES": "1"}


def with_client(server, work):
    async def run():
        async with triton.InferenceServerClient(server.address) as client:
            return await work(client)

    return asyncio.run(run())


def check_health_and_metadata(server):
    server.serve("lenet", "fm_lenet")

    async def work(client):
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("lenet") and not await client.is_model_ready("nobody")
        assert (await client.get_server_metadata())["name"] == "octet"
        model = await client.get_model_metadata("lenet")
        assert [p["shape"] for p in model["inputs"]] == [[-1, 1, 28, 28]], model
        assert (await client.get_model_config("lenet"))["max_batch_size"] >= 1
        assert [m["state"] for m in await client.get_model_repository_index()] == ["READY"]
        assert (await client.get_inference_statistics("lenet"))["model_stats"][0]["name"] == "lenet"
        assert (await client.get_log_settings())["log_info"] is True
        assert (await client.get_trace_settings())["trace_level"] == ["OFF"]

    with_client(server, work)


def check_inference(server):
    batch = support.images()[0][:5]

    async def work(client):
        out = (await client.get_model_metadata("lenet"))["outputs"][0]["name"]
        answers = []
        for binary in (True, False):
            tensor = triton.InferInput("input", list(batch.shape), "FP32")
            tensor.set_data_from_numpy(batch, binary_data=binary)
            for coding in (None, "gzip", "deflate"):
                for binary_out in (True, False):
                    wanted = [triton.InferRequestedOutput(out, binary_data=binary_out)]
                    result = await client.infer("lenet", [tensor], outputs=wanted, request_id="7",
                                                request_compression_algorithm=coding,
                                                response_compression_algorithm=coding)
                    assert result.get_response()["id"] == "7"
                    answers.append(result.as_numpy(out))
        assert all(np.array_equal(answers[0], other) for other in answers) and answers[0].shape == (5, 10)
        many = await asyncio.gather(*(client.infer("lenet", [tensor]) for _ in range(20)))
        assert all(np.array_equal(r.as_numpy(out), answers[0]) for r in many)
        return f"{len(answers) + len(many)} answers"

    return with_client(server, work)


def check_load_unload_and_errors(server):
    async def work(client):
        model = support.model_path("fm_lenet").read_bytes()
        await client.load_model("fresh", config=json.dumps({}), files={"file:1/model.onnx": model})
        assert await client.is_model_ready("fresh")
        await client.unload_model("fresh")
        assert not await client.is_model_ready("fresh")
        tensor = triton.InferInput("inptu", [1, 1, 28, 28], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 1, 28, 28), np.float32))
        for name, says in (("nobody", "nobody"), ("lenet", "inptu"), ("fresh", "not ready")):
            try:
                await client.infer(name, [tensor])
                raise AssertionError(f"{name} was not refused")
            except InferenceServerException as e:
                assert says in e.message(), e.message()

    with_client(server, work)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
