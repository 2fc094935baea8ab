//! Shape and type inference: what an operator makes of operands whose shapes are numbers.

use crate::engine::tensor::{DType, element_count};

use super::fact::{Fact, Results, Unfit, axis_index, broadcast, constant, constant_ints, needed, operand};
use super::op::{AutoPad, Op, Sliding};

/// Most bytes that one value may have: beyond it a shape is taken for a mistake or an attack.
pub const VALUE_BYTES_MAX: usize = 1 << 34;
/// Most dimensions of a value. Loops over strides keep an index for each, and Tile walks twice as many.
pub const RANK_MAX: usize = 32;
/// Longest window, step, distance and pad: sums and products of two of them, and of one and a length, do not overflow.
const WINDOW_MAX: usize = 1 << 28;
/// Most elements that Pad adds to or takes from an axis, likewise.
const PAD_MAX: i64 = 1 << 40;

/// Bytes of a value of this type and shape.
///
/// # Errors
/// A sentence where it is over [`VALUE_BYTES_MAX`] or [`RANK_MAX`].
pub fn bounded(dtype: DType, shape: &[usize]) -> Result<usize, String> {
    if shape.len() > RANK_MAX {
        return Err(format!("a value of {} dimensions: the limit is {RANK_MAX}", shape.len()));
    }
    let nonzero: Vec<usize> = shape.iter().map(|&d| d.max(1)).collect();
    let bytes = element_count(&nonzero).and_then(|n| n.checked_mul(dtype.size()));
    match bytes {
        Some(bytes) if bytes <= VALUE_BYTES_MAX => Ok(if shape.contains(&0) { 0 } else { bytes }),
        _ => Err(format!("a value of shape {shape:?} is over the limit of {VALUE_BYTES_MAX} bytes")),
    }
}

/// A [`Sliding`] with every list filled in, for given spatial lengths.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// Window size a spatial axis.
    pub kernel: Vec<usize>,
    /// Step a spatial axis.
    pub strides: Vec<usize>,
    /// Distance between taps a spatial axis.
    pub dilations: Vec<usize>,
    /// Pads before the first element.
    pub begin: Vec<usize>,
    /// Pads after the last element.
    pub end: Vec<usize>,
    /// Number of windows a spatial axis.
    pub out: Vec<usize>,
}

/// Fills in the defaults of a [`Sliding`] and counts the windows.
///
/// # Errors
/// A sentence where a list has another length than there are axes, or the window does not fit.
pub fn windows(sliding: &Sliding, spatial: &[usize], kernel: &[usize]) -> Result<Windows, String> {
    let axes = spatial.len();
    let filled = |name: &str, given: &[usize], default: usize, want: usize| match given.len() {
        0 => Ok(vec![default; want]),
        n if n == want => Ok(given.to_vec()),
        n => Err(format!("`{name}` has {n} entries for {axes} spatial axes")),
    };
    if kernel.len() != axes {
        return Err(format!("the kernel has {} axes, the input {axes} spatial ones", kernel.len()));
    }
    let strides = filled("strides", &sliding.strides, 1, axes)?;
    let dilations = filled("dilations", &sliding.dilations, 1, axes)?;
    let mut pads = filled("pads", &sliding.pads, 0, 2 * axes)?;
    let mut out = Vec::with_capacity(axes);
    let long = [kernel, &strides, &dilations, &pads].into_iter().flatten().find(|&&n| n > WINDOW_MAX);
    if let Some(long) = long {
        return Err(format!("{long} in a window, its step or its pads: the limit is {WINDOW_MAX}"));
    }
    if let Some(axis) = (0..axes).find(|&i| kernel[i] == 0 || strides[i] == 0) {
        return Err(format!("the window of axis {axis} or its step is 0"));
    }
    for axis in 0..axes {
        let (input, stride) = (spatial[axis], strides[axis]);
        let overflow = || format!("the window of axis {axis} overflows");
        let reach = dilations[axis]
            .checked_mul(kernel[axis] - 1)
            .and_then(|r| r.checked_add(1))
            .filter(|&r| r <= WINDOW_MAX)
            .ok_or_else(overflow)?;
        if sliding.auto_pad != AutoPad::Explicit {
            let count = input.div_ceil(stride);
            let needed = count.saturating_sub(1) * stride + reach;
            let total = needed.saturating_sub(input);
            let small = total / 2;
            let upper = sliding.auto_pad == AutoPad::SameUpper;
            pads[axis] = if upper { small } else { total - small };
            pads[axes + axis] = total - pads[axis];
            out.push(count);
            continue;
        }
        let (begin, end) = (pads[axis], pads[axes + axis]);
        let padded = input.checked_add(begin).and_then(|p| p.checked_add(end)).ok_or_else(overflow)?;
        let room = padded.checked_sub(reach).ok_or_else(|| {
            format!(
                "a window of {reach} does not fit axis {axis} of length {input} with pads {begin} and {end}"
            )
        })?;
        let mut count = if sliding.ceil_mode { room.div_ceil(stride) } else { room / stride } + 1;
        // A window that would start in the end pad does not count (ONNX, MaxPool and AveragePool).
        if sliding.ceil_mode && (count - 1) * stride >= input + begin {
            count -= 1;
        }
        out.push(count);
    }
    let end = pads.split_off(axes);
    Ok(Windows { kernel: kernel.to_vec(), strides, dilations, begin: pads, end, out })
}

