//! Float against INT8 on evaluation data: accuracy, agreement, noise, worst samples, classes, slices.
//! Keeps sums and a bounded list of the worst samples, not outputs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::engine::exec;
use crate::engine::exec::session::Session;
use crate::engine::quant::abreast;
use crate::engine::quant::calibrate::{Error, OnSamples, blame};
use crate::engine::quant::confusion::Confusion;
use crate::engine::quant::noise::{Noise, sqnr_db};
use crate::engine::tensor::dataset::{self, Batch, Dataset};
use crate::engine::tensor::{DType, Tensor};

/// Most of the worst samples that are kept.
const WORST_MAX: usize = 24;
/// Most classes and slices that get a row of their own.
const GROUPS_MAX: usize = 1000;
/// Most bytes of outputs that are kept.
const KEPT_BYTES: usize = 64 << 20;
/// Where there are no classes, a sample agrees if the cosine of its outputs is at least this.
const AGREEING_COSINE: f64 = 0.99;

/// A share with its 95 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Successes over trials, 0 to 1.
    pub value: f64,
    /// Lower end of the Wilson interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Successes.
    pub count: u64,
}

/// Float against INT8.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// `top1` where there are labels and classes, else `agreement`, where float counts as right.
    pub metric: &'static str,
    /// How agreement is told: `class` (the largest output), `value` (an integer output), `cosine` (at least 0.99).
    pub agreement_by: &'static str,
    /// Number of samples.
    pub samples: u64,
    /// The float model by the metric.
    pub float: Share,
    /// The INT8 model by the metric.
    pub int8: Share,
    /// The same, where the right class is among the five largest outputs.
    pub float_top5: Option<Share>,
    /// The same, for INT8.
    pub int8_top5: Option<Share>,
    /// Samples on which both agree.
    pub agreement: Share,
    /// Samples that float has right and INT8 wrong.
    pub broken: u64,
    /// Samples that float has wrong and INT8 right.
    pub mended: u64,
    /// Signal to quantization noise of the first output, in dB, over all samples; at most 200.
    pub sqnr_db: f64,
    /// Mean cosine of the first outputs.
    pub cosine: f64,
    /// The samples that changed most: changed decisions first, then by noise.
    pub worst: Vec<WorstSample>,
    /// By class: the label, or the class that float chooses.
    pub classes: Vec<Group>,
    /// By slice of the data.
    pub slices: Vec<Group>,
    /// What the float model chooses for each label, where there are labels and classes.
    pub confusion: Option<Confusion>,
}

/// A sample that changed much.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorstSample {
    /// Its position in the data.
    pub sample: usize,
    /// Whether both decide the same.
    pub agrees: bool,
    /// Signal to noise of its output, in dB.
    pub sqnr_db: f64,
    /// The right class.
    pub label: Option<i64>,
    /// The class that float chooses.
    pub float_class: Option<i64>,
    /// The class that INT8 chooses.
    pub int8_class: Option<i64>,
}

/// Samples that belong together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// The class or the slice.
    pub name: String,
    /// Number of samples.
    pub samples: u64,
    /// Float by the metric.
    pub float: f64,
    /// INT8 by the metric, with its interval.
    pub int8: Share,
    /// `int8 − float`.
    pub delta: f64,
}

/// What other models are judged by: the float model on evaluation data. Its outputs are kept from one comparison to the
/// next, as long as they are small.
pub struct Reference<'a> {
    pub(super) float: &'a Session,
    pub(super) data: &'a Dataset,
    /// The first output of the batch that begins with a sample.
    kept: Mutex<HashMap<usize, Tensor>>,
}

