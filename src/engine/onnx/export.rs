//! A [`Graph`] to ONNX bytes, in the lowest opset from 13 on that has all its operators.

use bytes::Bytes;
use prost::Message;

use crate::engine::graph::op::{AutoPad, Binary, Op, PadMode, Reduce, Scan, Sliding, Unary};
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::tensor::{DType, Tensor};

use super::tensors::{attribute_to_proto, dtype_to_onnx, tensor_to_proto};
use super::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
};

/// Lowest opset written: per-axis DequantizeLinear begins there.
const OPSET_MIN: i64 = 13;
/// From this opset on all reductions take their axes as an operand.
const REDUCE_AXES_OPERAND: i64 = 18;
/// ONNX IR version written: the one of opsets 16 to 18; readers of lower opsets know it too.
const IR_VERSION: i64 = 8;

/// The ONNX file of a graph. The same graph gives the same bytes.
/// `metadata` becomes `metadata_props`, in order.
///
/// # Panics
/// If the graph holds operators of the executor (`QConv` and its like): they have no ONNX form.
pub fn export(graph: &Graph, metadata: &[(String, String)]) -> Vec<u8> {
    let opset = graph.nodes.iter().map(|n| needed_opset(graph, n)).max().unwrap_or(OPSET_MIN).max(OPSET_MIN);
    let mut writer = Writer { graph, opset, nodes: Vec::new(), used: vec![false; graph.values.len()] };
    graph.nodes.iter().for_each(|n| writer.node(n));
    graph.outputs.iter().for_each(|o| writer.used[o.0 as usize] = true);
    let (used, nodes) = (writer.used, writer.nodes);
    let constants = graph.values.iter().zip(used).filter(|(_, used)| *used).map(|(value, _)| value);
    let initializers = constants.filter_map(|v| v.constant.as_ref().map(|t| tensor_to_proto(&v.name, t)));
    let proto = GraphProto {
        node: nodes,
        name: if graph.name.is_empty() { "graph".to_owned() } else { graph.name.clone() },
        initializer: initializers.collect(),
        input: graph.inputs.iter().map(|&v| value_info(graph.value(v))).collect(),
        output: graph.outputs.iter().map(|&v| value_info(graph.value(v))).collect(),
        value_info: Vec::new(),
    };
    let pair =
        |(key, value): &(String, String)| StringStringEntryProto { key: key.clone(), value: value.clone() };
    ModelProto {
        ir_version: Some(if opset > 18 { 9 } else { IR_VERSION }),
        producer_name: "octet".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(proto),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
        metadata_props: metadata.iter().map(pair).collect(),
        functions: Vec::new(),
    }
    .encode_to_vec()
}

/// The opset in which the form that we write appeared.
fn needed_opset(graph: &Graph, node: &Node) -> i64 {
    match &node.op {
        Op::LayerNorm { .. } => 17,
        Op::Unary(Unary::Gelu { .. }) => 20,
        Op::Unary(Unary::HardSwish) => 14,
        Op::Shape { start, end } if *start != 0 || end.is_some() => 15,
        Op::Pad { mode: PadMode::Wrap } => 19,
        Op::Pad { .. } if node.input(3).is_some() => 18,
        Op::Other(other) if other.domain.is_empty() => other.operator.opset(),
        Op::Loop { .. } | Op::If | Op::Scan(_) => {
            let bodies = node.bodies.iter().flat_map(|body| body.nodes.iter().map(|n| needed_opset(body, n)));
            bodies.max().unwrap_or(OPSET_MIN)
        }
        Op::Reduce { kind: Reduce::Sum, .. } => 13,
        // A constant list of axes can still be an attribute.
        Op::Reduce { noop_with_empty_axes: true, .. } => REDUCE_AXES_OPERAND,
        Op::Reduce { .. } => match node.input(1) {
            Some(axes) if graph.constant(axes).is_none() => REDUCE_AXES_OPERAND,
            _ => 13,
        },
        _ => OPSET_MIN,
    }
}

