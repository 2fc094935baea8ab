//! The model repository extension: index, load, unload.

use bytes::Bytes;
use futures::Stream;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::Context;
use crate::api::access::By;
use crate::api::error::Problem;
use crate::api::http::{models, parse_json, uploads};
use crate::api::v2::describe;
use crate::api::wire::datatype;
use crate::service::infer::Port;
use crate::service::infer::registry::State as Loaded;
use crate::service::store::{EndpointChange, Expect, Name};

/// One version of one endpoint.
#[derive(Serialize, ToSchema)]
pub(crate) struct IndexEntry {
    /// The endpoint.
    pub(crate) name: String,
    /// The version, as text.
    pub(crate) version: String,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    pub(crate) state: &'static str,
    /// Why it does not answer; empty where it does.
    pub(crate) reason: String,
}

/// All versions of all endpoints, or only those that answer requests.
pub(crate) fn index(shared: &Context, ready_only: bool) -> Vec<IndexEntry> {
    let mut entries = Vec::new();
    for entry in shared.registry.all() {
        for (version, state) in &entry.versions {
            if ready_only && !matches!(state, Loaded::Ready(_)) {
                continue;
            }
            entries.push(IndexEntry {
                name: entry.endpoint.name.to_string(),
                version: version.to_string(),
                state: state.name(),
                reason: state.reason(),
            });
        }
    }
    entries
}

/// Loads an endpoint that was unloaded, or tries one again that could not be loaded. With a file it stores that as a
/// model first, under the same name, and serves it in float.
///
/// # Errors
/// 404 where there is no such endpoint, 503 where it cannot be loaded, 400 and 422 for a configuration or a file that
/// is none.
pub(crate) async fn load<E: std::error::Error>(
    shared: &Context,
    name: &str,
    config: Option<&str>,
    file: Option<(&str, impl Stream<Item = Result<Bytes, E>> + Unpin)>,
    by: &By,
) -> Result<(), Problem> {
    let config = match config {
        None => None,
        Some(text) => Some(read_config(name, text, shared.limits.json_depth)?),
    };
    if let Some((path, stream)) = file {
        check_path(path)?;
        let Some(config) = &config else {
            return Err(Problem::bad_request(format!("`{path}` needs a `config` beside it, if only `{{}}`")));
        };
        let name: Name = name.parse()?;
        let received = uploads::receive_stream(shared, stream, None, models::kind(shared)).await;
        let (pin, info) = received?;
        check_ports(config, &Ports::of_info(&info))?;
        let model = models::create(shared, name.clone(), &pin, info, by.owner()).await?.record.pinned();
        let now = shared.registry.entry(name.as_str(), None).ok().map(|(entry, _)| entry);
        let same = now.is_some_and(|entry| {
            let default = entry.endpoint.default_version;
            let served = entry.endpoint.versions.iter().find(|v| v.version == default);
            served.is_some_and(|served| served.artifact.is_none() && served.model == model)
        });
        // The same file again makes no version: clients load at each start.
        if !same {
            let change =
                EndpointChange { add: Some((None, model)), by: by.text(), ..EndpointChange::default() };
            let endpoint = shared.catalog.change_endpoint(&name, change, Expect::Any).await?;
            tracing::info!(endpoint = %name, revision = endpoint.revision, "Endpoint {name} has changed");
        }
    }
    shared.registry.reload(name).await?;
    let served = shared.registry.find(name, None)?;
    config.map_or(Ok(()), |config| check_ports(&config, &Ports::of(&served.inputs, &served.outputs)))
}

/// `file:VERSION/NAME.onnx`. The version is read and not kept: versions of an endpoint are counted here.
fn check_path(path: &str) -> Result<(), Problem> {
    let parts = path.strip_prefix("file:").and_then(|path| path.split_once('/'));
    let fits = |(version, file): (&str, &str)| version.parse::<u32>().is_ok() && file.ends_with(".onnx");
    if parts.is_some_and(fits) {
        return Ok(());
    }
    Err(Problem::bad_request(format!("`{path}`: the one file of a model is `file:VERSION/NAME.onnx`")))
}

