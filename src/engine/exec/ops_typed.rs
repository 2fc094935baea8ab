//! Element by element operators and reductions on every type but float32: the obvious loops. Networks
//! compute shapes, masks and ids with them, not pictures.

use crate::engine::graph::fact::Fact;
use crate::engine::graph::op::{Binary, Reduce, Unary};
use crate::engine::tensor::{DType, Element};

use super::step::Kernel;
use super::strided::{Walk, copy, row_major};

/// A kernel that maps every element of operand 0.
fn map<T: Element>(f: impl Fn(T) -> T + Send + Sync + 'static) -> Kernel {
    Box::new(move |operands, mut out, _| {
        let x = operands.need(0).slice::<T>();
        out.slice_mut::<T>().iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
        Ok(())
    })
}

/// Runs `f` over the broadcast of operands 0 and 1.
fn zip<T: Element, U: Element>(walk: Walk<2>, f: impl Fn(T, T) -> U + Send + Sync + 'static) -> Kernel {
    Box::new(move |operands, mut out, _| {
        let (a, b) = (operands.need(0).slice::<T>(), operands.need(1).slice::<T>());
        let out = out.slice_mut::<U>();
        walk.rows(|at, [a0, b0], n, [da, db]| {
            for (i, y) in out[at..at + n].iter_mut().enumerate() {
                let step = i as isize;
                *y = f(a[(a0 + step * da) as usize], b[(b0 + step * db) as usize]);
            }
        });
        Ok(())
    })
}

fn unary_f64(op: Unary) -> impl Fn(f64) -> f64 + Send + Sync + Copy {
    move |x| match op {
        Unary::Relu => x.max(0.0),
        Unary::LeakyRelu { alpha } => {
            if x < 0.0 {
                f64::from(alpha) * x
            } else {
                x
            }
        }
        Unary::Elu { alpha } => {
            if x < 0.0 {
                f64::from(alpha) * x.exp_m1()
            } else {
                x
            }
        }
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
        Unary::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Unary::Tanh => x.tanh(),
        // The standard library has no erf: the one in float32 is what ONNX Runtime computes as well.
        Unary::Erf => f64::from(crate::engine::kernels::math::erf(x as f32)),
        Unary::Gelu { tanh: false } => {
            0.5 * x
                * (1.0
                    + f64::from(crate::engine::kernels::math::erf(
                        (x * std::f64::consts::FRAC_1_SQRT_2) as f32,
                    )))
        }
        Unary::Gelu { tanh: true } => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Unary::Softplus => {
            if x > 30.0 {
                x
            } else {
                x.exp().ln_1p()
            }
        }
        Unary::Exp => x.exp(),
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
        Unary::Not => f64::from(x == 0.0),
    }
}

/// A unary operator on a type other than float32.
pub(super) fn unary(op: Unary, x: &Fact) -> Result<Kernel, String> {
    let refuse = || format!("{} of {} is not supported", op.name(), x.dtype);
    macro_rules! signed {
        ($t:ty) => {
            match op {
                Unary::Neg => map(<$t>::wrapping_neg),
                Unary::Abs => map(<$t>::wrapping_abs),
                Unary::Sign => map(<$t>::signum),
                Unary::Relu => map(|x: $t| x.max(0)),
                _ => return Err(refuse()),
            }
        };
    }
    macro_rules! unsigned {
        ($t:ty) => {
            match op {
                Unary::Abs | Unary::Relu => map(|x: $t| x),
                Unary::Sign => map(|x: $t| x.min(1)),
                _ => return Err(refuse()),
            }
        };
    }
    Ok(match x.dtype {
        DType::F64 => map(unary_f64(op)),
        DType::I64 => signed!(i64),
        DType::I32 => signed!(i32),
        DType::I16 => signed!(i16),
        DType::I8 => signed!(i8),
        DType::U64 => unsigned!(u64),
        DType::U32 => unsigned!(u32),
        DType::U16 => unsigned!(u16),
        DType::U8 => unsigned!(u8),
        DType::Bool if op == Unary::Not => map(|x: u8| 1 - x),
        _ => return Err(refuse()),
    })
}

