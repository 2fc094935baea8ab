//! Operators of chance, made repeatable: what they draw follows from the attribute `seed` alone, 0 where it is not
//! set, so that a model gives the same answer to the same question. And Dropout, which in inference draws nothing.

use crate::engine::graph::fact::{Fact, Results, Unfit, constant, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::number::{of_f64, type_attribute};
use super::real::given;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "Bernoulli", |call| {
        let a = call.attributes;
        Ok(Made::new(Bernoulli { dtype: type_attribute(a, "dtype")?, seed: a.float_or("seed", 0.0)? }))
    }),
    ("", "Dropout", dropout),
    ("", "Multinomial", multinomial),
    ("", "RandomNormal", |call| random(call, true, false)),
    ("", "RandomNormalLike", |call| random(call, true, true)),
    ("", "RandomUniform", |call| random(call, false, false)),
    ("", "RandomUniformLike", |call| random(call, false, true)),
];

/// SplitMix64 (Steele, Lea and Flood 2014): short, and good enough for what models draw.
struct Generator(u64);

impl Generator {
    fn new(seed: f32) -> Generator {
        Generator(seed.to_bits().into())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1, without 1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Mean 0 and deviation 1, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// RandomUniform and RandomNormal; `x` gives the shape, and the type, where they are `…Like`.
#[derive(Debug)]
struct Random {
    normal: bool,
    shape: Option<Vec<usize>>,
    dtype: Option<DType>,
    /// `low, high`, or `mean, scale`.
    bounds: (f64, f64),
    seed: f32,
}

fn random(call: &Call<'_>, normal: bool, like: bool) -> Result<Made, String> {
    let a = call.attributes;
    let bounds = match normal {
        true => (a.float_or("mean", 0.0)?, a.float_or("scale", 1.0)?),
        false => (a.float_or("low", 0.0)?, a.float_or("high", 1.0)?),
    };
    let dtype = type_attribute(a, "dtype")?;
    let (shape, dtype) = match like {
        true => (None, dtype),
        false => (
            Some(a.sizes("shape")?.ok_or("attribute `shape` is missing")?),
            Some(dtype.unwrap_or(DType::F32)),
        ),
    };
    let bounds = (bounds.0.into(), bounds.1.into());
    Ok(Made::new(Random { normal, shape, dtype, bounds, seed: a.float_or("seed", 0.0)? }))
}

impl Operator for Random {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (shape, dtype) = match &self.shape {
            Some(shape) => (shape.clone(), self.dtype.unwrap_or(DType::F32)),
            None => {
                let x = needed(inputs, 0)?;
                (x.shape.clone(), self.dtype.unwrap_or(x.dtype))
            }
        };
        match dtype {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => Ok(vec![(dtype, shape)]),
            other => Err(format!("it draws real numbers, not {other}").into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (shape, dtype) = match &self.shape {
            Some(shape) => (&shape[..], self.dtype.unwrap_or(DType::F32)),
            None => {
                let x = given(inputs, 0)?;
                (x.shape, self.dtype.unwrap_or(x.dtype))
            }
        };
        let mut generator = Generator::new(self.seed);
        let (first, second) = self.bounds;
        let drawn = || match self.normal {
            true => first + second * generator.normal(),
            false => first + (second - first) * generator.uniform(),
        };
        let values: Vec<f64> = std::iter::repeat_with(drawn).take(shape.iter().product()).collect();
        Ok(vec![of_f64(dtype, shape, &values)?])
    }
}

/// `x`, probabilities: 1 as often as each says, else 0.
#[derive(Debug)]
struct Bernoulli {
    dtype: Option<DType>,
    seed: f32,
}

impl Operator for Bernoulli {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        Ok(vec![(self.dtype.unwrap_or(x.dtype), x.shape.clone())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let mut generator = Generator::new(self.seed);
        let drawn = x.to_f64().into_iter().map(|p| if generator.uniform() < p { 1.0 } else { 0.0 });
        Ok(vec![of_f64(self.dtype.unwrap_or(x.dtype), x.shape, &drawn.collect::<Vec<_>>())?])
    }

    fn opset(&self) -> i64 {
        15
    }
}

/// `x [batch, classes]`, logarithms of weights: `samples` classes for each row, `[batch, samples]`.
#[derive(Debug)]
struct Multinomial {
    dtype: DType,
    samples: usize,
    seed: f32,
}

fn multinomial(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let dtype = type_attribute(a, "dtype")?.unwrap_or(DType::I32);
    if !matches!(dtype, DType::I32 | DType::I64) {
        return Err(format!("dtype={dtype} is not supported"));
    }
    let samples = a.int_or("sample_size", 1)?;
    let samples = usize::try_from(samples).map_err(|_| format!("sample_size={samples} is negative"))?;
    Ok(Made::new(Multinomial { dtype, samples, seed: a.float_or("seed", 0.0)? }))
}

impl Operator for Multinomial {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        match needed(inputs, 0)?.shape[..] {
            [batch, classes] if classes > 0 => Ok(vec![(self.dtype, vec![batch, self.samples])]),
            ref other => Err(format!("{other:?} is not [batch, classes]").into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let &[batch, classes] = x.shape else { return Err("it has not two axes".to_owned()) };
        let mut generator = Generator::new(self.seed);
        let mut drawn = Vec::with_capacity(batch * self.samples);
        for row in x.to_f64().chunks_exact(classes.max(1)) {
            let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mut sum = 0.0;
            let sums: Vec<f64> = row
                .iter()
                .map(|x| {
                    sum += (x - most).exp();
                    sum
                })
                .collect();
            drawn.extend((0..self.samples).map(|_| {
                let at = generator.uniform() * sum;
                sums.partition_point(|&sum| sum <= at).min(classes - 1) as f64
            }));
        }
        Ok(vec![of_f64(self.dtype, &[batch, self.samples], &drawn)?])
    }
}

/// `x [, ratio] [, training]`: `x` as it is, and a mask that is true everywhere. Training is refused, but for a
/// ratio of 0, which drops nothing.
#[derive(Debug)]
struct Dropout;

fn dropout(call: &Call<'_>) -> Result<Made, String> {
    match call.opset < 10 && call.wants(1) {
        // It had the type of the operand.
        true => Err("the mask before opset 10 is not supported".to_owned()),
        false => Ok(Made::new(Dropout)),
    }
}

impl Operator for Dropout {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        if operand(inputs, 2).is_some() {
            let training = constant(inputs, 2, "training_mode")?.to_f64().iter().any(|&t| t != 0.0);
            // The default of the standard.
            let ratio = operand(inputs, 1).map(|_| constant(inputs, 1, "ratio")).transpose()?;
            let ratio = ratio.map_or(0.5, |ratio| ratio.to_f64().first().copied().unwrap_or(0.5));
            if training && ratio != 0.0 {
                return Err("training_mode=true is not supported".into());
            }
        }
        Ok(vec![(x.dtype, x.shape.clone()), (DType::Bool, x.shape.clone())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let mask = Tensor::from_slice(x.shape, &vec![1u8; x.len()]).retyped(DType::Bool);
        Ok(vec![x.to_tensor(), mask])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_the_moments_fit() {
        let of = |normal: bool, seed: f32| {
            let operator =
                Random { normal, shape: Some(vec![10_000]), dtype: None, bounds: (3.0, 5.0), seed };
            operator.run(&[], 1).unwrap()[0].to_f64()
        };
        let moments = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            (mean, (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt())
        };
        assert_eq!(of(true, 1.0), of(true, 1.0));
        assert_ne!(of(true, 1.0), of(true, 2.0));
        // Five standard errors of a mean of 10 000.
        let (mean, deviation) = moments(&of(true, 0.0));
        assert!((mean - 3.0).abs() < 0.25 && (deviation - 5.0).abs() < 0.25, "{mean} {deviation}");
        let (mean, deviation) = moments(&of(false, 0.0));
        assert!((mean - 4.0).abs() < 0.03 && (deviation - 2.0 / 12f64.sqrt()).abs() < 0.03);
        assert!(of(false, 0.0).iter().all(|x| (3.0..5.0).contains(x)));
    }

    #[test]
    fn classes_come_as_often_as_their_weight_says() {
        let x = Tensor::from_slice(&[1, 3], &[0.0f32, f32::NEG_INFINITY, 3f32.ln()]);
        let operator = Multinomial { dtype: DType::I64, samples: 10_000, seed: 0.0 };
        let made = operator.run(&[Some(x.view())], 1).unwrap();
        let count = |class: i64| made[0].slice::<i64>().iter().filter(|&&c| c == class).count();
        assert_eq!(count(1), 0);
        // Five deviations of the number of hits.
        assert!(count(0).abs_diff(2500) < 217, "{}", count(0));
        let certain = Tensor::from_slice(&[2], &[0.0f32, 1.0]);
        let made = Bernoulli { dtype: Some(DType::Bool), seed: 0.0 }.run(&[Some(certain.view())], 1).unwrap();
        assert_eq!(made[0].slice::<u8>(), [0, 1]);
    }
}
