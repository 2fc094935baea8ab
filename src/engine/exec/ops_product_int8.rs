//! Products of codes. Accumulators are exact and leave the registers only where the right operand has a zero point.
//!
//! The numeric contract: `q = saturate(round_half_even(acc · m) + zero_point)` with `m = (s_x · s_w) / s_y` in f32.

use std::sync::Arc;

use crate::engine::graph::fact::{Fact, broadcast};
use crate::engine::graph::op::{Clamp, Sliding};
use crate::engine::graph::{Graph, Node};
use crate::engine::kernels::by_row::{self, ByRow};
use crate::engine::kernels::coded::{Coded, Output};
use crate::engine::kernels::depthwise::PackedDepthwise;
use crate::engine::kernels::finish::{RowSums, finish};
use crate::engine::kernels::gemm_int8::PackedInt8;
use crate::engine::kernels::winograd::PackedWinograd;
use crate::engine::kernels::winograd_cost::best_transform;
use crate::engine::kernels::{self, Dequant, IntOutput, Requant, Sum, Window};
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor, TensorViewMut};

use super::fuse::{Fused, FusedCodes};
use super::ops_product::{is_depthwise, matrix, taps_first, transposed, turned, window_of};
use super::step::{Context, Kernel, Operands};
use super::strided::Walk;
use super::weights::{Packed, Weights};

const NOT_CONSTANT: &str = "the weights are no constant";

/// What accumulators become.
enum To {
    Codes { zero_point: u8, clamp: Clamp },
    Reals,
    Sums,
}

/// What a product does with its results besides.
pub(super) struct After {
    /// Where they are reals.
    pub(super) reals: Fused,
    /// Where they are codes.
    pub(super) codes: FusedCodes,
}

impl After {
    /// Nothing.
    fn nothing() -> After {
        After { reals: Fused::NONE, codes: FusedCodes::default() }
    }
}

/// How accumulators become results, owned.
struct Epilogue {
    /// In units of the accumulator, with what the zero points add to every row.
    bias: Vec<i32>,
    /// `s_x · s_w / s_y`, or `s_x · s_w` where the result is real.
    factor: Vec<f32>,
    to: To,
    after: After,
}

impl Epilogue {
    /// The epilogue that the parameters of a node's operands and result ask for.
    fn new(
        graph: &Graph,
        node: &Node,
        product: &Product,
        clamp: Clamp,
        after: After,
    ) -> Result<Epilogue, String> {
        let (x, w) = (params(graph, node, 0)?, params(graph, node, 1)?);
        let y = graph.value(node.outputs[0]).qparams.as_ref();
        let channels = product.outputs;
        let mut bias = product.zero_point_terms(x.zero_point[0]);
        if let Some(codes) = node.input(2).and_then(|id| graph.constant(id)) {
            if codes.len() != channels {
                return Err(format!("the bias has {} values for {channels} channels", codes.len()));
            }
            bias.iter_mut().zip(codes.slice::<i32>()).for_each(|(b, c)| *b = b.wrapping_add(*c));
        }
        let real = |n: usize| x.scale[0] * w.scale[if w.scale.len() == 1 { 0 } else { n }];
        let factor = (0..channels).map(|n| y.map_or(real(n), |y| real(n) / y.scale[0])).collect();
        let to = y.map_or(To::Reals, |y| To::Codes { zero_point: y.zero_point[0] as u8, clamp });
        Ok(Epilogue { bias, factor, to, after })
    }

    /// Nothing but the sums.
    fn sums(channels: usize) -> Epilogue {
        Epilogue { bias: vec![0; channels], factor: Vec::new(), to: To::Sums, after: After::nothing() }
    }

