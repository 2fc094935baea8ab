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

    /// The rows as they lie in memory, from `first_row` on, and their stride, if the window reads each pixel by
    /// itself, so that nothing has to be gathered.
    pub(super) fn in_place(&self, first_row: usize) -> Option<(&'a [T], usize)> {
        let start = first_row * self.in_stride + self.in_offset;
        self.window.is_pointwise().then(|| (&self.x[start..], self.in_stride))
    }

    /// Writes rows `first_row ..` to `rows`, `[count, stride]`; what lies past the first `taps * inputs` elements of
    /// each means nothing.
    #[inline(always)]
    pub(super) fn gather<D: Copy + From<T>>(&self, first_row: usize, rows: &mut [D], stride: usize) {
        let window = self.window;
        if stride == self.inputs
            && let Some((x, in_stride)) = self.in_place(first_row)
            && in_stride == stride
        {
            copy(x, rows, rows.len());
            return;
        }
        let (line, image) = (first_row / window.out_w, first_row / window.out_w / window.out_h);
        let (mut image, mut oy, mut ox) = (image, line % window.out_h, first_row % window.out_w);
        for start in (0..rows.len()).step_by(stride) {
            // Rows are written in order, so each may spill into the next.
            self.gather_one(image, oy, ox, &mut rows[start..]);
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
    fn gather_one<D: Copy + From<T>>(&self, image: usize, oy: usize, ox: usize, mut to: &mut [D]) {
        let (window, inputs) = (self.window, self.inputs);
        let (y0, x0) = (oy * window.stride_h, ox * window.stride_w);
        // Neighbouring taps of dense channels lie side by side in memory: one run, which is what makes a stem of
        // three channels cheap.
        let dense = window.dilation_w == 1 && self.in_stride == inputs;
        let left = window.pad_left.saturating_sub(x0).min(window.kernel_w);
        let right = (window.in_w + window.pad_left).saturating_sub(x0).clamp(left, window.kernel_w);
        for ky in 0..window.kernel_h {
            let y = y0 + ky * window.dilation_h;
            if y < window.pad_top || y - window.pad_top >= window.in_h {
                to = fill(to, self.pad, window.kernel_w * inputs);
                continue;
            }
            let line = (image * window.in_h + y - window.pad_top) * window.in_w;
            if dense {
                to = fill(to, self.pad, left * inputs);
                if left < right {
                    let from = (line + x0 + left - window.pad_left) * inputs;
                    to = copy(&self.x[from..], to, (right - left) * inputs);
                }
                to = fill(to, self.pad, (window.kernel_w - right) * inputs);
                continue;
            }
            for kx in 0..window.kernel_w {
                let x = x0 + kx * window.dilation_w;
                if x < window.pad_left || x - window.pad_left >= window.in_w {
                    to = fill(to, self.pad, inputs);
                } else {
                    let from = (line + x - window.pad_left) * self.in_stride + self.in_offset;
                    to = copy(&self.x[from..], to, inputs);
                }
            }
        }
    }
}

/// Fills the first `len` elements and gives the rest.
#[inline(always)]
fn fill<S, D: Copy + From<S>>(to: &mut [D], pad: S, len: usize) -> &mut [D] {
    // Nearly always nothing, and a call to `memset` costs as much as a short run.
    if len == 0 {
        return to;
    }
    let (to, rest) = to.split_at_mut(len);
    to.fill(D::from(pad));
    rest
}

/// Copies `len` elements, widening each, and gives the rest of `to`.
///
/// Whole steps first, each a move or two. What is left is a step as well where both sides are long enough, and so
/// spills into the rest, which is written later: a run of 9 bytes takes one move instead of a loop.
#[inline(always)]
fn copy<'t, S: Copy, D: Copy + From<S>>(from: &[S], to: &'t mut [D], len: usize) -> &'t mut [D] {
    const STEP: usize = 16;
    let (whole, left) = (len / STEP * STEP, len % STEP);
    let steps = to[..whole].as_chunks_mut::<STEP>().0.iter_mut().zip(from[..whole].as_chunks::<STEP>().0);
    for (to, from) in steps {
        *to = from.map(D::from);
    }
    if left > 0 {
        let (from, to) = (&from[whole..], &mut to[whole..]);
        match (from.first_chunk::<STEP>(), to.first_chunk_mut::<STEP>()) {
            (Some(from), Some(to)) => *to = from.map(D::from),
            _ => to[..left].iter_mut().zip(from).for_each(|(to, from)| *to = D::from(*from)),
        }
    }
    &mut to[len..]
}
