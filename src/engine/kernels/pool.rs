//! Maximum and average pooling, channels last. Knows slices only.

use super::isa::Isa;
use super::lines::with_scratch;
use super::parallel::{parts, split_rows};
use super::walk::taps_inside;
use super::{PoolScales, Window, round_half_even_small};
use std::ops::Range;

/// Channels that are summed at once, in registers.
const BLOCK: usize = 64;

impl PoolScales {
    /// `saturate(round_half_even((sum - inside * x_zero_point) * (x_scale / (count * y_scale))) + y_zero_point)`.
    #[inline(always)]
    fn code(&self, sum: i32, inside: usize, ratio: f32) -> u8 {
        let zero = f32::from(self.y_zero_point);
        let scaled = (sum - inside as i32 * i32::from(self.x_zero_point)) as f32 * ratio;
        let clamped = scaled.max(-zero).min(255.0 - zero);
        (round_half_even_small(clamped) + i32::from(self.y_zero_point)) as u8
    }

    fn ratio(&self, count: usize) -> f32 {
        self.x_scale / (count as f32 * self.y_scale)
    }
}

/// Largest code in each window of `x`, `[batch, in_h, in_w, channels]`; padding takes no part, and a window that is
/// all padding gives 0. `out` is `[batch, out_h, out_w, channels]`. Uses up to `threads` threads.
///
/// First the lines of a window are brought to one, then the columns of that: codes, unlike floats with their two zeros, do
/// not tell in which order they were looked at.
pub fn max_pool_u8(isa: Isa, x: &[u8], channels: usize, window: &Window, out: &mut [u8], threads: usize) {
    assert_eq!(x.len(), window.pixels() * channels, "input [batch, in_h, in_w, channels]");
    assert_eq!(out.len(), window.rows() * channels, "output [batch, out_h, out_w, channels]");
    if out.is_empty() {
        return;
    }
    let (in_line, out_line) = (window.in_w * channels, window.out_w * channels);
    let parts = parts(threads, out.len() * window.taps() / 8);
    split_rows(
        out,
        0..window.batch * window.out_h,
        out_line,
        1,
        parts,
        &|lines: Range<usize>, out: &mut [u8]| {
            with_scratch::<u8, _>(in_line, |scratch| {
                isa.vectorize(
                    #[inline(always)]
                    || {
                        for (line, out) in lines.zip(out.chunks_exact_mut(out_line)) {
                            let inside = Inside::new(window, line / window.out_h, line % window.out_h, 0);
                            largest(scratch, inside.lines().map(|y| &x[y * in_line..][..in_line]));
                            for (ox, out) in out.chunks_exact_mut(channels).enumerate() {
                                let inside = Inside { x0: ox * window.stride_w, ..inside };
                                let pixel = |x| &scratch[x * channels..][..channels];
                                largest(out, inside.columns().map(pixel));
                            }
                        }
                    },
                );
            });
        },
    );
}

/// The largest of each code of some lists, 0 if there are none.
#[inline(always)]
fn largest<'x>(out: &mut [u8], mut lists: impl Iterator<Item = &'x [u8]>) {
    let Some(first) = lists.next() else { return out.fill(0) };
    // The first two at once: copying one of them takes as long as comparing both.
    larger(out, first, lists.next().unwrap_or(first));
    for list in lists {
        let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
        let (others, other_rest) = list.as_chunks::<BLOCK>();
        for (block, other) in blocks.iter_mut().zip(others) {
            for i in 0..BLOCK {
                block[i] = block[i].max(other[i]);
            }
        }
        for (code, &other) in rest.iter_mut().zip(other_rest) {
            *code = (*code).max(other);
        }
    }
}

/// The larger of two codes each.
#[inline(always)]
fn larger(out: &mut [u8], a: &[u8], b: &[u8]) {
    let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<BLOCK>(), b.as_chunks::<BLOCK>());
    for ((block, a), b) in blocks.iter_mut().zip(a).zip(b) {
        for i in 0..BLOCK {
            block[i] = a[i].max(b[i]);
        }
    }
    for ((code, &a), &b) in rest.iter_mut().zip(a_rest).zip(b_rest) {
        *code = a.max(b);
    }
}

/// Largest value in each window, like [`max_pool_u8`]; a window that is all padding gives negative infinity. What is
/// not a number is never larger.
pub fn max_pool_f32(isa: Isa, x: &[f32], channels: usize, window: &Window, out: &mut [f32], threads: usize) {
    for_each_pixel(isa, x, channels, window, out, threads, &|inside: &Inside, x: &[f32], out: &mut [f32]| {
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let mut most = [f32::NEG_INFINITY; BLOCK];
            inside.for_each(|pixel| {
                for (most, &v) in most.iter_mut().zip(&x[pixel * channels + block * BLOCK..][..out.len()]) {
                    *most = if v > *most { v } else { *most };
                }
            });
            out.copy_from_slice(&most[..out.len()]);
        }
    });
}

