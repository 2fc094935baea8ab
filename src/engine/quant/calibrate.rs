//! One pass of the float model over the calibration data: histogram and extremes of each value that may get codes.
//! Every range method can be chosen afterwards without the data.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::engine::exec::session::Session;
use crate::engine::exec::{self, ElementOrder, ShapesOf, Tap};
use crate::engine::graph::Dim;
use crate::engine::quant::abreast;
use crate::engine::quant::checks::convergence::SampleRanges;
use crate::engine::quant::histogram;
use crate::engine::quant::observed::{Observed, Samples};
use crate::engine::quant::statistics::Statistics;
use crate::engine::tensor::dataset::{self, Batch, Dataset};
use crate::engine::tensor::digest::SampleDigests;
use crate::engine::tensor::{DType, Tensor, TensorView};

/// Bytes of input that make a batch worth its overhead.
const BATCH_BYTES: usize = 1 << 21;
/// Most samples in a batch.
const BATCH_MAX: usize = 32;

/// Why calibration or evaluation did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] dataset::Error),
    /// The model cannot be run on them, on none of them as far as is known.
    #[error("sample {sample}: {source}")]
    Run {
        /// First sample of the batch.
        sample: usize,
        /// Why.
        source: exec::Error,
    },
    /// The model runs on other samples, and not on these.
    #[error("{}: {source}", named(*.first, *.last))]
    Samples {
        /// The first of them.
        first: usize,
        /// The last of them.
        last: usize,
        /// Why.
        source: exec::Error,
    },
    /// The model makes values that are no numbers.
    #[error("value `{value}` holds NaN or infinity on {count} elements")]
    NotFinite {
        /// The value.
        value: String,
        /// How many elements.
        count: u64,
    },
    /// A value that the plan needs did not appear.
    #[error("value `{0}` did not appear while the model ran")]
    Unseen(String),
    /// The outputs cannot be judged.
    #[error("{0}")]
    Outputs(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// Told how many samples are done; says whether to go on.
pub type OnSamples<'a> = &'a mut dyn FnMut(usize) -> bool;

fn named(first: usize, last: usize) -> String {
    if first == last { format!("sample {first}") } else { format!("samples {first} to {last}") }
}

/// Who is to blame where a batch of `data` cannot be run: its samples run alone, where they can, and the first that fails
/// is named. `runs` runs inputs. A model that fails on the first batch as on each of its samples is at fault itself.
pub(super) fn blame(
    data: &Dataset,
    batch: &Batch,
    source: exec::Error,
    runs: impl Fn(&[(&str, &Tensor)]) -> Result<(), exec::Error>,
) -> Error {
    let (first, last) = (batch.first, batch.first + batch.samples - 1);
    // The batches before were run.
    let others = first > 0;
    if !data.any_batch() || batch.samples == 1 {
        return if others {
            Error::Samples { first, last, source }
        } else {
            Error::Run { sample: first, source }
        };
    }
    let mut failed = Vec::new();
    for row in 0..batch.samples {
        let own: Vec<(&str, Tensor)> = batch
            .inputs
            .iter()
            .map(|(name, tensor)| (name.as_str(), one(tensor, row, batch.samples)))
            .collect();
        let feeds: Vec<(&str, &Tensor)> = own.iter().map(|(name, tensor)| (*name, tensor)).collect();
        failed.extend(runs(&feeds).err().map(|source| (first + row, source)));
        // One that fails is known, and one that runs.
        if !failed.is_empty() && (others || failed.len() <= row) {
            break;
        }
    }
    let all = failed.len() == batch.samples;
    match failed.into_iter().next() {
        Some((sample, source)) if others || !all => Error::Samples { first: sample, last: sample, source },
        None if others => Error::Samples { first, last, source },
        _ => Error::Run { sample: first, source },
    }
}

/// One of the samples that lie along the first axis.
fn one(tensor: &Tensor, row: usize, rows: usize) -> Tensor {
    let view = tensor.view();
    let length = view.bytes.len() / rows;
    let mut shape = tensor.shape().to_vec();
    shape[0] = 1;
    Tensor::from_bytes(tensor.dtype(), &shape, &view.bytes[row * length..(row + 1) * length])
        .expect("rows are of one length")
}

/// Samples in a batch for inputs of this size.
pub fn batch_size(input_bytes: usize) -> usize {
    (BATCH_BYTES / input_bytes.max(1)).clamp(1, BATCH_MAX)
}

/// Runs the data through a float model and observes the values named in `wanted`.
///
/// The result depends on the samples only, not on their order nor on batches. A value that does not appear, or is no
/// f32, is left out: see [`needed`]. `model` is the SHA-256 of the model file. What each sample spans goes to `ranges`.
///
/// # Errors
/// [`Error::Data`], [`Error::Run`], [`Error::Samples`], [`Error::Cancelled`].
pub fn calibrate(
    session: &Session,
    data: &Dataset,
    wanted: &[String],
    model: [u8; 32],
    batch: usize,
    ranges: &mut SampleRanges,
    on_samples: OnSamples<'_>,
) -> Result<Statistics, Error> {
    let inputs: Vec<&str> = session.inputs().iter().map(|p| p.name.as_str()).collect();
    let nothing: BTreeMap<String, Observed> =
        wanted.iter().map(|name| (name.clone(), Observed::default())).collect();
    // What the runs that go side by side have seen.
    let seen: Vec<Mutex<_>> =
        (0..rayon::current_num_threads()).map(|_| Mutex::new(nothing.clone())).collect();
    let axes = OnceLock::new();
    let histograms = wanted.len() as u64 * histogram::BYTES;
    let run = |place: usize, batch: &Batch| {
        let count = (!data.whole_runs()).then_some(batch.samples);
        let axes = axes.get_or_init(|| match count {
            Some(_) => axes_of_samples(session, &batch.inputs),
            None => Axes::default(),
        });
        let mut values = seen[place].lock().unwrap_or_else(PoisonError::into_inner);
        let mut ranges = SampleRanges::default();
        let mut counter = Counter { values: &mut values, inputs: &inputs, axes, count, ranges: &mut ranges };
        batch.inputs.iter().for_each(|(name, tensor)| counter.count(name, tensor.view()));
        let run = session.run_tapped(&batch.feeds(), &mut counter);
        run.map_err(|source| blame(data, batch, source, |feeds| session.run(feeds).map(drop)))?;
        Ok((abreast::run_bytes(session, batch).saturating_add(histograms), ranges))
    };
    let mut digests = SampleDigests::default();
    let mut reader = data.reader()?;
    abreast::batches(reader.batches(batch)?, run, |batch, found| {
        digests.add(data, batch);
        ranges.append(found);
        if on_samples(batch.first + batch.samples) { Ok(()) } else { Err(Error::Cancelled) }
    })?;
    let mut values = nothing;
    for others in seen {
        let others = others.into_inner().unwrap_or_else(PoisonError::into_inner);
        others.iter().for_each(|(name, other)| values.get_mut(name).expect("all see the same").merge(other));
    }
    values.retain(|_, observed| observed.histogram.count() + observed.histogram.not_finite() > 0);
    Ok(Statistics { model, samples: digests.samples(), data: digests.finish(), values })
}

/// What was observed of a value that a plan gives codes to.
///
/// # Errors
/// [`Error::Unseen`] where it did not appear, [`Error::NotFinite`] where it holds NaN or infinity.
pub fn needed<'a>(values: &'a BTreeMap<String, Observed>, name: &str) -> Result<&'a Observed, Error> {
    let unseen = || Error::Unseen(name.to_owned());
    let observed = values.get(name).ok_or_else(unseen)?;
    match (observed.histogram.not_finite(), observed.histogram.range()) {
        (0, Some(_)) => Ok(observed),
        (0, None) => Err(unseen()),
        (count, _) => Err(Error::NotFinite { value: name.to_owned(), count }),
    }
}