    /// Runs `f` on the part of the channels that starts at `from` and has `count`.
    fn apply(
        &self,
        from: usize,
        count: usize,
        operands: &Operands<'_>,
        out: &mut TensorViewMut<'_>,
        f: impl FnOnce(Output<'_, '_>),
    ) {
        let part = from..from + count;
        let bias = &self.bias[part.clone()];
        match self.to {
            To::Codes { zero_point, clamp: (lo, hi) } => {
                let multiplier = &self.factor[part];
                let table = self.after.codes.table.as_deref();
                let sum = self.after.codes.sum.map(|(i, scales, form)| Sum {
                    codes: operands.need(i).slice(),
                    scales,
                    form,
                });
                let requant = Requant { bias, multiplier, zero_point, lo, hi, table, sum };
                f(IntOutput::U8(out.slice_mut::<u8>(), &requant).into());
            }
            To::Reals => {
                let scale = &self.factor[part.clone()];
                let Fused { bias: list, activation, residual, clamp: (lo, hi), codes } = self.after.reals;
                let list = list.map(|i| &operands.need(i).slice::<f32>()[part]);
                let residual = residual.map(|i| operands.need(i).slice::<f32>());
                let then = kernels::Epilogue { bias: list, activation, residual, lo, hi };
                let then = (!self.after.reals.keeps_reals()).then_some(then);
                let reals = Dequant { bias, scale, then };
                match codes {
                    None => f(IntOutput::F32(out.slice_mut::<f32>(), &reals).into()),
                    Some((scale, zero_point)) => {
                        let coded = Coded { reals, scale, zero_point };
                        f(Output::Coded(out.slice_mut::<u8>(), &coded));
                    }
                }
            }
            To::Sums => f(IntOutput::I32(out.slice_mut::<i32>(), bias).into()),
        }
    }
}

fn params<'g>(graph: &'g Graph, node: &Node, index: usize) -> Result<&'g QuantParams, String> {
    let id = node.input(index).ok_or_else(|| format!("input {index} is missing"))?;
    graph.value(id).qparams.as_ref().ok_or_else(|| format!("input {index} has no scale"))
}

/// A packed right operand and how the left one is read.
struct Product {
    context: Context,
    packed: Arc<Packed>,
    /// Ones in the place of the weights: what sums the left operand, where the right one has zero points.
    ones: Option<Packed>,
    /// Of the right operand: one for each output channel.
    zero_points: Vec<i32>,
    window: Window,
    inputs: usize,
    outputs: usize,
    /// Products that one accumulator sums.
    depth: usize,
}

impl Product {
    /// Of a window over `inputs` channels. `shape` is `[outputs, inputs / groups, taps…]`.
    fn new(
        context: Context,
        packed: Arc<Packed>,
        zero_points: Vec<i32>,
        window: Window,
        shape: [usize; 3],
        groups: usize,
    ) -> Product {
        let [outputs, inputs, taps] = shape;
        let ones = zero_points.iter().any(|&z| z != 0).then(|| match groups {
            // One sum serves every channel.
            1 => Packed::Int8(vec![PackedInt8::pack(context.isa, &vec![1; taps * inputs], 1, taps, inputs)]),
            _ if matches!(*packed, Packed::DepthwiseInt8(_)) => Packed::DepthwiseInt8(PackedDepthwise::pack(
                context.isa,
                &vec![1; outputs * taps],
                outputs,
                &window,
                context.small,
            )),
            _ => {
                let out = outputs / groups;
                let codes = vec![1; out * taps * inputs];
                let group = || PackedInt8::pack(context.isa, &codes, out, taps, inputs);
                Packed::Int8((0..groups).map(|_| group()).collect())
            }
        });
        let (inputs, depth) = (inputs * groups, inputs * taps);
        Product { context, packed, ones, zero_points, window, inputs, outputs, depth }
    }

    /// What the zero points add to every row of a channel: `−z_x · Σ w + depth · z_x · z_w`.
    fn zero_point_terms(&self, x_zero_point: i32) -> Vec<i32> {
        let term = |(sum, z): (&i32, &i32)| {
            let both = (self.depth as i32).wrapping_mul(*z);
            x_zero_point.wrapping_mul(both.wrapping_sub(*sum))
        };
        self.packed.column_sums().iter().zip(&self.zero_points).map(term).collect()
    }

    /// Computes `out` from `x`; padding reads `pad`. What follows reads `operands`.
    fn run(
        &self,
        x: &[u8],
        operands: &Operands<'_>,
        pad: u8,
        epilogue: &Epilogue,
        out: &mut TensorViewMut<'_>,
    ) {
        let Some(ones) = &self.ones else {
            return self.multiply(&self.packed, x, operands, pad, epilogue, out);
        };
        let sums = |packed: &Packed| {
            let channels = packed.column_sums().len();
            let mut sums = Tensor::zeros(DType::I32, &[self.window.rows(), channels]);
            self.multiply(packed, x, operands, pad, &Epilogue::sums(channels), &mut sums.view_mut());
            sums
        };
        let (acc, row_sums) = (sums(&self.packed), sums(ones));
        let by_channel = row_sums.len() == acc.len() && self.outputs > 1;
        let rows = RowSums { sums: row_sums.slice(), by_channel, zero_points: &self.zero_points };
        epilogue.apply(0, self.outputs, operands, out, |out| {
            out.at_once(self.context.isa, |out| finish(self.context.isa, acc.slice(), rows, out));
        });
    }

