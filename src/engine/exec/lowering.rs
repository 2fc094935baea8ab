//! What turning a graph into integer operators needs to know and to do: which codes a real value comes from or goes to,
//! and constants as the kernels want them. Activations become `u8` and weights `i8`: the codes of the other type are the
//! same ones, 128 more or less, and so are their zero points.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::engine::graph::op::{Clamp, Op, Unary};
use crate::engine::graph::{Graph, Node, Value, ValueId};
use crate::engine::tensor::linear::{codes, tensor_of_codes};
use crate::engine::tensor::qparams::{QuantParams, code_range};
use crate::engine::tensor::{DType, Tensor};

use super::ops_int8::linear_params;

/// All codes: no clamp.
pub(super) const FULL: Clamp = (0, 255);

/// A graph on its way to integers.
pub(super) struct Lowering {
    pub(super) graph: Graph,
    /// As the graph was given; nodes keep their index until the end.
    pub(super) producers: HashMap<ValueId, usize>,
    pub(super) consumers: Vec<Vec<usize>>,
    pub(super) absorbed: HashSet<usize>,
    pub(super) real_names: HashMap<ValueId, String>,
    /// Index of the node that is being looked at.
    pub(super) current: usize,
    /// For `i8` codes the value that holds them as `u8`.
    twins: HashMap<ValueId, ValueId>,
    /// New nodes, each to stand behind the node of an index, or before all.
    added: Vec<(Option<usize>, Node)>,
    /// Where the values come from that new nodes make.
    made_at: HashMap<ValueId, Option<usize>>,
    /// Weights of type `u8` as `i8`.
    signed: HashMap<ValueId, ValueId>,
    /// Codes that are a function of other codes.
    pub(super) tables: HashMap<ValueId, (Codes, Box<[u8; 256]>)>,
}

/// Codes that an operator reads; the parameters are those of the codes as `u8`.
#[derive(Clone)]
pub(super) struct Codes {
    pub(super) id: ValueId,
    pub(super) params: QuantParams,
    /// Whether the value holds them as `i8`.
    pub(super) signed: bool,
}

/// Constant weights as `i8`.
pub(super) struct Weight {
    pub(super) id: ValueId,
    pub(super) tensor: Arc<Tensor>,
    pub(super) params: QuantParams,
    /// Whether the operator reads them with their two axes exchanged.
    pub(super) transposed: bool,
}

/// The codes that a result goes to.
pub(super) struct Target {
    pub(super) codes: Codes,
    pub(super) clamp: Clamp,
    /// Nodes between, and the real value that they quantize.
    pub(super) absorbs: Vec<usize>,
    pub(super) real: ValueId,
}

impl Lowering {
    pub(super) fn new(graph: Graph) -> Lowering {
        Lowering {
            producers: graph.producers(),
            consumers: graph.consumers(),
            graph,
            absorbed: HashSet::new(),
            real_names: HashMap::new(),
            current: 0,
            twins: HashMap::new(),
            added: Vec::new(),
            made_at: HashMap::new(),
            signed: HashMap::new(),
            tables: HashMap::new(),
        }
    }

    /// The graph with the new nodes in and the absorbed ones out.
    pub(super) fn finish(self) -> (Graph, HashMap<ValueId, String>) {
        let Lowering { mut graph, absorbed, real_names, added, .. } = self;
        let mut behind: HashMap<Option<usize>, Vec<Node>> = HashMap::new();
        added.into_iter().for_each(|(at, node)| behind.entry(at).or_default().push(node));
        let old = std::mem::take(&mut graph.nodes);
        graph.nodes = behind.remove(&None).unwrap_or_default();
        for (index, node) in old.into_iter().enumerate() {
            graph.nodes.extend((!absorbed.contains(&index)).then_some(node));
            graph.nodes.extend(behind.remove(&Some(index)).into_iter().flatten());
        }
        graph.remove_unused_nodes();
        (graph, real_names)
    }

    /// Constant codes that a Clip cuts off become what is left: training leaves out the lowest code so.
    pub(super) fn fold_clipped_codes(&mut self) {
        for index in 0..self.graph.nodes.len() {
            if let Some((output, tensor)) = self.clipped_codes(index) {
                self.graph.value_mut(output).constant = Some(Arc::new(tensor));
                self.absorbed.insert(index);
            }
        }
    }

