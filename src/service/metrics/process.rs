//! All metrics of one process behind one handle, and their text. Knows nothing of what is counted.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use super::endpoints::{EndpointMetrics, EndpointSeries, Endpoints};
use super::make::Make;
use super::{InFlight, OTHER, ROUTE_SERIES_MAX, whole};

/// All metrics of one process. Every method is cheap, never fails and never blocks for long.
pub struct Metrics {
    registry: Registry,
    http_requests: IntCounterVec,
    http_duration: HistogramVec,
    http_in_flight: IntGauge,
    grpc_requests: IntCounterVec,
    grpc_duration: HistogramVec,
    auth_refused: IntCounterVec,
    routes: Mutex<HashSet<(&'static str, String)>>,
    endpoints: Arc<Endpoints>,
    models_loaded: IntGaugeVec,
    model_load: HistogramVec,
    jobs: IntGaugeVec,
    jobs_submitted: IntCounterVec,
    jobs_finished: IntCounterVec,
    job_queue_wait: Histogram,
    job_duration: HistogramVec,
    job_phase: HistogramVec,
    job_attempts: Histogram,
    job_lease_expired: IntCounter,
    job_oldest_queued: GaugeVec,
    webhooks: IntCounterVec,
    calibration_samples: IntCounter,
    artifact_bytes: IntGaugeVec,
    artifact_size_ratio: Histogram,
    upload_bytes: IntCounter,
    uploads_incomplete: IntGauge,
}

impl Metrics {
    /// All metrics at 0. `version` is that of the program; `isa` the instructions that the kernels use.
    #[must_use]
    pub fn new(version: &str, isa: &str) -> Metrics {
        let make = Make { registry: Registry::new() };
        #[cfg(target_os = "linux")]
        make.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
        make.int_gauges("octet_build_info").with_label_values(&[version, isa]).set(1);
        let metrics = Metrics {
            http_requests: make.counters("octet_http_requests_total"),
            http_duration: make.histograms("octet_http_request_duration_seconds"),
            http_in_flight: make.int_gauge("octet_http_requests_in_flight"),
            grpc_requests: make.counters("octet_grpc_requests_total"),
            grpc_duration: make.histograms("octet_grpc_request_duration_seconds"),
            auth_refused: make.counters("octet_auth_refused_total"),
            routes: Mutex::default(),
            endpoints: Arc::new(Endpoints::new(&make)),
            models_loaded: make.int_gauges("octet_models_loaded"),
            model_load: make.histograms("octet_model_load_duration_seconds"),
            jobs: make.int_gauges("octet_jobs"),
            jobs_submitted: make.counters("octet_jobs_submitted_total"),
            jobs_finished: make.counters("octet_jobs_finished_total"),
            job_queue_wait: make.histogram("octet_job_queue_wait_seconds"),
            job_duration: make.histograms("octet_job_duration_seconds"),
            job_phase: make.histograms("octet_job_phase_duration_seconds"),
            job_attempts: make.histogram("octet_job_attempts"),
            job_lease_expired: make.counter("octet_job_lease_expired_total"),
            job_oldest_queued: make.gauges("octet_job_oldest_queued_age_seconds"),
            webhooks: make.counters("octet_webhooks_total"),
            calibration_samples: make.counter("octet_calibration_samples_total"),
            artifact_bytes: make.int_gauges("octet_artifact_bytes"),
            artifact_size_ratio: make.histogram("octet_artifact_size_ratio"),
            upload_bytes: make.counter("octet_upload_bytes_total"),
            uploads_incomplete: make.int_gauge("octet_uploads_incomplete"),
            registry: make.registry,
        };
        metrics.create_series();
        metrics
    }

    /// Series whose labels are known from the start begin at 0, so that `rate()` sees the first event.
    fn create_series(&self) {
        for reason in ["missing", "unknown", "token", "expired", "revoked", "scope", "origin", "rate"] {
            self.auth_refused.with_label_values(&[reason]);
        }
        for precision in ["fp32", "fp16", "int8"] {
            self.models_loaded.with_label_values(&[precision]);
            self.model_load.with_label_values(&[precision]);
        }
        for state in ["queued", "running", "succeeded", "gate_failed", "failed", "cancelled"] {
            self.jobs.with_label_values(&[state]);
        }
        self.jobs_submitted.with_label_values(&["quantize"]);
        self.job_duration.with_label_values(&["quantize"]);
        for outcome in ["succeeded", "gate_failed", "failed", "cancelled"] {
            self.jobs_finished.with_label_values(&["quantize", outcome]);
        }
        for phase in ["import", "calibrate", "quantize", "evaluate", "measure", "export", "store"] {
            self.job_phase.with_label_values(&[phase]);
        }
        self.job_oldest_queued.with_label_values::<&str>(&[]);
        for kind in ["float", "int8", "dataset"] {
            self.artifact_bytes.with_label_values(&[kind]);
        }
    }