/// What a configuration may say: it is held against the model, or of no consequence here.
const CONFIG_KEYS: [&str; 17] = [
    "name",
    "platform",
    "backend",
    "runtime",
    "max_batch_size",
    "input",
    "output",
    "version_policy",
    "dynamic_batching",
    "instance_group",
    "default_model_filename",
    "parameters",
    "optimization",
    "model_warmup",
    "response_cache",
    "metric_tags",
    "model_transaction_policy",
];

/// Ways to run a model that there are not here; each is asked for by being there.
const SCHEDULERS: [&str; 2] = ["sequence_batching", "ensemble_scheduling"];

/// Whether a value says nothing: what Triton tells of a model has every key, and clients hand that back.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(says_nothing),
    }
}

/// Reads a configuration.
fn read_config(name: &str, text: &str, depth_max: usize) -> Result<Map<String, Value>, Problem> {
    let config: Map<String, Value> = parse_json(text.as_bytes(), depth_max)
        .map_err(|problem| Problem { detail: format!("`config`: {}", problem.detail), ..problem })?;
    let unknown = |(key, value): &(&String, &Value)| {
        let empty = says_nothing(value) && !SCHEDULERS.contains(&key.as_str());
        !CONFIG_KEYS.contains(&key.as_str()) && !empty
    };
    if let Some((key, _)) = config.iter().find(unknown) {
        return Err(Problem::bad_request(format!("`config`: `{key}` is not part of this server")));
    }
    if config.get("model_transaction_policy").is_some_and(|policy| !says_nothing(policy)) {
        let text = "`config`: `model_transaction_policy`: a request has one answer here";
        return Err(Problem::bad_request(text));
    }
    let one_of = |key: &str, known: &[&str]| match config.get(key).and_then(Value::as_str) {
        Some(text) if !text.is_empty() && !known.contains(&text) => {
            Err(Problem::bad_request(format!("`config`: `{key}` is `{text}`, it must be one of {known:?}")))
        }
        _ => Ok(()),
    };
    one_of("name", &[name])?;
    one_of("platform", &["onnxruntime_onnx", "onnx_onnxv1"])?;
    one_of("backend", &["onnxruntime", "octet"])?;
    Ok(config)
}

/// The inputs and outputs of a model, as far as a configuration can speak of them.
struct Ports {
    inputs: Vec<Known>,
    outputs: Vec<Known>,
}

/// An input or output.
struct Known {
    name: String,
    dtype: String,
    /// Empty also where nobody knows.
    shape: Vec<Option<usize>>,
}

impl Ports {
    fn of(inputs: &[Port], outputs: &[Port]) -> Ports {
        let known = |port: &Port| Known {
            name: port.name.clone(),
            dtype: port.dtype.name().to_owned(),
            shape: port.shape.clone(),
        };
        Ports { inputs: inputs.iter().map(known).collect(), outputs: outputs.iter().map(known).collect() }
    }

    fn of_info(info: &Value) -> Ports {
        let text = |port: &Value, key: &str| port[key].as_str().unwrap_or_default().to_owned();
        let length = |dim: &Value| dim.as_u64().and_then(|n| usize::try_from(n).ok());
        let known = |port: &Value| Known {
            name: text(port, "name"),
            dtype: text(port, "dtype"),
            shape: port["shape"].as_array().into_iter().flatten().map(length).collect(),
        };
        let all = |key: &str| info[key].as_array().into_iter().flatten().map(known).collect();
        Ports { inputs: all("inputs"), outputs: all("outputs") }
    }
}

impl Known {
    /// Whether `dims` of a configuration may be the shape: whole, or without the dimension of the samples.
    fn takes(&self, dims: &[Value]) -> bool {
        let length = |dim: &Value| dim.as_i64().or_else(|| dim.as_str()?.parse().ok());
        let dims: Option<Vec<i64>> = dims.iter().map(length).collect();
        let fits = |shape: &[Option<usize>], dims: &[i64]| {
            let same = |(dim, n): (&i64, &Option<usize>)| {
                *dim == -1 || n.is_none_or(|n| i64::try_from(n).is_ok_and(|n| n == *dim))
            };
            dims.len() == shape.len() && dims.iter().zip(shape).all(same)
        };
        let Some((_, sample)) = self.shape.split_first() else { return dims.is_some() };
        dims.is_some_and(|dims| fits(&self.shape, &dims) || fits(sample, &dims))
    }
}

