//! A graph with the ends of every value at hand: who makes it, who reads it, and what its codes are. Nodes may be
//! added and taken out, as the passes of a runtime do, and still know the node of the file that they come from.

use std::collections::HashSet;
use std::sync::Arc;

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, Value, ValueId};
use crate::engine::quant::nature::moves_data;
use crate::engine::tensor::{DType, Tensor};

/// A graph and the ends of its values.
pub(super) struct Net {
    pub(super) graph: Graph,
    /// For each node the node of the file that it stands for; `None` where a pass added it.
    pub(super) origin: Vec<Option<usize>>,
    alive: Vec<bool>,
    makers: Vec<Option<usize>>,
    /// For each value its readers: node and operand.
    readers: Vec<Vec<(usize, usize)>>,
    outputs: HashSet<ValueId>,
}

impl Net {
    pub(super) fn new(graph: &Graph) -> Net {
        let graph = graph.clone();
        let mut net = Net {
            origin: (0..graph.nodes.len()).map(Some).collect(),
            alive: vec![true; graph.nodes.len()],
            makers: vec![None; graph.values.len()],
            readers: vec![Vec::new(); graph.values.len()],
            outputs: graph.outputs.iter().copied().collect(),
            graph,
        };
        (0..net.graph.nodes.len()).for_each(|n| net.connect(n));
        net
    }

    fn connect(&mut self, n: usize) {
        for &output in &self.graph.nodes[n].outputs {
            self.makers[output.0 as usize] = Some(n);
        }
        for (operand, input) in self.graph.nodes[n].inputs.iter().enumerate() {
            if let Some(id) = input {
                self.readers[id.0 as usize].push((n, operand));
            }
        }
    }

    pub(super) fn node(&self, n: usize) -> &Node {
        &self.graph.nodes[n]
    }

    /// The nodes that are still there.
    pub(super) fn nodes(&self) -> Vec<usize> {
        (0..self.graph.nodes.len()).filter(|&n| self.alive[n]).collect()
    }

    pub(super) fn is_alive(&self, n: usize) -> bool {
        self.alive[n]
    }

    pub(super) fn maker(&self, value: ValueId) -> Option<usize> {
        self.makers[value.0 as usize]
    }

    /// The nodes that read a value, one entry an operand.
    pub(super) fn readers(&self, value: ValueId) -> &[(usize, usize)] {
        &self.readers[value.0 as usize]
    }

    pub(super) fn is_output(&self, value: ValueId) -> bool {
        self.outputs.contains(&value)
    }

    /// The one node that reads a value which is no output of the graph, and which operand it is.
    pub(super) fn only_reader(&self, value: ValueId) -> Option<(usize, usize)> {
        match self.readers(value) {
            &[reader] if !self.is_output(value) => Some(reader),
            _ => None,
        }
    }

    pub(super) fn add_value(&mut self, value: Value) -> ValueId {
        self.makers.push(None);
        self.readers.push(Vec::new());
        self.graph.add_value(value)
    }

    pub(super) fn add_node(&mut self, node: Node, origin: Option<usize>) -> usize {
        let n = self.graph.nodes.len();
        self.graph.nodes.push(node);
        self.origin.push(origin);
        self.alive.push(true);
        self.connect(n);
        n
    }

    pub(super) fn remove(&mut self, n: usize) {
        self.alive[n] = false;
        let node = self.graph.nodes[n].clone();
        for id in node.inputs.iter().flatten() {
            self.readers[id.0 as usize].retain(|&(reader, _)| reader != n);
        }
        for id in &node.outputs {
            if self.makers[id.0 as usize] == Some(n) {
                self.makers[id.0 as usize] = None;
            }
        }
    }

    /// Lets operand `operand` of a node be another value.
    pub(super) fn set_input(&mut self, n: usize, operand: usize, to: ValueId) {
        if let Some(old) = self.graph.nodes[n].inputs.get(operand).copied().flatten() {
            self.readers[old.0 as usize].retain(|&reader| reader != (n, operand));
        }
        let inputs = &mut self.graph.nodes[n].inputs;
        inputs.resize(inputs.len().max(operand + 1), None);
        inputs[operand] = Some(to);
        self.readers[to.0 as usize].push((n, operand));
    }

    /// Lets a node make another value.
    pub(super) fn set_output(&mut self, n: usize, result: usize, to: ValueId) {
        let old = std::mem::replace(&mut self.graph.nodes[n].outputs[result], to);
        if self.makers[old.0 as usize] == Some(n) {
            self.makers[old.0 as usize] = None;
        }
        self.makers[to.0 as usize] = Some(n);
    }

