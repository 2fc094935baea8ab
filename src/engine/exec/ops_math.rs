//! Operators that compute element by element or fold axes, in float and in whole numbers.

use std::ops::Range;

use crate::engine::graph::fact::{Fact, axis_index};
use crate::engine::graph::op::{Binary, Op, Reduce, Unary};
use crate::engine::kernels::parallel::{parts, split_rows};
use crate::engine::kernels::{clamp_f32, math};
use crate::engine::tensor::{DType, Element, Tensor};

use super::ops_typed;
use super::step::{Context, Kernel};
use super::strided::{Walk, copy, row_major};

/// Nanoseconds that one element of a cheap function takes, as a fraction: what a split of the work is judged by.
const ELEMENTS_PER_NS: usize = 4;

/// A kernel that maps every element of operand 0.
fn map<T: Element, U: Element>(
    context: Context,
    f: impl Fn(T) -> U + Copy + Send + Sync + 'static,
) -> Kernel {
    let Context { isa, threads, .. } = context;
    Box::new(move |operands, mut out, _| {
        let x = operands.need(0).slice::<T>();
        let out = out.slice_mut::<U>();
        let parts = parts(threads, out.len() / ELEMENTS_PER_NS);
        split_rows(out, 0..x.len(), 1, 1, parts, &|range: Range<usize>, out: &mut [U]| {
            let x = &x[range];
            isa.vectorize(
                #[inline(always)]
                || out.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x)),
            );
        });
        Ok(())
    })
}

#[inline(always)]
fn leaky_relu(x: f32, alpha: f32) -> f32 {
    if x < 0.0 { alpha * x } else { x }
}

#[inline(always)]
fn elu(x: f32, alpha: f32) -> f32 {
    if x < 0.0 { alpha * (math::exp(x) - 1.0) } else { x }
}

/// A unary operator on one `f32`.
fn unary_f32(op: Unary) -> impl Fn(f32) -> f32 + Send + Sync + Copy {
    move |x| match op {
        Unary::Relu => math::relu(x),
        Unary::LeakyRelu { alpha } => leaky_relu(x, alpha),
        Unary::Elu { alpha } => elu(x, alpha),
        Unary::Sigmoid => math::sigmoid(x),
        Unary::HardSigmoid { alpha, beta } => math::hard_sigmoid(x, alpha, beta),
        Unary::HardSwish => math::hard_swish(x),
        Unary::Tanh => math::tanh(x),
        Unary::Erf => math::erf(x),
        Unary::Gelu { tanh: false } => math::gelu(x),
        Unary::Gelu { tanh: true } => math::gelu_tanh(x),
        Unary::Softplus => {
            if x > 20.0 {
                x
            } else {
                math::exp(x).ln_1p()
            }
        }
        Unary::Exp => math::exp(x),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign => {
            if x == 0.0 || x.is_nan() {
                x
            } else {
                x.signum()
            }
        }
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Not => f32::from(x == 0.0),
    }
}

/// A unary operator. The hot ones get a loop of their own, so that it is vectorized.
pub(super) fn unary(context: Context, op: Unary, x: &Fact) -> Result<Kernel, String> {
    Ok(match (op, x.dtype) {
        (Unary::Relu, DType::F32) => map(context, math::relu),
        (Unary::LeakyRelu { alpha }, DType::F32) => map(context, move |x| leaky_relu(x, alpha)),
        (Unary::Elu { alpha }, DType::F32) => map(context, move |x| elu(x, alpha)),
        (Unary::Abs, DType::F32) => map(context, f32::abs),
        (Unary::Reciprocal, DType::F32) => map(context, |x: f32| 1.0 / x),
        (Unary::Erf, DType::F32) => map(context, math::erf),
        (Unary::Sigmoid, DType::F32) => map(context, math::sigmoid),
        (Unary::Tanh, DType::F32) => map(context, math::tanh),
        (Unary::Exp, DType::F32) => map(context, math::exp),
        (Unary::Sqrt, DType::F32) => map(context, f32::sqrt),
        (Unary::Neg, DType::F32) => map(context, |x: f32| -x),
        (Unary::HardSigmoid { alpha, beta }, DType::F32) => {
            map(context, move |x| math::hard_sigmoid(x, alpha, beta))
        }
        (Unary::HardSwish, DType::F32) => map(context, math::hard_swish),
        (Unary::Gelu { tanh: false }, DType::F32) => map(context, math::gelu),
        (Unary::Gelu { tanh: true }, DType::F32) => map(context, math::gelu_tanh),
        (Unary::Not, DType::F32) => return Err("float32 is not bool".to_owned()),
        (op, DType::F32) => map(context, unary_f32(op)),
        _ => return ops_typed::unary(op, x),
    })
}

