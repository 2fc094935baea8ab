//! Convolution as a product: the rows of input that one output pixel reads, gathered a few at a time into
//! scratch. No im2col tensor. Knows no weights.

use super::Window;
use std::ops::Range;

/// Elements that are copied at once, and that a copy may write too many.
const STEP: usize = 16;

/// The input of a convolution, seen as a matrix `[window.rows(), taps * inputs]`.
pub(super) struct Patches<'a, T> {
    /// `[batch, in_h, in_w, in_stride]`.
    pub(super) x: &'a [T],
    pub(super) in_stride: usize,
    pub(super) in_offset: usize,
    pub(super) inputs: usize,
    pub(super) window: &'a Window,
    pub(super) pad: T,
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

    /// Elements that [`Patches::gather`] needs between its rows.
    pub(super) fn spare(&self) -> usize {
        if self.window.is_pointwise() { 0 } else { STEP }
    }

    /// Writes elements `depth` of rows `first_row ..` to `rows`, `[count, stride]`, where `stride` is
    /// [`Patches::spare`] longer than `depth` or more; what lies past the first `depth.len()` elements of each means
    /// nothing.
    #[inline(always)]
    pub(super) fn gather<D: Copy + From<T>>(
        &self,
        first_row: usize,
        depth: Range<usize>,
        rows: &mut [D],
        stride: usize,
    ) {
        let window = self.window;
        assert!(
            depth.end <= window.taps() * self.inputs && stride >= depth.len() + self.spare(),
            "rows apart"
        );
        if stride == self.inputs
            && let Some((x, in_stride)) = self.in_place(first_row)
            && in_stride == stride
        {
            copy(x, rows, rows.len());
            return;
        }
        let count = rows.len() / stride;
        let line_len = window.kernel_w * self.inputs;
        let mut done = 0;
        while done < count {
            // Output pixels of one line share the input lines.
            let (line, ox) = ((first_row + done) / window.out_w, (first_row + done) % window.out_w);
            let columns = ox..(ox + count - done).min(window.out_w);
            let rows = &mut rows[done * stride..];
            done += columns.len();
            for ky in depth.start / line_len..depth.end.div_ceil(line_len) {
                let y = line % window.out_h * window.stride_h + ky * window.dilation_h;
                let inside = y >= window.pad_top && y - window.pad_top < window.in_h;
                let start = (line / window.out_h * window.in_h + y).wrapping_sub(window.pad_top);
                let from = inside.then(|| start * window.in_w * self.in_stride);
                let run = depth.start.max(ky * line_len)..depth.end.min((ky + 1) * line_len);
                let to = &mut rows[run.start - depth.start..];
                let run = run.start - ky * line_len..run.end - ky * line_len;
                self.gather_line(from, columns.clone(), run, to, stride);
            }
        }
    }

    /// Writes the input lines of `image` from `first` on, counted with the padding above, to `lines`, `line_len` apart: each
    /// from the padding on its left on, as far as there is room, the channels of a pixel side by side.
    #[inline(always)]
    pub(super) fn lines<D: Copy + From<T>>(
        &self,
        image: usize,
        first: usize,
        lines: &mut [D],
        line_len: usize,
    ) {
        let (window, inputs) = (self.window, self.inputs);
        for (y, line) in (first..).zip(lines.chunks_exact_mut(line_len)) {
            if y < window.pad_top || y - window.pad_top >= window.in_h {
                fill(line, self.pad, line_len);
                continue;
            }
            let mut line = fill(line, self.pad, line_len.min(window.pad_left * inputs));
            let pixels = window.in_w.min(line.len() / inputs);
            let start = (image * window.in_h + y - window.pad_top) * window.in_w * self.in_stride;
            if self.in_stride == inputs {
                line = copy(&self.x[start..], line, pixels * inputs);
            } else {
                for pixel in 0..pixels {
                    let from = start + pixel * self.in_stride + self.in_offset;
                    line = copy(&self.x[from..], line, inputs);
                }
            }
            let rest = line.len();
            fill(line, self.pad, rest);
        }
    }

    /// Writes elements `run` of one kernel row of the output pixels `columns`, `stride` apart. `line` is where the input
    /// line begins, if it is one.
    #[inline(always)]
    fn gather_line<D: Copy + From<T>>(
        &self,
        line: Option<usize>,
        columns: Range<usize>,
        run: Range<usize>,
        to: &mut [D],
        stride: usize,
    ) {
        let (window, inputs) = (self.window, self.inputs);
        let Some(line) = line else {
            for i in 0..columns.len() {
                fill(&mut to[i * stride..], self.pad, run.len());
            }
            return;
        };
        let column = |ox: usize| (ox - columns.start) * stride;
        if window.dilation_w > 1 || self.in_stride > inputs {
            for ox in columns.clone() {
                let (x0, mut to) = (ox * window.stride_w, &mut to[column(ox)..]);
                for kx in run.start / inputs..run.end.div_ceil(inputs) {
                    let first = run.start.saturating_sub(kx * inputs);
                    let len = inputs.min(run.end - kx * inputs) - first;
                    let x = x0 + kx * window.dilation_w;
                    if x < window.pad_left || x - window.pad_left >= window.in_w {
                        to = fill(to, self.pad, len);
                    } else {
                        let from = line + (x - window.pad_left) * self.in_stride + self.in_offset + first;
                        to = copy(&self.x[from..], to, len);
                    }
                }
            }
            return;
        }
        // Neighbouring taps of dense channels lie side by side in memory: one run, which is what makes a stem of
        // three channels cheap. Pixels whose run is whole come without a test.
        let whole_to = (window.in_w + window.pad_left + window.stride_w).saturating_sub(window.kernel_w);
        let first_whole = window.pad_left.div_ceil(window.stride_w).clamp(columns.start, columns.end);
        let end_whole = (whole_to / window.stride_w).clamp(first_whole, columns.end);
        for ox in (columns.start..first_whole).chain(end_whole..columns.end) {
            let (x0, mut to) = (ox * window.stride_w, &mut to[column(ox)..]);
            let left = window.pad_left.saturating_sub(x0) * inputs;
            let right = (window.in_w + window.pad_left).saturating_sub(x0) * inputs;
            let left = left.clamp(run.start, run.end);
            let right = right.clamp(left, run.end);
            to = fill(to, self.pad, left - run.start);
            if left < right {
                let from = line + x0 * inputs + left - window.pad_left * inputs;
                to = copy(&self.x[from..], to, right - left);
            }
            fill(to, self.pad, run.end - right);
        }
        for ox in first_whole..end_whole {
            let from = line + (ox * window.stride_w - window.pad_left) * inputs + run.start;
            copy(&self.x[from..], &mut to[column(ox)..], run.len());
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
