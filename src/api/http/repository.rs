//! The model repository extension of the Open Inference Protocol: index, load, unload.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{Stream, StreamExt as _, stream};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::api::access::By;
use crate::api::error::Problem;
use crate::api::http::{ErrorBody, Shared, check_length, parse_borrowed, parse_json, read_body};
use crate::api::v2::repository::{self, IndexEntry};

/// What to list.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct IndexRequest {
    /// Only what answers requests.
    #[serde(default)]
    ready: bool,
}

/// Lists what there is to serve. The body may be empty.
#[utoipa::path(post, path = "/v2/repository/index", operation_id = "repository_index", tag = "repository",
    request_body(content = Option<IndexRequest>, example = json!({"ready": true})),
    responses((status = 200, description = "All versions of all endpoints", body = Vec<IndexEntry>)))]
pub(crate) async fn index(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<IndexEntry>>, Problem> {
    let bytes = read_body(&headers, body, shared.limits.json_body_bytes).await?;
    let request = match bytes.trim_ascii() {
        [] => IndexRequest::default(),
        bytes => parse_json(bytes, shared.limits.json_depth)?,
    };
    Ok(Json(repository::index(&shared, request.ready)))
}

/// What comes with a load.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body to the OpenAPI document only")]
pub(crate) struct LoadRequest {
    /// `config`: Triton's model configuration as JSON text; it is held against the model, batching follows
    /// `serving.batch_max`. `file:VERSION/NAME.onnx`: the model in base64; `config` must stand beside it.
    parameters: Option<serde_json::Value>,
}

/// Loads an endpoint that was unloaded, or tries one again that could not be loaded.
///
/// With a file it stores that as a model of the same name, and serves it in float: as `PUT /v1/models/{name}` and
/// `PUT /v1/endpoints/{name}` do. The same file again makes no new version.
#[utoipa::path(post, path = "/v2/repository/models/{name}/load", operation_id = "load_model", tag = "repository", params(("name" = String, Path)),
    request_body(content = Option<LoadRequest>, example = json!({"parameters": {}})),
    responses((status = 200, description = "It answers requests"),
        (status = 400, description = "A file without `config`, or a `config` that is not of the model", body = ErrorBody),
        (status = 404, description = "No such endpoint", body = ErrorBody),
        (status = 413, description = "Longer than `limits.model_bytes`", body = ErrorBody),
        (status = 422, description = "The file is not a model that can be run", body = ErrorBody),
        (status = 503, description = "It cannot be loaded", body = ErrorBody)))]
pub(crate) async fn load(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    by: By,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let small = shared.limits.json_body_bytes;
    // A body that may hold a model is in memory as a whole: one at a time.
    let _turn = match check_length(&headers, u64::MAX)? {
        Some(length) if length <= small => None,
        _ => Some(shared.loading.lock().await),
    };
    // Base64 makes four bytes of three.
    let limit = shared.limits.model_bytes.div_ceil(3).saturating_mul(4).saturating_add(small);
    let body = read_body(&headers, patient(body, shared.limits.request_timeout), limit);
    let bytes = tokio::time::timeout(LOAD_TIME, body).await.map_err(|_| {
        Problem::bad_request(format!("the body took longer than {} s", LOAD_TIME.as_secs()))
    })??;
    let depth_max = shared.limits.json_depth;
    let read = tokio::task::spawn_blocking(move || Load::read(&bytes, depth_max));
    let Load { config, file } = read.await.map_err(Problem::internal)??;
    let file = file.as_ref().map(|(path, text)| (path.as_str(), decoded(path, text)));
    repository::load(&shared, &name, config.as_deref(), file, &by).await?;
    Ok(StatusCode::OK)
}

/// For the whole body of a load, however slowly it comes.
const LOAD_TIME: Duration = Duration::from_secs(3600);

/// Ends a body whose next part does not come.
fn patient(body: Body, patience: Duration) -> Body {
    let parts = tokio_stream::StreamExt::timeout(body.into_data_stream(), patience);
    Body::from_stream(parts.map(|part| match part {
        Ok(part) => part.map_err(|error| error.to_string()),
        Err(_) => Err("no bytes came for too long".to_owned()),
    }))
}

/// A load, read.
struct Load {
    config: Option<String>,
    /// Its name, and base64: a part of the body.
    file: Option<(String, Bytes)>,
}