/// The ranges that Slice takes: for each axis of the input start, step and count.
pub fn slice_ranges(shape: &[usize], inputs: &[Option<&Fact>]) -> Result<Vec<(usize, i64, usize)>, Unfit> {
    let starts = constant_ints(inputs, 1, "starts")?;
    let ends = constant_ints(inputs, 2, "ends")?;
    let axes = match operand(inputs, 3) {
        Some(_) => constant_ints(inputs, 3, "axes")?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match operand(inputs, 4) {
        Some(_) => constant_ints(inputs, 4, "steps")?,
        None => vec![1; starts.len()],
    };
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    let mut ranges: Vec<(usize, i64, usize)> = shape.iter().map(|&d| (0, 1, d)).collect();
    for i in 0..starts.len() {
        let axis = axis_index(axes[i], shape.len(), false)?;
        ranges[axis] = slice_range(shape[axis] as i64, starts[i], ends[i], steps[i])?;
    }
    Ok(ranges)
}

fn slice_range(length: i64, start: i64, end: i64, step: i64) -> Result<(usize, i64, usize), String> {
    let from_front = |i: i64| if i < 0 { i.saturating_add(length) } else { i };
    let (start, end) = (from_front(start), from_front(end));
    let count = |distance: i64, step: i64| if distance > 0 { (distance + step - 1) / step } else { 0 };
    match step {
        0 => Err("a step of Slice is 0".to_owned()),
        i64::MIN => Err("a step of Slice is out of range".to_owned()),
        step if step > 0 => {
            let (start, end) = (start.clamp(0, length), end.clamp(0, length));
            Ok((start as usize, step, count(end - start, step.min(length.max(1))) as usize))
        }
        step => {
            let (start, end) = (start.clamp(-1, length - 1), end.clamp(-1, length - 1));
            let count = count(start - end, (-step).min(length.max(1))) as usize;
            Ok((start.max(0) as usize, step, count))
        }
    }
}

fn same_rank(name: &str, x: &Fact, rank: usize) -> Result<(), String> {
    match x.shape.len() == rank {
        true => Ok(()),
        false => Err(format!("{name} has shape {:?}, {rank} dimensions are needed", x.shape)),
    }
}

/// Type and shape of each result of an operator.
///
/// # Errors
/// [`Unfit`], a sentence; the caller adds the node.
pub fn infer(op: &Op, inputs: &[Option<&Fact>], outputs: usize) -> Result<Results, Unfit> {
    let mut results = match op {
        Op::Other(other) => other.operator.infer(inputs, outputs)?,
        op => infer_unbounded(op, inputs)?,
    };
    results.truncate(outputs.max(1));
    for (dtype, shape) in &results {
        bounded(*dtype, shape)?;
    }
    Ok(results)
}

/// Refuses operands that differ in type; float16 and bfloat16 are computed as float32, and go with it.
fn one_type(inputs: &[Option<&Fact>]) -> Result<(), String> {
    let wide = |dtype: DType| if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype };
    let mut types = inputs.iter().flatten().map(|fact| fact.dtype);
    let Some(first) = types.next() else { return Ok(()) };
    match types.find(|&other| wide(other) != wide(first)) {
        Some(other) => Err(format!("operands are {first} and {other}")),
        None => Ok(()),
    }
}

