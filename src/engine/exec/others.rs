//! Runs operators that are one object: operands in, tensors out, copied to where the plan wants them. They see
//! float32 where the model has float16 or bfloat16.

use std::ops::Range;

use crate::engine::graph::fact::{Fact, Results};
use crate::engine::graph::operator::Other;
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::half::{is_half, narrowed, widened};
use super::step::Kernel;

/// Each result begins on a cache line.
const ALIGN: usize = 64;

/// The bytes of each result in one range, and the length of that range.
pub(super) fn ranges(results: &Results) -> (Vec<Range<usize>>, usize) {
    let mut end = 0usize;
    let mut all = Vec::with_capacity(results.len());
    for (dtype, shape) in results {
        let start = end.next_multiple_of(ALIGN);
        end = start + shape.iter().product::<usize>() * dtype.size();
        all.push(start..end);
    }
    (all, end)
}

/// The kernel of an operator whose results are known by type and shape.
pub(super) fn kernel(other: &Other, facts: &[Option<&Fact>], results: Results) -> Kernel {
    let operator = other.operator.clone();
    let prepared = operator.prepare(facts);
    let (ranges, _) = ranges(&results);
    Box::new(move |operands, out, _| {
        let given: Vec<Option<TensorView<'_>>> = (0..operands.len()).map(|i| operands.get(i)).collect();
        let wide: Vec<Option<Tensor>> = given.iter().map(|x| x.as_ref().and_then(widen)).collect();
        let views = merged(&given, &wide);
        let made = match &prepared {
            Some(prepared) => prepared(&views, results.len())?,
            None => operator.run(&views, results.len())?,
        };
        for ((tensor, want), range) in checked(made, &results)?.iter().zip(&results).zip(&ranges) {
            debug_assert_eq!(tensor.dtype(), want.0);
            out.bytes[range.clone()].copy_from_slice(tensor.view().bytes);
        }
        Ok(())
    })
}

/// Runs an operator once. Without `results` whatever it gives is taken.
pub(super) fn run(
    other: &Other,
    inputs: &[Option<&Tensor>],
    results: Option<&Results>,
) -> Result<Vec<Tensor>, String> {
    let given: Vec<Option<TensorView<'_>>> = inputs.iter().map(|x| x.map(Tensor::view)).collect();
    let wide: Vec<Option<Tensor>> = given.iter().map(|x| x.as_ref().and_then(widen)).collect();
    let outputs = results.map_or(usize::MAX, Vec::len);
    let made = other.operator.run(&merged(&given, &wide), outputs)?;
    match results {
        Some(results) => checked(made, results),
        // What was widened on the way in goes back to the type of the first operand.
        None => {
            let first = given.first().and_then(Option::as_ref).map(|x| x.dtype).filter(|d| is_half(*d));
            let back = |t: Tensor| match first {
                Some(half) if t.dtype() == DType::F32 => narrowed(&t, half),
                _ => t,
            };
            Ok(made.into_iter().map(back).collect())
        }
    }
}

fn widen(x: &TensorView<'_>) -> Option<Tensor> {
    is_half(x.dtype).then(|| widened(x))
}

fn merged<'a>(given: &[Option<TensorView<'a>>], wide: &'a [Option<Tensor>]) -> Vec<Option<TensorView<'a>>> {
    given.iter().zip(wide).map(|(given, wide)| wide.as_ref().map(Tensor::view).or(*given)).collect()
}

/// The results, of the types that were inferred; their shapes must be those.
fn checked(made: Vec<Tensor>, results: &Results) -> Result<Vec<Tensor>, String> {
    let fit = |(tensor, (dtype, shape)): (Tensor, &(DType, Vec<usize>))| {
        let tensor = match tensor.dtype() {
            DType::F32 if is_half(*dtype) => narrowed(&tensor, *dtype),
            _ => tensor,
        };
        match tensor.dtype() == *dtype && tensor.shape() == shape {
            true => Ok(tensor),
            false => Err(format!(
                "the result is {}{:?}, {dtype}{shape:?} was expected",
                tensor.dtype(),
                tensor.shape()
            )),
        }
    };
    if made.len() < results.len() {
        return Err(format!("{} results were made, {} are needed", made.len(), results.len()));
    }
    made.into_iter().zip(results).map(fit).collect()
}
