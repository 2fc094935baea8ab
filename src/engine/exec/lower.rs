//! QDQ graphs to integer operators: `DequantizeLinear → operator → QuantizeLinear` becomes one step on codes.
//! What has no integer form stays as it is and runs in float between the Q and DQ nodes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::engine::graph::op::{Binary, Clamp, Op, Unary};
use crate::engine::graph::{Graph, Node, Value, ValueId};
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor};

use super::ops_int8::linear_params;
use super::ops_math::unary_f32;

/// All codes: no clamp.
const FULL: Clamp = (0, 255);

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
pub(super) fn lower(graph: Graph) -> Lowered {
    let producers = graph.producers();
    let consumers = graph.consumers();
    let mut pass =
        Lowering { graph, producers, consumers, absorbed: HashSet::new(), real_names: HashMap::new() };
    pass.annotate();
    for index in 0..pass.graph.nodes.len() {
        if let Some(node) = pass.integer_form(index) {
            pass.graph.nodes[index] = node;
        }
    }
    let Lowering { mut graph, absorbed, real_names, .. } = pass;
    let mut index = 0;
    graph.nodes.retain(|_| {
        index += 1;
        !absorbed.contains(&(index - 1))
    });
    graph.remove_unused_nodes();
    Lowered { graph, real_names }
}

struct Lowering {
    graph: Graph,
    /// As the graph was given; nodes keep their index until the end.
    producers: HashMap<ValueId, usize>,
    consumers: Vec<Vec<usize>>,
    absorbed: HashSet<usize>,
    real_names: HashMap<ValueId, String>,
}

/// Codes that a DequantizeLinear reads.
#[derive(Clone)]
struct Codes {
    id: ValueId,
    params: QuantParams,
}

/// The codes that a result goes to.
struct Target {
    id: ValueId,
    params: QuantParams,
    clamp: Clamp,
    /// Nodes between, and the real value that they quantize.
    absorbs: Vec<usize>,
    real: ValueId,
}

impl Lowering {
    /// Puts the parameters of Q and DQ nodes on the codes.
    fn annotate(&mut self) {
        for index in 0..self.graph.nodes.len() {
            let node = &self.graph.nodes[index];
            let (codes, axis) = match node.op {
                Op::QuantizeLinear { axis } => (node.outputs[0], axis),
                Op::DequantizeLinear { axis } => (node.inputs[0].unwrap_or(node.outputs[0]), axis),
                _ => continue,
            };
            let params = self.params_of(node, codes, axis);
            self.graph.value_mut(codes).qparams = params;
        }
    }

    fn params_of(&self, node: &Node, codes: ValueId, axis: i64) -> Option<QuantParams> {
        let scale = self.graph.constant(node.input(1)?)?;
        let zero_point = match node.input(2) {
            None => None,
            Some(id) => Some(self.graph.constant(id)?.as_ref()),
        };
        let constant = self.graph.constant(codes);
        // Without a zero point Q gives u8; the codes of DQ are of the type they are.
        let dtype = zero_point.map(Tensor::dtype).or(constant.map(|t| t.dtype())).unwrap_or(DType::U8);
        let rank = constant.map_or(usize::MAX >> 1, |t| t.shape().len());
        linear_params(scale, zero_point, axis, rank, dtype).ok()
    }

    /// The codes that a real operand comes from.
    fn codes(&self, operand: Option<ValueId>) -> Option<Codes> {
        let node = &self.graph.nodes[*self.producers.get(&operand?)?];
        let Op::DequantizeLinear { .. } = node.op else { return None };
        let id = node.input(0)?;
        Some(Codes { id, params: self.graph.value(id).qparams.clone()? })
    }

    /// Activations: one scale, `u8`.
    fn activation(&self, operand: Option<ValueId>) -> Option<Codes> {
        self.codes(operand).filter(|c| c.params.axis.is_none() && c.params.dtype == DType::U8)
    }

    /// Constant weights: `i8` around zero, one scale or one along `axis`.
    fn weight(&self, operand: Option<ValueId>, axis: usize) -> Option<(Codes, Arc<Tensor>)> {
        let codes = self.codes(operand)?;
        let tensor = self.graph.constant(codes.id)?.clone();
        let fits = codes.params.dtype == DType::I8
            && codes.params.axis.is_none_or(|a| a == axis)
            && codes.params.zero_point.iter().all(|&z| z == 0);
        fits.then_some((codes, tensor))
    }

