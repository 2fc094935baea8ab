//! Shapes of the values of a graph as far as nodes and declarations tell them without a run.

use crate::engine::graph::fact::Fact;
use crate::engine::graph::shapes::infer;
use crate::engine::graph::{Dim, Graph, ValueId};
use crate::engine::tensor::DType;

use super::net::Net;

/// Lengths that open dimensions take in the two probes: what differs between them is open.
const PROBES: [usize; 2] = [7, 11];

/// One dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Known(usize),
    Open,
}

/// For each value of a graph its shape, where it is known.
pub(super) struct Shapes(Vec<Option<Vec<Length>>>);

impl Shapes {
    pub(super) fn new(graph: &Graph) -> Shapes {
        let [a, b] = PROBES.map(|length| probe(graph, length));
        let both = |(a, b): (Option<Fact>, Option<Fact>)| {
            let (a, b) = (a?.shape, b?.shape);
            let same = |(a, b): (&usize, &usize)| if a == b { Length::Known(*a) } else { Length::Open };
            (a.len() == b.len()).then(|| a.iter().zip(&b).map(same).collect())
        };
        Shapes(a.into_iter().zip(b).map(both).collect())
    }

    /// The shape of a value; of one that a pass added, that of the codes or reals behind it.
    pub(super) fn of(&self, net: &Net, value: ValueId) -> Option<Vec<Length>> {
        let mut value = value;
        loop {
            if let Some(tensor) = net.constant(Some(value)) {
                return Some(tensor.shape().iter().map(|&l| Length::Known(l)).collect());
            }
            if let Some(shape) = self.0.get(value.0 as usize) {
                return shape.clone();
            }
            let maker = net.maker(value).filter(|&m| net.is_quantizer(m) || net.is_dequantizer(m))?;
            value = net.node(maker).input(0)?;
        }
    }
}

fn probe(graph: &Graph, open: usize) -> Vec<Option<Fact>> {
    let declared = |id: usize| {
        let value = &graph.values[id];
        let length = |d: &Dim| match d {
            Dim::Known(n) => *n,
            Dim::Symbol(_) | Dim::Unknown => open,
        };
        let dims = value.dims.as_ref()?.iter().map(length).collect();
        Some(Fact::computed(value.dtype.unwrap_or(DType::F32), dims))
    };
    let mut facts: Vec<Option<Fact>> = vec![None; graph.values.len()];
    for (id, value) in graph.values.iter().enumerate() {
        facts[id] = value.constant.clone().map(Fact::constant);
    }
    for input in &graph.inputs {
        facts[input.0 as usize] = declared(input.0 as usize);
    }
    for node in &graph.nodes {
        let inputs: Vec<Option<&Fact>> =
            node.inputs.iter().map(|id| id.and_then(|id| facts[id.0 as usize].as_ref())).collect();
        let all = node.inputs.iter().zip(&inputs).all(|(id, fact)| id.is_none() || fact.is_some());
        let made = if all && node.bodies.is_empty() {
            infer(&node.op, &inputs, node.outputs.len()).ok()
        } else {
            None
        };
        for (i, output) in node.outputs.iter().enumerate() {
            let id = output.0 as usize;
            let inferred = made.as_ref().and_then(|m| m.get(i)).map(|(t, s)| Fact::computed(*t, s.clone()));
            facts[id] = inferred.or_else(|| declared(id));
        }
    }
    facts
}
