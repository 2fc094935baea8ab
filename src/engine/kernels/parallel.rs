//! Work shared between threads: a static split of the output, on rayon's current pool, without allocating.
//! Knows nothing of what is computed.

use super::IntOutput;
use std::ops::Range;

/// A buffer that can be cut in two, so that each thread owns what it writes.
pub(in crate::engine) trait Split: Send + Sized {
    /// The elements before `mid` and those from it on.
    fn split(self, mid: usize) -> (Self, Self);
}

impl<T: Send> Split for &mut [T] {
    fn split(self, mid: usize) -> (Self, Self) {
        self.split_at_mut(mid)
    }
}

impl Split for IntOutput<'_, '_> {
    fn split(self, mid: usize) -> (Self, Self) {
        match self {
            IntOutput::U8(out, requant) => {
                let (left, right) = out.split_at_mut(mid);
                (IntOutput::U8(left, requant), IntOutput::U8(right, requant))
            }
            IntOutput::F32(out, dequant) => {
                let (left, right) = out.split_at_mut(mid);
                (IntOutput::F32(left, dequant), IntOutput::F32(right, dequant))
            }
            IntOutput::I32(out, bias) => {
                let (left, right) = out.split_at_mut(mid);
                (IntOutput::I32(left, bias), IntOutput::I32(right, bias))
            }
        }
    }
}

/// How many parts work of about `nanoseconds` is worth, at most `threads`.
///
/// Handing a part to another thread and waiting for it costs some microseconds, so work under 20 us stays here
/// and no part gets less than 10 us.
pub(in crate::engine) fn parts(threads: usize, nanoseconds: usize) -> usize {
    if nanoseconds < 20_000 { 1 } else { threads.clamp(1, nanoseconds / 10_000) }
}

/// Cuts `rows` and `out`, of `row_len` elements a row, into `parts` of about equal size and calls `work` with
/// each. All parts but the last hold a multiple of `quantum` rows.
///
/// A caller that is not on a rayon thread waits for one to take the work, some 10 us; run models inside
/// `ThreadPool::install`.
pub(in crate::engine) fn split_rows<O: Split>(
    out: O,
    rows: Range<usize>,
    row_len: usize,
    quantum: usize,
    parts: usize,
    work: &(impl Fn(Range<usize>, O) + Sync),
) {
    let quanta = rows.len().div_ceil(quantum);
    let parts = parts.min(quanta);
    if parts <= 1 {
        return work(rows, out);
    }
    let left_parts = parts / 2;
    let mid = quanta * left_parts / parts * quantum;
    let (left, right) = out.split(mid * row_len);
    let (first, second) = (rows.start..rows.start + mid, rows.start + mid..rows.end);
    rayon::join(
        || split_rows(left, first, row_len, quantum, left_parts, work),
        || split_rows(right, second, row_len, quantum, parts - left_parts, work),
    );
}

/// Like [`split_rows`], for units of unequal size: unit `i` begins at element `start(i)`.
pub(in crate::engine) fn split_units<O: Split>(
    out: O,
    units: Range<usize>,
    start: &(impl Fn(usize) -> usize + Sync),
    parts: usize,
    work: &(impl Fn(Range<usize>, O) + Sync),
) {
    let parts = parts.min(units.len());
    if parts <= 1 {
        return work(units, out);
    }
    let left_parts = parts / 2;
    let mid = units.start + units.len() * left_parts / parts;
    let (left, right) = out.split(start(mid) - start(units.start));
    rayon::join(
        || split_units(left, units.start..mid, start, left_parts, work),
        || split_units(right, mid..units.end, start, parts - left_parts, work),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once_with_its_own_output() {
        for (rows, row_len, quantum, parts) in
            [(0, 3, 1, 2), (1, 1, 4, 8), (7, 2, 2, 3), (100, 1, 6, 2), (13, 5, 1, 16)]
        {
            let mut out = vec![0usize; rows * row_len];
            split_rows(&mut out[..], 0..rows, row_len, quantum, parts, &|range, out| {
                for (i, row) in range.zip(out.chunks_mut(row_len)) {
                    row.iter_mut().for_each(|v| *v += i + 1);
                }
            });
            let want: Vec<usize> = (0..rows * row_len).map(|i| i / row_len + 1).collect();
            assert_eq!(out, want, "{rows} rows in {parts} parts");
        }
    }

    #[test]
    fn little_work_stays_on_one_thread() {
        assert_eq!(
            [parts(8, 0), parts(8, 19_999), parts(8, 20_000), parts(8, 1 << 30), parts(0, 1 << 30)],
            [1, 1, 2, 8, 1]
        );
    }
}
