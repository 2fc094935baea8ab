//! What can be told from the samples alone: constant and repeated ones, and calibration data that are unlike the
//! evaluation data. Knows no model.

use std::collections::BTreeMap;

use super::survey::{Channel, Input, Layout, Outside, Survey};
use super::{Check, Severity};
use crate::engine::quant::histogram::Histogram;

/// Share of samples from which on repeated ones are worth a warning.
const DUPLICATES_WARNED: f64 = 0.05;
/// Difference of means that is worth a warning, in standard deviations.
const MEAN_SHIFT: f64 = 0.25;
/// Ratio of standard deviations that is worth a warning.
const STD_RATIO: f64 = 1.3;
/// Distance of two distributions that is worth a warning: the share of values that would have to move.
const DISTANCE: f64 = 0.25;
/// The distance that two sets of so many samples may have by chance: this times `√(1/n + 1/m)`. Halves of the sets of
/// pictures here, and what was drawn of them, were never further apart than 1.0 times that.
const DISTANCE_BY_CHANCE: f64 = 1.5;
/// Share of values outside of the calibrated range that is worth a warning.
const OUTSIDE: f64 = 0.001;
/// Chance of an alarm where both sets are drawn from the same.
const ALARM: f64 = 1e-4;
/// Samples of a slice without which nothing is said of it.
const SLICE_MIN: usize = 20;
/// Most slices that are named.
const SLICES_MAX: usize = 3;
/// Standard errors of a mean within which a difference may be chance.
const ERRORS: f64 = 4.0;
/// Steps in which two distributions are compared: fewer than the levels of a byte, so that grids do not matter.
const STEPS: usize = 32;

/// Constant and repeated samples. `which` is `calibration` or `evaluation`.
pub fn repeated(survey: &Survey, which: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    let n = survey.samples;
    if let Some(first) = survey.constant.first() {
        let count = survey.constant.len();
        checks.push(Check::new(
            "constant_samples",
            Severity::Warning,
            format!(
                "{which} data: {count} of {n} samples hold one value everywhere (the first is sample {first})"
            ),
            "Leave them out: they are blank or failed to load, and tell the quantizer nothing.",
        ));
    }
    if let Some((later, first)) = survey.duplicates.first() {
        let count = survey.duplicates.len();
        let many = count as f64 > DUPLICATES_WARNED * n as f64;
        checks.push(Check::new(
            "duplicate_samples",
            if many { Severity::Warning } else { Severity::Note },
            format!("{which} data: {count} of {n} samples repeat an earlier one (sample {later} is sample {first})"),
            "Leave them out: they weigh twice, and intervals look narrower than they are.",
        ));
    }
    checks
}

/// Evaluation samples that are calibration samples too.
pub fn overlap(calibration: &Survey, evaluation: &Survey) -> Option<Check> {
    let shared = evaluation.shared_with(calibration);
    (shared > 0).then(|| {
        Check::new(
            "overlap",
            Severity::Note,
            format!("{shared} of {} evaluation samples are calibration samples too", evaluation.samples),
            "Judge on samples that the quantizer has not seen: on these it looks better than it is.",
        )
    })
}

/// Calibration data that are unlike the evaluation data: by normalization where a shift and a scale explain it, by what
/// values they hold, or by values that calibration has not seen. `slices` are those of the evaluation data; the
/// evaluation survey was taken beside the other one.
pub fn unlike(calibration: &Survey, evaluation: &Survey, slices: Option<&[String]>) -> Vec<Check> {
    // What repeats an earlier sample tells nothing of how far others may go.
    let seen = calibration.samples - calibration.duplicates.len();
    let one = |a: &Input| {
        let b = evaluation.input(&a.name)?;
        let outside = outside(b, seen, slices);
        match (shift_of(a, b, calibration.samples, evaluation.samples), outside) {
            (Some(mut check), Some(outside)) => {
                check.text = format!("{}; {outside}", check.text);
                Some(check)
            }
            (None, Some(outside)) => Some(out_of_range(a, b, &outside)),
            (check, None) => check,
        }
    };
    calibration.inputs.iter().filter_map(one).collect()
}

fn out_of_range(a: &Input, b: &Input, outside: &str) -> Check {
    let ends = |i: &Input| {
        let (lo, hi) = i.histogram.range().unwrap_or_default();
        format!("{} to {}", number(lo.into()), number(hi.into()))
    };
    Check::new(
        "outside_range",
        Severity::Warning,
        format!(
            "input `{}`: the calibration data go from {}, the evaluation data from {}; {outside}",
            a.name,
            ends(a),
            ends(b)
        ),
        "Take calibration samples from where the evaluation samples, and later the requests, come from, and of each slice: ranges that come of calibration cut off what it has not seen.",
    )
}

