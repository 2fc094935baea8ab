//! OpenVINO on a CPU: Q and DQ become FakeQuantize, and its low precision passes move them to where both operands of a
//! product are quantized.

use crate::engine::graph::op::{Binary, Op, Unary};
use crate::engine::tensor::DType;

use super::Judged;
use super::net::{Net, is_reshape, on_codes};

/// What becomes of a node that computes.
pub(super) fn judge(net: &Net, n: usize) -> Judged {
    let node = net.node(n);
    if net.moves_codes(n) {
        return Judged::absorbed("it moves codes");
    }
    if on_codes(node) {
        return match node.op.name() {
            "MatMulInteger" | "ConvInteger" | "QLinearConv" | "QLinearMatMul" => Judged::float(
                "operator_on_codes",
                "OpenVINO computes operators on codes with converted operands, not with its INT8 kernels",
                "write the file in the QDQ form",
            ),
            name => {
                let text = format!("OpenVINO reads no {name}");
                Judged::refused("operator_on_codes", text, "write the file in the QDQ form")
            }
        };
    }
    if node.op.name() == "DynamicQuantizeLinear" {
        return Judged::float(
            "dynamic",
            "ranges that the run tells are computed in float",
            "use static ranges",
        );
    }
    if let Some(by) = followed(net, n) {
        return Judged::absorbed(format!("the kernel of `{}` does it", net.name(by)));
    }
    if !net.touches_codes(n) {
        return Judged::float("not_quantized", "nothing around it is quantized", "");
    }
    let before: Vec<usize> = (0..node.inputs.len()).filter_map(|i| net.dequantizer(n, i)).collect();
    let behind: Vec<usize> = node.outputs.iter().flat_map(|&o| net.quantizers(o)).collect();
    for &q in before.iter().chain(&behind) {
        match net.codes_of(q) {
            DType::U8 | DType::I8 | DType::I32 => {}
            other => {
                let text = format!("its codes are {other}: more levels than INT8 kernels have");
                return Judged::float("levels", text, "quantize to 8 bits");
            }
        }
    }
    let quantized = net.dequantizer(n, 0).is_some();
    match &node.op {
        Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul => product(net, n),
        Op::Other(o) if o.name == "ConvTranspose" => product(net, n),
        Op::Concat { .. } => concat(net, n),
        Op::Binary(Binary::Add | Binary::Mul) => match before.len() {
            2 => Judged::fuses("INT8 Eltwise"),
            _ => Judged::float(
                "operand_is_real",
                "not both of its operands are dequantized from codes",
                "quantize both",
            ),
        },
        Op::MaxPool { .. } | Op::AveragePool { .. } | Op::GlobalAveragePool if quantized => {
            Judged::fuses("INT8 Pooling")
        }
        op if is_reshape(op) || matches!(op, Op::Split { .. } | Op::Slice | Op::Gather { .. }) => {
            Judged { becomes: None, ..Judged::fuses("INT8") }
        }
        Op::Other(o) if o.name == "Resize" && quantized => Judged::fuses("INT8 Interpolate"),
        Op::Unary(Unary::Relu) | Op::Clip if quantized => Judged { becomes: None, ..Judged::fuses("INT8") },
        op => {
            let text = format!("OpenVINO computes {} on reals on a CPU", op.name());
            Judged::float("no_integer_kernel", text, "leave out the Q and DQ nodes around it")
        }
    }
}

fn product(net: &Net, n: usize) -> Judged {
    let op = &net.node(n).op;
    let (x, w) = (net.dequantizer(n, 0), net.dequantizer(n, 1));
    let Some((x, w)) = x.zip(w) else {
        let which = if x.is_none() { "activations" } else { "weights" };
        let text = format!("its {which} are not dequantized from codes: a product needs both");
        return Judged::float("data_and_weights", text, format!("quantize its {which}"));
    };
    let depthwise = matches!(op, Op::Conv { groups, .. } if *groups > 1);
    if net.params(x).is_some_and(|p| !p.is_scalar()) && !depthwise {
        let text = "its activations have a scale for each channel; only depthwise convolutions take that";
        return Judged::float("activation_per_axis", text, "use one scale for the tensor");
    }
    let want = match op {
        Op::Conv { .. } => 0,
        Op::Gemm { trans_b, .. } => i64::from(!trans_b),
        _ => 1,
    };
    let weights = net.params(w);
    if weights.as_ref().is_some_and(|p| p.scale.len() > 1 && p.axis != want && p.axis >= 0)
        && net.is_constant(net.node(n).inputs[1].expect("it has weights"))
        && net.constant(net.node(w).input(0)).is_some()
    {
        let text = format!("the scales of its weights do not run along its output channels (axis {want})");
        return Judged::float("axis", text, "quantize the weights by output channel");
    }
    Judged::fuses(match op {
        Op::Conv { .. } => "INT8 Convolution",
        Op::Gemm { .. } => "INT8 FullyConnected",
        Op::MatMul if net.is_constant(net.node(n).inputs[1].expect("it has weights")) => {
            "INT8 FullyConnected"
        }
        Op::MatMul => "INT8 MatMul",
        _ => "INT8 Deconvolution",
    })
}

fn concat(net: &Net, n: usize) -> Judged {
    let node = net.node(n);
    let params: Option<Vec<_>> = (0..node.inputs.len()).map(|i| net.params(net.dequantizer(n, i)?)).collect();
    match params {
        None => Judged::float(
            "operand_is_real",
            "not all of its operands are dequantized from codes",
            "quantize all",
        ),
        Some(params) if params.windows(2).all(|pair| pair[0].same_as(&pair[1])) => {
            Judged { becomes: None, ..Judged::fuses("INT8") }
        }
        Some(_) => Judged::float(
            "concat_scales",
            "its operands have different scales, which OpenVINO wants unified",
            "give all operands and the result one scale and zero point",
        ),
    }
}

/// The product whose kernel does a clamp that alone reads its result.
fn followed(net: &Net, n: usize) -> Option<usize> {
    let node = net.node(n);
    if !node.op.is_clamp() {
        return None;
    }
    let value = node.input(0)?;
    net.only_reader(value)?;
    let maker = net.maker(value)?;
    let weighted = matches!(
        net.node(maker).op,
        Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul | Op::Binary(Binary::Add)
    );
    (weighted && net.dequantizer(maker, 0).is_some() && net.dequantizer(maker, 1).is_some()).then_some(maker)
}
