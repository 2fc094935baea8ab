"""Several processes over one Postgres and one object store: what one takes, another does and a third serves; and when any
of them dies, nothing that was acknowledged is lost.

KILLS and JOBS make the test of deaths longer: 200 and 50 are what we hold to.
"""

import contextlib
import datetime
import hashlib
import http.client
import json
import os
import random
import signal
import sys
import threading
import time

import cluster
import numpy as np
import support

KILLS, JOBS = int(os.environ.get("KILLS", "20")), int(os.environ.get("JOBS", "12"))
MODEL = "fm_mlp"


def upload(server, name=MODEL):
    for path, file in [(f"/v1/models/{name}", support.model_path(MODEL)),
                       (f"/v1/datasets/{name}-calib", support.calibration_path(MODEL))]:
        answer = server.put(path, file)
        assert answer.status in (200, 201), f"PUT {path}: {answer.status} {answer.text()}"


def check_what_one_replica_takes_another_serves(binary):
    with cluster.Cluster(binary) as c:
        a, b = c.api
        upload(a)
        spec = {"model": MODEL, "calibration": f"{MODEL}-calib", "keep": True}
        job = b.wait(b.submit(**spec, endpoint=MODEL))
        assert job["state"] == "succeeded", json.dumps(job, indent=1)
        began = time.monotonic()
        for server in c.api:
            server.until(lambda s=server: s.get(f"/v2/models/{MODEL}/ready").status == 200, "it is served everywhere")
        converged = time.monotonic() - began
        batch = support.images()[0][:16]
        answers = [s.infer(MODEL, "input", batch) for s in c.api]
        assert np.array_equal(*answers), "replicas give other answers"
        # A change of one is a change of all.
        etag = a.get(f"/v1/endpoints/{MODEL}").headers["etag"]
        change = a.request("PUT", f"/v1/endpoints/{MODEL}", json.dumps({"model": MODEL}), {"If-Match": etag})
        assert change.status == 200, change.text()
        b.until(lambda: b.get(f"/v2/models/{MODEL}").json().get("versions") == ["1", "2"], "the change arrives", 10)
        # Workers answer for their health only.
        refused = c.workers[0].get("/v1/models")
        assert refused.status == 404 and "role `worker`" in refused.json()["detail"], refused.text()
        # Data that are deleted are gone from the store and from all copies.
        data = a.get(f"/v1/datasets/{MODEL}-calib").json()
        digest = data["sha256"]
        assert digest in c.store.digests()
        gone = b.request("DELETE", f"/v1/datasets/{MODEL}-calib")
        assert gone.status == 200, gone.text()
        a.until(lambda: digest not in c.store.digests(), "the data are gone", 10)
        return f"served by the other replica {converged:.2f} s after the end of the job"


def check_the_end_of_a_job_is_heard_at_another_replica(binary):
    """The round in which all watched jobs are looked at comes every two seconds: six ends in a row come before it."""
    with cluster.Cluster(binary, api=1, workers=1) as c:
        api, late = c.api[0], []
        upload(api)
        for _ in range(6):
            job = api.submit(model=MODEL, calibration=f"{MODEL}-calib", keep=True)
            ended = api.get(f"/v1/jobs/{job}?wait=50").json()
            late.append(time.time() - datetime.datetime.fromisoformat(ended["finished_at"]).timestamp())
            assert ended["state"] == "succeeded", ended
        assert max(late) < 1.2, late
    return f"{max(late):.2f} s after the end at most"


def check_a_worker_that_was_paused_cannot_write(binary):
    """Its lease runs out while it stands still; another does the job; when it goes on, it finds that it is too late."""
    with cluster.Cluster(binary, api=1, workers=1, settings={"OCTET_JOBS__LEASE_SECONDS": "5"}) as c:
        api, paused = c.api[0], c.workers[0]
        for path, file in [("/v1/models/m", support.model_path("fm_resnet8")),
                           ("/v1/datasets/d", support.EVALUATION_PATH)]:
            assert api.put(path, file).status == 201
        job = api.submit(model="m", calibration="d", keep=True)
        api.until(lambda: api.job(job)["state"] == "running", "it runs")
        paused.process.send_signal(signal.SIGSTOP)
        try:
            other = c.replica("worker", 1)
            done = api.wait(job, 120)
        finally:
            paused.process.send_signal(signal.SIGCONT)
        assert done["state"] == "succeeded" and done["attempt"] == 2, json.dumps(done, indent=1)
        paused.until(lambda: "goes on elsewhere" in paused.log(), "the paused one gives up", 60)
        assert api.job(job) == done, "what has ended does not change"
        made = api.get(f"/v1/artifacts?job={job}").json()["items"]
        assert len(made) == 1, made
        assert other.process.poll() is None and paused.process.poll() is None


