//! A dense product in blocks of matrix tiles (AMX): where the rows of each block lie, and in which order blocks
//! are multiplied. Knows no arithmetic.
//!
//! A tile reads 16 rows that lie evenly apart. Those of a pointwise product do; those of a convolution do in a copy of
//! the input with its padding, in which consecutive outputs read consecutive cells even across the end of a line.
//! Other rows are gathered.

use super::lines::with_scratch;
use super::patches::Patches;
use super::phases::Phases;
use super::tiles::INT8_MATRIX;
use super::walk::even;
use super::x86_64_amx::{Amx, Operands, Passing, SIDE, STEP, Sums};
use super::x86_64_amx_finish::{Columns, Finish, Run};
use super::{IntOutput, Window};
use std::ops::Range;

/// Bytes of rows that are multiplied with all panels before the next are: half a level-2 cache of 1 MiB or more.
const BLOCK_BYTES: usize = 384 << 10;

/// Bytes of panels that are multiplied with a block before the next is: another share of the level-2 cache.
const PANELS_BYTES: usize = 512 << 10;

/// Most rows that are gathered or copied at once.
const BLOCK_ROWS: usize = 512;

/// The depth of a product, cut into runs that are each packed with zeros up to whole steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    /// Runs.
    pub(super) count: usize,
    /// Elements of a run.
    pub(super) len: usize,
}

impl Runs {
    /// How a kernel of `taps` taps of `inputs` channels is cut: by taps, or by rows of a square kernel, whose elements
    /// lie side by side in a dense input, if that takes fewer steps.
    pub(super) fn of(taps: usize, inputs: usize) -> Runs {
        let by_taps = Runs { count: taps, len: inputs };
        let side = taps.isqrt();
        let by_rows = Runs { count: side, len: side * inputs };
        if side * side == taps && by_rows.steps() < by_taps.steps() { by_rows } else { by_taps }
    }

    /// Elements of a step: short runs read no more than they must, since few of their rows begin on a cache line.
    fn step(self) -> usize {
        self.len.next_power_of_two().clamp(16, STEP)
    }

    fn steps_of_run(self) -> usize {
        self.len.div_ceil(self.step())
    }

    fn steps(self) -> usize {
        self.count * self.steps_of_run()
    }

    /// Elements of a packed column.
    pub(super) fn depth(self) -> usize {
        self.steps() * self.step()
    }

    /// The element of the product that element `k` of a packed column is; none where it is a zero.
    pub(super) fn element(self, k: usize) -> Option<usize> {
        let padded = self.steps_of_run() * self.step();
        let (run, at) = (k / padded, k % padded);
        (at < self.len).then_some(run * self.len + at)
    }

    /// Where each step begins in a row whose run `i` begins at `start(i)`.
    fn offsets(self, start: impl Fn(usize) -> usize, offsets: &mut [usize]) {
        let steps = (0..self.count).flat_map(|run| (0..self.steps_of_run()).map(move |step| (run, step)));
        for (offset, (run, step)) in offsets.iter_mut().zip(steps) {
            *offset = start(run) + step * self.step();
        }
    }

    /// Writes a row of the product as a packed column has it.
    pub(super) fn spread(self, row: &[u8], to: &mut [u8]) {
        to.fill(0);
        for (row, to) in
            row.chunks_exact(self.len).zip(to.chunks_exact_mut(self.steps_of_run() * self.step()))
        {
            to[..self.len].copy_from_slice(row);
        }
    }
}

/// A product and where its results go.
pub(super) struct Product<'a, 'b, 'c, 'd> {
    pub(super) amx: Amx,
    /// Panels of [`INT8_MATRIX`], `runs.depth()` deep.
    pub(super) panels: &'a [i8],
    pub(super) runs: Runs,
    /// Columns of all panels.
    pub(super) columns: usize,
    pub(super) out: &'d mut IntOutput<'b, 'c>,
    /// Elements from one row of the output to the next.
    pub(super) out_stride: usize,
    /// Element of the output that row `first_row`'s first column goes to.
    pub(super) out_offset: usize,
    pub(super) first_row: usize,
}

/// What all blocks of a part share.
struct Scratch<'a> {
    steps: &'a mut [usize],
    /// Epilogue values of each panel.
    columns: &'a [Columns],
    /// Whether [`Columns::is_small`] holds for all.
    small: bool,
}

/// Rows that lie evenly apart: position `p` reads `a[p * stride + step ..]` for each step.
#[derive(Clone, Copy)]
struct Even<'a> {
    a: &'a [u8],
    stride: usize,
    steps: &'a [usize],
    /// Positions from the first output of one line to that of the next.
    pitch: usize,
    /// Outputs of a line, at its first positions. Those after them mean nothing.
    line: usize,
    /// Row of the product at position 0.
    row: usize,
}

