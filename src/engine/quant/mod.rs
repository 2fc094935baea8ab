//! The quantizer: what a user may ask of it, and what the answers look like.
//! Float graph in, QDQ graph and figures out; no files, no ONNX bytes.

mod abreast;
pub mod calibrate;
pub mod channels;
pub mod checks;
pub mod confusion;
pub mod constants;
pub mod decision;
pub mod dense;
pub mod dial;
pub mod effect;
pub mod equalize;
pub mod evaluate;
pub mod extremes;
pub mod flat;
pub mod histogram;
pub mod layer_noise;
pub mod lint;
pub mod live;
pub mod nature;
mod noise;
pub mod observed;
pub mod plan;
pub mod ranges;
pub mod reconstruct;
pub mod report;
pub mod rewrite;
pub mod rounding;
pub mod rows;
pub mod samples;
pub mod schemes;
pub mod search;
pub mod smooth;
mod solver;
pub mod spread;
pub mod statistics;
pub mod targets;
pub mod trained;
pub mod walk;
pub mod weights;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a user asks of the quantizer. Every field has a default that works.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// What is quantized, and when its ranges are known.
    pub scheme: Scheme,
    /// How weights are quantized.
    pub weights: WeightRecipe,
    /// What codes activations have.
    pub activations: Activations,
    /// Names of nodes whose activations have 16 bits; `*` stands for any letters.
    pub sixteen_bit: Vec<String>,
    /// How ranges of activations are chosen.
    pub ranges: Ranges,
    /// Whether the channels of one layer and the next are scaled to be alike (cross-layer equalization).
    pub equalize: bool,
    /// Whether and how far the spread of activations is moved to the weights (SmoothQuant).
    pub smooth: Smooth,
    /// Whether the mean error of each channel is taken out of the biases.
    pub bias_correction: bool,
    /// How weights are rounded.
    pub rounding: Rounding,
    /// How a function behind a product is computed.
    pub functions: Functions,
    /// Names of nodes that stay in float; `*` stands for any letters.
    pub keep_float: Vec<String>,
    /// What the result must keep.
    pub gate: Gate,
    /// Layers that stay in float so that the gate is kept.
    pub search: Search,
    /// What the artifact is made for.
    pub target: Target,
    /// Of a model that comes quantized: whether what it left in float is quantized too.
    pub complete: bool,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            scheme: Scheme::default(),
            weights: WeightRecipe::default(),
            activations: Activations::default(),
            sixteen_bit: Vec::new(),
            ranges: Ranges::default(),
            equalize: false,
            smooth: Smooth::default(),
            bias_correction: true,
            rounding: Rounding::default(),
            functions: Functions::default(),
            keep_float: Vec::new(),
            gate: Gate::default(),
            search: Search::default(),
            target: Target::default(),
            complete: false,
        }
    }
}

/// What is quantized, and when its ranges are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// As `static` where the codes of a convolution flow on; products of other reals as `dynamic`.
    #[default]
    Auto,
    /// Weights and activations, with ranges from calibration data.
    Static,
    /// Weights and activations, with the ranges of each row of each run.
    Dynamic,
    /// Weights only: they are made reals again before they are used.
    WeightOnly,
    /// Nothing: weights and activations have 16 bits.
    Float16,
}

impl Scheme {
    /// What an artifact computes with, for programs.
    pub fn precision(self) -> &'static str {
        match self {
            Scheme::Auto | Scheme::Static | Scheme::Dynamic | Scheme::WeightOnly => "int8",
            Scheme::Float16 => "fp16",
        }
    }

    /// The same for people.
    pub fn numbers(self) -> &'static str {
        match self {
            Scheme::Auto | Scheme::Static | Scheme::Dynamic | Scheme::WeightOnly => "INT8",
            Scheme::Float16 => "float16",
        }
    }
}

/// What codes activations have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// Unsigned, zero anywhere.
    #[default]
    U8,
    /// Signed, zero at code 0.
    S8,
}

/// How weights are rounded to codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Each to the nearest code.
    Nearest,
    /// So that the results of the layer change least on the calibration data.
    #[default]
    Optimal,
}