/// Average of the codes in each window of `x`, `[batch, in_h, in_w, channels]`, requantized to `out`, `[batch, out_h,
/// out_w, channels]`:
///
/// ```text
/// q = saturate(round_half_even((sum - count * x_zero_point) as f32 * (x_scale / (count * y_scale))) + y_zero_point)
/// ```
///
/// `count` is the number of taps inside the input or, with `count_include_pad`, of all taps, and padding then reads
/// the zero point. Uses up to `threads` threads.
#[expect(clippy::too_many_arguments, reason = "two tensors, their quantization and the geometry")]
pub fn avg_pool_u8(
    isa: Isa,
    x: &[u8],
    scales: PoolScales,
    channels: usize,
    window: &Window,
    count_include_pad: bool,
    out: &mut [u8],
    threads: usize,
) {
    for_each_pixel(isa, x, channels, window, out, threads, &|inside: &Inside, x: &[u8], out: &mut [u8]| {
        let taps = inside.count();
        let ratio = scales.ratio(if count_include_pad { window.taps() } else { taps.max(1) });
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let mut sums = [0i32; BLOCK];
            inside.for_each(|pixel| {
                for (sum, &code) in sums.iter_mut().zip(&x[pixel * channels + block * BLOCK..][..out.len()]) {
                    *sum += i32::from(code);
                }
            });
            for (q, sum) in out.iter_mut().zip(sums) {
                *q = scales.code(sum, taps, ratio);
            }
        }
    });
}

/// Average of each window, like [`avg_pool_u8`]: the sum in the order of the taps, divided by their count.
pub fn avg_pool_f32(
    isa: Isa,
    x: &[f32],
    channels: usize,
    window: &Window,
    count_include_pad: bool,
    out: &mut [f32],
    threads: usize,
) {
    for_each_pixel(isa, x, channels, window, out, threads, &|inside: &Inside, x: &[f32], out: &mut [f32]| {
        let count = if count_include_pad { window.taps() } else { inside.count().max(1) } as f32;
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let mut sums = [0f32; BLOCK];
            inside.for_each(|pixel| {
                for (sum, &v) in sums.iter_mut().zip(&x[pixel * channels + block * BLOCK..][..out.len()]) {
                    *sum += v;
                }
            });
            for (y, sum) in out.iter_mut().zip(sums) {
                *y = sum / count;
            }
        }
    });
}

/// Average over all `pixels` of each image: `x` is `[batch, pixels, channels]`, `out` `[batch, channels]`.
#[expect(clippy::too_many_arguments, reason = "two tensors, their quantization and their sizes")]
pub fn global_avg_pool_u8(
    isa: Isa,
    x: &[u8],
    scales: PoolScales,
    batch: usize,
    pixels: usize,
    channels: usize,
    out: &mut [u8],
    threads: usize,
) {
    avg_pool_u8(isa, x, scales, channels, &whole_image(batch, pixels), false, out, threads);
}

/// Average over all `pixels` of each image: `x` is `[batch, pixels, channels]`, `out` `[batch, channels]`.
pub fn global_avg_pool_f32(
    isa: Isa,
    x: &[f32],
    batch: usize,
    pixels: usize,
    channels: usize,
    out: &mut [f32],
    threads: usize,
) {
    avg_pool_f32(isa, x, channels, &whole_image(batch, pixels), false, out, threads);
}

/// Largest code over all `pixels` of each image: `x` is `[batch, pixels, channels]`, `out` `[batch, channels]`.
pub fn global_max_pool_u8(
    isa: Isa,
    x: &[u8],
    batch: usize,
    pixels: usize,
    channels: usize,
    out: &mut [u8],
    threads: usize,
) {
    max_pool_u8(isa, x, channels, &whole_image(batch, pixels), out, threads);
}

/// Largest value over all `pixels` of each image: `x` is `[batch, pixels, channels]`, `out` `[batch, channels]`.
pub fn global_max_pool_f32(
    isa: Isa,
    x: &[f32],
    batch: usize,
    pixels: usize,
    channels: usize,
    out: &mut [f32],
    threads: usize,
) {
    max_pool_f32(isa, x, channels, &whole_image(batch, pixels), out, threads);
}

/// The window that takes each image whole.
fn whole_image(batch: usize, pixels: usize) -> Window {
    Window { batch, in_w: pixels, kernel_w: pixels, ..Window::of_rows(1) }
}

/// The taps of one output pixel that lie inside the input.
struct Inside<'a> {
    window: &'a Window,
    image: usize,
    y0: usize,
    x0: usize,
}

impl<'a> Inside<'a> {
    fn new(window: &'a Window, image: usize, oy: usize, ox: usize) -> Self {
        Inside { window, image, y0: oy * window.stride_h, x0: ox * window.stride_w }
    }

    fn count(&self) -> usize {
        self.rows().len() * self.column_taps().len()
    }

    fn rows(&self) -> Range<usize> {
        let Window { pad_top, in_h, kernel_h, dilation_h, .. } = *self.window;
        taps_inside(self.y0, pad_top, in_h, kernel_h, dilation_h)
    }

