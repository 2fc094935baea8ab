//! Spans of requests to an OpenTelemetry collector: OTLP over HTTP, from a thread of its own. A span is made when its
//! request is answered, with the times that were taken anyway, so a request that is not traced pays nothing.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use octet::api::{Answered, Call, Phases, Traces};
use octet::app::process;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};

/// Spans that wait to be sent at most; further ones are dropped, so that a slow collector does not fill the memory.
const QUEUE: usize = 32_768;
/// Spans in a message.
const BATCH: usize = 2048;
/// How long a span waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// How long the end of the program waits for the collector.
const END: Duration = Duration::from_secs(5);

/// Sends spans until it is ended.
pub(crate) struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// Sends `ratio` (0 to 1) of the traces that begin here to the collector at `endpoint`, `http://HOST:PORT`; of a
    /// trace that began elsewhere, what was decided there. Must not be called in an asynchronous runtime.
    ///
    /// # Errors
    /// A sentence: the address cannot be used.
    pub(crate) fn start(endpoint: &str, ratio: f64) -> Result<Exporter, String> {
        let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_timeout(END)
            .build()
            .map_err(|error| error.to_string())?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_resource(Resource::builder().with_service_name("octet").with_attribute(version).build())
            .build();
        Ok(Exporter { provider })
    }

    /// What takes the requests.
    pub(crate) fn traces(&self) -> Arc<dyn Traces> {
        Arc::new(Spans { tracer: self.provider.tracer("octet"), propagator: TraceContextPropagator::new() })
    }

    /// Sends what is left.
    pub(crate) fn end(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(END) {
            tracing::warn!(%error, "The last spans were not sent: {error}");
        }
    }
}

struct Spans {
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl Traces for Spans {
    fn record(&self, request: &Answered<'_>) -> Option<String> {
        // Both clocks now, so that a clock that was set since changes no duration.
        let (now, wall) = (Instant::now(), process::wall_clock());
        let at = |instant: Instant| wall - now.saturating_duration_since(instant);
        let parent = self.propagator.extract_with_context(&Context::new(), &Headers(request));
        let span = SpanBuilder::from_name(name(&request.call))
            .with_kind(SpanKind::Server)
            .with_start_time(at(request.start))
            .with_attributes(attributes(request));
        let mut span = self.tracer.build_with_context(span, &parent);
        let trace_id = span.span_context().trace_id();
        let trace_id = (trace_id != TraceId::INVALID).then(|| trace_id.to_string());
        if !span.is_recording() {
            return trace_id;
        }
        if is_error(&request.call) {
            span.set_status(Status::error(""));
        }
        if let Some(phases) = request.phases {
            let within = parent.with_remote_span_context(span.span_context().clone());
            self.record_phases(phases, &within, at);
        }
        span.end_with_timestamp(at(request.end));
        trace_id
    }
}

impl Spans {
    fn record_phases(&self, phases: &Phases, within: &Context, at: impl Fn(Instant) -> SystemTime) {
        for (name, start, end) in [
            ("decode", phases.decode, phases.queue),
            ("queue", phases.queue, phases.compute),
            ("compute", phases.compute, phases.computed),
            ("encode", phases.encode, phases.encoded),
        ] {
            let span = SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_start_time(at(start));
            self.tracer.build_with_context(span, within).end_with_timestamp(at(end));
        }
    }
}

/// What OpenTelemetry knows; any other method is a stranger's word, and names must be few.
const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

fn known(method: &str) -> &'static str {
    METHODS.into_iter().find(|known| *known == method).unwrap_or("_OTHER")
}

/// `UNIMPLEMENTED`: the name is a stranger's word too.
const UNIMPLEMENTED: i32 = 12;

fn name(call: &Call<'_>) -> String {
    match call {
        Call::Http { method, route: Some(route), .. } => format!("{} {route}", known(method)),
        Call::Http { method, route: None, .. } => known(method).to_owned(),
        Call::Grpc { status: UNIMPLEMENTED, .. } => "_OTHER".to_owned(),
        Call::Grpc { path, .. } => path.trim_start_matches('/').to_owned(),
    }
}

/// What OpenTelemetry's conventions call an error of a server: not what the client did wrong, nor that it came too often.
fn is_error(call: &Call<'_>) -> bool {
    match call {
        Call::Http { status, .. } => *status >= 500,
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        Call::Grpc { status, .. } => matches!(status, 2 | 4 | 12 | 13 | 14 | 15),
    }
}

/// In the words of OpenTelemetry's semantic conventions; those that begin with `octet.` are ours.
fn attributes(request: &Answered<'_>) -> Vec<KeyValue> {
    let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let mut all = vec![KeyValue::new("octet.request_id", request.request_id.to_owned())];
    match &request.call {
        Call::Http { method, route, path, status } => {
            all.push(KeyValue::new("http.request.method", known(method)));
            all.push(KeyValue::new("url.path", (*path).to_owned()));
            all.push(KeyValue::new("http.response.status_code", i64::from(*status)));
            all.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
            if *status >= 500 {
                all.push(KeyValue::new("error.type", status.to_string()));
            }
        }
        Call::Grpc { path, status } => {
            let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
            all.push(KeyValue::new("rpc.system", "grpc"));
            all.push(KeyValue::new("rpc.service", service.to_owned()));
            all.push(KeyValue::new("rpc.method", method.to_owned()));
            all.push(KeyValue::new("rpc.grpc.status_code", i64::from(*status)));
        }
    }
    all.extend(request.endpoint.map(|name| KeyValue::new("octet.endpoint", name.to_owned())));
    if let Some(phases) = request.phases {
        all.push(KeyValue::new("octet.version", i64::from(phases.version)));
        all.push(KeyValue::new("octet.precision", phases.precision));
        all.push(KeyValue::new("octet.samples", whole(phases.samples)));
        all.push(KeyValue::new("octet.batch_samples", whole(phases.batch_samples)));
    }
    all
}

struct Headers<'a>(&'a Answered<'a>);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.0.parent,
            "tracestate" => self.0.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}
