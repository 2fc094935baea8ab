//! Rows that have a range of their own: reals to codes row by row, and the sums of a product of such codes back to reals.
//! What a row becomes does not depend on the others. Knows slices only.

use super::Epilogue;
use super::isa::Isa;
use super::parallel::{join, parts, split_rows};
use super::{clamp_f32, round_half_even_small};

/// The least range of a row: one of zeros has no range, and nothing is divided by zero.
pub const RANGE_MIN: f32 = 1e-30;
/// Codes of a row, less one.
pub const STEPS: f32 = 255.0;

/// Codes of the rows of `x`, `[rows, k]`, that cover the range of the row and zero; all in f32, in this order:
///
/// ```text
/// range = max(max(x, 0) − min(x, 0), 1e-30)
/// low[row] = round_half_even(min(x, 0) · (255 / range)),  step[row] = range · (1 / 255)
/// code = clamp(round_half_even(x · (255 / range) − low), 0, 255)
/// ```
///
/// so that `(code + low) · step` is about `x`, and zero is exact. What is not a number has code 0.
pub fn codes(
    isa: Isa,
    x: &[f32],
    k: usize,
    codes: &mut [u8],
    low: &mut [f32],
    step: &mut [f32],
    threads: usize,
) {
    assert_eq!((x.len(), low.len(), step.len()), (codes.len(), x.len() / k.max(1), x.len() / k.max(1)));
    if k == 0 {
        return;
    }
    let parts = parts(threads, x.len()).min(low.len());
    if parts > 1 {
        let rows = low.len() * (parts / 2) / parts;
        let (x, rest) = x.split_at(rows * k);
        let (codes, other) = codes.split_at_mut(rows * k);
        let ((low, lows), (step, steps)) = (low.split_at_mut(rows), step.split_at_mut(rows));
        join(
            || self::codes(isa, x, k, codes, low, step, parts / 2),
            || self::codes(isa, rest, k, other, lows, steps, parts - parts / 2),
        );
        return;
    }
    isa.vectorize(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(k).zip(codes.chunks_exact_mut(k));
            for ((x, codes), (low, step)) in rows.zip(low.iter_mut().zip(step)) {
                let (lo, hi) = range(x);
                let width = hi - lo;
                let width = if width > RANGE_MIN { width } else { RANGE_MIN };
                let inverse = STEPS / width;
                let least = round_half_even_small(lo * inverse) as f32;
                for (code, &x) in codes.iter_mut().zip(x) {
                    #[expect(clippy::manual_clamp, reason = "not-a-number becomes 0, which clamp would keep")]
                    let at = (x * inverse - least).max(0.0).min(STEPS);
                    *code = round_half_even_small(at) as u8;
                }
                (*low, *step) = (least, width * (1.0 / STEPS));
            }
        },
    );
}

/// Least and largest of the values and zero.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut lo, mut hi) = ([0f32; LANES], [0f32; LANES]);
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for ((lo, hi), &x) in lo.iter_mut().zip(&mut hi).zip(x) {
            *lo = if x < *lo { x } else { *lo };
            *hi = if x > *hi { x } else { *hi };
        }
    }
    for &x in rest {
        lo[0] = if x < lo[0] { x } else { lo[0] };
        hi[0] = if x > hi[0] { x } else { hi[0] };
    }
    // Halves against halves: sixteen comparisons one after another would take as long as a row.
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lo[i] = if lo[i + half] < lo[i] { lo[i + half] } else { lo[i] };
            hi[i] = if hi[i + half] > hi[i] { hi[i + half] } else { hi[i] };
        }
        half /= 2;
    }
    (lo[0], hi[0])
}

/// How sums become reals: `((sum + low[row] · sums[n]) · scale[n]) · step[row]` in f32, then an [`Epilogue`].
#[derive(Clone, Copy, Debug)]
pub struct ByRow<'a> {
    /// `[rows]`, from [`codes`].
    pub low: &'a [f32],
    /// `[rows]`, from [`codes`].
    pub step: &'a [f32],
    /// `[channels]`: the sum of the weight codes.
    pub sums: &'a [f32],
    /// `[channels]`: the scale of the weights.
    pub scale: &'a [f32],
    /// What follows.
    pub then: Epilogue<'a>,
}

