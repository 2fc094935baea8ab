//! Tables that spectra are made with: window functions, and the weights of mel bands.

use std::f64::consts::PI;

use crate::engine::graph::fact::{Fact, Results, Unfit, constant, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::graph::shapes::VALUE_BYTES_MAX;
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::real::given;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "HannWindow", |call| window(call, [0.5, 0.5, 0.0])),
    ("", "HammingWindow", |call| window(call, [25.0 / 46.0, 21.0 / 46.0, 0.0])),
    ("", "BlackmanWindow", |call| window(call, [0.42, 0.5, 0.08])),
    ("", "MelWeightMatrix", mel_weights),
];

/// The type that a table has: a number of `TensorProto.DataType`.
fn table_type(call: &Call<'_>) -> Result<DType, String> {
    let number = call.attributes.int_or("output_datatype", 1)?;
    let dtype = DType::of_onnx(number).filter(|&dtype| dtype != DType::Bool);
    dtype.ok_or_else(|| format!("output_datatype={number} is not supported"))
}

/// A table in its type; halves as float32. Integers are cut.
fn table(dtype: DType, shape: &[usize], values: &[f64]) -> Tensor {
    macro_rules! cast {
        ($t:ty) => {
            Tensor::from_slice(shape, &values.iter().map(|&v| v as $t).collect::<Vec<_>>())
        };
    }
    match dtype {
        DType::F64 => cast!(f64),
        DType::I64 => cast!(i64),
        DType::I32 => cast!(i32),
        DType::I16 => cast!(i16),
        DType::I8 => cast!(i8),
        DType::U64 => cast!(u64),
        DType::U32 => cast!(u32),
        DType::U16 => cast!(u16),
        DType::U8 | DType::Bool => cast!(u8),
        DType::F32 | DType::F16 | DType::BF16 => cast!(f32),
    }
}

/// The one number of an operand.
fn number(x: &TensorView<'_>, what: &str) -> Result<f64, String> {
    match x.to_f64()[..] {
        [value] => Ok(value),
        _ => Err(format!("{what} is not one number")),
    }
}

fn size(value: f64, what: &str) -> Result<usize, String> {
    match (0.0..=(VALUE_BYTES_MAX / 8) as f64).contains(&value) {
        true => Ok(value as usize),
        false => Err(format!("{what} is {value}, which makes no sense")),
    }
}

/// `size`: `a − b · cos(2πn / N) + c · cos(4πn / N)` for each `n` below `size`. `N` is `size`, or `size − 1` where the
/// window is not one of a periodic function.
#[derive(Debug)]
struct WindowTable {
    terms: [f64; 3],
    periodic: bool,
    dtype: DType,
}

fn window(call: &Call<'_>, terms: [f64; 3]) -> Result<Made, String> {
    let periodic = call.attributes.flag("periodic", true)?;
    Ok(Made::new(WindowTable { terms, periodic, dtype: table_type(call)? }))
}

impl WindowTable {
    fn values(&self, size: usize) -> Vec<f64> {
        if size == 1 && !self.periodic {
            return vec![1.0];
        }
        let period = if self.periodic { size } else { size.saturating_sub(1) } as f64;
        let [a, b, c] = self.terms;
        let value = |n: usize| {
            let angle = 2.0 * PI * n as f64 / period;
            a - b * angle.cos() + c * (2.0 * angle).cos()
        };
        (0..size).map(value).collect()
    }
}

impl Operator for WindowTable {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let count = size(number(&constant(inputs, 0, "size")?.view(), "size")?, "size")?;
        Ok(vec![(self.dtype, vec![count])])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let count = size(number(&given(inputs, 0)?, "size")?, "size")?;
        Ok(vec![table(self.dtype, &[count], &self.values(count))])
    }

    fn opset(&self) -> i64 {
        17
    }
}

/// `bands, dft_length, sample_rate, lowest, highest`: `[dft_length / 2 + 1, bands]`, for each band a triangle over the
/// bins of a spectrum, between frequencies in Hz. The bands are equally wide on the mel scale,
/// `2595 · log10(1 + f / 700)`.
#[derive(Debug)]
struct MelWeights {
    dtype: DType,
}