/// Whether the tensors that a configuration names are those of the model.
fn check_ports(config: &Map<String, Value>, model: &Ports) -> Result<(), Problem> {
    for (key, ports) in [("input", &model.inputs), ("output", &model.outputs)] {
        for wanted in config.get(key).and_then(Value::as_array).into_iter().flatten() {
            let name = wanted["name"].as_str().unwrap_or_default();
            let Some(port) = ports.iter().find(|port| port.name == name) else {
                let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
                return Err(Problem::bad_request(format!(
                    "`config`: the model has no {key} `{name}`, only {names:?}"
                )));
            };
            if let Some(kind) = wanted["data_type"].as_str()
                && kind.strip_prefix("TYPE_").and_then(datatype).is_none_or(|kind| kind.name() != port.dtype)
            {
                let dtype = &port.dtype;
                return Err(Problem::bad_request(format!("`config`: {key} `{name}` is {dtype}, not {kind}")));
            }
            if let Some(dims) = wanted["dims"].as_array()
                && !port.takes(dims)
            {
                let (known, dims) = (describe::dims(&port.shape), Value::from(dims.clone()));
                let text =
                    format!("`config`: {key} `{name}` has shape {known:?}, which `dims` {dims} does not fit");
                return Err(Problem::bad_request(text));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_version_and_an_onnx_file() {
        for (path, fits) in [
            ("file:1/model.onnx", true),
            ("file:23/net.onnx", true),
            ("file:1/model.plan", false),
            ("file:model.onnx", false),
            ("file:one/model.onnx", false),
            ("1/model.onnx", false),
        ] {
            assert_eq!(check_path(path).is_ok(), fits, "{path}");
        }
    }

    #[test]
    fn a_configuration_is_held_against_the_model() {
        let ports = |name: &str| {
            let shape = vec![None, Some(4)];
            vec![Known { name: name.to_owned(), dtype: "float32".to_owned(), shape }]
        };
        let model = Ports { inputs: ports("x"), outputs: ports("y") };
        let check = |text: &str| {
            let config = read_config("m", text, 32).map_err(|problem| problem.detail)?;
            check_ports(&config, &model).map_err(|problem| problem.detail)
        };
        for text in [
            "{}",
            r#"{"name": "m", "backend": "onnxruntime", "max_batch_size": 8, "input": [{"name": "x",
                "data_type": "TYPE_FP32", "dims": [4]}], "output": [{"name": "y"}]}"#,
            r#"{"input": [{"name": "x", "dims": [-1, "4"]}], "output": [{"name": "y", "dims": [8, 4]}]}"#,
            r#"{"optimization": {"priority": "PRIORITY_DEFAULT"}, "batch_input": [], "cc_model_filenames": {},
                "model_transaction_policy": {"decoupled": false}, "model_warmup": [{"name": "w"}]}"#,
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        for (text, want) in [
            ("[]", "`config`: "),
            (r#"{"name": "n"}"#, "`name` is `n`"),
            (r#"{"platform": "tensorrt_plan"}"#, "`platform` is `tensorrt_plan`"),
            (r#"{"sequence_batching": {}}"#, "`sequence_batching` is not part"),
            (r#"{"batch_input": [{"kind": "BATCH_ELEMENT_COUNT"}]}"#, "`batch_input` is not part"),
            (r#"{"model_transaction_policy": {"decoupled": true}}"#, "one answer"),
            (r#"{"input": [{"name": "z"}]}"#, "no input `z`, only [\"x\"]"),
            (
                r#"{"output": [{"name": "y", "data_type": "TYPE_INT64"}]}"#,
                "output `y` is float32, not TYPE_INT64",
            ),
            (r#"{"input": [{"name": "x", "dims": [5]}]}"#, "input `x` has shape [-1, 4], which `dims` [5]"),
            (r#"{"input": [{"name": "x", "dims": [1, 1, 4]}]}"#, "`dims` [1,1,4] does not fit"),
            (r#"{"output": [{"name": "y", "dims": ["n", 4]}]}"#, "`dims` [\"n\",4] does not fit"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