/// A binary operator that broadcasts, on a type other than float32.
pub(super) fn binary(op: Binary, a: &Fact, b: &Fact, out: &[usize]) -> Result<Kernel, String> {
    let walk = Walk::broadcast(out, [&a.shape, &b.shape]);
    let refuse = || format!("{} of {} is not supported", op.name(), a.dtype);
    macro_rules! comparison {
        ($t:ty) => {
            match op {
                Binary::Equal => Some(zip(walk.clone(), |a: $t, b: $t| u8::from(a == b))),
                Binary::Less => Some(zip(walk.clone(), |a: $t, b: $t| u8::from(a < b))),
                Binary::LessOrEqual => Some(zip(walk.clone(), |a: $t, b: $t| u8::from(a <= b))),
                Binary::Greater => Some(zip(walk.clone(), |a: $t, b: $t| u8::from(a > b))),
                Binary::GreaterOrEqual => Some(zip(walk.clone(), |a: $t, b: $t| u8::from(a >= b))),
                _ => None,
            }
        };
    }
    macro_rules! whole {
        ($t:ty) => {
            comparison!($t).or_else(|| {
                Some(match op {
                    Binary::Add => zip(walk, <$t>::wrapping_add),
                    Binary::Sub => zip(walk, <$t>::wrapping_sub),
                    Binary::Mul => zip(walk, <$t>::wrapping_mul),
                    // Division by zero is the data's fault and gives 0: ONNX leaves it open.
                    Binary::Div => zip(walk, |a: $t, b: $t| if b == 0 { 0 } else { a.wrapping_div(b) }),
                    Binary::Min => zip(walk, |a: $t, b: $t| a.min(b)),
                    Binary::Max => zip(walk, |a: $t, b: $t| a.max(b)),
                    Binary::Pow => zip(walk, |a: $t, b: $t| (a as f64).powf(b as f64) as $t),
                    Binary::Mod { float: true } => {
                        zip(walk, |a: $t, b: $t| if b == 0 { 0 } else { a.wrapping_rem(b) })
                    }
                    Binary::Mod { float: false } => zip(walk, |a: $t, b: $t| {
                        if b == 0 {
                            return 0;
                        }
                        // The sign of the divisor, as in Python.
                        let r = a.wrapping_rem(b);
                        #[allow(
                            unused_comparisons,
                            reason = "the loop is written for unsigned types as well"
                        )]
                        if r != 0 && (r < 0) != (b < 0) { r.wrapping_add(b) } else { r }
                    }),
                    _ => return None,
                })
            })
        };
    }
    let kernel = match a.dtype {
        DType::F64 => comparison!(f64).or_else(|| {
            Some(match op {
                Binary::Add => zip(walk, |a: f64, b: f64| a + b),
                Binary::Sub => zip(walk, |a: f64, b: f64| a - b),
                Binary::Mul => zip(walk, |a: f64, b: f64| a * b),
                Binary::Div => zip(walk, |a: f64, b: f64| a / b),
                Binary::Pow => zip(walk, f64::powf),
                Binary::Min => zip(walk, |a: f64, b: f64| if a.is_nan() || a < b { a } else { b }),
                Binary::Max => zip(walk, |a: f64, b: f64| if a.is_nan() || a > b { a } else { b }),
                Binary::Mod { .. } => zip(walk, |a: f64, b: f64| a % b),
                _ => return None,
            })
        }),
        DType::I64 => whole!(i64),
        DType::I32 => whole!(i32),
        DType::I16 => whole!(i16),
        DType::I8 => whole!(i8),
        DType::U64 => whole!(u64),
        DType::U32 => whole!(u32),
        DType::U16 => whole!(u16),
        DType::U8 => whole!(u8),
        DType::Bool => comparison!(u8).or_else(|| {
            Some(match op {
                Binary::And | Binary::Min | Binary::Mul => zip(walk, |a: u8, b: u8| a & b),
                Binary::Or | Binary::Max => zip(walk, |a: u8, b: u8| a | b),
                Binary::Xor => zip(walk, |a: u8, b: u8| a ^ b),
                _ => return None,
            })
        }),
        _ => None,
    };
    kernel.ok_or_else(refuse)
}

