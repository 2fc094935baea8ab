//! TensorRT with explicit quantization: symmetric int8, real biases, Q and DQ before what multiplies.

use crate::engine::graph::op::{Binary, Op, Unary};
use crate::engine::tensor::DType;

use super::net::{Net, is_reshape, on_codes};
use super::{Judged, Verdict};

/// What becomes of a node that computes.
pub(super) fn judge(net: &Net, n: usize) -> Judged {
    let node = net.node(n);
    if net.moves_codes(n) {
        return Judged::absorbed("it moves codes");
    }
    if on_codes(node) || node.op.name() == "DynamicQuantizeLinear" {
        let text = format!(
            "TensorRT reads no {}: it takes Q and DQ nodes around operators on reals",
            node.op.name()
        );
        return Judged::refused("operator_on_codes", text, "write the file in the QDQ form");
    }
    if let Some(refused) = refused(net, n) {
        return refused;
    }
    if let Some(by) = followed(net, n) {
        return Judged::absorbed(format!("the kernel of `{}` does it", net.name(by)));
    }
    if !(net.touches_codes(n) || moves(&node.op) && leads_to_quantizer(net, n)) {
        return Judged::float("not_quantized", "nothing around it is quantized", "");
    }
    let before: Vec<bool> = (0..node.inputs.len()).map(|i| net.dequantizer(n, i).is_some()).collect();
    let behind = node.outputs.iter().any(|&o| !net.quantizers(o).is_empty());
    match &node.op {
        op if is_weighted(op) => weighted(net, n),
        Op::Binary(Binary::Add) => sum(net, n, &before),
        Op::Concat { .. } => concat(net, n, behind),
        op if moves(op) => match before.first() == Some(&true) || leads_to_quantizer(net, n) {
            true => Judged { becomes: None, ..Judged::fuses("INT8") },
            false => real(net, n),
        },
        op if has_int8(op) => match before.contains(&true) && behind {
            true => Judged::fuses(if is_pool(op) { "INT8 Pooling" } else { "INT8 ElementWise" }),
            false => real(net, n),
        },
        op => {
            let text = format!("{} is computed in the wider type", op.name());
            Judged::float("no_int8_kernel", text, "leave out the Q and DQ nodes around it")
        }
    }
}

/// What TensorRT's parser or builder stops at.
fn refused(net: &Net, n: usize) -> Option<Judged> {
    let node = net.node(n);
    if is_weighted(&node.op)
        && let Some(bias) = net.dequantizer(n, 2)
    {
        let text = format!(
            "its bias comes from DequantizeLinear (`{}`), which takes activations only",
            net.name(bias)
        );
        return Some(Judged::refused("bias_dequantized", text, "leave the bias in float"));
    }
    let before = (0..node.inputs.len()).filter_map(|i| Some((Some(i), net.dequantizer(n, i)?)));
    let behind = node.outputs.iter().flat_map(|&o| net.quantizers(o)).map(|q| (None, q));
    for (operand, q) in before.chain(behind) {
        let name = match operand {
            Some(i) => format!("operand {i} (`{}`)", net.value_name(net.node(n).inputs[i]?)),
            None => "its result".to_owned(),
        };
        let dtype = net.codes_of(q);
        if dtype != DType::I8 {
            let text = format!("{name} has codes of {dtype}; TensorRT takes int8");
            return Some(Judged::refused("codes_type", text, "quantize to int8, symmetric"));
        }
        let Some(params) = net.params(q) else {
            let text = format!("{name}: scale or zero point are not constants");
            return Some(Judged::refused("parameters", text, "write them as constants"));
        };
        if !params.is_symmetric() {
            let text = format!("{name} has zero point {}; TensorRT takes 0 only", params.zero());
            return Some(Judged::refused("zero_point", text, "quantize symmetrically: zero point 0"));
        }
        let constant = operand.and_then(|i| node.input(i)).is_some_and(|id| net.is_constant(id));
        if !params.is_scalar() && !constant {
            let text = format!("{name} is an activation with a scale for each channel");
            return Some(Judged::refused("activation_per_axis", text, "use one scale for the tensor"));
        }
    }
    None
}

fn is_weighted(op: &Op) -> bool {
    matches!(op, Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul)
        || matches!(op, Op::Other(o) if o.name == "ConvTranspose")
}

fn is_pool(op: &Op) -> bool {
    matches!(op, Op::AveragePool { .. } | Op::GlobalAveragePool | Op::GlobalMaxPool)
}

/// Q and DQ nodes move across these.
fn moves(op: &Op) -> bool {
    is_reshape(op)
        || matches!(op, Op::MaxPool { .. } | Op::Split { .. } | Op::Slice | Op::Gather { .. } | Op::Identity)
}

