//! Every metric: name, unit, labels, buckets and the question it answers; typed handles; rendering.
//! Knows nothing of what is counted.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// What kind of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of observations below bounds.
    Histogram(Buckets),
}

/// The bounds of a histogram (facts/serving.md, appendix D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buckets {
    /// Times of requests: 0.1 ms to 10 s.
    Request,
    /// Times in a queue: the same from 0.01 ms.
    Queue,
    /// Times of jobs: 0.1 s to 2 h.
    Job,
    /// Batch sizes: powers of two to 256.
    Batch,
    /// Attempts: 1 to 10.
    Attempts,
    /// Sizes against each other: 0.05 to 1.5.
    Ratio,
    /// Differences of outputs: 0.000001 to 10.
    Difference,
}

impl Buckets {
    /// The upper bounds, without the infinite one.
    #[must_use]
    pub fn bounds(self) -> &'static [f64] {
        const QUEUE: [f64; 17] = [
            0.000_01, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
            1.0, 2.5, 5.0, 10.0,
        ];
        match self {
            Buckets::Request => &QUEUE[1..],
            Buckets::Queue => &QUEUE,
            Buckets::Job => {
                &[0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0]
            }
            Buckets::Batch => &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0],
            Buckets::Attempts => &[1.0, 2.0, 3.0, 5.0, 10.0],
            Buckets::Difference => {
                &[1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
            }
            Buckets::Ratio => &[0.05, 0.1, 0.2, 0.25, 0.26, 0.28, 0.3, 0.35, 0.4, 0.5, 0.75, 1.0, 1.5],
        }
    }
}

/// A metric as `docs/METRICS.md` shows it.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Its name.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// In what it is counted.
    pub unit: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it is: the `# HELP` line.
    pub help: &'static str,
    /// What one asks it.
    pub question: &'static str,
}

macro_rules! declare {
    ($($name:literal $kind:expr, $unit:literal, [$($label:literal),*], $help:literal, $question:literal;)*) => {
        /// Every metric that is not of the process as such (`process_*`).
        pub const DECLARATIONS: &[Declaration] = &[$(Declaration {
            name: concat!("octet_", $name),
            kind: $kind,
            unit: $unit,
            labels: &[$($label),*],
            help: $help,
            question: $question,
        }),*];
    };
}

use self::Buckets::{Attempts, Batch, Difference, Job, Queue, Ratio, Request};
use self::Kind::{Counter, Gauge, Histogram as Histo};

