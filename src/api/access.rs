//! Who asks, over both protocols: finds the key of a request, and asks whether it may.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, Uri, header};

use crate::api::Context;
use crate::api::error::Problem;
use crate::service::keys::{Caller, Refused};
use crate::service::store::{Catalog, NewAudit, Owner, Scope};

/// The cookie in which a browser that has signed in keeps its key.
pub(crate) const COOKIE: &str = "octet_key";

/// So much of a path is kept on record, of the request and of what it made.
const PATH_CHARS_MAX: usize = 512;

/// What a request brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given<'a> {
    /// A key in a header: a program put it there for this request.
    Header(&'a str),
    /// A key in the cookie: the browser sends it with every request, whoever wrote the page that asks.
    Cookie(&'a str),
    /// None.
    Nothing,
}

/// The key of a request: `X-Api-Key`, then `Authorization: Bearer`, then the cookie. Another `Authorization` is that of
/// a proxy in between.
pub(crate) fn given(headers: &HeaderMap) -> Given<'_> {
    // A header that is no text is a key that is not known, not a request without one.
    if let Some(value) = headers.get("x-api-key") {
        return Given::Header(value.to_str().map_or("", str::trim));
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some((scheme, key)) = authorization.and_then(|text| text.trim().split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
    {
        return Given::Header(key.trim());
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    match pairs.find(|(name, _)| *name == COOKIE) {
        Some((_, key)) => Given::Cookie(key),
        None => Given::Nothing,
    }
}

/// Whose request it is, once it may do what needs `scope`; `None` where nobody is asked for a key.
pub(crate) async fn admit(
    shared: &Context,
    given: Given<'_>,
    scope: Scope,
) -> Result<Option<Caller>, Refused> {
    let Some(keys) = &shared.keys else { return Ok(None) };
    let caller = match given {
        Given::Header(key) | Given::Cookie(key) => keys.identify(key).await?,
        Given::Nothing => return Err(keys.refused(Refused::Missing)),
    };
    keys.allow(&caller, scope)?;
    Ok(Some(caller))
}

/// Asks again for a caller of a stream, whose key may have ended since.
pub(crate) fn admit_again(shared: &Context, caller: Option<&Caller>, scope: Scope) -> Result<(), Problem> {
    match (&shared.keys, caller) {
        (Some(keys), Some(caller)) => Ok(keys.allow(caller, scope)?),
        _ => Ok(()),
    }
}

/// Whether a caller may go on with what it was let begin.
pub(crate) fn still_admitted(shared: &Context, by: &By, scope: Scope) -> bool {
    match (&shared.keys, &by.0) {
        (Some(keys), Some(caller)) => keys.still(caller, scope),
        _ => true,
    }
}

/// The refusal of a request that [`from_elsewhere`] has found, counted.
pub(crate) fn origin_refused(shared: &Context) -> Refused {
    shared.metrics.auth_refused(Refused::Origin.reason());
    Refused::Origin
}

/// Whether a browser sends it for a page that is not ours. Programs send neither header and are believed.
pub(crate) fn from_elsewhere(headers: &HeaderMap, uri: &Uri) -> bool {
    // Browsers tell it on HTTPS and on loopback; a page can set neither header.
    if let Some(site) = text(headers, "sec-fetch-site") {
        return !["same-origin", "none"].contains(&site);
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    // `null`, which a page in a sandbox sends, has no host.
    let origin = origin.to_str().ok().and_then(|text| text.split_once("://")).map(|(_, host)| host);
    let asked = [
        text(headers, "host"),
        uri.authority().map(axum::http::uri::Authority::as_str),
        // A proxy that asks for us under another name. No page can send this to another origin unasked.
        text(headers, "x-forwarded-host"),
    ];
    let same = |asked: &str| origin.is_some_and(|origin| origin.eq_ignore_ascii_case(asked));
    !asked.into_iter().flatten().any(same)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Who is to be noted for what a request changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct By(Option<Caller>);

impl By {
    /// As the layer that let the request in has noted it.
    pub(crate) fn of(extensions: &Extensions) -> By {
        By(extensions.get::<Caller>().cloned())
    }

    /// Whose key what is stored counts for; `None` where nobody is asked for one.
    pub(crate) fn owner(&self) -> Option<Owner> {
        self.0.as_ref().map(Caller::owner)
    }

    /// `key NAME (ID)`; `api` where nobody is asked for a key.
    pub(crate) fn text(&self) -> Cow<'static, str> {
        self.0.as_ref().map_or("api".into(), |caller| caller.to_string().into())
    }
}

impl<S: Sync> FromRequestParts<S> for By {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<By, Infallible> {
        Ok(By::of(&parts.extensions))
    }
}

/// A request that changes something, until it is on record: a line of the log, and one of the audit log. Where the client
/// goes away before the answer, the record says so.
pub(crate) struct Noted {
    catalog: Arc<dyn Catalog>,
    line: Option<NewAudit>,
}

impl Noted {
    /// It begins.
    pub(crate) fn begin(
        shared: &Context,
        caller: Option<&Caller>,
        request_id: &str,
        method: &str,
        route: &str,
        path: &str,
    ) -> Noted {
        let line = NewAudit {
            key: caller.map(|caller| (caller.id(), caller.name().clone())),
            method: method.to_owned(),
            route: route.to_owned(),
            path: path.chars().take(PATH_CHARS_MAX).collect(),
            record: None,
            outcome: "cut off".to_owned(),
            request_id: request_id.to_owned(),
        };
        Noted { catalog: Arc::clone(&shared.catalog), line: Some(line) }
    }

    /// It was answered, and has made or loaded `record`.
    pub(crate) async fn end(mut self, record: Option<String>, outcome: String) {
        let Some(line) = self.line.take() else { return };
        let record = record.map(|record| record.chars().take(PATH_CHARS_MAX).collect());
        // In a task of its own: the client may go away while it is written.
        let written = keep(Arc::clone(&self.catalog), NewAudit { record, outcome, ..line });
        if let Err(error) = tokio::spawn(written).await {
            tracing::error!(%error, "A request is not on record: {error}");
        }
    }

    /// It was a step of something that will be on record.
    pub(crate) fn forget(mut self) {
        self.line = None;
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let (Some(line), Ok(runtime)) = (self.line.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(keep(Arc::clone(&self.catalog), line));
        }
    }
}

async fn keep(catalog: Arc<dyn Catalog>, line: NewAudit) {
    let NewAudit { method, path, outcome, request_id, .. } = &line;
    if let Some((id, name)) = &line.key {
        tracing::info!(key.id = %id, key.name = %name, request.id = %request_id, "Key {name} ({id}): {method} {path}: {outcome}");
    }
    // The change is made: that it is not on record must not make it look as if it were not.
    if let Err(error) = catalog.add_audit(line.clone()).await {
        tracing::error!(%error, request.id = %request_id, "A request is not on record: {method} {path}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    #[test]
    fn a_key_is_found_in_a_header_before_the_cookie() {
        let check = |headers: &[(&'static str, &'static str)], want: Given<'_>| {
            let pairs = headers
                .iter()
                .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let mut map = HeaderMap::new();
            pairs.for_each(|(name, value)| _ = map.append(name, value));
            assert_eq!(given(&map), want, "{headers:?}");
        };
        check(&[], Given::Nothing);
        check(&[("authorization", "Bearer k")], Given::Header("k"));
        check(&[("authorization", "bearer  k ")], Given::Header("k"));
        check(&[("authorization", "Basic k")], Given::Nothing);
        check(&[("authorization", "Basic k"), ("x-api-key", "j")], Given::Header("j"));
        check(&[("authorization", "Basic k"), ("cookie", "a=b; octet_key=c")], Given::Cookie("c"));
        check(&[("cookie", "octet_key=c"), ("authorization", "Bearer k")], Given::Header("k"));
        check(&[("cookie", "not_octet_key=c"), ("cookie", "octet_key=d")], Given::Cookie("d"));
        check(&[("x-api-key", "")], Given::Header(""));
    }

    #[test]
    fn only_a_browser_on_a_page_of_another_origin_comes_from_elsewhere() {
        let check = |headers: &[(&'static str, &'static str)], want: bool| {
            let pairs = headers
                .iter()
                .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let uri = Uri::from_static("/v1/models/m");
            assert_eq!(from_elsewhere(&pairs.collect(), &uri), want, "{headers:?}");
        };
        check(&[("host", "a:1")], false);
        check(&[("host", "a:1"), ("origin", "http://a:1")], false);
        check(&[("host", "a:1"), ("origin", "http://a:2")], true);
        check(&[("host", "a:1"), ("origin", "https://b")], true);
        check(&[("host", "a:1"), ("origin", "null")], true);
        check(&[("host", "octet:8000"), ("x-forwarded-host", "a"), ("origin", "https://a")], false);
        check(&[("host", "a"), ("origin", "http://a"), ("sec-fetch-site", "cross-site")], true);
        check(&[("host", "a"), ("origin", "http://b"), ("sec-fetch-site", "same-origin")], false);
        check(&[("host", "a"), ("sec-fetch-site", "same-site")], true);
        check(&[("host", "a"), ("sec-fetch-site", "none")], false);
    }
}
