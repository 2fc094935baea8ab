//! The ONNX protobuf messages that we use.
