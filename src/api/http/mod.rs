//! What the handlers have in common: bodies, pages, names, request ids, the body of a refusal.

pub(crate) mod access;
pub(crate) mod artifacts;
mod at_once;
pub(crate) mod audit;
pub(crate) mod compress;
pub mod connections;
pub(crate) mod datasets;
pub mod direct;
pub(crate) mod document;
pub(crate) mod dry_run;
pub(crate) mod endpoints;
pub(crate) mod fields;
pub(crate) mod figures;
pub(crate) mod infer;
pub(crate) mod jobs;
pub(crate) mod lint;
pub(crate) mod models;
pub(crate) mod observe;
pub(crate) mod repository;
pub mod router;
pub(crate) mod settings;
pub(crate) mod shared_memory;
pub(crate) mod system;
pub(crate) mod tus;
pub(crate) mod ui;
pub(crate) mod unread;
pub(crate) mod uploads;

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::Context;
use crate::api::error::{Code, Problem};
use crate::engine::tensor::Incoming;
use crate::service::store::{Page, Slice};

/// The handles that every handler shares.
pub(crate) type Shared = Arc<Context>;

/// The OpenAPI document, as checked in; a test keeps it equal to what the code generates.
pub const OPENAPI: &str = include_str!("../../../openapi.yaml");

/// A refusal of `/v1`, as RFC 9457 has it.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProblemBody {
    /// `urn:octet:error:` and the code.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// What kind of refusal, for people.
    pub(crate) title: &'static str,
    /// The HTTP status again.
    pub(crate) status: u16,
    /// What is wrong with this request, for people.
    pub(crate) detail: String,
    /// What kind of refusal, for programs.
    pub(crate) code: &'static str,
    /// The log knows the request under this id.
    pub(crate) request_id: String,
}

/// A refusal of `/v2`: the protocol's `error`, and ours beside it.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What is wrong, for people.
    pub(crate) error: String,
    /// What kind of refusal, for programs.
    pub(crate) code: &'static str,
    /// The HTTP status again.
    pub(crate) status: u16,
    /// The log knows the request under this id.
    pub(crate) request_id: String,
}

/// Which part of a listing.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    /// At most so many, 1 to 200; without it 50.
    pub(crate) limit: Option<u32>,
    /// The `next_cursor` of the part before.
    pub(crate) cursor: Option<String>,
}

/// Records a page where the client does not say.
const LIMIT_DEFAULT: u32 = 50;

/// Reads `limit` and `cursor`.
pub(crate) fn page(limit: Option<u32>, cursor: Option<&str>) -> Result<Page, Problem> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=Page::LIMIT_MAX).contains(&limit) {
        return Err(Problem::bad_request(format!("`limit` is {limit}, it must be 1 to {}", Page::LIMIT_MAX)));
    }
    Ok(Page { after: cursor.map(str::parse).transpose()?, limit })
}