impl<'a> Even<'a> {
    /// Rows one after the other, position 0 being row `row`.
    fn straight(a: &'a [u8], stride: usize, steps: &'a [usize], row: usize) -> Even<'a> {
        Even { a, stride, steps, pitch: usize::MAX, line: usize::MAX, row }
    }
}

impl Product<'_, '_, '_, '_> {
    /// Multiplies rows `rows` of `patches`; `done` gets the output and the rows of each block that is complete.
    pub(super) fn multiply(
        mut self,
        patches: &Patches<u8>,
        rows: Range<usize>,
        mut done: impl FnMut(&mut IntOutput, Range<usize>),
    ) {
        let panels = self.columns.div_ceil(SIDE);
        with_scratch::<usize, _>(self.runs.steps(), |steps| {
            with_scratch::<Columns, _>(panels, |columns| {
                for (i, columns) in columns.iter_mut().enumerate() {
                    let first = i * SIDE;
                    *columns = Columns::new(self.out, first, (self.columns - first).min(SIDE));
                }
                let scratch = &mut Scratch { steps, small: columns.iter().all(Columns::is_small), columns };
                if patches.in_place(rows.start).is_some() {
                    self.in_place(patches, rows, scratch, &mut done);
                } else if let Some(phases) = Phases::of(patches, self.runs.len) {
                    self.copied(&phases, patches.window, rows, scratch, &mut done);
                } else {
                    self.gathered(patches, rows, scratch, &mut done);
                }
            });
        });
    }

    /// Rows of a pointwise product.
    fn in_place(
        &mut self,
        patches: &Patches<u8>,
        rows: Range<usize>,
        scratch: &mut Scratch,
        done: &mut impl FnMut(&mut IntOutput, Range<usize>),
    ) {
        let (a, stride) = patches.in_place(rows.start).expect("rows in place");
        self.runs.offsets(|run| run * self.runs.len, scratch.steps);
        // The last step of a row reads on into the next. Rows too near the end of the input for that are gathered.
        let readable = (a.len() + stride).saturating_sub(self.runs.depth()) / stride;
        let mut whole = rows.len();
        if readable < whole {
            whole = readable / SIDE * SIDE;
        }
        let end = rows.start + whole;
        for block in even(rows.start..end, (BLOCK_BYTES / stride).clamp(SIDE, BLOCK_ROWS)) {
            let a = &a[(block.start - rows.start) * stride..];
            self.block(Even::straight(a, stride, scratch.steps, block.start), 0..block.len(), scratch);
            done(self.out, block);
        }
        self.gathered(patches, end..rows.end, scratch, done);
    }

    /// Rows of a convolution that lie evenly apart in a copy of the input.
    fn copied(
        &mut self,
        phases: &Phases,
        window: &Window,
        rows: Range<usize>,
        scratch: &mut Scratch,
        done: &mut impl FnMut(&mut IntOutput, Range<usize>),
    ) {
        let (line, lines) = (window.out_w, window.out_h);
        // Lines of one image each time; the first and the last of a part are perhaps not whole.
        let mut start = rows.start;
        while start < rows.end {
            let (image, from) = (start / line / lines, start / line % lines);
            let image_end = (start / line - from + lines) * line;
            let left = rows.end.min(image_end).div_ceil(line) - start / line;
            let count = even(0..left, phases.lines_within(BLOCK_BYTES)).next().expect("a line is left").len();
            let row = start / line * line;
            let end = rows.end.min(row + count * line);
            with_scratch::<u8, _>(phases.bytes(count) + STEP, |cells| {
                phases.copy(image, from, count, cells);
                self.runs.offsets(|run| phases.offset(run, count), scratch.steps);
                let pitch = phases.pitch();
                let position = |at: usize| (at - row) / line * pitch + (at - row) % line;
                let even = Even { a: cells, stride: phases.stride(), steps: scratch.steps, pitch, line, row };
                self.block(even, position(start)..position(end - 1) + 1, scratch);
            });
            done(self.out, start..end);
            start = end;
        }
    }

    /// Rows of any product.
    fn gathered(
        &mut self,
        patches: &Patches<u8>,
        rows: Range<usize>,
        scratch: &mut Scratch,
        done: &mut impl FnMut(&mut IntOutput, Range<usize>),
    ) {
        let depth = self.runs.count * self.runs.len;
        // An odd number of cache lines, so that the rows of a tile fall into different sets of a cache.
        let stride = ((depth + patches.spare()).div_ceil(STEP) | 1) * STEP;
        let most = (BLOCK_BYTES / stride).clamp(SIDE, BLOCK_ROWS) / SIDE * SIDE;
        self.runs.offsets(|run| run * self.runs.len, scratch.steps);
        with_scratch::<u8, _>(rows.len().min(most) * stride + STEP, |gathered| {
            for block in even(rows, most) {
                let to = &mut gathered[..block.len() * stride];
                self.amx.wide().vectorize(
                    #[inline(always)]
                    || patches.gather(block.start, 0..depth, to, stride),
                );
                self.block(
                    Even::straight(gathered, stride, scratch.steps, block.start),
                    0..block.len(),
                    scratch,
                );
                done(self.out, block);
            }
        });
    }

