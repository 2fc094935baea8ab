"""Clients that mean harm: each is refused with a status, takes no more memory than it may, and the others are served."""

import concurrent.futures
import contextlib
import functools
import gzip
import http.client
import io
import resource
import socket
import struct
import sys
import threading
import time
import zipfile
import zlib

import grpc
import numpy as np
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

import support

MIB = 1 << 20
INFER = "/v2/models/lenet/infer"


def open_socket(server, text=b"", port=None):
    connection = socket.create_connection(("127.0.0.1", port or server.port), timeout=60)
    connection.sendall(text)
    return connection


def answer_of(connection):
    """What the server says until it ends or an answer is whole; a reset after that is its right."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while True:
            part = connection.recv(65536)
            received += part
            head, whole, body = received.partition(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if not part or (whole and length and len(body) >= int(length[0].split(b":")[1])):
                break
    return received


def status_of(connection):
    received = answer_of(connection)
    assert received.startswith(b"HTTP/1.1 "), f"no answer but {received[:100]!r}"
    return int(received.split(b" ", 2)[1])


def raw(server, text):
    """The status for bytes that no decent client sends; the server need not read them to their end."""
    with open_socket(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(text)
        return status_of(connection)


@functools.cache
def infer_body():
    return support.binary_request("input", support.images()[0][:1])


def latencies(server, count):
    """Milliseconds of so many requests over one connection that stays open."""
    body, headers = infer_body()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    took = []
    with contextlib.closing(connection):
        for _ in range(count):
            start = time.perf_counter()
            connection.request("POST", INFER, body, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            took.append((time.perf_counter() - start) * 1e3)
    return took


@contextlib.contextmanager
def serving(binary, **settings):
    with support.Server(binary, settings={f"OCTET_LIMITS__{k.upper()}": str(v) for k, v in settings.items()}) as server:
        server.serve("lenet", "fm_lenet")
        latencies(server, 50)
        yield server


@contextlib.contextmanager
def memory(server, most_mib, said):
    """Asserts that what happens within raises the peak of the server by so much at most; says by how much."""
    before = server.peak_bytes()
    yield
    grown = (server.peak_bytes() - before) / MIB
    said.append(f"peak {before / MIB:.0f} MiB and {grown:.0f} more")
    assert grown <= most_mib, f"{said[-1]}, which is over {most_mib}"


def others_are_served(server):
    assert server.process.poll() is None, server.log()
    latencies(server, 5)
    assert "panicked" not in server.log_path.read_text(errors="replace"), server.log()


class Drip:
    """Connections that each send the head of a request, a byte every two seconds."""

    def __init__(self, server, count):
        self.end = threading.Event()
        self.connections = [open_socket(server, b"GET /v2 HTTP/1.1\r\nX: ") for _ in range(count)]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.end.wait(2):
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.send(b"x")

    def open(self):
        count = 0
        for connection in self.connections:
            connection.setblocking(False)
            try:
                count += bool(connection.recv(65536))
            except BlockingIOError:
                count += 1
            except OSError:
                pass
        return count

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()
        for connection in self.connections:
            connection.close()


def check_heads_that_come_byte_by_byte(binary):
    said = []
    # Where few files may be open, the server takes fewer connections, and says so (`connections_that_fit`).
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = 1000 if files == resource.RLIM_INFINITY else min(1000, (files - 256) // 2)
    # To open them takes seconds where a system holds back those that knock at once.
    with serving(binary, head_timeout_ms=10_000) as server:
        before = np.percentile(latencies(server, 1000), 99)
        with memory(server, 64, said), Drip(server, count) as drip:
            still = drip.open()
            assert still == count, f"only {still} of {count} are open: {server.log()}"
            started = time.monotonic()
            took = latencies(server, 1000)
            # Its own connections are as quick to open as ever, too.
            for _ in range(50):
                took += latencies(server, 1)
            during = np.percentile(took, 99)
            # Ten times is noise of a small machine; a server that is held up takes seconds.
            assert during < max(10 * before, 50), f"p99 {before:.1f} ms before and {during:.1f} ms during"
            server.until(lambda: drip.open() == 0, "the server has left them all", timeout=40)
            left = time.monotonic() - started
        others_are_served(server)
    return f"p99 {before:.1f} ms before, {during:.1f} ms during; all {count} left after {left:.0f} s; {said[0]}"


def check_more_connections_than_there_are(binary):
    """Those that ask nothing make room; a connection in use is kept."""
    said = []
    with serving(binary, connections=100) as server, memory(server, 64, said):
        body, headers = infer_body()
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        kept.connect()
        mine = kept.sock
        with contextlib.closing(kept), contextlib.ExitStack() as stack:
            for _ in range(10):
                kept.request("POST", INFER, body, headers)
                assert kept.getresponse().read() and kept.sock is mine, "the connection was not kept"
                for _ in range(100):
                    stack.enter_context(open_socket(server))
            assert len(latencies(server, 1)) == 1
        assert "limits.connections" in server.log_path.read_text()
        # gRPC has as many of its own.
        with contextlib.ExitStack() as stack:
            port = int(server.grpc_address.split(":")[1])
            for _ in range(300):
                stack.enter_context(open_socket(server, port=port))
            with grpc.insecure_channel(server.grpc_address) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=20).live
        others_are_served(server)
    return said[0]


def check_connections_that_say_nothing(binary):
    with serving(binary, head_timeout_ms=500) as server:
        ports = [server.port, int(server.grpc_address.split(":")[1])]
        texts = [b"", b"P", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
        for port in ports:
            for text in texts:
                with open_socket(server, text, port) as connection:
                    connection.settimeout(10)
                    # To the end: with HTTP/2 the server says something first.
                    with contextlib.suppress(ConnectionError):
                        while connection.recv(4096):
                            pass
        others_are_served(server)


def check_bodies_that_promise_10_gb(binary):
    said = []
    with serving(binary) as server, memory(server, 32, said):
        for method, path in [("PUT", "/v1/models/no"), ("PUT", "/v1/datasets/no"), ("POST", "/v1/jobs"),
                             ("POST", INFER), ("PUT", "/v1/endpoints/no"), ("POST", "/v2/repository/models/no/load")]:
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {10 << 30}\r\n\r\n"
            assert raw(server, head.encode() + b"x" * 100) == 413, path
        # Lengths that contradict each other are how requests are smuggled past a proxy.
        for lengths in ["Content-Length: 1\r\nContent-Length: 2", "Content-Length: -1", "Content-Length: 99999999999999999999999"]:
            assert raw(server, f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n".encode()) == 400, lengths
        chunk = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"
        assert raw(server, chunk.encode()) in (400, 413)
        others_are_served(server)
    return said[0]


def zeros(coder, size):
    """So many zeros, compressed."""
    block, parts = b"\0" * MIB, []
    for _ in range(size // MIB):
        parts.append(coder.compress(block))
    return b"".join([*parts, coder.flush()])


def check_bodies_that_unpack_to_a_gigabyte(binary):
    said = []
    with serving(binary) as server:
        server_limit = 64 * MIB
        packed = {"gzip": zeros(zlib.compressobj(9, wbits=31), 1 << 30), "deflate": zeros(zlib.compressobj(9), 1 << 30)}
        # The body may be there once while it grows, and once more when it is moved.
        with memory(server, 3 * server_limit / MIB, said):
            for coding, body in packed.items():
                assert len(body) < 2 * MIB
                answer = server.request("POST", INFER, body, {"Content-Encoding": coding})
                assert answer.status == 413 and str(server_limit) in answer.text(), (answer.status, answer.text())
            # Packed twice: the second time is not undone.
            answer = server.request("POST", INFER, gzip.compress(packed["gzip"]), {"Content-Encoding": "gzip, gzip"})
            assert answer.status in (400, 415), (answer.status, answer.text())
        others_are_served(server)
        with memory(server, 3 * server_limit / MIB, said):
            options = [("grpc.max_send_message_length", -1)]
            with grpc.insecure_channel(server.grpc_address, options=options) as channel:
                request = service_pb2.ModelInferRequest(model_name="lenet", raw_input_contents=[bytes(512 * MIB)])
                try:
                    service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
                        request, compression=grpc.Compression.Gzip, timeout=120)
                    raise AssertionError("it was taken")
                except grpc.RpcError as refusal:
                    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, refusal
        others_are_served(server)
    return f"HTTP: {said[0]}; gRPC: {said[1]}"


def check_json_of_100000_levels(binary):
    said = []
    with serving(binary) as server, memory(server, 64, said):
        for deep in ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000]:
            for method, path in [("POST", "/v1/jobs"), ("POST", INFER), ("PUT", "/v1/endpoints/no"),
                                 ("POST", "/v2/repository/index"), ("POST", "/v2/repository/models/no/load"),
                                 ("POST", "/v2/logging")]:
                answer = server.request(method, path, deep, {"Content-Type": "application/json"})
                assert answer.status in (400, 422), (path, answer.status, answer.text()[:200])
            inside = '{"inputs":[{"name":"input","shape":[1],"datatype":"FP32","data":' + deep
            assert server.request("POST", INFER, inside).status == 400
            recipe = '{"kind":"quantize","model":"lenet","recipe":' + deep
            assert server.request("POST", "/v1/jobs", recipe).status in (400, 422)
        others_are_served(server)
    return said[0]


def check_floods_of_headers(binary):
    said = []
    with serving(binary) as server, memory(server, 32, said):
        line = b"GET /v2 HTTP/1.1\r\nHost: x\r\n"
        assert raw(server, line + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n") == 431
        assert raw(server, line + b"X: " + b"y" * MIB + b"\r\n\r\n") == 431
        assert raw(server, b"GET /" + b"y" * MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n") in (414, 431)
        # Over HTTP/2.
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for metadata in [[("x", "y" * MIB)], [(f"x-{n}", "y") for n in range(10_000)]]:
                try:
                    stub.ServerLive(service_pb2.ServerLiveRequest(), metadata=metadata, timeout=20)
                    raise AssertionError("it was taken")
                except grpc.RpcError as refusal:
                    assert refusal.code() != grpc.StatusCode.DEADLINE_EXCEEDED, refusal
        others_are_served(server)
    return said[0]


def npz_of_zeros(shape, promised=None):
    """An .npz file whose one array of zeros is compressed a thousand times; it may promise another shape than it has."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {promised or shape}, }}".ljust(117).encode() + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z, z.open("input.npy", "w", force_zip64=True) as member:
        member.write(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
        left = int(np.prod(shape, dtype=np.int64)) * 4
        while left > 0:
            member.write(bytes(min(left, 16 * MIB)))
            left -= 16 * MIB
    return buffer.getvalue()


def check_archives_that_unpack_beyond_the_limit(binary):
    said = []
    with serving(binary, dataset_bytes=32 * MIB, model_bytes=32 * MIB) as server, memory(server, 160, said):
        # 512 MiB, which is less than 1 MiB as sent.
        bomb = npz_of_zeros((1 << 17, 1, 32, 32))
        assert len(bomb) < MIB, len(bomb)
        for file in [bomb, npz_of_zeros((1 << 17, 1, 32, 32), (1, 1, 32, 32)),
                     npz_of_zeros((1, 1, 32, 32), (1 << 40, 1, 32, 32))]:
            answer = server.put("/v1/datasets/bomb", file)
            assert answer.status in (413, 422), (answer.status, answer.text())
        # The same for a model.
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("model.onnx", bytes(512 * MIB))
        answer = server.put("/v1/models/bomb", buffer.getvalue())
        assert answer.status in (413, 422), (answer.status, answer.text())
        # One that says that it is small: the sizes in the directory and before the data are a stranger's word.
        lying = bytearray(buffer.getvalue())
        for sign, at in [(b"PK\x03\x04", 22), (b"PK\x01\x02", 24)]:
            start = lying.rindex(sign) + at
            lying[start:start + 4] = struct.pack("<I", 1000)
        answer = server.put("/v1/models/bomb", bytes(lying))
        assert answer.status in (400, 413, 422), (answer.status, answer.text())
        others_are_served(server)
    return said[0]


def external(location):
    """A model whose weight is said to lie in another file."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in [("location", location), ("offset", "0"), ("length", "16")]:
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7).SerializeToString()


def form(name, file_name, file):
    """A multipart form as a browser sends it."""
    parts = [b'--B\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + name.encode(),
             f'--B\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n\r\n'.encode() + file,
             b"--B--\r\n"]
    return b"\r\n".join(parts), {"Content-Type": "multipart/form-data; boundary=B"}


def check_paths_that_lead_elsewhere(binary):
    with serving(binary) as server:
        for location in ["../../etc/passwd", "/etc/passwd", "..\\..\\etc\\passwd", "a/../../../etc/passwd", "./../x", ""]:
            answer = server.put("/v1/models/no", external(location))
            assert answer.status == 422, (location, answer.status, answer.text())
            assert "root:" not in answer.text()
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as z:
                z.writestr("model.onnx", external(location))
                z.writestr(location or "x", b"\0" * 16)
                z.writestr("../../evil", b"evil")
            answer = server.put("/v1/models/no", buffer.getvalue())
            assert answer.status == 422, (location, answer.status, answer.text())
        whole = support.model_path("fm_lenet").read_bytes()
        # The name of the file is nobody's business; the name of the model is checked.
        answer = server.request("POST", "/v1/models", *form("fine", "../../etc/passwd", whole))
        assert answer.status == 201 and answer.json()["name"] == "fine", answer.text()
        for name in ["../../etc/passwd", "..", "/etc/passwd", "a/b", "a\0b", "a" * 300, "%2e%2e"]:
            answer = server.request("POST", "/v1/models", *form(name, "model.onnx", whole))
            assert answer.status in (400, 422), (name, answer.status, answer.text())
        for path in ["/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%2e%2e", "/v1/models/a%00b",
                     "/assets/x/..%2f..%2fetc%2fpasswd", "/assets/../../../etc/passwd", "//etc/passwd"]:
            text = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            with open_socket(server, text.encode()) as connection:
                received = answer_of(connection)
            assert int(received.split(b" ", 2)[1]) in (400, 404) and b"root:" not in received, (path, received)
        above = [path for folder in list(server.data_dir.parents)[:3] for path in folder.glob("*evil*")]
        assert not above and not list(server.data_dir.rglob("*evil*")), above
        others_are_served(server)


def check_bodies_that_stall(binary):
    """Each ends after its time with a status, and 500 of them hold nobody else up."""
    said = []
    with serving(binary, request_timeout_ms=2000) as server:
        heads = [("PUT", "/v1/models/no", (400, 408)), ("PUT", "/v1/datasets/no", (400, 408)),
                 ("POST", INFER, (408, 504)), ("POST", "/v1/jobs", (408, 504)),
                 ("POST", "/v2/repository/models/no/load", (400, 408, 504))]
        before = np.percentile(latencies(server, 500), 99)
        with memory(server, 64, said), contextlib.ExitStack() as stack:
            stalled = []
            for n in range(500):
                method, path, expected = heads[n % len(heads)]
                text = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{{"
                stalled.append((stack.enter_context(open_socket(server, text.encode())), path, expected))
            during = np.percentile(latencies(server, 500), 99)
            assert during < max(10 * before, 50), f"p99 {before:.1f} ms before and {during:.1f} ms during"
            with concurrent.futures.ThreadPoolExecutor(50) as pool:
                for (_, path, expected), status in zip(stalled, pool.map(status_of, [s[0] for s in stalled]), strict=True):
                    assert status in expected, (path, status)
        assert server.get("/v1/models/no").status == 404 and server.get("/v1/datasets/no").status == 404
        others_are_served(server)
        left = [path for path in (server.data_dir / "tmp").rglob("*") if path.is_file()]
        assert not left, left
    return f"p99 {before:.1f} ms before, {during:.1f} ms during; {said[0]}"


if __name__ == "__main__":
    support.main(sys.modules[__name__])
