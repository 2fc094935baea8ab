"""API keys beside a running server, over HTTP and gRPC, with Triton's clients; what the log tells; TLS whose files change."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import ssl
import subprocess
import sys
import tempfile
import time

import grpc
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

import support

# Everything that may be logged is: no secret may be in it.
SETTINGS = {"OCTET_AUTH__MODE": "keys", "OCTET_LOG__LEVEL": "trace"}
SECONDS = 2.0


class Keys:
    """`octet key` on the data directory of a server."""

    def __init__(self, server):
        self.server = server

    def run(self, *arguments):
        command = [self.server.binary, "key", *arguments, "--data-dir", str(self.server.data_dir)]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)

    def create(self, scope, *more):
        done = self.run("create", "--name", "test-" + scope.replace(",", "-"), "--scope", scope, *more)
        assert done.returncode == 0, done.stderr
        key, = done.stdout.splitlines()
        assert re.fullmatch(r"octet_[0-9a-f]{16}_[0-9a-f]{64}", key), "not alone on its line"
        assert key not in done.stderr
        self.server.until(lambda: ask(self.server, "GET", "/v2", key) != 401, "the key is known", SECONDS)
        return key


def ask(server, method, path, key=None, header="Authorization", body=None):
    headers = {header: f"Bearer {key}" if header == "Authorization" else key} if key else {}
    return server.request(method, path, body, headers).status


def secret_of(key):
    return key.rsplit("_", 1)[1]


def id_of(key):
    return key.split("_")[1]


def whole_log(server):
    return server.log_path.read_text(errors="replace")


def served(server, key):
    """Serves the small network as `mlp`."""
    body = support.model_path("fm_mlp").read_bytes()
    assert ask(server, "PUT", "/v1/models/mlp", key, body=body) in (200, 201)
    assert ask(server, "PUT", "/v1/endpoints/mlp", key, body='{"model": "mlp"}') in (200, 201)


def tensor(module, array):
    made = module.InferInput("input", list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


def check_keys_are_made_listed_and_revoked_beside_a_server(server):
    keys = Keys(server)
    key = keys.create("read", "--expires", "90d", "--rate", "50")
    other = keys.create("admin")
    assert ask(server, "GET", "/v1/models") == 401
    assert ask(server, "GET", "/v1/models", key) == ask(server, "GET", "/v1/models", key, "X-Api-Key") == 200
    assert ask(server, "PUT", "/v1/models/m", key, body=b"x") == 403
    listed = keys.run("list").stdout
    assert secret_of(key) not in listed and "50/s" in listed and "until " in listed, listed
    done = keys.run("revoke", id_of(key))
    began = time.monotonic()
    assert done.returncode == 0, done.stderr
    server.until(lambda: ask(server, "GET", "/v1/models", key) == 401, "the key is refused", SECONDS)
    took = time.monotonic() - began
    assert ask(server, "GET", "/v1/models", other) == 200
    assert re.search(id_of(key) + r" .* revoked 20", keys.run("list").stdout)
    assert keys.run("revoke", "0" * 16).returncode == 1
    for wrong in (["--scope", "root"], ["--scope", "read", "--expires", "soon"], ["--scope", "read", "--rate", "0"]):
        assert keys.run("create", "--name", "x", *wrong).returncode == 2, wrong
    return f"refused after {took:.2f} s"


def check_a_key_that_expires_is_refused(server):
    key = Keys(server).create("read", "--expires", "2s")
    server.until(lambda: ask(server, "GET", "/v1/models", key) == 401, "it has expired", 4)
    assert "has expired at" in server.request("GET", "/v1/models", headers={"X-Api-Key": key}).text()


def check_triton_clients_send_a_key_over_http_and_grpc(server):
    keys = Keys(server)
    infer, write, admin = keys.create("infer"), keys.create("write"), keys.create("admin")
    served(server, write)
    array = np.zeros((1, 1, 28, 28), np.float32)
    headers = lambda key: {"authorization": f"Bearer {key}"}

    client = triton_http.InferenceServerClient(server.address)
    assert client.is_server_live() and client.is_server_ready()
    client.infer("mlp", [tensor(triton_http, array)], headers=headers(infer))
    for key, status in ((None, "401"), (write, "403"), (infer[:-1] + ("0" if infer[-1] != "0" else "1"), "401")):
        try:
            client.infer("mlp", [tensor(triton_http, array)], headers=headers(key) if key else None)
            raise AssertionError(f"was not refused with {status}")
        except InferenceServerException as e:
            assert e.status() == status, e
    client.unload_model("mlp", headers=headers(admin))
    client.load_model("mlp", headers=headers(admin))

    client = triton_grpc.InferenceServerClient(server.grpc_address)
    assert client.is_server_live() and client.is_server_ready()
    channel = grpc.insecure_channel(server.grpc_address)
    assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1
    client.infer("mlp", [tensor(triton_grpc, array)], headers=headers(infer))
    client.infer("mlp", [tensor(triton_grpc, array)], headers={"x-api-key": infer})
    calls = [
        ("UNAUTHENTICATED", lambda: client.infer("mlp", [tensor(triton_grpc, array)])),
        ("PERMISSION_DENIED", lambda: client.infer("mlp", [tensor(triton_grpc, array)], headers=headers(write))),
        ("PERMISSION_DENIED", lambda: client.get_model_metadata("mlp", headers=headers(infer))),
        ("PERMISSION_DENIED", lambda: client.unload_model("mlp", headers=headers(write))),
        ("UNAUTHENTICATED", lambda: client.update_log_settings({"log_verbose_level": 1})),
    ]
    for code, call in calls:
        try:
            call()
            raise AssertionError(f"was not refused with {code}")
        except InferenceServerException as e:
            assert e.status() == f"StatusCode.{code}", e
    client.unload_model("mlp", headers=headers(admin))
    client.load_model("mlp", headers=headers(admin))


def check_a_stream_ends_with_its_key_and_keeps_its_rate(server):
    keys = Keys(server)
    key, slow = keys.create("infer"), keys.create("infer", "--rate", "2")
    served(server, keys.create("write"))
    request = service_pb2.ModelInferRequest(model_name="mlp")
    image = request.inputs.add(name="input", datatype="FP32", shape=[1, 1, 28, 28])
    image.contents.fp32_contents.extend([0.0] * 784)
    stub = triton_grpc.service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(server.grpc_address))

    def stream(key, go_on):
        def requests():
            while go_on():
                yield request
                time.sleep(0.02)
        return [a.error_message for a in stub.ModelStreamInfer(requests(), metadata=[("x-api-key", key)])]

    until = time.monotonic() + 0.4
    said = stream(slow, lambda: time.monotonic() < until)
    assert said[0] == "" and any("2 requests a second" in text for text in said), said

    began = time.monotonic()
    revoked = keys.run("revoke", id_of(key))
    assert revoked.returncode == 0, revoked.stderr
    # It was opened, perhaps, before the server has heard of it.
    with contextlib.suppress(grpc.RpcError):
        said = stream(key, lambda: time.monotonic() < began + SECONDS + 0.2)
        assert "was revoked" in said[-1], said[-1]


def check_events_of_a_job_end_with_their_key(binary):
    # No worker: the job waits, and its events with it.
    with support.Server(binary, settings=SETTINGS | {"OCTET_JOBS__WORKERS": "0"}) as server:
        keys = Keys(server)
        writer, reader = keys.create("write"), keys.create("read")
        for path, file in (("models/mlp", support.model_path("fm_mlp")), ("datasets/d", support.calibration_path("fm_mlp"))):
            assert ask(server, "PUT", f"/v1/{path}", writer, body=file.read_bytes()) == 201
        spec = {"kind": "quantize", "model": "mlp", "calibration": "d"}
        made = server.request("POST", "/v1/jobs", json.dumps(spec), {"X-Api-Key": writer, "Content-Type": "application/json"})
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", f"/v1/jobs/{made.json()['id']}/events", headers={"X-Api-Key": reader})
            events = connection.getresponse()
            assert events.status == 200 and b"event: state" in events.read1(), "the first event"
            began = time.monotonic()
            assert keys.run("revoke", id_of(reader)).returncode == 0
            assert events.read() == b"", "nothing more"
            took = time.monotonic() - began
        assert took < 2 * SECONDS + 1, took
    return f"after {took:.1f} s"


def check_the_log_tells_who_changed_what_and_no_secret(server):
    keys = Keys(server)
    key, admin = keys.create("write"), keys.create("admin")
    served(server, key)
    ask(server, "DELETE", "/v1/endpoints/nothing", key)
    triton_grpc.InferenceServerClient(server.grpc_address).unload_model("mlp", headers={"x-api-key": admin})
    form = f"key={admin}&next=/"
    answer = server.request("POST", "/login", form, {"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status == 303, answer.text()
    wrong = f"octet_{id_of(key)}_{'ab' * 32}"
    assert ask(server, "PUT", "/v1/models/m", wrong, body=b"x") == 401
    log = re.sub(r"\x1b\[[0-9;]*m", "", whole_log(server))
    for want in (
        rf"Key test-write \({id_of(key)}\): PUT /v1/endpoints/mlp: 20",
        rf"Key test-write \({id_of(key)}\): DELETE /v1/endpoints/nothing: 404",
        rf"Key test-admin \({id_of(admin)}\): gRPC /inference.GRPCInferenceService/RepositoryModelUnload",
        rf"Key test-admin \({id_of(admin)}\) signs in",
    ):
        assert re.search(want, log), f"no {want}"
    for secret in (secret_of(key), secret_of(admin), secret_of(wrong)):
        assert secret not in log, "the log holds a secret"
    stored = b"".join(p.read_bytes() for p in server.data_dir.glob("octet.db*"))
    assert secret_of(key).encode() not in stored and bytes.fromhex(secret_of(key)) not in stored
    assert id_of(key).encode() in stored
    return f"{len(log)} characters"


def check_a_public_address_is_refused_without_keys(binary):
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "serve", "--listen", "0.0.0.0:0", "--grpc-listen", "off", "--data-dir", folder + "/data"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 2 and 'auth.mode = "keys"' in done.stderr, done
        assert not pathlib.Path(folder, "data").exists()


class Authority:
    """An authority of certificates in a folder, made with OpenSSL."""

    def __init__(self, folder, name):
        self.folder, self.name = pathlib.Path(folder), name
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                     "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def sign(self, name, subject):
        self.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={subject}",
                     "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (self.folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        self.openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{self.name}.pem", "-CAkey", f"{self.name}.key",
                     "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", f"{name}.pem")


class SecureServer(support.Server):
    """Asked over TLS; the client trusts `ca` and shows `client`, a certificate and its key."""

    def __init__(self, *arguments, ca, client=None, **more):
        self.context = ssl.create_default_context(cafile=ca)
        self.plain = ssl.create_default_context(cafile=ca)
        if client:
            self.context.load_cert_chain(*client)
        super().__init__(*arguments, **more)

    def request(self, method, path, body=None, headers=None, timeout=10, context=None):
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout,
                                                 context=context or self.context)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return support.Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def subject(self):
        """Of the certificate that a new connection gets."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self.context)
        connection.connect()
        try:
            return dict(part[0] for part in connection.sock.getpeercert()["subject"])["commonName"]
        finally:
            connection.close()


