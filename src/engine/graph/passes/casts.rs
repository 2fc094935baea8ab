//! Casts whose target a graph tells: CastLike becomes Cast, and what changes no type is Identity.

use crate::engine::graph::op::{Op, Unary};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::DType;

/// Gives each CastLike the type that it casts to, where that is known, so that it can be folded; casts to the type that
/// their operand has become Identity.
pub fn settle_casts(graph: &mut Graph) {
    let types = types(graph);
    let type_of = |id: Option<ValueId>| types[id?.0 as usize];
    for node in &mut graph.nodes {
        let to = match &node.op {
            Op::Cast { to } => Some(*to),
            op if is_cast_like(op) => type_of(node.input(1)),
            _ => None,
        };
        let Some(to) = to else { continue };
        node.op = if type_of(node.input(0)) == Some(to) { Op::Identity } else { Op::Cast { to } };
        node.inputs.truncate(1);
    }
}

fn is_cast_like(op: &Op) -> bool {
    matches!(op, Op::Other(other) if other.domain.is_empty() && other.name == "CastLike")
}

/// The type of each value, as far as it follows from those of inputs and constants or is declared. What follows goes
/// before what is declared: files are not refused for a wrong word about a value in between.
fn types(graph: &Graph) -> Vec<Option<DType>> {
    let mut types: Vec<Option<DType>> = graph.values.iter().map(|value| value.dtype).collect();
    for node in &graph.nodes {
        if let Some(dtype) = made(node, &types) {
            node.outputs.iter().for_each(|output| types[output.0 as usize] = Some(dtype));
        }
    }
    types
}

/// The type of what a node makes.
fn made(node: &Node, types: &[Option<DType>]) -> Option<DType> {
    let type_of = |index: usize| types[node.input(index)?.0 as usize];
    match &node.op {
        Op::Cast { to } => Some(*to),
        Op::ConstantOfShape { value } => Some(value.dtype()),
        Op::Shape { .. } => Some(DType::I64),
        op if is_cast_like(op) => type_of(1),
        Op::Binary(binary) if binary.is_comparison() => Some(DType::Bool),
        Op::Unary(Unary::Not) => Some(DType::Bool),
        Op::Where => type_of(1),
        Op::Conv { .. }
        | Op::Gemm { .. }
        | Op::MatMul
        | Op::BatchNorm { .. }
        | Op::LayerNorm { .. }
        | Op::MaxPool { .. }
        | Op::AveragePool { .. }
        | Op::GlobalAveragePool
        | Op::GlobalMaxPool
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Clip
        | Op::Reduce { .. }
        | Op::Softmax { .. }
        | Op::Transpose { .. }
        | Op::Reshape { .. }
        | Op::Flatten { .. }
        | Op::Squeeze
        | Op::Unsqueeze
        | Op::Concat { .. }
        | Op::Split { .. }
        | Op::Slice
        | Op::Gather { .. }
        | Op::Expand
        | Op::Tile
        | Op::Pad { .. }
        | Op::Range
        | Op::Identity => type_of(0),
        _ => None,
    }
}

#[cfg(test)]
pub(in crate::engine) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::graph::Value;
    use crate::engine::graph::fact::{Fact, Results, Unfit};
    use crate::engine::graph::operator::{Operator, Other};
    use crate::engine::tensor::{Tensor, TensorView};

    /// Only its name is looked at.
    #[derive(Debug)]
    struct Named;

    impl Operator for Named {
        fn infer(&self, _: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
            Err(Unfit::AtRun("x".to_owned()))
        }

        fn run(&self, _: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
            unreachable!("nobody runs it")
        }
    }

    /// An operator of ONNX's own of which nobody asks more than the name.
    pub(in crate::engine) fn named(name: &'static str) -> Other {
        Other { name, domain: "", operator: Arc::new(Named), attributes: Default::default() }
    }

    pub(in crate::engine) fn cast_like() -> Other {
        named("CastLike")
    }

    #[test]
    fn a_cast_like_a_value_of_known_type_is_a_cast() {
        let mut g = Graph::default();
        let mut value =
            |name: &str, dtype| g.add_value(Value { name: name.to_owned(), dtype, ..Value::default() });
        let [x, ids] = [("x", DType::F32), ("ids", DType::I64)].map(|(name, dtype)| value(name, Some(dtype)));
        // Of a value in between files may say anything, or nothing.
        let a = value("a", Some(DType::I64));
        let [b, c, d, e, y] = ["b", "c", "d", "e", "y"].map(|name| value(name, None));
        let one = g.add_constant("one", Tensor::from_slice(&[1], &[1.0f32]));
        let like = || Op::Other(cast_like());
        let node = |op, inputs: &[ValueId], output| {
            Node::new(String::new(), op, inputs.iter().map(|&id| Some(id)).collect(), vec![output])
        };
        g.nodes = vec![
            node(Op::Unary(Unary::Relu), &[x], a),
            node(like(), &[one, a], b),
            node(like(), &[ids, a], c),
            node(like(), &[one, ids], d),
            node(Op::Cast { to: DType::F32 }, &[c], e),
            node(Op::Cast { to: DType::F64 }, &[e], y),
        ];
        (g.inputs, g.outputs) = (vec![x, ids], vec![b, d, y]);
        settle_casts(&mut g);
        let ops: Vec<String> = g
            .nodes
            .iter()
            .map(|n| match n.op {
                Op::Cast { to } => format!("{to}"),
                ref op => op.name().to_owned(),
            })
            .collect();
        assert_eq!(ops, ["Relu", "Identity", "float32", "int64", "Identity", "float64"]);
        assert!(g.nodes.iter().all(|n| n.inputs.len() == 1));
    }

    #[test]
    fn a_cast_like_a_value_of_unknown_type_stays() {
        let mut g = Graph::default();
        let [x, like, y] =
            ["x", "like", "y"].map(|n| g.add_value(Value { name: n.to_owned(), ..Value::default() }));
        let inputs = vec![Some(x), Some(like)];
        g.nodes = vec![Node::new(String::new(), Op::Other(cast_like()), inputs, vec![y])];
        settle_casts(&mut g);
        assert_eq!((g.nodes[0].op.name(), g.nodes[0].inputs.len()), ("CastLike", 2));
    }
}
