//! The direct way of an inference request: past the routes, whose layers cost a small one as much as its model does.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use tower::Service;

use crate::api::Context;
use crate::api::http::access::{Needs, required};
use crate::api::http::observe::{observed, timed};
use crate::api::http::{infer, router, unread};
use crate::service::store::Scope;

/// The routes of a server, and what answers inference before they are asked. Both ways give the same answers: there is
/// one set of functions around a request, and these are layers on the one way and call each other on the other.
#[derive(Clone)]
pub struct Direct {
    needs: Arc<Needs>,
    routes: Router,
}

impl Direct {
    /// The server's routes over what they share.
    #[must_use]
    pub fn new(shared: &Arc<Context>) -> Direct {
        let needs = Needs { shared: Arc::clone(shared), scope: Scope::Infer, page: false };
        Direct { needs: Arc::new(needs), routes: router::router(Arc::clone(shared)) }
    }
}

impl Service<Request<Incoming>> for Direct {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let request = unread::watched(request);
        let asked = if *request.method() == Method::POST { Asked::of(request.uri().path()) } else { None };
        let Some(asked) = asked else { return Box::pin(self.routes.call(request)) };
        let needs = Arc::clone(&self.needs);
        Box::pin(async move { Ok(answer(&needs, &asked, request).await) })
    }
}

/// Which version of which endpoint a path asks; without one, the default.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    name: String,
    version: Option<String>,
}

impl Asked {
    /// That of the path of an inference request; `None` of others, and where there is something in it to decode.
    fn of(path: &str) -> Option<Asked> {
        let path = path.strip_prefix("/v2/models/")?.strip_suffix("/infer")?;
        let (name, version) = match path.split_once("/versions/") {
            Some((name, version)) => (name, Some(version)),
            None => (path, None),
        };
        let is_plain = |part: &str| !part.is_empty() && !part.contains(['/', '%']);
        (is_plain(name) && version.is_none_or(is_plain))
            .then(|| Asked { name: name.to_owned(), version: version.map(str::to_owned) })
    }

    /// The route that would answer.
    fn route(&self) -> &'static str {
        match self.version {
            None => "/v2/models/{name}/infer",
            Some(_) => "/v2/models/{name}/versions/{version}/infer",
        }
    }
}

async fn answer(needs: &Needs, asked: &Asked, request: Request) -> Response {
    let shared: &Context = &needs.shared;
    let handler = |request| async move {
        infer::answer(shared, &asked.name, asked.version.as_deref(), request).await.into_response()
    };
    let in_time = |request| timed(shared.limits.request_timeout, request, handler);
    observed(shared, Some(asked.route()), request, |request| required(needs, request, in_time)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_of_inference_go_the_direct_way() {
        let asked = |name: &str, version: Option<&str>| {
            Some(Asked { name: name.to_owned(), version: version.map(str::to_owned) })
        };
        assert_eq!(Asked::of("/v2/models/a.b/infer"), asked("a.b", None));
        assert_eq!(Asked::of("/v2/models/versions/versions/2/infer"), asked("versions", Some("2")));
        for path in [
            "/v2/models//infer",
            "/v2/models/infer",
            "/v2/models/a/ready",
            "/v2/models/a/infer/",
            "/v2/models/%61/infer",
            "/v2/models/a/b/infer",
            "/v2/models/a/versions//infer",
            "/v2/models/a/versions/1/2/infer",
            "/v1/models/a/infer",
        ] {
            assert_eq!(Asked::of(path), None, "{path}");
        }
    }
}
