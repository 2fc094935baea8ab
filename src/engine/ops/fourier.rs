//! Spectra: DFT and STFT, by a Fourier transform of any length, in double precision.

use std::f64::consts::PI;

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, constant_ints, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::graph::shapes::VALUE_BYTES_MAX;
use crate::engine::tensor::{Tensor, TensorView, element_count};

use super::real::{Real, elements, for_each_chunk, given, optional, reals, with_real};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("", "DFT", dft), ("", "STFT", stft)];

/// A complex number: real and imaginary part.
type Complex = [f64; 2];

fn times(a: Complex, b: Complex) -> Complex {
    [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]]
}

/// A transform of one length.
#[derive(Debug)]
struct Transform {
    /// `exp(∓2πi k / n)`.
    roots: Vec<Complex>,
    inverse: bool,
}

impl Transform {
    fn new(length: usize, inverse: bool) -> Transform {
        let turn = if inverse { 2.0 * PI } else { -2.0 * PI };
        let root = |k: usize| {
            let angle = turn * k as f64 / length as f64;
            [angle.cos(), angle.sin()]
        };
        Transform { roots: (0..length).map(root).collect(), inverse }
    }

    /// The spectrum of `x`; the inverse is divided by the length.
    fn apply(&self, x: &[Complex]) -> Vec<Complex> {
        let mut out = vec![[0.0; 2]; x.len()];
        self.part(x, 1, &mut out);
        if self.inverse {
            let length = x.len() as f64;
            out.iter_mut().for_each(|v| *v = [v[0] / length, v[1] / length]);
        }
        out
    }

    /// Every `step`-th element of `x`, as many as `out` has: split by the smallest factor of the length (Cooley and
    /// Tukey, "An algorithm for the machine calculation of complex Fourier series", 1965).
    fn part(&self, x: &[Complex], step: usize, out: &mut [Complex]) {
        let length = out.len();
        if length <= 1 {
            out.copy_from_slice(&x[..length]);
            return;
        }
        let factor = (2..).take_while(|f| f * f <= length).find(|f| length.is_multiple_of(*f));
        let factor = factor.unwrap_or(length);
        let short = length / factor;
        for (i, out) in out.chunks_exact_mut(short).enumerate() {
            self.part(&x[i * step..], step * factor, out);
        }
        let root = |k: usize| self.roots[k % length * (self.roots.len() / length)];
        let mut terms = vec![[0.0; 2]; factor];
        for k in 0..short {
            for (i, term) in terms.iter_mut().enumerate() {
                *term = times(out[i * short + k], root(i * k));
            }
            for q in 0..factor {
                let mut sum = [0.0; 2];
                for (i, &term) in terms.iter().enumerate() {
                    let part = times(term, root(i * q % factor * short));
                    sum = [sum[0] + part[0], sum[1] + part[1]];
                }
                out[q * short + k] = sum;
            }
        }
    }
}

/// The one integer of an operand that must be known.
fn constant_scalar(inputs: &[Option<&Fact>], index: usize, what: &str) -> Result<Option<i64>, Unfit> {
    if operand(inputs, index).is_none() {
        return Ok(None);
    }
    match constant_ints(inputs, index, what)?[..] {
        [value] => Ok(Some(value)),
        _ => Err(format!("{what} is not one number").into()),
    }
}