/// How much of an input lies outside of what calibration has seen in `seen` samples, in words; `None` where that is
/// little, or no more than samples drawn from the same would show.
fn outside(input: &Input, seen: usize, slices: Option<&[String]>) -> Option<String> {
    let all = Group::of(&input.outside);
    let mut by_slice: BTreeMap<&str, Vec<Outside>> = BTreeMap::new();
    for (sample, slice) in input.outside.iter().zip(slices.unwrap_or_default()) {
        by_slice.entry(slice).or_default().push(*sample);
    }
    let of_slice = |(name, samples): (&&str, &Vec<Outside>)| {
        let group = Group::of(samples);
        (samples.len() >= SLICE_MIN && group.beyond(seen, input.values)).then(|| (group, (*name).to_owned()))
    };
    let mut bad: Vec<(Group, String)> = by_slice.iter().filter_map(of_slice).collect();
    if !all.beyond(seen, input.values) && bad.is_empty() {
        return None;
    }
    let share = |group: &Group| 100.0 * group.share(input.values);
    bad.sort_by(|a, b| share(&b.0).total_cmp(&share(&a.0)).then_with(|| a.1.cmp(&b.1)));
    // Where all slices are alike none is to blame.
    let bad = if bad.len() < by_slice.len() { &bad[..bad.len().min(SLICES_MAX)] } else { &[] };
    let slices = bad.iter().map(|(group, name)| format!(", {:.1} % in slice `{name}`", share(group)));
    Some(format!(
        "{:.1} % of the evaluation values lie outside of the calibrated range, in {} of {} samples{}",
        share(&all),
        all.hit,
        all.samples,
        slices.collect::<String>()
    ))
}

/// Samples, and how many of them have values outside of a range.
struct Group {
    samples: usize,
    /// With values below.
    below: usize,
    /// With values above.
    above: usize,
    /// With either.
    hit: usize,
    /// All such values.
    values: u64,
}

impl Group {
    fn of(samples: &[Outside]) -> Group {
        let count = |of: fn(&Outside) -> bool| samples.iter().filter(|s| of(s)).count();
        Group {
            samples: samples.len(),
            below: count(|s| s.below > 0),
            above: count(|s| s.above > 0),
            hit: count(|s| s.below + s.above > 0),
            values: samples.iter().map(|s| u64::from(s.below) + u64::from(s.above)).sum(),
        }
    }

    /// The share of its values, of which each sample has so many.
    fn share(&self, of_sample: usize) -> f64 {
        self.values as f64 / (self.samples * of_sample).max(1) as f64
    }

    /// Whether that is much, and more than chance explains.
    fn beyond(&self, seen: usize, of_sample: usize) -> bool {
        self.share(of_sample) >= OUTSIDE
            && [self.below, self.above].iter().any(|&k| rare(k, self.samples, seen))
    }
}

/// Whether `beyond` of `samples` go further than the furthest of `seen` others, where all are drawn alike, once in
/// 10 000 times at most. Whatever the distribution: the chance to go further than `n` others is `p` or more with
/// probability `(1 − p)^n`.
fn rare(beyond: usize, samples: usize, seen: usize) -> bool {
    let p = 1.0 - ALARM.powf(1.0 / seen.max(1) as f64);
    let n = samples as f64;
    beyond as f64 > n * p + ERRORS * (n * p * (1.0 - p)).sqrt()
}

