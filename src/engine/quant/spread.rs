//! How unlike the channels of a value or of a weight tensor are: one scale for all of them leaves the small ones few codes.

use serde::Serialize;

use crate::engine::kernels::isa::Isa;
use crate::engine::quant::noise;

/// Most channels that are told apart.
const CHANNELS_MAX: usize = 8192;

/// Size of each channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Channels {
    /// Largest magnitude of each.
    largest: Vec<f32>,
    /// Sum of squares of each.
    squares: Vec<f64>,
    /// Values of each.
    count: u64,
}

/// How unlike channels are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Number of channels.
    pub channels: usize,
    /// The channel with the largest magnitude.
    pub largest: usize,
    /// Its magnitude over that of the median channel; channels of zeros do not count.
    pub ratio: f64,
}

impl Channels {
    /// Notes values whose axis of channels has `channels` entries, each of them followed by `inner` values.
    pub fn observe(&mut self, values: &[f32], channels: usize, inner: usize) {
        if channels == 0 || channels > CHANNELS_MAX || inner == 0 {
            return;
        }
        if self.largest.len() != channels {
            *self = Channels { largest: vec![0.0; channels], squares: vec![0.0; channels], count: 0 };
        }
        Isa::best().vectorize(
            #[inline(always)]
            || match inner {
                1 => values.chunks_exact(channels).for_each(|row| self.observe_row(row)),
                _ => {
                    for (n, run) in values.chunks_exact(inner).enumerate() {
                        self.observe_run(n % channels, run);
                    }
                }
            },
        );
        self.count += (values.len() / channels) as u64;
    }

    /// Notes a value of each channel.
    #[inline(always)]
    fn observe_row(&mut self, row: &[f32]) {
        for ((most, squares), &x) in self.largest.iter_mut().zip(&mut self.squares).zip(row) {
            *most = most.max(x.abs());
            *squares += f64::from(x) * f64::from(x);
        }
    }

    /// Notes values of one channel, with sums in lanes: in an order of their own on every machine.
    #[inline(always)]
    fn observe_run(&mut self, channel: usize, run: &[f32]) {
        const LANES: usize = 8;
        let (mut most, mut squares) = ([0f32; LANES], [0f64; LANES]);
        let mut see = |lane: usize, x: f32| {
            most[lane] = most[lane].max(x.abs());
            squares[lane] += f64::from(x) * f64::from(x);
        };
        let (blocks, rest) = run.as_chunks::<LANES>();
        for block in blocks {
            block.iter().enumerate().for_each(|(lane, &x)| see(lane, x));
        }
        rest.iter().enumerate().for_each(|(lane, &x)| see(lane, x));
        self.largest[channel] = most.into_iter().fold(self.largest[channel], f32::max);
        self.squares[channel] += squares.iter().sum::<f64>();
    }

    /// Adds what another has noted of other values.
    pub fn merge(&mut self, other: Channels) {
        if self.largest.len() != other.largest.len() {
            *self = other;
            return;
        }
        self.largest.iter_mut().zip(other.largest).for_each(|(most, x)| *most = most.max(x));
        self.squares.iter_mut().zip(other.squares).for_each(|(sum, x)| *sum += x);
        self.count += other.count;
    }

    /// How unlike the channels are; `None` where fewer than three hold anything.
    pub fn spread(&self) -> Option<Spread> {
        let mut sizes: Vec<f32> = self.largest.iter().copied().filter(|x| *x > 0.0).collect();
        sizes.sort_by(f32::total_cmp);
        let median = *sizes.get(sizes.len() / 2).filter(|_| sizes.len() >= 3)?;
        let largest = (0..self.largest.len()).max_by(|&a, &b| self.largest[a].total_cmp(&self.largest[b]))?;
        let ratio = f64::from(self.largest[largest]) / f64::from(median);
        Some(Spread { channels: self.largest.len(), largest, ratio })
    }

    /// The largest magnitude of all.
    pub fn most(&self) -> f64 {
        f64::from(self.largest.iter().copied().fold(0f32, f32::max))
    }

    /// Signal to noise of the median channel in codes of one width, in dB; channels of zeros do not count.
    ///
    /// The error of a code is `width² / 12`, and never more than the value: what is too small becomes zero.
    pub fn median_db(&self, width: f64) -> Option<f64> {
        let channel = |squares: &f64| {
            let square = squares / self.count.max(1) as f64;
            noise::db(square, (width * width / 12.0).min(square))
        };
        let mut found: Vec<f64> = self.squares.iter().filter_map(channel).collect();
        found.sort_by(f64::total_cmp);
        (width > 0.0).then(|| found.get(found.len() / 2).copied()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_channel_that_stands_out_is_named() {
        let mut channels = Channels::default();
        channels.observe(&[1.0, -1.0, 0.5, 2.0, 0.0, 0.0, -3000.0, 100.0], 4, 2);
        channels.observe(&[1.0, -1.0, 0.5, 3.0, 0.0, 0.0, 30.0, 100.0], 4, 2);
        assert_eq!(channels.spread(), Some(Spread { channels: 4, largest: 3, ratio: 1000.0 }));
        // Codes 24 wide: the first two channels become zero, the third is zero.
        assert_eq!(channels.median_db(24.0), Some(0.0));
        assert_eq!(Channels::default().spread(), None);
        assert_eq!(Channels::default().median_db(1.0), None);
    }
}