/// Whether what a node makes goes to a quantizer, past nodes that it moves across.
fn leads_to_quantizer(net: &Net, mut n: usize) -> bool {
    while let [result] = net.node(n).outputs[..]
        && let Some((reader, 0)) = net.only_reader(result)
    {
        if net.is_quantizer(reader) {
            return true;
        }
        if !moves(&net.node(reader).op) {
            return false;
        }
        n = reader;
    }
    false
}

fn has_int8(op: &Op) -> bool {
    is_pool(op)
        || matches!(op, Op::Binary(Binary::Mul | Binary::Sub | Binary::Min | Binary::Max))
        || matches!(
            op,
            Op::Unary(Unary::Relu | Unary::Sigmoid | Unary::LeakyRelu { .. } | Unary::HardSwish) | Op::Clip
        )
        || matches!(op, Op::Other(o) if o.name == "Resize")
}

fn real(net: &Net, n: usize) -> Judged {
    let text = match net.node(n).outputs.iter().any(|&o| !net.quantizers(o).is_empty()) {
        true => "its operands are real",
        false => "its result is not quantized: Q and DQ do not move across it",
    };
    Judged::float("wider_type", text, "put Q and DQ on both sides, or on none")
}

/// Axis of the scales of the weights.
fn axis_of_outputs(op: &Op) -> i64 {
    match op {
        Op::Conv { .. } => 0,
        Op::Gemm { trans_b, .. } => i64::from(!trans_b),
        _ => 1,
    }
}

fn weighted(net: &Net, n: usize) -> Judged {
    let op = &net.node(n).op;
    let (x, w) = (net.dequantizer(n, 0), net.dequantizer(n, 1));
    let Some((_, w)) = x.zip(w) else {
        let which = if x.is_none() { "first operand" } else { "second operand" };
        let text = format!("its {which} is not dequantized from codes: both must be");
        return Judged::float("operand_is_real", text, format!("quantize its {which}"));
    };
    if let Some(params) = net.params(w)
        && params.scale.len() > 1
        && params.axis != axis_of_outputs(op)
    {
        let text = format!(
            "the scales of its weights run along axis {}, not {} as its output channels do",
            params.axis,
            axis_of_outputs(op)
        );
        return Judged::refused("axis", text, "quantize the weights by output channel");
    }
    Judged::fuses(match op {
        Op::Conv { .. } => "INT8 Convolution",
        Op::Gemm { .. } | Op::MatMul => "INT8 MatrixMultiply",
        _ => "INT8 Deconvolution",
    })
}

/// The product that a node follows in one kernel: a clamp or a sum that reads its real result.
fn followed(net: &Net, n: usize) -> Option<usize> {
    let node = net.node(n);
    let clamp = node.op.is_clamp();
    let operands = if clamp { 0..1 } else { 0..node.inputs.len() };
    if !clamp && !matches!(node.op, Op::Binary(Binary::Add)) {
        return None;
    }
    operands.into_iter().find_map(|i| {
        let value = node.input(i)?;
        net.only_reader(value)?;
        let maker = net.maker(value)?;
        let product = is_weighted(&net.node(maker).op) && weighted(net, maker).verdict == Verdict::Fuses;
        if product { Some(maker) } else { followed(net, maker).filter(|_| clamp) }
    })
}

/// A sum that no product takes over. Where a Q stands between a convolution and it, it is a kernel of its own.
fn sum(net: &Net, n: usize, before: &[bool]) -> Judged {
    if before.contains(&false) {
        return real(net, n);
    }
    let node = net.node(n);
    let behind_conv = (0..2).find_map(|i| {
        let codes = net.node(net.dequantizer(n, i)?).input(0)?;
        let real = net.node(net.maker(codes)?).input(0)?;
        let maker = net.maker(real)?;
        is_weighted(&net.node(maker).op).then_some(maker)
    });
    let mut judged = Judged::fuses("INT8 ElementWise");
    if let Some(conv) = behind_conv {
        judged.rule = "residual";
        judged.reason = format!(
            "Q and DQ stand between `{}` and {}, so the sum is a kernel of its own",
            net.name(conv),
            node.op.name()
        );
        judged.remedy = "quantize only the operand that skips the layers".to_owned();
    }
    judged
}

fn concat(net: &Net, n: usize, behind: bool) -> Judged {
    let node = net.node(n);
    let params: Option<Vec<_>> = (0..node.inputs.len()).map(|i| net.params(net.dequantizer(n, i)?)).collect();
    match params {
        None if !behind => real(net, n),
        None => Judged { becomes: None, ..Judged::fuses("INT8") },
        Some(params) if params.windows(2).all(|pair| pair[0].same_as(&pair[1])) => {
            Judged { becomes: None, ..Judged::fuses("INT8") }
        }
        Some(_) => Judged::float(
            "concat_scales",
            "its operands have different scales: it joins reals",
            "give all operands one scale",
        ),
    }
}
