//! One version of an endpoint in memory: sessions, ports, figures. Loads it, checks requests against it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::exec::session::Session;
use crate::engine::exec::{self, Options};
use crate::engine::onnx::import;
use crate::engine::tensor::{DType, Tensor};
use crate::service::infer::batcher::{Batcher, Lane, Run};
use crate::service::infer::stats::{Spent, Stats};
use crate::service::infer::{Answer, Ask, Error, Inputs, Limits, Port};
use crate::service::metrics::{EndpointMetrics, EndpointReading, InFlight, Metrics, Outcome, Protocol};
use crate::service::store::{AccuracySummary, EndpointVersion, Name, Precision};

/// A loaded version of an endpoint.
pub struct Served {
    /// The endpoint.
    pub name: Name,
    /// What is served.
    pub source: EndpointVersion,
    /// What a caller hands in.
    pub inputs: Vec<Port>,
    /// What a caller gets back.
    pub outputs: Vec<Port>,
    /// Whether the first dimension of every input and output is free: the samples.
    pub has_samples: bool,
    /// Whether requests are run together.
    pub batching: bool,
    /// Bytes of packed weights, of all precisions.
    pub weight_bytes: u64,
    /// What it has done.
    pub stats: Arc<Stats>,
    /// How long loading took.
    pub load_time: Duration,
    // The first is what is served when no precision is asked for.
    lanes: Vec<Track>,
}

/// One precision of a version: its queue and its figures.
struct Track {
    precision: Precision,
    lane: Arc<Lane>,
    metrics: EndpointMetrics,
}

/// What is loaded: the file that is served, and the float model behind an artifact.
pub struct Files<'a> {
    /// What is served.
    pub main: &'a Path,
    /// The float model of an artifact.
    pub twin: Option<&'a Path>,
}

impl Served {
    /// Loads a version and runs it once, so that the first request finds warm code and memory. Blocks.
    ///
    /// # Errors
    /// Why it cannot be served, for people.
    pub fn load(
        name: &Name,
        source: &EndpointVersion,
        files: &Files<'_>,
        options: &Options,
        limits: &Limits,
        metrics: &Metrics,
    ) -> Result<Served, String> {
        let start = Instant::now();
        let main = Arc::new(session(files.main, options)?);
        let twin = files.twin.map(|path| session(path, options).map(Arc::new)).transpose()?;
        let inputs: Vec<Port> = main.inputs().iter().map(Port::from).collect();
        let outputs: Vec<Port> = main.outputs().iter().map(Port::from).collect();
        let has_samples = inputs.iter().chain(&outputs).all(|p| p.shape.first().is_some_and(Option::is_none));
        let warm = warm_up(&main, &inputs, name);
        let twin_warm = twin.as_ref().is_none_or(|twin| warm_up(twin, &inputs, name));
        let batching = has_samples && !inputs.is_empty() && warm && twin_warm;
        let weight_bytes = main.weight_bytes() + twin.as_ref().map_or(0, |t| t.weight_bytes());
        let load_time = start.elapsed();
        let stats = Arc::new(Stats::default());
        let track = |precision: Precision, session: Arc<Session>| {
            let (version, seconds) = (source.version.0, load_time.as_secs_f64());
            let metrics = metrics.load_endpoint(name.as_str(), version, precision.as_str(), seconds);
            metrics.set_queue_limit(limits.queue_max);
            metrics.set_memory(session.weight_bytes(), 0);
            let run: Run = Box::new(move |inputs| session.run(inputs).map_err(Error::from));
            let (stats, counts) = (Arc::clone(&stats), metrics.clone());
            let heard = Box::new(move |samples, merge, compute: Duration, split| {
                stats.ran(samples, merge, compute, split);
                counts.batch(samples, compute.as_secs_f64());
            });
            let lane = Lane::new(name.to_string(), precision, batching, run, heard);
            Track { precision, lane, metrics }
        };
        let mut lanes = vec![track(source.precision(), main)];
        lanes.extend(twin.map(|twin| track(Precision::Fp32, twin)));
        let (name, source) = (name.clone(), source.clone());
        Ok(Served {
            name,
            source,
            inputs,
            outputs,
            has_samples,
            batching,
            weight_bytes,
            stats,
            load_time,
            lanes,
        })
    }

    /// The precisions that can be asked for; the first is what is served when none is.
    pub fn precisions(&self) -> impl Iterator<Item = Precision> {
        self.lanes.iter().map(|track| track.precision)
    }

    /// Notes what the evaluation of the job found, for the metrics.
    pub fn show_accuracy(&self, accuracy: &AccuracySummary) {
        let AccuracySummary { metric, float, int8, delta, .. } = accuracy;
        self.lanes[0].metrics.set_accuracy(metric, *float, *int8, *delta);
    }

    /// Brings the length of the queues into the metrics.
    pub fn show_queue(&self) {
        for track in &self.lanes {
            track.metrics.set_queue_depth(track.lane.depth());
        }
    }

