//! The digest of samples: the same for the same samples in any order, in any file and any batches.

use sha2::{Digest, Sha256};

use super::Tensor;
use super::dataset::{Batch, Dataset};

/// Gathers the digests of samples.
#[derive(Clone, Debug, Default)]
pub struct SampleDigests {
    samples: Vec<[u8; 32]>,
}

impl SampleDigests {
    /// Adds the samples of a batch of `data`, with their labels and slices.
    pub fn add(&mut self, data: &Dataset, batch: &Batch) {
        let of = |sample: usize| {
            let label = data.labels().map(|labels| labels[batch.first + sample]);
            let slice = data.slices().map(|slices| slices[batch.first + sample].as_str());
            (label, slice)
        };
        self.add_run(&batch.inputs, batch.samples, of);
    }

    /// Adds the `count` samples of a run, which lie along the first axis of each input; a whole run is one sample.
    fn add_run<'a>(
        &mut self,
        inputs: &[(String, Tensor)],
        count: usize,
        of: impl Fn(usize) -> (Option<i64>, Option<&'a str>),
    ) {
        for sample in 0..count {
            let mut digest = Sha256::new();
            // Lengths come first, so that nothing can be taken for something else.
            for (name, tensor) in inputs {
                let bytes = tensor.view().bytes;
                let length = bytes.len() / count;
                digest.update((name.len() as u64).to_le_bytes());
                digest.update(name);
                digest.update(tensor.dtype().name());
                digest.update((length as u64).to_le_bytes());
                digest.update(&bytes[sample * length..(sample + 1) * length]);
                for (axis, &dim) in tensor.shape().iter().enumerate() {
                    let dim = if axis == 0 { dim / count } else { dim };
                    digest.update((dim as u64).to_le_bytes());
                }
            }
            match of(sample) {
                (None, None) => {}
                (label, slice) => {
                    digest.update(label.unwrap_or(i64::MIN).to_le_bytes());
                    digest.update(slice.unwrap_or_default());
                }
            }
            self.samples.push(digest.finalize().into());
        }
    }

    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.samples.len() as u64
    }

    /// SHA-256 of the sorted digests of the samples.
    pub fn finish(mut self) -> [u8; 32] {
        self.samples.sort_unstable();
        let mut digest = Sha256::new();
        self.samples.iter().for_each(|sample| digest.update(sample));
        digest.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(batches: &[&[[f32; 2]]]) -> [u8; 32] {
        let mut digests = SampleDigests::default();
        for batch in batches {
            let tensor = Tensor::from_slice(&[batch.len(), 2], batch.as_flattened());
            digests.add_run(&[("x".to_owned(), tensor)], batch.len(), |_| (None, None));
        }
        digests.finish()
    }

    #[test]
    fn order_and_batches_leave_no_trace_and_values_do() {
        let (a, b, c) = ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]);
        let want = digest(&[&[a, b, c]]);
        for same in [&[&[c, a, b][..]][..], &[&[b], &[c, a]], &[&[a], &[b], &[c]]] {
            assert_eq!(digest(same), want, "{same:?}");
        }
        let labelled = |label: i64| {
            let mut digests = SampleDigests::default();
            let tensor = Tensor::from_slice(&[1, 2], &a);
            digests.add_run(&[("x".to_owned(), tensor)], 1, |_| (Some(label), None));
            digests.finish()
        };
        assert_ne!(labelled(0), labelled(1));
        for other in [&[&[a, b][..]][..], &[&[a, b, b]], &[&[a, b, c, c]], &[&[a, b, [5.0, 6.5]]]] {
            assert_ne!(digest(other), want, "{other:?}");
        }
    }
}
