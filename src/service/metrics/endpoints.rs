//! The series of each loaded version of an endpoint: handles that set them, what they say now, and their end with the
//! last handle. Knows no endpoint, only its labels.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::make::Make;
use super::{Compared, ENDPOINT_SERIES_MAX, InFlight, OTHER, Outcome, Protocol, whole};

/// The series of one loaded version of an endpoint. Cheap to clone; the series are deleted with the last clone.
#[derive(Clone)]
pub struct EndpointMetrics {
    pub(super) inner: Arc<EndpointSeries>,
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
        for (precision, value) in [("fp32", float), (labels.precision, int8)] {
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

pub(super) struct EndpointSeries {
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

impl EndpointSeries {
    pub(super) fn new(
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
            for precision in ["fp32", precision] {
                let _ = shared.accuracy.remove_label_values(&[endpoint, version, precision, &metric]);
            }
            let _ = shared.accuracy_delta.remove_label_values(&[endpoint, version, &metric]);
        }
    }
}

/// Metrics that have series for each version of an endpoint.
pub(super) struct Endpoints {
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

impl Endpoints {
    pub(super) fn new(make: &Make) -> Endpoints {
        Endpoints {
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
        }
    }
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

#[cfg(test)]
mod tests {
    use crate::service::metrics::process::Metrics;
    use crate::service::metrics::process::tests::full;

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
    fn a_guard_counts_while_it_lives() {
        let (metrics, endpoint) = full();
        let guards = [endpoint.begin(), endpoint.begin()];
        let line = "octet_inference_in_flight{endpoint=\"resnet\",precision=\"int8\",version=\"1\"}";
        assert!(metrics.render().contains(&format!("{line} 2")));
        drop(guards);
        assert!(metrics.render().contains(&format!("{line} 0")));
    }
}