declare! {
    "build_info" Gauge, "1", ["version", "isa"], "Always 1; the labels tell what runs.",
        "Which version runs where, and with which instructions?";

    "http_requests_total" Counter, "requests", ["method", "route", "status"],
        "HTTP requests answered, by route template.", "How much is asked, and what share fails?";
    "http_request_duration_seconds" Histo(Request), "seconds", ["method", "route"],
        "Time from the request head to the end of the answer.", "Which route is slow?";
    "http_requests_in_flight" Gauge, "requests", [], "HTTP requests being answered.",
        "Is the server idle, busy, or draining?";
    "auth_refused_total" Counter, "requests", ["reason"],
        "Requests refused for want of a key that allows them, over HTTP and gRPC.",
        "Does somebody try keys, or has one run out?";

    "inference_requests_total" Counter, "requests", ["endpoint", "version", "precision", "protocol", "outcome"],
        "Inference requests, by how they ended.", "What share is refused, cancelled, invalid or failed?";
    "inference_duration_seconds" Histo(Request), "seconds", ["endpoint", "version", "precision"],
        "Time of a whole inference request.", "What latency do clients see, float against INT8?";
    "inference_queue_duration_seconds" Histo(Queue), "seconds", ["endpoint", "version", "precision"],
        "Time an inference request waited for its batch.", "Is it the queue that is slow?";
    "inference_decode_duration_seconds" Histo(Request), "seconds", ["endpoint", "version", "precision"],
        "Time to read the tensors of a request.", "Do clients lose time by sending JSON?";
    "inference_compute_duration_seconds" Histo(Request), "seconds", ["endpoint", "version", "precision"],
        "Time the model ran for a batch.", "How fast is the model itself, float against INT8?";
    "inference_encode_duration_seconds" Histo(Request), "seconds", ["endpoint", "version", "precision"],
        "Time to write the tensors of an answer.", "Do clients lose time by asking for JSON?";
    "inference_batch_size" Histo(Batch), "samples", ["endpoint", "version", "precision"],
        "Samples in each batch that ran.", "Does batching take effect?";
    "inference_in_flight" Gauge, "requests", ["endpoint", "version", "precision"],
        "Inference requests being served, waiting ones included.", "How busy is the endpoint?";
    "inference_queue_depth" Gauge, "requests", ["endpoint", "version", "precision"],
        "Inference requests that wait.", "How close is the queue to its limit?";
    "inference_queue_limit" Gauge, "requests", ["endpoint", "version", "precision"],
        "So many inference requests may wait; further ones are refused.", "When does refusal begin?";

    "inference_elements_total" Counter, "samples", ["endpoint", "version", "precision"],
        "Samples that were run.", "How many samples are answered, however they are packed?";
    "inference_executions_total" Counter, "runs", ["endpoint", "version", "precision"],
        "Runs of the model, of one request or several.", "How many runs does that take?";
    "endpoint_route_weight" Gauge, "ratio", ["endpoint", "version"],
        "Share of the requests that name no version, as the routes say.", "How far is the rollout?";
    "endpoint_rollbacks_total" Counter, "rollbacks", ["endpoint"],
        "Versions that lost their requests because of their rule.", "Did a rollout fail?";

    "shadow_comparisons_total" Counter, "samples", ["endpoint", "version", "outcome"],
        "Samples that were also run in float: match, mismatch, error, skipped for want of time.",
        "How much of the traffic is compared, and does it agree?";
    "shadow_agreement_ratio" Gauge, "ratio", ["endpoint", "version"],
        "Share of the last 1000 compared samples on which INT8 and float agree; NaN before the first.",
        "Is INT8 as good on today's traffic as on the evaluation data?";
    "shadow_cosine_distance" Histo(Difference), "1", ["endpoint", "version"],
        "One minus the cosine of the INT8 and the float output of a sample.", "How far apart are the outputs?";
    "shadow_absolute_error" Histo(Difference), "1", ["endpoint", "version"],
        "Largest difference of an INT8 and a float output of a sample.", "How wrong is the worst value?";
    "input_out_of_range_ratio" Gauge, "ratio", ["endpoint", "version", "input"],
        "Share of the recent values of an input outside of what calibration saw; NaN before the first.",
        "Does today's traffic look like the calibration data?";

    "model_accuracy" Gauge, "ratio", ["endpoint", "version", "precision", "metric"],
        "Accuracy on the evaluation data of the job.", "How good is what is served?";
    "model_accuracy_delta" Gauge, "ratio", ["endpoint", "version", "metric"],
        "Accuracy of INT8 minus accuracy of float, on the evaluation data of the job.",
        "What did quantization cost?";
    "model_last_inference_timestamp_seconds" Gauge, "seconds", ["endpoint", "version"],
        "Unix time of the last answer; 0 before the first.", "Is this version still in use?";
    "models_loaded" Gauge, "models", ["precision"], "Versions of endpoints that are in memory.",
        "What is ready to serve?";
    "model_memory_bytes" Gauge, "bytes", ["endpoint", "version", "precision", "kind"],
        "Memory of a loaded version: weights, arena.", "What fills the memory?";
    "model_load_duration_seconds" Histo(Job), "seconds", ["precision"],
        "Time to load and warm up a version.", "How long does a swap or a restart take?";

    "jobs" Gauge, "jobs", ["state"], "Jobs in the catalog, by state.", "What is going on, and what went wrong?";
    "jobs_submitted_total" Counter, "jobs", ["kind"], "Jobs that were accepted.", "How much work comes in?";
    "jobs_finished_total" Counter, "jobs", ["kind", "outcome"], "Jobs that ended, by how.",
        "What share fails, or misses its gate?";
    "job_queue_wait_seconds" Histo(Job), "seconds", [], "Time from the request to the first attempt.",
        "Are there enough workers?";
    "job_duration_seconds" Histo(Job), "seconds", ["kind"], "Time of an attempt that ended the job.",
        "How long does a job take?";
    "job_phase_duration_seconds" Histo(Job), "seconds", ["phase"], "Time of one phase of an attempt.",
        "Which phase takes the time?";
    "job_attempts" Histo(Attempts), "attempts", [], "Attempts that a job took until it ended.",
        "Do jobs have to be repeated?";
    "job_lease_expired_total" Counter, "leases", [], "Leases that ran out or were left by a process that died.",
        "Do workers die or hang?";
    "job_oldest_queued_age_seconds" Gauge, "seconds", [], "Age of the oldest queued job.",
        "Is the queue stuck?";
    "webhooks_total" Counter, "attempts", ["outcome"],
        "Attempts to tell that a job has ended: delivered, retried later, given_up.", "Do receivers hear of their jobs?";
    "calibration_samples_total" Counter, "samples", [], "Calibration samples run through float models.",
        "How much calibration is done?";

    "artifact_bytes" Gauge, "bytes", ["kind"], "Bytes kept: float models, INT8 artifacts, datasets.",
        "What fills the disk?";
    "artifact_size_ratio" Histo(Ratio), "ratio", [], "Bytes of an artifact over bytes of its float model.",
        "How much smaller do models become?";
    "upload_bytes_total" Counter, "bytes", [], "Bytes of models and datasets received.",
        "How much is uploaded?";
    "uploads_incomplete" Gauge, "uploads", [], "Files that are being written.",
        "Do uploads hang?";
}

