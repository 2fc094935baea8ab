"""Webhooks: a receiver of our own checks each signature with the hmac module, refuses, hangs, and outlives the server."""

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import queue
import sys
import threading
import time

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
def receiver(*answers):
    """An HTTP server that gives the answers in turn, then 204, and puts what it got in a queue. An answer is a status, or
    an event to wait for before 204."""
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
                self.send_response(answer)
                if answer == 302:
                    self.send_header("location", f"http://{self.headers['host']}/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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
    with receiver(302, 302, 302, 302, 410, 204) as (origin, got):
        job = submit(server, origin)
        server.wait(job)
        # 216 times the first wait.
        told = state(server, job, "given_up", 60)
        assert (told["attempts"], told["last_status"], got.qsize()) == (5, 410, 5), told
        assert all(got.get()[0] == PATH for _ in range(5)), "a redirect was followed"
        assert server.metric("octet_webhooks_total", outcome="given_up") >= 1


def check_a_killed_server_tells_after_its_start(binary):
    """Killed between the end of the job and its telling: while it waits for the next attempt, and in one."""
    hangs = threading.Event()
    slow = SETTINGS | {"OCTET_WEBHOOKS__RETRY_WAIT_MS": "3000"}
    with receiver(503) as (refusing, refused), receiver(hangs) as (hanging, hung), \
            support.Server(binary, settings=slow) as server:
        waits = submit(server, refusing)
        server.wait(waits)
        opened(refused.get(timeout=10))
        cut_off = submit(server, hanging)
        server.wait(cut_off)
        opened(hung.get(timeout=10))
        server.until(lambda: server.job(waits)["webhook"]["last_status"] == 503, "the refusal is noted")
        assert {server.job(job)["webhook"]["state"] for job in (waits, cut_off)} == {"pending"}
        server.kill()
        hangs.set()
        server.start()
        assert opened(refused.get(timeout=20))[0] == waits
        assert opened(hung.get(timeout=30))[0] == cut_off, "after its lease has run out"
        for job in (waits, cut_off):
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
