//! From the histogram of a tensor to its quantization parameters. Knows nothing of graphs.

use crate::engine::quant::histogram::Histogram;
use crate::engine::tensor::qparams::QuantParams;

/// How a range is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The least and the largest value.
    MinMax,
    /// The range with the least expected square error.
    Mse,
}

impl Method {
    /// The name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Method::MinMax => "minmax",
            Method::Mse => "mse",
        }
    }
}

/// A chosen range and what it does to the values that were seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// `u8` parameters of the whole tensor.
    pub params: QuantParams,
    /// How it was chosen.
    pub method: Method,
    /// Least real that a code stands for.
    pub lo: f64,
    /// Largest real that a code stands for.
    pub hi: f64,
    /// Share of the values that saturate below `lo`, by bins.
    pub below: f64,
    /// Share of the values that saturate above `hi`, by bins.
    pub above: f64,
    /// Expected signal to noise of the tensor under these parameters, in dB; `None` where all values are zero.
    pub sqnr_db: Option<f64>,
}

/// Chooses `u8` parameters for a tensor. A tensor without values, or with zeros only, gets scale 1.
pub fn choose(histogram: &Histogram, method: Method) -> Choice {
    let sums = Sums::of(histogram);
    let (lo, hi) = histogram.range().unwrap_or((0.0, 0.0));
    let params = match method {
        Method::MinMax => QuantParams::u8_from_range(lo, hi),
        Method::Mse => least_square_error(&sums, lo, hi),
    };
    let (real_lo, real_hi) = reals(&params);
    let error = sums.error(&params);
    let all = histogram.count().max(1) as f64;
    // Half a step beyond the ends still rounds to the last code.
    let half = 0.5 * f64::from(params.scale[0]);
    let (below, above) = sums.outside(real_lo - half, real_hi + half);
    let signal = sums.squares_to(sums.bins());
    let sqnr_db = (signal > 0.0 && error > 0.0).then(|| 10.0 * (signal / error).log10());
    Choice { params, method, lo: real_lo, hi: real_hi, below: below / all, above: above / all, sqnr_db }
}

/// The reals of codes 0 and 255.
fn reals(params: &QuantParams) -> (f64, f64) {
    let (scale, zero) = (f64::from(params.scale[0]), f64::from(params.zero_point[0]));
    (-zero * scale, (255.0 - zero) * scale)
}

/// Searches the range with the least square error: both ends shrunk together from the whole range to a tenth of it,
/// then each end alone around the best, twice. The whole range wins ties.
fn least_square_error(sums: &Sums, min: f32, max: f32) -> QuantParams {
    let (mut lo, mut hi) = (min.min(0.0), max.max(0.0));
    let mut best = QuantParams::u8_from_range(lo, hi);
    let mut least = sums.error(&best);
    let mut better = |lo: f32, hi: f32| {
        let params = QuantParams::u8_from_range(lo, hi);
        let error = sums.error(&params);
        let wins = error < least;
        if wins {
            (least, best) = (error, params);
        }
        wins
    };
    let (full_lo, full_hi) = (lo, hi);
    for step in 1..=90 {
        let shrink = 1.0 - step as f32 / 100.0;
        if better(full_lo * shrink, full_hi * shrink) {
            (lo, hi) = (full_lo * shrink, full_hi * shrink);
        }
    }
    for _ in 0..2 {
        let (centre_lo, centre_hi) = (lo, hi);
        for step in -10i8..=10 {
            let stretched = (centre_lo * (1.0 + 0.02 * f32::from(step))).max(full_lo);
            if better(stretched, hi) {
                lo = stretched;
            }
        }
        for step in -10i8..=10 {
            let stretched = (centre_hi * (1.0 + 0.02 * f32::from(step))).min(full_hi);
            if better(lo, stretched) {
                hi = stretched;
            }
        }
    }
    best
}

/// Running sums over the bins, so that the error of a range takes two binary searches instead of a pass.
struct Sums {
    /// Centres of the bins, ascending.
    centres: Vec<f64>,
    /// Number of values before each bin, and of all.
    counts: Vec<f64>,
    /// Sum of the values before each bin.
    values: Vec<f64>,
    /// Sum of their squares.
    squares: Vec<f64>,
}

