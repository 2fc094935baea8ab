//! What a product takes over from the nodes after it: of reals a bias, an activation, the addition of a residual, a
//! clamp, and the codes that they become; of codes a table and a sum. Finds it in the graph; knows nothing of memory. Each
//! is computed by the same operations in the same order as the nodes would, so the answer keeps its bits.

use std::collections::HashSet;

use crate::engine::graph::fact::Fact;
use crate::engine::graph::op::{Binary, Op, Unary};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::kernels::Activation;
use crate::engine::kernels::{SumForm, SumScales};
use crate::engine::tensor::DType;

/// What a kernel does after its product. Operands are told by their position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fused {
    /// A list along the last axis that is added first; a Conv or Gemm has its own.
    pub(super) bias: Option<usize>,
    /// A function of the sum and the bias.
    pub(super) activation: Option<Activation>,
    /// A value of the shape of the result that is added.
    pub(super) residual: Option<usize>,
    /// Bounds of the result.
    pub(super) clamp: (f32, f32),
    /// Scale and zero point of the codes that the result becomes.
    pub(super) codes: Option<(f32, u8)>,
}

impl Fused {
    /// Nothing.
    pub(super) const NONE: Fused = Fused {
        bias: None,
        activation: None,
        residual: None,
        clamp: (f32::NEG_INFINITY, f32::INFINITY),
        codes: None,
    };

    /// Whether there is nothing to do with the reals.
    pub(super) fn keeps_reals(&self) -> bool {
        let Fused { bias, activation, residual, clamp, codes: _ } = self;
        (bias, residual, *clamp) == (&None, &None, Fused::NONE.clamp) && activation.is_none()
    }
}

/// Nodes that follow a product and are done by it.
#[derive(Debug, PartialEq)]
pub(super) struct Tail {
    /// Indices of the nodes.
    pub(super) nodes: Vec<usize>,
    /// The value that the last of them makes.
    pub(super) output: ValueId,
    pub(super) bias: Option<ValueId>,
    pub(super) activation: Option<Activation>,
    pub(super) residual: Option<ValueId>,
    pub(super) clamp: (f32, f32),
    /// Scale and zero point of the codes that the result becomes.
    pub(super) codes: Option<(f32, u8)>,
}

/// What an integer product does with its codes. Operands are told by their position.
#[derive(Clone, Debug, Default)]
pub(super) struct FusedCodes {
    /// A function of the code.
    pub(super) table: Option<Box<[u8; 256]>>,
    /// Codes that are added.
    pub(super) sum: Option<(usize, SumScales, Option<SumForm>)>,
}

/// Nodes that follow a product of codes and are done by it.
#[derive(Debug)]
pub(super) struct CodesTail {
    /// Indices of the nodes.
    pub(super) nodes: Vec<usize>,
    /// The value that the last of them makes.
    pub(super) output: ValueId,
    pub(super) table: Option<Box<[u8; 256]>>,
    pub(super) sum: Option<(ValueId, SumScales)>,
}

impl CodesTail {
    /// A product that makes `output` by itself.
    pub(super) fn none(output: ValueId) -> CodesTail {
        CodesTail { nodes: Vec::new(), output, table: None, sum: None }
    }
}

/// Whether an operator can make codes of what it sums.
pub(super) fn gives_codes(op: &Op) -> bool {
    matches!(op, Op::QConv { .. } | Op::QMatMul { .. })
}

/// The nodes that compute a function of a value for which there are kernels behind a product, and what they make, if nobody
/// else reads the value or what lies between. `consumers` has the readers of each value.
pub fn activation_behind(
    graph: &Graph,
    consumers: &[Vec<usize>],
    value: ValueId,
) -> Option<(Vec<usize>, ValueId)> {
    let finder = Finder { graph, consumers, wanted: &HashSet::new(), fact: &|_| None };
    let Pattern { nodes, output, .. } = finder.lone_activation(value)?;
    Some((nodes, output))
}

/// Nodes that together are one function of one value.
#[derive(Debug, PartialEq)]
pub(super) struct Pattern {
    pub(super) activation: Activation,
    /// Indices of the nodes, in order.
    pub(super) nodes: Vec<usize>,
    pub(super) output: ValueId,
}

/// A graph in which followers are looked for.
pub(super) struct Finder<'a> {
    pub(super) graph: &'a Graph,
    /// For each value the nodes that read it.
    pub(super) consumers: &'a [Vec<usize>],
    /// Values that must stay, because a tap wants to see them.
    pub(super) wanted: &'a HashSet<ValueId>,
    /// What is known of a value that is there already.
    pub(super) fact: &'a dyn Fn(ValueId) -> Option<&'a Fact>,
}

