//! Whether there were enough calibration samples: how far the ranges still move when samples are added.
//!
//! The least and largest value of each sample are kept. How wide a range is with `k` of `n` samples, in the mean over
//! all choices of them, follows from order statistics, so no choice has to be drawn.

use std::collections::HashMap;

use serde::Serialize;

use super::{Check, Severity};

/// Most samples that are kept a value: more tell nothing new.
const SAMPLES_MAX: usize = 4096;
/// Movement by which ranges count as settled.
const SETTLED: f64 = 0.01;
/// Movement in the last doubling that is worth a warning.
const MOVING: f64 = 0.15;
/// Movement in the last doubling below which more samples change little.
const RESTING: f64 = 0.05;
/// Fewer samples than these are few, whatever the ranges say.
const FEW: usize = 8;
/// Fewer than these are never called enough: eight that happen to be alike looked settled where 256 were not.
const TELLING: usize = 32;
/// So many are what most models are quantized with: they are not called few for outliers that go on widening ranges.
const PLENTY: usize = 256;

/// Least and largest value of each sample, by the name of the value.
#[derive(Clone, Debug, Default)]
pub struct SampleRanges {
    values: HashMap<String, Option<Vec<(f32, f32)>>>,
}

/// How wide ranges are with fewer samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Convergence {
    /// Number of samples.
    pub samples: usize,
    /// Number of samples, and by how much ranges are narrower with so many, as a share, in the mean over the values.
    pub curve: Vec<(usize, f64)>,
    /// The least number of samples with which ranges are within 1 per cent.
    pub settled: Option<usize>,
    /// The value whose range is narrowest with half of the samples.
    pub worst: String,
    /// By how much.
    pub worst_narrower: f64,
}

impl SampleRanges {
    /// Notes the least and the largest value of each sample of a run; there are none where nobody can tell samples apart,
    /// then the value is left out.
    pub fn observe(&mut self, value: &str, samples: &[Option<(f32, f32)>]) {
        if !self.values.contains_key(value) {
            self.values.insert(value.to_owned(), Some(Vec::new()));
        }
        let Some(entry) = self.values.get_mut(value) else { return };
        if samples.is_empty() {
            *entry = None;
        }
        let Some(ranges) = entry else { return };
        let room = SAMPLES_MAX.saturating_sub(ranges.len());
        // Every range holds zero.
        let with_zero =
            |range: &Option<(f32, f32)>| range.map_or((0.0, 0.0), |(lo, hi)| (lo.min(0.0), hi.max(0.0)));
        ranges.extend(samples.iter().take(room).map(with_zero));
    }

    /// Adds the samples of other runs, after those that are there.
    pub fn append(&mut self, other: SampleRanges) {
        for (value, ranges) in other.values {
            match (self.values.entry(value).or_insert_with(|| Some(Vec::new())), ranges) {
                (entry, None) => *entry = None,
                (None, _) => {}
                (Some(all), Some(more)) => {
                    let room = SAMPLES_MAX.saturating_sub(all.len());
                    all.extend(more.into_iter().take(room));
                }
            }
        }
    }

    /// How wide ranges are with fewer samples; `None` where nothing can be told.
    pub fn convergence(&self) -> Option<Convergence> {
        let samples = self.values.values().flatten().map(Vec::len).max()?;
        let mut values: Vec<(&str, Sorted)> = Vec::new();
        for (name, ranges) in &self.values {
            if let Some(ranges) = ranges.as_ref().filter(|r| r.len() == samples) {
                values.extend(Sorted::of(ranges).map(|sorted| (name.as_str(), sorted)));
            }
        }
        if values.is_empty() || samples < 2 {
            return None;
        }
        // Sums of floats in an order of their own, not that of a map.
        values.sort_by(|a, b| a.0.cmp(b.0));
        let narrower =
            |k: usize| values.iter().map(|(_, sorted)| sorted.narrower(k)).sum::<f64>() / values.len() as f64;
        let half = samples / 2;
        let (worst, worst_narrower) = values
            .iter()
            .map(|(name, sorted)| (*name, sorted.narrower(half)))
            .max_by(|a, b| a.1.total_cmp(&b.1))?;
        let mut counts: Vec<usize> = (0..).map(|i| 1 << i).take_while(|&k| k < samples).collect();
        counts.extend([(samples / 4).max(1), half, samples]);
        counts.sort_unstable();
        counts.dedup();
        // The mean width grows with the number of samples, so a search by halves finds the first that will do.
        let (mut few, mut enough) = (0, samples);
        while enough - few > 1 {
            let middle = few.midpoint(enough);
            if narrower(middle) <= SETTLED { enough = middle } else { few = middle }
        }
        Some(Convergence {
            samples,
            curve: counts.into_iter().map(|k| (k, narrower(k))).collect(),
            settled: (enough < samples).then_some(enough),
            worst: worst.to_owned(),
            worst_narrower,
        })
    }
}

/// The ends of the ranges of one value, each sorted towards the outside.
struct Sorted {
    lows: Vec<f64>,
    highs: Vec<f64>,
}

impl Sorted {
    fn of(ranges: &[(f32, f32)]) -> Option<Sorted> {
        let mut lows: Vec<f64> = ranges.iter().map(|r| -f64::from(r.0)).collect();
        let mut highs: Vec<f64> = ranges.iter().map(|r| f64::from(r.1)).collect();
        lows.sort_by(f64::total_cmp);
        highs.sort_by(f64::total_cmp);
        let wide = lows.last()? + highs.last()?;
        (wide > 0.0 && wide.is_finite()).then_some(Sorted { lows, highs })
    }

