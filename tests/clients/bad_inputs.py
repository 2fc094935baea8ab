"""What is wrong is refused with its status and a message that names the fault; afterwards all is as before."""

import hashlib
import io
import json
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper

import support

MIB = 1 << 20
SETTINGS = {"OCTET_LIMITS__MODEL_BYTES": str(MIB), "OCTET_LIMITS__DATASET_BYTES": str(8 * MIB)}


def problem(answer, status, *says):
    """A problem document of this status whose text names all of these; gives the document."""
    statuses = status if isinstance(status, tuple) else (status,)
    assert answer.status in statuses, f"{answer.status} instead of {status}: {answer.text()[:1000]}"
    assert answer.headers["content-type"].startswith("application/problem+json"), answer.headers
    body = answer.json()
    assert body["status"] == answer.status and body["title"] and body["type"], body
    missing = [s for s in says if s.lower() not in json.dumps(body, ensure_ascii=False).lower()]
    assert not missing, f"{body} does not name {missing}"
    return body


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def some(count=8, dtype=np.float32):
    return support.images()[0][:count].astype(dtype)


def one_node(op, domain="", shape=(1, 4)):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], "the_node", domain=domain)], "g", [x], [y])
    opsets = [helper.make_opsetid("", 13)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=7).SerializeToString()


def upload(server, name="m"):
    """What the checks on jobs start from."""
    for path, data in [
        (f"/v1/models/{name}", support.model_path("fm_lenet")),
        ("/v1/datasets/good", npz(input=some(16))),
        ("/v1/datasets/labelled", npz(input=some(16), labels=np.arange(16) % 10)),
    ]:
        assert server.put(path, data).status in (200, 201)


def refused_job(server, *says, **spec):
    """The job is refused at once, or ends as failed; either way the text names the fault."""
    answer = server.post("/v1/jobs", {"kind": "quantize", "model": "m", "calibration": "good", "keep": True} | spec)
    if answer.status == 202:
        job = server.wait(answer.json()["id"])
        assert job["state"] == "failed", job
        text = json.dumps(job["error"], ensure_ascii=False).lower()
        assert job["error"]["code"] and not job["error"]["retriable"], job["error"]
        assert job.get("result") is None, job
    else:
        problem(answer, (400, 404, 409, 422), *says)
        text = answer.text().lower()
    missing = [s for s in says if s.lower() not in text]
    assert not missing, f"{text} does not name {missing}"
    return text


def check_files_that_are_no_model(server):
    whole = support.model_path("fm_lenet").read_bytes()
    problem(server.put("/v1/models/no", b"this is not ONNX at all"), (400, 422))
    problem(server.put("/v1/models/no", b""), (400, 422), "empty")
    problem(server.put("/v1/models/no", b"\x00" * 4096), (400, 422))
    for part in (10, len(whole) // 2, len(whole) - 1):
        problem(server.put("/v1/models/no", whole[:part]), (400, 422))
    flipped = bytearray(whole)
    flipped[20:40] = b"\xff" * 20
    assert server.put("/v1/models/no", bytes(flipped)).status in (400, 422)
    assert server.get("/v1/models/no").status == 404, "a refused upload is not there"


def check_an_operator_that_is_unknown(server):
    problem(server.put("/v1/models/no", one_node("Frobnicate")), (400, 422), "Frobnicate", "the_node")
    problem(server.put("/v1/models/no", one_node("Gadget", "com.example")), (400, 422), "Gadget")
    assert server.get("/v1/models/no").status == 404


def check_shapes_whose_product_overflows(server):
    huge = (1 << 31, 1 << 31, 1 << 31)
    answer = server.put("/v1/models/huge", one_node("Relu", shape=huge))
    assert answer.status in (200, 201, 400, 422), answer.text()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 40], raw_data=b"\x00" * 64)
    model = onnx.load_from_string(one_node("Relu"))
    model.graph.initializer.append(weight)
    problem(server.put("/v1/models/no", model.SerializeToString()), (400, 422), "w")
    weight.dims[:] = [-4, 4]
    model.graph.initializer[0].CopyFrom(weight)
    problem(server.put("/v1/models/no", model.SerializeToString()), (400, 422), "w")
    # An .npy head that promises more than there is.
    for shape in ("(4611686018427387904, 4611686018427387904)", "(1000000, 1000000)"):
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
        file = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + b"\x00" * 64
        problem(server.put("/v1/datasets/no", file), (400, 422))
    # An inference request.
    upload(server)
    server.wait(server.submit(model="m", calibration="good", endpoint="m", keep=True))
    server.until(lambda: server.get("/v2/models/m/ready").status == 200, "m is ready")
    for shape in ([1 << 32, 1 << 32, 1, 28], [-1, 1, 28, 28], [1 << 62, 1, 28, 28]):
        answer = server.post("/v2/models/m/infer", {
            "inputs": [{"name": "input", "shape": shape, "datatype": "FP32", "data": [0.0]}]})
        error = answer.json()["error"]
        assert answer.status == 400 and ("input" in error or "dimension" in error), (shape, answer.status, error)