fn infer_unbounded(op: &Op, inputs: &[Option<&Fact>]) -> Result<Results, Unfit> {
    if let Op::ConstantOfShape { value } = op {
        return Ok(vec![(value.dtype(), dimensions(&constant_ints(inputs, 0, "shape")?)?)]);
    }
    let x = needed(inputs, 0)?;
    let dtype = x.dtype;
    let one = |shape: Vec<usize>| Ok(vec![(dtype, shape)]);
    match op {
        Op::Conv { .. }
        | Op::Gemm { .. }
        | Op::MatMul
        | Op::BatchNorm { .. }
        | Op::LayerNorm { .. }
        | Op::Clip => {
            one_type(inputs)?;
        }
        _ => {}
    }
    match op {
        Op::Conv { .. } | Op::QConv { .. } => {
            let out = needed(inputs, 1)?.shape.first().copied().unwrap_or(0);
            if let Some(bias) = operand(inputs, 2).filter(|bias| bias.shape != [out]) {
                return Err(format!("the bias has shape {:?}, [{out}] is needed", bias.shape).into());
            }
        }
        Op::Pad { .. } => one_type(&[Some(x), operand(inputs, 2)])?,
        _ => {}
    }
    match op {
        Op::Conv { sliding, groups } => one(conv(sliding, *groups, x, needed(inputs, 1)?)?),
        Op::QConv { sliding, groups, .. } => one(conv(sliding, *groups, x, needed(inputs, 1)?)?),
        Op::Gemm { trans_a, trans_b, .. } => one(gemm(x, inputs, *trans_a, *trans_b)?),
        Op::ConvInteger { sliding, groups } => {
            let to = if operand(inputs, 3).is_some() { DType::F32 } else { DType::I32 };
            Ok(vec![(to, conv(sliding, *groups, x, needed(inputs, 1)?)?)])
        }
        Op::MatMulInteger => {
            let to = if operand(inputs, 3).is_some() { DType::F32 } else { DType::I32 };
            Ok(vec![(to, matmul(&x.shape, &needed(inputs, 1)?.shape)?)])
        }
        Op::RowProduct => Ok(vec![(DType::F32, matmul(&x.shape, &needed(inputs, 1)?.shape)?)]),
        Op::Recode => match dtype {
            DType::I8 => Ok(vec![(DType::U8, x.shape.clone())]),
            DType::U8 => Ok(vec![(DType::I8, x.shape.clone())]),
            other => Err(format!("the input is {other}, int8 or uint8 is needed").into()),
        },
        Op::MatMul | Op::QProduct { .. } => one(matmul(&x.shape, &needed(inputs, 1)?.shape)?),
        Op::QMatMul { trans_b, .. } => {
            let b = needed(inputs, 1)?;
            same_rank("B", b, 2)?;
            let shape = if *trans_b { vec![b.shape[1], b.shape[0]] } else { b.shape.clone() };
            one(matmul(&x.shape, &shape)?)
        }
        Op::MaxPool { sliding } | Op::AveragePool { sliding, .. } | Op::QAveragePool { sliding, .. } => {
            let mut shape = image(x)?;
            let out = windows(sliding, &x.shape[2..], &sliding.kernel)?.out;
            shape[2..].copy_from_slice(&out);
            one(shape)
        }
        Op::GlobalAveragePool | Op::GlobalMaxPool | Op::QGlobalAveragePool => {
            let mut shape = image(x)?;
            shape[2..].fill(1);
            one(shape)
        }
        Op::BatchNorm { .. } => {
            batch_norm(x, inputs)?;
            one(x.shape.clone())
        }
        Op::LayerNorm { axis, .. } => {
            let axis = axis_index(*axis, x.shape.len(), false)?;
            let scale = needed(inputs, 1)?;
            if scale.shape != x.shape[axis..] {
                return Err(
                    format!("Scale has shape {:?}, {:?} is needed", scale.shape, &x.shape[axis..]).into()
                );
            }
            one(x.shape.clone())
        }
        Op::Unary(_) | Op::Clip | Op::Identity | Op::QTable { .. } => one(x.shape.clone()),
        Op::Softmax { axis, .. } => {
            axis_index(*axis, x.shape.len(), false)?;
            one(x.shape.clone())
        }
        Op::Binary(op) => {
            let b = needed(inputs, 1)?;
            let same = b.dtype == dtype || *op == super::op::Binary::Pow;
            if !same {
                return Err(format!("operands are {dtype} and {}", b.dtype).into());
            }
            let out = if op.is_comparison() { DType::Bool } else { dtype };
            Ok(vec![(out, broadcast(&x.shape, &b.shape)?)])
        }
        Op::QBinary { .. } => one(broadcast(&x.shape, &needed(inputs, 1)?.shape)?),
        Op::Reduce { keep_dims, noop_with_empty_axes, .. } => {
            let axes = reduced_axes(x.shape.len(), inputs, *noop_with_empty_axes)?;
            one(reduced(&x.shape, &axes, *keep_dims))
        }
        Op::Transpose { perm } => {
            one(permutation(perm, x.shape.len())?.iter().map(|&p| x.shape[p]).collect())
        }
        Op::Reshape { allow_zero } => {
            one(reshape(&x.shape, &constant_ints(inputs, 1, "shape")?, *allow_zero)?)
        }
        Op::Flatten { axis } => {
            let axis = axis_index(*axis, x.shape.len(), true)?;
            one(vec![x.shape[..axis].iter().product(), x.shape[axis..].iter().product()])
        }
        Op::Squeeze => one(squeeze(&x.shape, inputs)?),
        Op::Unsqueeze => one(unsqueeze(&x.shape, &constant_ints(inputs, 1, "axes")?)?),
        Op::Concat { axis } | Op::QConcat { axis } => one(concat(*axis, inputs)?),
        Op::Split { axis, outputs } => split(*axis, *outputs, x, inputs),
        Op::Slice => one(slice_ranges(&x.shape, inputs)?.iter().map(|r| r.2).collect()),
        Op::Gather { axis } => {
            let axis = axis_index(*axis, x.shape.len(), false)?;
            let indices = &needed(inputs, 1)?.shape;
            one([&x.shape[..axis], indices, &x.shape[axis + 1..]].concat())
        }
        Op::Shape { start, end } => {
            Ok(vec![(DType::I64, vec![shape_range(x.shape.len(), *start, *end).len()])])
        }
        Op::Range => {
            if let Some(other) = inputs.iter().flatten().find(|other| other.dtype != dtype) {
                return Err(format!("operands are {dtype} and {}", other.dtype).into());
            }
            Ok(vec![(dtype, vec![range_count(inputs)?])])
        }
        Op::Expand => {
            let want = dimensions(&constant_ints(inputs, 1, "shape")?)?;
            one(broadcast(&x.shape, &want)?)
        }
        Op::Tile => one(tiled(&x.shape, &dimensions(&constant_ints(inputs, 1, "repeats")?)?)?),
        Op::Where => {
            let (a, b) = (needed(inputs, 1)?, needed(inputs, 2)?);
            if a.dtype != b.dtype {
                return Err(format!("operands are {} and {}", a.dtype, b.dtype).into());
            }
            Ok(vec![(a.dtype, broadcast(&broadcast(&x.shape, &a.shape)?, &b.shape)?)])
        }
        Op::Pad { .. } => one(padded(&x.shape, &pad_amounts(x.shape.len(), inputs)?)?),
        Op::Cast { to } => Ok(vec![(*to, x.shape.clone())]),
        Op::QuantizeLinear { .. } => {
            let to = operand(inputs, 2).map_or(DType::U8, |zero_point| zero_point.dtype);
            Ok(vec![(to, x.shape.clone())])
        }
        Op::DequantizeLinear { .. } => Ok(vec![(needed(inputs, 1)?.dtype, x.shape.clone())]),
        Op::If | Op::Loop { .. } | Op::Scan(_) => Err(Unfit::AtRun("what the body gives".to_owned())),
        Op::ConstantOfShape { .. } | Op::Other(_) => unreachable!("taken above"),
    }
}

