//! Pads of zeros move into the window after them: exporters of TensorFlow write them as nodes of their own.

use crate::engine::graph::op::{AutoPad, Op, PadMode, Sliding};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::DType;

/// Adds the pads of a Pad to those of each Conv or AveragePool that reads it.
pub(super) fn fold_pads(graph: &mut Graph) {
    let producers = graph.producers();
    for index in 0..graph.nodes.len() {
        let Some(x) = graph.nodes[index].input(0) else { continue };
        let Some(&pad) = producers.get(&x) else { continue };
        let Some(amounts) = zero_pads(graph, &graph.nodes[pad]) else { continue };
        if let Some(op) = padded(&graph.nodes[index].op, &amounts) {
            graph.nodes[index].op = op;
            graph.nodes[index].inputs[0] = graph.nodes[pad].inputs[0];
        }
    }
    graph.remove_unused_nodes();
}

/// Begin and end pads of the spatial axes of a Pad that adds zeros there, and only there: `2 × axes`.
fn zero_pads(graph: &Graph, node: &Node) -> Option<Vec<usize>> {
    let Op::Pad { mode: PadMode::Constant } = node.op else { return None };
    let constant = |id: Option<ValueId>| graph.constant(id?).cloned();
    let pads = constant(node.input(1))?.to_i64();
    let zero = match node.input(2) {
        None => true,
        Some(id) => graph.constant(id)?.to_f64() == [0.0],
    };
    let dtype = graph.value(node.input(0)?).dtype;
    if !zero || dtype.is_some_and(|d| d != DType::F32) || !pads.len().is_multiple_of(2) {
        return None;
    }
    let rank = match node.input(3) {
        None => pads.len() / 2,
        // With axes the rank is not told by the pads: the usual form is without.
        Some(_) => return None,
    };
    let (begin, end) = pads.split_at(rank);
    let outer = [begin, end].iter().any(|side| side.iter().take(2).any(|&p| p != 0));
    let spatial = begin.iter().skip(2).chain(end.iter().skip(2));
    let sizes: Option<Vec<usize>> = spatial.map(|&p| usize::try_from(p).ok()).collect();
    sizes.filter(|s| !outer && rank > 2 && !s.is_empty())
}

/// The operator with so much more padding; `None` where zeros are not what it pads with.
fn padded(op: &Op, amounts: &[usize]) -> Option<Op> {
    let wider = |s: &Sliding| -> Option<Sliding> {
        let own = if s.pads.is_empty() { vec![0; amounts.len()] } else { s.pads.clone() };
        if s.auto_pad != AutoPad::Explicit || own.len() != amounts.len() {
            return None;
        }
        let pads = own.iter().zip(amounts).map(|(a, b)| a.checked_add(*b)).collect::<Option<_>>()?;
        Some(Sliding { pads, ..s.clone() })
    };
    match op {
        Op::Conv { sliding, groups } => Some(Op::Conv { sliding: wider(sliding)?, groups: *groups }),
        // The zeros of the Pad count: only where the pool has no pads of its own that do not.
        Op::AveragePool { sliding, count_include_pad } => {
            let counted = *count_include_pad || sliding.pads.iter().all(|&p| p == 0);
            (counted && !sliding.ceil_mode).then_some(())?;
            Some(Op::AveragePool { sliding: wider(sliding)?, count_include_pad: true })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::Value;
    use crate::engine::tensor::Tensor;

    fn folded(mode: PadMode, pads: [i64; 8], value: f32, op: Op) -> Graph {
        let mut g = Graph::default();
        let [x, p, y] = ["x", "p", "y"]
            .map(|n| g.add_value(Value { name: n.to_owned(), dtype: Some(DType::F32), ..Value::default() }));
        let pads = g.add_constant("pads", Tensor::from_slice(&[8], &pads));
        let value = g.add_constant("value", Tensor::scalar(value));
        let w = g.add_constant("w", Tensor::from_slice(&[1, 1, 1, 1], &[1.0f32]));
        let of = |name: &str, op, inputs: &[ValueId], to| {
            Node::new(name.to_owned(), op, inputs.iter().map(|&i| Some(i)).collect(), vec![to])
        };
        g.nodes = vec![of("pad", Op::Pad { mode }, &[x, pads, value], p), of("op", op, &[p, w], y)];
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        fold_pads(&mut g);
        g
    }

    #[test]
    fn zeros_around_an_image_become_pads_of_the_convolution() {
        let conv = || Op::Conv { sliding: Sliding { pads: vec![1; 4], ..Sliding::default() }, groups: 1 };
        let g = folded(PadMode::Constant, [0, 0, 0, 1, 0, 0, 2, 3], 0.0, conv());
        let [node] = &g.nodes[..] else { panic!("{:?}", g.nodes) };
        let Op::Conv { sliding, .. } = &node.op else { panic!("{node:?}") };
        assert_eq!(sliding.pads, [1, 2, 3, 4]);
        for (mode, pads, value) in [
            (PadMode::Reflect, [0, 0, 0, 1, 0, 0, 2, 3], 0.0),
            (PadMode::Constant, [0, 1, 0, 1, 0, 0, 2, 3], 0.0),
            (PadMode::Constant, [0, 0, 0, -1, 0, 0, 2, 3], 0.0),
            (PadMode::Constant, [0, 0, 0, 1, 0, 0, 2, 3], 1.0),
        ] {
            assert_eq!(folded(mode, pads, value, conv()).nodes.len(), 2, "{mode:?} {pads:?} {value}");
        }
        let max = Op::MaxPool { sliding: Sliding { kernel: vec![1, 1], ..Sliding::default() } };
        assert_eq!(folded(PadMode::Constant, [0, 0, 0, 1, 0, 0, 2, 3], 0.0, max).nodes.len(), 2);
    }
}
