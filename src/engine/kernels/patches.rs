//! Convolution as a product: the rows of input that one output pixel reads, gathered a few at a time into
//! scratch. No im2col tensor. Knows no weights.

use super::Window;

/// The input of a convolution, seen as a matrix `[window.rows(), taps * inputs]`.
pub(super) struct Patches<'a, T> {
    /// `[batch, in_h, in_w, in_stride]`.
    x: &'a [T],
    in_stride: usize,
    in_offset: usize,
    inputs: usize,
    window: &'a Window,
    pad: T,
}

impl<'a, T: Copy> Patches<'a, T> {
    /// Channels `in_offset .. in_offset + inputs` of `x`, `[batch, in_h, in_w, in_stride]`; padding reads `pad`.
    pub(super) fn new(
        x: &'a [T],
        in_stride: usize,
        in_offset: usize,
        inputs: usize,
        window: &'a Window,
        pad: T,
    ) -> Self {
        assert_eq!(x.len(), window.pixels() * in_stride, "input [batch, in_h, in_w, in_stride]");
        assert!(in_offset + inputs <= in_stride, "channels within a pixel");
        Patches { x, in_stride, in_offset, inputs, window, pad }
    }

    /// Writes rows `first_row ..` to `rows`, `[count, stride]`; elements past `taps * inputs` are left alone.
    pub(super) fn gather<D: Copy + From<T>>(&self, first_row: usize, rows: &mut [D], stride: usize) {
        let window = self.window;
        let (line, image) = (first_row / window.out_w, first_row / window.out_w / window.out_h);
        let (mut image, mut oy, mut ox) = (image, line % window.out_h, first_row % window.out_w);
        for row in rows.chunks_exact_mut(stride) {
            self.gather_one(image, oy, ox, &mut row[..window.taps() * self.inputs]);
            ox += 1;
            if ox == window.out_w {
                (ox, oy) = (0, oy + 1);
                if oy == window.out_h {
                    (oy, image) = (0, image + 1);
                }
            }
        }
    }

    #[inline(always)]
    fn gather_one<D: Copy + From<T>>(&self, image: usize, oy: usize, ox: usize, row: &mut [D]) {
        let window = self.window;
        let (y0, x0) = (oy * window.stride_h, ox * window.stride_w);
        for (ky, taps) in row.chunks_exact_mut(window.kernel_w * self.inputs).enumerate() {
            let y = y0 + ky * window.dilation_h;
            if y < window.pad_top || y - window.pad_top >= window.in_h {
                taps.fill(D::from(self.pad));
                continue;
            }
            let line = (image * window.in_h + y - window.pad_top) * window.in_w;
            // Neighbouring taps of dense channels lie side by side in memory: one run, which is what makes a
            // stem of three channels cheap.
            if window.dilation_w == 1 && self.in_stride == self.inputs {
                let left = window.pad_left.saturating_sub(x0).min(window.kernel_w);
                let right = (window.in_w + window.pad_left).saturating_sub(x0).clamp(left, window.kernel_w);
                taps[..left * self.inputs].fill(D::from(self.pad));
                taps[right * self.inputs..].fill(D::from(self.pad));
                if left < right {
                    let from = (line + x0 + left - window.pad_left) * self.inputs;
                    copy(&self.x[from..], &mut taps[left * self.inputs..right * self.inputs]);
                }
                continue;
            }
            for (kx, tap) in taps.chunks_exact_mut(self.inputs).enumerate() {
                let x = x0 + kx * window.dilation_w;
                if x < window.pad_left || x - window.pad_left >= window.in_w {
                    tap.fill(D::from(self.pad));
                } else {
                    copy(&self.x[(line + x - window.pad_left) * self.in_stride + self.in_offset..], tap);
                }
            }
        }
    }
}

/// Copies as many elements as `to` holds, widening each.
#[inline(always)]
fn copy<S: Copy, D: From<S>>(from: &[S], to: &mut [D]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = D::from(*from);
    }
}
