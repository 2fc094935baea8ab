"""A rollout: canary by weight, live comparison with float, rollback by rule, limits, and the record of it all."""

import http.client
import io
import json
import sys
import threading
import time

import numpy as np

import support


def put(server, name, status=200, **body):
    answer = server.request("PUT", f"/v1/endpoints/{name}", json.dumps(body))
    assert answer.status == status, f"PUT {name} {body}: {answer.status} {answer.text()}"
    return answer.json()


def view(server, name):
    return server.get(f"/v1/endpoints/{name}").json()


def version(server, name, number):
    return next(v for v in view(server, name)["versions"] if v["version"] == number)


def ask(server, name, requests, array, threads=4):
    """So many requests over connections that stay open; gives how often each version answered."""
    counts, lock = {}, threading.Lock()

    def run(count):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body, headers = support.binary_request("input", array)
        mine = {}
        for _ in range(count):
            connection.request("POST", f"/v2/models/{name}/infer", body, headers)
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == 200, data
            size = int(answer.getheader("inference-header-content-length"))
            by = json.loads(data[:size])["model_version"]
            mine[by] = mine.get(by, 0) + 1
        connection.close()
        with lock:
            for by, n in mine.items():
                counts[by] = counts.get(by, 0) + n

    workers = [threading.Thread(target=run, args=(requests // threads,)) for _ in range(threads)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert sum(counts.values()) == requests, f"of {requests} requests {counts} were answered"
    return counts


def check_canary_gets_its_share(server):
    job = server.quantize("fm_mlp", evaluation=False)
    put(server, "mlp", 201, model="fm_mlp")
    seen = put(server, "mlp", artifact=job["result"]["artifact"]["id"], weight=10)
    assert [(v["version"], v["weight"], v["precision"]) for v in seen["versions"]] == [(1, 90, "fp32"), (2, 10, "int8")]
    assert seen["default_version"] == 1 and seen["state"] == "READY", seen
    counts = ask(server, "mlp", 10_000, support.images()[0][:1])
    assert 900 <= counts["2"] <= 1100, counts
    seen = put(server, "mlp", routes=[{"version": 2, "weight": 100}])
    assert seen["default_version"] == 2, seen
    assert ask(server, "mlp", 100, support.images()[0][:1]) == {"2": 100}
    put(server, "mlp", routes=[{"version": 1, "weight": 100}])
    assert ask(server, "mlp", 100, support.images()[0][:1]) == {"1": 100}
    return f"{counts['2']} of 10,000 at 10 %"


def check_a_version_is_swapped_under_load_without_a_failed_request(server):
    stop, answered, failed = threading.Event(), [], []

    def load():
        body, headers = support.binary_request("input", support.images()[0][:1])
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while not stop.is_set():
            connection.request("POST", "/v2/models/mlp/infer", body, headers)
            answer = connection.getresponse()
            data = answer.read()
            (answered if answer.status == 200 else failed).append(data)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for t in threads:
        t.start()
    try:
        for _ in range(10):
            # Ten swaps take 50 ms; each is to have requests before and after it.
            seen = len(answered)
            server.until(lambda: failed or len(answered) > seen + 20, "requests are answered")
            put(server, "mlp", model="fm_mlp")
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not failed, failed[:1]
    return f"{len(answered)} requests"


def check_live_comparison_is_what_one_finds_offline(server):
    job = server.quantize("fm_mbv2", evaluation=False)
    put(server, "mbv2", 201, artifact=job["result"]["artifact"]["id"], shadow={"fraction": 1.0})
    batch = support.images()[0][:600]
    int8 = np.concatenate([server.infer("mbv2", "input", batch[n:n + 3]) for n in range(0, 600, 3)])
    server.until(lambda: version(server, "mbv2", 1)["shadow"]["compared"] >= 600, "all is compared")
    live = version(server, "mbv2", 1)["shadow"]
    floats = []
    for n in range(0, 600, 100):
        body = {"inputs": [{"name": "input", "shape": [100, 1, 28, 28], "datatype": "FP32",
                            "data": batch[n:n + 100].ravel().tolist()}], "parameters": {"precision": "fp32"}}
        answer = server.post("/v2/models/mbv2/infer", body)
        assert answer.status == 200, answer.text()
        floats.append(np.float64(answer.json()["outputs"][0]["data"]).reshape(100, -1))
    fp32, int8 = np.concatenate(floats), np.float64(int8)
    agreement = np.mean(fp32.argmax(1) == int8.argmax(1))
    norms = np.linalg.norm(fp32, axis=1) * np.linalg.norm(int8, axis=1)
    cosine = np.mean((fp32 * int8).sum(1) / norms)
    error = np.abs(fp32 - int8).max()
    assert live["compared"] == 600 and live["agreed"] == round(agreement * 600), (live, agreement)
    assert abs(live["agreement"] - agreement) < 1e-9, (live, agreement)
    assert abs(live["cosine"] - cosine) < 1e-6, (live, cosine)
    assert abs(live["max_abs_error"] - error) < 1e-4 * error, (live, error)
    text = server.get("/metrics").text()
    assert f'octet_shadow_comparisons_total{{endpoint="mbv2",outcome="match",version="1"}} {live["agreed"]}' in text
    return f"agreement {live['agreement']:.4f}, cosine {live['cosine']:.6f}"


def check_drift_of_inputs_is_seen(server):
    drift = version(server, "mbv2", 1)["out_of_range"]
    assert 0 <= drift["input"] < 0.01, f"test images lie outside of what calibration saw: {drift}"
    for _ in range(1500):
        server.infer("mbv2", "input", np.full((1, 1, 28, 28), 99, np.float32))
    drift = version(server, "mbv2", 1)["out_of_range"]
    assert drift["input"] > 0.9, drift
    assert 'octet_input_out_of_range_ratio{endpoint="mbv2",input="input",version="1"}' in server.get("/metrics").text()


def check_a_job_takes_ranges_from_live_traffic(server):
    put(server, "mbv2", shadow={"fraction": 1.0, "statistics": True})
    assert server.get("/v1/endpoints/mbv2/statistics").status == 404
    for n in range(0, 300, 3):
        server.infer("mbv2", "input", support.images()[0][n:n + 3])
    server.until(lambda: version(server, "mbv2", 1)["shadow"]["compared"] >= 300, "all is compared")
    live = server.get("/v1/endpoints/mbv2/statistics")
    assert live.status == 200, live.text()
    answer = server.put("/v1/datasets/live", live.body)
    assert answer.status == 201 and answer.json()["info"]["samples"] == 300, answer.text()
    for path, file in [("/v1/models/fm_mbv2", support.model_path("fm_mbv2")), ("/v1/datasets/fm-eval", support.EVALUATION_PATH)]:
        assert server.put(path, file).status in (200, 201)
    job = server.wait(server.submit(model="fm_mbv2", calibration="live", evaluation="fm-eval"))
    assert job["state"] == "succeeded", job
    accuracy = job["result"]["accuracy"]
    assert accuracy["delta"] > -0.01, accuracy
    return f"delta {accuracy['delta']:+.4f}"


def check_a_broken_version_is_rolled_back(server):
    # Ranges of a hundredth of what comes: nearly everything saturates.
    images = support.images()[0]
    data = io.BytesIO()
    np.savez(data, input=images[:64] * np.float32(0.01))
    assert server.put("/v1/datasets/wrong-calib", data.getvalue()).status in (200, 201)
    assert server.put("/v1/models/fm_lenet", support.model_path("fm_lenet")).status in (200, 201)
    spec = {"model": "fm_lenet", "calibration": "wrong-calib", "recipe": {"ranges": "minmax", "scheme": "static"}}
    broken = server.wait(server.submit(**spec))
    assert broken["state"] == "succeeded", broken
    good = server.quantize("fm_lenet", evaluation=False)
    put(server, "lenet", 201, artifact=good["result"]["artifact"]["id"])
    put(server, "lenet", shadow={"fraction": 0.5}, rollback={"min_agreement": 0.95, "min_requests": 40})
    put(server, "lenet", artifact=broken["result"]["artifact"]["id"], weight=20)
    start, turns = time.monotonic(), 0
    while version(server, "lenet", 2)["weight"] > 0:
        assert time.monotonic() - start < 10, f"not rolled back: {view(server, 'lenet')}"
        ask(server, "lenet", 40, images[turns:turns + 1])
        turns += 1
    took = time.monotonic() - start
    seen = view(server, "lenet")
    assert [(v["version"], v["weight"]) for v in seen["versions"]] == [(1, 100), (2, 0)], seen
    last = server.get("/v1/endpoints/lenet/changes").json()["items"][0]
    assert last["by"] == "rollback" and "agree with float" in last["reason"], last
    assert 'octet_endpoint_rollbacks_total{endpoint="lenet"} 1' in server.get("/metrics").text()
    assert ask(server, "lenet", 40, images[:1]) == {"1": 40}
    return f"after {took:.1f} s"


def check_a_version_that_answers_all_is_rolled_back_to_the_one_before(server):
    broken = next(v for v in view(server, "lenet")["versions"] if v["weight"] == 0)["artifact"]
    put(server, "lenet", artifact=broken)
    start, turns = time.monotonic(), 0
    while view(server, "lenet")["default_version"] != 1:
        assert time.monotonic() - start < 10, f"not rolled back: {view(server, 'lenet')}"
        ask(server, "lenet", 40, support.images()[0][turns:turns + 1])
        turns += 1


def check_every_change_is_on_record(server):
    items = server.get("/v1/endpoints/mlp/changes").json()["items"]
    assert items[-1]["by"] == "api" and items[-1]["change"]["added"]["version"] == 1, items[-1]
    revisions = [i["revision"] for i in items]
    assert revisions == sorted(revisions, reverse=True) and revisions[-1] == 1, revisions
    answer = server.request("PUT", "/v1/endpoints/mlp", json.dumps({"queue_limit": 7}), {"Octet-Reason": "a test"})
    assert answer.status == 200, answer.text()
    last = server.get("/v1/endpoints/mlp/changes").json()["items"][0]
    assert last["reason"] == "a test" and last["change"]["settings"] == {"queue_limit": 7}, last


def check_what_cannot_be_is_refused(server):
    for body, says in [
        ({"routes": [{"version": 1, "weight": 50}]}, "version 1"),
        ({"weight": 5}, "model"),
        ({"shadow": {"fraction": 2}}, "shadow.fraction"),
        ({"rollback": {"min_agreement": 0.9}}, "shadow"),
        ({"queue_limit": 0}, "queue_limit"),
        ({"no_such": 1}, "no_such"),
        ({}, "nothing"),
    ]:
        answer = server.request("PUT", "/v1/endpoints/mlp", json.dumps(body))
        assert 400 <= answer.status < 500 and says in answer.text(), f"{body}: {answer.status} {answer.text()}"


def check_required_endpoints_decide_on_readiness(server):
    assert server.get("/v2/health/ready").status == 200
    put(server, "mlp", required=True)
    assert server.post("/v2/repository/models/mlp/unload", {}).status == 200
    answer = server.get("/v2/health/ready")
    assert answer.status == 503 and "mlp" in answer.text(), answer.text()
    assert server.post("/v2/repository/models/mlp/load", {}).status == 200
    assert server.get("/v2/health/ready").status == 200


def check_the_least_recently_used_makes_room_and_comes_back(binary):
    settings = {"OCTET_SERVING__MEMORY_BYTES": "1200000"}
    with support.Server(binary, settings=settings) as server:
        assert server.put("/v1/models/mlp", support.model_path("fm_mlp")).status == 201
        image = support.images()[0][:1]
        for name in "abcd":
            put(server, name, 201, model="mlp")
        states = {name: view(server, name)["state"] for name in "abcd"}
        assert states["a"] == "UNAVAILABLE" and states["d"] == "READY", states
        want = server.infer("d", "input", image)
        for name in "abcdabcd":
            assert np.array_equal(server.infer(name, "input", image), want), name
        loaded = sum(v["weight_bytes"] for name in "abcd" for v in view(server, name)["versions"])
        assert 0 < loaded <= 1_200_000, loaded
        return f"{loaded} bytes"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
