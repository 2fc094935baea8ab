//! Numeric inner loops on plain slices, and the words they share. Knows nothing of graphs, tensors or models.
//!
//! Activations are `u8` codes with one zero point a tensor, channels last (NHWC); weights are `i8` codes with
//! zero point 0 and one scale an output channel, and every code from -128 to 127 is exact. Every instruction
//! set gives the same bits, for integers and for floats, whatever the tile, the batch or the number of threads.

mod activate;
pub mod by_row;
pub mod channel_order;
pub mod coded;
pub mod depthwise;
#[cfg(target_arch = "x86_64")]
mod depthwise_columns;
pub mod depthwise_f32;
#[cfg(target_arch = "x86_64")]
mod depthwise_quads;
pub mod eltwise;
pub mod epilogue;
pub mod finish;
pub mod gemm_f32;
pub mod gemm_int8;
pub mod isa;
pub mod layout;
pub mod math;
pub mod pool;
pub mod reference;
pub mod requant;
pub mod winograd;
pub mod winograd_cost;
pub mod winograd_transform;

#[cfg(target_arch = "aarch64")]
mod aarch64_depthwise;
#[cfg(target_arch = "aarch64")]
mod aarch64_dot;
#[cfg(target_arch = "aarch64")]
mod aarch64_finish;
#[cfg(target_arch = "aarch64")]
mod aarch64_neon;
#[cfg(target_arch = "x86_64")]
mod blocks;
mod halo;
mod lines;
pub(in crate::engine) mod parallel;
mod patches;
#[cfg(target_arch = "x86_64")]
mod phases;
mod rows;
#[cfg(target_arch = "x86_64")]
mod schedule;
mod sums;
#[cfg(test)]
mod testing;
mod tiles;
mod walk;
#[cfg(test)]
mod winograd_tests;
mod winograd_tiles;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
mod x86_64_amx;
#[cfg(target_arch = "x86_64")]
mod x86_64_amx_finish;
#[cfg(target_arch = "x86_64")]
mod x86_64_avxvnni;
#[cfg(target_arch = "x86_64")]
mod x86_64_depthwise;
#[cfg(target_arch = "x86_64")]
mod x86_64_depthwise_wide;
#[cfg(target_arch = "x86_64")]
mod x86_64_finish;
#[cfg(target_arch = "x86_64")]
mod x86_64_pairs;
#[cfg(target_arch = "x86_64")]
mod x86_64_panels;
#[cfg(target_arch = "x86_64")]
mod x86_64_tile;
#[cfg(target_arch = "x86_64")]
mod x86_64_tile_scheduled;
#[cfg(target_arch = "x86_64")]
mod x86_64_vnni;
#[cfg(target_arch = "x86_64")]
mod x86_64_vnni_finish;
#[cfg(target_arch = "x86_64")]
mod x86_64_wide;
#[cfg(target_arch = "x86_64")]
mod x86_64_winograd;
#[cfg(target_arch = "x86_64")]
mod x86_64_winograd_wide;

/// Geometry of a 2-D convolution or pooling over NHWC. A 1-D one has height 1 throughout.
///
/// Tap `(ky, kx)` of output `(oy, ox)` reads input row `oy * stride_h + ky * dilation_h - pad_top` and column
/// `ox * stride_w + kx * dilation_w - pad_left`, or padding where that lies outside. Padding at the bottom and
/// at the right follows from the output size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Images.
    pub batch: usize,
    /// Rows of the input.
    pub in_h: usize,
    /// Columns of the input.
    pub in_w: usize,
    /// Rows of the output.
    pub out_h: usize,
    /// Columns of the output.
    pub out_w: usize,
    /// Rows of the kernel.
    pub kernel_h: usize,
    /// Columns of the kernel.
    pub kernel_w: usize,
    /// Input rows between two output rows.
    pub stride_h: usize,
    /// Input columns between two output columns.
    pub stride_w: usize,
    /// Input rows between two kernel rows.
    pub dilation_h: usize,
    /// Input columns between two kernel columns.
    pub dilation_w: usize,
    /// Padding rows above the input.
    pub pad_top: usize,
    /// Padding columns left of the input.
    pub pad_left: usize,
}

