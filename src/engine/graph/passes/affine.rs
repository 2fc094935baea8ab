//! What scales or shifts the channels of a convolution moves into its weights.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::engine::tensor::{DType, Tensor};

use crate::engine::graph::op::{Binary, Op};
use crate::engine::graph::{Graph, Node, ValueId};

/// Bytes of weights that several nodes read and that may become one copy for each, in all.
const COPIED_BYTES_MAX: usize = 256 << 20;

/// `y[c] = x[c] · scale[c] + shift[c]`.
struct Affine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

/// Folds every node that is affine by channel into the Conv that alone feeds it.
pub(super) fn fold_into_convs(graph: &mut Graph) {
    let mut producers = graph.producers();
    let mut readers: HashMap<ValueId, usize> = HashMap::new();
    for id in graph.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).chain(&graph.outputs) {
        *readers.entry(*id).or_default() += 1;
    }
    let given: HashSet<ValueId> = graph.outputs.iter().copied().collect();
    let mut names: HashSet<String> = graph.values.iter().map(|v| v.name.clone()).collect();
    let mut copied = 0;
    let mut folded = HashSet::new();
    for index in 0..graph.nodes.len() {
        let alone = |id: ValueId| readers.get(&id) == Some(&1) && !given.contains(&id);
        let Some(Foldable { conv, layer, affine }) = foldable(graph, &producers, index, alone) else {
            continue;
        };
        let weight = graph.nodes[conv].input(1).expect("a Conv has weights");
        if readers[&weight] > 1 {
            copied += graph.constant(weight).map_or(0, |w| w.view().bytes.len());
            if copied > COPIED_BYTES_MAX {
                continue;
            }
        }
        scale_conv(graph, conv, &affine, &mut readers, &mut names);
        let last = layer.unwrap_or(conv);
        let outputs = graph.nodes[index].outputs.clone();
        let operand = std::mem::replace(&mut graph.nodes[last].outputs, outputs)[0];
        producers.remove(&operand);
        producers.insert(graph.nodes[index].outputs[0], last);
        folded.insert(index);
    }
    let mut index = 0..;
    graph.nodes.retain(|_| index.next().is_none_or(|i| !folded.contains(&i)));
}

/// What folds into what.
struct Foldable {
    conv: usize,
    /// The node behind the Conv that lays its channels out as blocks of pixels, if there is one.
    layer: Option<usize>,
    /// For each channel of the Conv.
    affine: Affine,
}

/// How many channels in a row are laid out as the pixels of a block, where a node does that.
fn pixels_of_block(node: &Node) -> Option<usize> {
    let Op::Other(other) = &node.op else { return None };
    let deep = other.name == "DepthToSpace" && matches!(other.attributes.text_or("mode", "DCR"), Ok("DCR"));
    let size = usize::try_from(other.attributes.int_or("blocksize", 0).ok()?).ok()?;
    (deep && size > 0).then(|| size.checked_mul(size))?
}

/// The Conv that node `index` folds into, and the factors.
fn foldable(
    graph: &Graph,
    producers: &HashMap<ValueId, usize>,
    index: usize,
    alone: impl Fn(ValueId) -> bool,
) -> Option<Foldable> {
    let (operand, affine_of) = affine_operand(graph, &graph.nodes[index])?;
    let last = *producers.get(&operand)?;
    let pixels = pixels_of_block(&graph.nodes[last]);
    let (layer, conv) = match pixels {
        None => (None, last),
        Some(_) => {
            let between = graph.nodes[last].input(0).filter(|between| alone(*between))?;
            (Some(last), *producers.get(&between)?)
        }
    };
    let Op::Conv { .. } = graph.nodes[conv].op else { return None };
    let weight = graph.constant(graph.nodes[conv].input(1)?)?;
    let channels = *weight.shape().first()?;
    if !alone(operand) || weight.dtype() != DType::F32 || weight.is_empty() {
        return None;
    }
    let bias_fits = graph.nodes[conv].input(2).is_none_or(|bias| {
        graph.constant(bias).is_some_and(|b| b.dtype() == DType::F32 && b.shape() == [channels])
    });
    let pixels = pixels.unwrap_or(1);
    let Affine { scale, shift } = affine_of(channels / pixels).filter(|_| bias_fits)?;
    let affine = Affine { scale: scale.repeat(pixels), shift: shift.repeat(pixels) };
    (affine.scale.len() == channels).then_some(Foldable { conv, layer, affine })
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

fn scale_conv(
    graph: &mut Graph,
    conv: usize,
    affine: &Affine,
    readers: &mut HashMap<ValueId, usize>,
    names: &mut HashSet<String>,
) {
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
    let mut replace = |old: Option<ValueId>, tensor: Tensor| {
        if let Some(id) = old
            && readers.get(&id) == Some(&1)
        {
            graph.value_mut(id).constant = Some(Arc::new(tensor));
            return id;
        }
        if let Some(count) = old.and_then(|id| readers.get_mut(&id)) {
            *count -= 1;
        }
        let base = format!("{}.folded", node.name);
        let mut free = std::iter::once(base.clone()).chain((1..).map(|i| format!("{base}_{i}")));
        let name = free.find(|name| names.insert(name.clone())).expect("the numbers do not end");
        let id = graph.add_constant(&name, tensor);
        readers.insert(id, 1);
        id
    };
    let weight_id = replace(Some(weight_id), Tensor::from_slice(&weight_shape, &scaled));
    let bias_id = replace(node.input(2), Tensor::from_slice(&[channels], &bias));
    graph.nodes[conv].inputs = vec![node.inputs[0], Some(weight_id), Some(bias_id)];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::Value;
    use crate::engine::graph::op::Sliding;

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
        fold_into_convs(&mut g);
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
        fold_into_convs(&mut g);
        assert_eq!(g.nodes.len(), 2);
    }
}
