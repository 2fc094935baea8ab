//! Floats to codes and back, elementwise. Knows slices only.

use super::epilogue::Loop;
use super::isa::Isa;
use super::parallel::{parts, split_rows};
use super::{Activation, SHIFT, clamp_f32, round_half_even_small};
use std::ops::Range;

/// Quantizes `x` as ONNX `QuantizeLinear` does, to the bit:
///
/// ```text
/// out = saturate(round_half_even(x / scale) + zero_point)
/// ```
///
/// The quotient is that of a true division. Infinities saturate; what is not a number becomes `zero_point`, the code of 0.
/// Uses up to `threads` threads.
pub fn quantize(isa: Isa, x: &[f32], scale: f32, zero_point: u8, out: &mut [u8], threads: usize) {
    assert_eq!(x.len(), out.len(), "one code an element");
    let parts = parts(threads, x.len() / 4);
    split_rows(out, 0..x.len(), 1, 64, parts, &|range: Range<usize>, out: &mut [u8]| {
        quantize_here(isa, &x[range], None, scale, zero_point, out);
    });
}

/// The same on the calling thread, of what a function makes of `x`.
pub(super) fn quantize_here(
    isa: Isa,
    x: &[f32],
    function: Option<Activation>,
    scale: f32,
    zero_point: u8,
    out: &mut [u8],
) {
    isa.vectorize(
        #[inline(always)]
        || {
            let codes = Quantize { x, scale, zero_point, out };
            match function {
                None => codes.run(|x| x),
                Some(function) => function.choose(codes),
            }
        },
    );
}

/// A loop that quantizes what a function makes of elements.
struct Quantize<'a> {
    x: &'a [f32],
    scale: f32,
    zero_point: u8,
    out: &'a mut [u8],
}

impl Loop for Quantize<'_> {
    #[inline(always)]
    fn run(self, f: impl Fn(f32) -> f32) {
        let Quantize { x, scale, zero_point, out } = self;
        let inverse = inverse_of(scale);
        for (x, out) in x.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
            if inverse.is_none_or(|inverse| !codes_by(x, inverse, zero_point, out, &f)) {
                for (q, &x) in out.iter_mut().zip(x) {
                    *q = code_of(f(x), scale, zero_point, 0, 255);
                }
            }
        }
    }
}

/// Elements that are divided again if one of them may be rounded otherwise than its quotient.
const CHUNK: usize = 128;

/// How near to a tie, seen from the whole number, a product with an inverse may be rounded otherwise than the quotient: they
/// are at most three roundings apart, and no larger than 256 where it matters: 256 · 3 · 2⁻²⁴ = 4.6e-5.
const NEAR_TIE: f32 = 0.5 - 1e-4;

/// The inverse of a scale to multiply with, if neither is at the ends of what floats can be.
fn inverse_of(scale: f32) -> Option<f32> {
    (1e-30..1e30).contains(&scale).then(|| 1.0 / scale)
}

/// The codes of elements by their products with the inverse of the scale, which takes a third of the time of divisions.
/// Whether they are those of the quotients.
#[inline(always)]
fn codes_by(x: &[f32], inverse: f32, zero_point: u8, out: &mut [u8], f: impl Fn(f32) -> f32) -> bool {
    let zero = f32::from(zero_point);
    // Whether a tie goes to an even quotient or to an even code does not matter here.
    let shift = SHIFT + zero;
    let mut farthest = 0;
    for (q, &x) in out.iter_mut().zip(x) {
        let clamped = clamp_f32(f(x) * inverse, 0.0 - zero, 255.0 - zero);
        let shifted = clamped + shift;
        // The bits of floats without a sign are ordered as they are, what is not a number last.
        farthest = (clamped - (shifted - shift)).abs().to_bits().max(farthest);
        *q = shifted.to_bits() as u8;
    }
    f32::from_bits(farthest) < NEAR_TIE
}

/// Dequantizes `q`: `out = (q - zero_point) as f32 * scale`, with up to `threads` threads.
pub fn dequantize(isa: Isa, q: &[u8], scale: f32, zero_point: u8, out: &mut [f32], threads: usize) {
    assert_eq!(q.len(), out.len(), "one element a code");
    let parts = parts(threads, q.len() / 8);
    split_rows(out, 0..q.len(), 1, 64, parts, &|range: Range<usize>, out: &mut [f32]| {
        let q = &q[range];
        isa.vectorize(
            #[inline(always)]
            || {
                for (x, &q) in out.iter_mut().zip(q) {
                    *x = value_of(q, scale, zero_point);
                }
            },
        );
    });
}