    fn multiply(
        &self,
        packed: &Packed,
        x: &[u8],
        operands: &Operands<'_>,
        pad: u8,
        epilogue: &Epilogue,
        out: &mut TensorViewMut<'_>,
    ) {
        let (window, threads, outputs) = (&self.window, self.context.threads, epilogue.bias.len());
        match packed {
            Packed::DepthwiseInt8(packed) => {
                epilogue.apply(0, outputs, operands, out, |out| packed.conv(x, window, pad, out, threads));
            }
            Packed::Int8(groups) => {
                let (cin, cout) = (self.inputs / groups.len(), outputs / groups.len());
                for (g, packed) in groups.iter().enumerate() {
                    epilogue.apply(g * cout, cout, operands, out, |out| {
                        packed.conv(x, self.inputs, g * cin, window, pad, out, outputs, g * cout, threads);
                    });
                }
            }
            Packed::WinogradInt8(packed) => epilogue.apply(0, outputs, operands, out, |out| {
                packed.conv(x, self.inputs, 0, window, pad, out, outputs, 0, threads);
            }),
            Packed::Float(_) | Packed::DepthwiseFloat(_) => unreachable!("packed as codes"),
        }
    }
}

/// The product of a convolution with constant weights.
fn convolution(
    context: Context,
    weights: &Weights,
    (index, node): (usize, &Node),
    graph: &Graph,
    (sliding, groups): (&Sliding, usize),
    inputs: &[Option<&Fact>],
) -> Result<Product, String> {
    let x = inputs[0].ok_or("input 0 is missing")?;
    let weight = inputs[1].ok_or("input 1 is missing")?;
    let window = window_of(sliding, &x.shape, &weight.shape[2..])?;
    let packed = weights.get(index, weight, |weight| pack_conv(context, weight, groups, &window));
    let packed = packed.ok_or(NOT_CONSTANT)?;
    let taps = weight.shape[2..].iter().product();
    let shape = [weight.shape[0], weight.shape[1], taps];
    let zero_points = weight_zero_points(graph, node, shape[0])?;
    Ok(Product::new(context, packed, zero_points, window, shape, groups))
}

fn pack_conv(context: Context, weight: &Tensor, groups: usize, window: &Window) -> Packed {
    let shape = weight.shape();
    let taps: usize = shape[2..].iter().product();
    let moved = taps_first(context.isa, weight.slice::<i8>(), shape);
    if is_depthwise(groups, shape) {
        return Packed::DepthwiseInt8(PackedDepthwise::pack(
            context.isa,
            &moved,
            groups,
            window,
            context.small,
        ));
    }
    if groups == 1
        && context.winograd
        && let Some(by) = best_transform(context.isa, window, &moved, shape[0], shape[1])
    {
        return Packed::WinogradInt8(PackedWinograd::pack(context.isa, by, &moved, shape[0], shape[1]));
    }
    let out = shape[0] / groups;
    let group = |part: &[i8]| PackedInt8::pack_for(context.isa, part, out, window, shape[1], context.small);
    Packed::Int8(moved.chunks_exact((out * taps * shape[1]).max(1)).map(group).collect())
}

/// The product of a matrix of any number of rows with constant weights, `[k, n]`, or `[n, k]` where `trans_b`.
fn by_matrix(
    context: Context,
    weights: &Weights,
    (index, node): (usize, &Node),
    graph: &Graph,
    trans_b: bool,
    inputs: &[Option<&Fact>],
) -> Result<Product, String> {
    let x = inputs[0].ok_or("input 0 is missing")?;
    let weight = inputs[1].ok_or("input 1 is missing")?;
    let (n, k) = match trans_b {
        true => (weight.shape[0], weight.shape[1]),
        false => (weight.shape[1], weight.shape[0]),
    };
    let rows = x.shape.iter().product::<usize>().checked_div(k).unwrap_or(0);
    let packed = weights.get(index, weight, |weight| {
        let rows_of_b = turned(context.isa, !trans_b, weight.slice::<i8>(), [k, n]);
        Packed::Int8(vec![PackedInt8::pack_as(context.isa, &rows_of_b, n, 1, k, context.small)])
    });
    let packed = packed.ok_or(NOT_CONSTANT)?;
    let zero_points = weight_zero_points(graph, node, n)?;
    Ok(Product::new(context, packed, zero_points, Window::of_rows(rows), [n, k, 1], 1))
}