impl Sums {
    fn of(histogram: &Histogram) -> Sums {
        let (mut n, mut x, mut xx) = (0.0, 0.0, 0.0);
        let mut sums = Sums { centres: Vec::new(), counts: vec![n], values: vec![x], squares: vec![xx] };
        let (min, max) = histogram.range().unwrap_or((0.0, 0.0));
        for bin in histogram.bins() {
            // The bins at the ends hold no value beyond the least and the largest.
            let centre = 0.5 * (bin.lo.max(f64::from(min)) + bin.hi.min(f64::from(max)));
            let count = bin.count as f64;
            n += count;
            x += count * centre;
            xx += count * centre * centre;
            sums.centres.push(centre);
            sums.counts.push(n);
            sums.values.push(x);
            sums.squares.push(xx);
        }
        sums
    }

    fn bins(&self) -> usize {
        self.centres.len()
    }

    fn squares_to(&self, bin: usize) -> f64 {
        self.squares[bin]
    }

    /// First bin at or above `lo`, first bin above `hi`.
    fn split(&self, lo: f64, hi: f64) -> (usize, usize) {
        (self.centres.partition_point(|&c| c < lo), self.centres.partition_point(|&c| c <= hi))
    }

    /// Number of values below `lo` and above `hi`.
    fn outside(&self, lo: f64, hi: f64) -> (f64, f64) {
        let (first, end) = self.split(lo, hi);
        (self.counts[first], self.counts[self.bins()] - self.counts[end])
    }

    /// Expected square error of all values: `scale² / 12` inside the range (rounding error is uniform), the distance to
    /// the end outside. Zeros are exact and cost nothing.
    fn error(&self, params: &QuantParams) -> f64 {
        let (lo, hi) = reals(params);
        let scale = f64::from(params.scale[0]);
        let (first, end) = self.split(lo, hi);
        let to = |end: f64, from: usize, until: usize| {
            let n = self.counts[until] - self.counts[from];
            let x = self.values[until] - self.values[from];
            let xx = self.squares[until] - self.squares[from];
            (xx - 2.0 * end * x + end * end * n).max(0.0)
        };
        let inside = (self.counts[end] - self.counts[first]).max(0.0);
        inside * scale * scale / 12.0 + to(lo, 0, first) + to(hi, end, self.bins())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.observe(values);
        histogram
    }

    /// Normal numbers by the sum of twelve uniform ones.
    fn normal(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    /// Signal to noise by the definition.
    fn measured(values: &[f32], params: &QuantParams) -> f64 {
        let (mut signal, mut noise) = (0.0, 0.0);
        for &x in values {
            let back = params.dequantize(params.quantize(x, 0), 0);
            signal += f64::from(x).powi(2);
            noise += (f64::from(x) - f64::from(back)).powi(2);
        }
        10.0 * f64::log10(signal / noise)
    }

    #[test]
    fn minmax_covers_the_data_and_zero() {
        for (values, lo, hi) in
            [(vec![-1.0, 3.0], -1.0, 3.0), (vec![2.0, 5.0], 0.0, 5.0), (vec![-4.0], -4.0, 0.0)]
        {
            let choice = choose(&of(&values), Method::MinMax);
            assert!((choice.lo - lo).abs() < 0.01 && (choice.hi - hi).abs() < 0.01, "{values:?}: {choice:?}");
            assert_eq!((choice.below, choice.above), (0.0, 0.0));
        }
    }

    #[test]
    fn the_least_square_error_is_never_above_that_of_minmax() {
        let data = normal(50_000);
        let relu: Vec<f32> = data.iter().map(|x| x.max(0.0)).collect();
        let mut outlier = data.clone();
        outlier.extend([40.0, -3.0]);
        for (name, values, gain_db) in [("normal", data, 0.0), ("relu", relu, 0.0), ("outlier", outlier, 0.3)]
        {
            let histogram = of(&values);
            let (minmax, mse) = (choose(&histogram, Method::MinMax), choose(&histogram, Method::Mse));
            let (a, b) = (measured(&values, &minmax.params), measured(&values, &mse.params));
            assert!(b >= a + gain_db - 0.1, "{name}: minmax {a:.1} dB, mse {b:.1} dB");
            for (choice, db) in [(minmax, a), (mse, b)] {
                let expected = choice.sqnr_db.unwrap();
                assert!(
                    (expected - db).abs() < 0.5,
                    "{name}: expected {expected:.1} dB, measured {db:.1} dB"
                );
            }
        }
    }

    #[test]
    fn a_tensor_of_zeros_or_nothing_gets_scale_one() {
        for values in [&[][..], &[0.0, 0.0]] {
            for method in [Method::MinMax, Method::Mse] {
                let choice = choose(&of(values), method);
                assert_eq!(choice.params.scale, [1.0]);
                assert_eq!(choice.sqnr_db, None);
            }
        }
    }
}
