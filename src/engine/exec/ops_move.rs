//! Operators that move elements without looking at them: transpose, slice, join, gather, pad and their like.

use crate::engine::graph::fact::{Fact, axis_index};
use crate::engine::graph::op::PadMode;
use crate::engine::graph::shapes::{permutation, slice_ranges};
use crate::engine::tensor::DType;

use super::step::Kernel;
use super::strided::{Walk, copy_bytes, row_major};

/// A copy of the bytes under another shape.
pub(super) fn same_bytes() -> Kernel {
    Box::new(|operands, out, _| {
        out.bytes.copy_from_slice(operands.need(0).bytes);
        Ok(())
    })
}

/// A read of operand 0 with given strides, from element `offset` on.
fn strided(dtype: DType, shape: &[usize], strides: Vec<isize>, offset: usize) -> Kernel {
    let walk = Walk::new(shape, [strides]);
    let size = dtype.size();
    Box::new(move |operands, out, _| {
        copy_bytes(size, &walk, offset, operands.need(0).bytes, out.bytes);
        Ok(())
    })
}

/// Transpose.
pub(super) fn transpose(x: &Fact, perm: &[usize]) -> Result<Kernel, String> {
    let perm = permutation(perm, x.shape.len())?;
    let own = row_major(&x.shape);
    let shape: Vec<usize> = perm.iter().map(|&p| x.shape[p]).collect();
    Ok(strided(x.dtype, &shape, perm.iter().map(|&p| own[p]).collect(), 0))
}

/// Slice, with any step.
pub(super) fn slice(inputs: &[Option<&Fact>]) -> Result<Kernel, String> {
    let x = inputs[0].ok_or("input 0 is missing")?;
    let ranges = slice_ranges(&x.shape, inputs)?;
    let own = row_major(&x.shape);
    let shape: Vec<usize> = ranges.iter().map(|r| r.2).collect();
    // A step may be huge where only one element is taken: the stride is not used then.
    let stride = |(i, r): (usize, &(usize, i64, usize))| if r.2 > 1 { own[i] * r.1 as isize } else { 0 };
    let strides = ranges.iter().enumerate().map(stride).collect();
    let offset = ranges.iter().zip(&own).map(|(r, s)| r.0 * *s as usize).sum();
    Ok(strided(x.dtype, &shape, strides, offset))
}

/// One part of Split: `length` elements of `axis` from `start` on.
pub(super) fn part(x: &Fact, axis: usize, start: usize, length: usize) -> Kernel {
    let own = row_major(&x.shape);
    let mut shape = x.shape.clone();
    shape[axis] = length;
    let offset = start * own[axis] as usize;
    strided(x.dtype, &shape, own, offset)
}

/// Expand.
pub(super) fn expand(x: &Fact, out: &[usize]) -> Kernel {
    let walk = Walk::broadcast(out, [&x.shape]);
    let size = x.dtype.size();
    Box::new(move |operands, out, _| {
        copy_bytes(size, &walk, 0, operands.need(0).bytes, out.bytes);
        Ok(())
    })
}

/// Tile: each axis is read again and again, as an outer axis of stride 0.
pub(super) fn tile(x: &Fact, out: &[usize]) -> Kernel {
    let own = row_major(&x.shape);
    let mut shape = Vec::new();
    let mut strides = Vec::new();
    for axis in 0..x.shape.len() {
        let repeats = out[axis].checked_div(x.shape[axis]).unwrap_or(0);
        shape.extend([repeats, x.shape[axis]]);
        strides.extend([0, own[axis]]);
    }
    strided(x.dtype, &shape, strides, 0)
}

/// Concat on `axis`.
pub(super) fn concat(axis: usize, inputs: &[Option<&Fact>], out: &[usize]) -> Kernel {
    let after: usize = out[axis + 1..].iter().product();
    let before: usize = out[..axis].iter().product();
    let blocks: Vec<usize> =
        inputs.iter().map(|x| x.map_or(0, |x| x.shape[axis] * after * x.dtype.size())).collect();
    let row: usize = blocks.iter().sum();
    Box::new(move |operands, out, _| {
        let mut column = 0;
        for (index, &block) in blocks.iter().enumerate() {
            let from = operands.need(index).bytes;
            if block > 0 {
                for i in 0..before {
                    let at = i * row + column;
                    out.bytes[at..at + block].copy_from_slice(&from[i * block..(i + 1) * block]);
                }
            }
            column += block;
        }
        Ok(())
    })
}

/// Gather on `axis`.
pub(super) fn gather(axis: i64, x: &Fact, indices: &Fact) -> Result<Kernel, String> {
    let axis = axis_index(axis, x.shape.len(), false)?;
    let length = x.shape[axis];
    let block = x.shape[axis + 1..].iter().product::<usize>() * x.dtype.size();
    let before: usize = x.shape[..axis].iter().product();
    if !matches!(indices.dtype, DType::I32 | DType::I64) {
        return Err(format!("indices are {}, int32 or int64 is needed", indices.dtype));
    }
    Ok(Box::new(move |operands, out, _| {
        let (x, indices) = (operands.need(0), operands.need(1));
        let count = indices.len();
        let at = |i: usize| match indices.dtype {
            DType::I32 => i64::from(indices.slice::<i32>()[i]),
            _ => indices.slice::<i64>()[i],
        };
        for i in 0..count {
            let index = at(i);
            let from = if index < 0 { index + length as i64 } else { index };
            if !(0..length as i64).contains(&from) {
                return Err(format!("index {index} is outside of an axis of length {length}"));
            }
            for b in 0..before {
                let (from, to) = ((b * length + from as usize) * block, (b * count + i) * block);
                out.bytes[to..to + block].copy_from_slice(&x.bytes[from..from + block]);
            }
        }
        Ok(())
    }))
}

