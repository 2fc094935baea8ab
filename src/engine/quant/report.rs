//! What a job found out: the figures as JSON, and advice. Knows no HTML; `report_html` draws these findings.

use std::borrow::Cow;

use serde::Serialize;

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::quant::Recipe;
use crate::engine::quant::evaluate::{Evaluation, LayerNoise};
use crate::engine::quant::observed::Observed;
use crate::engine::quant::plan::{Decision, Plan};
use crate::engine::quant::ranges::Choice;
use crate::engine::quant::rewrite::Layer;
use crate::engine::quant::search::{Sensitivity, Trial};
use crate::engine::tensor::DType;

/// Bars in the picture of an activation.
const CHART_BARS: usize = 64;
/// Below this a layer is worth a look, in dB: 20 dB is where one decision in a hundred changes on 1000 classes.
const SUSPICIOUS_DB: f64 = 20.0;

/// Everything that a job found out.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// Version of the engine.
    pub engine: &'static str,
    /// Version of the numeric contract.
    pub contract: u32,
    /// The float model.
    pub model: Model,
    /// The recipe in full.
    pub recipe: Recipe,
    /// What was done otherwise than asked, and why.
    pub notes: Vec<String>,
    /// `evaluation`, or `calibration` where there was nothing else to judge by.
    pub evaluated_on: &'static str,
    /// Float against INT8.
    pub evaluation: Evaluation,
    /// Time of one run.
    pub latency: Times,
    /// Bytes of both.
    pub size: Sizes,
    /// How much computes on integers.
    pub coverage: Coverage,
    /// The integer nodes, in execution order.
    pub layers: Vec<LayerRow>,
    /// The values that have codes of their own.
    pub activations: Vec<Activation>,
    /// The nodes that compute on reals.
    pub float_nodes: Vec<FloatRow>,
    /// What could be done better.
    pub advice: Vec<Advice>,
    /// Why the gate is not kept.
    pub gate_failure: Option<String>,
    /// Noise that each layer makes alone; only where layers to be kept in float were searched for.
    pub sensitivity: Vec<Sensitivity>,
    /// Models that were tried so that the gate be kept.
    pub trials: Vec<Trial>,
}

/// The float model.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// Name of its graph.
    pub name: String,
    /// Digest of its file.
    pub sha256: String,
    /// Number of float weights.
    pub parameters: u64,
}

/// Time of one run at batch 1, median, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    /// The float model.
    pub float_ms: f64,
    /// The INT8 model.
    pub int8_ms: f64,
    /// Float over INT8.
    pub speedup: f64,
}

/// Bytes of the files.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sizes {
    /// The float model.
    pub float_bytes: u64,
    /// The artifact.
    pub int8_bytes: u64,
    /// Artifact over model.
    pub ratio: f64,
}

/// How much computes on integers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Coverage {
    /// Nodes on codes, clamps that were absorbed among them.
    pub integer: usize,
    /// Nodes on reals.
    pub float: usize,
    /// Nodes that move data.
    pub data: usize,
}

/// An integer node.
#[derive(Clone, Debug, Serialize)]
pub struct LayerRow {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: &'static str,
    /// The value it makes.
    pub value: String,
    /// Shape of its weights.
    pub weight_shape: Option<Vec<usize>>,
    /// Largest magnitude that its weight codes may have.
    pub weight_max_code: Option<u8>,
    /// Signal to noise of its weight codes, in dB.
    pub weight_sqnr_db: Option<f64>,
    /// Largest weight scale over the median.
    pub weight_scale_spread: Option<f64>,
    /// Channels whose scale was raised for the bias.
    pub raised_channels: usize,
    /// The value in the INT8 model against the float model: noise that has gathered up to here.
    pub noise: Option<LayerNoise>,
}

/// A value that has codes of its own.
#[derive(Clone, Debug, Serialize)]
pub struct Activation {
    /// Name of the value.
    pub value: String,
    /// How its range was chosen.
    pub method: Cow<'static, str>,
    /// Least value seen.
    pub min: f64,
    /// Largest value seen.
    pub max: f64,
    /// Least real that a code stands for.
    pub lo: f64,
    /// Largest real that a code stands for.
    pub hi: f64,
    /// Real width of a code.
    pub scale: f64,
    /// Code of zero.
    pub zero_point: i32,
    /// Share of values that saturate.
    pub clipped: f64,
    /// Share of values that are exactly zero.
    pub zeros: f64,
    /// Expected signal to noise of the codes, in dB.
    pub sqnr_db: Option<f64>,
    /// Counts in equal steps from the least to the largest value seen.
    pub histogram: Vec<u64>,
}

/// A node on reals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FloatRow {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: &'static str,
    /// Why.
    pub reason: String,
}

impl FloatRow {
    /// A node of a model that came quantized and is real all the same.
    pub fn not_in_codes(node: &str, op: &'static str) -> FloatRow {
        let reason = "the model does not quantize both sides of it".to_owned();
        FloatRow { node: node.to_owned(), op, reason }
    }
}

/// What could be done better.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// The node it is about.
    pub node: String,
    /// What was seen, and why.
    pub finding: String,
    /// The part of a recipe that would help.
    pub recipe: serde_json::Value,
}

/// Rows of the integer nodes. `noise` has one entry a layer.
pub fn layer_rows(layers: &[Layer], noise: &[Option<LayerNoise>]) -> Vec<LayerRow> {
    let row = |(layer, noise): (&Layer, &Option<LayerNoise>)| {
        let weights = layer.weights.as_ref();
        LayerRow {
            node: layer.node.clone(),
            op: layer.op,
            value: layer.float_value.clone(),
            weight_shape: weights.map(|w| w.shape.clone()),
            weight_max_code: weights.map(|w| w.max_code),
            weight_sqnr_db: weights.and_then(|w| w.sqnr_db),
            weight_scale_spread: weights.map(|w| w.scale_spread),
            raised_channels: weights.map_or(0, |w| w.raised_channels),
            noise: noise.clone(),
        }
    };
    layers.iter().zip(noise).map(row).collect()
}

