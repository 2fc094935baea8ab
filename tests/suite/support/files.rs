//! Tiny ONNX models and `.npz` files, made here.

use std::io::{Cursor, Write as _};

use octet::engine::graph::op::Op;
use octet::engine::graph::{Dim, Graph, Node, Value, ValueId};
use octet::engine::onnx::{ModelProto, StringStringEntryProto, export};
use octet::engine::tensor::{DType, Tensor, npy};
use prost::Message as _;

/// Rows of the weights of [`linear`]: `y[j] = x · WEIGHTS[j]`.
pub(crate) const WEIGHTS: [[f32; 4]; 3] = [[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, -1.0], [0.5, 0.5, 0.5, 0.5]];

/// `y = x · Wᵀ`, `x` is `[batch, 4]`, `y` is `[batch, 3]`.
pub(crate) fn linear() -> Vec<u8> {
    linear_with(1.0)
}

/// The same with other weights, so other bytes.
pub(crate) fn linear_with(factor: f32) -> Vec<u8> {
    linear_as("gemm", factor)
}

/// The same with another name for its node.
pub(crate) fn with_node_named(node: &str) -> Vec<u8> {
    linear_as(node, 1.0)
}

fn linear_as(node: &str, factor: f32) -> Vec<u8> {
    let mut graph = Graph { name: "linear".to_owned(), ..Graph::default() };
    let batch = |n| vec![Dim::Symbol("batch".to_owned()), Dim::Known(n)];
    let x = port(&mut graph, "x", batch(4));
    let weights: Vec<f32> = WEIGHTS.iter().flatten().map(|w| w * factor).collect();
    let w = graph.add_constant("w", Tensor::from_slice(&[3, 4], &weights));
    let y = port(&mut graph, "y", batch(3));
    let op = Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true };
    graph.nodes.push(Node::new(node.to_owned(), op, vec![Some(x), Some(w)], vec![y]));
    graph.inputs.push(x);
    graph.outputs.push(y);
    export::export(&graph, &[])
}

fn port(graph: &mut Graph, name: &str, dims: Vec<Dim>) -> ValueId {
    graph.add_value(Value {
        name: name.to_owned(),
        dtype: Some(DType::F32),
        dims: Some(dims),
        constant: None,
        qparams: None,
    })
}

/// [`linear`] with its weights in another file: those of [`weight_bytes`].
pub(crate) fn with_data_apart(location: &str) -> Vec<u8> {
    let mut model = ModelProto::decode(linear().as_slice()).unwrap();
    let tensor = &mut model.graph.as_mut().unwrap().initializer[0];
    tensor.raw_data = None;
    tensor.data_location = Some(1);
    let entry = StringStringEntryProto { key: "location".to_owned(), value: location.to_owned() };
    tensor.external_data = vec![entry];
    model.encode_to_vec()
}

/// The bytes of the weights of [`linear`].
pub(crate) fn weight_bytes() -> Vec<u8> {
    WEIGHTS.iter().flatten().flat_map(|w| w.to_le_bytes()).collect()
}

/// A zip file.
pub(crate) fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// What [`linear`] gives for one sample.
pub(crate) fn linear_of(x: [f32; 4]) -> [f32; 3] {
    WEIGHTS.map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum())
}

/// A model with an operator that nobody has: the bytes of `Gemm` in [`linear`] become `Gemx`.
pub(crate) fn unknown_operator() -> Vec<u8> {
    let mut bytes = linear();
    let at = bytes.windows(4).position(|w| w == b"Gemm").unwrap();
    bytes[at + 3] = b'x';
    bytes
}

/// An `.npz` file.
pub(crate) fn npz(arrays: &[(&str, Tensor)]) -> Vec<u8> {
    let arrays: Vec<_> = arrays.iter().map(|(name, tensor)| (*name, tensor)).collect();
    npy::write_npz(Cursor::new(Vec::new()), &arrays).unwrap().into_inner()
}

/// So many samples for [`linear`], spread over −1 to 1.
pub(crate) fn samples(count: usize) -> Vec<u8> {
    npz(&[("x", values(count))])
}

/// The array of [`samples`].
pub(crate) fn values(count: usize) -> Tensor {
    let value = |i: usize| (i * 37 % 101) as f32 / 50.0 - 1.0;
    Tensor::from_slice(&[count, 4], &(0..count * 4).map(value).collect::<Vec<_>>())
}