/// The zero points of the weights, one for each of `channels`.
fn weight_zero_points(graph: &Graph, node: &Node, channels: usize) -> Result<Vec<i32>, String> {
    match &params(graph, node, 1)?.zero_point[..] {
        [one] => Ok(vec![*one; channels]),
        many if many.len() == channels => Ok(many.to_vec()),
        many => Err(format!("{} zero points for {channels} channels", many.len())),
    }
}

/// QConv over channels-last codes.
pub(super) fn conv(
    context: Context,
    weights: &Weights,
    (index, node): (usize, &Node),
    graph: &Graph,
    (sliding, groups, clamp): (&Sliding, usize, Clamp),
    inputs: &[Option<&Fact>],
    after: After,
) -> Result<Kernel, String> {
    let product = convolution(context, weights, (index, node), graph, (sliding, groups), inputs)?;
    with_constants(product, graph, node, clamp, after)
}

/// QMatMul: codes `[…, k]` by constant codes `[k, n]`, or `[n, k]` where `trans_b`.
pub(super) fn matmul(
    context: Context,
    weights: &Weights,
    (index, node): (usize, &Node),
    graph: &Graph,
    (trans_b, clamp): (bool, Clamp),
    inputs: &[Option<&Fact>],
    after: After,
) -> Result<Kernel, String> {
    let product = by_matrix(context, weights, (index, node), graph, trans_b, inputs)?;
    with_constants(product, graph, node, clamp, after)
}

fn with_constants(
    product: Product,
    graph: &Graph,
    node: &Node,
    clamp: Clamp,
    after: After,
) -> Result<Kernel, String> {
    let epilogue = Epilogue::new(graph, node, &product, clamp, after)?;
    let pad = params(graph, node, 0)?.zero_point[0] as u8;
    Ok(Box::new(move |operands, mut out, _| {
        product.run(operands.need(0).slice(), operands, pad, &epilogue, &mut out);
        Ok(())
    }))
}

/// ConvInteger: the zero point of the input, and the scale of the result, may be computed.
pub(super) fn conv_integer(
    context: Context,
    weights: &Weights,
    (index, node): (usize, &Node),
    graph: &Graph,
    op: (&Sliding, usize),
    inputs: &[Option<&Fact>],
) -> Result<Kernel, String> {
    Ok(at_run(convolution(context, weights, (index, node), graph, op, inputs)?))
}

/// MatMulInteger: as [`conv_integer`].
pub(super) fn matmul_integer(
    context: Context,
    weights: &Weights,
    (index, node): (usize, &Node),
    graph: &Graph,
    inputs: &[Option<&Fact>],
) -> Result<Kernel, String> {
    Ok(at_run(by_matrix(context, weights, (index, node), graph, false, inputs)?))
}

/// RowProduct: the rows of the left operand have parameters of their own.
pub(super) fn row_product(
    context: Context,
    weights: &Weights,
    (index, node): (usize, &Node),
    graph: &Graph,
    inputs: &[Option<&Fact>],
    fused: Fused,
) -> Result<Kernel, String> {
    let product = by_matrix(context, weights, (index, node), graph, false, inputs)?;
    let plain = Epilogue::sums(product.outputs);
    Ok(Box::new(move |operands, mut out, _| {
        let shape = out.shape;
        // Sums and the reals that they become take the same room.
        let mut sums = TensorViewMut { dtype: DType::I32, shape, bytes: &mut *out.bytes };
        product.run(operands.need(0).slice(), operands, 0, &plain, &mut sums);
        let list = |i: usize| operands.need(i).slice::<f32>();
        let at = |position: Option<usize>| position.map(list);
        let Fused { bias, activation, residual, clamp: (lo, hi), codes: _ } = fused;
        let then = kernels::Epilogue { bias: at(bias), activation, residual: at(residual), lo, hi };
        let by_row = ByRow { low: list(2), step: list(3), sums: list(4), scale: list(5), then };
        by_row::reals(context.isa, out.slice_mut::<f32>(), &by_row, context.threads);
        Ok(())
    }))
}

