//! Dynamic: products of rows with constant matrices compute on integers, and each row gets its range when it is there.
//! So nothing is calibrated, and what a sample becomes does not depend on the others of its batch, as it does with
//! DynamicQuantizeLinear, which takes one range for the whole tensor. The form is in operators that ONNX has had since
//! opset 10; the executor does it in two steps (`exec::lower_by_row`), other runtimes compute what it says:
//!
//! ```text
//! lo = min(min(x), 0), range = max(max(max(x), 0) − lo, 1e-30)         for each row
//! low = round(lo · 255 / range), q = QuantizeLinear(x · 255 / range − low, 1, 0)
//! y = (Cast(MatMulInteger(q, w)) + low · Σ w) · scale_w · (range · 1/255)
//! ```
//!
//! The zero point is a real because ONNX Runtime (1.32) takes one zero point for a tensor only. Convolutions and
//! recurrent layers keep their activations real: their weights are stored in `i8`. What it gives on two transformers, in
//! ONNX Runtime's exact mode against float: 44.4 dB where one range a tensor gives 42.2 (batch 1) and 41.5 (batch 8),
//! symmetric rows 42.4; 56.6, 55.7, 55.2 and 56.9 dB on the other.

use crate::engine::graph::op::{Binary, Op, Reduce, Unary};
use crate::engine::graph::{Graph, Node, Value, ValueId};
use crate::engine::quant::constants::{bias_of, multiplies, table_of, weights_of};
use crate::engine::quant::nature::is_data;
use crate::engine::quant::plan::{Decision, Kept, Plan, plan_each};
use crate::engine::quant::rewrite::{ByRow, Constants, LayerWeights, Writer, spread};
use crate::engine::quant::{Error, Recipe, weights};
use crate::engine::tensor::{DType, Tensor};

use super::stored;

/// The least range of a row, and the codes of a row less one: the executor knows the form by these numbers.
const RANGE_MIN: f32 = 1e-30;
const STEPS: f32 = 255.0;

/// Plans a simplified float graph; the nodes of `kept` stay in float.
///
/// # Errors
/// [`Error::NoMatch`] where a pattern of `keep_float` names no node.
pub fn plan(graph: &Graph, recipe: &Recipe, kept: &Kept) -> Result<Plan, Error> {
    plan_each(graph, recipe, kept, |node| decide(graph, node))
}

fn decide(graph: &Graph, node: &Node) -> Decision {
    let reason = match &node.op {
        Op::Gemm { .. } | Op::MatMul => match multiplies(graph, node) {
            Ok(()) => return Decision::Dynamic,
            Err(reason) => reason,
        },
        _ => format!("{} is computed in float", node.op.name()),
    };
    if !stored::operands(graph, node).is_empty() {
        return Decision::Stored;
    }
    if table_of(graph, node).is_some() {
        return Decision::Lookup;
    }
    if is_data(graph, node) { Decision::Data } else { Decision::Float(reason) }
}

