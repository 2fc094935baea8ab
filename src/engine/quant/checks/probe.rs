//! Tries the float model on some samples as they are and changed: if it is right far more often after a change, the
//! data were prepared wrongly. Needs labels.

use super::samples::number;
use super::survey::{Input, Layout, Survey};
use super::{Check, Severity};
use crate::engine::exec::session::Session;
use crate::engine::quant::calibrate::Error;
use crate::engine::tensor::dataset::{Dataset, feeds};
use crate::engine::tensor::{DType, Tensor};

/// Samples that are tried.
const SAMPLES: usize = 48;
/// Fewer than these tell nothing.
const SAMPLES_MIN: usize = 12;
/// Share of right answers from which on nothing is looked for.
const GOOD: f64 = 0.8;
/// Least share of right answers that is believed to come of the right preparation.
const LEAST: f64 = 0.3;
/// Least gain, as a share of the samples, that is believed.
const GAIN: f64 = 0.15;
/// Standard deviations and means of the data sets that most vision models are trained on (ImageNet), for 0 to 1.
const IMAGENET: [(f64, f64); 3] = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)];

/// A way to prepare a sample otherwise.
#[derive(Clone, Debug)]
enum Change {
    /// `x · scale + shift`, for each channel.
    Affine(Vec<(f32, f32)>),
    /// Turned by 180 degrees.
    Turn,
    /// Mirrored left to right.
    Mirror,
    /// Upside down.
    Flip,
    /// Rows and columns exchanged.
    Transpose,
    /// The order of the channels reversed.
    Reverse,
}

/// Some labelled samples, each a run of its own.
pub struct Picked {
    input: String,
    layout: Layout,
    channels: usize,
    samples: Vec<One>,
}

/// A labelled sample.
struct One {
    /// Its place in the data.
    sample: usize,
    inputs: Vec<(String, Tensor)>,
    label: i64,
}

/// What a change did.
struct Tried {
    what: String,
    remedy: String,
    right: usize,
}

impl Picked {
    /// Takes some of the labelled samples for which `wanted` is true: those with the least digests, so that their order
    /// does not matter. `None` where there are no labels, no pictures, or too few samples.
    ///
    /// # Errors
    /// Where the data cannot be read.
    pub fn from(
        data: &Dataset,
        survey: &Survey,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Option<Picked>, Error> {
        let picture = |i: &&Input| matches!(i.layout, Layout::Image | Layout::ImageChannelsLast);
        let (Some(labels), Some(input)) = (data.labels(), survey.inputs.iter().find(picture)) else {
            return Ok(None);
        };
        let chosen = survey.some(SAMPLES, wanted);
        let Some(&last) = chosen.iter().max().filter(|_| chosen.len() >= SAMPLES_MIN) else {
            return Ok(None);
        };
        let mut samples = Vec::new();
        let mut reader = data.reader()?;
        for batch in reader.batches(1)? {
            let batch = batch?;
            if batch.samples != 1 {
                // A model with a fixed batch: one sample cannot be run.
                return Ok(None);
            }
            if chosen.contains(&batch.first) {
                let (sample, label) = (batch.first, labels[batch.first]);
                samples.push(One { sample, inputs: batch.inputs, label });
            }
            if batch.first == last {
                break;
            }
        }
        let (input, layout, channels) = (input.name.clone(), input.layout, input.channels.len());
        Ok(Some(Picked { input, layout, channels, samples }))
    }

    /// On how many the model is right after a change; `None` where its first output does not tell classes.
    fn right(&self, model: &Session, change: Option<&Change>) -> Result<Option<usize>, Error> {
        let mut right = 0;
        for One { sample, inputs, label } in &self.samples {
            let changed: Option<Tensor> = change.and_then(|change| {
                let (_, tensor) = inputs.iter().find(|(name, _)| *name == self.input)?;
                self.changed(tensor, change)
            });
            let feed = |(name, tensor): &'_ (String, Tensor)| match &changed {
                Some(changed) if *name == self.input => (name.clone(), changed.clone()),
                _ => (name.clone(), tensor.clone()),
            };
            let owned: Vec<(String, Tensor)> = inputs.iter().map(feed).collect();
            let outputs =
                model.run(&feeds(&owned)).map_err(|source| Error::Run { sample: *sample, source })?;
            let Some(class) = outputs.first().and_then(class) else { return Ok(None) };
            right += usize::from(class == *label);
        }
        Ok(Some(right))
    }

