//! What can be told from the samples alone: constant and repeated ones, and calibration data that are unlike the
//! evaluation data. Knows no model.

use super::survey::{Channel, Input, Layout, Survey};
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

/// Calibration data that are unlike the evaluation data: by normalization where a shift and a scale explain it.
pub fn shift(calibration: &Survey, evaluation: &Survey) -> Vec<Check> {
    let one = |a: &Input| {
        let b = evaluation.input(&a.name)?;
        shift_of(a, b, calibration.samples, evaluation.samples)
    };
    calibration.inputs.iter().filter_map(one).collect()
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
    if by < 1.0 || distance < 0.5 * DISTANCE {
        return None;
    }
    let (from, to) = (&a.channels[worst], &b.channels[worst]);
    let aligned = self::distance(&a.histogram, &b.histogram, whole(a), whole(b));
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
    Some(if image && aligned < 0.4 * distance {
        Check::new(
            "normalization",
            Severity::Warning,
            format!("{figures}: the same pictures by their shape, normalized in two ways"),
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

/// Half the sum of differences of two distributions, 0 to 1, after each value has become `(x − shift) / scale`.
fn distance(a: &Histogram, b: &Histogram, by_a: (f64, f64), by_b: (f64, f64)) -> f64 {
    let ends = |h: &Histogram, (shift, scale): (f64, f64)| {
        let scale = if scale > 0.0 { scale } else { 1.0 };
        h.range().map(|(lo, hi)| ((f64::from(lo) - shift) / scale, (f64::from(hi) - shift) / scale))
    };
    let (Some(x), Some(y)) = (ends(a, by_a), ends(b, by_b)) else { return 0.0 };
    let (lo, hi) = (x.0.min(y.0), x.1.max(y.1));
    let shares = |h: &Histogram, (shift, scale): (f64, f64)| {
        let scale = if scale > 0.0 { scale } else { 1.0 };
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
            shift(&survey(a), &survey(b)).iter().map(|c| c.code).collect()
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
}
