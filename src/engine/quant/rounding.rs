//! Rounds the weights of a product to codes so that the results of the product change least. Knows matrices only.
//!
//! For rows `x` of the operand and results `y` that are wanted, the codes `q` of an output minimize
//! `Σ (x · s q − y)² + λ |s q − w|²`, with `s` its scale, `w` its float weights. This is a search for the nearest point
//! of a lattice. Rounding one weight after the other, each after the errors of those before it have been made good by
//! those to come, is Babai's nearest plane (1986); GPTQ (Frantar et al. 2022) does the same by another route. Written with
//! the Cholesky factor of the normal matrix, it needs no inverse.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Zip, s};
use rayon::prelude::*;

/// Terms that are rounded together; more are taken in turns. Bounds time (`K³`) and memory (`K²`).
pub const BLOCK: usize = 1152;
/// Up to so many terms several scales are tried: with few weights an output is a matter of luck, which can be had.
const TRIED_TERMS: usize = 64;
/// Scales that are tried, over the one that just holds the largest weight.
const TRIED: [f64; 48] = {
    let mut tried = [0.0; 48];
    let mut i = 0;
    while i < 48 {
        tried[i] = 0.86 + 0.008 * i as f64;
        i += 1;
    }
    tried
};
/// Outputs that one task takes.
const TASK: usize = 32;

/// What the codes may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Largest magnitude of a code.
    pub max_code: u8,
    /// The scale of each output, or the least that it may be.
    pub scales: &'a [f32],
    /// Whether other scales than these may be taken, larger ones or those that fit the weights.
    pub free: bool,
}

/// Codes of some weights and their scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// `[K, N]`, whole numbers.
    pub codes: Array2<f64>,
    /// `[N]`.
    pub scales: Vec<f32>,
}

/// The weights nearest to `w` (`[K, N]`) that give the wanted results best: with `missed` for `Σ x (y − x · w) / rows`, what
/// `w` itself leaves, the solution of `(gram + λ) (w' − w) = missed`.
pub fn target(factor: &Factor, missed: &Array2<f64>, w: ArrayView2<'_, f64>) -> Array2<f64> {
    let mut right = permuted(missed, &factor.order);
    factor.solve(&mut right);
    let mut target = w.to_owned();
    for (i, &k) in factor.order.iter().enumerate() {
        target.row_mut(k).scaled_add(1.0, &right.row(i));
    }
    target
}

/// The Cholesky factor of a damped normal matrix, rows and columns in the order in which weights are rounded, from the
/// last to the first: what is read most is rounded first, while all others can still make good for it.
#[derive(Clone, Debug)]
pub struct Factor {
    /// Lower triangle.
    lower: Array2<f64>,
    /// For each row the term.
    order: Vec<usize>,
}

impl Factor {
    /// Of `gram + λ`, where `λ` is `damping` times the mean of the diagonal; `gram` is `Σ x xᵀ / rows`, `[K, K]`. `None`
    /// where it is not finite.
    pub fn of(gram: &Array2<f64>, damping: f64) -> Option<Factor> {
        let mean = gram.diag().sum() / gram.nrows().max(1) as f64;
        let lambda = if mean > 0.0 { damping * mean } else { 1.0 };
        let mut order: Vec<usize> = (0..gram.nrows()).collect();
        order.sort_by(|&a, &b| gram[[a, a]].total_cmp(&gram[[b, b]]).then(b.cmp(&a)));
        let mut lower = Array2::from_shape_fn(gram.raw_dim(), |(i, j)| gram[[order[i], order[j]]]);
        lower.diag_mut().iter_mut().for_each(|d| *d += lambda);
        cholesky(&mut lower).then_some(Factor { lower, order })
    }