    fn column_taps(&self) -> Range<usize> {
        let Window { pad_left, in_w, kernel_w, dilation_w, .. } = *self.window;
        taps_inside(self.x0, pad_left, in_w, kernel_w, dilation_w)
    }

    /// Calls `f` with the input pixel of each tap, in the order of the taps.
    #[inline(always)]
    fn for_each(&self, mut f: impl FnMut(usize)) {
        let columns = self.columns();
        for line in self.lines() {
            for column in columns.clone() {
                f(line * self.window.in_w + column);
            }
        }
    }

    /// The lines of the input, through all images, that taps lie on.
    #[inline(always)]
    fn lines(&self) -> impl Iterator<Item = usize> + Clone + use<'a> {
        let Inside { window, image, y0, .. } = *self;
        self.rows().map(move |ky| image * window.in_h + y0 + ky * window.dilation_h - window.pad_top)
    }

    /// The columns of the input that taps lie on.
    #[inline(always)]
    fn columns(&self) -> impl Iterator<Item = usize> + Clone + use<'a> {
        let Inside { window, x0, .. } = *self;
        self.column_taps().map(move |kx| x0 + kx * window.dilation_w - window.pad_left)
    }
}

fn for_each_pixel<'a, T: Sync, O: Send>(
    isa: Isa,
    x: &[T],
    channels: usize,
    window: &'a Window,
    out: &mut [O],
    threads: usize,
    pixel: &(impl Fn(&Inside<'a>, &[T], &mut [O]) + Sync),
) {
    assert_eq!(x.len(), window.pixels() * channels, "input [batch, in_h, in_w, channels]");
    assert_eq!(out.len(), window.rows() * channels, "output [batch, out_h, out_w, channels]");
    if out.is_empty() {
        return;
    }
    let parts = parts(threads, out.len() * window.taps() / 8);
    split_rows(out, 0..window.rows(), channels, 1, parts, &|rows: Range<usize>, out: &mut [O]| {
        isa.vectorize(
            #[inline(always)]
            || {
                for (row, out) in rows.zip(out.chunks_exact_mut(channels)) {
                    let (line, ox) = (row / window.out_w, row % window.out_w);
                    pixel(&Inside::new(window, line / window.out_h, line % window.out_h, ox), x, out);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::testing::{Random, windows};
    use super::*;

    fn check(channels: usize, window: &Window, threads: usize) {
        let mut random = Random::new(11);
        let x = random.u8s(window.pixels() * channels);
        let floats = random.f32s(x.len());
        let scales = PoolScales { x_scale: 0.031, x_zero_point: 131, y_scale: 0.022, y_zero_point: 9 };
        for isa in Isa::available() {
            let at = format!("{isa:?} {channels} channels, {window:?}");
            let (mut q, mut y) = (vec![1u8; window.rows() * channels], vec![1f32; window.rows() * channels]);
            max_pool_u8(isa, &x, channels, window, &mut q, threads);
            assert_eq!(q, reference::max_pool(&x, channels, window, 0), "{at}");
            max_pool_f32(isa, &floats, channels, window, &mut y, threads);
            assert_eq!(y, reference::max_pool(&floats, channels, window, f32::NEG_INFINITY), "{at}");
            for include in [false, true] {
                avg_pool_u8(isa, &x, scales, channels, window, include, &mut q, threads);
                assert_eq!(
                    q,
                    reference::avg_pool_u8(&x, scales, channels, window, include),
                    "{at} {include}"
                );
                avg_pool_f32(isa, &floats, channels, window, include, &mut y, threads);
                assert_eq!(y, reference::avg_pool_f32(&floats, channels, window, include), "{at} {include}");
            }
        }
    }

    #[test]
    fn pooling_matches_the_reference() {
        for (i, window) in windows().iter().enumerate() {
            check([1, 3, 64, 65, 130][i % 5], window, 1 + i % 2);
        }
        let mut random = Random::new(95);
        for _ in 0..40 {
            check(1 + random.next() as usize % 80, &random.window(), 1);
        }
        check(70, &whole_image(3, 49), 2);
    }

    #[test]
    fn a_global_average_rounds_half_to_even() {
        let scales = PoolScales { x_scale: 1.0, x_zero_point: 0, y_scale: 1.0, y_zero_point: 0 };
        let (x, mut q) = ([1, 2, 2, 3], [0; 2]);
        global_avg_pool_u8(Isa::best(), &x, scales, 1, 2, 2, &mut q, 1);
        assert_eq!(q, [2, 2]);
        global_max_pool_u8(Isa::best(), &x, 1, 2, 2, &mut q, 1);
        assert_eq!(q, [2, 3]);
        let (x, mut y) = ([1.0, 2.0, 2.0, 3.0], [0.0; 2]);
        global_avg_pool_f32(Isa::best(), &x, 1, 2, 2, &mut y, 1);
        assert_eq!(y, [1.5, 2.5]);
        global_max_pool_f32(Isa::best(), &x, 1, 2, 2, &mut y, 1);
        assert_eq!(y, [2.0, 3.0]);
    }
}
