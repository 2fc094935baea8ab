//! Real functions and sums in plain arithmetic, the same bits on every machine: no fused operations, no calls
//! into a C library whose last digit differs from system to system.

/// `e^x`; relative error at most 2e-7. Cephes' `expf`: `x = n ln 2 + r`, a polynomial in `r`, times `2^n`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Under -87.3 the result is subnormal: it is 0 here, as it is in the vector engines.
    let clamped = x.clamp(-87.33654, 88.72283);
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // Two factors, because 2^128 alone is infinite while the product may not be.
    let half = (n * 0.5).round_ties_even();
    let y = y * power_of_two(half) * power_of_two(n - half);
    let y = if x < -87.33654 { 0.0 } else { y };
    let y = if x > 88.72283 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// `2^n` for a whole `n` from -126 to 127.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    f32::from_bits(((n as i32 + 127) << 23) as u32)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x`; a quotient of polynomials as Eigen's, absolute error at most 5e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let c = x.clamp(-7.905_311, 7.905_311);
    let s = c * c;
    let mut p = -2.760_768_5e-16;
    p = p * s + 2.000_188e-13;
    p = p * s + -8.604_672e-11;
    p = p * s + 5.122_297e-8;
    p = p * s + 1.485_722_4e-5;
    p = p * s + 6.372_619_3e-4;
    p = p * s + 4.893_524_6e-3;
    let mut q = 1.198_258_4e-6;
    q = q * s + 1.185_347_1e-4;
    q = q * s + 2.268_434_6e-3;
    q = q * s + 4.893_525e-3;
    if x.is_nan() { x } else { c * p / q }
}

/// The error function; a quotient of polynomials as Eigen's, absolute error at most 3e-7.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let c = x.clamp(-4.0, 4.0);
    let s = c * c;
    let mut p = -2.726_142_3e-10;
    p = p * s + 2.770_681_4e-8;
    p = p * s + -2.101_024e-6;
    p = p * s + -5.692_506_4e-5;
    p = p * s + -7.349_906e-4;
    p = p * s + -2.954_6e-3;
    p = p * s + -1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * s + -2.133_740_5e-4;
    q = q * s + -1.682_827e-3;
    q = q * s + -7.373_329e-3;
    q = q * s + -1.426_474e-2;
    if x.is_nan() { x } else { c * p / q }
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// `x · clamp(x / 6 + 1/2, 0, 1)`.
#[inline(always)]
pub fn hard_swish(x: f32) -> f32 {
    x * (x * (1.0 / 6.0) + 0.5).clamp(0.0, 1.0)
}

/// `0.5 x (1 + erf(x / √2))`. In the order of operations in which models spell it out, so that both give the same bits.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * (1.0 + erf(x / std::f32::consts::SQRT_2)) * 0.5
}

/// The approximation of [`gelu`] by `tanh`.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(0.797_884_6 * (x + 0.044_715 * x * x * x)))
}

/// Lanes of the sums below: fixed, so that the order of additions does not depend on the machine.
const LANES: usize = 16;

/// Folds values in sixteen lanes, then the lanes pairwise.
#[inline(always)]
fn fold(xs: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = xs.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum.
pub fn sum(xs: &[f32]) -> f32 {
    fold(xs, 0.0, |a, b| a + b)
}

/// The largest value; NaN where one is.
pub fn max(xs: &[f32]) -> f32 {
    fold(xs, f32::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a })
}

/// The smallest value; NaN where one is.
pub fn min(xs: &[f32]) -> f32 {
    fold(xs, f32::INFINITY, |a, b| if b < a || b.is_nan() { b } else { a })
}

/// The product.
pub fn product(xs: &[f32]) -> f32 {
    fold(xs, 1.0, |a, b| a * b)
}

/// `softmax`, or its logarithm, of one row, in place of it.
pub fn softmax(row: &mut [f32], log: bool) {
    let top = max(row);
    if log {
        let total: f32 = {
            let powers: f32 = row.iter().map(|&x| exp(x - top)).sum();
            powers.ln()
        };
        row.iter_mut().for_each(|x| *x = *x - top - total);
        return;
    }
    row.iter_mut().for_each(|x| *x = exp(*x - top));
    let total = sum(row);
    row.iter_mut().for_each(|x| *x /= total);
}

/// `(x − mean) / sqrt(variance + epsilon) × scale + bias` of one row.
pub fn layer_norm(x: &[f32], scale: &[f32], bias: Option<&[f32]>, epsilon: f32, out: &mut [f32]) {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    out.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - mean) * (x - mean));
    let deviation = (sum(out) / n + epsilon).sqrt();
    for (i, y) in out.iter_mut().enumerate() {
        *y = (x[i] - mean) / deviation * scale[i];
    }
    if let Some(bias) = bias {
        out.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_whole_range() {
        let mut x = -87.0f32;
        while x < 88.7 {
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3e-7, "exp({x}) = {got}, want {want}");
            x += 0.0137;
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_sigmoid_are_close() {
        for i in -1000..=1000 {
            let x = i as f32 * 0.01;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 5e-7, "tanh({x})");
            let want = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - want).abs() < 2e-7, "sigmoid({x})");
        }
    }

    #[test]
    fn erf_is_close_to_its_series() {
        for i in -400..=400 {
            let x = i as f32 * 0.01;
            // Maclaurin: 2/sqrt(pi) * sum (-1)^n x^(2n+1) / (n! (2n+1)), in f64, good up to 4.
            let (x64, mut term, mut total) = (f64::from(x), f64::from(x), f64::from(x));
            for n in 1..120 {
                term *= -x64 * x64 / f64::from(n);
                total += term / f64::from(2 * n + 1);
            }
            let want = total * std::f64::consts::FRAC_2_SQRT_PI;
            assert!((f64::from(erf(x)) - want).abs() < 4e-7, "erf({x}) = {} want {want}", erf(x));
        }
    }

    #[test]
    fn sums_do_not_lose_a_value() {
        for n in 0..70 {
            let xs: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum(&xs), (n * (n - 1) / 2) as f32);
            assert_eq!(max(&xs), if n == 0 { f32::NEG_INFINITY } else { (n - 1) as f32 });
        }
    }
}