def check_tls_on_both_ports_with_new_files_and_client_certificates(binary):
    with tempfile.TemporaryDirectory() as folder:
        authority, stranger = Authority(folder, "authority"), Authority(folder, "stranger")
        authority.sign("server", "first")
        authority.sign("client", "client")
        stranger.sign("foreign", "client")
        path = lambda name: str(pathlib.Path(folder, name))
        settings = {"OCTET_TLS__CERTIFICATE": path("server.pem"), "OCTET_TLS__KEY": path("server.key")} | SETTINGS
        ca, own = path("authority.pem"), (path("client.pem"), path("client.key"))
        with SecureServer(binary, settings=settings, ca=ca) as server:
            assert server.subject() == "first"
            plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException):
                plain.request("GET", "/v2/health/live")
                raise AssertionError(f"plain HTTP was answered with {plain.getresponse().status}")
            key = Keys(server).create("read")
            form = f"key={key}&next=/"
            head = {"Content-Type": "application/x-www-form-urlencoded"}
            assert "; Secure" in server.request("POST", "/login", form, head).headers["set-cookie"]
            roots = pathlib.Path(ca).read_bytes()
            client = triton_grpc.InferenceServerClient(server.grpc_address, ssl=True, root_certificates=ca)
            assert client.get_server_metadata(headers={"x-api-key": key}).name == "octet"

            authority.sign("next", "second")
            # First the certificate: it does not fit the key, so the old pair stays.
            os.replace(path("next.pem"), path("server.pem"))
            server.until(lambda: "cannot be used" in whole_log(server), "the fault is told", 8)
            assert server.subject() == "first"
            os.replace(path("next.key"), path("server.key"))
            server.until(lambda: server.subject() == "second", "the new certificate is shown", 8)
            assert "PRIVATE" not in whole_log(server)

        authority.sign("server", "third")
        settings["OCTET_TLS__CLIENT_CA"] = ca
        with SecureServer(binary, settings=settings, ca=ca, client=own) as server:
            assert server.get("/v2/health/live").status == 200
            foreign = ssl.create_default_context(cafile=ca)
            foreign.load_cert_chain(path("foreign.pem"), path("foreign.key"))
            for context in (server.plain, foreign):
                try:
                    status = server.request("GET", "/v2/health/live", context=context).status
                    raise AssertionError(f"was answered with {status}")
                except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
                    pass
            trusted = grpc.ssl_channel_credentials(roots, *(pathlib.Path(p).read_bytes() for p in reversed(own)))
            channel = grpc.secure_channel(server.grpc_address, trusted)
            assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1


def check_files_of_tls_that_do_not_serve_are_named(binary):
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OCTET_TLS__CERTIFICATE": folder + "/none.pem", "OCTET_TLS__KEY": folder + "/none.key"}
        command = [binary, "serve", "--listen", "127.0.0.1:0", "--grpc-listen", "off", "--data-dir", folder + "/data"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
        assert done.returncode == 1 and "none.pem" in done.stderr, done


if __name__ == "__main__":
    support.main(sys.modules[__name__])
