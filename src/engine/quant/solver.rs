//! Codes, scales and a shift of the bias for a group of channels, found by rows of their operand. Knows no graph.

use ndarray::{Array1, Array2, ArrayView1, Axis, Zip, s};
use rayon::prelude::*;

use super::Rounding;
use super::dense::{Dense, moments};
use super::rounding::{self, Factor, Limits};

/// Part of the mean power of an operand that is added to each: what the samples did not show should not matter.
const DAMPING: f64 = 0.01;

/// How a layer is rounded.
pub(super) struct Solver {
    pub(super) max_code: u8,
    pub(super) rounding: Rounding,
    /// Whether its mean error is taken out.
    pub(super) corrects: bool,
    /// Whether it has a scale a channel.
    pub(super) by_channel: bool,
    pub(super) dense: Dense,
}

/// Rows of the float operand and of its codes.
pub(super) type Pair = (Array2<f32>, Array2<f32>);

/// What was found for a group of channels.
pub(super) struct Group {
    pub(super) codes: Array2<f64>,
    pub(super) scales: Vec<f32>,
    pub(super) shift: Array1<f32>,
    pub(super) optimal: usize,
    pub(super) signal: f64,
    pub(super) weight_noise: f64,
    pub(super) operand_noise: f64,
}

impl Solver {
    /// The best that can be found for weights `w`, `[K, N]`, whose scales lie between `least` and `scales`: by the rows of
    /// `find`, of which `parts` are of one batch each, and judged by those of `judge`. `None` where the rows do not tell.
    pub(super) fn solve(
        &self,
        w: &Array2<f32>,
        find: &Pair,
        judge: &Pair,
        parts: &[usize],
        (scales, least): (&[f32], &[f32]),
    ) -> Option<Group> {
        let most = f32::from(self.max_code);
        let nearest = Array2::from_shape_fn(w.raw_dim(), |(k, n)| {
            f64::from((w[[k, n]] / scales[n]).round_ties_even().clamp(-most, most))
        });
        let mut candidates = vec![(nearest, scales.to_vec())];
        if self.rounding == Rounding::Optimal {
            candidates.extend(self.optimal(w, find, scales, least)?);
        }
        let weigh = |(codes, scales): &(Array2<f64>, Vec<f32>)| {
            let scales = ArrayView1::from(scales);
            Zip::from(codes).and_broadcast(&scales).par_map_collect(|&code, &scale| code as f32 * scale)
        };
        let dot = |a: &Array2<f32>, b: &Array2<f32>| self.dense.dot(&a.view(), &b.view());
        let judged = if judge.0.nrows() > 0 { judge } else { find };
        let rows = judged.0.nrows() as f64;
        let wanted = dot(&judged.0, w);
        let means = self.corrects.then(|| Means::of(find, parts));
        // Each as it is, and with its mean error taken out.
        let errors = |candidate| {
            let weights = weigh(candidate);
            let (off, squares) = moments(&(dot(&judged.1, &weights) - &wanted));
            let corrected = means.as_ref().map(|means| means.error(w, &weights, self.dense));
            let shifts = std::iter::once(Array1::zeros(w.ncols())).chain(corrected);
            let error = |shift: Array1<f32>| {
                let wide = shift.mapv(f64::from);
                ((&squares + &(&wide * &(2.0 * &off + &(rows * &wide)))).sum(), shift)
            };
            shifts.map(error).collect::<Vec<_>>()
        };
        let errors: Vec<Vec<(f64, Array1<f32>)>> = candidates.par_iter().map(errors).collect();
        let all = errors.into_iter().enumerate().flat_map(|(c, of)| of.into_iter().map(move |e| (c, e)));
        // The first of equal ones.
        let (c, (_, shift)) = all.min_by(|(_, (a, _)), (_, (b, _))| a.total_cmp(b))?;
        let lost = weigh(&candidates[c]) - w;
        let (sums, squares) = moments(&dot(&judged.0, &lost));
        let operand = dot(&(&judged.1 - &judged.0), w);
        let (codes, scales) = candidates.swap_remove(c);
        Some(Group {
            shift,
            optimal: if c > 0 { w.ncols() } else { 0 },
            signal: moments(&wanted).1.sum(),
            weight_noise: (squares - &sums * &sums / rows).sum().max(0.0),
            operand_noise: moments(&operand).1.sum(),
            codes,
            scales,
        })
    }

