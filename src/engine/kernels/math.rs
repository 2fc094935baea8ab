//! Real functions and sums in plain arithmetic, the same bits on every machine: no fused operations, no calls
//! into a C library whose last digit differs from system to system.

use super::SHIFT;

/// `e^x`; relative error at most 2e-7. Cephes' `expf`: `x = n ln 2 + r`, a polynomial in `r`, times `2^n`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Under -87.3 the result is subnormal: it is 0 here, as it is in the vector engines.
    let clamped = x.clamp(-87.33654, 88.72283);
    let n = round_half_even(clamped * std::f32::consts::LOG2_E);
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // Two factors, because 2^128 alone is infinite while the product may not be.
    let half = round_half_even(n * 0.5);
    let y = y * power_of_two(half) * power_of_two(n - half);
    let y = if x < -87.33654 { 0.0 } else { y };
    let y = if x > 88.72283 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// The nearest whole number, ties to even, for magnitudes up to 2^22. Unlike `round_ties_even` it is two vector
/// instructions everywhere, and no call.
#[inline(always)]
fn round_half_even(x: f32) -> f32 {
    (x + SHIFT) - SHIFT
}

/// `2^n` for a whole `n` from -126 to 127. Shifting the bits of the sum leaves `n + 127` as the exponent; a conversion
/// to an integer would have to saturate.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    f32::from_bits((n + (SHIFT + 127.0)).to_bits() << 23)
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

/// `max(x, 0)`; what is not a number stays, as in the clamp of a product.
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// `clamp(alpha x + beta, 0, 1)`.
#[inline(always)]
pub fn hard_sigmoid(x: f32, alpha: f32, beta: f32) -> f32 {
    (alpha * x + beta).clamp(0.0, 1.0)
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

/// One step of every sum below.
type Lanes = [f32; LANES];

/// Calls `f` with sixteen values at a time; `fill` stands in for those that the last sixteen lack.
#[inline(always)]
fn by_lanes(xs: &[f32], fill: f32, mut f: impl FnMut(&Lanes)) {
    let (whole, rest) = xs.as_chunks::<LANES>();
    let mut last = [fill; LANES];
    last[..rest.len()].copy_from_slice(rest);
    // The last sixteen go the way of the others, so that `f` is compiled once, for vectors.
    for lanes in whole.iter().chain((!rest.is_empty()).then_some(&last)) {
        f(lanes);
    }
}

/// As [`by_lanes`], on values that `f` changes.
#[inline(always)]
fn by_lanes_mut(xs: &mut [f32], mut f: impl FnMut(&mut Lanes)) {
    let (whole, rest) = xs.as_chunks_mut::<LANES>();
    for lanes in whole {
        f(lanes);
    }
    if !rest.is_empty() {
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        f(&mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Folds lanes pairwise.
#[inline(always)]
fn fold_lanes(mut lanes: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Folds values in sixteen lanes that begin at `start`, which changes nothing, then the lanes pairwise.
#[inline(always)]
fn fold(xs: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    by_lanes(xs, start, |xs| {
        for (lane, &x) in lanes.iter_mut().zip(xs) {
            *lane = f(*lane, x);
        }
    });
    fold_lanes(lanes, f)
}

/// The sum.
#[inline(always)]
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

/// The largest value of a row, or NaN if there is a positive one. In whole numbers of the same order, whose largest
/// compilers find with vectors; the order of floats they must keep.
#[inline(always)]
fn top(xs: &[f32]) -> f32 {
    // Negative floats are ordered backwards by their bits; the change is its own inverse.
    let ordered = |bits: i32| bits ^ ((bits >> 31) & i32::MAX);
    let least = ordered(f32::NEG_INFINITY.to_bits() as i32);
    let most = xs.iter().fold(least, |most, x| most.max(ordered(x.to_bits() as i32)));
    f32::from_bits(ordered(most) as u32)
}

/// `softmax`, or its logarithm, of one row, in place of it. The powers are multiplied by `1 / total`.
#[inline(always)]
pub fn softmax(row: &mut [f32], log: bool) {
    let top = top(row);
    if log {
        let mut total = [0.0; LANES];
        by_lanes(row, f32::NEG_INFINITY, |xs| {
            for (total, &x) in total.iter_mut().zip(xs) {
                *total += exp(x - top);
            }
        });
        let total = fold_lanes(total, |a, b| a + b).ln();
        row.iter_mut().for_each(|x| *x = *x - top - total);
        return;
    }
    let mut total = [0.0; LANES];
    by_lanes_mut(row, |xs| {
        for (total, x) in total.iter_mut().zip(xs) {
            *x = exp(*x - top);
            *total += *x;
        }
    });
    let factor = 1.0 / fold_lanes(total, |a, b| a + b);
    row.iter_mut().for_each(|x| *x *= factor);
}

/// `(x − mean) · (1 / sqrt(variance + epsilon)) · scale + bias` of one row.
#[inline(always)]
pub fn layer_norm(x: &[f32], scale: &[f32], bias: Option<&[f32]>, epsilon: f32, out: &mut [f32]) {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    let mut squares = [0.0; LANES];
    by_lanes(x, mean, |xs| {
        for (sum, &x) in squares.iter_mut().zip(xs) {
            *sum += (x - mean) * (x - mean);
        }
    });
    let factor = 1.0 / (fold_lanes(squares, |a, b| a + b) / n + epsilon).sqrt();
    for ((y, x), scale) in out.iter_mut().zip(x).zip(scale) {
        *y = (x - mean) * factor * scale;
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
    fn a_softmax_is_close_to_its_definition_and_passes_on_what_is_not_a_number() {
        for n in [1, 5, 16, 33, 197] {
            let xs: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 * 0.3 - 15.0).collect();
            let total: f64 = xs.iter().map(|&x| f64::from(x).exp()).sum();
            let (mut plain, mut log) = (xs.clone(), xs.clone());
            softmax(&mut plain, false);
            softmax(&mut log, true);
            for ((&x, &y), &l) in xs.iter().zip(&plain).zip(&log) {
                let want = f64::from(x).exp() / total;
                assert!((f64::from(y) - want).abs() <= 3e-6 * want, "{y} is not {want}");
                assert!((f64::from(l) - want.ln()).abs() <= 3e-5, "{l} is not {}", want.ln());
            }
        }
        for odd in [f32::NAN, -f32::NAN, f32::INFINITY] {
            let mut row = [-1.0, odd, -3.0];
            softmax(&mut row, false);
            assert!(row[1].is_nan(), "{odd} {row:?}");
        }
        let mut row = [f32::NEG_INFINITY, -2.0, f32::NEG_INFINITY];
        softmax(&mut row, false);
        assert_eq!(row, [0.0, 1.0, 0.0]);
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
