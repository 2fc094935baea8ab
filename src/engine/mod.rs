//! The engine: values in, values out. Bytes of a model in, bytes of an artifact and a report out;
//! a tensor in, a tensor out. It knows no HTTP, no SQL, no async runtime, no environment, no clock.

pub mod artifact;
pub mod buffer;
pub mod exec;
pub mod graph;
pub mod kernels;
pub mod onnx;
pub mod ops;
pub mod pipeline;
pub mod quant;
pub mod tensor;
