//! float16 and bfloat16: an operator without a kernel of its own for them runs in float32, its result rounded.

use std::sync::Arc;

use crate::engine::graph::fact::Fact;
use crate::engine::graph::op::Op;
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::compile::{self, Request};
use super::step::{Kernel, Operand, Operands, Scratch, Source};

/// Whether a type is one of the two.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// The same numbers in float32.
pub(super) fn widened(x: &TensorView<'_>) -> Tensor {
    let values: Vec<f32> = match x.dtype {
        DType::F16 => x.slice::<half::f16>().iter().map(|v| v.to_f32()).collect(),
        _ => x.slice::<half::bf16>().iter().map(|v| v.to_f32()).collect(),
    };
    Tensor::from_slice(x.shape, &values)
}

/// The numbers of a float32 tensor, rounded to nearest, ties to even.
pub(super) fn narrowed(x: &Tensor, to: DType) -> Tensor {
    let values = x.slice::<f32>();
    match to {
        DType::F16 => {
            let rounded: Vec<half::f16> = values.iter().map(|&v| half::f16::from_f32(v)).collect();
            Tensor::from_slice(x.shape(), &rounded)
        }
        _ => {
            let rounded: Vec<half::bf16> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
            Tensor::from_slice(x.shape(), &rounded)
        }
    }
}

/// Operators that only move elements, or that change types: they take halves as they are.
fn takes_halves(op: &Op) -> bool {
    matches!(
        op,
        Op::Transpose { .. }
            | Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Squeeze
            | Op::Unsqueeze
            | Op::Concat { .. }
            | Op::Slice
            | Op::Gather { .. }
            | Op::ConstantOfShape { .. }
            | Op::Expand
            | Op::Tile
            | Op::Where
            | Op::Pad { .. }
            | Op::Cast { .. }
            | Op::Identity
    )
}

/// The kernel of a node: [`compile::compile`], around which halves are floats.
pub(super) fn compile(
    request: &Request<'_>,
    inputs: &[Option<&Fact>],
    dtype: DType,
    shape: &[usize],
) -> Result<Kernel, String> {
    let any = is_half(dtype) || inputs.iter().flatten().any(|f| is_half(f.dtype));
    if !any || takes_halves(&request.node.op) {
        return compile::compile(request, inputs, dtype, shape);
    }
    let wide: Vec<Option<Fact>> = inputs.iter().map(|f| f.map(wide_fact)).collect();
    let refs: Vec<Option<&Fact>> = wide.iter().map(Option::as_ref).collect();
    let to = if is_half(dtype) { DType::F32 } else { dtype };
    let kernel = compile::compile(request, &refs, to, shape)?;
    // What is constant was widened once.
    let constants: Vec<Option<Arc<Tensor>>> = wide.into_iter().map(|f| f.and_then(|f| f.constant)).collect();
    let shape = shape.to_vec();
    Ok(Box::new(move |operands, out, _| {
        let operand = |i: usize| -> Option<Operand> {
            let x = operands.get(i)?;
            let tensor = match constants.get(i).and_then(Option::as_ref) {
                Some(tensor) => tensor.clone(),
                None if is_half(x.dtype) => Arc::new(widened(&x)),
                None => Arc::new(x.to_tensor()),
            };
            Some(Operand { dtype: tensor.dtype(), shape: x.shape.to_vec(), source: Source::Constant(tensor) })
        };
        let all: Vec<Option<Operand>> = (0..operands.len()).map(operand).collect();
        let mut made = Tensor::zeros(to, &shape);
        kernel(&Operands::constants(&all), made.view_mut(), &mut Scratch::default())?;
        let made = if to == dtype { made } else { narrowed(&made, dtype) };
        out.bytes.copy_from_slice(made.view().bytes);
        Ok(())
    }))
}

fn wide_fact(fact: &Fact) -> Fact {
    if !is_half(fact.dtype) {
        return fact.clone();
    }
    let constant = fact.constant.as_ref().map(|t| Arc::new(widened(&t.view())));
    Fact { dtype: DType::F32, shape: fact.shape.clone(), constant }
}
