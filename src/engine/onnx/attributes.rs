//! The attributes of each operator that has a variant of [`Op`], as ONNX writes them.

use bytes::Bytes;

use crate::engine::graph::op::{AutoPad, Binary, Op, PadMode, Scan, Sliding, Unary};
use crate::engine::tensor::Tensor;

use super::tensors::{attribute_to_proto, tensor_to_proto};
use super::{AttributeProto, GraphProto, attribute_type};

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i: Some(value),
        r#type: Some(attribute_type::INT),
        ..AttributeProto::default()
    }
}

pub(super) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        r#type: Some(attribute_type::INTS),
        ..AttributeProto::default()
    }
}

/// A graph: the body of a node.
pub(super) fn graph(name: &str, value: GraphProto) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        g: Some(Box::new(value)),
        r#type: Some(attribute_type::GRAPH),
        ..AttributeProto::default()
    }
}

fn sizes(name: &str, values: &[usize]) -> Option<AttributeProto> {
    let values: Vec<i64> = values.iter().map(|&v| v as i64).collect();
    (!values.is_empty()).then(|| ints(name, &values))
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        f: Some(value),
        r#type: Some(attribute_type::FLOAT),
        ..AttributeProto::default()
    }
}

fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        s: Some(Bytes::copy_from_slice(value.as_bytes())),
        r#type: Some(attribute_type::STRING),
        ..AttributeProto::default()
    }
}

fn tensor(name: &str, value: &Tensor) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        t: Some(Box::new(tensor_to_proto("", value))),
        r#type: Some(attribute_type::TENSOR),
        ..AttributeProto::default()
    }
}

/// An attribute, unless it has its default value: small files matter for small models.
fn unless<T: PartialEq>(
    value: T,
    default: T,
    make: impl FnOnce(T) -> AttributeProto,
) -> Option<AttributeProto> {
    (value != default).then(|| make(value))
}

fn flag(name: &str, value: bool, default: bool) -> Option<AttributeProto> {
    unless(value, default, |v| int(name, i64::from(v)))
}

fn sliding(s: &Sliding) -> Vec<AttributeProto> {
    let mut all: Vec<AttributeProto> = Vec::new();
    all.extend(sizes("kernel_shape", &s.kernel));
    all.extend(sizes("strides", &s.strides).filter(|_| s.strides.iter().any(|&v| v != 1)));
    all.extend(sizes("dilations", &s.dilations).filter(|_| s.dilations.iter().any(|&v| v != 1)));
    match s.auto_pad {
        AutoPad::Explicit => all.extend(sizes("pads", &s.pads).filter(|_| s.pads.iter().any(|&v| v != 0))),
        AutoPad::SameUpper => all.push(text("auto_pad", "SAME_UPPER")),
        AutoPad::SameLower => all.push(text("auto_pad", "SAME_LOWER")),
    }
    all.extend(flag("ceil_mode", s.ceil_mode, false));
    all
}