/// Pow of two types: the result has the first one's. Through float64, which holds every exponent that matters.
pub(super) fn pow_mixed(a: &Fact, b: &Fact, out: &[usize]) -> Result<Kernel, String> {
    let walk = Walk::broadcast(out, [&a.shape, &b.shape]);
    macro_rules! power {
        ($t:ty) => {
            Box::new(move |operands, mut out, _| {
                let exponents = operands.need(1).to_f64();
                let a = operands.need(0).slice::<$t>();
                let out = out.slice_mut::<$t>();
                walk.rows(|at, [a0, b0], n, [da, db]| {
                    for (i, y) in out[at..at + n].iter_mut().enumerate() {
                        let step = i as isize;
                        let base = a[(a0 + step * da) as usize] as f64;
                        *y = base.powf(exponents[(b0 + step * db) as usize]) as $t;
                    }
                });
                Ok(())
            })
        };
    }
    Ok(match a.dtype {
        DType::F32 => power!(f32),
        DType::F64 => power!(f64),
        DType::I64 => power!(i64),
        DType::I32 => power!(i32),
        other => return Err(format!("Pow of {other} and {} is not supported", b.dtype)),
    })
}

/// Clip on a type other than float32; the bounds may be computed.
pub(super) fn clip(x: &Fact) -> Result<Kernel, String> {
    macro_rules! clip {
        ($t:ty) => {
            Box::new(|operands, mut out, _| {
                let bound = |i: usize, open: $t| -> Result<$t, String> {
                    let Some(view) = operands.get(i) else { return Ok(open) };
                    view.slice::<$t>().first().copied().ok_or_else(|| format!("input {i} is empty"))
                };
                let (lo, hi) = (bound(1, <$t>::MIN)?, bound(2, <$t>::MAX)?);
                let x = operands.need(0).slice::<$t>();
                // min after max: where the bounds cross, the upper one holds (ONNX).
                let clipped = |x: $t| {
                    let above = if x < lo { lo } else { x };
                    if above > hi { hi } else { above }
                };
                out.slice_mut::<$t>().iter_mut().zip(x).for_each(|(y, &x)| *y = clipped(x));
                Ok(())
            })
        };
    }
    Ok(match x.dtype {
        DType::F64 => clip!(f64),
        DType::I64 => clip!(i64),
        DType::I32 => clip!(i32),
        DType::I16 => clip!(i16),
        DType::I8 => clip!(i8),
        DType::U64 => clip!(u64),
        DType::U32 => clip!(u32),
        DType::U16 => clip!(u16),
        DType::U8 => clip!(u8),
        other => return Err(format!("Clip of {other} is not supported")),
    })
}

/// A reduction over `axes` on a type other than float32.
pub(super) fn reduce(kind: Reduce, axes: &[usize], x: &Fact) -> Result<Kernel, String> {
    macro_rules! whole {
        ($t:ty) => {{
            let sum = |row: &[$t], f: fn($t) -> $t| row.iter().fold(0 as $t, |s, &v| s.wrapping_add(f(v)));
            // The reals among the reductions go through float64 and are cut.
            let real = move |row: &[$t]| -> $t {
                let row: Vec<f64> = row.iter().map(|&v| v as f64).collect();
                fold_f64(kind, &row) as $t
            };
            fold_rows::<$t>(axes, x, move |row| match kind {
                Reduce::Sum => sum(row, |v| v),
                Reduce::SumSquare => sum(row, |v| v.wrapping_mul(v)),
                Reduce::Prod => row.iter().fold(1 as $t, |p, &v| p.wrapping_mul(v)),
                Reduce::Max => row.iter().copied().max().unwrap_or(<$t>::MIN),
                Reduce::Min => row.iter().copied().min().unwrap_or(<$t>::MAX),
                _ => real(row),
            })
        }};
    }
    Ok(match x.dtype {
        DType::F64 => fold_rows::<f64>(axes, x, move |row| fold_f64(kind, row)),
        DType::I64 => whole!(i64),
        DType::I32 => whole!(i32),
        DType::I16 => whole!(i16),
        DType::I8 => whole!(i8),
        DType::U64 => whole!(u64),
        DType::U32 => whole!(u32),
        DType::U16 => whole!(u16),
        DType::U8 => whole!(u8),
        DType::Bool => match kind {
            Reduce::Max => fold_rows::<u8>(axes, x, |row| row.iter().copied().max().unwrap_or(0)),
            Reduce::Min => fold_rows::<u8>(axes, x, |row| row.iter().copied().min().unwrap_or(1)),
            _ => return Err(format!("{} of bool is not supported", kind.name())),
        },
        other => return Err(format!("{} of {other} is not supported", kind.name())),
    })
}

