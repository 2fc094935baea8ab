//! One pass over the samples of a dataset: what they hold, without a model. Knows no thresholds.
//!
//! Sums over samples are kept in fixed point, so that the figures do not depend on the order of the samples.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};

use crate::engine::quant::histogram::Histogram;
use crate::engine::tensor::dataset::{Batch, Dataset, Error};
use crate::engine::tensor::{DType, Tensor};

/// Samples read at a time.
const BATCH: usize = 16;
/// Most channels that are told apart.
const CHANNELS_MAX: usize = 64;
/// How far outside of a range a value must lie to be counted, in ranges: two of 256 codes.
const SLACK: f32 = 1.0 / 128.0;
/// Fractional bits of the sums.
const FRACTION: f64 = (1u64 << 40) as f64;

/// What the samples of a dataset hold.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Number of samples.
    pub samples: usize,
    /// Samples all of whose arrays hold one value only.
    pub constant: Vec<usize>,
    /// Samples that are equal to an earlier one, and that one.
    pub duplicates: Vec<(usize, usize)>,
    /// The inputs, in the order of the model.
    pub inputs: Vec<Input>,
    /// Digest of each sample, and the first that has it.
    digests: HashMap<u64, usize>,
}

/// What the samples hold for one input of reals; integers have no statistics.
#[derive(Clone, Debug)]
pub struct Input {
    /// Name of the input.
    pub name: String,
    /// What one sample looks like.
    pub layout: Layout,
    /// For each channel; one where there are none.
    pub channels: Vec<Channel>,
    /// All values.
    pub histogram: Histogram,
    /// For each sample how many of its values lie outside of what other data span, by more than codes would tell;
    /// empty where nobody asked.
    pub outside: Vec<Outside>,
    /// Number of values of one sample.
    pub values: usize,
    sums: Vec<Sums>,
}

/// How many values of a sample lie outside of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Below its lower end.
    pub below: u32,
    /// Above its upper end.
    pub above: u32,
}

/// Where the channels of a sample are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[C, H, W]` with one, three or four channels.
    Image,
    /// `[H, W, C]` with one, three or four channels.
    ImageChannelsLast,
    /// Channels first, and no image.
    Channels,
    /// Nothing that is known.
    Flat,
}

/// Values of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Channel {
    /// Mean of all values.
    pub mean: f64,
    /// Standard deviation of all values.
    pub std: f64,
    /// Standard deviation of the means of the samples.
    pub std_of_means: f64,
    /// Least value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

/// Sums over samples, in fixed point: of the mean, its square, and the mean square of each sample.
#[derive(Clone, Copy, Debug)]
struct Sums {
    samples: u64,
    mean: i128,
    mean_squared: i128,
    square: i128,
    min: f32,
    max: f32,
}

impl Default for Sums {
    fn default() -> Sums {
        let (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
        Sums { samples: 0, mean: 0, mean_squared: 0, square: 0, min, max }
    }
}

impl Sums {
    fn sample(&mut self, values: impl Iterator<Item = f32>) {
        let (mut count, mut sum, mut squares) = (0u64, 0f64, 0f64);
        for x in values {
            self.min = self.min.min(x);
            self.max = self.max.max(x);
            sum += f64::from(x);
            squares += f64::from(x) * f64::from(x);
            count += 1;
        }
        let mean = sum / count.max(1) as f64;
        // Casting saturates: means beyond 2^87 are no data that anyone can tell something about.
        let fixed = |x: f64| (x * FRACTION) as i128;
        self.samples += 1;
        self.mean = self.mean.saturating_add(fixed(mean));
        self.mean_squared = self.mean_squared.saturating_add(fixed(mean * mean));
        self.square = self.square.saturating_add(fixed(squares / count.max(1) as f64));
    }

    fn finish(&self) -> Channel {
        let over = |sum: i128| sum as f64 / FRACTION / self.samples.max(1) as f64;
        let mean = over(self.mean);
        Channel {
            mean,
            std: (over(self.square) - mean * mean).max(0.0).sqrt(),
            std_of_means: (over(self.mean_squared) - mean * mean).max(0.0).sqrt(),
            min: f64::from(self.min),
            max: f64::from(self.max),
        }
    }
}

impl Survey {
    /// Reads all samples once. Memory: one batch, and some bytes a sample. Values outside of what `others` span are counted.
    ///
    /// # Errors
    /// Where the data cannot be read; NaN and infinity are refused by name of the array and number of the sample.
    pub fn of(data: &Dataset, others: Option<&Survey>) -> Result<Survey, Error> {
        let mut survey = Survey::default();
        let mut reader = data.reader()?;
        for batch in reader.batches(BATCH)? {
            survey.batch(&batch?, data.whole_runs(), others);
        }
        survey.finish();
        Ok(survey)
    }

