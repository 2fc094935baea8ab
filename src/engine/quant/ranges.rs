//! From what calibration keeps of a value to its quantization parameters. Knows nothing of graphs.

use std::borrow::Cow;

use crate::engine::quant::histogram::{Bin, Histogram};
use crate::engine::quant::noise;
use crate::engine::quant::observed::Observed;
use crate::engine::tensor::qparams::{Codes, QuantParams};

/// End of the widest range: a scale that is rounded up must not lead beyond what f32 holds.
const LARGEST: f32 = 0.99 * f32::MAX;

/// How a range is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The least and the largest value.
    MinMax,
    /// The same, and neither lies beyond the codes by a part of one: [`QuantParams::holding`].
    Held,
    /// Twice the range from the least to the largest value, for codes of 16 bits: they have a bit to spare, and what other
    /// data have beyond the calibration data does not saturate. Where tails are exponential, twice the range is that of
    /// the square of as many values.
    Doubled,
    /// The means over the samples of their least and their largest value; where nobody can tell the samples apart,
    /// [`Method::MinMax`].
    MeanMinmax,
    /// All but the outermost values, half of them at each end; this share, in per cent, stays.
    Percentile(f64),
    /// The range whose codes tell most of the distribution: least divergence of Kullback and Leibler.
    Entropy,
    /// The range with the least expected square error.
    Mse,
    /// None: the model itself has parameters for the value. Where it has none, [`Method::MinMax`].
    Trained,
}

impl Method {
    /// Those that differ enough from each other to be worth a trial.
    pub const CANDIDATES: [Method; 5] =
        [Method::MinMax, Method::Percentile(99.999), Method::Percentile(99.99), Method::Mse, Method::Entropy];

    /// The name in reports.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Method::MinMax => "minmax".into(),
            Method::Held => "minmax_held".into(),
            Method::Doubled => "minmax_doubled".into(),
            Method::MeanMinmax => "mean_minmax".into(),
            Method::Percentile(share) => format!("percentile {share}").into(),
            Method::Entropy => "entropy".into(),
            Method::Mse => "mse".into(),
            Method::Trained => "trained".into(),
        }
    }
}

/// A chosen range and what it does to the values that were seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Parameters of the whole tensor.
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

/// Chooses parameters for a value. One without values, or with zeros only, gets scale 1.
pub fn choose(observed: &Observed, method: Method, codes: Codes) -> Choice {
    let histogram = &observed.histogram;
    let sums = Sums::of(histogram);
    let (min, max) = histogram.range().unwrap_or((0.0, 0.0));
    let (means, method) = match (method, observed.extremes.means()) {
        (Method::MeanMinmax, None) => ((min, max), Method::MinMax),
        (method, means) => (means.unwrap_or((min, max)), method),
    };
    let params = match method {
        Method::MinMax | Method::Trained => QuantParams::from_range(codes, min, max),
        Method::Held => QuantParams::holding(codes, min, max),
        Method::Doubled => {
            // A mask may be the least number there is: what its codes stand for stays finite.
            let doubled = |x: f32| (2.0 * x).clamp(-LARGEST, LARGEST);
            QuantParams::from_range(codes, doubled(min), doubled(max))
        }
        Method::MeanMinmax => QuantParams::from_range(codes, means.0, means.1),
        Method::Percentile(share) => {
            let (lo, hi) = percentiles(histogram, share);
            QuantParams::from_range(codes, lo, hi)
        }
        Method::Entropy => {
            let most = most_telling_magnitude(histogram, codes);
            QuantParams::from_range(codes, min.max(-most), max.min(most))
        }
        Method::Mse => least_square_error(&sums, codes, min, max),
    };
    judged(histogram, &sums, params, method)
}

/// What parameters that the model has do to a value.
pub fn given(observed: &Observed, params: QuantParams) -> Choice {
    let histogram = &observed.histogram;
    judged(histogram, &Sums::of(histogram), params, Method::Trained)
}

fn judged(histogram: &Histogram, sums: &Sums, params: QuantParams, method: Method) -> Choice {
    let (lo, hi) = params.reals();
    let error = sums.error(&params);
    let all = histogram.count().max(1) as f64;
    // Half a step beyond the ends still rounds to the last code.
    let half = 0.5 * f64::from(params.scale[0]);
    let (below, above) = sums.outside(lo - half, hi + half);
    let signal = sums.squares_to(sums.bins());
    let sqnr_db = noise::db(signal, error);
    Choice { params, method, lo, hi, below: below / all, above: above / all, sqnr_db }
}

