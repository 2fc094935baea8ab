//! Triton's settings of the log and of traces over REST.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Map, Value, json};

use crate::api::error::Problem;
use crate::api::http::{ErrorBody, Shared, parse_json, read_body};
use crate::api::v2::settings::{self, LogSettings, Setting};

/// The settings of the log.
#[utoipa::path(get, path = "/v2/logging", operation_id = "get_log_settings", tag = "settings",
    responses((status = 200, description = "All settings", body = Value)))]
pub(crate) async fn log(State(shared): State<Shared>) -> Result<Json<Value>, Problem> {
    Ok(log_view(settings::log(&shared)?))
}

/// Changes settings of the log, until the server ends.
///
/// The log has one level: `log_verbose_level` 1 and 2 are `debug` and `trace` of this program; `log_info`,
/// `log_warning` and `log_error` switch off what is not worse. `log_file` and `log_format` are fixed.
#[utoipa::path(post, path = "/v2/logging", operation_id = "update_log_settings", tag = "settings",
    request_body(content = Value, example = json!({"log_verbose_level": 1})),
    responses((status = 200, description = "All settings", body = Value),
        (status = 400, description = "There is no such setting, or it is fixed", body = ErrorBody)))]
pub(crate) async fn update_log(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let mut changes = Vec::new();
    for (name, value) in changes_of(&shared, &headers, body).await? {
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        let setting = match value {
            Value::Bool(value) => Setting::Bool(value),
            Value::String(text) => Setting::Text(text),
            // Nothing to change.
            Value::Null => continue,
            Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                Setting::Number(number.ok_or_else(|| {
                    Problem::bad_request(format!("`{name}` must be a text, true, false or a small number"))
                })?)
            }
        };
        changes.push((name, setting));
    }
    Ok(log_view(settings::update_log(&shared, &changes)?))
}

fn log_view(settings: LogSettings) -> Json<Value> {
    let view = |setting| match setting {
        Setting::Bool(value) => json!(value),
        Setting::Number(value) => json!(value),
        Setting::Text(value) => json!(value),
    };
    let all: Map<String, Value> =
        settings.into_iter().map(|(name, setting)| (name.to_owned(), view(setting))).collect();
    Json(Value::Object(all))
}

/// The settings of traces: this server writes none, and they say so.
#[utoipa::path(get, path = "/v2/trace/setting", operation_id = "get_trace_settings", tag = "settings",
    responses((status = 200, description = "All settings", body = Value)))]
pub(crate) async fn trace(State(shared): State<Shared>) -> Result<Json<Value>, Problem> {
    Ok(trace_view(settings::trace(&shared, None)?))
}

/// Takes settings of traces that are so already; `null` clears one.
#[utoipa::path(post, path = "/v2/trace/setting", operation_id = "update_trace_settings", tag = "settings",
    request_body(content = Value, example = json!({"trace_level": null})),
    responses((status = 200, description = "All settings", body = Value),
        (status = 400, description = "There is no such setting, or it is fixed", body = ErrorBody)))]
pub(crate) async fn update_trace(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let changes = trace_changes(changes_of(&shared, &headers, body).await?)?;
    Ok(trace_view(settings::update_trace(&shared, None, &changes)?))
}

/// The settings of traces of an endpoint.
#[utoipa::path(get, path = "/v2/models/{name}/trace/setting", operation_id = "get_model_trace_settings", tag = "settings", params(("name" = String, Path)),
    responses((status = 200, description = "All settings", body = Value),
        (status = 404, description = "No such endpoint", body = ErrorBody)))]
pub(crate) async fn trace_model(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    Ok(trace_view(settings::trace(&shared, Some(&name))?))
}

/// Takes settings of traces of an endpoint that are so already; `null` clears one.
#[utoipa::path(post, path = "/v2/models/{name}/trace/setting", operation_id = "update_model_trace_settings", tag = "settings", params(("name" = String, Path)),
    request_body(content = Value, example = json!({"trace_level": null})),
    responses((status = 200, description = "All settings", body = Value),
        (status = 400, description = "There is no such setting, or it is fixed", body = ErrorBody),
        (status = 404, description = "No such endpoint", body = ErrorBody)))]
pub(crate) async fn update_trace_model(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let changes = trace_changes(changes_of(&shared, &headers, body).await?)?;
    Ok(trace_view(settings::update_trace(&shared, Some(&name), &changes)?))
}

fn trace_changes(changes: Map<String, Value>) -> Result<Vec<(String, Vec<String>)>, Problem> {
    let text = |name: &str, value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(Problem::bad_request(format!("`{name}` must be a text"))),
    };
    let change = |(name, value): (String, Value)| {
        let values = match value {
            Value::Null => Ok(Vec::new()),
            Value::Array(values) => values.into_iter().map(|value| text(&name, value)).collect(),
            value => text(&name, value).map(|text| vec![text]),
        };
        Ok((name, values?))
    };
    changes.into_iter().map(change).collect()
}

fn trace_view(settings: [(&'static str, &'static str); 6]) -> Json<Value> {
    let mut all = Map::new();
    for (name, text) in settings {
        // The one that may hold several.
        let value = if name == "trace_level" { json!([text]) } else { json!(text) };
        all.insert(name.to_owned(), value);
    }
    Json(Value::Object(all))
}

async fn changes_of(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, Problem> {
    let bytes = read_body(headers, body, shared.limits.json_body_bytes).await?;
    if bytes.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    parse_json(&bytes, shared.limits.json_depth)
}
