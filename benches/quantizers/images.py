"""Made-up pictures in bytes, as Octet's datasets hold them.

    python images.py FILE.npz COUNT INPUT

Writes INPUT_u8 [COUNT, 3, 224, 224] with ImageNet's INPUT_mean and INPUT_std: patches of 8 x 8 with some noise. Time
does not depend on what they show.
"""

import sys

import numpy as np

SIDE, PATCH = 224, 8


def main():
    path, count, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    random = np.random.default_rng(7)
    coarse = random.integers(0, 224, (count, 3, SIDE // PATCH, SIDE // PATCH), np.uint8)
    pictures = np.kron(coarse, np.ones((PATCH, PATCH), np.uint8))
    pictures += random.integers(0, 32, pictures.shape, np.uint8)
    np.savez(path, **{f"{name}_u8": pictures, f"{name}_mean": np.float32([0.485, 0.456, 0.406]),
                      f"{name}_std": np.float32([0.229, 0.224, 0.225])})


if __name__ == "__main__":
    main()
