//! Products and windows in float: convolution, matrix products, pooling. Images are channels-last here.

use std::borrow::Cow;
use std::sync::Arc;

use crate::engine::graph::fact::{Fact, operand};
use crate::engine::graph::op::{Op, Sliding};
use crate::engine::graph::shapes;
use crate::engine::kernels::Epilogue;
use crate::engine::kernels::depthwise_f32::PackedDepthwiseF32;
use crate::engine::kernels::gemm_f32::{PackedF32, matmul_f32};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::layout::transpose;
use crate::engine::kernels::{Window, pool};
use crate::engine::tensor::{DType, Element, Tensor, TensorView};

use super::fuse::Fused;
use super::step::{Context, Kernel, Operands};
use super::strided::Walk;
use super::weights::{Packed, Weights};
use super::{products, windows};

/// Most products of one MatMul: what each reads is kept in a table.
const PRODUCTS_MAX: usize = 1 << 24;

/// The geometry of a window over a channels-last value `[N, H, W, C]` or `[N, L, C]`.
pub(super) fn window_of(sliding: &Sliding, x: &[usize], kernel: &[usize]) -> Result<Window, String> {
    let spatial = &x[1..x.len() - 1];
    let w = shapes::windows(sliding, spatial, kernel)?;
    let (h, v) = match spatial.len() {
        1 => (None, 0),
        2 => (Some(0), 1),
        n => return Err(format!("{n} spatial axes are not supported, 1 or 2 are")),
    };
    let row = |list: &[usize], default: usize| h.map_or(default, |i| list[i]);
    Ok(Window {
        batch: x[0],
        in_h: row(spatial, 1),
        in_w: spatial[v],
        out_h: row(&w.out, 1),
        out_w: w.out[v],
        kernel_h: row(&w.kernel, 1),
        kernel_w: w.kernel[v],
        stride_h: row(&w.strides, 1),
        stride_w: w.strides[v],
        dilation_h: row(&w.dilations, 1),
        dilation_w: w.dilations[v],
        pad_top: row(&w.begin, 0),
        pad_left: w.begin[v],
    })
}

/// Weights `[O, I, taps…]` as `[O, taps, I]`.
pub(super) fn taps_first<'w, T: Element>(isa: Isa, weight: &'w [T], shape: &[usize]) -> Cow<'w, [T]> {
    let (out, inputs, taps) = (shape[0], shape[1], shape[2..].iter().product::<usize>());
    if taps == 1 || inputs == 1 {
        return Cow::Borrowed(weight);
    }
    Cow::Owned(transposed(isa, weight, [out, inputs, taps]))
}

/// A matrix, transposed where `turn` says so.
pub(super) fn turned<T: Element>(isa: Isa, turn: bool, x: &[T], [rows, columns]: [usize; 2]) -> Cow<'_, [T]> {
    if turn { transposed(isa, x, [1, rows, columns]).into() } else { x.into() }
}

/// `x`, `[batch, rows, columns]`, as `[batch, columns, rows]`.
pub(super) fn transposed<T: Element>(isa: Isa, x: &[T], [batch, rows, columns]: [usize; 3]) -> Vec<T> {
    let mut out = bytemuck::zeroed_vec(x.len());
    transpose(isa, x, batch, rows, columns, &mut out, 1);
    out
}

/// Whether each input channel makes one output channel of its own.
pub(super) fn is_depthwise(groups: usize, weight: &[usize]) -> bool {
    groups > 1 && weight[1] == 1 && weight[0] == groups
}

fn pack_conv(context: Context, weight: &TensorView<'_>, groups: usize) -> Packed {
    let shape = weight.shape;
    let taps: usize = shape[2..].iter().product();
    let moved = taps_first(context.isa, weight.slice::<f32>(), shape);
    if is_depthwise(groups, shape) {
        return Packed::DepthwiseFloat(PackedDepthwiseF32::pack(context.isa, &moved, groups, taps));
    }
    let out = shape[0] / groups;
    let group = |part: &[f32]| PackedF32::pack(context.isa, part, out, taps, shape[1]);
    Packed::Float(moved.chunks_exact((out * taps * shape[1]).max(1)).map(group).collect())
}

/// Whether a product packs these constant weights, whatever it multiplies them with.
pub(super) fn packs(op: &Op, weight: &Fact, third: Option<&Fact>) -> bool {
    let rank = weight.shape.len();
    weight.dtype == DType::F32
        && match op {
            Op::MatMul => rank <= 2,
            Op::Gemm { .. } => rank == 2 && gemm_packs(op, weight, third),
            _ => true,
        }
}

