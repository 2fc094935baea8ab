//! What a stranger may send: sizes, before and while they are read.

use std::path::Path;
use std::time::{Duration, Instant};

use octet::engine::tensor::{Tensor, npy};
use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::app::{TestApp, send};
use crate::support::files;

#[tokio::test]
async fn bodies_over_the_limit_are_refused_with_the_limit() {
    let app = TestApp::with(&[
        ("limits.model_bytes", "2000"),
        ("limits.dataset_bytes", "3000"),
        ("limits.infer_body_bytes", "4000"),
        ("limits.json_body_bytes", "5000"),
    ])
    .await;
    app.put("/v1/models/no", vec![8; 2001]).await.problem(413, "too_large", &["2000"]);
    app.put("/v1/datasets/no", vec![8; 3001]).await.problem(413, "too_large", &["3000"]);
    // As sent they are short.
    let model = files::zip(&[("m.onnx", &[0; 9_000])]);
    app.put("/v1/models/no", model).await.problem(413, "too_large", &["2000 bytes"]);
    let mut zeros = Vec::new();
    npy::write_array(&mut zeros, &Tensor::from_slice(&[1000], &[0f32; 1000])).unwrap();
    app.put("/v1/datasets/no", files::zip(&[("x.npy", &zeros)])).await.problem(413, "too_large", &["3000"]);
    app.post("/v1/jobs", " ".repeat(5001)).await.problem(413, "too_large", &["5000"]);
    app.serve().await;
    app.post("/v2/models/linear/infer", vec![b' '; 4001]).await.error(413, "too_large", &["4000"]);
    app.get("/v1/models/no").await.problem(404, "not_found", &["no"]);
}

#[tokio::test]
async fn a_stream_without_a_length_is_cut_at_the_limit() {
    let app = TestApp::with(&[("limits.model_bytes", "2000")]).await;
    let parts = futures::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![8u8; 100])));
    let request = app.request(Method::PUT, "/v1/models/no").body(reqwest::Body::wrap_stream(parts));
    send(request).await.problem(413, "too_large", &["2000"]);
    let whole = files::linear();
    let parts: Vec<_> = whole.chunks(7).map(|part| Ok::<_, std::io::Error>(part.to_vec())).collect();
    let body = reqwest::Body::wrap_stream(futures::stream::iter(parts));
    send(app.request(Method::PUT, "/v1/models/m").body(body)).await.expect(201);
}

/// Sends text as it is and reads until the server has said `until` or ends.
async fn talk(app: &TestApp, text: &str, until: &str) -> String {
    let mut stream = TcpStream::connect(app.address()).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n = stream.read(&mut part).await.unwrap_or(0);
        answer.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        if n == 0 || text.contains(until) {
            return text;
        }
    }
}

#[tokio::test]
async fn a_length_that_is_too_large_is_refused_before_anything_is_sent() {
    let app = TestApp::start().await;
    for expect in ["", "Expect: 100-continue\r\n"] {
        let head =
            format!("PUT /v1/models/no HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n{expect}\r\n");
        let answer = talk(&app, &head, "request_id").await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(answer.contains("2147483648"), "{answer}");
    }
}

/// A client that sends all before it looks for an answer, as most libraries do.
#[tokio::test]
async fn a_client_that_is_refused_while_it_sends_reads_why() {
    let app = TestApp::start().await;
    let bytes: usize = 64 << 20;
    for path in ["/v1/nothing", "/v2/models/nobody/infer"] {
        let method = if path.starts_with("/v1") { "PUT" } else { "POST" };
        let mut stream = TcpStream::connect(app.address()).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; bytes]).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 404", "{path}");
        // The connection serves on.
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        while !String::from_utf8_lossy(&rest).contains("HTTP/1.1 200") {
            assert_ne!(stream.read_buf(&mut rest).await.unwrap(), 0, "{path}");
        }
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let app = TestApp::start().await;
    let mut stream = TcpStream::connect(app.address()).await.unwrap();
    stream
        .write_all(b"PUT /v1/models/no HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n1234")
        .await
        .unwrap();
    let files_in = |folder: &str| files_below(&app.folder().join(folder));
    until(|| files_in("tmp") == 1, "the upload has begun").await;
    drop(stream);
    until(|| files_in("tmp") == 0, "what was written is gone").await;
    assert_eq!(files_in("blobs"), 0);
    app.get("/v1/models/no").await.problem(404, "not_found", &["no"]);
    app.put("/v1/models/m", files::linear()).await.expect(201);
    assert_eq!((files_in("tmp"), files_in("blobs")), (0, 1));
}

/// Files in a folder and those in it.
fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

async fn until(holds: impl Fn() -> bool, what: &str) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not in 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_bomb_is_cut_at_the_limit() {
    use std::io::Write as _;
    let app = TestApp::with(&[("limits.infer_body_bytes", "100000")]).await;
    app.serve().await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&vec![b' '; 50_000_000]).unwrap();
    let bytes = gzip.finish().unwrap();
    assert!(bytes.len() < 100_000);
    let request = app.request(Method::POST, "/v2/models/linear/infer").header("content-encoding", "gzip");
    send(request.body(bytes)).await.error(413, "too_large", &["100000"]);
}
