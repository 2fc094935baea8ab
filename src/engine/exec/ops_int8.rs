//! Operators on codes. Parameters come from the values; accumulators are exact and never leave the registers.
//!
//! The numeric contract: `q = saturate(round_half_even(acc · m) + zero_point)` with `m = (s_x · s_w) / s_y` in f32.

use crate::engine::graph::fact::Fact;
use crate::engine::graph::op::{Binary, Clamp, Op, Sliding};
use crate::engine::graph::{Graph, Node};
use crate::engine::kernels::depthwise::PackedDepthwise;
use crate::engine::kernels::gemm_int8::PackedInt8;
use crate::engine::kernels::pool;
use crate::engine::kernels::{Dequant, IntOutput, PoolScales, Requant, eltwise, requant};
use crate::engine::tensor::linear::{self, Spread};
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor, TensorViewMut};

use super::ops_product::{is_depthwise, taps_first, window_of};
use super::step::{Context, Kernel, Operands};
use super::strided::Walk;
use super::weights::{Packed, Weights};

/// How accumulators become results, owned.
struct Epilogue {
    /// `bias − zero_point_x · Σ codes`, in units of the accumulator.
    bias: Vec<i32>,
    /// `s_x · s_w / s_y`, or `s_x · s_w` where the result is real.
    factor: Vec<f32>,
    /// Zero point of the result; `None` where it is real.
    zero_point: Option<u8>,
    clamp: Clamp,
}

impl Epilogue {
    fn new(graph: &Graph, node: &Node, column_sums: &[i32], clamp: Clamp) -> Result<Epilogue, String> {
        let params = |index: usize| {
            let id = node.input(index).ok_or_else(|| format!("input {index} is missing"))?;
            graph.value(id).qparams.as_ref().ok_or_else(|| format!("input {index} has no scale"))
        };
        let (x, w) = (params(0)?, params(1)?);
        let y = graph.value(node.outputs[0]).qparams.as_ref();
        let channels = column_sums.len();
        let bias = match node.input(2).and_then(|id| graph.constant(id)) {
            Some(bias) => bias.slice::<i32>().to_vec(),
            None => vec![0; channels],
        };
        if bias.len() != channels {
            return Err(format!("the bias has {} values for {channels} channels", bias.len()));
        }
        let zero = x.zero_point[0];
        let bias = bias.iter().zip(column_sums).map(|(b, s)| b.wrapping_sub(s.wrapping_mul(zero))).collect();
        let real = |n: usize| x.scale[0] * w.scale[if w.scale.len() == 1 { 0 } else { n }];
        let factor = (0..channels).map(|n| y.map_or(real(n), |y| real(n) / y.scale[0])).collect();
        Ok(Epilogue { bias, factor, zero_point: y.map(|y| y.zero_point[0] as u8), clamp })
    }

    /// Runs `f` on the part of the channels that starts at `from` and has `count`.
    fn apply(
        &self,
        from: usize,
        count: usize,
        out: &mut TensorViewMut<'_>,
        f: impl FnOnce(IntOutput<'_, '_>),
    ) {
        let (bias, factor) = (&self.bias[from..from + count], &self.factor[from..from + count]);
        match self.zero_point {
            Some(zero_point) => {
                let (lo, hi) = self.clamp;
                let requant = Requant { bias, multiplier: factor, zero_point, lo, hi, table: None };
                f(IntOutput::U8(out.slice_mut::<u8>(), &requant));
            }
            None => f(IntOutput::F32(out.slice_mut::<f32>(), &Dequant { bias, scale: factor })),
        }
    }
}

