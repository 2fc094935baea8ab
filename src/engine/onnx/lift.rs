//! The operators that the importer takes: ONNX name and attributes to [`Op`], old forms lifted to new ones.

use crate::engine::graph::attributes::Attributes;
use crate::engine::graph::op::{self, Binary, Op, PadMode, Reduce, Sliding, Unary};
use crate::engine::graph::operator::Call;
use crate::engine::ops::registry;
use crate::engine::tensor::{DType, Tensor};

use super::tensors::dtype_from_onnx;

/// An operator in the form of opset 18.
pub(super) struct Lifted {
    /// What the node does.
    pub(super) op: Op,
    /// Operands that older opsets wrote as attributes: position and data.
    pub(super) added: Vec<(usize, Tensor)>,
    /// Before opset 7: the axis of operand 0 on which the axes of operand 1 begin.
    pub(super) aligned_at: Option<i64>,
}

impl Lifted {
    fn with(op: Op, added: Vec<(usize, Tensor)>) -> Lifted {
        Lifted { op, added, aligned_at: None }
    }
}

impl From<Op> for Lifted {
    fn from(op: Op) -> Lifted {
        Lifted::with(op, Vec::new())
    }
}

/// Operators with one operand and no attribute.
const PLAIN_UNARY: &[(&str, Unary)] = &[
    ("Relu", Unary::Relu),
    ("Sigmoid", Unary::Sigmoid),
    ("HardSwish", Unary::HardSwish),
    ("Tanh", Unary::Tanh),
    ("Erf", Unary::Erf),
    ("Softplus", Unary::Softplus),
    ("Exp", Unary::Exp),
    ("Log", Unary::Log),
    ("Sqrt", Unary::Sqrt),
    ("Reciprocal", Unary::Reciprocal),
    ("Neg", Unary::Neg),
    ("Abs", Unary::Abs),
    ("Sign", Unary::Sign),
    ("Floor", Unary::Floor),
    ("Ceil", Unary::Ceil),
    ("Round", Unary::Round),
    ("Sin", Unary::Sin),
    ("Cos", Unary::Cos),
    ("Not", Unary::Not),
];

/// Operators with two operands that broadcast.
const BINARY: &[(&str, Binary)] = &[
    ("Add", Binary::Add),
    ("Sub", Binary::Sub),
    ("Mul", Binary::Mul),
    ("Div", Binary::Div),
    ("Pow", Binary::Pow),
    ("Min", Binary::Min),
    ("Max", Binary::Max),
    ("Sum", Binary::Add),
    ("Equal", Binary::Equal),
    ("Less", Binary::Less),
    ("LessOrEqual", Binary::LessOrEqual),
    ("Greater", Binary::Greater),
    ("GreaterOrEqual", Binary::GreaterOrEqual),
    ("And", Binary::And),
    ("Or", Binary::Or),
    ("Xor", Binary::Xor),
];

/// The reductions.
const REDUCE: &[(&str, Reduce)] = &[
    ("ReduceSum", Reduce::Sum),
    ("ReduceMean", Reduce::Mean),
    ("ReduceMax", Reduce::Max),
    ("ReduceMin", Reduce::Min),
    ("ReduceProd", Reduce::Prod),
    ("ReduceSumSquare", Reduce::SumSquare),
    ("ReduceL1", Reduce::L1),
    ("ReduceL2", Reduce::L2),
    ("ReduceLogSum", Reduce::LogSum),
    ("ReduceLogSumExp", Reduce::LogSumExp),
];

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(n, _)| *n == name).map(|(_, t)| *t)
}

/// What a node does; `None` where the operator is not supported.
///
/// # Errors
/// A sentence about the attribute that is wrong or not supported.
pub(super) fn lift(call: &Call<'_>) -> Result<Option<Lifted>, String> {
    // com.microsoft has both for types that ONNX took later.
    let linear = matches!(call.name, "QuantizeLinear" | "DequantizeLinear");
    if (call.domain.is_empty() || (call.domain == "com.microsoft" && linear))
        && let Some(lifted) = lift_own(call)?
    {
        return Ok(Some(lifted));
    }
    let parsed = registry::parse(call)?;
    // Before opset 7 a slope was one number a channel: axis 1.
    let aligned_at = (call.name == "PRelu" && call.opset < 7).then_some(1);
    Ok(parsed.map(|p| Lifted { op: Op::Other(p.other), added: p.added, aligned_at }))
}

