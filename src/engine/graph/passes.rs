//! Rewrites that keep the answer: identities go, and what scales or shifts the channels of a convolution moves
//! into its weights. Constants are folded in `exec`, which can compute. Each pass is a function of its own.

use std::sync::Arc;

use crate::engine::tensor::{DType, Tensor};

use super::op::{Binary, Op};
use super::{Graph, Node, ValueId};

/// The float graph as the quantizer wants it: Identity gone; BatchNormalization and Mul or Add by one constant a
/// channel folded into the Conv before them; no node that nobody reads. Values that stay keep their names.
pub fn simplify(graph: &mut Graph) {
    remove_identities(graph);
    while fold_into_conv(graph) {}
    graph.remove_unused_nodes();
}

/// Takes Identity nodes out, unless they give a graph output its name.
pub fn remove_identities(graph: &mut Graph) {
    let identities: Vec<(ValueId, ValueId)> = graph
        .nodes
        .iter()
        .filter(|n| matches!(n.op, Op::Identity) && !graph.outputs.contains(&n.outputs[0]))
        .filter_map(|n| Some((n.outputs[0], n.input(0)?)))
        .collect();
    for (output, input) in identities {
        graph.replace_uses(output, input);
    }
    graph.remove_unused_nodes();
}

/// `y[c] = x[c] · scale[c] + shift[c]`.
struct Affine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

/// Folds one node that is affine by channel into the Conv that alone feeds it. Says whether it found one.
pub fn fold_into_conv(graph: &mut Graph) -> bool {
    let producers = graph.producers();
    let consumers = graph.consumers();
    let found = (0..graph.nodes.len()).find_map(|index| {
        let node = &graph.nodes[index];
        let (operand, affine_of) = affine_operand(graph, node)?;
        let conv = *producers.get(&operand)?;
        let alone = consumers[operand.0 as usize].len() == 1 && !graph.outputs.contains(&operand);
        let Op::Conv { .. } = graph.nodes[conv].op else { return None };
        let weight = graph.constant(graph.nodes[conv].input(1)?)?;
        let bias_is_known = graph.nodes[conv].input(2).is_none_or(|b| graph.constant(b).is_some());
        let affine = affine_of(weight.shape()[0])?;
        (alone && bias_is_known && weight.dtype() == DType::F32).then_some((index, conv, affine))
    });
    let Some((index, conv, affine)) = found else { return false };
    scale_conv(graph, conv, &affine);
    graph.nodes[conv].outputs = graph.nodes[index].outputs.clone();
    graph.nodes.remove(index);
    true
}

type AffineOf<'a> = Box<dyn Fn(usize) -> Option<Affine> + 'a>;

/// The computed operand of a node that is affine by channel, and how to get its factors for so many channels.
fn affine_operand<'a>(graph: &'a Graph, node: &'a Node) -> Option<(ValueId, AffineOf<'a>)> {
    match node.op {
        Op::BatchNorm { epsilon } => {
            Some((node.input(0)?, Box::new(move |channels| batch_norm(graph, node, epsilon, channels))))
        }
        Op::Binary(op @ (Binary::Mul | Binary::Add)) => {
            let (a, b) = (node.input(0)?, node.input(1)?);
            let (x, constant) = if graph.constant(b).is_some() { (a, b) } else { (b, a) };
            let tensor = graph.constant(constant)?;
            Some((x, Box::new(move |channels| by_channel(op, tensor, channels))))
        }
        _ => None,
    }
}

fn batch_norm(graph: &Graph, node: &Node, epsilon: f32, channels: usize) -> Option<Affine> {
    let list = |i: usize| {
        let tensor = graph.constant(node.input(i)?)?;
        (tensor.len() == channels).then(|| tensor.to_f64())
    };
    let (gamma, beta, mean, variance) = (list(1)?, list(2)?, list(3)?, list(4)?);
    let scale: Vec<f64> =
        gamma.iter().zip(&variance).map(|(g, v)| g / (v + f64::from(epsilon)).sqrt()).collect();
    let shift = (0..channels).map(|c| beta[c] - mean[c] * scale[c]).collect();
    Some(Affine { scale, shift })
}

/// A constant that holds one value, or one a channel on axis 1 of a value with 3 or 4 dimensions.
fn by_channel(op: Binary, tensor: &Tensor, channels: usize) -> Option<Affine> {
    let shape = tensor.shape();
    let spatial = matches!(shape, [_, 1] | [_, 1, 1] | [1, _, 1] | [1, _, 1, 1]);
    let values = match tensor.len() {
        1 if shape.len() <= 4 => vec![tensor.to_f64()[0]; channels],
        n if n == channels && spatial && (shape[0] == n || shape.get(1) == Some(&n)) => tensor.to_f64(),
        _ => return None,
    };
    if tensor.dtype() != DType::F32 {
        return None;
    }
    Some(match op {
        Binary::Mul => Affine { scale: values, shift: vec![0.0; channels] },
        _ => Affine { scale: vec![1.0; channels], shift: values },
    })
}