impl Window {
    /// The window of a plain product: `rows` pixels, each read by itself.
    pub fn of_rows(rows: usize) -> Window {
        Window {
            batch: 1,
            in_h: 1,
            in_w: rows,
            out_h: 1,
            out_w: rows,
            kernel_h: 1,
            kernel_w: 1,
            stride_h: 1,
            stride_w: 1,
            dilation_h: 1,
            dilation_w: 1,
            pad_top: 0,
            pad_left: 0,
        }
    }

    /// Pixels of the output in all images: the rows of the product that the convolution is.
    pub fn rows(&self) -> usize {
        self.batch * self.out_h * self.out_w
    }

    /// Pixels of the input in all images.
    pub fn pixels(&self) -> usize {
        self.batch * self.in_h * self.in_w
    }

    /// Positions of the kernel.
    pub fn taps(&self) -> usize {
        self.kernel_h * self.kernel_w
    }

    /// Whether output pixel `i` reads input pixel `i` and nothing else, so that no row must be gathered.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.taps() == 1
            && (self.in_h, self.in_w) == (self.out_h, self.out_w)
            && (self.stride_h, self.stride_w, self.pad_top, self.pad_left) == (1, 1, 0, 0)
    }
}

/// How `i32` accumulators of output channel `n` become `u8` codes:
///
/// ```text
/// q = clamp(round_half_even((acc + bias[n]) as f32 * multiplier[n]) + zero_point, lo, hi)
/// y = table[q] if there is a table, else q
/// ```
///
/// If there is a sum, `y` becomes `sum` of `y` and the other code.
///
/// `acc + bias` wraps at 32 bits. A product that is not a number gives `lo`.
#[derive(Clone, Copy, Debug)]
pub struct Requant<'a> {
    /// `[channels]`, in units of the accumulator, with `-input_zero_point * column_sum` already in it.
    pub bias: &'a [i32],
    /// `[channels]`: `scale_input * scale_weight[n] / scale_output`.
    pub multiplier: &'a [f32],
    /// Zero point of the output.
    pub zero_point: u8,
    /// Smallest code (before the table).
    pub lo: u8,
    /// Largest code (before the table).
    pub hi: u8,
    /// A function of one code.
    pub table: Option<&'a [u8; 256]>,
    /// Codes that are added last.
    pub sum: Option<Sum<'a>>,
}

/// Codes that are added to those of a product, as [`qadd`](eltwise::qadd) does, to the bit.
#[derive(Clone, Copy, Debug)]
pub struct Sum<'a> {
    /// The other operand, of the shape of the output, strides and all.
    pub codes: &'a [u8],
    /// How they are read and written.
    pub scales: SumScales,
    /// The same in one formula, if there is one.
    pub form: Option<SumForm>,
}

/// A sum of codes as `round_half_even(fma(other, b, fma(own, a, offset)))`, clamped, in f32: made by [`SumForm::fit`],
/// which makes sure that it is the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SumForm {
    own: f32,
    other: f32,
    offset: f32,
    clamp: (u8, u8),
}

/// Quantization of a sum of codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SumScales {
    /// Scale and zero point of what the product gives.
    pub own: (f32, u8),
    /// Scale and zero point of what is added.
    pub other: (f32, u8),
    /// Scale and zero point of the sum.
    pub result: (f32, u8),
    /// Smallest and largest code of the sum.
    pub clamp: (u8, u8),
}

impl Requant<'_> {
    /// What some tiles add to their codes in registers: the other codes and the formula, if there is one and no table
    /// comes first.
    #[inline(always)]
    pub(crate) fn sum_in_registers(&self) -> Option<(&[u8], SumForm)> {
        self.sum.filter(|_| self.table.is_none()).and_then(|sum| Some((sum.codes, sum.form?)))
    }

    /// The clamp as distances from the zero point. Clamping to whole numbers before rounding gives what
    /// clamping after it gives, and keeps the conversion to `i32` in range.
    pub(crate) fn bounds(&self) -> (f32, f32) {
        let from_zero = |code: u8| f32::from(code) - f32::from(self.zero_point);
        (from_zero(self.lo), from_zero(self.hi))
    }

    /// The code of accumulator `acc` in channel `n`, before the table.
    #[inline(always)]
    pub(crate) fn code(&self, acc: i32, n: usize) -> u8 {
        let (lo, hi) = self.bounds();
        let scaled = acc.wrapping_add(self.bias[n]) as f32 * self.multiplier[n];
        (round_half_even_small(scaled.max(lo).min(hi)) + i32::from(self.zero_point)) as u8
    }
}

