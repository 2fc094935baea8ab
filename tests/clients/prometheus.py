"""The dashboard and the alerts in a real Prometheus that scrapes a busy server: every query has data."""

import contextlib
import io
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import tritonclient.grpc as triton

import support

DOCKER = support.ROOT / "docker"
# A scrape a second instead of ten, so that a rate has data after seconds.
INTERVALS = {"$__rate_interval": "5s", "$__range": "1m", "$__interval": "1s"}
TRAFFIC_SECONDS = 12
NAME = re.compile(r"\b(?:octet|process)_[a-z0-9_]+")
SUFFIX = re.compile(r"_(bucket|sum|count)$")
# What an alert compares: the part before the last comparison with a number. The rest is empty while all is well.
COMPARED = re.compile(r"^(?P<left>.*?)\s*(?:==|<|>)\s*[-0-9.]+\s*$", re.S)


def program():
    """Debian's `prometheus` stands beside its promtool."""
    beside = pathlib.Path(os.environ.get("PROMTOOL") or shutil.which("promtool") or "/nonexistent").resolve()
    tool = beside.with_name("prometheus")
    tool = str(tool) if tool.exists() else shutil.which("prometheus")
    assert tool, "prometheus is missing (Debian's package `prometheus`, which has promtool, too); tests/run fetches it"
    return tool


class Prometheus:
    """A Prometheus on a free port that scrapes one server each second, with the alerts of docker/."""

    def __init__(self, target):
        self.folder = tempfile.TemporaryDirectory(prefix="octet-prometheus-")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        config = pathlib.Path(self.folder.name) / "prometheus.yml"
        ours = (DOCKER / "prometheus.yml").read_text()
        ours = ours.replace("octet:8000", target).replace("10s", "1s").replace("alerts.yml", f"{DOCKER}/alerts.yml")
        assert target in ours and "scrape_interval: 1s" in ours, ours
        config.write_text(ours)
        self.log_path = pathlib.Path(self.folder.name) / "log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [program(), f"--config.file={config}", f"--storage.tsdb.path={self.folder.name}/data",
                 f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def __enter__(self):
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError, AssertionError):
                if self.get("query", query='up{job="octet"} == 1')["result"]:
                    return self
            if self.process.poll() is not None or time.monotonic() > end:
                log = self.log_path.read_text()
                self.__exit__()
                raise AssertionError(f"Prometheus does not scrape:\n{log[-3000:]}")
            time.sleep(0.1)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def get(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.code} {error.read()[:500]}") from None

    def values(self, expr, begun=None):
        """All numbers that are not NaN: now, or since some time."""
        if begun is None:
            return [v for s in self.get("query", query=expr)["result"] if not math.isnan(v := float(s["value"][1]))]
        found = self.get("query_range", query=expr, start=begun, end=time.time(), step=1)["result"]
        return [v for s in found for _, text in s["values"] if not math.isnan(v := float(text))]


def plain(expr):
    """A query of the dashboard as Grafana sends it when everything is chosen."""
    for variable, value in INTERVALS.items():
        expr = expr.replace(variable, value)
    expr = re.sub(r"\$(endpoint|precision)\b", ".*", expr)
    assert "$" not in expr, f"a variable that this test does not know: {expr}"
    return expr


def panels():
    return [(p["title"], t) for p in json.loads((DOCKER / "grafana/dashboard.json").read_text())["panels"]
            for t in p.get("targets", [])]


def put(server, name, **body):
    answer = server.request("PUT", f"/v1/endpoints/{name}", json.dumps(body))
    assert answer.status in (200, 201), f"PUT {name} {body}: {answer.status} {answer.text()}"