fn mel_weights(call: &Call<'_>) -> Result<Made, String> {
    Ok(Made::new(MelWeights { dtype: table_type(call)? }))
}

impl MelWeights {
    fn shape(bands: f64, length: f64) -> Result<(usize, usize), String> {
        let (bands, length) = (size(bands, "num_mel_bins")?, size(length, "dft_length")?);
        let bins = length / 2 + 1;
        match bins.checked_mul(bands).is_some_and(|n| n <= VALUE_BYTES_MAX / 8) {
            true => Ok((bins, bands)),
            false => Err(format!("{bands} bands of {bins} bins are too many")),
        }
    }

    fn values(
        &self,
        [bands, length, rate, lowest, highest]: [f64; 5],
    ) -> Result<(Vec<usize>, Vec<f64>), String> {
        let (bins, count) = Self::shape(bands, length)?;
        let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
        let (low, high) = (mel(lowest), mel(highest));
        let step = (high - low) / (count + 2) as f64;
        let edge = |i: usize| -> Result<usize, String> {
            let hertz = 700.0 * (10f64.powf((low + i as f64 * step) / 2595.0) - 1.0);
            let bin = ((length + 1.0) * hertz / rate).floor();
            match (0.0..bins as f64).contains(&bin) {
                true => Ok(bin as usize),
                false => Err(format!("{hertz} Hz at {rate} samples a second is in none of {bins} bins")),
            }
        };
        let mut weights = vec![0.0; bins * count];
        for band in 0..count {
            let (from, peak) = (edge(band)?, edge(band + 1)?);
            // The last edge itself has no weight, so it may lie just behind the last bin.
            let to = edge(band + 2).or_else(|e| if peak + 1 == bins { Ok(peak) } else { Err(e) })?;
            let mut set = |bin: usize, weight: f64| weights[bin * count + band] = weight;
            for bin in from..=peak {
                set(bin, if peak == from { 1.0 } else { (bin - from) as f64 / (peak - from) as f64 });
            }
            for bin in peak..to {
                set(bin, (to - bin) as f64 / (to - peak) as f64);
            }
        }
        Ok((vec![bins, count], weights))
    }
}

impl Operator for MelWeights {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        needed(inputs, 4)?;
        let bands = number(&constant(inputs, 0, "num_mel_bins")?.view(), "num_mel_bins")?;
        let length = number(&constant(inputs, 1, "dft_length")?.view(), "dft_length")?;
        let (bins, bands) = Self::shape(bands, length)?;
        Ok(vec![(self.dtype, vec![bins, bands])])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        const NAMES: [&str; 5] =
            ["num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz"];
        let mut numbers = [0.0; 5];
        for (i, name) in NAMES.into_iter().enumerate() {
            numbers[i] = number(&given(inputs, i)?, name)?;
        }
        let (shape, values) = self.values(numbers)?;
        Ok(vec![table(self.dtype, &shape, &values)])
    }

    fn opset(&self) -> i64 {
        17
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_rise_to_one_and_fall() {
        let hann = |periodic| WindowTable { terms: [0.5, 0.5, 0.0], periodic, dtype: DType::F32 };
        let near = |a: Vec<f64>, b: &[f64]| {
            assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} {b:?}");
        };
        near(hann(true).values(4), &[0.0, 0.5, 1.0, 0.5]);
        near(hann(false).values(3), &[0.0, 1.0, 0.0]);
        near(hann(false).values(1), &[1.0]);
        near(hann(true).values(0), &[]);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for value in [-1.0, f64::NAN, f64::INFINITY, 1e30] {
            assert!(size(value, "size").is_err(), "{value}");
        }
        let mel = MelWeights { dtype: DType::F32 };
        assert!(mel.values([4.0, 16.0, 8000.0, 0.0, 90000.0]).is_err());
        assert!(mel.values([4.0, 16.0, 0.0, 0.0, 4000.0]).is_err());
        assert!(mel.values([1e9, 1e9, 8000.0, 0.0, 4000.0]).is_err());
        assert_eq!(mel.values([8.0, 16.0, 8192.0, 0.0, 4096.0]).unwrap().0, [9, 8]);
    }
}