    /// The result of a Clip over constant codes: where training leaves out the lowest code.
    fn clipped_codes(&self, index: usize) -> Option<(ValueId, Tensor)> {
        let node = &self.graph.nodes[index];
        let Op::Clip = node.op else { return None };
        let all = self.graph.constant(node.input(0)?)?;
        let dtype = all.dtype();
        let bound = |i: usize, none: i64| match node.input(i) {
            None => Some(none),
            Some(id) => {
                self.graph.constant(id).filter(|t| t.len() == 1 && t.dtype() == dtype).map(|t| t.to_i64()[0])
            }
        };
        let (least, most) = code_range(dtype);
        let (lo, hi) = (bound(1, least)?, bound(2, most)?);
        if !matches!(dtype, DType::I8 | DType::U8) {
            return None;
        }
        // As `Clip` has it where the bounds are crossed.
        let clip = |q: i64| q.max(lo).min(hi) as i32;
        let clipped: Vec<i32> = all.to_i64().into_iter().map(clip).collect();
        Some((node.outputs[0], tensor_of_codes(dtype, all.shape(), &clipped)))
    }

    /// The parameters of a Q or DQ node over a value of `rank` dimensions, where they are constants. `codes` is their
    /// type where it is known.
    fn params_of(&self, node: &Node, rank: usize, codes: Option<DType>) -> Option<QuantParams> {
        let (Op::QuantizeLinear { axis } | Op::DequantizeLinear { axis }) = node.op else { return None };
        self.constant_params(node.input(1), node.input(2), axis, rank, codes)
    }

    /// Parameters from a scale and a zero point that are constants.
    pub(super) fn constant_params(
        &self,
        scale: Option<ValueId>,
        zero_point: Option<ValueId>,
        axis: i64,
        rank: usize,
        codes: Option<DType>,
    ) -> Option<QuantParams> {
        let scale = self.graph.constant(scale?)?;
        let zero_point = match zero_point {
            None => None,
            Some(id) => Some(self.graph.constant(id)?.as_ref()),
        };
        // Without a zero point Q gives u8; the codes of DQ are of the type they are.
        let dtype = zero_point.map(Tensor::dtype).or(codes).unwrap_or(DType::U8);
        linear_params(scale, zero_point, axis, rank, dtype).ok()
    }

    /// Codes with one scale, of either type.
    pub(super) fn codes_with(&self, id: ValueId, mut params: QuantParams) -> Option<Codes> {
        let signed = match params.dtype {
            DType::U8 => false,
            DType::I8 => true,
            _ => return None,
        };
        if params.axis.is_some() || params.scale.len() != 1 {
            return None;
        }
        if signed {
            params.zero_point[0] += 128;
            params.dtype = DType::U8;
        }
        Some(Codes { id, params, signed })
    }

    /// The DequantizeLinear that a real operand comes from, its codes and their parameters.
    fn dequantized(&self, operand: Option<ValueId>) -> Option<(ValueId, QuantParams)> {
        let node = &self.graph.nodes[*self.producers.get(&operand?)?];
        let Op::DequantizeLinear { .. } = node.op else { return None };
        let id = node.input(0)?;
        let rank = self.graph.constant(id).map_or(usize::MAX >> 1, |t| t.shape().len());
        Some((id, self.params_of(node, rank, self.type_of(id))?))
    }

    /// The type of a value, where it is known.
    pub(super) fn type_of(&self, id: ValueId) -> Option<DType> {
        self.graph.constant(id).map(|t| t.dtype()).or(self.graph.value(id).dtype)
    }

    /// The activations that a real operand comes from: one scale, 8 bits.
    pub(super) fn activation(&self, operand: Option<ValueId>) -> Option<Codes> {
        let (id, params) = self.dequantized(operand)?;
        self.codes_with(id, params)
    }

    /// The codes that a Q node gives, where it is one with constant parameters.
    pub(super) fn quantizer(&self, index: usize) -> Option<Codes> {
        let node = &self.graph.nodes[index];
        let Op::QuantizeLinear { .. } = node.op else { return None };
        self.codes_with(node.outputs[0], self.params_of(node, usize::MAX >> 1, None)?)
    }

    /// The codes that a DQ node reads, where it is one with constant parameters.
    pub(super) fn dequantizer(&self, index: usize) -> Option<Codes> {
        self.activation(self.graph.nodes[index].outputs.first().copied())
    }

    /// Constant weights, one scale or one along `axis`; `axis` counts before a Transpose that stands between.
    pub(super) fn weight(&mut self, operand: Option<ValueId>, axis: usize) -> Option<Weight> {
        let mut weight = self.dequantized(operand);
        let mut transposed = false;
        if weight.is_none() {
            let node = &self.graph.nodes[*self.producers.get(&operand?)?];
            transposed = matches!(&node.op, Op::Transpose { perm } if perm.is_empty() || perm[..] == [1, 0]);
            weight = self.dequantized(node.input(0).filter(|_| transposed));
        }
        let (id, params) = weight?;
        let rank = self.graph.constant(id)?.shape().len();
        let axis = if transposed && rank == 2 { 1 - axis.min(1) } else { axis };
        let fits = (!transposed || rank == 2) && params.axis.is_none_or(|a| a == axis);
        let mut weight = self.constant_weight(id, params).filter(|_| fits)?;
        weight.transposed = transposed;
        Some(weight)
    }