/// The ends of the range that leaves half of `100 − share` per cent of the values at each side. Within a bin the values
/// are taken to lie evenly.
fn percentiles(histogram: &Histogram, share: f64) -> (f32, f32) {
    let Some((min, max)) = histogram.range() else { return (0.0, 0.0) };
    let (least, most) = (f64::from(min), f64::from(max));
    let zero = Bin { lo: 0.0, hi: 0.0, count: histogram.zeros() };
    let mut bins: Vec<Bin> = histogram.bins().filter(|bin| bin.lo < 0.0).collect();
    bins.extend((zero.count > 0).then_some(zero));
    bins.extend(histogram.bins().filter(|bin| bin.lo >= 0.0));
    // The value that `rank` values lie below.
    let value_at = |rank: f64| {
        let mut before = 0.0;
        for bin in &bins {
            let count = bin.count as f64;
            if before + count >= rank {
                // The bins at the ends hold no value beyond the least and the largest.
                let (lo, hi) = (bin.lo.max(least), bin.hi.min(most));
                return lo + (hi - lo) * ((rank - before) / count).clamp(0.0, 1.0);
            }
            before += count;
        }
        most
    };
    let all = histogram.count() as f64;
    let cut = all * (100.0 - share) / 200.0;
    (value_at(cut) as f32, value_at(all - cut) as f32)
}

/// Levels that the magnitudes of a histogram are told by: half of the codes are for each sign where both occur.
fn levels(histogram: &Histogram, codes: Codes) -> usize {
    let one_sided = histogram.range().is_some_and(|(min, max)| min >= 0.0 || max <= 0.0);
    if one_sided && !codes.symmetric { 255 } else { 128 }
}

/// The magnitude beyond which values may best saturate: the divergence of Kullback and Leibler between the distribution
/// of the magnitudes up to there, what lies beyond heaped on the last bin, and what the levels tell of it is least
/// (Migacz 2017). The largest of several that are as good.
///
/// Peaks would decide alone and are not the matter, as one code tells each of them: exact zeros (ReLU) do not count, the
/// first bin (GELU) counts no more than the second, and a bin that holds a large part of all values (the background of
/// images, the end of a clamp) no more than those around it. Without the last, the best threshold for a picture on a white
/// ground was the white: what lies beyond, heaped on that bin, did not show. On codes of sixteen bits nothing is told badly.
fn most_telling_magnitude(histogram: &Histogram, codes: Codes) -> f32 {
    /// Thresholds that are tried, about.
    const TRIALS: usize = 2048;
    /// Values that a bin without any is taken to hold; the divergence would be infinite otherwise.
    const NEARLY_NONE: f64 = 1e-4;
    /// Divergences that differ by less are the same.
    const SAME: f64 = 1e-12;
    let Some((min, max)) = histogram.range() else { return 0.0 };
    let largest = max.max(-min);
    if codes.dtype.size() > 1 {
        return largest;
    }
    let (width, mut counts) = histogram.magnitudes();
    if counts.len() < 2 {
        return largest;
    }
    counts[0] = counts[1];
    level_peaks(&mut counts);
    let levels = levels(histogram, codes);
    let bins = counts.len();
    // Before each bin: values, bins that hold some, Σ n ln n.
    let (mut values, mut filled, mut logs) = (vec![0.0], vec![0u32], vec![0.0]);
    for (i, &count) in counts.iter().enumerate() {
        let count = count as f64;
        values.push(values[i] + count);
        filled.push(filled[i] + u32::from(count > 0.0));
        logs.push(logs[i] + if count > 0.0 { count * count.ln() } else { 0.0 });
    }
    let all = values[bins];
    if all == 0.0 {
        return largest;
    }
    let log_of: Vec<f64> = (0..=bins / levels + 2).map(|n| f64::from(n as u32).max(1.0).ln()).collect();
    let step = bins.div_ceil(TRIALS);
    let (mut best, mut least) = (bins, f64::INFINITY);
    // From the largest on, so that it wins.
    let mut end = bins;
    while end > levels.min(bins - 1) {
        let tail = all - values[end];
        let last = counts[end - 1] as f64;
        let heaped = last + tail;
        // Σ p ln p in counts, the last bin with all that lies beyond.
        let told = logs[end] - xlnx(last) + xlnx(heaped);
        let mut by_levels = 0.0;
        let mut from = 0;
        for level in 1..=levels {
            let to = level * end / levels;
            let sum = values[to] - values[from];
            let mut places = filled[to] - filled[from];
            let mut weight = sum;
            if level == levels && tail > 0.0 {
                places += u32::from(last == 0.0);
                weight += tail;
            }
            if weight > 0.0 {
                by_levels += weight * (sum.max(NEARLY_NONE).ln() - log_of[places as usize]);
            }
            from = to;
        }
        // KL(P‖Q) with P = n / all and Q = q / Σ q, where the levels do not know of the tail.
        let divergence = (told - by_levels) / all - all.ln() + values[end].max(NEARLY_NONE).ln();
        if divergence < least - SAME {
            (best, least) = (end, divergence);
        }
        end = end.saturating_sub(step);
    }
    if best == bins { largest } else { (best as f64 * width) as f32 }
}

