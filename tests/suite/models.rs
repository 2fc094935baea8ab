//! `/v1/models`.

use reqwest::Method;
use reqwest::multipart::{Form, Part};

use crate::support::app::{TestApp, send};
use crate::support::files;

#[tokio::test]
async fn a_model_is_uploaded_found_listed_downloaded_and_deleted() {
    let app = TestApp::start().await;
    let answer = app.put("/v1/models/linear", files::linear()).await.expect(201);
    assert_eq!(answer.header("location"), "/v1/models/linear@1");
    let model = answer.json();
    assert_eq!((&model["name"], &model["version"]), (&"linear".into(), &1.into()));
    assert_eq!(model["bytes"], files::linear().len());
    assert_eq!(answer.header("etag"), format!("\"{}\"", model["sha256"].as_str().unwrap()));

    for path in ["/v1/models/linear", "/v1/models/linear@1"] {
        assert_eq!(app.get(path).await.expect(200).json(), model, "{path}");
    }
    let list = app.get("/v1/models").await.expect(200).json();
    assert_eq!(list["items"][0], model);
    assert!(list["next_cursor"].is_null());
    let file = app.get("/v1/models/linear/download").await.expect(200);
    assert_eq!(file.body, files::linear());

    app.delete("/v1/models/linear").await.expect(204);
    app.get("/v1/models/linear").await.problem(404, "not_found", &["linear"]);
    app.delete("/v1/models/linear").await.problem(404, "not_found", &["linear"]);
}

#[tokio::test]
async fn other_bytes_make_a_version_and_the_same_bytes_make_none() {
    let app = TestApp::start().await;
    app.put("/v1/models/m", files::linear()).await.expect(201);
    let second = app.put("/v1/models/m", files::linear_with(2.0)).await.expect(201).json();
    assert_eq!(second["version"], 2);
    let again = app.put("/v1/models/m", files::linear()).await.expect(200);
    assert_eq!(again.json()["version"], 1);
    assert_eq!(again.header("location"), "/v1/models/m@1");
    assert_eq!(app.get("/v1/models/m").await.json()["version"], 2);

    app.delete("/v1/models/m@2").await.expect(204);
    assert_eq!(app.get("/v1/models/m").await.json()["version"], 1);
    let third = app.put("/v1/models/m", files::linear_with(2.0)).await.expect(201).json();
    assert_eq!(third["version"], 3, "a number is never given twice");
}

#[tokio::test]
async fn a_form_uploads_too() {
    let app = TestApp::start().await;
    let form = || Form::new().text("name", "linear").part("file", Part::bytes(files::linear()));
    let post = |form: Form| send(app.request(Method::POST, "/v1/models").multipart(form));
    assert_eq!(post(form()).await.expect(201).json()["version"], 1);
    post(form()).await.expect(200);
    let form = Form::new().part("file", Part::bytes(files::linear()));
    post(form).await.problem(400, "bad_request", &["`name` must come before `file`"]);
    post(Form::new().text("name", "x")).await.problem(400, "bad_request", &["no field `file`"]);
    post(Form::new().text("color", "x")).await.problem(400, "bad_request", &["color"]);
    app.post("/v1/models", "x").await.problem(400, "bad_request", &[]);
}

