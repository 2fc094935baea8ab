//! Lint: what other runtimes make of an INT8 file, sent or kept.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::error::Problem;
use crate::api::http::fields::Query;
use crate::api::http::{ProblemBody, Shared, broken_body, check_length, linger, read_json, uploads};
use crate::engine::pipeline;
use crate::engine::pipeline::lint::Targets;
use crate::service::store::{ArtifactId, Digest, Wanted};

/// Whose rules.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct LintQuery {
    /// `octet`, `onnxruntime`, `openvino`, `tensorrt` or `tflite_rules`; all of them without it.
    target: Option<String>,
}

/// A file that is kept here: one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LintOf {
    /// `art_…`.
    artifact: Option<String>,
    /// `NAME` is the newest version, `NAME@2` that one.
    model: Option<String>,
}

/// What each target makes of a file.
#[derive(Serialize, ToSchema)]
pub(crate) struct LintView {
    /// The file.
    model: LintedModel,
    /// One for each target.
    reports: Vec<LintReport>,
}

/// The file.
#[derive(Serialize, ToSchema)]
pub(crate) struct LintedModel {
    /// The name of the graph.
    name: String,
    /// The opset of ONNX that it speaks.
    opset: i64,
    /// Whether it holds QuantizeLinear, DequantizeLinear or integer operators.
    quantized: bool,
}

/// What one target makes of the file.
#[derive(Serialize, ToSchema)]
pub(crate) struct LintReport {
    /// The target.
    target: String,
    /// How often each of its integer operators stands in what it runs.
    fused: std::collections::BTreeMap<String, u64>,
    /// Nodes on reals, by operator.
    float: std::collections::BTreeMap<String, u64>,
    /// Nodes that it refuses, by operator.
    refused: std::collections::BTreeMap<String, u64>,
    /// About the file as a whole, the worst first.
    notes: Vec<LintNote>,
    /// About each node that computes, in execution order.
    findings: Vec<LintFinding>,
}

/// What is to say of the file as a whole.
#[derive(Serialize, ToSchema)]
pub(crate) struct LintNote {
    /// `error`, `warning` or `note`.
    severity: String,
    /// The rule, for programs.
    rule: String,
    /// What is the case.
    reason: String,
    /// What would change it; may be empty.
    remedy: String,
}

/// What becomes of one node.
#[derive(Serialize, ToSchema)]
pub(crate) struct LintFinding {
    /// Its name.
    node: String,
    /// Its operator.
    op: String,
    /// `fuses`, `stays_float` or `refused`.
    verdict: String,
    /// The target's operator in its place; `null` where it stays, or a neighbour takes it over.
    becomes: Option<String>,
    /// The rule that decided, for programs.
    rule: String,
    /// Why; may be empty where it fuses.
    reason: String,
    /// What would change it; may be empty.
    remedy: String,
}

/// Tells what runtimes make of an INT8 file.
///
/// The body is the ONNX file, as for an upload of a model (it is not kept), or JSON that names what is kept:
/// `{"artifact": "art_…"}` or `{"model": "NAME@2"}`. For each target: which nodes become integer operators, which
/// stay in float or are refused, why, and what would change it.
#[utoipa::path(post, path = "/v1/lint", operation_id = "lint", tag = "models", params(LintQuery),
    request_body(content((Vec<u8> = "application/octet-stream"), (LintOf = "application/json", example = json!({"model": "resnet8"})))),
    responses(
        (status = 200, description = "What was found", body = LintView),
        (status = 400, description = "Unknown target, or both or neither of `artifact` and `model`", body = ProblemBody),
        (status = 404, description = "No such artifact or model", body = ProblemBody),
        (status = 413, description = "Longer than `limits.model_bytes`", body = ProblemBody),
        (status = 422, description = "Not a model that can be read", body = ProblemBody)))]
pub(crate) async fn post(
    State(shared): State<Shared>,
    Query(query): Query<LintQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<serde_json::Value>, Problem> {
    let targets = Targets::named(query.target.as_deref()).map_err(Problem::bad_request)?;
    if let Err(problem) = check_length(&headers, shared.limits.model_bytes) {
        linger(&headers, body);
        return Err(problem);
    }
    let mut parts = body.into_data_stream();
    let first: Bytes = match parts.next().await {
        Some(part) => part.map_err(|error| broken_body(&error))?,
        None => Bytes::new(),
    };
    // No ONNX file begins with a brace: it would be a group, which protobuf has given up.
    let is_json = first.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    let mut whole = stream::iter([Ok(first)]).chain(parts);
    if is_json {
        let of: LintOf = read_json(&shared, &headers, Body::from_stream(whole)).await?;
        let digest = kept(&shared, of).await?;
        let pin = shared.blobs.pin(digest).await?;
        let path = pin.path().to_owned();
        let found = uploads::blocking(move || pipeline::lint::lint(&path, &targets)).await?;
        drop(pin);
        return Ok(Json(found));
    }
    let kind = uploads::Kind {
        limit_bytes: shared.limits.model_bytes,
        unpack: Some(pipeline::files::unpacked),
        inspect: Box::new(move |path| pipeline::lint::lint(path, &targets)),
    };
    let found = uploads::look_into(&shared, &mut whole, kind).await;
    if found.is_err() {
        linger(&headers, Body::from_stream(whole));
    }
    Ok(Json(found?))
}

/// The file that is named.
async fn kept(shared: &Shared, of: LintOf) -> Result<Digest, Problem> {
    match of {
        LintOf { artifact: Some(id), model: None } => {
            let id: ArtifactId = id.parse()?;
            Ok(shared.catalog.artifact(id).await?.sha256)
        }
        LintOf { artifact: None, model: Some(name) } => {
            let wanted: Wanted = name.parse()?;
            Ok(shared.catalog.model(&wanted).await?.sha256)
        }
        _ => Err(Problem::bad_request("send the file, or one of `artifact` and `model` as JSON")),
    }
}