/// At most so many versions of endpoints have series of their own; further ones share `_other`.
const ENDPOINT_SERIES_MAX: usize = 256;
/// At most so many pairs of method and route have series of their own; further ones share `_other`.
const ROUTE_SERIES_MAX: usize = 256;
const OTHER: &str = "_other";

/// Over what protocol an inference request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// REST.
    Http,
    /// gRPC.
    Grpc,
}

impl Protocol {
    const ALL: [Protocol; 2] = [Protocol::Http, Protocol::Grpc];

    fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
        }
    }
}

/// How an inference request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Ok,
    /// Refused: the queue was full.
    Rejected,
    /// The client went away.
    Cancelled,
    /// It took too long.
    Deadline,
    /// It does not fit the model.
    Invalid,
    /// A fault of ours.
    Error,
}

impl Outcome {
    const ALL: [Outcome; 6] = [
        Outcome::Ok,
        Outcome::Rejected,
        Outcome::Cancelled,
        Outcome::Deadline,
        Outcome::Invalid,
        Outcome::Error,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Rejected => "rejected",
            Outcome::Cancelled => "cancelled",
            Outcome::Deadline => "deadline",
            Outcome::Invalid => "invalid",
            Outcome::Error => "error",
        }
    }
}

/// All metrics of one process. Every method is cheap, never fails and never blocks for long.
pub struct Metrics {
    registry: Registry,
    http_requests: IntCounterVec,
    http_duration: HistogramVec,
    http_in_flight: IntGauge,
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

/// Metrics that have series for each version of an endpoint.
struct Endpoints {
    requests: IntCounterVec,
    duration: HistogramVec,
    queue: HistogramVec,
    decode: HistogramVec,
    compute: HistogramVec,
    encode: HistogramVec,
    batch: HistogramVec,
    in_flight: IntGaugeVec,
    queue_depth: IntGaugeVec,
    queue_limit: IntGaugeVec,
    elements: IntCounterVec,
    executions: IntCounterVec,
    route_weight: GaugeVec,
    rollbacks: IntCounterVec,
    comparisons: IntCounterVec,
    agreement: GaugeVec,
    cosine_distance: HistogramVec,
    absolute_error: HistogramVec,
    out_of_range: GaugeVec,
    last_inference: GaugeVec,
    accuracy: GaugeVec,
    accuracy_delta: GaugeVec,
    memory: IntGaugeVec,
    /// What is loaded, and how many handles each has: a new load of the same version may overlap the old.
    loaded: Mutex<HashMap<EndpointLabels, Loaded>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EndpointLabels {
    endpoint: String,
    version: String,
    precision: &'static str,
}

#[derive(Default)]
struct Loaded {
    handles: usize,
    accuracy_metrics: HashSet<String>,
    inputs: HashSet<String>,
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
            auth_refused: make.counters("octet_auth_refused_total"),
            routes: Mutex::default(),
            endpoints: Arc::new(Endpoints {
                requests: make.counters("octet_inference_requests_total"),
                duration: make.histograms("octet_inference_duration_seconds"),
                queue: make.histograms("octet_inference_queue_duration_seconds"),
                decode: make.histograms("octet_inference_decode_duration_seconds"),
                compute: make.histograms("octet_inference_compute_duration_seconds"),
                encode: make.histograms("octet_inference_encode_duration_seconds"),
                batch: make.histograms("octet_inference_batch_size"),
                in_flight: make.int_gauges("octet_inference_in_flight"),
                queue_depth: make.int_gauges("octet_inference_queue_depth"),
                queue_limit: make.int_gauges("octet_inference_queue_limit"),
                elements: make.counters("octet_inference_elements_total"),
                executions: make.counters("octet_inference_executions_total"),
                route_weight: make.gauges("octet_endpoint_route_weight"),
                rollbacks: make.counters("octet_endpoint_rollbacks_total"),
                comparisons: make.counters("octet_shadow_comparisons_total"),
                agreement: make.gauges("octet_shadow_agreement_ratio"),
                cosine_distance: make.histograms("octet_shadow_cosine_distance"),
                absolute_error: make.histograms("octet_shadow_absolute_error"),
                out_of_range: make.gauges("octet_input_out_of_range_ratio"),
                last_inference: make.gauges("octet_model_last_inference_timestamp_seconds"),
                accuracy: make.gauges("octet_model_accuracy"),
                accuracy_delta: make.gauges("octet_model_accuracy_delta"),
                memory: make.int_gauges("octet_model_memory_bytes"),
                loaded: Mutex::default(),
            }),
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
        for precision in ["fp32", "int8"] {
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

/// The series of one loaded version of an endpoint. Cheap to clone; the series are deleted with the last clone.
#[derive(Clone)]
pub struct EndpointMetrics {
    inner: Arc<EndpointSeries>,
}

struct EndpointSeries {
    shared: Arc<Endpoints>,
    labels: EndpointLabels,
    /// By [`Protocol::ALL`] and [`Outcome::ALL`].
    requests: [[IntCounter; 6]; 2],
    duration: Histogram,
    queue: Histogram,
    decode: Histogram,
    compute: Histogram,
    encode: Histogram,
    batch: Histogram,
    in_flight: IntGauge,
    queue_depth: IntGauge,
    queue_limit: IntGauge,
    elements: IntCounter,
    executions: IntCounter,
    models_loaded: IntGauge,
}

/// What became of a sample that was to be compared with float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// Both say the same.
    Match,
    /// They do not.
    Mismatch,
    /// The float model failed, or its output has another shape.
    Error,
    /// There was no time.
    Skipped,
}

impl Compared {
    const ALL: [Compared; 4] = [Compared::Match, Compared::Mismatch, Compared::Error, Compared::Skipped];