/// Makes reals of `out`, `[rows, channels]`, which holds the bits of `i32` sums.
pub fn reals(isa: Isa, out: &mut [f32], by_row: &ByRow<'_>, threads: usize) {
    let (rows, channels) = (by_row.low.len(), by_row.scale.len());
    assert_eq!((out.len(), by_row.step.len(), by_row.sums.len()), (rows * channels, rows, channels));
    if out.is_empty() {
        return;
    }
    let parts = parts(threads, out.len() / 4);
    split_rows(out, 0..rows, channels, 1, parts, &|rows, out: &mut [f32]| {
        isa.vectorize(
            #[inline(always)]
            || {
                for (row, y) in rows.zip(out.chunks_exact_mut(channels)) {
                    finish(by_row, row, y);
                }
            },
        );
    });
}

#[inline(always)]
fn finish(by_row: &ByRow<'_>, row: usize, y: &mut [f32]) {
    let (low, step, channels) = (by_row.low[row], by_row.step[row], y.len());
    for ((y, sums), scale) in y.iter_mut().zip(by_row.sums).zip(by_row.scale) {
        *y = ((y.to_bits().cast_signed() as f32 + low * sums) * scale) * step;
    }
    let Epilogue { bias, activation, residual, lo, hi } = by_row.then;
    if let Some(bias) = bias {
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
    if let Some(activation) = activation {
        activation.apply(y);
    }
    if let Some(residual) = residual {
        y.iter_mut().zip(&residual[row * channels..][..channels]).for_each(|(y, r)| *y += r);
    }
    if (lo, hi) != (f32::NEG_INFINITY, f32::INFINITY) {
        y.iter_mut().for_each(|y| *y = clamp_f32(*y, lo, hi));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    #[test]
    fn a_row_uses_all_codes_whatever_the_others_hold() {
        let x = [0.0f32, 1.0, 2.0, -1.0, 0.0, 1.0, 5.0, 6.0, 7.0, 0.0, 0.0, 0.0];
        for isa in Isa::available() {
            let (mut got, mut low, mut step) = ([0u8; 12], [0f32; 4], [0f32; 4]);
            codes(isa, &x, 3, &mut got, &mut low, &mut step, 1);
            // −127.5 is rounded to even.
            assert_eq!(got, [0, 128, 255, 0, 128, 255, 182, 219, 255, 0, 0, 0], "{isa:?}");
            assert_eq!(low, [0.0, -128.0, 0.0, 0.0], "{isa:?}");
            assert_eq!(step[2], 7.0 * (1.0 / 255.0), "{isa:?}");
        }
    }

    #[test]
    fn codes_stand_for_their_row_to_half_a_step() {
        let mut random = Random::new(3);
        for k in [1, 7, 16, 33, 300] {
            let x: Vec<f32> = (0..5 * k).map(|_| (random.next() as i32 % 2000) as f32 * 1e-3).collect();
            let mut first: Option<(Vec<u8>, Vec<f32>, Vec<f32>)> = None;
            for isa in Isa::available() {
                let (mut q, mut low, mut step) = (vec![0u8; 5 * k], vec![0f32; 5], vec![0f32; 5]);
                codes(isa, &x, k, &mut q, &mut low, &mut step, 3);
                for (i, (&q, &x)) in q.iter().zip(&x).enumerate() {
                    let back = (f32::from(q) + low[i / k]) * step[i / k];
                    // The row's ends lie up to half a step outside where `low` was rounded.
                    assert!((back - x).abs() <= 1.001 * step[i / k], "{isa:?} {k} {i}: {x} became {back}");
                }
                let all = (q, low, step);
                assert_eq!(first.get_or_insert_with(|| all.clone()), &all, "{isa:?} {k}");
            }
        }
    }

    #[test]
    fn sums_become_reals_by_row_and_channel() {
        let sums = [100i32, -50, 0, 7];
        let then = Epilogue { bias: Some(&[1.0, -1.0]), ..Epilogue::NONE };
        let by_row =
            ByRow { low: &[-2.0, 0.0], step: &[0.5, 4.0], sums: &[10.0, 5.0], scale: &[0.25, 2.0], then };
        for isa in Isa::available() {
            let mut out: Vec<f32> = sums.iter().map(|&s| f32::from_bits(s.cast_unsigned())).collect();
            reals(isa, &mut out, &by_row, 1);
            assert_eq!(out, [11.0, -61.0, 1.0, 55.0], "{isa:?}");
        }
    }
}