    /// Constant codes of either type as `i8`.
    pub(super) fn constant_weight(&mut self, id: ValueId, mut params: QuantParams) -> Option<Weight> {
        let tensor = self.graph.constant(id)?.clone();
        if tensor.dtype() != params.dtype || tensor.is_empty() {
            return None;
        }
        let (id, tensor) = match params.dtype {
            DType::I8 => (id, tensor),
            DType::U8 => {
                params.zero_point.iter_mut().for_each(|z| *z -= 128);
                params.dtype = DType::I8;
                let moved: Vec<i8> = tensor.slice::<u8>().iter().map(|&q| (q ^ 0x80) as i8).collect();
                let moved = Tensor::from_slice(tensor.shape(), &moved);
                let id = match self.signed.get(&id) {
                    Some(&known) => known,
                    None => {
                        let name = self.graph.unused_name(&format!("{}.i8", self.graph.value(id).name));
                        *self.signed.entry(id).or_insert(self.graph.add_constant(&name, moved))
                    }
                };
                (id, self.graph.constant(id)?.clone())
            }
            _ => return None,
        };
        Some(Weight { id, tensor, params, transposed: false })
    }

    /// The QuantizeLinear that alone reads a value, perhaps through one Relu or Clip.
    pub(super) fn target(&self, value: ValueId) -> Option<Target> {
        let first = self.only_reader(value)?;
        if let Some(codes) = self.quantizer(first) {
            return Some(Target { codes, clamp: FULL, absorbs: vec![first], real: value });
        }
        let activation = &self.graph.nodes[first];
        let (lo, hi) = self.bounds(activation)?;
        let real = activation.outputs[0];
        let second = self.only_reader(real)?;
        let codes = self.quantizer(second)?;
        let code = |x: f32| codes.params.quantize(x, 0) as u8;
        let clamp = (lo.map_or(0, code), hi.map_or(255, code));
        (clamp.0 <= clamp.1).then(|| Target { codes, clamp, absorbs: vec![first, second], real })
    }

    /// The target of a value that no activation follows.
    pub(super) fn plain_target(&self, value: ValueId) -> Option<Target> {
        self.target(value).filter(|t| t.absorbs.len() == 1)
    }

    /// The one node that reads a value which is no output of the graph.
    pub(super) fn only_reader(&self, id: ValueId) -> Option<usize> {
        match self.consumers.get(id.0 as usize)?[..] {
            [reader] if !self.graph.outputs.contains(&id) => Some(reader),
            _ => None,
        }
    }

