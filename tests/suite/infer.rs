//! `/v2/models/NAME/infer` and its kin, byte for byte as clients of KServe and Triton send and read it.

use std::io::Write as _;
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::support::app::{Answer, TestApp, send};
use crate::support::files::{self, linear_of};

const X: [f32; 4] = [1.0, 2.0, 3.0, 4.0];

fn raw(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

async fn post(app: &TestApp, header: Option<&str>, body: Vec<u8>) -> Answer {
    let mut request = app.request(Method::POST, "/v2/models/linear/infer").body(body);
    if let Some(header) = header {
        request = request.header("Inference-Header-Content-Length", header);
    }
    send(request).await
}

/// The JSON part and the raw part of an answer.
fn parts(answer: &Answer) -> (Value, Vec<u8>) {
    let json: usize = answer.header("inference-header-content-length").parse().unwrap();
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    (serde_json::from_slice(&answer.body[..json]).unwrap(), answer.body[json..].to_vec())
}

#[tokio::test]
async fn a_json_request_is_answered_in_json() {
    let app = TestApp::start().await;
    app.serve().await;
    let body = br#"{"id":"42","model_name":"m","inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}"#;
    // curl sends a form's type, tritonclient none.
    let request = app.request(Method::POST, "/v2/models/linear/infer").body(&body[..]);
    let answer = send(request.header("content-type", "application/x-www-form-urlencoded")).await.expect(200);
    let want = json!({ "model_name": "linear", "model_version": "1", "id": "42", "outputs": [
        { "name": "y", "datatype": "FP32", "shape": [1, 3], "data": linear_of(X) }] });
    assert_eq!(answer.json(), want);
    assert_eq!(answer.header("content-type"), "application/json");
    assert!(answer.header("server-timing").contains("compute;dur="), "{:?}", answer.headers);
    assert_eq!(post(&app, None, body.to_vec()).await.expect(200).json(), want);
    // perf_analyzer counts all of it as header.
    let length = body.len().to_string();
    assert_eq!(post(&app, Some(&length), body.to_vec()).await.expect(200).json(), want);
}

#[tokio::test]
async fn raw_tensors_go_in_and_out() {
    let app = TestApp::start().await;
    app.serve().await;
    let json = r#"{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
    let body = [json.as_bytes(), &raw(&X)].concat();
    let answer = post(&app, Some(&json.len().to_string()), body).await.expect(200);
    let (head, tail) = parts(&answer);
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 12);
    assert!(head["outputs"][0].get("data").is_none() && head.get("id").is_none(), "{head}");
    assert_eq!(floats(&tail), linear_of(X));

    // The whole body is the input.
    let (head, tail) = parts(&post(&app, Some("0"), raw(&X)).await.expect(200));
    assert_eq!(head["outputs"][0]["shape"], json!([1, 3]));
    assert_eq!(floats(&tail), linear_of(X));

    // binary_data_output, JSON in.
    let body = json!({ "parameters": { "binary_data_output": true }, "inputs": [
        { "name": "x", "shape": [2, 4], "datatype": "FP32", "data": [[1, 2, 3, 4], [0, 0, 0, 0]] }] });
    let (_, tail) = parts(&post(&app, None, body.to_string().into_bytes()).await.expect(200));
    assert_eq!(floats(&tail), [linear_of(X), [0.0; 3]].concat());
}

