"""A running server, requests to it, the bundled models, and the few lines that run a file of checks.

A file of checks has functions named `check_…` that take a `Server` or nothing else. It runs by itself,
`python tests/clients/triton.py target/release/octet`, or with all the others through `all.py`.
"""

import contextlib
import http.client
import inspect
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The most that an artifact may weigh, as a part of its model: what ONNX Runtime's own quantizer reaches.
SIZE_RATIO_MAX = {"fm_lenet": 0.27, "fm_mlp": 0.26, "fm_resnet8": 0.31, "fm_mbv2": 0.46, "fm_vit": 0.49}
MODELS = list(SIZE_RATIO_MAX)


def folder(model):
    return ROOT / "examples/demo" if model == "fm_resnet8" else ROOT / "tests/data" / model


def model_path(model):
    return folder(model) / "model.onnx"


def calibration_path(model):
    return folder(model) / "calib.npz"


EVALUATION_PATH = ROOT / "examples/demo/eval.npz"


def images():
    """All test images as the models take them, [10000, 1, 28, 28] f32, and their labels."""
    with np.load(EVALUATION_PATH) as z:
        pixels = z["input_u8"].astype(np.float32) / np.float32(255)
        return (pixels - z["input_mean"]) / z["input_std"], z["labels"]


def peak_bytes(pid):
    """The most memory that a process has held since it began (VmHWM of Linux); None once it has ended."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def binary_request(name, array):
    """Body and headers of an inference request with one input and raw tensors."""
    array = np.ascontiguousarray(array)
    assert array.dtype == np.float32
    head = json.dumps({
        "inputs": [{"name": name, "shape": array.shape, "datatype": "FP32",
                    "parameters": {"binary_data_size": array.nbytes}}],
        "parameters": {"binary_data_output": True},
    }).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return head + array.tobytes(), headers


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def text(self):
        return self.body.decode("utf-8", "replace")


class Server:
    """`octet serve` on free ports with a data directory of its own, unless one is given. `grpc` is another address for
    gRPC, or `off`."""

    def __init__(self, binary, data_dir=None, settings=None, grpc=None):
        self.binary = str(pathlib.Path(binary).resolve())
        self.own_dir = None if data_dir else tempfile.TemporaryDirectory(prefix="octet-test-")
        self.data_dir = pathlib.Path(data_dir or self.own_dir.name)
        self.settings, self.grpc = settings or {}, grpc
        self.log_path = self.data_dir.parent / (self.data_dir.name + ".log")
        self.process = None
        self.start()

    def start(self):
        # Both at once, so that they are two.
        with socket.socket() as s, socket.socket() as t:
            s.bind(("127.0.0.1", 0))
            t.bind(("127.0.0.1", 0))
            self.port, grpc_port = s.getsockname()[1], t.getsockname()[1]
        self.address, self.grpc_address = f"127.0.0.1:{self.port}", f"127.0.0.1:{grpc_port}"
        self.url = "http://" + self.address
        command = [self.binary, "serve", "--listen", self.address,
                   "--grpc-listen", self.grpc_address if self.grpc is None else self.grpc,
                   "--data-dir", str(self.data_dir)]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | self.settings
            )
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}\n{self.log()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/v2/health/ready").status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server was not ready in 30 s\n{self.log()}")

    def kill(self):
        """As `kill -9` does: no chance to tidy up."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"the server did not end within 30 s of SIGTERM\n{self.log()}") from None
        return self.process.returncode

    def log(self):
        return self.log_path.read_text(errors="replace")[-4000:]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            if self.own_dir:
                self.own_dir.cleanup()
                self.log_path.unlink(missing_ok=True)

    def peak_bytes(self):
        """The most memory that the server has held so far."""
        return peak_bytes(self.process.pid)

    def request(self, method, path, body=None, headers=None, timeout=300):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, value):
        body = value if isinstance(value, bytes | str) else json.dumps(value)
        return self.request("POST", path, body, {"Content-Type": "application/json"})

    def put(self, path, data):
        """Uploads bytes or the file at a path."""
        data = data if isinstance(data, bytes) else pathlib.Path(data).read_bytes()
        return self.request("PUT", path, data, {"Content-Type": "application/octet-stream"})

    def submit(self, **spec):
        """Starts a quantize job; gives its id."""
        answer = self.post("/v1/jobs", {"kind": "quantize"} | spec)
        assert answer.status == 202, f"POST /v1/jobs: {answer.status} {answer.text()}"
        job = answer.json()["id"]
        assert answer.headers.get("location", "").endswith(f"/v1/jobs/{job}"), answer.headers
        return job

    def wait(self, job, timeout=300):
        """The job when it has ended, however it ended."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            state = self.job(job)
            if state["state"] not in ("queued", "running"):
                return state
            time.sleep(0.05)
        raise AssertionError(f"job {job} has not ended in {timeout} s: {state}")

    def job(self, job):
        answer = self.get(f"/v1/jobs/{job}")
        assert answer.status == 200, f"GET /v1/jobs/{job}: {answer.status} {answer.text()}"
        return answer.json()

    def quantize(self, model, endpoint=None, evaluation=True, **spec):
        """Uploads a bundled model with its data and sees one job through; gives the job."""
        for path, file in [
            (f"/v1/models/{model}", model_path(model)),
            (f"/v1/datasets/{model}-calib", calibration_path(model)),
        ] + ([("/v1/datasets/fm-eval", EVALUATION_PATH)] if evaluation else []):
            answer = self.put(path, file)
            assert answer.status in (200, 201), f"PUT {path}: {answer.status} {answer.text()}"
        spec |= {"model": model, "calibration": f"{model}-calib"}
        spec |= {"evaluation": "fm-eval"} if evaluation else {}
        spec |= {"endpoint": endpoint} if endpoint else {}
        job = self.wait(self.submit(**spec))
        assert job["state"] == "succeeded", f"{model}: {json.dumps(job, indent=1)}"
        # The job has ended when the artifact is kept; its endpoint is loaded right after.
        if endpoint:
            self.until(lambda: self.get(f"/v2/models/{endpoint}/ready").status == 200, f"{endpoint} is ready")
        return job

    def until(self, holds, what, timeout=30):
        """Waits for what comes soon after something else."""
        end = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < end, f"after {timeout} s not yet: {what}"
            time.sleep(0.01)

    def download(self, job):
        artifact = job["result"]["artifact"]["id"]
        answer = self.get(f"/v1/artifacts/{artifact}/download")
        assert answer.status == 200, f"download of {artifact}: {answer.status} {answer.text()}"
        return answer.body

    def serve(self, endpoint, model):
        """Serves a bundled model in float."""
        answer = self.put(f"/v1/models/{endpoint}", model_path(model))
        assert answer.status in (200, 201), answer.text()
        answer = self.request("PUT", f"/v1/endpoints/{endpoint}", json.dumps({"model": endpoint}))
        assert answer.status in (200, 201) and answer.json()["state"] == "READY", answer.text()

    def metric(self, name, **labels):
        """The value of a counter or gauge, summed over the labels that are not named."""
        total = 0.0
        for line in self.get("/metrics").text().splitlines():
            if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def infer(self, endpoint, name, array, output=None):
        """One request with binary tensors; the first output, or the one that is named."""
        answer = self.request("POST", f"/v2/models/{endpoint}/infer", *binary_request(name, array))
        assert answer.status == 200, f"infer {endpoint}: {answer.status} {answer.text()[:2000]}"
        size = int(answer.headers["inference-header-content-length"])
        outputs, at = json.loads(answer.body[:size])["outputs"], size
        for out in outputs:
            length = out["parameters"]["binary_data_size"]
            if output in (None, out["name"]):
                assert out["datatype"] == "FP32", out
                return np.frombuffer(answer.body[at:at + length], np.float32).reshape(out["shape"])
            at += length
        raise AssertionError(f"no output {output} in {outputs}")


def refused(call, *says):
    """A call of one of Triton's clients is refused, in a sentence that names all of `says`."""
    from tritonclient.utils import InferenceServerException
    try:
        call()
    except InferenceServerException as error:
        missing = [text for text in says if text not in error.message()]
        assert not missing, f"«{error.message()}» does not name {missing}"
        return
    raise AssertionError(f"was not refused with {says}")


