//! QDQ graphs to integer operators: `DequantizeLinear → operator → QuantizeLinear` becomes one step on codes.
//! What has no integer form stays as it is and runs in float between the Q and DQ nodes.

use std::collections::HashMap;

use crate::engine::graph::op::{Binary, Clamp, Op};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::{DType, Tensor};

use super::fold::fold_quantized;
use super::lower_qoperator::{integer_matmul, operator_form};
use super::lowering::{Codes, FULL, Lowering, Target, Weight};

/// A graph that the planner takes.
pub(super) struct Lowered {
    /// The graph.
    pub(super) graph: Graph,
    /// For the codes of a value that exists no more its name in the model.
    pub(super) real_names: HashMap<ValueId, String>,
}

impl Lowered {
    /// A graph that runs as it is.
    pub(super) fn unchanged(graph: Graph) -> Lowered {
        Lowered { graph, real_names: HashMap::new() }
    }
}

/// Brings a graph to integer operators where it can.
pub(super) fn lower(mut graph: Graph) -> Lowered {
    fold_quantized(&mut graph);
    let mut pass = Lowering::new(graph);
    pass.fold_clipped_codes();
    for index in 0..pass.graph.nodes.len() {
        pass.current = index;
        if let Some(node) = pass.integer_form() {
            pass.graph.nodes[index] = node;
        }
    }
    let (graph, real_names) = pass.finish();
    Lowered { graph, real_names }
}

