//! How far requests lie outside of what calibration saw: the share of values beyond the calibrated range, by input.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::quant::statistics::Statistics;
use crate::engine::tensor::{DType, Tensor};
use crate::service::infer::{Inputs, Port};

/// Most values of an input that one request is judged by: enough for a share, and never seen beside a run.
const LOOKED_AT: usize = 4096;
/// The recent figure is over one to two times so many requests.
const TURN: u64 = 512;

/// The inputs of one version against their calibrated ranges.
pub struct Drift {
    inputs: Vec<Input>,
}

struct Input {
    name: String,
    // Least and largest value of the calibration data; `None` where nothing is known.
    range: Option<(f32, f32)>,
    // Where the next request is looked at first, so that no part of an input is always left out.
    offset: AtomicUsize,
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    before: Share,
    now: Share,
    requests: u64,
}

#[derive(Clone, Copy, Default)]
struct Share {
    values: u64,
    outside: u64,
}

impl Drift {
    /// Inputs in the order of the model; those that are in the statistics are watched.
    #[must_use]
    pub fn new(ports: &[Port], statistics: &Statistics) -> Drift {
        let input = |port: &Port| Input {
            name: port.name.clone(),
            range: statistics
                .values
                .get(&port.name)
                .and_then(|observed| observed.histogram.range())
                .map(wider),
            offset: AtomicUsize::new(0),
            counts: Mutex::default(),
        };
        Drift { inputs: ports.iter().map(input).collect() }
    }

    /// Looks at the inputs of a request, in the order of the model.
    pub fn look(&self, inputs: &Inputs) {
        for (watched, (_, tensor)) in self.inputs.iter().zip(inputs) {
            if let (Some(range), DType::F32) = (watched.range, tensor.dtype()) {
                watched.look(range, tensor);
            }
        }
    }

    /// The share of recent values outside of the range, by input; `None` before the first.
    pub fn shares(&self) -> impl Iterator<Item = (&str, Option<f64>)> {
        self.inputs
            .iter()
            .filter(|input| input.range.is_some())
            .map(|input| (input.name.as_str(), input.share()))
    }
}

/// A range and half a code of eight bits at either end: what lies there becomes the code at the end, as the end itself does,
/// and a number in JSON with a few digits less than calibration saw is no drift.
fn wider((low, high): (f32, f32)) -> (f32, f32) {
    let half = (high - low) / 510.0;
    (low - half, high + half)
}

impl Input {
    fn look(&self, (low, high): (f32, f32), tensor: &Tensor) {
        let values = tensor.slice::<f32>();
        let length = values.len().min(LOOKED_AT);
        let from = self.offset.fetch_add(length, Ordering::Relaxed) % values.len().max(1);
        let looked = values[from..].iter().chain(values).take(length);
        // NaN is outside, too.
        let outside = looked.filter(|&&x| !(x >= low && x <= high)).count() as u64;
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        counts.now.values += length as u64;
        counts.now.outside += outside;
        counts.requests += 1;
        if counts.requests.is_multiple_of(TURN) {
            counts.before = counts.now;
            counts.now = Share::default();
        }
    }

    fn share(&self) -> Option<f64> {
        let counts = *self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let values = counts.before.values + counts.now.values;
        let outside = counts.before.outside + counts.now.outside;
        (values > 0).then(|| outside as f64 / values as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digit_less_is_no_drift() {
        let (low, high) = wider((-0.810_198_37, 2.022_5));
        assert!(low < -0.8102 && high > 2.0225 && low > -0.82 && high < 2.03);
    }

    fn input(range: (f32, f32)) -> Input {
        Input {
            name: "x".to_owned(),
            range: Some(range),
            offset: AtomicUsize::new(0),
            counts: Mutex::default(),
        }
    }

    #[test]
    fn what_lies_outside_is_counted() {
        let watched = input((0.0, 1.0));
        assert_eq!(watched.share(), None);
        watched.look((0.0, 1.0), &Tensor::from_slice(&[4], &[0.0f32, 1.0, 1.5, f32::NAN]));
        assert_eq!(watched.share(), Some(0.5));
    }

    #[test]
    fn a_large_input_is_seen_in_all_its_parts() {
        let watched = input((0.0, 1.0));
        // Only the last tenth is outside.
        let values: Vec<f32> = (0..50_000).map(|n| if n < 45_000 { 0.5 } else { 2.0 }).collect();
        let tensor = Tensor::from_slice(&[values.len()], &values);
        (0..200).for_each(|_| watched.look((0.0, 1.0), &tensor));
        let share = watched.share().unwrap();
        assert!((share - 0.1).abs() < 0.01, "{share}");
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let watched = input((0.0, 1.0));
        let look = |value: f32| {
            (0..TURN).for_each(|_| watched.look((0.0, 1.0), &Tensor::from_slice(&[1], &[value])));
        };
        look(2.0);
        assert_eq!(watched.share(), Some(1.0));
        look(0.5);
        look(0.5);
        assert_eq!(watched.share(), Some(0.0));
    }
}