/// The row of a value and its histogram.
pub fn activation(value: &str, observed: &Observed, choice: &Choice) -> Activation {
    let histogram = &observed.histogram;
    let (min, max) = histogram.range().unwrap_or((0.0, 0.0));
    Activation {
        value: value.to_owned(),
        method: choice.method.name(),
        min: min.into(),
        max: max.into(),
        lo: choice.lo,
        hi: choice.hi,
        scale: choice.params.scale[0].into(),
        zero_point: choice.params.zero_point[0],
        clipped: choice.below + choice.above,
        zeros: histogram.zeros() as f64 / histogram.count().max(1) as f64,
        sqnr_db: choice.sqnr_db,
        histogram: histogram.chart(CHART_BARS),
    }
}

/// The nodes that compute on reals, with their reasons.
pub fn float_rows(graph: &Graph, plan: &Plan) -> Vec<FloatRow> {
    let row = |(node, decision): (&Node, &Decision)| {
        let reason = match decision {
            Decision::Float(reason) => reason.as_str(),
            Decision::Stored => "its weights are stored in 8 bits, it computes on reals",
            Decision::Sixteen => "its activations have 16 bits, its weights 8",
            Decision::Half => "it computes in float16",
            _ => return None,
        };
        Some(FloatRow { node: node.name.clone(), op: node.op.name(), reason: reason.to_owned() })
    };
    graph.nodes.iter().zip(&plan.decisions).filter_map(row).collect()
}

/// Counts the decisions of a plan.
pub fn coverage(plan: &Plan) -> Coverage {
    let count = |f: fn(&Decision) -> bool| plan.decisions.iter().filter(|d| f(d)).count();
    Coverage {
        integer: count(|d| {
            use Decision::{Absorbed, Dynamic, Inner, Integer, Lookup};
            matches!(d, Integer | Dynamic | Lookup | Absorbed { .. } | Inner { .. })
        }),
        float: count(|d| {
            matches!(d, Decision::Float(_) | Decision::Stored | Decision::Sixteen | Decision::Half)
        }),
        data: count(|d| matches!(d, Decision::Data)),
    }
}

/// What to try for the layers where noise enters, the worst first, at most five. A layer is named where its result is
/// suspicious and clearly noisier than the quietest layer before it.
pub fn advice(layers: &[LayerRow], activations: &[Activation]) -> Vec<Advice> {
    let mut quietest = f64::INFINITY;
    let mut found: Vec<(f64, Advice)> = Vec::new();
    for layer in layers {
        let Some(noise) = &layer.noise else { continue };
        let loss = quietest.min(SUSPICIOUS_DB + 20.0) - noise.sqnr_db;
        quietest = quietest.min(noise.sqnr_db);
        if noise.sqnr_db >= SUSPICIOUS_DB || loss < 3.0 {
            continue;
        }
        let range = activations.iter().find(|a| a.value == layer.value).and_then(|a| a.sqnr_db);
        let cause = match (layer.weight_sqnr_db, range) {
            (Some(w), Some(r)) if w < r => {
                format!("its weights hold {w:.1} dB in 8 bits, its range {r:.1} dB")
            }
            (_, Some(r)) => format!("its result holds {r:.1} dB in 8 bits"),
            (Some(w), None) => format!("its weights hold {w:.1} dB in 8 bits"),
            (None, None) => "noise gathers from the layers before".to_owned(),
        };
        let finding = format!("{} drops to {:.1} dB: {cause}", layer.op, noise.sqnr_db);
        let recipe = serde_json::json!({"keep_float": [layer.node]});
        found.push((loss, Advice { node: layer.node.clone(), finding, recipe }));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().take(5).map(|(_, advice)| advice).collect()
}

/// Number of float weights that nodes read.
pub fn parameters(graph: &Graph) -> u64 {
    let linear = |node: &Node| matches!(node.op, Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. });
    // Scales and zero points say how weights are written; they are none.
    let operands =
        graph.nodes.iter().flat_map(|n| n.inputs.iter().take(if linear(n) { 1 } else { usize::MAX }));
    let mut read: Vec<ValueId> = operands.flatten().copied().collect();
    read.sort_unstable();
    read.dedup();
    let weights = |id: &ValueId| {
        let tensor = graph.constant(*id)?;
        let codes = graph.nodes.iter().any(|n| linear(n) && n.input(0) == Some(*id));
        (codes || tensor.dtype() == DType::F32).then_some(tensor.len() as u64)
    };
    read.iter().filter_map(weights).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: &str, db: f64) -> LayerRow {
        LayerRow {
            node: node.to_owned(),
            op: "Conv",
            value: node.to_owned(),
            weight_shape: None,
            weight_max_code: Some(127),
            weight_sqnr_db: Some(15.0),
            weight_scale_spread: None,
            raised_channels: 0,
            noise: Some(LayerNoise { sqnr_db: db, cosine: 1.0, max_abs_error: 0.0 }),
        }
    }

    #[test]
    fn advice_names_the_layers_where_noise_enters() {
        let rows = [row("a", 40.0), row("b", 15.0), row("c", 14.5), row("d", 5.0), row("e", 6.0)];
        let named: Vec<String> = advice(&rows, &[]).into_iter().map(|a| a.node).collect();
        assert_eq!(named, ["b", "d"], "the largest loss first; what passes noise on is not to blame");
        assert_eq!(advice(&[row("a", 30.0)], &[]), []);
    }
}
