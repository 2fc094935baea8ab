//! Constant folding: nodes whose operands are all known are computed once, before any run.

use std::collections::HashSet;
use std::sync::Arc;

use crate::engine::graph::fact::{Fact, Results};
use crate::engine::graph::op::Op;
use crate::engine::graph::passes::casts::settle_casts;
use crate::engine::graph::shapes::{infer, shape_range};
use crate::engine::graph::{Dim, Graph, Node, ValueId};
use crate::engine::tensor::Tensor;

use super::Options;
use super::compile::Request;
use super::fuse::{Fused, FusedCodes};
use super::half::compile;
use super::layout::{Layout, Rule, rule};
use super::others;
use super::step::{Context, Operand, Operands, Scratch, Source};
use super::weights::Weights;

/// A result larger than this stays a node, unless it is no larger than what it is made from: a model must not
/// grow because a ConstantOfShape was written out.
const GROWTH_BYTES_MAX: usize = 64 << 10;

/// What folding may add to the constants of a model, together, beyond as much as they are: joins of joins double.
const FOLDED_BYTES_FREE: usize = 64 << 20;
/// Multiply-accumulates that folding may take, together: seconds.
const FOLDED_MACS_MAX: u64 = 1 << 32;
/// Operands and results of an operator that is one object beyond which it is not folded: what it costs is not known,
/// and may go with the square.
const OBJECT_BYTES_MAX: usize = 1 << 20;

/// What may still be computed before a run.
pub(super) struct Budget {
    bytes: usize,
    macs: u64,
}

impl Budget {
    /// For all the nodes of a graph together, and the weights that were taken out of it.
    pub(super) fn of(graph: &Graph, weights: &Weights) -> Budget {
        let constants = graph.values.iter().filter_map(|v| v.constant.as_ref()).map(|t| t.view().bytes.len());
        let taken = weights.facts().map(|(_, fact)| fact.bytes());
        let bytes = constants.chain(taken).fold(FOLDED_BYTES_FREE, usize::saturating_add);
        Budget { bytes, macs: FOLDED_MACS_MAX }
    }

    /// Whether a node over constants may be computed now; if so, it is paid for.
    pub(super) fn admits(&mut self, op: &Op, facts: &[Option<Fact>], results: &Results) -> bool {
        let made: usize =
            results.iter().map(|(dtype, shape)| shape.iter().product::<usize>() * dtype.size()).sum();
        let taken: usize = facts.iter().flatten().map(Fact::bytes).sum();
        let cost = results.first().map_or(0, |(_, shape)| macs(op, facts, shape));
        let moved = (made as u64).saturating_add(taken as u64);
        let cost = cost.saturating_add(moved);
        if matches!(op, Op::Other(_)) && moved > OBJECT_BYTES_MAX as u64
            || made > self.bytes
            || cost > self.macs
        {
            return false;
        }
        self.bytes -= made;
        self.macs -= cost;
        true
    }
}

/// Replaces nodes by their results where all operands are constants. DequantizeLinear stays: it says that
/// weights are codes. A node that cannot be computed stays as well, and is refused when the graph is run.
pub fn fold_constants(graph: &mut Graph) {
    // What is cast like a value that is no constant may be constant all the same: exporters write biases so.
    settle_casts(graph);
    let mut budget = Budget::of(graph, &Weights::default());
    replace(graph, |graph, index, node| {
        known_shape(graph, node).or_else(|| compute(graph, index, node, &mut budget))
    });
    graph.remove_unused_nodes();
}

/// The result of Shape where the dimensions that it takes are declared as numbers.
fn known_shape(graph: &Graph, node: &Node) -> Option<Tensor> {
    let Op::Shape { start, end } = node.op else { return None };
    let dims = graph.value(node.input(0)?).dims.as_ref()?;
    let number = |dim: &Dim| match dim {
        Dim::Known(n) => Some(*n as i64),
        Dim::Symbol(_) | Dim::Unknown => None,
    };
    let numbers: Option<Vec<i64>> = dims[shape_range(dims.len(), start, end)].iter().map(number).collect();
    let numbers = numbers?;
    Some(Tensor::from_slice(&[numbers.len()], &numbers))
}

/// Makes reals of the codes of weights that no integer operator reads, once for all plans of a session, and moves
/// them on where nodes only turn or reshape them. Reals are at most so many times longer than codes, so there is no
/// budget.
pub(super) fn fold_weights(graph: &mut Graph) {
    replace(graph, |graph, index, node| {
        let turns = matches!(
            node.op,
            Op::Reshape { .. } | Op::Transpose { .. } | Op::Squeeze | Op::Unsqueeze | Op::Flatten { .. }
        );
        let is_weight = matches!(node.op, Op::DequantizeLinear { .. });
        (is_weight || turns).then(|| computed(graph, index, node, |_, _, _| true))?
    });
}

/// Makes codes of weights that a QuantizeLinear makes codes of before every run: what training with quantization in mind
/// leaves behind. Gives how many those were. What they read is left to the writer of the file, which leaves out what nobody
/// reads.
pub fn fold_quantized(graph: &mut Graph) -> usize {
    replace(graph, |graph, index, node| {
        let makes_codes =
            matches!(node.op, Op::QuantizeLinear { .. }) && !graph.outputs.contains(&node.outputs[0]);
        makes_codes.then(|| computed(graph, index, node, |_, _, _| true))?
    })
}

