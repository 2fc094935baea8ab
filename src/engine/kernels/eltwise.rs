//! Elementwise kernels on codes: addition, multiplication and functions of one code. Knows slices only.
//!
//! A sum or product gives exactly what ONNX gives unfused, in `f32` and in this order of operations:
//!
//! ```text
//! x = (a - a_zero_point) * a_scale  op  (b - b_zero_point) * b_scale
//! y = clamp(round_half_even(x / y_scale) + y_zero_point, lo, hi)
//! ```

use super::isa::Isa;
use super::parallel::{parts, split_rows};
use super::requant::{code_of, value_of};
use super::{Sum, SumScales};
use std::ops::Range;

/// Codes of `a + b`, all `[len]`, with up to `threads` threads.
#[expect(clippy::too_many_arguments, reason = "three tensors, each with its quantization")]
pub fn qadd(
    isa: Isa,
    a: &[u8],
    a_scale: f32,
    a_zero_point: u8,
    b: &[u8],
    b_scale: f32,
    b_zero_point: u8,
    y_scale: f32,
    y_zero_point: u8,
    lo: u8,
    hi: u8,
    out: &mut [u8],
    threads: usize,
) {
    let (a_side, b_side) = (Side(a, a_scale, a_zero_point), Side(b, b_scale, b_zero_point));
    same_shape(isa, a_side, b_side, move |a, b| code_of(a + b, y_scale, y_zero_point, lo, hi), out, threads);
}

/// `y[i]` becomes the code of its sum with `other[i]`.
pub(super) fn add_in_place(isa: Isa, y: &mut [u8], other: &[u8], sum: &Sum) {
    if let Some(form) = sum.form {
        return form.add_in_place(isa, y, other);
    }
    let SumScales { own, other: from, result, clamp } = sum.scales;
    let other = &other[..y.len()];
    isa.vectorize(
        #[inline(always)]
        move || {
            for (y, &q) in y.iter_mut().zip(other) {
                let exact = value_of(*y, own.0, own.1) + value_of(q, from.0, from.1);
                *y = code_of(exact, result.0, result.1, clamp.0, clamp.1);
            }
        },
    );
}

/// Codes of `a * b`, all `[len]`, with up to `threads` threads.
#[expect(clippy::too_many_arguments, reason = "three tensors, each with its quantization")]
pub fn qmul(
    isa: Isa,
    a: &[u8],
    a_scale: f32,
    a_zero_point: u8,
    b: &[u8],
    b_scale: f32,
    b_zero_point: u8,
    y_scale: f32,
    y_zero_point: u8,
    lo: u8,
    hi: u8,
    out: &mut [u8],
    threads: usize,
) {
    let (a_side, b_side) = (Side(a, a_scale, a_zero_point), Side(b, b_scale, b_zero_point));
    same_shape(isa, a_side, b_side, move |a, b| code_of(a * b, y_scale, y_zero_point, lo, hi), out, threads);
}

/// Codes of `a + b` where `a` and `out` are `[images, pixels, channels]` and `b` is `[images, channels]`: one image
/// adds a vector to every row, more images each their own.
#[expect(clippy::too_many_arguments, reason = "three tensors, each with its quantization")]
pub fn qadd_channels(
    isa: Isa,
    a: &[u8],
    a_scale: f32,
    a_zero_point: u8,
    b: &[u8],
    b_scale: f32,
    b_zero_point: u8,
    y_scale: f32,
    y_zero_point: u8,
    lo: u8,
    hi: u8,
    channels: usize,
    out: &mut [u8],
    threads: usize,
) {
    let (a_side, b_side) = (Side(a, a_scale, a_zero_point), Side(b, b_scale, b_zero_point));
    let f = move |a, b| code_of(a + b, y_scale, y_zero_point, lo, hi);
    by_channel(isa, a_side, b_side, f, channels, out, threads);
}

/// Codes of `a * b` with the shapes of [`qadd_channels`]: the scaling of a squeeze-and-excitation block.
#[expect(clippy::too_many_arguments, reason = "three tensors, each with its quantization")]
pub fn qmul_channels(
    isa: Isa,
    a: &[u8],
    a_scale: f32,
    a_zero_point: u8,
    b: &[u8],
    b_scale: f32,
    b_zero_point: u8,
    y_scale: f32,
    y_zero_point: u8,
    lo: u8,
    hi: u8,
    channels: usize,
    out: &mut [u8],
    threads: usize,
) {
    let (a_side, b_side) = (Side(a, a_scale, a_zero_point), Side(b, b_scale, b_zero_point));
    let f = move |a, b| code_of(a * b, y_scale, y_zero_point, lo, hi);
    by_channel(isa, a_side, b_side, f, channels, out, threads);
}

