"""Uploads in parts with tuspy, the reference client of tus, and the server killed in the middle; refusals as bytes."""

import base64
import hashlib
import sys
import threading
import time

from tusclient import client as tus

import support

PART = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}


def metadata(kind, name):
    return {"kind": kind, "name": name}


def check_tuspy_uploads_a_model_and_a_dataset(server):
    for kind, path, name in (("model", support.model_path("fm_mlp"), "mlp"),
                             ("dataset", support.calibration_path("fm_mlp"), "calib")):
        uploader = tus.TusClient(f"{server.url}/v1/uploads").uploader(
            str(path), chunk_size=100_000, metadata=metadata(kind, name), upload_checksum=True)
        uploader.upload()
        got = server.get(f"/v1/{kind}s/{name}/download")
        want = path.read_bytes()
        assert got.body == want
        digest = base64.b64encode(hashlib.sha256(want).digest()).decode()
        assert got.headers["repr-digest"] == f"sha-256=:{digest}:", got.headers


def check_an_upload_goes_on_after_kill_9(binary):
    """Killed while parts come in: what was acknowledged is there, and the client goes on."""
    path = support.model_path("fm_vit")
    want = path.read_bytes()
    with support.Server(binary) as server:
        uploader = tus.TusClient(f"{server.url}/v1/uploads").uploader(
            str(path), chunk_size=len(want) // 20, metadata=metadata("model", "vit"))
        acknowledged, failed = 0, None

        def send():
            nonlocal acknowledged, failed
            try:
                while uploader.offset < len(want):
                    uploader.upload_chunk()
                    acknowledged = uploader.offset
            except Exception as e:  # the connection is gone
                failed = e

        thread = threading.Thread(target=send)
        thread.start()
        server.until(lambda: acknowledged >= len(want) // 4, "a quarter has come")
        server.kill()
        thread.join()
        assert failed is not None and acknowledged < len(want), "it was over before the kill"
        url = uploader.url.replace(f":{server.port}/", ":PORT/")
        server.start()
        url = url.replace(":PORT/", f":{server.port}/")
        head = server.request("HEAD", url.split(str(server.port))[1], headers={"Tus-Resumable": "1.0.0"})
        kept = int(head.headers["upload-offset"])
        assert acknowledged <= kept < len(want), (acknowledged, kept)
        tus.TusClient(f"{server.url}/v1/uploads").uploader(str(path), url=url, chunk_size=1 << 20).upload()
        assert server.get("/v1/models/vit@1/download").body == want
        return f"{acknowledged} of {len(want)} bytes acknowledged before the kill, {kept} kept"


def check_refusals_have_the_statuses_of_the_protocol(server):
    def encoded(**pairs):
        return ",".join(f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in pairs.items())

    def create(length, **more):
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(length)} | more
        return server.request("POST", "/v1/uploads", headers=headers)

    named = {"Upload-Metadata": encoded(kind="model", name="m")}
    path = create(10, **named).headers["location"]
    for status, code, headers, body in (
        (409, "upload_offset", {"Upload-Offset": "5"}, b"abc"),
        (460, "checksum_mismatch", {"Upload-Offset": "0", "Upload-Checksum": "sha1 " + "A" * 27 + "="}, b"abc"),
        (412, "tus_version", {"Upload-Offset": "0", "Tus-Resumable": "0.1"}, b"abc"),
        (413, "too_large", {"Upload-Offset": "0"}, b"x" * 11),
        (415, "unsupported_media", {"Upload-Offset": "0", "Content-Type": "text/plain"}, b"abc"),
        (400, "bad_request", {"Upload-Offset": "-1"}, b"abc"),
    ):
        answer = server.request("PATCH", path, body, PART | headers)
        assert (answer.status, answer.json()["code"]) == (status, code), answer.text()
        assert answer.headers["tus-resumable"] == "1.0.0"
    assert create(1 << 50, **named).status == 413
    assert create(10).status == 400
    refused = server.request("PATCH", path, b"no model..", PART | {"Upload-Offset": "0"})
    assert (refused.status, refused.json()["code"]) == (422, "bad_model"), refused.text()
    assert server.request("HEAD", path, headers={"Tus-Resumable": "1.0.0"}).status == 404


def check_a_part_that_breaks_off_is_kept_as_far_as_it_came(server):
    import socket
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "1000", "Upload-Metadata": "kind bW9kZWw=,name bQ=="}
    path = server.request("POST", "/v1/uploads", headers=headers).headers["location"]
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nUpload-Offset: 0\r\n"
        s.sendall((head + "".join(f"{k}: {v}\r\n" for k, v in PART.items()) + "\r\n").encode() + b"x" * 300)
        time.sleep(0.3)
    offset = lambda: server.request("HEAD", path, headers={"Tus-Resumable": "1.0.0"}).headers["upload-offset"]
    server.until(lambda: offset() == "300", "what came is kept", 5)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
