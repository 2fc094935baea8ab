//! The Open Inference Protocol (KServe v2) over REST: infer, metadata, ready, config, statistics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::api::Context;
use crate::api::answered::Trail;
use crate::api::error::Problem;
use crate::api::http::{ErrorBody, Received, Shared, compress, receive};
use crate::api::until::Until;
use crate::api::v2::describe::{self, Configuration, ConfiguredPort, ModelMetadata};
use crate::api::v2::infer::{close, run};
use crate::api::wire::request::{decode, decode_in_place, framing};
use crate::api::wire::response::{Encoded, InferAnswer, encode};
use crate::api::wire::{self, Framing, InferRequest, datatype_name};
use crate::engine::tensor::Tensor;
use crate::service::infer::Port;
use crate::service::infer::served::{Served, Ticket};
use crate::service::infer::stats::{BatchTally, Figures, Spent, Tally};
use crate::service::metrics::Protocol;

const JSON_BYTES: HeaderName = HeaderName::from_static("inference-header-content-length");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// From this size on, bytes become tensors and back on a thread where they hold nobody up.
const ASIDE_BYTES: usize = 256 << 10;

/// An inference request. Unknown fields are ignored, as the protocol asks.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what the wire module reads to the OpenAPI document")]
pub(crate) struct InferBody {
    /// Given back as it came.
    id: Option<String>,
    /// `binary_data_output`: outputs come back raw; `precision`: `fp32` asks for the float twin of an INT8
    /// endpoint; `timeout`: microseconds that the request may wait in the queue.
    parameters: Option<Value>,
    /// The inputs of the model, in any order.
    inputs: Vec<TensorBody>,
    /// The outputs that are wanted; without it, all.
    outputs: Option<Vec<OutputBody>>,
}

/// A tensor.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what the wire module reads and writes to the OpenAPI document")]
pub(crate) struct TensorBody {
    /// Name in the model.
    name: String,
    /// With the batch dimension.
    shape: Vec<i64>,
    /// `FP32`, `INT64`, `BOOL` ….
    datatype: String,
    /// `binary_data_size`: so many raw bytes follow the JSON instead of `data`. `shared_memory_region`,
    /// `shared_memory_offset` and `shared_memory_byte_size`: they lie there.
    parameters: Option<Value>,
    /// Row-major, flat or nested. `NaN` and `Infinity` are read; what is not finite is written as `null`.
    data: Option<Vec<f64>>,
}

/// An output that is wanted.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what the wire module reads to the OpenAPI document")]
pub(crate) struct OutputBody {
    /// Name in the model.
    name: String,
    /// `binary_data`: it comes back raw; `classification`: the `k` largest as `value:index`. With
    /// `shared_memory_region`, `shared_memory_offset` and `shared_memory_byte_size` it is written there.
    parameters: Option<Value>,
}

/// An answer.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what the wire module writes to the OpenAPI document")]
pub(crate) struct InferResponse {
    /// The endpoint.
    model_name: String,
    /// Its version, as text.
    model_version: String,
    /// As it came.
    id: Option<String>,
    /// In the order that was asked for, else that of the model.
    outputs: Vec<TensorBody>,
}

/// Runs the default version of an endpoint.
///
/// The body is JSON; or JSON and raw tensors behind it, with `Inference-Header-Content-Length: BYTES_OF_JSON`; or
/// one raw tensor, with `Inference-Header-Content-Length: 0`. `Server-Timing` says where the time went.
#[utoipa::path(post, path = "/v2/models/{name}/infer", operation_id = "model_infer", tag = "inference",
    params(("name" = String, Path),
        ("Inference-Header-Content-Length" = Option<u64>, Header, description = "Bytes of the JSON part")),
    request_body(content((InferBody = "application/json",
        example = json!({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.5, -1.25, 0.0, 3.0]}]})), (Vec<u8> = "application/octet-stream"))),
    responses((status = 200, description = "The outputs", body = InferResponse),
        (status = 400, description = "The tensors do not fit", body = ErrorBody),
        (status = 404, description = "No such endpoint or version", body = ErrorBody),
        (status = 413, description = "Longer than `limits.infer_body_bytes`", body = ErrorBody),
        (status = 429, description = "Too many requests wait", body = ErrorBody),
        (status = 503, description = "Not loaded", body = ErrorBody)))]