    /// By how much the range is narrower with `k` samples, as a share.
    fn narrower(&self, k: usize) -> f64 {
        let whole = self.lows[self.lows.len() - 1] + self.highs[self.highs.len() - 1];
        (1.0 - (largest_of(&self.lows, k) + largest_of(&self.highs, k)) / whole).max(0.0)
    }
}

/// The mean of the largest of `k` of the sorted values, over all choices of `k`:
///
/// ```text
/// Σ x[i] · C(i − 1, k − 1) / C(n, k),  i = k … n counted from 1
/// ```
fn largest_of(sorted: &[f64], k: usize) -> f64 {
    let n = sorted.len();
    if k >= n {
        return sorted[n - 1];
    }
    let (mut weight, mut sum) = (k as f64 / n as f64, 0.0);
    for i in (k..=n).rev() {
        sum += weight * sorted[i - 1];
        weight *= (i - k) as f64 / (i - 1).max(1) as f64;
    }
    sum
}

/// What the ranges say of the number of samples.
pub fn enough(samples: usize, found: Option<&Convergence>) -> Check {
    let more = "Take more samples, and such as differ: 64 to 512 do for most models.";
    let Some(c) = found else {
        let text = format!("{samples} calibration samples: whether ranges have settled cannot be told");
        let severity = if samples < FEW { Severity::Warning } else { Severity::Note };
        return Check::new("few_samples", severity, text, more);
    };
    let half = samples / 2;
    let narrower = |k: usize| c.curve.iter().find(|point| point.0 == k).map_or(0.0, |point| point.1);
    let last = narrower(half);
    // The last doubling is at the mercy of the one sample that goes furthest, the two last ones less so.
    let moved = last.max(0.5 * narrower((samples / 4).max(1)));
    let moving = format!(
        "with {half} of the {samples} calibration samples ranges (least to largest value) would be {:.1} % narrower in the mean, that of `{}` {:.0} %",
        100.0 * last,
        c.worst,
        100.0 * c.worst_narrower
    );
    let enough = "Nothing: more samples would change little.";
    match c.settled {
        _ if last > MOVING || samples < FEW => Check::new("few_samples", Severity::Warning, moving, more),
        _ if samples < TELLING => {
            let text = format!("{moving}; so few do not tell how far others go");
            Check::new("few_samples", Severity::Note, text, more)
        }
        Some(settled) if settled <= half => {
            let text =
                format!("after {settled} of {samples} calibration samples ranges moved by less than 1 %");
            Check::new("enough_samples", Severity::Note, text, enough)
        }
        _ if moved < RESTING => Check::new("enough_samples", Severity::Note, moving, enough),
        _ if samples >= PLENTY => {
            let remedy = "Little: twice as many would widen ranges by less than that, at their ends, where few values are.";
            Check::new("enough_samples", Severity::Note, moving, remedy)
        }
        _ => Check::new("few_samples", Severity::Note, moving, more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_some_is_the_mean_over_all_choices() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        // All pairs: 2 4 8 4 8 8.
        for (k, want) in [(1, 15.0 / 4.0), (2, 34.0 / 6.0), (3, (4.0 + 3.0 * 8.0) / 4.0), (4, 8.0), (9, 8.0)]
        {
            assert!((largest_of(&sorted, k) - want).abs() < 1e-12, "{k} of {sorted:?}");
        }
        assert_eq!(largest_of(&[3.0], 1), 3.0);
    }

    #[test]
    fn ranges_settle_where_samples_are_alike_and_move_where_they_are_not() {
        let check = |value_of: fn(usize) -> f32, samples: usize| {
            let mut ranges = SampleRanges::default();
            for i in 0..samples {
                let x = value_of(i);
                ranges.observe("x", &[Some((x.min(0.5), x.max(0.5)))]);
            }
            enough(samples, ranges.convergence().as_ref())
        };
        assert_eq!(check(|i| 1.0 + 0.0001 * i as f32, 64).code, "enough_samples");
        let moving = check(|i| (i as f32 / 4.0).exp(), 64);
        assert_eq!((moving.code, moving.severity), ("few_samples", Severity::Warning));
        // It was enough with 8 samples that are alike, and few with the 256 that they were taken of.
        let outliers = |i: usize| if i % 16 == 9 { 1.2 + 0.01 * (i / 16) as f32 } else { 1.0 };
        let codes: Vec<&str> = [8, 16, 31, 256].map(|n| check(outliers, n).code).to_vec();
        assert_eq!(codes, ["few_samples", "few_samples", "few_samples", "enough_samples"]);
        assert_eq!(check(|_| 1.0, 8).severity, Severity::Note);
        assert_eq!(check(|_| 1.0, 1).severity, Severity::Warning, "one sample is few");
        assert!(check(|_| 1.0, 4).text.contains("2 of the 4"), "alike, and few all the same");
    }

    #[test]
    fn ranges_hold_zero_and_what_is_mixed_is_left_out() {
        let mut ranges = SampleRanges::default();
        ranges.observe("x", &[Some((1.0, 2.0)), None, Some((-3.0, -1.0))]);
        ranges.observe("mixed", &[Some((1.0, 2.0))]);
        ranges.observe("mixed", &[]);
        ranges.observe("mixed", &[Some((1.0, 2.0))]);
        assert_eq!(ranges.values["x"], Some(vec![(0.0, 2.0), (0.0, 0.0), (-3.0, 0.0)]));
        assert_eq!(ranges.values["mixed"], None);
        assert_eq!(SampleRanges::default().convergence(), None);
    }
}
