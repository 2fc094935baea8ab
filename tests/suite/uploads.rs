//! `/v1/uploads`: tus 1.0.0, its refusals, quotas; digests of downloads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use octet::app::database;
use octet::config::{Flags, Settings};
use octet::service::keys::Token;
use octet::service::store::NewKey;
use reqwest::{Method, RequestBuilder};
use sha2::{Digest as _, Sha256};

use crate::support::app::{Answer, TestApp, send};
use crate::support::files;

const PART: &str = "application/offset+octet-stream";

fn tus(app: &TestApp, method: &str, path: &str) -> RequestBuilder {
    app.request(method.parse().unwrap(), path).header("tus-resumable", "1.0.0")
}

fn creation(app: &TestApp, kind: &str, bytes: usize) -> RequestBuilder {
    let metadata = format!("kind {},name {}", BASE64.encode(kind), BASE64.encode("linear"));
    let request = tus(app, "POST", "/v1/uploads").header("upload-length", bytes);
    request.header("upload-metadata", metadata)
}

async fn created(app: &TestApp, kind: &str, bytes: usize) -> String {
    let answer = send(creation(app, kind, bytes)).await.expect(201);
    assert_eq!(answer.header("tus-resumable"), "1.0.0");
    assert!(answer.header("upload-expires").ends_with(" GMT"), "{:?}", answer.headers);
    answer.header("location").to_owned()
}

fn patch(app: &TestApp, path: &str, offset: usize, part: &[u8]) -> RequestBuilder {
    let request = tus(app, "PATCH", path).header("upload-offset", offset).header("content-type", PART);
    request.body(part.to_vec())
}

async fn offset(app: &TestApp, path: &str) -> usize {
    let answer = send(tus(app, "HEAD", path)).await.expect(200);
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.header("upload-offset").parse().unwrap()
}

#[tokio::test]
async fn a_model_comes_in_parts_over_a_restart() {
    let mut app = TestApp::start().await;
    let model = files::linear();
    let path = created(&app, "model", model.len()).await;
    let answer = send(patch(&app, &path, 0, &model[..10])).await.expect(204);
    assert_eq!(answer.header("upload-offset"), "10");
    app.restart().await;
    assert_eq!(offset(&app, &path).await, 10);
    let answer = send(patch(&app, &path, 10, &model[10..])).await.expect(204);
    assert_eq!(answer.header("content-location"), "/v1/models/linear@1");
    assert_eq!(answer.header("upload-offset"), model.len().to_string());
    let whole = app.get("/v1/models/linear@1/download").await.expect(200);
    assert_eq!(whole.body, model);
    let digest = format!("sha-256=:{}:", BASE64.encode(Sha256::digest(&model)));
    assert_eq!(whole.header("repr-digest"), digest);
    let part = app.get_with("/v1/models/linear@1/download", "range", "bytes=2-3").await.expect(206);
    assert_eq!((part.header("repr-digest"), &part.body[..]), (digest.as_str(), &model[2..4]));
    // A client that has not heard of the end hears of it, also after a restart.
    app.restart().await;
    let head = send(tus(&app, "HEAD", &path)).await.expect(200);
    assert_eq!(head.header("content-location"), "/v1/models/linear@1");
    assert_eq!(head.header("upload-offset"), head.header("upload-length"));
    send(patch(&app, &path, model.len(), b"")).await.expect(204);
    // Gone is the upload, not the model.
    send(tus(&app, "DELETE", &path)).await.expect(204);
    send(patch(&app, &path, 0, b"x")).await.problem(404, "not_found", &["another replica"]);
    app.get("/v1/models/linear@1").await.expect(200);
}

#[tokio::test]
async fn a_dataset_comes_with_its_creation_and_is_served_as_any() {
    let app = TestApp::start().await;
    let data = files::samples(4);
    let request = creation(&app, "dataset", data.len()).header("content-type", PART).body(data.clone());
    let answer = send(request).await.expect(201);
    assert_eq!(answer.header("content-location"), "/v1/datasets/linear@1");
    let path = "/v1/datasets/linear/download";
    let whole = app.get(path).await.expect(200);
    assert_eq!(whole.body, data);
    assert!(whole.header("repr-digest").starts_with("sha-256=:"));
    let tag = whole.header("etag").to_owned();
    let ranged =
        |tag: &str| send(app.request(Method::GET, path).header("range", "bytes=0-3").header("if-range", tag));
    ranged(&tag).await.expect(206);
    assert_eq!(ranged("\"other\"").await.expect(200).body, data);
    let beyond = app.get_with(path, "range", "bytes=99999999-").await;
    assert_eq!(beyond.header("content-range"), format!("bytes */{}", data.len()));
    beyond.problem(416, "bad_range", &[]);
}

