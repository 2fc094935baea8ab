//! The histogram that calibration keeps for each tensor: exact, of fixed size, the same for any order of the data.
//! Knows nothing of graphs.
//!
//! Bins are as wide as a power of two, so that widening the range merges whole bins: the state depends on the multiset
//! of values only, whatever the batches were, and two histograms can be added. (ONNX Runtime's grows without bound
//! with the ratio of ranges, PyTorch's resamples and depends on the order.)

/// Bins for each sign. At least half of them lie under the largest magnitude.
pub const BINS: usize = 4096;
/// Bytes of its counts.
pub const BYTES: u64 = 2 * (BINS * size_of::<u64>()) as u64;
/// Least exponent of the range. `BINS · 2^100` is finite in f32; smaller magnitudes share the first bin.
const EXPONENT_MIN: i32 = -100;

/// Counts of values by magnitude and sign, with exact zeros, least and largest value apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// All magnitudes are below `2^exponent`.
    exponent: i32,
    /// From the most negative bin to the most positive: `2 × BINS`, empty as long as all values are zero.
    counts: Vec<u64>,
    zeros: u64,
    not_finite: u64,
    min: f32,
    max: f32,
}

impl Default for Histogram {
    fn default() -> Histogram {
        let (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
        Histogram { exponent: EXPONENT_MIN, counts: Vec::new(), zeros: 0, not_finite: 0, min, max }
    }
}

use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::parallel::threads;
use crate::engine::quant::extremes;

/// So many values are counted on two threads.
const MANY: usize = 1 << 17;
/// So few values are counted one by one: clearing the little memory takes longer.
const FEW: usize = 1024;
/// Values that are looked at together.
const BLOCK: usize = 4096;
/// Bins of both signs and some spare ones; a power of two, so that a remainder is in range.
const PLACES: usize = 4 * BINS;

/// Counts of some thousand values, in little memory.
struct Counted {
    bins: [u16; PLACES],
    /// Number of values in them.
    values: usize,
    /// The bin of each value of a block.
    places: [u16; BLOCK],
}

impl Default for Counted {
    fn default() -> Counted {
        Counted { bins: [0; PLACES], values: 0, places: [0; BLOCK] }
    }
}

/// Some of the values: those in `[lo, hi)` for positive bins, `(lo, hi]` for negative ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// Lower edge.
    pub lo: f64,
    /// Upper edge.
    pub hi: f64,
    /// Number of values.
    pub count: u64,
}

/// The state of a histogram in numbers, to be kept.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// All magnitudes are below `2^exponent`.
    pub exponent: i32,
    /// Number of values that are exactly zero.
    pub zeros: u64,
    /// Number of NaNs and infinities.
    pub not_finite: u64,
    /// Least and largest finite value.
    pub range: Option<(f32, f32)>,
    /// Index and count of each bin that holds something, from the most negative on.
    pub bins: Vec<(u32, u64)>,
}

impl State {
    /// Number of bins of both signs.
    pub const BINS: u64 = 2 * BINS as u64;
}

impl Histogram {
    /// The state in numbers.
    pub fn state(&self) -> State {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        State {
            exponent: self.exponent,
            zeros: self.zeros,
            not_finite: self.not_finite,
            range: self.range(),
            bins: filled.map(|(bin, &count)| (bin as u32, count)).collect(),
        }
    }

    /// The histogram of a state; `None` where it cannot be one.
    pub fn from_state(state: State) -> Option<Histogram> {
        let State { exponent, zeros, not_finite, range, bins } = state;
        let (min, max) = range.unwrap_or((f32::INFINITY, f32::NEG_INFINITY));
        let largest = (-min).max(max);
        let fits = match range {
            None => exponent == EXPONENT_MIN && zeros == 0 && bins.is_empty(),
            Some(_) if largest == 0.0 => exponent == EXPONENT_MIN && zeros > 0 && bins.is_empty(),
            Some(_) => largest.is_finite() && exponent == exponent_above(largest) && !bins.is_empty(),
        };
        if !fits {
            return None;
        }
        let mut counts = vec![0; if bins.is_empty() { 0 } else { 2 * BINS }];
        let (mut all, mut next) = (zeros.checked_add(not_finite)?, 0);
        for (bin, count) in bins {
            if bin < next || count == 0 {
                return None;
            }
            *counts.get_mut(bin as usize)? = count;
            all = all.checked_add(count)?;
            next = bin + 1;
        }
        Some(Histogram { exponent, counts, zeros, not_finite, min, max })
    }

