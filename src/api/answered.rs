//! What a request was and where its time went, once it is answered: a line in the log, and a span for whoever traces.
//! Knows the words of the protocols, and nothing of where spans go.

use std::sync::{Arc, OnceLock};

use axum::http::HeaderMap;
use tracing::Level;

use crate::api::{Answered, Call, Context, LogRequests, Phases};

/// Goes along with a request, for what only its handler learns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail(Arc<(OnceLock<String>, OnceLock<Phases>)>);

impl Trail {
    /// The endpoint that is asked.
    pub(crate) fn set_endpoint(&self, name: &str) {
        // The first stands.
        let _ = self.0.0.set(name.to_owned());
    }

    /// Where the time went.
    pub(crate) fn set_phases(&self, phases: Phases) {
        let _ = self.0.1.set(phases);
    }

    /// The endpoint that was asked.
    pub(crate) fn endpoint(&self) -> Option<&str> {
        self.0.0.get().map(String::as_str)
    }

    /// Where the time went.
    pub(crate) fn phases(&self) -> Option<&Phases> {
        self.0.1.get()
    }
}

/// The headers that name the trace of a request; copied because the request is gone when its span is made.
pub(crate) fn parents(headers: &HeaderMap) -> [Option<String>; 2] {
    ["traceparent", "tracestate"].map(|name| {
        let text = headers.get(name)?.to_str().ok()?;
        // The W3C asks to pass on 512 characters of state at least.
        (text.len() <= 512).then(|| text.to_owned())
    })
}

/// Writes the line of a request and hands it to whoever traces. `quiet` is a probe, of which there are many: it is part
/// of a trace only if it came with one, and that it says «not ready» is no fault.
pub(crate) fn note(shared: &Context, request: &Answered<'_>, quiet: bool) {
    let traces = shared.traces.as_ref().filter(|_| !quiet || request.parent.is_some());
    let trace_id = traces.and_then(|traces| traces.record(request));
    let trace_id = trace_id.as_deref();
    macro_rules! tell {
        ($level:expr) => {{
            let Answered { request_id, endpoint, .. } = *request;
            let duration_ms = request.end.saturating_duration_since(request.start).as_secs_f64() * 1e3;
            match request.call {
                Call::Http { method, route, path, status } => tracing::event!(
                    $level,
                    request_id,
                    method,
                    path,
                    route,
                    status,
                    duration_ms,
                    endpoint,
                    trace_id,
                    "{method} {path} {status}"
                ),
                Call::Grpc { path, status } => tracing::event!(
                    $level,
                    request_id,
                    method = path,
                    status,
                    duration_ms,
                    endpoint,
                    trace_id,
                    "gRPC {path} {status}"
                ),
            }
        }};
    }
    match (shared.log_requests, request.call.is_fault() && !quiet) {
        (LogRequests::Errors | LogRequests::All, true) => tell!(Level::WARN),
        (LogRequests::All, false) => tell!(Level::INFO),
        (LogRequests::Off, _) | (LogRequests::Errors, false) => tell!(Level::DEBUG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_ours_or_that_we_are_busy() {
        let http = |status| Call::Http { method: "GET", route: None, path: "/", status }.is_fault();
        let grpc = |status| Call::Grpc { path: "/", status }.is_fault();
        assert_eq!([200, 404, 422, 429, 500, 503].map(http), [false, false, false, true, true, true]);
        // OK, INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE.
        assert_eq!([0, 3, 5, 8, 12, 13, 14].map(grpc), [false, false, false, true, false, true, true]);
    }

    #[test]
    fn a_trace_is_read_from_the_headers_unless_it_is_too_long() {
        let mut headers = HeaderMap::new();
        assert_eq!(parents(&headers), [None, None]);
        headers.insert("traceparent", "00-1-2-01".parse().unwrap());
        headers.insert("tracestate", "a".repeat(513).parse().unwrap());
        assert_eq!(parents(&headers), [Some("00-1-2-01".to_owned()), None]);
    }
}