/// Where: a choice element by element.
pub(super) fn choose(inputs: &[Option<&Fact>], out: &[usize]) -> Result<Kernel, String> {
    let [Some(condition), Some(a), Some(b)] = inputs else {
        return Err("three inputs are needed".to_owned());
    };
    if condition.dtype != DType::Bool {
        return Err(format!("the condition is {}, bool is needed", condition.dtype));
    }
    let walk = Walk::broadcast(out, [&condition.shape, &a.shape, &b.shape]);
    let size = a.dtype.size();
    Ok(Box::new(move |operands, out, _| {
        let (condition, a, b) = (operands.need(0).bytes, operands.need(1).bytes, operands.need(2).bytes);
        walk.rows(|at, [c, x, y], length, [dc, dx, dy]| {
            for i in 0..length {
                let step = i as isize;
                let (from, index) = match condition[(c + dc * step) as usize] {
                    0 => (b, (y + dy * step) as usize),
                    _ => (a, (x + dx * step) as usize),
                };
                let to = (at + i) * size;
                out.bytes[to..to + size].copy_from_slice(&from[index * size..(index + 1) * size]);
            }
        });
        Ok(())
    }))
}

/// Longest axis that Pad makes: a number is kept for each of its elements.
const PADDED_MAX: i64 = 1 << 24;

/// Pad in every mode. `amounts` are elements before and after each axis, negative where elements go;
/// `has_value` says that operand 2 is the value.
pub(super) fn pad_by(
    mode: PadMode,
    x: &Fact,
    amounts: &[(i64, i64)],
    has_value: bool,
) -> Result<Kernel, String> {
    let maps: Vec<Vec<Option<usize>>> = x
        .shape
        .iter()
        .zip(amounts)
        .map(|(&length, &(begin, end))| axis_map(mode, length, begin, end))
        .collect::<Result<_, _>>()?;
    let strides = row_major(&x.shape);
    let size = x.dtype.size();
    Ok(Box::new(move |operands, out, _| {
        let from = operands.need(0).bytes;
        let zero = [0u8; 8];
        let value = match operands.get(2) {
            Some(value) if has_value => value.bytes,
            _ => &zero[..size],
        };
        let mut index = vec![0usize; maps.len()];
        for at in out.bytes.chunks_exact_mut(size) {
            let offset =
                index.iter().zip(&maps).zip(&strides).try_fold(0usize, |sum, ((&i, map), &stride)| {
                    map[i].map(|from| sum + from * stride as usize)
                });
            match offset {
                Some(o) => at.copy_from_slice(&from[o * size..(o + 1) * size]),
                None => at.copy_from_slice(&value[..size]),
            }
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < maps[axis].len() {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(())
    }))
}

/// For each position of a padded axis where it comes from; `None` is the pad value.
fn axis_map(mode: PadMode, length: usize, begin: i64, end: i64) -> Result<Vec<Option<usize>>, String> {
    let n = length as i64;
    if n + begin + end > PADDED_MAX {
        return Err(format!("an axis of {} elements is too long to be padded", n + begin + end));
    }
    if mode != PadMode::Constant && n == 0 && begin.max(end) > 0 {
        return Err("an empty axis has nothing to pad from".to_owned());
    }
    let source = |i: i64| match mode {
        _ if (0..n).contains(&i) => Some(i as usize),
        PadMode::Constant => None,
        PadMode::Edge => Some(i.clamp(0, n - 1) as usize),
        PadMode::Wrap => Some(i.rem_euclid(n) as usize),
        PadMode::Reflect if n == 1 => Some(0),
        PadMode::Reflect => {
            let period = 2 * (n - 1);
            let folded = i.rem_euclid(period);
            Some(folded.min(period - folded) as usize)
        }
    };
    Ok((-begin..n + end).map(source).collect())
}

/// ConstantOfShape.
pub(super) fn fill(value: Vec<u8>) -> Kernel {
    Box::new(move |_, out, _| {
        out.bytes.chunks_exact_mut(value.len().max(1)).for_each(|at| at.copy_from_slice(&value));
        Ok(())
    })
}

/// The parts of Split along their axis: start and length of each.
pub(super) fn split_parts(axis: usize, outs: &[Vec<usize>]) -> Vec<(usize, usize)> {
    let mut start = 0;
    let part = |shape: &Vec<usize>| {
        let range = (start, shape[axis]);
        start += shape[axis];
        range
    };
    outs.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pads_come_from_where_numpy_takes_them() {
        let check =
            |mode, want: &[Option<usize>]| assert_eq!(axis_map(mode, 3, 2, 4).unwrap(), want, "{mode:?}");
        let s = |i: [usize; 9]| i.map(Some);
        check(PadMode::Reflect, &s([2, 1, 0, 1, 2, 1, 0, 1, 2]));
        check(PadMode::Edge, &s([0, 0, 0, 1, 2, 2, 2, 2, 2]));
        check(PadMode::Wrap, &s([1, 2, 0, 1, 2, 0, 1, 2, 0]));
        let none = None;
        check(PadMode::Constant, &[none, none, Some(0), Some(1), Some(2), none, none, none, none]);
        assert_eq!(axis_map(PadMode::Constant, 4, -1, -2).unwrap(), [Some(1)]);
    }
}
