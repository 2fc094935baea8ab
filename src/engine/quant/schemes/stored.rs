//! Weights that are stored in `i8` and made reals again before a node computes with them. Says which operands of which
//! nodes, and along which axis they have scales; the file becomes a quarter, the arithmetic stays float.

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::DType;

/// Bytes that a DequantizeLinear and the names of its operands take in a file, about.
const NODE_BYTES: usize = 320;

/// An operand whose weights can be stored in `i8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its position among the operands of the node.
    pub input: usize,
    /// The weights.
    pub value: ValueId,
    /// Along what it has scales of its own.
    pub channels: Channels,
}

/// Along what weights have scales of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// An axis.
    Axis(usize),
    /// The first two axes, as one: the gates of each direction of a recurrent layer.
    Gates,
}

/// Whether a node carries a state over a sequence.
pub fn is_recurrent(node: &Node) -> bool {
    matches!(&node.op, Op::Other(other) if other.domain.is_empty() && matches!(other.name, "LSTM" | "GRU" | "RNN"))
}

/// The operands of a node that are worth storing in `i8`: constant matrices and kernels of reals, large enough that
/// scales and zero points do not eat up the gain.
pub fn operands(graph: &Graph, node: &Node) -> Vec<Stored> {
    let places: Vec<(usize, Option<Channels>)> = match &node.op {
        Op::Conv { .. } => vec![(1, Some(Channels::Axis(0)))],
        Op::Gemm { trans_a, trans_b, .. } => vec![
            (0, Some(Channels::Axis(usize::from(*trans_a)))),
            (1, Some(Channels::Axis(usize::from(!*trans_b)))),
        ],
        // Rows of the left operand and columns of the right one.
        Op::MatMul => vec![(0, from_end(graph, node, 0, 2)), (1, from_end(graph, node, 1, 1))],
        Op::Other(other) if other.domain.is_empty() && other.name == "ConvTranspose" => {
            vec![(1, Some(Channels::Axis(1)))]
        }
        _ if is_recurrent(node) => vec![(1, Some(Channels::Gates)), (2, Some(Channels::Gates))],
        _ => Vec::new(),
    };
    let stored = |(input, channels): (usize, Option<Channels>)| {
        let stored = Stored { input, value: node.input(input)?, channels: channels? };
        is_worth_it(graph, stored).then_some(stored)
    };
    places.into_iter().filter_map(stored).collect()
}

/// The axis that is `back` from the end of a constant operand of at least two dimensions.
fn from_end(graph: &Graph, node: &Node, input: usize, back: usize) -> Option<Channels> {
    let rank = graph.constant(node.input(input)?)?.shape().len();
    (rank >= 2).then(|| Channels::Axis(rank - back))
}

fn is_worth_it(graph: &Graph, stored: Stored) -> bool {
    let Some(weights) = graph.constant(stored.value) else { return false };
    let shape = weights.shape();
    let channels = match stored.channels {
        Channels::Axis(axis) if axis < shape.len() => shape[axis],
        Channels::Gates if shape.len() == 3 => shape[0] * shape[1],
        _ => return false,
    };
    // Three bytes an element are saved; a channel has a scale and a zero point.
    weights.dtype() == DType::F32
        && 3 * weights.len() > 5 * channels + NODE_BYTES
        && weights.slice::<f32>().iter().all(|w| w.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::Value;
    use crate::engine::tensor::Tensor;

    /// Positions and axes of what is stored for a node with constants of these shapes at its operands.
    fn check(op: Op, shapes: &[Option<&[usize]>], want: &[(usize, Channels)]) {
        let mut graph = Graph::default();
        let inputs = shapes.iter().enumerate().map(|(i, shape)| {
            Some(match shape {
                Some(shape) => {
                    let ones = vec![1f32; shape.iter().product()];
                    graph.add_constant(&format!("w{i}"), Tensor::from_slice(shape, &ones))
                }
                None => graph.add_value(Value { name: format!("x{i}"), ..Value::default() }),
            })
        });
        let node = Node::new("n".to_owned(), op, inputs.collect(), Vec::new());
        let got: Vec<_> = operands(&graph, &node).iter().map(|s| (s.input, s.channels)).collect();
        assert_eq!(got, want, "{shapes:?}");
    }

    #[test]
    fn weights_have_scales_along_their_channels() {
        use Channels::Axis;
        let gemm = |trans_a, trans_b| Op::Gemm { alpha: 1.0, beta: 1.0, trans_a, trans_b };
        check(Op::MatMul, &[None, Some(&[32, 16])], &[(1, Axis(1))]);
        check(Op::MatMul, &[None, Some(&[2, 32, 16])], &[(1, Axis(2))]);
        check(Op::MatMul, &[Some(&[32, 16]), None], &[(0, Axis(0))]);
        check(gemm(false, true), &[None, Some(&[32, 16])], &[(1, Axis(0))]);
        check(gemm(true, false), &[Some(&[32, 16]), Some(&[32, 16])], &[(0, Axis(1)), (1, Axis(1))]);
    }

    #[test]
    fn small_weights_are_not_worth_it() {
        check(Op::MatMul, &[None, Some(&[8, 8])], &[]);
        check(Op::MatMul, &[None, Some(&[1, 4096])], &[]);
        check(Op::MatMul, &[None, Some(&[4096])], &[]);
        check(Op::MatMul, &[None, None], &[]);
    }
}
