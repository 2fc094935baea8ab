//! The quantizer: what a user may ask of it, and what the answers look like.
//! Float graph in, QDQ graph and figures out; no files, no ONNX bytes.

pub mod calibrate;
pub mod dial;
pub mod evaluate;
pub mod histogram;
pub mod plan;
pub mod ranges;
pub mod report;
pub mod report_html;
pub mod rewrite;
pub mod weights;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a user asks of the quantizer. Every field has a default that works.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Recipe {
    /// What is quantized, and when its ranges are known.
    pub scheme: Scheme,
    /// How weights are quantized.
    pub weights: WeightRecipe,
    /// How ranges of activations are chosen.
    pub ranges: Ranges,
    /// Names of nodes that stay in float; `*` stands for any letters.
    pub keep_float: Vec<String>,
    /// What the result must keep.
    pub gate: Gate,
}

/// What is quantized, and when its ranges are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Weights and activations, with ranges from calibration data.
    #[default]
    Static,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranges {
    /// `mse` where integers flow on, `minmax` before a matrix product among float operators.
    #[default]
    Auto,
    /// The least and the largest value.
    Minmax,
    /// The range with the least expected square error.
    Mse,
}

/// What the result must keep; without a field, nothing is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// Most that the metric may fall, as a share: 0.005 is half a point.
    pub max_drop: Option<f64>,
    /// Least share of samples on which float and INT8 agree.
    pub min_agreement: Option<f64>,
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
    /// A field or value that is planned.
    #[error("`{field}`: {value} is not supported yet")]
    NotYet {
        /// The field.
        field: String,
        /// What was asked.
        value: String,
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
    #[error("`keep_float`: no node matches `{pattern}`")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
}

/// The fields of a recipe.
const FIELDS: [&str; 5] = ["scheme", "weights", "ranges", "keep_float", "gate"];
/// Fields of the design that are still to come.
const FIELDS_TO_COME: [&str; 7] =
    ["activations", "equalize", "smooth", "bias_correction", "rounding", "search", "target"];
/// Values of the design that are still to come, by field.
const VALUES_TO_COME: [(&str, &[&str]); 2] = [
    ("scheme", &["dynamic", "weight_only", "float16"]),
    ("ranges", &["mean_minmax", "percentile", "entropy"]),
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
            if FIELDS_TO_COME.contains(&field.as_str()) {
                return Err(Error::NotYet { field: field.clone(), value: value.to_string() });
            }
            refuse_values_to_come(field, value)?;
            match field.as_str() {
                "scheme" => recipe.scheme = read(field, value)?,
                "weights" => recipe.weights = read(field, value)?,
                "ranges" => recipe.ranges = read(field, value)?,
                "keep_float" => recipe.keep_float = read(field, value)?,
                "gate" => recipe.gate = read(field, value)?,
                _ => return Err(Error::Unknown { field: field.clone(), known: FIELDS.join(", ") }),
            }
        }
        let shares =
            [("gate.max_drop", recipe.gate.max_drop), ("gate.min_agreement", recipe.gate.min_agreement)];
        for (field, share) in shares {
            if let Some(share) = share
                && !(0.0..=1.0).contains(&share)
            {
                let reason = format!("{share} is not a share between 0 and 1 (half a point is 0.005)");
                return Err(Error::Field { field: field.to_owned(), reason });
            }
        }
        if recipe.weights.max_code == MaxCode::Auto && recipe.gate == Gate::default() {
            let reason = "\"auto\" turns max_code as far as the gate allows: give a gate".to_owned();
            return Err(Error::Field { field: "weights".to_owned(), reason });
        }
        Ok(recipe)
    }

    /// Whether a node stays in float by name.
    pub fn keeps_float(&self, node: &str) -> bool {
        self.keep_float.iter().any(|pattern| matches(pattern, node))
    }
}

fn read<T: DeserializeOwned>(field: &str, value: &Value) -> Result<T, Error> {
    T::deserialize(value).map_err(|e| Error::Field { field: field.to_owned(), reason: e.to_string() })
}