fn scale_conv(graph: &mut Graph, conv: usize, affine: &Affine) {
    let node = graph.nodes[conv].clone();
    let weight_id = node.inputs[1].expect("a Conv has weights");
    let weight = graph.constant(weight_id).expect("looked at before").clone();
    let channels = affine.scale.len();
    let inner = weight.len() / channels.max(1);
    let scaled: Vec<f32> = weight
        .slice::<f32>()
        .iter()
        .enumerate()
        .map(|(i, &w)| (f64::from(w) * affine.scale[i / inner.max(1)]) as f32)
        .collect();
    let bias: Vec<f64> = match node.input(2).and_then(|id| graph.constant(id)) {
        Some(bias) => bias.to_f64(),
        None => vec![0.0; channels],
    };
    let bias: Vec<f32> =
        (0..channels).map(|c| (bias[c] * affine.scale[c] + affine.shift[c]) as f32).collect();
    let weight_shape = weight.shape().to_vec();
    let weight_id =
        replace_constant(graph, Some(weight_id), &node.name, Tensor::from_slice(&weight_shape, &scaled));
    let bias_id = replace_constant(graph, node.input(2), &node.name, Tensor::from_slice(&[channels], &bias));
    graph.nodes[conv].inputs = vec![node.inputs[0], Some(weight_id), Some(bias_id)];
}

/// Puts new data in the place of a constant: under its name where one node alone reads it, else under a new one.
fn replace_constant(graph: &mut Graph, old: Option<ValueId>, node: &str, tensor: Tensor) -> ValueId {
    let readers = |id: ValueId| {
        graph.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).filter(|&&v| v == id).count()
    };
    match old {
        Some(id) if readers(id) == 1 => {
            graph.value_mut(id).constant = Some(Arc::new(tensor));
            id
        }
        _ => {
            let name = graph.unused_name(&format!("{node}.folded"));
            graph.add_constant(&name, tensor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::op::Sliding;
    use super::super::{Value, ValueId};
    use super::*;

    fn computed(graph: &mut Graph, name: &str) -> ValueId {
        graph.add_value(Value { name: name.to_owned(), dtype: Some(DType::F32), ..Value::default() })
    }

    fn node(name: &str, op: Op, inputs: &[ValueId], output: ValueId) -> Node {
        Node::new(name.to_owned(), op, inputs.iter().map(|&i| Some(i)).collect(), vec![output])
    }

    #[test]
    fn batch_norm_and_mul_and_add_go_into_the_conv() {
        let mut g = Graph::default();
        let x = computed(&mut g, "x");
        let w = g.add_constant("w", Tensor::from_slice(&[2, 1, 1, 1], &[1.0f32, 2.0]));
        let list =
            |g: &mut Graph, name: &str, v: [f32; 2]| g.add_constant(name, Tensor::from_slice(&[2], &v));
        let params = [
            list(&mut g, "gamma", [2.0, 4.0]),
            list(&mut g, "beta", [1.0, 0.0]),
            list(&mut g, "mean", [3.0, 1.0]),
            list(&mut g, "variance", [4.0, 1.0]),
        ];
        let half = g.add_constant("half", Tensor::scalar(0.5f32));
        let shift = g.add_constant("shift", Tensor::from_slice(&[1, 2, 1, 1], &[10.0f32, 20.0]));
        let [a, b, c, y] = ["a", "b", "c", "y"].map(|n| computed(&mut g, n));
        g.nodes = vec![
            node("conv", Op::Conv { sliding: Sliding::default(), groups: 1 }, &[x, w], a),
            node("bn", Op::BatchNorm { epsilon: 0.0 }, &[&[a], params.as_slice()].concat(), b),
            node("mul", Op::Binary(Binary::Mul), &[b, half], c),
            node("add", Op::Binary(Binary::Add), &[shift, c], y),
        ];
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        simplify(&mut g);
        assert_eq!(g.nodes.len(), 1);
        let conv = &g.nodes[0];
        assert_eq!(conv.outputs, [y]);
        assert_eq!(g.constant(conv.input(1).unwrap()).unwrap().slice::<f32>(), [0.5, 4.0]);
        // bn: (0 - 3) * 1 + 1 = -2 and (0 - 1) * 4 = -4; halved; shifted.
        assert_eq!(g.constant(conv.input(2).unwrap()).unwrap().slice::<f32>(), [9.0, 18.0]);
    }

    #[test]
    fn a_result_that_others_read_is_not_folded_away() {
        let mut g = Graph::default();
        let x = computed(&mut g, "x");
        let w = g.add_constant("w", Tensor::from_slice(&[1, 1, 1, 1], &[1.0f32]));
        let two = g.add_constant("two", Tensor::scalar(2.0f32));
        let [a, y] = ["a", "y"].map(|n| computed(&mut g, n));
        g.nodes = vec![
            node("conv", Op::Conv { sliding: Sliding::default(), groups: 1 }, &[x, w], a),
            node("mul", Op::Binary(Binary::Mul), &[a, two], y),
        ];
        (g.inputs, g.outputs) = (vec![x], vec![y, a]);
        simplify(&mut g);
        assert_eq!(g.nodes.len(), 2);
    }
}
