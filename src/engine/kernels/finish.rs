//! Accumulators in memory to codes or reals, for products whose right operand has a zero point of its own: what its
//! kernel cannot do in registers, because the correction is another one in every row. Knows slices only.
//!
//! ```text
//! Σ (a − za)(b − zb) = Σ a·b − za·Σ b − zb·Σ a + depth·za·zb
//! ```
//!
//! The terms without `Σ a` are one number a channel: the bias.

use super::isa::Isa;
use super::rows::Rows;
use super::{IntOutput, Requant};

/// The part of the correction that is another one in every row.
#[derive(Clone, Copy, Debug)]
pub struct RowSums<'a> {
    /// `Σ a` of each row, or, where `by_channel`, of each element.
    pub sums: &'a [i32],
    /// Whether every channel has sums of its own, as in a depthwise convolution.
    pub by_channel: bool,
    /// `[channels]`: zero point of the right operand.
    pub zero_points: &'a [i32],
}

impl RowSums<'_> {
    #[inline(always)]
    fn correction(&self, row: usize, n: usize) -> i32 {
        let at = if self.by_channel { row * self.zero_points.len() + n } else { row };
        self.sums[at].wrapping_mul(self.zero_points[n])
    }
}

/// Finishes `acc`, `[rows, channels]`, which have no bias in them, into `out` of that shape.
pub fn finish(isa: Isa, acc: &[i32], rows: RowSums, out: &mut IntOutput) {
    let channels = rows.zero_points.len();
    assert_eq!(acc.len(), out.len(), "one result an accumulator");
    out.assert_channels(channels);
    if acc.is_empty() {
        return;
    }
    isa.vectorize(|| match out {
        IntOutput::U8(out, requant) => {
            let requant: &Requant = requant;
            each_row(acc, channels, out, |row, n, acc| {
                requant.code(acc.wrapping_sub(rows.correction(row, n)), n)
            });
        }
        IntOutput::F32(out, dequant) => each_row(acc, channels, out, |row, n, acc| {
            dequant.value(acc.wrapping_sub(rows.correction(row, n)), n)
        }),
        IntOutput::I32(out, bias) => each_row(acc, channels, out, |row, n, acc| {
            acc.wrapping_sub(rows.correction(row, n)).wrapping_add(bias[n])
        }),
    });
    let starts = (0..acc.len() / channels).map(|row| row * channels);
    Rows { starts, stride: channels, channels: 0..channels, summed: false }.complete(isa, out);
}

#[inline(always)]
fn each_row<T>(acc: &[i32], channels: usize, out: &mut [T], f: impl Fn(usize, usize, i32) -> T) {
    for (row, (out, acc)) in out.chunks_exact_mut(channels).zip(acc.chunks_exact(channels)).enumerate() {
        for (n, (y, &acc)) in out.iter_mut().zip(acc).enumerate() {
            *y = f(row, n, acc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::super::{Dequant, reference};
    use super::*;

    #[test]
    fn a_corrected_sum_is_that_of_the_reference() {
        let mut random = Random::new(5);
        for (rows, channels, by_channel) in [(0, 3, false), (1, 1, false), (5, 37, false), (9, 16, true)] {
            let acc: Vec<i32> = (0..rows * channels).map(|_| random.next() as i32 % 90_000).collect();
            let zero_points: Vec<i32> = (0..channels).map(|_| random.next() as i32 % 128).collect();
            let count = if by_channel { rows * channels } else { rows };
            let sums: Vec<i32> = (0..count).map(|_| random.next() as i32 % 5_000).collect();
            let row_sums = RowSums { sums: &sums, by_channel, zero_points: &zero_points };
            let bias: Vec<i32> = (0..channels).map(|_| random.next() as i32 % 700).collect();
            let factor: Vec<f32> = (0..channels).map(|n| 1e-4 * (n + 1) as f32).collect();
            let corrected: Vec<i32> = (0..rows * channels)
                .map(|i| {
                    let sum = sums[if by_channel { i } else { i / channels }];
                    acc[i] - sum * zero_points[i % channels]
                })
                .collect();
            let table: [u8; 256] = random.u8s(256).try_into().expect("256 codes");
            for isa in Isa::available() {
                let requant = Requant {
                    bias: &bias,
                    multiplier: &factor,
                    zero_point: 7,
                    lo: 2,
                    hi: 250,
                    table: Some(&table),
                    sum: None,
                };
                let mut codes = vec![0; acc.len()];
                finish(isa, &acc, row_sums, &mut IntOutput::U8(&mut codes, &requant));
                assert_eq!(codes, reference::requantize(&corrected, &requant), "{isa:?}");
                let dequant = Dequant { bias: &bias, scale: &factor, then: None };
                let mut reals = vec![0.0; acc.len()];
                finish(isa, &acc, row_sums, &mut IntOutput::F32(&mut reals, &dequant));
                assert_eq!(reals, reference::dequantize_sums(&corrected, &dequant), "{isa:?}");
                let mut plain = vec![0; acc.len()];
                finish(isa, &acc, row_sums, &mut IntOutput::I32(&mut plain, &bias));
                let want: Vec<i32> =
                    corrected.iter().enumerate().map(|(i, acc)| acc + bias[i % channels]).collect();
                assert_eq!(plain, want, "{isa:?}");
            }
        }
    }
}