impl Finder<'_> {
    /// What follows a product that makes `value`, of shape `shape`. `bias` and `codes` say whether it can take one, and
    /// make codes.
    pub(super) fn tail(&self, value: ValueId, shape: &[usize], bias: bool, codes: bool) -> Tail {
        let mut tail = Tail::none(value);
        if bias && let Some((node, list)) = self.bias_after(value, shape) {
            tail.take(&[node], self.graph.nodes[node].outputs[0]);
            tail.bias = Some(list);
        }
        if let Some(pattern) = self.lone_activation(tail.output) {
            tail.take(&pattern.nodes, pattern.output);
            tail.activation = Some(pattern.activation);
        }
        if let Some((node, residual)) = self.residual_after(tail.output, shape) {
            tail.take(&[node], self.graph.nodes[node].outputs[0]);
            tail.residual = Some(residual);
        }
        if let Some((node, clamp)) = self.clamp_after(tail.output) {
            tail.take(&[node], self.graph.nodes[node].outputs[0]);
            tail.clamp = clamp;
        }
        if codes && let Some((node, codes)) = self.codes_after(tail.output) {
            tail.take(&[node], self.graph.nodes[node].outputs[0]);
            tail.codes = Some(codes);
        }
        tail
    }

    /// What follows a product of codes that makes `value`, of shape `shape`.
    pub(super) fn codes_tail(&self, value: ValueId, shape: &[usize]) -> CodesTail {
        let mut tail = CodesTail::none(value);
        if let Some(n) = self.next(tail.output)
            && let Op::QTable { table } = &self.graph.nodes[n].op
        {
            tail.nodes.push(n);
            tail.output = self.graph.nodes[n].outputs[0];
            tail.table = Some(table.clone());
        }
        if let Some((n, other, scales)) = self.sum_after(tail.output, shape) {
            tail.nodes.push(n);
            tail.output = self.graph.nodes[n].outputs[0];
            tail.sum = Some((other, scales));
        }
        tail
    }

    /// The QAdd that alone reads codes, and its other operand, if that is there already.
    fn sum_after(&self, value: ValueId, shape: &[usize]) -> Option<(usize, ValueId, SumScales)> {
        let index = self.next(value)?;
        let node = &self.graph.nodes[index];
        let Op::QBinary { op: Binary::Add, clamp } = node.op else { return None };
        let (a, b) = (node.input(0)?, node.input(1)?);
        let other = if a == value { b } else { a };
        let fact = (self.fact)(other)?;
        let scale = |id: ValueId| {
            let params = self.graph.value(id).qparams.as_ref()?;
            Some((params.scale[0], params.zero_point[0] as u8))
        };
        let (own, from, result) = (scale(value)?, scale(other)?, scale(node.outputs[0])?);
        let fits = fact.shape == shape && fact.dtype == DType::U8 && other != value;
        fits.then_some((index, other, SumScales { own, other: from, result, clamp }))
    }

    /// The activation that alone reads a value which need not be kept.
    fn lone_activation(&self, value: ValueId) -> Option<Pattern> {
        let alone = |p: &Pattern| self.readers(value).iter().all(|n| p.nodes.contains(n));
        self.activation_of(value).filter(alone).filter(|_| self.is_free(value))
    }

    /// The activation that nodes after `value` compute of it; the values between have no other readers.
    fn activation_of(&self, value: ValueId) -> Option<Pattern> {
        match *self.readers(value) {
            [n] => {
                let activation = match self.graph.nodes[n].op {
                    Op::Unary(Unary::Sigmoid) => Activation::Sigmoid,
                    Op::Unary(Unary::HardSigmoid { alpha, beta }) => Activation::HardSigmoid { alpha, beta },
                    Op::Unary(Unary::HardSwish) => Activation::HardSwish,
                    Op::Unary(Unary::Gelu { tanh: false }) => Activation::Gelu,
                    Op::Unary(Unary::Gelu { tanh: true }) => Activation::GeluTanh,
                    Op::Unary(Unary::Tanh) => Activation::Tanh,
                    _ => return None,
                };
                Some(Pattern { activation, nodes: vec![n], output: self.graph.nodes[n].outputs[0] })
            }
            [first, last] => self.silu(value, first, last).or_else(|| self.gelu(value, first, last)),
            _ => None,
        }
    }

    /// `value · sigmoid(value)`.
    fn silu(&self, value: ValueId, sigmoid: usize, product: usize) -> Option<Pattern> {
        let Op::Unary(Unary::Sigmoid) = self.graph.nodes[sigmoid].op else { return None };
        let between = self.graph.nodes[sigmoid].outputs[0];
        (self.next(between)? == product && self.is_binary(product, Binary::Mul, value, between)).then(|| {
            let output = self.graph.nodes[product].outputs[0];
            Pattern { activation: Activation::Silu, nodes: vec![sigmoid, product], output }
        })
    }

    /// `value · (1 + erf(value / √2)) · 0.5`, as exporters spell GELU out.
    fn gelu(&self, value: ValueId, quotient: usize, product: usize) -> Option<Pattern> {
        let output = |n: usize| self.graph.nodes[n].outputs[0];
        let is = |n: usize, op: Binary, constant: f32| {
            let node = &self.graph.nodes[n];
            let (a, b) = (node.input(0)?, node.input(1)?);
            let other = match op {
                Binary::Div => (self.scalar(b)? == constant).then_some(a),
                _ if self.scalar(b) == Some(constant) => Some(a),
                _ => (self.scalar(a)? == constant).then_some(b),
            };
            other.filter(|_| matches!(node.op, Op::Binary(o) if o == op))
        };
        is(quotient, Binary::Div, std::f32::consts::SQRT_2).filter(|&x| x == value)?;
        let erf = self.next(output(quotient))?;
        let Op::Unary(Unary::Erf) = self.graph.nodes[erf].op else { return None };
        let sum = self.next(output(erf))?;
        is(sum, Binary::Add, 1.0)?;
        let same = self.next(output(sum))? == product;
        (same && self.is_binary(product, Binary::Mul, value, output(sum))).then_some(())?;
        let half = self.next(output(product))?;
        is(half, Binary::Mul, 0.5)?;
        let nodes = vec![quotient, erf, sum, product, half];
        Some(Pattern { activation: Activation::Gelu, nodes, output: output(half) })
    }

    /// An Add of a constant list along the last axis.
    fn bias_after(&self, value: ValueId, shape: &[usize]) -> Option<(usize, ValueId)> {
        let (node, list) = self.addend(value)?;
        let fact = (self.fact)(list)?;
        let n = *shape.last()?;
        let along_last = fact.shape.last() == Some(&n) && fact.shape.len() <= shape.len();
        let fits = along_last && fact.shape.iter().product::<usize>() == n;
        (fits && fact.dtype == DType::F32 && fact.constant.is_some()).then_some((node, list))
    }

    /// An Add of a computed value of the same shape, which is there already.
    fn residual_after(&self, value: ValueId, shape: &[usize]) -> Option<(usize, ValueId)> {
        let (node, residual) = self.addend(value)?;
        let fact = (self.fact)(residual)?;
        let fits = fact.shape == shape && fact.dtype == DType::F32 && fact.constant.is_none();
        (fits && residual != value).then_some((node, residual))
    }

    /// The Add that alone reads a value, and its other operand.
    fn addend(&self, value: ValueId) -> Option<(usize, ValueId)> {
        let index = self.next(value)?;
        let node = &self.graph.nodes[index];
        let (a, b) = (node.input(0)?, node.input(1)?);
        matches!(node.op, Op::Binary(Binary::Add)).then_some((index, if a == value { b } else { a }))
    }

    /// The Relu or Clip that alone reads a value, and its bounds.
    fn clamp_after(&self, value: ValueId) -> Option<(usize, (f32, f32))> {
        let index = self.next(value)?;
        let node = &self.graph.nodes[index];
        match node.op {
            Op::Unary(Unary::Relu) => Some((index, (0.0, f32::INFINITY))),
            Op::Clip if node.input(0) == Some(value) => {
                let bound = |i: usize, open: f32| match node.input(i) {
                    None => Some(open),
                    Some(id) => self.scalar(id),
                };
                let (lo, hi) = (bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?);
                (lo <= hi).then_some((index, (lo, hi)))
            }
            _ => None,
        }
    }

    /// The QuantizeLinear that alone reads a value, and its parameters, if it makes `u8` with one scale.
    fn codes_after(&self, value: ValueId) -> Option<(usize, (f32, u8))> {
        let index = self.next(value)?;
        let node = &self.graph.nodes[index];
        let Op::QuantizeLinear { .. } = node.op else { return None };
        let params = self.graph.value(node.outputs[0]).qparams.as_ref()?;
        let &[scale] = &params.scale[..] else { return None };
        (params.dtype == DType::U8).then(|| (index, (scale, params.zero_point[0] as u8)))
    }

    /// Whether node `n` is `op` of the two values, in either order.
    fn is_binary(&self, n: usize, op: Binary, a: ValueId, b: ValueId) -> bool {
        let Node { op: Op::Binary(own), inputs, .. } = &self.graph.nodes[n] else { return false };
        *own == op && (inputs[..] == [Some(a), Some(b)] || inputs[..] == [Some(b), Some(a)])
    }

    /// The one number that a constant holds.
    fn scalar(&self, id: ValueId) -> Option<f32> {
        let known = || (self.fact)(id)?.constant.as_ref();
        let tensor = self.graph.constant(id).or_else(known)?;
        (tensor.dtype() == DType::F32 && tensor.len() == 1).then(|| tensor.slice::<f32>()[0])
    }

    fn readers(&self, value: ValueId) -> &[usize] {
        &self.consumers[value.0 as usize]
    }

    /// The node that alone reads a value which need not be kept.
    fn next(&self, value: ValueId) -> Option<usize> {
        match *self.readers(value) {
            [next] if self.is_free(value) => Some(next),
            _ => None,
        }
    }

    /// Whether nobody but nodes asks for a value.
    fn is_free(&self, value: ValueId) -> bool {
        !self.wanted.contains(&value) && !self.graph.outputs.contains(&value)
    }
}

impl Tail {
    /// A product that makes `output` by itself.
    pub(super) fn none(output: ValueId) -> Tail {
        let Fused { activation, clamp, .. } = Fused::NONE;
        Tail { nodes: Vec::new(), output, bias: None, activation, residual: None, clamp, codes: None }
    }

    fn take(&mut self, nodes: &[usize], output: ValueId) {
        self.nodes.extend(nodes);
        self.output = output;
    }
}
