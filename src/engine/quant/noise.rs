//! How far a value of the INT8 model is from that of the float model: signal to noise, cosine, largest difference.

use crate::engine::kernels::isa::Isa;

/// Sums that go side by side.
const LANES: usize = 16;
/// What a noise of zero is shown as: JSON has no infinity.
const SQNR_MAX_DB: f64 = 200.0;

/// Signal and noise sums of a value.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Noise {
    pub(super) signal: f64,
    pub(super) noise: f64,
    dot: f64,
    other: f64,
    pub(super) max_abs_error: f64,
}

impl Noise {
    pub(super) fn of(float: &[f64], int8: &[f64]) -> Noise {
        let mut noise = Noise::default();
        float.iter().zip(int8).for_each(|(&a, &b)| noise.add(a, b));
        noise
    }

    /// Of reals, with sums in lanes: in an order of their own on every machine.
    pub(super) fn of_reals(float: &[f32], int8: &[f32]) -> Noise {
        Isa::best().vectorize(
            #[inline(always)]
            || {
                // An array for each sum: a list of `Noise` would be added up one by one.
                let [mut signal, mut noise, mut dot, mut other, mut most] = [[0f64; LANES]; 5];
                let ((float, rest), (int8, int8_rest)) =
                    (float.as_chunks::<LANES>(), int8.as_chunks::<LANES>());
                for (float, int8) in float.iter().zip(int8) {
                    for i in 0..LANES {
                        let (a, b) = (f64::from(float[i]), f64::from(int8[i]));
                        let error = a - b;
                        signal[i] += a * a;
                        noise[i] += error * error;
                        dot[i] += a * b;
                        other[i] += b * b;
                        most[i] = if error.abs() > most[i] { error.abs() } else { most[i] };
                    }
                }
                let mut all = Noise::default();
                rest.iter().zip(int8_rest).for_each(|(&a, &b)| all.add(a.into(), b.into()));
                for i in 0..LANES {
                    let (signal, noise, dot, other) = (signal[i], noise[i], dot[i], other[i]);
                    all.merge(&Noise { signal, noise, dot, other, max_abs_error: most[i] });
                }
                all
            },
        )
    }

    #[inline(always)]
    fn add(&mut self, a: f64, b: f64) {
        self.signal += a * a;
        self.noise += (a - b) * (a - b);
        self.dot += a * b;
        self.other += b * b;
        self.max_abs_error = self.max_abs_error.max((a - b).abs());
    }

    #[inline(always)]
    pub(super) fn merge(&mut self, other: &Noise) {
        self.signal += other.signal;
        self.noise += other.noise;
        self.dot += other.dot;
        self.other += other.other;
        self.max_abs_error = self.max_abs_error.max(other.max_abs_error);
    }

    pub(super) fn cosine(&self) -> f64 {
        let product = (self.signal * self.other).sqrt();
        // Two vectors of zeros are the same; one alone has no direction.
        if product > 0.0 { self.dot / product } else { f64::from(self.noise == 0.0) }
    }

    pub(super) fn sqnr_db(&self) -> f64 {
        sqnr_db(self.signal, self.noise)
    }
}

/// Signal to noise in dB; `None` where there is none of either.
pub(super) fn db(signal: f64, noise: f64) -> Option<f64> {
    (signal > 0.0 && noise > 0.0).then(|| 10.0 * (signal / noise).log10())
}

/// Ten times the decimal logarithm of signal over noise, within ±[`SQNR_MAX_DB`].
pub(super) fn sqnr_db(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 {
        return SQNR_MAX_DB;
    }
    let db = 10.0 * (signal / noise).log10();
    if db.is_nan() { -SQNR_MAX_DB } else { db.clamp(-SQNR_MAX_DB, SQNR_MAX_DB) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_never_infinite_nor_nan() {
        for (a, b, db) in
            [(&[1.0, 2.0][..], &[1.0, 2.0][..], 200.0), (&[0.0], &[1.0], -200.0), (&[10.0], &[9.0], 20.0)]
        {
            let noise = Noise::of(a, b);
            assert!((noise.sqnr_db() - db).abs() < 1e-9, "{a:?} {b:?}: {}", noise.sqnr_db());
            assert!(noise.cosine().is_finite());
        }
    }
}