    /// Counts values. NaN and infinities are counted apart and have no other effect.
    pub fn observe(&mut self, values: &[f32]) {
        if values.len() < FEW {
            return self.observe_one_by_one(values);
        }
        if values.len() >= MANY && threads() > 1 {
            let (left, right) = values.split_at(values.len() / 2);
            let mut other = Histogram::default();
            rayon::join(|| self.observe(left), || other.observe(right));
            return self.merge(&other);
        }
        let isa = Isa::best();
        let mut counted = Counted::default();
        // Blocks that stay in the first-level cache between the looks at them.
        for block in values.chunks(BLOCK) {
            self.observe_block(block, &mut counted, isa);
        }
        self.take(&mut counted);
    }

    fn observe_block(&mut self, values: &[f32], counted: &mut Counted, isa: Isa) {
        let extremes = isa.vectorize(
            #[inline(always)]
            || extremes::where_finite(values),
        );
        let Some((min, max)) = extremes else {
            self.take(counted);
            return self.observe_one_by_one(values);
        };
        if exponent_above((-min).max(max)) > self.exponent {
            // What was counted lies in the bins of before.
            self.take(counted);
        }
        self.reach(min, max);
        if self.counts.is_empty() {
            self.zeros += values.len() as u64;
            return;
        }
        let per_unit = self.bins_per_unit();
        let places = &mut counted.places[..values.len()];
        let zeros = isa.vectorize(
            #[inline(always)]
            || place(values, per_unit, places),
        );
        for &place in &counted.places[..values.len()] {
            counted.bins[usize::from(place) % PLACES] += 1;
        }
        self.zeros += u64::from(zeros);
        counted.values += values.len();
        if counted.values + BLOCK > usize::from(u16::MAX) {
            self.take(counted);
        }
    }

    /// The same for few values, or some of which are not finite.
    fn observe_one_by_one(&mut self, values: &[f32]) {
        for &x in values {
            if !x.is_finite() {
                self.not_finite += 1;
            } else {
                self.reach(x, x);
                match x {
                    0.0 => self.zeros += 1,
                    _ => {
                        let bin = (x.abs() * self.bins_per_unit()) as usize;
                        self.counts[if x > 0.0 { BINS + bin } else { BINS - 1 - bin }] += 1;
                    }
                }
            }
        }
    }

    /// Makes room for values from `min` to `max`.
    fn reach(&mut self, min: f32, max: f32) {
        // `+ 0.0` makes zeros of one sign, so that the order of ±0 leaves no trace.
        self.min = self.min.min(min + 0.0);
        self.max = self.max.max(max + 0.0);
        let largest = (-min).max(max);
        if largest > 0.0 && (self.counts.is_empty() || exponent_above(largest) > self.exponent) {
            self.widen(exponent_above(largest));
        }
    }

    /// Exact in f32: a product with a power of two, and `EXPONENT_MIN` keeps it finite.
    fn bins_per_unit(&self) -> f32 {
        (f64::from(BINS as u32) * exp2(-self.exponent)) as f32
    }

    /// Takes the counts over.
    fn take(&mut self, counted: &mut Counted) {
        if counted.values > 0 {
            self.counts.iter_mut().zip(&counted.bins).for_each(|(all, &new)| *all += u64::from(new));
            counted.bins.fill(0);
            counted.values = 0;
        }
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Histogram) {
        self.zeros += other.zeros;
        self.not_finite += other.not_finite;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        if other.counts.is_empty() {
            return;
        }
        self.widen(other.exponent);
        let mut other = other.clone();
        other.widen(self.exponent);
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }

    /// Makes room for magnitudes below `2^exponent` by adding neighbours, and for any at all.
    fn widen(&mut self, exponent: i32) {
        if self.counts.is_empty() {
            self.counts = vec![0; 2 * BINS];
            self.exponent = exponent.max(EXPONENT_MIN);
            return;
        }
        let Ok(steps) = u32::try_from(exponent - self.exponent) else { return };
        if steps == 0 {
            return;
        }
        self.exponent = exponent;
        for bin in 0..BINS {
            // A bin moves towards zero, onto bins that have been moved already.
            let target = bin.checked_shr(steps).unwrap_or(0);
            for (from, to) in [(BINS + bin, BINS + target), (BINS - 1 - bin, BINS - 1 - target)] {
                if from != to {
                    self.counts[to] += std::mem::take(&mut self.counts[from]);
                }
            }
        }
    }