    pub(super) fn is_quantizer(&self, n: usize) -> bool {
        matches!(self.node(n).op, Op::QuantizeLinear { .. })
    }

    pub(super) fn is_dequantizer(&self, n: usize) -> bool {
        matches!(self.node(n).op, Op::DequantizeLinear { .. })
    }

    /// The DequantizeLinear that makes operand `operand` of a node.
    pub(super) fn dequantizer(&self, n: usize, operand: usize) -> Option<usize> {
        let maker = self.maker(self.node(n).input(operand)?)?;
        self.is_dequantizer(maker).then_some(maker)
    }

    /// The QuantizeLinear nodes that read a value.
    pub(super) fn quantizers(&self, value: ValueId) -> Vec<usize> {
        self.readers(value).iter().filter(|&&(n, at)| at == 0 && self.is_quantizer(n)).map(|r| r.0).collect()
    }

    pub(super) fn constant(&self, value: Option<ValueId>) -> Option<&Arc<Tensor>> {
        self.graph.constant(value?)
    }

    /// Scale and zero point of a Q or DQ node, where they are constants.
    pub(super) fn params(&self, n: usize) -> Option<Params> {
        let node = self.node(n);
        let scale = self.constant(node.input(1))?;
        if scale.dtype() != DType::F32 && scale.dtype() != DType::F16 && scale.dtype() != DType::BF16 {
            return None;
        }
        let zero = match node.input(2) {
            None => None,
            some => Some(self.constant(some)?.clone()),
        };
        let (Op::QuantizeLinear { axis } | Op::DequantizeLinear { axis }) = node.op else { return None };
        let scale: Vec<f32> = scale.to_f64().into_iter().map(|s| s as f32).collect();
        let shape = self.constant(node.input(1)).map_or(Vec::new(), |t| t.shape().to_vec());
        let zeros = zero.as_ref().map_or_else(Vec::new, |z| z.to_i64());
        Some(Params { scale, shape, zeros, has_zero: zero.is_some(), axis, dtype: self.codes_of(n) })
    }

    /// The type of the codes of a Q or DQ node.
    pub(super) fn codes_of(&self, n: usize) -> DType {
        let node = self.node(n);
        let typed = |id: ValueId| self.graph.constant(id).map(|t| t.dtype()).or(self.graph.value(id).dtype);
        // A zero point that is computed has the type of the codes as well.
        if let Some(dtype) = node.input(2).and_then(typed) {
            return dtype;
        }
        if self.is_quantizer(n) {
            return DType::U8;
        }
        let codes = node.input(0);
        let made = codes.and_then(|id| self.maker(id)).filter(|&maker| self.is_quantizer(maker));
        match made {
            Some(maker) => self.codes_of(maker),
            None => codes.and_then(typed).unwrap_or(DType::U8),
        }
    }

    /// Whether a value follows from constants alone, through Q, DQ and what moves data.
    pub(super) fn is_constant(&self, value: ValueId) -> bool {
        let mut value = value;
        // A circle cannot be: the importer orders nodes.
        loop {
            if self.graph.constant(value).is_some() {
                return true;
            }
            let Some(maker) = self.maker(value) else { return false };
            let node = self.node(maker);
            let through = self.is_quantizer(maker)
                || self.is_dequantizer(maker)
                || matches!(node.op, Op::Transpose { .. } | Op::Reshape { .. } | Op::Squeeze | Op::Unsqueeze)
                || matches!(node.op, Op::Flatten { .. } | Op::Identity);
            match node.input(0) {
                Some(input) if through => value = input,
                _ => return false,
            }
        }
    }

    /// Whether a value is codes of an activation in the file itself.
    pub(super) fn is_codes(&self, value: ValueId) -> bool {
        let mut value = value;
        while let Some(maker) = self.maker(value) {
            let node = self.node(maker);
            match (&node.op, node.op.name()) {
                (Op::QuantizeLinear { .. }, _) => return true,
                (_, "DynamicQuantizeLinear") => return node.outputs.first() == Some(&value),
                // Without a scale of its result it gives reals.
                (_, "QGemm") => return node.input(7).is_some(),
                (_, name) if name.starts_with("QLinear") => return true,
                (op, _) if is_reshape(op) || moves_data(op) || matches!(op, Op::MaxPool { .. }) => {
                    match node.input(0) {
                        Some(input) => value = input,
                        None => return false,
                    }
                }
                _ => return false,
            }
        }
        false
    }

