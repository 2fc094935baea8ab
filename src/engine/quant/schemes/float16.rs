//! float16: weights and activations in half the bytes. Inputs and outputs of the model stay float32, with a Cast at the
//! boundary. What does not fit (above 65,504, or close to it on the data), what ONNX has no float16 form of, and what
//! the recipe keeps stays float32, again between Casts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::engine::exec::Tap;
use crate::engine::exec::session::Session;
use crate::engine::graph::op::{Op, Reduce};
use crate::engine::graph::{Graph, Node, Value, ValueId};
use crate::engine::quant::calibrate::{Error as RunError, OnSamples};
use crate::engine::quant::plan::{Decision, Plan, names_exist};
use crate::engine::quant::rewrite::{Layer, Rewritten, compact, unused};
use crate::engine::quant::{Error, Recipe};
use crate::engine::tensor::dataset::Dataset;
use crate::engine::tensor::{DType, Tensor, TensorView};

/// The largest magnitude on the data that a value in float16 may have: half of what fits, as other data differ.
const LARGEST: f32 = 32_752.0;

/// What a value was on the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Its type.
    pub dtype: DType,
    /// Its largest magnitude, where it is float32; infinite where it held what is not a number.
    pub largest: f32,
}

/// Runs the data through the float model and notes type and magnitude of every value by name.
///
/// # Errors
/// [`RunError`].
pub fn look(
    session: &Session,
    data: &Dataset,
    batch: usize,
    on_samples: OnSamples<'_>,
) -> Result<HashMap<String, Seen>, RunError> {
    let mut eye = Eye { seen: HashMap::new() };
    let mut reader = data.reader()?;
    for batch in reader.batches(batch)? {
        let batch = batch?;
        batch.inputs.iter().for_each(|(name, tensor)| eye.observe(name, tensor.view()));
        let feeds = batch.feeds();
        let ran = session.run_tapped(&feeds, &mut eye);
        ran.map_err(|source| RunError::Run { sample: batch.first, source })?;
        if !on_samples(batch.first + batch.samples) {
            return Err(RunError::Cancelled);
        }
    }
    Ok(eye.seen)
}

struct Eye {
    seen: HashMap<String, Seen>,
}

impl Tap for Eye {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        let mut largest = 0f32;
        if tensor.dtype == DType::F32 {
            let magnitude = |x: &f32| if x.is_nan() { f32::INFINITY } else { x.abs() };
            largest = tensor.slice::<f32>().iter().map(magnitude).fold(0.0, f32::max);
        }
        match self.seen.get_mut(value) {
            Some(seen) => seen.largest = seen.largest.max(largest),
            None => {
                self.seen.insert(value.to_owned(), Seen { dtype: tensor.dtype, largest });
            }
        }
    }
}

/// Brings a simplified float graph to float16.
///
/// # Errors
/// [`Error::NoMatch`] where a pattern of `keep_float` names no node.
pub fn rewrite(
    graph: &Graph,
    recipe: &Recipe,
    seen: &HashMap<String, Seen>,
) -> Result<(Plan, Rewritten), Error> {
    names_exist(graph, "keep_float", &recipe.keep_float)?;
    let mut writer = Writer {
        source: graph,
        seen,
        names: graph.values.iter().map(|v| v.name.clone()).collect(),
        out: Graph { nodes: Vec::new(), ..graph.clone() },
        half: HashMap::new(),
        wide: HashSet::new(),
        layers: Vec::new(),
    };
    writer.wide.extend(&graph.inputs);
    let mut decisions = Vec::new();
    for node in &graph.nodes {
        let decision = match recipe.keeps_float(&node.name) {
            true => Decision::Float("kept by the recipe".to_owned()),
            false => writer.decide(node),
        };
        match decision {
            Decision::Half => writer.half_node(node),
            _ => writer.wide_node(node),
        }
        decisions.push(decision);
    }
    let Writer { out, layers, .. } = writer;
    Ok((Plan::of_decisions(decisions), Rewritten { graph: compact(out), layers }))
}

