//! `/v1/endpoints` and `/v2/repository`.

use reqwest::Method;
use serde_json::json;

use crate::support::app::{TestApp, send};
use crate::support::files;

#[tokio::test]
async fn a_model_is_served_swapped_and_taken_out_of_service() {
    let app = TestApp::start().await;
    app.serve().await;
    let view = app.get("/v1/endpoints/linear").await.expect(200);
    assert_eq!(view.header("etag"), "\"1\"");
    assert_eq!(view.json()["versions"][0]["precision"], "fp32");
    assert_eq!(view.json()["versions"][0]["model"], "linear@1");

    app.put("/v1/models/linear", files::linear_with(2.0)).await.expect(201);
    let view = app.put_json("/v1/endpoints/linear", &json!({ "model": "linear@2" })).await.expect(200).json();
    assert_eq!(view["default_version"], 2, "{view:#}");
    assert_eq!(view["versions"].as_array().unwrap().len(), 2);
    let body =
        json!({ "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0] }] });
    for (path, want) in [("", 2.0), ("/versions/2", 2.0), ("/versions/1", 1.0)] {
        let answer = app.post_json(&format!("/v2/models/linear{path}/infer"), &body).await.expect(200).json();
        assert_eq!(answer["outputs"][0]["data"][0], want, "{path}");
    }
    let list = app.get("/v1/endpoints").await.expect(200).json();
    assert_eq!(list["items"][0]["name"], "linear");

    app.delete("/v1/endpoints/linear").await.expect(204);
    app.get("/v1/endpoints/linear").await.problem(404, "not_found", &["linear"]);
    app.post_json("/v2/models/linear/infer", &body).await.error(404, "not_found", &["linear"]);
}

#[tokio::test]
async fn a_change_may_be_bound_to_what_was_seen() {
    let app = TestApp::start().await;
    app.serve().await;
    let body = json!({ "model": "linear@1" }).to_string();
    let put = |name: &'static str, value: &'static str| {
        send(app.request(Method::PUT, "/v1/endpoints/linear").header(name, value).body(body.clone()))
    };
    put("if-none-match", "*").await.problem(412, "revision_mismatch", &["linear"]);
    put("if-match", "\"9\"").await.problem(412, "revision_mismatch", &["linear", "expected revision 9"]);
    put("if-match", "\"1\"").await.expect(200);
    put("if-match", "*").await.expect(200);
    let none = app.request(Method::PUT, "/v1/endpoints/none").header("if-match", "*").body(body.clone());
    send(none).await.problem(412, "revision_mismatch", &["expected that it exists, there is none"]);
    let delete = send(app.request(Method::DELETE, "/v1/endpoints/linear").header("if-match", "\"1\""));
    delete.await.problem(412, "revision_mismatch", &["linear"]);
}

#[tokio::test]
async fn what_cannot_be_served_is_refused() {
    let app = TestApp::start().await;
    app.upload().await;
    for (body, status, code, words) in [
        (json!({}), 400, "bad_request", &["nothing is to be changed"][..]),
        (json!(["linear"]), 400, "bad_request", &["an object, not a list"]),
        (json!({ "routes": [[1, 100]] }), 400, "bad_request", &["`routes.0`", "an object, not a list"]),
        (json!({ "batching": [4, 100] }), 400, "bad_request", &["`batching`", "an object, not a list"]),
        (json!({ "model": "linear", "weight": "7" }), 400, "bad_request", &["`weight`", "a whole number"]),
        (
            json!({ "model": "linear", "artifact": "art_00000000000000000000000000000000" }),
            400,
            "bad_request",
            &["either"],
        ),
        (json!({ "modle": "linear" }), 400, "bad_request", &["modle"]),
        (json!({ "model": "nobody" }), 404, "not_found", &["nobody"]),
        (json!({ "artifact": "art_00000000000000000000000000000000" }), 404, "not_found", &["art_"]),
    ] {
        app.put_json("/v1/endpoints/e", &body).await.problem(status, code, words);
    }
    app.get("/v1/endpoints/e").await.problem(404, "not_found", &["e"]);
    app.delete("/v1/endpoints/e").await.problem(404, "not_found", &["e"]);
}

#[tokio::test]
async fn a_job_serves_its_artifact_with_the_float_twin() {
    let app = TestApp::start().await;
    let job = app.quantize(json!({ "endpoint": "int8" })).await;
    assert_eq!(job["result"]["endpoint"], json!({ "name": "int8", "version": 1 }), "{job:#}");
    // The endpoint follows the catalog; loading may still be under way.
    app.post("/v2/repository/models/int8/load", "").await.expect(200);
    let view = app.get("/v1/endpoints/int8").await.expect(200).json();
    assert_eq!(view["versions"][0]["precision"], "int8");
    assert_eq!(view["versions"][0]["artifact"], job["result"]["artifact"]["id"]);
    let infer = async |precision: &str| {
        let body = json!({ "parameters": { "precision": precision }, "inputs": [
            { "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.3, -0.2, 0.7, 0.9] }] });
        app.post_json("/v2/models/int8/infer", &body).await
    };
    let want = files::linear_of([0.3, -0.2, 0.7, 0.9]);
    for (precision, tolerance) in [("fp32", 1e-6), ("int8", 0.1)] {
        let answer = infer(precision).await.expect(200).json();
        for (j, want) in want.iter().enumerate() {
            let got = answer["outputs"][0]["data"][j].as_f64().unwrap();
            assert!((got - f64::from(*want)).abs() < tolerance, "{precision}: {answer}");
        }
    }
    infer("fp16").await.error(400, "bad_request", &["fp16", "int8", "fp32"]);
}

#[tokio::test]
async fn an_endpoint_is_unloaded_and_loaded_again() {
    let app = TestApp::start().await;
    app.serve().await;
    let index = app.post("/v2/repository/index", "").await.expect(200).json();
    assert_eq!(index, json!([{ "name": "linear", "version": "1", "state": "READY", "reason": "" }]));
    app.post("/v2/repository/models/linear/unload", "{}").await.expect(200);
    let index = app.post("/v2/repository/index", "{}").await.expect(200).json();
    assert_eq!(index[0]["state"], "UNAVAILABLE");
    assert_eq!(app.post_json("/v2/repository/index", &json!({ "ready": true })).await.json(), json!([]));
    let answer = app.get("/v2/models/linear/ready").await;
    assert_eq!(answer.header("retry-after"), "2");
    answer.error(503, "not_ready", &["unloaded"]);
    app.post("/v2/repository/models/linear/load", "").await.expect(200);
    app.get("/v2/models/linear/ready").await.expect(200);

    app.post("/v2/repository/models/nobody/load", "").await.error(404, "not_found", &["nobody"]);
    app.post("/v2/repository/models/nobody/unload", "").await.error(404, "not_found", &["nobody"]);
    // A file needs a configuration, and a configuration is held against the model.
    let load = "/v2/repository/models/linear/load";
    let file = json!({ "parameters": { "file:1/model.onnx": "AAEC" } });
    app.post_json(load, &file).await.error(400, "bad_request", &["file:1/model.onnx", "config"]);
    app.post_json(load, &json!({ "parameters": { "config": "{}" } })).await.expect(200);
    let config = json!({ "parameters": { "config": r#"{"ensemble_scheduling": {}}"# } });
    app.post_json(load, &config).await.error(400, "bad_request", &["ensemble_scheduling"]);
    app.post(load, "\"x\"").await.error(400, "bad_request", &["expected an object"]);
    app.post("/v2/repository/index", "{").await.error(400, "malformed_json", &["line 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_answers_while_a_setting_has_it_loaded_again() {
    let app = TestApp::start().await;
    app.quantize(json!({ "endpoint": "int8" })).await;
    let infer =
        json!({ "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0] }] });
    let infer = infer.to_string();
    let ask = || app.request(Method::POST, "/v2/models/int8/infer").body(infer.clone());
    for n in 0..20 {
        let shadow = json!({ "shadow": { "fraction": 0.5, "statistics": n % 2 == 0 } });
        let mut change = std::pin::pin!(app.put_json("/v1/endpoints/int8", &shadow));
        let changed = loop {
            tokio::select! {
                biased;
                answer = send(ask()) => { answer.expect(200); }
                changed = &mut change => break changed,
            }
        };
        let statistics = &changed.expect(200).json()["settings"]["shadow"]["statistics"];
        assert_eq!(*statistics, json!(n % 2 == 0));
    }
}

#[tokio::test]
async fn a_reason_is_kept_as_it_was_given_or_refused() {
    let app = TestApp::start().await;
    app.serve().await;
    let put = |reason: &[u8]| {
        let request = app.request(Method::PUT, "/v1/endpoints/linear").header("octet-reason", reason);
        send(request.body(json!({ "queue_limit": 7 }).to_string()))
    };
    let longest = "ü".repeat(500);
    for reason in ["canary of build 17", "für Übung: 试验", &longest] {
        put(reason.as_bytes()).await.expect(200);
        let changes = app.get("/v1/endpoints/linear/changes").await.expect(200).json();
        assert_eq!(changes["items"][0]["reason"], reason, "{changes}");
    }
    put(format!("{longest}.").as_bytes()).await.problem(400, "bad_request", &["Octet-Reason", "501", "500"]);
    // As Latin-1 has it.
    put(b"f\xfcr").await.problem(400, "bad_request", &["Octet-Reason", "UTF-8"]);
    assert_eq!(app.get("/v1/endpoints/linear").await.json()["revision"], 4);
}