    /// As many right answers as one class for all may give, and then some: fewer tell nothing.
    fn by_chance(&self) -> f64 {
        let mut labels: Vec<i64> = self.samples.iter().map(|one| one.label).collect();
        labels.sort_unstable();
        let most = labels.chunk_by(|a, b| a == b).map(<[i64]>::len).max().unwrap_or(0);
        (1.5 * most as f64).max(LEAST * labels.len() as f64)
    }

    /// `[planes, rows, columns, interleaved]` of a tensor.
    fn changed(&self, tensor: &Tensor, change: &Change) -> Option<Tensor> {
        let shape = tensor.shape();
        let [h, w] = match self.layout {
            Layout::Image => [shape[shape.len() - 2], shape[shape.len() - 1]],
            _ => [shape[shape.len() - 3], shape[shape.len() - 2]],
        };
        let (planes, inner) = match self.layout {
            Layout::Image => (self.channels, 1),
            _ => (1, self.channels),
        };
        if planes * h * w * inner != tensor.len() || (matches!(change, Change::Transpose) && h != w) {
            return None;
        }
        let from = tensor.slice::<f32>();
        let mut changed = Tensor::zeros(DType::F32, shape);
        let to = changed.slice_mut::<f32>();
        for p in 0..planes {
            for y in 0..h {
                for x in 0..w {
                    for i in 0..inner {
                        let channel = p.max(i);
                        let (sp, sy, sx, si) = match change {
                            Change::Affine(_) => (p, y, x, i),
                            Change::Turn => (p, h - 1 - y, w - 1 - x, i),
                            Change::Mirror => (p, y, w - 1 - x, i),
                            Change::Flip => (p, h - 1 - y, x, i),
                            Change::Transpose => (p, x, y, i),
                            Change::Reverse => (planes - 1 - p, y, x, inner - 1 - i),
                        };
                        let value = from[((sp * h + sy) * w + sx) * inner + si];
                        to[((p * h + y) * w + x) * inner + i] = match change {
                            Change::Affine(by) => value * by[channel].0 + by[channel].1,
                            _ => value,
                        };
                    }
                }
            }
        }
        Some(changed)
    }

    fn tried(
        &self,
        model: &Session,
        changes: Vec<(String, String, Change)>,
    ) -> Result<Option<(usize, Tried)>, Error> {
        let Some(plain) = self.right(model, None)? else { return Ok(None) };
        let n = self.samples.len();
        if plain as f64 >= GOOD * n as f64 {
            return Ok(None);
        }
        let mut best: Option<Tried> = None;
        for (what, remedy, change) in changes {
            let Some(right) = self.right(model, Some(&change))? else { return Ok(None) };
            if best.as_ref().is_none_or(|b| right > b.right) {
                best = Some(Tried { what, remedy, right });
            }
        }
        let needed = (plain as f64 + (GAIN * n as f64).max(4.0)).max(self.by_chance());
        Ok(best.filter(|b| b.right as f64 >= needed).map(|b| (plain, b)))
    }

    /// Whether the float model is right more often when the samples are normalized otherwise.
    ///
    /// # Errors
    /// Where the model cannot be run.
    pub fn normalization(&self, model: &Session, survey: &Survey) -> Result<Option<Check>, Error> {
        let Some(input) = survey.input(&self.input) else { return Ok(None) };
        let Some((plain, best)) = self.tried(model, normalizations(input))? else { return Ok(None) };
        Ok(Some(Check::new(
            "normalization",
            Severity::Warning,
            format!(
                "input `{}`: of {} samples the float model has {plain} right as they are, and {} {}",
                self.input,
                self.samples.len(),
                best.right,
                best.what
            ),
            format!(
                "{} The float model suffers too: the data are at fault, not the quantization.",
                best.remedy
            ),
        )))
    }

