//! The time that a request may take, over both protocols.

use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::Response;

use crate::api::error::{Code, Problem};

/// When the server gives a request up. Goes along with it, for who counts how it ended: what is dropped after that was
/// not left by its client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until(pub(crate) Instant);

/// Answers a request, or gives it up after `limit`.
///
/// # Errors
/// That it took too long.
pub(crate) async fn in_time<F: Future<Output = Response>>(
    limit: Duration,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Result<Response, Problem> {
    let until = Instant::now() + limit;
    request.extensions_mut().insert(Until(until));
    let answer = tokio::time::timeout_at(until.into(), next(request)).await;
    answer.map_err(|_| Problem::new(Code::Deadline, format!("not answered within {} s", limit.as_secs_f64())))
}
