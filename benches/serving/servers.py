"""Servers to measure, each in a process group of its own on loopback; Octet's also takes models, jobs and endpoints."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import provide

APPS = provide.HERE / "apps"
READY_SECONDS = 90


class Server:
    """A program that answers on a port. While others are measured it is stopped (SIGSTOP), so that it takes no time."""

    def __init__(self, name, port, command, log, ready, cwd=None, variables=None):
        self.name, self.port, self.log_path = name, port, pathlib.Path(log)
        self.begun = time.monotonic()
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [str(c) for c in command], cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=os.environ | (variables or {}), start_new_session=True)
        self.pid = self.process.pid
        try:
            self.until(lambda: self.request("GET", ready)[0] == 200, READY_SECONDS)
        except BaseException:
            self.end()
            raise
        self.start_s = time.monotonic() - self.begun

    def until(self, holds, seconds=30):
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if holds():
                    return
            if self.process.poll() is not None or time.monotonic() > end:
                tail = self.log_path.read_text(errors="replace")[-800:]
                raise RuntimeError(f"{self.name} is not ready: {tail}")
            time.sleep(0.02)

    def request(self, method, path, body=None, headers=None, timeout=120):
        """Status, headers with small letters, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def pause(self):
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self):
        os.killpg(self.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def running(self):
        self.resume()
        try:
            yield self
        finally:
            self.pause()

    def rss_bytes(self):
        """Resident memory of the group's processes; pages that they share count in each."""
        total = 0
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                # The name in parentheses may hold anything: count fields from behind it. The third is the group.
                if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == self.pid:
                    total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return total

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)
            os.killpg(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def fastapi(model, port, out, workers):
    bin_ = provide.environment("fastapi")
    command = [bin_ / "uvicorn", "fastapi_app:app", "--port", port, "--workers", workers, "--loop", "uvloop",
               "--http", "httptools", "--log-level", "warning", "--no-access-log"]
    return Server("fastapi", port, command, out / "fastapi.log", "/ready", APPS, {"MODEL": str(model)})


def litserve(model, port, out, workers):
    command = [provide.environment("litserve") / "python", "litserve_app.py", port, workers]
    return Server("litserve", port, command, out / "litserve.log", "/health", APPS, {"MODEL": str(model)})


def mlserver(model, port, out, workers):
    bin_ = provide.environment("mlserver")
    # MLServer's pool costs more than it gives for small models, and 0 is its own process: the best of both is taken
    # by hand (README). Its console script looks for `python` in PATH.
    variables = {"MODEL": str(model), "MLSERVER_HOST": "127.0.0.1", "MLSERVER_HTTP_PORT": str(port),
                 "MLSERVER_GRPC_PORT": str(port + 1), "MLSERVER_METRICS_PORT": str(port + 2), "MLSERVER_DEBUG": "false",
                 "MLSERVER_PARALLEL_WORKERS": str(workers), "PYTHONPATH": str(APPS / "mlserver"),
                 "PATH": f"{bin_}:{os.environ['PATH']}"}
    return Server("mlserver", port, [bin_ / "mlserver", "start", "."], out / "mlserver.log", "/v2/models/m/ready",
                  APPS / "mlserver", variables)


class Octet(Server):
    """`octet serve` with a data directory of its own."""

    def __init__(self, binary, port, out, settings=()):
        self.binary, self.out = pathlib.Path(binary).resolve(), out
        data = out / f"data-{port}-{time.time_ns()}"
        command = [self.binary, "serve", "--listen", f"127.0.0.1:{port}", "--data-dir", data]
        self.grpc_port = port + 1 if knows_grpc(self.binary) else None
        if self.grpc_port:
            command += ["--grpc-listen", f"127.0.0.1:{self.grpc_port}"]
        for setting in ("serving.shared_memory=true", *settings):
            command += ["--set", setting]
        super().__init__("octet", port, command, out / "octet.log", "/v2/health/ready",
                         variables={"OCTET_LOG__LEVEL": "warn"})
        self.data = data

    def call(self, method, path, value=None, wanted=(200, 201, 202)):
        """A request of JSON, or of a file's bytes; gives the answer's JSON."""
        body = value if isinstance(value, bytes) or value is None else json.dumps(value)
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        status, _, answer = self.request(method, path, body, {"Content-Type": kind})
        if status not in wanted:
            raise RuntimeError(f"{method} {path}: {status} {answer[:500].decode(errors='replace')}")
        return json.loads(answer) if answer else None

    def quantize(self, model, endpoint, **more):
        """Uploads a model, has it quantized and served; gives the path of the artifact, downloaded, and its id."""
        self.call("PUT", f"/v1/models/{model.name}", model.path.read_bytes())
        self.call("PUT", f"/v1/datasets/{model.name}", model.calibration.read_bytes())
        job = self.call("POST", "/v1/jobs", {"kind": "quantize", "model": model.name, "calibration": model.name,
                                             "endpoint": endpoint} | more)
        while job["state"] in ("queued", "running"):
            job = self.call("GET", f"/v1/jobs/{job['id']}?wait=30")
        if job["state"] != "succeeded":
            raise RuntimeError(f"quantizing {model.name}: {json.dumps(job)[:500]}")
        self.loaded(endpoint)
        artifact = job["result"]["artifact"]["id"]
        path = self.out / f"{model.name}.int8.onnx"
        path.write_bytes(self.request("GET", f"/v1/artifacts/{artifact}/download")[2])
        return path, artifact

    def serve_float(self, model, endpoint):
        self.call("PUT", f"/v1/models/{model.name}", model.path.read_bytes())
        self.call("PUT", f"/v1/endpoints/{endpoint}", {"model": model.name})
        self.loaded(endpoint)
        return model.path

    @contextlib.contextmanager
    def shared_memory(self, tensor):
        """An object of shared memory with the bytes of this file, registered as the region that requests name."""
        key, region = f"octet-bench-{self.pid}", f"/v2/systemsharedmemory/region/{provide.REGION}"
        path = pathlib.Path("/dev/shm") / key
        shutil.copyfile(tensor, path)
        try:
            self.call("POST", f"{region}/register", {"key": key, "byte_size": path.stat().st_size})
            yield
            with self.running():
                self.call("POST", f"{region}/unregister")
        finally:
            path.unlink()

    def loaded(self, endpoint):
        self.until(lambda: self.request("GET", f"/v2/models/{endpoint}/ready")[0] == 200)


def knows_grpc(binary):
    said = subprocess.run([binary, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    return "--grpc-listen" in said


def octet_bench(binary, model, batch, threads, seconds):
    """Median milliseconds of a run in `octet bench`, over about so many seconds."""
    def bench(runs):
        command = [str(binary), "bench", str(model), "--batch", str(batch), "--threads", str(threads),
                   "--runs", str(runs), "--json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)
    first = bench(5)
    return bench(max(5, min(20000, int(seconds * 1000 / first["median_ms"]))))
