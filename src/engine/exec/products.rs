//! Matrix products of float64 and of integers, which networks seldom ask for: the obvious loop.

use crate::engine::graph::fact::{Fact, broadcast};
use crate::engine::graph::op::Op;
use crate::engine::tensor::{DType, Element};

use super::step::Kernel;
use super::strided::Walk;

/// What a product of matrices needs of its elements. Integers wrap.
trait Number: Element + Default {
    fn plus_product(self, a: Self, b: Self) -> Self;
    fn plus(self, other: Self) -> Self;
    /// As a real, times a factor.
    fn scaled(self, factor: f32) -> Self;
}

impl Number for f64 {
    fn plus_product(self, a: f64, b: f64) -> f64 {
        self + a * b
    }
    fn plus(self, other: f64) -> f64 {
        self + other
    }
    fn scaled(self, factor: f32) -> f64 {
        self * f64::from(factor)
    }
}

macro_rules! integers {
    ($($t:ty)*) => { $(
        impl Number for $t {
            fn plus_product(self, a: $t, b: $t) -> $t {
                self.wrapping_add(a.wrapping_mul(b))
            }
            fn plus(self, other: $t) -> $t {
                self.wrapping_add(other)
            }
            fn scaled(self, factor: f32) -> $t {
                if factor == 1.0 { self } else { (self as f64 * f64::from(factor)) as $t }
            }
        }
    )* };
}
integers!(i32 i64 u32 u64);

macro_rules! by_type {
    ($dtype:expr, $f:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F64 => $f::<f64>($($argument),*),
            DType::I32 => $f::<i32>($($argument),*),
            DType::I64 => $f::<i64>($($argument),*),
            DType::U32 => $f::<u32>($($argument),*),
            DType::U64 => $f::<u64>($($argument),*),
            other => Err(format!("a product of {other} is not supported")),
        }
    };
}

/// `a [m, k]` times `b [k, n]` to `out [m, n]`; each is read with the given steps along its two axes.
fn product<T: Number>(
    (a, [am, ak]): (&[T], [usize; 2]),
    (b, [bk, bn]): (&[T], [usize; 2]),
    (k, n): (usize, usize),
    out: &mut [T],
) {
    for (i, row) in out.chunks_exact_mut(n.max(1)).enumerate() {
        row.fill(T::default());
        for p in 0..k {
            let a = a[i * am + p * ak];
            for (j, y) in row.iter_mut().enumerate() {
                *y = y.plus_product(a, b[p * bk + j * bn]);
            }
        }
    }
}

/// MatMul: `[…, m, k] × […, k, n]`.
pub(super) fn matmul(a: &Fact, b: &Fact) -> Result<Kernel, String> {
    fn of<T: Number>(a: &Fact, b: &Fact) -> Result<Kernel, String> {
        let split = |shape: &[usize]| shape.split_at(shape.len().saturating_sub(2)).0.to_vec();
        let (lead_a, lead_b) = (split(&a.shape), split(&b.shape));
        let (m, k) = match a.shape[..] {
            [k] => (1, k),
            [.., m, k] => (m, k),
            [] => return Err("an operand is a single number".to_owned()),
        };
        let n = if b.shape.len() == 1 { 1 } else { b.shape[b.shape.len() - 1] };
        let walk = Walk::broadcast(&broadcast(&lead_a, &lead_b)?, [&lead_a, &lead_b]);
        Ok(Box::new(move |operands, mut out, _| {
            let (a, b) = (operands.need(0).slice::<T>(), operands.need(1).slice::<T>());
            let out = out.slice_mut::<T>();
            walk.rows(|at, [a0, b0], length, [da, db]| {
                for i in 0..length {
                    let (ia, ib) = ((a0 + da * i as isize) as usize, (b0 + db * i as isize) as usize);
                    let (a, b) = (&a[ia * m * k..][..m * k], &b[ib * k * n..][..k * n]);
                    product((a, [k, 1]), (b, [n, 1]), (k, n), &mut out[(at + i) * m * n..][..m * n]);
                }
            });
            Ok(())
        }))
    }
    if a.dtype != b.dtype {
        return Err(format!("operands are {} and {}", a.dtype, b.dtype));
    }
    by_type!(a.dtype, of(a, b))
}

/// Gemm: `alpha · a' · b' + beta · c`.
pub(super) fn gemm(op: &Op, a: &Fact, b: &Fact, c: Option<&Fact>) -> Result<Kernel, String> {
    fn of<T: Number>(op: &Op, a: &Fact, b: &Fact, c: Option<&Fact>) -> Result<Kernel, String> {
        let Op::Gemm { alpha, beta, trans_a, trans_b } = *op else { unreachable!("called for Gemm") };
        let (m, k) = if trans_a { (a.shape[1], a.shape[0]) } else { (a.shape[0], a.shape[1]) };
        let n = if trans_b { b.shape[0] } else { b.shape[1] };
        let steps_a = if trans_a { [1, m] } else { [k, 1] };
        let steps_b = if trans_b { [1, k] } else { [n, 1] };
        let walk = c.map(|c| Walk::broadcast(&[m, n], [&c.shape]));
        Ok(Box::new(move |operands, mut out, _| {
            let (a, b) = (operands.need(0).slice::<T>(), operands.need(1).slice::<T>());
            let out = out.slice_mut::<T>();
            product((a, steps_a), (b, steps_b), (k, n), out);
            out.iter_mut().for_each(|y| *y = y.scaled(alpha));
            if let Some(walk) = &walk {
                let c = operands.need(2).slice::<T>();
                walk.rows(|at, [start], length, [step]| {
                    for i in 0..length {
                        let c = c[(start + step * i as isize) as usize];
                        out[at + i] = out[at + i].plus(c.scaled(beta));
                    }
                });
            }
            Ok(())
        }))
    }
    if [Some(b), c].into_iter().flatten().any(|other| other.dtype != a.dtype) {
        return Err("operands are of different types".to_owned());
    }
    by_type!(a.dtype, of(op, a, b, c))
}
