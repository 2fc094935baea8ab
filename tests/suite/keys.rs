//! Who may do what: every route without a key, with the wrong one and with the right one; browsers; rates; the record.

use std::time::{Duration, Instant};

use octet::app::{database, server};
use octet::config::{Flags, Settings};
use octet::service::keys::Token;
use octet::service::store::NewKey;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::json;

use crate::support::app::{Answer, TestApp, send};
use crate::support::files;

const SCOPES: [&str; 4] = ["read", "infer", "write", "admin"];

async fn guarded() -> TestApp {
    TestApp::with(&[("auth.mode", "keys")]).await
}

/// Makes a key as `octet key create` does, beside the server, and waits until that knows it.
async fn key(app: &TestApp, scopes: &str, rate: Option<u32>) -> Token {
    let token = Token::new().unwrap();
    let name = format!("test-{}", scopes.replace(',', "-")).parse().unwrap();
    let (id, sha256, scopes) = (token.id(), token.sha256(), scopes.parse().unwrap());
    catalog(app)
        .await
        .create_key(NewKey { id, name, sha256, scopes, rate, quota: None, lifetime: None })
        .await
        .unwrap();
    let begin = Instant::now();
    while !app.get_with("/login", "x-api-key", &token.reveal()).await.text().contains("You are signed in") {
        assert!(begin.elapsed() < Duration::from_secs(2), "the key is not known after two seconds");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    token
}

async fn catalog(app: &TestApp) -> std::sync::Arc<dyn octet::service::store::Catalog> {
    let flags = Flags { data_dir: Some(app.folder().to_owned()), ..Flags::default() };
    database::open_catalog(&Settings::load(None, &flags).unwrap()).await.unwrap()
}

fn with(request: RequestBuilder, key: &Token) -> RequestBuilder {
    request.bearer_auth(key.reveal())
}

/// Every method and path of the document.
fn operations() -> Vec<(Method, String)> {
    let document = octet::api::http::router::openapi();
    let mut path = None;
    let mut found = Vec::new();
    for line in document.lines() {
        if let Some(text) = line.strip_prefix("  /") {
            path = Some(format!("/{}", text.trim_end_matches(':')));
        } else if let (Some(path), Some(name)) = (&path, line.strip_prefix("    ")) {
            let method = ["get", "put", "post", "delete"].into_iter().find(|m| name == format!("{m}:"));
            found.extend(method.map(|m| (m.to_uppercase().parse().unwrap(), path.clone())));
        } else if !line.starts_with(' ') && line != "paths:" {
            path = None;
        }
    }
    found
}

/// What the project has promised, said without a look at the router.
fn promised(method: &Method, path: &str) -> Option<&'static str> {
    match (method, path) {
        (_, path) if path.starts_with("/v2/health/") => None,
        (_, "/v1/audit") => Some("admin"),
        (&Method::GET, _) | (_, "/v2/repository/index") => Some("read"),
        (_, path) if path.ends_with("/infer") || path.starts_with("/v2/systemsharedmemory/") => Some("infer"),
        (_, path) if path.starts_with("/v2") => Some("admin"),
        _ => Some("write"),
    }
}

fn filled(path: &str) -> String {
    let one = "0".repeat(32);
    let path = path.replace("/jobs/{id}", &format!("/jobs/job_{one}"));
    let path = path.replace("{id}", &format!("art_{one}")).replace("{other}", &format!("art_{one}"));
    path.replace("{version}", "1")
        .replace("{name}", "nothing")
        .replace("{*rest}", "status")
        .replace("{digest}", "0")
}

#[tokio::test]
async fn every_route_of_the_document_asks_for_its_scope() {
    let app = guarded().await;
    let mut keys = Vec::new();
    for scope in SCOPES {
        keys.push((scope, key(&app, scope, None).await));
    }
    let operations = operations();
    assert!(operations.len() > 50, "{operations:?}");
    for (method, path) in operations {
        let ask = || app.request(method.clone(), &filled(&path));
        let without = send(ask()).await;
        let Some(needs) = promised(&method, &path) else {
            assert_eq!(without.status, 200, "{method} {path}");
            continue;
        };
        assert_eq!(without.header("www-authenticate"), "Bearer realm=\"octet\"", "{method} {path}");
        refused(without, &path, 401, "unauthenticated");
        let stranger = Token::new().unwrap();
        refused(send(with(ask(), &stranger)).await, &path, 401, "unauthenticated");
        for (scope, key) in &keys {
            let answer = send(with(ask(), key)).await;
            if *scope == needs || *scope == "admin" {
                let status = answer.status.as_u16();
                assert!(![401, 403].contains(&status), "{method} {path} with {scope}: {}", answer.text());
            } else {
                refused(answer, &path, 403, "forbidden");
            }
        }
    }
}

