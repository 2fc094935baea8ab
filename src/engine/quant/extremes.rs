//! The means over samples of what each sample's least and largest value are: exact, so that no order and no split of the
//! data leaves a trace. Knows nothing of graphs.

use std::collections::BTreeMap;

use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::parallel::threads;

/// So many values are looked at on two threads.
const MANY: usize = 1 << 17;
/// Values that are looked at together.
const BLOCK: usize = 4096;
/// Bits of the significand of an f32, the implicit one among them.
const SIGNIFICAND: u32 = 24;

/// A sum of reals without rounding: the significands that have the same exponent are added as integers.
///
/// An `i64` holds 2^39 of them; a file of data has fewer samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExactSum {
    /// Sum of the signed significands by the exponent field of IEEE 754 binary32; no entry is zero.
    by_exponent: BTreeMap<u8, i64>,
}

impl ExactSum {
    /// Adds a finite real.
    pub fn add(&mut self, x: f32) {
        let bits = x.to_bits();
        let (field, fraction) = ((bits >> 23) as u8, i64::from(bits & 0x7f_ffff));
        // Subnormal numbers have the exponent of field 1 and no implicit bit.
        let (field, significand) = if field == 0 { (1, fraction) } else { (field, fraction | 1 << 23) };
        self.add_part(field, if x < 0.0 { -significand } else { significand });
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &ExactSum) {
        other.by_exponent.iter().for_each(|(&field, &part)| self.add_part(field, part));
    }

    fn add_part(&mut self, field: u8, part: i64) {
        let sum = self.by_exponent.entry(field).or_default();
        *sum += part;
        if *sum == 0 {
            self.by_exponent.remove(&field);
        }
    }

    /// The sum, rounded a few times in a fixed order: small parts first.
    pub fn value(&self) -> f64 {
        let part = |(&field, &sum): (&u8, &i64)| {
            // The significand is an integer of 24 bits: 1.0 has field 127.
            sum as f64 * 2f64.powi(i32::from(field) - 127 - (SIGNIFICAND as i32 - 1))
        };
        self.by_exponent.iter().map(part).sum()
    }

    /// The parts: exponent field and sum of significands, by exponent.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (u8, i64)> + '_ {
        self.by_exponent.iter().map(|(&field, &sum)| (field, sum))
    }

    /// A sum of `samples` reals from its parts; `None` where it cannot be one.
    pub fn from_parts(parts: impl IntoIterator<Item = (u8, i64)>, samples: u64) -> Option<ExactSum> {
        let most = samples.saturating_mul((1 << SIGNIFICAND) - 1);
        let mut by_exponent = BTreeMap::new();
        for (field, sum) in parts {
            let ascends = by_exponent.last_key_value().is_none_or(|(&last, _)| last < field);
            if !ascends || !(1..255).contains(&field) || sum == 0 || sum.unsigned_abs() > most {
                return None;
            }
            by_exponent.insert(field, sum);
        }
        Some(ExactSum { by_exponent })
    }
}

/// Least and largest value of each sample, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extremes {
    /// Samples that have a finite value.
    pub samples: u64,
    /// Sum of their least values.
    pub least: ExactSum,
    /// Sum of their largest values.
    pub largest: ExactSum,
    /// Whether there were values of which nobody can say which sample they belong to. Then there are no means.
    pub mixed: bool,
}

impl Extremes {
    /// Adds a sample by its least and its largest value.
    pub fn add(&mut self, (least, largest): (f32, f32)) {
        self.samples += 1;
        self.least.add(least);
        self.largest.add(largest);
    }

    /// Adds the samples of another.
    pub fn merge(&mut self, other: &Extremes) {
        self.samples += other.samples;
        self.mixed |= other.mixed;
        self.least.merge(&other.least);
        self.largest.merge(&other.largest);
    }

    /// Means over the samples of the least and the largest value; `None` where there is no sample, or where values
    /// belong to none.
    pub fn means(&self) -> Option<(f32, f32)> {
        let mean = |sum: &ExactSum| (sum.value() / self.samples as f64) as f32;
        (self.samples > 0 && !self.mixed).then(|| (mean(&self.least), mean(&self.largest)))
    }
}

/// Least and largest of the finite values of a sample, in pieces where it is not contiguous; `None` where there are none.
pub fn of_finite<'a>(pieces: impl Iterator<Item = &'a [f32]>) -> Option<(f32, f32)> {
    let isa = Isa::best();
    let none = (f32::INFINITY, f32::NEG_INFINITY);
    let range = pieces.fold(none, |range, piece| widened(isa, range, piece));
    (range.0 <= range.1).then_some(range)
}

fn widened(isa: Isa, range: (f32, f32), values: &[f32]) -> (f32, f32) {
    if values.len() >= MANY && threads() > 1 {
        let (left, right) = values.split_at(values.len() / 2);
        let ((a, b), (c, d)) = rayon::join(|| widened(isa, range, left), || widened(isa, range, right));
        return (a.min(c), b.max(d));
    }
    isa.vectorize(
        #[inline(always)]
        || widened_by(range, values),
    )
}

