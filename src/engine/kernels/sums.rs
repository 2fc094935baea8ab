//! Sums of codes in one formula: two operations and a rounding instead of a division an element. Whether the formula
//! gives what the definition gives is tried for every pair of codes before it is used. Knows slices only.

use super::eltwise::qadd;
use super::isa::Isa;
use super::{SHIFT, SumForm, SumScales, clamp_f32};

/// Sums before the clamp stay below it, so that rounding one never leaves `i32`.
const EXACT_MAX: f64 = 1e9;

/// All codes.
const CODES: usize = 256;

impl SumScales {
    /// Codes of `a + b`, all `[len]`, by definition.
    pub(super) fn add(&self, isa: Isa, a: &[u8], b: &[u8], out: &mut [u8]) {
        let ((sa, za), (sb, zb), (sy, zy)) = (self.own, self.other, self.result);
        qadd(isa, a, sa, za, b, sb, zb, sy, zy, self.clamp.0, self.clamp.1, out, 1);
    }
}

impl SumForm {
    /// A formula for a sum, if one gives the right code for all 65,536 pairs. Where a quotient falls within a few units
    /// in the last place of a half, formulas disagree; then its offset is moved by as little.
    pub fn fit(scales: &SumScales) -> Option<SumForm> {
        let SumScales { own, other, result, clamp } = *scales;
        let isa = Isa::best();
        let (a, b): (Vec<u8>, Vec<u8>) = (0..CODES * CODES).map(|i| ((i / CODES) as u8, i as u8)).unzip();
        let mut want = vec![0; CODES * CODES];
        scales.add(isa, &a, &b, &mut want);
        let ((sa, za), (sb, zb), (sy, zy)) = (own, other, result);
        let ratio = |scale: f32| f64::from(scale) / f64::from(sy);
        let offset = f64::from(zy) - f64::from(za) * ratio(sa) - f64::from(zb) * ratio(sb);
        let reaches = f64::from(u8::MAX) * (ratio(sa) + ratio(sb)) + offset.abs();
        if reaches.is_nan() || reaches > EXACT_MAX {
            return None;
        }
        let mut made = vec![0; CODES * CODES];
        let steps = (0..16).map(|i| f64::from((i + 1) / 2 * (1 - i % 2 * 2)) / f64::from(1 << 18));
        steps.into_iter().find_map(|step| {
            let (own, other) = (ratio(sa) as f32, ratio(sb) as f32);
            let form = SumForm { own, other, offset: (offset + step) as f32, clamp };
            made.copy_from_slice(&a);
            form.add_in_place(isa, &mut made, &b);
            (made == want).then_some(form)
        })
    }

    /// `y[i]` becomes the code of its sum with `other[i]`.
    pub(super) fn add_in_place(&self, isa: Isa, y: &mut [u8], other: &[u8]) {
        let SumForm { own, other: from, offset, clamp: (lo, hi) } = *self;
        let (lo, hi) = (f32::from(lo), f32::from(hi));
        let other = &other[..y.len()];
        isa.vectorize(
            #[inline(always)]
            move || {
                for (y, &q) in y.iter_mut().zip(other) {
                    let exact = f32::from(q).mul_add(from, f32::from(*y).mul_add(own, offset));
                    *y = (clamp_f32(exact, lo, hi) + SHIFT).to_bits() as u8;
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    #[test]
    fn a_form_that_fits_gives_every_sum() {
        let mut random = Random::new(3);
        let mut fitted = 0;
        for i in 0..60 {
            let mut scale = || (random.next() % 9_999 + 1) as f32 * 1e-5;
            let (own, other) = (scale(), scale());
            // Sums that fill the range, ties that are exact, and a sum that saturates.
            let result = [own + other, own * 2.0, own.max(other) * 0.3][i % 3];
            let mut zero = || random.next() as u8;
            let scales = SumScales {
                own: (own, zero()),
                other: (if i % 3 == 1 { own } else { other }, zero()),
                result: (result, zero()),
                clamp: (zero() / 4, 255 - zero() / 4),
            };
            let Some(form) = SumForm::fit(&scales) else { continue };
            fitted += 1;
            let (a, b) = (random.u8s(1000), random.u8s(1000));
            let mut want = vec![0; 1000];
            scales.add(Isa::Scalar, &a, &b, &mut want);
            for isa in Isa::available() {
                let mut y = a.clone();
                form.add_in_place(isa, &mut y, &b);
                assert_eq!(y, want, "{isa:?} {scales:?}");
            }
        }
        assert!(fitted >= 40, "{fitted} of 60");
    }
}
