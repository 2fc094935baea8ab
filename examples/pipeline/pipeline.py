#!/usr/bin/env python3
"""From a float model to INT8 in production: upload, quantize behind a gate, canary, compare, promote or take back.

    python3 pipeline.py --server http://127.0.0.1:8000 --endpoint resnet8 --model model.onnx \\
        --calibration calib.npz --evaluation eval.npz

Needs Python 3.11 and nothing else. Where the server asks for a key, OCTET_KEY has one (read, write, infer).
Exit status: 0 promoted, 1 something broke, 3 the gate was not kept, 4 taken back.
"""

import argparse
import base64
import hashlib
import http.client
import json
import os
import pathlib
import sys
import time
import urllib.parse

PROMOTED, BROKEN, GATE_NOT_KEPT, TAKEN_BACK = 0, 1, 3, 4


class Refused(Exception):
    """An answer that is no success: its status and what the server says."""

    def __init__(self, method, path, status, problem):
        super().__init__(f"{method} {path}: {status} {problem.get('detail') or problem.get('error') or problem}")
        self.status, self.code = status, problem.get("code")


class Octet:
    """The few calls of Octet's API that a rollout needs."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.key = os.environ.get("OCTET_KEY")
        self.https, self.address, self.prefix = parts.scheme == "https", parts.netloc, parts.path.rstrip("/")

    def call(self, method, path, value=None, headers=None):
        """JSON, or a file, there and JSON back; gives the answer and its ETag."""
        headers = dict(headers or {})
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        body = value
        if isinstance(value, dict):
            body, headers["Content-Type"] = json.dumps(value), "application/json"
        kind = http.client.HTTPSConnection if self.https else http.client.HTTPConnection
        connection = kind(self.address, timeout=300)
        try:
            try:
                connection.request(method, self.prefix + path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # Refused before all was sent: the answer says why.
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        try:
            found = json.loads(text) if text else {}
        except ValueError:
            found = {"detail": text[:200].decode(errors="replace")}
        if answer.status >= 300:
            raise Refused(method, path, answer.status, found)
        return found, answer.getheader("ETag")

    def upload(self, kind, name, path):
        """Sends a file with its digest; gives its version. The same bytes again are the same version."""
        with open(path, "rb") as file:
            digest = base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()
            file.seek(0)
            headers = {"Content-Digest": f"sha-256=:{digest}:", "Content-Type": "application/octet-stream",
                       "Content-Length": str(path.stat().st_size)}
            found, _ = self.call("PUT", f"/v1/{kind}/{name}", file, headers)
        return f"{name}@{found['version']}"

    def finished(self, job, seconds):
        """The job when it has ended."""
        end, shown = time.monotonic() + seconds, None
        while job["state"] in ("queued", "running"):
            if time.monotonic() > end:
                self.call("POST", f"/v1/jobs/{job['id']}/cancel")
                raise TimeoutError(f"job {job['id']} has not ended in {seconds} s and is cancelled")
            job, _ = self.call("GET", f"/v1/jobs/{job['id']}?wait=10")
            if job["phase"] != shown:
                shown = job["phase"]
                print(f"  {job['state']}: {shown}", flush=True)
        return job

    def endpoint(self, name):
        """The endpoint and its ETag; None where there is none."""
        try:
            return self.call("GET", f"/v1/endpoints/{name}")
        except Refused as refused:
            if refused.status == 404:
                return None, None
            raise


def quantize(octet, arguments):
    """Sees a job through; gives it."""
    model = octet.upload("models", arguments.endpoint, arguments.model)
    calibration = octet.upload("datasets", f"{arguments.endpoint}-calibration", arguments.calibration)
    evaluation = octet.upload("datasets", f"{arguments.endpoint}-evaluation", arguments.evaluation)
    spec = {"kind": "quantize", "model": model, "calibration": calibration, "evaluation": evaluation,
            "recipe": {"gate": {"max_drop": arguments.max_drop, "min_agreement": arguments.gate_agreement}}}
    # Calibration data go when the job has ended. A pipeline that runs again uploads them again.
    job, _ = octet.call("POST", "/v1/jobs", spec)
    print(f"job {job['id']} quantizes {model}", flush=True)
    return octet.finished(job, arguments.job_seconds)


def verdict(job):
    """What the job found out, in lines."""
    result = job["result"]
    accuracy, latency = result["accuracy"], result["latency"]
    return [
        f"{accuracy['metric']}: float {accuracy['float']:.4f}, INT8 {accuracy['int8']:.4f} ({accuracy['delta']:+.4f}) on "
        f"{accuracy['samples']} samples",
        f"agreement with float: {accuracy['agreement']:.4f}",
        f"size: {result['size_ratio']:.2f} of the float model; latency: {latency['float_ms']:.3f} ms float, "
        f"{latency['int8_ms']:.3f} ms INT8",
    ]


def canary(octet, arguments, artifact):
    """Gives the artifact a share of the requests; gives the endpoint and the versions before and new."""
    name = arguments.endpoint
    before, etag = octet.endpoint(name)
    if before is None:
        found, _ = octet.call("PUT", f"/v1/endpoints/{name}", {"artifact": artifact}, {"If-None-Match": "*"})
        return found, None, found["default_version"]
    old = before["default_version"]
    change = {
        "artifact": artifact, "weight": arguments.weight,
        # What INT8 answers is compared with float, beside the requests: clients do not wait for it.
        "shadow": {"fraction": arguments.fraction},
        # The server takes the version back by itself, whether this program still runs or not.
        "rollback": {"min_agreement": arguments.min_agreement, "max_error_ratio": 0.05,
                     "min_requests": arguments.min_compared},
    }
    headers = {"If-Match": etag, "Octet-Reason": "pipeline: canary"}
    found, _ = octet.call("PUT", f"/v1/endpoints/{name}", change, headers)
    return found, old, max(v["version"] for v in found["versions"])


def judged(octet, arguments, new):
    """Watches the canary; gives whether it may have all requests, and why."""
    end, request = time.monotonic() + arguments.canary_seconds, None
    if arguments.request:
        request = json.loads(arguments.request.read_text())
    while True:
        found, _ = octet.endpoint(arguments.endpoint)
        version = next(v for v in found["versions"] if v["version"] == new)
        if version["state"] == "UNAVAILABLE":
            return False, f"version {new} cannot be loaded: {version['reason']}"
        if version["weight"] == 0:
            changes, _ = octet.call("GET", f"/v1/endpoints/{arguments.endpoint}/changes")
            return False, f"the server took it back: {changes['items'][0]['reason']}"
        shadow = version["shadow"] or {"compared": 0}
        if shadow["compared"] >= arguments.min_compared:
            says = f"agrees with float on {shadow['agreement']:.4f} of {shadow['compared']} samples (cosine " \
                   f"{shadow['cosine']:.5f})"
            return shadow["agreement"] >= arguments.min_agreement, says
        if time.monotonic() > end:
            return False, f"only {shadow['compared']} samples were compared in {arguments.canary_seconds} s"
        if request:
            # For endpoints without clients: some requests of our own.
            for _ in range(50):
                octet.call("POST", f"/v2/models/{arguments.endpoint}/infer", request)
        else:
            time.sleep(2)


def roll_out(octet, arguments):
    """The whole way; gives the exit status and what to say at the end."""
    job = quantize(octet, arguments)
    if job["state"] == "gate_failed":
        return GATE_NOT_KEPT, [f"gate not kept: {(job['error'] or {}).get('message')}"]
    if job["state"] != "succeeded":
        return BROKEN, [f"job {job['state']}: {job['error']}"]
    lines = verdict(job)
    artifact = job["result"]["artifact"]["id"]
    served, old, new = canary(octet, arguments, artifact)
    if old is None:
        return PROMOTED, [*lines, f"first version of {arguments.endpoint}: all requests, state {served['state']}"]
    print(f"version {new} gets {arguments.weight} % of the requests of {arguments.endpoint}", flush=True)
    good, why = judged(octet, arguments, new)
    to = new if good else old
    octet.call("PUT", f"/v1/endpoints/{arguments.endpoint}", {"routes": [{"version": to, "weight": 100}]},
               {"Octet-Reason": f"pipeline: {why}"[:200]})
    lines.append(f"version {new} {why}: " + ("promoted" if good else f"taken back, version {old} answers"))
    return PROMOTED if good else TAKEN_BACK, lines


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    path = {"type": pathlib.Path, "metavar": "FILE"}
    parser.add_argument("--server", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--endpoint", required=True, metavar="NAME", help="the model and its data get this name, too")
    parser.add_argument("--model", required=True, help="float ONNX", **path)
    parser.add_argument("--calibration", required=True, help=".npz", **path)
    parser.add_argument("--evaluation", required=True, help=".npz, with labels or without", **path)
    parser.add_argument("--max-drop", type=float, default=0.005, metavar="R", help="gate: loss of accuracy [0.005]")
    parser.add_argument("--gate-agreement", type=float, default=0.97, metavar="R",
                        help="gate: share of samples with the answer of float [0.97]")
    parser.add_argument("--weight", type=float, default=5, metavar="PERCENT", help="of the canary [5]")
    parser.add_argument("--fraction", type=float, default=1.0, metavar="R", help="of requests to compare [1.0]")
    parser.add_argument("--min-agreement", type=float, default=0.98, metavar="R", help="in use, to promote [0.98]")
    parser.add_argument("--min-compared", type=int, default=200, metavar="N", help="samples to judge by [200]")
    parser.add_argument("--request", help="JSON of a request to send while nobody else does", **path)
    parser.add_argument("--job-seconds", type=int, default=3600, metavar="S", help="[3600]")
    parser.add_argument("--canary-seconds", type=int, default=900, metavar="S", help="[900]")
    return parser.parse_args()


def main():
    arguments = parse()
    if arguments.weight == int(arguments.weight):
        arguments.weight = int(arguments.weight)
    try:
        status, lines = roll_out(Octet(arguments.server), arguments)
    except (Refused, OSError, http.client.HTTPException) as error:
        status, lines = BROKEN, [str(error)]
    print("\n".join(lines), file=sys.stdout if status == PROMOTED else sys.stderr, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
