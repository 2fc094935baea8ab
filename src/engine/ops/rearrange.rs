//! Operators that put elements in other places whatever their values: blocks to channels, triangles, crops, reversals.

use std::sync::Arc;

use crate::engine::graph::attributes::{Attribute, Attributes};
use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, constant_ints, needed, operand};
use crate::engine::graph::operator::{Call, Operator, Other, Writer};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::gather::integers;
use super::number::{Number, type_attribute};
use super::real::{for_each_chunk, given};
use super::strides::{around, gathered, row_major, rows, with_width, words, words_mut};
use super::typed::with_number;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "CenterCropPad", |call| Ok(Made::new(CenterCropPad { axes: call.attributes.ints("axes")? }))),
    ("", "DepthToSpace", depth_to_space),
    ("", "EyeLike", |call| {
        let a = call.attributes;
        Ok(Made::new(EyeLike { dtype: type_attribute(a, "dtype")?, k: a.int_or("k", 0)? }))
    }),
    ("", "ReverseSequence", |call| {
        let a = call.attributes;
        let (batch, time) = (a.int_or("batch_axis", 1)?, a.int_or("time_axis", 0)?);
        match (batch, time) {
            (0, 1) | (1, 0) => Ok(Made::new(ReverseSequence { time_first: time == 0 })),
            _ => Err(format!("batch_axis={batch} and time_axis={time} are not 0 and 1")),
        }
    }),
    ("", "SpaceToDepth", |call| Ok(Made::new(Blocks { size: block_size(call)?, order: Order::ToDepth }))),
    ("", "Trilu", |call| Ok(Made::new(Trilu { upper: call.attributes.flag("upper", true)? }))),
];

/// `x [n, c, h, w]`: blocks of `size · size` pixels become channels, or channels become blocks of pixels.
#[derive(Clone, Debug)]
struct Blocks {
    size: usize,
    order: Order,
}

/// DepthToSpace with the depth as the fastest in the channels.
pub(super) fn blocks_of(size: usize) -> Other {
    let attributes = vec![
        ("blocksize".to_owned(), Attribute::Int(size as i64)),
        ("mode".to_owned(), Attribute::Text("DCR".to_owned())),
    ];
    Other {
        name: "DepthToSpace",
        domain: "",
        operator: Arc::new(Blocks { size, order: Order::DepthColumnRow }),
        attributes: Attributes::new(attributes),
    }
}

/// Which way, and which of depth, row and column of a block is the slowest in the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    ToDepth,
    DepthColumnRow,
    ColumnRowDepth,
}

fn block_size(call: &Call<'_>) -> Result<usize, String> {
    let size = call.attributes.int("blocksize")?.ok_or("attribute `blocksize` is missing")?;
    usize::try_from(size).ok().filter(|&s| s > 0).ok_or_else(|| format!("blocksize={size} is not positive"))
}

fn depth_to_space(call: &Call<'_>) -> Result<Made, String> {
    let order = match call.attributes.text_or("mode", "DCR")? {
        "DCR" => Order::DepthColumnRow,
        "CRD" => Order::ColumnRowDepth,
        other => return Err(format!("mode={other} is not supported")),
    };
    Ok(Made::new(Blocks { size: block_size(call)?, order }))
}

impl Blocks {
    fn shape(&self, x: &[usize]) -> Result<[usize; 4], String> {
        let &[n, c, h, w] = x else { return Err(format!("{x:?} is not [batch, channels, height, width]")) };
        let unfit = || format!("{x:?} does not divide into blocks of {}", self.size);
        let area = self.size.checked_mul(self.size).ok_or_else(unfit)?;
        if self.order == Order::ToDepth {
            let fits = h % self.size == 0 && w % self.size == 0;
            let c = c.checked_mul(area).filter(|_| fits).ok_or_else(unfit)?;
            return Ok([n, c, h / self.size, w / self.size]);
        }
        let (h, w) = (h.checked_mul(self.size), w.checked_mul(self.size));
        match (c % area, h, w) {
            (0, Some(h), Some(w)) => Ok([n, c / area, h, w]),
            _ => Err(unfit()),
        }
    }
}

