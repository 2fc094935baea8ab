//! A few samples of a dataset that stay in memory, the same ones in the same order however the dataset is ordered: what
//! is computed from them is the same to the byte.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::engine::quant::calibrate::{Error, OnSamples};
use crate::engine::tensor::Tensor;
use crate::engine::tensor::dataset::Dataset;

/// One batch in so many is kept to judge by.
const JUDGED: usize = 4;

/// Inputs of one run, by name.
pub type Feeds = Vec<(String, Tensor)>;

/// Some samples of a dataset, in the order of their digests.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Batches of equal length, but for the last one.
    pub batches: Vec<Feeds>,
    /// Number of samples in all batches; a whole run or a batch of fixed length counts as one.
    pub count: usize,
}

/// Whether a batch is one to judge by: each fourth, or the last of a few. What is found on the others is kept where it is good
/// on these.
pub fn is_judged(batch: usize, batches: usize) -> bool {
    batch % JUDGED == JUDGED - 1 || (batches > 1 && batches < JUDGED && batch == batches - 1)
}

/// Takes the `count_max` samples whose digests are the least, at most about `bytes_max`, in batches of `batch`.
///
/// # Errors
/// Where the data cannot be read, or the caller wants to stop.
pub fn select(
    data: &Dataset,
    count_max: usize,
    bytes_max: usize,
    batch: usize,
    on_samples: OnSamples<'_>,
) -> Result<Samples, Error> {
    let mut kept: BTreeMap<([u8; 32], usize), Feeds> = BTreeMap::new();
    let mut count_max = count_max.max(1);
    let mut reader = data.reader()?;
    for (place, unit) in reader.batches(1)?.enumerate() {
        let unit = unit?;
        let bytes: usize = unit.inputs.iter().map(|(_, tensor)| tensor.view().bytes.len()).sum();
        count_max = count_max.min((bytes_max / bytes.max(1)).max(1));
        let digest = digest_of(&unit.inputs);
        // Equal samples are told apart by their place: whichever of them is taken, it is the same sample.
        kept.insert((digest, place), unit.inputs);
        while kept.len() > count_max {
            kept.pop_last();
        }
        if !on_samples(unit.first + unit.samples) {
            return Err(Error::Cancelled);
        }
    }
    let count = kept.len();
    let units: Vec<Feeds> = kept.into_values().collect();
    let batch = if data.any_batch() { batch.max(1) } else { 1 };
    let batches = units.chunks(batch).map(stack).collect();
    Ok(Samples { batches, count })
}

fn digest_of(inputs: &Feeds) -> [u8; 32] {
    let mut digest = Sha256::new();
    for (name, tensor) in inputs {
        digest.update(name.as_bytes());
        for &length in tensor.shape() {
            digest.update((length as u64).to_le_bytes());
        }
        digest.update(tensor.view().bytes);
    }
    digest.finalize().into()
}

/// Samples `[1, …]` one after the other: `[n, …]`.
fn stack(units: &[Feeds]) -> Feeds {
    let [first, rest @ ..] = units else { return Feeds::new() };
    if rest.is_empty() {
        return first.clone();
    }
    let join = |(index, (name, tensor)): (usize, &(String, Tensor))| {
        let mut shape = tensor.shape().to_vec();
        shape[0] = units.len();
        let bytes: Vec<u8> = units.iter().flat_map(|unit| unit[index].1.view().bytes.to_vec()).collect();
        let joined = Tensor::from_bytes(tensor.dtype(), &shape, &bytes);
        (name.clone(), joined.expect("samples of a dataset have one shape"))
    };
    first.iter().enumerate().map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tensor::dataset::tests::samples_of;

    fn dataset(rows: &[[f32; 2]]) -> (tempfile::NamedTempFile, Dataset) {
        samples_of(&Tensor::from_slice(&[rows.len(), 2], rows.as_flattened()), &[None, Some(2)])
    }

    #[test]
    fn any_order_gives_the_same_samples_in_the_same_order() {
        let rows: Vec<[f32; 2]> = (0..20).map(|i| [(i % 7) as f32, (i * i) as f32]).collect();
        let mut shuffled = rows.clone();
        shuffled.rotate_left(11);
        shuffled.swap(3, 9);
        let take = |rows: &[[f32; 2]], count| {
            let (_file, data) = dataset(rows);
            select(&data, count, usize::MAX, 4, &mut |_| true).unwrap()
        };
        for count in [1, 6, 20, 99] {
            let (a, b) = (take(&rows, count), take(&shuffled, count));
            assert_eq!((a.count, a.batches.len()), (count.min(20), count.min(20).div_ceil(4)));
            for (a, b) in a.batches.iter().zip(&b.batches) {
                assert_eq!(a[0].1.slice::<f32>(), b[0].1.slice::<f32>(), "{count}");
            }
        }
    }

    #[test]
    fn samples_take_no_more_memory_than_they_may() {
        let rows = [[1.0, 2.0]; 9];
        let (_file, data) = dataset(&rows);
        assert_eq!(select(&data, 9, 33, 4, &mut |_| true).unwrap().count, 4);
        assert_eq!(select(&data, 9, 1, 4, &mut |_| true).unwrap().count, 1);
        assert!(matches!(select(&data, 9, 1, 4, &mut |_| false), Err(Error::Cancelled)));
    }
}