    async fn infer(&self, batcher: &Arc<Batcher>, inputs: Inputs, ask: &Ask) -> Result<Answer, Error> {
        let lane = self.lane(ask.precision.as_deref())?;
        let inputs = self.fit(inputs)?;
        let first_dim_is_sample = self.inputs.first().is_some_and(|p| p.shape.first() == Some(&None));
        let samples = match inputs.first() {
            Some((_, tensor)) if first_dim_is_sample => tensor.shape().first().copied().unwrap_or(1),
            _ => 1,
        };
        batcher.infer(lane, inputs, samples.max(1), ask.deadline).await
    }

    fn lane(&self, precision: Option<&str>) -> Result<&Arc<Lane>, Error> {
        self.track(precision).map(|track| &track.lane).ok_or_else(|| Error::UnknownPrecision {
            name: self.name.to_string(),
            asked: precision.unwrap_or_default().to_owned(),
            available: self.precisions().map(Precision::as_str).collect(),
        })
    }

    fn track(&self, precision: Option<&str>) -> Option<&Track> {
        match precision {
            None => self.lanes.first(),
            Some(asked) => self.lanes.iter().find(|track| track.precision.as_str() == asked),
        }
    }

    /// Puts inputs into the order of the model and checks each of them.
    fn fit(&self, mut given: Inputs) -> Result<Inputs, Error> {
        let expected = || self.inputs.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        // An unknown name before a missing one: a misspelt input is both, and only the first says so.
        if let Some((name, _)) = given.iter().find(|(name, _)| self.inputs.iter().all(|p| p.name != *name)) {
            return Err(exec::Error::UnknownInput { name: name.clone(), expected: expected() }.into());
        }
        let mut ordered = Vec::with_capacity(self.inputs.len());
        let mut symbols: Vec<(&str, usize, &str)> = Vec::new();
        for port in &self.inputs {
            let Some(at) = given.iter().position(|(name, _)| *name == port.name) else {
                return Err(
                    exec::Error::MissingInput { name: port.name.clone(), expected: expected() }.into()
                );
            };
            let (name, tensor) = given.swap_remove(at);
            fit_one(port, &tensor)?;
            for ((dim, fixed), &length) in port.dims.iter().zip(&port.shape).zip(tensor.shape()) {
                if fixed.is_some() || dim == "?" {
                    continue;
                }
                match symbols.iter().find(|(symbol, ..)| symbol == dim) {
                    Some((_, before, of)) if *before != length => {
                        return Err(Error::BadInput(format!(
                            "`{dim}` is {before} in input `{of}` and {length} in input `{}`",
                            port.name
                        )));
                    }
                    Some(_) => {}
                    None => symbols.push((dim, length, &port.name)),
                }
            }
            ordered.push((name, tensor));
        }
        Ok(ordered)
    }
}

/// One request at an endpoint, from its first byte to its last. Dropped before it is answered or refused, it
/// counts as cancelled: the client has gone.
pub struct Ticket {
    served: Arc<Served>,
    batcher: Arc<Batcher>,
    protocol: Protocol,
    start: Instant,
    // `None` once the request has ended.
    counted: Option<(EndpointMetrics, InFlight)>,
}

impl Ticket {
    /// A request for `served` begins: see [`Registry::admit`](super::registry::Registry::admit).
    pub(super) fn new(served: Arc<Served>, batcher: Arc<Batcher>, protocol: Protocol) -> Ticket {
        let metrics = served.lanes[0].metrics.clone();
        let in_flight = metrics.begin();
        Ticket { served, batcher, protocol, start: Instant::now(), counted: Some((metrics, in_flight)) }
    }

    /// The version that answers.
    #[must_use]
    pub fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// When the request began.
    #[must_use]
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Answers the request; it is counted with the precision that it asks for.
    ///
    /// # Errors
    /// Inputs that do not fit the model are refused before they are queued; else as [`Batcher::infer`].
    pub async fn infer(&mut self, inputs: Inputs, ask: &Ask) -> Result<Answer, Error> {
        // One that there is not leaves the figures where they are.
        if let (Some(_), Some(track)) = (&ask.precision, self.served.track(ask.precision.as_deref())) {
            self.counted = Some((track.metrics.clone(), track.metrics.begin()));
        }
        self.served.infer(&self.batcher, inputs, ask).await
    }

    /// Notes how long the parts took.
    pub fn times(&self, decode: Duration, queue: Duration, encode: Duration) {
        if let Some((metrics, _)) = &self.counted {
            metrics.decode(decode.as_secs_f64());
            metrics.queue(queue.as_secs_f64());
            metrics.encode(encode.as_secs_f64());
        }
    }

    /// The request was answered, at `now_ms`.
    pub fn answered(mut self, now_ms: i64, spent: &Spent) {
        self.served.stats.answered(now_ms, spent);
        self.end(Outcome::Ok);
    }