/// The operators that have a variant of [`Op`].
fn lift_own(call: &Call<'_>) -> Result<Option<Lifted>, String> {
    let (a, name, opset) = (call.attributes, call.name, call.opset);
    if let Some(unary) = find(PLAIN_UNARY, name) {
        return Ok(Some(Op::Unary(unary).into()));
    }
    if let Some(binary) = find(BINARY, name) {
        let mut lifted = Lifted::from(Op::Binary(binary));
        if opset < 7 && a.flag("broadcast", false)? {
            lifted.aligned_at = a.int("axis")?;
        }
        return Ok(Some(lifted));
    }
    if let Some(kind) = find(REDUCE, name) {
        let op = Op::Reduce {
            kind,
            keep_dims: a.flag("keepdims", true)?,
            noop_with_empty_axes: a.flag("noop_with_empty_axes", false)?,
        };
        return Ok(Some(Lifted::with(op, int_operand(1, a.ints("axes")?))));
    }
    let op = match name {
        "Conv" => Op::Conv { sliding: Sliding::read(a)?, groups: op::groups(a)? },
        "Gemm" => Op::Gemm {
            alpha: a.float_or("alpha", 1.0)?,
            beta: a.float_or("beta", 1.0)?,
            trans_a: a.flag("transA", false)?,
            trans_b: a.flag("transB", false)?,
        },
        "MatMul" => Op::MatMul,
        "BatchNormalization" => match batch_norm(call)? {
            Some(op) => op,
            None => return Ok(None),
        },
        "LayerNormalization" => match layer_norm(call)? {
            Some(op) => op,
            None => return Ok(None),
        },
        "MaxPool" => match max_pool(call)? {
            Some(op) => op,
            None => return Ok(None),
        },
        "AveragePool" => Op::AveragePool {
            sliding: Sliding::read(a)?,
            count_include_pad: a.flag("count_include_pad", false)?,
        },
        "GlobalAveragePool" => Op::GlobalAveragePool,
        "GlobalMaxPool" => Op::GlobalMaxPool,
        "LeakyRelu" => Op::Unary(Unary::LeakyRelu { alpha: a.float_or("alpha", 0.01)? }),
        "Elu" => Op::Unary(Unary::Elu { alpha: a.float_or("alpha", 1.0)? }),
        "HardSigmoid" => {
            Op::Unary(Unary::HardSigmoid { alpha: a.float_or("alpha", 0.2)?, beta: a.float_or("beta", 0.5)? })
        }
        "Gelu" => gelu(a)?,
        "Mod" => Op::Binary(Binary::Mod { float: a.flag("fmod", false)? }),
        "Clip" => return clip(a, opset).map(Some),
        "Softmax" | "LogSoftmax" => Op::Softmax {
            axis: a.int_or("axis", if opset < 13 { 1 } else { -1 })?,
            log: name == "LogSoftmax",
            coerce_2d: opset < 13,
        },
        "Transpose" => Op::Transpose { perm: a.sizes("perm")?.unwrap_or_default() },
        "Reshape" => return reshape(a).map(Some),
        "Flatten" => Op::Flatten { axis: a.int_or("axis", 1)? },
        "Squeeze" => return Ok(Some(Lifted::with(Op::Squeeze, int_operand(1, a.ints("axes")?)))),
        "Unsqueeze" => return Ok(Some(Lifted::with(Op::Unsqueeze, int_operand(1, a.ints("axes")?)))),
        "Concat" => Op::Concat { axis: a.int("axis")?.ok_or("attribute `axis` is missing")? },
        "Split" => {
            let op = Op::Split { axis: a.int_or("axis", 0)?, outputs: call.outputs.len() };
            return Ok(Some(Lifted::with(op, int_operand(1, a.ints("split")?))));
        }
        "Slice" => return slice(a, opset).map(Some),
        "Gather" => Op::Gather { axis: a.int_or("axis", 0)? },
        "Shape" => Op::Shape { start: a.int_or("start", 0)?, end: a.int("end")? },
        "ConstantOfShape" => Op::ConstantOfShape {
            value: a.tensor("value")?.cloned().unwrap_or_else(|| Tensor::from_slice(&[1], &[0.0f32])),
        },
        "Range" => Op::Range,
        "Expand" => Op::Expand,
        "Tile" => Op::Tile,
        "Where" => Op::Where,
        "Pad" => return pad(a, opset).map(Some),
        "Cast" => Op::Cast { to: cast_target(a)? },
        "Identity" => Op::Identity,
        // In inference Dropout does nothing. One that gives its mask is an operator of its own.
        "Dropout" if !call.wants(1) => Op::Identity,
        // Scales by block, and types that no zero point tells, are operators of their own.
        "QuantizeLinear" | "DequantizeLinear" if a.int_or("block_size", 0)? != 0 => return Ok(None),
        "QuantizeLinear" | "DequantizeLinear" if a.int_or("output_dtype", 0)? != 0 => return Ok(None),
        "QuantizeLinear" => Op::QuantizeLinear { axis: a.int_or("axis", 1)? },
        "DequantizeLinear" => Op::DequantizeLinear { axis: a.int_or("axis", 1)? },
        _ => return Ok(None),
    };
    Ok(Some(op.into()))
}

fn int_operand(position: usize, ints: Option<Vec<i64>>) -> Vec<(usize, Tensor)> {
    ints.map(|ints| (position, Tensor::from_slice(&[ints.len()], &ints))).into_iter().collect()
}

/// MaxPool with indices is an operator of its own.
fn max_pool(call: &Call<'_>) -> Result<Option<Op>, String> {
    if call.wants(1) {
        return Ok(None);
    }
    Ok(Some(Op::MaxPool { sliding: Sliding::read(call.attributes)? }))
}

