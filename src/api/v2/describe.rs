//! What the server and a model look like to a client: extensions, inputs and outputs, configuration, figures.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Context;
use crate::api::error::Problem;
use crate::api::wire::datatype_name;
use crate::engine::tensor::DType;
use crate::service::infer::Port;
use crate::service::infer::registry::State as Loaded;
use crate::service::infer::served::Served;

/// The server's name in the protocol.
pub(crate) const NAME: &str = "octet";
/// Its version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Which extensions of the protocol the server speaks, in the spelling of Triton, which clients compare with.
pub(crate) fn extensions(shared: &Context) -> Vec<&'static str> {
    let mut all = vec![
        "classification",
        "model_repository",
        "model_configuration",
        "binary_tensor_data",
        "parameters",
        "statistics",
    ];
    if shared.shared_memory.is_some() {
        all.push("system_shared_memory");
    }
    if shared.logs.is_some() {
        all.push("logging");
    }
    all
}

/// An endpoint, as the protocol shows it.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelMetadata {
    /// The endpoint.
    pub(crate) name: String,
    /// All its versions.
    pub(crate) versions: Vec<String>,
    /// `onnx_onnxv1`.
    pub(crate) platform: &'static str,
    /// What a caller hands in.
    pub(crate) inputs: Vec<PortView>,
    /// What a caller gets back.
    pub(crate) outputs: Vec<PortView>,
}

/// An input or output.
#[derive(Serialize, ToSchema)]
pub(crate) struct PortView {
    /// Name in the model.
    pub(crate) name: String,
    /// `FP32`, `INT64`, `BOOL` ….
    pub(crate) datatype: &'static str,
    /// With the batch dimension; −1 is free.
    pub(crate) shape: Vec<i64>,
}

/// Inputs and outputs of a version of an endpoint; the default version where none is named.
///
/// # Errors
/// As [`Registry::find`](crate::service::infer::registry::Registry::find).
pub(crate) fn metadata(
    shared: &Context,
    name: &str,
    version: Option<&str>,
) -> Result<ModelMetadata, Problem> {
    let (entry, _) = shared.registry.entry(name, version)?;
    let served = shared.registry.find(name, version)?;
    let view = |port: &Port| PortView {
        name: port.name.clone(),
        datatype: datatype_name(port.dtype),
        shape: dims(&port.shape),
    };
    Ok(ModelMetadata {
        name: served.name.to_string(),
        versions: entry.versions.keys().map(u32::to_string).collect(),
        platform: "onnx_onnxv1",
        inputs: served.inputs.iter().map(view).collect(),
        outputs: served.outputs.iter().map(view).collect(),
    })
}

/// A shape as the protocol spells it: −1 is free.
pub(super) fn dims(shape: &[Option<usize>]) -> Vec<i64> {
    shape.iter().map(|d| d.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX))).collect()
}

/// The configuration of a version of an endpoint, in Triton's words.
pub(crate) struct Configuration {
    /// The endpoint.
    pub(crate) name: String,
    /// What kind of file it is.
    pub(crate) platform: &'static str,
    /// What runs it.
    pub(crate) backend: &'static str,
    /// Samples that run together at most; 0 where the first dimension is not the sample.
    pub(crate) max_batch_size: usize,
    /// What a caller hands in.
    pub(crate) inputs: Vec<ConfiguredPort>,
    /// What a caller gets back.
    pub(crate) outputs: Vec<ConfiguredPort>,
    /// `int8`, `fp16` or `fp32`.
    pub(crate) precision: &'static str,
    /// Microseconds that a sample waits for others; `None` where requests are not run together.
    pub(crate) batch_delay_us: Option<u64>,
}

/// An input or output in a configuration.
pub(crate) struct ConfiguredPort {
    /// Name in the model.
    pub(crate) name: String,
    /// What one element is.
    pub(crate) dtype: DType,
    /// Without the first dimension where that is the sample: so clients understand the field. −1 is free.
    pub(crate) dims: Vec<i64>,
}

/// The configuration of a version of an endpoint; the default version where none is named.
///
/// # Errors
/// As [`Registry::find`](crate::service::infer::registry::Registry::find).
pub(crate) fn configuration(
    shared: &Context,
    name: &str,
    version: Option<&str>,
) -> Result<Configuration, Problem> {
    let served = shared.registry.find(name, version)?;
    let limits = served.limits();
    let skip = usize::from(served.has_samples);
    let port = |port: &Port| ConfiguredPort {
        name: port.name.clone(),
        dtype: port.dtype,
        dims: dims(&port.shape[skip..]),
    };
    let delay = || u64::try_from(limits.batch_delay.as_micros()).unwrap_or(u64::MAX);
    Ok(Configuration {
        name: served.name.to_string(),
        platform: "onnxruntime_onnx",
        backend: "octet",
        max_batch_size: if served.has_samples { limits.batch_samples_max } else { 0 },
        inputs: served.inputs.iter().map(port).collect(),
        outputs: served.outputs.iter().map(port).collect(),
        precision: served.source.precision().as_str(),
        batch_delay_us: served.batching.then(delay),
    })
}

/// The loaded versions whose figures are asked for: of all endpoints, of one, or one version of one.
///
/// # Errors
/// As [`Registry::entry`](crate::service::infer::registry::Registry::entry).
pub(crate) fn loaded(
    shared: &Context,
    name: Option<&str>,
    version: Option<&str>,
) -> Result<Vec<Arc<Served>>, Problem> {
    let ready = |state: &Loaded| match state {
        Loaded::Ready(served) => Some(Arc::clone(served)),
        Loaded::Loading | Loaded::Failed(..) | Loaded::Unloaded | Loaded::Evicted => None,
    };
    let Some(name) = name else {
        let all = shared.registry.all();
        return Ok(all.iter().flat_map(|entry| entry.versions.values().filter_map(ready)).collect());
    };
    let (entry, number) = shared.registry.entry(name, version)?;
    let wanted = entry.versions.iter().filter(|(n, _)| version.is_none() || **n == number);
    Ok(wanted.filter_map(|(_, state)| ready(state)).collect())
}
