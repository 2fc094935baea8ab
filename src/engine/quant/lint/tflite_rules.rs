//! The quantization specification of TensorFlow Lite, which Arm NN and Ethos-U take: int8 throughout, one scale across
//! what moves values, fixed scales behind some functions.

use crate::engine::graph::op::{Binary, Op, PadMode, Reduce, Unary};
use crate::engine::tensor::DType;

use super::Judged;
use super::net::{Net, Params, on_codes};

/// How far apart, relatively, two scales may be that should be one.
const TOLERANCE: f32 = 1e-6;

/// What becomes of a node that computes.
pub(super) fn judge(net: &Net, n: usize) -> Judged {
    let node = net.node(n);
    if net.moves_codes(n) {
        return Judged::absorbed("it moves codes");
    }
    if on_codes(node) || node.op.name() == "DynamicQuantizeLinear" {
        let text = "converters to TensorFlow Lite take Q and DQ nodes around operators on reals";
        return Judged::refused("operator_on_codes", text, "write the file in the QDQ form");
    }
    if let Some(by) = fused_into(net, n) {
        return Judged::absorbed(format!("a fused activation of `{}`", net.name(by)));
    }
    if !net.touches_codes(n) {
        return Judged::float("not_quantized", "nothing around it is quantized", "");
    }
    let Some(becomes) = operator(&node.op) else {
        let text = format!("the specification has no {} of int8", node.op.name());
        return Judged::float("no_int8_operator", text, "leave out the Q and DQ nodes around it");
    };
    match check(net, n, becomes) {
        Ok(()) => Judged::fuses(becomes),
        Err(judged) => judged,
    }
}

/// The operator of the specification.
fn operator(op: &Op) -> Option<&'static str> {
    Some(match op {
        Op::Conv { groups: 1, .. } => "CONV_2D",
        Op::Conv { .. } => "DEPTHWISE_CONV_2D",
        Op::Gemm { .. } => "FULLY_CONNECTED",
        Op::MatMul => "BATCH_MATMUL",
        Op::Binary(Binary::Add) => "ADD",
        Op::Binary(Binary::Sub) => "SUB",
        Op::Binary(Binary::Mul) => "MUL",
        Op::Binary(Binary::Max) => "MAXIMUM",
        Op::Binary(Binary::Min) => "MINIMUM",
        Op::AveragePool { .. } => "AVERAGE_POOL_2D",
        Op::GlobalAveragePool | Op::Reduce { kind: Reduce::Mean, .. } => "MEAN",
        Op::MaxPool { .. } | Op::GlobalMaxPool => "MAX_POOL_2D",
        Op::Concat { .. } => "CONCATENATION",
        Op::Reshape { .. } | Op::Flatten { .. } | Op::Unsqueeze => "RESHAPE",
        Op::Squeeze => "SQUEEZE",
        Op::Transpose { .. } => "TRANSPOSE",
        Op::Slice | Op::Split { .. } => "SLICE",
        Op::Gather { .. } => "GATHER",
        Op::Pad { mode: PadMode::Constant } => "PAD",
        Op::Unary(Unary::Sigmoid) => "LOGISTIC",
        Op::Unary(Unary::Tanh) => "TANH",
        Op::Unary(Unary::HardSwish) => "HARD_SWISH",
        Op::Unary(Unary::LeakyRelu { .. }) => "LEAKY_RELU",
        Op::Unary(Unary::Relu) | Op::Clip => "RELU",
        Op::Softmax { log: false, .. } => "SOFTMAX",
        Op::Softmax { log: true, .. } => "LOG_SOFTMAX",
        Op::Other(o) => match o.name {
            "Resize" => "RESIZE_BILINEAR",
            "SpaceToDepth" => "SPACE_TO_DEPTH",
            "DepthToSpace" => "DEPTH_TO_SPACE",
            "ConvTranspose" => "TRANSPOSE_CONV",
            _ => return None,
        },
        _ => return None,
    })
}

/// Operators whose operands and result have one scale and zero point.
const SHARED: [&str; 16] = [
    "AVERAGE_POOL_2D",
    "MAX_POOL_2D",
    "CONCATENATION",
    "RESHAPE",
    "SQUEEZE",
    "TRANSPOSE",
    "SLICE",
    "GATHER",
    "PAD",
    "RESIZE_BILINEAR",
    "SPACE_TO_DEPTH",
    "DEPTH_TO_SPACE",
    "MAXIMUM",
    "MINIMUM",
    "BATCH_TO_SPACE",
    "SPACE_TO_BATCH",
];

/// Scale and zero point that a result must have.
const FIXED: [(&str, f32, i64); 4] = [
    ("LOGISTIC", 1.0 / 256.0, -128),
    ("SOFTMAX", 1.0 / 256.0, -128),
    ("TANH", 1.0 / 128.0, 0),
    ("LOG_SOFTMAX", 16.0 / 256.0, 127),
];

/// Operands that are activations.
fn activations(op: &Op, given: usize) -> usize {
    match op {
        Op::Binary(_) => 2,
        Op::Concat { .. } => given,
        Op::MatMul => 2,
        _ => 1,
    }
}