    /// The histogram of the values cut to `[lo, hi]`, which holds zero; bins that lie across an end stay.
    pub fn clamped(&self, lo: f32, hi: f32) -> Histogram {
        let mut cut = self.clone();
        let (lo, hi) = (lo.max(self.min), hi.min(self.max));
        if cut.counts.is_empty() || lo > 0.0 || hi < 0.0 {
            return cut;
        }
        let bin = |x: f32| ((x.abs() * self.bins_per_unit()) as usize).min(BINS - 1);
        let (first, last) = (BINS - 1 - bin(lo), BINS + bin(hi));
        let (first, last) = (if lo == 0.0 { BINS } else { first }, if hi == 0.0 { BINS - 1 } else { last });
        let below: u64 = cut.counts[..first].iter_mut().map(std::mem::take).sum();
        let above: u64 = cut.counts[last + 1..].iter_mut().map(std::mem::take).sum();
        // What is cut to zero is zero.
        if lo == 0.0 {
            cut.zeros += below
        } else {
            cut.counts[first] += below
        }
        if hi == 0.0 {
            cut.zeros += above
        } else {
            cut.counts[last] += above
        }
        (cut.min, cut.max) = (lo + 0.0, hi + 0.0);
        cut
    }

    /// Number of finite values.
    pub fn count(&self) -> u64 {
        self.zeros + self.counts.iter().sum::<u64>()
    }

    /// Number of values that are exactly zero.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// Number of NaNs and infinities.
    pub fn not_finite(&self) -> u64 {
        self.not_finite
    }

    /// Least and largest finite value, or `None` where there is none.
    pub fn range(&self) -> Option<(f32, f32)> {
        (self.min <= self.max).then_some((self.min, self.max))
    }

    /// Width of a bin, and the counts by magnitude from zero to the largest; exact zeros are not among them.
    pub fn magnitudes(&self) -> (f64, Vec<u64>) {
        let half = self.counts.len() / 2;
        let (negative, positive) = self.counts.split_at(half);
        let mut counts: Vec<u64> = positive.iter().zip(negative.iter().rev()).map(|(p, n)| p + n).collect();
        counts.truncate(counts.iter().rposition(|&n| n > 0).map_or(0, |last| last + 1));
        (exp2(self.exponent) / BINS as f64, counts)
    }

    /// Counts in `bins` equal steps from the least to the largest value, zeros among them: a picture of the data.
    pub fn chart(&self, bins: usize) -> Vec<u64> {
        let mut chart = vec![0; bins];
        let Some((min, max)) = self.range() else { return chart };
        let (min, width) = (f64::from(min), (f64::from(max) - f64::from(min)).max(f64::MIN_POSITIVE));
        let zero = Bin { lo: 0.0, hi: 0.0, count: self.zeros };
        for bin in self.bins().chain(std::iter::once(zero)) {
            let place = (0.5 * (bin.lo + bin.hi) - min) / width * bins as f64;
            // Casting saturates: the centre of a bin at an end may lie beyond the value.
            chart[(place as usize).min(bins - 1)] += bin.count;
        }
        chart
    }

    /// The bins that hold something, from the least value to the largest; zeros are not among them.
    pub fn bins(&self) -> impl Iterator<Item = Bin> + '_ {
        let width = exp2(self.exponent) / BINS as f64;
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(move |(index, &count)| {
            let lo = (index as f64 - BINS as f64) * width;
            Bin { lo, hi: lo + width, count }
        })
    }
}

