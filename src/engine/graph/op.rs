//! The operators. Attributes hold what ONNX opset 18 holds; what newer opsets made an input is an input.

use crate::engine::tensor::Tensor;

use super::attributes::Attributes;
use super::operator::Other;

/// How a window moves over the spatial axes of a convolution or a pooling; one entry a spatial axis.
/// An empty list means the default for every axis: strides and dilations 1, pads 0.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Sliding {
    /// Window size; empty on a convolution means: as the weights have it.
    pub kernel: Vec<usize>,
    /// Step between windows.
    pub strides: Vec<usize>,
    /// Distance between taps.
    pub dilations: Vec<usize>,
    /// Begin pads, then end pads: `2 × axes`. Ignored unless `auto_pad` is `Explicit`.
    pub pads: Vec<usize>,
    /// Where the pads come from.
    pub auto_pad: AutoPad,
    /// Whether a last partial window counts (pooling).
    pub ceil_mode: bool,
}

/// Spatial axes of the windows that are computed on codes, at most. Those over more are computed in float.
pub const CODED_AXES_MAX: usize = 2;

impl Sliding {
    /// Whether the mean over such windows is computed on codes. That divides by all taps where pads count; but what a
    /// last partial window (`ceil_mode`) reads beyond the pads never counts.
    pub fn averages_codes(&self, count_include_pad: bool) -> bool {
        self.kernel.len() <= CODED_AXES_MAX && !(self.ceil_mode && count_include_pad)
    }

    /// The window that the attributes of a node describe.
    ///
    /// # Errors
    /// A sentence about the attribute that is wrong.
    pub fn read(a: &Attributes) -> Result<Sliding, String> {
        let positive = |name: &str| -> Result<Vec<usize>, String> {
            let sizes = a.sizes(name)?.unwrap_or_default();
            match sizes.contains(&0) {
                true => Err(format!("attribute `{name}` is {sizes:?}: a zero makes no sense")),
                false => Ok(sizes),
            }
        };
        let auto_pad = match a.text("auto_pad")? {
            None | Some("" | "NOTSET" | "VALID") => AutoPad::Explicit,
            Some("SAME_UPPER") => AutoPad::SameUpper,
            Some("SAME_LOWER") => AutoPad::SameLower,
            Some(other) => return Err(format!("auto_pad={other} is not supported")),
        };
        let explicit = matches!(a.text("auto_pad")?, None | Some("" | "NOTSET"));
        let pads = if explicit { a.sizes("pads")?.unwrap_or_default() } else { Vec::new() };
        // What says no more than the default is left out: one form for each meaning.
        let unless = |sizes: Vec<usize>, default: usize| match sizes.iter().all(|&s| s == default) {
            true => Vec::new(),
            false => sizes,
        };
        Ok(Sliding {
            kernel: positive("kernel_shape")?,
            strides: unless(positive("strides")?, 1),
            dilations: unless(positive("dilations")?, 1),
            pads: unless(pads, 0),
            auto_pad,
            ceil_mode: a.flag("ceil_mode", false)?,
        })
    }
}

/// Reads attribute `group` of a convolution.
///
/// # Errors
/// A sentence where it is not positive.
pub fn groups(a: &Attributes) -> Result<usize, String> {
    let group = a.int_or("group", 1)?;
    usize::try_from(group).ok().filter(|g| *g > 0).ok_or_else(|| format!("group={group} is not positive"))
}

/// Where pads come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AutoPad {
    /// From `pads`.
    #[default]
    Explicit,
    /// `out = ceil(in / stride)`, odd pad at the end.
    SameUpper,
    /// `out = ceil(in / stride)`, odd pad at the start.
    SameLower,
}

/// One operand, one result, element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the ONNX names")]
pub enum Unary {
    Relu,
    LeakyRelu { alpha: f32 },
    Elu { alpha: f32 },
    Sigmoid,
    HardSigmoid { alpha: f32, beta: f32 },
    HardSwish,
    Tanh,
    Erf,
    Gelu { tanh: bool },
    Softplus,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Neg,
    Abs,
    Sign,
    Floor,
    Ceil,
    Round,
    Sin,
    Cos,
    Not,
}

