//! Calibration and evaluation data: a streamed view of an `.npz`.
