//! The page on which a browser gives its key: sets and takes away the cookie that holds it.

use axum::Form;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use crate::api::access::{self, COOKIE, Given, from_elsewhere, origin_refused};
use crate::api::error::Problem;
use crate::api::http::observe::CHALLENGE;
use crate::api::http::ui::{ForPeople, escape, frame, put};
use crate::api::http::{Shared, header_text};
use crate::service::keys::{Caller, Refused};

/// Bytes of the form: a key and a path.
pub(crate) const FORM_BYTES_MAX: usize = 16 << 10;

/// The path of the page.
const PLACE: &str = "/login";

/// What the form holds.
#[derive(Deserialize)]
pub(crate) struct SignIn {
    key: String,
    #[serde(default)]
    next: String,
}

/// Says who is signed in, or asks for a key.
pub(crate) async fn page(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let Some(keys) = &shared.keys else {
        let mut main = String::new();
        let text = "This server asks nobody for a key (<code>auth.mode</code> is <code>off</code>).";
        frame::head(&mut main, "Access", text, "");
        return frame::page(PLACE, "Access", &main);
    };
    match access::given(&headers) {
        Given::Header(key) | Given::Cookie(key) => match keys.identify(key).await {
            Ok(caller) => signed_in(&caller),
            Err(refused) => form(&refused.to_string(), "/", StatusCode::OK),
        },
        Given::Nothing => form("", "/", StatusCode::OK),
    }
}

/// Takes a key: sets the cookie and goes on to where the browser wanted to be.
pub(crate) async fn sign_in(State(shared): State<Shared>, request: Request) -> Response {
    use axum::extract::FromRequest as _;
    // Else a page of somebody else could sign a browser in with a key of theirs.
    if from_elsewhere(request.headers(), request.uri()) {
        return Problem::from(origin_refused(&shared)).into_response();
    }
    let cookie_end = cookie_end(&shared, request.headers());
    let Ok(Form(SignIn { key, next })) = Form::from_request(request, &()).await else {
        return form("the form is not complete", "/", StatusCode::BAD_REQUEST);
    };
    let next = local(&next);
    let Some(keys) = &shared.keys else { return Redirect::to(next).into_response() };
    let key = key.trim();
    match keys.identify(key).await {
        Ok(caller) => {
            let (id, name) = (caller.id(), caller.name());
            tracing::info!(key.id = %id, key.name = %name, "Key {name} ({id}) signs in");
            with_cookie(Redirect::to(next).into_response(), &format!("{COOKIE}={key}{cookie_end}"))
        }
        Err(refused) => form(&refused.to_string(), next, StatusCode::UNAUTHORIZED),
    }
}

/// Takes the cookie away.
pub(crate) async fn sign_out(State(shared): State<Shared>, request: Request) -> Response {
    if from_elsewhere(request.headers(), request.uri()) {
        return Problem::from(origin_refused(&shared)).into_response();
    }
    let end = cookie_end(&shared, request.headers());
    with_cookie(Redirect::to(PLACE).into_response(), &format!("{COOKIE}=; Max-Age=0{end}"))
}

/// In the place of a page that needs another key.
pub(crate) fn refused(refused: &Refused, uri: &Uri) -> Response {
    match refused {
        Refused::Missing => form("", wanted(uri), StatusCode::UNAUTHORIZED),
        Refused::Unknown | Refused::Token(_) | Refused::Expired { .. } | Refused::Revoked { .. } => {
            form(&refused.to_string(), wanted(uri), StatusCode::UNAUTHORIZED)
        }
        Refused::Scope { .. } | Refused::Origin | Refused::Rate { .. } => {
            frame::refused(PLACE, &Problem::from(refused.clone()))
        }
    }
}

fn wanted(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", axum::http::uri::PathAndQuery::as_str)
}

/// A path of this server, whatever the form says: `//host` and `/\host` would be another one.
fn local(next: &str) -> &str {
    let elsewhere = next.starts_with("//") || next.contains('\\') || next.chars().any(char::is_control);
    if next.starts_with('/') && !elsewhere { next } else { "/" }
}

/// Not for scripts, not for requests that other pages cause, and gone with the browser.
fn cookie_end(shared: &Shared, headers: &HeaderMap) -> String {
    let proxied = header_text(headers, "x-forwarded-proto").is_some_and(|proto| proto == "https");
    let secure = if shared.tls || proxied { "; Secure" } else { "" };
    format!("; Path=/; HttpOnly; SameSite=Strict{secure}")
}

fn with_cookie(mut response: Response, cookie: &str) -> Response {
    if let Ok(mut value) = HeaderValue::try_from(cookie) {
        value.set_sensitive(true);
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

fn form(problem: &str, next: &str, status: StatusCode) -> Response {
    let mut main = String::new();
    let text = "This server asks for a key; <code>octet key create</code> makes one. The browser keeps it until you sign \
                out or close it.";
    frame::head(&mut main, "Sign in", text, "");
    let (hidden, wrong) = match problem {
        "" => (" hidden", ""),
        _ => ("", " aria-invalid=\"true\" aria-describedby=\"wrong\""),
    };
    put(
        &mut main,
        format_args!(
            "<form class=\"panel\" method=\"post\" action=\"{PLACE}\">\
             <input type=\"hidden\" name=\"next\" value=\"{}\">\
             <div class=\"fields one\"><div class=\"field\"><label for=\"key\">Key</label><input id=\"key\" name=\"key\" type=\"password\" required \
             autocomplete=\"current-password\" spellcheck=\"false\" autofocus{wrong}></div></div>\
             <p class=\"problem\" id=\"wrong\" role=\"alert\"{hidden}>{}</p>\
             <div class=\"row\"><button class=\"button primary\" type=\"submit\">Sign in</button></div></form>",
            escape(next),
            escape(problem)
        ),
    );
    let mut response = frame::page(PLACE, "Sign in", &main);
    *response.status_mut() = status;
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
    }
    response.extensions_mut().insert(ForPeople);
    response
}

fn signed_in(caller: &Caller) -> Response {
    let mut main = String::new();
    let text = format!(
        "You are signed in with key <strong>{}</strong> (<code>{}</code>): {}.",
        escape(caller.name().as_str()),
        caller.id(),
        caller.scopes()
    );
    frame::head(&mut main, "Access", &text, "");
    main.push_str(
        "<form method=\"post\" action=\"/logout\"><p class=\"row\">\
         <button class=\"button\" type=\"submit\">Sign out</button></p></form>",
    );
    frame::page(PLACE, "Access", &main)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere_after_signing_in() {
        for next in ["/", "/jobs?limit=2", "/models/a%20b"] {
            assert_eq!(local(next), next);
        }
        for next in ["", "jobs", "//evil.example", "/\\evil.example", "https://evil.example", "/a\r\nb"] {
            assert_eq!(local(next), "/", "{next:?}");
        }
    }
}
