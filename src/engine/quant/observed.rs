//! What calibration keeps of a value: its histogram and the extremes of its samples. Knows nothing of graphs.

use crate::engine::quant::extremes::{self, Extremes};
use crate::engine::quant::histogram::Histogram;
use crate::engine::tensor::TensorView;

/// Where the samples of a run lie in a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Samples {
    /// The whole value belongs to one sample.
    One,
    /// This many samples follow each other along an axis, all of the same length.
    Along {
        /// The axis.
        axis: usize,
        /// Number of samples.
        count: usize,
    },
    /// Nobody can tell.
    Mixed,
}

/// All that is known of a value after calibration. Depends on the samples only, not on their order or on batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Counts of all values.
    pub histogram: Histogram,
    /// Least and largest value of each sample.
    pub extremes: Extremes,
}

impl Observed {
    /// Adds the values of a run; `tensor` holds f32. Gives the least and the largest finite value of each sample, `None`
    /// for one without; nothing where nobody can tell samples apart.
    pub fn observe(&mut self, tensor: TensorView<'_>, samples: Samples) -> Vec<Option<(f32, f32)>> {
        let values = tensor.slice::<f32>();
        self.histogram.observe(values);
        let pieces = match samples {
            Samples::One => Some((values.len(), 1)),
            Samples::Along { axis, count } => {
                stretch(tensor.shape, axis, count).map(|length| (length, count))
            }
            Samples::Mixed => None,
        };
        let Some((length, count)) = pieces else {
            self.extremes.mixed |= !values.is_empty();
            return Vec::new();
        };
        // A stretch of the inner dimensions for each index of the outer ones belongs to one sample.
        let of_sample = |sample: usize| {
            extremes::of_finite(values.chunks_exact(length.max(1)).skip(sample).step_by(count))
        };
        let ranges: Vec<_> = (0..count).map(of_sample).collect();
        ranges.iter().flatten().for_each(|&range| self.extremes.add(range));
        ranges
    }

    /// Adds what another has seen.
    pub fn merge(&mut self, other: &Observed) {
        self.histogram.merge(&other.histogram);
        self.extremes.merge(&other.extremes);
    }
}

/// Number of contiguous elements of a sample; `None` where the samples do not divide the axis, or nothing is there.
fn stretch(shape: &[usize], axis: usize, count: usize) -> Option<usize> {
    let along = shape.get(axis)?;
    let inner: usize = shape[axis + 1..].iter().product();
    let whole = count > 0 && along % count == 0;
    Some(along / count.max(1) * inner).filter(|&n| whole && n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tensor::Tensor;

    #[test]
    fn samples_are_told_apart_along_any_axis() {
        // [2, 4, 1]: rows 0..4 and 10..14.
        let tensor = Tensor::from_slice(&[2, 4, 1], &[0.0f32, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
        for (samples, want) in [
            (Samples::One, Some((0.0, 13.0))),
            (Samples::Along { axis: 0, count: 1 }, Some((0.0, 13.0))),
            (Samples::Along { axis: 0, count: 2 }, Some((5.0, 8.0))),
            // Columns 0 and 1 against 2 and 3.
            (Samples::Along { axis: 1, count: 2 }, Some((1.0, 12.0))),
            (Samples::Along { axis: 1, count: 4 }, Some((1.5, 11.5))),
            (Samples::Along { axis: 1, count: 3 }, None),
            (Samples::Along { axis: 3, count: 1 }, None),
            (Samples::Along { axis: 0, count: 0 }, None),
            (Samples::Mixed, None),
        ] {
            let mut observed = Observed::default();
            observed.observe(tensor.view(), samples);
            assert_eq!(observed.extremes.means(), want, "{samples:?}");
            assert_eq!(observed.histogram.count(), 8);
        }
    }
}