/// Puts constants in the place of nodes whose one result is known; gives how many those were.
fn replace(graph: &mut Graph, mut known: impl FnMut(&Graph, usize, &Node) -> Option<Tensor>) -> usize {
    let mut folded: HashSet<usize> = HashSet::new();
    for index in 0..graph.nodes.len() {
        let Some(tensor) = known(graph, index, &graph.nodes[index]) else { continue };
        let output = graph.nodes[index].outputs[0];
        let value = graph.value_mut(output);
        value.dtype = Some(tensor.dtype());
        value.dims = Some(tensor.shape().iter().map(|&d| Dim::Known(d)).collect());
        value.constant = Some(Arc::new(tensor));
        folded.insert(index);
    }
    let kept = graph.nodes.drain(..).enumerate().filter(|(i, _)| !folded.contains(i)).map(|(_, n)| n);
    graph.nodes = kept.collect();
    folded.len()
}

fn compute(graph: &Graph, index: usize, node: &Node, budget: &mut Budget) -> Option<Tensor> {
    let skipped = matches!(
        node.op,
        Op::DequantizeLinear { .. } | Op::QuantizeLinear { .. } | Op::Split { .. } | Op::Shape { .. }
    );
    if skipped {
        return None;
    }
    computed(graph, index, node, |facts, made, results| {
        let taken: usize = facts.iter().flatten().map(Fact::bytes).sum();
        made <= taken.max(GROWTH_BYTES_MAX) && budget.admits(&node.op, facts, results)
    })
}

/// The result of a node over constants, if `admits` says so of its operands, the bytes of its result, and its result.
fn computed(
    graph: &Graph,
    index: usize,
    node: &Node,
    admits: impl FnOnce(&[Option<Fact>], usize, &Results) -> bool,
) -> Option<Tensor> {
    let fact = |id: &ValueId| graph.constant(*id).map(|t| Fact::constant(t.clone()));
    if node.outputs.len() != 1 || rule(&node.op) == Rule::ChannelsLast {
        return None;
    }
    let facts: Option<Vec<Option<Fact>>> = node
        .inputs
        .iter()
        .map(|id| match id {
            None => Some(None),
            Some(id) => fact(id).map(Some),
        })
        .collect();
    let facts = facts?;
    let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    let (dtype, shape) = infer(&node.op, &refs, 1).ok()?.into_iter().next()?;
    let made = Fact::computed(dtype, shape.clone()).bytes();
    let results = vec![(dtype, shape.clone())];
    if !admits(&facts, made, &results) {
        return None;
    }
    if let Op::Other(other) = &node.op {
        let inputs: Vec<Option<&Tensor>> =
            facts.iter().map(|f| f.as_ref().and_then(|f| f.constant.as_deref())).collect();
        return others::run(other, &inputs, Some(&results)).ok()?.pop();
    }
    let request = Request {
        graph,
        weights: &Weights::default(),
        context: Context::new(&Options::default()),
        index,
        node,
        layout: Layout::RowMajor,
        fused: Fused::NONE,
        fused_codes: FusedCodes::default(),
    };
    let kernel = compile(&request, &refs, dtype, &shape).ok()?;
    let operand = |f: &Option<Fact>| {
        f.as_ref().and_then(|f| f.constant.clone()).map(|tensor| Operand {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            source: Source::Constant(tensor),
        })
    };
    let operands: Vec<Option<Operand>> = facts.iter().map(operand).collect();
    let mut tensor = Tensor::zeros(dtype, &shape);
    kernel(&Operands::constants(&operands), tensor.view_mut(), &mut Scratch::default()).ok()?;
    Some(tensor)
}

/// Multiply-accumulates of a product.
pub(super) fn macs(op: &Op, facts: &[Option<Fact>], out: &[usize]) -> u64 {
    let elements: usize = out.iter().product();
    let shape = |i: usize| facts.get(i).and_then(Option::as_ref).map_or(&[][..], |f| f.shape.as_slice());
    let depth: usize = match op {
        Op::Conv { .. } | Op::QConv { .. } | Op::ConvInteger { .. } => shape(1).iter().skip(1).product(),
        Op::MatMul | Op::QMatMul { .. } | Op::QProduct { .. } | Op::MatMulInteger | Op::RowProduct => {
            shape(0).last().copied().unwrap_or(0)
        }
        Op::Gemm { trans_a, .. } => shape(0).get(usize::from(!*trans_a)).copied().unwrap_or(0),
        _ => 0,
    };
    (elements as u64).saturating_mul(depth as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::Value;
    use crate::engine::graph::passes::casts::tests::cast_like;
    use crate::engine::tensor::DType;

    #[test]
    fn a_bias_that_is_cast_like_the_input_is_constant() {
        let mut g = Graph::default();
        let mut value =
            |name: &str, dtype| g.add_value(Value { name: name.to_owned(), dtype, ..Value::default() });
        let [x, bias, y] = [("x", Some(DType::F32)), ("bias", None), ("y", None)].map(|(n, t)| value(n, t));
        let whole = g.add_constant("whole", Tensor::from_slice(&[2], &[3i64, -4]));
        let add = Op::Binary(crate::engine::graph::op::Binary::Add);
        let node = |op, inputs: [ValueId; 2], output| {
            Node::new(String::new(), op, inputs.map(Some).to_vec(), vec![output])
        };
        g.nodes = vec![node(Op::Other(cast_like()), [whole, x], bias), node(add, [x, bias], y)];
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        fold_constants(&mut g);
        assert_eq!(g.nodes.len(), 1);
        assert_eq!(g.constant(bias).map(|t| t.slice::<f32>()), Some(&[3.0, -4.0][..]));
    }
}