    fn as_str(self) -> &'static str {
        match self {
            Compared::Match => "match",
            Compared::Mismatch => "mismatch",
            Compared::Error => "error",
            Compared::Skipped => "skipped",
        }
    }
}

/// The series of the comparison of a version with its float twin. They go with those of the version.
#[derive(Clone)]
pub struct ShadowMetrics {
    comparisons: [IntCounter; 4],
    agreement: prometheus::Gauge,
    cosine_distance: Histogram,
    absolute_error: Histogram,
}

impl ShadowMetrics {
    /// So many samples ended like this.
    pub fn compared(&self, outcome: Compared, samples: u64) {
        self.comparisons[outcome as usize].inc_by(samples);
    }

    /// The outputs of a sample are so far apart.
    pub fn differs(&self, cosine_distance: f64, absolute_error: f64) {
        self.cosine_distance.observe(cosine_distance);
        self.absolute_error.observe(absolute_error);
    }

    /// The recent samples agree so far.
    pub fn set_agreement(&self, ratio: f64) {
        self.agreement.set(ratio);
    }
}

impl EndpointSeries {
    fn new(
        shared: &Arc<Endpoints>,
        endpoint: &str,
        version: u32,
        precision: &'static str,
        models_loaded: IntGauge,
    ) -> EndpointSeries {
        let mut labels =
            EndpointLabels { endpoint: endpoint.to_owned(), version: version.to_string(), precision };
        // Held until the series are there, so that the drop of an older handle cannot take them away in between.
        let mut loaded = shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if !loaded.contains_key(&labels) && loaded.len() >= ENDPOINT_SERIES_MAX {
            OTHER.clone_into(&mut labels.endpoint);
            "0".clone_into(&mut labels.version);
        }
        loaded.entry(labels.clone()).or_default().handles += 1;
        models_loaded.inc();
        let three = [labels.endpoint.as_str(), labels.version.as_str(), precision];
        let count = |protocol: Protocol, outcome: Outcome| {
            let [endpoint, version, precision] = three;
            let values = [endpoint, version, precision, protocol.as_str(), outcome.as_str()];
            shared.requests.with_label_values(&values)
        };
        EndpointSeries {
            requests: Protocol::ALL.map(|protocol| Outcome::ALL.map(|outcome| count(protocol, outcome))),
            duration: shared.duration.with_label_values(&three),
            queue: shared.queue.with_label_values(&three),
            decode: shared.decode.with_label_values(&three),
            compute: shared.compute.with_label_values(&three),
            encode: shared.encode.with_label_values(&three),
            batch: shared.batch.with_label_values(&three),
            in_flight: shared.in_flight.with_label_values(&three),
            queue_depth: shared.queue_depth.with_label_values(&three),
            queue_limit: shared.queue_limit.with_label_values(&three),
            elements: shared.elements.with_label_values(&three),
            executions: shared.executions.with_label_values(&three),
            models_loaded,
            shared: Arc::clone(shared),
            labels: labels.clone(),
        }
    }
}

impl Drop for EndpointSeries {
    fn drop(&mut self) {
        self.models_loaded.dec();
        let shared = &self.shared;
        let mut loaded = shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = loaded.get_mut(&self.labels) else { return };
        entry.handles -= 1;
        if entry.handles > 0 {
            return;
        }
        let accuracy_metrics = std::mem::take(&mut entry.accuracy_metrics);
        let inputs = std::mem::take(&mut entry.inputs);
        loaded.remove(&self.labels);
        let EndpointLabels { endpoint, version, precision } = &self.labels;
        let three = [endpoint.as_str(), version.as_str(), precision];
        // A series that was never made is not there to be deleted; that is no fault.
        for histogram in
            [&shared.duration, &shared.queue, &shared.decode, &shared.compute, &shared.encode, &shared.batch]
        {
            let _ = histogram.remove_label_values(&three);
        }
        for gauge in [&shared.in_flight, &shared.queue_depth, &shared.queue_limit] {
            let _ = gauge.remove_label_values(&three);
        }
        for counter in [&shared.elements, &shared.executions] {
            let _ = counter.remove_label_values(&three);
        }
        let two = [endpoint.as_str(), version.as_str()];
        for gauge in [&shared.route_weight, &shared.agreement, &shared.last_inference] {
            let _ = gauge.remove_label_values(&two);
        }
        for histogram in [&shared.cosine_distance, &shared.absolute_error] {
            let _ = histogram.remove_label_values(&two);
        }
        for outcome in Compared::ALL {
            let _ = shared.comparisons.remove_label_values(&[endpoint, version, outcome.as_str()]);
        }
        for input in inputs {
            let _ = shared.out_of_range.remove_label_values(&[endpoint, version, &input]);
        }
        if !loaded.keys().any(|labels| labels.endpoint == *endpoint) {
            let _ = shared.rollbacks.remove_label_values(&[endpoint]);
        }
        for protocol in Protocol::ALL {
            for outcome in Outcome::ALL {
                let values = [endpoint, version, *precision, protocol.as_str(), outcome.as_str()];
                let _ = shared.requests.remove_label_values(&values);
            }
        }
        for kind in ["weights", "arena"] {
            let _ = shared.memory.remove_label_values(&[endpoint, version, *precision, kind]);
        }
        for metric in accuracy_metrics {
            for precision in ["fp32", "int8"] {
                let _ = shared.accuracy.remove_label_values(&[endpoint, version, precision, &metric]);
            }
            let _ = shared.accuracy_delta.remove_label_values(&[endpoint, version, &metric]);
        }
    }
}

impl EndpointMetrics {
    /// A request ended after so long.
    pub fn request(&self, protocol: Protocol, outcome: Outcome, seconds: f64) {
        self.inner.requests[protocol as usize][outcome as usize].inc();
        self.inner.duration.observe(seconds);
    }