/// The product of matrices of which either may come transposed, and to which a third may be added.
fn gemm(x: &Fact, inputs: &[Option<&Fact>], trans_a: bool, trans_b: bool) -> Result<Vec<usize>, Unfit> {
    let b = needed(inputs, 1)?;
    same_rank("A", x, 2)?;
    same_rank("B", b, 2)?;
    let flip = |s: &[usize], t: bool| if t { (s[1], s[0]) } else { (s[0], s[1]) };
    let ((m, k), (k_b, n)) = (flip(&x.shape, trans_a), flip(&b.shape, trans_b));
    if k != k_b {
        return Err(format!("A {:?} and B {:?} do not multiply", x.shape, b.shape).into());
    }
    if let Some(c) = operand(inputs, 2)
        && broadcast(&c.shape, &[m, n])? != [m, n]
    {
        return Err(format!("C {:?} does not broadcast to [{m}, {n}]", c.shape).into());
    }
    Ok(vec![m, n])
}

/// The shape of an input `[N, C, …]`.
fn image(x: &Fact) -> Result<Vec<usize>, Unfit> {
    if x.shape.len() < 3 {
        let text = format!("the input has shape {:?}, at least 3 dimensions are needed", x.shape);
        return Err(text.into());
    }
    Ok(x.shape.clone())
}