/// As [`quantize`], to `u16`.
pub fn quantize_u16(isa: Isa, x: &[f32], scale: f32, zero_point: u16, out: &mut [u16], threads: usize) {
    assert_eq!(x.len(), out.len(), "one code an element");
    let parts = parts(threads, x.len() / 4);
    let zero = f32::from(zero_point);
    split_rows(out, 0..x.len(), 1, 64, parts, &|range: Range<usize>, out: &mut [u16]| {
        let x = &x[range];
        isa.vectorize(
            #[inline(always)]
            || {
                for (q, &x) in out.iter_mut().zip(x) {
                    let scaled = x / scale;
                    let scaled = if scaled.is_nan() { 0.0 } else { scaled };
                    let clamped = clamp_f32(scaled, 0.0 - zero, 65535.0 - zero);
                    *q = (round_half_even_small(clamped) + i32::from(zero_point)) as u16;
                }
            },
        );
    });
}

/// As [`dequantize`], from `u16`.
pub fn dequantize_u16(isa: Isa, q: &[u16], scale: f32, zero_point: u16, out: &mut [f32], threads: usize) {
    assert_eq!(q.len(), out.len(), "one element a code");
    let parts = parts(threads, q.len() / 8);
    split_rows(out, 0..q.len(), 1, 64, parts, &|range: Range<usize>, out: &mut [f32]| {
        let q = &q[range];
        isa.vectorize(
            #[inline(always)]
            || {
                for (x, &q) in out.iter_mut().zip(q) {
                    *x = (i32::from(q) - i32::from(zero_point)) as f32 * scale;
                }
            },
        );
    });
}

/// `clamp(round_half_even(x / scale) + zero_point, lo, hi)`; not-a-number counts as 0.
#[inline(always)]
pub(super) fn code_of(x: f32, scale: f32, zero_point: u8, lo: u8, hi: u8) -> u8 {
    let scaled = x / scale;
    let scaled = if scaled.is_nan() { 0.0 } else { scaled };
    let zero = f32::from(zero_point);
    // Bounds are whole numbers, so clamping first gives what clamping last gives.
    let clamped = clamp_f32(scaled, f32::from(lo) - zero, f32::from(hi) - zero);
    (round_half_even_small(clamped) + i32::from(zero_point)) as u8
}

/// `(q - zero_point) as f32 * scale`.
#[inline(always)]
pub(super) fn value_of(q: u8, scale: f32, zero_point: u8) -> f32 {
    (i32::from(q) - i32::from(zero_point)) as f32 * scale
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::testing::Random;
    use super::*;

    #[test]
    fn quantize_and_dequantize_match_the_reference() {
        let mut random = Random::new(1);
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, 0.5, 1.5, -2.5];
        for (len, scale, zero_point, threads) in
            [(0, 1.0, 0, 1), (1, 0.1, 7, 1), (9, 1.0, 128, 1), (1003, 0.037, 255, 1), (200_000, 0.01, 3, 2)]
        {
            let mut x = random.f32s(len);
            for (x, special) in x.iter_mut().zip(special) {
                *x = special;
            }
            let want: Vec<u8> = x.iter().map(|&x| reference::quantize(x, scale, zero_point)).collect();
            for isa in Isa::available() {
                let (mut q, mut back) = (vec![0; len], vec![0.0; len]);
                quantize(isa, &x, scale, zero_point, &mut q, threads);
                assert_eq!(q, want, "{isa:?} {len}");
                dequantize(isa, &q, scale, zero_point, &mut back, threads);
                let same = |(&q, &v): (&u8, &f32)| v == reference::dequantize(q, scale, zero_point);
                assert!(q.iter().zip(&back).all(same), "{isa:?} {len}");
            }
        }
    }

    /// Quotients at ties, and as near to them as floats can be.
    #[test]
    fn what_is_near_a_tie_is_divided() {
        for scale in [0.1, 0.037, 1.0 / 3.0, 1.0, 7.3, 1e-20, 3e-39, 2e30] {
            for zero_point in [0, 128, 255] {
                let near = |i: i32| {
                    let tie = ((i / 5) as f32 * 0.5 - 140.0) * scale;
                    let apart = [-2i32, -1, 0, 1, 2][i as usize % 5];
                    f32::from_bits((tie.to_bits() as i32 + apart) as u32)
                };
                let x: Vec<f32> = (0..5 * 560).map(near).collect();
                let want: Vec<u8> = x.iter().map(|&x| reference::quantize(x, scale, zero_point)).collect();
                for isa in Isa::available() {
                    let mut q = vec![0; x.len()];
                    quantize(isa, &x, scale, zero_point, &mut q, 1);
                    assert_eq!(q, want, "{isa:?} {scale} {zero_point}");
                }
            }
        }
    }

    #[test]
    fn ties_go_to_even_and_not_a_number_to_the_zero_point() {
        let x = [0.5, 1.5, 2.5, -0.5, -1.5, f32::NAN];
        let mut q = [0; 6];
        quantize(Isa::Scalar, &x, 1.0, 10, &mut q, 1);
        assert_eq!(q, [10, 12, 12, 10, 8, 10]);
    }
}
