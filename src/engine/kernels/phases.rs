//! The input lines of a convolution copied with their padding, such that consecutive outputs read cells that lie
//! evenly apart, even where one line ends and the next begins. Knows no weights.
//!
//! Under a stride of `s` lines, line `y` goes to plane `y % s`, so that one output line and the next read neighbouring
//! lines of each plane; columns likewise if each tap is read by itself. Where the stride is 1, the padding right
//! of a line is also the padding left of the next.

use super::Window;
use super::patches::Patches;

/// How the input of one convolution is laid out.
pub(super) struct Phases<'a> {
    patches: &'a Patches<'a, u8>,
    /// Whether a run is a tap, not a row of the kernel.
    by_taps: bool,
    /// Columns from one plane to the next: the stride, or 1 if columns are not spread over planes.
    split_w: usize,
    /// Outputs from one line to the next.
    pitch: usize,
    /// Pixels of a line's padding that the next line holds.
    shared: usize,
}

impl<'a> Phases<'a> {
    /// The layout in which each run of `run` elements of the depth (a tap, or a row of the kernel) of an output lies in
    /// one piece, if there is one and it is worth a copy.
    pub(super) fn of(patches: &'a Patches<'a, u8>, run: usize) -> Option<Phases<'a>> {
        let (window, inputs) = (patches.window, patches.inputs);
        let by_taps = run == inputs;
        let by_rows = run == window.kernel_w * inputs && window.dilation_w == 1;
        // Few outputs an image: a tile could not be filled.
        if !(by_taps || by_rows) || window.out_w < 2 || window.out_h * window.out_w < 16 {
            return None;
        }
        let split_w = if by_taps { window.stride_w } else { 1 };
        let reach = (window.kernel_w - 1) * window.dilation_w;
        let (pitch, shared) = if window.stride_w == 1 {
            let line = window.out_w + reach;
            let pad_right = line.saturating_sub(window.in_w + window.pad_left);
            let shared = pad_right.min(window.pad_left);
            // Never less than the outputs of a line, nor so few that a line's padding would meet the one after the next.
            let shared = shared.min(reach).min(line / 2);
            (line - shared, shared)
        } else if by_taps {
            (window.out_w + reach / window.stride_w, 0)
        } else {
            let line = (window.out_w - 1) * window.stride_w + reach + 1;
            (line.div_ceil(window.stride_w), 0)
        };
        Some(Phases { patches, by_taps, split_w, pitch, shared })
    }

    /// Positions from the first output of one line to that of the next.
    pub(super) fn pitch(&self) -> usize {
        self.pitch
    }

    /// Bytes from what one output reads to what the next does.
    pub(super) fn stride(&self) -> usize {
        self.patches.window.stride_w / self.split_w * self.patches.inputs
    }

    /// Bytes of the copy for `lines` output lines.
    pub(super) fn bytes(&self, lines: usize) -> usize {
        self.patches.window.stride_h * self.split_w * self.plane(lines)
    }

    /// Output lines whose copy takes at most `bytes`; at least one.
    pub(super) fn lines_within(&self, bytes: usize) -> usize {
        let one = self.bytes(2) - self.bytes(1);
        (bytes.saturating_sub(self.bytes(0)) / one).max(1)
    }

    /// Where run `run` of the first output begins in the copy for `lines` output lines.
    pub(super) fn offset(&self, run: usize, lines: usize) -> usize {
        let window = self.patches.window;
        let per_row = if self.by_taps { window.kernel_w } else { 1 };
        let (y, x) = (run / per_row * window.dilation_h, run % per_row * window.dilation_w);
        let plane = y % window.stride_h * self.split_w + x % self.split_w;
        plane * self.plane(lines) + y / window.stride_h * self.line() + x / self.split_w * self.patches.inputs
    }

    /// Fills `cells` for `lines` output lines of `image` from line `first` on.
    pub(super) fn copy(&self, image: usize, first: usize, lines: usize, cells: &mut [u8]) {
        let Patches { x, in_stride, in_offset, inputs, window, pad } = *self.patches;
        let used = |phase: usize, kernel: usize, dilation: usize, split: usize| {
            (0..kernel).any(|tap| tap * dilation % split == phase)
        };
        let columns = self.line() / inputs;
        for plane in 0..window.stride_h * self.split_w {
            let (phase_y, phase_x) = (plane / self.split_w, plane % self.split_w);
            if !used(phase_y, window.kernel_h, window.dilation_h, window.stride_h)
                || !used(phase_x, window.kernel_w, window.dilation_w, self.split_w)
            {
                continue;
            }
            let cells = &mut cells[plane * self.plane(lines)..][..self.plane(lines)];
            // Columns of the copy that lie within the input.
            let inside = |x: usize| (x + window.pad_left).saturating_sub(phase_x).div_ceil(self.split_w);
            let (left, right) = (inside(0).min(columns), inside(window.in_w).min(columns));
            let count = self.plane_lines(lines);
            for i in 0..count {
                let line = &mut cells[i * self.line()..][..self.line()];
                let y = (first + i) * window.stride_h + phase_y;
                if y < window.pad_top || y - window.pad_top >= window.in_h {
                    line.fill(pad);
                    continue;
                }
                line[..left * inputs].fill(pad);
                line[right * inputs..].fill(pad);
                let from = (image * window.in_h + y - window.pad_top) * window.in_w;
                let column = |j: usize| j * self.split_w + phase_x - window.pad_left;
                if self.split_w == 1 && in_stride == inputs {
                    if left < right {
                        let from = (from + column(left)) * inputs;
                        line[left * inputs..right * inputs]
                            .copy_from_slice(&x[from..][..(right - left) * inputs]);
                    }
                    continue;
                }
                for (j, to) in (left..right).zip(line[left * inputs..].chunks_exact_mut(inputs)) {
                    to.copy_from_slice(&x[(from + column(j)) * in_stride + in_offset..][..inputs]);
                }
            }
            cells[count * self.line()..].fill(pad);
        }
    }

    /// Bytes of a line of a plane.
    fn line(&self) -> usize {
        self.pitch * self.stride()
    }

    /// Lines of a plane for `lines` output lines.
    fn plane_lines(&self, lines: usize) -> usize {
        let Window { kernel_h, dilation_h, stride_h, .. } = *self.patches.window;
        lines + (kernel_h - 1) * dilation_h / stride_h
    }

    /// Bytes of a plane: its lines, and the padding after the last.
    fn plane(&self, lines: usize) -> usize {
        self.plane_lines(lines) * self.line() + self.shared * self.patches.inputs
    }
}
