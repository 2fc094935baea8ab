//! The operators of `ai.onnx.ml` that are tables of numbers: columns picked, thresholds, labels exchanged. Strings
//! are not supported.

use std::collections::HashMap;

use crate::engine::graph::fact::{Fact, Results, Unfit, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::gather::{integers, place};
use super::number::Number;
use super::real::given;
use super::strides::{with_width, words, words_mut};
use super::typed::with_number;
use super::{Entry, Made};

const ML: &str = "ai.onnx.ml";

pub(super) const OPERATORS: &[Entry] = &[
    (ML, "ArrayFeatureExtractor", |_| Ok(Made::new(Columns))),
    (ML, "Binarizer", |call| {
        Ok(Made::new(Binarizer { threshold: call.attributes.float_or("threshold", 0.0)? }))
    }),
    (ML, "LabelEncoder", label_encoder),
];

/// `x [.., n], columns`: the columns of `x` that are named, `[.., columns]`; one row is a matrix of one row.
#[derive(Debug)]
struct Columns;

impl Columns {
    fn shape(x: &[usize], columns: &[usize]) -> Result<Vec<usize>, String> {
        let Some((_, before)) = x.split_last() else { return Err("x has no axis".to_owned()) };
        let mut shape = if before.is_empty() { vec![1] } else { before.to_vec() };
        shape.push(columns.iter().product());
        Ok(shape)
    }
}

impl Operator for Columns {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, columns) = (needed(inputs, 0)?, needed(inputs, 1)?);
        Ok(vec![(x.dtype, Columns::shape(&x.shape, &columns.shape)?)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, columns) = (given(inputs, 0)?, given(inputs, 1)?);
        let length = *x.shape.last().ok_or("x has no axis")?;
        let places = integers(&columns)?.iter().map(|&i| place(i, length)).collect::<Result<Vec<_>, _>>()?;
        let mut made = Tensor::zeros(x.dtype, &Columns::shape(x.shape, columns.shape)?);
        if made.is_empty() {
            return Ok(vec![made]);
        }
        with_width!(x.dtype, W => {
            let rows = words::<W>(&x).chunks_exact(length);
            for (from, to) in rows.zip(words_mut::<W>(&mut made).chunks_exact_mut(places.len())) {
                to.iter_mut().zip(&places).for_each(|(y, &i)| *y = from[i]);
            }
        });
        Ok(vec![made])
    }
}

/// `x`: 1 above the threshold, else 0.
#[derive(Debug)]
struct Binarizer {
    threshold: f32,
}