/// `out[i] = table[x[i]]`: any function of one code.
pub fn apply_table(isa: Isa, x: &[u8], table: &[u8; 256], out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "one code an element");
    out.copy_from_slice(x);
    apply_table_in_place(isa, out, table);
}

/// Rows of `width` codes through a table to rows of `out` that begin `stride` apart.
pub fn apply_table_to_rows(
    isa: Isa,
    x: &[u8],
    width: usize,
    table: &[u8; 256],
    out: &mut [u8],
    stride: usize,
) {
    if width == stride {
        return apply_table(isa, x, table, &mut out[..x.len()]);
    }
    for (x, out) in x.chunks_exact(width.max(1)).zip(out.chunks_mut(stride)) {
        apply_table(isa, x, table, &mut out[..width]);
    }
}

/// `x[i] = table[x[i]]`.
pub fn apply_table_in_place(isa: Isa, x: &mut [u8], table: &[u8; 256]) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(vbmi) = isa.wide().and_then(|wide| wide.vbmi()) {
            return vbmi.apply_table(x, table);
        }
        if let Some(avx2) = isa.avx2() {
            let whole = x.len() / 32 * 32;
            avx2.apply_table(&mut x[..whole], table);
            return apply_table_in_place(Isa::Scalar, &mut x[whole..], table);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(neon) = isa.neon() {
        let (whole, rest) = x.as_chunks_mut::<16>();
        neon.apply_table(whole, table);
        return apply_table_in_place(Isa::Scalar, rest, table);
    }
    let _ = isa;
    for code in x {
        *code = table[usize::from(*code)];
    }
}

/// `out[i] = x[i] ± 128`: the bytes of `i8` codes as `u8` codes of the same order, and back.
pub fn recode(isa: Isa, x: &[u8], out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "one code an element");
    isa.vectorize(|| out.iter_mut().zip(x).for_each(|(y, &x)| *y = x ^ 0x80));
}

/// Codes, their scale and their zero point.
#[derive(Clone, Copy)]
struct Side<'a>(&'a [u8], f32, u8);

impl Side<'_> {
    #[inline(always)]
    fn value(&self, code: u8) -> f32 {
        value_of(code, self.1, self.2)
    }
}

fn same_shape(
    isa: Isa,
    a: Side,
    b: Side,
    f: impl Fn(f32, f32) -> u8 + Sync + Copy,
    out: &mut [u8],
    threads: usize,
) {
    assert_eq!((a.0.len(), b.0.len()), (out.len(), out.len()), "operands of one shape");
    let parts = parts(threads, out.len() / 3);
    split_rows(out, 0..a.0.len(), 1, 64, parts, &|range: Range<usize>, out: &mut [u8]| {
        let (a_codes, b_codes) = (&a.0[range.clone()], &b.0[range]);
        // Copies on the stack: behind references, every store of a code might change them.
        let (a, b, f) = (a, b, f);
        isa.vectorize(
            #[inline(always)]
            move || {
                for ((y, &p), &q) in out.iter_mut().zip(a_codes).zip(b_codes) {
                    *y = f(a.value(p), b.value(q));
                }
            },
        );
    });
}