impl<'a> Reference<'a> {
    /// A model that was not run yet.
    pub fn new(float: &'a Session, data: &'a Dataset) -> Reference<'a> {
        Reference { float, data, kept: Mutex::default() }
    }

    /// Samples of the data.
    pub fn samples(&self) -> usize {
        self.data.samples()
    }

    /// Compares a model with it: on at least the first `samples_min` samples, whole batches being taken.
    ///
    /// # Errors
    /// [`Error`]; labels that are no class of the model are one.
    pub fn evaluate(
        &self,
        int8: &Session,
        samples_min: usize,
        batch: usize,
        on_samples: OnSamples<'_>,
    ) -> Result<Evaluation, Error> {
        let mut judge = Judge::new(self);
        let mut reader = self.data.reader()?;
        self.judge(int8, reader.batches(batch)?.before(samples_min), &mut judge, on_samples)?;
        Ok(judge.finish())
    }

    /// Runs both models on batches.
    pub(super) fn judge(
        &self,
        int8: &Session,
        batches: impl Iterator<Item = Result<Batch, dataset::Error>>,
        judge: &mut Judge<'_>,
        on_samples: OnSamples<'_>,
    ) -> Result<(), Error> {
        let outputs = |_, batch: &Batch| {
            let bytes = [self.float, int8].map(|session| abreast::run_bytes(session, batch));
            let float = self.output(batch)?;
            let int8 = first_output(int8, self.data, batch, int8.run(&batch.feeds()))?;
            Ok((bytes[0].saturating_add(bytes[1]), (float, int8)))
        };
        abreast::batches(batches, outputs, |batch, (float, int8)| {
            judge.batch(batch, &float, &int8)?;
            if on_samples(batch.first + batch.samples) { Ok(()) } else { Err(Error::Cancelled) }
        })
    }

    /// The first output of the float model.
    pub(super) fn output(&self, batch: &Batch) -> Result<Tensor, Error> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = |output: &Tensor| output.shape().first().copied().filter(|_| !self.data.whole_runs());
        if let Some(output) = kept().get(&batch.first)
            && samples(output).is_none_or(|samples| samples == batch.samples)
        {
            return Ok(output.clone());
        }
        let output = first_output(self.float, self.data, batch, self.float.run(&batch.feeds()))?;
        let share = output.view().bytes.len() / batch.samples;
        if share.saturating_mul(self.data.samples()) <= KEPT_BYTES {
            kept().insert(batch.first, output.clone());
        }
        Ok(output)
    }
}

/// One sample in float and in INT8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Whether both say the same, told as [`Evaluation::agreement_by`] is.
    pub agrees: bool,
    /// Cosine of the two outputs.
    pub cosine: f64,
    /// Largest difference of two values.
    pub max_abs_error: f64,
}

/// Compares the first outputs of two models, sample by sample along the first dimension, or as one sample where
/// `whole`. `None` where the shapes do not fit each other.
pub fn pairs(float: &Tensor, int8: &Tensor, whole: bool) -> Option<Vec<Pair>> {
    let rows = if whole { 1 } else { *float.shape().first()? };
    if float.shape() != int8.shape() || float.is_empty() {
        return None;
    }
    let by = how_to_judge(float, whole);
    let (a, b) = (float.to_f64(), int8.to_f64());
    let width = a.len() / rows;
    let pair = |(a, b): (&[f64], &[f64])| {
        let noise = Noise::of(a, b);
        let agrees = by.agree(a, b, &noise);
        Pair { agrees, cosine: noise.cosine(), max_abs_error: noise.max_abs_error }
    };
    Some(a.chunks_exact(width).zip(b.chunks_exact(width)).map(pair).collect())
}

/// The first of the outputs that a run over a batch gave.
pub(super) fn first_output(
    session: &Session,
    data: &Dataset,
    batch: &Batch,
    ran: Result<Vec<Tensor>, exec::Error>,
) -> Result<Tensor, Error> {
    let outputs = ran.map_err(|source| blame(data, batch, source, |feeds| session.run(feeds).map(drop)))?;
    outputs.into_iter().next().ok_or_else(|| Error::Outputs("the model has no output".to_owned()))
}