/// How a function behind a product is computed: of its sums, so that they are rounded once, or of their codes, by a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Functions {
    /// Of the sums where that takes little longer: HardSwish and HardSigmoid.
    #[default]
    Auto,
    /// Of the sums: those with an exponential as well, SiLU, Sigmoid, Tanh and GELU.
    Exact,
    /// By a table.
    Table,
}

/// Whether and how far the spread of activations is moved to the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Smooth {
    /// Not at all.
    Off,
    /// As far as the results of the layer gain.
    #[default]
    Auto,
    /// So far everywhere: the exponent of Xiao et al. 2022, 0 to 1.
    Alpha(f64),
}

/// What the artifact is made for: whose rules of fusion it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This program.
    #[default]
    Octet,
    /// ONNX Runtime on x86.
    Onnxruntime,
    /// TensorRT.
    Tensorrt,
    /// OpenVINO.
    Openvino,
    /// What follows the quantization specification of TensorFlow Lite: Arm NN, Ethos-U.
    TfliteRules,
}

/// Layers that stay in float so that the gate is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Search {
    /// Where the recipe has a gate, with [`Search::TRIALS`] trials.
    #[default]
    Auto,
    /// None.
    Off,
    /// At most so many models are tried on the whole evaluation data.
    Trials(u32),
}

impl Search {
    /// Trials where nothing else is said.
    pub const TRIALS: u32 = 24;

    /// How many models may be tried; none without a gate.
    pub fn trials(self, gate: &Gate) -> u32 {
        match self {
            _ if *gate == Gate::default() => 0,
            Search::Off => 0,
            Search::Auto => Search::TRIALS,
            Search::Trials(trials) => trials,
        }
    }
}

/// How weights are quantized: symmetric `i8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightRecipe {
    /// One scale for each output channel, instead of one for the tensor.
    pub per_channel: bool,
    /// The largest weight code of a dense layer.
    pub max_code: MaxCode,
}

impl Default for WeightRecipe {
    fn default() -> WeightRecipe {
        WeightRecipe { per_channel: true, max_code: MaxCode::default() }
    }
}

/// The largest magnitude of a weight code: what processors without byte dot products compute faster if it is smaller.
/// The integers are the same on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxCode {
    /// The same for every dense layer, from [`MaxCode::LEAST`] (seven bits) to [`MaxCode::MOST`].
    Fixed(u8),
    /// The smallest that the gate allows, layer by layer.
    Auto,
}

impl MaxCode {
    /// Any two products with `u8` fit 16 bits.
    pub const LEAST: u8 = 64;
    /// All of eight bits, symmetric.
    pub const MOST: u8 = 127;
}

impl Default for MaxCode {
    fn default() -> MaxCode {
        MaxCode::Fixed(MaxCode::MOST)
    }
}

impl Serialize for MaxCode {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            MaxCode::Fixed(code) => to.serialize_u8(*code),
            MaxCode::Auto => to.serialize_str("auto"),
        }
    }
}

impl<'de> Deserialize<'de> for MaxCode {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<MaxCode, D::Error> {
        let wrong = |value: &Value| {
            let (least, most) = (MaxCode::LEAST, MaxCode::MOST);
            serde::de::Error::custom(format!(
                "max_code is {value}, not \"auto\" or a number from {least} to {most}"
            ))
        };
        let value = Value::deserialize(from)?;
        match (value.as_u64(), value.as_str()) {
            (_, Some("auto")) => Ok(MaxCode::Auto),
            (Some(code), _) => u8::try_from(code)
                .ok()
                .filter(|code| (MaxCode::LEAST..=MaxCode::MOST).contains(code))
                .map(MaxCode::Fixed)
                .ok_or_else(|| wrong(&value)),
            _ => Err(wrong(&value)),
        }
    }
}

/// How ranges of activations are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Ranges {
    /// The one of all others that changes the results of the layers that read the value least.
    #[default]
    Auto,
    /// The least and the largest value.
    Minmax,
    /// The means of the least and the largest value of each sample.
    MeanMinmax,
    /// All but the outermost values: this share of them, in per cent.
    Percentile(f64),
    /// The range whose codes tell most of the distribution (Kullback and Leibler).
    Entropy,
    /// The range with the least expected square error.
    Mse,
}

