//! Every metric: name, unit, labels, buckets and the question it answers; the words that their labels take.
//! Knows nothing of what is counted.

use prometheus::IntGauge;

pub mod endpoints;
mod make;
pub mod process;

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

/// The bounds of a histogram.
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
    "grpc_requests_total" Counter, "calls", ["method", "code"],
        "gRPC calls answered, by the call of the inference protocol; those of other services under `_other`.",
        "How much is asked over gRPC, and what share fails?";
    "grpc_request_duration_seconds" Histo(Request), "seconds", ["method"],
        "Time to the answer of a gRPC call; of a stream, to its beginning.", "Which call is slow?";
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