pub(crate) async fn infer(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    answer(&shared, &name, None, request).await
}

/// Runs a version of an endpoint.
#[utoipa::path(post, path = "/v2/models/{name}/versions/{version}/infer", operation_id = "model_version_infer", tag = "inference",
    params(("name" = String, Path), ("version" = String, Path)),
    request_body(content = InferBody,
        example = json!({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.5, -1.25, 0.0, 3.0]}]})),
    responses((status = 200, description = "The outputs", body = InferResponse),
        (status = 404, description = "No such endpoint or version", body = ErrorBody)))]
pub(crate) async fn infer_version(
    State(shared): State<Shared>,
    Path((name, version)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    answer(&shared, &name, Some(&version), request).await
}

/// Runs a version of an endpoint, without one the default.
///
/// # Errors
/// That there is no such version, that it does not answer now, or what is wrong with the request.
pub(crate) async fn answer(
    shared: &Context,
    name: &str,
    version: Option<&str>,
    request: Request,
) -> Result<Response, Problem> {
    let mut ticket = shared.registry.admit(name, version, Protocol::Http).await?;
    let (head, body) = request.into_parts();
    ticket.set_until(head.extensions.get::<Until>().map(|until| until.0));
    let trail = head.extensions.get::<Trail>();
    let result = answer_ticket(shared, &mut ticket, trail, &head.headers, body).await;
    close(shared, ticket, result)
}

async fn answer_ticket(
    shared: &Context,
    ticket: &mut Ticket,
    trail: Option<&Trail>,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Response, Spent), Problem> {
    let framing = request_framing(headers)?;
    let head = if let Framing::Binary(head) = framing { head } else { 0 };
    let coding = compress::of_body(headers)?;
    let limit = shared.limits.infer_body_bytes;
    let mut body = receive(headers, body, limit, head).await?;
    if let Some(coding) = coding {
        // The header counts plain bytes.
        let plain = aside(move || compress::decompress(coding, body.bytes(), head, limit));
        body = Received::Joined(plain.await??);
    }
    let start = Instant::now();
    let served = Arc::clone(ticket.served());
    let mut request = decode_aside(framing, body, &served).await?;
    let mut ran = run(shared, ticket, &mut request, start, None).await?;
    let mut encoded = encode_aside(request, std::mem::take(&mut ran.outputs), &served).await?;
    let size = encoded.body.len() as u64;
    let wanted = shared.compress_bytes > 0 && size >= shared.compress_bytes;
    let coding = if wanted { compress::wanted(headers) } else { None };
    if let Some(coding) = coding {
        let plain = std::mem::take(&mut encoded.body);
        encoded.body = aside(move || compress::compress(coding, &plain)).await?.map_err(Problem::internal)?;
    }
    let spent = ran.spent(ticket, trail);
    let mut response = respond(encoded, &spent);
    if let Some(coding) = coding {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    Ok((response, spent))
}

fn request_framing(headers: &HeaderMap) -> Result<Framing, Problem> {
    let mut values = headers.get_all(&JSON_BYTES).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Problem::bad_request("Inference-Header-Content-Length is given twice"));
    }
    let text = first.map(|v| v.to_str().unwrap_or("bytes that are not text"));
    Ok(framing(text)?)
}

async fn decode_aside(
    framing: Framing,
    body: Received,
    served: &Arc<Served>,
) -> Result<InferRequest, Problem> {
    // Raw tensors are copied at most, which is quick; text must be read number by number.
    let text = match framing {
        Framing::Json => body.bytes().len(),
        Framing::Binary(json_bytes) => json_bytes,
        Framing::Raw => 0,
    };
    let large = text > ASIDE_BYTES;
    let served = Arc::clone(served);
    let work = move || {
        let ports: Vec<_> = served.inputs.iter().map(wire_port).collect();
        match body {
            Received::Whole(bytes) => decode(framing, &bytes, &ports),
            Received::Joined(incoming) => decode_in_place(framing, incoming, &ports),
        }
    };
    Ok(if large { aside(work).await? } else { work() }?)
}

