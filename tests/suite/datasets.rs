//! `/v1/datasets`.

use octet::engine::tensor::Tensor;
use serde_json::json;

use crate::support::app::TestApp;
use crate::support::files::{npz, samples, values};

#[tokio::test]
async fn a_dataset_is_uploaded_found_listed_downloaded_and_deleted() {
    let app = TestApp::start().await;
    let answer = app.put("/v1/datasets/calib", samples(7)).await.expect(201);
    assert_eq!(answer.header("location"), "/v1/datasets/calib@1");
    let dataset = answer.json();
    assert_eq!(dataset["samples"], 7);
    assert_eq!(app.put("/v1/datasets/calib", samples(7)).await.expect(200).json(), dataset);
    assert_eq!(app.put("/v1/datasets/calib", samples(8)).await.expect(201).json()["version"], 2);
    assert_eq!(app.get("/v1/datasets/calib@1").await.expect(200).json(), dataset);
    assert_eq!(app.get("/v1/datasets?name=calib").await.json()["items"].as_array().unwrap().len(), 2);
    assert_eq!(app.get("/v1/datasets/calib@1/download").await.expect(200).body, samples(7));
    app.delete("/v1/datasets/calib").await.expect(200);
    app.get("/v1/datasets/calib").await.problem(404, "not_found", &["calib"]);
}

#[tokio::test]
async fn a_deletion_tells_which_files_are_gone() {
    let app = TestApp::start().await;
    for (name, count) in [("one", 7), ("one", 8), ("other", 8)] {
        app.put(&format!("/v1/datasets/{name}"), samples(count)).await.expect(201);
    }
    let sha256 = |version: &str| {
        let path = format!("/v1/datasets/{version}");
        async { app.get(&{ path }).await.json()["sha256"].as_str().unwrap().to_owned() }
    };
    let (seven, eight) = (sha256("one@1").await, sha256("one@2").await);
    let blob = |sha256: &str| app.folder().join("blobs").join(&sha256[..2]).join(&sha256[2..]);
    assert!(blob(&seven).exists());
    let proof = app.delete("/v1/datasets/one").await.expect(200).json();
    assert_eq!(proof["deleted"], json!(["one@1", "one@2"]), "{proof:#}");
    let of = |sha256: &str| {
        let blobs = proof["blobs"].as_array().unwrap();
        blobs.iter().find(|b| b["sha256"] == *sha256).cloned().unwrap()
    };
    assert_eq!((&of(&seven)["gone"], &of(&seven)["referred_to_by"]), (&json!(true), &json!([])));
    assert!(!blob(&seven).exists());
    assert_eq!(of(&eight)["gone"], false);
    assert_eq!(of(&eight)["referred_to_by"], json!(["dataset other@1"]));
    assert!(blob(&eight).exists());
    let proof = app.delete("/v1/datasets/other").await.expect(200).json();
    assert_eq!(proof["blobs"][0]["gone"], true, "{proof:#}");
    assert!(!blob(&eight).exists());
}

#[tokio::test]
async fn what_is_no_dataset_is_refused() {
    let app = TestApp::start().await;
    let whole = samples(8);
    let uneven = npz(&[("a", values(3)), ("b", values(4))]);
    let labels = npz(&[("x", values(4)), ("labels", Tensor::from_slice(&[3], &[0i64, 1, 2]))]);
    for (bytes, words) in [
        (b"no zip".to_vec(), &[][..]),
        (whole[..whole.len() / 2].to_vec(), &[]),
        (uneven, &["3", "4"]),
        (labels, &["labels"]),
    ] {
        app.put("/v1/datasets/no", bytes).await.problem(422, "bad_data", words);
    }
    app.put("/v1/datasets/no", "").await.problem(400, "bad_request", &["empty"]);
    app.get("/v1/datasets/no").await.problem(404, "not_found", &["no"]);
}