/// Runs `f` over the broadcast of operands 0 and 1.
fn zip<T: Element, U: Element>(
    context: Context,
    walk: Walk<2>,
    f: impl Fn(T, T) -> U + Copy + Send + Sync + 'static,
) -> Kernel {
    let Context { isa, threads, .. } = context;
    Box::new(move |operands, mut out, _| {
        let (a, b) = (operands.need(0).slice::<T>(), operands.need(1).slice::<T>());
        let out = out.slice_mut::<U>();
        let row_len = out.len() / walk.outer().max(1);
        let parts = parts(threads, out.len() / ELEMENTS_PER_NS);
        split_rows(out, 0..walk.outer(), row_len, 1, parts, &|range: Range<usize>, out: &mut [U]| {
            isa.vectorize(
                #[inline(always)]
                || {
                    walk.rows_in(
                        range,
                        #[inline(always)]
                        |at, [a0, b0], n, [da, db]| {
                            let row = &mut out[at..at + n];
                            let (a0, b0) = (a0 as usize, b0 as usize);
                            match (da, db) {
                                (1, 1) => {
                                    let (a, b) = (&a[a0..a0 + n], &b[b0..b0 + n]);
                                    row.iter_mut()
                                        .zip(a.iter().zip(b))
                                        .for_each(|(y, (&a, &b))| *y = f(a, b));
                                }
                                (1, 0) => {
                                    let b = b[b0];
                                    row.iter_mut().zip(&a[a0..a0 + n]).for_each(|(y, &a)| *y = f(a, b));
                                }
                                (0, 1) => {
                                    let a = a[a0];
                                    row.iter_mut().zip(&b[b0..b0 + n]).for_each(|(y, &b)| *y = f(a, b));
                                }
                                _ => {
                                    for (i, y) in row.iter_mut().enumerate() {
                                        *y = f(a[a0 + i * da as usize], b[b0 + i * db as usize]);
                                    }
                                }
                            }
                        },
                    );
                },
            );
        });
        Ok(())
    })
}

/// A binary operator that broadcasts.
pub(super) fn binary(
    context: Context,
    op: Binary,
    a: &Fact,
    b: &Fact,
    out: &[usize],
) -> Result<Kernel, String> {
    if op == Binary::Pow && b.dtype != a.dtype {
        return pow_mixed(a, b, out);
    }
    if a.dtype != DType::F32 {
        return ops_typed::binary(op, a, b, out);
    }
    let walk = Walk::broadcast(out, [&a.shape, &b.shape]);
    Ok(match op {
        Binary::Add => zip(context, walk, |a: f32, b: f32| a + b),
        Binary::Sub => zip(context, walk, |a: f32, b: f32| a - b),
        Binary::Mul => zip(context, walk, |a: f32, b: f32| a * b),
        Binary::Div => zip(context, walk, |a: f32, b: f32| a / b),
        Binary::Pow => zip(context, walk, power),
        Binary::Min => zip(context, walk, least),
        Binary::Max => zip(context, walk, greatest),
        Binary::Mod { .. } => zip(context, walk, |a: f32, b: f32| a % b),
        Binary::Equal => zip(context, walk, |a: f32, b: f32| u8::from(a == b)),
        Binary::Less => zip(context, walk, |a: f32, b: f32| u8::from(a < b)),
        Binary::LessOrEqual => zip(context, walk, |a: f32, b: f32| u8::from(a <= b)),
        Binary::Greater => zip(context, walk, |a: f32, b: f32| u8::from(a > b)),
        Binary::GreaterOrEqual => zip(context, walk, |a: f32, b: f32| u8::from(a >= b)),
        Binary::And | Binary::Or | Binary::Xor => {
            return Err(format!("{} of float32 is not supported", op.name()));
        }
    })
}

#[inline(always)]
fn power(a: f32, b: f32) -> f32 {
    if b == 2.0 { a * a } else { a.powf(b) }
}