async fn encode_aside(
    request: InferRequest,
    outputs: Vec<Tensor>,
    served: &Arc<Served>,
) -> Result<Encoded, Problem> {
    let size: usize = outputs.iter().map(|o| o.view().bytes.len()).sum();
    let served = Arc::clone(served);
    let work = move || {
        let version = served.source.version.to_string();
        let outputs = served.outputs.iter().map(|p| p.name.as_str()).zip(&outputs).collect();
        let answer = InferAnswer { model_name: served.name.as_str(), model_version: &version, outputs };
        encode(&request, &answer)
    };
    Ok(if size > ASIDE_BYTES { aside(work).await? } else { work() }?)
}

/// Runs something on a thread that may take its time.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(Problem::internal)
}

fn wire_port(port: &Port) -> wire::Port<'_> {
    wire::Port { name: &port.name, dtype: port.dtype, shape: &port.shape }
}

fn respond(encoded: Encoded, spent: &Spent) -> Response {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let timing = format!(
        "decode;dur={:.3}, queue;dur={:.3}, compute;dur={:.3}, encode;dur={:.3}",
        ms(spent.input()),
        ms(spent.run.queue),
        ms(spent.run.compute),
        ms(spent.output())
    );
    let kind = match encoded.json_bytes {
        None => "application/json",
        Some(_) => "application/octet-stream",
    };
    let mut response = ([(header::CONTENT_TYPE, kind)], encoded.body).into_response();
    if let Some(bytes) = encoded.json_bytes {
        response.headers_mut().insert(JSON_BYTES, HeaderValue::from(bytes));
    }
    if let Ok(timing) = HeaderValue::try_from(timing) {
        response.headers_mut().insert(SERVER_TIMING, timing);
    }
    response
}

/// Inputs and outputs of the default version of an endpoint.
#[utoipa::path(get, path = "/v2/models/{name}", operation_id = "model_metadata", tag = "inference", params(("name" = String, Path)),
    responses((status = 200, description = "The endpoint", body = ModelMetadata),
        (status = 404, description = "No such endpoint", body = ErrorBody)))]
pub(crate) async fn metadata(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<ModelMetadata>, Problem> {
    Ok(Json(describe::metadata(&shared, &name, None)?))
}

/// Inputs and outputs of a version of an endpoint.
#[utoipa::path(get, path = "/v2/models/{name}/versions/{version}", operation_id = "model_version_metadata", tag = "inference",
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, description = "The endpoint", body = ModelMetadata),
        (status = 404, description = "No such endpoint or version", body = ErrorBody)))]
pub(crate) async fn metadata_version(
    State(shared): State<Shared>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<ModelMetadata>, Problem> {
    Ok(Json(describe::metadata(&shared, &name, Some(&version))?))
}

/// Whether a version answers.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelReady {
    name: String,
    ready: bool,
}

/// The default version of an endpoint answers.
#[utoipa::path(get, path = "/v2/models/{name}/ready", operation_id = "model_ready", tag = "inference", params(("name" = String, Path)),
    responses((status = 200, description = "It does", body = ModelReady),
        (status = 404, description = "No such endpoint", body = ErrorBody),
        (status = 503, description = "It does not", body = ErrorBody)))]
pub(crate) async fn ready(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<ModelReady>, Problem> {
    shared.registry.find(&name, None)?;
    Ok(Json(ModelReady { name, ready: true }))
}

/// A version of an endpoint answers.
#[utoipa::path(get, path = "/v2/models/{name}/versions/{version}/ready", operation_id = "model_version_ready", tag = "inference",
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, description = "It does", body = ModelReady),
        (status = 404, description = "No such endpoint or version", body = ErrorBody),
        (status = 503, description = "It does not", body = ErrorBody)))]
pub(crate) async fn ready_version(
    State(shared): State<Shared>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<ModelReady>, Problem> {
    shared.registry.find(&name, Some(&version))?;
    Ok(Json(ModelReady { name, ready: true }))
}

/// The configuration of an endpoint in Triton's words; clients take `max_batch_size` from it.
#[utoipa::path(get, path = "/v2/models/{name}/config", operation_id = "model_config", tag = "inference", params(("name" = String, Path)),
    responses((status = 200, description = "The configuration", body = Value),
        (status = 404, description = "No such endpoint", body = ErrorBody)))]
