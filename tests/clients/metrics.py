"""`/metrics` under load, as Prometheus' own linter and the bundled dashboard see it."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading

import tritonclient.grpc as triton

import support

DOCKER = support.ROOT / "docker"
# What a name may have besides its own, because it is a histogram.
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def promtool(*arguments, text=None):
    tool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    assert tool, "promtool is missing (Debian's package `prometheus`); tests/run fetches it"
    done = subprocess.run([tool, *map(str, arguments)], input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"promtool {arguments[:2]}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def samples(text):
    """Name and labels of every sample, and its value."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, value = line.rsplit(" ", 1)
            found[key] = float(value)
    return found


def total(found, name, **labels):
    keys = [k for k in found if k.split("{")[0] == name and all(f'{n}="{v}"' in k for n, v in labels.items())]
    return sum(found[k] for k in keys)


def names_in_queries():
    """Every metric of ours that the dashboard or an alert asks for."""
    text = (DOCKER / "grafana/dashboard.json").read_text() + (DOCKER / "alerts.yml").read_text()
    return {HISTOGRAM.sub("", n) for n in re.findall(r"\boctet_[a-z0-9_]+", text)}


def check_promtool_accepts_metrics_under_load(server):
    server.quantize("fm_resnet8", endpoint="resnet8")
    batch = support.images()[0][:8]
    stop, done = threading.Event(), []

    def load():
        while not stop.is_set():
            server.infer("resnet8", "input", batch)
            done.append(1)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for t in threads:
        t.start()
    try:
        before = server.get("/metrics")
        for _ in range(20):
            answer = server.get("/metrics")
            assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain"), answer.headers
            promtool("check", "metrics", text=answer.text())
    finally:
        stop.set()
        for t in threads:
            t.join()
    after = samples(server.get("/metrics").text())
    counted = total(after, "octet_inference_requests_total", outcome="ok")
    assert counted == len(done), f"{len(done)} requests were answered, {counted} counted"
    assert counted > total(samples(before.text()), "octet_inference_requests_total", outcome="ok")
    assert total(after, "octet_inference_duration_seconds_count") == len(done)
    assert total(after, "octet_inference_batch_size_sum") == len(done) * len(batch)
    return f"{len(done)} requests"


def check_what_a_job_leaves(server):
    found = samples(server.get("/metrics").text())
    job = server.quantize("fm_resnet8", endpoint="resnet8")
    for label, field in (("fp32", "float"), ("int8", "int8")):
        values = [v for k, v in found.items()
                  if k.startswith("octet_model_accuracy{") and f'precision="{label}"' in k]
        assert values and abs(values[0] - job["result"]["accuracy"][field]) < 1e-6, (label, values)
    deltas = [v for k, v in found.items() if k.startswith("octet_model_accuracy_delta{")]
    assert deltas and abs(deltas[0] - job["result"]["accuracy"]["delta"]) < 1e-6, deltas
    assert total(found, "octet_jobs_finished_total", outcome="succeeded") >= 1
    assert total(found, "octet_job_duration_seconds_count") >= 1
    phases = {p for p in ("import", "calibrate", "quantize", "evaluate", "measure", "export")
              if total(found, "octet_job_phase_duration_seconds_count", phase=p) >= 1}
    assert len(phases) == 6, f"only {phases} have a duration"
    # Counted from the catalog, every second or so.
    server.until(lambda: total(samples(server.get("/metrics").text()), "octet_artifact_bytes") > 0, "bytes are counted")


def check_refusals_are_counted(server):
    wrong = {"inputs": [{"name": "input", "shape": [1], "datatype": "FP32", "data": [0]}]}
    assert server.post("/v2/models/resnet8/infer", wrong).status == 400
    assert server.post("/v2/models/nobody/infer", wrong).status == 404
    text = server.get("/metrics").text()
    assert total(samples(text), "octet_inference_requests_total", outcome="invalid") >= 1
    assert "nobody" not in text, "a name that a stranger chose became a label"


def check_dashboard_and_alerts_ask_for_what_there_is(server):
    with triton.InferenceServerClient(server.grpc_address) as client:
        assert client.is_server_live()
    live = {HISTOGRAM.sub("", k.split("{")[0]) for k in samples(server.get("/metrics").text())}
    live |= set(re.findall(r"^# TYPE (\S+)", server.get("/metrics").text(), re.M))
    missing = names_in_queries() - live
    assert not missing, f"not in /metrics after a job and some requests: {sorted(missing)}"
    return f"{len(names_in_queries())} names"


def check_promtool_accepts_the_rules():
    promtool("check", "rules", DOCKER / "alerts.yml")
    promtool("check", "config", "--syntax-only", DOCKER / "prometheus.yml")
    promtool("test", "rules", DOCKER / "alerts_test.yml")


def check_dashboard_is_one_grafana_takes():
    dashboard = json.loads((DOCKER / "grafana/dashboard.json").read_text())
    panels = dashboard["panels"]
    assert dashboard["uid"] and dashboard["title"] and dashboard["schemaVersion"] >= 36
    assert len({p["id"] for p in panels}) == len(panels), "two panels share an id"
    for p in panels:
        assert p["type"] == "row" or p["targets"], p["title"]
        assert p["gridPos"]["x"] + p["gridPos"]["w"] <= 24, p["title"]
        for target in p.get("targets", []):
            assert target["expr"].count("(") == target["expr"].count(")"), target["expr"]
    rules = "groups:\n- name: dashboard\n  rules:\n"
    for i, expr in enumerate(t["expr"] for p in panels for t in p.get("targets", [])):
        expr = re.sub(r"\$__rate_interval|\$__range", "5m", expr)
        rules += f"  - record: a{i}\n    expr: {json.dumps(expr)}\n"
    path = support.ROOT / "target/dashboard-rules.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(rules)
    promtool("check", "rules", path)  # every query of every panel parses as PromQL


if __name__ == "__main__":
    support.main(sys.modules[__name__])