/// Two operands that broadcast, one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the ONNX names")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Min,
    Max,
    Mod { float: bool },
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
    Xor,
}

/// How a reduction folds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the ONNX names")]
pub enum Reduce {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    SumSquare,
    L1,
    L2,
    LogSum,
    LogSumExp,
}

/// What a node does. The comment names the operands.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are ONNX's attributes")]
pub enum Op {
    /// `x, weight [, bias]`.
    Conv { sliding: Sliding, groups: usize },
    /// `a, b [, c]`: `alpha · a' · b' + beta · c`.
    Gemm { alpha: f32, beta: f32, trans_a: bool, trans_b: bool },
    /// `a, b`.
    MatMul,
    /// `x, scale, bias, mean, variance`.
    BatchNorm { epsilon: f32 },
    /// `x, scale [, bias]`, over the axes from `axis` on.
    LayerNorm { axis: i64, epsilon: f32 },
    /// `x`.
    MaxPool { sliding: Sliding },
    /// `x`.
    AveragePool { sliding: Sliding, count_include_pad: bool },
    /// `x`: the mean over all spatial axes.
    GlobalAveragePool,
    /// `x`: the maximum over all spatial axes.
    GlobalMaxPool,
    /// `x`.
    Unary(Unary),
    /// `x [, min] [, max]`.
    Clip,
    /// `a, b`.
    Binary(Binary),
    /// `x [, axes]`. Without axes: all, or none where `noop_with_empty_axes`.
    Reduce { kind: Reduce, keep_dims: bool, noop_with_empty_axes: bool },
    /// `x`. `coerce_2d` is the form before opset 13: all axes from `axis` on are one.
    Softmax { axis: i64, log: bool, coerce_2d: bool },
    /// `x`.
    Transpose { perm: Vec<usize> },
    /// `x, shape`.
    Reshape { allow_zero: bool },
    /// `x`: to two dimensions, split before `axis`.
    Flatten { axis: i64 },
    /// `x [, axes]`.
    Squeeze,
    /// `x, axes`.
    Unsqueeze,
    /// `x…`.
    Concat { axis: i64 },
    /// `x [, split]`.
    Split { axis: i64, outputs: usize },
    /// `x, starts, ends [, axes] [, steps]`.
    Slice,
    /// `x, indices`.
    Gather { axis: i64 },
    /// `x`: its shape, from `start` to `end`.
    Shape { start: i64, end: Option<i64> },
    /// `shape`: filled with the one value of the tensor.
    ConstantOfShape { value: Tensor },
    /// `start, limit, delta`.
    Range,
    /// `x, shape`.
    Expand,
    /// `x, repeats`.
    Tile,
    /// `condition, a, b`.
    Where,
    /// `x, pads [, value] [, axes]`.
    Pad { mode: PadMode },
    /// `x`.
    Cast { to: crate::engine::tensor::DType },
    /// `x`.
    Identity,
    /// `x, scale [, zero_point]`.
    QuantizeLinear { axis: i64 },
    /// `q, scale [, zero_point]`.
    DequantizeLinear { axis: i64 },
    /// `condition, captured…`: runs one of the node's two bodies over the captured values.
    If,
    /// `[count], [condition], carried…, captured…`; the body takes the round's number, the condition, and those. It
    /// gives the condition, the carried values, and values that are stacked over the rounds.
    Loop { carried: usize },
    /// `state…, scanned…, captured…`, as the body takes them, scanned values one slice a round.
    Scan(Scan),
    /// Operands as ONNX has them: an operator that is one object.
    Other(Other),

