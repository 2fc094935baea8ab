"""How alike two outputs of a model are: prints {FILE: cosine} for each FILE against REFERENCE.

    python cosine.py REFERENCE.npz FILE.npz...

A model with several outputs is as good as its worst; one that misses or bends an output, or has values that are no
numbers, gets 0.
"""

import json
import sys

import numpy as np


def cosine(a, b):
    if a.shape != b.shape or not np.isfinite(b).all():
        return 0.0
    a, b = (x.astype(np.float64).ravel() for x in (a, b))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms > 0 else 0.0


def main():
    with np.load(sys.argv[1]) as reference:
        found = {}
        for path in sys.argv[2:]:
            with np.load(path) as z:
                found[path] = min(cosine(reference[k], z[k]) if k in z.files else 0.0 for k in reference.files)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
