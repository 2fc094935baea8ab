//! Matrix products in float32 as operators ask for them: weights that are packed once, and two computed matrices.

use crate::engine::kernels::Epilogue;
use crate::engine::kernels::gemm_f32::{PackedF32, matmul_f32};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::parallel::threads;

/// A packed right side of products.
pub(super) struct Matrix {
    /// `None` where there is no column or no depth.
    packed: Option<PackedF32>,
    columns: usize,
}

impl Matrix {
    /// The transpose of `w`, `[columns, depth]`.
    pub(super) fn of_transpose(w: &[f32], columns: usize, depth: usize) -> Matrix {
        let some = columns > 0 && depth > 0;
        Matrix { packed: some.then(|| PackedF32::pack(Isa::best(), w, columns, 1, depth)), columns }
    }

    /// `a · this + bias`: `a` is `[rows, depth]`, `bias` `[columns]`, `out` `[rows, columns]`.
    pub(super) fn multiply(&self, a: &[f32], rows: usize, bias: Option<&[f32]>, out: &mut [f32]) {
        match &self.packed {
            Some(packed) => {
                packed.matmul(a, rows, &Epilogue::with_bias(bias), out, threads());
            }
            None => {
                for row in out.chunks_exact_mut(self.columns.max(1)) {
                    match bias {
                        Some(bias) => row.copy_from_slice(bias),
                        None => row.fill(0.0),
                    }
                }
            }
        }
    }
}

/// `a · b`: `a` is `[m, k]`, `b` `[k, n]`, `out` `[m, n]`.
pub(super) fn multiply(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize), out: &mut [f32]) {
    matmul_f32(Isa::best(), a, b, (1, m, k, n), &|_| (0, 0), out, threads());
}