    /// Multiplies the rows at `positions` with all panels.
    fn block(&mut self, rows: Even, positions: Range<usize>, scratch: &Scratch) {
        self.amx.wide().vectorize(
            #[inline(always)]
            || self.block_by_block(rows, positions, scratch.columns, scratch.small),
        );
    }

    #[inline(always)]
    fn block_by_block(&mut self, rows: Even, positions: Range<usize>, epilogue: &[Columns], small: bool) {
        let count = positions.len();
        let blocks = count.div_ceil(SIDE);
        let height = count.div_ceil(2 * blocks);
        let mut tiles = self.amx.tiles(height, self.runs.step());
        let depth = self.runs.depth();
        // With few rows there is no second block that would find the panel in the cache, but the next panel finds
        // the rows.
        let passing = if blocks == 1 { Passing::Panel } else { Passing::Rows };
        // The sums of a block are finished while the next one multiplies: vector units and matrix unit work side by side.
        let mut sums = Sums::ZERO;
        let mut runs = [Run::NONE; MOST_RUNS];
        let (mut found, mut before) = (0, 0);
        let finish_of = |first: usize| Finish {
            amx: self.amx,
            columns: &epilogue[first / SIDE],
            count: (self.columns - first).min(SIDE),
            stride: self.out_stride,
            small,
        };
        // Rows to finish in each step, so that all are by the last; more where there are many steps, since few rows at a time
        // cost more.
        let share = (2 * height).div_ceil(rows.steps.len()).next_multiple_of(2).max(4);
        // Panels that stay in the level-2 cache meet block after block, so that lines of the output fill at once.
        let most = (PANELS_BYTES / (depth * SIDE)).max(1) * SIDE;
        for group in (0..self.columns).step_by(most) {
            let group = group..(group + most).min(self.columns);
            for block in 0..blocks {
                // The last tile overlaps the one before if need be, so that all are of one height.
                let tile = |i: usize| positions.start + ((2 * block + i) * height).min(count - height);
                let starts = [tile(0), tile(1)];
                for first in group.clone().step_by(SIDE) {
                    let width = INT8_MATRIX.width(first, self.columns);
                    let operands = Operands {
                        a: rows.a,
                        starts: starts.map(|position| position * rows.stride),
                        stride: rows.stride,
                        steps: rows.steps,
                        panel: &self.panels[INT8_MATRIX.panel_start(first, depth)..][..width * depth],
                        width,
                        passing,
                    };
                    let finish = finish_of(before);
                    let mut rest = &mut runs[..found];
                    tiles.multiply(operands, |_| finish.write(&sums, &mut rest, share, self.out));
                    finish.write(&sums, &mut rest, 2 * SIDE, self.out);
                    tiles.store(&mut sums);
                    let at = |row: usize| (row - self.first_row) * self.out_stride + self.out_offset + first;
                    found = runs_of(rows, starts, height, at, &mut runs);
                    before = first;
                }
            }
        }
        finish_of(before).write(&sums, &mut &mut runs[..found], 2 * SIDE, self.out);
    }
}

/// Runs of outputs in two tiles: each may begin and end within a line of [`Phases`], which has two positions or more.
const MOST_RUNS: usize = 2 * (SIDE / 2 / 2 + 1);

/// The outputs at the positions of two tiles, and the number of runs; `at` says where a row of the product goes.
#[inline(always)]
fn runs_of(
    rows: Even,
    starts: [usize; 2],
    height: usize,
    at: impl Fn(usize) -> usize,
    runs: &mut [Run; MOST_RUNS],
) -> usize {
    if rows.pitch == usize::MAX {
        let [first, second] = starts.map(|start| at(rows.row + start));
        runs[0] = Run { row: 0, count: height, at: first };
        runs[1] = Run { row: SIDE / 2, count: height, at: second };
        if height == SIDE / 2 && starts[1] == starts[0] + height {
            runs[0].count = SIDE;
            return 1;
        }
        return 2;
    }
    let mut found = 0;
    for (tile, start) in starts.into_iter().enumerate() {
        let (mut line, mut column, mut row) = (start / rows.pitch, start % rows.pitch, 0);
        while row < height {
            let count = rows.line.saturating_sub(column).min(height - row);
            if count > 0 {
                let at = at(rows.row + line * rows.line + column);
                runs[found] = Run { row: tile * SIDE / 2 + row, count, at };
                found += 1;
            }
            row += rows.pitch - column;
            (line, column) = (line + 1, 0);
        }
    }
    found
}