/// Whether a product can do more than itself ([`Fused`]), and whether a bias may be part of it. Those with packed
/// weights can; Conv and Gemm have their own bias. `constant` says whether the second operand is.
pub(super) fn epilogue_of(op: &Op, inputs: &[Option<&Fact>], constant: bool) -> Option<bool> {
    let (a, b) = (inputs.first().copied().flatten()?, inputs.get(1).copied().flatten()?);
    let packed = a.dtype == DType::F32 && constant;
    match op {
        Op::Conv { .. } => (packed && is_flat(a)).then_some(false),
        Op::MatMul => (packed && a.shape.len() >= 2 && b.shape.len() == 2).then_some(true),
        Op::Gemm { .. } => (packed && gemm_packs(op, b, operand(inputs, 2))).then_some(false),
        // A convolution lies channels-last, but a list to add along the last axis of the model does not.
        Op::QMatMul { .. } | Op::RowProduct => Some(true),
        Op::QConv { .. } => Some(false),
        _ => None,
    }
}

/// The end of a product whose own bias is given.
fn epilogue<'a>(operands: &Operands<'a>, bias: Option<&'a [f32]>, fused: Fused) -> Epilogue<'a> {
    let at = |position: Option<usize>| position.map(|i| operands.need(i).slice::<f32>());
    let Fused { activation, clamp: (lo, hi), .. } = fused;
    Epilogue { bias: bias.or(at(fused.bias)), activation, residual: at(fused.residual), lo, hi }
}

/// Conv, and what it takes over of the steps after it.
pub(super) fn conv(
    context: Context,
    weights: &Weights,
    node: usize,
    op: (&Sliding, usize),
    inputs: &[Option<&Fact>],
    fused: Fused,
) -> Result<Kernel, String> {
    let (sliding, groups) = op;
    let x = inputs[0].ok_or("input 0 is missing")?;
    let weight = inputs[1].ok_or("input 1 is missing")?;
    if !is_flat(x) || x.dtype == DType::F64 {
        return windows::conv(context, weights, node, op, (x, weight), fused.clamp);
    }
    only_f32(x)?;
    let window = window_of(sliding, &x.shape, &weight.shape[2..])?;
    let (channels, out_channels) = (weight.shape[1] * groups, weight.shape[0]);
    let packed = weights.get(node, weight, |w| pack_conv(context, &w.view(), groups));
    let threads = context.threads;
    // Without a bias of its own the third operand is the tail's.
    let has_bias = inputs.get(2).copied().flatten().is_some() && fused.residual != Some(2);
    Ok(Box::new(move |operands, mut out, _| {
        // Weights that are computed are packed anew in each run.
        let packed = match &packed {
            Some(packed) => packed.clone(),
            None => Arc::new(pack_conv(context, &operands.need(1), groups)),
        };
        let x = operands.need(0).slice::<f32>();
        let bias = has_bias.then(|| operands.need(2).slice());
        let epilogue = epilogue(operands, bias, fused);
        let out = out.slice_mut::<f32>();
        match &*packed {
            Packed::DepthwiseFloat(packed) => packed.conv(x, &window, &epilogue, out, threads),
            Packed::Float(groups) => {
                let (cin, cout) = (channels / groups.len(), out_channels / groups.len());
                for (g, packed) in groups.iter().enumerate() {
                    let bias = epilogue.bias.map(|b| &b[g * cout..(g + 1) * cout]);
                    let (epilogue, at) = (Epilogue { bias, ..epilogue }, g * cout);
                    packed.conv(x, channels, g * cin, &window, &epilogue, out, out_channels, at, threads);
                }
            }
            Packed::Int8(_) | Packed::WinogradInt8(_) | Packed::DepthwiseInt8(_) => {
                unreachable!("packed above")
            }
        }
        Ok(())
    }))
}

/// Whether a channels-last image has one or two spatial axes, as the kernels for images want it.
fn is_flat(x: &Fact) -> bool {
    x.shape.len() <= 4
}

fn only_f32(x: &Fact) -> Result<(), String> {
    match x.dtype {
        DType::F32 => Ok(()),
        other => Err(format!("{other} is not supported here, float32 is")),
    }
}

/// The two last axes of a matrix operand, one of one dimension being a row or a column.
pub(super) fn matrix(shape: &[usize], left: bool) -> (usize, usize) {
    match (shape.len(), left) {
        (1, true) => (1, shape[0]),
        (1, false) => (shape[0], 1),
        (n, _) => (shape[n - 2], shape[n - 1]),
    }
}