def traffic(server, prometheus):
    """Something of everything that the dashboard shows: jobs that succeed and fail their gate, a canary that is taken
    back, comparisons with float, inputs outside of what was calibrated, refusals."""
    images = support.images()[0]
    good = server.quantize("fm_lenet", endpoint="lenet", keep=True)
    artifact = good["result"]["artifact"]["id"]
    data = io.BytesIO()
    np.savez(data, input=images[:64] * np.float32(0.01))
    assert server.put("/v1/datasets/wrong-calib", data.getvalue()).status in (200, 201)
    # Ranges of a hundredth of what comes: nearly everything saturates.
    spec = {"model": "fm_lenet", "calibration": "wrong-calib", "recipe": {"ranges": "minmax", "scheme": "static"}}
    broken = server.wait(server.submit(**spec))
    assert broken["state"] == "succeeded", broken
    put(server, "lenet", shadow={"fraction": 1.0})
    put(server, "canary", artifact=artifact)
    put(server, "canary", shadow={"fraction": 1.0}, rollback={"min_agreement": 0.95, "min_requests": 40})
    # `increase` sees what was counted after the first sample alone.
    rollbacks = 'octet_endpoint_rollbacks_total{endpoint="canary"}'
    server.until(lambda: prometheus.values(rollbacks), "Prometheus has a first sample of the rollbacks")
    put(server, "canary", artifact=broken["result"]["artifact"]["id"], weight=20)
    # Until its rule takes it back, which needs runs in float: nothing else is asked meanwhile.
    end, n = time.monotonic() + 60, 0
    while server.get("/v1/endpoints/canary").json()["versions"][-1]["weight"]:
        assert time.monotonic() < end, f"not taken back: {server.get('/v1/endpoints/canary').text()}"
        n = (n + 1) % 5000
        server.infer("canary", "input", images[n:n + 1])
    put(server, "full", artifact=artifact)
    put(server, "full", queue_limit=1)
    stop, failures = threading.Event(), []

    def ask(turn):
        n = turn
        while not stop.is_set():
            n = (n + 1) % 5000
            try:
                server.infer("lenet", "input", images[n:n + 4])
                server.infer("canary", "input", images[n:n + 1])
            except AssertionError as error:
                failures.append(error)
                return

    def crowd():
        body = {"inputs": [{"name": "input", "shape": [8, 1, 28, 28], "datatype": "FP32", "data": [9] * 6272}]}
        while not stop.is_set():
            server.post("/v2/models/full/infer", body)  # 200 or 429

    def jobs():
        # A job that ends while Prometheus looks has a rate.
        again = {"model": "fm_lenet", "calibration": "fm_lenet-calib", "evaluation": "fm-eval", "keep": True}
        while not stop.is_set():
            server.wait(server.submit(**again))

    def calls():
        with triton.InferenceServerClient(server.grpc_address) as client:
            while not stop.is_set():
                assert client.is_server_live()
                time.sleep(0.05)

    threads = [threading.Thread(target=ask, args=(n * 1000,)) for n in range(2)]
    threads += [threading.Thread(target=crowd) for _ in range(6)]
    threads += [threading.Thread(target=jobs), threading.Thread(target=calls)]
    for t in threads:
        t.start()
    time.sleep(TRAFFIC_SECONDS)
    return stop, threads, failures


def check_every_query_and_every_alert_has_data(server):
    with Prometheus(server.address) as prometheus:
        begun = time.time()
        stop, threads, failures = traffic(server, prometheus)
        try:
            families = set(re.findall(r"^# TYPE (\S+)", server.get("/metrics").text(), re.M))
            # Told apart from queries without data: a misspelt name, mostly.
            absent, empty = set(), []

            def known(expr):
                lacks = {SUFFIX.sub("", n) for n in NAME.findall(expr)} - families
                absent.update(lacks)
                return not lacks

            asked = 0
            for title, target in panels():
                expr = plain(target["expr"])
                if known(expr):
                    asked += 1
                    if not prometheus.values(expr, None if target["instant"] else begun):
                        empty.append(f"{title}: {expr}")
            rules = [r for g in prometheus.get("rules")["groups"] for r in g["rules"]]
            assert len(rules) == (DOCKER / "alerts.yml").read_text().count("- alert:"), rules
            for rule in rules:
                assert rule["health"] == "ok" or not rule["lastError"], rule
                prometheus.values(rule["query"])
                # Only the first of alternatives: what others stand for is absent.
                left = COMPARED.match(re.split(r"\bor\b", rule["query"])[0])
                assert left, f"{rule['name']} compares nothing with a number: {rule['query']}"
                if known(left["left"]):
                    asked += 1
                    if not prometheus.values(left["left"], begun):
                        empty.append(f"alert {rule['name']}: {left['left']}")
        finally:
            stop.set()
            for t in threads:
                t.join()
        assert not failures, failures[0]
        dashboard = json.loads((DOCKER / "grafana/dashboard.json").read_text())
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.match(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
                assert prometheus.get(f"label/{label}/values", **{"match[]": metric}), variable["name"]
        assert not empty, f"{len(empty)} of {asked} queries have no data:\n" + "\n".join(empty)
        rejected = prometheus.values('sum(octet_inference_requests_total{outcome="rejected"})')
        assert rejected and rejected[0] > 0, "no request was refused"
        firing = {a["labels"]["alertname"] for a in prometheus.get("alerts")["alerts"]}
        assert not absent, f"the queries ask for what this server does not have: {sorted(absent)}"
        assert "OctetRolledBack" in firing, f"the canary was taken back, but these fire: {sorted(firing)}"
    return f"{asked} queries have data; alerts seen: {', '.join(sorted(firing))}"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
