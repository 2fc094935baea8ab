//! The artifact: QDQ ONNX plus a JSON manifest.