impl Writer<'_> {
    /// A product whose rows become codes when they are there.
    pub(in crate::engine::quant) fn dynamic(&mut self, n: usize, node: &Node) {
        let x = self.reals(node)[0].expect("the plan checked the operand");
        let result = node.outputs[0];
        let matrix = self.matrix(node, self.dial.max_code(n));
        let [codes, low, step] = self.rows_of(x);
        let name = &node.name;
        let sums = self.step(name, Op::MatMulInteger, &[codes, matrix.codes], result, "i", DType::I32);
        let sums = self.step("", Op::Cast { to: DType::F32 }, &[sums], result, "c", DType::F32);
        let corrected = self.binary(Binary::Mul, [low, matrix.sums], result);
        let sums = self.binary(Binary::Add, [sums, corrected], result);
        let scaled = self.binary(Binary::Mul, [sums, matrix.scale], result);
        let last = match matrix.bias {
            None => self.push("", Op::Binary(Binary::Mul), &[scaled, step], result),
            Some(bias) => {
                let product = self.binary(Binary::Mul, [scaled, step], result);
                self.push("", Op::Binary(Binary::Add), &[product, bias], result)
            }
        };
        debug_assert_eq!(last, result);
        let name = |id: ValueId| self.out.value(id).name.clone();
        let by_row =
            ByRow { sums: name(matrix.sums), low: name(low), step: name(step), bias: matrix.bias.map(name) };
        let (codes, scales) = (name(matrix.codes), name(matrix.scale));
        let constants = Constants { codes, scales, bias: None, by_row: Some(by_row) };
        self.note_layer(node, Some(matrix.summary), Some(constants));
        self.codes(result, result);
    }

    /// Codes, least code and step of the rows of a value; those who share the value share them.
    fn rows_of(&mut self, x: ValueId) -> [ValueId; 3] {
        if let Some(&known) = self.rows.get(&x) {
            return known;
        }
        let last = self.number("axis", Tensor::from_slice(&[1], &[-1i64]));
        let zero_point = self.number("zero_point", Tensor::scalar(0u8));
        let reals =
            [("zero", 0.0), ("least", RANGE_MIN), ("steps", STEPS), ("step", 1.0 / STEPS), ("one", 1.0)];
        let [zero, least, steps, back, one] =
            reals.map(|(name, x)| self.number(name, Tensor::scalar::<f32>(x)));
        let reduce = |kind| Op::Reduce { kind, keep_dims: true, noop_with_empty_axes: false };
        let largest = self.step("", reduce(Reduce::Max), &[x, last], x, "hi", DType::F32);
        let hi = self.step("", Op::Unary(Unary::Relu), &[largest], x, "hi", DType::F32);
        let lowest = self.step("", reduce(Reduce::Min), &[x, last], x, "lo", DType::F32);
        let lo = self.binary(Binary::Min, [lowest, zero], x);
        let width = self.binary(Binary::Sub, [hi, lo], x);
        let range = self.binary(Binary::Max, [width, least], x);
        let inverse = self.binary(Binary::Div, [steps, range], x);
        let low = self.binary(Binary::Mul, [lo, inverse], x);
        let low = self.step("", Op::Unary(Unary::Round), &[low], x, "low", DType::F32);
        let step = self.binary(Binary::Mul, [range, back], x);
        let scaled = self.binary(Binary::Mul, [x, inverse], x);
        let shifted = self.binary(Binary::Sub, [scaled, low], x);
        let quantize = Op::QuantizeLinear { axis: 1 };
        let codes = self.step("", quantize, &[shifted, one, zero_point], x, "q", DType::U8);
        self.rows.insert(x, [codes, low, step]);
        [codes, low, step]
    }

    /// The right operand of a product, `[K, N]`.
    fn matrix(&mut self, node: &Node, max_code: u8) -> Matrix {
        let (operand, axis, _) = weights_of(self.source, node).expect("the plan checked the weights");
        let mut tensor =
            self.source.constant(operand).expect("the plan checked the weights").as_ref().clone();
        if axis == 0 {
            tensor = transposed(&tensor);
        }
        if let Op::Gemm { alpha, .. } = node.op {
            tensor.slice_mut::<f32>().iter_mut().for_each(|w| *w *= alpha);
        }
        let columns = tensor.shape()[1];
        let bias = bias_of(self.source, node, columns).expect("the plan checked the bias");
        let axis = self.per_channel.then_some(1);
        let scales = weights::scales(&tensor, axis, max_code);
        let quantized = weights::quantize(&tensor, axis, scales, max_code);
        let scale = &quantized.params.scale;
        let summary = LayerWeights {
            shape: tensor.shape().to_vec(),
            max_code,
            sqnr_db: weights::sqnr_db(&tensor, &quantized),
            raised_channels: 0,
            scale_spread: spread(scale),
        };
        let mut sums = vec![0f32; columns];
        for row in quantized.codes.slice::<i8>().chunks_exact(columns) {
            // Sums of codes are whole numbers below 2^24 up to 130,000 rows.
            sums.iter_mut().zip(row).for_each(|(sum, &code)| *sum += f32::from(code));
        }
        let scale: Vec<f32> = (0..columns).map(|n| scale[n % scale.len()]).collect();
        let list = |writer: &mut Self, suffix, list: &[f32]| {
            writer.constant(operand, suffix, Tensor::from_slice(&[columns], list))
        };
        Matrix {
            codes: self.constant(operand, "q", quantized.codes.clone()),
            scale: list(self, "s", &scale),
            sums: list(self, "n", &sums),
            bias: bias.map(|bias| {
                self.constant(
                    node.input(2).expect("a bias is an operand"),
                    "b",
                    Tensor::from_slice(&[columns], &bias),
                )
            }),
            summary,
        }
    }

    fn number(&mut self, what: &'static str, tensor: Tensor) -> ValueId {
        if let Some(&known) = self.numbers.get(what) {
            return known;
        }
        let name = self.unused("rows", what);
        let id = self.out.add_constant(&name, tensor);
        self.numbers.insert(what, id);
        id
    }

    fn binary(&mut self, op: Binary, operands: [ValueId; 2], like: ValueId) -> ValueId {
        self.step("", Op::Binary(op), &operands, like, "v", DType::F32)
    }

    /// A node whose result is a new value, named after another.
    fn step(
        &mut self,
        name: &str,
        op: Op,
        operands: &[ValueId],
        like: ValueId,
        suffix: &str,
        dtype: DType,
    ) -> ValueId {
        let stem = self.name(like, suffix);
        let made = self.out.add_value(Value { name: stem, dtype: Some(dtype), ..Value::default() });
        self.push(name, op, operands, made)
    }

    /// A node that makes a value; without a name it has that of the value.
    fn push(&mut self, name: &str, op: Op, operands: &[ValueId], made: ValueId) -> ValueId {
        let name = if name.is_empty() { self.out.value(made).name.clone() } else { name.to_owned() };
        let inputs = operands.iter().map(|&id| Some(id)).collect();
        self.out.nodes.push(Node::new(name, op, inputs, vec![made]));
        made
    }
}

/// The right operand of a product in codes.
struct Matrix {
    codes: ValueId,
    scale: ValueId,
    /// Sums of the codes of each column.
    sums: ValueId,
    bias: Option<ValueId>,
    summary: LayerWeights,
}

fn transposed(matrix: &Tensor) -> Tensor {
    let [rows, columns] = [matrix.shape()[0], matrix.shape()[1]];
    let from = matrix.slice::<f32>();
    let turned: Vec<f32> = (0..rows * columns).map(|i| from[i % rows * columns + i / rows]).collect();
    Tensor::from_slice(&[columns, rows], &turned)
}