    /// The bounds of a Relu or of a Clip whose bounds are constants.
    pub(super) fn bounds(&self, node: &Node) -> Option<(Option<f32>, Option<f32>)> {
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

    /// Notes that the result of the current node goes to codes, and gives their value, which is `u8`.
    pub(super) fn take(&mut self, target: Target) -> ValueId {
        let Target { codes, absorbs, real, .. } = target;
        self.absorbed.extend(absorbs);
        let id = if codes.signed { self.give_twin(codes.id) } else { codes.id };
        self.real_names.insert(id, self.graph.value(real).name.clone());
        let value = self.graph.value_mut(id);
        value.dtype = Some(DType::U8);
        value.qparams = Some(codes.params);
        id
    }

    /// A `u8` value that the current node gives in the place of `i8` codes; those are made of it where anybody still
    /// reads them.
    pub(super) fn give_twin(&mut self, id: ValueId) -> ValueId {
        let twin = self.new_twin(id, Some(self.current));
        let name = format!("{}.i8", self.graph.value(id).name);
        self.added.push((Some(self.current), Node::new(name, Op::Recode, vec![Some(twin)], vec![id])));
        twin
    }

    fn new_twin(&mut self, id: ValueId, at: Option<usize>) -> ValueId {
        let name = self.graph.unused_name(&format!("{}.u8", self.graph.value(id).name));
        let dims = self.graph.value(id).dims.clone();
        let value = Value { name, dtype: Some(DType::U8), dims, ..Value::default() };
        let twin = self.graph.add_value(value);
        self.real_names.insert(twin, self.graph.value(id).name.clone());
        self.made_at.insert(twin, at);
        self.twins.insert(id, twin);
        twin
    }

    /// The `u8` form that `i8` codes already have.
    pub(super) fn known_twin(&self, id: ValueId) -> Option<ValueId> {
        self.twins.get(&id).copied()
    }

    /// `i8` codes as `u8`.
    fn twin(&mut self, id: ValueId) -> ValueId {
        if let Some(&twin) = self.twins.get(&id) {
            return twin;
        }
        if let Some(tensor) = self.graph.constant(id).cloned() {
            let moved: Vec<u8> = tensor.slice::<i8>().iter().map(|&q| q as u8 ^ 0x80).collect();
            let name = self.graph.unused_name(&format!("{}.u8", self.graph.value(id).name));
            let twin = self.graph.add_constant(&name, Tensor::from_slice(tensor.shape(), &moved));
            self.twins.insert(id, twin);
            return twin;
        }
        let at = self.made_at(id);
        let twin = self.new_twin(id, at);
        let name = format!("{}.u8", self.graph.value(id).name);
        self.added.push((at, Node::new(name, Op::Recode, vec![Some(id)], vec![twin])));
        twin
    }

    fn made_at(&self, id: ValueId) -> Option<usize> {
        self.made_at.get(&id).copied().unwrap_or_else(|| self.producers.get(&id).copied())
    }

    /// The value to read for codes: `u8`, and with these parameters on it.
    pub(super) fn operand(&mut self, codes: &Codes) -> ValueId {
        let id = if codes.signed { self.twin(codes.id) } else { codes.id };
        match &self.graph.value(id).qparams {
            Some(known) if *known == codes.params => return id,
            None => {
                self.graph.value_mut(id).qparams = Some(codes.params.clone());
                return id;
            }
            Some(_) => {}
        }
        // The same codes stand for other reals here: a file that says so is strange, but right.
        let (at, old) = (self.made_at(id), self.graph.value(id).clone());
        let name = self.graph.unused_name(&format!("{}.as", old.name));
        let params = Some(codes.params.clone());
        let alias = self.graph.add_value(Value { name, qparams: params, ..old.clone() });
        if old.constant.is_none() {
            self.made_at.insert(alias, at);
            let node = Node::new(old.name, Op::Identity, vec![Some(id)], vec![alias]);
            self.added.push((at, node));
        }
        alias
    }

    /// The value to read for codes whose parameters are operands: `u8`, with nothing on it.
    pub(super) fn bare_operand(&mut self, codes: &Codes) -> ValueId {
        if codes.signed { self.twin(codes.id) } else { codes.id }
    }

    /// The value to read for weights: with their parameters on it.
    pub(super) fn weight_operand(&mut self, weight: &Weight) -> ValueId {
        let value = self.graph.value_mut(weight.id);
        if value.qparams.as_ref().is_none_or(|known| *known == weight.params) {
            value.qparams = Some(weight.params.clone());
            return weight.id;
        }
        let old = value.clone();
        let name = self.graph.unused_name(&format!("{}.as", old.name));
        self.graph.add_value(Value { name, qparams: Some(weight.params.clone()), ..old })
    }

    /// A constant of the graph that only the executor knows.
    pub(super) fn hidden_constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let name = self.graph.unused_name(name);
        self.graph.add_constant(&name, tensor)
    }

    /// Adds a node in front of the one that is being looked at: behind the one before it.
    pub(super) fn add_before_current(&mut self, node: Node) {
        let at = self.current.checked_sub(1);
        node.outputs.iter().for_each(|&id| {
            self.made_at.insert(id, at);
        });
        self.added.push((at, node));
    }

    /// The bias as codes of scale `s_x · s_w`: as it is where it has them, rounded where it is real.
    pub(super) fn bias(
        &self,
        id: ValueId,
        x_scale: f32,
        weight: &QuantParams,
        channels: usize,
    ) -> Option<Tensor> {
        let unit = |n: usize| x_scale * weight.scale[if weight.scale.len() == 1 { 0 } else { n }];
        let real: Vec<f32> = match self.dequantized(Some(id)) {
            Some((id, params)) => {
                let tensor = self.graph.constant(id)?;
                let zero = params.zero_point.iter().all(|&z| z == 0);
                if tensor.len() != channels || params.axis.is_some_and(|a| a != 0) {
                    return None;
                }
                let scale = |n: usize| params.scale[if params.scale.len() == 1 { 0 } else { n }];
                let same = (0..channels).all(|n| (scale(n) / unit(n) - 1.0).abs() < 1e-5);
                if same && zero && tensor.dtype() == DType::I32 {
                    return Some((**tensor).clone());
                }
                let index = |n: usize| if params.scale.len() == 1 { 0 } else { n };
                let codes = codes(&tensor.view()).ok()?;
                codes.iter().enumerate().map(|(n, &q)| params.dequantize(q, index(n))).collect()
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
}
