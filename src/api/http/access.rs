//! The layer that asks for a key over HTTP, what it keeps browsers from, and what the OpenAPI document says of it.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Components, OpenApi, PathItem, ResponseBuilder};

use crate::api::access::{self, COOKIE, Given, Noted};
use crate::api::error::Problem;
use crate::api::http::observe::RequestId;
use crate::api::http::ui::sign_in;
use crate::api::http::{Shared, tus};
use crate::service::keys::{Caller, Refused};
use crate::service::store::Scope;

/// What a group of routes asks of a request.
#[derive(Clone)]
pub(crate) struct Needs {
    /// The handles that every handler shares.
    pub(crate) shared: Shared,
    /// The scope.
    pub(crate) scope: Scope,
    /// Whether people see the answer: they are asked to sign in.
    pub(crate) page: bool,
}

/// Lets a request in, or refuses it before anything of its body is read. Notes whose it is.
pub(crate) async fn require(State(needs): State<Needs>, request: Request, next: Next) -> Response {
    required(&needs, request, |request| next.run(request)).await
}

/// The same for whatever comes next.
pub(crate) async fn required<F: Future<Output = Response>>(
    needs: &Needs,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response {
    let admitted = match brought(needs, &request) {
        Ok(given) => access::admit(&needs.shared, given, needs.scope).await,
        Err(refused) => Err(refused),
    };
    let caller = match admitted {
        Ok(caller) => caller,
        Err(refused) if needs.page => return sign_in::refused(&refused, request.uri()),
        Err(refused) => return Problem::from(refused).into_response(),
    };
    if let Some(caller) = &caller {
        request.extensions_mut().insert::<Caller>(caller.clone());
    }
    if !matches!(needs.scope, Scope::Write | Scope::Admin) || is_safe(request.method()) {
        return next(request).await;
    }
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
    let path = request.uri().path();
    let route = request.extensions().get::<MatchedPath>().map_or(path, MatchedPath::as_str);
    let method = request.method().as_str();
    let noted = Noted::begin(&needs.shared, caller.as_ref(), &id, method, route, path);
    let response = next(request).await;
    let outcome = response.status();
    let (record, is_step) = made(&response);
    if is_step {
        noted.forget();
    } else {
        noted.end(record, outcome.as_u16().to_string()).await;
    }
    response
}

/// What a request has made, and whether it was a part of an upload other than the last.
fn made(response: &Response) -> (Option<String>, bool) {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let record = text(header::CONTENT_LOCATION).or_else(|| text(header::LOCATION)).map(str::to_owned);
    let is_step = record.is_none() && response.status() == 204 && text(tus::UPLOAD_OFFSET).is_some();
    (record, is_step)
}

/// What a request brings, where it does not come from a page of somebody else.
fn brought<'a>(needs: &Needs, request: &'a Request) -> Result<Given<'a>, Refused> {
    let given = access::given(request.headers());
    // A program that has put a key into a header meant this request; a browser sends a cookie, or reaches a server on
    // its own machine, for whatever page asks it to.
    if !matches!(given, Given::Header(_))
        && !is_safe(request.method())
        && access::from_elsewhere(request.headers(), request.uri())
    {
        return Err(access::origin_refused(&needs.shared));
    }
    Ok(given)
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The names of the ways to send a key in the OpenAPI document.
const SCHEMES: [&str; 3] = ["bearer", "header", "cookie"];

/// Says in the document how a key is sent.
pub(crate) fn describe(document: &mut OpenApi) {
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("octet_ID_SECRET");
    let bearer = bearer.description(Some("A key of `octet key create`, where `auth.mode` is `keys`"));
    let components = document.components.get_or_insert_with(Components::new);
    let schemes = [
        SecurityScheme::Http(bearer.build()),
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Api-Key"))),
        SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::with_description(COOKIE, "Set by `/login`"))),
    ];
    components.add_security_schemes_from_iter(SCHEMES.into_iter().zip(schemes));
}

/// Says in the document that the routes need a scope, and what comes without it.
pub(crate) fn describe_needs(document: &mut OpenApi, scope: Scope) {
    for item in document.paths.paths.values_mut() {
        let PathItem { get, put, post, delete, options, head, patch, trace, .. } = item;
        for operation in [get, put, post, delete, options, head, patch, trace].into_iter().flatten() {
            let requirement = |scheme: &str| SecurityRequirement::new(scheme, [scope.as_str()]);
            operation.security = Some(SCHEMES.map(requirement).to_vec());
            let refusals = [
                ("401", "No key, or one that is not taken".to_owned()),
                ("403", format!("The key has no scope `{scope}`")),
                ("429", "The key is used too often".to_owned()),
            ];
            for (status, text) in refusals {
                let response = ResponseBuilder::new().description(text).build();
                operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
            }
        }
    }
}