    /// The request was not answered.
    pub fn refused(mut self, outcome: Outcome) {
        self.served.stats.failed(self.start.elapsed());
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some((metrics, _)) = self.counted.take() {
            metrics.request(self.protocol, outcome, self.start.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.counted.is_some() {
            self.served.stats.failed(self.start.elapsed());
            self.end(Outcome::Cancelled);
        }
    }
}

fn fit_one(port: &Port, tensor: &Tensor) -> Result<(), Error> {
    let name = || port.name.clone();
    if tensor.dtype() != port.dtype {
        return Err(Error::InputType { name: name(), got: tensor.dtype(), want: port.dtype });
    }
    let same_rank = tensor.shape().len() == port.shape.len();
    let fits = |(got, want): (&usize, &Option<usize>)| want.is_none_or(|want| want == *got);
    if !same_rank || !tensor.shape().iter().zip(&port.shape).all(fits) {
        let (got, want) = (tensor.shape().to_vec(), port.dims.join(", "));
        return Err(exec::Error::InputShape { name: name(), got, want }.into());
    }
    if tensor.is_empty() {
        let shape = tensor.shape();
        return Err(Error::BadInput(format!(
            "input `{}` has shape {shape:?}: there is nothing to run",
            port.name
        )));
    }
    Ok(())
}

fn session(path: &Path, options: &Options) -> Result<Session, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("reading `{}`: {e}", path.display()))?;
    let graph = import::import_owned(bytes).map_err(|e| e.to_string())?;
    Session::new(graph, options.clone()).map_err(|e| e.to_string())
}

/// Runs made-up samples. Gives whether samples may be run together: a run of two gives what two runs of one do.
/// A model whose free dimensions cannot be guessed is served without.
fn warm_up(session: &Session, inputs: &[Port], name: &Name) -> bool {
    let run = |inputs: &[(String, Tensor)]| {
        let refs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        session.run(&refs)
    };
    for length in [1, 32, 224] {
        let one = made_up(inputs, 1, length, 0);
        let two = made_up(inputs, 1, length, 1);
        let both = made_up(inputs, 2, length, 0);
        let (Some(one), Some(two), Some(both)) = (one, two, both) else { return false };
        let Ok(one) = run(&one) else { continue };
        let (Ok(two), Ok(both)) = (run(&two), run(&both)) else { return false };
        return one.iter().zip(&two).zip(&both).all(|((one, two), both)| is_pair(one, two, both));
    }
    tracing::info!(endpoint = %name, "Endpoint {name} was not warmed up: its free dimensions cannot be guessed");
    false
}

/// `samples` made-up samples from number `from` on; `None` where the shape is too large to try.
fn made_up(inputs: &[Port], samples: usize, length: usize, from: usize) -> Option<Inputs> {
    const BYTES_MAX: usize = 64 << 20;
    let make = |port: &Port| {
        let mut shape: Vec<usize> = port.shape.iter().map(|d| d.unwrap_or(length)).collect();
        if let (Some(first), Some(None)) = (shape.first_mut(), port.shape.first()) {
            *first = samples;
        }
        let rows = if port.shape.first() == Some(&None) { samples } else { 1 };
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= BYTES_MAX)?;
        let row = count / rows.max(1);
        // A small linear congruence: the same numbers each time, other numbers in each sample.
        let value = |i: usize| {
            let x = (i as u64).wrapping_add(1 + (from * row) as u64).wrapping_mul(6_364_136_223_846_793_005);
            (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let floats: Vec<f32> = (0..count).map(value).collect();
        let tensor = match port.dtype {
            DType::F32 => Tensor::from_slice(&shape, &floats),
            DType::F64 => {
                Tensor::from_slice(&shape, &floats.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())
            }
            DType::F16 => Tensor::from_slice(
                &shape,
                &floats.iter().map(|&x| half::f16::from_f32(x)).collect::<Vec<_>>(),
            ),
            DType::BF16 => Tensor::from_slice(
                &shape,
                &floats.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>(),
            ),
            // Indices and codes: 0 is in every vocabulary.
            DType::I64
            | DType::I32
            | DType::I16
            | DType::I8
            | DType::U64
            | DType::U32
            | DType::U16
            | DType::U8
            | DType::Bool => Tensor::zeros(port.dtype, &shape),
        };
        Some((port.name.clone(), tensor))
    };
    inputs.iter().map(make).collect()
}

/// Whether `both` is `one` followed by `two`. Float kernels may add up in another order for another batch.
fn is_pair(one: &Tensor, two: &Tensor, both: &Tensor) -> bool {
    if one.shape().first() != Some(&1) || both.shape().first() != Some(&2) || one.shape() != two.shape() {
        return false;
    }
    let apart = one.to_f64().into_iter().chain(two.to_f64());
    let close =
        |(a, b): (f64, f64)| a == b || (a - b).abs() <= 1e-3 * (1.0 + a.abs()) || (a.is_nan() && b.is_nan());
    both.len() == one.len() * 2 && apart.zip(both.to_f64()).all(close)
}

impl Served {
    /// What the metrics of each precision say now; the first is what is served when none is asked for.
    #[must_use]
    pub fn readings(&self) -> Vec<(Precision, EndpointReading)> {
        self.show_queue();
        self.lanes.iter().map(|track| (track.precision, track.metrics.reading())).collect()
    }
}
