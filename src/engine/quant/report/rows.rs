//! From graphs, plans and statistics to the rows of a report. Draws no conclusions.

use super::{Activation, Coverage, FloatRow, LayerRow};
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::quant::Recipe;
use crate::engine::quant::constants;
use crate::engine::quant::layer_noise::LayerNoise;
use crate::engine::quant::observed::Observed;
use crate::engine::quant::plan::{Decision, Plan};
use crate::engine::quant::ranges::Choice;
use crate::engine::quant::rewrite::Layer;
use crate::engine::quant::spread::Channels;
use crate::engine::tensor::DType;

/// Bars in the picture of an activation.
const CHART_BARS: usize = 96;

/// What rows of layers are made from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The float graph.
    pub graph: &'a Graph,
    /// What is quantized of it.
    pub plan: &'a Plan,
    /// What was asked.
    pub recipe: &'a Recipe,
    /// The rows of the values that have codes.
    pub activations: &'a [Activation],
}

/// Rows of the integer nodes. `noise` has one entry a layer.
pub fn layer_rows(layers: &[Layer], noise: &[Option<LayerNoise>], source: Source<'_>) -> Vec<LayerRow> {
    layers.iter().zip(noise).map(|(layer, noise)| layer_row(layer, noise.as_ref(), source)).collect()
}

fn layer_row(layer: &Layer, noise: Option<&LayerNoise>, source: Source<'_>) -> LayerRow {
    let Source { graph, plan, recipe, activations } = source;
    let place = graph.nodes.iter().position(|n| n.name == layer.node);
    let weights = layer.weights.as_ref();
    let mut channels = Channels::default();
    if let Some(node) = place.map(|n| &graph.nodes[n])
        && weights.is_some()
        && let Ok((operand, axis, _)) = constants::weights_of(graph, node)
        && let Some(tensor) = graph.constant(operand)
    {
        let shape = tensor.shape();
        channels.observe(tensor.slice(), shape[axis], shape[axis + 1..].iter().product());
    }
    let one_scale = channels.most() / f64::from(weights.map_or(1, |w| w.max_code));
    let root = |value: ValueId| graph.value(plan.coded(value).map_or(value, |c| c.root)).name.clone();
    let reads = place.map_or_else(Vec::new, |n| plan.operands(graph, n).into_iter().map(root).collect());
    let width = activations.iter().find(|a| a.value == layer.float_value).map(|a| a.scale);
    LayerRow {
        node: layer.node.clone(),
        op: layer.op,
        value: layer.float_value.clone(),
        weight_shape: weights.map(|w| w.shape.clone()),
        weight_max_code: weights.map(|w| w.max_code),
        weight_sqnr_db: weights.and_then(|w| w.sqnr_db),
        weight_scale_spread: weights.map(|w| w.scale_spread),
        weight_spread: channels.spread(),
        weight_channel_db: channels.median_db(one_scale).filter(|_| !recipe.weights.per_channel),
        reads,
        channel_spread: noise.and_then(|n| n.channels.spread()),
        channel_db: noise.zip(width).and_then(|(n, width)| n.channels.median_db(width)),
        raised_channels: weights.map_or(0, |w| w.raised_channels),
        noise: noise.cloned(),
    }
}

/// The row of a value and its histogram.
pub fn activation(value: &str, observed: &Observed, choice: &Choice) -> Activation {
    let histogram = &observed.histogram;
    let (min, max) = histogram.range().unwrap_or((0.0, 0.0));
    Activation {
        value: value.to_owned(),
        bits: if matches!(choice.params.dtype, DType::U16 | DType::I16) { 16 } else { 8 },
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
            use Decision::{Absorbed, Dynamic, Inner, Integer, Lookup, Trained};
            matches!(d, Integer | Dynamic | Lookup | Trained | Absorbed { .. } | Inner { .. })
        }),
        float: count(|d| {
            matches!(d, Decision::Float(_) | Decision::Stored | Decision::Sixteen | Decision::Half)
        }),
        data: count(|d| matches!(d, Decision::Data)),
    }
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
