"""Traces and the log of requests: a collector that takes OTLP over HTTP sees what a traced client expects to see.

Needs a program that was built with `--features otel`.
"""

import contextlib
import functools
import http.server
import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time

import grpc
import numpy as np
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from tritonclient.grpc import service_pb2, service_pb2_grpc

import support

PHASES = ["decode", "queue", "compute", "encode"]
ROUTE = "/v2/models/{name}/infer"
# A client may ask for it, and we do not have it: 501.
SHARED_MEMORY = "/v2/systemsharedmemory/region/a/register"


class Collector:
    """Takes spans; gives them with their attributes."""

    def __init__(self):
        self.spans, self.resources, self.wrong = [], [], []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if (self.path, self.headers["content-type"]) != ("/v1/traces", "application/x-protobuf"):
                    collector.wrong.append((self.path, self.headers["content-type"]))
                message = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
                for resource in message.resource_spans:
                    collector.resources.append(attributes(resource.resource))
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                answer = trace_service_pb2.ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def of(self, trace):
        """The spans of a trace: those of requests, and those within each."""
        spans = [span for span in self.spans if span.trace_id.hex() == trace]
        roots = [span for span in spans if span.kind == trace_pb2.Span.SPAN_KIND_SERVER]
        return roots, {root.span_id: [s for s in spans if s.parent_span_id == root.span_id] for root in roots}


def attributes(thing):
    values = {a.key: a.value for a in thing.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


def needs_otel(binary):
    """Without the feature the program refuses the setting, and this check has nothing to look at."""
    with tempfile.TemporaryDirectory(prefix="octet-test-") as folder:
        command = [str(binary), "serve", "--listen", "127.0.0.1:0", "--grpc-listen", "off", "--data-dir", folder,
                   "--set", "log.otlp_endpoint=no address"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "it must begin with http://" in done.stderr, (
        f"this program was built without the feature: cargo build --release --features otel\n{done.stderr}")


def traceparent(sampled=True):
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    return trace, parent, f"00-{trace}-{parent}-{'01' if sampled else '00'}"


@contextlib.contextmanager
def traced(binary, **settings):
    """A server whose spans go to a collector, with the endpoint `lenet`."""
    with Collector() as collector:
        names = {"OCTET_LOG__OTLP_ENDPOINT": collector.url, "OCTET_LOG__FORMAT": "json"} | settings
        with support.Server(binary, settings=names) as server:
            server.serve("lenet", "fm_lenet")
            yield server, collector


@functools.cache
def some(count):
    return support.images()[0][:count].copy()


def http_infer(server, headers):
    values = some(2)
    body = {"inputs": [{"name": "input", "shape": values.shape, "datatype": "FP32", "data": values.ravel().tolist()}]}
    answer = server.request("POST", "/v2/models/lenet/infer", json.dumps(body), headers)
    assert answer.status == 200, answer.text()


def grpc_infer(server, metadata):
    values = some(3)
    with grpc.insecure_channel(server.grpc_address) as channel:
        request = service_pb2.ModelInferRequest(model_name="lenet")
        request.inputs.add(name="input", datatype="FP32", shape=values.shape)
        request.raw_input_contents.append(np.ascontiguousarray(values).tobytes())
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=metadata)


def check_spans_continue_the_trace_of_the_client(binary):
    needs_otel(binary)
    (web, web_parent, web_header), (rpc, rpc_parent, rpc_header) = traceparent(), traceparent()
    with traced(binary, OCTET_LOG__REQUESTS="all") as (server, collector):
        before = time.time_ns()
        http_infer(server, {"traceparent": web_header, "tracestate": "vendor=1", "x-request-id": "web-1"})
        grpc_infer(server, [("traceparent", rpc_header), ("x-request-id", "rpc-1")])
        after = time.time_ns()
        # At once, long before the next batch of spans is due.
        assert server.stop() == 0, server.log()
        assert not collector.wrong, collector.wrong
        assert collector.resources[0]["service.name"] == "octet", collector.resources
        for trace, parent, name, expected in [
            (web, web_parent, f"POST {ROUTE}",
             {"http.request.method": "POST", "http.route": ROUTE, "url.path": "/v2/models/lenet/infer",
              "http.response.status_code": 200, "octet.request_id": "web-1", "octet.samples": 2}),
            (rpc, rpc_parent, "inference.GRPCInferenceService/ModelInfer",
             {"rpc.system": "grpc", "rpc.service": "inference.GRPCInferenceService", "rpc.method": "ModelInfer",
              "rpc.grpc.status_code": 0, "octet.request_id": "rpc-1", "octet.samples": 3}),
        ]:
            roots, within = collector.of(trace)
            assert len(roots) == 1, f"{name}: {len(roots)} spans of {len(collector.spans)}"
            root = roots[0]
            assert (root.name, root.parent_span_id.hex()) == (name, parent), root
            expected |= {"octet.endpoint": "lenet", "octet.version": 1, "octet.precision": "fp32"}
            found = attributes(root)
            assert {key: found.get(key) for key in expected} == expected, found
            assert found["octet.batch_samples"] >= found["octet.samples"], found
            children = within[root.span_id]
            assert [c.name for c in children] == PHASES, [c.name for c in children]
            # Its own clock and ours are the same one.
            assert before <= root.start_time_unix_nano <= root.end_time_unix_nano <= after, (before, root, after)
            at = root.start_time_unix_nano
            for child in children:
                assert at <= child.start_time_unix_nano <= child.end_time_unix_nano, (name, at, child)
                at = child.end_time_unix_nano
            assert at <= root.end_time_unix_nano, (name, at, root)
        (root,), _ = collector.of(web)
        assert root.trace_state == "vendor=1", root
        logged = {line["request_id"]: line.get("trace_id") for line in lines(server)}
        assert (logged["web-1"], logged["rpc-1"]) == (web, rpc), logged


def check_a_refusal_has_a_span_and_a_probe_has_none(binary):
    needs_otel(binary)
    trace, _, header = traceparent()
    probe, _, probe_header = traceparent()
    fault, _, fault_header = traceparent()
    with traced(binary) as (server, collector):
        assert server.request("POST", "/v2/models/nobody/infer", "{}", {"traceparent": header}).status == 404
        assert server.request("POST", SHARED_MEMORY, "{}", {"traceparent": fault_header}).status == 501
        assert server.request("GET", "/nowhere/at/all").status == 404
        assert server.request("BREW", "/nowhere/at/all").status in (404, 405)
        server.get("/metrics")
        server.request("GET", "/v2/health/ready", headers={"traceparent": probe_header})
        assert server.stop() == 0
        (root,), within = collector.of(trace)
        found = attributes(root)
        assert (root.name, found["http.response.status_code"]) == (f"POST {ROUTE}", 404), root
        # A client that is wrong is no fault of ours.
        assert root.status.code == trace_pb2.Status.STATUS_CODE_UNSET and not within[root.span_id], root
        names = [span.name for span in collector.spans]
        assert "GET" in names and "_OTHER" in names, names
        (failed,), _ = collector.of(fault)
        assert failed.status.code == trace_pb2.Status.STATUS_CODE_ERROR, failed
        assert attributes(failed)["error.type"] == "501", failed
        # Whoever reads the line of a request finds its trace, in both directions.
        (line,) = lines(server)
        assert (line["status"], line["trace_id"]) == (501, fault), line
        health = [span for span in collector.spans if "health" in span.name]
        assert [h.trace_id.hex() for h in health] == [probe] and "GET /metrics" not in names, names


def check_of_many_traces_a_part_is_kept_and_the_caller_decides(binary):
    needs_otel(binary)
    with traced(binary, OCTET_LOG__TRACE_RATIO="0") as (server, collector):
        yes, no = traceparent(), traceparent(sampled=False)
        for header in (yes[2], no[2], "00-zz-1-01", "x" * 600):
            http_infer(server, {"traceparent": header})
        http_infer(server, {})
        assert server.stop() == 0
        assert {span.trace_id.hex() for span in collector.spans} == {yes[0]}, collector.spans
    with traced(binary, OCTET_LOG__TRACE_RATIO="0.5") as (server, collector):
        for _ in range(200):
            http_infer(server, {})
        assert server.stop() == 0
        kept = sum(span.name == f"POST {ROUTE}" for span in collector.spans)
        # Six deviations (7.1) around the half.
        assert 57 <= kept <= 143, kept
        assert sum(span.name == "compute" for span in collector.spans) == kept, "a trace is whole"
        return f"{kept} of 200 kept"


def check_a_server_without_its_collector_serves_and_ends(binary):
    needs_otel(binary)
    settings = {"OCTET_LOG__OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with support.Server(binary, settings=settings) as server:
        server.serve("lenet", "fm_lenet")
        http_infer(server, {})
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 15


def lines(server):
    found = []
    for line in server.log_path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line)["fields"])
    return [line for line in found if "request_id" in line]