    /// Solves `L Lᵀ x = b` for every column.
    fn solve(&self, b: &mut Array2<f64>) {
        let (n, l) = (self.lower.nrows(), &self.lower);
        let solve = |mut b: ndarray::ArrayViewMut2<'_, f64>| {
            for from in (0..n).step_by(STEP) {
                let to = (from + STEP).min(n);
                let (done, mut rest) = b.view_mut().split_at(Axis(0), from);
                let mut block = rest.slice_mut(s![..to - from, ..]);
                ndarray::linalg::general_mat_mul(
                    -1.0,
                    &l.slice(s![from..to, ..from]),
                    &done,
                    1.0,
                    &mut block,
                );
                for i in 0..to - from {
                    let (above, mut here) = block.view_mut().split_at(Axis(0), i);
                    let mut row = here.row_mut(0);
                    for (j, above) in above.rows().into_iter().enumerate() {
                        row.scaled_add(-l[[from + i, from + j]], &above);
                    }
                    row /= l[[from + i, from + i]];
                }
            }
            for from in (0..n).step_by(STEP).rev() {
                let to = (from + STEP).min(n);
                let (mut upper, below) = b.view_mut().split_at(Axis(0), to);
                let mut block = upper.slice_mut(s![from..to, ..]);
                let factor = l.slice(s![to.., from..to]);
                ndarray::linalg::general_mat_mul(-1.0, &factor.t(), &below, 1.0, &mut block);
                for i in (0..to - from).rev() {
                    let (mut here, below) = block.view_mut().split_at(Axis(0), i + 1);
                    let mut row = here.row_mut(i);
                    for (j, below) in below.rows().into_iter().enumerate() {
                        row.scaled_add(-l[[from + i + 1 + j, from + i]], &below);
                    }
                    row /= l[[from + i, from + i]];
                }
            }
        };
        b.axis_chunks_iter_mut(Axis(1), TASK).into_par_iter().for_each(solve);
    }
}

/// Rows that are worked on together, so that most of the work is products of matrices.
const STEP: usize = 48;

/// Replaces the lower triangle of a symmetric matrix by its Cholesky factor and clears the upper one; `false` where the
/// matrix is not positive definite.
fn cholesky(a: &mut Array2<f64>) -> bool {
    let n = a.nrows();
    for from in (0..n).step_by(STEP) {
        let to = (from + STEP).min(n);
        for j in from..to {
            let pivot = a[[j, j]] - a.slice(s![j, from..j]).mapv(|x| x * x).sum();
            if !(pivot > 0.0 && pivot.is_finite()) {
                return false;
            }
            a[[j, j]] = pivot.sqrt();
            for i in j + 1..to {
                let dot = a.slice(s![i, from..j]).dot(&a.slice(s![j, from..j]));
                a[[i, j]] = (a[[i, j]] - dot) / a[[j, j]];
            }
        }
        if to < n {
            let (above, mut below) = a.view_mut().split_at(Axis(0), to);
            let square = above.slice(s![from.., from..to]).to_owned();
            let rows: Vec<_> = below.axis_iter_mut(Axis(0)).collect();
            rows.into_par_iter().with_min_len(STEP).for_each(|mut row| {
                let mut row = row.slice_mut(s![from..to]);
                let row = row.as_slice_mut().expect("rows are contiguous");
                for (j, pivots) in square.rows().into_iter().enumerate() {
                    let pivots = pivots.to_slice().expect("rows are contiguous");
                    let dot: f64 = row[..j].iter().zip(pivots).map(|(x, l)| x * l).sum();
                    row[j] = (row[j] - dot) / pivots[j];
                }
            });
            let panel = a.slice(s![to.., from..to]).to_owned();
            // The lower triangle only, in stripes.
            let mut rest = a.slice_mut(s![to.., to..]);
            let stripes: Vec<_> = rest.axis_chunks_iter_mut(Axis(0), 2 * STEP).collect();
            stripes.into_par_iter().enumerate().for_each(|(i, mut stripe)| {
                let (first, end) = (2 * STEP * i, 2 * STEP * i + stripe.nrows());
                let mut left = stripe.slice_mut(s![.., ..end]);
                let rows = panel.slice(s![first..end, ..]);
                ndarray::linalg::general_mat_mul(
                    -1.0,
                    &rows,
                    &panel.slice(s![..end, ..]).t(),
                    1.0,
                    &mut left,
                );
            });
        }
    }
    for i in 0..n {
        a.slice_mut(s![i, i + 1..]).fill(0.0);
    }
    true
}

fn permuted(a: &Array2<f64>, order: &[usize]) -> Array2<f64> {
    a.select(Axis(0), order)
}

