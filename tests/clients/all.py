"""Runs every file of checks: `python tests/clients/all.py path/to/octet [name ...]`."""

import importlib
import pathlib
import subprocess
import sys
import tempfile

import support

NAMES = sorted(p.stem for p in pathlib.Path(__file__).parent.glob("*.py") if p.stem not in ("all", "support", "cluster"))
# Half of the time of all, in a second process beside the others. Those that wait for leases, timeouts and processes that
# start, and those that ask what is answered, not how soon.
BESIDE = ("agreement", "frameworks", "quantized", "replicas", "schema", "tokens", "webhooks")


def run(names, binary):
    results = [support.run(importlib.import_module(n), binary) for n in names]
    support.finish(sum(passed for passed, _ in results), [name for _, failed in results for name in failed])


def run_all(binary):
    """Everything, some of it in a second process, whose lines come last."""
    with tempfile.TemporaryFile("w+") as lines:
        command = [sys.executable, __file__, binary, *BESIDE]
        beside = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=lines, stderr=subprocess.STDOUT)
        code = 0
        try:
            run([n for n in NAMES if n not in BESIDE], binary)
        except SystemExit as end:
            code = end.code
        finally:
            code = beside.wait() or code
            lines.seek(0)
            sys.stdout.write(lines.read())
    sys.exit(code)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} path/to/octet [{' | '.join(NAMES)}]...")
    if sys.argv[2:]:
        run(sys.argv[2:], sys.argv[1])
    else:
        run_all(sys.argv[1])