/// Levels bins that hold more than a 32nd of all values with the mean of the eight on each side.
fn level_peaks(counts: &mut [u64]) {
    let most = counts.iter().sum::<u64>() / 32;
    let peaks: Vec<usize> = (0..counts.len()).filter(|&i| counts[i] > most).collect();
    let around = |i: usize| {
        let bins = i.saturating_sub(8)..(i + 9).min(counts.len());
        let others = bins.filter(|bin| !peaks.contains(bin)).map(|bin| counts[bin]);
        let (n, sum) = others.fold((0, 0), |(n, sum), count| (n + 1, sum + count));
        sum.checked_div(n).unwrap_or(0)
    };
    let levelled: Vec<u64> = peaks.iter().map(|&i| around(i).min(counts[i])).collect();
    peaks.into_iter().zip(levelled).for_each(|(i, count)| counts[i] = count);
}

fn xlnx(x: f64) -> f64 {
    if x > 0.0 { x * x.ln() } else { 0.0 }
}

/// Searches the range with the least square error: both ends shrunk together from the whole range to a tenth of it,
/// then each end alone around the best, twice. The whole range wins ties.
fn least_square_error(sums: &Sums, codes: Codes, min: f32, max: f32) -> QuantParams {
    let (mut lo, mut hi) = (min.min(0.0), max.max(0.0));
    let mut best = QuantParams::from_range(codes, lo, hi);
    let mut least = sums.error(&best);
    let mut better = |lo: f32, hi: f32| {
        let params = QuantParams::from_range(codes, lo, hi);
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
        let (lo, hi) = params.reals();
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
    use crate::engine::quant::observed::Samples;
    use crate::engine::tensor::{DType, Tensor};

    fn of(values: &[f32]) -> Observed {
        let mut observed = Observed::default();
        observed.observe(Tensor::from_slice(&[values.len()], values).view(), Samples::One);
        observed
    }

    const ALL: [Method; 5] =
        [Method::MinMax, Method::MeanMinmax, Method::Percentile(99.999), Method::Entropy, Method::Mse];

    /// Numbers in [0, 1), the same each time.
    fn uniform() -> impl FnMut() -> f32 {
        let mut state = 1u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        }
    }

    /// Normal numbers by Box and Muller, so that the tails are right.
    fn normal(count: usize) -> Vec<f32> {
        let mut next = uniform();
        let mut number = || {
            let (a, b) = (f64::from(next()), f64::from(next()));
            ((-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
        };
        (0..count).map(|_| number()).collect()
    }

    /// Laplace numbers by the inverse of their distribution.
    fn laplace(count: usize) -> Vec<f32> {
        let mut next = uniform();
        let mut number = || {
            let u = next() - 0.5;
            -u.signum() * (1.0 - 2.0 * u.abs()).max(1e-7).ln()
        };
        (0..count).map(|_| number()).collect()
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
            let choice = choose(&of(&values), Method::MinMax, Codes::U8);
            assert!((choice.lo - lo).abs() < 0.01 && (choice.hi - hi).abs() < 0.01, "{values:?}: {choice:?}");
            assert_eq!((choice.below, choice.above), (0.0, 0.0));
        }
    }

    #[test]
    fn sixteen_bits_have_room_for_values_that_were_not_seen() {
        for (values, lo, hi) in
            [(vec![-1.0, 3.0], -2.0, 6.0), (vec![0.0, 5.0], 0.0, 10.0), (vec![0.0], 0.0, 65_535.0)]
        {
            let choice = choose(&of(&values), Method::Doubled, Codes::U16);
            assert!((choice.lo - lo).abs() < 1e-3 && (choice.hi - hi).abs() < 1e-3, "{values:?}: {choice:?}");
        }
        // What has no double stays finite.
        let choice = choose(&of(&[f32::MIN, f32::MAX]), Method::Doubled, Codes::U16);
        assert!(choice.params.scale[0].is_finite() && choice.hi < f64::from(f32::MAX), "{choice:?}");
        // Of normal numbers the bit that is given away is not missed.
        let numbers = normal(10_000);
        let db = |method, codes| measured(&numbers, &choose(&of(&numbers), method, codes).params);
        assert!(db(Method::Doubled, Codes::U16) > db(Method::Mse, Codes::U8) + 35.0);
    }

    /// Signal to noise in dB of `u8` codes of 400,000 numbers under minmax, percentile 99.999 and 99.9, mse, entropy. The
    /// figures of the reference are those of numpy programs after the published recipes, on other random numbers.
    #[test]
    fn the_methods_lose_what_they_were_measured_to_lose() {
        const COUNT: usize = 400_000;
        let methods = [
            Method::MinMax,
            Method::Percentile(99.999),
            Method::Percentile(99.9),
            Method::Mse,
            Method::Entropy,
        ];
        let relu = |values: Vec<f32>| values.into_iter().map(|x| x.max(0.0)).collect::<Vec<f32>>();
        let scaled = |values: Vec<f32>, every: usize, factor: f32| {
            let scale = |(i, x): (usize, f32)| if i % every == 0 { x * factor } else { x };
            values.into_iter().enumerate().map(scale).collect::<Vec<f32>>()
        };
        let gelu = |x: f32| {
            let x = f64::from(2.0 * x);
            (0.5 * x * (1.0 + (0.797_884_56 * (x + 0.044_715 * x * x * x)).tanh())) as f32
        };
        for (name, values, want, bound) in [
            ("relu of normal", relu(normal(COUNT)), [45.8, 46.1, 38.3, 46.3, 46.1], 1.0),
            ("relu of laplace", relu(laplace(COUNT)), [40.6, 41.2, 30.8, 41.3, 40.8], 1.5),
            ("laplace", laplace(COUNT), [33.7, 34.7, 29.1, 35.1, 34.5], 1.5),
            (
                "gelu of normal",
                normal(COUNT).into_iter().map(gelu).collect(),
                [42.9, 43.1, 38.8, 43.7, 43.0],
                1.5,
            ),
            ("normal with outliers", scaled(normal(COUNT), 10_000, 50.0), [14.2, 16.0, 8.4, 16.2, 8.0], 3.0),
        ] {
            let observed = of(&values);
            for (method, want) in methods.into_iter().zip(want) {
                let choice = choose(&observed, method, Codes::U8);
                let db = measured(&values, &choice.params);
                assert!((db - want).abs() < bound, "{name}, {method:?}: {db:.1} dB, reference {want:.1} dB");
                let expected = choice.sqnr_db.unwrap();
                assert!(
                    (expected - db).abs() < 0.5,
                    "{name}, {method:?}: {expected:.1} dB by bins, {db:.1} dB"
                );
            }
        }
    }

    #[test]
    fn the_least_square_error_is_never_above_that_of_minmax() {
        let data = normal(50_000);
        let mut outlier = data.clone();
        outlier.extend([40.0, -3.0]);
        for (values, gain_db) in [(data, 0.0), (outlier, 0.3)] {
            for codes in [Codes::U8, Codes::S8, Codes::U16, Codes::S16] {
                let of = |method| measured(&values, &choose(&of(&values), method, codes).params);
                let (minmax, mse) = (of(Method::MinMax), of(Method::Mse));
                assert!(mse >= minmax - 0.1, "{codes:?}: minmax {minmax:.1} dB, mse {mse:.1} dB");
                if codes.dtype.size() == 1 {
                    assert!(
                        mse >= minmax + gain_db - 0.1,
                        "{codes:?}: minmax {minmax:.1} dB, mse {mse:.1} dB"
                    );
                }
            }
        }
    }

    #[test]
    fn a_percentile_lies_between_the_values_that_it_parts() {
        let hundred: Vec<f32> = (1..=100).map(|i| i as f32).collect();
        let signed: Vec<f32> = (-50..=50).map(|i| i as f32).collect();
        let mut spiked = vec![0.0; 900];
        spiked.extend(&hundred);
        for (values, share, lo, hi) in [
            (&hundred, 100.0, 1.0, 100.0),
            (&hundred, 90.0, 6.0, 95.0),
            (&signed, 80.0, -40.0, 40.0),
            (&spiked, 99.0, 0.0, 95.0),
            (&spiked, 60.0, 0.0, 0.0),
        ] {
            let got = percentiles(&of(values).histogram, share);
            // A bin is 1/32 wide here.
            assert!(
                (got.0 - lo).abs() < 1.05 && (got.1 - hi).abs() < 1.05,
                "{share}: {got:?}, not {lo}..{hi}"
            );
        }
    }

    #[test]
    fn entropy_is_not_led_by_zeros_and_takes_all_where_all_is_told() {
        let relu: Vec<f32> = normal(100_000).into_iter().map(|x| x.max(0.0)).collect();
        let most = relu.iter().copied().fold(0.0, f32::max);
        let found = choose(&of(&relu), Method::Entropy, Codes::U8).hi as f32;
        assert!(found > 0.5 * most, "{found} of {most}");
        // A picture whose background is one value within the range.
        let mut picture: Vec<f32> = normal(20_000).into_iter().map(|x| x.abs()).collect();
        let most = picture.iter().copied().fold(0.0, f32::max);
        picture.extend(vec![0.81; 20_000]);
        let found = choose(&of(&picture), Method::Entropy, Codes::U8).hi as f32;
        assert!(found > 0.5 * most, "{found} of {most}");
        // A hundred values far apart: codes tell them, so nothing may be cut.
        let levels: Vec<f32> = (0..50_000).map(|i| (i % 100) as f32).collect();
        let found = choose(&of(&levels), Method::Entropy, Codes::U8);
        assert!((found.hi - 99.0).abs() < 0.5, "{found:?}");
        for values in [&[1.0f32][..], &[-1.0, 1.0], &[1e-40], &[f32::MAX, f32::MIN]] {
            let choice = choose(&of(values), Method::Entropy, Codes::U8);
            assert_eq!((choice.below, choice.above), (0.0, 0.0), "{values:?}");
        }
        let wide = choose(&of(&normal(10_000)), Method::Entropy, Codes::S16);
        assert_eq!(wide.params, choose(&of(&normal(10_000)), Method::MinMax, Codes::S16).params);
    }

    #[test]
    fn the_mean_of_the_extremes_falls_back_where_samples_are_not_told_apart() {
        let tensor = Tensor::from_slice(&[2, 2], &[-1.0f32, 1.0, -3.0, 5.0]);
        for (samples, method, hi) in [
            (Samples::Along { axis: 0, count: 2 }, Method::MeanMinmax, 3.0),
            (Samples::Mixed, Method::MinMax, 5.0),
        ] {
            let mut observed = Observed::default();
            observed.observe(tensor.view(), samples);
            let choice = choose(&observed, Method::MeanMinmax, Codes::U8);
            assert_eq!(choice.method, method);
            assert!((choice.hi - hi).abs() < 0.02, "{choice:?}");
        }
    }

    #[test]
    fn a_tensor_of_zeros_or_nothing_gets_scale_one() {
        for values in [&[][..], &[0.0, 0.0]] {
            for method in ALL {
                for codes in [Codes::U8, Codes::S8, Codes { dtype: DType::I16, symmetric: false }] {
                    let choice = choose(&of(values), method, codes);
                    assert_eq!(choice.params.scale, [1.0]);
                    assert_eq!(choice.sqnr_db, None);
                }
            }
        }
    }
}
