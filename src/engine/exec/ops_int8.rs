//! Reals to codes and back, and operators on codes but for products. Parameters come from the values.

use crate::engine::graph::fact::Fact;
use crate::engine::graph::op::{Binary, Clamp, Op};
use crate::engine::graph::{Graph, Node};
use crate::engine::kernels::parallel::{parts, split_rows};
use crate::engine::kernels::pool;
use crate::engine::kernels::{PoolScales, eltwise, requant};
use crate::engine::tensor::linear::{self, Spread};
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor};

use super::ops_product::window_of;
use super::step::{Context, Kernel, Operands};
use super::strided::Walk;

/// The other of `i8` and `u8`: codes and zero point 128 more or less.
pub(super) fn recode(context: Context) -> Kernel {
    let isa = context.isa;
    Box::new(move |operands, out, _| {
        eltwise::recode(isa, operands.need(0).bytes, out.bytes);
        Ok(())
    })
}

fn params(graph: &Graph, id: crate::engine::graph::ValueId) -> Result<(f32, u8), String> {
    let value = graph.value(id);
    let q = value.qparams.as_ref().ok_or_else(|| format!("value `{}` has no scale", value.name))?;
    Ok((q.scale[0], q.zero_point[0] as u8))
}

fn operand_params(graph: &Graph, node: &Node, index: usize) -> Result<(f32, u8), String> {
    params(graph, node.input(index).ok_or_else(|| format!("input {index} is missing"))?)
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
    let Context { isa, threads, .. } = context;
    if a.shape == b.shape {
        let f = if op == Binary::Add { eltwise::qadd } else { eltwise::qmul };
        return Ok(Box::new(move |operands, mut out, _| {
            let (a, b) = (operands.need(0).slice(), operands.need(1).slice());
            f(isa, a, sa, za, b, sb, zb, sy, zy, lo, hi, out.slice_mut(), threads);
            Ok(())
        }));
    }
    if let Some((channels, first)) = by_channel(&a.shape, &b.shape) {
        let f = if op == Binary::Add { eltwise::qadd_channels } else { eltwise::qmul_channels };
        // Sums and products do not care which operand comes first.
        let ((big, sb, zb), (small, ss, zs)) =
            if first { ((0, sa, za), (1, sb, zb)) } else { ((1, sb, zb), (0, sa, za)) };
        return Ok(Box::new(move |operands, mut out, _| {
            let (a, b) = (operands.need(big).slice(), operands.need(small).slice());
            f(isa, a, sb, zb, b, ss, zs, sy, zy, lo, hi, channels, out.slice_mut(), threads);
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

/// Whether one operand is `[n, …, channels]` and the other `[n, 1…, channels]`: the number of channels, and whether the
/// first is the large one.
fn by_channel(a: &[usize], b: &[usize]) -> Option<(usize, bool)> {
    let spreads = |large: &[usize], small: &[usize]| {
        let rank = large.len();
        rank > 2
            && small.len() == rank
            && (small[0], small[rank - 1]) == (large[0], large[rank - 1])
            && small[1..rank - 1].iter().all(|&d| d == 1)
    };
    let channels = *a.last()?;
    match (spreads(a, b), spreads(b, a)) {
        (true, _) => Some((channels, true)),
        (_, true) => Some((channels, false)),
        _ => None,
    }
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
    let Context { isa, threads, .. } = context;
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
    context: Context,
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
        tables.push(((s, z) != (sy, zy)).then_some(table));
    }
    let after: usize = out[axis + 1..].iter().product();
    let before: usize = out[..axis].iter().product();
    let blocks: Vec<usize> = inputs.iter().map(|x| x.map_or(0, |x| x.shape[axis] * after)).collect();
    let row: usize = blocks.iter().sum();
    let Context { isa, threads, .. } = context;
    Ok(Box::new(move |operands, mut out, _| {
        let parts = parts(threads, before * row / 8);
        split_rows(out.slice_mut::<u8>(), 0..before, row, 1, parts, &|range, out: &mut [u8]| {
            let mut column = 0;
            for (index, (&block, table)) in blocks.iter().zip(&tables).enumerate() {
                let from = &operands.need(index).slice::<u8>()[range.start * block..range.end * block];
                match table {
                    None => {
                        for (row, from) in
                            out.chunks_exact_mut(row.max(1)).zip(from.chunks_exact(block.max(1)))
                        {
                            row[column..column + block].copy_from_slice(from);
                        }
                    }
                    Some(table) => {
                        eltwise::apply_table_to_rows(isa, from, block, table, &mut out[column..], row)
                    }
                }
                column += block;
            }
        });
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
    let Context { isa, threads, .. } = context;
    if let Some(q) = constant_params(axis, inputs, x.shape.len(), to)?
        && (q.axis, to, x.dtype) == (None, DType::U16, DType::F32)
    {
        let (scale, zero_point) = (q.scale[0], q.zero_point[0] as u16);
        return Ok(Box::new(move |operands, mut out, _| {
            requant::quantize_u16(isa, operands.need(0).slice(), scale, zero_point, out.slice_mut(), threads);
            Ok(())
        }));
    }
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
    let Context { isa, threads, .. } = context;
    if let Some(q) = constant_params(axis, inputs, x.shape.len(), x.dtype)?
        && (q.axis, x.dtype) == (None, DType::U16)
    {
        let (scale, zero_point) = (q.scale[0], q.zero_point[0] as u16);
        return Ok(Box::new(move |operands, mut out, _| {
            requant::dequantize_u16(
                isa,
                operands.need(0).slice(),
                scale,
                zero_point,
                out.slice_mut(),
                threads,
            );
            Ok(())
        }));
    }
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
