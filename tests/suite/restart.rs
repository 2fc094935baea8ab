//! What outlives the process.

use serde_json::json;

use crate::support::app::TestApp;

#[tokio::test]
async fn a_restart_finds_everything_and_serves_it_again() {
    let mut app = TestApp::start().await;
    let job = app.quantize(json!({ "endpoint": "int8", "keep": true })).await;
    let body = json!({ "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4] }] });
    app.post("/v2/repository/models/int8/load", "").await.expect(200);
    let before = app.post_json("/v2/models/int8/infer", &body).await.expect(200).json();
    app.restart().await;
    // Ready means: the endpoints of before answer.
    assert_eq!(app.post_json("/v2/models/int8/infer", &body).await.expect(200).json(), before);
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    assert_eq!(app.get(&path).await.expect(200).json(), job);
    app.get("/v1/models/linear").await.expect(200);
    app.get("/v1/datasets/samples").await.expect(200);
}

#[tokio::test]
async fn a_queued_job_is_done_after_a_restart() {
    let mut app = TestApp::with(&[("jobs.workers", "0")]).await;
    app.upload().await;
    let id = app.submit(json!({})).await;
    app.stop().await;
    app.set("jobs.workers", "1");
    app.begin().await;
    assert_eq!(app.wait(&id).await["state"], "succeeded");
}

#[tokio::test]
async fn a_stopping_server_ends_its_streams() {
    let mut app = TestApp::with(&[("jobs.workers", "0")]).await;
    app.upload().await;
    let id = app.submit(json!({})).await;
    let request = app.request(reqwest::Method::GET, &format!("/v1/jobs/{id}/events"));
    let mut events = request.send().await.unwrap();
    assert!(events.chunk().await.unwrap().is_some());
    app.stop().await;
    while let Ok(Some(_)) = events.chunk().await {}
}