    /// Whether a node that computes nothing reads codes.
    pub(super) fn moves_codes(&self, n: usize) -> bool {
        let node = self.node(n);
        let moves = is_reshape(&node.op) || moves_data(&node.op) || matches!(node.op, Op::MaxPool { .. });
        moves && node.input(0).is_some_and(|x| self.is_codes(x))
    }

    /// The name that the file has for a node.
    pub(super) fn name(&self, n: usize) -> &str {
        &self.node(n).name
    }

    pub(super) fn value_name(&self, value: ValueId) -> &str {
        &self.graph.value(value).name
    }

    /// Whether a node computes: not one of Q and DQ, shapes, indices or masks.
    pub(super) fn computes(&self, n: usize) -> bool {
        let node = self.node(n);
        let whole = |id: ValueId| {
            let dtype = self.graph.constant(id).map(|t| t.dtype()).or(self.graph.value(id).dtype);
            matches!(dtype, Some(DType::I64 | DType::I32 | DType::Bool))
        };
        let first = node.input(0).or(node.outputs.first().copied());
        let boundary = self.is_quantizer(n) || self.is_dequantizer(n);
        let counts = first.is_some_and(whole) || node.outputs.iter().all(|&o| whole(o));
        let shape = matches!(node.op, Op::Shape { .. } | Op::ConstantOfShape { .. } | Op::Range);
        let constant =
            !node.inputs.is_empty() && node.inputs.iter().flatten().all(|&id| self.is_constant(id));
        let product =
            on_codes(node) || matches!(node.op, Op::Other(ref o) if o.name == "DynamicQuantizeLinear");
        product || !(boundary || shape || counts || constant || matches!(node.op, Op::Identity))
    }

    /// Whether a node has Q or DQ nodes beside it.
    pub(super) fn touches_codes(&self, n: usize) -> bool {
        let node = self.node(n);
        (0..node.inputs.len()).any(|i| self.dequantizer(n, i).is_some())
            || node.outputs.iter().any(|&o| !self.quantizers(o).is_empty())
    }

    /// Whether to speak of a node: it computes, or moves data between codes.
    pub(super) fn is_of_interest(&self, n: usize) -> bool {
        self.moves_codes(n)
            || self.computes(n)
                && (self.touches_codes(n) || !(moves_data(&self.node(n).op) || is_reshape(&self.node(n).op)))
    }
}

/// Whether an operator only gives its operand another shape or order.
pub(super) fn is_reshape(op: &Op) -> bool {
    matches!(op, Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze | Op::Unsqueeze | Op::Transpose { .. })
}

/// Whether the file itself has the operator on codes.
pub(super) fn on_codes(node: &Node) -> bool {
    match &node.op {
        Op::Other(o) => {
            o.name.starts_with("QLinear")
                || o.name == "QGemm"
                || o.name.contains("Integer")
                || o.name == "DynamicQuantizeMatMul"
        }
        op => op.is_integer(),
    }
}

/// How codes stand for reals.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Params {
    pub(super) scale: Vec<f32>,
    /// The shape of the scale.
    pub(super) shape: Vec<usize>,
    /// The zero points; empty where there are none.
    pub(super) zeros: Vec<i64>,
    pub(super) has_zero: bool,
    pub(super) axis: i64,
    pub(super) dtype: DType,
}

impl Params {
    /// Whether there is one scale for the whole tensor.
    pub(super) fn is_scalar(&self) -> bool {
        self.scale.len() == 1 && self.shape.len() <= 1
    }

    pub(super) fn zero(&self) -> i64 {
        self.zeros.first().copied().unwrap_or(0)
    }

    pub(super) fn is_symmetric(&self) -> bool {
        self.zeros.iter().all(|&z| z == 0)
    }

    /// Whether codes of one stand for the same reals as those of the other.
    pub(super) fn same_as(&self, other: &Params) -> bool {
        let zeros = |p: &Params| if p.zeros.is_empty() { vec![0; p.scale.len()] } else { p.zeros.clone() };
        self.scale == other.scale && zeros(self) == zeros(other) && self.dtype == other.dtype
    }

    /// `scale 0.1, zero point 3 (uint8)`.
    pub(super) fn text(&self) -> String {
        let zero = if self.has_zero { self.zero().to_string() } else { "none".to_owned() };
        match self.scale.len() {
            1 => format!("scale {}, zero point {zero} ({})", self.scale[0], self.dtype),
            n => format!("{n} scales along axis {} ({})", self.axis, self.dtype),
        }
    }
}