fn at_run(product: Product) -> Kernel {
    Box::new(move |operands, mut out, _| {
        let zero_point = operands.get(2).and_then(|z| z.slice::<u8>().first().copied()).unwrap_or(0);
        let bias = product.zero_point_terms(zero_point.into());
        let (to, factor) = scale_at_run(operands, product.outputs)?;
        let epilogue = Epilogue { bias, factor, to, after: After::nothing() };
        product.run(operands.need(0).slice(), operands, zero_point, &epilogue, &mut out);
        Ok(())
    })
}

fn scale_at_run(operands: &Operands<'_>, channels: usize) -> Result<(To, Vec<f32>), String> {
    let Some(scale) = operands.get(3) else { return Ok((To::Sums, Vec::new())) };
    match scale.slice::<f32>() {
        [one] => Ok((To::Reals, vec![*one; channels])),
        many if many.len() == channels => Ok((To::Reals, many.to_vec())),
        many => Err(format!("{} scales for {channels} channels", many.len())),
    }
}

/// QProduct: `[…, m, k] × […, k, n]`, both computed.
pub(super) fn product(
    context: Context,
    node: &Node,
    graph: &Graph,
    clamp: Clamp,
    inputs: &[Option<&Fact>],
) -> Result<Kernel, String> {
    let (a, b) = (inputs[0].ok_or("input 0 is missing")?, inputs[1].ok_or("input 1 is missing")?);
    let ((mut m, k), (_, n)) = (matrix(&a.shape, true), matrix(&b.shape, false));
    let lead = |shape: &[usize]| shape[..shape.len().saturating_sub(2)].to_vec();
    let (mut lead_a, lead_b) = (lead(&a.shape), lead(&b.shape));
    let mut batch = broadcast(&lead_a, &lead_b)?;
    if lead_b.iter().all(|&d| d == 1) {
        // One matrix serves all rows.
        m *= lead_a.iter().product::<usize>();
        (lead_a, batch) = (Vec::new(), vec![1; lead_b.len()]);
    }
    let walk = Walk::broadcast(&batch, [&lead_a, &lead_b]);
    let (x, w) = (params(graph, node, 0)?.clone(), params(graph, node, 1)?.clone());
    let y = graph.value(node.outputs[0]).qparams.as_ref();
    let unit = x.scale[0] * w.scale[0];
    let factor = vec![y.map_or(unit, |y| unit / y.scale[0]); n];
    let y_zero_point = y.map(|y| y.zero_point[0] as u8);
    // Codes are brought to `i8` when they are packed.
    let (x_zero_point, w_zero_point) = (x.zero_point[0], w.zero_point[0] - 128);
    Ok(Box::new(move |operands, out, _| {
        if m * n * k == 0 {
            // Sums of nothing.
            out.bytes.fill(y_zero_point.map_or(0, |z| z.clamp(clamp.0, clamp.1)));
            return Ok(());
        }
        let (a, b) = (operands.need(0).slice::<u8>(), operands.need(1).slice::<u8>());
        let bytes = m * n * out.dtype.size();
        let shape = [m, n];
        walk.rows(|at, [a0, b0], length, [da, db]| {
            for i in 0..length {
                let (ia, ib) = ((a0 + da * i as isize) as usize, (b0 + db * i as isize) as usize);
                let (a, b) = (&a[ia * m * k..(ia + 1) * m * k], &b[ib * k * n..(ib + 1) * k * n]);
                let mut codes = transposed(context.isa, b, [1, k, n]);
                codes.iter_mut().for_each(|code| *code ^= 0x80);
                let codes = bytemuck::cast_slice(&codes);
                let packed = Packed::Int8(vec![PackedInt8::pack(context.isa, codes, n, 1, k)]);
                let zero_points = vec![w_zero_point; n];
                let window = Window::of_rows(m);
                let product = Product::new(context, Arc::new(packed), zero_points, window, [n, k, 1], 1);
                let to = y_zero_point.map_or(To::Reals, |zero_point| To::Codes { zero_point, clamp });
                let bias = product.zero_point_terms(x_zero_point);
                let epilogue = Epilogue { bias, factor: factor.clone(), to, after: After::nothing() };
                let bytes = &mut out.bytes[(at + i) * bytes..(at + i + 1) * bytes];
                let mut part = TensorViewMut { dtype: out.dtype, shape: &shape, bytes };
                product.run(a, operands, 0, &epilogue, &mut part);
            }
        });
        Ok(())
    }))
}