/// Answers with a record, and with where it is.
pub(crate) fn located(status: StatusCode, path: &str, body: impl IntoResponse) -> Response {
    let mut response = (status, body).into_response();
    if let Ok(location) = HeaderValue::try_from(path) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A part of a listing.
#[derive(Serialize, ToSchema)]
pub(crate) struct Listing<T> {
    /// The records, newest first.
    pub(crate) items: Vec<T>,
    /// Hand it back as `cursor` to get the next part; `null` at the end.
    pub(crate) next_cursor: Option<String>,
}

/// Answers with a part of a listing, and with a `Link` to the next. `asked` are the parameters that say what is listed: names,
/// ids and states that were read, so nothing of them must be escaped.
pub(crate) fn listing<T, V: Serialize>(
    slice: Slice<T>,
    path: &str,
    asked: &[(&str, Option<&str>)],
    limit: u32,
    view: impl Fn(T) -> V,
) -> Response {
    let next_cursor = slice.next.map(|next| next.to_string());
    let link = next_cursor.as_ref().map(|next| {
        let given = asked.iter().filter_map(|(key, value)| value.map(|value| format!("{key}={value}&")));
        let given: String = given.collect();
        format!("<{path}?{given}limit={limit}&cursor={next}>; rel=\"next\"")
    });
    let body = Listing { items: slice.items.into_iter().map(view).collect(), next_cursor };
    let mut response = Json(body).into_response();
    if let Some(Ok(link)) = link.map(HeaderValue::try_from) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

/// A body in memory.
pub(crate) enum Received {
    /// It came in one part.
    Whole(Bytes),
    /// It came in several.
    Joined(Incoming),
}

/// A body in memory. A `Content-Length` beyond the limit is refused before anything is read.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, limit_bytes: u64) -> Result<Bytes, Problem> {
    Ok(match receive(headers, body, limit_bytes, 0).await? {
        Received::Whole(bytes) => bytes,
        Received::Joined(incoming) => {
            let (bytes, start) = incoming.into_parts();
            Bytes::from(bytes).slice(start..)
        }
    })
}

/// As [`read_body`], of a body that is a tensor from byte `head` on.
pub(crate) async fn receive(
    headers: &HeaderMap,
    body: Body,
    limit_bytes: u64,
    head: usize,
) -> Result<Received, Problem> {
    // A compressed body is shorter than what it becomes, so its length says nothing too large.
    let length = match check_length(headers, limit_bytes) {
        Ok(length) => length.unwrap_or(0),
        Err(problem) => {
            linger(headers, body);
            return Err(problem);
        }
    };
    let mut stream = body.into_data_stream();
    let mut received = Received::Whole(Bytes::new());
    while let Some(part) = stream.next().await {
        let part = part.map_err(|error| broken_body(&error))?;
        if (received.bytes().len() + part.len()) as u64 > limit_bytes {
            linger(headers, Body::from_stream(stream));
            return Err(Problem::too_large(limit_bytes));
        }
        match &mut received {
            Received::Whole(first) if first.is_empty() => received = Received::Whole(part),
            Received::Whole(first) => {
                // What a header promises is reserved only as far as memory is cheap.
                let room = usize::try_from(length).unwrap_or(0).min(64 << 20);
                let mut all = Incoming::with_room(room, head);
                all.extend(first);
                all.extend(&part);
                received = Received::Joined(all);
            }
            Received::Joined(all) => all.extend(&part),
        }
    }
    Ok(received)
}

impl Received {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Received::Whole(bytes) => bytes,
            Received::Joined(incoming) => incoming.bytes(),
        }
    }
}

/// Reads on for a while after a refusal: a client that writes before it reads would else see a reset
/// connection and never the reason. Not where the client waits for `100 Continue`.
pub(crate) fn linger(headers: &HeaderMap, body: Body) {
    const BYTES_MAX: usize = 1 << 30;
    const TIME_MAX: std::time::Duration = std::time::Duration::from_secs(10);
    if headers.contains_key(header::EXPECT) {
        return;
    }
    tokio::spawn(tokio::time::timeout(TIME_MAX, async move {
        let mut stream = body.into_data_stream();
        let mut bytes = 0;
        while let Some(Ok(part)) = stream.next().await {
            bytes += part.len();
            if bytes > BYTES_MAX {
                break;
            }
        }
    }));
}

/// A body that ended early, or was not what its `Content-Encoding` says.
pub(crate) fn broken_body(error: &dyn std::error::Error) -> Problem {
    Problem::bad_request(format!("the body could not be read to its end: {error}"))
}

/// The `Content-Length`, where there is one; refused beyond the limit.
pub(crate) fn check_length(headers: &HeaderMap, limit_bytes: u64) -> Result<Option<u64>, Problem> {
    let length = header_text(headers, "content-length").and_then(|v| v.parse::<u64>().ok());
    match length {
        Some(length) if length > limit_bytes => Err(Problem::too_large(limit_bytes)),
        length => Ok(length),
    }
}