def check_requests_have_the_lines_that_were_asked_for(binary):
    """With the default, requests that are answered or wrong have no line, and 501 has one."""
    settings = {"OCTET_LOG__FORMAT": "json"}
    with support.Server(binary, settings=settings) as server:
        server.serve("lenet", "fm_lenet")
        http_infer(server, {"x-request-id": "fine"})
        assert server.get("/v2/models/nobody").status == 404
        assert lines(server) == [], lines(server)
        answer = server.request("POST", SHARED_MEMORY, "{}", {"x-request-id": "shm-1"})
        assert answer.status == 501, answer.text()
        (line,) = lines(server)
        assert (line["request_id"], line["method"], line["status"]) == ("shm-1", "POST", 501), line
        assert line["duration_ms"] >= 0 and "trace_id" not in line, line
    for requests, expected in [("all", {"fine", "wrong", "call"}), ("off", set())]:
        with support.Server(binary, settings=settings | {"OCTET_LOG__REQUESTS": requests}) as server:
            server.serve("lenet", "fm_lenet")
            http_infer(server, {"x-request-id": "fine"})
            server.request("GET", "/v2/models/nobody", headers={"x-request-id": "wrong"})
            grpc_infer(server, [("x-request-id", "call")])
            found = {line["request_id"]: line for line in lines(server)}
            assert expected == expected & set(found) and (expected or not found), found
            if expected:
                line = found["fine"]
                assert (line["method"], line["route"], line["status"], line["endpoint"]) == (
                    "POST", ROUTE, 200, "lenet"), line
                assert found["call"]["endpoint"] == "lenet" and found["call"]["status"] == 0, found["call"]


if __name__ == "__main__":
    support.main(sys.modules[__name__])