    fn finish(&mut self) {
        for input in &mut self.inputs {
            input.channels = input.sums.iter().map(Sums::finish).collect();
        }
    }

    /// The input of this name, where it is one of reals.
    pub fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|i| i.name == name)
    }

    /// Number of samples that another dataset has too.
    pub fn shared_with(&self, other: &Survey) -> usize {
        let shared = |digest: &u64| other.digests.contains_key(digest);
        let firsts: HashSet<usize> =
            self.digests.iter().filter(|(digest, _)| shared(digest)).map(|(_, &first)| first).collect();
        // What repeats a sample that is shared is shared as well.
        firsts.len() + self.duplicates.iter().filter(|(_, first)| firsts.contains(first)).count()
    }

    /// At most `most` different samples for which `wanted` is true: those with the least digests, so that the same
    /// samples are taken in whatever order they come.
    pub fn some(&self, most: usize, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut found: Vec<(u64, usize)> = self
            .digests
            .iter()
            .map(|(digest, sample)| (*digest, *sample))
            .filter(|(_, s)| wanted(*s))
            .collect();
        found.sort_unstable();
        found.into_iter().take(most).map(|(_, sample)| sample).collect()
    }

    fn batch(&mut self, batch: &Batch, whole_runs: bool, others: Option<&Survey>) {
        for row in 0..batch.samples {
            let sample = batch.first + row;
            // Keys of this hasher are fixed: the same bytes have the same digest everywhere.
            let mut hasher = DefaultHasher::new();
            let (mut constant, mut judged) = (true, false);
            for (_, tensor) in &batch.inputs {
                let bytes = tensor.view().bytes;
                let length = bytes.len() / batch.samples;
                let own = &bytes[row * length..(row + 1) * length];
                hasher.write(own);
                let size = tensor.dtype().size();
                if own.len() > size {
                    judged = true;
                    constant &= own.chunks_exact(size).all(|element| element == &own[..size]);
                }
            }
            if judged && constant {
                self.constant.push(sample);
            }
            match self.digests.entry(hasher.finish()) {
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(sample);
                }
                std::collections::hash_map::Entry::Occupied(first) => {
                    self.duplicates.push((sample, *first.get()));
                }
            }
            self.samples += 1;
        }
        for (name, tensor) in &batch.inputs {
            if tensor.dtype() == DType::F32 {
                let range = others.and_then(|others| others.input(name)?.histogram.range());
                // Two ways to divide by 255 are no other range.
                let range = range.map(|(lo, hi)| (lo - SLACK * (hi - lo), hi + SLACK * (hi - lo)));
                self.reals(name, tensor, batch.samples, whole_runs, range);
            }
        }
    }

    fn reals(
        &mut self,
        name: &str,
        tensor: &Tensor,
        samples: usize,
        whole_runs: bool,
        range: Option<(f32, f32)>,
    ) {
        let shape = if whole_runs { tensor.shape() } else { &tensor.shape()[1..] };
        let (layout, channels) = layout(shape);
        let place = self.inputs.iter().position(|i| i.name == name).unwrap_or_else(|| {
            self.inputs.push(Input {
                name: name.to_owned(),
                layout,
                channels: Vec::new(),
                histogram: Histogram::default(),
                outside: Vec::new(),
                values: 0,
                sums: vec![Sums::default(); channels],
            });
            self.inputs.len() - 1
        });
        let input = &mut self.inputs[place];
        let values = tensor.slice::<f32>();
        input.histogram.observe(values);
        input.values = values.len() / samples.max(1);
        for sample in values.chunks_exact(input.values.max(1)) {
            if let Some((lo, hi)) = range {
                let count =
                    |beyond: &dyn Fn(f32) -> bool| sample.iter().filter(|&&x| beyond(x)).count() as u32;
                input.outside.push(Outside { below: count(&|x| x < lo), above: count(&|x| x > hi) });
            }
            for (channel, sums) in input.sums.iter_mut().enumerate() {
                sums.sample(channel_of(sample, layout, channels, channel));
            }
        }
    }
}

/// The values of one channel of a sample.
fn channel_of(
    sample: &[f32],
    layout: Layout,
    channels: usize,
    channel: usize,
) -> Box<dyn Iterator<Item = f32> + '_> {
    match layout {
        Layout::ImageChannelsLast => Box::new(sample.iter().copied().skip(channel).step_by(channels)),
        Layout::Image | Layout::Channels | Layout::Flat => {
            let plane = sample.len() / channels;
            Box::new(sample[channel * plane..(channel + 1) * plane].iter().copied())
        }
    }
}

