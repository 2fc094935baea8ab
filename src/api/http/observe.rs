//! Around every request: its id, its figures, the limit of requests at a time, and the body of a refusal.

use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt as _;

use crate::api::answered::{self, Trail};
use crate::api::error::{Code, Problem};
use crate::api::http::ui::{ForPeople, frame};
use crate::api::http::{ErrorBody, ProblemBody, Shared, header_text, linger, tus};
use crate::api::{Answered, Call, Context, until};

/// The id of a request: as it came, or ours.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a refusal asks for where a key is missing.
pub(crate) const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"octet\"");

/// The id of a request, for the layers further in.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

/// Gives a request its id, counts and times it, and writes the body of its refusal.
pub(crate) async fn observe(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    observed(&shared, route, request, |request| next.run(request)).await
}

/// The same of a request whose route is known.
pub(crate) async fn observed<F: Future<Output = Response>>(
    shared: &Context,
    route: Option<&str>,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response {
    let start = Instant::now();
    let id = request_id(request.headers());
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    if method == Method::HEAD {
        // It has a meaning with GET only (RFC 9110, section 14.2).
        request.headers_mut().remove(header::RANGE);
    }
    let uri = request.uri().clone();
    let path = uri.path();
    let page = is_for_people(&request);
    let _counted = shared.metrics.http_begin();
    // Probes and scrapes must get through when nothing else does.
    let exempt = path.starts_with("/v2/health/") || path == "/metrics";
    let mut trace = None;
    if shared.traces.is_some() {
        let trail = Trail::default();
        request.extensions_mut().insert(trail.clone());
        trace = Some((answered::parents(request.headers()), trail));
    }
    let mut response = match shared.in_flight.enter() {
        None if !exempt => Problem::overloaded(shared.in_flight.max()).into_response(),
        _entered => {
            let answer = AssertUnwindSafe(next(request)).catch_unwind().await;
            answer.unwrap_or_else(|panic| Problem::of_panic(&*panic).into_response())
        }
    };
    let status = response.status();
    let for_people = response.extensions().get::<ForPeople>().is_some();
    if (status.is_client_error() || status.is_server_error()) && !for_people {
        response = refusal(response, path, &id, page);
    }
    if let Ok(value) = HeaderValue::try_from(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let end = Instant::now();
    let seconds = (end - start).as_secs_f64();
    let status = response.status().as_u16();
    shared.metrics.http_request(method.as_str(), route.unwrap_or("_none"), status, seconds);
    let parents = trace.as_ref().map(|(parents, _)| parents);
    let answered = Answered {
        request_id: &id,
        call: Call::Http { method: method.as_str(), route, path, status },
        endpoint: endpoint(route, path),
        parent: parents.and_then(|[parent, _]| parent.as_deref()),
        state: parents.and_then(|[_, state]| state.as_deref()),
        start,
        end,
        phases: trace.as_ref().and_then(|(_, trail)| trail.phases()),
    };
    answered::note(shared, &answered, exempt);
    response
}

/// The endpoint that a path names, as it stands there.
fn endpoint<'a>(route: Option<&str>, path: &'a str) -> Option<&'a str> {
    let prefix = ["/v2/models/", "/v1/endpoints/"].into_iter().find(|prefix| path.starts_with(prefix))?;
    route?.strip_prefix(prefix)?.starts_with('{').then(|| path[prefix.len()..].split('/').next())?
}

/// Refuses a body that is compressed where nothing unpacks it: else its bytes would be taken for what they are not.
pub(crate) async fn uncompressed(request: Request, next: Next) -> Response {
    let coding = header_text(request.headers(), "content-encoding").unwrap_or_default().trim();
    if coding.is_empty() || coding.eq_ignore_ascii_case("identity") {
        return next.run(request).await;
    }
    let text = format!("`Content-Encoding: {coding}` is taken by inference only: send the body as it is");
    let (parts, body) = request.into_parts();
    linger(&parts.headers, body);
    Problem::new(Code::UnsupportedMedia, text).into_response()
}