#[tokio::test]
async fn what_does_not_fit_the_protocol_is_refused_by_name() {
    let app = TestApp::with(&[("limits.model_bytes", "2000")]).await;
    let options = send(app.request(Method::OPTIONS, "/v1/uploads")).await.expect(204);
    assert_eq!(options.header("tus-version"), "1.0.0");
    let extensions = "creation,creation-with-upload,checksum,expiration,termination";
    assert_eq!(options.header("tus-extension"), extensions);
    assert_eq!(options.header("tus-checksum-algorithm"), "sha256,sha1");
    let path = created(&app, "model", 20).await;

    let other = app.request(Method::HEAD, &path).header("tus-resumable", "0.2.2");
    let other = send(other).await.expect(412);
    assert_eq!((other.header("tus-version"), other.header("tus-resumable")), ("1.0.0", "1.0.0"));
    send(app.request(Method::DELETE, &path)).await.problem(412, "tus_version", &["1.0.0"]);
    send(patch(&app, &path, 3, b"abc")).await.problem(409, "upload_offset", &["offset 0, not 3"]);
    let plain = tus(&app, "PATCH", &path).header("upload-offset", 0).body("abc");
    send(plain).await.problem(415, "unsupported_media", &[PART]);
    send(patch(&app, &path, 0, &[0; 21])).await.problem(413, "too_large", &["20 bytes"]);
    let wrong = format!("sha256 {}", BASE64.encode(Sha256::digest(b"other")));
    let summed = patch(&app, &path, 0, b"abc").header("upload-checksum", wrong);
    send(summed).await.problem(460, "checksum_mismatch", &["was not kept"]);
    assert_eq!(offset(&app, &path).await, 0);
    let right = format!("sha256 {}", BASE64.encode(Sha256::digest(b"abc")));
    let over = tus(&app, "POST", &path).header("x-http-method-override", "PATCH");
    let over = over.header("upload-offset", 0).header("content-type", PART).header("upload-checksum", right);
    assert_eq!(send(over.body("abc")).await.expect(204).header("upload-offset"), "3");
    // What is no model is refused with its last byte, and gone.
    send(patch(&app, &path, 3, &[7; 17])).await.problem(422, "bad_model", &[]);
    send(tus(&app, "HEAD", &path)).await.expect(404);

    send(creation(&app, "model", 2001)).await.problem(413, "too_large", &["2000"]);
    send(creation(&app, "model", 0)).await.problem(400, "bad_request", &["Upload-Length"]);
    send(creation(&app, "report", 9)).await.problem(400, "bad_request", &["kind", "report"]);
    send(tus(&app, "POST", "/v1/uploads").header("upload-length", 3)).await.problem(
        400,
        "bad_request",
        &["kind"],
    );
    let deferred = creation(&app, "model", 9).header("upload-defer-length", "1");
    send(deferred).await.problem(400, "bad_request", &["Upload-Defer-Length"]);
}

#[tokio::test]
async fn a_key_stores_no_more_than_its_quota() {
    let app = TestApp::with(&[("auth.mode", "keys")]).await;
    let (model, data) = (files::linear(), files::samples(4));
    let quota = (model.len() + data.len() - 1) as u64;
    let token = Token::new().unwrap();
    let (id, sha256) = (token.id(), token.sha256());
    let (name, scopes) = ("small".parse().unwrap(), "read,write".parse().unwrap());
    let flags = Flags { data_dir: Some(app.folder().to_owned()), ..Flags::default() };
    let catalog = database::open_catalog(&Settings::load(None, &flags).unwrap()).await.unwrap();
    let new = NewKey { id, name, sha256, scopes, rate: None, quota: Some(quota), lifetime: None };
    catalog.create_key(new).await.unwrap();
    let with = |request: RequestBuilder| send(request.bearer_auth(token.reveal()));
    while with(app.request(Method::GET, "/v1/models")).await.status == 401 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let put = |path: &'static str, body: &[u8]| with(app.request(Method::PUT, path).body(body.to_vec()));
    put("/v1/models/linear", &model).await.expect(201);
    put("/v1/models/linear", &model).await.expect(200);
    let full = |answer: Answer| {
        answer.problem(
            413,
            "quota_exceeded",
            &[&format!("may store {quota}"), &format!("{} are used", model.len())],
        );
    };
    full(put("/v1/datasets/d", &data).await);
    full(with(creation(&app, "dataset", data.len())).await);
    // What is announced counts until it is given up.
    let upload = with(creation(&app, "dataset", data.len() - 1)).await.expect(201);
    with(creation(&app, "dataset", 1)).await.problem(413, "quota_exceeded", &[]);
    with(tus(&app, "DELETE", upload.header("location"))).await.expect(204);
    with(app.request(Method::DELETE, "/v1/models/linear")).await.expect(204);
    put("/v1/datasets/d", &data).await.expect(201);
}

#[tokio::test]
async fn who_changed_what_is_on_record() {
    let app = TestApp::start().await;
    let model = files::linear();
    app.put("/v1/models/linear", model.clone()).await.expect(201);
    let path = created(&app, "model", model.len()).await;
    send(patch(&app, &path, 0, &model[..10])).await.expect(204);
    send(patch(&app, &path, 10, &model[10..])).await.expect(204);
    app.delete("/v1/models/nobody").await.expect(404);
    let lines = app.get("/v1/audit").await.expect(200).json();
    let seen: Vec<_> = lines["items"].as_array().unwrap().iter().collect();
    let short = |line: &serde_json::Value| {
        let part = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
        [part("method"), part("route"), part("record"), part("outcome")].join(" ")
    };
    let short: Vec<_> = seen.iter().map(|line| short(line)).collect();
    let want = [
        "DELETE /v1/models/{name} - 404".to_owned(),
        "PATCH /v1/uploads/{id} /v1/models/linear@1 204".to_owned(),
        format!("POST /v1/uploads {path} 201"),
        "PUT /v1/models/{name} /v1/models/linear@1 201".to_owned(),
    ];
    assert_eq!(short, want, "{lines:#}");
    assert_eq!(seen[0]["path"], "/v1/models/nobody");
    assert_eq!(seen[0]["key"], serde_json::Value::Null);
}