    /// Codes and scales for the results of a group: those that also make good for what the operand has lost, and those
    /// that only look after the weights.
    fn optimal(
        &self,
        w: &Array2<f32>,
        (real, coded): &Pair,
        scales: &[f32],
        least: &[f32],
    ) -> Option<Vec<(Array2<f64>, Vec<f32>)>> {
        let centre = |a: &Array2<f32>| match (self.corrects, a.mean_axis(Axis(0))) {
            (true, Some(mean)) => a - &mean,
            _ => a.clone(),
        };
        let (x, real) = rayon::join(|| centre(coded), || centre(real));
        let (terms, outputs) = w.dim();
        let free = terms <= rounding::BLOCK && self.by_channel;
        let limits = Limits { max_code: self.max_code, scales: if free { least } else { scales }, free };
        let blocks: Vec<usize> = (0..terms).step_by(rounding::BLOCK).collect();
        let span = |from: usize| from..(from + rounding::BLOCK).min(terms);
        let factor = |&from: &usize| Factor::of(&self.dense.gram(&x.slice(s![.., span(from)])), DAMPING);
        let factors: Vec<Factor> = blocks.par_iter().map(factor).collect::<Option<_>>()?;
        let round = |mut missing: Option<Array2<f32>>| {
            let (mut codes, mut scales) = (Array2::zeros((terms, outputs)), scales.to_vec());
            for (&from, factor) in blocks.iter().zip(&factors) {
                let (x, w) = (x.slice(s![.., span(from)]), w.slice(s![span(from), ..]));
                let wide = w.mapv(f64::from);
                let target = missing.as_ref().map(|missing| {
                    rounding::target(factor, &self.dense.product(&x, &missing.view()), wide.view())
                });
                let rounded = rounding::round(target.as_ref().unwrap_or(&wide), factor, limits);
                if span(from).end < terms {
                    let off = Array2::from_shape_fn(w.raw_dim(), |(k, n)| {
                        w[[k, n]] - rounded.codes[[k, n]] as f32 * rounded.scales[n]
                    });
                    let made = self.dense.dot(&x, &off.view());
                    missing = Some(match missing {
                        Some(missing) => missing + made,
                        None => made,
                    });
                }
                codes.slice_mut(s![span(from), ..]).assign(&rounded.codes);
                scales = rounded.scales;
            }
            (codes, scales)
        };
        // What the float weights miss on the operand as it comes, where that is looked at.
        let missed = || self.dense.dot(&(real - &x).view(), &w.view());
        let (good, own) = rayon::join(|| round(Some(missed())), || round(None));
        Some(vec![good, own])
    }
}

/// Mean rows of an operand, `[parts + 1, K]`: of each part of the rows that has any, and of all of them at last.
struct Means {
    /// What the codes have lost.
    lost: Array2<f32>,
    coded: Array2<f32>,
}

impl Means {
    fn of((real, coded): &Pair, parts: &[usize]) -> Means {
        let sums = |a: &Array2<f32>, (from, to): (usize, usize)| {
            let mut sums = Array1::<f64>::zeros(a.ncols());
            for row in a.slice(s![from..to, ..]).rows() {
                sums.zip_mut_with(&row, |sum, &x| *sum += f64::from(x));
            }
            sums
        };
        let mut from = 0;
        let spans = parts.iter().filter(|&&rows| rows > 0).map(|rows| {
            from += rows;
            (from - rows, from)
        });
        let spans: Vec<(usize, usize)> = spans.collect();
        let of_part = |&span: &(usize, usize)| (sums(real, span), sums(coded, span));
        let of_parts: Vec<_> = spans.par_iter().map(of_part).collect();
        let mut means = Means {
            lost: Array2::zeros((spans.len() + 1, real.ncols())),
            coded: Array2::zeros((spans.len() + 1, real.ncols())),
        };
        let mut all = (Array1::zeros(real.ncols()), Array1::zeros(real.ncols()));
        let mut put = |i: usize, (real, coded): &(Array1<f64>, Array1<f64>), rows: usize| {
            let rows = rows.max(1) as f64;
            means.lost.row_mut(i).assign(&(real - coded).mapv(|sum| (sum / rows) as f32));
            means.coded.row_mut(i).assign(&coded.mapv(|sum| (sum / rows) as f32));
        };
        for (i, (sums, (from, to))) in of_parts.iter().zip(&spans).enumerate() {
            put(i, sums, to - from);
            all = (all.0 + &sums.0, all.1 + &sums.1);
        }
        put(spans.len(), &all, from);
        means
    }

    /// What results of the float weights `w` have over those of `weights` on codes, in the mean over all rows: made smaller
    /// by as much as it differs from part to part, since what is only seen in some samples is not taken for a rule.
    fn error(&self, w: &Array2<f32>, weights: &Array2<f32>, dense: Dense) -> Array1<f32> {
        let missed = dense.dot(&self.coded.view(), &(w - weights).view());
        let error = dense.dot(&self.lost.view(), &w.view()) + missed;
        let (parts, mean) = (error.slice(s![..-1, ..]), error.row(error.nrows() - 1));
        let count = parts.nrows() as f32;
        if parts.nrows() < 2 {
            return Array1::zeros(error.ncols());
        }
        Array1::from_shape_fn(error.ncols(), |n| {
            let spread: f32 = parts.column(n).iter().map(|part| (part - mean[n]).powi(2)).sum();
            let uncertain = spread / (count * (count - 1.0));
            mean[n] * (1.0 - uncertain / mean[n].powi(2).max(f32::MIN_POSITIVE)).max(0.0)
        })
    }
}