#[tokio::test]
async fn inference_is_refused_alike_by_the_direct_way_and_by_the_routes() {
    let app = guarded().await;
    let (read, infer) = (key(&app, "read", None).await, key(&app, "infer", None).await);
    for path in ["/v2/models/nothing/infer", "/v2/models/nothing/versions/1/infer"] {
        // What must be decoded goes by the routes.
        let routed = path.replace("nothing", "%6eothing");
        for key in [None, Some(&read), Some(&infer)] {
            let mut answers = Vec::new();
            for path in [path, &routed] {
                let request = app.request(Method::POST, path).body("{}");
                let answer = send(if let Some(key) = key { with(request, key) } else { request }).await;
                let mut body = answer.json();
                assert_eq!(body["request_id"].take(), answer.header("x-request-id"), "{path}");
                let mut names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
                names.sort();
                answers.push((answer.status, body, names));
            }
            assert_eq!(answers[0], answers[1], "{path}");
        }
    }
}

#[track_caller]
fn refused(answer: Answer, path: &str, status: u16, code: &str) {
    match path.starts_with("/v2") {
        true => answer.error(status, code, &[]),
        false => answer.problem(status, code, &[]),
    }
}

#[tokio::test]
async fn every_other_route_asks_too_but_those_to_sign_in() {
    let app = guarded().await;
    let (read, infer) = (key(&app, "read", None).await, key(&app, "infer", None).await);
    let router = include_str!("../../src/api/http/router.rs");
    let paths: Vec<&str> =
        router.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(paths.contains(&"/endpoints/{name}") && paths.len() > 12, "{paths:?}");
    for path in paths {
        let ask = || app.request(Method::GET, &filled(path)).header("accept", "text/html");
        let without = send(ask()).await;
        if ["/login", "/logout", "/favicon.ico"].contains(&path) || path.starts_with("/assets/") {
            assert_ne!(without.status, 401, "{path}");
            continue;
        }
        assert_eq!(without.status, 401, "{path}");
        if !path.starts_with("/v2/") {
            let text = without.text();
            assert!(
                text.contains("name=\"key\"") && text.contains(&format!("value=\"{}\"", filled(path))),
                "{text}"
            );
        }
        assert_eq!(send(with(ask(), &infer)).await.status, 403, "{path}");
        assert!(![401, 403].contains(&send(with(ask(), &read)).await.status.as_u16()), "{path}");
    }
    app.get("/nonsense").await.expect(404);
}