    /// The exposition in the text format of Prometheus 0.0.4, content type [`Metrics::CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("a Vec takes all bytes, and every family has a name and a sample");
        String::from_utf8(out).expect("labels are UTF-8, so the text is")
    }

    /// Content type of [`Metrics::render`].
    pub const CONTENT_TYPE: &'static str = prometheus::TEXT_FORMAT;

    /// A request was answered. `route` is the template (`/v1/jobs/{id}`), never the path; for a path without
    /// a route give `_none`.
    pub fn http_request(&self, method: &str, route: &str, status: u16, seconds: f64) {
        const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        // Methods are free text for a client.
        let method = METHODS.into_iter().find(|&known| known == method).unwrap_or(OTHER);
        let route = self.route_label(method, route);
        self.http_requests.with_label_values(&[method, route, &status.to_string()]).inc();
        self.http_duration.with_label_values(&[method, route]).observe(seconds);
    }

    /// A gRPC call was answered; `None` is a call of another service than inference.
    pub fn grpc_request(&self, method: Option<&'static str>, code: &str, seconds: f64) {
        let method = method.unwrap_or(OTHER);
        self.grpc_requests.with_label_values(&[method, code]).inc();
        self.grpc_duration.with_label_values(&[method]).observe(seconds);
    }

    fn route_label<'a>(&self, method: &'static str, route: &'a str) -> &'a str {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (method, route.to_owned());
        if routes.contains(&key) {
            return route;
        }
        if routes.len() >= ROUTE_SERIES_MAX {
            return OTHER;
        }
        routes.insert(key);
        route
    }

    /// A request was refused for want of a key that allows it.
    pub fn auth_refused(&self, reason: &'static str) {
        self.auth_refused.with_label_values(&[reason]).inc();
    }

    /// Counts a request as being answered until the guard is dropped.
    #[must_use]
    pub fn http_begin(&self) -> InFlight {
        InFlight::new(self.http_in_flight.clone())
    }

    /// Makes the series of a version of an endpoint, at 0; they go when the last handle is dropped.
    /// `load_seconds` is the time that loading and warming up took.
    #[must_use]
    pub fn load_endpoint(
        &self,
        endpoint: &str,
        version: u32,
        precision: &'static str,
        load_seconds: f64,
    ) -> EndpointMetrics {
        self.model_load.with_label_values(&[precision]).observe(load_seconds);
        let loaded = self.models_loaded.with_label_values(&[precision]);
        EndpointMetrics {
            inner: Arc::new(EndpointSeries::new(&self.endpoints, endpoint, version, precision, loaded)),
        }
    }

    /// A job was accepted.
    pub fn job_submitted(&self, kind: &'static str) {
        self.jobs_submitted.with_label_values(&[kind]).inc();
    }

    /// A job began its first attempt after waiting so long.
    pub fn job_started(&self, wait_seconds: f64) {
        self.job_queue_wait.observe(wait_seconds);
    }

    /// A job came to its final state. `seconds` is the time of its last attempt, where there was one.
    pub fn job_finished(
        &self,
        kind: &'static str,
        outcome: &'static str,
        attempts: u32,
        seconds: Option<f64>,
    ) {
        self.jobs_finished.with_label_values(&[kind, outcome]).inc();
        self.job_attempts.observe(f64::from(attempts));
        if let Some(seconds) = seconds {
            self.job_duration.with_label_values(&[kind]).observe(seconds);
        }
    }

    /// A phase of an attempt took so long.
    pub fn job_phase(&self, phase: &str, seconds: f64) {
        self.job_phase.with_label_values(&[phase]).observe(seconds);
    }

    /// So many leases ran out.
    pub fn leases_expired(&self, count: u64) {
        self.job_lease_expired.inc_by(count);
    }