#[inline(always)]
fn widened_by((least, largest): (f32, f32), values: &[f32]) -> (f32, f32) {
    values.chunks(BLOCK).fold((least, largest), |(lo, hi), block| match where_finite(block) {
        Some((a, b)) => (lo.min(a), hi.max(b)),
        None => {
            let finite = block.iter().filter(|x| x.is_finite());
            finite.fold((lo, hi), |(lo, hi), &x| (lo.min(x), hi.max(x)))
        }
    })
}

/// Least and largest value; `None` where one is not finite, or there is none. Compares whole numbers in the order of the
/// reals that they are the bits of, negative ones turned round: that alone goes in vectors.
#[inline(always)]
pub(super) fn where_finite(values: &[f32]) -> Option<(f32, f32)> {
    const MAGNITUDE: i32 = i32::MAX;
    let turned = |bits: i32| if bits < 0 { bits ^ MAGNITUDE } else { bits };
    let (mut lo, mut hi) = (i32::MAX, i32::MIN);
    for x in values {
        let place = turned(x.to_bits() as i32);
        (lo, hi) = (lo.min(place), hi.max(place));
    }
    let real = |place: i32| f32::from_bits(turned(place) as u32);
    let (lo, hi) = (real(lo), real(hi));
    (lo.is_finite() && hi.is_finite()).then_some((lo, hi))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[f32]) -> ExactSum {
        let mut sum = ExactSum::default();
        values.iter().for_each(|&x| sum.add(x));
        sum
    }

    #[test]
    fn a_sum_loses_nothing() {
        for (values, want) in [
            (&[1.0f32, 1e30, -1e30, 2.5][..], 3.5),
            (&[0.1, -0.1], 0.0),
            (&[1e-45, 1e-45], 2.0 * f64::from(1e-45f32)),
            (&[-0.0, 0.0], 0.0),
            (&[f32::MAX, f32::MIN, f32::MIN_POSITIVE], f64::from(f32::MIN_POSITIVE)),
            (&[], 0.0),
        ] {
            assert_eq!(sum(values).value(), want, "{values:?}");
        }
        assert_eq!(sum(&[0.1, -0.1]), ExactSum::default(), "what adds up to nothing leaves nothing");
    }

    #[test]
    fn parts_are_taken_back_only_where_they_can_be_a_sum() {
        let whole = sum(&[1.0, -3.5, 1e-20, 1e20]);
        assert_eq!(ExactSum::from_parts(whole.parts(), 4), Some(whole));
        for (parts, samples) in [
            (vec![(0u8, 1i64)], 1),
            (vec![(255, 1)], 1),
            (vec![(3, 1), (3, 1)], 2),
            (vec![(4, 1), (3, 1)], 2),
            (vec![(3, 0)], 1),
            (vec![(3, 1 << 24)], 1),
            (vec![(3, i64::MIN)], 1),
        ] {
            assert_eq!(ExactSum::from_parts(parts.clone(), samples), None, "{parts:?}");
        }
    }

    fn see(extremes: &mut Extremes, pieces: &[&[f32]]) {
        of_finite(pieces.iter().copied()).into_iter().for_each(|range| extremes.add(range));
    }

    #[test]
    fn extremes_are_those_of_the_reals() {
        for (values, want) in [
            (&[][..], None),
            (&[-3.0f32], Some((-3.0, -3.0))),
            (&[1.5, -0.0, 0.0, 1e-45], Some((0.0, 1.5))),
            (&[-1e-45, -2.5, f32::MIN, -7.0], Some((f32::MIN, -1e-45))),
            (&[f32::MAX, 2.0], Some((2.0, f32::MAX))),
            (&[1.0, f32::NAN], None),
            (&[1.0, -f32::NAN], None),
            (&[f32::NEG_INFINITY, 1.0], None),
            (&[f32::INFINITY], None),
        ] {
            assert_eq!(where_finite(values), want, "{values:?}");
        }
    }

    #[test]
    fn the_means_are_those_of_the_samples() {
        let mut extremes = Extremes::default();
        assert_eq!(extremes.means(), None);
        see(&mut extremes, &[&[1.0f32, 5.0][..], &[-3.0]]);
        see(&mut extremes, &[&[f32::NAN, 2.0, f32::INFINITY, f32::NEG_INFINITY]]);
        see(&mut extremes, &[&[f32::NAN]]);
        assert_eq!(extremes.samples, 2);
        assert_eq!(extremes.means(), Some((-0.5, 3.5)));
        extremes.merge(&Extremes { mixed: true, ..Extremes::default() });
        assert_eq!(extremes.means(), None);
    }

    #[test]
    fn any_order_and_split_gives_the_same_state() {
        let samples: Vec<Vec<f32>> = (0..100u32)
            .map(|s| {
                let value =
                    |i| f32::from_bits(s.wrapping_mul(2_654_435_761) ^ (i * 40_503_u32) & 0xbfff_ffff);
                (0..1 + s % 40).map(value).collect()
            })
            .collect();
        let of = |samples: &[Vec<f32>]| {
            let mut all = Extremes::default();
            samples.iter().for_each(|s| see(&mut all, &[s]));
            all
        };
        let want = of(&samples);
        let mut reversed = samples.clone();
        reversed.reverse();
        assert_eq!(of(&reversed), want);
        for size in [1, 7, 99] {
            let mut merged = Extremes::default();
            samples.chunks(size).rev().for_each(|part| merged.merge(&of(part)));
            assert_eq!(merged, want, "parts of {size}");
        }
    }
}