/// Sums over samples.
pub(super) struct Judge<'a> {
    data: &'a Dataset,
    /// Name of the output that is looked at.
    output: &'a str,
    by: Option<By>,
    samples: u64,
    counts: Counts,
    top5: Option<(u64, u64)>,
    /// Signal, noise and cosine of each sample: summed in the order of their size, so that the order of the samples
    /// leaves no trace.
    signal: Vec<f64>,
    noise: Vec<f64>,
    cosine: Vec<f64>,
    worst: Vec<WorstSample>,
    classes: BTreeMap<i64, Counts>,
    slices: BTreeMap<String, Counts>,
    confusion: Option<Confusion>,
}

/// How two outputs are told to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Class,
    Value,
    Cosine,
}

impl By {
    /// The class or value that a sample's output says, where it says one.
    fn class(self, output: &[f64]) -> Option<i64> {
        match self {
            By::Class => Some(argmax(output) as i64),
            By::Value => Some(output[0] as i64),
            By::Cosine => None,
        }
    }

    fn agree(self, float: &[f64], int8: &[f64], noise: &Noise) -> bool {
        match self {
            By::Cosine => noise.cosine() >= AGREEING_COSINE,
            By::Class | By::Value => self.class(float) == self.class(int8),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    samples: u64,
    float: u64,
    int8: u64,
    agree: u64,
    broken: u64,
    mended: u64,
}

impl Counts {
    fn add(&mut self, float: bool, int8: bool, agree: bool) {
        self.samples += 1;
        self.float += u64::from(float);
        self.int8 += u64::from(int8);
        self.agree += u64::from(agree);
        self.broken += u64::from(float && !int8);
        self.mended += u64::from(!float && int8);
    }
}

/// What is wrong with an output that has no sample for each index of its first axis, and what helps: to run the samples
/// one by one, which arrays ask for that have one dimension more than the inputs.
fn samples_not_first(output: &str, shape: &[usize], batch: &Batch) -> String {
    let one = |(name, tensor): &(String, Tensor)| {
        let inner = tensor.shape().get(1..).unwrap_or_default();
        let dims: Vec<String> = inner.iter().map(usize::to_string).collect();
        format!("`{name}` as [samples, {}]", [&["1".to_owned()], &dims[..]].concat().join(", "))
    };
    let inputs: Vec<String> = batch.inputs.iter().map(one).collect();
    format!(
        "output `{output}` has shape {shape:?}, expected {} samples first; give arrays with one more dimension, so that \
         each sample is a whole run: {}",
        batch.samples,
        inputs.join(", ")
    )
}

impl<'a> Judge<'a> {
    pub(super) fn new(reference: &Reference<'a>) -> Judge<'a> {
        let Reference { float, data, .. } = *reference;
        let output = float.outputs().first().map_or("", |port| &port.name);
        Judge {
            data,
            output,
            by: None,
            samples: 0,
            counts: Counts::default(),
            top5: None,
            signal: Vec::new(),
            noise: Vec::new(),
            cosine: Vec::new(),
            worst: Vec::new(),
            classes: BTreeMap::new(),
            slices: BTreeMap::new(),
            confusion: None,
        }
    }

    pub(super) fn batch(&mut self, batch: &Batch, float: &Tensor, int8: &Tensor) -> Result<(), Error> {
        if float.shape() != int8.shape() {
            let (a, b) = (float.shape(), int8.shape());
            return Err(Error::Outputs(format!("the float output has shape {a:?}, the INT8 output {b:?}")));
        }
        let rows = if self.data.whole_runs() { 1 } else { batch.samples };
        if !self.data.whole_runs() && float.shape().first() != Some(&rows) {
            let shape = float.shape();
            return Err(Error::Outputs(samples_not_first(self.output, shape, batch)));
        }
        let by = *self.by.get_or_insert_with(|| how_to_judge(float, self.data.whole_runs()));
        let (a, b) = (float.to_f64(), int8.to_f64());
        let width = a.len() / rows.max(1);
        for row in 0..rows {
            let span = row * width..(row + 1) * width;
            self.sample(batch.first + row, by, &a[span.clone()], &b[span])?;
        }
        Ok(())
    }

    fn sample(&mut self, sample: usize, by: By, float: &[f64], int8: &[f64]) -> Result<(), Error> {
        let noise = Noise::of(float, int8);
        self.signal.push(noise.signal);
        self.noise.push(noise.noise);
        self.cosine.push(noise.cosine());
        let (float_class, int8_class) = (by.class(float), by.class(int8));
        let agrees = by.agree(float, int8, &noise);
        let label = self.data.labels().map(|labels| labels[sample]).filter(|_| by != By::Cosine);
        if let (Some(label), By::Class) = (label, by) {
            if usize::try_from(label).map_or(true, |l| l >= float.len()) {
                let classes = float.len();
                let reason =
                    format!("label {label} of sample {sample} is no class of the model, which has {classes}");
                return Err(Error::Outputs(reason));
            }
            if float.len() > 5 {
                let top5 = self.top5.get_or_insert((0, 0));
                top5.0 += u64::from(among_five(float, label as usize));
                top5.1 += u64::from(among_five(int8, label as usize));
            }
        }
        let (float_right, int8_right) = match label {
            Some(label) => (float_class == Some(label), int8_class == Some(label)),
            None => (true, agrees),
        };
        if let (Some(label), Some(class)) = (label, float_class) {
            self.confusion.get_or_insert_default().add(label, class);
        }
        self.samples += 1;
        self.counts.add(float_right, int8_right, agrees);
        if let Some(class) = label.or(float_class)
            && (self.classes.len() < GROUPS_MAX || self.classes.contains_key(&class))
        {
            self.classes.entry(class).or_default().add(float_right, int8_right, agrees);
        }
        if let Some(slices) = self.data.slices()
            && (self.slices.len() < GROUPS_MAX || self.slices.contains_key(&slices[sample]))
        {
            self.slices.entry(slices[sample].clone()).or_default().add(float_right, int8_right, agrees);
        }
        self.keep_if_bad(WorstSample {
            sample,
            agrees,
            sqnr_db: noise.sqnr_db(),
            label,
            float_class,
            int8_class,
        });
        Ok(())
    }

    /// Keeps the worst samples, sorted; equal ones by position, so that the list does not depend on batches.
    fn keep_if_bad(&mut self, new: WorstSample) {
        let key = |w: &WorstSample| (w.agrees, w.sqnr_db, w.sample);
        let place = self.worst.partition_point(|w| key(w) <= key(&new));
        if place < WORST_MAX {
            self.worst.insert(place, new);
            self.worst.truncate(WORST_MAX);
        }
    }

    pub(super) fn finish(self) -> Evaluation {
        let n = self.samples;
        let by = self.by.unwrap_or(By::Cosine);
        let labelled = self.data.labels().is_some() && by != By::Cosine;
        let group = |name: String, c: &Counts| {
            let (float, int8) = (c.float as f64 / c.samples as f64, wilson(c.int8, c.samples));
            Group { name, samples: c.samples, float, int8, delta: int8.value - float }
        };
        Evaluation {
            metric: if labelled { "top1" } else { "agreement" },
            agreement_by: match by {
                By::Class => "class",
                By::Value => "value",
                By::Cosine => "cosine",
            },
            samples: n,
            float: wilson(self.counts.float, n),
            int8: wilson(self.counts.int8, n),
            float_top5: self.top5.map(|(float, _)| wilson(float, n)),
            int8_top5: self.top5.map(|(_, int8)| wilson(int8, n)),
            agreement: wilson(self.counts.agree, n),
            broken: self.counts.broken,
            mended: self.counts.mended,
            sqnr_db: sqnr_db(ordered_sum(self.signal), ordered_sum(self.noise)),
            cosine: ordered_sum(self.cosine) / n.max(1) as f64,
            worst: self.worst,
            classes: self.classes.iter().map(|(class, c)| group(class.to_string(), c)).collect(),
            slices: self.slices.iter().map(|(slice, c)| group(slice.clone(), c)).collect(),
            confusion: self.confusion,
        }
    }
}

/// Classes where a sample's output is a vector of reals, a value where it is one integer, else the cosine.
fn how_to_judge(output: &Tensor, whole_runs: bool) -> By {
    let sample = if whole_runs { output.shape() } else { &output.shape()[1..] };
    let real = matches!(output.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16);
    let count: usize = sample.iter().product();
    match sample {
        // A run of a model without batch axis: `[classes]`, not one row a step.
        _ if whole_runs && sample.len() != 1 && real => By::Cosine,
        // `[classes]`, or `[classes, 1, 1]` as some exports leave it.
        [classes, rest @ ..] if real && *classes > 1 && rest.iter().all(|&d| d == 1) => By::Class,
        _ if !real && count == 1 => By::Value,
        _ => By::Cosine,
    }
}

/// The sum of numbers from the least to the largest.
fn ordered_sum(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.iter().sum()
}

/// Position of the largest; the first of equal ones.
fn argmax(values: &[f64]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0)
}

/// Whether fewer than five are larger.
fn among_five(values: &[f64], class: usize) -> bool {
    values.iter().filter(|&&x| x > values[class]).count() < 5
}

/// The 95 % interval of a share (Wilson 1927): it stays within 0 to 1 and holds for few samples too.
pub fn wilson(count: u64, samples: u64) -> Share {
    if samples == 0 {
        return Share { value: 0.0, low: 0.0, high: 1.0, count };
    }
    let (n, z) = (samples as f64, 1.959_963_984_540_054);
    let p = count as f64 / n;
    let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    Share { value: p, low: (centre - half).max(0.0), high: (centre + half).min(1.0), count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_without_samples_first_is_named_with_what_helps() {
        let inputs = vec![("x".to_owned(), Tensor::from_slice(&[32, 7], &[0f32; 224]))];
        let batch = Batch { first: 0, samples: 32, inputs };
        let want = "output `t` has shape [7, 2, 32, 4], expected 32 samples first; give arrays with one more dimension, \
                    so that each sample is a whole run: `x` as [samples, 1, 7]";
        assert_eq!(samples_not_first("t", &[7, 2, 32, 4], &batch), want);
    }

    #[test]
    fn the_interval_is_that_of_wilson() {
        // Brown, Cai, DasGupta 2001 and scipy.stats.binomtest(…).proportion_ci(method="wilson").
        for (count, samples, low, high) in
            [(0, 10, 0.0, 0.277_54), (10, 10, 0.722_46, 1.0), (8, 10, 0.490_16, 0.943_32)]
        {
            let share = wilson(count, samples);
            assert!((share.low - low).abs() < 1e-4 && (share.high - high).abs() < 1e-4, "{share:?}");
        }
        assert_eq!(wilson(0, 0).high, 1.0);
    }

    #[test]
    fn the_first_of_equal_outputs_is_chosen() {
        for (values, want) in [(&[1.0, 3.0, 3.0][..], 1), (&[0.0], 0), (&[-1.0, -2.0], 0)] {
            assert_eq!(argmax(values), want);
        }
        assert!(among_five(&[9.0, 8.0, 7.0, 6.0, 5.0, 4.0], 4));
        assert!(!among_five(&[9.0, 8.0, 7.0, 6.0, 5.0, 4.0], 5));
    }

    #[test]
    fn outputs_are_judged_by_what_they_are() {
        let tensor = |dtype, shape: &[usize]| Tensor::zeros(dtype, shape);
        for (output, whole_runs, want) in [
            (tensor(DType::F32, &[4, 10]), false, By::Class),
            (tensor(DType::F32, &[4, 10, 1, 1]), false, By::Class),
            (tensor(DType::F32, &[4, 1]), false, By::Cosine),
            (tensor(DType::F32, &[4, 2, 8, 8]), false, By::Cosine),
            (tensor(DType::I64, &[4]), false, By::Value),
            (tensor(DType::F32, &[10]), true, By::Class),
            (tensor(DType::F32, &[160, 1]), true, By::Cosine),
        ] {
            assert_eq!(how_to_judge(&output, whole_runs), want, "{output:?}");
        }
    }
}