/// QConv over channels-last codes.
pub(super) fn conv(
    context: Context,
    weights: &Weights,
    (index, node): (usize, &Node),
    graph: &Graph,
    op: (&Sliding, usize, Clamp),
    inputs: &[Option<&Fact>],
) -> Result<Kernel, String> {
    let (sliding, groups, clamp) = op;
    let x = inputs[0].ok_or("input 0 is missing")?;
    let weight = inputs[1].and_then(|w| w.constant.clone()).ok_or("the weights are no constant")?;
    let window = window_of(sliding, &x.shape, &weight.shape()[2..])?;
    let (channels, out_channels) = (weight.shape()[1] * groups, weight.shape()[0]);
    let packed = weights.get(index, || pack_conv(context, &weight, groups));
    let epilogue = Epilogue::new(graph, node, &packed.column_sums(), clamp)?;
    let pad = zero_point(graph, node, 0)?;
    let threads = context.threads;
    Ok(Box::new(move |operands, mut out, _| {
        let x = operands.need(0).slice::<u8>();
        match &*packed {
            Packed::DepthwiseInt8(packed) => {
                epilogue.apply(0, out_channels, &mut out, |out| packed.conv(x, &window, pad, out, threads));
            }
            Packed::Int8(groups) => {
                let (cin, cout) = (channels / groups.len(), out_channels / groups.len());
                for (g, packed) in groups.iter().enumerate() {
                    epilogue.apply(g * cout, cout, &mut out, |out| {
                        packed.conv(x, channels, g * cin, &window, pad, out, out_channels, g * cout, threads);
                    });
                }
            }
            Packed::Float(_) | Packed::DepthwiseFloat(_) => unreachable!("packed as codes"),
        }
        Ok(())
    }))
}

fn pack_conv(context: Context, weight: &Tensor, groups: usize) -> Packed {
    let shape = weight.shape();
    let taps: usize = shape[2..].iter().product();
    let moved = taps_first(weight.slice::<i8>(), shape);
    if is_depthwise(groups, shape) {
        return Packed::DepthwiseInt8(PackedDepthwise::pack(context.isa, &moved, groups, taps));
    }
    let out = shape[0] / groups;
    let group = |part: &[i8]| PackedInt8::pack(context.isa, part, out, taps, shape[1]);
    Packed::Int8(moved.chunks_exact((out * taps * shape[1]).max(1)).map(group).collect())
}

/// QMatMul: codes `[…, k]` by constant codes `[k, n]`, or `[n, k]` where `trans_b`.
pub(super) fn matmul(
    context: Context,
    weights: &Weights,
    (index, node): (usize, &Node),
    graph: &Graph,
    (trans_b, clamp): (bool, Clamp),
    inputs: &[Option<&Fact>],
) -> Result<Kernel, String> {
    let x = inputs[0].ok_or("input 0 is missing")?;
    let weight = inputs[1].and_then(|w| w.constant.clone()).ok_or("the weights are no constant")?;
    let (n, k) = match trans_b {
        true => (weight.shape()[0], weight.shape()[1]),
        false => (weight.shape()[1], weight.shape()[0]),
    };
    let rows = x.shape.iter().product::<usize>().checked_div(k).unwrap_or(0);
    let packed = weights.get(index, || {
        let codes = weight.slice::<i8>();
        let rows_of_b: Vec<i8> = match trans_b {
            true => codes.to_vec(),
            false => (0..n * k).map(|i| codes[(i % k) * n + i / k]).collect(),
        };
        Packed::Int8(vec![PackedInt8::pack(context.isa, &rows_of_b, n, 1, k)])
    });
    let epilogue = Epilogue::new(graph, node, &packed.column_sums(), clamp)?;
    let threads = context.threads;
    Ok(Box::new(move |operands, mut out, _| {
        let Packed::Int8(groups) = &*packed else { unreachable!("packed as codes") };
        let a = operands.need(0).slice::<u8>();
        epilogue.apply(0, n, &mut out, |out| groups[0].matmul(a, rows, out, threads));
        Ok(())
    }))
}

fn params(graph: &Graph, id: crate::engine::graph::ValueId) -> Result<(f32, u8), String> {
    let value = graph.value(id);
    let q = value.qparams.as_ref().ok_or_else(|| format!("value `{}` has no scale", value.name))?;
    Ok((q.scale[0], q.zero_point[0] as u8))
}