/// Rounds target weights `[K, N]` to codes that lie nearest by the measure of the factor.
pub fn round(target: &Array2<f64>, factor: &Factor, limits: Limits<'_>) -> Rounded {
    let sorted = permuted(target, &factor.order);
    let tasks: Vec<(usize, ArrayView2<'_, f64>)> =
        sorted.axis_chunks_iter(Axis(1), TASK).enumerate().map(|(i, chunk)| (i * TASK, chunk)).collect();
    let chunks: Vec<(Array2<f64>, Vec<f32>)> = tasks
        .into_par_iter()
        .map(|(first, chunk)| {
            let limits = Limits { scales: &limits.scales[first..first + chunk.ncols()], ..limits };
            round_some(&chunk, &factor.lower, limits)
        })
        .collect();
    let mut codes = Array2::zeros(target.raw_dim());
    let mut scales = Vec::with_capacity(target.ncols());
    for (chunk, mut own) in chunks {
        for (i, &k) in factor.order.iter().enumerate() {
            codes.slice_mut(s![k, scales.len()..scales.len() + own.len()]).assign(&chunk.row(i));
        }
        scales.append(&mut own);
    }
    Rounded { codes, scales }
}

fn round_some(
    target: &ArrayView2<'_, f64>,
    lower: &Array2<f64>,
    limits: Limits<'_>,
) -> (Array2<f64>, Vec<f32>) {
    let most = f64::from(limits.max_code);
    if !limits.free {
        let wide: Array1<f64> = limits.scales.iter().map(|&s| f64::from(s)).collect();
        return (nearest_planes(target, lower, wide.view(), most), limits.scales.to_vec());
    }
    let fit: Vec<f32> = target
        .columns()
        .into_iter()
        .zip(limits.scales)
        .map(|(column, &least)| {
            let largest = column.iter().fold(0f64, |m, w| m.max(w.abs()));
            ((largest / most) as f32).max(least)
        })
        .collect();
    let scales: Array1<f64> = fit.iter().map(|&s| f64::from(s)).collect();
    let mut best = nearest_planes(target, lower, scales.view(), most);
    let mut chosen = fit.clone();
    if target.nrows() <= TRIED_TERMS {
        let mut least = errors(target, lower, &best, scales.view());
        for tried in TRIED {
            let scales: Vec<f32> = fit
                .iter()
                .zip(limits.scales)
                .map(|(&s, &least)| ((f64::from(s) * tried) as f32).max(least))
                .collect();
            let wide: Array1<f64> = scales.iter().map(|&s| f64::from(s)).collect();
            let codes = nearest_planes(target, lower, wide.view(), most);
            let found = errors(target, lower, &codes, wide.view());
            for n in 0..chosen.len() {
                if found[n] < least[n] {
                    (least[n], chosen[n]) = (found[n], scales[n]);
                    best.column_mut(n).assign(&codes.column(n));
                }
            }
        }
    }
    (best, chosen)
}

/// Codes `[K, N]` of weights in the order of the factor, from the last term to the first.
fn nearest_planes(
    target: &ArrayView2<'_, f64>,
    lower: &Array2<f64>,
    scales: ArrayView1<'_, f64>,
    most: f64,
) -> Array2<f64> {
    let (terms, outputs) = target.dim();
    let mut codes = Array2::zeros((terms, outputs));
    // What has been lost so far: target less what the codes stand for.
    let mut lost = Array2::<f64>::zeros((terms, outputs));
    let mut pull = Array2::<f64>::zeros((STEP, outputs));
    for to in (0..terms).step_by(STEP).map(|i| terms - i) {
        let from = to.saturating_sub(STEP);
        let mut pull = pull.slice_mut(s![..to - from, ..]);
        // Rows of Lᵀ over the terms that were rounded before this block.
        let factor = lower.slice(s![to.., from..to]);
        ndarray::linalg::general_mat_mul(1.0, &factor.t(), &lost.slice(s![to.., ..]), 0.0, &mut pull);
        for i in (from..to).rev() {
            let pivot = lower[[i, i]];
            Zip::from(codes.row_mut(i))
                .and(lost.row_mut(i))
                .and(target.row(i))
                .and(pull.row(i - from))
                .and(scales)
                .for_each(|code, lost, &target, &pull, &scale| {
                    *code = nearest((target + pull / pivot) / scale).clamp(-most, most);
                    *lost = target - *code * scale;
                });
            for above in from..i {
                let l = lower[[i, above]];
                let mut row = pull.row_mut(above - from);
                row.scaled_add(l, &lost.row(i));
            }
        }
    }
    codes
}

/// The nearest whole number, the even one of two, of a magnitude below 2^51: a sum that leaves no room for a fraction. What
/// the library does takes a call for each.
fn nearest(x: f64) -> f64 {
    const ROOM: f64 = 6_755_399_441_055_744.0;
    if x.abs() < 1e15 { (x + ROOM) - ROOM } else { x.round_ties_even() }
}

/// `|Lᵀ (s q − target)|²` of each output.
fn errors(
    target: &ArrayView2<'_, f64>,
    lower: &Array2<f64>,
    codes: &Array2<f64>,
    scales: ArrayView1<'_, f64>,
) -> Vec<f64> {
    let lost = codes * &scales - target;
    let error = lower.t().dot(&lost);
    error.columns().into_iter().map(|column| column.dot(&column)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u64, rows: usize, columns: usize) -> Array2<f64> {
        let mut state = seed;
        Array2::from_shape_fn((rows, columns), |_| {
            let mut sum = 0.0;
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sum += (state >> 40) as f64 / f64::from(1 << 24) - 0.5;
            }
            sum
        })
    }

    /// Rows that hang together: few causes for many terms, and some noise.
    fn rows(terms: usize) -> Array2<f64> {
        let causes = numbers(1, 600, terms.div_ceil(4)).dot(&numbers(2, terms.div_ceil(4), terms));
        causes + 0.1 * numbers(3, 600, terms)
    }

    fn found(x: &Array2<f64>, y: &Array2<f64>, w: &Array2<f64>, damping: f64) -> (Array2<f64>, Factor) {
        let rows = x.nrows() as f64;
        let factor = Factor::of(&(x.t().dot(x) / rows), damping).unwrap();
        (target(&factor, &(x.t().dot(&(y - &x.dot(w))) / rows), w.view()), factor)
    }

    fn error(x: &Array2<f64>, y: &Array2<f64>, rounded: &Rounded) -> f64 {
        let scales: Array1<f64> = rounded.scales.iter().map(|&s| f64::from(s)).collect();
        let off = x.dot(&(&rounded.codes * &scales)) - y;
        (&off * &off).sum()
    }

    fn nearest(w: &Array2<f64>, most: f64) -> Rounded {
        let scales: Vec<f32> = w
            .columns()
            .into_iter()
            .map(|c| (c.iter().fold(0f64, |m, w| m.max(w.abs())) / most) as f32)
            .collect();
        let codes =
            Array2::from_shape_fn(w.raw_dim(), |(k, n)| (w[[k, n]] / f64::from(scales[n])).round_ties_even());
        Rounded { codes, scales }
    }

    #[test]
    fn a_matrix_is_the_product_of_its_factor() {
        for n in [1, 2, 47, 48, 49, 150] {
            let x = rows(n);
            let gram = x.t().dot(&x);
            let mut lower = gram.clone();
            assert!(cholesky(&mut lower));
            let off = lower.dot(&lower.t()) - &gram;
            assert!(off.iter().all(|d| d.abs() < 1e-8 * gram[[0, 0]]), "{n}");
        }
        assert!(!cholesky(&mut Array2::zeros((2, 2))));
        assert!(!cholesky(&mut Array2::from_elem((2, 2), f64::NAN)));
    }

    #[test]
    fn the_target_solves_the_damped_equations() {
        for terms in [3, 100] {
            let (x, w) = (rows(terms), numbers(5, terms, 40));
            let y = numbers(6, 600, 40);
            let (gram, cross) = (x.t().dot(&x) / 600.0, x.t().dot(&y) / 600.0);
            let (solved, _) = found(&x, &y, &w, 0.01);
            let lambda = 0.01 * gram.diag().sum() / terms as f64;
            let off = gram.dot(&solved) + lambda * &solved - &cross - lambda * &w;
            assert!(off.iter().all(|d| d.abs() < 1e-9), "{terms}");
        }
    }

    #[test]
    fn results_change_less_than_with_the_nearest_codes() {
        for (terms, outputs, gain) in [(9, 1, 2.0), (64, 5, 4.0), (200, 70, 2.0)] {
            let (x, w) = (rows(terms), numbers(7, terms, outputs));
            let y = x.dot(&w);
            let (target, factor) = found(&x, &y, &w, 1e-4);
            let limits = Limits { max_code: 127, scales: &vec![0.0; outputs], free: true };
            let rounded = round(&target, &factor, limits);
            let (plain, optimal) = (error(&x, &y, &nearest(&w, 127.0)), error(&x, &y, &rounded));
            assert!(optimal * gain < plain, "{terms}: {optimal} against {plain}");
            assert!(rounded.codes.iter().all(|c| c.abs() <= 127.0 && c.fract() == 0.0));
        }
    }

    #[test]
    fn scales_are_no_less_than_they_may_be() {
        let (x, w) = (rows(9), numbers(8, 9, 2));
        let (target, factor) = found(&x, &x.dot(&w), &w, 0.01);
        let rounded = round(&target, &factor, Limits { max_code: 64, scales: &[0.5, 0.0], free: true });
        assert!(rounded.scales[0] >= 0.5 && rounded.scales[1] < 0.1, "{:?}", rounded.scales);
        assert!(rounded.codes.iter().all(|c| c.abs() <= 64.0));
    }
}