/// Finds the bin of each value, and how many values are zero.
#[inline(always)]
fn place(values: &[f32], per_unit: f32, places: &mut [u16]) -> u32 {
    const LANES: usize = 16;
    let mut zeros = [0u32; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    let (places, last) = places.as_chunks_mut::<LANES>();
    for (places, block) in places.iter_mut().zip(blocks) {
        for lane in 0..LANES {
            places[lane] = place_of(block[lane], per_unit, lane);
            zeros[lane] += u32::from(block[lane] == 0.0);
        }
    }
    for (lane, (place, &x)) in last.iter_mut().zip(rest).enumerate() {
        *place = place_of(x, per_unit, lane);
        zeros[lane] += u32::from(x == 0.0);
    }
    zeros.iter().sum()
}

#[inline(always)]
fn place_of(x: f32, per_unit: f32, lane: usize) -> u16 {
    // Below 2^23 the sum has the nearest whole number in its last bits; a cast would be made one by one, as it saturates.
    const SHIFT: f32 = 8_388_608.0;
    let scaled = x.abs() * per_unit;
    let nearest = scaled + SHIFT;
    let bin = (nearest.to_bits() & 0x7f_ffff) as i32 - i32::from(nearest - SHIFT > scaled);
    // Of a negative number −1: then this is `BINS − 1 − bin`.
    let sign = (x.to_bits() as i32) >> 31;
    // Zeros go to places in turn that nobody reads: a count that is added to again at once would wait for itself, and
    // half of the values behind a ReLU are zero.
    let spare = (2 * BINS + lane) as i32;
    (if x == 0.0 { spare } else { BINS as i32 + (bin ^ sign) }) as u16
}

/// The least exponent whose power of two is above a magnitude.
fn exponent_above(magnitude: f32) -> i32 {
    // The exponent field of IEEE 754 binary32; a subnormal is below 2^-126.
    ((magnitude.to_bits() >> 23) as i32 - 126).max(EXPONENT_MIN)
}

/// `2^exponent`, exactly.
fn exp2(exponent: i32) -> f64 {
    2f64.powi(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.observe(values);
        histogram
    }

    /// Numbers over many magnitudes, with zeros; the same for the same seed.
    fn numbers(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        let number = |a: u32, b: u32| match a % 10 {
            0 => 0.0,
            1 => -0.0,
            2 => f32::from_bits(b & 0x807f_ffff),
            3 => f32::from_bits(b % 0x7f00_0000),
            _ => (f64::from(b) / f64::from(1u32 << 28) - 4.0) as f32,
        };
        (0..count).map(|_| number(next(), next())).collect()
    }

    #[test]
    fn any_split_and_order_gives_the_same_state() {
        for seed in 0..20 {
            let mut values = numbers(seed, 10_000);
            // Some blocks with what is no number, after others without.
            values[if seed < 10 { 5_000 } else { 9_999 }] = [f32::NAN, f32::INFINITY][(seed % 2) as usize];
            let want = of(&values);
            let mut reversed = values.clone();
            reversed.reverse();
            assert_eq!(of(&reversed), want, "seed {seed}");
            let mut sorted = values.clone();
            sorted.sort_by(f32::total_cmp);
            for chunk in [1, 7, 999] {
                let mut parts = Histogram::default();
                sorted.chunks(chunk).for_each(|c| parts.observe(c));
                assert_eq!(parts, want, "seed {seed}, chunks of {chunk}");
                let mut merged = Histogram::default();
                values.chunks(chunk * 100).rev().for_each(|c| merged.merge(&of(c)));
                assert_eq!(merged, want, "seed {seed}, merged");
            }
        }
    }

    #[test]
    fn every_value_lies_in_its_bin() {
        for x in [1.0f32, -1.0, 0.999_999_9, 3.0, -70.0, 1e-30, -1e-44, f32::MAX, f32::MIN, f32::MIN_POSITIVE]
        {
            let histogram = of(&[x]);
            let bins: Vec<Bin> = histogram.bins().collect();
            assert_eq!(bins.len(), 1);
            let inside = if x > 0.0 {
                bins[0].lo <= f64::from(x) && f64::from(x) < bins[0].hi
            } else {
                bins[0].lo < f64::from(x) && f64::from(x) <= bins[0].hi
            };
            assert!(inside, "{x}: {bins:?}");
            assert_eq!(histogram.range(), Some((x, x)));
        }
    }

    #[test]
    fn at_least_half_of_the_bins_lie_under_the_largest_magnitude() {
        for x in [1.0f32, 1.5, 1.999, 2.0, 1000.0] {
            let bin = of(&[x]).bins().next().unwrap();
            assert!(f64::from(x) / (bin.hi - bin.lo) >= BINS as f64 / 2.0, "{x}");
        }
    }

    #[test]
    fn values_are_cut_to_a_range() {
        let values = [-4.0f32, -1.5, -0.25, 0.0, 0.5, 3.0, 7.0];
        for (lo, hi) in [(-2.0, 5.0), (0.0, 5.0), (-2.0, 0.0), (-9.0, 9.0)] {
            let cut = of(&values).clamped(lo, hi);
            let want = of(&values.map(|x| x.clamp(lo, hi)));
            let sum = |h: &Histogram| h.bins().map(|b| 0.5 * (b.lo + b.hi) * b.count as f64).sum::<f64>();
            assert_eq!((cut.count(), cut.zeros(), cut.range()), (want.count(), want.zeros(), want.range()));
            assert!((sum(&cut) - sum(&want)).abs() < 0.02, "{lo} {hi}");
        }
    }

    #[test]
    fn a_chart_counts_every_value_once() {
        for (values, want) in [
            (vec![-1.0, 0.0, 0.9, 1.0], vec![1, 0, 1, 2]),
            (vec![0.0, 0.0], vec![2, 0, 0, 0]),
            (vec![5.0], vec![0, 0, 0, 1]),
            (vec![], vec![0; 4]),
        ] {
            assert_eq!(of(&values).chart(4), want, "{values:?}");
        }
    }

    #[test]
    fn zeros_and_what_is_not_finite_are_counted_apart() {
        let histogram = of(&[0.0, -0.0, f32::NAN, f32::INFINITY, 2.0, -3.0]);
        assert_eq!((histogram.zeros(), histogram.not_finite(), histogram.count()), (2, 2, 4));
        assert_eq!(histogram.range(), Some((-3.0, 2.0)));
        assert_eq!(Histogram::default().range(), None);
        assert_eq!(of(&[0.0]).range(), Some((0.0, 0.0)));
        assert_eq!(of(&[0.0]).bins().count(), 0);
    }
}
