"""`examples/pipeline`: both programs, on the way up and on the way back."""

import io
import json
import os
import subprocess
import sys

import numpy as np

import support
from keys import Keys

FOLDER = support.ROOT / "examples/pipeline"
PROMOTED, BROKEN, GATE_NOT_KEPT, TAKEN_BACK = 0, 1, 3, 4
REQUEST = support.ROOT / "examples/demo/request.json"


def run(program, server, endpoint, model, calibration, max_drop="0.02", min_agreement="0.98", min_compared="50",
        key=""):
    """One rollout; gives its exit status and what it says."""
    if program == "pipeline.py":
        command = [sys.executable, FOLDER / program, "--server", server.url, "--endpoint", endpoint, "--model", model,
                   "--calibration", calibration, "--evaluation", evaluation(server), "--request", REQUEST,
                   "--max-drop", max_drop, "--min-agreement", min_agreement, "--min-compared", min_compared,
                   # A broken version must pass the gate, so that the canary finds it.
                   "--gate-agreement", "0.97" if float(max_drop) < 0.5 else "0", "--weight", "20"]
        environment = {}
    else:
        command = [FOLDER / program, endpoint, model, calibration, evaluation(server), REQUEST]
        environment = {"OCTET": server.url, "MAX_DROP": max_drop, "MIN_AGREEMENT": min_agreement,
                       "MIN_COMPARED": min_compared, "WEIGHT": "20"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600,
                          env=os.environ | environment | {"OCTET_KEY": key}, stdin=subprocess.DEVNULL)
    return done.returncode, f"{done.stdout}\n{done.stderr}"


def weights(server, endpoint):
    return [v["weight"] for v in json.loads(server.get(f"/v1/endpoints/{endpoint}").text())["versions"]]


def roll(program, server):
    endpoint = f"rolled-{program[-2:]}"
    model, calibration = support.model_path("fm_lenet"), support.calibration_path("fm_lenet")
    status, said = run(program, server, endpoint, model, calibration)
    assert status == PROMOTED and weights(server, endpoint) == [100], said
    # What the first rollout left behind does not matter to the second.
    status, said = run(program, server, endpoint, model, calibration)
    assert status == PROMOTED and weights(server, endpoint) == [0, 100], said
    shadow = json.loads(server.get(f"/v1/endpoints/{endpoint}").text())["versions"][-1]["shadow"]
    assert shadow["compared"] >= 50 and shadow["agreement"] == 1, shadow
    status, said = run(program, server, endpoint, model, broken(server))
    assert status == GATE_NOT_KEPT and weights(server, endpoint) == [0, 100], said
    # Past a gate that holds nothing back the same artifact meets clients.
    status, said = run(program, server, endpoint, model, broken(server), max_drop="1")
    assert status == TAKEN_BACK, f"exit {status}\n{said}"
    assert weights(server, endpoint)[1] == 100 and weights(server, endpoint)[-1] == 0, said
    reasons = [i["reason"] for i in server.get(f"/v1/endpoints/{endpoint}/changes").json()["items"]]
    assert any(r and r.startswith("pipeline: canary") for r in reasons), reasons


def evaluation(server):
    """A thousand of the test images: enough for a gate, and soon done."""
    path = server.data_dir / "thousand.npz"
    if not path.exists():
        pixels, labels = support.images()
        np.savez(path, input=pixels[:1000], labels=labels[:1000])
    return path


def broken(server):
    """Calibration data of a hundredth of what comes: nearly everything saturates."""
    path = server.data_dir / "broken.npz"
    images = support.images()[0]
    data = io.BytesIO()
    np.savez(data, input=images[:64] * np.float32(0.01))
    path.write_bytes(data.getvalue())
    return path


def check_pipeline_in_python(server):
    roll("pipeline.py", server)


def check_pipeline_in_bash(server):
    roll("pipeline.sh", server)


def check_both_with_a_key(binary):
    with support.Server(binary, settings={"OCTET_AUTH__MODE": "keys"}) as server:
        key = Keys(server).create("read,write,infer")
        model, calibration = support.model_path("fm_lenet"), support.calibration_path("fm_lenet")
        for program in ("pipeline.py", "pipeline.sh"):
            rollout = [program, server, f"keyed-{program[-2:]}", model, calibration]
            status, said = run(*rollout)
            assert status == BROKEN and "401" in said, f"exit {status}\n{said}"
            status, said = run(*rollout, key=key)
            assert status == PROMOTED and key not in said, f"exit {status}\n{said}"


def check_usage_of_both():
    done = subprocess.run([FOLDER / "pipeline.sh"], capture_output=True, text=True)
    assert done.returncode == 1 and "ENDPOINT MODEL.onnx" in done.stderr, done
    done = subprocess.run([sys.executable, FOLDER / "pipeline.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--max-drop" in done.stdout, done


if __name__ == "__main__":
    support.main(sys.modules[__name__])
