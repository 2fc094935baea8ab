//! Walks over row-major tensors: broadcasting, and reads with any strides. Plain index arithmetic.

use std::ops::Range;

use crate::engine::graph::shapes::RANK_MAX;
use crate::engine::tensor::Element;

/// Most axes of a walk: Tile has two for each of its operand's.
const AXES_MAX: usize = 2 * RANK_MAX;

/// A loop nest over an output in row-major order, with the strides of its operands; runs of axes that every
/// operand walks evenly are one.
#[derive(Clone, Debug)]
pub(super) struct Walk<const N: usize> {
    shape: Vec<usize>,
    strides: Vec<[isize; N]>,
}

/// Strides of a row-major tensor in elements.
pub(super) fn row_major(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i] as isize;
    }
    strides
}

impl<const N: usize> Walk<N> {
    /// A walk over `shape`; `strides[operand][axis]` in elements.
    pub(super) fn new(shape: &[usize], strides: [Vec<isize>; N]) -> Walk<N> {
        let mut walk = Walk { shape: Vec::new(), strides: Vec::new() };
        for axis in 0..shape.len() {
            if shape[axis] == 1 {
                continue;
            }
            let stride: [isize; N] = std::array::from_fn(|op| strides[op][axis]);
            let length = shape[axis] as isize;
            // The axis before continues into this one where each of its steps spans the whole of this one.
            let joins =
                walk.strides.last().is_some_and(|last| (0..N).all(|op| last[op] == stride[op] * length));
            if joins {
                *walk.shape.last_mut().expect("a stride has its length") *= shape[axis];
                *walk.strides.last_mut().expect("just looked at") = stride;
            } else {
                walk.shape.push(shape[axis]);
                walk.strides.push(stride);
            }
        }
        if walk.shape.is_empty() {
            walk.shape.push(1);
            walk.strides.push([0; N]);
        }
        walk
    }

    /// A walk over the broadcast of operands with the given shapes.
    pub(super) fn broadcast(shape: &[usize], operands: [&[usize]; N]) -> Walk<N> {
        let strides = operands.map(|operand| {
            let own = row_major(operand);
            let lead = shape.len() - operand.len();
            let stride = |i: usize| if i < lead || operand[i - lead] == 1 { 0 } else { own[i - lead] };
            (0..shape.len()).map(stride).collect()
        });
        Walk::new(shape, strides)
    }

    /// Length of the outermost axis: what a walk can be cut along.
    pub(super) fn outer(&self) -> usize {
        self.shape[0]
    }

    /// Calls `row(out, starts, length, steps)` for each innermost run: `length` outputs from `out` on, each operand
    /// from its start on with its step.
    pub(super) fn rows(&self, row: impl FnMut(usize, [isize; N], usize, [isize; N])) {
        self.rows_in(0..self.outer(), row);
    }

    /// As [`Walk::rows`], for the places `range` of the outermost axis; outputs count from the first of them.
    #[inline(always)]
    pub(super) fn rows_in(
        &self,
        range: Range<usize>,
        mut row: impl FnMut(usize, [isize; N], usize, [isize; N]),
    ) {
        if range.is_empty() || self.shape.contains(&0) {
            return;
        }
        let last = self.shape.len() - 1;
        let mut starts = self.strides[0].map(|stride| stride * range.start as isize);
        // One place that calls `row`, so that it is inlined, and compiled for the instruction set of the caller.
        let length = if last == 0 { range.len() } else { self.shape[last] };
        let steps = self.strides[last];
        let mut index = [0usize; AXES_MAX];
        index[0] = range.start;
        let mut out = 0;
        loop {
            row(out, starts, length, steps);
            out += length;
            let mut axis = last;
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                (0..N).for_each(|op| starts[op] += self.strides[axis][op]);
                let end = if axis == 0 { range.end } else { self.shape[axis] };
                if index[axis] < end {
                    break;
                }
                (0..N).for_each(|op| starts[op] -= self.strides[axis][op] * self.shape[axis] as isize);
                index[axis] = 0;
            }
        }
    }
}