/// MatMul: `[…, m, k] × […, k, n]`. A constant right operand of two dimensions is packed once.
pub(super) fn matmul(
    context: Context,
    weights: &Weights,
    node: usize,
    a: &Fact,
    b: &Fact,
    fused: Fused,
) -> Result<Kernel, String> {
    if a.dtype != DType::F32 {
        return products::matmul(a, b);
    }
    let ((m, k), (_, n)) = (matrix(&a.shape, true), matrix(&b.shape, false));
    let threads = context.threads;
    let pack = |b: &Tensor| Packed::Float(vec![PackedF32::pack_matrix(context.isa, b.slice(), k, n)]);
    if b.shape.len() <= 2
        && let Some(packed) = weights.get(node, b, pack)
    {
        let rows = a.shape.iter().product::<usize>().checked_div(k).unwrap_or(0);
        return Ok(product_of(packed, rows, None, fused, threads));
    }
    let lead = |shape: &[usize]| shape[..shape.len().saturating_sub(2)].to_vec();
    let (lead_a, lead_b) = (lead(&a.shape), lead(&b.shape));
    let batch = crate::engine::graph::fact::broadcast(&lead_a, &lead_b)?;
    // For each product the matrices that it reads.
    let products: usize = batch.iter().product();
    if products > PRODUCTS_MAX {
        return Err(format!("{products} products in one operator: the limit is {PRODUCTS_MAX}"));
    }
    let mut pairs = Vec::with_capacity(products);
    Walk::broadcast(&batch, [&lead_a, &lead_b]).rows(|_, [a0, b0], length, [da, db]| {
        pairs.extend((0..length as isize).map(|i| ((a0 + da * i) as usize, (b0 + db * i) as usize)));
    });
    let isa = context.isa;
    Ok(Box::new(move |operands, mut out, _| {
        let (a, b) = (operands.need(0).slice::<f32>(), operands.need(1).slice::<f32>());
        let sizes = (pairs.len(), m, k, n);
        matmul_f32(isa, a, b, sizes, &|i| pairs[i], out.slice_mut::<f32>(), threads);
        Ok(())
    }))
}

/// A product with packed weights.
fn product_of(
    packed: Arc<Packed>,
    rows: usize,
    bias: Option<Vec<f32>>,
    fused: Fused,
    threads: usize,
) -> Kernel {
    Box::new(move |operands, mut out, _| {
        let Packed::Float(groups) = &*packed else { unreachable!("packed as floats") };
        let a = operands.need(0).slice::<f32>();
        let epilogue = epilogue(operands, bias.as_deref(), fused);
        groups[0].matmul(a, rows, &epilogue, out.slice_mut::<f32>(), threads);
        Ok(())
    })
}

/// Whether a Gemm over constant weights is a product with packed weights and a bias along its columns.
fn gemm_packs(op: &Op, weight: &Fact, c: Option<&Fact>) -> bool {
    let Op::Gemm { alpha: 1.0, beta, trans_a: false, trans_b } = *op else { return false };
    let n = weight.shape[usize::from(!trans_b)];
    let is_row = |c: &Fact| c.shape.last() == Some(&n) && c.shape.iter().product::<usize>() == n;
    c.is_none_or(|c| beta == 1.0 && c.constant.is_some() && is_row(c))
}

/// Gemm: `alpha · a' · b' + beta · c`.
pub(super) fn gemm(
    context: Context,
    weights: &Weights,
    node: usize,
    op: &Op,
    inputs: &[Option<&Fact>],
    fused: Fused,
) -> Result<Kernel, String> {
    let Op::Gemm { alpha, beta, trans_a, trans_b } = *op else { unreachable!("called for Gemm") };
    let (a, b) = (inputs[0].ok_or("input 0 is missing")?, inputs[1].ok_or("input 1 is missing")?);
    if a.dtype != DType::F32 {
        return products::gemm(op, a, b, inputs.get(2).copied().flatten());
    }
    let (m, k) = if trans_a { (a.shape[1], a.shape[0]) } else { (a.shape[0], a.shape[1]) };
    let n = if trans_b { b.shape[0] } else { b.shape[1] };
    let threads = context.threads;
    let c = inputs.get(2).copied().flatten().filter(|_| fused.residual != Some(2));
    let pack = |b: &Tensor| {
        let matrix = turned(context.isa, trans_b, b.slice::<f32>(), [n, k]);
        Packed::Float(vec![PackedF32::pack_matrix(context.isa, &matrix, k, n)])
    };
    if gemm_packs(op, b, c)
        && let Some(packed) = weights.get(node, b, pack)
    {
        let bias = c.and_then(|c| c.constant.as_ref()).map(|c| c.slice::<f32>().to_vec());
        return Ok(product_of(packed, m, bias, fused, threads));
    }
    let walk = c.map(|c| Walk::broadcast(&[m, n], [&c.shape]));
    let isa = context.isa;
    Ok(Box::new(move |operands, mut out, _| {
        let (a, b) = (operands.need(0).slice::<f32>(), operands.need(1).slice::<f32>());
        let (a, b) = (turned(isa, trans_a, a, [k, m]), turned(isa, trans_b, b, [n, k]));
        let out = out.slice_mut::<f32>();
        matmul_f32(isa, &a, &b, (1, m, k, n), &|_| (0, 0), out, threads);
        out.iter_mut().for_each(|y| *y *= alpha);
        if let Some(walk) = &walk {
            let c = operands.need(2).slice::<f32>();
            walk.rows(|at, [start], length, [step]| {
                for i in 0..length {
                    out[at + i] += beta * c[(start + step * i as isize) as usize];
                }
            });
        }
        Ok(())
    }))
}

