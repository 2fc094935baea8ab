"""Several processes that share their work: a Postgres server, an object store, replicas with role `api` and `worker`.

Postgres comes from `tests/postgres`; the object store is moto's server (`tests/clients/s3/requirements.txt`, in `.venv-s3`;
PYTHON_S3 names another interpreter that has it).
"""

import contextlib
import http.client
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time

import support

BUCKET = "octet"


class ObjectStore:
    """A server that speaks S3, in memory, with one bucket."""

    def __init__(self, folder):
        python = os.environ.get("PYTHON_S3") or support.ROOT / ".venv-s3/bin/python"
        assert pathlib.Path(python).exists(), f"{python} is missing: tests/run makes it (tests/clients/s3/requirements.txt)"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = open(folder / "s3.log", "wb")
        self.process = subprocess.Popen([str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                                        stdout=self.log, stderr=self.log)
        for _ in range(600):
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.request("PUT", f"/{BUCKET}").status == 200:
                    return
            assert self.process.poll() is None, (folder / "s3.log").read_text()[-2000:]
            time.sleep(0.05)
        raise AssertionError("the object store did not start in 30 s")

    def request(self, method, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            # moto takes any credentials.
            connection.request(method, path, headers={"Authorization": "AWS4-HMAC-SHA256 Credential=t/20260101/us-east-1/s3/"
                                                                       "aws4_request, SignedHeaders=host, Signature=0"})
            answer = connection.getresponse()
            return support.Answer(answer.status, {}, answer.read())
        finally:
            connection.close()

    def digests(self):
        """The SHA-256 of every blob that is there, by its key."""
        found, token = [], ""
        while True:
            answer = self.request("GET", f"/{BUCKET}?list-type=2&max-keys=1000{token}")
            assert answer.status == 200, answer.text()
            keys = re.findall(r"<Key>octet/blobs/(\w\w)/(\w+)</Key>", answer.text())
            found += [a + b for a, b in keys]
            more = re.search(r"<NextContinuationToken>([^<]+)<", answer.text())
            if not more:
                return sorted(found)
            token = "&continuation-token=" + more[1]

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


class Cluster:
    """So many replicas of each role over one Postgres and one object store."""

    def __init__(self, binary, api=2, workers=3, settings=None):
        self.binary = binary
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="octet-cluster-"))
        self.folder.chmod(0o755)
        self.stack = contextlib.ExitStack()
        self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self.database_url = self.postgres("start", "fsync=off")
            self.stack.callback(self.postgres, "remove")
            self.store = ObjectStore(self.folder)
            self.stack.callback(self.store.stop)
            self.settings = {
                "OCTET_STORE__DATABASE_URL": self.database_url, "OCTET_STORE__S3_BUCKET": BUCKET,
                "OCTET_STORE__S3_ENDPOINT": self.store.url, "OCTET_STORE__S3_ACCESS_KEY_ID": "t",
                "OCTET_STORE__S3_SECRET_ACCESS_KEY": "t", "OCTET_JOBS__THREADS": "1",
            } | (settings or {})
            self.api = [self.replica("api", n) for n in range(api)]
            self.workers = [self.replica("worker", n) for n in range(workers)]
        except BaseException:
            self.stack.close()
            raise

    def postgres(self, command, *more):
        script = support.ROOT / "tests/postgres"
        done = subprocess.run([str(script), command, str(self.folder / "postgres"), *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def replica(self, role, number):
        data_dir = self.folder / f"{role}-{number}"
        server = support.Server(self.binary, data_dir, self.settings | {"OCTET_ROLE": role}, grpc="off")
        self.stack.push(server)
        return server

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()