#[tokio::test]
async fn compressed_requests_are_taken() {
    let app = TestApp::start().await;
    app.serve().await;
    let json =
        r#"{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}"#;
    let plain = [json.as_bytes(), &raw(&X)].concat();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(&plain).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&plain).unwrap();
    let (zlib, gzip) = (zlib.finish().unwrap(), gzip.finish().unwrap());
    // RFC 1952: members one behind the other are one file.
    let members: Vec<u8> = plain
        .chunks(plain.len() - 5)
        .flat_map(|part| {
            let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            member.write_all(part).unwrap();
            member.finish().unwrap()
        })
        .collect();
    for (encoding, bytes) in
        [("deflate", &zlib), ("gzip", &gzip), ("GZIP", &gzip), ("x-gzip", &gzip), ("gzip", &members)]
    {
        let request =
            app.request(Method::POST, "/v2/models/linear/infer").header("content-encoding", encoding);
        let request = request.header("Inference-Header-Content-Length", json.len()).body(bytes.clone());
        let answer = send(request).await.expect(200).json();
        assert_eq!(answer["outputs"][0]["data"], json!(linear_of(X)), "{encoding}");
    }
    let request = app.request(Method::POST, "/v2/models/linear/infer").header("content-encoding", "br");
    send(request.body("x")).await.error(415, "unsupported_media", &["`br`", "gzip"]);
    let request = app.request(Method::POST, "/v2/models/linear/infer").header("content-encoding", "gzip");
    send(request.body("no gzip")).await.error(400, "bad_request", &["body"]);
    for (encoding, bytes) in [("deflate", zlib), ("gzip", gzip)] {
        let request =
            app.request(Method::POST, "/v2/models/linear/infer").header("content-encoding", encoding);
        let request = request.header("Inference-Header-Content-Length", json.len());
        send(request.body([&bytes[..], b"more"].concat())).await.error(400, "bad_request", &["body"]);
    }
}

#[tokio::test]
async fn not_a_number_is_read_and_written_as_null() {
    let app = TestApp::start().await;
    app.serve().await;
    let body = r#"{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[NaN,0,0,-Infinity]}]}"#;
    let answer = post(&app, None, body.into()).await.expect(200).json();
    assert_eq!(answer["outputs"][0]["data"], json!([null, null, null]));
}

#[tokio::test]
async fn classification_gives_the_largest() {
    let app = TestApp::start().await;
    app.serve().await;
    let body = json!({ "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": X }],
        "outputs": [{ "name": "y", "parameters": { "classification": 2 } }] });
    let answer = app.post_json("/v2/models/linear/infer", &body).await.expect(200).json();
    // linear_of(X) is 1, 0, 5.
    let want =
        json!({ "name": "y", "datatype": "BYTES", "shape": [1, 2], "data": ["5.000000:2", "1.000000:0"] });
    assert_eq!(answer["outputs"][0], want);
}

