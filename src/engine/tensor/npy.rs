//! `.npy` and `.npz` in and out, with limits.
