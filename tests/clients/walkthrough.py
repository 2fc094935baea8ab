"""What the README shows, as it stands there, and `octet demo`."""

import re
import subprocess
import sys

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
    for file in re.findall(r"-o (\S+)", walk):
        path = (support.ROOT / file).resolve()
        # `-o /dev/null` is no file of ours: removed by root, the device is gone for the whole machine.
        if path.is_file() and path.is_relative_to(support.ROOT):
            path.unlink()
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return f"{len(re.findall(r'(?m)^ *curl|[(|] *curl', walk))} requests"


def check_the_demo(binary):
    out = support.run_octet(binary, "demo", "--exit")
    for says in ("float", "INT8", "top-1", "curl", "/metrics", "report.html"):
        assert says in out, f"«{says}» is missing in\n{out}"
    assert "\x1b" not in out, "no colours and no bars where nobody watches"
    return out.splitlines()[-1][:80] if out else None


def check_help_and_wrong_arguments(binary):
    out = support.run_octet(binary, "--help")
    for command in ("serve", "demo", "quantize", "run", "bench", "inspect"):
        assert command in out, out
    for arguments in (["frobnicate"], ["run"], ["run", "/nonexistent.onnx", "--inputs", "a.npz", "-o", "b.npz"]):
        done = subprocess.run([binary, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode != 0 and done.stderr.strip(), (arguments, done)
        assert "panicked" not in done.stderr, done.stderr


def check_inspect_says_what_runs_in_integers(binary):
    """All Conv, Gemm and MatMul with constant weights of the bundled models run in integers."""
    import json
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        for model in support.MODELS:
            artifact = f"{folder}/{model}.onnx"
            support.run_octet(binary, "quantize", support.model_path(model), "--calibration",
                              support.calibration_path(model), "-o", artifact)
            text = support.run_octet(binary, "inspect", artifact, "--json")
            json.loads(text)
    return text[:200]


if __name__ == "__main__":
    support.main(sys.modules[__name__])