#[inline(always)]
fn least(a: f32, b: f32) -> f32 {
    if a.is_nan() || a < b { a } else { b }
}

#[inline(always)]
fn greatest(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// What an elementwise operator makes of one element of each operand, to the bit; `None` for what has no such form.
pub(super) fn element(op: &Op, operands: &[Option<f32>]) -> Option<f32> {
    let operand = |i: usize| operands.get(i).copied().flatten();
    let x = operand(0)?;
    Some(match op {
        Op::Unary(unary) => unary_f32(*unary)(x),
        Op::Identity => x,
        Op::Clip => {
            clamp_f32(x, operand(1).unwrap_or(f32::NEG_INFINITY), operand(2).unwrap_or(f32::INFINITY))
        }
        Op::Binary(Binary::Add) => x + operand(1)?,
        Op::Binary(Binary::Sub) => x - operand(1)?,
        Op::Binary(Binary::Mul) => x * operand(1)?,
        Op::Binary(Binary::Div) => x / operand(1)?,
        Op::Binary(Binary::Pow) => power(x, operand(1)?),
        Op::Binary(Binary::Min) => least(x, operand(1)?),
        Op::Binary(Binary::Max) => greatest(x, operand(1)?),
        Op::Other(other) => {
            let x = Tensor::scalar(x);
            *other.operator.run(&[Some(x.view())], 1).ok()?.first()?.slice::<f32>().first()?
        }
        _ => return None,
    })
}

/// Pow with an exponent of another type. One that is known before the run and is taken of floats stays in float32.
fn pow_mixed(a: &Fact, b: &Fact, out: &[usize]) -> Result<Kernel, String> {
    let (DType::F32, Some(constant)) = (a.dtype, &b.constant) else {
        return ops_typed::pow_mixed(a, b, out);
    };
    let walk = Walk::broadcast(out, [&a.shape, &b.shape]);
    let exponents: Vec<f32> = constant.to_f64().iter().map(|&x| x as f32).collect();
    Ok(Box::new(move |operands, mut out, _| {
        let a = operands.need(0).slice::<f32>();
        let out = out.slice_mut::<f32>();
        walk.rows(|at, [a0, b0], n, [da, db]| {
            for i in 0..n {
                let (a, b) = (a[a0 as usize + i * da as usize], exponents[b0 as usize + i * db as usize]);
                out[at + i] = if b == 2.0 { a * a } else { a.powf(b) };
            }
        });
        Ok(())
    }))
}

/// Clip; the bounds may be computed.
pub(super) fn clip(context: Context, x: &Fact) -> Result<Kernel, String> {
    if x.dtype != DType::F32 {
        return ops_typed::clip(x);
    }
    let Context { isa, threads, .. } = context;
    Ok(Box::new(move |operands, mut out, _| {
        let bound = |i: usize, open: f32| -> Result<f32, String> {
            let Some(view) = operands.get(i) else { return Ok(open) };
            view.slice::<f32>().first().copied().ok_or_else(|| format!("input {i} is empty"))
        };
        let (lo, hi) = (bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?);
        let x = operands.need(0).slice::<f32>();
        // min after max: where the bounds cross, the upper one holds (ONNX).
        let clipped = |x: f32| clamp_f32(x, lo, hi);
        let parts = parts(threads, x.len() / ELEMENTS_PER_NS);
        split_rows(out.slice_mut::<f32>(), 0..x.len(), 1, 1, parts, &|range, out: &mut [f32]| {
            isa.vectorize(
                #[inline(always)]
                || out.iter_mut().zip(&x[range]).for_each(|(y, &x)| *y = clipped(x)),
            );
        });
        Ok(())
    }))
}

/// A reduction over `axes`.
pub(super) fn reduce(kind: Reduce, axes: &[usize], x: &Fact) -> Result<Kernel, String> {
    if x.dtype != DType::F32 {
        return ops_typed::reduce(kind, axes, x);
    }
    // The folded axes go last, so that each result is the fold of one row.
    let own = row_major(&x.shape);
    let kept = (0..x.shape.len()).filter(|i| !axes.contains(i));
    let order: Vec<usize> = kept.chain(axes.iter().copied()).collect();
    let shape: Vec<usize> = order.iter().map(|&i| x.shape[i]).collect();
    let walk = Walk::new(&shape, [order.iter().map(|&i| own[i]).collect()]);
    let row: usize = axes.iter().map(|&i| x.shape[i]).product();
    let in_place = order.iter().copied().eq(0..x.shape.len());
    Ok(Box::new(move |operands, mut out, scratch| {
        let x = operands.need(0).slice::<f32>();
        let rows: &[f32] = if in_place {
            x
        } else {
            scratch.floats.resize(x.len(), 0.0);
            copy(&walk, 0, x, &mut scratch.floats);
            &scratch.floats
        };
        let out = out.slice_mut::<f32>();
        for (i, y) in out.iter_mut().enumerate() {
            *y = fold_row(kind, &rows[i * row..(i + 1) * row], &mut scratch.more_floats);
        }
        Ok(())
    }))
}

fn fold_row(kind: Reduce, row: &[f32], room: &mut Vec<f32>) -> f32 {
    let mut mapped = |f: fn(f32) -> f32| {
        room.clear();
        room.extend(row.iter().map(|&x| f(x)));
        math::sum(room)
    };
    match kind {
        Reduce::Sum => math::sum(row),
        Reduce::Mean => math::sum(row) / row.len() as f32,
        Reduce::Max => math::max(row),
        Reduce::Min => math::min(row),
        Reduce::Prod => math::product(row),
        Reduce::SumSquare => mapped(|x| x * x),
        Reduce::L1 => mapped(f32::abs),
        Reduce::L2 => mapped(|x| x * x).sqrt(),
        Reduce::LogSum => math::sum(row).ln(),
        Reduce::LogSumExp => {
            let top = math::max(row);
            let top = if top.is_finite() { top } else { 0.0 };
            room.clear();
            room.extend(row.iter().map(|&x| math::exp(x - top)));
            math::sum(room).ln() + top
        }
    }
}

/// Softmax along `axis`, or over all axes from `axis` on as one where `coerce_2d`.
pub(super) fn softmax(
    context: Context,
    axis: i64,
    log: bool,
    coerce_2d: bool,
    x: &Fact,
) -> Result<Kernel, String> {
    let axis = axis_index(axis, x.shape.len(), false)?;
    if x.dtype != DType::F32 {
        return ops_typed::softmax(axis, log, coerce_2d, x);
    }
    let after: usize = x.shape[axis + 1..].iter().product();
    let row = if coerce_2d { x.shape[axis] * after } else { x.shape[axis] };
    let stride = if coerce_2d { 1 } else { after };
    let Context { isa, threads, .. } = context;
    Ok(Box::new(move |operands, mut out, scratch| {
        let x = operands.need(0).slice::<f32>();
        let out = out.slice_mut::<f32>();
        if x.is_empty() {
            return Ok(());
        }
        if stride == 1 {
            let parts = parts(threads, x.len());
            split_rows(out, 0..x.len() / row, row, 1, parts, &|range: Range<usize>, out: &mut [f32]| {
                isa.vectorize(
                    #[inline(always)]
                    || {
                        out.copy_from_slice(&x[range.start * row..range.end * row]);
                        for row in out.chunks_exact_mut(row) {
                            math::softmax(row, log);
                        }
                    },
                );
            });
            return Ok(());
        }
        scratch.floats.resize(row, 0.0);
        for block in 0..x.len() / (row * stride) {
            for column in 0..stride {
                let at = |i: usize| (block * row + i) * stride + column;
                (0..row).for_each(|i| scratch.floats[i] = x[at(i)]);
                isa.vectorize(
                    #[inline(always)]
                    || math::softmax(&mut scratch.floats[..row], log),
                );
                (0..row).for_each(|i| out[at(i)] = scratch.floats[i]);
            }
        }
        Ok(())
    }))
}

/// LayerNormalization over the axes from `axis` on.
pub(super) fn layer_norm(context: Context, axis: i64, epsilon: f32, x: &Fact) -> Result<Kernel, String> {
    if x.dtype != DType::F32 {
        return Err(format!("LayerNormalization of {} is not supported", x.dtype));
    }
    let axis = axis_index(axis, x.shape.len(), false)?;
    let row = x.shape[axis..].iter().product::<usize>().max(1);
    let Context { isa, threads, .. } = context;
    Ok(Box::new(move |operands, mut out, _| {
        let x = operands.need(0).slice::<f32>();
        let scale = operands.need(1).slice::<f32>();
        let bias = operands.get(2).map(|b| b.slice::<f32>());
        let parts = parts(threads, x.len() / 2);
        let out = out.slice_mut::<f32>();
        split_rows(out, 0..x.len() / row, row, 1, parts, &|range: Range<usize>, out: &mut [f32]| {
            let rows = x[range.start * row..].chunks_exact(row).zip(out.chunks_exact_mut(row));
            isa.vectorize(
                #[inline(always)]
                || {
                    for (x, y) in rows {
                        math::layer_norm(x, scale, bias, epsilon, y);
                    }
                },
            );
        });
        Ok(())
    }))
}

/// BatchNormalization that could not be folded: `(x − mean) / sqrt(variance + epsilon) × scale + bias`.
pub(super) fn batch_norm(epsilon: f32, x: &Fact) -> Result<Kernel, String> {
    if x.dtype != DType::F32 {
        return Err(format!("BatchNormalization of {} is not supported", x.dtype));
    }
    let channels = x.shape.get(1).copied().unwrap_or(1).max(1);
    let inner: usize = x.shape.iter().skip(2).product();
    Ok(Box::new(move |operands, mut out, _| {
        let x = operands.need(0).slice::<f32>();
        let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|i| operands.need(i).slice::<f32>());
        let planes = out.slice_mut::<f32>().chunks_exact_mut(inner.max(1)).zip(x.chunks_exact(inner.max(1)));
        for (plane, (y, x)) in planes.enumerate() {
            let c = plane % channels;
            let factor = scale[c] / (variance[c] + epsilon).sqrt();
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - mean[c]) * factor + bias[c]);
        }
        Ok(())
    }))
}