    /// The QuantizeLinear that alone reads a value, perhaps through one Relu or Clip.
    fn target(&self, value: ValueId) -> Option<Target> {
        let only_reader = |id: ValueId| match self.consumers[id.0 as usize][..] {
            [reader] if !self.graph.outputs.contains(&id) => Some(reader),
            _ => None,
        };
        let first = only_reader(value)?;
        if let Some((id, params)) = self.quantizer(first) {
            return Some(Target { id, params, clamp: FULL, absorbs: vec![first], real: value });
        }
        let activation = &self.graph.nodes[first];
        let (lo, hi) = self.bounds(activation)?;
        let real = activation.outputs[0];
        let second = only_reader(real)?;
        let (id, params) = self.quantizer(second)?;
        let code = |x: f32| params.quantize(x, 0) as u8;
        let clamp = (lo.map_or(0, code), hi.map_or(255, code));
        (clamp.0 <= clamp.1).then(|| Target { id, params, clamp, absorbs: vec![first, second], real })
    }

    /// The codes that a QuantizeLinear to `u8` with one scale gives.
    fn quantizer(&self, index: usize) -> Option<(ValueId, QuantParams)> {
        let node = &self.graph.nodes[index];
        let Op::QuantizeLinear { .. } = node.op else { return None };
        let params = self.graph.value(node.outputs[0]).qparams.clone()?;
        (params.axis.is_none() && params.dtype == DType::U8).then_some((node.outputs[0], params))
    }

    /// The bounds of a Relu or of a Clip whose bounds are constants.
    fn bounds(&self, node: &Node) -> Option<(Option<f32>, Option<f32>)> {
        match node.op {
            Op::Unary(Unary::Relu) => Some((Some(0.0), None)),
            Op::Clip => {
                let bound = |i: usize| match node.input(i) {
                    None => Some(None),
                    Some(id) => {
                        let tensor = self.graph.constant(id)?;
                        (tensor.dtype() == DType::F32 && tensor.len() == 1)
                            .then(|| Some(tensor.slice::<f32>()[0]))
                    }
                };
                Some((bound(1)?, bound(2)?))
            }
            _ => None,
        }
    }

    /// Notes that a result goes to codes, and gives them.
    fn take(&mut self, target: Target) -> ValueId {
        self.absorbed.extend(target.absorbs);
        self.real_names.insert(target.id, self.graph.value(target.real).name.clone());
        let value = self.graph.value_mut(target.id);
        value.dtype = Some(DType::U8);
        value.qparams = Some(target.params);
        target.id
    }