#[tokio::test]
async fn what_is_no_model_is_refused_and_not_kept() {
    let app = TestApp::start().await;
    let whole = files::linear();
    for (bytes, words) in [
        (b"this is not ONNX".to_vec(), &[][..]),
        (vec![0; 4096], &[]),
        (whole[..whole.len() / 2].to_vec(), &[]),
        (whole[..whole.len() - 1].to_vec(), &[]),
        (files::unknown_operator(), &["Gemx", "gemm"]),
    ] {
        app.put("/v1/models/no", bytes).await.problem(422, "bad_model", words);
    }
    app.put("/v1/models/no", "").await.problem(400, "bad_request", &["empty"]);
    app.get("/v1/models/no").await.problem(404, "not_found", &["no"]);
    let left = std::fs::read_dir(app.folder().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing is left of what was refused");
}

#[tokio::test]
async fn an_archive_is_kept_as_one_file() {
    let app = TestApp::start().await;
    let apart = files::with_data_apart("w.bin");
    let zip = files::zip(&[("net/model.onnx", &apart), ("net/w.bin", &files::weight_bytes())]);
    let model = app.put("/v1/models/apart", zip.clone()).await.expect(201).json();
    app.put("/v1/models/apart", zip).await.expect(200);
    let file = app.get("/v1/models/apart/download").await.expect(200).body;
    assert_eq!(model["bytes"], file.len());
    // The data are in it: the file alone is a model.
    assert_eq!(app.put("/v1/models/apart", file).await.expect(200).json(), model);
    app.put("/v1/models/alone", apart.clone()).await.problem(422, "bad_model", &["w.bin", "zip"]);
    for (members, words) in [
        (&[("model.onnx", &apart[..])][..], &["w.bin", "not in the archive"][..]),
        (&[("../model.onnx", &apart)], &["leads out"]),
        (&[("a.onnx", &apart), ("b.onnx", &apart)], &["2 files"]),
        (&[("a.txt", &apart)], &[".onnx"]),
        (&[("model.onnx", b"no model")], &["not an ONNX model"]),
    ] {
        app.put("/v1/models/no", files::zip(members)).await.problem(422, "bad_model", words);
    }
    let hostile = files::with_data_apart("../w.bin");
    let zip = files::zip(&[("model.onnx", &hostile), ("w.bin", &files::weight_bytes())]);
    app.put("/v1/models/no", zip).await.problem(422, "bad_model", &["leads out"]);
    let left = std::fs::read_dir(app.folder().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing is left of what was refused");
}

#[tokio::test]
async fn a_digest_that_is_not_that_of_the_bytes_is_refused() {
    let app = TestApp::start().await;
    let put = |digest: &'static str| {
        send(app.request(Method::PUT, "/v1/models/m").header("content-digest", digest).body(files::linear()))
    };
    let wrong = "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:";
    put(wrong).await.problem(400, "digest_mismatch", &["SHA-256"]);
    put("sha-256=:AAAA:").await.problem(400, "bad_request", &["Content-Digest"]);
    put("md5=:AAAA:").await.expect(201);
}

#[tokio::test]
async fn names_and_pages_are_checked() {
    let app = TestApp::start().await;
    for name in [".hidden", "a%20b", "%2e%2e%2fetc", &"x".repeat(129)] {
        app.put(&format!("/v1/models/{name}"), files::linear()).await.problem(400, "bad_request", &["name"]);
    }
    for n in 1..=5 {
        app.put(&format!("/v1/models/m{n}"), files::linear()).await.expect(201);
    }
    let mut names = Vec::new();
    let mut path = "/v1/models?limit=2".to_owned();
    loop {
        let page = app.get(&path).await.expect(200);
        let body = page.json();
        names
            .extend(body["items"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()));
        let Some(cursor) = body["next_cursor"].as_str() else { break };
        path = format!("/v1/models?limit=2&cursor={cursor}");
        assert_eq!(page.header("link"), format!("<{path}>; rel=\"next\""));
    }
    assert_eq!(names, ["m5", "m4", "m3", "m2", "m1"]);
    app.get("/v1/models?limit=0").await.problem(400, "bad_request", &["limit"]);
    app.get("/v1/models?limit=201").await.problem(400, "bad_request", &["200"]);
    app.get("/v1/models?cursor=zz").await.problem(400, "bad_request", &["cursor"]);
    app.get("/v1/models?colour=red").await.problem(400, "bad_request", &[]);
    assert_eq!(app.get("/v1/models?name=m3").await.json()["items"][0]["name"], "m3");
}