/// What an operator takes in float16.
enum Takes {
    /// All operands that are real.
    All,
    /// The first operand only; the others stay what they are.
    First,
    /// None.
    Nothing,
}

fn takes(node: &Node) -> Takes {
    match &node.op {
        Op::If | Op::Loop { .. } | Op::Scan(_) | Op::Range => Takes::Nothing,
        // Sums of many squares leave the range of float16 first.
        Op::Reduce { kind: Reduce::SumSquare | Reduce::LogSumExp, .. } => Takes::Nothing,
        Op::Other(other) if other.domain.is_empty() => match other.name {
            "Resize" => Takes::First,
            "ConvTranspose"
            | "InstanceNormalization"
            | "PRelu"
            | "LRN"
            | "DepthToSpace"
            | "SpaceToDepth"
            | "GatherElements"
            | "GatherND"
            | "ScatterElements"
            | "ScatterND"
            | "LSTM"
            | "GRU"
            | "RNN"
            | "Einsum" => Takes::All,
            _ => Takes::Nothing,
        },
        Op::Other(_) => Takes::Nothing,
        op if op.is_integer() => Takes::Nothing,
        Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } => Takes::Nothing,
        _ => Takes::All,
    }
}

struct Writer<'a> {
    source: &'a Graph,
    seen: &'a HashMap<String, Seen>,
    names: HashSet<String>,
    out: Graph,
    /// The float16 form of values of the source.
    half: HashMap<ValueId, ValueId>,
    /// Values that there are in float32, under their own name.
    wide: HashSet<ValueId>,
    layers: Vec<Layer>,
}