/// Checks that each parameter has a value a channel.
fn batch_norm(x: &Fact, inputs: &[Option<&Fact>]) -> Result<(), Unfit> {
    let channels = x.shape.get(1).copied().unwrap_or(1);
    for index in 1..5 {
        let p = needed(inputs, index)?;
        if p.shape != [channels] {
            return Err(format!("input {index} has shape {:?}, [{channels}] is needed", p.shape).into());
        }
    }
    Ok(())
}

fn reduced(shape: &[usize], axes: &[usize], keep_dims: bool) -> Vec<usize> {
    let kept = shape.iter().enumerate().filter_map(|(i, &d)| match (axes.contains(&i), keep_dims) {
        (false, _) => Some(d),
        (true, true) => Some(1),
        (true, false) => None,
    });
    kept.collect()
}

fn tiled(shape: &[usize], repeats: &[usize]) -> Result<Vec<usize>, Unfit> {
    if repeats.len() != shape.len() {
        return Err(format!("{} repeats for shape {shape:?}", repeats.len()).into());
    }
    let product = shape.iter().zip(repeats).map(|(a, b)| a.checked_mul(*b));
    Ok(product.collect::<Option<_>>().ok_or("the tiled shape overflows")?)
}

fn padded(shape: &[usize], pads: &[(i64, i64)]) -> Result<Vec<usize>, Unfit> {
    let padded = shape.iter().zip(pads).map(|(&d, &(begin, end))| {
        usize::try_from(i64::try_from(d).ok()?.checked_add(begin)?.checked_add(end)?).ok()
    });
    Ok(padded.collect::<Option<_>>().ok_or_else(|| format!("pads {pads:?} of shape {shape:?}"))?)
}

/// Lengths that a stranger wrote.
fn sizes(ints: &[i64]) -> Result<Vec<usize>, String> {
    let sizes: Option<Vec<usize>> = ints.iter().map(|&i| usize::try_from(i).ok()).collect();
    sizes.ok_or_else(|| format!("{ints:?} has a negative length"))
}

/// Dimensions that a stranger wrote.
fn dimensions(ints: &[i64]) -> Result<Vec<usize>, String> {
    if ints.len() > RANK_MAX {
        return Err(format!("a shape of {} dimensions: the limit is {RANK_MAX}", ints.len()));
    }
    let sizes = sizes(ints)?;
    match element_count(&sizes) {
        Some(_) => Ok(sizes),
        None => Err(format!("the product of {sizes:?} overflows")),
    }
}

