//! One version of an endpoint in memory: sessions, ports, figures. Loads it, checks requests against it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::exec::session::Session;
use crate::engine::exec::{self, Options};
use crate::engine::graph::Graph;
use crate::engine::onnx::import;
use crate::engine::quant::live::Live;
use crate::engine::quant::statistics::Statistics;
use crate::engine::tensor::{DType, Tensor};
use crate::service::infer::batcher::Batcher;
use crate::service::infer::drift::Drift;
use crate::service::infer::lane::{Lane, Run};
use crate::service::infer::shadow::Comparer;
use crate::service::infer::stats::{Spent, Stats};
use crate::service::infer::{Answer, Ask, Error, Inputs, Limits, Port};
use crate::service::metrics::endpoints::{EndpointMetrics, EndpointReading};
use crate::service::metrics::process::Metrics;
use crate::service::metrics::{InFlight, Outcome, Protocol};
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
    /// The comparison with the float twin of an artifact.
    pub comparer: Option<Arc<Comparer>>,
    /// Statistics of the requests that are compared; where the endpoint asks for them.
    pub live: Option<Arc<Mutex<Live>>>,
    /// Requests against what calibration saw; of an artifact whose statistics are kept.
    pub drift: Option<Drift>,
    // See `outcomes`.
    answered: AtomicU64,
    failed: AtomicU64,
    last_use: AtomicU64,
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
    /// What calibration saw.
    pub statistics: Option<&'a Path>,
}

/// How a version is run.
#[derive(Clone)]
pub struct How {
    /// Of each session.
    pub options: Options,
    /// Of each lane.
    pub limits: Limits,
    /// Runs of made-up samples before it is ready.
    pub warm_up: u32,
    /// Whether the requests that are compared add to statistics, and the SHA-256 of the float model.
    pub statistics_of: Option<[u8; 32]>,
}

impl Served {
    /// Loads a version and runs it, so that the first request finds warm code and memory. Blocks.
    ///
    /// # Errors
    /// Why it cannot be served, for people.
    pub fn load(
        name: &Name,
        source: &EndpointVersion,
        files: &Files<'_>,
        how: &How,
        metrics: &Metrics,
    ) -> Result<Served, String> {
        let start = Instant::now();
        let How { options, limits, warm_up: times, statistics_of } = how;
        let main = Arc::new(session(files.main, options)?);
        let twin = files.twin.map(|path| session(path, options).map(Arc::new)).transpose()?;
        let inputs: Vec<Port> = main.inputs().iter().map(Port::from).collect();
        let outputs: Vec<Port> = main.outputs().iter().map(Port::from).collect();
        let has_samples = inputs.iter().chain(&outputs).all(|p| p.shape.first().is_some_and(Option::is_none));
        let warm = warm_up(&main, &inputs, name, *times);
        let twin_warm = twin.as_ref().is_none_or(|twin| warm_up(twin, &inputs, name, *times));
        let batching = has_samples && !inputs.is_empty() && warm && twin_warm;
        let drift = files.statistics.and_then(|path| drift(path, &inputs, name));
        let weight_bytes = main.weight_bytes() + twin.as_ref().map_or(0, |t| t.weight_bytes());
        let load_time = start.elapsed();
        let stats = Arc::new(Stats::default());
        let track = |precision: Precision, session: Arc<Session>| {
            let (version, seconds) = (source.version.0, load_time.as_secs_f64());
            let metrics = metrics.load_endpoint(name.as_str(), version, precision.as_str(), seconds);
            metrics.set_queue_limit(limits.queue_max);
            let memory = Memory {
                session: Arc::clone(&session),
                metrics: metrics.clone(),
                shown: AtomicU64::new(u64::MAX),
            };
            memory.show();
            let run: Run = Box::new(move |inputs| session.run(inputs).map_err(Error::from));
            let (stats, counts) = (Arc::clone(&stats), metrics.clone());
            let heard = Box::new(move |samples, merge, compute: Duration, split| {
                stats.ran(samples, merge, compute, split);
                counts.batch(samples, compute.as_secs_f64());
                memory.show();
            });
            let lane = Lane::new(name.to_string(), precision, batching, limits.clone(), run, heard);
            Track { precision, lane: Arc::new(lane), metrics }
        };
        let live = match (files.twin, statistics_of) {
            (Some(path), Some(model)) => {
                let live = Live::new(graph(path)?, *model, options.clone()).map_err(|e| e.to_string())?;
                Some(Arc::new(Mutex::new(live)))
            }
            _ => None,
        };
        let shadow = twin.as_ref().map(Arc::clone);
        let mut lanes = vec![track(source.precision(), main)];
        lanes.extend(twin.map(|twin| track(Precision::Fp32, twin)));
        let comparer = shadow.map(|twin| {
            let by_sample = first_is_sample(&inputs);
            let run: Run = match live.clone() {
                None => Box::new(move |inputs| twin.run(inputs).map_err(Error::from)),
                Some(live) => Box::new(move |inputs| {
                    let samples = inputs.first().and_then(|(_, x)| x.shape().first()).copied().unwrap_or(1);
                    let mut live = live.lock().unwrap_or_else(PoisonError::into_inner);
                    live.run(inputs, samples, by_sample).map_err(Error::from)
                }),
            };
            // One run at a time: the client does not wait for it.
            let limits = Limits { runs_max: 1, batch_delay: Duration::ZERO, ..limits.clone() };
            let unheard = Box::new(|_, _, _, _| {});
            let lane = Lane::new(name.to_string(), Precision::Fp32, batching, limits, run, unheard);
            Comparer::new(Arc::new(lane.in_background()), by_sample, lanes[0].metrics.shadow())
        });
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
            comparer,
            live,
            drift,
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            last_use: AtomicU64::new(0),
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

    /// From now on these limits hold, and the version gets so many percent of the requests that name none.
    pub fn configure(&self, limits: &Limits, weight: u32) {
        for track in &self.lanes {
            track.metrics.set_queue_limit(limits.queue_max);
            track.lane.set_limits(limits.clone());
        }
        self.lanes[0].metrics.set_route_weight(f64::from(weight) / 100.0);
    }

    /// The limits that hold.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.lanes[0].lane.limits()
    }

