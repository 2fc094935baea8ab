//! `/v1/lint`.

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::files;

const TARGETS: [&str; 5] = ["octet", "onnxruntime", "openvino", "tensorrt", "tflite_rules"];

fn targets(found: &Value) -> Vec<&str> {
    found["reports"].as_array().unwrap().iter().map(|r| r["target"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_file_is_linted_as_sent_and_as_kept() {
    let app = TestApp::start().await;
    let job = app.quantize(json!({ "recipe": { "scheme": "static" } })).await;
    let id = job["result"]["artifact"]["id"].as_str().unwrap();
    let file = app.get(&format!("/v1/artifacts/{id}/download")).await.expect(200).body;

    let sent = app.post("/v1/lint", file.clone()).await.expect(200).json();
    assert_eq!(sent["model"]["quantized"], true);
    assert_eq!(targets(&sent), TARGETS);
    let kept = app.post_json("/v1/lint", &json!({ "artifact": id })).await.expect(200).json();
    assert_eq!(kept, sent);

    let one = app.post("/v1/lint?target=onnxruntime", file).await.expect(200).json();
    assert_eq!(targets(&one), ["onnxruntime"]);
    assert_eq!(one["reports"][0], sent["reports"][1]);
    assert_eq!(one["reports"][0]["fused"], json!({ "QGemm": 1 }));
    let finding = &one["reports"][0]["findings"][0];
    assert_eq!((&finding["node"], &finding["verdict"]), (&json!("gemm"), &json!("fuses")));

    let float =
        app.post_json("/v1/lint?target=octet", &json!({ "model": "linear@1" })).await.expect(200).json();
    assert_eq!(float["model"]["quantized"], false);
    assert_eq!(float["reports"][0]["notes"][0]["rule"], "not_quantized");
    assert_eq!(float["reports"][0]["float"], json!({ "Gemm": 1 }));

    let left = std::fs::read_dir(app.folder().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing is kept of what was sent");
}

#[tokio::test]
async fn what_cannot_be_linted_is_refused() {
    let app = TestApp::with(&[("limits.model_bytes", "4096")]).await;
    app.post("/v1/lint?target=tpu", files::linear()).await.problem(400, "bad_request", &["tpu", "tensorrt"]);
    app.post("/v1/lint", "").await.problem(400, "bad_request", &["empty"]);
    app.post("/v1/lint", "no ONNX").await.problem(422, "bad_model", &["ONNX"]);
    app.post("/v1/lint", files::unknown_operator()).await.problem(422, "bad_model", &["Gemx"]);
    app.post("/v1/lint", vec![8; 5000]).await.problem(413, "too_large", &["4096"]);
    app.post("/v1/lint", "{}").await.problem(400, "bad_request", &["artifact", "model"]);
    let both = json!({ "artifact": "art_0", "model": "m" });
    app.post_json("/v1/lint", &both).await.problem(400, "bad_request", &["artifact", "model"]);
    app.post("/v1/lint", "{\"model\": ").await.problem(400, "malformed_json", &[]);
    app.post_json("/v1/lint", &json!({ "model": "none" })).await.problem(404, "not_found", &["none"]);
    app.post_json("/v1/lint", &json!({ "size": 1 })).await.problem(400, "bad_request", &["size"]);
}