/// The attributes of an operator, but for its bodies.
pub(super) fn attributes(op: &Op) -> Vec<AttributeProto> {
    let mut all = Vec::new();
    match op {
        Op::Conv { sliding: s, groups } => {
            all = sliding(s);
            all.extend(unless(*groups, 1, |g| int("group", g as i64)));
        }
        Op::Gemm { alpha, beta, trans_a, trans_b } => {
            all.extend(unless(*alpha, 1.0, |v| float("alpha", v)));
            all.extend(unless(*beta, 1.0, |v| float("beta", v)));
            all.extend(flag("transA", *trans_a, false));
            all.extend(flag("transB", *trans_b, false));
        }
        Op::BatchNorm { epsilon } => all.push(float("epsilon", *epsilon)),
        Op::LayerNorm { axis, epsilon } => all.extend([int("axis", *axis), float("epsilon", *epsilon)]),
        Op::MaxPool { sliding: s } => all = sliding(s),
        Op::AveragePool { sliding: s, count_include_pad } => {
            all = sliding(s);
            all.extend(flag("count_include_pad", *count_include_pad, false));
        }
        Op::Unary(unary) => all = unary_attributes(*unary),
        Op::Binary(Binary::Mod { float }) => all.extend(flag("fmod", *float, false)),
        Op::Reduce { keep_dims, noop_with_empty_axes, .. } => {
            all.extend(flag("keepdims", *keep_dims, true));
            all.extend(flag("noop_with_empty_axes", *noop_with_empty_axes, false));
        }
        Op::Softmax { axis, .. } => all.extend(unless(*axis, -1, |v| int("axis", v))),
        Op::Transpose { perm } => all.extend(sizes("perm", perm)),
        Op::Reshape { allow_zero } => all.extend(flag("allowzero", *allow_zero, false)),
        Op::Flatten { axis } => all.extend(unless(*axis, 1, |v| int("axis", v))),
        Op::Concat { axis } => all.push(int("axis", *axis)),
        Op::Split { axis, .. } | Op::Gather { axis } => all.extend(unless(*axis, 0, |v| int("axis", v))),
        Op::Shape { start, end } => {
            all.extend(unless(*start, 0, |v| int("start", v)));
            all.extend(end.map(|v| int("end", v)));
        }
        Op::ConstantOfShape { value } => all.push(tensor("value", value)),
        Op::Pad { mode } => all.extend(pad_mode(*mode).map(|mode| text("mode", mode))),
        Op::Cast { to } => all.push(int("to", to.onnx_number().into())),
        Op::Other(other) => all.extend(other.attributes.iter().map(|(n, v)| attribute_to_proto(n, v))),
        Op::If | Op::Loop { .. } => {}
        Op::Scan(scan) => all = scan_attributes(scan),
        Op::QuantizeLinear { axis } | Op::DequantizeLinear { axis } => {
            all.extend(unless(*axis, 1, |v| int("axis", v)));
        }
        Op::MatMul
        | Op::GlobalAveragePool
        | Op::GlobalMaxPool
        | Op::Clip
        | Op::Binary(_)
        | Op::Squeeze
        | Op::Unsqueeze
        | Op::Slice
        | Op::Range
        | Op::Expand
        | Op::Tile
        | Op::Where
        | Op::MatMulInteger
        | Op::Identity => {}
        Op::QConv { .. }
        | Op::QMatMul { .. }
        | Op::QBinary { .. }
        | Op::QTable { .. }
        | Op::QAveragePool { .. }
        | Op::QGlobalAveragePool
        | Op::Recode
        | Op::QProduct { .. }
        | Op::ConvInteger { .. }
        | Op::RowProduct
        | Op::QConcat { .. } => panic!("{} is the executor's and has no ONNX form", op.name()),
    }
    all
}

fn unary_attributes(unary: Unary) -> Vec<AttributeProto> {
    match unary {
        Unary::LeakyRelu { alpha } | Unary::Elu { alpha } => vec![float("alpha", alpha)],
        Unary::HardSigmoid { alpha, beta } => vec![float("alpha", alpha), float("beta", beta)],
        Unary::Gelu { tanh: true } => vec![text("approximate", "tanh")],
        _ => Vec::new(),
    }
}

fn scan_attributes(scan: &Scan) -> Vec<AttributeProto> {
    let lists = |kind: &str, pairs: &[(i64, bool)]| {
        let axes: Vec<i64> = pairs.iter().map(|p| p.0).collect();
        let directions: Vec<i64> = pairs.iter().map(|p| i64::from(p.1)).collect();
        [ints(&format!("scan_{kind}_axes"), &axes), ints(&format!("scan_{kind}_directions"), &directions)]
    };
    let mut all = vec![int("num_scan_inputs", scan.inputs.len() as i64)];
    all.extend(lists("input", &scan.inputs));
    all.extend(lists("output", &scan.outputs));
    all
}

fn pad_mode(mode: PadMode) -> Option<&'static str> {
    match mode {
        PadMode::Constant => None,
        PadMode::Reflect => Some("reflect"),
        PadMode::Edge => Some("edge"),
        PadMode::Wrap => Some("wrap"),
    }
}
