//! Products of matrices of codes by the definition: exact sums in 32 bits, then one rounding. What a session runs in
//! integer kernels gives the same; this is for operands that those do not take.

use crate::engine::graph::fact::{Fact, Results, Unfit, broadcast, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::graph::shapes::matmul;
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::codes::{
    Views, bytes, centred, code_type, each, floats, maybe, one_or, optional_codes, params, requantized, view,
};
use super::quantized::dynamic_codes;
use super::{Entry, Made};

const MS: &str = "com.microsoft";

pub(super) const OPERATORS: &[Entry] = &[
    ("", "QLinearMatMul", |_| Ok(Made::new(QLinearMatMul))),
    ("", "MatMulInteger", |_| Ok(Made::new(MatMulInteger))),
    (MS, "QLinearMatMul", |_| Ok(Made::new(QLinearMatMul))),
    (MS, "MatMulIntegerToFloat", |_| Ok(Made::new(MatMulIntegerToFloat))),
    (MS, "DynamicQuantizeMatMul", |_| Ok(Made::new(DynamicQuantizeMatMul))),
    (MS, "QGemm", q_gemm),
];

/// A product of stacks of matrices: which rows and columns there are.
struct Stack {
    /// Rows, depth and columns of one matrix.
    m: usize,
    k: usize,
    n: usize,
    /// For each matrix of the result its left and its right operand.
    pairs: Vec<(usize, usize)>,
    shape: Vec<usize>,
}

impl Stack {
    fn new(a: &[usize], b: &[usize]) -> Result<Stack, String> {
        let shape = matmul(a, b)?;
        let left = if a.len() == 1 { vec![1, a[0]] } else { a.to_vec() };
        let right = if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() };
        let (lead_a, lead_b) = (&left[..left.len() - 2], &right[..right.len() - 2]);
        let batch = broadcast(lead_a, lead_b)?;
        let index = |lead: &[usize], mut i: usize| {
            let (mut at, mut span) = (0, 1);
            for (axis, &length) in batch.iter().enumerate().rev() {
                let own = (axis + lead.len()).checked_sub(batch.len()).map_or(1, |axis| lead[axis]);
                at += if own == 1 { 0 } else { i % length * span };
                span *= own;
                i /= length;
            }
            at
        };
        let pairs = (0..batch.iter().product()).map(|i| (index(lead_a, i), index(lead_b, i))).collect();
        let (m, k, n) = (left[left.len() - 2], left[left.len() - 1], right[right.len() - 1]);
        Ok(Stack { m, k, n, pairs, shape })
    }

    /// The parameter of a row of the left operand: one for all, one a row of each matrix, or one a row of the stack.
    fn row(&self, matrix: usize, row: usize, count: usize) -> usize {
        if count == self.m { row } else { matrix * self.m + row }
    }

    fn column(&self, matrix: usize, column: usize, count: usize) -> usize {
        if count == self.n { column } else { matrix * self.n + column }
    }

    fn sums(&self, inputs: Views<'_, '_>, [a, b, a_zero, b_zero]: [usize; 4]) -> Result<Vec<i32>, String> {
        let (a_zero, b_zero) = (optional_codes(inputs, a_zero)?, optional_codes(inputs, b_zero)?);
        self.sums_of(&view(inputs, a)?, &view(inputs, b)?, &a_zero, &b_zero)
    }

    /// Sums `[…, m, n]`.
    fn sums_of(
        &self,
        a: &TensorView<'_>,
        b: &TensorView<'_>,
        a_zero: &[i32],
        b_zero: &[i32],
    ) -> Result<Vec<i32>, String> {
        let &Stack { m, k, n, .. } = self;
        let row = |i: usize| self.row(i / (m * k), i / k % m, a_zero.len());
        let column = |i: usize| self.column(i / (k * n), i % n, b_zero.len());
        let a = centred(a, a_zero, row)?;
        let b = centred(b, b_zero, column)?;
        let mut sums = vec![0i32; self.pairs.len() * m * n];
        if m * n == 0 {
            return Ok(sums);
        }
        for (out, &(i, j)) in sums.chunks_exact_mut(m * n).zip(&self.pairs) {
            for r in 0..m {
                for d in 0..k {
                    let left = a[(i * m + r) * k + d];
                    let right = &b[(j * k + d) * n..][..n];
                    for (sum, &right) in out[r * n..][..n].iter_mut().zip(right) {
                        *sum = sum.wrapping_add(left.wrapping_mul(right));
                    }
                }
            }
        }
        Ok(sums)
    }

    /// `scale_a · scale_b` of element `i` of the result.
    fn scale(&self, a_scale: &[f32], b_scale: &[f32], i: usize) -> f32 {
        let (row, column) = (i / self.n, i % self.n);
        let (left, right) = self.pairs[row / self.m];
        let a = if a_scale.len() == 1 { 0 } else { self.row(left, row % self.m, a_scale.len()) };
        let b = if b_scale.len() == 1 { 0 } else { self.column(right, column, b_scale.len()) };
        a_scale[a] * b_scale[b]
    }

    /// Checks that scales are one, one a row or column, or one for each of the stack.
    fn check(&self, a_scale: &[f32], b_scale: &[f32]) -> Result<(), String> {
        let lefts = self.pairs.iter().map(|p| p.0 + 1).max().unwrap_or(1);
        let rights = self.pairs.iter().map(|p| p.1 + 1).max().unwrap_or(1);
        match [1, self.m, lefts * self.m].contains(&a_scale.len()) {
            true if [1, self.n, rights * self.n].contains(&b_scale.len()) => Ok(()),
            _ => Err(format!("{} and {} scales do not fit the product", a_scale.len(), b_scale.len())),
        }
    }
}