fn shift_of(a: &Input, b: &Input, samples_a: usize, samples_b: usize) -> Option<Check> {
    if a.channels.len() != b.channels.len() || a.channels.is_empty() {
        return None;
    }
    let moved = |a: &Channel, b: &Channel| {
        let std = a.std.max(b.std);
        let error =
            (a.std_of_means.powi(2) / samples_a as f64 + b.std_of_means.powi(2) / samples_b as f64).sqrt();
        let mean = (a.mean - b.mean).abs();
        let ratio = a.std.max(b.std) / a.std.min(b.std).max(f64::MIN_POSITIVE);
        let by_mean =
            if mean > ERRORS * error { mean / std.max(f64::MIN_POSITIVE) / MEAN_SHIFT } else { 0.0 };
        // Few samples may differ in contrast by chance; means tell how unlike samples are.
        let by_std = if samples_a.min(samples_b) >= 8 { ratio.ln() / STD_RATIO.ln() } else { 0.0 };
        if std > 0.0 { by_mean.max(by_std) } else { 0.0 }
    };
    let distance = distance(&a.histogram, &b.histogram, (0.0, 1.0), (0.0, 1.0));
    let (worst, by) = (0..a.channels.len())
        .map(|c| (c, moved(&a.channels[c], &b.channels[c])))
        .max_by(|x, y| x.1.total_cmp(&y.1))?;
    let by_chance = DISTANCE_BY_CHANCE * (1.0 / samples_a as f64 + 1.0 / samples_b as f64).sqrt();
    // Another sign, or noise of the same size, moves neither mean nor deviation.
    let far = distance > DISTANCE.max(by_chance);
    if !far && (by < 1.0 || distance < 0.5 * DISTANCE) {
        return None;
    }
    let (from, to) = (&a.channels[worst], &b.channels[worst]);
    let (by_a, by_b) = (whole(a), whole(b));
    let aligned = self::distance(&a.histogram, &b.histogram, by_a, by_b);
    let inverted = self::distance(&a.histogram, &b.histogram, (by_a.0, -by_a.1), by_b);
    let channel = if a.channels.len() > 1 { format!(", channel {worst}") } else { String::new() };
    let figures = format!(
        "input `{}`{channel}: the calibration data have mean {} and standard deviation {} ({} to {}), the evaluation data {} and {} ({} to {})",
        a.name,
        number(from.mean),
        number(from.std),
        number(from.min),
        number(from.max),
        number(to.mean),
        number(to.std),
        number(to.min),
        number(to.max)
    );
    let image = matches!(a.layout, Layout::Image | Layout::ImageChannelsLast);
    let explained = |by: f64| image && by < 0.4 * distance;
    Some(if explained(aligned.min(inverted)) {
        let how = match inverted < 0.5 * aligned {
            true => "in one of them light is dark and dark is light, as of a wrong sign",
            false => "normalized in two ways",
        };
        Check::new(
            "normalization",
            Severity::Warning,
            format!("{figures}: the same pictures by their shape, {how}"),
            "Prepare both with the same mean and scale: those of the training. The data are at fault, not the quantization.",
        )
    } else {
        Check::new(
            "shift",
            Severity::Warning,
            format!("{figures}; {:.0} % of the values would have to move", 100.0 * distance),
            "Take calibration samples from where the evaluation samples, and later the requests, come from.",
        )
    })
}

/// Mean and standard deviation over all channels.
fn whole(input: &Input) -> (f64, f64) {
    let n = input.channels.len() as f64;
    let mean = input.channels.iter().map(|c| c.mean).sum::<f64>() / n;
    let square = input.channels.iter().map(|c| c.std * c.std + c.mean * c.mean).sum::<f64>() / n;
    (mean, (square - mean * mean).max(0.0).sqrt())
}

/// Half the sum of differences of two distributions, 0 to 1, after each value has become `(x − shift) / scale`; a scale
/// below zero exchanges the ends.
fn distance(a: &Histogram, b: &Histogram, by_a: (f64, f64), by_b: (f64, f64)) -> f64 {
    let ends = |h: &Histogram, (shift, scale): (f64, f64)| {
        let scale = if scale == 0.0 { 1.0 } else { scale };
        let end = |x: f32| (f64::from(x) - shift) / scale;
        h.range().map(|(lo, hi)| (end(lo).min(end(hi)), end(lo).max(end(hi))))
    };
    let (Some(x), Some(y)) = (ends(a, by_a), ends(b, by_b)) else { return 0.0 };
    let (lo, hi) = (x.0.min(y.0), x.1.max(y.1));
    let shares = |h: &Histogram, (shift, scale): (f64, f64)| {
        let scale = if scale == 0.0 { 1.0 } else { scale };
        let mut shares = [0f64; STEPS];
        let mut add = |value: f64, count: u64| {
            let place = ((value - shift) / scale - lo) / (hi - lo).max(f64::MIN_POSITIVE) * STEPS as f64;
            // Casting saturates.
            shares[(place as usize).min(STEPS - 1)] += count as f64 / h.count().max(1) as f64;
        };
        h.bins().for_each(|bin| add(0.5 * (bin.lo + bin.hi), bin.count));
        add(0.0, h.zeros());
        shares
    };
    let (x, y) = (shares(a, by_a), shares(b, by_b));
    0.5 * x.iter().zip(&y).map(|(x, y)| (x - y).abs()).sum::<f64>()
}

