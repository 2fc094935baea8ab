//! Weights that several nodes share, for ONNX Runtime: as `u8` around 128. Its exact mode stores `i8` weights anew as those
//! for each reader, under one name, and gives up on the second; these it takes as they are, once for all readers, and
//! without that mode sums over them never saturate.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::rewrite::compact;
use crate::engine::tensor::{DType, Tensor};

/// Stores constant `i8` codes as `u8` where more than one node reads what a DequantizeLinear makes of them.
pub fn unsign_shared(graph: &mut Graph) {
    let readers = graph.consumers();
    let mut dequantizers: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        if let (Op::DequantizeLinear { .. }, Some(codes), Some(_)) = (&node.op, node.input(0), node.input(2))
        {
            dequantizers.entry(codes).or_default().push(n);
        }
    }
    for (codes, nodes) in dequantizers {
        let made = |&n: &usize| readers[graph.nodes[n].outputs[0].0 as usize].len();
        let read_otherwise = readers[codes.0 as usize].len() > nodes.len();
        let Some(tensor) = graph.constant(codes).filter(|t| t.dtype() == DType::I8) else { continue };
        if read_otherwise || nodes.iter().map(made).sum::<usize>() < 2 {
            continue;
        }
        let zeros = |&n: &usize| {
            let id = graph.nodes[n].input(2)?;
            graph.constant(id).map(|zeros| (n, id, unsigned(zeros)))
        };
        let Some(zeros) = nodes.iter().map(zeros).collect::<Option<Vec<_>>>() else { continue };
        let tensor = unsigned(tensor);
        let value = graph.value_mut(codes);
        (value.dtype, value.constant) = (Some(DType::U8), Some(Arc::new(tensor)));
        for (n, id, zeros) in zeros {
            let name = graph.unused_name(&graph.value(id).name.clone());
            graph.nodes[n].inputs[2] = Some(graph.add_constant(&name, zeros));
        }
    }
    *graph = compact(std::mem::take(graph));
}

/// The same codes, 128 higher.
fn unsigned(codes: &Tensor) -> Tensor {
    let moved: Vec<u8> = codes.slice::<i8>().iter().map(|&q| q as u8 ^ 0x80).collect();
    Tensor::from_slice(codes.shape(), &moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::{Node, Value};

    /// Products with dequantized weights, as many as `readers`, and one with others.
    fn products(readers: usize) -> Graph {
        let mut g = Graph::default();
        let mut value = |name: &str| g.add_value(Value { name: name.to_owned(), ..Value::default() });
        let [x, d, e, y] = ["x", "d", "e", "y"].map(&mut value);
        let results: Vec<ValueId> = (0..readers).map(|i| value(&format!("y{i}"))).collect();
        let weights = |g: &mut Graph, name: &str| {
            let codes = g.add_constant(&format!("{name}_q"), Tensor::from_slice(&[1, 3], &[-127i8, 0, 127]));
            let scale = g.add_constant(&format!("{name}_s"), Tensor::scalar(0.5f32));
            let zero = g.add_constant(&format!("{name}_z"), Tensor::scalar(0i8));
            [codes, scale, zero]
        };
        let (shared, own) = (weights(&mut g, "d"), weights(&mut g, "e"));
        let mut add = |op: Op, inputs: &[ValueId], output| {
            let inputs = inputs.iter().map(|&id| Some(id)).collect();
            g.nodes.push(Node::new(String::new(), op, inputs, vec![output]));
        };
        add(Op::DequantizeLinear { axis: 1 }, &shared, d);
        add(Op::DequantizeLinear { axis: 1 }, &own, e);
        results.iter().for_each(|&result| add(Op::MatMul, &[x, d], result));
        add(Op::MatMul, &[x, e], y);
        (g.inputs, g.outputs) = (vec![x], results);
        g.outputs.push(y);
        g
    }

    #[test]
    fn shared_weights_are_unsigned_and_stand_for_the_same_reals() {
        for (readers, want) in [(1, [DType::I8, DType::I8]), (2, [DType::U8, DType::I8])] {
            let mut g = products(readers);
            unsign_shared(&mut g);
            let operand =
                |node: usize, input: usize| g.constant(g.nodes[node].input(input).unwrap()).unwrap();
            assert_eq!([0, 1].map(|n| operand(n, 0).dtype()), want);
            for n in [0, 1] {
                let zero = operand(n, 2).to_i64()[0];
                let steps: Vec<i64> = operand(n, 0).to_i64().iter().map(|q| q - zero).collect();
                assert_eq!((steps, operand(n, 2).dtype()), (vec![-127, 0, 127], want[n]));
            }
            assert_eq!(g.values.iter().filter(|v| v.constant.is_some()).count(), 6, "nothing is left over");
        }
    }
}
