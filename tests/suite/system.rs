//! The server about itself: health, metrics, the OpenAPI document, the page, request ids.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;

use crate::support::app::{TestApp, send};

#[test]
fn the_openapi_document_is_the_one_of_the_code() {
    let generated = octet::api::http::router::openapi();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &generated).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap();
    assert!(kept == generated, "openapi.yaml is old: UPDATE=1 cargo test --test suite openapi");
}

#[test]
fn operations_have_names_of_their_own_and_files_are_bytes() {
    let document = octet::api::http::router::openapi();
    let ids: Vec<&str> =
        document.lines().filter_map(|line| line.trim().strip_prefix("operationId: ")).collect();
    assert!(ids.contains(&"list_models") && ids.contains(&"get_job"), "{ids:?}");
    let distinct: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    let lines: Vec<&str> = document.lines().map(str::trim).collect();
    let files = lines.windows(4).filter(|lines| lines[0].ends_with("octet-stream:")).inspect(|lines| {
        assert_eq!(lines[1..], ["schema:", "type: string", "format: binary"]);
    });
    assert!(files.count() > 9);
}

#[tokio::test]
async fn health_speaks_json() {
    let app = TestApp::start().await;
    assert_eq!(app.get("/v2/health/live").await.expect(200).json(), json!({ "live": true }));
    assert_eq!(app.get("/v2/health/ready").await.expect(200).json(), json!({ "ready": true }));
    let server = app.get("/v2").await.expect(200).json();
    assert_eq!(server["name"], "octet");
    let extensions = server["extensions"].as_array().unwrap();
    for extension in ["binary_tensor_data", "statistics", "model_repository", "classification"] {
        assert!(extensions.contains(&json!(extension)), "{server}");
    }
}

#[tokio::test]
async fn what_is_no_route_is_told_in_the_words_of_its_api() {
    let app = TestApp::start().await;
    app.get("/v1/nonsense").await.problem(404, "no_route", &["/v1/nonsense"]);
    app.get("/nonsense").await.problem(404, "no_route", &["/nonsense"]);
    for path in ["/nonsense", "/models/linear", "/jobs?limit=abc"] {
        let page = app.get_with(path, "accept", "text/html,*/*;q=0.8").await;
        assert!(page.status.is_client_error(), "{path}: {}", page.status);
        assert!(page.header("content-type").starts_with("text/html"), "{path}: {:?}", page.headers);
        assert!(page.text().contains("<h1>") && page.text().contains("href=\"/\""), "{path}");
    }
    app.get_with("/v1/nonsense", "accept", "text/html").await.problem(404, "no_route", &["/v1/nonsense"]);
    app.get("/v2/nonsense").await.error(404, "no_route", &["/v2/nonsense"]);
    app.get("/v2/systemsharedmemory/status").await.error(501, "not_implemented", &["serving.shared_memory"]);
    app.get("/v2/cudasharedmemory/status").await.error(501, "not_implemented", &["CUDA"]);
    let answer = app.delete("/v1/jobs").await;
    assert!(answer.header("allow").contains("POST"), "{:?}", answer.headers);
    answer.problem(405, "method_not_allowed", &[]);
}

#[tokio::test]
async fn a_request_keeps_its_id() {
    let app = TestApp::start().await;
    let answer = app.get_with("/v1/nonsense", "x-request-id", "my-id-7").await;
    assert_eq!(answer.header("x-request-id"), "my-id-7");
    assert_eq!(answer.json()["request_id"], "my-id-7");
    assert_eq!(app.get("/v2/health/live").await.header("x-request-id").len(), 32);
    let long = "x".repeat(200);
    assert_ne!(app.get_with("/v2", "x-request-id", &long).await.header("x-request-id"), long);
}