/// A number for a sentence: three digits or so.
pub fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 1.0 => format!("{x:.2}"),
        a if a >= 0.001 => format!("{x:.3}"),
        _ => format!("{x:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pictures `[1, 6, 6]` whose bytes become `(x / 255 − mean) / std`; every seed has others of one kind.
    fn pictures(seed: u32, mean: f32, std: f32, power: f32) -> Vec<Vec<f32>> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let value = |x: f32| ((x.powf(power) * 255.0).round() / 255.0 - mean) / std;
        (0..32).map(|_| (0..36).map(|_| value(next())).collect()).collect()
    }

    #[test]
    fn data_that_differ_are_told_from_data_that_are_normalized_otherwise() {
        let survey = |samples: &[Vec<f32>]| Survey::of_samples(&[1, 6, 6], samples, 8);
        let codes = |a: &[Vec<f32>], b: &[Vec<f32>]| -> Vec<&str> {
            let a = survey(a);
            let b = Survey::of_samples_beside(&[1, 6, 6], b, 8, Some(&a));
            unlike(&a, &b, None).iter().map(|c| c.code).collect()
        };
        let plain = pictures(1, 0.5, 0.5, 1.0);
        for (what, other, want) in [
            ("others of the same kind", pictures(2, 0.5, 0.5, 1.0), &[][..]),
            ("another mean", pictures(2, 0.2, 0.5, 1.0), &["normalization"]),
            ("bytes", pictures(2, 0.0, 1.0 / 255.0, 1.0), &["normalization"]),
            ("darker pictures", pictures(2, 0.5, 0.5, 4.0), &["shift"]),
        ] {
            assert_eq!(codes(&plain, &other), want, "{what}");
            assert_eq!(codes(&other, &plain), want, "{what}, the other way");
        }
    }

    /// Only a moved mean or deviation was looked at: a wrong sign cost 9 points and nothing was said.
    #[test]
    fn data_of_the_same_mean_and_deviation_are_compared_by_their_values() {
        // Mean 0.2 and deviation 0.267, before and after.
        let dark = pictures(1, 0.2, 0.267, 4.0);
        let inverted: Vec<Vec<f32>> = dark.iter().map(|s| s.iter().map(|x| -x).collect()).collect();
        let flat = pictures(2, 0.5, 1.08, 1.0);
        let of = |a: &[Vec<f32>], b: &[Vec<f32>]| {
            let a = Survey::of_samples(&[1, 6, 6], a, 8);
            unlike(&a, &Survey::of_samples_beside(&[1, 6, 6], b, 8, Some(&a)), None)
        };
        let found = of(&inverted, &dark);
        assert_eq!((found.len(), found[0].code), (1, "normalization"), "{found:?}");
        assert!(found[0].text.contains("light is dark") && found[0].text.contains("outside of"), "{found:?}");
        let found = of(&flat, &dark);
        assert_eq!((found.len(), found[0].code), (1, "shift"), "{found:?}");
        assert_eq!(of(&pictures(3, 0.2, 0.267, 4.0), &dark), []);
    }

    #[test]
    fn what_calibration_has_not_seen_is_counted_and_its_slice_named() {
        let dim = |seed| -> Vec<Vec<f32>> {
            pictures(seed, 0.0, 1.0, 1.0).into_iter().map(|s| s.iter().map(|x| 0.8 * x).collect()).collect()
        };
        let calibration = [dim(1), dim(2), dim(3), dim(4)].concat();
        // A picture that is brighter than all others is what new samples have.
        let mut healthy = [dim(5), dim(6), dim(7), dim(8), dim(9)].concat();
        healthy[3].fill(1.0);
        let mut planted = healthy.clone();
        planted.extend(pictures(10, 0.0, 1.0, 1.0));
        let slices = |bright: usize| -> Vec<String> {
            (0..160 + bright).map(|i| if i < 160 { "dim" } else { "bright" }.to_owned()).collect()
        };
        for batch in [1, 7, 32] {
            let a = Survey::of_samples(&[1, 6, 6], &calibration, batch);
            let of = |samples: &[Vec<f32>], slices: Option<&[String]>| {
                unlike(&a, &Survey::of_samples_beside(&[1, 6, 6], samples, batch, Some(&a)), slices)
            };
            assert_eq!(of(&healthy, Some(&slices(0))), []);
            let found = of(&planted, Some(&slices(32)));
            assert_eq!((found.len(), found[0].code), (1, "outside_range"), "{found:?}");
            let says =
                ["0.800, the evaluation data from 0 to 1.00", "33 of 192 samples", "% in slice `bright`"];
            assert!(says.iter().all(|s| found[0].text.contains(s)), "{found:?}");
            assert!(!found[0].text.contains("`dim`") && of(&planted, None).len() == 1, "{found:?}");
        }
    }

    #[test]
    fn how_many_go_beyond_is_judged_by_how_many_were_seen() {
        for (beyond, samples, seen, want) in [
            (1000, 1000, 1, false),
            (0, 1000, 64, false),
            (16, 1000, 64, false),
            (300, 1000, 64, true),
            (30, 1000, 500, false),
            (60, 1000, 500, true),
            (20, 20, 12, true),
            (4, 24, 12, false),
        ] {
            assert_eq!(rare(beyond, samples, seen), want, "{beyond} of {samples} after {seen}");
        }
    }
}
