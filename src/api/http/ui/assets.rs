//! The files that pages need: style, scripts, the icon. Compiled in, and named by their digest.

use std::sync::OnceLock;

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use sha2::{Digest as _, Sha256};

use crate::api::error::{Code, Problem};
use crate::api::http::{etag, none_match};

/// A file of the pages.
struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! assets {
    ($($name:literal $kind:literal;)*) => {
        const ASSETS: &[Asset] =
            &[$(Asset { name: $name, kind: $kind, text: include_str!(concat!("assets/", $name)) }),*];
    };
}

assets! {
    "style.css" "text/css; charset=utf-8";
    "app.js" "text/javascript; charset=utf-8";
    "net.js" "text/javascript; charset=utf-8";
    "upload.js" "text/javascript; charset=utf-8";
    "jobs.js" "text/javascript; charset=utf-8";
    "charts.js" "text/javascript; charset=utf-8";
    "ask.js" "text/javascript; charset=utf-8";
    "rollout.js" "text/javascript; charset=utf-8";
    "endpoint.js" "text/javascript; charset=utf-8";
    "tryit.js" "text/javascript; charset=utf-8";
    "docs.js" "text/javascript; charset=utf-8";
    "icon.svg" "image/svg+xml";
}

/// Names all assets together: a script that imports another by a relative path gets the one of its own build.
fn digest() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| {
        let mut hash = Sha256::new();
        for asset in ASSETS {
            hash.update(asset.name);
            hash.update(asset.text);
        }
        hex::encode(&hash.finalize()[..8])
    })
}

/// Where a page finds an asset.
pub(crate) fn href(name: &str) -> String {
    format!("/assets/{}/{name}", digest())
}

/// Hands out an asset. Under the digest of this build it never changes; under another, the browser asks again.
pub(crate) async fn get(
    Path((of, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    let asset = asset.ok_or_else(|| Problem::new(Code::NotFound, format!("no asset `{name}`")))?;
    let tag = etag(digest());
    let cache = if of == digest() { "public, max-age=31536000, immutable" } else { "no-cache" };
    let fields =
        [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, cache.parse().map_err(Problem::internal)?)];
    if none_match(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, fields).into_response());
    }
    let more = [(header::CONTENT_TYPE, asset.kind), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((fields, more, asset.text).into_response())
}

/// Pages without a frame, such as reports, have the icon that browsers ask for by themselves.
pub(crate) async fn icon() -> Redirect {
    Redirect::temporary(&href("icon.svg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_asset_is_kept_for_long_only_under_its_own_digest() {
        let ask = |of: &str, headers: HeaderMap| get(Path((of.to_owned(), "app.js".to_owned())), headers);
        let answer = ask(digest(), HeaderMap::new()).await.unwrap();
        assert!(answer.headers()["cache-control"].to_str().unwrap().contains("immutable"));
        assert_eq!(answer.headers()["content-type"], "text/javascript; charset=utf-8");
        let old = ask("0123", HeaderMap::new()).await.unwrap();
        assert_eq!(old.headers()["cache-control"], "no-cache");
        let mut known = HeaderMap::new();
        known.insert("if-none-match", answer.headers()["etag"].clone());
        assert_eq!(ask(digest(), known).await.unwrap().status(), StatusCode::NOT_MODIFIED);
        let none = get(Path((digest().to_owned(), "../mod.rs".to_owned())), HeaderMap::new()).await;
        assert_eq!(none.unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_nothing_is_written_as_markup() {
        for asset in ASSETS {
            let text = asset.text.replace("http://www.w3.org/2000/svg", "");
            for bad in [
                "http://",
                "https://",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                assert!(!text.contains(bad), "{} has {bad}", asset.name);
            }
        }
    }
}
