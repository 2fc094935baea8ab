"""FastAPI and ONNX Runtime: the Open Inference Protocol with JSON and with binary tensors, as one writes it by hand.

    MODEL=x.onnx uvicorn fastapi_app:app --workers 2

Written to be fast: orjson, uvloop, httptools, no validation by pydantic, the model in a thread.
"""

import os

import numpy
import onnxruntime
import orjson
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
INPUT, OUTPUT = session.get_inputs()[0].name, session.get_outputs()[0].name
app = FastAPI()


def infer_json(body):
    tensor = orjson.loads(body)["inputs"][0]
    x = numpy.asarray(tensor["data"], numpy.float32).reshape(tensor["shape"])
    y = session.run(None, {INPUT: x})[0]
    output = {"name": OUTPUT, "datatype": "FP32", "shape": list(y.shape), "data": y.ravel()}
    return orjson.dumps({"model_name": "m", "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)


def infer_binary(body, head_bytes):
    tensor = orjson.loads(body[:head_bytes])["inputs"][0]
    x = numpy.frombuffer(body, numpy.float32, offset=head_bytes).reshape(tensor["shape"])
    y = session.run(None, {INPUT: x})[0]
    output = {"name": OUTPUT, "datatype": "FP32", "shape": list(y.shape), "parameters": {"binary_data_size": y.nbytes}}
    head = orjson.dumps({"model_name": "m", "outputs": [output]})
    return head + y.tobytes(), str(len(head))


@app.get("/ready")
def ready():
    return {}


@app.post("/v2/models/m/infer")
async def infer(request: Request):
    body, head_bytes = await request.body(), request.headers.get("inference-header-content-length")
    if head_bytes is None:
        return Response(await run_in_threadpool(infer_json, body), media_type="application/json")
    answer, size = await run_in_threadpool(infer_binary, body, int(head_bytes))
    return Response(answer, media_type="application/octet-stream", headers={"inference-header-content-length": size})