/// How `i32` accumulators of output channel `n` become floats: `y = (acc + bias[n]) as f32 * scale[n]`, and then what an
/// [`Epilogue`] makes of that as its sum.
#[derive(Clone, Copy, Debug)]
pub struct Dequant<'a> {
    /// `[channels]`, in units of the accumulator, with `-input_zero_point * column_sum` already in it.
    pub bias: &'a [i32],
    /// `[channels]`: `scale_input * scale_weight[n]`.
    pub scale: &'a [f32],
    /// What follows.
    pub then: Option<Epilogue<'a>>,
}

impl Dequant<'_> {
    /// The value of accumulator `acc` in channel `n`, without what follows.
    #[inline(always)]
    pub(crate) fn value(&self, acc: i32, n: usize) -> f32 {
        acc.wrapping_add(self.bias[n]) as f32 * self.scale[n]
    }
}

/// A function of one float.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x · sigmoid(x)`.
    Silu,
    /// `clamp(alpha x + beta, 0, 1)`.
    HardSigmoid {
        /// The slope.
        alpha: f32,
        /// The value at 0.
        beta: f32,
    },
    /// `x · clamp(x / 6 + 1/2, 0, 1)`.
    HardSwish,
    /// `0.5 x (1 + erf(x / √2))`.
    Gelu,
    /// `0.5 x (1 + tanh(0.7978846 (x + 0.044715 x³)))`.
    GeluTanh,
    /// `tanh x`.
    Tanh,
}

/// How the sum of output channel `n` becomes an element of the output:
///
/// ```text
/// y = clamp(activation(sum + bias[n]) + residual, lo, hi)
/// ```
///
/// What is not there is left out; not-a-number passes the clamp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epilogue<'a> {
    /// `[channels]`.
    pub bias: Option<&'a [f32]>,
    /// A function of `sum + bias`.
    pub activation: Option<Activation>,
    /// Of the shape of the output, strides and all.
    pub residual: Option<&'a [f32]>,
    /// Smallest value.
    pub lo: f32,
    /// Largest value.
    pub hi: f32,
}