impl Load {
    fn read(bytes: &Bytes, depth_max: usize) -> Result<Load, Problem> {
        let mut load = Load { config: None, file: None };
        if bytes.trim_ascii().is_empty() {
            return Ok(load);
        }
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(Problem::bad_request("the body: it must be an object, not a list"));
        }
        let body: LoadBody<'_> = parse_borrowed(bytes, depth_max)?;
        for (key, value) in body.parameters.unwrap_or_default() {
            let text = |value| match value {
                Parameter::Text(text) => Ok(text),
                Parameter::Other => Err(Problem::bad_request(format!("`{key}` must be a string"))),
            };
            if key == "config" {
                load.config = Some(text(value)?.into_owned());
            } else if key.starts_with("file:") {
                if load.file.is_some() {
                    return Err(Problem::bad_request(
                        "more than one file: a model whose data are in other files goes up as an archive, \
                         with PUT /v1/models/NAME",
                    ));
                }
                let text = match text(value)? {
                    // No copy of what may be large.
                    Cow::Borrowed(text) => bytes.slice_ref(text.as_bytes()),
                    Cow::Owned(text) => text.into(),
                };
                load.file = Some((key, text));
            }
        }
        Ok(load)
    }
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct LoadBody<'a> {
    #[serde(borrow)]
    parameters: Option<BTreeMap<String, Parameter<'a>>>,
}

enum Parameter<'a> {
    Text(Cow<'a, str>),
    Other,
}

impl<'de: 'a, 'a> Deserialize<'de> for Parameter<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Parameter<'a>, D::Error> {
        struct Reads;
        impl<'de> Visitor<'de> for Reads {
            type Value = Parameter<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a parameter")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Parameter<'de>, E> {
                Ok(Parameter::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Parameter<'de>, E> {
                Ok(Parameter::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Parameter<'de>, E> {
                Ok(Parameter::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Parameter<'de>, E> {
                Ok(Parameter::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Parameter<'de>, E> {
                Ok(Parameter::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Parameter<'de>, E> {
                Ok(Parameter::Other)
            }

            fn visit_unit<E>(self) -> Result<Parameter<'de>, E> {
                Ok(Parameter::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Parameter<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Parameter::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameter<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Parameter::Other)
            }
        }
        deserializer.deserialize_any(Reads)
    }
}

/// A file that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("`{path}` is not base64: {source}")]
struct NotBase64 {
    path: String,
    source: base64::DecodeError,
}

/// The bytes of a file, piece by piece: it is in memory once as it is.
fn decoded(path: &str, text: &Bytes) -> impl Stream<Item = Result<Bytes, NotBase64>> + Unpin {
    // A multiple of four, so that each piece stands alone.
    const PIECE: usize = 256 << 10;
    let (path, text) = (path.to_owned(), text.clone());
    let pieces = (0..text.len().div_ceil(PIECE)).map(move |n| {
        let piece = &text[n * PIECE..text.len().min((n + 1) * PIECE)];
        let bytes = STANDARD.decode(piece);
        bytes.map(Bytes::from).map_err(|source| NotBase64 { path: path.clone(), source })
    });
    stream::iter(pieces)
}

/// Takes an endpoint out of memory until it is loaded again. Requests under way are answered.
#[utoipa::path(post, path = "/v2/repository/models/{name}/unload", operation_id = "unload_model", tag = "repository",
    params(("name" = String, Path)),
    responses((status = 200, description = "It is out of memory"),
        (status = 404, description = "No such endpoint", body = ErrorBody)))]
pub(crate) async fn unload(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    shared.registry.unload(&name)?;
    Ok(StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Load, String> {
        Load::read(&Bytes::copy_from_slice(text.as_bytes()), 32).map_err(|problem| problem.detail)
    }

    #[test]
    fn a_load_is_read_without_a_copy_of_its_file() {
        assert!(read(" ").unwrap().file.is_none() && read("{}").unwrap().config.is_none());
        let load = read(
            r#"{"parameters": {"config": "{\"a\": 1}", "file:1/model.onnx": "AAEC", "x": [1, {"y": null}], "z": 1.5}}"#,
        )
        .unwrap();
        assert_eq!(load.config.as_deref(), Some(r#"{"a": 1}"#));
        assert_eq!(load.file, Some(("file:1/model.onnx".to_owned(), Bytes::from_static(b"AAEC"))));
        for (text, want) in [
            (r#"{"parameters": {"config": 1}}"#, "`config` must be a string"),
            (r#"{"parameters": {"file:1/a.onnx": "", "file:1/b.onnx": ""}}"#, "more than one file"),
            (r#"{"parameters": "#, "malformed JSON"),
            (r#"[{"config": "{}"}]"#, "an object, not a list"),
        ] {
            assert!(read(text).err().unwrap().contains(want), "{text}");
        }
    }

    #[tokio::test]
    async fn a_file_is_decoded_piece_by_piece() {
        let bytes: Vec<u8> = (0..700_001u32).map(|n| n as u8).collect();
        let text = Bytes::from(STANDARD.encode(&bytes));
        let pieces: Vec<_> = decoded("f", &text).collect().await;
        assert!(pieces.len() > 1);
        let got: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.unwrap().to_vec()).collect();
        assert_eq!(got, bytes);
        let broken: Vec<_> = decoded("f", &Bytes::from_static(b"A*==")).collect().await;
        assert!(broken[0].as_ref().unwrap_err().to_string().starts_with("`f` is not base64"));
    }
}