/// The shape of a convolution.
///
/// # Errors
/// A sentence about what does not fit.
pub fn conv(sliding: &Sliding, groups: usize, x: &Fact, weight: &Fact) -> Result<Vec<usize>, String> {
    let rank = x.shape.len();
    if rank < 3 || weight.shape.len() != rank {
        return Err(format!("input {:?} and weight {:?} do not fit", x.shape, weight.shape));
    }
    let (channels, out) = (x.shape[1], weight.shape[0]);
    if channels == 0 || out == 0 {
        return Err(format!("input {:?} and weight {:?}: no channel is left", x.shape, weight.shape));
    }
    if weight.shape[1].checked_mul(groups) != Some(channels) || !out.is_multiple_of(groups) {
        return Err(format!(
            "input {:?} has {channels} channels, weight {:?} with {groups} group(s) does not fit",
            x.shape, weight.shape
        ));
    }
    let kernel = &weight.shape[2..];
    if kernel.contains(&0) || (!sliding.kernel.is_empty() && sliding.kernel != kernel) {
        return Err(format!("kernel_shape {:?} does not fit weight {:?}", sliding.kernel, weight.shape));
    }
    let windows = windows(sliding, &x.shape[2..], kernel)?;
    Ok([&[x.shape[0], out], windows.out.as_slice()].concat())
}

/// The shape of a product of matrices (numpy's rule).
///
/// # Errors
/// A sentence where they do not multiply.
pub fn matmul(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let misfit = || format!("shapes {a:?} and {b:?} do not multiply");
    if a.is_empty() || b.is_empty() {
        return Err(misfit());
    }
    let left = if a.len() == 1 { vec![1, a[0]] } else { a.to_vec() };
    let right = if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() };
    let (m, k) = (left[left.len() - 2], left[left.len() - 1]);
    let (k_b, n) = (right[right.len() - 2], right[right.len() - 1]);
    if k != k_b {
        return Err(misfit());
    }
    let mut shape = broadcast(&left[..left.len() - 2], &right[..right.len() - 2])?;
    shape.extend((a.len() > 1).then_some(m));
    shape.extend((b.len() > 1).then_some(n));
    Ok(shape)
}

/// The axes that a reduction folds, from the front.
pub fn reduced_axes(rank: usize, inputs: &[Option<&Fact>], noop: bool) -> Result<Vec<usize>, Unfit> {
    let given = match operand(inputs, 1) {
        Some(_) => constant_ints(inputs, 1, "axes")?,
        None => Vec::new(),
    };
    if given.is_empty() {
        return Ok(if noop { Vec::new() } else { (0..rank).collect() });
    }
    let axes: Vec<usize> =
        given.iter().map(|&axis| axis_index(axis, rank, false)).collect::<Result<_, _>>()?;
    distinct(&axes)?;
    Ok(axes)
}

/// Refuses axes that name one twice.
fn distinct(axes: &[usize]) -> Result<(), String> {
    let twice = axes.len() > RANK_MAX || (1..axes.len()).any(|i| axes[..i].contains(&axes[i]));
    if twice { Err(format!("{} axes, one of them twice", axes.len())) } else { Ok(()) }
}

/// A permutation of `rank` axes; an empty one means: reversed.
pub fn permutation(perm: &[usize], rank: usize) -> Result<Vec<usize>, String> {
    if perm.is_empty() {
        return Ok((0..rank).rev().collect());
    }
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    match sorted.iter().copied().eq(0..rank) {
        true => Ok(perm.to_vec()),
        false => Err(format!("perm {perm:?} is no permutation of {rank} axes")),
    }
}

fn reshape(from: &[usize], to: &[i64], allow_zero: bool) -> Result<Vec<usize>, String> {
    let misfit = || format!("shape {from:?} cannot become {to:?}");
    if to.len() > RANK_MAX {
        return Err(format!("a shape of {} dimensions: the limit is {RANK_MAX}", to.len()));
    }
    let mut open = None;
    let mut shape = Vec::with_capacity(to.len());
    for (i, &d) in to.iter().enumerate() {
        match d {
            -1 if open.replace(i).is_some() => return Err(misfit()),
            -1 => shape.push(1),
            0 if !allow_zero => shape.push(*from.get(i).ok_or_else(misfit)?),
            d => shape.push(usize::try_from(d).map_err(|_| misfit())?),
        }
    }
    let total: usize = from.iter().product();
    let rest = element_count(&shape).ok_or_else(misfit)?;
    if let Some(i) = open {
        shape[i] = total.checked_div(rest).unwrap_or(0);
    }
    if element_count(&shape) != Some(total) {
        return Err(misfit());
    }
    Ok(shape)
}