fn check(net: &Net, n: usize, becomes: &'static str) -> Result<(), Judged> {
    let node = net.node(n);
    let weighted =
        matches!(node.op, Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul) || becomes == "TRANSPOSE_CONV";
    let constant_weights = weighted && node.input(1).is_some_and(|w| net.is_constant(w));
    let count = if constant_weights { 1 } else { activations(&node.op, node.inputs.len()) };
    let mut before = Vec::new();
    for i in 0..count {
        let name = node.input(i).map_or("", |id| net.value_name(id));
        let Some(dq) = net.dequantizer(n, i) else {
            let text = format!("operand {i} (`{name}`) is real: the specification has no mixed operators");
            return Err(Judged::float("operand_is_real", text, format!("quantize `{name}`")));
        };
        before.push(activation(net, dq, &format!("operand {i} (`{name}`)"))?);
    }
    if constant_weights {
        weights(net, n, &before[0])?;
    }
    // The result behind a fused activation.
    let mut behind = Vec::new();
    for &output in &node.outputs {
        let mut end = output;
        while let Some((reader, 0)) = net.only_reader(end)
            && fused_into(net, reader) == Some(n)
        {
            end = net.node(reader).outputs[0];
        }
        let quantizers = net.quantizers(end);
        let Some(&q) = quantizers.first() else {
            let text = "its result is real: the specification has no mixed operators";
            return Err(Judged::float("result_is_real", text, "quantize its result"));
        };
        behind.push(activation(net, q, "its result")?);
    }
    if SHARED.contains(&becomes)
        && let Some(other) = before.iter().chain(&behind).find(|p| !p.same_as(&before[0]))
    {
        let text = format!(
            "{becomes} asks for one scale and zero point across operands and result; here are {} and {}",
            before[0].text(),
            other.text()
        );
        return Err(Judged::refused(
            "shared_scale",
            text,
            "give its operands and its result the same parameters",
        ));
    }
    if let Some((_, scale, zero)) = FIXED.iter().find(|f| f.0 == becomes)
        && let Some(params) = behind.first()
        && ((params.scale[0] / scale - 1.0).abs() > TOLERANCE || params.zero() != *zero)
    {
        let text = format!("{becomes} gives scale {scale}, zero point {zero}; here it is {}", params.text());
        return Err(Judged::refused(
            "fixed_output",
            text,
            format!("quantize its result with {scale} and {zero}"),
        ));
    }
    Ok(())
}

/// Parameters of an activation: int8, one scale.
fn activation(net: &Net, q: usize, name: &str) -> Result<Params, Judged> {
    let dtype = net.codes_of(q);
    if dtype != DType::I8 {
        let text = format!("{name} has codes of {dtype}; the specification has int8");
        return Err(Judged::refused("codes_type", text, "quantize activations to int8"));
    }
    match net.params(q) {
        Some(params) if params.is_scalar() => Ok(params),
        Some(_) => {
            let text = format!("{name} has a scale for each channel");
            Err(Judged::refused("activation_per_axis", text, "use one scale for the tensor"))
        }
        None => {
            let text = format!("{name}: scale or zero point are not constants");
            Err(Judged::refused("parameters", text, "write them as constants"))
        }
    }
}

fn weights(net: &Net, n: usize, x: &Params) -> Result<(), Judged> {
    let node = net.node(n);
    let Some(dq) = net.dequantizer(n, 1) else {
        return Err(Judged::float("operand_is_real", "its weights are real", "quantize its weights"));
    };
    let Some(w) = net.params(dq) else {
        return Err(Judged::refused("parameters", "scales of its weights are not constants", ""));
    };
    if w.dtype != DType::I8 || !w.is_symmetric() {
        let text = format!("its weights are {} with zero point {}", w.dtype, w.zero());
        return Err(Judged::refused("weights", text, "quantize weights to int8 with zero point 0"));
    }
    if let Some(codes) = net.constant(net.node(dq).input(0))
        && codes.dtype() == DType::I8
        && codes.slice::<i8>().contains(&-128)
    {
        let text = "its weights hold the code -128; the specification has -127 to 127";
        return Err(Judged::refused("weights_range", text, "quantize weights to -127 to 127"));
    }
    let want = if let Op::Conv { .. } = node.op { 0 } else { 1 };
    if w.scale.len() > 1 && matches!(node.op, Op::Conv { .. }) && w.axis != want {
        let text = format!("the scales of its weights run along axis {}", w.axis);
        return Err(Judged::refused("axis", text, "quantize the weights by output channel"));
    }
    let Some(bias) = node.input(2) else { return Ok(()) };
    let Some(dq) = net.dequantizer(n, 2) else {
        let text = format!("its bias (`{}`) is real", net.value_name(bias));
        return Err(Judged::refused("bias_is_real", text, "store the bias as int32 with scale_x · scale_w"));
    };
    let fits = net.params(dq).is_some_and(|b| {
        let unit = |i: usize| x.scale[0] * w.scale[if w.scale.len() == 1 { 0 } else { i }];
        let near = |(i, s): (usize, &f32)| (s / unit(i.min(w.scale.len() - 1)) - 1.0).abs() < 1e-4;
        b.dtype == DType::I32 && b.is_symmetric() && b.scale.iter().enumerate().all(near)
    });
    match fits {
        true => Ok(()),
        false => Err(Judged::refused(
            "bias_scale",
            "its bias is not int32 with scale_x · scale_w and zero point 0",
            "store the bias as int32 with scale_x · scale_w",
        )),
    }
}

/// The operator that has a clamp as its fused activation.
fn fused_into(net: &Net, n: usize) -> Option<usize> {
    let node = net.node(n);
    if !node.op.is_clamp() {
        return None;
    }
    let value = node.input(0)?;
    net.only_reader(value)?;
    let maker = net.maker(value)?;
    let takes = matches!(
        net.node(maker).op,
        Op::Conv { .. } | Op::Gemm { .. } | Op::Binary(Binary::Add | Binary::Mul | Binary::Sub)
    );
    takes.then_some(maker).or_else(|| fused_into(net, maker))
}