    // Below: what the executor lowers to. Integer operands carry their parameters on the value
    // (`Value::qparams`); an output without parameters is real (f32) and is not clamped.
    /// `x: i8 or u8`: the same codes as the other of the two, 128 more or less.
    Recode,
    /// `x: u8, weight: i8 [, bias: i32]`. Weight `[O, I/g, kH, kW]` with one scale, or one for each output channel.
    QConv { sliding: Sliding, groups: usize, clamp: Clamp },
    /// `x: u8 [.., K], weight: i8 [K, N] (or [N, K] where `trans_b`) [, bias: i32]`.
    QMatMul { trans_b: bool, clamp: Clamp },
    /// `a: u8 [.., M, K], b: u8 [.., K, N]`, both computed.
    QProduct { clamp: Clamp },
    /// `x: u8, weight: i8 [, zero_point: u8] [, scale: f32]`: the sums (i32), or reals where there is a scale, which
    /// is one or one for each output channel. The weight's zero points are on the value.
    ConvInteger { sliding: Sliding, groups: usize },
    /// As [`Op::ConvInteger`]: `x: u8 [.., K], weight: i8 [K, N] [, zero_point: u8] [, scale: f32]`.
    MatMulInteger,
    /// Codes of rows that have parameters of their own: `x: u8 [.., K], weight: i8 [K, N], low: f32 [.., 1],
    /// step: f32 [.., 1], sums: f32 [N], scale: f32 [N]`: `(x · weight + low · sums) · scale · step`, a real.
    RowProduct,
    /// `a: u8, b: u8`, broadcasting.
    QBinary { op: Binary, clamp: Clamp },
    /// `x: u8`: `table[x]`.
    QTable { table: Box<[u8; 256]> },
    /// `x: u8`.
    QAveragePool { sliding: Sliding, count_include_pad: bool },
    /// `x: u8`.
    QGlobalAveragePool,
    /// `x: u8…`, each with its own parameters.
    QConcat { axis: i64 },
}

/// A loop over slices of its operands.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Values that go from round to round.
    pub states: usize,
    /// For each scanned operand its axis, and whether it is read backwards.
    pub inputs: Vec<(i64, bool)>,
    /// For each stacked result its axis, and whether it is filled backwards.
    pub outputs: Vec<(i64, bool)>,
}

/// Smallest and largest code that an integer operator may give: an activation that is a clamp, such as Relu.
pub type Clamp = (u8, u8);

/// What stands in a pad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the ONNX names")]
pub enum PadMode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

impl Op {
    /// The ONNX name of the operator, or ours for an integer one.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Conv { .. } => "Conv",
            Op::Gemm { .. } => "Gemm",
            Op::MatMul => "MatMul",
            Op::BatchNorm { .. } => "BatchNormalization",
            Op::LayerNorm { .. } => "LayerNormalization",
            Op::MaxPool { .. } => "MaxPool",
            Op::AveragePool { .. } => "AveragePool",
            Op::GlobalAveragePool => "GlobalAveragePool",
            Op::GlobalMaxPool => "GlobalMaxPool",
            Op::Unary(unary) => unary.name(),
            Op::Clip => "Clip",
            Op::Binary(binary) => binary.name(),
            Op::Reduce { kind, .. } => kind.name(),
            Op::Softmax { log: false, .. } => "Softmax",
            Op::Softmax { log: true, .. } => "LogSoftmax",
            Op::Transpose { .. } => "Transpose",
            Op::Reshape { .. } => "Reshape",
            Op::Flatten { .. } => "Flatten",
            Op::Squeeze => "Squeeze",
            Op::Unsqueeze => "Unsqueeze",
            Op::Concat { .. } => "Concat",
            Op::Split { .. } => "Split",
            Op::Slice => "Slice",
            Op::Gather { .. } => "Gather",
            Op::Shape { .. } => "Shape",
            Op::ConstantOfShape { .. } => "ConstantOfShape",
            Op::Range => "Range",
            Op::Expand => "Expand",
            Op::Tile => "Tile",
            Op::Where => "Where",
            Op::Pad { .. } => "Pad",
            Op::Cast { .. } => "Cast",
            Op::Identity => "Identity",
            Op::QuantizeLinear { .. } => "QuantizeLinear",
            Op::DequantizeLinear { .. } => "DequantizeLinear",
            Op::If => "If",
            Op::Loop { .. } => "Loop",
            Op::Scan(_) => "Scan",
            Op::Other(other) => other.name,
            Op::Recode => "Recode",
            Op::QConv { .. } => "QConv",
            Op::QMatMul { .. } => "QMatMul",
            Op::QProduct { .. } => "QProduct",
            Op::ConvInteger { .. } => "ConvInteger",
            Op::MatMulInteger => "MatMulInteger",
            Op::RowProduct => "RowProduct",
            Op::QBinary { op: Binary::Add, .. } => "QAdd",
            Op::QBinary { .. } => "QMul",
            Op::QTable { .. } => "QTable",
            Op::QAveragePool { .. } => "QAveragePool",
            Op::QGlobalAveragePool => "QGlobalAveragePool",
            Op::QConcat { .. } => "QConcat",
        }
    }

    /// Whether the operator cuts off what lies beyond bounds.
    pub fn is_clamp(&self) -> bool {
        matches!(self, Op::Unary(Unary::Relu) | Op::Clip)
    }

    /// Whether the operator makes pixels of channels, or channels of pixels.
    pub fn lays_blocks(&self) -> bool {
        matches!(self, Op::Other(other) if ["DepthToSpace", "SpaceToDepth"].contains(&other.name))
    }

    /// Whether the operator computes on codes.
    pub fn is_integer(&self) -> bool {
        matches!(
            self,
            Op::QConv { .. }
                | Op::QMatMul { .. }
                | Op::QProduct { .. }
                | Op::ConvInteger { .. }
                | Op::MatMulInteger
                | Op::RowProduct
                | Op::QBinary { .. }
                | Op::QTable { .. }
                | Op::QAveragePool { .. }
                | Op::QGlobalAveragePool
                | Op::QConcat { .. }
        )
    }
}

