//! [`TestApp`]: starts the server as `octet serve` does, and asks it.

use std::path::{Path, PathBuf};

use octet::app::server::{self, Server};
use octet::config::{Flags, Settings};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::files;

/// A server that runs.
pub(crate) struct TestApp {
    server: Option<Server>,
    client: Client,
    url: String,
    folder: PathBuf,
    settings: Vec<(String, String)>,
    // Removed with the last use of it.
    _own: Option<TempDir>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Asserts the status; gives the answer back.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }

    /// Asserts a problem document of this status and code whose detail holds all of `words`.
    #[track_caller]
    pub(crate) fn problem(self, status: u16, code: &str, words: &[&str]) {
        let answer = self.expect(status);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let body = answer.json();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status, "{body}");
        assert_eq!(body["type"], format!("urn:octet:error:{code}"), "{body}");
        assert_eq!(body["request_id"], answer.header("x-request-id"), "{body}");
        names(body["detail"].as_str().unwrap(), words);
    }

    /// Asserts an error of `/v2` of this status and code whose text holds all of `words`.
    #[track_caller]
    pub(crate) fn error(self, status: u16, code: &str, words: &[&str]) {
        let answer = self.expect(status);
        assert_eq!(answer.header("content-type"), "application/json");
        let body = answer.json();
        assert_eq!(body["code"], code, "{body}");
        names(body["error"].as_str().unwrap(), words);
    }
}

#[track_caller]
fn names(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{text}` does not name `{word}`");
    }
}

impl TestApp {
    /// A server with the default settings.
    pub(crate) async fn start() -> TestApp {
        TestApp::with(&[]).await
    }

    /// A server with some other settings: `("limits.model_bytes", "2000")`.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> TestApp {
        // The client asks for it as it is made, before a server has chosen it. A second call finds it done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = TempDir::new().unwrap();
        let settings = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut app = TestApp {
            server: None,
            client: Client::new(),
            url: String::new(),
            folder: own.path().join("data"),
            settings,
            _own: Some(own),
        };
        app.begin().await;
        app
    }

    /// Changes a setting for the next start.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.settings.retain(|(k, _)| k != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// Starts over the same folder.
    pub(crate) async fn begin(&mut self) {
        let flags = Flags {
            listen: Some("127.0.0.1:0".to_owned()),
            grpc_listen: Some("127.0.0.1:0".to_owned()),
            data_dir: Some(self.folder.clone()),
            set: self.settings.clone(),
        };
        let settings = Settings::load(None, &flags).unwrap();
        let server = server::start(&settings).await.unwrap();
        self.url = format!("http://{}", server.address());
        self.server = Some(server);
        while self.get("/v2/health/ready").await.status != 200 {
            tokio::task::yield_now().await;
        }
    }

    /// Stops as SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        self.server.take().expect("it runs").stop().await;
    }

    /// Stops and starts again over the same folder.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.begin().await;
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn address(&self) -> String {
        self.url.trim_start_matches("http://").to_owned()
    }

    pub(crate) fn grpc_address(&self) -> String {
        let address = self.server.as_ref().and_then(Server::grpc_address);
        address.expect("it runs and speaks gRPC").to_string()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn get_with(&self, path: &str, name: &str, value: &str) -> Answer {
        send(self.request(Method::GET, path).header(name, value)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn put(&self, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        send(self.request(Method::PUT, path).body(body.into())).await
    }

    pub(crate) async fn put_json(&self, path: &str, body: &Value) -> Answer {
        self.put(path, body.to_string()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        send(self.request(Method::POST, path).body(body.into())).await
    }

    pub(crate) async fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.post(path, body.to_string()).await
    }

    /// Uploads the tiny model as `linear` and 16 samples for it as `samples`.
    pub(crate) async fn upload(&self) {
        // The data go with each job, the model stays.
        let model = self.put("/v1/models/linear", files::linear()).await;
        assert!([200, 201].contains(&model.status.as_u16()), "{}", model.text());
        self.put("/v1/datasets/samples", files::samples(16)).await.expect(201);
    }

    /// Serves the tiny model in float under `linear`.
    pub(crate) async fn serve(&self) {
        self.put("/v1/models/linear", files::linear()).await.expect(201);
        let view =
            self.put_json("/v1/endpoints/linear", &json!({ "model": "linear" })).await.expect(201).json();
        assert_eq!(view["state"], "READY", "{view}");
    }

    /// Asks for a job on the tiny model; gives its id.
    pub(crate) async fn submit(&self, more: Value) -> String {
        let mut body = json!({ "kind": "quantize", "model": "linear", "calibration": "samples" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = self.post_json("/v1/jobs", &body).await.expect(202);
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        assert_eq!(answer.header("location"), format!("/v1/jobs/{id}"));
        id
    }

    /// Waits for the end of a job.
    pub(crate) async fn wait(&self, id: &str) -> Value {
        loop {
            let job = self.get(&format!("/v1/jobs/{id}?wait=50")).await.expect(200).json();
            if !["queued", "running"].contains(&job["state"].as_str().unwrap()) {
                return job;
            }
        }
    }

    /// Uploads, quantizes and serves; gives the job.
    pub(crate) async fn quantize(&self, more: Value) -> Value {
        self.upload().await;
        let endpoint = more["endpoint"].as_str().map(str::to_owned);
        let id = self.submit(more).await;
        let job = self.wait(&id).await;
        assert_eq!(job["state"], "succeeded", "{job:#}");
        // The job has ended when the artifact is kept; its endpoint is loaded right after.
        while let Some(name) = &endpoint
            && self.get(&format!("/v2/models/{name}/ready")).await.status != 200
        {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        job
    }
}

/// Sends and reads to the end.
pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.unwrap().to_vec() }
}
