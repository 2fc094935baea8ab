//! Memory orders: `[N, C, …]` as ONNX has it, and `[N, …, C]` as the kernels want it. Which operator takes which.

use crate::engine::graph::fact::Fact;
use crate::engine::graph::op::Op;
use crate::engine::kernels::layout::{nchw_to_nhwc, nhwc_to_nchw};
use crate::engine::tensor::DType;

use super::step::{Context, Kernel};

/// The order in which a value lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// As its shape says.
    RowMajor,
    /// With axis 1 moved to the end.
    ChannelsLast,
}

impl Layout {
    /// The shape in memory of a value whose shape in the model is `logical`.
    pub(super) fn shape(self, logical: &[usize]) -> Vec<usize> {
        match self {
            Layout::ChannelsLast if logical.len() >= 3 => {
                let mut shape = vec![logical[0]];
                shape.extend(&logical[2..]);
                shape.push(logical[1]);
                shape
            }
            _ => logical.to_vec(),
        }
    }

    /// What a step that brings a value into this order is called.
    pub(super) fn conversion(self) -> &'static str {
        match self {
            Layout::RowMajor => "to_row_major",
            Layout::ChannelsLast => "to_channels_last",
        }
    }

    /// Where an axis of the model lies in memory.
    pub(super) fn axis(self, axis: usize, rank: usize) -> usize {
        match self {
            Layout::ChannelsLast if rank >= 3 => match axis {
                0 => 0,
                1 => rank - 1,
                axis => axis - 1,
            },
            _ => axis,
        }
    }
}

/// Which orders an operator can run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Windows over images: channels-last only.
    ChannelsLast,
    /// The order that operand 0 has.
    Follow,
    /// Channels-last if some operand has only that; the others are broadcast to the same rank first.
    FollowBroadcast,
    /// Channels-last if some operand has only that; all operands have the rank of the result.
    FollowAll,
    /// As the model has it.
    RowMajor,
}

/// The rule of an operator.
pub(super) fn rule(op: &Op) -> Rule {
    match op {
        Op::Conv { .. }
        | Op::QConv { .. }
        | Op::ConvInteger { .. }
        | Op::MaxPool { .. }
        | Op::AveragePool { .. }
        | Op::QAveragePool { .. }
        | Op::GlobalAveragePool
        | Op::GlobalMaxPool
        | Op::QGlobalAveragePool => Rule::ChannelsLast,
        Op::Unary(_) | Op::Clip | Op::Cast { .. } | Op::QTable { .. } | Op::Recode | Op::Pad { .. } => {
            Rule::Follow
        }
        Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } => Rule::Follow,
        Op::Binary(_) | Op::QBinary { .. } => Rule::FollowBroadcast,
        Op::Concat { .. } | Op::QConcat { .. } => Rule::FollowAll,
        _ => Rule::RowMajor,
    }
}

/// The order that operand `position` is wanted in when the operator runs in `layout`.
pub(super) fn of_operand(op: &Op, position: usize, layout: Layout, rank: usize) -> Layout {
    let images = matches!(rule(op), Rule::FollowAll) || position == 0;
    if layout == Layout::ChannelsLast && images && rank >= 3 {
        Layout::ChannelsLast
    } else {
        Layout::RowMajor
    }
}

/// Whether both orders of a shape are the same bytes.
pub(super) fn same_memory(logical: &[usize]) -> bool {
    logical.len() < 3 || logical[1] == 1 || logical[2..].iter().product::<usize>() == 1
}

/// A step that brings a value of shape `logical` into `layout` from the other order.
pub(super) fn convert(context: Context, layout: Layout, dtype: DType, logical: &[usize]) -> Kernel {
    let logical = logical.to_vec();
    Box::new(move |operands, out, _| {
        bring(context, layout, dtype, &logical, operands.need(0).bytes, out.bytes);
        Ok(())
    })
}

/// Brings the bytes of a value of shape `logical` into `layout` from the other order.
pub(super) fn bring(
    context: Context,
    layout: Layout,
    dtype: DType,
    logical: &[usize],
    x: &[u8],
    y: &mut [u8],
) {
    let Context { isa, threads, .. } = context;
    let (batch, channels, pixels) = (logical[0], logical[1], logical[2..].iter().product::<usize>());
    macro_rules! bring {
        ($t:ty) => {{
            let x: &[$t] = bytemuck::cast_slice(x);
            let y: &mut [$t] = bytemuck::cast_slice_mut(y);
            match layout {
                Layout::ChannelsLast => nchw_to_nhwc(isa, x, batch, channels, pixels, y, threads),
                Layout::RowMajor => nhwc_to_nchw(isa, x, batch, channels, pixels, y, threads),
            }
        }};
    }
    match dtype.size() {
        1 => bring!(u8),
        2 => bring!(u16),
        4 => bring!(u32),
        _ => bring!(u64),
    }
}

/// Pads of each axis of the model in the order in memory.
pub(super) fn pads(layout: Layout, amounts: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let mut moved = vec![(0, 0); amounts.len()];
    for (axis, &amount) in amounts.iter().enumerate() {
        moved[layout.axis(axis, amounts.len())] = amount;
    }
    moved
}

/// Whether the scales of a Q or DQ node run along an axis of the model: they cannot follow another order.
pub(super) fn is_per_axis(op: &Op, inputs: &[Option<Fact>]) -> bool {
    let many = |scale: &Fact| scale.shape.iter().product::<usize>() != 1;
    matches!(op, Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. })
        && inputs.get(1).and_then(Option::as_ref).is_some_and(many)
}