    /// A request waited so long for its batch.
    pub fn queue(&self, seconds: f64) {
        self.inner.queue.observe(seconds);
    }

    /// Reading the tensors of a request took so long.
    pub fn decode(&self, seconds: f64) {
        self.inner.decode.observe(seconds);
    }

    /// A batch of so many samples ran for so long.
    pub fn batch(&self, samples: usize, compute_seconds: f64) {
        self.inner.batch.observe(samples as f64);
        self.inner.elements.inc_by(samples as u64);
        self.inner.executions.inc();
        self.inner.compute.observe(compute_seconds);
    }

    /// The series of the comparison with float, at 0.
    #[must_use]
    pub fn shadow(&self) -> ShadowMetrics {
        let (shared, labels) = (&self.inner.shared, &self.inner.labels);
        let two = [labels.endpoint.as_str(), labels.version.as_str()];
        let count = |outcome: Compared| {
            let [endpoint, version] = two;
            shared.comparisons.with_label_values(&[endpoint, version, outcome.as_str()])
        };
        let agreement = shared.agreement.with_label_values(&two);
        agreement.set(f64::NAN);
        ShadowMetrics {
            comparisons: Compared::ALL.map(count),
            agreement,
            cosine_distance: shared.cosine_distance.with_label_values(&two),
            absolute_error: shared.absolute_error.with_label_values(&two),
        }
    }

