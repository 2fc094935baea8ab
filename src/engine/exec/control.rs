//! If, Loop and Scan: nodes that run graphs.

use std::borrow::Cow;

use crate::engine::graph::Node;
use crate::engine::graph::fact::axis_index;
use crate::engine::graph::op::Scan;
use crate::engine::graph::shapes::bounded;
use crate::engine::tensor::{DType, Tensor};

use super::strided::{Walk, copy_bytes, row_major};
use super::{Error, Port};

/// Runs a body over its inputs in their order.
type Run<'a> = Box<dyn Fn(&[&Tensor]) -> Result<Vec<Tensor>, Error> + 'a>;

/// A graph that a node runs.
pub(super) struct Body<'a> {
    /// Runs it over its inputs in their order.
    pub(super) run: Run<'a>,
    /// What it gives.
    pub(super) outputs: &'a [Port],
}

/// Most rounds of a Loop: beyond it a model is taken to run for ever.
const ROUNDS_MAX: i64 = 1 << 20;
/// Memory of a tensor besides its data, about.
const TENSOR_BYTES: usize = 256;

fn fail(node: &Node, reason: impl Into<String>) -> Error {
    Error::Node { node: node.name.clone(), op: node.op.name(), reason: reason.into() }
}

fn truth(node: &Node, tensor: &Tensor) -> Result<bool, Error> {
    match (tensor.dtype(), tensor.len()) {
        (DType::Bool, 1) => Ok(tensor.slice::<u8>()[0] != 0),
        (dtype, n) => Err(fail(node, format!("the condition is {n} values of {dtype}, one bool is needed"))),
    }
}