/// The one integer of an operand.
fn scalar(inputs: &[Option<TensorView<'_>>], index: usize, what: &str) -> Result<Option<i64>, String> {
    let Some(x) = optional(inputs, index) else { return Ok(None) };
    match x.to_tensor().to_i64()[..] {
        [value] => Ok(Some(value)),
        _ => Err(format!("{what} is not one number")),
    }
}

fn positive(value: i64, what: &str) -> Result<usize, String> {
    let fits = usize::try_from(value).ok().filter(|&n| n > 0 && n <= VALUE_BYTES_MAX / 16);
    fits.ok_or_else(|| format!("{what} is {value}, which makes no sense"))
}

fn bounded(shape: Vec<usize>) -> Result<Vec<usize>, String> {
    match element_count(&shape).is_some_and(|n| n <= VALUE_BYTES_MAX) {
        true => Ok(shape),
        false => Err(format!("a result of shape {shape:?} is too large")),
    }
}

/// `x […, 1 or 2], length, axis`: the transform along an axis, `[…, 2]`. With `onesided` the first half of the spectrum
/// of a real signal, or, inverse, the real signal `[…, 1]` of that half.
#[derive(Debug)]
struct Dft {
    inverse: bool,
    onesided: bool,
}

fn dft(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let made = Made::new(Dft { inverse: a.flag("inverse", false)?, onesided: a.flag("onesided", false)? });
    Ok(match call.opset < 20 {
        true => made.operand(2, Tensor::scalar(a.int_or("axis", 1)?), &["axis"]),
        false => made,
    })
}

/// What a transform does to a shape.
struct Plan {
    axis: usize,
    /// Length of the transform.
    length: usize,
    shape: Vec<usize>,
}

impl Dft {
    fn plan(&self, x: &[usize], length: Option<i64>, axis: Option<i64>) -> Result<Plan, String> {
        let axis = axis_index(axis.unwrap_or(-2), x.len(), false)?;
        let parts = x[x.len() - 1];
        if axis + 1 == x.len() || !(1..=2).contains(&parts) {
            return Err(format!("axis {axis} of shape {x:?} has no complex numbers in it"));
        }
        let real_again = self.onesided && self.inverse;
        let (wanted, name) = match length {
            Some(length) => (length, "dft_length"),
            None if real_again => (2 * (x[axis] as i64 - 1), "the length of the signal"),
            None => (x[axis] as i64, "the length of the axis"),
        };
        let length = positive(wanted, name)?;
        if self.onesided && (parts == 2) != self.inverse {
            return Err(format!(
                "onesided with inverse={} and shape {x:?} is not supported",
                u8::from(self.inverse)
            ));
        }
        let mut shape = x.to_vec();
        shape[axis] = if self.onesided && !self.inverse { length / 2 + 1 } else { length };
        shape[x.len() - 1] = if real_again { 1 } else { 2 };
        Ok(Plan { axis, length, shape: bounded(shape)? })
    }
}

impl Operator for Dft {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let length = constant_scalar(inputs, 1, "dft_length")?;
        let axis = constant_scalar(inputs, 2, "axis")?;
        Ok(vec![(x.dtype, self.plan(&x.shape, length, axis)?.shape)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let (length, axis) = (scalar(inputs, 1, "dft_length")?, scalar(inputs, 2, "axis")?);
        let Plan { axis, length, shape } = self.plan(x.shape, length, axis)?;
        let transform = Transform::new(length, self.inverse);
        let (from, to) = (x.shape[axis], shape[axis]);
        let (parts, parts_out) = (x.shape[x.shape.len() - 1], shape[shape.len() - 1]);
        let inner: usize = x.shape[axis + 1..x.shape.len() - 1].iter().product();
        let half = self.onesided && self.inverse;
        with_real!(x.dtype, T => {
            let values = elements::<T>(&x)?;
            let mut made = Tensor::zeros(x.dtype, &shape);
            for_each_chunk(made.slice_mut::<T>(), to * inner * parts_out, length * inner * 20, |block, out| {
                let mut line = vec![[0.0; 2]; length];
                for column in 0..inner {
                    line.fill([0.0; 2]);
                    for (i, v) in line.iter_mut().take(if half { length / 2 + 1 } else { length }).take(from).enumerate() {
                        let at = ((block * from + i) * inner + column) * parts;
                        *v = [values[at].wide(), if parts == 2 { values[at + 1].wide() } else { 0.0 }];
                    }
                    if half {
                        // The half that is not given mirrors the other.
                        for i in length / 2 + 1..length {
                            line[i] = [line[length - i][0], -line[length - i][1]];
                        }
                    }
                    for (i, v) in transform.apply(&line).into_iter().take(to).enumerate() {
                        let at = (i * inner + column) * parts_out;
                        out[at] = T::of(v[0]);
                        if parts_out == 2 {
                            out[at + 1] = T::of(v[1]);
                        }
                    }
                }
            });
            Ok(vec![made])
        })
    }

    fn opset(&self) -> i64 {
        20
    }
}

/// `signal [N, samples, 1 or 2], step [, window] [, length]`: `[N, frames, bins, 2]`, the spectrum of each frame of the
/// signal, multiplied by the window.
#[derive(Debug)]
struct Stft {
    onesided: bool,
}

fn stft(call: &Call<'_>) -> Result<Made, String> {
    Ok(Made::new(Stft { onesided: call.attributes.flag("onesided", true)? }))
}

impl Stft {
    /// Step, length of a frame, and the shape of the result.
    fn plan(
        &self,
        x: &[usize],
        step: i64,
        window: Option<&[usize]>,
        length: Option<i64>,
    ) -> Result<(usize, usize, Vec<usize>), String> {
        let [batch, samples, parts @ 1..=2] = *x else {
            return Err(format!("a signal of shape {x:?} is not supported, [batch, samples, 1 or 2] is"));
        };
        let step = positive(step, "frame_step")?;
        let length = match (length, window) {
            (Some(length), _) => positive(length, "frame_length")?,
            (None, Some(&[length])) if length > 0 => length,
            _ => return Err("neither a window nor frame_length is given".to_owned()),
        };
        if window.is_some_and(|window| window != [length]) || length > samples {
            return Err(format!("frames of {length} samples, window {window:?} and signal {x:?} do not fit"));
        }
        if self.onesided && parts == 2 {
            return Err("onesided=1 of a complex signal is not supported".to_owned());
        }
        let bins = if self.onesided { length / 2 + 1 } else { length };
        Ok((step, length, bounded(vec![batch, 1 + (samples - length) / step, bins, 2])?))
    }
}

impl Operator for Stft {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let step = constant_scalar(inputs, 1, "frame_step")?.ok_or("input 1 is missing")?;
        let length = constant_scalar(inputs, 3, "frame_length")?;
        let window = operand(inputs, 2).map(|w| w.shape.as_slice());
        Ok(vec![(x.dtype, self.plan(&x.shape, step, window, length)?.2)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, window) = (given(inputs, 0)?, optional(inputs, 2));
        let step = scalar(inputs, 1, "frame_step")?.ok_or("input 1 is missing")?;
        let length = scalar(inputs, 3, "frame_length")?;
        let (step, length, shape) = self.plan(x.shape, step, window.map(|w| w.shape), length)?;
        let window = window.map_or_else(|| vec![1.0; length], |w| reals::<f64>(&w));
        let transform = Transform::new(length, false);
        let (samples, parts) = (x.shape[1], x.shape[2]);
        let (frames, bins) = (shape[1], shape[2]);
        with_real!(x.dtype, T => {
            let values = elements::<T>(&x)?;
            let mut made = Tensor::zeros(x.dtype, &shape);
            for_each_chunk(made.slice_mut::<T>(), bins * 2, length * 20, |frame, out| {
                let start = (frame / frames * samples + frame % frames * step) * parts;
                let sample = |(v, &factor): (&[T], &f64)| {
                    [v[0].wide() * factor, v.get(1).map_or(0.0, |v| v.wide() * factor)]
                };
                let frame = values[start..][..length * parts].chunks_exact(parts);
                let line: Vec<Complex> = frame.zip(&window).map(sample).collect();
                for (out, v) in out.chunks_exact_mut(2).zip(transform.apply(&line)) {
                    (out[0], out[1]) = (T::of(v[0]), T::of(v[1]));
                }
            });
            Ok(vec![made])
        })
    }

    fn opset(&self) -> i64 {
        17
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transform_is_the_sum_that_defines_it() {
        for length in [1usize, 2, 3, 4, 7, 12, 30, 32, 77] {
            let x: Vec<Complex> = (0..length).map(|i| [(i as f64).sin(), (i * i % 5) as f64]).collect();
            let made = Transform::new(length, false).apply(&x);
            for (k, got) in made.iter().enumerate() {
                let term = |(n, &v): (usize, &Complex)| {
                    let angle = -2.0 * PI * (k * n % length) as f64 / length as f64;
                    times(v, [angle.cos(), angle.sin()])
                };
                let want = x.iter().enumerate().map(term).fold([0.0; 2], |a, b| [a[0] + b[0], a[1] + b[1]]);
                assert!((got[0] - want[0]).abs() + (got[1] - want[1]).abs() < 1e-9, "{length} {k}");
            }
            let back = Transform::new(length, true).apply(&made);
            let near = |(a, b): (&Complex, &Complex)| (a[0] - b[0]).abs() + (a[1] - b[1]).abs() < 1e-9;
            assert!(back.iter().zip(&x).all(near), "{length}");
        }
    }

    #[test]
    fn half_a_spectrum_leads_back_to_the_signal() {
        for length in [4usize, 5] {
            let values: Vec<f32> = (0..length).map(|i| (i as f32 * 1.3).cos()).collect();
            let x = Tensor::from_slice(&[1, length, 1], &values);
            let half = Dft { inverse: false, onesided: true }.run(&[Some(x.view())], 1).unwrap();
            assert_eq!(half[0].shape(), [1, length / 2 + 1, 2]);
            let n = Tensor::scalar(length as i64);
            let back = Dft { inverse: true, onesided: true };
            let back = back.run(&[Some(half[0].view()), Some(n.view())], 1).unwrap();
            assert_eq!(back[0].shape(), x.shape());
            assert!(back[0].slice::<f32>().iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }

    #[test]
    fn lengths_that_make_no_sense_are_refused() {
        let dft = Dft { inverse: false, onesided: false };
        assert!(dft.plan(&[1, 4, 1], Some(0), None).is_err());
        assert!(dft.plan(&[1, 4, 1], Some(i64::MAX), None).is_err());
        assert!(dft.plan(&[1, 4, 3], None, None).is_err());
        assert!(dft.plan(&[1, 4, 1], None, Some(2)).is_err());
        let stft = Stft { onesided: true };
        assert!(stft.plan(&[1, 8, 1], 0, None, Some(4)).is_err());
        assert!(stft.plan(&[1, 8, 1], 1, None, Some(9)).is_err());
        assert_eq!(stft.plan(&[1, 8, 1], 2, Some(&[4]), None), Ok((2, 4, vec![1, 3, 3, 2])));
    }
}