    /// The version gets such a share of the requests that name none.
    pub fn set_route_weight(&self, share: f64) {
        let (shared, labels) = (&self.inner.shared, &self.inner.labels);
        shared.route_weight.with_label_values(&[labels.endpoint.as_str(), &labels.version]).set(share);
        shared.rollbacks.with_label_values(&[labels.endpoint.as_str()]);
    }

    /// The version lost its requests because of its rule.
    pub fn rolled_back(&self) {
        let (shared, labels) = (&self.inner.shared, &self.inner.labels);
        shared.rollbacks.with_label_values(&[labels.endpoint.as_str()]).inc();
    }

    /// The last answer was given at this Unix time in milliseconds.
    pub fn set_last_inference(&self, ms: i64) {
        let (shared, labels) = (&self.inner.shared, &self.inner.labels);
        let gauge = shared.last_inference.with_label_values(&[labels.endpoint.as_str(), &labels.version]);
        gauge.set(ms as f64 / 1e3);
    }

    /// Such a share of the recent values of an input lies outside of the calibrated range. At most 16 inputs of a
    /// version have a series.
    pub fn set_out_of_range(&self, input: &str, ratio: f64) {
        let (shared, labels) = (&self.inner.shared, &self.inner.labels);
        {
            let mut loaded = shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(entry) = loaded.get_mut(labels) else { return };
            if entry.inputs.len() >= 16 && !entry.inputs.contains(input) {
                return;
            }
            entry.inputs.insert(input.to_owned());
        }
        let three = [labels.endpoint.as_str(), labels.version.as_str(), input];
        shared.out_of_range.with_label_values(&three).set(ratio);
    }

    /// Writing the tensors of an answer took so long.
    pub fn encode(&self, seconds: f64) {
        self.inner.encode.observe(seconds);
    }

    /// Counts a request as being served until the guard is dropped.
    #[must_use]
    pub fn begin(&self) -> InFlight {
        InFlight::new(self.inner.in_flight.clone())
    }

    /// So many requests wait.
    pub fn set_queue_depth(&self, requests: usize) {
        self.inner.queue_depth.set(whole(requests as u64));
    }

    /// So many requests may wait.
    pub fn set_queue_limit(&self, requests: usize) {
        self.inner.queue_limit.set(whole(requests as u64));
    }

    /// So many bytes are held by weights and by arenas.
    pub fn set_memory(&self, weights: u64, arena: u64) {
        let EndpointLabels { endpoint, version, precision } = &self.inner.labels;
        for (kind, bytes) in [("weights", weights), ("arena", arena)] {
            self.inner
                .shared
                .memory
                .with_label_values(&[endpoint.as_str(), version, precision, kind])
                .set(whole(bytes));
        }
    }