impl Ranges {
    /// The share of values within the range, in per cent, where nothing else is said.
    const PERCENTILE: f64 = 99.999;
}

/// What the result must keep; without a field, nothing is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// What `max_drop` and `max_drop_per_slice` speak of; without it, `top1` where there are labels, else `agreement`.
    pub metric: Option<Metric>,
    /// Most that the metric may fall, as a share: 0.005 is half a point.
    pub max_drop: Option<f64>,
    /// Most that the metric may fall on any slice of the data.
    pub max_drop_per_slice: Option<f64>,
    /// Least share of samples on which float and INT8 agree.
    pub min_agreement: Option<f64>,
    /// Least signal to noise of the first output, in dB.
    pub min_sqnr_db: Option<f64>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Samples whose label has the largest output.
    Top1,
    /// Samples whose label is among the five largest outputs.
    Top5,
    /// Samples on which float and INT8 agree; float counts as right.
    Agreement,
}

/// Why a recipe is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a JSON object.
    #[error("expected an object, got {0}")]
    NotAnObject(String),
    /// A field that nobody knows.
    #[error("unknown field `{field}`; the fields are {known}")]
    Unknown {
        /// The field.
        field: String,
        /// Those that are known.
        known: String,
    },
    /// A value that does not fit its field.
    #[error("`{field}`: {reason}")]
    Field {
        /// The field.
        field: String,
        /// What does not fit.
        reason: String,
    },
    /// A pattern that matches no node.
    #[error("`{field}`: no node matches `{pattern}`{}", and_near(near))]
    NoMatch {
        /// The field.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// Nodes with names that are like it.
        near: Vec<String>,
    },
}

/// The fields of a recipe.
const FIELDS: [&str; 15] = [
    "scheme",
    "weights",
    "activations",
    "sixteen_bit",
    "ranges",
    "equalize",
    "smooth",
    "bias_correction",
    "rounding",
    "functions",
    "keep_float",
    "gate",
    "search",
    "target",
    "complete",
];

impl Recipe {
    /// Reads a recipe; `null` and `{}` are the defaults.
    ///
    /// # Errors
    /// [`Error`] with the field at fault.
    pub fn parse(json: &Value) -> Result<Recipe, Error> {
        let mut recipe = Recipe::default();
        let fields = match json {
            Value::Null => return Ok(recipe),
            Value::Object(fields) => fields,
            other => return Err(Error::NotAnObject(other.to_string())),
        };
        for (field, value) in fields {
            match field.as_str() {
                "scheme" => recipe.scheme = read(field, value)?,
                "weights" => recipe.weights = read(field, object(field, value)?)?,
                "activations" => recipe.activations = read(field, value)?,
                "sixteen_bit" => recipe.sixteen_bit = read(field, value)?,
                "ranges" => recipe.ranges = read(field, value)?,
                "equalize" => recipe.equalize = read(field, value)?,
                "smooth" => recipe.smooth = read(field, value)?,
                "bias_correction" => recipe.bias_correction = read(field, value)?,
                "rounding" => recipe.rounding = read(field, value)?,
                "functions" => recipe.functions = read(field, value)?,
                "keep_float" => recipe.keep_float = read(field, value)?,
                "gate" => recipe.gate = read(field, object(field, value)?)?,
                "search" => recipe.search = read(field, value)?,
                "target" => recipe.target = read(field, value)?,
                "complete" => recipe.complete = read(field, value)?,
                _ => return Err(Error::Unknown { field: field.clone(), known: FIELDS.join(", ") }),
            }
        }
        recipe.check()?;
        Ok(recipe)
    }