    /// The integer form of a node, where it has one.
    fn integer_form(&mut self, index: usize) -> Option<Node> {
        if self.absorbed.contains(&index) {
            return None;
        }
        let node = self.graph.nodes[index].clone();
        match &node.op {
            Op::Conv { sliding, groups } => {
                let (sliding, groups) = (sliding.clone(), *groups);
                self.product(&node, 0, move |clamp| Op::QConv { sliding, groups, clamp })
            }
            Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b } => {
                let trans_b = *trans_b;
                self.product(&node, usize::from(!trans_b), |clamp| Op::QMatMul { trans_b, clamp })
            }
            Op::MatMul => self.product(&node, 1, |clamp| Op::QMatMul { trans_b: false, clamp }),
            Op::Binary(op @ (Binary::Add | Binary::Mul)) => self.binary(&node, *op),
            Op::AveragePool { sliding, count_include_pad } => {
                let op = Op::QAveragePool { sliding: sliding.clone(), count_include_pad: *count_include_pad };
                self.average(&node, op)
            }
            Op::GlobalAveragePool => self.average(&node, Op::QGlobalAveragePool),
            Op::Concat { axis } => self.on_codes(&node).or_else(|| self.concat(&node, *axis)),
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
            | Op::Identity => self.on_codes(&node),
            Op::Unary(unary) if *unary != Unary::Not => {
                let f = unary_f32(*unary);
                self.table(&node, f)
            }
            Op::Clip => {
                let (lo, hi) = self.bounds(&node)?;
                let (lo, hi) = (lo.unwrap_or(f32::NEG_INFINITY), hi.unwrap_or(f32::INFINITY));
                self.table(&node, move |x| x.max(lo).min(hi))
            }
            _ => None,
        }
    }

    /// Conv, Gemm and MatMul with constant weights whose scales run along `axis`.
    fn product(&mut self, node: &Node, axis: usize, op: impl FnOnce(Clamp) -> Op) -> Option<Node> {
        let x = self.activation(node.input(0))?;
        let (weight, tensor) = self.weight(node.input(1), axis)?;
        if !matches!(node.op, Op::Conv { .. }) && tensor.shape().len() != 2 {
            return None;
        }
        let channels = tensor.shape()[axis];
        let bias = match node.input(2) {
            None => None,
            Some(id) => Some(self.bias(id, x.params.scale[0], &weight.params, channels)?),
        };
        let (output, clamp) = match self.target(node.outputs[0]) {
            Some(target) => {
                let clamp = target.clamp;
                (self.take(target), clamp)
            }
            None => (node.outputs[0], FULL),
        };
        let mut inputs = vec![Some(x.id), Some(weight.id)];
        if let Some(codes) = bias {
            let name = self.graph.unused_name(&format!("{}.bias_codes", node.name));
            inputs.push(Some(self.graph.add_value(Value {
                name,
                dtype: Some(DType::I32),
                constant: Some(Arc::new(codes)),
                ..Value::default()
            })));
        }
        Some(Node::new(node.name.clone(), op(clamp), inputs, vec![output]))
    }

    /// The bias as codes of scale `s_x · s_w`: as it is where it has them, rounded where it is real.
    fn bias(&self, id: ValueId, x_scale: f32, weight: &QuantParams, channels: usize) -> Option<Tensor> {
        let unit = |n: usize| x_scale * weight.scale[if weight.scale.len() == 1 { 0 } else { n }];
        let real: Vec<f32> = match self.codes(Some(id)) {
            Some(codes) => {
                let tensor = self.graph.constant(codes.id)?;
                if tensor.dtype() != DType::I32 || tensor.len() != channels {
                    return None;
                }
                let scale = |n: usize| codes.params.scale[if codes.params.scale.len() == 1 { 0 } else { n }];
                let same = (0..channels).all(|n| (scale(n) / unit(n) - 1.0).abs() < 1e-5);
                if same && codes.params.zero_point.iter().all(|&z| z == 0) {
                    return Some((**tensor).clone());
                }
                let codes_of = tensor.slice::<i32>();
                (0..channels).map(|n| codes_of[n] as f32 * scale(n)).collect()
            }
            None => {
                let tensor = self.graph.constant(id)?;
                if tensor.dtype() != DType::F32 || tensor.len() != channels {
                    return None;
                }
                tensor.slice::<f32>().to_vec()
            }
        };
        let code = |(n, &b): (usize, &f32)| (f64::from(b) / f64::from(unit(n))).round_ties_even() as i32;
        let codes: Vec<i32> = real.iter().enumerate().map(code).collect();
        Some(Tensor::from_slice(&[channels], &codes))
    }

    fn binary(&mut self, node: &Node, op: Binary) -> Option<Node> {
        let (a, b) = (self.activation(node.input(0))?, self.activation(node.input(1))?);
        let target = self.target(node.outputs[0])?;
        let clamp = target.clamp;
        let output = self.take(target);
        let inputs = vec![Some(a.id), Some(b.id)];
        Some(Node::new(node.name.clone(), Op::QBinary { op, clamp }, inputs, vec![output]))
    }

    /// The target of a value that no activation follows.
    fn plain_target(&self, value: ValueId) -> Option<Target> {
        self.target(value).filter(|t| t.absorbs.len() == 1)
    }

    fn average(&mut self, node: &Node, op: Op) -> Option<Node> {
        let x = self.activation(node.input(0))?;
        let output = self.plain_target(node.outputs[0])?;
        let output = self.take(output);
        Some(Node::new(node.name.clone(), op, vec![Some(x.id)], vec![output]))
    }

    /// Operators that move or compare elements do the same on codes, where parameters are equal on both sides.
    fn on_codes(&mut self, node: &Node) -> Option<Node> {
        let x = self.activation(node.input(0))?;
        let target = self.plain_target(node.outputs[0])?;
        if x.params != target.params {
            return None;
        }
        let mut inputs = node.inputs.clone();
        if let Op::Concat { .. } = node.op {
            for input in &mut inputs {
                let codes = self.activation(*input).filter(|c| c.params == target.params)?;
                *input = Some(codes.id);
            }
        }
        inputs[0] = Some(x.id);
        let output = self.take(target);
        Some(Node { inputs, outputs: vec![output], ..node.clone() })
    }

    fn concat(&mut self, node: &Node, axis: i64) -> Option<Node> {
        let inputs: Option<Vec<_>> =
            node.inputs.iter().map(|&id| Some(Some(self.activation(id)?.id))).collect();
        let target = self.plain_target(node.outputs[0])?;
        let inputs = inputs?;
        let output = self.take(target);
        Some(Node::new(node.name.clone(), Op::QConcat { axis }, inputs, vec![output]))
    }

    /// A function of one real is a table of 256 codes: exactly what DQ, the operator and Q give.
    fn table(&mut self, node: &Node, f: impl Fn(f32) -> f32) -> Option<Node> {
        let x = self.activation(node.input(0))?;
        let target = self.plain_target(node.outputs[0])?;
        let code = |q: usize| target.params.quantize(f(x.params.dequantize(q as i32, 0)), 0) as u8;
        let table: Box<[u8; 256]> = Box::new(std::array::from_fn(code));
        let output = self.take(target);
        Some(Node::new(node.name.clone(), Op::QTable { table }, vec![Some(x.id)], vec![output]))
    }
}