#[tokio::test]
async fn metrics_count_by_route_and_not_by_path() {
    let app = TestApp::start().await;
    app.serve().await;
    app.get("/v1/models/some-name").await.expect(404);
    app.get("/v1/other/path").await.expect(404);
    // Where a name must be decoded, the request goes by the routes, else past them.
    for name in ["linear", "line%61r"] {
        let request = app.request(Method::POST, &format!("/v2/models/{name}/infer"));
        let request = request.header("Inference-Header-Content-Length", "0").body(vec![0; 16]);
        send(request).await.expect(200);
    }
    let metrics = app.get("/metrics").await.expect(200);
    assert!(metrics.header("content-type").starts_with("text/plain"));
    let text = metrics.text();
    assert!(!text.contains("some-name") && !text.contains("/v1/other"), "{text}");
    for want in [
        r#"route="/v1/models/{name}""#,
        r#"route="_none""#,
        "octet_inference_requests_total",
        "octet_inference_compute_duration_seconds_bucket",
        "octet_inference_queue_limit",
        r#"outcome="ok""#,
        r#"octet_http_requests_total{method="POST",route="/v2/models/{name}/infer",status="200"} 2"#,
    ] {
        assert!(text.contains(want), "no {want} in\n{text}");
    }
}

#[tokio::test]
async fn the_page_and_the_document_need_nothing_from_elsewhere() {
    let app = TestApp::start().await;
    app.quantize(json!({ "endpoint": "int8" })).await;
    let page = app.get("/").await.expect(200);
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    let text = page.text();
    for want in ["linear@1", "int8", "report.html", "succeeded"] {
        assert!(text.contains(want), "no {want} in\n{text}");
    }
    assert!(!text.contains("http://") && !text.contains("https://"), "{text}");
    let document = app.get("/openapi.yaml").await.expect(200);
    assert_eq!(document.text(), octet::api::http::router::openapi());
}

#[test]
fn every_route_of_the_issue_is_in_the_document() {
    let document = octet::api::http::router::openapi();
    let paths: BTreeSet<&str> =
        document.lines().filter_map(|l| l.strip_prefix("  /")?.strip_suffix(':')).collect();
    for path in [
        "v1/models",
        "v1/models/{name}",
        "v1/datasets",
        "v1/datasets/{name}",
        "v1/jobs",
        "v1/jobs/{id}",
        "v1/jobs/{id}/cancel",
        "v1/jobs/{id}/events",
        "v1/artifacts",
        "v1/artifacts/{id}",
        "v1/artifacts/{id}/download",
        "v1/artifacts/{id}/report",
        "v1/artifacts/{id}/report.html",
        "v1/endpoints",
        "v1/endpoints/{name}",
        "v2",
        "v2/health/live",
        "v2/health/ready",
        "v2/models",
        "v2/models/{name}",
        "v2/models/{name}/infer",
        "v2/models/{name}/versions/{version}/infer",
        "v2/models/{name}/ready",
        "v2/models/{name}/config",
        "v2/models/{name}/stats",
        "v2/logging",
        "v2/trace/setting",
        "v2/models/{name}/trace/setting",
        "v2/repository/index",
        "v2/repository/models/{name}/load",
        "v2/repository/models/{name}/unload",
        "metrics",
        "openapi.yaml",
    ] {
        assert!(paths.contains(path), "{path} is not in {paths:?}");
    }
}

#[test]
fn the_table_of_refusals_has_every_code_of_the_server_with_its_status() {
    let read = |path| std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (code, document) = (read("src/api/error.rs"), read("docs/API.md"));
    // A row of the table in error.rs: `StatusCode::NAME, "code", "Title"`.
    let mut rows = 0;
    for part in code.split("(StatusCode::").skip(1) {
        let (name, rest) = part.split_once(", \"").unwrap();
        let Some((text, _)) = rest.split_once('"').filter(|_| !name.contains(' ')) else { continue };
        let status: reqwest::StatusCode = status_of(name);
        let row = format!("| `{text}` | {} |", status.as_u16());
        assert!(document.contains(&row), "docs/API.md has no row `{row}`");
        rows += 1;
    }
    assert!(rows > 20, "only {rows} rows were found in src/api/error.rs");
}

/// The status that a constant such as `NOT_FOUND` stands for.
fn status_of(constant: &str) -> reqwest::StatusCode {
    let name = constant.replace('_', " ").to_lowercase();
    let known = (400..600).filter_map(|n| reqwest::StatusCode::from_u16(n).ok());
    let mut known =
        known.filter(|s| s.canonical_reason().is_some_and(|r| r.to_lowercase().replace('-', " ") == name));
    known.next().unwrap_or_else(|| panic!("no status is called {constant}"))
}