/// Folds each row of the axes that go; they are brought last first.
fn fold_rows<T: Element>(
    axes: &[usize],
    x: &Fact,
    fold: impl Fn(&[T]) -> T + Send + Sync + 'static,
) -> Kernel {
    let own = row_major(&x.shape);
    let kept = (0..x.shape.len()).filter(|i| !axes.contains(i));
    let order: Vec<usize> = kept.chain(axes.iter().copied()).collect();
    let shape: Vec<usize> = order.iter().map(|&i| x.shape[i]).collect();
    let walk = Walk::new(&shape, [order.iter().map(|&i| own[i]).collect()]);
    let row: usize = axes.iter().map(|&i| x.shape[i]).product();
    Box::new(move |operands, mut out, _| {
        let x = operands.need(0).slice::<T>();
        let mut rows = x.to_vec();
        copy(&walk, 0, x, &mut rows);
        let fold_at = |(i, y): (usize, &mut T)| *y = fold(&rows[i * row..(i + 1) * row]);
        out.slice_mut::<T>().iter_mut().enumerate().for_each(fold_at);
        Ok(())
    })
}

fn fold_f64(kind: Reduce, row: &[f64]) -> f64 {
    let sum = |f: fn(f64) -> f64| row.iter().map(|&x| f(x)).sum::<f64>();
    match kind {
        Reduce::Sum => sum(|x| x),
        Reduce::Mean => sum(|x| x) / row.len() as f64,
        Reduce::Max => row.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        Reduce::Min => row.iter().copied().fold(f64::INFINITY, f64::min),
        Reduce::Prod => row.iter().product(),
        Reduce::SumSquare => sum(|x| x * x),
        Reduce::L1 => sum(f64::abs),
        Reduce::L2 => sum(|x| x * x).sqrt(),
        Reduce::LogSum => sum(|x| x).ln(),
        Reduce::LogSumExp => {
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let top = if top.is_finite() { top } else { 0.0 };
            row.iter().map(|&x| (x - top).exp()).sum::<f64>().ln() + top
        }
    }
}

/// Softmax of float64, or its logarithm, along `axis`; over all axes from it on as one where `coerce_2d`.
pub(super) fn softmax(axis: usize, log: bool, coerce_2d: bool, x: &Fact) -> Result<Kernel, String> {
    if x.dtype != DType::F64 {
        return Err(format!("Softmax of {} is not supported", x.dtype));
    }
    let after: usize = x.shape[axis + 1..].iter().product();
    let (row, stride) = if coerce_2d { (x.shape[axis] * after, 1) } else { (x.shape[axis], after) };
    Ok(Box::new(move |operands, mut out, _| {
        let x = operands.need(0).slice::<f64>();
        let out = out.slice_mut::<f64>();
        for first in (0..x.len()).filter(|i| i / stride.max(1) % row.max(1) == 0) {
            let places = || (0..row).map(move |i| first + i * stride);
            let top = places().map(|i| x[i]).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = places().map(|i| (x[i] - top).exp()).sum();
            places().for_each(|i| {
                out[i] = if log { x[i] - top - total.ln() } else { (x[i] - top).exp() / total }
            });
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_rows_fold_to_what_changes_nothing() {
        assert_eq!(fold_f64(Reduce::Max, &[]), f64::NEG_INFINITY);
        assert_eq!(fold_f64(Reduce::Sum, &[]), 0.0);
        assert_eq!(fold_f64(Reduce::LogSumExp, &[]), f64::NEG_INFINITY);
    }
}