#[tokio::test]
async fn a_browser_signs_in_and_other_pages_cannot_use_that() {
    let app = guarded().await;
    let all = key(&app, "read,write", None).await;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let url = format!("http://{}", app.address());
    let sign_in = |key: &str, next: &str, origin: &str| {
        let form = format!("key={key}&next={next}");
        let request = client.post(format!("{url}/login")).header("origin", origin);
        send(request.header("content-type", "application/x-www-form-urlencoded").body(form))
    };
    let wrong = sign_in(&Token::new().unwrap().reveal(), "/jobs", &url).await.expect(401);
    assert!(wrong.text().contains("the key is not known") && wrong.header("set-cookie").is_empty());
    sign_in(&all.reveal(), "/", "https://evil.example").await.expect(403);
    sign_in(&"x".repeat(20_000), "/", &url).await.expect(400);
    let right = sign_in(&all.reveal(), "/jobs", &url).await.expect(303);
    assert_eq!(right.header("location"), "/jobs");
    assert_eq!(sign_in(&all.reveal(), "//evil.example", &url).await.expect(303).header("location"), "/");
    let set = right.header("set-cookie").to_owned();
    assert_eq!(set, format!("octet_key={}; Path=/; HttpOnly; SameSite=Strict", all.reveal()));
    let cookie = set.split(';').next().unwrap();

    let ask =
        |method: Method, path: &str| client.request(method, format!("{url}{path}")).header("cookie", cookie);
    send(ask(Method::GET, "/jobs")).await.expect(200);
    let status = send(ask(Method::GET, "/login")).await.expect(200).text();
    assert!(status.contains("test-read-write") && !status.contains(&all.reveal()), "{status}");
    let put = || ask(Method::PUT, "/v1/models/linear").body(files::linear());
    for (name, value) in
        [("origin", "https://evil.example"), ("origin", "null"), ("sec-fetch-site", "same-site")]
    {
        send(put().header(name, value)).await.problem(403, "forbidden", &["another origin"]);
    }
    send(put().header("origin", &url)).await.expect(201);
    // A program has put its key there itself.
    let own = app.request(Method::PUT, "/v1/models/linear").header("origin", "https://evil.example");
    send(with(own, &all).body(files::linear())).await.expect(200);
    let out =
        send(client.post(format!("{url}/logout")).header("sec-fetch-site", "same-origin")).await.expect(303);
    assert!(out.header("set-cookie").starts_with("octet_key=; Max-Age=0; Path=/"), "{:?}", out.headers);
}

#[tokio::test]
async fn pages_of_strangers_reach_no_server_on_loopback_either() {
    let app = TestApp::start().await;
    let put = |origin: String| {
        let request = app.request(Method::PUT, "/v1/models/linear").header("origin", origin);
        send(request.body(files::linear()))
    };
    put("https://evil.example".to_owned()).await.problem(403, "forbidden", &["another origin"]);
    put(format!("http://{}", app.address())).await.expect(201);
    app.get("/").await.expect(200);
    assert!(app.get("/login").await.expect(200).text().contains("asks nobody for a key"));
}