def check_files_that_are_no_dataset(server):
    good = npz(input=some())
    problem(server.put("/v1/datasets/no", b"PK\x03\x04 not a zip"), (400, 422))
    problem(server.put("/v1/datasets/no", good[:len(good) // 2]), (400, 422))
    problem(server.put("/v1/datasets/no", b""), (400, 422), "empty")
    problem(server.put("/v1/datasets/no", npz(a=some(3), b=some(4))), (400, 422), "3", "4")
    problem(server.put("/v1/datasets/no", npz(input=some(), labels=np.arange(5))), (400, 422), "labels")
    # Pickled objects are never read.
    problem(server.put("/v1/datasets/no", npz(input=np.array([{"a": 1}], object))), (400, 422))
    assert server.get("/v1/datasets/no").status == 404


def check_data_that_do_not_fit_the_model(server):
    upload(server)

    def dataset(**arrays):
        answer = server.put("/v1/datasets/misfit", npz(**arrays))
        assert answer.status in (200, 201), answer.text()
        return {"calibration": "misfit"}

    refused_job(server, "input", **dataset(a=some(), b=some()))
    refused_job(server, "27", **dataset(input=some()[..., :27]))
    refused_job(server, "input", **dataset(input=some(dtype=np.int64)))
    refused_job(server, "input", **dataset(input=some().reshape(8, -1)))
    for bad in (np.nan, np.inf, -np.inf):
        spoiled = some()
        spoiled[5, 0, 3, 3] = bad
        # The sample is named, so that the user finds it.
        refused_job(server, "5", "input", **dataset(input=spoiled))
    assert server.put("/v1/datasets/none", npz(input=some(0))).status in (200, 201, 400, 422)


def check_labels_that_do_not_fit(server):
    upload(server)
    answer = server.put("/v1/datasets/labels", npz(input=some(), labels=np.array([0, 1, 2, 3, 4, 5, 6, 10])))
    assert answer.status in (200, 201), answer.text()
    refused_job(server, "label 10", "sample 7", evaluation="labels")


def check_names_that_are_unknown(server):
    upload(server)
    job = {"kind": "quantize", "model": "m", "calibration": "good", "keep": True}
    problem(server.post("/v1/jobs", job | {"model": "nobody"}), (404, 422), "nobody")
    problem(server.post("/v1/jobs", job | {"model": "m@99"}), (404, 422), "99")
    problem(server.post("/v1/jobs", job | {"calibration": "nothing"}), (404, 422), "nothing")
    problem(server.post("/v1/jobs", job | {"evaluation": "nothing"}), (404, 422), "nothing")
    for path in ("/v1/models/nobody", "/v1/datasets/nothing", "/v1/jobs/job_" + "0" * 32,
                 "/v1/artifacts/art_" + "0" * 32, "/v1/endpoints/nobody", "/v1/nonsense"):
        problem(server.get(path), 404)
    for path in ("/v1/jobs/not-an-id", "/v1/models/.hidden", "/v1/models/%2e%2e%2fetc"):
        problem(server.get(path), (400, 404))
    answer = server.post("/v2/models/nobody/infer", {"inputs": []})
    assert answer.status == 404 and "nobody" in answer.json()["error"], answer.text()


def check_a_job_on_a_deleted_model(server):
    upload(server, "gone")
    assert server.request("DELETE", "/v1/models/gone").status in (200, 204)
    problem(server.post("/v1/jobs", {"kind": "quantize", "model": "gone", "calibration": "good"}),
            (404, 409, 410, 422), "gone")
    problem(server.get("/v1/models/gone"), (404, 410), "gone")


def check_bodies_over_the_limit(server):
    problem(server.put("/v1/models/no", b"\x08\x07" * MIB), 413, str(MIB))
    problem(server.put("/v1/datasets/no", npz(input=np.zeros((3000, 1, 28, 28), np.float32))), 413, str(8 * MIB))
    # Announced, but never sent.
    problem(server.request("PUT", "/v1/models/no", b"x", {"Content-Length": str(1 << 40)}), 413)
    for path in ("/v1/models/no", "/v1/datasets/no"):
        assert server.get(path).status == 404


def check_json_that_is_none(server):
    for body in ("{", "[]", "", "null", '{"kind":"quantize","model":1}', '{"kind":"quantize"}', "[" * 10000):
        problem(server.post("/v1/jobs", body), (400, 422))
    upload(server)
    job = {"kind": "quantize", "model": "m", "calibration": "good", "keep": True}
    problem(server.post("/v1/jobs", job | {"kind": "magic"}), (400, 422), "magic")
    problem(server.post("/v1/jobs", job | {"modle": "m"}), (400, 422), "modle")
    problem(server.post("/v1/jobs", job | {"recipe": {"sheme": "static"}}), (400, 422), "sheme")
    problem(server.post("/v1/jobs", job | {"recipe": {"ranges": "vibes"}}), (400, 422), "vibes")
    for body in ("{", "[]", "", '{"inputs":{}}', "[" * 10000):
        answer = server.post("/v2/models/m/infer", body)
        assert answer.status == 400 and answer.json()["error"], (body[:20], answer.status, answer.text())


def check_methods_that_are_wrong(server):
    assert server.request("DELETE", "/v1/jobs").status == 405
    assert server.request("GET", "/v2/models/m/infer").status == 405


def check_afterwards_all_is_as_before(server):
    """The last one: it still serves, and nothing half-written can be seen."""
    assert server.process.poll() is None, server.log()
    job = server.quantize("fm_lenet", endpoint="lenet", evaluation=False)
    assert server.infer("lenet", "input", some(2)).shape == (2, 10)
    assert "panicked" not in server.log_path.read_text(errors="replace"), server.log()
    models = {m["name"] for m in items(server, "/v1/models")}
    datasets = {d["name"] for d in items(server, "/v1/datasets")}
    assert not {"no", "gone"} & models and "no" not in datasets, (models, datasets)
    artifacts = {a["id"] for a in items(server, "/v1/artifacts")}
    assert job["result"]["artifact"]["id"] in artifacts
    for artifact in artifacts:
        answer = server.get(f"/v1/artifacts/{artifact}/download")
        assert answer.status == 200, artifact
        onnx.checker.check_model(onnx.load_from_string(answer.body))
    for state in {j["state"] for j in items(server, "/v1/jobs")}:
        assert state in ("succeeded", "failed"), state
    # Files: each blob is what its name says, and nothing is left of what was being written.

    blobs = [p for p in (server.data_dir / "blobs").rglob("*") if p.is_file()]
    assert blobs
    for blob in blobs:
        name = blob.parent.name + blob.name
        assert name.endswith(hashlib.sha256(blob.read_bytes()).hexdigest()), blob
    left = [p for p in (server.data_dir / "tmp").rglob("*") if p.is_file()]
    assert not left, left


def items(server, path):
    """A whole list, page by page."""
    found, cursor = [], ""
    while True:
        answer = server.get(f"{path}?limit=3{cursor}")
        assert answer.status == 200, answer.text()
        page = answer.json()
        found += page["items"]
        if not page.get("next_cursor"):
            return found
        cursor = f"&cursor={page['next_cursor']}"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
