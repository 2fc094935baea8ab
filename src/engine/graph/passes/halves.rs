//! float16 and bfloat16 become float32 inside the graph. Processors have no arithmetic for them, so that each operator
//! would widen its operands and round its result; in float32 it does neither, and is as fast and exact as a float32
//! model. Inputs and outputs keep their types. Roundings between nodes are left out, but not where a value is cast to halves
//! and back: nobody writes that for any other reason.

use std::collections::HashSet;
use std::sync::Arc;

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, Value, ValueId};
use crate::engine::tensor::{DType, Tensor};

/// Operators that name a type, or whose results depend on the type of an operand otherwise.
const TYPED: [&str; 11] = [
    "BitCast",
    "CastLike",
    "Bernoulli",
    "EyeLike",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "QuantizeLinear",
    "DequantizeLinear",
];

/// Widens all values between inputs and outputs. A graph with bodies, or with outputs or operators whose types it cannot
/// tell, stays as it is.
pub(super) fn widen_halves(graph: &mut Graph) {
    let is_port = |id: &ValueId| graph.inputs.contains(id) || graph.constant(*id).is_some();
    let typed = |node: &Node| match &node.op {
        Op::Other(other) => !other.domain.is_empty() || TYPED.contains(&other.name),
        _ => !node.bodies.is_empty(),
    };
    let any = graph.values.iter().any(has_halves) || graph.nodes.iter().any(|n| makes_halves(&n.op));
    let untold = |id: &ValueId| graph.value(*id).dtype.is_none();
    if !any || graph.outputs.iter().any(|id| is_port(id) || untold(id)) || graph.nodes.iter().any(typed) {
        return;
    }
    let rounded = round_trips(graph);
    let (inputs, outputs) = (graph.inputs.clone(), graph.outputs.clone());
    for (at, value) in graph.values.iter_mut().enumerate() {
        let id = ValueId(at as u32);
        if let Some(tensor) = value.constant.as_ref().filter(|t| is_half(t.dtype())) {
            value.constant = Some(Arc::new(widened(tensor)));
        }
        let keeps = inputs.contains(&id) || outputs.contains(&id) || rounded.contains(&id);
        if value.dtype.is_some_and(is_half) && !keeps {
            value.dtype = Some(DType::F32);
        }
    }
    for node in &mut graph.nodes {
        match &mut node.op {
            Op::Cast { to } if is_half(*to) && !rounded.contains(&node.outputs[0]) => *to = DType::F32,
            Op::ConstantOfShape { value } if is_half(value.dtype()) => *value = widened(value),
            _ => {}
        }
    }
    for id in outputs {
        if let Some(to) = graph.value(id).dtype.filter(|dtype| is_half(*dtype)) {
            let wide = wide_twin(graph, id);
            let ids =
                graph.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten().chain(&mut n.outputs));
            ids.filter(|other| **other == id).for_each(|other| *other = wide);
            let name = graph.value(wide).name.clone();
            graph.nodes.push(Node::new(name, Op::Cast { to }, vec![Some(wide)], vec![id]));
        }
    }
    for id in inputs.into_iter().rev() {
        if graph.value(id).dtype.is_some_and(is_half) {
            let wide = wide_twin(graph, id);
            let ids = graph.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten());
            ids.filter(|other| **other == id).for_each(|other| *other = wide);
            let name = graph.value(wide).name.clone();
            let cast = Node::new(name, Op::Cast { to: DType::F32 }, vec![Some(id)], vec![wide]);
            graph.nodes.insert(0, cast);
        }
    }
}