impl Unary {
    /// The ONNX name.
    pub fn name(self) -> &'static str {
        match self {
            Unary::Relu => "Relu",
            Unary::LeakyRelu { .. } => "LeakyRelu",
            Unary::Elu { .. } => "Elu",
            Unary::Sigmoid => "Sigmoid",
            Unary::HardSigmoid { .. } => "HardSigmoid",
            Unary::HardSwish => "HardSwish",
            Unary::Tanh => "Tanh",
            Unary::Erf => "Erf",
            Unary::Gelu { .. } => "Gelu",
            Unary::Softplus => "Softplus",
            Unary::Exp => "Exp",
            Unary::Log => "Log",
            Unary::Sqrt => "Sqrt",
            Unary::Reciprocal => "Reciprocal",
            Unary::Neg => "Neg",
            Unary::Abs => "Abs",
            Unary::Sign => "Sign",
            Unary::Floor => "Floor",
            Unary::Ceil => "Ceil",
            Unary::Round => "Round",
            Unary::Sin => "Sin",
            Unary::Cos => "Cos",
            Unary::Not => "Not",
        }
    }
}

impl Binary {
    /// The ONNX name.
    pub fn name(self) -> &'static str {
        match self {
            Binary::Add => "Add",
            Binary::Sub => "Sub",
            Binary::Mul => "Mul",
            Binary::Div => "Div",
            Binary::Pow => "Pow",
            Binary::Min => "Min",
            Binary::Max => "Max",
            Binary::Mod { .. } => "Mod",
            Binary::Equal => "Equal",
            Binary::Less => "Less",
            Binary::LessOrEqual => "LessOrEqual",
            Binary::Greater => "Greater",
            Binary::GreaterOrEqual => "GreaterOrEqual",
            Binary::And => "And",
            Binary::Or => "Or",
            Binary::Xor => "Xor",
        }
    }

    /// Whether the result is a truth value whatever the operands are.
    pub fn is_comparison(self) -> bool {
        matches!(
            self,
            Binary::Equal | Binary::Less | Binary::LessOrEqual | Binary::Greater | Binary::GreaterOrEqual
        )
    }
}

impl Reduce {
    /// The ONNX name.
    pub fn name(self) -> &'static str {
        match self {
            Reduce::Sum => "ReduceSum",
            Reduce::Mean => "ReduceMean",
            Reduce::Max => "ReduceMax",
            Reduce::Min => "ReduceMin",
            Reduce::Prod => "ReduceProd",
            Reduce::SumSquare => "ReduceSumSquare",
            Reduce::L1 => "ReduceL1",
            Reduce::L2 => "ReduceL2",
            Reduce::LogSum => "ReduceLogSum",
            Reduce::LogSumExp => "ReduceLogSumExp",
        }
    }
}