#[tokio::test]
async fn a_revoked_key_is_refused_within_two_seconds() {
    let app = guarded().await;
    let token = key(&app, "read", None).await;
    let ask = || send(with(app.request(Method::GET, "/v1/models"), &token));
    ask().await.expect(200);
    catalog(&app).await.revoke_key(token.id()).await.unwrap();
    let begin = Instant::now();
    let answer = loop {
        let answer = ask().await;
        if answer.status != 200 {
            break answer;
        }
        assert!(begin.elapsed() < Duration::from_secs(2), "it is taken after two seconds");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    answer.problem(401, "unauthenticated", &["was revoked at", &token.id().to_string()]);
    let metrics =
        send(with(app.request(Method::GET, "/metrics"), &key(&app, "read", None).await)).await.text();
    assert!(metrics.contains("octet_auth_refused_total{reason=\"revoked\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_key_is_good_for_its_rate() {
    let app = guarded().await;
    let token = key(&app, "read", Some(3)).await;
    let other = key(&app, "read", None).await;
    let ask = |key| send(with(app.request(Method::GET, "/v1/models"), key));
    let mut taken = 0;
    let answer = loop {
        let answer = ask(&token).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            break answer;
        }
        taken += 1;
        assert!(taken < 1_000, "no request is refused");
    };
    assert!(taken >= 3, "{taken}");
    assert_eq!(answer.header("retry-after"), "1");
    answer.problem(429, "rate_limited", &["3 requests a second"]);
    ask(&other).await.expect(200);
}

#[tokio::test]
async fn changes_of_an_endpoint_tell_whose_key_made_them() {
    let app = guarded().await;
    let token = key(&app, "read,write", None).await;
    let ask = |method: Method, path: &str| with(app.request(method, path), &token);
    send(ask(Method::PUT, "/v1/models/linear").body(files::linear())).await.expect(201);
    let body = json!({ "model": "linear" }).to_string();
    send(ask(Method::PUT, "/v1/endpoints/linear").body(body)).await.expect(201);
    send(ask(Method::DELETE, "/v1/endpoints/linear")).await.expect(204);
    let changes = send(ask(Method::GET, "/v1/endpoints/linear/changes")).await.expect(200).json();
    let want = format!("key test-read-write ({})", token.id());
    let by: Vec<_> =
        changes["items"].as_array().unwrap().iter().map(|item| item["by"].as_str().unwrap()).collect();
    assert_eq!(by, [&want, &want]);
    assert!(!changes.to_string().contains(token.reveal().rsplit('_').next().unwrap()));
}

#[tokio::test]
async fn a_load_and_an_unload_over_grpc_are_on_record_with_their_endpoint() {
    let app = TestApp::start().await;
    app.serve().await;
    // The second field of the message is the name. What answers reads calls over HTTP/1 too.
    let message =
        |name: &str| [&[0, 0, 0, 0, name.len() as u8 + 2, 0x12, name.len() as u8], name.as_bytes()].concat();
    let client = reqwest::Client::new();
    for (call, name) in [
        ("RepositoryModelUnload", "linear"),
        ("RepositoryModelLoad", "linear"),
        ("RepositoryModelLoad", "none"),
    ] {
        let url = format!("http://{}/inference.GRPCInferenceService/{call}", app.grpc_address());
        let request = client.post(url).header("content-type", "application/grpc").header("te", "trailers");
        send(request.body(message(name))).await.expect(200);
        let line = app.get("/v1/audit").await.expect(200).json()["items"][0].clone();
        assert!(line["route"].as_str().unwrap().ends_with(call), "{line}");
        assert_eq!(line["record"], format!("/v1/endpoints/{name}"), "{line}");
        assert_eq!(line["outcome"], if name == "none" { "NotFound" } else { "Ok" }, "{line}");
    }
}

#[tokio::test]
async fn an_address_that_others_reach_needs_keys_or_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |listen: &str, grpc: &str, set: &[(&str, &str)]| {
        let flags = Flags {
            listen: Some(listen.to_owned()),
            grpc_listen: Some(grpc.to_owned()),
            data_dir: Some(folder.path().join("data")),
            set: set.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        };
        Settings::load(None, &flags).unwrap()
    };
    for (listen, grpc) in [("0.0.0.0:0", "off"), ("[::]:0", "off"), ("127.0.0.1:0", "0.0.0.0:0")] {
        let error = server::start(&settings(listen, grpc, &[])).await.err().expect("it is refused");
        let text = error.to_string();
        assert!(text.contains("auth.mode = \"keys\"") && text.contains("auth.allow_public = true"), "{text}");
    }
    assert!(!folder.path().join("data").exists(), "nothing is made before");
    for set in [("auth.mode", "keys"), ("auth.allow_public", "true")] {
        server::start(&settings("0.0.0.0:0", "off", &[set])).await.unwrap().stop().await;
    }
}

/// What `octet` says when it is run, standard output and standard error together, and how it ends.
fn octet(arguments: &[&str]) -> (Option<i32>, String) {
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_octet")).args(arguments).output().unwrap();
    let text = [ran.stdout, ran.stderr].concat();
    (ran.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn what_works_on_a_database_makes_none_where_it_was_misspelt() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (backup, data) = (at("backup"), at("not/there"));
    for command in
        [&["backup", backup.as_str()][..], &["key", "list"], &["key", "revoke", "0123456789abcdef"]]
    {
        let (code, text) = octet(&[command, &["--data-dir", &data]].concat());
        assert_eq!(code, Some(if command[0] == "backup" { 1 } else { 2 }), "{command:?}: {text}");
        assert!(text.contains(&data) && text.contains("--data-dir"), "{command:?}: {text}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{command:?}");
    }
    // A first key is made before the first start, as the tables may be.
    for (command, folder) in
        [(&["key", "create", "--name", "ci", "--scope", "read"][..], "new"), (&["migrate"], "other")]
    {
        let place = ["--data-dir", &at(folder)];
        let (code, text) = octet(&[command, &place].concat());
        assert!(code == Some(0) && text.contains("A new database was made"), "{command:?}: {text}");
        let (code, text) = octet(&[command, &place].concat());
        assert!(code == Some(0) && !text.contains("A new database"), "{command:?}: {text}");
    }
    let (code, text) = octet(&["key", "list", "--data-dir", &at("new")]);
    assert!(code == Some(0) && text.matches(" ci ").count() == 2, "{text}");
}