impl Operator for Blocks {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        Ok(vec![(x.dtype, self.shape(&x.shape)?.to_vec())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let shape = self.shape(x.shape)?;
        let (b, s) = (self.size, row_major(x.shape));
        // The result with its blocks as axes of their own, and the step of each in `x`.
        let (blocks, steps) = if self.order == Order::ToDepth {
            let [n, _, h, w] = shape;
            ([n, b, b, x.shape[1], h, w], [s[0], s[2], s[3], s[1], b * s[2], b * s[3]])
        } else {
            let [n, c, ..] = shape;
            let (row, column, depth) = match self.order {
                Order::ColumnRowDepth => (b * s[1], s[1], b * b * s[1]),
                _ => (b * c * s[1], c * s[1], s[1]),
            };
            ([n, c, x.shape[2], b, x.shape[3], b], [s[0], depth, s[2], row, s[3], column])
        };
        let made = gathered(&x, &blocks, &steps).reshaped(&shape);
        Ok(vec![made.ok_or("the number of elements changes")?])
    }

    /// Channels-last, a row of a block is a run of bytes.
    fn writer(&self, inputs: &[Option<&Fact>], channels_last: bool) -> Option<Writer> {
        let x = needed(inputs, 0).ok()?;
        let [_, c, h, w] = self.shape(&x.shape).ok()?;
        if !channels_last || self.order != Order::DepthColumnRow {
            return None;
        }
        let (size, pixel) = (self.size, c * x.dtype.size());
        // A line of blocks of the operand, and a line of pixels of the result.
        let (blocks, line) = (w / size * size * size * pixel, w * pixel);
        let run = size * pixel;
        Some(Box::new(move |x, out| {
            if run * h == 0 {
                return;
            }
            for_each_chunk(out, size * line, size * line / 8, |i, lines| {
                let from = &x.bytes[i * blocks..][..blocks];
                for (row, line) in lines.chunks_exact_mut(line).enumerate() {
                    let runs = from.chunks_exact(run).skip(row).step_by(size);
                    line.chunks_exact_mut(run).zip(runs).for_each(|(to, from)| to.copy_from_slice(from));
                }
            });
        }))
    }
}

/// `x [.., rows, columns] [, k]`: the upper or lower triangle from diagonal `k` on; zeros elsewhere.
#[derive(Debug)]
struct Trilu {
    upper: bool,
}

impl Operator for Trilu {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let k = operand(inputs, 1).map_or(1, |k| k.shape.iter().product());
        match x.shape.len() >= 2 && k == 1 {
            true => Ok(vec![(x.dtype, x.shape.clone())]),
            false => Err(format!("{:?} is no matrix, or k is not one number", x.shape).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let k = match inputs.get(1).copied().flatten() {
            Some(k) => *integers(&k)?.first().ok_or("k is empty")?,
            None => 0,
        };
        let mut made = x.to_tensor();
        let &[.., height, width] = x.shape else { return Err("it is no matrix".to_owned()) };
        if made.is_empty() {
            return Ok(vec![made]);
        }
        with_width!(x.dtype, W => {
            for (i, row) in words_mut::<W>(&mut made).chunks_exact_mut(width).enumerate() {
                // The diagonal crosses the row here; the lower triangle has it as well.
                let cut = k.saturating_add((i % height) as i64);
                let at = |column: i64| column.clamp(0, width as i64) as usize;
                match self.upper {
                    true => row[..at(cut)].fill(0),
                    false => row[at(cut.saturating_add(1))..].fill(0),
                }
            }
        });
        Ok(vec![made])
    }

    fn opset(&self) -> i64 {
        14
    }
}

/// `x [rows, columns]`: ones on diagonal `k` of a matrix of that shape, zeros elsewhere.
#[derive(Debug)]
struct EyeLike {
    dtype: Option<DType>,
    k: i64,
}

impl Operator for EyeLike {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        match x.shape.len() {
            2 => Ok(vec![(self.dtype.unwrap_or(x.dtype), x.shape.clone())]),
            _ => Err(format!("{:?} is no matrix", x.shape).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let &[height, width] = x.shape else { return Err(format!("{:?} is no matrix", x.shape)) };
        let dtype = match self.dtype.unwrap_or(x.dtype) {
            DType::F16 | DType::BF16 => DType::F32,
            other => other,
        };
        let numbers = if dtype == DType::Bool { DType::U8 } else { dtype };
        let mut made = Tensor::zeros(numbers, x.shape);
        with_number!(numbers, T => {
            let ones = made.slice_mut::<T>();
            for row in 0..height.min(ones.len()) {
                let column = self.k.saturating_add(row as i64);
                if (0..width as i64).contains(&column) {
                    ones[row * width + column as usize] = T::ONE;
                }
            }
            Ok::<_, String>(())
        })?;
        Ok(vec![made.retyped(dtype)])
    }
}

/// `x, shape`: cut, or padded with zeros, around the middle of each axis.
#[derive(Debug)]
struct CenterCropPad {
    axes: Option<Vec<i64>>,
}

impl CenterCropPad {
    fn shape(&self, x: &[usize], wanted: &[i64]) -> Result<Vec<usize>, String> {
        let all: Vec<i64> = (0..x.len() as i64).collect();
        let axes = self.axes.as_ref().unwrap_or(&all);
        if axes.len() != wanted.len() {
            return Err(format!("{} lengths are given for {} axes", wanted.len(), axes.len()));
        }
        let mut shape = x.to_vec();
        for (&axis, &length) in axes.iter().zip(wanted) {
            let axis = axis_index(axis, x.len(), false)?;
            shape[axis] = usize::try_from(length).map_err(|_| format!("length {length} is negative"))?;
        }
        Ok(shape)
    }
}

impl Operator for CenterCropPad {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let wanted = constant_ints(inputs, 1, "shape")?;
        Ok(vec![(x.dtype, self.shape(&x.shape, &wanted)?)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, wanted) = (given(inputs, 0)?, given(inputs, 1)?);
        let shape = self.shape(x.shape, &integers(&wanted)?)?;
        let mut made = Tensor::zeros(x.dtype, &shape);
        let kept: Vec<usize> = x.shape.iter().zip(&shape).map(|(&a, &b)| a.min(b)).collect();
        let (of_x, of_made) = (row_major(x.shape), row_major(&shape));
        // The odd element is cut off at the end, and padded at the end.
        let start = |from: &[usize], strides: &[usize]| -> usize {
            from.iter()
                .zip(&kept)
                .zip(strides)
                .map(|((&length, &kept), &step)| (length - kept) / 2 * step)
                .sum()
        };
        let (start_x, start_made) = (start(x.shape, &of_x), start(&shape, &of_made));
        with_width!(x.dtype, W => {
            let (from, to) = (words::<W>(&x), words_mut::<W>(&mut made));
            rows(&kept, [&of_x, &of_made], |_, length, [at_x, at_made]| {
                let row = &from[start_x + at_x..][..length];
                to[start_made + at_made..][..length].copy_from_slice(row);
            });
        });
        Ok(vec![made])
    }