/// Range.
pub(super) fn range(start: &Fact) -> Result<Kernel, String> {
    macro_rules! range {
        ($t:ty) => {
            Box::new(|operands, mut out, _| {
                let (start, delta) = (operands.need(0).slice::<$t>()[0], operands.need(2).slice::<$t>()[0]);
                out.slice_mut::<$t>().iter_mut().enumerate().for_each(|(i, y)| *y = start + i as $t * delta);
                Ok(())
            })
        };
    }
    Ok(match start.dtype {
        DType::I64 => range!(i64),
        DType::I32 => range!(i32),
        DType::F32 => range!(f32),
        DType::F64 => range!(f64),
        other => return Err(format!("Range of {other} is not supported")),
    })
}

/// Cast.
pub(super) fn cast(context: Context, from: DType, to: DType) -> Result<Kernel, String> {
    macro_rules! targets {
        ($s:ty, $get:expr) => {{
            let get: fn($s) -> _ = $get;
            match to {
                DType::F32 => map(context, move |x: $s| get(x) as f32),
                DType::F64 => map(context, move |x: $s| get(x) as f64),
                DType::F16 => map(context, move |x: $s| half::f16::from_f32(get(x) as f32)),
                DType::BF16 => map(context, move |x: $s| half::bf16::from_f32(get(x) as f32)),
                DType::I64 => map(context, move |x: $s| get(x) as i64),
                DType::I32 => map(context, move |x: $s| get(x) as i32),
                DType::I16 => map(context, move |x: $s| get(x) as i16),
                DType::I8 => map(context, move |x: $s| get(x) as i8),
                DType::U64 => map(context, move |x: $s| get(x) as u64),
                DType::U32 => map(context, move |x: $s| get(x) as u32),
                DType::U16 => map(context, move |x: $s| get(x) as u16),
                DType::U8 => map(context, move |x: $s| get(x) as u8),
                DType::Bool => map(context, move |x: $s| u8::from(get(x) as f64 != 0.0)),
            }
        }};
    }
    Ok(match from {
        DType::F32 => targets!(f32, |x: f32| x),
        DType::F64 => targets!(f64, |x: f64| x),
        DType::F16 => targets!(half::f16, half::f16::to_f32),
        DType::BF16 => targets!(half::bf16, half::bf16::to_f32),
        DType::I64 => targets!(i64, |x: i64| x),
        DType::I32 => targets!(i32, |x: i32| x),
        DType::I16 => targets!(i16, |x: i16| x),
        DType::I8 => targets!(i8, |x: i8| x),
        DType::U64 => targets!(u64, |x: u64| x),
        DType::U32 => targets!(u32, |x: u32| x),
        DType::U16 => targets!(u16, |x: u16| x),
        DType::U8 | DType::Bool => targets!(u8, |x: u8| x),
    })
}