/// The axis of each value along which samples lie, by its name; no entry where nobody can tell. `None` where the batch
/// cannot change: then the first axis has to do.
pub(super) type Axes = Option<HashMap<String, usize>>;

/// Finds the axis of each value that grows with the batch: evenly, and alone.
pub(super) fn axes_of_samples(session: &Session, inputs: &[(String, Tensor)]) -> Axes {
    if session.inputs().iter().any(|p| matches!(p.dims.first(), Some(Dim::Known(_)))) {
        return None;
    }
    let shapes = |batch: usize| {
        let of = |port: &exec::Port| {
            let (_, tensor) = inputs.iter().find(|(name, _)| *name == port.name)?;
            let mut shape = tensor.shape().to_vec();
            *shape.first_mut()? = batch;
            Some(shape)
        };
        let shapes: Option<Vec<Vec<usize>>> = session.inputs().iter().map(of).collect();
        session.value_shapes(&shapes?).ok()
    };
    let (two, three) = (shapes(2)?, shapes(3)?);
    let three: HashMap<String, Vec<usize>> =
        three.into_iter().map(|(name, _, shape)| (name, shape)).collect();
    let mut axes: HashMap<String, usize> = HashMap::new();
    for (name, _, two) in two {
        let Some(three) = three.get(&name).filter(|three| three.len() == two.len()) else { continue };
        let mut growing = (0..two.len()).filter(|&axis| two[axis] != three[axis]);
        if let (Some(axis), None) = (growing.next(), growing.next())
            && two[axis] * 3 == three[axis] * 2
        {
            axes.insert(name, axis);
        }
    }
    Some(axes)
}