fn value_info(value: &Value) -> ValueInfoProto {
    let dimension = |d: &Dim| match d {
        Dim::Known(n) => DimensionProto { dim_value: Some(*n as i64), dim_param: None },
        Dim::Symbol(name) => DimensionProto { dim_value: None, dim_param: Some(name.clone()) },
        Dim::Unknown => DimensionProto::default(),
    };
    let shape =
        value.dims.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dimension).collect() });
    let elem_type = Some(dtype_to_onnx(value.dtype.unwrap_or(DType::F32)));
    let tensor_type = Some(TensorTypeProto { elem_type, shape });
    ValueInfoProto { name: value.name.clone(), r#type: Some(TypeProto { tensor_type }) }
}

struct Writer<'a> {
    graph: &'a Graph,
    opset: i64,
    nodes: Vec<NodeProto>,
    /// Values that some node reads or that the graph returns.
    used: Vec<bool>,
}

impl Writer<'_> {
    fn node(&mut self, node: &Node) {
        let mut attributes = attributes(&node.op);
        let mut inputs = node.inputs.clone();
        if let Op::Reduce { kind, .. } = &node.op
            && *kind != Reduce::Sum
            && self.opset < REDUCE_AXES_OPERAND
        {
            let axes = inputs.get(1).copied().flatten().and_then(|v| self.graph.constant(v));
            attributes.extend(axes.map(|axes| ints("axes", &axes.to_i64())));
            attributes.retain(|a| a.name != "noop_with_empty_axes");
            inputs.truncate(1);
        }
        if let Op::Split { outputs, .. } = &node.op
            && self.opset >= 18
            && node.input(1).is_none()
        {
            attributes.push(int("num_outputs", *outputs as i64));
        }
        if let Op::Softmax { coerce_2d: true, axis, log } = node.op {
            return self.softmax_of_old(node, axis, log);
        }
        let inputs: Vec<String> = inputs.iter().map(|v| self.name(*v)).collect();
        let outputs = node.outputs.iter().map(|v| self.graph.value(*v).name.clone()).collect();
        self.push(&node.name, node.op.name(), inputs, outputs, attributes);
    }

    /// Before opset 13 Softmax ran over all axes from `axis` on, as one: flatten, softmax, and back.
    fn softmax_of_old(&mut self, node: &Node, axis: i64, log: bool) {
        let x = self.name(node.input(0));
        let y = self.graph.value(node.outputs[0]).name.clone();
        let part = |suffix: &str| format!("{}_{suffix}", node.name);
        let kind = if log { "LogSoftmax" } else { "Softmax" };
        self.push(&part("shape"), "Shape", vec![x.clone()], vec![part("shape")], vec![]);
        self.push(&part("flat"), "Flatten", vec![x], vec![part("flat")], vec![int("axis", axis)]);
        self.push(&node.name, kind, vec![part("flat")], vec![part("soft")], vec![int("axis", -1)]);
        self.push(&part("back"), "Reshape", vec![part("soft"), part("shape")], vec![y], vec![]);
    }

    fn name(&mut self, id: Option<ValueId>) -> String {
        id.map_or_else(String::new, |id| {
            self.used[id.0 as usize] = true;
            self.graph.value(id).name.clone()
        })
    }

    fn push(
        &mut self,
        name: &str,
        op: &str,
        input: Vec<String>,
        output: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        let (name, op_type) = (name.to_owned(), op.to_owned());
        self.nodes.push(NodeProto { input, output, name, op_type, attribute, ..NodeProto::default() });
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i: Some(value),
        r#type: Some(attribute_type::INT),
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        r#type: Some(attribute_type::INTS),
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
        t: Some(tensor_to_proto("", value)),
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

fn attributes(op: &Op) -> Vec<AttributeProto> {
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
        Op::Cast { to } => all.push(int("to", dtype_to_onnx(*to).into())),
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
        | Op::Identity => {}
        Op::Recode
        | Op::QConv { .. }
        | Op::QProduct { .. }
        | Op::ConvInteger { .. }
        | Op::MatMulInteger
        | Op::QMatMul { .. }
        | Op::QBinary { .. }
        | Op::QTable { .. }
        | Op::QAveragePool { .. }
        | Op::QGlobalAveragePool
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