/// What a sample of this shape is, and how many channels it has. A leading axis of one sample is passed over.
pub fn layout(shape: &[usize]) -> (Layout, usize) {
    let colours = |n: usize| matches!(n, 1 | 3 | 4);
    match shape {
        [1, c, h, w] if colours(*c) && *h > 4 && *w > 4 => (Layout::Image, *c),
        [1, h, w, c] if colours(*c) && *h > 4 && *w > 4 => (Layout::ImageChannelsLast, *c),
        [c, h, w] if colours(*c) && *h > 4 && *w > 4 => (Layout::Image, *c),
        [h, w, c] if colours(*c) && *h > 4 && *w > 4 => (Layout::ImageChannelsLast, *c),
        [c, _, _] if *c <= CHANNELS_MAX => (Layout::Channels, *c),
        _ => (Layout::Flat, 1),
    }
}

#[cfg(test)]
impl Survey {
    /// The survey of samples of one input `x`, read `batch` at a time.
    pub(super) fn of_samples(shape: &[usize], samples: &[Vec<f32>], batch: usize) -> Survey {
        Survey::of_samples_beside(shape, samples, batch, None)
    }

    /// The same beside other data.
    pub(super) fn of_samples_beside(
        shape: &[usize],
        samples: &[Vec<f32>],
        batch: usize,
        others: Option<&Survey>,
    ) -> Survey {
        let mut survey = Survey::default();
        for (n, some) in samples.chunks(batch).enumerate() {
            let shape: Vec<usize> = std::iter::once(some.len()).chain(shape.iter().copied()).collect();
            let tensor = Tensor::from_slice(&shape, &some.concat());
            let inputs = vec![("x".to_owned(), tensor)];
            survey.batch(&Batch { first: n * batch, samples: some.len(), inputs }, false, others);
        }
        survey.finish();
        survey
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pictures of `[3, 6, 6]` with a ramp in each channel.
    fn pictures(count: usize) -> Vec<Vec<f32>> {
        let value = |n: usize, i: usize| ((n * 7 + i) % 36) as f32 / 35.0 + (i / 36) as f32;
        (0..count).map(|n| (0..108).map(|i| value(n, i)).collect()).collect()
    }

    #[test]
    fn channels_are_told_apart_and_nothing_depends_on_order_or_batches() {
        let samples = pictures(20);
        let survey = Survey::of_samples(&[3, 6, 6], &samples, 7);
        let input = survey.input("x").unwrap();
        assert_eq!((input.layout, input.channels.len(), survey.samples), (Layout::Image, 3, 20));
        for (c, channel) in input.channels.iter().enumerate() {
            assert!((channel.mean - (0.5 + c as f64)).abs() < 1e-6, "{channel:?}");
            assert_eq!((channel.min, channel.max), (c as f64, c as f64 + 1.0));
        }
        let mut turned = samples.clone();
        turned.reverse();
        let other = Survey::of_samples(&[3, 6, 6], &turned, 3);
        assert_eq!(other.input("x").unwrap().channels, input.channels);
        let values = |survey: &Survey, samples: &[Vec<f32>]| -> Vec<Vec<f32>> {
            let mut some: Vec<_> = survey.some(5, |_| true).into_iter().map(|s| samples[s].clone()).collect();
            some.sort_by(|a, b| a.partial_cmp(b).unwrap());
            some
        };
        assert_eq!(values(&survey, &samples), values(&other, &turned), "the same samples are picked");
    }

    #[test]
    fn blank_and_repeated_samples_are_counted() {
        let mut samples = pictures(6);
        samples[2] = vec![0.25; 108];
        samples[5] = samples[1].clone();
        let survey = Survey::of_samples(&[3, 6, 6], &samples, 4);
        assert_eq!((survey.constant.clone(), survey.duplicates.clone()), (vec![2], vec![(5, 1)]));
        // Samples 0, 1 and 5, which is 1 again: each of them is counted.
        assert_eq!(survey.shared_with(&Survey::of_samples(&[3, 6, 6], &samples[..2], 1)), 3);
    }

    #[test]
    fn a_picture_is_told_by_its_shape() {
        for (shape, want) in [
            (&[3, 32, 32][..], (Layout::Image, 3)),
            (&[1, 3, 32, 32], (Layout::Image, 3)),
            (&[32, 32, 3], (Layout::ImageChannelsLast, 3)),
            (&[8, 5, 5], (Layout::Channels, 8)),
            (&[784], (Layout::Flat, 1)),
            (&[16_000], (Layout::Flat, 1)),
            (&[], (Layout::Flat, 1)),
        ] {
            assert_eq!(layout(shape), want, "{shape:?}");
        }
    }
}