    /// The evaluation of the job found so much, 0 to 1. `metric` is `top1`, `agreement`, or of that kind: a
    /// word of the engine, never of a user; at most 8 for each version, further ones are left out.
    pub fn set_accuracy(&self, metric: &str, float: f64, int8: f64, delta: f64) {
        let labels = &self.inner.labels;
        let shared = &self.inner.shared;
        {
            let mut loaded = shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(entry) = loaded.get_mut(labels) else { return };
            if entry.accuracy_metrics.len() >= 8 && !entry.accuracy_metrics.contains(metric) {
                return;
            }
            entry.accuracy_metrics.insert(metric.to_owned());
        }
        for (precision, value) in [("fp32", float), ("int8", int8)] {
            shared
                .accuracy
                .with_label_values(&[labels.endpoint.as_str(), &labels.version, precision, metric])
                .set(value);
        }
        shared
            .accuracy_delta
            .with_label_values(&[labels.endpoint.as_str(), &labels.version, metric])
            .set(delta);
    }
}

/// Counts something as going on while it lives.
pub struct InFlight {
    gauge: IntGauge,
}

impl InFlight {
    fn new(gauge: IntGauge) -> InFlight {
        gauge.inc();
        InFlight { gauge }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Gauges of Prometheus are signed.
fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Makes and registers what is declared.
struct Make {
    registry: Registry,
}

impl Make {
    fn declaration(name: &str) -> &'static Declaration {
        DECLARATIONS.iter().find(|declared| declared.name == name).expect("every metric made is declared")
    }

    fn register(&self, collector: Box<dyn prometheus::core::Collector>) {
        self.registry.register(collector).expect("names are given once");
    }

    fn make<M>(&self, name: &str, make: impl FnOnce(Opts, &[&str]) -> prometheus::Result<M>) -> M
    where
        M: prometheus::core::Collector + Clone + 'static,
    {
        let declared = Make::declaration(name);
        let metric = make(Opts::new(declared.name, declared.help), declared.labels)
            .expect("declared names, labels and buckets are valid");
        self.register(Box::new(metric.clone()));
        metric
    }

    fn counters(&self, name: &str) -> IntCounterVec {
        self.make(name, IntCounterVec::new)
    }

    fn counter(&self, name: &str) -> IntCounter {
        self.make(name, |opts, _| IntCounter::with_opts(opts))
    }

    fn gauges(&self, name: &str) -> GaugeVec {
        self.make(name, GaugeVec::new)
    }

    fn int_gauges(&self, name: &str) -> IntGaugeVec {
        self.make(name, IntGaugeVec::new)
    }

    fn int_gauge(&self, name: &str) -> IntGauge {
        self.make(name, |opts, _| IntGauge::with_opts(opts))
    }

    fn histograms(&self, name: &str) -> HistogramVec {
        self.make(name, |opts, labels| HistogramVec::new(Make::histogram_opts(name, opts), labels))
    }

    fn histogram(&self, name: &str) -> Histogram {
        self.make(name, |opts, _| Histogram::with_opts(Make::histogram_opts(name, opts)))
    }

    fn histogram_opts(name: &str, opts: Opts) -> HistogramOpts {
        match Make::declaration(name).kind {
            Kind::Histogram(buckets) => HistogramOpts::from(opts).buckets(buckets.bounds().to_vec()),
            Kind::Counter | Kind::Gauge => unreachable!("`{name}` is declared as a histogram"),
        }
    }
}

/// What the series of one loaded version say at one moment.
#[derive(Clone, Debug)]
pub struct EndpointReading {
    /// Requests by how they ended, over all protocols.
    pub requests: Vec<(&'static str, u64)>,
    /// Requests that wait.
    pub queue_depth: u64,
    /// So many may wait.
    pub queue_limit: u64,
    /// Requests being served, waiting ones included.
    pub in_flight: u64,
    /// Seconds of a whole request.
    pub duration: HistogramReading,
    /// Seconds in the queue.
    pub queue: HistogramReading,
    /// Seconds of a run.
    pub compute: HistogramReading,
}

/// What a histogram says at one moment.
#[derive(Clone, Debug)]
pub struct HistogramReading {
    /// Bounds, and how many observations are at most that.
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all observations.
    pub sum: f64,
    /// Number of all observations.
    pub count: u64,
}

impl HistogramReading {
    fn of(histogram: &Histogram) -> HistogramReading {
        let metric = prometheus::core::Metric::metric(histogram);
        let read = metric.get_histogram();
        let bucket = |b: &prometheus::proto::Bucket| (b.upper_bound(), b.cumulative_count());
        // The bucket without a bound is the count of all; JSON has no infinity.
        let buckets = read.get_bucket().iter().map(bucket).filter(|(bound, _)| bound.is_finite()).collect();
        HistogramReading { buckets, sum: read.get_sample_sum(), count: read.get_sample_count() }
    }
}

impl EndpointMetrics {
    /// What the series say now.
    #[must_use]
    pub fn reading(&self) -> EndpointReading {
        let inner = &self.inner;
        let gauge = |gauge: &IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
        let requests = Outcome::ALL.map(|outcome| {
            let over = inner.requests.iter().map(|by_outcome| by_outcome[outcome as usize].get());
            (outcome.as_str(), over.sum())
        });
        EndpointReading {
            requests: requests.into(),
            queue_depth: gauge(&inner.queue_depth),
            queue_limit: gauge(&inner.queue_limit),
            in_flight: gauge(&inner.in_flight),
            duration: HistogramReading::of(&inner.duration),
            queue: HistogramReading::of(&inner.queue),
            compute: HistogramReading::of(&inner.compute),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the families, as `# TYPE` lines tell them.
    fn families(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
    }

    fn full() -> (Metrics, EndpointMetrics) {
        let metrics = Metrics::new("0.1.0", "avx2");
        metrics.http_request("GET", "/v1/jobs/{id}", 200, 0.01);
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
    fn names_and_help_follow_the_rules_of_prometheus() {
        for declared in DECLARATIONS {
            let Declaration { name, kind, unit, help, question, .. } = declared;
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(help.ends_with('.') && question.ends_with('?'), "{name}");
            for (ending, base) in [("_seconds", "seconds"), ("_bytes", "bytes"), ("_ratio", "ratio")] {
                assert!(!name.trim_end_matches("_total").ends_with(ending) || *unit == base, "{name}");
            }
            if let Kind::Histogram(buckets) = kind {
                assert!(buckets.bounds().is_sorted(), "{name}");
            }
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
        // Not installed everywhere (Debian: package `prometheus`); the rules above hold without it.
        let Ok(mut promtool) = command else { return };
        let (metrics, _endpoint) = full();
        promtool.stdin.take().unwrap().write_all(metrics.render().as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let told = [output.stderr, output.stdout].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(output.status.success() && told.trim().is_empty(), "{told}");
    }

    #[test]
    fn the_document_lists_exactly_these_metrics() {
        let mut table = String::from("| metric | kind | unit | labels | what it is | what one asks it |\n");
        table.push_str("|---|---|---|---|---|---|\n");
        for declared in DECLARATIONS {
            let Declaration { name, kind, unit, labels, help, question } = declared;
            let kind = match kind {
                Kind::Counter => "counter".to_owned(),
                Kind::Gauge => "gauge".to_owned(),
                Kind::Histogram(buckets) => format!("histogram ({buckets:?})"),
            };
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            let labels = labels.join(", ");
            table.push_str(&format!("| `{name}` | {kind} | {unit} | {labels} | {help} | {question} |\n"));
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (before, rest) = document.split_once("<!-- table -->\n").unwrap();
        let (now, after) = rest.split_once("<!-- end -->").unwrap();
        if option_env!("UPDATE").is_some() {
            std::fs::write(path, format!("{before}<!-- table -->\n{table}<!-- end -->{after}")).unwrap();
        } else {
            assert_eq!(now, table, "run this test with UPDATE=1 to write docs/METRICS.md");
        }
    }

    #[test]
    fn series_of_an_endpoint_begin_at_zero_and_go_with_its_last_handle() {
        let metrics = Metrics::new("0.1.0", "avx2");
        let before = metrics.render().lines().filter(|line| line.contains("endpoint=")).count();
        assert_eq!(before, 0);
        let (metrics, first) = full();
        let second = metrics.load_endpoint("resnet", 1, "int8", 0.5);
        let line = "octet_inference_requests_total{endpoint=\"resnet\",outcome=\"rejected\",\
                    precision=\"int8\",protocol=\"grpc\",version=\"1\"} 0";
        assert!(metrics.render().contains(line));
        drop(first);
        assert!(metrics.render().contains(line), "a reload keeps the series");
        assert!(metrics.render().contains("octet_models_loaded{precision=\"int8\"} 1"));
        drop(second.clone());
        drop(second);
        let text = metrics.render();
        let left: Vec<_> = text.lines().filter(|line| line.contains("endpoint=")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(text.contains("octet_models_loaded{precision=\"int8\"} 0"));
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

    #[test]
    fn a_guard_counts_while_it_lives() {
        let (metrics, endpoint) = full();
        let guards = [endpoint.begin(), endpoint.begin()];
        let line = "octet_inference_in_flight{endpoint=\"resnet\",precision=\"int8\",version=\"1\"}";
        assert!(metrics.render().contains(&format!("{line} 2")));
        drop(guards);
        assert!(metrics.render().contains(&format!("{line} 0")));
    }
}
