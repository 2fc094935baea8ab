//! ConvTranspose whose windows lie side by side becomes a convolution of 1x1 whose channels are laid out as blocks of pixels:
//! what folds into a Conv, or computes on codes, then does so there as well.

use crate::engine::graph::op::{Op, Sliding};
use crate::engine::graph::operator::Other;
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::tensor::{DType, Tensor};

/// Splits every such ConvTranspose with constant weights.
pub(super) fn split_windows(graph: &mut Graph) {
    for n in (0..graph.nodes.len()).rev() {
        if let Some((conv, layer)) = parts(graph, n) {
            graph.nodes.splice(n..=n, [conv, layer]);
        }
    }
}

/// The two nodes that node `n` becomes.
fn parts(graph: &mut Graph, n: usize) -> Option<(Node, Node)> {
    let Op::Other(other) = &graph.nodes[n].op else { return None };
    let weight = graph.constant(graph.nodes[n].input(1)?).filter(|w| w.dtype() == DType::F32)?.clone();
    let layer: Other = other.operator.layer_of_windows(weight.shape())?;
    let node = graph.nodes[n].clone();
    let x = node.input(0)?;
    let &[inputs, outputs, ..] = weight.shape() else { return None };
    let taps = weight.shape()[2..].iter().product::<usize>();
    let bias = match node.input(2) {
        None => None,
        Some(id) => Some(graph.constant(id).filter(|b| b.dtype() == DType::F32 && b.shape() == [outputs])?),
    };
    let bias = bias.map(|bias| bias.slice::<f32>().repeat(taps));
    let from = weight.slice::<f32>();
    // `[C, M, taps]` to `[taps, M, C]`.
    let turned: Vec<f32> = (0..taps * outputs)
        .flat_map(|row| {
            let (tap, m) = (row / outputs, row % outputs);
            (0..inputs).map(move |c| from[(c * outputs + m) * taps + tap])
        })
        .collect();
    let channels = taps * outputs;
    let constant = |graph: &mut Graph, of: &str, tensor| {
        let name = graph.unused_name(&format!("{}.{of}", node.name));
        graph.add_constant(&name, tensor)
    };
    let mut operands: Vec<Option<ValueId>> = vec![Some(x)];
    operands.push(Some(constant(graph, "weight", Tensor::from_slice(&[channels, inputs, 1, 1], &turned))));
    operands.extend(bias.map(|bias| Some(constant(graph, "bias", Tensor::from_slice(&[channels], &bias)))));
    let dims = graph.value(x).dims.clone().filter(|dims| dims.len() == 4).map(|mut dims| {
        dims[1] = Dim::Known(channels);
        dims
    });
    let name = graph.unused_name(&format!("{}.windows", node.name));
    let value = Value { name, dtype: Some(DType::F32), dims, ..Value::default() };
    let between = graph.add_value(value);
    let conv = Op::Conv { sliding: Sliding::default(), groups: 1 };
    let conv = Node::new(node.name.clone(), conv, operands, vec![between]);
    let layer_name = format!("{}.blocks", node.name);
    Some((conv, Node::new(layer_name, Op::Other(layer), vec![Some(between)], node.outputs)))
}
