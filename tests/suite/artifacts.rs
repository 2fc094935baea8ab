//! `/v1/artifacts`.

use reqwest::Method;
use serde_json::json;

use crate::support::app::{TestApp, send};

#[tokio::test]
async fn an_artifact_is_found_downloaded_in_parts_reported_and_deleted() {
    let app = TestApp::start().await;
    let job = app.quantize(json!({})).await;
    let id = job["result"]["artifact"]["id"].as_str().unwrap();
    let base = format!("/v1/artifacts/{id}");
    let artifact = app.get(&base).await.expect(200).json();
    assert_eq!(artifact["job"], job["id"]);
    assert_eq!(artifact["model"], "linear@1");
    assert_eq!(artifact["bytes"], job["result"]["artifact"]["bytes"]);
    let job_id = job["id"].as_str().unwrap();
    for query in ["", "?model=linear", &format!("?job={job_id}"), &format!("?model=linear&job={job_id}")] {
        let list = app.get(&format!("/v1/artifacts{query}")).await.expect(200).json();
        assert_eq!(list["items"], json!([artifact]), "{query}");
    }

    let path = format!("{base}/download");
    let whole = app.get(&path).await.expect(200);
    assert_eq!(whole.body.len() as u64, artifact["bytes"].as_u64().unwrap());
    assert_eq!(whole.header("accept-ranges"), "bytes");
    assert!(whole.header("content-disposition").contains("linear-1.int8.onnx"));
    let tag = whole.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}\"", artifact["sha256"].as_str().unwrap()));
    app.get_with(&path, "if-none-match", &tag).await.expect(304);

    let part = app.get_with(&path, "range", "bytes=10-19").await.expect(206);
    assert_eq!(part.body, whole.body[10..20]);
    assert_eq!(part.header("content-range"), format!("bytes 10-19/{}", whole.body.len()));
    let head = app.request(Method::HEAD, &path).header("range", "bytes=10-19");
    let head = send(head).await.expect(200);
    assert_eq!(head.header("content-length"), whole.body.len().to_string());
    app.get_with(&path, "if-match", &tag).await.expect(200);
    app.get_with(&path, "if-match", "\"x\"").await.problem(412, "revision_mismatch", &["If-Match"]);
    let tail = app.get_with(&path, "range", "bytes=-5").await.expect(206);
    assert_eq!(tail.body, whole.body[whole.body.len() - 5..]);
    let beyond = app.get_with(&path, "range", "bytes=99999999-").await;
    assert_eq!(beyond.header("content-range"), format!("bytes */{}", whole.body.len()));
    beyond.problem(416, "bad_range", &[&whole.body.len().to_string()]);

    let report = app.get(&format!("{base}/report")).await.expect(200);
    assert_eq!(report.header("content-type"), "application/json");
    assert!(report.json().is_object());
    let page = app.get(&format!("{base}/report.html")).await.expect(200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(
        page.header("content-security-policy").starts_with("default-src 'none'; style-src"),
        "it runs nothing"
    );
    for said in [
        "<html",
        "<title>linear@1 in INT8</title>",
        "<h1>linear@1 in INT8",
        "calibrated on samples@1",
        "begun at 2",
    ] {
        assert!(page.text().contains(said), "{said}: {}", page.text());
    }

    app.delete(&base).await.expect(204);
    app.get(&base).await.problem(404, "not_found", &[id]);
    app.get(&path).await.problem(404, "not_found", &[id]);
}

#[tokio::test]
async fn what_an_endpoint_serves_is_not_deleted() {
    let app = TestApp::start().await;
    let job = app.quantize(json!({ "endpoint": "int8" })).await;
    let id = job["result"]["artifact"]["id"].as_str().unwrap();
    app.delete(&format!("/v1/artifacts/{id}")).await.problem(409, "in_use", &["int8"]);
    app.delete("/v1/models/linear").await.problem(409, "in_use", &["int8"]);
    app.delete("/v1/endpoints/int8").await.expect(204);
    app.delete(&format!("/v1/artifacts/{id}")).await.expect(204);
    app.delete("/v1/models/linear").await.expect(204);
}

#[tokio::test]
async fn two_artifacts_are_compared_as_json_and_as_a_page() {
    let app = TestApp::start().await;
    let mut ids = Vec::new();
    for recipe in
        [json!({ "scheme": "static" }), json!({ "scheme": "static", "weights": { "max_code": 64 } })]
    {
        let job = app.quantize(json!({ "recipe": recipe })).await;
        ids.push(job["result"]["artifact"]["id"].as_str().unwrap().to_owned());
    }
    let path = format!("/v1/artifacts/{}/diff/{}", ids[0], ids[1]);
    let found = app.get(&path).await.expect(200).json();
    assert_eq!(found["same_model"], true, "{found:#}");
    assert_eq!(found["recipe"], json!([{ "field": "weights.max_code", "a": 127, "b": 64 }]));
    assert_eq!(found["layers"][0]["node"], "gemm", "{found:#}");
    assert!(found["layers"][0]["changed"].as_array().unwrap().contains(&json!("max_code")), "{found:#}");
    let page = app.get_with(&path, "accept", "text/html,*/*;q=0.8").await.expect(200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.text().contains("weights.max_code"));
    let same = app.get(&format!("/v1/artifacts/{0}/diff/{0}", ids[0])).await.expect(200).json();
    assert_eq!((&same["layers"], &same["recipe"]), (&json!([]), &json!([])));
    let nobody = "art_00000000000000000000000000000000";
    app.get(&format!("/v1/artifacts/{}/diff/{nobody}", ids[0])).await.problem(404, "not_found", &[nobody]);
}

#[tokio::test]
async fn an_artifact_in_float16_is_named_so() {
    let app = TestApp::start().await;
    let job = app.quantize(json!({ "recipe": { "scheme": "float16" } })).await;
    let id = job["result"]["artifact"]["id"].as_str().unwrap();
    let file = app.get(&format!("/v1/artifacts/{id}/download")).await.expect(200);
    assert!(file.header("content-disposition").contains("linear-1.float16.onnx"));
    let page = app.get(&format!("/artifacts/{id}")).await.expect(200);
    assert!(String::from_utf8_lossy(&page.body).contains("in float16"));
}
