//! `/v1/jobs`.

use octet::engine::tensor::Tensor;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{TestApp, send};
use crate::support::files;

#[tokio::test]
async fn a_job_makes_an_artifact_and_tells_what_was_lost() {
    let app = TestApp::start().await;
    let job = app.quantize(json!({ "evaluation": "samples@1", "endpoint": "int8" })).await;
    let result = &job["result"];
    assert!(result["artifact"]["id"].as_str().unwrap().starts_with("art_"), "{job:#}");
    assert!(result["artifact"]["bytes"].as_u64().unwrap() > 0);
    assert!(result["size_ratio"].as_f64().unwrap() > 0.0);
    let accuracy = &result["accuracy"];
    assert_eq!(accuracy["metric"], "agreement");
    assert_eq!(accuracy["samples"], 16);
    for key in ["float", "int8", "delta"] {
        assert!(accuracy[key].is_f64(), "{key}: {accuracy}");
    }
    for key in ["float_ms", "int8_ms"] {
        assert!(result["latency"][key].as_f64().unwrap() > 0.0, "{key}: {result}");
    }
    assert!(job["error"].is_null());
    assert_eq!(job["model"], "linear@1");
    assert!(job["started_at"].is_string() && job["finished_at"].is_string());

    let list = app.get("/v1/jobs?state=succeeded&model=linear").await.expect(200).json();
    assert_eq!(list["items"][0]["id"], job["id"]);
    assert_eq!(app.get("/v1/jobs?state=failed").await.json()["items"], json!([]));
    let id = job["id"].as_str().unwrap();
    app.delete(&format!("/v1/jobs/{id}")).await.expect(204);
    app.get(&format!("/v1/jobs/{id}")).await.problem(404, "not_found", &[id]);
}

#[tokio::test]
async fn nodes_that_a_recipe_names_are_looked_for_before_a_job_is_made() {
    let app = TestApp::start().await;
    app.upload().await;
    let body = |recipe: Value| json!({ "kind": "quantize", "model": "linear", "calibration": "samples", "recipe": recipe });
    for (recipe, words) in [
        (json!({ "keep_float": ["gemm", "gem1"] }), &["`keep_float`", "`gem1`", "near it are `gemm`"][..]),
        (json!({ "sixteen_bit": ["conv*"] }), &["`sixteen_bit`", "no node matches `conv*`"]),
    ] {
        app.post_json("/v1/jobs", &body(recipe)).await.problem(422, "bad_recipe", words);
    }
    assert_eq!(app.get("/v1/jobs").await.json()["items"], json!([]));
    app.post_json("/v1/jobs", &body(json!({ "sixteen_bit": ["g*m"] }))).await.expect(202);
    // What was taken once is not looked at again, whatever the model is by now.
    let ask = || {
        let body = body(json!({ "sixteen_bit": ["gemm"] })).to_string();
        send(app.request(Method::POST, "/v1/jobs").header("idempotency-key", "k").body(body))
    };
    let job = ask().await.expect(202).json();
    app.put("/v1/models/linear", files::with_node_named("other")).await.expect(201);
    assert_eq!(ask().await.json()["id"], job["id"]);
}