    /// Checks what a type does not say.
    fn check(&self) -> Result<(), Error> {
        let fault = |field: &str, reason: String| Err(Error::Field { field: field.to_owned(), reason });
        let gate = &self.gate;
        for (field, share) in [
            ("gate.max_drop", gate.max_drop),
            ("gate.max_drop_per_slice", gate.max_drop_per_slice),
            ("gate.min_agreement", gate.min_agreement),
        ] {
            if let Some(share) = share
                && !(0.0..=1.0).contains(&share)
            {
                let reason = format!("{share} is not a share between 0 and 1 (half a point is 0.005)");
                return fault(field, reason);
            }
        }
        if let Some(db) = gate.min_sqnr_db
            && !(0.0..=100.0).contains(&db)
        {
            return fault("gate.min_sqnr_db", format!("{db} is not between 0 and 100 dB"));
        }
        if gate.metric.is_some() && gate.max_drop.or(gate.max_drop_per_slice).is_none() {
            return fault("gate.metric", "it says what max_drop speaks of: give max_drop".to_owned());
        }
        if self.scheme == Scheme::Float16 {
            let text = "float16 has no codes that channels would share";
            if self.equalize {
                return fault("equalize", text.to_owned());
            }
            if let Smooth::Alpha(_) = self.smooth {
                return fault("smooth", text.to_owned());
            }
        }
        if !matches!(self.scheme, Scheme::Auto | Scheme::Static) && !self.sixteen_bit.is_empty() {
            return fault("sixteen_bit", "only the static scheme has codes of activations".to_owned());
        }
        if !self.takes_sixteen_bits() && !self.sixteen_bit.is_empty() {
            let text = "has activations of 8 bits only; `keep_float` leaves nodes in float";
            return fault("sixteen_bit", format!("target {} {text}", self.target.name()));
        }
        if self.target != Target::Octet && !matches!(self.scheme, Scheme::Auto | Scheme::Static) {
            let text = "other targets than octet have a form for the static scheme only";
            return fault("target", text.to_owned());
        }
        if self.weights.max_code == MaxCode::Auto && *gate == Gate::default() {
            return fault(
                "weights",
                "\"auto\" turns max_code as far as the gate allows: give a gate".to_owned(),
            );
        }
        if !self.takes_sixteen_bits() && !self.sixteen_bit.is_empty() {
            let text = "has activations of 8 bits only; `keep_float` leaves nodes in float";
            return fault("sixteen_bit", format!("target {} {text}", self.target.name()));
        }
        if let Search::Trials(_) = self.search
            && *gate == Gate::default()
        {
            return fault("search", "it looks for what keeps the gate: give a gate".to_owned());
        }
        Ok(())
    }

    /// Whether the activations of a node have 16 bits by name.
    pub fn has_sixteen_bits(&self, node: &str) -> bool {
        self.sixteen_bit.iter().any(|pattern| matches(pattern, node))
    }

    /// Whether products among real operators get the ranges of their rows in each run.
    pub fn ranges_by_row(&self) -> bool {
        self.scheme == Scheme::Auto && self.target == Target::Octet && self.activations == Activations::U8
    }

    /// Whether `sixteen_bit` may name nodes: where activations have codes from calibration, and the target reads codes of
    /// 16 bits. TensorRT quantizes activations to 8 bits; the specification of TensorFlow Lite has them in `int8`.
    pub fn takes_sixteen_bits(&self) -> bool {
        matches!(self.scheme, Scheme::Auto | Scheme::Static)
            && !matches!(self.target, Target::Tensorrt | Target::TfliteRules)
    }

    /// Whether a node stays in float by name.
    pub fn keeps_float(&self, node: &str) -> bool {
        self.keep_float.iter().any(|pattern| matches(pattern, node))
    }
}

/// One number under a name: `{"percentile": 99.9}`.
fn number_in(value: &Value, name: &str) -> Option<f64> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    fields.get(name)?.as_f64()
}

impl Serialize for Ranges {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Ranges::Auto => to.serialize_str("auto"),
            Ranges::Minmax => to.serialize_str("minmax"),
            Ranges::MeanMinmax => to.serialize_str("mean_minmax"),
            Ranges::Percentile(p) => to.collect_map([("percentile", p)]),
            Ranges::Entropy => to.serialize_str("entropy"),
            Ranges::Mse => to.serialize_str("mse"),
        }
    }
}

impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Ranges, D::Error> {
        let value = Value::deserialize(from)?;
        if let Some(p) = number_in(&value, "percentile") {
            return match 50.0 < p && p <= 100.0 {
                true => Ok(Ranges::Percentile(p)),
                false => {
                    Err(serde::de::Error::custom(format!("percentile {p} is not above 50 and at most 100")))
                }
            };
        }
        match value.as_str() {
            Some("auto") => Ok(Ranges::Auto),
            Some("minmax") => Ok(Ranges::Minmax),
            Some("mean_minmax") => Ok(Ranges::MeanMinmax),
            Some("percentile") => Ok(Ranges::Percentile(Ranges::PERCENTILE)),
            Some("entropy") => Ok(Ranges::Entropy),
            Some("mse") => Ok(Ranges::Mse),
            _ => Err(serde::de::Error::custom(format!(
                "{value} is not \"auto\", \"minmax\", \"mean_minmax\", \"percentile\", {{\"percentile\": 99.9}}, \
                 \"entropy\" or \"mse\""
            ))),
        }
    }
}

impl Serialize for Smooth {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Smooth::Off => to.serialize_str("off"),
            Smooth::Auto => to.serialize_str("auto"),
            Smooth::Alpha(alpha) => to.collect_map([("alpha", alpha)]),
        }
    }
}

impl<'de> Deserialize<'de> for Smooth {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Smooth, D::Error> {
        let value = Value::deserialize(from)?;
        match (value.as_str(), number_in(&value, "alpha")) {
            (Some("off"), _) => Ok(Smooth::Off),
            (Some("auto"), _) => Ok(Smooth::Auto),
            (_, Some(alpha)) if (0.0..=1.0).contains(&alpha) => Ok(Smooth::Alpha(alpha)),
            _ => Err(serde::de::Error::custom(format!(
                "{value} is not \"off\", \"auto\" or {{\"alpha\": A}} with A from 0 to 1"
            ))),
        }
    }
}

impl Serialize for Search {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Search::Auto => to.serialize_str("auto"),
            Search::Off => to.serialize_str("off"),
            Search::Trials(trials) => to.collect_map([("trials", trials)]),
        }
    }
}

impl<'de> Deserialize<'de> for Search {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Search, D::Error> {
        let value = Value::deserialize(from)?;
        match (value.as_str(), number_in(&value, "trials")) {
            (Some("off"), _) => Ok(Search::Off),
            (Some("auto"), _) => Ok(Search::Auto),
            (_, Some(trials)) if (1.0..=1000.0).contains(&trials) && trials.fract() == 0.0 => {
                Ok(Search::Trials(trials as u32))
            }
            _ => Err(serde::de::Error::custom(format!(
                "{value} is not \"off\", \"auto\" or {{\"trials\": N}} with N from 1 to 1000"
            ))),
        }
    }
}

fn read<T: DeserializeOwned>(field: &str, value: &Value) -> Result<T, Error> {
    T::deserialize(value).map_err(|e| Error::Field { field: field.to_owned(), reason: e.to_string() })
}

/// A value with fields: serde takes a list for them too, by their order.
fn object<'v>(field: &str, value: &'v Value) -> Result<&'v Value, Error> {
    match value.is_object() {
        true => Ok(value),
        false => Err(Error::Field { field: field.to_owned(), reason: format!("{value} is not an object") }),
    }
}

fn and_near(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; near it are `{}`", near.join("`, `")) }
}

/// The names that are most like `wanted`, three at most: a third of its letters may be others.
fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    // A pattern of any length comes with a request; a name that is near it is no longer than that.
    const LETTERS_MAX: usize = 256;
    if wanted.len() > LETTERS_MAX {
        return Vec::new();
    }
    let most = wanted.chars().count() / 3;
    let names = names.filter(|name| name.len().abs_diff(wanted.len()) <= 4 * most);
    let mut near: Vec<(usize, &str)> = names.map(|name| (distance(wanted, name), name)).collect();
    near.retain(|&(apart, _)| apart <= most);
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// How many letters have to be put in, left out or changed to make one text the other (Levenshtein, 1965), case aside.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.to_lowercase().chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, &b) in b.iter().enumerate() {
            let changed = before + usize::from(a != b);
            before = row[j + 1];
            row[j + 1] = changed.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Whether a name fits a pattern in which `*` stands for any letters, also none.
pub fn matches(pattern: &str, name: &str) -> bool {
    let parts: Vec<&str> = pattern.split('*').collect();
    let [first, middle @ .., last] = &parts[..] else { return pattern == name };
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    for part in middle {
        // The earliest place leaves the most for the parts after it.
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod recipe_tests;
#[cfg(test)]
mod smooth_tests;
