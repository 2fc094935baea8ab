//! Losses that are computed in a model: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss.

use crate::engine::graph::fact::{Fact, Results, Unfit, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::real::{Real, elements, given, optional, with_real};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "NegativeLogLikelihoodLoss", |call| loss(call, false)),
    ("", "SoftmaxCrossEntropyLoss", |call| loss(call, true)),
];

/// `x [N, C, …], labels [N, …] [, weights [C]]`: `−x` at each label, times the label's weight; 0 where the label is
/// `ignored`. Where `softmax`, `x` is turned into logarithms of probabilities first, which are the second result.
#[derive(Debug)]
struct Loss {
    softmax: bool,
    reduction: Reduction,
    ignored: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reduction {
    /// `[N, …]`, as it is.
    None,
    Sum,
    /// The sum, divided by the sum of the weights.
    Mean,
}

fn loss(call: &Call<'_>, softmax: bool) -> Result<Made, String> {
    let reduction = match call.attributes.text_or("reduction", "mean")? {
        "none" => Reduction::None,
        "sum" => Reduction::Sum,
        "mean" => Reduction::Mean,
        other => return Err(format!("reduction={other} is not supported")),
    };
    Ok(Made::new(Loss { softmax, reduction, ignored: call.attributes.int("ignore_index")? }))
}

/// The logarithm of the softmax over the middle axis of `[batch, classes, pixels]`.
fn log_softmax<T: Real>(x: &mut [T], classes: usize, pixels: usize) {
    for image in x.chunks_exact_mut((classes * pixels).max(1)) {
        for pixel in 0..pixels {
            let column = || image.iter().skip(pixel).step_by(pixels).map(|v| v.wide());
            let largest = column().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = column().map(|v| (v - largest).exp()).sum::<f64>().ln() + largest;
            for v in image.iter_mut().skip(pixel).step_by(pixels) {
                *v = T::of(v.wide() - log_sum);
            }
        }
    }
}

impl Loss {
    fn reduced<T: Real>(
        &self,
        x: &[T],
        [classes, pixels]: [usize; 2],
        labels: (&[usize], &[i64]),
        weights: Option<&[T]>,
    ) -> Result<Tensor, String> {
        let mut each = Vec::with_capacity(labels.1.len());
        let mut total = 0.0;
        for (i, &label) in labels.1.iter().enumerate() {
            if Some(label) == self.ignored {
                each.push(T::default());
                continue;
            }
            let class = usize::try_from(label).ok().filter(|&class| class < classes);
            let class = class.ok_or_else(|| format!("label {label} is none of {classes} classes"))?;
            let weight = weights.map_or(T::of(1.0), |weights| weights[class]);
            let v = x[(i / pixels * classes + class) * pixels + i % pixels];
            each.push(T::default() - v * weight);
            total += weight.wide();
        }
        let sum = || each.iter().map(|v| v.wide()).sum::<f64>();
        Ok(match self.reduction {
            Reduction::None => Tensor::from_slice(labels.0, &each),
            Reduction::Sum => Tensor::scalar(T::of(sum())),
            Reduction::Mean => Tensor::scalar(T::of(sum() / total)),
        })
    }
}

impl Operator for Loss {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, labels) = (needed(inputs, 0)?, needed(inputs, 1)?);
        let misfit = || format!("scores {:?} and labels {:?} do not fit", x.shape, labels.shape);
        let [batch, classes, pixels @ ..] = x.shape.as_slice() else { return Err(misfit().into()) };
        if labels.shape != [&[*batch], pixels].concat() {
            return Err(misfit().into());
        }
        if let Some(weights) = operand(inputs, 2)
            && weights.shape != [*classes]
        {
            return Err(
                format!("weights {:?} are not one for each of {classes} classes", weights.shape).into()
            );
        }
        let shape = if self.reduction == Reduction::None { labels.shape.clone() } else { Vec::new() };
        let mut results = vec![(x.dtype, shape)];
        results.extend(self.softmax.then(|| (x.dtype, x.shape.clone())));
        Ok(results)
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, labels) = (given(inputs, 0)?, given(inputs, 1)?);
        if !matches!(labels.dtype, DType::I32 | DType::I64) {
            return Err(format!("labels are {}, int32 or int64 was expected", labels.dtype));
        }
        let sizes = [x.shape[1], x.shape[2..].iter().product()];
        let numbers = labels.to_tensor().to_i64();
        with_real!(x.dtype, T => {
            let mut scores = x.to_tensor();
            if self.softmax {
                log_softmax(scores.slice_mut::<T>(), sizes[0], sizes[1]);
            }
            let weights = optional(inputs, 2).map(|w| elements::<T>(&w)).transpose()?;
            let loss = self.reduced(scores.slice::<T>(), sizes, (labels.shape, &numbers), weights)?;
            Ok(vec![loss, scores])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(loss: &Loss, labels: &[i64], want: &[f32]) {
        let x = Tensor::from_slice(&[2, 3], &[0.0f32, -1.0, -2.0, -3.0, -4.0, -5.0]);
        let weights = Tensor::from_slice(&[3], &[1.0f32, 2.0, 1.0]);
        let labels = Tensor::from_slice(&[2], labels);
        let made = loss.run(&[Some(x.view()), Some(labels.view()), Some(weights.view())], 1).unwrap();
        assert_eq!(made[0].slice::<f32>(), want);
    }

    #[test]
    fn labels_pick_and_weigh() {
        let loss = |reduction, ignored| Loss { softmax: false, reduction, ignored };
        check(&loss(Reduction::None, None), &[1, 0], &[2.0, 3.0]);
        check(&loss(Reduction::Sum, None), &[1, 0], &[5.0]);
        check(&loss(Reduction::Mean, None), &[1, 0], &[5.0 / 3.0]);
        check(&loss(Reduction::Mean, Some(-7)), &[1, -7], &[1.0]);
    }

    #[test]
    fn probabilities_sum_to_one() {
        let mut x = [1.0f32, 5.0, 2.0, -100.0];
        log_softmax(&mut x, 2, 2);
        assert!((x[0].exp() + x[2].exp() - 1.0).abs() < 1e-6 && (x[1].exp() - 1.0).abs() < 1e-6, "{x:?}");
    }

    #[test]
    fn a_label_that_is_no_class_is_refused() {
        let loss = Loss { softmax: false, reduction: Reduction::Sum, ignored: None };
        for label in [-1, 2] {
            assert!(loss.reduced(&[0f32; 2], [2, 1], (&[1], &[label]), None).is_err());
        }
    }
}
