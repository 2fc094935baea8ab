//! Small graphs for the tests of the rules, and their findings on one line.

use crate::engine::graph::op::{Op, Sliding};
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::quant::Target;
use crate::engine::tensor::{DType, Tensor};

use super::{Verdict, check};

/// Channels of every tensor, and rows and columns of every matrix.
const C: usize = 8;

/// Codes of an activation: scale, zero point, type.
pub(super) type Codes = (f32, i64, DType);
/// Unsigned codes from zero up.
pub(super) const U8: Codes = (0.1, 0, DType::U8);
/// Signed codes around zero.
pub(super) const S8: Codes = (0.1, 0, DType::I8);

/// A graph that is being drawn.
pub(super) struct Sketch {
    pub(super) graph: Graph,
    /// The type of weights.
    pub(super) weights: DType,
}

impl Default for Sketch {
    fn default() -> Sketch {
        Sketch { graph: Graph { opset: 17, ..Graph::default() }, weights: DType::I8 }
    }
}

impl Sketch {
    pub(super) fn input(&mut self, name: &str, dims: &[usize]) -> ValueId {
        let mut dims: Vec<Dim> = dims.iter().map(|&d| Dim::Known(d)).collect();
        if dims.first() == Some(&Dim::Known(0)) {
            dims[0] = Dim::Symbol("batch".to_owned());
        }
        let value =
            Value { name: name.to_owned(), dtype: Some(DType::F32), dims: Some(dims), ..Value::default() };
        let id = self.graph.add_value(value);
        self.graph.inputs.push(id);
        id
    }

    /// An image with an open batch.
    pub(super) fn image(&mut self, name: &str) -> ValueId {
        self.input(name, &[0, C, 4, 4])
    }

    /// Rows, as many as there are.
    pub(super) fn rows(&mut self, name: &str) -> ValueId {
        self.input(name, &[0, C])
    }

    pub(super) fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = format!("c{}", self.graph.values.len());
        self.graph.add_constant(&name, tensor)
    }

    pub(super) fn node(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        let output = self.graph.add_value(Value { name: format!("{name}_y"), ..Value::default() });
        let inputs = inputs.iter().map(|&i| Some(i)).collect();
        self.graph.nodes.push(Node::new(name.to_owned(), op, inputs, vec![output]));
        output
    }

    fn code(&mut self, zero: i64, dtype: DType) -> ValueId {
        self.constant(match dtype {
            DType::U8 => Tensor::scalar(zero as u8),
            DType::I8 => Tensor::scalar(zero as i8),
            DType::U16 => Tensor::scalar(zero as u16),
            other => Tensor::zeros(other, &[]),
        })
    }

    pub(super) fn q(&mut self, x: ValueId, (scale, zero, dtype): Codes) -> ValueId {
        let (scale, zero) = (self.constant(Tensor::scalar(scale)), self.code(zero, dtype));
        self.node("q", Op::QuantizeLinear { axis: 1 }, &[x, scale, zero])
    }

    pub(super) fn dq(&mut self, codes: ValueId, (scale, zero, dtype): Codes) -> ValueId {
        let (scale, zero) = (self.constant(Tensor::scalar(scale)), self.code(zero, dtype));
        self.node("dq", Op::DequantizeLinear { axis: 1 }, &[codes, scale, zero])
    }

    pub(super) fn pair(&mut self, x: ValueId, codes: Codes) -> ValueId {
        let q = self.q(x, codes);
        self.dq(q, codes)
    }

    /// Dequantized weights with a scale for each index along `axis`, or one.
    pub(super) fn w(&mut self, shape: &[usize], axis: Option<usize>) -> ValueId {
        let count = shape.iter().product::<usize>();
        let codes: Vec<i8> = (0..count).map(|i| (i * 5 % 255) as i8).collect();
        let codes = self.constant(Tensor::from_slice(shape, &codes).retyped(self.weights));
        let of: Vec<usize> = axis.map(|a| shape[a]).into_iter().collect();
        let scales = vec![0.01f32; of.iter().product()];
        let scale = self.constant(Tensor::from_slice(&of, &scales));
        let zero = self.constant(Tensor::zeros(self.weights, &of));
        self.node("dq", Op::DequantizeLinear { axis: axis.unwrap_or(1) as i64 }, &[codes, scale, zero])
    }

    /// A bias in codes of scale 0.1 · 0.01.
    pub(super) fn b(&mut self) -> ValueId {
        let codes = self.constant(Tensor::zeros(DType::I32, &[C]));
        let scale = self.constant(Tensor::scalar(0.1f32 * 0.01));
        self.node("dq", Op::DequantizeLinear { axis: 1 }, &[codes, scale])
    }

    /// A bias in float.
    pub(super) fn fb(&mut self) -> ValueId {
        self.constant(Tensor::from_slice(&[C], &[0.5f32; C]))
    }

    pub(super) fn conv_of(&mut self, name: &str, inputs: &[ValueId]) -> ValueId {
        self.node(name, Op::Conv { sliding: Sliding::default(), groups: 1 }, inputs)
    }

    /// A convolution with weights by channel and a bias in codes.
    pub(super) fn conv(&mut self, name: &str, x: ValueId) -> ValueId {
        let (w, b) = (self.w(&[C, C, 1, 1], Some(0)), self.b());
        self.conv_of(name, &[x, w, b])
    }
}

/// Gemm as most files have it.
pub(super) const GEMM: Op = Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false };

/// Draws a graph; the values that come back are its outputs. `want` is one word a finding: `node=OPERATOR`,
/// `node=+` where it is taken over, `node-rule` where it stays in float, `node!rule` where it is refused.
pub(super) fn check(target: Target, draw: impl FnOnce(&mut Sketch) -> Vec<ValueId>, want: &str) {
    let mut sketch = Sketch::default();
    sketch.graph.outputs = draw(&mut sketch);
    let report = check::lint(&sketch.graph, target);
    let word = |f: &super::Finding| match (f.verdict, f.becomes) {
        (Verdict::Fuses, Some(becomes)) if f.rule == "fuses" => format!("{}={becomes}", f.node),
        (Verdict::Fuses, Some(becomes)) => format!("{}={becomes}({})", f.node, f.rule),
        (Verdict::Fuses, None) => format!("{}=+", f.node),
        (Verdict::StaysFloat, _) => format!("{}-{}", f.node, f.rule),
        (Verdict::Refused, _) => format!("{}!{}", f.node, f.rule),
    };
    let got: Vec<String> = report.findings.iter().map(word).collect();
    assert_eq!(got.join(" "), want, "{report:#?}");
}