#[tokio::test]
async fn requests_that_do_not_fit_are_told_what_is_wrong() {
    let app = TestApp::start().await;
    app.serve().await;
    let input = |rest: Value| {
        let mut input = json!({ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": X });
        input.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        json!({ "inputs": [input] }).to_string()
    };
    for (body, code, words) in [
        ("{".to_owned(), "malformed_json", &["line 1 column 2"][..]),
        (String::new(), "malformed_json", &["line 1 column 1"]),
        ("[]".to_owned(), "malformed_json", &["expected an object"]),
        (r#"{"inputs":{}}"#.to_owned(), "malformed_json", &["expected an array"]),
        (format!("{{\"a\":{}", "[".repeat(10_000)), "malformed_json", &["nested deeper"]),
        ("{}".to_owned(), "bad_input", &["inputs"]),
        (json!({ "inputs": [] }).to_string(), "bad_input", &["`x` is missing"]),
        (input(json!({ "name": "z" })), "bad_input", &["no input `z`", "\"x\""]),
        (input(json!({ "shape": [1, 5] })), "bad_input", &["`x`", "4 values", "[1, 5]"]),
        (input(json!({ "shape": [4] })), "bad_input", &["`x`", "[4]", "[batch, 4]"]),
        (input(json!({ "shape": [2, 2] })), "bad_input", &["`x`", "[2, 2]", "[batch, 4]"]),
        (input(json!({ "shape": [1u64 << 32, 1u64 << 32] })), "bad_input", &["`x`", "too large"]),
        (input(json!({ "shape": [1u64 << 62, 4] })), "bad_input", &["`x`", "too large"]),
        (input(json!({ "shape": [-1, 4] })), "bad_input", &["`x`", "[-1, 4]"]),
        (input(json!({ "shape": [0, 4], "data": [] })), "bad_input", &["`x`", "[0, 4]"]),
        (input(json!({ "datatype": "INT64" })), "bad_input", &["`x`"]),
        (input(json!({ "datatype": "INT64", "data": [1, 2, 3, 4] })), "bad_input", &["`x`", "INT64", "FP32"]),
        (input(json!({ "datatype": "FP16" })), "bad_input", &["FP16 data via JSON is not supported"]),
        (input(json!({ "datatype": "BYTES", "data": ["a"] })), "bad_input", &["BYTES"]),
        (input(json!({ "data": ["a", 2, 3, 4] })), "bad_input", &["`x`", "number"]),
        (input(json!({ "data": null })), "bad_input", &["`x`", "neither"]),
    ] {
        post(&app, None, body.clone().into()).await.error(400, code, words);
    }
    let asked = json!({ "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": X }],
        "outputs": [{ "name": "z" }] });
    app.post_json("/v2/models/linear/infer", &asked).await.error(400, "bad_input", &["`z`", "\"y\""]);
    let json =
        r#"{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}"#;
    let length = json.len().to_string();
    let with = |tail: &[u8]| [json.as_bytes(), tail].concat();
    post(&app, Some(&length), with(&[0; 17])).await.error(
        400,
        "bad_input",
        &["unexpected additional input data"],
    );
    post(&app, Some(&length), with(&[0; 15])).await.error(400, "bad_input", &["`x`"]);
    for header in ["-1", "x", "99999", "99999999999999999999"] {
        post(&app, Some(header), with(&[0; 16])).await.error(
            400,
            "bad_input",
            &["Inference-Header-Content-Length"],
        );
    }
    post(&app, Some("0"), vec![0; 15]).await.error(400, "bad_input", &["`x`", "15 bytes"]);
    // Afterwards it still answers.
    post(&app, None, input(json!({})).into()).await.expect(200);
}

#[tokio::test]
async fn names_and_versions_that_are_unknown_are_told() {
    let app = TestApp::start().await;
    app.serve().await;
    for path in ["", "/ready", "/config", "/stats"] {
        app.get(&format!("/v2/models/nobody{path}")).await.error(404, "not_found", &["nobody"]);
        app.get(&format!("/v2/models/linear/versions/9{path}")).await.error(404, "not_found", &["9", "[1]"]);
        app.get(&format!("/v2/models/linear/versions/x{path}")).await.error(404, "not_found", &["x"]);
        for version in ["1", "01"] {
            app.get(&format!("/v2/models/linear/versions/{version}{path}")).await.expect(200);
        }
    }
    for name in ["a%2Fb", "a%20b", "%C3%A9"] {
        app.get(&format!("/v2/models/{name}")).await.error(404, "not_found", &[]);
    }
    app.post("/v2/models/nobody/infer", "{}").await.error(404, "not_found", &["nobody"]);
    app.post("/v2/models/linear/versions/2/infer", "{}").await.error(404, "not_found", &["2"]);
    app.get("/v2/models/linear/infer").await.error(405, "method_not_allowed", &[]);
}

#[tokio::test]
async fn an_endpoint_tells_what_it_takes_and_what_it_did() {
    let app = TestApp::start().await;
    app.serve().await;
    let metadata = app.get("/v2/models/linear").await.expect(200).json();
    let port = |name: &str, n: i64| json!({ "name": name, "datatype": "FP32", "shape": [-1, n] });
    let want = json!({ "name": "linear", "versions": ["1"], "platform": "onnx_onnxv1",
        "inputs": [port("x", 4)], "outputs": [port("y", 3)] });
    assert_eq!(metadata, want);
    assert_eq!(app.get("/v2/models/linear/ready").await.json(), json!({ "name": "linear", "ready": true }));
    let config = app.get("/v2/models/linear/config").await.expect(200).json();
    assert_eq!(config["input"], json!([{ "name": "x", "data_type": "TYPE_FP32", "dims": [4] }]));
    assert!(config["max_batch_size"].as_u64().unwrap() >= 1);
    assert!(config["dynamic_batching"].is_object(), "the model batches: {config}");
    assert_eq!(app.get("/v2/models").await.json(), json!({ "models": ["linear"] }));

    for _ in 0..3 {
        post(&app, Some("0"), raw(&[X, X].concat())).await.expect(200);
    }
    post(&app, Some("0"), vec![0]).await.expect(400);
    for path in ["/v2/models/linear/stats", "/v2/models/linear/versions/1/stats", "/v2/models/stats"] {
        let stats = app.get(path).await.expect(200).json();
        let stats = &stats["model_stats"][0];
        assert_eq!(stats["inference_count"], 6, "{stats}");
        assert_eq!(stats["execution_count"], 3, "{stats}");
        assert_eq!(stats["inference_stats"]["success"]["count"], 3, "{stats}");
        assert_eq!(stats["inference_stats"]["fail"]["count"], 1, "{stats}");
        assert_eq!(stats["batch_stats"][0]["batch_size"], 2, "{stats}");
        let ns = |key: &str| stats["inference_stats"][key]["ns"].as_u64().unwrap();
        let parts = ns("queue") + ns("compute_input") + ns("compute_infer") + ns("compute_output");
        assert!(ns("success") >= parts, "{stats}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_each_get_their_own_answer() {
    let app = TestApp::with(&[("serving.batch_max", "4"), ("serving.batch_delay_us", "500")]).await;
    app.serve().await;
    let url = format!("http://{}/v2/models/linear/infer", app.address());
    let mut tasks = Vec::new();
    for client_no in 0..8u8 {
        let url = url.clone();
        tasks.push(tokio::spawn(async move {
            let client = Client::new();
            for n in 0..25u8 {
                let x = [f32::from(client_no), f32::from(n), 1.0, 0.5];
                let request = client.post(&url).header("Inference-Header-Content-Length", "0").body(raw(&x));
                let answer = send(request).await.expect(200);
                assert_eq!(floats(&parts(&answer).1), linear_of(x));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let stats = app.get("/v2/models/linear/stats").await.json();
    let stats = &stats["model_stats"][0];
    assert_eq!(stats["inference_count"], 200);
    assert!(stats["execution_count"].as_u64().unwrap() <= 200);
}

/// The first request of a batch waits this long for others: time for a test to do something meanwhile.
const DELAY: (&str, &str) = ("serving.batch_delay_us", "1000000");

/// Waits until so many requests are at the endpoint.
async fn until_in_flight(app: &TestApp, count: usize) {
    let want =
        format!(r#"octet_inference_in_flight{{endpoint="linear",precision="fp32",version="1"}} {count}"#);
    while !app.get("/metrics").await.text().lines().any(|line| line == want) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    let app = TestApp::with(&[DELAY, ("serving.queue_limit", "1")]).await;
    app.serve().await;
    let (first, second) = tokio::join!(post(&app, Some("0"), raw(&X)), async {
        until_in_flight(&app, 1).await;
        post(&app, Some("0"), raw(&X)).await
    });
    first.expect(200);
    assert_eq!(second.header("retry-after"), "1");
    second.error(429, "queue_full", &["linear", "1 requests"]);
    let metrics = app.get("/metrics").await.text();
    assert!(
        metrics.contains(r#"outcome="rejected",precision="fp32",protocol="http",version="1"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_request_may_say_how_long_it_waits() {
    let app = TestApp::with(&[DELAY]).await;
    app.serve().await;
    let body = json!({ "parameters": { "timeout": 1 }, "inputs": [
        { "name": "x", "shape": [1, 4], "datatype": "FP32", "data": X }] });
    app.post_json("/v2/models/linear/infer", &body).await.error(504, "deadline", &["timeout"]);
}

#[tokio::test]
async fn a_client_that_goes_away_is_not_computed_for() {
    let app = TestApp::with(&[DELAY]).await;
    app.serve().await;
    let request = app.request(Method::POST, "/v2/models/linear/infer");
    let request = request.header("Inference-Header-Content-Length", "0").body(raw(&X));
    let waiting = tokio::spawn(request.send());
    until_in_flight(&app, 1).await;
    waiting.abort();
    until_in_flight(&app, 0).await;
    // Whoever comes next is answered, and the one that went was not run.
    post(&app, Some("0"), raw(&X)).await.expect(200);
    let stats = app.get("/v2/models/linear/stats").await.json();
    assert_eq!(stats["model_stats"][0]["inference_count"], 1, "{stats}");
    assert_eq!(stats["model_stats"][0]["inference_stats"]["fail"]["count"], 1, "{stats}");
    assert!(
        app.get("/metrics")
            .await
            .text()
            .contains(r#"outcome="cancelled",precision="fp32",protocol="http",version="1"} 1"#)
    );
}

/// A version that answers nobody in time would else look like one whose clients go away, and keep its requests.
#[tokio::test]
async fn a_version_that_is_too_late_for_the_server_loses_its_requests() {
    let mut app = TestApp::with(&[DELAY]).await;
    app.serve().await;
    app.put("/v1/models/linear", files::linear_with(2.0)).await.expect(201);
    let change = json!({ "model": "linear@2", "rollback": { "max_error_ratio": 0.5, "min_requests": 2 } });
    app.put_json("/v1/endpoints/linear", &change).await.expect(200);
    // Shorter than the delay only now: to load may take longer.
    app.set("limits.request_timeout_ms", "600");
    app.restart().await;
    let body = |parameters: Value| {
        json!({ "parameters": parameters, "inputs": [
            { "name": "x", "shape": [1, 4], "datatype": "FP32", "data": X }] })
    };
    // What clients ask for themselves says nothing of the version.
    for _ in 0..3 {
        let own = app.post_json("/v2/models/linear/infer", &body(json!({ "timeout": 1 }))).await;
        own.error(504, "deadline", &["its timeout"]);
    }
    // Nor does a client that is slow to send its request.
    let (sender, slow) = futures::channel::mpsc::unbounded::<Result<Vec<u8>, std::io::Error>>();
    let slow = app.request(Method::POST, "/v2/models/linear/infer").body(reqwest::Body::wrap_stream(slow));
    send(slow).await.error(504, "deadline", &["0.6 s"]);
    drop(sender);
    let body = body(json!({}));
    let late = || app.post_json("/v2/models/linear/infer", &body);
    let (one, two) = tokio::join!(late(), late());
    one.error(504, "deadline", &["0.6 s"]);
    two.error(504, "deadline", &["0.6 s"]);
    let metrics = app.get("/metrics").await.text();
    let outcome = |name: &str| format!(r#"outcome="{name}",precision="fp32",protocol="http",version="2"}}"#);
    assert!(metrics.contains(&format!("{} 6", outcome("deadline"))), "{metrics}");
    assert!(!metrics.contains(&format!("{} 1", outcome("cancelled"))), "{metrics}");
    let last = loop {
        let changes = app.get("/v1/endpoints/linear/changes").await.expect(200).json();
        let last = changes["items"][0].clone();
        if last["by"] == "rollback" {
            break last;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(last["reason"].as_str().unwrap().contains("2 of the last 2 requests"), "{last}");
    let view = app.get("/v1/endpoints/linear").await.expect(200).json();
    let weights: Vec<_> = view["versions"].as_array().unwrap().iter().map(|v| &v["weight"]).collect();
    assert_eq!(weights, [100, 0], "{view:#}");
}

#[tokio::test]
async fn a_stopping_server_answers_what_it_has_taken() {
    let mut app = TestApp::with(&[DELAY]).await;
    app.serve().await;
    let request = app.request(Method::POST, "/v2/models/linear/infer");
    let request = request.header("Inference-Header-Content-Length", "0").body(raw(&X));
    let waiting = tokio::spawn(send(request));
    until_in_flight(&app, 1).await;
    app.stop().await;
    assert_eq!(floats(&parts(&waiting.await.unwrap().expect(200)).1), linear_of(X));
}