impl Lowering {
    /// The integer form of the current node, where it has one.
    fn integer_form(&mut self) -> Option<Node> {
        if self.absorbed.contains(&self.current) {
            return None;
        }
        let node = self.graph.nodes[self.current].clone();
        match &node.op {
            Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } => self.boundary(&node),
            Op::Conv { sliding, groups } => {
                let (sliding, groups) = (sliding.clone(), *groups);
                self.product(&node, 0, move |_, clamp| Op::QConv { sliding, groups, clamp })
            }
            Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b } => {
                let trans_b = *trans_b;
                let op = move |flipped, clamp| Op::QMatMul { trans_b: trans_b ^ flipped, clamp };
                self.product(&node, usize::from(!trans_b), op)
            }
            Op::MatMul => {
                let op = |trans_b, clamp| Op::QMatMul { trans_b, clamp };
                self.product(&node, 1, op).or_else(|| self.computed_product(&node))
            }
            Op::Binary(op @ (Binary::Add | Binary::Mul)) => {
                let sums = |pass: &mut Lowering| pass.scaled_sums(&node).or_else(|| pass.row_product(&node));
                self.binary(&node, *op).or_else(|| sums(self))
            }
            Op::AveragePool { sliding, count_include_pad } if sliding.averages_codes(*count_include_pad) => {
                let op = Op::QAveragePool { sliding: sliding.clone(), count_include_pad: *count_include_pad };
                self.average(&node, op)
            }
            Op::GlobalAveragePool => self.average(&node, Op::QGlobalAveragePool),
            Op::Concat { axis } => self.on_codes(&node).or_else(|| self.concat(&node, *axis)),
            Op::Split { .. } => self.split(&node),
            Op::MaxPool { .. }
            | Op::GlobalMaxPool
            | Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Squeeze
            | Op::Unsqueeze
            | Op::Transpose { .. }
            | Op::Slice
            | Op::Gather { .. }
            | Op::Expand
            | Op::Tile
            | Op::Identity => self.on_codes(&node).or_else(|| self.on_twin(&node)),
            Op::Other(other) if other.name == "Resize" || node.op.lays_blocks() => self.on_codes(&node),
            Op::Other(other) => operator_form(self, &node, other),
            Op::MatMulInteger => integer_matmul(self, &node),
            _ => None,
        }
    }

    /// A Q or DQ node that stays: over `u8`, whatever the file has.
    fn boundary(&mut self, node: &Node) -> Option<Node> {
        let quantizes = matches!(node.op, Op::QuantizeLinear { .. });
        if quantizes && let Some(other) = self.table(node).or_else(|| self.row_codes(node)) {
            return Some(other);
        }
        let codes = match quantizes {
            true => self.quantizer(self.current)?,
            false => self.dequantizer(self.current)?,
        };
        let mut node = node.clone();
        if codes.signed {
            let zero_point = Tensor::scalar(codes.params.zero_point[0] as u8);
            let zero_point = zero_point.reshaped(self.graph.constant(node.input(1)?)?.shape())?;
            let zero_point = self.hidden_constant(&format!("{}.zero_point", node.name), zero_point);
            node.inputs.resize(3, None);
            node.inputs[2] = Some(zero_point);
        }
        if !quantizes {
            // Constants stay: they are weights of an operator that runs in float.
            let computed = self.graph.constant(codes.id).is_none();
            return computed.then(|| {
                node.inputs[0] = Some(self.operand(&codes));
                node
            });
        }
        let output = if codes.signed { self.give_twin(codes.id) } else { codes.id };
        self.graph.value_mut(output).qparams = Some(codes.params);
        node.outputs[0] = output;
        Some(node)
    }

    /// Conv, Gemm and MatMul with constant weights whose scales run along `axis`; `op` is told whether the weights
    /// are read with their axes exchanged.
    fn product(&mut self, node: &Node, axis: usize, op: impl FnOnce(bool, Clamp) -> Op) -> Option<Node> {
        let x = self.activation(node.input(0))?;
        let weight = self.weight(node.input(1), axis)?;
        let axis = if weight.transposed { 1 - axis } else { axis };
        let rank = weight.tensor.shape().len();
        let fits = match node.op {
            Op::Conv { .. } => !weight.transposed && (3..=4).contains(&rank),
            _ => rank == 2,
        };
        if !fits {
            return None;
        }
        let channels = weight.tensor.shape()[axis];
        let bias = match node.input(2) {
            None => None,
            Some(id) => Some(self.bias(id, x.params.scale[0], &weight.params, channels)?),
        };
        let bias = bias.map(|codes| self.hidden_constant(&format!("{}.bias_codes", node.name), codes));
        let target = self.target(node.outputs[0]);
        let flipped = weight.transposed;
        Some(self.weighted(node, &x, &weight, bias, target, |clamp| op(flipped, clamp)))
    }

    /// A product of codes and weights, whose result goes to a target, or is real.
    pub(super) fn weighted(
        &mut self,
        node: &Node,
        x: &Codes,
        weight: &Weight,
        bias: Option<ValueId>,
        target: Option<Target>,
        op: impl FnOnce(Clamp) -> Op,
    ) -> Node {
        let mut inputs = vec![Some(self.operand(x)), Some(self.weight_operand(weight))];
        inputs.extend(bias.map(Some));
        let (output, clamp) = self.result(node, target);
        Node::new(node.name.clone(), op(clamp), inputs, vec![output])
    }

    fn result(&mut self, node: &Node, target: Option<Target>) -> (ValueId, Clamp) {
        match target {
            Some(target) => {
                let clamp = target.clamp;
                (self.take(target), clamp)
            }
            None => (node.outputs[0], FULL),
        }
    }

    /// MatMul of two activations.
    fn computed_product(&mut self, node: &Node) -> Option<Node> {
        let (a, b) = (self.activation(node.input(0))?, self.activation(node.input(1))?);
        let target = self.target(node.outputs[0]);
        Some(self.product_of(node, &a, &b, target))
    }

    /// A product of two values that are codes.
    pub(super) fn product_of(&mut self, node: &Node, a: &Codes, b: &Codes, target: Option<Target>) -> Node {
        let inputs = vec![Some(self.operand(a)), Some(self.operand(b))];
        let (output, clamp) = self.result(node, target);
        Node::new(node.name.clone(), Op::QProduct { clamp }, inputs, vec![output])
    }

    /// `Cast(sums) · scale`, where the sums are those of an integer product: it gives reals itself. This is what
    /// quantizers write that leave the range of the activations to the run.
    fn scaled_sums(&mut self, node: &Node) -> Option<Node> {
        let Op::Binary(Binary::Mul) = node.op else { return None };
        let producer = |id: ValueId| Some(*self.producers.get(&id)?);
        let sums_of = |operand: Option<ValueId>| {
            let cast = producer(operand?)?;
            let Op::Cast { to: DType::F32 } = self.graph.nodes[cast].op else { return None };
            let product = producer(self.graph.nodes[cast].input(0)?)?;
            let alone = self.only_reader(self.graph.nodes[product].outputs[0]) == Some(cast)
                && self.only_reader(operand?) == Some(self.current);
            let sums = matches!(self.graph.nodes[product].op, Op::MatMulInteger | Op::ConvInteger { .. });
            (alone && sums).then_some((product, cast))
        };
        let (left, right) = (node.input(0)?, node.input(1)?);
        let (((product, cast), scale), _) = match (sums_of(Some(left)), sums_of(Some(right))) {
            (Some(found), _) => ((found, right), ()),
            (None, Some(found)) => ((found, left), ()),
            (None, None) => return None,
        };
        let scales = self.scale_count(scale)?;
        let by_column = matches!(self.graph.nodes[product].op, Op::MatMulInteger);
        let mut inputs = self.graph.nodes[product].inputs.clone();
        if inputs.len() > 3 || !(scales == 1 || by_column) {
            return None;
        }
        inputs.resize(3, None);
        inputs.push(Some(scale));
        self.absorbed.extend([product, cast]);
        Some(Node { op: self.graph.nodes[product].op.clone(), inputs, ..node.clone() })
    }

    /// How many scales a value holds that is a constant, what DynamicQuantizeLinear gives, or a product of the two.
    fn scale_count(&self, id: ValueId) -> Option<usize> {
        if let Some(tensor) = self.graph.constant(id) {
            return (tensor.dtype() == DType::F32 && tensor.shape().len() <= 1).then_some(tensor.len());
        }
        let node = &self.graph.nodes[*self.producers.get(&id)?];
        match &node.op {
            Op::Other(other) if other.name == "DynamicQuantizeLinear" => {
                (node.outputs.get(1) == Some(&id)).then_some(1)
            }
            Op::Binary(Binary::Mul) => {
                let (a, b) = (self.scale_count(node.input(0)?)?, self.scale_count(node.input(1)?)?);
                (a == b || a == 1 || b == 1).then_some(a.max(b))
            }
            _ => None,
        }
    }

    fn binary(&mut self, node: &Node, op: Binary) -> Option<Node> {
        let (a, b) = (self.activation(node.input(0))?, self.activation(node.input(1))?);
        if self.root_of(&a) == self.root_of(&b) || self.number(&a).is_some() || self.number(&b).is_some() {
            // A function of one code: the Q node behind it becomes a table.
            return None;
        }
        let target = self.target(node.outputs[0])?;
        Some(self.binary_of(node, op, &a, &b, target))
    }

    /// A sum or product element by element.
    pub(super) fn binary_of(
        &mut self,
        node: &Node,
        op: Binary,
        a: &Codes,
        b: &Codes,
        target: Target,
    ) -> Node {
        let inputs = vec![Some(self.operand(a)), Some(self.operand(b))];
        let clamp = target.clamp;
        let output = self.take(target);
        Node::new(node.name.clone(), Op::QBinary { op, clamp }, inputs, vec![output])
    }

    fn average(&mut self, node: &Node, op: Op) -> Option<Node> {
        let x = self.activation(node.input(0))?;
        let target = self.plain_target(node.outputs[0])?;
        Some(self.one_to_one(node, &x, target, op))
    }

    /// An operator from codes to codes.
    pub(super) fn one_to_one(&mut self, node: &Node, x: &Codes, target: Target, op: Op) -> Node {
        let x = self.operand(x);
        let output = self.take(target);
        Node::new(node.name.clone(), op, vec![Some(x)], vec![output])
    }

    /// Operators that move or compare elements do the same on codes, where parameters are equal on both sides.
    fn on_codes(&mut self, node: &Node) -> Option<Node> {
        let x = self.activation(node.input(0))?;
        let target = self.plain_target(node.outputs[0])?;
        if x.params != target.codes.params {
            return None;
        }
        let mut inputs = node.inputs.clone();
        if let Op::Concat { .. } = node.op {
            let parts: Option<Vec<Codes>> = inputs.iter().map(|&input| self.activation(input)).collect();
            let parts = parts.filter(|parts| parts.iter().all(|c| c.params == target.codes.params))?;
            inputs = parts.iter().map(|codes| Some(self.operand(codes))).collect();
        }
        inputs[0] = Some(self.operand(&x));
        let output = self.take(target);
        Some(Node { inputs, outputs: vec![output], ..node.clone() })
    }

    /// Split of codes: every part keeps the parameters of the whole.
    fn split(&mut self, node: &Node) -> Option<Node> {
        let x = self.activation(node.input(0))?;
        let targets: Vec<Target> =
            node.outputs.iter().map(|&part| self.plain_target(part)).collect::<Option<_>>()?;
        if targets.iter().any(|target| target.codes.params != x.params) {
            return None;
        }
        let mut inputs = node.inputs.clone();
        inputs[0] = Some(self.operand(&x));
        let outputs = targets.into_iter().map(|target| self.take(target)).collect();
        Some(Node { inputs, outputs, ..node.clone() })
    }

    /// The same where the file itself has them on codes: they stay `u8` where they have become that.
    fn on_twin(&mut self, node: &Node) -> Option<Node> {
        let x = self.known_twin(node.input(0)?)?;
        let mut inputs = node.inputs.clone();
        inputs[0] = Some(x);
        let output = self.give_twin(node.outputs[0]);
        Some(Node { inputs, outputs: vec![output], ..node.clone() })
    }

    fn concat(&mut self, node: &Node, axis: i64) -> Option<Node> {
        let parts: Option<Vec<Codes>> = node.inputs.iter().map(|&id| self.activation(id)).collect();
        let (parts, target) = (parts?, self.plain_target(node.outputs[0])?);
        Some(self.concat_of(node, axis, &parts, target))
    }

    /// Codes joined, each part with its own parameters.
    pub(super) fn concat_of(&mut self, node: &Node, axis: i64, parts: &[Codes], target: Target) -> Node {
        let inputs = parts.iter().map(|codes| Some(self.operand(codes))).collect();
        let output = self.take(target);
        Node::new(node.name.clone(), Op::QConcat { axis }, inputs, vec![output])
    }
}