def check_the_database_restarts(binary):
    with cluster.Cluster(binary, api=1, workers=1) as c:
        api = c.api[0]
        upload(api)
        spec = {"model": MODEL, "calibration": f"{MODEL}-calib", "keep": True}
        assert api.wait(api.submit(**spec, endpoint=MODEL))["state"] == "succeeded"
        api.until(lambda: api.get(f"/v2/models/{MODEL}/ready").status == 200, "it is served")
        batch = support.images()[0][:2]
        before = api.infer(MODEL, "input", batch)
        job = api.submit(**spec)
        c.postgres("stop", "immediate")
        refused = api.get("/v1/models")
        assert refused.status == 503 and refused.json()["code"] == "storage_unavailable", refused.text()
        assert refused.headers.get("retry-after"), refused.headers
        # Inference needs no database.
        assert np.array_equal(api.infer(MODEL, "input", batch), before)
        time.sleep(2)
        assert c.postgres("start", "fsync=off") == c.database_url
        api.until(lambda: api.get("/v1/models").status == 200, "the database is found again", 20)
        assert api.wait(job, 120)["state"] == "succeeded"


def check_the_object_store_stands_still(binary):
    """A store that does not answer fails uploads with a clear error, and jobs only for now."""
    with cluster.Cluster(binary, api=1, workers=1) as c:
        api = c.api[0]
        upload(api)
        c.store.process.send_signal(signal.SIGSTOP)
        try:
            job = api.submit(model=MODEL, calibration=f"{MODEL}-calib", keep=True)
            began = time.monotonic()
            refused = api.put("/v1/models/other", support.model_path("fm_lenet"))
            seconds = time.monotonic() - began
        finally:
            c.store.process.send_signal(signal.SIGCONT)
        assert refused.status in (503, 504), f"{refused.status} {refused.text()}"
        assert api.wait(job, 240)["state"] == "succeeded", api.job(job)
        assert api.put("/v1/models/other", support.model_path("fm_lenet")).status == 201
        return f"refused after {seconds:.0f} s"


class Client(threading.Thread):
    """Uploads and submits until it has its number of jobs acknowledged; remembers only what was acknowledged."""

    def __init__(self, servers, number, jobs):
        super().__init__()
        self.servers, self.number, self.wanted = servers, number, jobs
        self.jobs, self.uploads, self.keys = [], {}, 0

    def run(self):
        rng = random.Random(self.number)
        while len(self.jobs) < self.wanted:
            server = rng.choice(self.servers)
            name = f"m{self.number}-{len(self.jobs)}"
            # Bytes of its own, so that each upload is a blob.
            extra = np.random.default_rng([self.number, len(self.jobs)]).integers(0, 255, 50_000, np.uint8).tobytes()
            with contextlib.suppress(OSError, http.client.HTTPException):
                model = support.model_path(MODEL).read_bytes() + protobuf_padding(extra)
                if server.request("PUT", f"/v1/models/{name}", model, timeout=60).status not in (200, 201):
                    continue
                self.uploads[name] = hashlib.sha256(model).hexdigest()
                spec = {"kind": "quantize", "model": name, "calibration": f"{MODEL}-calib", "keep": True}
                # The same key until it is acknowledged: a request whose answer was lost makes no second job.
                headers = {"Idempotency-Key": f'"{name}"', "Content-Type": "application/json"}
                answer = server.request("POST", "/v1/jobs", json.dumps(spec), headers, timeout=60)
                if answer.status in (200, 202):
                    self.jobs.append(answer.json()["id"])
            time.sleep(0.02)


def protobuf_padding(extra):
    """An unknown field 1000 of bytes, which readers of ONNX pass over."""
    def varint(n):
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])
    return varint(1000 << 3 | 2) + varint(len(extra)) + extra