fn operand_params(graph: &Graph, node: &Node, index: usize) -> Result<(f32, u8), String> {
    params(graph, node.input(index).ok_or_else(|| format!("input {index} is missing"))?)
}

fn zero_point(graph: &Graph, node: &Node, index: usize) -> Result<u8, String> {
    Ok(operand_params(graph, node, index)?.1)
}

/// QAdd and QMul: exactly what DequantizeLinear, the operator and QuantizeLinear give.
pub(super) fn binary(
    context: Context,
    node: &Node,
    graph: &Graph,
    (op, clamp): (Binary, Clamp),
    inputs: &[Option<&Fact>],
    out: &[usize],
) -> Result<Kernel, String> {
    let (a, b) = (inputs[0].ok_or("input 0 is missing")?, inputs[1].ok_or("input 1 is missing")?);
    let ((sa, za), (sb, zb)) = (operand_params(graph, node, 0)?, operand_params(graph, node, 1)?);
    let (sy, zy) = params(graph, node.outputs[0])?;
    let (lo, hi) = clamp;
    let Context { isa, threads } = context;
    if a.shape == b.shape {
        let f = if op == Binary::Add { eltwise::qadd } else { eltwise::qmul };
        return Ok(Box::new(move |operands, mut out, _| {
            let (a, b) = (operands.need(0).slice(), operands.need(1).slice());
            f(isa, a, sa, za, b, sb, zb, sy, zy, lo, hi, out.slice_mut(), threads);
            Ok(())
        }));
    }
    let walk = Walk::broadcast(out, [&a.shape, &b.shape]);
    let y = QuantParams::per_tensor(sy, zy.into(), DType::U8);
    Ok(Box::new(move |operands, mut out, _| {
        let (a, b) = (operands.need(0).slice::<u8>(), operands.need(1).slice::<u8>());
        let out = out.slice_mut::<u8>();
        let real = |q: u8, s: f32, z: u8| (i32::from(q) - i32::from(z)) as f32 * s;
        walk.rows(|at, [a0, b0], n, [da, db]| {
            for i in 0..n {
                let x = real(a[a0 as usize + i * da as usize], sa, za);
                let w = real(b[b0 as usize + i * db as usize], sb, zb);
                let exact = if op == Binary::Add { x + w } else { x * w };
                out[at + i] = (y.quantize(exact, 0) as u8).clamp(lo, hi);
            }
        });
        Ok(())
    }))
}

/// A function of one code.
pub(super) fn table(context: Context, table: &[u8; 256]) -> Kernel {
    let (isa, table) = (context.isa, *table);
    Box::new(move |operands, mut out, _| {
        eltwise::apply_table(isa, operands.need(0).slice(), &table, out.slice_mut());
        Ok(())
    })
}

/// QAveragePool and QGlobalAveragePool of channels-last codes.
pub(super) fn average_pool(
    context: Context,
    node: &Node,
    graph: &Graph,
    op: &Op,
    x: &Fact,
) -> Result<Kernel, String> {
    let ((x_scale, x_zero_point), (y_scale, y_zero_point)) =
        (operand_params(graph, node, 0)?, params(graph, node.outputs[0])?);
    let scales = PoolScales { x_scale, x_zero_point, y_scale, y_zero_point };
    let channels = x.shape[x.shape.len() - 1];
    let Context { isa, threads } = context;
    if let Op::QAveragePool { sliding, count_include_pad } = op {
        let (window, include) = (window_of(sliding, &x.shape, &sliding.kernel)?, *count_include_pad);
        return Ok(Box::new(move |operands, mut out, _| {
            let x = operands.need(0).slice();
            pool::avg_pool_u8(isa, x, scales, channels, &window, include, out.slice_mut(), threads);
            Ok(())
        }));
    }
    let (batch, pixels) = (x.shape[0], x.shape[1..x.shape.len() - 1].iter().product());
    Ok(Box::new(move |operands, mut out, _| {
        let x = operands.need(0).slice();
        pool::global_avg_pool_u8(isa, x, scales, batch, pixels, channels, out.slice_mut(), threads);
        Ok(())
    }))
}