fn squeeze(shape: &[usize], inputs: &[Option<&Fact>]) -> Result<Vec<usize>, Unfit> {
    let axes: Vec<usize> = match operand(inputs, 1) {
        Some(_) => constant_ints(inputs, 1, "axes")?
            .iter()
            .map(|&axis| axis_index(axis, shape.len(), false))
            .collect::<Result<_, _>>()?,
        None => (0..shape.len()).filter(|&i| shape[i] == 1).collect(),
    };
    if let Some(&axis) = axes.iter().find(|&&axis| shape[axis] != 1) {
        return Err(format!("axis {axis} of shape {shape:?} is not 1").into());
    }
    Ok(shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect())
}

fn unsqueeze(shape: &[usize], axes: &[i64]) -> Result<Vec<usize>, String> {
    let rank = shape.len() + axes.len();
    if rank > RANK_MAX {
        return Err(format!("{rank} dimensions, the limit is {RANK_MAX}"));
    }
    let mut new = vec![None; rank];
    for &axis in axes {
        if new[axis_index(axis, rank, false)?].replace(1).is_some() {
            return Err(format!("axes {axes:?} name one axis twice"));
        }
    }
    let mut old = shape.iter();
    Ok(new.into_iter().map(|d| d.unwrap_or_else(|| *old.next().expect("as many as axes are left"))).collect())
}

fn concat(axis: i64, inputs: &[Option<&Fact>]) -> Result<Vec<usize>, String> {
    let first = needed(inputs, 0)?;
    let axis = axis_index(axis, first.shape.len(), false)?;
    let mut shape = first.shape.clone();
    for index in 1..inputs.len() {
        let x = needed(inputs, index)?;
        let fits = x.shape.len() == shape.len()
            && x.dtype == first.dtype
            && (0..shape.len()).all(|i| i == axis || x.shape[i] == shape[i]);
        if !fits {
            return Err(format!(
                "{}{:?} and {}{:?} do not join on axis {axis}",
                first.dtype, first.shape, x.dtype, x.shape
            ));
        }
        shape[axis] = shape[axis].checked_add(x.shape[axis]).ok_or("the joined axis overflows")?;
    }
    Ok(shape)
}

fn split(axis: i64, outputs: usize, x: &Fact, inputs: &[Option<&Fact>]) -> Result<Results, Unfit> {
    let axis = axis_index(axis, x.shape.len(), false)?;
    let length = x.shape[axis];
    let parts: Vec<usize> = match operand(inputs, 1) {
        Some(_) => sizes(&constant_ints(inputs, 1, "split")?)?,
        None => {
            // Opset 18: equal parts, the last one smaller.
            let part = length.div_ceil(outputs.max(1));
            (0..outputs).map(|i| part.min(length.saturating_sub(i * part))).collect()
        }
    };
    let sum = parts.iter().try_fold(0usize, |sum, &part| sum.checked_add(part));
    if parts.len() != outputs || sum != Some(length) {
        return Err(format!("parts {parts:?} do not make up axis {axis} of shape {:?}", x.shape).into());
    }
    let shaped = |&part: &usize| {
        let mut shape = x.shape.clone();
        shape[axis] = part;
        (x.dtype, shape)
    };
    Ok(parts.iter().map(shaped).collect())
}

/// The dimensions that Shape returns.
pub fn shape_range(rank: usize, start: i64, end: Option<i64>) -> std::ops::Range<usize> {
    let index = |i: i64| (if i < 0 { i + rank as i64 } else { i }).clamp(0, rank as i64) as usize;
    let (start, end) = (index(start), index(end.unwrap_or(rank as i64)));
    start..end.max(start)
}

/// `ceil((limit − start) / delta)`, not under 0.
fn range_count(inputs: &[Option<&Fact>]) -> Result<usize, Unfit> {
    let value = |index: usize| -> Result<f64, Unfit> {
        let tensor = constant(inputs, index, ["start", "limit", "delta"][index])?;
        tensor.to_f64().first().copied().ok_or_else(|| "a limit of Range is empty".into())
    };
    let (start, limit, delta) = (value(0)?, value(1)?, value(2)?);
    let count = ((limit - start) / delta).ceil().max(0.0);
    match count.is_finite() && count <= VALUE_BYTES_MAX as f64 {
        true => Ok(count as usize),
        false => Err(format!("a Range from {start} to {limit} by {delta} is too long").into()),
    }
}