    fn opset(&self) -> i64 {
        18
    }
}

/// `x [time, batch, ..]` (or batch first), `lengths [batch]`: the first so many elements of each sequence reversed.
#[derive(Debug)]
struct ReverseSequence {
    time_first: bool,
}

impl Operator for ReverseSequence {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, lengths) = (needed(inputs, 0)?, needed(inputs, 1)?);
        if x.shape.len() < 2 {
            return Err(format!("{:?} has no axes of time and batch", x.shape).into());
        }
        let batch = usize::from(self.time_first);
        match lengths.shape == [x.shape[batch]] {
            true => Ok(vec![(x.dtype, x.shape.clone())]),
            false => Err(format!("lengths are {:?}, [{}] is needed", lengths.shape, x.shape[batch]).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, lengths) = (given(inputs, 0)?, given(inputs, 1)?);
        let (first, second, slice) = around(x.shape, 1);
        let mut made = x.to_tensor();
        if made.is_empty() {
            return Ok(vec![made]);
        }
        let (times, time_step, batch_step) =
            if self.time_first { (first, second * slice, slice) } else { (second, slice, second * slice) };
        let lengths = integers(&lengths)?;
        with_width!(x.dtype, W => {
            let (from, to) = (words::<W>(&x), words_mut::<W>(&mut made));
            for (sample, &length) in lengths.iter().enumerate() {
                let length = usize::try_from(length).ok().filter(|&l| l <= times);
                let length = length.ok_or_else(|| format!("a length is not between 0 and {times}"))?;
                for time in 0..length {
                    let at = sample * batch_step + time * time_step;
                    let mirrored = sample * batch_step + (length - 1 - time) * time_step;
                    to[at..][..slice].copy_from_slice(&from[mirrored..][..slice]);
                }
            }
        });
        Ok(vec![made])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_laid_out_in_either_order_of_memory() {
        let (n, c, h, w, size) = (2, 3, 4, 5, 2);
        let dims = [n, c * size * size, h, w];
        let codes: Vec<u8> = (0..dims.iter().product::<usize>()).map(|i| (i * 37 % 251) as u8).collect();
        let layer = blocks_of(size).operator;
        let x = Tensor::from_slice(&dims, &codes);
        let made = layer.run(&[Some(x.view())], 1).unwrap().remove(0);
        assert_eq!(made.shape(), [n, c, h * size, w * size]);
        let last = |t: &Tensor| -> Vec<u8> {
            let &[n, c, h, w] = t.shape() else { unreachable!() };
            let at = |i: usize| (i / (h * w * c) * c + i % c) * h * w + i / c % (h * w);
            (0..n * c * h * w).map(|i| t.slice::<u8>()[at(i)]).collect()
        };
        let fact = Fact::computed(DType::U8, dims.to_vec());
        let writer = layer.writer(&[Some(&fact)], true).unwrap();
        let mut out = vec![0; made.len()];
        let given = Tensor::from_slice(&[n, h, w, dims[1]], &last(&x));
        writer(&given.view(), &mut out);
        assert_eq!(out, last(&made));
        assert!(layer.writer(&[Some(&fact)], false).is_none());
    }

    fn run(operator: &dyn Operator, operands: &[Tensor]) -> Result<Tensor, String> {
        let facts: Vec<Fact> =
            operands.iter().map(|t| Fact::constant(std::sync::Arc::new(t.clone()))).collect();
        let results = operator.infer(&facts.iter().map(Some).collect::<Vec<_>>(), 1)?;
        let views: Vec<_> = operands.iter().map(|t| Some(t.view())).collect();
        let made = operator.run(&views, 1)?.remove(0);
        assert_eq!((made.dtype(), made.shape()), (results[0].0, &results[0].1[..]));
        Ok(made)
    }

    #[test]
    fn blocks_go_to_depth_and_back() {
        let all: Vec<u8> = (0..2 * 8 * 2 * 3).collect();
        let x = Tensor::from_slice(&[2, 8, 2, 3], &all);
        let there = run(&Blocks { size: 2, order: Order::DepthColumnRow }, std::slice::from_ref(&x)).unwrap();
        assert_eq!(there.slice::<u8>()[..6], [0, 12, 1, 13, 2, 14]);
        assert_eq!(run(&Blocks { size: 2, order: Order::ToDepth }, &[there]).unwrap(), x);
        let there = run(&Blocks { size: 2, order: Order::ColumnRowDepth }, std::slice::from_ref(&x)).unwrap();
        assert_eq!(there.slice::<u8>()[..6], [0, 6, 1, 7, 2, 8]);
        assert!(run(&Blocks { size: 3, order: Order::DepthColumnRow }, &[x]).is_err());
    }

    #[test]
    fn triangles_begin_at_any_diagonal() {
        let x = Tensor::from_slice(&[2, 3], &[1i16, 2, 3, 4, 5, 6]);
        for (upper, k, want) in [
            (true, 0i64, [1, 2, 3, 0, 5, 6]),
            (true, -9, [1, 2, 3, 4, 5, 6]),
            (true, i64::MAX, [0; 6]),
            (false, 0, [1, 0, 0, 4, 5, 0]),
            (false, i64::MAX, [1, 2, 3, 4, 5, 6]),
            (false, -1, [0, 0, 0, 4, 0, 0]),
        ] {
            let made = run(&Trilu { upper }, &[x.clone(), Tensor::scalar(k)]).unwrap();
            assert_eq!(made.slice::<i16>(), want, "upper {upper}, k {k}");
        }
        let made = run(&EyeLike { dtype: None, k: 1 }, &[x]).unwrap();
        assert_eq!(made.slice::<i16>(), [0, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn the_middle_stays_in_the_middle() {
        let x = Tensor::from_slice(&[2, 4], &[1i8, 2, 3, 4, 5, 6, 7, 8]);
        let operator = CenterCropPad { axes: None };
        let made = run(&operator, &[x.clone(), Tensor::from_slice(&[2], &[3i64, 1])]).unwrap();
        assert_eq!(made.slice::<i8>(), [2, 6, 0]);
        let operator = CenterCropPad { axes: Some(vec![-1]) };
        let made = run(&operator, &[x, Tensor::from_slice(&[1], &[5i64])]).unwrap();
        assert_eq!(made.slice::<i8>(), [1, 2, 3, 4, 0, 5, 6, 7, 8, 0]);
    }

    #[test]
    fn sequences_are_reversed_up_to_their_length() {
        let x = Tensor::from_slice(&[3, 2], &[1i32, 2, 3, 4, 5, 6]);
        let operator = ReverseSequence { time_first: true };
        let made = run(&operator, &[x.clone(), Tensor::from_slice(&[2], &[3i64, 2])]).unwrap();
        assert_eq!(made.slice::<i32>(), [5, 4, 3, 2, 1, 6]);
        let operator = ReverseSequence { time_first: false };
        let made = run(&operator, &[x.clone(), Tensor::from_slice(&[3], &[2i64, 0, 1])]).unwrap();
        assert_eq!(made.slice::<i32>(), [2, 1, 3, 4, 5, 6]);
        assert!(run(&operator, &[x, Tensor::from_slice(&[3], &[3i64, 0, 1])]).is_err());
    }
}
