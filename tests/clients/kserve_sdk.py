"""KServe's own SDK, over REST and over gRPC. It lives in an environment of its own: `kserve/requirements.txt`."""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import support

PYTHON = support.ROOT / ".venv-kserve/bin/python"


def check_the_sdk(server):
    server.serve("lenet", "fm_lenet")
    batch = support.images()[0][:5]
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / name for name in ("batch.npy", "want.npy")]
        np.save(paths[0], batch)
        np.save(paths[1], server.infer("lenet", "input", batch))
        checks = pathlib.Path(__file__).parent / "kserve/checks.py"
        command = [str(a) for a in (PYTHON, checks, server.address, server.grpc_address, *paths)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stdout
    return "; ".join(lines)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
