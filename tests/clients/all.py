"""Runs every file of checks: `python tests/clients/all.py path/to/octet [name ...]`."""

import importlib
import pathlib
import sys

import support

NAMES = sorted(p.stem for p in pathlib.Path(__file__).parent.glob("*.py") if p.stem not in ("all", "support", "cluster"))

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} path/to/octet [{' | '.join(NAMES)}]...")
    results = [support.run(importlib.import_module(n), sys.argv[1]) for n in sys.argv[2:] or NAMES]
    support.finish(sum(r[0] for r in results), sum(r[1] for r in results))