fn by_channel(
    isa: Isa,
    a: Side,
    b: Side,
    f: impl Fn(f32, f32) -> u8 + Sync + Copy,
    channels: usize,
    out: &mut [u8],
    threads: usize,
) {
    assert_eq!(a.0.len(), out.len(), "operand `a` has the shape of the output");
    if out.is_empty() {
        return;
    }
    let images = b.0.len() / channels;
    let rows = out.len() / channels;
    assert_eq!((images * channels, rows * channels), (b.0.len(), out.len()), "whole rows of channels");
    assert!(images > 0 && rows.is_multiple_of(images), "as many rows in every image");
    let pixels = rows / images;
    let parts = parts(threads, out.len() / 3);
    split_rows(out, 0..rows, channels, 1, parts, &|range: Range<usize>, out: &mut [u8]| {
        let (a, b, f) = (a, b, f);
        isa.vectorize(
            #[inline(always)]
            move || {
                for (row, out) in range.zip(out.chunks_exact_mut(channels)) {
                    let a_codes = &a.0[row * channels..][..channels];
                    let b_codes = &b.0[row / pixels * channels..][..channels];
                    for ((y, &p), &q) in out.iter_mut().zip(a_codes).zip(b_codes) {
                        *y = f(a.value(p), b.value(q));
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::testing::Random;
    use super::*;

    type Op = fn(f32, f32) -> f32;

    struct Case {
        images: usize,
        pixels: usize,
        channels: usize,
        scales: [f32; 3],
        zero_points: [u8; 3],
        clamp: (u8, u8),
        threads: usize,
    }

    fn check(case: Case) {
        let Case { images, pixels, channels, scales, zero_points, clamp: (lo, hi), threads } = case;
        let mut random = Random::new(7);
        let len = images * pixels * channels;
        let (a, b) = (random.u8s(len), random.u8s(len));
        let [sa, sb, sy] = scales;
        let [za, zb, zy] = zero_points;
        let want = |b: &dyn Fn(usize) -> u8, op: Op| -> Vec<u8> {
            let code = |i: usize| {
                let x = op(reference::dequantize(a[i], sa, za), reference::dequantize(b(i), sb, zb));
                reference::quantize(x, sy, zy).clamp(lo, hi)
            };
            (0..len).map(code).collect()
        };
        let per_image = &b[..images * channels];
        let broadcast = |i: usize| per_image[i / (pixels * channels) * channels + i % channels];
        let (add, mul): (Op, Op) = (|a, b| a + b, |a, b| a * b);
        for isa in Isa::available() {
            let mut y = vec![0; len];
            qadd(isa, &a, sa, za, &b, sb, zb, sy, zy, lo, hi, &mut y, threads);
            assert_eq!(y, want(&|i| b[i], add), "{isa:?} sum");
            qmul(isa, &a, sa, za, &b, sb, zb, sy, zy, lo, hi, &mut y, threads);
            assert_eq!(y, want(&|i| b[i], mul), "{isa:?} product");
            qadd_channels(isa, &a, sa, za, per_image, sb, zb, sy, zy, lo, hi, channels, &mut y, threads);
            assert_eq!(y, want(&broadcast, add), "{isa:?} sum by channel");
            qmul_channels(isa, &a, sa, za, per_image, sb, zb, sy, zy, lo, hi, channels, &mut y, threads);
            assert_eq!(y, want(&broadcast, mul), "{isa:?} product by channel");
        }
    }

    #[test]
    fn sums_and_products_are_those_of_unfused_onnx() {
        let case = |images, pixels, channels, scales, zero_points, clamp, threads| Case {
            images,
            pixels,
            channels,
            scales,
            zero_points,
            clamp,
            threads,
        };
        check(case(1, 1, 1, [0.1, 0.2, 0.3], [0, 128, 255], (0, 255), 1));
        check(case(2, 9, 37, [0.02, 0.013, 0.031], [128, 3, 131], (131, 255), 1));
        check(case(3, 5, 64, [0.5, 0.25, 0.5], [0, 0, 0], (0, 255), 1));
        check(case(2, 900, 65, [0.017, 0.009, 0.0004], [255, 0, 17], (5, 250), 2));
    }

    #[test]
    fn recoded_bytes_keep_their_order() {
        let (x, mut y) = ([-128i8, -1, 0, 127].map(|q| q as u8), [0; 4]);
        recode(Isa::best(), &x, &mut y);
        assert_eq!(y, [0, 127, 128, 255]);
    }

    #[test]
    fn a_table_is_applied_to_every_code() {
        let mut random = Random::new(3);
        let table: [u8; 256] = random.u8s(256).try_into().expect("256 codes");
        for len in [0, 1, 31, 32, 33, 63, 64, 65, 300] {
            let x = random.u8s(len);
            let want: Vec<u8> = x.iter().map(|&code| table[usize::from(code)]).collect();
            for isa in Isa::available() {
                let mut y = vec![0; len];
                apply_table(isa, &x, &table, &mut y);
                assert_eq!(y, want, "{isa:?} {len}");
            }
        }
    }
}
