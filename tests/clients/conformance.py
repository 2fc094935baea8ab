"""The cases of ONNX's own backend tests: those that fail are listed in tests/data/conformance.txt, with the reason."""

import pathlib
import subprocess
import sys

import onnx.backend.test

import support

FOLDERS = ("node", "simple", "pytorch-converted", "pytorch-operator")
LIST = support.ROOT / "tests/data/conformance.txt"


def check_backend_cases(binary):
    data = pathlib.Path(onnx.backend.test.__file__).parent / "data"
    command = [binary, "conformance", "--expected", LIST, *(data / folder for folder in FOLDERS)]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{result.stdout[-4000:]}{result.stderr[-1000:]}"
    return result.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    support.main(sys.modules[__name__])
