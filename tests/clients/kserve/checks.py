"""What KServe's SDK does with a server that has the endpoint `lenet`: run with the interpreter of `.venv-kserve` and the
two addresses by `../kserve_sdk.py`. Prints one line a check that passed."""

import asyncio
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

HTTP, GRPC = sys.argv[1:3]
BATCH = np.load(sys.argv[3])
WANT = np.load(sys.argv[4])


def request(binary, name="input", model="lenet"):
    tensor = InferInput(name=name, shape=list(BATCH.shape), datatype="FP32")
    tensor.set_data_from_numpy(BATCH, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="7")


def same(response):
    assert response.model_name == "lenet" and response.id == "7", response
    got = response.outputs[0].as_numpy()
    assert got.shape == WANT.shape and np.array_equal(np.float32(got), WANT), got


async def rest():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    url = f"http://{HTTP}"
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, model_name="lenet")
    assert not await client.is_model_ready(url, model_name="nobody")
    print("rest: live, ready, model ready")
    for binary in (True, False):
        same(await client.infer(url, request(binary), model_name="lenet"))
    print("rest: binary and JSON inference")
    for call, says in ((request(True, model="nobody"), "nobody"), (request(True, name="inptu"), "inptu")):
        try:
            await client.infer(url, call, model_name=call.model_name)
            raise AssertionError(f"{says}: was not refused")
        except httpx.HTTPStatusError as error:
            assert says in str(error), f"the sentence of the server is lost: {error}"
    print("rest: the sentence of a refusal")
    await client.close()


async def rpc():
    client = InferenceGRPCClient(GRPC)
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready("lenet") and not await client.is_model_ready("nobody")
    print("grpc: live, ready, model ready")
    same(await client.infer(request(True)))
    # Lists go into the typed fields.
    tensor = InferInput(name="input", shape=list(BATCH.shape), datatype="FP32", data=BATCH.ravel().tolist())
    same(await client.infer(InferRequest(model_name="lenet", infer_inputs=[tensor], request_id="7")))
    print("grpc: raw and typed inference")
    for call, code in ((request(True, model="nobody"), "NOT_FOUND"), (request(True, name="inptu"), "INVALID_ARGUMENT")):
        try:
            await client.infer(call)
            raise AssertionError(f"{code}: was not refused")
        except grpc.RpcError as error:
            assert error.code().name == code, error
    print("grpc: the codes of refusals")
    await client.close()


asyncio.run(rest())
asyncio.run(rpc())