/// `a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point`; rows of `a` and columns of `b` may
/// have parameters of their own.
#[derive(Debug)]
struct QLinearMatMul;

impl Operator for QLinearMatMul {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (a, b) = (bytes(inputs, 0)?, bytes(inputs, 3)?);
        Ok(vec![(code_type(inputs, 7, a.dtype)?, matmul(&a.shape, &b.shape)?)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (a, b) = (view(inputs, 0)?, view(inputs, 3)?);
        let stack = Stack::new(a.shape, b.shape)?;
        let (a_scale, b_scale, y) = (floats(inputs, 1)?, floats(inputs, 4)?, params(inputs, 6)?);
        stack.check(a_scale, b_scale)?;
        let sums = stack.sums(inputs, [0, 3, 2, 5])?;
        let to = maybe(inputs, 7).map_or(a.dtype, |z| z.dtype);
        let factor = |i: usize| stack.scale(a_scale, b_scale, i) / y.scale;
        Ok(vec![requantized(to, &stack.shape, &sums, factor, y.zero_point)])
    }

    fn opset(&self) -> i64 {
        10
    }
}

/// `a, b [, a_zero_point] [, b_zero_point]`: the sums.
#[derive(Debug)]
struct MatMulInteger;

impl Operator for MatMulInteger {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (a, b) = (bytes(inputs, 0)?, bytes(inputs, 1)?);
        Ok(vec![(DType::I32, matmul(&a.shape, &b.shape)?)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let stack = Stack::new(view(inputs, 0)?.shape, view(inputs, 1)?.shape)?;
        Ok(vec![Tensor::from_slice(&stack.shape, &stack.sums(inputs, [0, 1, 2, 3])?)])
    }

    fn opset(&self) -> i64 {
        10
    }
}

/// Sums to floats, plus a bias that is one a column.
fn to_floats(
    stack: &Stack,
    sums: &[i32],
    (a_scale, b_scale): (&[f32], &[f32]),
    bias: Option<&[f32]>,
) -> Result<Tensor, String> {
    stack.check(a_scale, b_scale)?;
    if bias.is_some_and(|bias| bias.len() != stack.n) {
        return Err("the bias has not one value a column".to_owned());
    }
    let real = |(i, &sum): (usize, &i32)| {
        let product = sum as f32 * stack.scale(a_scale, b_scale, i);
        bias.map_or(product, |bias| product + bias[i % stack.n])
    };
    let all: Vec<f32> = sums.iter().enumerate().map(real).collect();
    Ok(Tensor::from_slice(&stack.shape, &all))
}

/// `a, b, a_scale, b_scale [, a_zero_point] [, b_zero_point] [, bias]`: reals.
#[derive(Debug)]
struct MatMulIntegerToFloat;

impl Operator for MatMulIntegerToFloat {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (a, b) = (bytes(inputs, 0)?, bytes(inputs, 1)?);
        Ok(vec![(needed(inputs, 2)?.dtype, matmul(&a.shape, &b.shape)?)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let stack = Stack::new(view(inputs, 0)?.shape, view(inputs, 1)?.shape)?;
        let sums = stack.sums(inputs, [0, 1, 4, 5])?;
        let bias = maybe(inputs, 6).map(|_| floats(inputs, 6)).transpose()?;
        Ok(vec![to_floats(&stack, &sums, (floats(inputs, 2)?, floats(inputs, 3)?), bias)?])
    }
}

/// `a: f32, b, b_scale [, b_zero_point] [, bias]`: `a` is quantized as DynamicQuantizeLinear does it.
#[derive(Debug)]
struct DynamicQuantizeMatMul;

impl Operator for DynamicQuantizeMatMul {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (a, b) = (needed(inputs, 0)?, bytes(inputs, 1)?);
        match a.dtype {
            DType::F32 => Ok(vec![(DType::F32, matmul(&a.shape, &b.shape)?)]),
            other => Err(format!("the input is {other}, float32 is needed").into()),
        }
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (a, b) = (view(inputs, 0)?, view(inputs, 1)?);
        let stack = Stack::new(a.shape, b.shape)?;
        let (codes, scale, zero_point) = dynamic_codes(floats(inputs, 0)?);
        let codes = Tensor::from_slice(a.shape, &codes);
        let sums = stack.sums_of(&codes.view(), &b, &[zero_point.into()], &optional_codes(inputs, 3)?)?;
        let bias = maybe(inputs, 4).map(|_| floats(inputs, 4)).transpose()?;
        Ok(vec![to_floats(&stack, &sums, (&[scale], floats(inputs, 2)?), bias)?])
    }
}

/// `a, a_scale, a_zero_point, b, b_scale, b_zero_point [, c: i32] [, y_scale] [, y_zero_point]`: codes, or reals where
/// there is no scale of the result. `c` has the scale of the sums.
#[derive(Debug)]
struct QGemm {
    alpha: f32,
    trans_a: bool,
    trans_b: bool,
}

fn q_gemm(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    Ok(Made::new(QGemm {
        alpha: a.float_or("alpha", 1.0)?,
        trans_a: a.flag("transA", false)?,
        trans_b: a.flag("transB", false)?,
    }))
}

fn flipped(shape: &[usize], flip: bool) -> Result<[usize; 2], String> {
    match *shape {
        [a, b] if flip => Ok([b, a]),
        [a, b] => Ok([a, b]),
        _ => Err(format!("an operand has shape {shape:?}, two dimensions are needed")),
    }
}

/// A matrix with its axes exchanged.
fn transposed(x: &TensorView<'_>, flip: bool) -> Result<Tensor, String> {
    let [rows, columns] = flipped(x.shape, flip)?;
    if !flip {
        return Ok(x.to_tensor());
    }
    let moved: Vec<u8> = (0..rows * columns).map(|i| x.bytes[i % columns * rows + i / columns]).collect();
    Tensor::from_bytes(x.dtype, &[rows, columns], &moved)
        .ok_or_else(|| "a matrix of bytes is needed".to_owned())
}

impl Operator for QGemm {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (a, b) = (bytes(inputs, 0)?, bytes(inputs, 3)?);
        let shape = matmul(&flipped(&a.shape, self.trans_a)?, &flipped(&b.shape, self.trans_b)?)?;
        if let Some(c) = operand(inputs, 6)
            && (c.dtype != DType::I32 || broadcast(&c.shape, &shape)? != shape)
        {
            return Err(format!("C is {}{:?} for a result {shape:?}", c.dtype, c.shape).into());
        }
        let to = if operand(inputs, 7).is_some() { code_type(inputs, 8, a.dtype)? } else { DType::F32 };
        Ok(vec![(to, shape)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (a, b) = (view(inputs, 0)?, view(inputs, 3)?);
        let (a, b) = (transposed(&a, self.trans_a)?, transposed(&b, self.trans_b)?);
        let stack = Stack::new(a.shape(), b.shape())?;
        let (a_params, b_scale) = (params(inputs, 1)?, one_or(floats(inputs, 4)?, stack.n)?);
        let (a_zero, b_zero) = ([a_params.zero_point], optional_codes(inputs, 5)?);
        let mut sums = stack.sums_of(&a.view(), &b.view(), &a_zero, &b_zero)?;
        if let Some(c) = maybe(inputs, 6) {
            let &Stack { m, n, .. } = &stack;
            let last = c.shape.last().copied().unwrap_or(1);
            let by_row = c.shape.len() == 2 && c.shape[0] == m && m > 1;
            let by_column = last == n && n > 1;
            let c = c.slice::<i32>();
            for (i, sum) in sums.iter_mut().enumerate() {
                let row = if by_row { i / n * last } else { 0 };
                *sum = sum.wrapping_add(c[row + if by_column { i % n } else { 0 }]);
            }
        }
        let unit = |i: usize| self.alpha * a_params.scale * each(b_scale, i % stack.n);
        if maybe(inputs, 7).is_none() {
            let all: Vec<f32> = sums.iter().enumerate().map(|(i, &sum)| sum as f32 * unit(i)).collect();
            return Ok(vec![Tensor::from_slice(&stack.shape, &all)]);
        }
        let y = params(inputs, 7)?;
        let to = maybe(inputs, 8).map_or(a.dtype(), |z| z.dtype);
        Ok(vec![requantized(to, &stack.shape, &sums, |i| unit(i) / y.scale, y.zero_point)])
    }
}
