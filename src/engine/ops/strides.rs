//! Walks over tensors whose axes are read in another order, repeated or skipped. All steps are counted in elements.

use crate::engine::tensor::{Tensor, TensorView};

/// Runs `$body` with `$w` standing for a word as wide as one element: for operators that only move elements.
macro_rules! with_width {
    ($dtype:expr, $w:ident => $body:expr) => {
        match $dtype.size() {
            1 => {
                type $w = u8;
                $body
            }
            2 => {
                type $w = u16;
                $body
            }
            4 => {
                type $w = u32;
                $body
            }
            _ => {
                type $w = u64;
                $body
            }
        }
    };
}

/// Step of each axis of a row-major tensor.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Step of each axis of `to` in an operand of shape `from` that broadcasts to it: 0 where the operand repeats.
pub(super) fn broadcast_to(from: &[usize], to: &[usize]) -> Vec<usize> {
    let own = row_major(from);
    let missing = to.len() - from.len();
    let step =
        |axis: usize| if axis < missing || from[axis - missing] == 1 { 0 } else { own[axis - missing] };
    (0..to.len()).map(step).collect()
}

/// Walks a row-major result of `shape`, row by row: `each` gets where the row begins in the result, its length, and
/// where it begins in every operand, whose steps within the row are the last of its `strides`.
pub(super) fn rows<const N: usize>(
    shape: &[usize],
    strides: [&[usize]; N],
    mut each: impl FnMut(usize, usize, [usize; N]),
) {
    let (outer, length) = match shape.split_last() {
        Some((&last, outer)) => (outer, last),
        None => (shape, 1),
    };
    // A tensor without elements may have any number of rows.
    let count: usize = if length == 0 { 0 } else { outer.iter().product() };
    let mut index = vec![0usize; outer.len()];
    let mut at = [0usize; N];
    for row in 0..count {
        each(row * length, length, at);
        for axis in (0..outer.len()).rev() {
            index[axis] += 1;
            for (at, strides) in at.iter_mut().zip(&strides) {
                *at += strides[axis];
            }
            if index[axis] < outer[axis] {
                break;
            }
            index[axis] = 0;
            for (at, strides) in at.iter_mut().zip(&strides) {
                *at -= strides[axis] * outer[axis];
            }
        }
    }
}

/// The step of an operand within a row of [`rows`].
pub(super) fn last(strides: &[usize]) -> usize {
    strides.last().copied().unwrap_or(0)
}

/// Before, along and after an axis: the three lengths into which it cuts a shape.
pub(super) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// A tensor of `shape` whose axes step through `x` by `strides`: a transpose, a diagonal, a repetition.
pub(super) fn gathered(x: &TensorView<'_>, shape: &[usize], strides: &[usize]) -> Tensor {
    let mut made = Tensor::zeros(x.dtype, shape);
    with_width!(x.dtype, W => {
        let (from, to) = (words::<W>(x), words_mut::<W>(&mut made));
        let step = last(strides);
        rows(shape, [strides], |start, length, [at]| {
            let row = &mut to[start..][..length];
            match step {
                1 => row.copy_from_slice(&from[at..][..length]),
                step => row.iter_mut().enumerate().for_each(|(i, y)| *y = from[at + i * step]),
            }
        });
    });
    made
}

/// The elements of a view as words of their width.
pub(super) fn words<'a, W: bytemuck::Pod>(x: &TensorView<'a>) -> &'a [W] {
    bytemuck::cast_slice(x.bytes)
}

/// The elements of a tensor as words of their width, to be written.
pub(super) fn words_mut<W: bytemuck::Pod>(x: &mut Tensor) -> &mut [W] {
    bytemuck::cast_slice_mut(x.view_mut().bytes)
}

pub(super) use with_width;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_transpose_repeat_and_take_diagonals() {
        let x = Tensor::from_slice(&[2, 3], &[1i16, 2, 3, 4, 5, 6]);
        let of =
            |shape: &[usize], strides: &[usize]| gathered(&x.view(), shape, strides).slice::<i16>().to_vec();
        assert_eq!(of(&[3, 2], &[1, 3]), [1, 4, 2, 5, 3, 6]);
        assert_eq!(of(&[2], &[4]), [1, 5]);
        assert_eq!(of(&[2, 2, 1], &[0, 3, 0]), [1, 4, 1, 4]);
        assert_eq!(of(&[], &[]), [1]);
        assert_eq!(of(&[0, 2], &[0, 0]), [0i16; 0]);
    }

    #[test]
    fn an_operand_that_broadcasts_repeats() {
        assert_eq!(broadcast_to(&[3, 1], &[2, 3, 4]), [0, 1, 0]);
        assert_eq!(broadcast_to(&[], &[2]), [0]);
        assert_eq!(broadcast_to(&[2, 3], &[2, 3]), [3, 1]);
    }
}