impl Operator for Binarizer {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        Ok(vec![(x.dtype, x.shape.clone())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        with_number!(x.dtype, T => {
            let above = |v: &T| if v.to_f64() > self.threshold.into() { T::ONE } else { T::ZERO };
            let ones: Vec<T> = x.slice::<T>().iter().map(above).collect();
            Ok(vec![Tensor::from_slice(x.shape, &ones)])
        })
    }
}

/// `x`: the value that belongs to each key, or the default.
#[derive(Debug)]
struct LabelEncoder {
    keys: DType,
    /// From the key, widened, to the place of its value.
    places: HashMap<Key, usize>,
    /// The values, and the default behind them.
    values: Tensor,
}

/// A number as its bits; all NaNs are one key, and so are both zeros.
type Key = u64;

fn keys(x: &TensorView<'_>) -> Vec<Key> {
    match x.dtype {
        DType::I64 => x.slice::<i64>().iter().map(|&v| v as u64).collect(),
        _ => {
            let key = |v: f64| if v.is_nan() { f64::NAN.to_bits() } else { (v + 0.0).to_bits() };
            x.to_f64().into_iter().map(key).collect()
        }
    }
}

fn label_encoder(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    if ["keys_strings", "values_strings", "classes_strings"].iter().any(|name| a.has(name)) {
        return Err("strings are not supported".to_owned());
    }
    let list = |kind: &str| -> Result<Option<Tensor>, String> {
        let row = |n: usize| [n];
        Ok(match (a.ints(&format!("{kind}_int64s"))?, a.floats(&format!("{kind}_floats"))?) {
            (Some(ints), _) => Some(Tensor::from_slice(&row(ints.len()), &ints)),
            (_, Some(floats)) => Some(Tensor::from_slice(&row(floats.len()), &floats)),
            (None, None) => a.tensor(&format!("{kind}_tensor"))?.cloned(),
        })
    };
    let known = list("keys")?.ok_or("its keys are missing")?;
    let values = list("values")?.ok_or("its values are missing")?;
    if known.len() != values.len() {
        return Err(format!("it has {} keys and {} values", known.len(), values.len()));
    }
    let default = match (a.tensor("default_tensor")?, values.dtype()) {
        (Some(default), dtype) if default.dtype() == dtype && default.len() == 1 => default.clone(),
        (Some(_), dtype) => return Err(format!("attribute `default_tensor` is not one {dtype}")),
        (None, DType::I64) => Tensor::scalar(a.int_or("default_int64", -1)?),
        (None, DType::F32) => Tensor::scalar(a.float_or("default_float", -0.0)?),
        (None, other) => return Err(format!("values of {other} need a `default_tensor`")),
    };
    let bytes = [values.view().bytes, default.view().bytes].concat();
    let values =
        Tensor::from_bytes(values.dtype(), &[known.len() + 1], &bytes).ok_or("its values do not fit")?;
    let mut places = HashMap::new();
    keys(&known.view()).into_iter().enumerate().for_each(|(i, key)| {
        places.insert(key, i);
    });
    Ok(Made::new(LabelEncoder { keys: known.dtype(), places, values }))
}

impl Operator for LabelEncoder {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        match x.dtype == self.keys {
            true => Ok(vec![(self.values.dtype(), x.shape.clone())]),
            false => Err(format!("keys are {}, x is {}", self.keys, x.dtype).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let mut made = Tensor::zeros(self.values.dtype(), x.shape);
        with_width!(self.values.dtype(), W => {
            let values = self.values.view();
            let values = words::<W>(&values);
            let default = values.len() - 1;
            for (y, key) in words_mut::<W>(&mut made).iter_mut().zip(keys(&x)) {
                *y = values[self.places.get(&key).copied().unwrap_or(default)];
            }
        });
        Ok(vec![made])
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::graph::attributes::{Attribute, Attributes};

    use super::*;

    #[test]
    fn labels_are_exchanged_and_nan_is_a_key() {
        let attributes = Attributes::new(vec![
            ("keys_floats".to_owned(), Attribute::Floats(vec![1.0, f32::NAN, 0.0])),
            ("values_int64s".to_owned(), Attribute::Ints(vec![7, 8, 9])),
            ("default_int64".to_owned(), Attribute::Int(5)),
        ]);
        let call = Call {
            domain: ML,
            name: "LabelEncoder",
            opset: 18,
            attributes: &attributes,
            inputs: vec![true],
            outputs: vec![true],
        };
        let Ok(made) = label_encoder(&call) else { panic!("its attributes are right") };
        let x = Tensor::from_slice(&[4], &[f32::NAN, 2.0, -0.0, 1.0]);
        assert_eq!(made.operator.run(&[Some(x.view())], 1).unwrap()[0].slice::<i64>(), [8, 5, 9, 7]);
    }

    #[test]
    fn columns_of_a_row_are_a_matrix() {
        let x = Tensor::from_slice(&[3], &[1i64, 2, 3]);
        let columns = Tensor::from_slice(&[2], &[2i64, 0]);
        let made = Columns.run(&[Some(x.view()), Some(columns.view())], 1).unwrap();
        assert_eq!(made[0], Tensor::from_slice(&[1, 2], &[3i64, 1]));
    }
}