/// Where the accumulators of an integer kernel go.
pub enum IntOutput<'a, 'b> {
    /// Codes.
    U8(&'a mut [u8], &'b Requant<'b>),
    /// Floats.
    F32(&'a mut [f32], &'b Dequant<'b>),
    /// The accumulators themselves plus a bias a channel, modulo 2^32: for what a factor a channel cannot say.
    I32(&'a mut [i32], &'b [i32]),
}

impl IntOutput<'_, '_> {
    /// Elements of the buffer.
    pub(crate) fn len(&self) -> usize {
        match self {
            IntOutput::U8(out, _) => out.len(),
            IntOutput::F32(out, _) => out.len(),
            IntOutput::I32(out, _) => out.len(),
        }
    }

    /// Asserts one bias and one factor for each of `channels`.
    pub(crate) fn assert_channels(&self, channels: usize) {
        let (bias, factor) = match self {
            IntOutput::U8(_, requant) => {
                assert!(requant.lo <= requant.hi, "the clamp is empty");
                (requant.bias.len(), requant.multiplier.len())
            }
            IntOutput::F32(_, dequant) => (dequant.bias.len(), dequant.scale.len()),
            IntOutput::I32(_, bias) => (bias.len(), bias.len()),
        };
        assert_eq!((bias, factor), (channels, channels), "one bias and one factor a channel");
    }

    /// Calls `f` with this part of an output that begins at element `origin` of the whole: what is added to it begins
    /// there too.
    pub(crate) fn with_own_part(&mut self, origin: usize, f: impl FnOnce(&mut IntOutput)) {
        match self {
            IntOutput::U8(out, requant) => {
                let sum = requant.sum.map(|sum| Sum { codes: &sum.codes[origin..], ..sum });
                f(&mut IntOutput::U8(out, &Requant { sum, ..**requant }));
            }
            IntOutput::F32(out, dequant) => {
                let then = dequant.then.map(|then| Epilogue {
                    residual: then.residual.map(|residual| &residual[origin..]),
                    ..then
                });
                f(&mut IntOutput::F32(out, &Dequant { then, ..**dequant }));
            }
            IntOutput::I32(out, bias) => f(&mut IntOutput::I32(out, bias)),
        }
    }

    /// Writes accumulators of channels `n..` to elements `at..`.
    #[inline(always)]
    pub(crate) fn put(&mut self, at: usize, n: usize, acc: &[i32]) {
        match self {
            IntOutput::U8(out, requant) => {
                for (i, (y, &acc)) in out[at..][..acc.len()].iter_mut().zip(acc).enumerate() {
                    *y = requant.code(acc, n + i);
                }
            }
            IntOutput::F32(out, dequant) => {
                for (i, (y, &acc)) in out[at..][..acc.len()].iter_mut().zip(acc).enumerate() {
                    *y = dequant.value(acc, n + i);
                }
            }
            IntOutput::I32(out, bias) => {
                for (i, (y, &acc)) in out[at..][..acc.len()].iter_mut().zip(acc).enumerate() {
                    *y = acc.wrapping_add(bias[n + i]);
                }
            }
        }
    }
}

/// Quantization of the input and of the output of an average pooling: a window of `count` codes becomes
///
/// ```text
/// saturate(round_half_even((sum - count * x_zero_point) as f32 * (x_scale / (count * y_scale))) + y_zero_point)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolScales {
    /// Scale of the input.
    pub x_scale: f32,
    /// Zero point of the input.
    pub x_zero_point: u8,
    /// Scale of the output.
    pub y_scale: f32,
    /// Zero point of the output.
    pub y_zero_point: u8,
}

/// Adding this to a number below 2^22 rounds it to a whole one, half to even, which stands in the low bits: 1.5 * 2^23
/// pushes the fraction out of the significand.
pub(in crate::engine::kernels) const SHIFT: f32 = 12_582_912.0;

/// Rounds to the nearest whole number, ties to even. Right for magnitudes up to 2^22.
///
/// Compilers turn this into two vector instructions; `f32::round_ties_even` is a library call without SSE4.1.
#[inline(always)]
pub(crate) fn round_half_even_small(x: f32) -> i32 {
    (x + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}

/// `v` raised to `lo` and cut to `hi`; not-a-number stays, and so does the sign of zero at an equal bound.
#[inline(always)]
pub(in crate::engine) fn clamp_f32(v: f32, lo: f32, hi: f32) -> f32 {
    let v = if lo > v { lo } else { v };
    if hi < v { hi } else { v }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_small_numbers_is_rounding_half_to_even() {
        for i in -4096..4096 {
            let x = i as f32 / 8.0;
            assert_eq!(round_half_even_small(x), x.round_ties_even() as i32, "{x}");
        }
        for x in [4_194_304.0f32, -4_194_304.0, 4_194_303.5, 0.49999997, -0.0] {
            assert_eq!(round_half_even_small(x), x.round_ties_even() as i32, "{x}");
        }
    }

    #[test]
    fn a_code_saturates_at_its_bounds_whatever_the_product() {
        for (acc, multiplier, want) in [
            (i32::MAX - 1, 1e30f32, 200),
            (i32::MIN, 1e30, 3),
            (0, f32::NAN, 3),
            (-1, f32::INFINITY, 3),
            (4, 0.5, 12),
            (6, 0.5, 14),
        ] {
            let multiplier = &[multiplier];
            let requant =
                Requant { bias: &[1], multiplier, zero_point: 10, lo: 3, hi: 200, table: None, sum: None };
            assert_eq!(requant.code(acc, 0), want, "{acc} * {multiplier:?}");
        }
    }

    #[test]
    fn a_clamp_keeps_what_is_not_a_number() {
        assert!(clamp_f32(f32::NAN, 0.0, 6.0).is_nan());
        assert_eq!(clamp_f32(-1.0, 0.0, 6.0), 0.0);
        assert_eq!(clamp_f32(7.0, 0.0, 6.0), 6.0);
    }
}