/// Counts what flows by; inputs were counted when they were read.
pub(super) struct Counter<'a> {
    pub(super) values: &'a mut BTreeMap<String, Observed>,
    pub(super) inputs: &'a [&'a str],
    pub(super) axes: &'a Axes,
    /// Samples of the run; `None` where it is one sample as a whole.
    pub(super) count: Option<usize>,
    pub(super) ranges: &'a mut SampleRanges,
}

impl Counter<'_> {
    pub(super) fn count(&mut self, value: &str, tensor: TensorView<'_>) {
        let Some(observed) = self.values.get_mut(value).filter(|_| tensor.dtype == DType::F32) else {
            return;
        };
        let samples = match (self.count, self.axes) {
            (None, _) | (Some(1), None) => Samples::One,
            (Some(count), None) => Samples::Along { axis: 0, count },
            (Some(count), Some(axes)) => match axes.get(value) {
                Some(&axis) => Samples::Along { axis, count },
                None => Samples::Mixed,
            },
        };
        self.ranges.observe(value, &observed.observe(tensor, samples));
    }
}

impl Tap for Counter<'_> {
    fn wants(&self, value: &str) -> bool {
        self.values.contains_key(value) && !self.inputs.contains(&value)
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        self.count(value, tensor);
    }

    /// Counts know no order, and samples along the first axis stay where they are.
    fn order(&self, value: &str) -> ElementOrder {
        let axis = self.axes.as_ref().and_then(|axes| axes.get(value));
        let inner = self.count.is_some() && axis.is_some_and(|&axis| axis > 0);
        if inner { ElementOrder::Model } else { ElementOrder::Any }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::exec::Options;
    use crate::engine::graph::op::{Op, Unary};
    use crate::engine::graph::{Graph, Node, Value, ValueId};
    use crate::engine::tensor::dataset::tests::samples_of;

    /// `t = Transpose(Gemm(x, w))`, `r = Relu(t)`: `x` is `[batch, 4]`, `r` `[3, batch]`, so that samples lie along the
    /// first axis of some values and along the second of others.
    fn session() -> Session {
        let mut graph = Graph::default();
        let mut value = |name: &str, dims: Vec<Dim>| {
            let value = Value {
                name: name.to_owned(),
                dtype: Some(DType::F32),
                dims: Some(dims),
                ..Value::default()
            };
            graph.add_value(value)
        };
        let batch = || Dim::Symbol("batch".to_owned());
        let x = value("x", vec![batch(), Dim::Known(4)]);
        let g = value("g", vec![batch(), Dim::Known(3)]);
        let t = value("t", vec![Dim::Known(3), batch()]);
        let r = value("r", vec![Dim::Known(3), batch()]);
        let weights: Vec<f32> = (0..12u8).map(|i| f32::from(i) * 0.3 - 1.7).collect();
        let w = graph.add_constant("w", Tensor::from_slice(&[3, 4], &weights));
        let mut node = |op: Op, inputs: &[ValueId], output| {
            let inputs = inputs.iter().map(|&v| Some(v)).collect();
            graph.nodes.push(Node::new(format!("n{}", graph.nodes.len()), op, inputs, vec![output]));
        };
        node(Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true }, &[x, w], g);
        node(Op::Transpose { perm: vec![1, 0] }, &[g], t);
        node(Op::Unary(Unary::Relu), &[t], r);
        graph.inputs.push(x);
        graph.outputs.push(r);
        Session::new(graph, Options::default()).unwrap()
    }

    fn statistics(session: &Session, samples: &[[f32; 4]], batch: usize) -> Statistics {
        let tensor = Tensor::from_slice(&[samples.len(), 4], samples.as_flattened());
        let (_file, data) = samples_of(&tensor, &[None, Some(4)]);
        let wanted = ["x", "g", "t", "r", "nowhere"].map(str::to_owned);
        calibrate(session, &data, &wanted, [7; 32], batch, &mut SampleRanges::default(), &mut |_| true)
            .unwrap()
    }

    #[test]
    fn order_and_batches_leave_no_trace() {
        let session = session();
        let sample = |i: u32| [0, 1, 2, 3].map(|k| ((i * 37 + k * 11) % 64) as f32 * 0.17 - 4.0);
        let samples: Vec<[f32; 4]> = (0..23).map(sample).collect();
        let want = statistics(&session, &samples, 32);
        let mut other = samples.clone();
        other.reverse();
        other.swap(3, 17);
        for (samples, batch) in [(&samples, 1), (&samples, 5), (&other, 32), (&other, 7), (&other, 1)] {
            let found = statistics(&session, samples, batch);
            assert_eq!(found, want, "batches of {batch}");
            assert_eq!(found.encode(), want.encode());
        }
        assert_eq!(want.samples, 23);
        // The means are those of the definition, along both axes.
        let mean = |of: &dyn Fn(&[f32; 4]) -> f32| samples.iter().map(of).sum::<f32>() / 23.0;
        let (lo, hi) = want.values["x"].extremes.means().unwrap();
        assert!((lo - mean(&|s| s.iter().copied().fold(f32::MAX, f32::min))).abs() < 1e-5);
        assert!((hi - mean(&|s| s.iter().copied().fold(f32::MIN, f32::max))).abs() < 1e-5);
        assert_eq!(want.values["g"].extremes, want.values["t"].extremes, "the same values, transposed");
        assert_eq!(want.values["r"].extremes.samples, 23);
    }

    /// A token that no embedding has was told as the first sample of its batch, and as a fault of the model.
    #[test]
    fn the_sample_that_fails_is_named_and_others_clear_the_model() {
        let data = |samples: usize, length: usize, batch: Option<usize>| {
            samples_of(&Tensor::zeros(DType::F32, &[samples, length]), &[batch, Some(length)])
        };
        let source = || exec::Error::MissingInput { name: "x".to_owned(), expected: Vec::new() };
        for (first, bad, fixed, want) in [
            (0, &[2.0][..], None, "sample 2: "),
            (0, &[0.0, 1.0, 3.0], None, "sample 0: "),
            (4, &[6.0, 7.0], None, "sample 6: "),
            (4, &[4.0, 5.0, 6.0, 7.0], None, "sample 4: "),
            (4, &[], None, "samples 4 to 7: "),
            (4, &[6.0], Some(4), "samples 4 to 7: "),
            (0, &[0.0, 1.0, 2.0, 3.0], None, "model, sample 0: "),
            (0, &[], None, "model, sample 0: "),
            (0, &[2.0], Some(4), "model, sample 0: "),
        ] {
            let (_file, data) = data(8, 1, fixed);
            let values: Vec<f32> = (first..first + 4).map(|x| x as f32).collect();
            let inputs = vec![("x".to_owned(), Tensor::from_slice(&[4, 1], &values))];
            let batch = Batch { first, samples: 4, inputs };
            let found = blame(&data, &batch, source(), |feeds| {
                let fails = feeds[0].1.slice::<f32>().iter().any(|x| bad.contains(x));
                if fails { Err(source()) } else { Ok(()) }
            });
            let model = if matches!(found, Error::Run { .. }) { "model, " } else { "" };
            let text = format!("{model}{found}");
            assert!(text.starts_with(want), "{bad:?} from {first}, fixed {fixed:?}: {text}");
        }
    }

    #[test]
    fn what_a_plan_needs_must_be_seen_and_finite() {
        let session = session();
        let found = statistics(&session, &[[1.0; 4]], 1).values;
        assert!(needed(&found, "x").is_ok());
        assert!(matches!(needed(&found, "nowhere"), Err(Error::Unseen(name)) if name == "nowhere"));
        let huge = statistics(&session, &[[f32::MAX; 4]], 1).values;
        assert!(needed(&huge, "x").is_ok());
        assert!(matches!(needed(&huge, "g"), Err(Error::NotFinite { count: 1.., .. })));
    }
}