pub(crate) async fn config(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    Ok(Json(configuration(&describe::configuration(&shared, &name, None)?)))
}

/// The configuration of a version of an endpoint.
#[utoipa::path(get, path = "/v2/models/{name}/versions/{version}/config", operation_id = "model_version_config", tag = "inference",
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, description = "The configuration", body = Value),
        (status = 404, description = "No such endpoint or version", body = ErrorBody)))]
pub(crate) async fn config_version(
    State(shared): State<Shared>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    Ok(Json(configuration(&describe::configuration(&shared, &name, Some(&version))?)))
}

fn configuration(config: &Configuration) -> Value {
    let port = |port: &ConfiguredPort| {
        let kind = format!("TYPE_{}", datatype_name(port.dtype));
        json!({ "name": port.name, "data_type": kind, "dims": port.dims })
    };
    let mut value = json!({
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend,
        "max_batch_size": config.max_batch_size,
        "input": config.inputs.iter().map(port).collect::<Vec<_>>(),
        "output": config.outputs.iter().map(port).collect::<Vec<_>>(),
        "parameters": { "precision": { "string_value": config.precision } },
    });
    if let Some(delay_us) = config.batch_delay_us {
        value["dynamic_batching"] =
            json!({ "preferred_batch_size": [], "max_queue_delay_microseconds": delay_us });
    }
    value
}

/// What all endpoints have done since they were loaded.
#[utoipa::path(get, path = "/v2/models/stats", operation_id = "all_model_statistics", tag = "inference",
    responses((status = 200, description = "The figures", body = Value)))]
pub(crate) async fn stats_all(State(shared): State<Shared>) -> Result<Json<Value>, Problem> {
    Ok(statistics(&describe::loaded(&shared, None, None)?))
}

/// What an endpoint has done since it was loaded, all versions.
#[utoipa::path(get, path = "/v2/models/{name}/stats", operation_id = "model_statistics", tag = "inference", params(("name" = String, Path)),
    responses((status = 200, description = "The figures", body = Value),
        (status = 404, description = "No such endpoint", body = ErrorBody)))]
pub(crate) async fn stats(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    Ok(statistics(&describe::loaded(&shared, Some(&name), None)?))
}

/// What a version of an endpoint has done since it was loaded.
#[utoipa::path(get, path = "/v2/models/{name}/versions/{version}/stats", operation_id = "model_version_statistics", tag = "inference",
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, description = "The figures", body = Value),
        (status = 404, description = "No such endpoint or version", body = ErrorBody)))]
pub(crate) async fn stats_version(
    State(shared): State<Shared>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    Ok(statistics(&describe::loaded(&shared, Some(&name), Some(&version))?))
}

fn statistics(all: &[Arc<Served>]) -> Json<Value> {
    Json(json!({ "model_stats": all.iter().map(|served| figures(served)).collect::<Vec<_>>() }))
}

/// The figures of a version as Triton's statistics extension has them.
fn figures(served: &Served) -> Value {
    let figures: Figures = served.stats.figures();
    let tally = |t: Tally| json!({ "count": t.count, "ns": t.ns });
    let batch = |(size, b): (&usize, &BatchTally)| {
        json!({
            "batch_size": size,
            "compute_input": tally(b.input),
            "compute_infer": tally(b.compute),
            "compute_output": tally(b.output),
        })
    };
    json!({
        "name": served.name,
        "version": served.source.version.to_string(),
        "last_inference": figures.last_inference_ms,
        "inference_count": figures.inference_count,
        "execution_count": figures.execution_count,
        "inference_stats": {
            "success": tally(figures.success),
            "fail": tally(figures.fail),
            "queue": tally(figures.queue),
            "compute_input": tally(figures.input),
            "compute_infer": tally(figures.compute),
            "compute_output": tally(figures.output),
            "cache_hit": tally(Tally::default()),
            "cache_miss": tally(Tally::default()),
        },
        "response_stats": {},
        "batch_stats": figures.batches.iter().map(batch).collect::<Vec<_>>(),
        "memory_usage": [{ "type": "CPU", "id": 0, "byte_size": served.weight_bytes }],
    })
}