    /// What orientation the float model finds right more often, in words; `None` where none helps.
    ///
    /// # Errors
    /// Where the model cannot be run.
    pub fn orientation(&self, model: &Session) -> Result<Option<String>, Error> {
        let turned = |what: &str, change| (what.to_owned(), String::new(), change);
        let mut changes = vec![
            turned("turned by 180 degrees", Change::Turn),
            turned("mirrored left to right", Change::Mirror),
            turned("turned upside down by a mirror", Change::Flip),
            turned("with rows and columns exchanged", Change::Transpose),
        ];
        if self.channels > 1 {
            changes.push(turned("with the order of the colours reversed", Change::Reverse));
        }
        let n = self.samples.len();
        let found = self.tried(model, changes)?;
        Ok(found.map(|(plain, best)| {
            format!("of {n} of them float has {plain} right as they are, and {} {}", best.right, best.what)
        }))
    }
}

/// Other normalizations of the same pictures, by what the data hold.
fn normalizations(input: &Input) -> Vec<(String, String, Change)> {
    let (lo, hi) = input
        .channels
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), c| (lo.min(c.min), hi.max(c.max)));
    let n = input.channels.len();
    if hi <= lo || input.channels.iter().any(|c| c.std <= 0.0) {
        return Vec::new();
    }
    // To the interval from `to_lo` to `to_hi`.
    let interval = |to_lo: f64, to_hi: f64| {
        let scale = (to_hi - to_lo) / (hi - lo);
        Change::Affine(vec![(scale as f32, (to_lo - lo * scale) as f32); n])
    };
    let list = |values: &mut dyn Iterator<Item = f64>| values.map(number).collect::<Vec<_>>().join(", ");
    let (means, stds) =
        (list(&mut input.channels.iter().map(|c| c.mean)), list(&mut input.channels.iter().map(|c| c.std)));
    let standard = input.channels.iter().map(|c| ((1.0 / c.std) as f32, (-c.mean / c.std) as f32)).collect();
    let centred = input.channels.iter().map(|c| (1.0, -c.mean as f32)).collect();
    let inverted = Change::Affine(vec![(-1.0, (lo + hi) as f32); n]);
    let named = |what: &str, remedy: String, change| (what.to_owned(), remedy, change);
    let to = |what: &str| format!("The model seems to expect values {what}.");
    let mut changes = vec![
        named(
            "when their mean is taken off",
            format!("The model seems to expect mean 0; the data have {means}."),
            Change::Affine(centred),
        ),
        named(
            "with mean 0 and standard deviation 1",
            format!(
                "The model seems to expect mean 0 and standard deviation 1; the data have {means} and {stds}."
            ),
            Change::Affine(standard),
        ),
        named("scaled to 0 to 1", to("from 0 to 1"), interval(0.0, 1.0)),
        named("scaled to −1 to 1", to("from −1 to 1"), interval(-1.0, 1.0)),
        named("scaled to 0 to 255", to("from 0 to 255"), interval(0.0, 255.0)),
    ];
    changes.push(named(
        "with light and dark exchanged",
        "The model seems to expect light where the data are dark: a sign, or 255 − x.".to_owned(),
        inverted,
    ));
    if n == 3 {
        let scale = 1.0 / (hi - lo);
        let by = IMAGENET.map(|(mean, std)| ((scale / std) as f32, ((-lo * scale - mean) / std) as f32));
        let remedy = "The model seems to expect the mean and deviation of ImageNet.".to_owned();
        changes.push(named("with the normalization of ImageNet", remedy, Change::Affine(by.to_vec())));
    }
    changes
}

/// The class that an output of one sample chooses.
fn class(output: &Tensor) -> Option<i64> {
    let shape = output.shape();
    let classes = shape.iter().copied().max()?;
    if output.dtype() != DType::F32 || classes != output.len() || classes < 2 {
        return None;
    }
    let values = output.slice::<f32>();
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).map(|c| c as i64)
}