/// Values that are planned are refused by name, not as unknown ones.
fn refuse_values_to_come(field: &str, value: &Value) -> Result<(), Error> {
    let not_yet = |field: &str| Err(Error::NotYet { field: field.to_owned(), value: value.to_string() });
    let name = match value {
        Value::String(name) => name.as_str(),
        Value::Object(fields) => fields.keys().next().map_or("", String::as_str),
        _ => "",
    };
    let to_come =
        VALUES_TO_COME.iter().any(|(f, names)| *f == field && names.iter().any(|n| name.starts_with(n)));
    if to_come {
        return not_yet(field);
    }
    if field == "gate" && (value.get("metric").is_some() || value.get("max_drop_per_slice").is_some()) {
        return not_yet(field);
    }
    Ok(())
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
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_means_the_defaults() {
        for json in [json!(null), json!({})] {
            assert_eq!(Recipe::parse(&json), Ok(Recipe::default()));
        }
        let full = serde_json::to_value(Recipe::default()).unwrap();
        assert_eq!(Recipe::parse(&full), Ok(Recipe::default()), "a recipe with every default reads back");
        assert_eq!(full["weights"], json!({"per_channel": true, "max_code": 127}));
    }

    #[test]
    fn what_is_asked_is_kept() {
        let json = json!({"weights": {"per_channel": false, "max_code": "auto"}, "ranges": "minmax", "keep_float": ["/head/*"],
            "gate": {"max_drop": 0.01, "min_agreement": 0.98}});
        let recipe = Recipe::parse(&json).unwrap();
        assert_eq!(recipe.weights, WeightRecipe { per_channel: false, max_code: MaxCode::Auto });
        assert!(recipe.ranges == Ranges::Minmax);
        assert!(recipe.keeps_float("/head/MatMul") && !recipe.keeps_float("/body/MatMul"));
        assert_eq!(recipe.gate, Gate { max_drop: Some(0.01), min_agreement: Some(0.98) });
    }

    #[test]
    fn a_wrong_recipe_is_refused_with_its_field() {
        for (json, says) in [
            (json!([]), "expected an object"),
            (json!({"wieghts": {}}), "unknown field `wieghts`"),
            (json!({"weights": {"per_chanel": true}}), "`weights`: unknown field `per_chanel`"),
            (json!({"weights": {"per_channel": 1}}), "`weights`: invalid type"),
            (json!({"weights": {"max_code": 63}}), "max_code is 63, not \"auto\" or a number from 64 to 127"),
            (json!({"weights": {"max_code": "best"}}), "max_code is \"best\""),
            (json!({"weights": {"max_code": "auto"}}), "give a gate"),
            (json!({"scheme": "dynamic"}), "`scheme`: \"dynamic\" is not supported yet"),
            (json!({"scheme": "magic"}), "`scheme`: unknown variant `magic`"),
            (json!({"ranges": "entropy"}), "not supported yet"),
            (json!({"ranges": {"percentile": 99.9}}), "not supported yet"),
            (json!({"ranges": "best"}), "unknown variant"),
            (json!({"smooth": {"alpha": 0.5}}), "`smooth`: {\"alpha\":0.5} is not supported yet"),
            (json!({"keep_float": "a"}), "`keep_float`: invalid type"),
            (json!({"gate": {"max_drop": 1.5}}), "`gate.max_drop`: 1.5"),
            (json!({"gate": {"max_drop_per_slice": 0.1}}), "not supported yet"),
        ] {
            let error = Recipe::parse(&json).unwrap_err().to_string();
            assert!(error.contains(says), "{json}: {error}");
        }
    }

    #[test]
    fn a_star_stands_for_any_letters() {
        for (pattern, name, want) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("*", "", true),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1c", false),
            ("ab*ba", "aba", false),
            ("/l/*/Conv", "/l/0/Conv", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }
}