/// MaxPool of floats or codes.
pub(super) fn max_pool(context: Context, sliding: &Sliding, x: &Fact) -> Result<Kernel, String> {
    if !is_flat(x) || !matches!(x.dtype, DType::F32 | DType::U8) {
        return windows::max_pool(sliding, x);
    }
    let window = window_of(sliding, &x.shape, &sliding.kernel)?;
    let channels = x.shape[x.shape.len() - 1];
    let Context { isa, threads, .. } = context;
    match x.dtype {
        DType::F32 => Ok(Box::new(move |operands, mut out, _| {
            pool::max_pool_f32(isa, operands.need(0).slice(), channels, &window, out.slice_mut(), threads);
            Ok(())
        })),
        DType::U8 => Ok(Box::new(move |operands, mut out, _| {
            pool::max_pool_u8(isa, operands.need(0).slice(), channels, &window, out.slice_mut(), threads);
            Ok(())
        })),
        other => Err(format!("MaxPool of {other} is not supported")),
    }
}

/// AveragePool.
pub(super) fn average_pool(
    context: Context,
    sliding: &Sliding,
    count_include_pad: bool,
    x: &Fact,
) -> Result<Kernel, String> {
    // With `ceil_mode` a window may reach beyond the pads, and what is there does not count.
    if !is_flat(x) || x.dtype == DType::F64 || (sliding.ceil_mode && count_include_pad) {
        return windows::average_pool(sliding, count_include_pad, x);
    }
    only_f32(x)?;
    let window = window_of(sliding, &x.shape, &sliding.kernel)?;
    let channels = x.shape[x.shape.len() - 1];
    let Context { isa, threads, .. } = context;
    Ok(Box::new(move |operands, mut out, _| {
        let x = operands.need(0).slice();
        pool::avg_pool_f32(isa, x, channels, &window, count_include_pad, out.slice_mut(), threads);
        Ok(())
    }))
}

/// GlobalAveragePool or GlobalMaxPool of a channels-last value.
pub(super) fn global_pool(context: Context, max: bool, x: &Fact) -> Result<Kernel, String> {
    let (batch, channels) = (x.shape[0], x.shape[x.shape.len() - 1]);
    let pixels: usize = x.shape[1..x.shape.len() - 1].iter().product();
    let Context { isa, threads, .. } = context;
    if !matches!(x.dtype, DType::F32 | DType::U8) {
        let sliding = Sliding { kernel: x.shape[1..x.shape.len() - 1].to_vec(), ..Sliding::default() };
        return if max { windows::max_pool(&sliding, x) } else { windows::average_pool(&sliding, false, x) };
    }
    Ok(match (x.dtype, max) {
        (DType::F32, false) => Box::new(move |operands, mut out, _| {
            let x = operands.need(0).slice();
            pool::global_avg_pool_f32(isa, x, batch, pixels, channels, out.slice_mut(), threads);
            Ok(())
        }),
        (DType::F32, true) => Box::new(move |operands, mut out, _| {
            let x = operands.need(0).slice();
            pool::global_max_pool_f32(isa, x, batch, pixels, channels, out.slice_mut(), threads);
            Ok(())
        }),
        (DType::U8, true) => Box::new(move |operands, mut out, _| {
            let x = operands.need(0).slice();
            pool::global_max_pool_u8(isa, x, batch, pixels, channels, out.slice_mut(), threads);
            Ok(())
        }),
        (other, _) => return Err(format!("a global pool of {other} is not supported")),
    })
}