/// Refuses a request that takes too long. Not for uploads, whose time is that of the network.
pub(crate) async fn in_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    timed(limit, request, |request| next.run(request)).await
}

/// The same for whatever comes next.
pub(crate) async fn timed<F: Future<Output = Response>>(
    limit: Duration,
    request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response {
    until::in_time(limit, request, next).await.unwrap_or_else(IntoResponse::into_response)
}

/// Tries a deletion that a full disk has no room for once more, with the room that is put by for that.
pub(crate) async fn with_reserve(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if request.method() != Method::DELETE {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    // No deletion has a body.
    let again = Request::from_parts(parts.clone(), Body::empty());
    let response = next.clone().run(Request::from_parts(parts, body)).await;
    let full = response.status() == StatusCode::INSUFFICIENT_STORAGE;
    if full && shared.blobs.reserve().is_some_and(|reserve| reserve.give()) {
        return next.run(again).await;
    }
    response
}

/// The client's id where it is short and visible, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(&REQUEST_ID).and_then(|v| v.to_str().ok());
    match given {
        Some(id) if !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_graphic()) => {
            id.to_owned()
        }
        _ => new_id(),
    }
}

/// An id that no other request of this process has, nor, by its random part, one of another process. A number that counts
/// up costs less than a random one, which asks the kernel.
fn new_id() -> String {
    static PROCESS: LazyLock<String> = LazyLock::new(|| uuid::Uuid::now_v7().simple().to_string());
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:.20}{:012x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff_ffff)
}

/// Whether a browser asks for what is no part of the API: a mistyped page.
fn is_for_people(request: &Request) -> bool {
    let of_programs = ["/v1", "/v2", "/metrics", "/openapi.yaml", "/assets/"];
    let accept = header_text(request.headers(), "accept").unwrap_or_default();
    matches!(*request.method(), Method::GET | Method::HEAD)
        && accept.trim_start().starts_with("text/html")
        && !of_programs.iter().any(|prefix| request.uri().path().starts_with(prefix))
}

/// Writes the body: a page where a browser asks, problem+json for us, `error` for `/v2`, whose clients read nothing else.
fn refusal(response: Response, path: &str, id: &str, page: bool) -> Response {
    let (parts, _) = response.into_parts();
    let problem = parts.extensions.get::<Problem>().cloned().unwrap_or_else(|| {
        // Refused by axum or tower before a handler saw it.
        let code = Code::of_status(parts.status);
        Problem::new(code, format!("{} ({})", code.title(), parts.status))
    });
    if let Some(cause) = &problem.cause {
        tracing::error!(request_id = %id, %path, %cause, "Request {id} failed: {cause}");
    }
    if page {
        return frame::refused("/", &problem);
    }
    let status = problem.code.status();
    let (code, request_id, detail) = (problem.code.text(), id.to_owned(), problem.detail);
    let mut body = if path.starts_with("/v2") {
        // The kserve client shows the text only where the type is exactly this.
        Json(ErrorBody { error: detail, code, status: status.as_u16(), request_id }).into_response()
    } else {
        let kind = format!("urn:octet:error:{code}");
        let title = problem.code.title();
        let mut body = Json(ProblemBody { kind, title, status: status.as_u16(), detail, code, request_id })
            .into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        body.headers_mut().insert(header::CONTENT_TYPE, kind);
        body
    };
    *body.status_mut() = status;
    for name in [header::ALLOW, header::CONTENT_RANGE].iter().chain(&tus::OF_REFUSALS) {
        if let Some(value) = parts.headers.get(name) {
            body.headers_mut().insert(name, value.clone());
        }
    }
    if problem.code == Code::Unauthenticated {
        body.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
    }
    if let Some(seconds) = problem.retry_after_s {
        body.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    body
}