    /// Brings into the metrics what is not counted there as it happens.
    pub fn show(&self) {
        for track in &self.lanes {
            track.metrics.set_queue_depth(track.lane.depth());
        }
        let metrics = &self.lanes[0].metrics;
        metrics.set_last_inference(self.stats.last_inference_ms());
        if let Some(comparer) = &self.comparer {
            comparer.show();
        }
        for (input, share) in self.drift.iter().flat_map(Drift::shares) {
            if let Some(share) = share {
                metrics.set_out_of_range(input, share);
            }
        }
    }

    /// Takes down that it is used: the numbers go up.
    pub fn use_number(&self, number: u64) {
        self.last_use.store(number, Ordering::Relaxed);
    }

    /// The last number of [`Served::use_number`].
    #[must_use]
    pub fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    /// Requests that were answered since the version was loaded, and those that ended in a fault of the server or that it
    /// did not answer in the server's own time.
    #[must_use]
    pub fn outcomes(&self) -> (u64, u64) {
        (self.answered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// The version lost its requests because of its rule.
    pub fn rolled_back(&self) {
        self.lanes[0].metrics.rolled_back();
    }

    async fn infer(
        &self,
        batcher: &Arc<Batcher>,
        inputs: Inputs,
        ask: &Ask,
        compared: f64,
    ) -> Result<Answer, Error> {
        let lane = self.lane(ask.precision.as_deref())?;
        let inputs = self.fit(inputs)?;
        if let Some(drift) = &self.drift {
            drift.look(&inputs);
        }
        let samples = match inputs.first() {
            Some((_, tensor)) if first_is_sample(&self.inputs) => {
                tensor.shape().first().copied().unwrap_or(1)
            }
            _ => 1,
        };
        let samples = samples.max(1);
        let asked_for_float = ask.precision.as_deref() == Some(Precision::Fp32.as_str());
        let comparer = self.comparer.as_ref().filter(|c| !asked_for_float && c.picks(compared));
        let again = comparer.map(|_| inputs.clone());
        let answer = batcher.infer(lane, inputs, samples, ask.deadline, ask.priority).await?;
        if let (Some(comparer), Some(inputs), Some(output)) = (comparer, again, answer.outputs.first()) {
            comparer.compare(batcher, inputs, samples, output.clone());
        }
        Ok(answer)
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
/// counts as cancelled, the client has gone; or, where its time was over, as one that the server has given up.
pub struct Ticket {
    served: Arc<Served>,
    batcher: Arc<Batcher>,
    protocol: Protocol,
    // Part of the requests that is compared with float.
    compared: f64,
    start: Instant,
    // When the server gives the request up.
    until: Option<Instant>,
    // Whether the version has the inputs: how long a client takes to send them is no fault of it.
    asked: bool,
    // `None` once the request has ended.
    counted: Option<(EndpointMetrics, InFlight)>,
}

impl Ticket {
    /// A request for `served` begins: see [`Registry::admit`](super::registry::Registry::admit).
    pub(super) fn new(
        served: Arc<Served>,
        batcher: Arc<Batcher>,
        protocol: Protocol,
        compared: f64,
    ) -> Ticket {
        let metrics = served.lanes[0].metrics.clone();
        let in_flight = metrics.begin();
        Ticket {
            served,
            batcher,
            protocol,
            compared,
            start: Instant::now(),
            until: None,
            asked: false,
            counted: Some((metrics, in_flight)),
        }
    }

    /// The request is dropped then if it is not answered; `None` where nobody does that.
    pub fn set_until(&mut self, until: Option<Instant>) {
        self.until = until;
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
        self.asked = true;
        self.served.infer(&self.batcher, inputs, ask, self.compared).await
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
        match outcome {
            Outcome::Ok => _ = self.served.answered.fetch_add(1, Ordering::Relaxed),
            Outcome::Error => _ = self.served.failed.fetch_add(1, Ordering::Relaxed),
            // The deadline of a client says nothing of the version; for that of the server see `drop`.
            Outcome::Rejected | Outcome::Cancelled | Outcome::Deadline | Outcome::Invalid => {}
        }
        if let Some((metrics, _)) = self.counted.take() {
            metrics.request(self.protocol, outcome, self.start.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.counted.is_some() {
            self.served.stats.failed(self.start.elapsed());
            let late = self.until.is_some_and(|until| until <= Instant::now());
            if late && self.asked {
                self.served.failed.fetch_add(1, Ordering::Relaxed);
            }
            self.end(if late { Outcome::Deadline } else { Outcome::Cancelled });
        }
    }
}

/// The memory of a loaded model in the metrics; runs change it seldom.
struct Memory {
    session: Arc<Session>,
    metrics: EndpointMetrics,
    /// Bytes of runs that were told last.
    shown: AtomicU64,
}

impl Memory {
    fn show(&self) {
        let bytes = self.session.run_bytes();
        if self.shown.swap(bytes, Ordering::Relaxed) != bytes {
            self.metrics.set_memory(self.session.weight_bytes(), bytes);
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

/// Whether the first dimension of the inputs is the sample.
fn first_is_sample(inputs: &[Port]) -> bool {
    inputs.first().is_some_and(|port| port.shape.first() == Some(&None))
}

/// What calibration saw of the inputs; without it an endpoint serves all the same.
fn drift(path: &Path, inputs: &[Port], name: &Name) -> Option<Drift> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string());
    let statistics = bytes.and_then(|bytes| Statistics::decode(&bytes).map_err(|error| error.to_string()));
    match statistics {
        Ok(statistics) => Some(Drift::new(inputs, &statistics)),
        Err(error) => {
            tracing::warn!(endpoint = %name, %error, "Endpoint {name} does not watch its inputs: {error}");
            None
        }
    }
}

fn graph(path: &Path) -> Result<Graph, String> {
    import::import_file(path).map_err(|e| format!("`{}`: {e}", path.display()))
}

fn session(path: &Path, options: &Options) -> Result<Session, String> {
    Session::new(graph(path)?, options.clone()).map_err(|e| e.to_string())
}

/// Runs made-up samples. Gives whether samples may be run together: a run of two gives what two runs of one do.
/// A model whose free dimensions cannot be guessed is served without.
fn warm_up(session: &Session, inputs: &[Port], name: &Name, times: u32) -> bool {
    let run = |inputs: &[(String, Tensor)]| {
        let refs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        session.run(&refs)
    };
    for length in [1, 32, 224] {
        let one = made_up(inputs, 1, length, 0);
        let two = made_up(inputs, 1, length, 1);
        let both = made_up(inputs, 2, length, 0);
        let (Some(one), Some(two), Some(both)) = (one, two, both) else { return false };
        for _ in 1..times {
            // What the first run cannot do, none can: the loop goes on to other shapes then.
            if run(&one).is_err() {
                break;
            }
        }
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
        self.show();
        self.lanes.iter().map(|track| (track.precision, track.metrics.reading())).collect()
    }
}