/// Reads a small JSON body. Any `Content-Type` will do; unknown fields are refused by the types.
pub(crate) async fn read_json<T: DeserializeOwned>(
    shared: &Context,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Problem> {
    let bytes = read_body(headers, body, shared.limits.json_body_bytes).await?;
    parse_json(&bytes, shared.limits.json_depth)
}

/// Reads JSON of bounded depth, objects where the types are structs, and names the field that is wrong.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8], depth_max: usize) -> Result<T, Problem> {
    let value: serde_json::Value = parse_borrowed(bytes, depth_max)?;
    fields::read::<T>(&value).map_err(Problem::bad_request)?;
    // Of the text, in which a field may stand twice.
    parse_borrowed(bytes, depth_max)
}

/// Reads JSON of bounded depth as what serde derives has it: for what is too large to be there twice.
pub(crate) fn parse_borrowed<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    depth_max: usize,
) -> Result<T, Problem> {
    if depth(bytes) > depth_max {
        return Err(Problem::new(Code::MalformedJson, format!("JSON nested deeper than {depth_max} levels")));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // serde_json's own text ends with "at line … column …".
        match error.classify() {
            serde_json::error::Category::Data => Problem::bad_request(error.to_string()),
            serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof
            | serde_json::error::Category::Io => {
                Problem::new(Code::MalformedJson, format!("malformed JSON: {error}"))
            }
        }
    })
}

/// How deep brackets are nested, those in strings left out.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for &byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A header as text; `None` where it is missing or not text.
pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A strong entity tag.
pub(crate) fn etag(value: impl std::fmt::Display) -> HeaderValue {
    HeaderValue::try_from(format!("\"{value}\"")).expect("digests and numbers are visible ASCII")
}

/// Whether `If-None-Match` names the tag.
pub(crate) fn none_match(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    header_text(headers, "if-none-match").is_some_and(|text| names_tag(&text.replace("W/", ""), tag))
}

/// Whether a list of tags, or `*`, names the tag.
pub(crate) fn names_tag(text: &str, tag: &HeaderValue) -> bool {
    text.trim() == "*" || text.split(',').any(|t| *tag == t.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        for (text, want) in [("1", 0), ("[]", 1), (r#"{"a":[1,{"b":2}]}"#, 3), (r#"["[[[", "\"["]"#, 1)] {
            assert_eq!(depth(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn the_link_to_the_next_part_asks_for_the_same() {
        let check = |asked: &[(&str, Option<&str>)], want: &str| {
            // The end of the first part: `0/a` in hexadecimal digits.
            let slice = Slice { items: vec![1], next: Some("302f61".parse().unwrap()) };
            let response = listing(slice, "/v1/jobs", asked, 1, |n| n);
            assert_eq!(response.headers()["link"], format!("</v1/jobs?{want}cursor=302f61>; rel=\"next\""));
        };
        check(&[], "limit=1&");
        check(&[("state", None), ("model", Some("m"))], "model=m&limit=1&");
        check(&[("state", Some("queued")), ("model", Some("m"))], "state=queued&model=m&limit=1&");
        let end = listing(Slice { items: vec![1], next: None }, "/v1/jobs", &[], 1, |n| n);
        assert!(!end.headers().contains_key("link"));
    }

    #[test]
    fn faults_in_json_are_told_with_their_place() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            #[expect(dead_code, reason = "only read")]
            a: u32,
        }
        let check = |text: &str| parse_json::<Body>(text.as_bytes(), 8).unwrap_err();
        let problem = check("{\"a\":1,\n}");
        assert_eq!(problem.code, Code::MalformedJson);
        assert!(problem.detail.contains("line 2 column 1"), "{}", problem.detail);
        let problem = check(r#"{"a":1,"b":2}"#);
        assert_eq!(problem.code, Code::BadRequest);
        assert!(problem.detail.contains("unknown field `b`"), "{}", problem.detail);
        let problem = check(r#"{"a":1,"a":2}"#);
        assert!(problem.detail.contains("duplicate field `a`"), "{}", problem.detail);
        assert!(check("[1]").detail.contains("an object, not a list"));
        assert!(check(&"[".repeat(9)).detail.contains("deeper than 8"));
    }
}