/// What a Cast to halves makes and a Cast reads that makes something else of it. Who computes with those halves gets them from
/// such a Cast as well, in float32.
fn round_trips(graph: &mut Graph) -> HashSet<ValueId> {
    let is_widening = |node: &Node| matches!(node.op, Op::Cast { to } if !is_half(to));
    let mut rounded = HashSet::new();
    for n in 0..graph.nodes.len() {
        let Op::Cast { to } = graph.nodes[n].op else { continue };
        let made = graph.nodes[n].outputs[0];
        let readers = graph.nodes.iter().filter(|node| node.inputs.contains(&Some(made)));
        let (widening, others): (Vec<&Node>, Vec<&Node>) = readers.partition(|node| is_widening(node));
        if !is_half(to) || widening.is_empty() || graph.outputs.contains(&made) {
            continue;
        }
        rounded.insert(made);
        if others.is_empty() {
            continue;
        }
        let wide = wide_twin(graph, made);
        let others = graph.nodes.iter_mut().filter(|node| !is_widening(node));
        let reads = others.flat_map(|node| node.inputs.iter_mut().flatten());
        reads.filter(|id| **id == made).for_each(|id| *id = wide);
        let name = graph.value(wide).name.clone();
        let cast = Node::new(name, Op::Cast { to: DType::F32 }, vec![Some(made)], vec![wide]);
        graph.nodes.insert(n + 1, cast);
    }
    rounded
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

fn has_halves(value: &Value) -> bool {
    value.dtype.is_some_and(is_half) || value.constant.as_ref().is_some_and(|t| is_half(t.dtype()))
}

fn makes_halves(op: &Op) -> bool {
    match op {
        Op::Cast { to } => is_half(*to),
        Op::ConstantOfShape { value } => is_half(value.dtype()),
        _ => false,
    }
}

fn widened(tensor: &Tensor) -> Tensor {
    let values: Vec<f32> = match tensor.dtype() {
        DType::F16 => tensor.slice::<half::f16>().iter().map(|x| x.to_f32()).collect(),
        _ => tensor.slice::<half::bf16>().iter().map(|x| x.to_f32()).collect(),
    };
    Tensor::from_slice(tensor.shape(), &values)
}

/// A value like another, in float32.
fn wide_twin(graph: &mut Graph, id: ValueId) -> ValueId {
    let name = graph.unused_name(&format!("{}.f32", graph.value(id).name));
    let dims = graph.value(id).dims.clone();
    graph.add_value(Value { name, dtype: Some(DType::F32), dims, ..Value::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::op::Unary;

    #[test]
    fn only_inputs_and_outputs_stay_halves() {
        let mut g = Graph::default();
        let half = |name: &str| Value { name: name.to_owned(), dtype: Some(DType::F16), ..Value::default() };
        let [x, a, b, y] = ["x", "a", "b", "y"].map(|name| g.add_value(half(name)));
        let one = g.add_constant("one", Tensor::from_slice(&[1], &[half::f16::ONE]));
        let add = Op::Binary(crate::engine::graph::op::Binary::Add);
        for (op, inputs, output) in
            [(add, vec![x, one], a), (Op::Unary(Unary::Exp), vec![a], y), (Op::Unary(Unary::Neg), vec![y], b)]
        {
            let inputs = inputs.into_iter().map(Some).collect();
            g.nodes.push(Node::new("n".to_owned(), op, inputs, vec![output]));
        }
        (g.inputs, g.outputs) = (vec![x], vec![y, b]);
        widen_halves(&mut g);
        let names: Vec<String> = g
            .nodes
            .iter()
            .map(|n| {
                let name = |id: ValueId| &g.value(id).name;
                format!("{}={}({})", name(n.outputs[0]), n.op.name(), name(n.input(0).unwrap()))
            })
            .collect();
        let want = [
            "x.f32=Cast(x)",
            "a=Add(x.f32)",
            "y.f32=Exp(a)",
            "b.f32=Neg(y.f32)",
            "y=Cast(y.f32)",
            "b=Cast(b.f32)",
        ];
        assert_eq!(names, want);
        assert_eq!(g.constant(one).unwrap().dtype(), DType::F32);
        assert!([x, y, b].iter().all(|&id| g.value(id).dtype == Some(DType::F16)));
    }

    #[test]
    fn a_cast_to_halves_and_back_rounds() {
        let mut g = Graph::default();
        let value =
            |name: &str, dtype| Value { name: name.to_owned(), dtype: Some(dtype), ..Value::default() };
        let x = g.add_value(value("x", DType::F32));
        let [h, k] = ["h", "k"].map(|name| g.add_value(value(name, DType::F16)));
        let [y, z] = ["y", "z"].map(|name| g.add_value(value(name, DType::F32)));
        for (op, input, output) in [
            (Op::Cast { to: DType::F16 }, x, h),
            (Op::Cast { to: DType::F32 }, h, y),
            (Op::Unary(Unary::Exp), h, k),
            (Op::Cast { to: DType::F32 }, k, z),
        ] {
            g.nodes.push(Node::new("n".to_owned(), op, vec![Some(input)], vec![output]));
        }
        (g.inputs, g.outputs) = (vec![x], vec![y, z]);
        for again in [false, true] {
            widen_halves(&mut g);
            let line = |n: &Node| {
                let name = |id: ValueId| &g.value(id).name;
                let op = if let Op::Cast { to } = n.op { to.name() } else { n.op.name() };
                format!("{}={op}({})", name(n.outputs[0]), name(n.input(0).unwrap()))
            };
            let lines: Vec<String> = g.nodes.iter().map(line).collect();
            let want = ["h=float16(x)", "h.f32=float32(h)", "y=float32(h)", "k=Exp(h.f32)", "z=float32(k)"];
            assert_eq!(lines, want, "again: {again}");
        }
        assert_eq!([h, k].map(|id| g.value(id).dtype), [Some(DType::F16), Some(DType::F32)]);
    }
}