def survive(servers, victims, kills, jobs, settle):
    """Kills and starts victims at random moments while clients upload and submit; gives what was acknowledged."""
    clients = [Client(servers, n, share) for n, share in enumerate([jobs // 2, jobs - jobs // 2])]
    for client in clients:
        client.start()
    rng, killed = random.Random(7), 0
    ended, deadline = {}, time.monotonic() + 60 + 6 * kills + 6 * jobs
    while True:
        submitted = [job for client in clients for job in client.jobs]
        if killed < kills:
            time.sleep(rng.uniform(0, 0.6))
            victim = rng.choice(victims)
            victim.kill()
            victim.start()
            killed += 1
        else:
            time.sleep(0.2)
        for job in submitted:
            if job not in ended:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    state = servers[0].job(job)
                    if state["state"] not in ("queued", "running"):
                        ended[job] = state
        if killed >= kills and len(ended) == jobs and not any(client.is_alive() for client in clients):
            break
        assert time.monotonic() < deadline, f"{killed} kills, {len(submitted)} submitted, {len(ended)} ended"
    settle()
    server = servers[0]
    states = {}
    for job, state in ended.items():
        assert server.job(job) == state, "what has ended does not change"
        states[state["state"]] = states.get(state["state"], 0) + 1
        made = server.get(f"/v1/artifacts?job={job}").json()["items"]
        assert len(made) == (1 if state["state"] == "succeeded" else 0), (state, made)
        for artifact in made:
            bytes_ = server.get(f"/v1/artifacts/{artifact['id']}/download").body
            assert hashlib.sha256(bytes_).hexdigest() == artifact["sha256"]
            assert server.get(f"/v1/artifacts/{artifact['id']}/report").status == 200
    uploads = {name: digest for client in clients for name, digest in client.uploads.items()}
    for name, digest in uploads.items():
        kept = server.get(f"/v1/models/{name}/download").body
        assert hashlib.sha256(kept).hexdigest() == digest, f"{name} is not whole"
    # Three attempts may all have met a death: that is told as such.
    assert set(states) <= {"succeeded", "failed"}, states
    failed = [state["error"]["code"] for state in ended.values() if state["state"] == "failed"]
    assert set(failed) <= {"lease_lost", "storage"}, failed
    return f"{killed} kills, {len(ended)} jobs: {states}, {len(uploads)} uploads whole"


def referenced(server):
    """The digests that the records name."""
    found = set()
    for kind in ("models", "datasets", "artifacts"):
        cursor = ""
        while True:
            page = server.get(f"/v1/{kind}?limit=200{cursor}").json()
            for item in page["items"]:
                found |= {item["sha256"]}
                if kind == "artifacts":
                    one = server.get(f"/v1/artifacts/{item['id']}").json()
                    found |= {v for k, v in one.items() if isinstance(v, str) and len(v) == 64}
            if not page.get("next_cursor"):
                break
            cursor = "&cursor=" + page["next_cursor"]
    return found


def check_nothing_is_lost_when_replicas_die(binary):
    with cluster.Cluster(binary, settings={"OCTET_JOBS__LEASE_SECONDS": "5", "OCTET_JOBS__ATTEMPTS_MAX": "20"}) as c:
        upload(c.api[0])

        def settle():
            # What a process that died was writing is held for an hour; here nobody writes any more.
            c.api[0].until(lambda: all(s.get("/v2/health/ready").status == 200 for s in c.api), "all answer")

        said = survive(c.api, c.api + c.workers, KILLS, JOBS, settle)
        named, kept = referenced(c.api[0]), set(c.store.digests())
        assert named <= kept, named - kept
        return f"{said}; {len(named)} blobs named, {len(kept - named)} more wait for the next sweep"


def check_nothing_is_lost_when_a_lonely_server_dies(binary):
    with support.Server(binary, settings={"OCTET_JOBS__ATTEMPTS_MAX": "20"}) as server:
        upload(server)
        said = survive([server], [server], KILLS, JOBS, lambda: None)
        server.stop()
        server.start()
        # Now only what records name is there, and nothing half-written.
        files = [p for p in (server.data_dir / "blobs").glob("*/*")]
        assert not list((server.data_dir / "tmp").iterdir())
        for path in files:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name + path.name, path
        missing = referenced(server) - {p.parent.name + p.name for p in files}
        assert not missing, missing
        return said


if __name__ == "__main__":
    support.main(sys.modules[__name__])
