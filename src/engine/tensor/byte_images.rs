//! Images as bytes, and the reals that their bytes stand for.

use super::{DType, Tensor};

/// What the bytes of an image stand for: `(byte / 255 − mean) / std`, in f32 and in this order, as numpy computes it. The
/// channel is the first dimension of a sample.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    /// One value, or one for each channel.
    mean: Vec<f32>,
    /// The same.
    std: Vec<f32>,
    /// The real of each byte, for each channel; none where channels are so short that a table would be longer than they.
    tables: Vec<[f32; 256]>,
}

impl Scale {
    /// Of samples of `shape`.
    pub(super) fn new(mean: Vec<f32>, std: Vec<f32>, shape: &[usize]) -> Scale {
        let mut scale = Scale { mean, std, tables: Vec::new() };
        // A sample of a million channels of one byte would have tables of a GiB.
        if scale.channels() == 1 || scale.plane(shape) >= 256 {
            let table = |channel| std::array::from_fn(|byte| scale.real(channel, byte as u8));
            scale.tables = (0..scale.channels()).map(table).collect();
        }
        scale
    }

    /// Channels that are not scaled alike.
    fn channels(&self) -> usize {
        self.mean.len().max(self.std.len())
    }

    /// Values of a channel one after the other; of a sample where all channels are scaled alike.
    fn plane(&self, shape: &[usize]) -> usize {
        shape[usize::from(self.channels() > 1)..].iter().product()
    }

    fn real(&self, channel: usize, byte: u8) -> f32 {
        let at = |values: &[f32]| values[channel % values.len()];
        (f32::from(byte) / 255.0 - at(&self.mean)) / at(&self.std)
    }

    /// Bytes `[samples, elements]` of samples of `shape` to reals.
    pub(super) fn reals(&self, stored: &Tensor, shape: &[usize]) -> Tensor {
        let mut tensor = Tensor::zeros(DType::F32, stored.shape());
        let plane = self.plane(shape).max(1);
        let planes = stored.slice::<u8>().chunks_exact(plane);
        for (n, (from, to)) in planes.zip(tensor.slice_mut::<f32>().chunks_exact_mut(plane)).enumerate() {
            let channel = n % self.channels();
            match self.tables.get(channel) {
                Some(table) => from.iter().zip(to).for_each(|(x, y)| *y = table[usize::from(*x)]),
                None => from.iter().zip(to).for_each(|(x, y)| *y = self.real(channel, *x)),
            }
        }
        tensor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They had a table of 1 KiB each: a file of some KiB made a GiB of them.
    #[test]
    fn short_channels_have_no_tables() {
        for (plane, tables) in [(1, 0), (255, 0), (256, 3), (300, 3)] {
            let shape = [3, plane];
            let (mean, std) = (vec![0.5, 0.0, 0.25], vec![0.5, 2.0, 0.1]);
            let scale = Scale::new(mean.clone(), std.clone(), &shape);
            assert_eq!(scale.tables.len(), tables, "{plane}");
            let bytes: Vec<u8> = (0..6 * plane).map(|i| (i * 7) as u8).collect();
            let reals = scale.reals(&Tensor::from_slice(&[2, 3 * plane], &bytes), &shape);
            let want: Vec<f32> = bytes
                .iter()
                .enumerate()
                .map(|(i, &x)| {
                    let channel = i / plane % 3;
                    (f32::from(x) / 255.0 - mean[channel]) / std[channel]
                })
                .collect();
            assert_eq!(reals.slice::<f32>(), want, "{plane}");
        }
        // One value for all channels is one table, however long they are.
        assert_eq!(Scale::new(vec![0.5], vec![0.5], &[3, 1]).tables.len(), 1);
    }
}
