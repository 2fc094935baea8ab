//! Products of two matrices of either type of reals.

use crate::engine::graph::shapes::VALUE_BYTES_MAX;
use crate::engine::kernels::gemm_f32::matmul_f32;
use crate::engine::kernels::isa::Isa;
use crate::engine::tensor::element_count;

use super::real::Real;

/// Reals that have a product of matrices.
pub(super) trait Product: Real {
    /// `a [m, k]` times `b [k, n]` to `out [m, n]`, which is zero. On one thread.
    fn product(a: &[Self], b: &[Self], m: usize, k: usize, n: usize, out: &mut [Self]);
}

impl Product for f32 {
    fn product(a: &[f32], b: &[f32], m: usize, k: usize, n: usize, out: &mut [f32]) {
        matmul_f32(Isa::best(), a, b, (1, m, k, n), &|_| (0, 0), out, 1);
    }
}

impl Product for f64 {
    fn product(a: &[f64], b: &[f64], _: usize, k: usize, n: usize, out: &mut [f64]) {
        if k * n == 0 {
            return;
        }
        for (row, out) in a.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
            for (&a, b) in row.iter().zip(b.chunks_exact(n)) {
                out.iter_mut().zip(b).for_each(|(y, &b)| *y += a * b);
            }
        }
    }
}

/// Whether a matrix between two steps has a size that makes sense: operands that are small each may multiply to more.
///
/// # Errors
/// A sentence with the size.
pub(super) fn zeros_fit<T>(shape: &[usize]) -> Result<usize, String> {
    let count =
        element_count(shape).filter(|n| n.checked_mul(size_of::<T>()).is_some_and(|b| b <= VALUE_BYTES_MAX));
    count.ok_or_else(|| format!("columns of shape {shape:?} are over the limit of {VALUE_BYTES_MAX} bytes"))
}

/// A matrix of zeros; see [`zeros_fit`].
pub(super) fn zeros<T: Real>(shape: &[usize]) -> Result<Vec<T>, String> {
    Ok(vec![T::default(); zeros_fit::<T>(shape)?])
}