/// Copies `from`, read from element `offset` on with the strides of `walk`, to `out` in row-major order.
pub(super) fn copy<T: Element>(walk: &Walk<1>, offset: usize, from: &[T], out: &mut [T]) {
    walk.rows(|at, [start], length, [step]| {
        let start = offset.wrapping_add_signed(start);
        let row = &mut out[at..at + length];
        match step {
            1 => row.copy_from_slice(&from[start..start + length]),
            0 => row.fill(from[start]),
            step => {
                for (i, y) in row.iter_mut().enumerate() {
                    *y = from[start.wrapping_add_signed(step * i as isize)];
                }
            }
        }
    });
}

/// Copies elements of any size, as [`copy`].
pub(super) fn copy_bytes(size: usize, walk: &Walk<1>, offset: usize, from: &[u8], out: &mut [u8]) {
    use bytemuck::{cast_slice, cast_slice_mut};
    match size {
        1 => copy::<u8>(walk, offset, from, out),
        2 => copy::<u16>(walk, offset, cast_slice(from), cast_slice_mut(out)),
        4 => copy::<u32>(walk, offset, cast_slice(from), cast_slice_mut(out)),
        _ => copy::<u64>(walk, offset, cast_slice(from), cast_slice_mut(out)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_is_a_strided_copy() {
        let from: Vec<u8> = (0..24).collect();
        let strides = row_major(&[2, 3, 4]);
        // perm (2, 0, 1)
        let walk = Walk::new(&[4, 2, 3], [vec![strides[2], strides[0], strides[1]]]);
        let mut out = [0u8; 24];
        copy(&walk, 0, &from, &mut out);
        assert_eq!(out[..6], [0, 4, 8, 12, 16, 20]);
        assert_eq!(out[6..12], [1, 5, 9, 13, 17, 21]);
    }

    #[test]
    fn axes_that_are_walked_evenly_are_joined() {
        let walk = Walk::<2>::broadcast(&[2, 3, 4], [&[2, 3, 4], &[1, 3, 4]]);
        assert_eq!(walk.shape, [2, 12]);
        let walk = Walk::<2>::broadcast(&[2, 3, 4], [&[2, 3, 4], &[4]]);
        assert_eq!(walk.shape, [6, 4]);
        let mut sum = 0;
        walk.rows(|_, [a, b], n, [sa, sb]| {
            assert_eq!((n, sa, sb, b), (4, 1, 1, 0));
            sum += a;
        });
        assert_eq!(sum, 4 * 15);
    }

    #[test]
    fn a_walk_in_pieces_is_the_walk() {
        for (shape, operands) in [
            (&[5, 3, 4][..], [&[5, 3, 4][..], &[5, 1, 4]]),
            (&[5, 3, 4], [&[1, 3, 1], &[5, 1, 4]]),
            (&[7], [&[7], &[1]]),
            (&[7], [&[7], &[7]]),
        ] {
            let walk = Walk::<2>::broadcast(shape, operands);
            let seen = |range: Range<usize>, first: usize| {
                let mut all = Vec::new();
                walk.rows_in(range, |at, starts, n, steps| {
                    for i in 0..n {
                        all.push((first + at + i, starts.map(|s| s), steps.map(|s| s * i as isize)));
                    }
                });
                all.into_iter().map(|(at, [a, b], [da, db])| (at, a + da, b + db)).collect::<Vec<_>>()
            };
            let whole = seen(0..walk.outer(), 0);
            let row = whole.len() / walk.outer();
            for cut in 0..=walk.outer() {
                let pieces = [seen(0..cut, 0), seen(cut..walk.outer(), cut * row)].concat();
                assert_eq!(pieces, whole, "{shape:?} cut at {cut}");
            }
        }
    }
}
