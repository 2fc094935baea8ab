//! What a job found out: the words of the report. `rows` fills them in, `advice` draws conclusions, `html` draws pictures,
//! `diff` compares two.

pub mod advice;
pub mod diff;
pub mod html;
pub mod rows;

use std::borrow::Cow;

use serde::Serialize;

use crate::engine::quant::Recipe;
use crate::engine::quant::checks::Check;
use crate::engine::quant::checks::convergence::Convergence;
use crate::engine::quant::evaluate::Evaluation;
use crate::engine::quant::layer_noise::LayerNoise;
use crate::engine::quant::search::{Sensitivity, Trial};
use crate::engine::quant::spread::Spread;

/// Everything that a job found out.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// Version of the engine.
    pub engine: &'static str,
    /// Version of the numeric contract.
    pub contract: u32,
    /// The float model.
    pub model: Model,
    /// What the calibration data are called, where they have a name.
    pub calibration: Option<String>,
    /// What the evaluation data are called, where they have a name.
    pub evaluated: Option<String>,
    /// When the job was begun, where that was told.
    pub begun_at: Option<String>,
    /// The recipe in full.
    pub recipe: Recipe,
    /// What was done otherwise than asked, and why.
    pub notes: Vec<String>,
    /// `evaluation`, or `calibration` where there was nothing else to judge by.
    pub evaluated_on: &'static str,
    /// Digest of these samples with their labels and slices, in whatever order and file they came.
    pub evaluated_on_sha256: String,
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
    /// What is wrong with the data, the worst first.
    pub data_checks: Vec<Check>,
    /// Whether there were enough calibration samples.
    pub convergence: Option<Convergence>,
    /// The damage of each layer alone, where it was measured.
    pub sensitivity: Vec<Sensitivity>,
    /// The models that were tried for the gate, where a search was made.
    pub trials: Vec<Trial>,
    /// What could be done better, the worst layer first.
    pub advice: Vec<Advice>,
    /// Why the gate is not kept.
    pub gate_failure: Option<String>,
}

/// The float model.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// What it is called by who asked; else the name of its graph.
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
    /// How unlike the output channels of its weights are.
    pub weight_spread: Option<Spread>,
    /// Signal to noise of the median output channel's weights under one scale for all, where there is one, in dB.
    pub weight_channel_db: Option<f64>,
    /// The values that it reads as codes, by whose parameters they have.
    pub reads: Vec<String>,
    /// How unlike the channels of its result are.
    pub channel_spread: Option<Spread>,
    /// Signal to noise of the median channel in the codes of its result, in dB.
    pub channel_db: Option<f64>,
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
    /// Bits of a code.
    pub bits: u8,
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

/// Why a layer hurts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Eight bits are few for its weights.
    Weights,
    /// Eight bits are few for the range of its result.
    ActivationRange,
    /// One scale has to serve channels of very different size.
    ChannelSpread,
    /// Values beyond the chosen range.
    Clipping,
    /// Biases that do not fit beside the products, so that weights lose bits.
    BiasOverflow,
    /// Nothing of its own: noise of the layers before adds up.
    Gathered,
    /// Eight bits do not hold what it reads, so it stays in float.
    Unheld,
}

impl Cause {
    /// The cause in words.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Weights => "weights",
            Cause::ActivationRange => "activation range",
            Cause::ChannelSpread => "channel spread",
            Cause::Clipping => "clipping",
            Cause::BiasOverflow => "bias overflow",
            Cause::Gathered => "gathered noise",
            Cause::Unheld => "kept in float",
        }
    }
}

/// What could be done better.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// The node it is about.
    pub node: String,
    /// Why it hurts.
    pub cause: Cause,
    /// What was seen, with the figures.
    pub finding: String,
    /// What would help, in words.
    pub remedy: String,
    /// The part of a recipe that does it.
    pub recipe: serde_json::Value,
    /// Other parts of a recipe that would help.
    pub alternatives: Vec<serde_json::Value>,
}