/// If: the first body where the condition holds, else the second.
pub(super) fn branch(
    node: &Node,
    bodies: &[Body<'_>],
    inputs: &[Option<&Tensor>],
) -> Result<Vec<Tensor>, Error> {
    let condition = inputs[0].as_ref().ok_or_else(|| fail(node, "the condition is missing"))?;
    let body = &bodies[usize::from(!truth(node, condition)?)];
    let captured: Vec<&Tensor> = inputs[1..].iter().flatten().copied().collect();
    (body.run)(&captured)
}

/// Loop: `carried` values go from round to round; what the body gives besides is stacked.
pub(super) fn repeat(
    node: &Node,
    bodies: &[Body<'_>],
    carried: usize,
    inputs: &[Option<&Tensor>],
    memory_bytes_max: u64,
) -> Result<Vec<Tensor>, Error> {
    let body = &bodies[0];
    let rounds = match &inputs[0] {
        None => i64::MAX,
        Some(count) => *count.to_i64().first().ok_or_else(|| fail(node, "the number of rounds is empty"))?,
    };
    let mut goes_on = inputs[1].as_ref().map_or(Ok(true), |c| truth(node, c))?;
    let mut state: Vec<Cow<'_, Tensor>> = Vec::new();
    for given in &inputs[2..2 + carried] {
        state.push(Cow::Borrowed(given.ok_or_else(|| fail(node, "a carried value is missing"))?));
    }
    let captured: Vec<&Tensor> = inputs[2 + carried..].iter().flatten().copied().collect();
    let stacked = node.outputs.len() - carried;
    let mut stacks = Stacks::new(stacked, memory_bytes_max);
    let mut round = 0;
    while goes_on && round < rounds {
        if round == ROUNDS_MAX {
            return Err(fail(node, format!("more than {ROUNDS_MAX} rounds")));
        }
        let number = Tensor::scalar(round);
        let condition = Tensor::scalar(1u8).retyped(DType::Bool);
        let mut all: Vec<&Tensor> = vec![&number, &condition];
        all.extend(state.iter().map(|t| &**t));
        all.extend(&captured);
        let mut made = (body.run)(&all)?.into_iter();
        goes_on = truth(node, &made.next().ok_or_else(|| fail(node, "its body gives no condition"))?)?;
        state = made.by_ref().take(carried).map(Cow::Owned).collect();
        stacks.push(node, made)?;
        round += 1;
    }
    let mut results: Vec<Tensor> = state.into_iter().map(Cow::into_owned).collect();
    for (i, stack) in stacks.all.into_iter().enumerate() {
        results.push(stack_up(node, body, 1 + carried + i, stack, 0, false)?);
    }
    Ok(results)
}

/// Scan: a round for each slice of the scanned operands.
pub(super) fn scan(
    node: &Node,
    bodies: &[Body<'_>],
    op: &Scan,
    inputs: &[Option<&Tensor>],
    memory_bytes_max: u64,
) -> Result<Vec<Tensor>, Error> {
    let body = &bodies[0];
    let given: Vec<&Tensor> = inputs
        .iter()
        .map(|t| t.ok_or_else(|| fail(node, "an input is missing")))
        .collect::<Result<_, _>>()?;
    let (states, rest) = given.split_at(op.states);
    let (scanned, captured) = rest.split_at(op.inputs.len());
    let mut axes = Vec::new();
    for (tensor, (axis, _)) in scanned.iter().zip(&op.inputs) {
        axes.push(axis_index(*axis, tensor.shape().len(), false).map_err(|e| fail(node, e))?);
    }
    let lengths: Vec<usize> = scanned.iter().zip(&axes).map(|(t, &axis)| t.shape()[axis]).collect();
    let rounds = lengths[0];
    if lengths.iter().any(|&n| n != rounds) {
        return Err(fail(node, format!("the scanned inputs have {lengths:?} slices")));
    }
    let mut state: Vec<Cow<'_, Tensor>> = states.iter().map(|t| Cow::Borrowed(*t)).collect();
    let mut stacks = Stacks::new(op.outputs.len(), memory_bytes_max);
    for round in 0..rounds {
        let slice = |((t, &axis), (_, backwards)): ((&&Tensor, &usize), &(i64, bool))| {
            slice_of(t, axis, if *backwards { rounds - 1 - round } else { round })
        };
        let slices: Vec<Tensor> = scanned.iter().zip(&axes).zip(&op.inputs).map(slice).collect();
        let mut all: Vec<&Tensor> = state.iter().map(|t| &**t).collect();
        all.extend(&slices);
        all.extend(captured);
        let mut made = (body.run)(&all)?.into_iter();
        state = made.by_ref().take(op.states).map(Cow::Owned).collect();
        stacks.push(node, made)?;
    }
    let mut results: Vec<Tensor> = state.into_iter().map(Cow::into_owned).collect();
    for (i, (stack, (axis, backwards))) in stacks.all.into_iter().zip(&op.outputs).enumerate() {
        results.push(stack_up(node, body, op.states + i, stack, *axis, *backwards)?);
    }
    Ok(results)
}

/// What the rounds give besides what they carry on.
struct Stacks {
    all: Vec<Vec<Tensor>>,
    /// What they may still take: as they are, and joined.
    left: u64,
}

impl Stacks {
    fn new(count: usize, memory_bytes_max: u64) -> Stacks {
        Stacks { all: vec![Vec::new(); count], left: memory_bytes_max / 2 }
    }

    fn push(&mut self, node: &Node, made: impl Iterator<Item = Tensor>) -> Result<(), Error> {
        for (stack, tensor) in self.all.iter_mut().zip(made) {
            let bytes = (tensor.view().bytes.len() + TENSOR_BYTES) as u64;
            let left = self.left.checked_sub(bytes);
            self.left =
                left.ok_or_else(|| fail(node, "its rounds give more than the memory that a run may take"))?;
            stack.push(tensor);
        }
        Ok(())
    }
}

/// Element `index` of an axis, without the axis.
fn slice_of(tensor: &Tensor, axis: usize, index: usize) -> Tensor {
    let strides = row_major(tensor.shape());
    let mut shape = tensor.shape().to_vec();
    shape.remove(axis);
    let mut kept = strides.clone();
    kept.remove(axis);
    let mut slice = Tensor::zeros(tensor.dtype(), &shape);
    let offset = index * strides[axis] as usize;
    let walk = Walk::new(&shape, [kept]);
    if !slice.is_empty() {
        copy_bytes(tensor.dtype().size(), &walk, offset, tensor.view().bytes, slice.view_mut().bytes);
    }
    slice
}

/// The values of all rounds on a new axis. Without a round the shape is what the body declares for `output`.
fn stack_up(
    node: &Node,
    body: &Body<'_>,
    output: usize,
    mut parts: Vec<Tensor>,
    axis: i64,
    backwards: bool,
) -> Result<Tensor, Error> {
    let Some(first) = parts.first() else {
        let port = &body.outputs[output];
        let shape = port.shape(|_| Some(0)).unwrap_or_default();
        let shape = [&[0], shape.as_slice()].concat();
        bounded(port.dtype, &shape).map_err(|e| fail(node, e))?;
        return Ok(Tensor::zeros(port.dtype, &shape));
    };
    let (dtype, part) = (first.dtype(), first.shape().to_vec());
    if let Some(other) = parts.iter().find(|t| t.shape() != part || t.dtype() != dtype) {
        return Err(fail(
            node,
            format!("rounds give shapes {part:?} and {:?}, which do not stack", other.shape()),
        ));
    }
    if backwards {
        parts.reverse();
    }
    let axis = axis_index(axis, part.len() + 1, false).map_err(|e| fail(node, e))?;
    let mut shape = part.clone();
    shape.insert(axis, parts.len());
    bounded(dtype, &shape).map_err(|e| fail(node, e))?;
    let mut all = Tensor::zeros(dtype, &shape);
    let block = part[axis..].iter().product::<usize>() * dtype.size();
    let row = block * parts.len();
    if block > 0 {
        for (i, tensor) in parts.iter().enumerate() {
            let blocks = tensor.view().bytes.chunks_exact(block).enumerate();
            for (b, bytes) in blocks {
                let at = b * row + i * block;
                all.view_mut().bytes[at..at + block].copy_from_slice(bytes);
            }
        }
    }
    Ok(all)
}