/// QConcat on `axis`: each operand is brought to the parameters of the result by a table.
pub(super) fn concat(
    node: &Node,
    graph: &Graph,
    axis: usize,
    inputs: &[Option<&Fact>],
    out: &[usize],
) -> Result<Kernel, String> {
    let (sy, zy) = params(graph, node.outputs[0])?;
    let y = QuantParams::per_tensor(sy, zy.into(), DType::U8);
    let mut tables = Vec::new();
    for index in 0..inputs.len() {
        let (s, z) = operand_params(graph, node, index)?;
        let x = QuantParams::per_tensor(s, z.into(), DType::U8);
        let table: [u8; 256] = std::array::from_fn(|q| y.quantize(x.dequantize(q as i32, 0), 0) as u8);
        tables.push(table);
    }
    let after: usize = out[axis + 1..].iter().product();
    let before: usize = out[..axis].iter().product();
    let blocks: Vec<usize> = inputs.iter().map(|x| x.map_or(0, |x| x.shape[axis] * after)).collect();
    let row: usize = blocks.iter().sum();
    Ok(Box::new(move |operands, mut out, _| {
        let out = out.slice_mut::<u8>();
        let mut column = 0;
        for (index, (&block, table)) in blocks.iter().zip(&tables).enumerate() {
            let from = operands.need(index).slice::<u8>();
            for i in 0..before {
                let row = &mut out[i * row + column..i * row + column + block];
                let from = &from[i * block..(i + 1) * block];
                row.iter_mut().zip(from).for_each(|(y, &x)| *y = table[usize::from(x)]);
            }
            column += block;
        }
        Ok(())
    }))
}

/// QuantizeLinear: per tensor to `u8` by the kernel, else by the definition.
pub(super) fn quantize(
    context: Context,
    axis: i64,
    inputs: &[Option<&Fact>],
    to: DType,
) -> Result<Kernel, String> {
    let x = inputs[0].ok_or("input 0 is missing")?;
    if !matches!(x.dtype, DType::F32 | DType::I32) {
        return Err(format!("QuantizeLinear of {} is not supported", x.dtype));
    }
    let spread = granularity(axis, inputs, x)?;
    let Context { isa, threads } = context;
    if let Some(q) = constant_params(axis, inputs, x.shape.len(), to)?
        && (q.axis, to, x.dtype) == (None, DType::U8, DType::F32)
    {
        let (scale, zero_point) = (q.scale[0], q.zero_point[0] as u8);
        return Ok(Box::new(move |operands, mut out, _| {
            requant::quantize(isa, operands.need(0).slice(), scale, zero_point, out.slice_mut(), threads);
            Ok(())
        }));
    }
    Ok(Box::new(move |operands, out, _| {
        let x = operands.need(0);
        let x: Vec<f32> = match x.dtype {
            DType::F32 => x.slice::<f32>().to_vec(),
            _ => x.slice::<i32>().iter().map(|&x| x as f32).collect(),
        };
        let (scale, zero_point) = params_at_run(operands)?;
        let codes = linear::quantize(&x, scale, &zero_point, spread, out.dtype);
        let made = linear::tensor_of_codes(out.dtype, out.shape, &codes);
        out.bytes.copy_from_slice(made.view().bytes);
        Ok(())
    }))
}

