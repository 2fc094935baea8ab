"""What the README shows, as it stands there, and `octet demo`."""

import json
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request

import onnx

import agreement
import support


def check_every_curl_of_the_readme(binary):
    text = (support.ROOT / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    walk = next(b for b in blocks if "OCTET=" in b)
    with support.Server(binary) as server:
        script = re.sub(r"(?m)^OCTET=.*$", f"OCTET={server.url}", walk)
        script = "set -euo pipefail\ncurl() { command curl --fail-with-body \"$@\"; }\n" + script
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300,
                              cwd=support.ROOT, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return f"{len(re.findall(r'(?m)^ *curl|[(|] *curl', walk))} requests"


def check_the_demo(binary):
    out = support.run_octet(binary, "demo", "--exit")
    for says in ("float", "INT8", "top-1", "curl", "ankle boot", "/metrics", "report.html"):
        assert says in out, f"«{says}» is missing in\n{out}"
    assert "\x1b" not in out, "no colours and no bars where nobody watches"


def check_the_demo_stays_until_it_is_asked_to_end(binary):
    process = subprocess.Popen([binary, "demo"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        url = None
        for line in process.stdout:
            url = url or (re.search(r"http://[0-9.:]+", line) or [None])[0]
            if "Ctrl-C" in line:
                break
        with urllib.request.urlopen(f"{url}/v2/models/resnet8/ready", timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def check_help_and_wrong_arguments(binary):
    out = support.run_octet(binary, "--help")
    for command in ("serve", "demo", "quantize", "run", "bench", "inspect"):
        assert command in out, out
    for arguments in (["frobnicate"], ["run"], ["run", "/nonexistent.onnx", "--inputs", "a.npz", "-o", "b.npz"]):
        done = subprocess.run([binary, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode != 0 and done.stderr.strip(), (arguments, done)
        assert "panicked" not in done.stderr, done.stderr


def check_inspect_says_what_runs_in_integers(binary):
    """All Conv, Gemm and MatMul with constant weights of the bundled models run in integers in our executor."""
    counts = []
    with tempfile.TemporaryDirectory() as folder:
        for model in support.MODELS:
            artifact = f"{folder}/{model}.onnx"
            support.run_octet(binary, "quantize", support.model_path(model), "--calibration",
                              support.calibration_path(model), "-o", artifact)
            said = json.loads(support.run_octet(binary, "inspect", artifact, "--json"))
            graph = onnx.load(support.model_path(model)).graph
            wanted = {n.name for n in agreement.nodes_with_constant_weights(graph, agreement.FLOAT_OPERATORS)}
            missing = wanted - set(said["integer"])
            assert wanted and not missing, f"{model}: {sorted(missing)} do not run in integers: {said}"
            assert not wanted & {row["node"] for row in said["float"]} and not said["unsupported"], said
            # And the float model is told so before any job.
            before = json.loads(support.run_octet(binary, "inspect", support.model_path(model), "--json"))
            assert not wanted - set(before["integer"]), f"{model}: {sorted(wanted - set(before['integer']))}"
            counts.append(f"{model} {len(wanted)}")
    return ", ".join(counts)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