#[tokio::test]
async fn a_model_that_comes_quantized_needs_no_calibration_data() {
    let app = TestApp::start().await;
    let job = app.quantize(json!({})).await;
    let artifact = job["result"]["artifact"]["id"].as_str().unwrap();
    let file = app.get(&format!("/v1/artifacts/{artifact}/download")).await.expect(200).body;
    app.put("/v1/models/trained", file).await.expect(201);
    app.put("/v1/datasets/held_out", files::samples(16)).await.expect(201);
    let ask = |more: Value| {
        let mut body = json!({ "kind": "quantize", "model": "trained", "evaluation": "held_out" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for more in [
        json!({ "evaluation": null }),
        json!({ "recipe": { "complete": true } }),
        json!({ "model": "linear" }),
    ] {
        app.post_json("/v1/jobs", &ask(more)).await.problem(
            400,
            "bad_request",
            &["`calibration`", "quantized"],
        );
    }
    let asked = app.post_json("/v1/jobs", &ask(json!({}))).await.expect(202).json();
    let job = app.wait(asked["id"].as_str().unwrap()).await;
    assert_eq!((&job["state"], &job["deleted"]), (&json!("succeeded"), &json!([])), "{job:#}");
    app.get("/v1/datasets/held_out").await.expect(200);
}

const NO_JOB: &str = "job_00000000000000000000000000000000";

#[tokio::test]
async fn a_job_that_is_not_understood_is_refused() {
    let app = TestApp::start().await;
    app.upload().await;
    let good = json!({ "kind": "quantize", "model": "linear", "calibration": "samples" });
    let with = |more: Value| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    for (body, status, code, words) in [
        ("{".to_owned(), 400, "malformed_json", &["line 1 column 1"][..]),
        ("{\"kind\":\n\"quantize\",,}".to_owned(), 400, "malformed_json", &["line 2 column 12"]),
        (String::new(), 400, "malformed_json", &["line 1"]),
        ("[".repeat(10_000), 400, "malformed_json", &["nested deeper than 32"]),
        ("[]".to_owned(), 400, "bad_request", &["object, not a list"]),
        (json!(["quantize", "linear", "samples"]).to_string(), 400, "bad_request", &["object, not a list"]),
        (with(json!({ "recipe": { "gate": [null, 0.1] } })), 422, "bad_recipe", &["`gate`", "not an object"]),
        (with(json!({ "recipe": { "weights": [true, 100] } })), 422, "bad_recipe", &["`weights`"]),
        (with(json!({ "keep": "yes" })), 400, "bad_request", &["`keep`", "true or false", "\"yes\""]),
        (json!({ "kind": "quantize" }).to_string(), 400, "bad_request", &["model"]),
        (with(json!({ "kind": "magic" })), 400, "bad_request", &["magic"]),
        (with(json!({ "modle": "x" })), 400, "bad_request", &["modle"]),
        (with(json!({ "model": 7 })), 400, "bad_request", &["`model`", "a text, not 7"]),
        (with(json!({ "model": "a b" })), 400, "bad_request", &["a b"]),
        (with(json!({ "recipe": 7 })), 400, "bad_request", &["`recipe`", "an object, not 7"]),
        (with(json!({ "recipe": { "sheme": "static" } })), 422, "bad_recipe", &["sheme"]),
        (with(json!({ "attempts_max": 0 })), 400, "bad_request", &["attempts_max"]),
        (with(json!({ "model": "nobody" })), 404, "not_found", &["nobody"]),
        (with(json!({ "model": "linear@9" })), 404, "not_found", &["linear@9"]),
        (with(json!({ "calibration": "nothing" })), 404, "not_found", &["nothing"]),
        (
            json!({ "kind": "quantize", "model": "linear" }).to_string(),
            400,
            "bad_request",
            &["calibration_of"],
        ),
        (with(json!({ "calibration_of": NO_JOB })), 400, "bad_request", &["exclude each other"]),
        (with(json!({ "calibration": null, "calibration_of": NO_JOB })), 404, "not_found", &[NO_JOB]),
        (with(json!({ "evaluation": "nothing" })), 404, "not_found", &["nothing"]),
    ] {
        app.post("/v1/jobs", body).await.problem(status, code, words);
    }
    assert_eq!(app.get("/v1/jobs").await.json()["items"], json!([]));
    for path in [
        "/v1/jobs/job_00000000000000000000000000000000",
        "/v1/artifacts/art_00000000000000000000000000000000",
    ] {
        app.get(path).await.problem(404, "not_found", &["00000000"]);
    }
    app.get("/v1/jobs/nonsense").await.problem(400, "bad_request", &["nonsense"]);
    for (path, words) in [
        ("/v1/jobs?limit=abc", &["`limit`", "a whole number", "\"abc\""][..]),
        ("/v1/jobs?foo=1", &["unknown parameter `foo`", "`limit`"]),
        ("/v1/jobs?cursor=1", &["next_cursor"]),
        ("/v1/jobs/job_00000000000000000000000000000000?wait=abc", &["`wait`", "a whole number"]),
    ] {
        app.get(path).await.problem(400, "bad_request", words);
    }
}

#[tokio::test]
async fn a_job_on_a_deleted_model_is_refused() {
    let app = TestApp::start().await;
    app.upload().await;
    app.delete("/v1/models/linear").await.expect(204);
    let body = json!({ "kind": "quantize", "model": "linear", "calibration": "samples" });
    app.post_json("/v1/jobs", &body).await.problem(404, "not_found", &["linear"]);
}

#[tokio::test]
async fn data_that_do_not_fit_the_model_fail_the_job_by_name() {
    let app = TestApp::start().await;
    app.upload().await;
    let mut spoiled = files::values(8);
    spoiled.slice_mut::<f32>()[5 * 4 + 1] = f32::NAN;
    let narrow = Tensor::from_slice(&[8, 3], &[0.5f32; 24]);
    let whole = Tensor::from_slice(&[8, 4], &[1i64; 32]);
    let labels = Tensor::from_slice(&[8], &[0i64, 1, 2, 0, 1, 2, 0, 3]);
    for (arrays, words) in [
        (vec![("x", files::values(8)), ("a", files::values(8))], &["`a`", "x"][..]),
        (vec![("x", narrow)], &["x", "3"]),
        (vec![("x", whole)], &["x", "int64"]),
        (vec![("x", spoiled)], &["x", "5"]),
        (vec![("x", files::values(8)), ("labels", labels)], &["label 3", "7"]),
    ] {
        app.put("/v1/datasets/misfit", files::npz(&arrays)).await.expect(201);
        let id = app.submit(json!({ "calibration": "misfit" })).await;
        let job = app.wait(&id).await;
        assert_eq!(job["state"], "failed", "{job:#}");
        assert_eq!(job["error"]["code"], "bad_data", "{job:#}");
        assert_eq!(job["error"]["retriable"], false);
        let message = job["error"]["message"].as_str().unwrap();
        assert!(words.iter().all(|w| message.contains(w)), "{message} does not name {words:?}");
        assert!(job["result"].is_null());
    }
}

#[tokio::test]
async fn a_gate_that_is_not_kept_ends_the_job_with_the_reason() {
    let app = TestApp::start().await;
    app.upload().await;
    // Eight bits of codes are some 50 dB.
    let id = app.submit(json!({ "recipe": { "gate": { "min_sqnr_db": 100 } } })).await;
    let job = app.wait(&id).await;
    assert_eq!(job["state"], "gate_failed", "{job:#}");
    assert_eq!(job["error"]["code"], "gate_failed", "{job:#}");
    let reason = job["error"]["message"].as_str().unwrap();
    assert!(reason.contains("less than min_sqnr_db 100"), "{reason}");
    // The artifact is kept, so that one can look at it.
    let id = job["result"]["artifact"]["id"].as_str().unwrap();
    app.get(&format!("/v1/artifacts/{id}")).await.expect(200);
}

#[tokio::test]
async fn a_gate_that_the_data_cannot_answer_ends_the_job_at_its_start() {
    let app = TestApp::start().await;
    app.upload().await;
    for (gate, word) in [
        (json!({ "max_drop_per_slice": 0.1 }), "`slice`"),
        (json!({ "max_drop": 0.1, "metric": "top1" }), "`labels`"),
        (json!({ "max_drop": 0.1, "metric": "top5" }), "`labels`"),
    ] {
        let job = app.wait(&app.submit(json!({ "recipe": { "gate": gate } })).await).await;
        assert_eq!(job["error"]["code"], "bad_data", "{job:#}");
        assert!(job["error"]["message"].as_str().unwrap().contains(word), "{job:#}");
        assert!(job["result"].is_null(), "nothing was made: {job:#}");
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused_where_nothing_unpacks_it() {
    let app = TestApp::start().await;
    for (method, path) in [
        (Method::POST, "/v1/jobs"),
        (Method::PUT, "/v1/models/m"),
        (Method::PUT, "/v1/datasets/d"),
        (Method::PUT, "/v1/endpoints/e"),
    ] {
        for coding in ["gzip", "magic"] {
            let request = app.request(method.clone(), path).header("content-encoding", coding).body("x");
            send(request).await.problem(415, "unsupported_media", &[coding]);
        }
    }
    let plain = app.request(Method::PUT, "/v1/models/m").header("content-encoding", "identity");
    send(plain.body(files::linear())).await.expect(201);
}

#[tokio::test]
async fn a_queued_job_is_cancelled_at_once() {
    let app = TestApp::with(&[("jobs.workers", "0")]).await;
    app.upload().await;
    let id = app.submit(json!({})).await;
    let job = app.get(&format!("/v1/jobs/{id}")).await.expect(200);
    assert_eq!(job.header("retry-after"), "2");
    assert_eq!(job.json()["state"], "queued");
    app.delete(&format!("/v1/jobs/{id}")).await.problem(409, "not_finished", &[&id, "queued"]);
    let tag = job.header("etag").to_owned();
    app.get_with(&format!("/v1/jobs/{id}"), "if-none-match", &tag).await.expect(304);
    let cancelled = app.post(&format!("/v1/jobs/{id}/cancel"), "").await.expect(202).json();
    assert_eq!(cancelled["state"], "cancelled");
    app.post(&format!("/v1/jobs/{id}/cancel"), "").await.expect(202);
    app.get_with(&format!("/v1/jobs/{id}"), "if-none-match", &tag).await.expect(200);
}

#[tokio::test]
async fn a_finished_job_cannot_be_cancelled() {
    let app = TestApp::start().await;
    let job = app.quantize(json!({})).await;
    let path = format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap());
    app.post(&path, "").await.problem(409, "already_finished", &["succeeded"]);
}

#[tokio::test]
async fn the_same_idempotency_key_makes_one_job() {
    let app = TestApp::with(&[("jobs.workers", "0")]).await;
    app.upload().await;
    let body = json!({ "kind": "quantize", "model": "linear", "calibration": "samples" });
    let post = |key: &'static str, body: &Value| {
        send(app.request(Method::POST, "/v1/jobs").header("idempotency-key", key).body(body.to_string()))
    };
    let first = post("\"abc\"", &body).await.expect(202).json();
    let second = post("abc", &body).await.expect(202).json();
    assert_eq!(first["id"], second["id"]);
    let other = json!({ "kind": "quantize", "model": "linear@1", "calibration": "samples" });
    post("abc", &other).await.problem(422, "key_reused", &["abc"]);
    post("", &body).await.problem(400, "bad_request", &["Idempotency-Key"]);
}

#[tokio::test]
async fn a_deleted_job_frees_its_idempotency_key() {
    let app = TestApp::start().await;
    app.upload().await;
    let body = json!({ "kind": "quantize", "model": "linear", "calibration": "samples", "keep": true });
    let post =
        || send(app.request(Method::POST, "/v1/jobs").header("idempotency-key", "k").body(body.to_string()));
    let first = post().await.expect(202).json()["id"].as_str().unwrap().to_owned();
    app.wait(&first).await;
    app.delete(&format!("/v1/jobs/{first}")).await.expect(204);
    let second = post().await.expect(202).json()["id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    app.get(&format!("/v1/jobs/{second}")).await.expect(200);
}

#[tokio::test]
async fn too_many_queued_jobs_are_refused() {
    let app = TestApp::with(&[("jobs.workers", "0"), ("jobs.queued_max", "1")]).await;
    app.upload().await;
    app.submit(json!({})).await;
    let body = json!({ "kind": "quantize", "model": "linear", "calibration": "samples" });
    let answer = app.post_json("/v1/jobs", &body).await;
    assert_eq!(answer.header("retry-after"), "10");
    answer.problem(429, "queue_full", &["1"]);
}

#[tokio::test]
async fn events_tell_the_states_and_end_with_the_job() {
    let app = TestApp::start().await;
    app.upload().await;
    let id = app.submit(json!({})).await;
    let events = app.get(&format!("/v1/jobs/{id}/events")).await.expect(200);
    assert_eq!(events.header("content-type"), "text/event-stream");
    let text = events.text();
    assert!(text.contains("retry: 2000"), "{text}");
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.contains("event: state"), "{last}");
    let data = last.lines().find_map(|l| l.strip_prefix("data: ")).unwrap();
    let job: Value = serde_json::from_str(data).unwrap();
    assert_eq!(job["state"], "succeeded", "{job:#}");
    // Who comes back after the end is told the end once more.
    let again = app.get_with(&format!("/v1/jobs/{id}/events"), "last-event-id", "1").await.text();
    assert_eq!(again.matches("event: state").count(), 1, "{again}");
    app.get("/v1/jobs/job_00000000000000000000000000000000/events").await.problem(404, "not_found", &[]);
}

#[tokio::test]
async fn a_client_may_wait_for_the_end() {
    let app = TestApp::start().await;
    app.upload().await;
    let body = json!({ "kind": "quantize", "model": "linear", "calibration": "samples" }).to_string();
    let request = app.request(Method::POST, "/v1/jobs").header("prefer", "wait=50").body(body);
    let job = send(request).await.expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}");
}

/// Waits until the file of a dataset is gone: that is right after the end of the job.
async fn gone(app: &TestApp, sha256: &str) {
    let blob = app.folder().join("blobs").join(&sha256[..2]).join(&sha256[2..]);
    while blob.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn statistics_serve_a_later_job_when_the_data_are_gone() {
    let app = TestApp::start().await;
    app.put("/v1/datasets/eval", files::samples(8)).await.expect(201);
    let first = app.quantize(json!({ "evaluation": "eval", "recipe": { "ranges": "minmax" } })).await;
    let id = first["id"].as_str().unwrap();
    assert_eq!(first["deleted"][0]["dataset"], "samples@1", "{first:#}");
    assert_eq!(first["deleted"][0]["deleted_at"], first["finished_at"]);
    app.get("/v1/datasets/samples").await.problem(404, "not_found", &["samples"]);
    app.get("/v1/datasets/eval").await.expect(200);

    let again = |more: Value| {
        let mut body = json!({ "kind": "quantize", "model": "linear", "calibration_of": id });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let mut artifacts = Vec::new();
    for recipe in [json!({ "ranges": "minmax" }), json!({ "ranges": "entropy" })] {
        let job = app.post_json("/v1/jobs", &again(json!({ "recipe": recipe }))).await.expect(202).json();
        let job = app.wait(job["id"].as_str().unwrap()).await;
        assert_eq!(job["state"], "succeeded", "{job:#}");
        assert_eq!(job["calibration_of"], id);
        assert_eq!((&job["calibration"], &job["evaluation"]), (&json!("samples@1"), &json!("eval@1")));
        assert_eq!(job["deleted"], json!([]));
        let artifact = format!("/v1/artifacts/{}", job["result"]["artifact"]["id"].as_str().unwrap());
        let report = app.get(&format!("{artifact}/report")).await.expect(200).json();
        assert!(report["notes"][0].as_str().unwrap().contains("statistics"), "{report:#}");
        let statistics = app.get(&format!("{artifact}/statistics")).await.expect(200).body;
        artifacts.push((app.get(&artifact).await.json(), statistics));
    }
    assert_eq!(artifacts[0].1, artifacts[1].1, "statistics are handed on");
    let ranges = |artifact: &Value| artifact["manifest"]["values"].clone();
    let first_artifact = format!("/v1/artifacts/{}", first["result"]["artifact"]["id"].as_str().unwrap());
    assert_eq!(ranges(&artifacts[0].0), ranges(&app.get(&first_artifact).await.json()));

    // Another version of the model, evaluation data that are gone, a job without an artifact.
    app.put("/v1/models/linear", files::linear_with(2.0)).await.expect(201);
    app.post_json("/v1/jobs", &again(json!({}))).await.problem(422, "bad_data", &["linear@1", "linear@2"]);
    let same = json!({ "model": "linear@1" });
    app.delete("/v1/datasets/eval").await.expect(200);
    app.post_json("/v1/jobs", &again(same.clone())).await.problem(422, "bad_data", &["eval@1", "evaluation"]);
    app.delete(&first_artifact).await.expect(204);
    app.post_json("/v1/jobs", &again(same)).await.problem(422, "bad_data", &["artifact was deleted"]);
}

#[tokio::test]
async fn calibration_data_go_with_the_last_job_that_needs_them() {
    let mut app = TestApp::with(&[("jobs.workers", "0")]).await;
    app.upload().await;
    let sha256 = app.get("/v1/datasets/samples").await.json()["sha256"].as_str().unwrap().to_owned();
    let (first, second) = (app.submit(json!({})).await, app.submit(json!({})).await);
    let third = app.submit(json!({ "calibration": "samples", "evaluation": "samples" })).await;
    app.post(&format!("/v1/jobs/{first}/cancel"), "").await.expect(202);
    assert_eq!(app.get(&format!("/v1/jobs/{first}")).await.json()["deleted"], json!([]));
    app.get("/v1/datasets/samples").await.expect(200);
    app.stop().await;
    app.set("jobs.workers", "1");
    app.begin().await;
    for id in [&second, &third] {
        assert_eq!(app.wait(id).await["state"], "succeeded");
    }
    for id in [&first, &second, &third] {
        let job = app.get(&format!("/v1/jobs/{id}")).await.json();
        assert_eq!(job["deleted"].as_array().unwrap().len(), 1, "{job:#}");
    }
    app.get("/v1/datasets/samples").await.problem(404, "not_found", &[]);
    gone(&app, &sha256).await;
}

#[tokio::test]
async fn data_stay_where_the_request_was_at_fault() {
    let app = TestApp::start().await;
    app.upload().await;
    let id = app.submit(json!({ "recipe": { "gate": { "metric": "top1", "max_drop": 0.1 } } })).await;
    let job = app.wait(&id).await;
    assert_eq!(job["error"]["code"], "bad_data", "{job:#}");
    assert!(job["error"]["message"].as_str().unwrap().contains("labels"), "{job:#}");
    assert_eq!(job["deleted"], json!([]));
    // Corrected, the same request finds them, and its end deletes them.
    let job = app.wait(&app.submit(json!({})).await).await;
    assert_eq!((&job["state"], &job["deleted"][0]["dataset"]), (&json!("succeeded"), &json!("samples@1")));
}

#[tokio::test]
async fn data_that_a_job_keeps_stay() {
    let app = TestApp::start().await;
    let job = app.quantize(json!({ "keep": true })).await;
    assert_eq!((&job["keep"], &job["deleted"]), (&json!(true), &json!([])));
    let id = app.submit(json!({})).await;
    assert_eq!(app.wait(&id).await["deleted"], json!([]), "one job that keeps them keeps them for all");
    app.get("/v1/datasets/samples").await.expect(200);
    app.delete("/v1/datasets/samples").await.expect(200);
    let job = app.get(&format!("/v1/jobs/{id}")).await.json();
    assert_eq!(job["deleted"][0]["dataset"], "samples@1", "{job:#}");
}

#[tokio::test]
async fn a_dry_run_tells_what_a_job_would_do_and_makes_none() {
    let app = TestApp::start().await;
    app.upload().await;
    let body = json!({ "kind": "quantize", "model": "linear", "dry_run": true });
    let plan = app.post_json("/v1/jobs", &body).await.expect(200).json();
    assert_eq!((&plan["dry_run"], &plan["model"]), (&json!(true), &json!("linear@1")), "{plan:#}");
    assert!(!plan["integer"].as_array().unwrap().is_empty(), "{plan:#}");
    assert_eq!(plan["integer_share"], 1.0);
    assert!(plan["seconds"]["calibrate"].as_f64().unwrap() > 0.0, "{plan:#}");
    assert!(plan["memory_bytes"].as_u64().unwrap() > 0, "{plan:#}");
    assert!(plan["basis"].as_str().unwrap().contains("128 calibration samples (assumed)"), "{plan:#}");
    assert_eq!(app.get("/v1/jobs").await.json()["items"], json!([]));

    let kept = json!({ "keep_float": [plan["integer"][0]["node"]] });
    let more = json!({ "kind": "quantize", "model": "linear", "calibration": "samples", "dry_run": true });
    let with = |recipe: Value| {
        let mut body = more.clone();
        body["recipe"] = recipe;
        body
    };
    let plan_kept = app.post_json("/v1/jobs", &with(kept)).await.expect(200).json();
    assert_eq!(plan_kept["float"][0]["reason"], "kept by the recipe", "{plan_kept:#}");
    assert!(plan_kept["basis"].as_str().unwrap().contains("16 calibration samples"), "{plan_kept:#}");
    let wrong = with(json!({ "sheme": 1 }));
    app.post_json("/v1/jobs", &wrong).await.problem(422, "bad_recipe", &["sheme"]);
    for attempts_max in [0, 101] {
        let mut wrong = more.clone();
        wrong["attempts_max"] = json!(attempts_max);
        app.post_json("/v1/jobs", &wrong).await.problem(400, "bad_request", &["attempts_max"]);
    }
    let unanswered = with(json!({ "gate": { "max_drop": 0.1, "metric": "top1" } }));
    app.post_json("/v1/jobs", &unanswered).await.problem(422, "bad_data", &["gate.metric", "`labels`"]);

    let job = app.wait(&app.submit(json!({})).await).await;
    let (predicted, made) =
        (plan["artifact_bytes"].as_u64().unwrap(), job["result"]["artifact"]["bytes"].as_u64().unwrap());
    assert!(predicted.abs_diff(made) < 64, "{predicted} bytes predicted, {made} made");
}

#[tokio::test]
async fn the_form_takes_no_data_by_itself_and_keeps_what_is_chosen() {
    let app = TestApp::start().await;
    app.upload().await;
    let form = app.get("/jobs/new").await.expect(200).text();
    let calibration = |form: &str| {
        let (_, select) = form.split_once("<select id=\"calibration\"").unwrap();
        select.split_once("</select>").unwrap().0.to_owned()
    };
    assert!(calibration(&form).contains("><option value=\"samples@1\">"), "{form}");
    app.put("/v1/datasets/held-out", files::samples(8)).await.expect(201);
    let form = app.get("/jobs/new").await.expect(200).text();
    let select = calibration(&form);
    assert!(select.contains(" required>") && !select.contains("selected"), "{select}");
    assert!(
        select.contains("><option value=\"\">choose …</option><option value=\"held-out@1\">"),
        "{select}"
    );
    assert!(form.contains("name=\"keep\" checked"), "{form}");
}