/// DequantizeLinear: of `u8` per tensor by the kernel, else by the definition.
pub(super) fn dequantize(context: Context, axis: i64, inputs: &[Option<&Fact>]) -> Result<Kernel, String> {
    let x = inputs[0].ok_or("input 0 is missing")?;
    let spread = granularity(axis, inputs, x)?;
    let Context { isa, threads } = context;
    if let Some(q) = constant_params(axis, inputs, x.shape.len(), x.dtype)?
        && (q.axis, x.dtype) == (None, DType::U8)
    {
        let (scale, zero_point) = (q.scale[0], q.zero_point[0] as u8);
        return Ok(Box::new(move |operands, mut out, _| {
            requant::dequantize(isa, operands.need(0).slice(), scale, zero_point, out.slice_mut(), threads);
            Ok(())
        }));
    }
    Ok(Box::new(move |operands, mut out, _| {
        let (scale, zero_point) = params_at_run(operands)?;
        let real = linear::dequantize(&linear::codes(&operands.need(0))?, scale, &zero_point, spread);
        out.slice_mut::<f32>().copy_from_slice(&real);
        Ok(())
    }))
}

/// Which scale each element has.
fn granularity(axis: i64, inputs: &[Option<&Fact>], x: &Fact) -> Result<Spread, String> {
    let scale = inputs.get(1).copied().flatten().ok_or("input 1 is missing")?;
    if scale.dtype != DType::F32 {
        return Err(format!("a scale of type {} is not supported", scale.dtype));
    }
    if let Some(zero_point) = inputs.get(2).copied().flatten()
        && zero_point.shape.iter().product::<usize>() != scale.shape.iter().product::<usize>()
    {
        return Err(format!("scales {:?} and zero points {:?}", scale.shape, zero_point.shape));
    }
    Spread::new(&x.shape, &scale.shape, axis, 0)
}

fn params_at_run<'a>(operands: &Operands<'a>) -> Result<(&'a [f32], Vec<i32>), String> {
    let zero_point = operands.get(2).map(|z| linear::codes(&z)).transpose()?.unwrap_or_default();
    Ok((operands.need(1).slice::<f32>(), zero_point))
}

/// Scale and zero point of a Q or DQ node where they are constants.
fn constant_params(
    axis: i64,
    inputs: &[Option<&Fact>],
    rank: usize,
    codes: DType,
) -> Result<Option<QuantParams>, String> {
    let constant = |index: usize| inputs.get(index).copied().flatten().map(|f| f.constant.as_deref());
    match (constant(1).flatten(), constant(2)) {
        (None, _) | (_, Some(None)) => Ok(None),
        (Some(scale), zero_point) => linear_params(scale, zero_point.flatten(), axis, rank, codes).map(Some),
    }
}

/// Parameters from the constants of a Q or DQ node over a value of `rank` dimensions.
///
/// # Errors
/// A sentence where they contradict each other.
pub(super) fn linear_params(
    scale: &Tensor,
    zero_point: Option<&Tensor>,
    axis: i64,
    rank: usize,
    codes: DType,
) -> Result<QuantParams, String> {
    if scale.dtype() != DType::F32 || scale.shape().len() > 1 {
        return Err(format!("a scale of {scale:?} is not supported: a float32 scalar or list is"));
    }
    let scales = scale.slice::<f32>().to_vec();
    if let Some(bad) = scales.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return Err(format!("a scale is {bad}"));
    }
    let zero_points: Vec<i32> = match zero_point {
        None => vec![0; scales.len()],
        Some(z) if z.dtype() != codes => {
            return Err(format!("the zero point is {}, the codes {codes}", z.dtype()));
        }
        Some(z) => z.to_i64().into_iter().map(|z| z as i32).collect(),
    };
    if zero_points.len() != scales.len() {
        return Err(format!("{} scales and {} zero points", scales.len(), zero_points.len()));
    }
    let axis = match scales.len() {
        0 => return Err("the scale is empty".to_owned()),
        1 => None,
        _ => Some(crate::engine::graph::fact::axis_index(axis, rank, false)?),
    };
    Ok(QuantParams { scale: scales, zero_point: zero_points, axis, dtype: codes })
}