/// For each axis how many elements are added before and after (negative: taken away).
pub fn pad_amounts(rank: usize, inputs: &[Option<&Fact>]) -> Result<Vec<(i64, i64)>, Unfit> {
    let pads = constant_ints(inputs, 1, "pads")?;
    let axes: Vec<usize> = match operand(inputs, 3) {
        Some(_) => constant_ints(inputs, 3, "axes")?
            .iter()
            .map(|&axis| axis_index(axis, rank, false))
            .collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} axes", pads.len(), axes.len()).into());
    }
    if pads.iter().any(|p| !(-PAD_MAX..=PAD_MAX).contains(p)) {
        return Err(format!("pads {pads:?}: the limit is {PAD_MAX}").into());
    }
    let mut amounts = vec![(0, 0); rank];
    for (i, &axis) in axes.iter().enumerate() {
        amounts[axis] = (pads[i], pads[axes.len() + i]);
    }
    Ok(amounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_windows(s: Sliding, input: usize, kernel: usize, want: Result<(usize, usize, usize), &str>) {
        let got = windows(&s, &[input], &[kernel]).map(|w| (w.out[0], w.begin[0], w.end[0]));
        match want {
            Ok(want) => assert_eq!(got, Ok(want), "{s:?} {input} {kernel}"),
            Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{got:?}"),
        }
    }

    #[test]
    fn windows_are_counted_as_onnx_counts_them() {
        let s = |strides: usize, pads: [usize; 2], auto_pad, ceil_mode| Sliding {
            strides: vec![strides],
            pads: pads.to_vec(),
            auto_pad,
            ceil_mode,
            ..Sliding::default()
        };
        check_windows(s(1, [0, 0], AutoPad::Explicit, false), 5, 3, Ok((3, 0, 0)));
        check_windows(s(2, [1, 1], AutoPad::Explicit, false), 28, 3, Ok((14, 1, 1)));
        check_windows(s(2, [0, 0], AutoPad::SameUpper, false), 28, 3, Ok((14, 0, 1)));
        check_windows(s(2, [0, 0], AutoPad::SameLower, false), 28, 3, Ok((14, 1, 0)));
        check_windows(s(2, [0, 0], AutoPad::Explicit, true), 6, 3, Ok((3, 0, 0)));
        check_windows(s(3, [1, 1], AutoPad::Explicit, true), 4, 1, Ok((2, 1, 1)));
        check_windows(s(1, [0, 0], AutoPad::Explicit, false), 2, 3, Err("does not fit"));
    }

    #[test]
    fn slices_are_cut_as_numpy_cuts_them() {
        let rows = [
            ((10, 0, 10, 1), (0, 1, 10)),
            ((10, -3, i64::MAX, 1), (7, 1, 3)),
            ((10, 9, i64::MIN, -1), (9, -1, 10)),
            ((10, -1, 0, -4), (9, -4, 3)),
            ((10, 5, 2, 1), (5, 1, 0)),
            ((0, 0, 5, 1), (0, 1, 0)),
            ((3, 0, 3, i64::MAX), (0, i64::MAX, 1)),
        ];
        for ((length, start, end, step), want) in rows {
            assert_eq!(slice_range(length, start, end, step), Ok(want), "{length} {start} {end} {step}");
        }
        assert!(slice_range(3, 0, 3, 0).is_err());
    }

    #[test]
    fn a_reshape_keeps_the_count() {
        assert_eq!(reshape(&[2, 3, 4], &[0, -1], false), Ok(vec![2, 12]));
        assert_eq!(reshape(&[0, 3], &[0, 3], true), Ok(vec![0, 3]));
        assert!(reshape(&[2, 3], &[-1, -1], false).is_err());
        assert!(reshape(&[2, 3], &[4], false).is_err());
        assert!(reshape(&[2], &[i64::MAX, i64::MAX], false).is_err());
    }
}