def run_octet(binary, *arguments, **more):
    """Runs the program to its end; gives its standard output."""
    command = [str(a) for a in (binary, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600, **more)
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run(module, binary):
    """Runs the checks of one module, each with a server shared by the module; gives how many passed, and which failed."""
    checks = [(n, f) for n, f in vars(module).items() if n.startswith("check_")]
    passed, failed = 0, []
    with contextlib.ExitStack() as stack:
        server = None
        for name, check in checks:
            started = time.monotonic()
            try:
                wants = list(inspect.signature(check).parameters)
                if "server" in wants and (server is None or server.process.poll() is not None):
                    server = stack.enter_context(Server(binary, settings=getattr(module, "SETTINGS", None)))
                given = {"server": server, "binary": binary}
                say = check(**{w: given[w] for w in wants})
                passed += 1
                outcome = "ok" + (f" ({say})" if say else "")
            except Exception:  # a check fails in whatever way it likes; the others still run
                failed.append(f"{module.__name__}.{name}")
                outcome = "FAILED\n" + traceback.format_exc()
                if server:
                    outcome += f"--- the end of the server's log\n{server.log()}"
            print(f"{module.__name__}.{name} ... {outcome} [{time.monotonic() - started:.1f} s]", flush=True)
    return passed, failed


def main(module):
    """For a file of checks that is run by itself."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} path/to/octet")
    module.__name__ = pathlib.Path(sys.argv[0]).stem
    finish(*run(module, sys.argv[1]))


def finish(passed, failed):
    # By name once more: the lines above may be far above.
    for name in failed:
        print(f"FAILED: {name}")
    print(f"{passed} passed, {len(failed)} failed", flush=True)
    sys.exit(1 if failed or not passed else 0)
