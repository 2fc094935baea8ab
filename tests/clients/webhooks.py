"""Webhooks: a receiver of our own checks each signature with the hmac module, refuses, hangs, never ends, and outlives the
server."""

import base64
import contextlib
import hashlib
import hmac
import http.server
import io
import ipaddress
import json
import queue
import socket
import sys
import threading
import time

import numpy as np

import support

KEY, OLD_KEY = bytes(range(32)), bytes(range(100, 132))
SECRET, OLD_SECRET = ("whsec_" + base64.b64encode(key).decode() for key in (KEY, OLD_KEY))
RETRY_MS = 100
SETTINGS = {
    "OCTET_WEBHOOKS__SECRET": f"{SECRET},{OLD_SECRET}",
    "OCTET_WEBHOOKS__ALLOW_PRIVATE": "true",
    "OCTET_WEBHOOKS__RETRY_WAIT_MS": str(RETRY_MS),
}
PATH = "/hooks/T0/not-to-be-shown?key=nor-this"


@contextlib.contextmanager
def receiver(*answers, address="127.0.0.1"):
    """An HTTP server that gives the answers in turn, then 204, and puts what it got in a queue. An answer is a status, an
    event to wait for before 204, or a list that gets the size of each part of an endless 200 once it is written,
    and 0 when the connection is closed."""
    got, answers = queue.Queue(), list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            answer = answers.pop(0) if answers else 204
            got.put((self.path, dict(self.headers.items()), body, time.monotonic()))
            if isinstance(answer, threading.Event):
                answer.wait(60)
                answer = 204
            with contextlib.suppress(OSError):  # who asked may be gone
                if isinstance(answer, list):
                    self.send_response(200)
                    self.end_headers()
                    try:
                        while True:
                            answer.append(self.wfile.write(bytes(4096)))
                    finally:
                        answer.append(0)
                self.send_response(answer)
                if answer == 302:
                    self.send_header("location", f"http://{self.headers['host']}/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    server = Server((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()


def opened(message):
    """Checks a message as its receiver should; gives its id and its content."""
    path, headers, body, _ = message
    headers = {name.lower(): value for name, value in headers.items()}
    assert path == PATH and headers["content-type"] == "application/json", (path, headers)
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60, headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    for key, signature in zip((KEY, OLD_KEY), headers["webhook-signature"].split(), strict=True):
        want = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert hmac.compare_digest(signature, want), (signature, want)
    return headers["webhook-id"], json.loads(body)


def prepare(server):
    for path, file in [("/v1/models/mlp", support.model_path("fm_mlp")),
                       ("/v1/datasets/calib", support.calibration_path("fm_mlp"))]:
        assert server.put(path, file).status in (200, 201)


def submit(server, origin, **more):
    prepare(server)
    return server.submit(model="mlp", calibration="calib", keep=True, webhook_url=origin + PATH, **more)


def state(server, job, wanted, timeout=30):
    """The webhook of a job, once it is in the state that is wanted."""
    server.until(lambda: server.job(job)["webhook"]["state"] == wanted, f"the webhook is {wanted}", timeout)
    return server.job(job)["webhook"]


def check_the_end_of_a_job_is_told_and_signed(server):
    with receiver() as (origin, got):
        job = submit(server, origin)
        ended = server.wait(job)
        assert ended["state"] == "succeeded", ended
        identity, content = opened(got.get(timeout=10))
        assert identity == job and content["type"] == "job.succeeded", (identity, content)
        assert content["data"]["id"] == job and content["data"]["model"] == "mlp@1", content
        assert content["data"]["result"] == ended["result"], content
        assert content["timestamp"] == ended["finished_at"], content
        told = state(server, job, "delivered")
        assert told == {"origin": origin, "state": "delivered", "attempts": 1, "last_status": 204}, told
        time.sleep(4 * RETRY_MS / 1000)
        assert got.empty(), "it was told twice"
        # The ETag tells of what has become of the webhook, and nothing shows where exactly it goes.
        answer = server.get(f"/v1/jobs/{job}")
        again = server.request("GET", f"/v1/jobs/{job}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status == 304 and "-delivered-" in answer.headers["etag"], answer.headers
        shown = answer.text() + server.get("/v1/jobs").text() + server.get("/metrics").text() + server.log()
        assert "not-to-be-shown" not in shown and "nor-this" not in shown
        assert SECRET[6:] not in shown and OLD_SECRET[6:] not in shown
        assert server.metric("octet_webhooks_total", outcome="delivered") >= 1


def check_a_cancelled_job_is_told_too(server):
    with receiver() as (origin, got):
        job = submit(server, origin)
        answer = server.post(f"/v1/jobs/{job}/cancel", "")
        ended = server.wait(job)
        _, content = opened(got.get(timeout=10))
        assert answer.status in (202, 409) and content["type"] == f"job.{ended['state']}", (answer.status, content)


def check_what_was_refused_twice_is_sent_a_third_time(server):
    with receiver(500, 500) as (origin, got):
        job = submit(server, origin)
        server.wait(job)
        messages = [got.get(timeout=20) for _ in range(3)]
        assert {opened(message)[0] for message in messages} == {job}
        assert len({message[2] for message in messages}) == 1, "the same body each time"
        first, second = (b[3] - a[3] for a, b in zip(messages, messages[1:]))
        assert first >= RETRY_MS / 1000 and second >= 5 * RETRY_MS / 1000, (first, second)
        told = state(server, job, "delivered")
        assert (told["attempts"], told["last_status"]) == (3, 204), told


def check_five_refusals_are_enough_and_a_redirect_is_one(server):
    with receiver(302, 302, 302, 302, 403, 204) as (origin, got):
        job = submit(server, origin)
        server.wait(job)
        # 216 times the first wait.
        told = state(server, job, "given_up", 60)
        assert (told["attempts"], told["last_status"], got.qsize()) == (5, 403, 5), told
        assert all(got.get()[0] == PATH for _ in range(5)), "a redirect was followed"
        assert server.metric("octet_webhooks_total", outcome="given_up") >= 1


def check_a_receiver_that_is_gone_is_not_asked_again(server):
    with receiver(410, 204) as (origin, got):
        job = submit(server, origin)
        server.wait(job)
        told = state(server, job, "given_up")
        assert (told["attempts"], told["last_status"], got.qsize()) == (1, 410, 1), told


def check_an_answer_that_does_not_end_is_left(server):
    written = []
    with receiver(written) as (origin, _):
        job = submit(server, origin)
        server.wait(job)
        told = state(server, job, "delivered")
        assert (told["attempts"], told["last_status"]) == (1, 200), told
        server.until(lambda: written[-1] == 0, "the connection is closed")
        # 64 KiB are read; the rest is what the two sockets hold.
        assert sum(written) < 16 << 20, sum(written)


def check_a_server_that_stops_ends_what_it_sends(binary):
    hangs = threading.Event()
    with receiver(hangs) as (origin, got), support.Server(binary, settings=SETTINGS) as server:
        job = submit(server, origin)
        server.wait(job)
        opened(got.get(timeout=10))
        threading.Timer(1, hangs.set).start()
        server.stop()
        assert hangs.is_set(), "it was cut off"
        server.start()
        told = server.job(job)["webhook"]
        assert (told["state"], told["attempts"], told["last_status"]) == ("delivered", 1, 204) and got.empty(), told


def check_a_killed_server_tells_after_its_start(binary):
    """Killed between the end of the job and its telling: while it waits for the next attempt, and in one."""
    hangs = threading.Event()
    slow = SETTINGS | {"OCTET_WEBHOOKS__RETRY_WAIT_MS": "3000"}
    with support.Server(binary, settings=slow) as server:
        for answer, status in [(503, 503), (hangs, None)]:
            with receiver(answer) as (origin, got):
                job = submit(server, origin)
                server.wait(job)
                opened(got.get(timeout=10))
                server.until(lambda: server.job(job)["webhook"]["last_status"] == status, "the refusal is noted")
                assert server.job(job)["webhook"]["state"] == "pending"
                server.kill()
                if answer is hangs:
                    hangs.set()
                server.start()
                # Where it was killed in an attempt, after the lease of that one has run out.
                assert opened(got.get(timeout=60))[0] == job
                told = state(server, job, "delivered")
                assert (told["attempts"], told["last_status"]) == (2, 204), told


def check_nothing_is_sent_inside_without_the_setting(binary):
    settings = SETTINGS | {"OCTET_WEBHOOKS__ALLOW_PRIVATE": "false"}
    with receiver() as (origin, got), support.Server(binary, settings=settings) as server:
        prepare(server)
        port = origin.rsplit(":", 1)[1]
        for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "169.254.169.254",
                     "10.0.0.1", "0.0.0.0", "100.64.0.1"]:
            answer = server.post("/v1/jobs", {"kind": "quantize", "model": "mlp", "calibration": "calib",
                                              "webhook_url": f"http://{host}:{port}{PATH}"})
            assert answer.status == 400 and "no public address" in answer.json()["detail"], (host, answer.text())
            assert "nor-this" not in answer.text()
        assert server.get("/v1/jobs").json()["items"] == [], "no job was made"
        assert got.empty()


def check_a_receiver_that_hangs_keeps_no_other_waiting(binary):
    """As many messages as may be under way at a time wait at one that does not answer."""
    end, odd = threading.Event(), io.BytesIO()
    np.savez(odd, input=np.zeros((2, 3), np.float32))
    with receiver(*[end] * 100) as (dead, hung), receiver() as (origin, got), \
            support.Server(binary, settings=SETTINGS) as server:
        prepare(server)
        server.put("/v1/datasets/odd", odd.getvalue())

        def submit_odd(origin):
            """A job that ends at once: its data are of another shape."""
            return server.submit(model="mlp", calibration="odd", keep=True, webhook_url=origin + PATH)

        for _ in range(64):
            submit_odd(dead)
        job = submit_odd(origin)
        identity, _ = opened(got.get(timeout=8))
        assert identity == job, identity
        assert hung.qsize() == 4, f"{hung.qsize()} messages are under way to one receiver"
        end.set()


def inside_names():
    """Names that an URL may have and that lead to this machine, of those that machines have as a rule."""
    for name in ("ip6-localhost", "ip6-loopback", "localhost.localdomain", socket.gethostname()):
        with contextlib.suppress(OSError):
            if all(ipaddress.ip_address(found[4][0]).is_private for found in socket.getaddrinfo(name, None)):
                yield name


def check_a_name_that_leads_inside_is_not_connected_to(binary):
    """What a name leads to is seen when it is connected to, and no sooner."""
    settings = SETTINGS | {"OCTET_WEBHOOKS__ALLOW_PRIVATE": "false", "OCTET_WEBHOOKS__RETRY_WAIT_MS": "10"}
    names = list(dict.fromkeys(inside_names()))
    with receiver(address="::" if socket.has_dualstack_ipv6() else "0.0.0.0") as (origin, got), \
            support.Server(binary, settings=settings) as server:
        for name in names:
            job = submit(server, f"http://{name}:{origin.rsplit(':', 1)[1]}")
            server.wait(job)
            told = state(server, job, "given_up")
            assert (told["attempts"], told["last_status"]) == (5, None), (name, told)
            assert f"`{name.lower()}` is no public address" in server.log(), server.log()
        assert got.empty(), names
    return ", ".join(names) or "no such name on this machine"


def check_what_was_allowed_before_is_not_sent_any_more(binary):
    """The address is checked again when it is sent to."""
    slow = SETTINGS | {"OCTET_WEBHOOKS__RETRY_WAIT_MS": "2000"}
    with receiver(500) as (origin, got), support.Server(binary, settings=slow) as server:
        job = submit(server, origin)
        server.wait(job)
        got.get(timeout=10)
        server.stop()
        server.settings |= {"OCTET_WEBHOOKS__ALLOW_PRIVATE": "false", "OCTET_WEBHOOKS__RETRY_WAIT_MS": "10"}
        server.start()
        told = state(server, job, "given_up")
        assert (told["attempts"], told["last_status"]) == (5, None) and got.empty(), told


def check_without_a_secret_there_are_none(binary):
    with support.Server(binary) as server:
        prepare(server)
        answer = server.post("/v1/jobs", {"kind": "quantize", "model": "mlp", "calibration": "calib",
                                          "webhook_url": "https://hooks.example/"})
        assert answer.status == 400 and "webhooks.secret" in answer.json()["detail"], answer.text()
        assert server.job(server.submit(model="mlp", calibration="calib"))["webhook"] is None


def check_a_bad_secret_is_told_at_the_start(binary):
    try:
        with support.Server(binary, settings={"OCTET_WEBHOOKS__SECRET": SECRET + ",whsec_c2hvcnQ="}):
            raise RuntimeError("it has started")
    except AssertionError as error:
        assert "webhooks.secret: secret 2 of 2" in str(error) and SECRET not in str(error), error


if __name__ == "__main__":
    support.main(sys.modules[__name__])