/// BatchNormalization as in training is an operator of its own.
fn batch_norm(call: &Call<'_>) -> Result<Option<Op>, String> {
    let a = call.attributes;
    a.only("spatial", 1)?;
    if a.flag("training_mode", false)? || call.outputs.iter().skip(1).any(|&wanted| wanted) {
        return Ok(None);
    }
    // Before opset 9: one mean a pixel.
    a.only("spatial", 1)?;
    Ok(Some(Op::BatchNorm { epsilon: a.float_or("epsilon", 1e-5)? }))
}

/// LayerNormalization that gives its mean and deviation is an operator of its own.
fn layer_norm(call: &Call<'_>) -> Result<Option<Op>, String> {
    let a = call.attributes;
    if call.wants(1) || call.wants(2) {
        return Ok(None);
    }
    Ok(Some(Op::LayerNorm { axis: a.int_or("axis", -1)?, epsilon: a.float_or("epsilon", 1e-5)? }))
}

fn gelu(a: &Attributes) -> Result<Op, String> {
    match a.text("approximate")? {
        None | Some("none") => Ok(Op::Unary(Unary::Gelu { tanh: false })),
        Some("tanh") => Ok(Op::Unary(Unary::Gelu { tanh: true })),
        Some(other) => Err(format!("approximate={other} is not supported")),
    }
}

fn clip(a: &Attributes, opset: i64) -> Result<Lifted, String> {
    let mut added = Vec::new();
    if opset < 11 {
        added.push((1, Tensor::scalar(a.float_or("min", f32::MIN)?)));
        added.push((2, Tensor::scalar(a.float_or("max", f32::MAX)?)));
    }
    Ok(Lifted::with(Op::Clip, added))
}

fn reshape(a: &Attributes) -> Result<Lifted, String> {
    let op = Op::Reshape { allow_zero: a.flag("allowzero", false)? };
    Ok(Lifted::with(op, int_operand(1, a.ints("shape")?)))
}

fn slice(a: &Attributes, opset: i64) -> Result<Lifted, String> {
    let mut added = Vec::new();
    if opset < 10 {
        let list = |name: &str| -> Result<Vec<i64>, String> {
            a.ints(name)?.ok_or_else(|| format!("attribute `{name}` is missing"))
        };
        added.extend(int_operand(1, Some(list("starts")?)));
        added.extend(int_operand(2, Some(list("ends")?)));
        added.extend(int_operand(3, a.ints("axes")?));
    }
    Ok(Lifted::with(Op::Slice, added))
}

fn pad(a: &Attributes, opset: i64) -> Result<Lifted, String> {
    let mode = match a.text("mode")? {
        None | Some("constant") => PadMode::Constant,
        Some("reflect") => PadMode::Reflect,
        Some("edge") => PadMode::Edge,
        Some("wrap") => PadMode::Wrap,
        Some(other) => return Err(format!("mode={other} is not supported")),
    };
    let mut added = Vec::new();
    if opset < 11 {
        added.extend(int_operand(1, Some(a.ints("pads")?.ok_or("attribute `pads` is missing")?)));
        added.push((2, Tensor::scalar(a.float_or("value", 0.0)?)));
    }
    Ok(Lifted::with(Op::Pad { mode }, added))
}

fn cast_target(a: &Attributes) -> Result<DType, String> {
    let number = a.int("to")?.ok_or("attribute `to` is missing")?;
    dtype_from_onnx(i32::try_from(number).unwrap_or(-1))
}

/// Names of the operators that have a variant of [`Op`], and of those that the importer takes itself.
pub(super) fn supported() -> Vec<&'static str> {
    let mut names: Vec<&str> = PLAIN_UNARY.iter().map(|(n, _)| *n).collect();
    names.extend(BINARY.iter().map(|(n, _)| *n));
    names.extend(REDUCE.iter().map(|(n, _)| *n));
    names.extend(OTHERS);
    names.sort_unstable();
    names
}

/// The arms of [`lift_own`], and what the importer takes itself.
const OTHERS: &[&str] = &[
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "DequantizeLinear",
    "Dropout",
    "Elu",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "Identity",
    "If",
    "LayerNormalization",
    "LeakyRelu",
    "LogSoftmax",
    "Loop",
    "MatMul",
    "MaxPool",
    "Mod",
    "Pad",
    "QuantizeLinear",
    "Range",
    "Reshape",
    "Scan",
    "Shape",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn call<'a>(name: &'a str, attributes: &'a Attributes) -> Call<'a> {
        Call { domain: "", name, opset: 18, attributes, inputs: vec![true; 3], outputs: vec![true] }
    }

    /// Taken by the importer itself.
    const IMPORTER: &[&str] = &["Constant", "If", "Loop", "Scan"];

    #[test]
    fn every_listed_operator_is_lifted_or_asks_for_an_attribute() {
        let none = Attributes::default();
        for name in supported().into_iter().filter(|n| !IMPORTER.contains(n)) {
            assert!(!matches!(lift_own(&call(name, &none)), Ok(None)), "{name}");
        }
        assert!(matches!(lift(&call("FrobnicateV2", &none)), Ok(None)));
    }
}