impl Writer<'_> {
    /// What is known of a value: of constants their own, of others what was seen.
    fn fact(&self, id: ValueId) -> Option<Seen> {
        match self.source.constant(id) {
            Some(tensor) if tensor.dtype() == DType::F32 => {
                let largest = tensor.slice::<f32>().iter().fold(0f32, |a, x| a.max(x.abs()));
                Some(Seen { dtype: DType::F32, largest })
            }
            Some(tensor) => Some(Seen { dtype: tensor.dtype(), largest: 0.0 }),
            None => self.seen.get(&self.source.value(id).name).copied(),
        }
    }

    fn is_real(&self, id: ValueId) -> bool {
        self.fact(id).is_some_and(|f| f.dtype == DType::F32)
    }

    /// One number (the bound of a Clip, the value of a mask) may be as large as it likes: it becomes the largest.
    fn fits(&self, id: ValueId) -> bool {
        let constant = self.source.constant(id).is_some_and(|t| t.len() == 1);
        constant || self.fact(id).is_some_and(|f| f.largest <= LARGEST)
    }

    fn decide(&self, node: &Node) -> Decision {
        let name = node.op.name();
        let ids = || node.inputs.iter().flatten().chain(&node.outputs);
        let unknown = |id: &&ValueId| self.fact(**id).is_none() && self.is_read(**id);
        if !ids().any(|&id| self.is_real(id)) {
            return Decision::Data;
        }
        if matches!(takes(node), Takes::Nothing) {
            return Decision::Float(format!("{name} is computed in float32"));
        }
        if let Some(id) = ids().find(unknown) {
            let value = &self.source.value(*id).name;
            return Decision::Float(format!("`{value}` did not appear while the model ran"));
        }
        let large = ids().find(|&&id| self.is_real(id) && !self.fits(id));
        match large {
            Some(&id) => {
                Decision::Float(format!("`{}` is too large for float16", self.source.value(id).name))
            }
            None => Decision::Half,
        }
    }

    fn is_read(&self, id: ValueId) -> bool {
        self.source.outputs.contains(&id) || self.source.nodes.iter().any(|n| n.inputs.contains(&Some(id)))
    }

    fn half_node(&mut self, node: &Node) {
        let first_only = matches!(takes(node), Takes::First);
        let mut inputs = node.inputs.clone();
        for (position, input) in inputs.iter_mut().enumerate() {
            let Some(id) = *input else { continue };
            *input = Some(match self.is_real(id) && (position == 0 || !first_only) {
                true => self.in_half(id),
                false => self.in_wide(id),
            });
        }
        let mut outputs = Vec::new();
        for &id in &node.outputs {
            let real = self.is_real(id) || self.fact(id).is_none();
            outputs.push(if real { self.new_half(id) } else { id });
        }
        let op = match &node.op {
            Op::Cast { to: DType::F32 } => Op::Cast { to: DType::F16 },
            Op::ConstantOfShape { value } if value.dtype() == DType::F32 => {
                Op::ConstantOfShape { value: narrowed(value) }
            }
            op => op.clone(),
        };
        self.layers.push(Layer {
            node: node.name.clone(),
            op: node.op.name(),
            float_value: self.source.value(node.outputs[0]).name.clone(),
            int8_value: self.out.value(outputs[0]).name.clone(),
            weights: None,
            constants: None,
        });
        self.out.nodes.push(Node { op, inputs, outputs, ..node.clone() });
        // Outputs of the model keep their type and their name.
        for &id in node.outputs.iter().filter(|id| self.source.outputs.contains(id)) {
            self.in_wide(id);
        }
    }

    fn wide_node(&mut self, node: &Node) {
        let inputs = node.inputs.iter().map(|id| id.map(|id| self.in_wide(id))).collect();
        self.out.nodes.push(Node { inputs, ..node.clone() });
        self.wide.extend(&node.outputs);
    }

    /// The float16 form of a value.
    fn in_half(&mut self, id: ValueId) -> ValueId {
        if let Some(&half) = self.half.get(&id) {
            return half;
        }
        let half = self.new_half(id);
        match self.source.constant(id).cloned() {
            Some(tensor) => self.out.value_mut(half).constant = Some(Arc::new(narrowed(&tensor))),
            None => self.cast(id, half, DType::F16),
        }
        half
    }

    /// The value as the source has it.
    fn in_wide(&mut self, id: ValueId) -> ValueId {
        let there = self.wide.contains(&id) || self.source.constant(id).is_some();
        if let (false, Some(&half)) = (there, self.half.get(&id)) {
            self.cast(half, id, DType::F32);
            self.wide.insert(id);
        }
        id
    }

    fn cast(&mut self, from: ValueId, to: ValueId, dtype: DType) {
        let name = format!("{}_cast", self.out.value(to).name);
        self.out.nodes.push(Node::new(name, Op::Cast { to: dtype }, vec![Some(from)], vec![to]));
    }

    fn new_half(&mut self, id: ValueId) -> ValueId {
        let value = self.source.value(id);
        let name = unused(&mut self.names, &value.name, "h");
        let half = Value { name, dtype: Some(DType::F16), dims: value.dims.clone(), ..Value::default() };
        let half = self.out.add_value(half);
        self.half.insert(id, half);
        half
    }
}

/// The numbers in float16, rounded to nearest, ties to even. What is finite stays so, and what is not zero does: an
/// infinite mask times zero, or a quotient by a vanished epsilon, would be no number.
fn narrowed(tensor: &Tensor) -> Tensor {
    let number = |&x: &f32| match half::f16::from_f32(x) {
        y if y.is_infinite() && x.is_finite() => half::f16::MAX.copysign(y),
        y if y == half::f16::ZERO && x != 0.0 => half::f16::MIN_POSITIVE_SUBNORMAL.copysign(y),
        y => y,
    };
    let values: Vec<half::f16> = tensor.slice::<f32>().iter().map(number).collect();
    Tensor::from_slice(tensor.shape(), &values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_finite_and_not_zero() {
        let x = Tensor::from_slice(&[6], &[1.0f32, -3.4e38, 1e-12, -1e-12, 0.0, f32::INFINITY]);
        let got: Vec<f32> = narrowed(&x).slice::<half::f16>().iter().map(|y| y.to_f32()).collect();
        assert_eq!(got, [1.0, -65504.0, 5.9604645e-8, -5.9604645e-8, 0.0, f32::INFINITY]);
    }
}
