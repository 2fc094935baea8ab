//! Products of matrices for the rounding of weights: the same numbers on every machine. Knows nothing of layers.

use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use crate::engine::kernels::gemm_f32::matmul_f32;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::layout::nchw_to_nhwc;

/// Rows that are summed in f32; sums of them in f64.
const PART: usize = 512;
/// Columns of a symmetric product that are computed together.
const STRIPE: usize = 384;
/// A product with fewer columns leaves most of a tile empty.
const COLUMNS_MIN: usize = 8;

/// How products are computed.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// Instruction set.
    pub isa: Isa,
    /// Most threads.
    pub threads: usize,
}

impl Dense {
    /// `a b`.
    pub fn dot(self, a: &ArrayView2<'_, f32>, b: &ArrayView2<'_, f32>) -> Array2<f32> {
        let (m, k, n) = (a.nrows(), a.ncols(), b.ncols());
        let mut out = Array2::zeros((m, n));
        let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
        let (a, b) = (a.as_slice().expect("it is contiguous"), b.as_slice().expect("it is contiguous"));
        let to = out.as_slice_mut().expect("it is contiguous");
        if n >= COLUMNS_MIN {
            matmul_f32(self.isa, a, b, (1, m, k, n), &|_| (0, 0), to, self.threads);
            return out;
        }
        for (a, to) in a.chunks_exact(k.max(1)).zip(to.chunks_exact_mut(n.max(1))) {
            for (a, b) in a.iter().zip(b.chunks_exact(n)) {
                to.iter_mut().zip(b).for_each(|(to, b)| *to += a * b);
            }
        }
        out
    }

    /// `aᵀ b / rows`, with sums over parts of the rows in f32.
    pub fn product(self, a: &ArrayView2<'_, f32>, b: &ArrayView2<'_, f32>) -> Array2<f64> {
        let mut sum = Array2::<f64>::zeros((a.ncols(), b.ncols()));
        for (a, b) in a.axis_chunks_iter(Axis(0), PART).zip(b.axis_chunks_iter(Axis(0), PART)) {
            sum.zip_mut_with(&self.dot(&self.transposed(&a).view(), &b), |sum, &x| *sum += f64::from(x));
        }
        sum / a.nrows().max(1) as f64
    }

    /// `aᵀ a / rows`, as [`Dense::product`]: the lower triangle in stripes, the other is the same.
    pub fn gram(self, a: &ArrayView2<'_, f32>) -> Array2<f64> {
        let n = a.ncols();
        let mut sum = Array2::<f64>::zeros((n, n));
        for a in a.axis_chunks_iter(Axis(0), PART) {
            let across = self.transposed(&a);
            for from in (0..n).step_by(STRIPE) {
                let to = (from + STRIPE).min(n);
                let part = self.dot(&across.slice(s![from.., ..]), &a.slice(s![.., from..to]));
                sum.slice_mut(s![from.., from..to]).zip_mut_with(&part, |sum, &x| *sum += f64::from(x));
            }
        }
        for i in 0..n {
            for j in i + 1..n {
                sum[[i, j]] = sum[[j, i]];
            }
        }
        sum / a.nrows().max(1) as f64
    }

    fn transposed(self, a: &ArrayView2<'_, f32>) -> Array2<f32> {
        let (rows, columns) = a.dim();
        let mut out = Array2::zeros((columns, rows));
        let a = a.as_standard_layout();
        let (a, to) =
            (a.as_slice().expect("it is contiguous"), out.as_slice_mut().expect("it is contiguous"));
        nchw_to_nhwc(self.isa, a, 1, rows, columns, to, self.threads);
        out
    }
}

/// Sum and sum of squares of each column.
pub fn moments(a: &Array2<f32>) -> (Array1<f64>, Array1<f64>) {
    let (mut sums, mut squares) = (Array1::zeros(a.ncols()), Array1::zeros(a.ncols()));
    for row in a.rows() {
        for ((sum, square), &x) in sums.iter_mut().zip(&mut squares).zip(&row) {
            let x = f64::from(x);
            *sum += x;
            *square += x * x;
        }
    }
    (sums, squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        let dense = Dense { isa: Isa::best(), threads: 2 };
        for (m, k, n) in [(3, 2, 1), (700, 5, 9), (40, 33, 20)] {
            let number = |i: usize, j: usize| ((i * 7 + j * 5) % 11) as f32 - 5.0;
            let a = Array2::from_shape_fn((m, k), |(i, j)| number(i, j));
            let b = Array2::from_shape_fn((k, n), |(i, j)| number(j, i));
            // Whole numbers: no order rounds them.
            assert_eq!(dense.dot(&a.view(), &b.view()), a.dot(&b));
            let c = Array2::from_shape_fn((m, n), |(i, j)| number(i, j + 1));
            let want = a.t().dot(&c).mapv(f64::from) / m as f64;
            let got = dense.product(&a.view(), &c.view());
            assert!((got - want).iter().all(|x| x.abs() < 1e-9));
            let (sums, squares) = moments(&c);
            assert_eq!(sums, c.mapv(f64::from).sum_axis(Axis(0)));
            assert_eq!(squares, c.mapv(|x| f64::from(x * x)).sum_axis(Axis(0)));
        }
    }
}