    /// An attempt to tell that a job has ended was made; `outcome` is `delivered`, `retried` or `given_up`.
    pub fn webhook_tried(&self, outcome: &'static str) {
        self.webhooks.with_label_values(&[outcome]).inc();
    }

    /// So many samples were run for calibration.
    pub fn calibration_samples(&self, count: u64) {
        self.calibration_samples.inc_by(count);
    }

    /// An artifact was kept.
    pub fn artifact(&self, size_ratio: f64) {
        self.artifact_size_ratio.observe(size_ratio);
    }

    /// Bytes of an upload came in.
    pub fn upload_bytes(&self, bytes: u64) {
        self.upload_bytes.inc_by(bytes);
    }

    /// So many files are being written.
    pub fn set_uploads_incomplete(&self, count: u64) {
        self.uploads_incomplete.set(whole(count));
    }

    /// So many jobs are in `state`.
    pub fn set_jobs(&self, state: &'static str, count: u64) {
        self.jobs.with_label_values(&[state]).set(whole(count));
    }

    /// The oldest queued job is so old; 0 without one.
    pub fn set_oldest_queued(&self, seconds: f64) {
        self.job_oldest_queued.with_label_values::<&str>(&[]).set(seconds);
    }

    /// So many bytes are kept of float models, INT8 artifacts and datasets.
    pub fn set_stored_bytes(&self, float: u64, int8: u64, dataset: u64) {
        for (kind, bytes) in [("float", float), ("int8", int8), ("dataset", dataset)] {
            self.artifact_bytes.with_label_values(&[kind]).set(whole(bytes));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Compared, DECLARATIONS, ENDPOINT_SERIES_MAX};
    use super::*;

    /// Names of the families, as `# TYPE` lines tell them.
    fn families(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
    }

    pub(in crate::service::metrics) fn full() -> (Metrics, EndpointMetrics) {
        let metrics = Metrics::new("0.1.0", "avx2");
        metrics.http_request("GET", "/v1/jobs/{id}", 200, 0.01);
        metrics.grpc_request(Some("ModelInfer"), "Ok", 0.01);
        metrics.webhook_tried("delivered");
        let endpoint = metrics.load_endpoint("resnet", 1, "int8", 0.5);
        endpoint.set_accuracy("top1", 0.75, 0.74, -0.01);
        endpoint.set_memory(1000, 10);
        endpoint.shadow().compared(Compared::Match, 1);
        endpoint.set_route_weight(1.0);
        endpoint.set_last_inference(1000);
        endpoint.set_out_of_range("x", 0.25);
        (metrics, endpoint)
    }

    #[test]
    fn every_declared_metric_is_rendered_and_no_other() {
        let (metrics, _endpoint) = full();
        let text = metrics.render();
        let mut declared: Vec<_> = DECLARATIONS.iter().map(|declared| declared.name).collect();
        declared.sort_unstable();
        let rendered: Vec<_> =
            families(&text).into_iter().filter(|name| !name.starts_with("process_")).collect();
        assert_eq!(rendered, declared);
        if cfg!(target_os = "linux") {
            assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
        }
    }

    #[test]
    fn promtool_finds_no_fault() {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let command = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        // Not installed everywhere (Debian: package `prometheus`); the rules that `mod.rs` tests hold without it.
        let Ok(mut promtool) = command else { return };
        let (metrics, _endpoint) = full();
        promtool.stdin.take().unwrap().write_all(metrics.render().as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let told = [output.stderr, output.stdout].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(output.status.success() && told.trim().is_empty(), "{told}");
    }

    #[test]
    fn labels_are_bounded() {
        let metrics = Metrics::new("0.1.0", "avx2");
        for index in 0..2 * ROUTE_SERIES_MAX {
            metrics.http_request(&format!("METHOD{index}"), "_none", 404, 0.0);
            metrics.http_request("GET", &format!("/{index}"), 404, 0.0);
        }
        let handles: Vec<_> = (0..2 * ENDPOINT_SERIES_MAX)
            .map(|index| metrics.load_endpoint(&format!("e{index}"), 1, "int8", 0.0))
            .collect();
        let text = metrics.render();
        let count = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
        assert!(count("octet_http_requests_total{") <= ROUTE_SERIES_MAX + 2);
        assert_eq!(count("octet_inference_in_flight{"), ENDPOINT_SERIES_MAX + 1);
        drop(handles);
        assert_eq!(metrics.render().lines().filter(|line| line.contains("endpoint=")).count(), 0);
    }
}
