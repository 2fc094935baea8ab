//! A [`Graph`] to ONNX bytes, in the opset of the model that it came from, or a later one: 13 at least, and the first
//! that has all its operators in the form that we write.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use prost::Message;

use crate::engine::graph::op::{Op, PadMode, Reduce, Unary};
use crate::engine::graph::{Dim, Graph, Node, ValueId};
use crate::engine::tensor::DType;

use super::attributes::{attributes, graph, int, ints};
use super::tensors::tensor_to_proto;
use super::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Lowest opset written: per-axis DequantizeLinear begins there.
const OPSET_MIN: i64 = 13;
/// From this opset on all reductions take their axes as an operand.
const REDUCE_AXES_OPERAND: i64 = 18;
/// The IR version that came with an opset, where it is not that of opsets 13 to 18, which readers of those know.
const IR_VERSIONS: &[(i64, i64)] = &[(19, 9), (21, 10), (23, 11), (24, 12), (25, 13)];
/// IR version of the others.
const IR_VERSION: i64 = 8;

/// The ONNX file of a graph. The same graph gives the same bytes.
/// `metadata` becomes `metadata_props`, in order.
///
/// # Panics
/// If the graph holds operators of the executor (`QConv` and its like): they have no ONNX form.
pub fn export(graph: &Graph, metadata: &[(String, String)]) -> Vec<u8> {
    let needed = graph.nodes.iter().map(|n| needed_opset(graph, n)).max().unwrap_or(OPSET_MIN);
    // Element types came with opsets too: what the model has is there in the opset that it was written in.
    let opset = needed.max(OPSET_MIN).max(graph.opset);
    let domains = RefCell::default();
    let scope = Scope::new(graph, None, HashMap::new());
    let proto = scope.write(opset, &domains, graph.inputs.len());
    let pair =
        |(key, value): &(String, String)| StringStringEntryProto { key: key.clone(), value: value.clone() };
    let mut opset_import = vec![OperatorSetIdProto { domain: String::new(), version: opset }];
    let mut others: Vec<&str> = domains.into_inner();
    others.sort_unstable();
    others.dedup();
    opset_import.extend(others.iter().map(|d| OperatorSetIdProto { domain: (*d).to_owned(), version: 1 }));
    ModelProto {
        ir_version: Some(IR_VERSIONS.iter().rfind(|(from, _)| *from <= opset).map_or(IR_VERSION, |v| v.1)),
        producer_name: "octet".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(proto),
        opset_import,
        metadata_props: metadata.iter().map(pair).collect(),
        functions: Vec::new(),
    }
    .encode_to_vec()
}

/// The opset in which the form that we write appeared.
fn needed_opset(graph: &Graph, node: &Node) -> i64 {
    match &node.op {
        Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } if has_sixteen_bits(graph, node) => 21,
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

/// Whether the codes of a Q or DQ node have 16 bits.
fn has_sixteen_bits(graph: &Graph, node: &Node) -> bool {
    let type_of = |id| graph.constant(id).map_or(graph.value(id).dtype, |t| Some(t.dtype()));
    matches!(node.input(2).and_then(type_of), Some(DType::U16 | DType::I16))
}

/// A graph that is being written, and those around it, whose values it can read by name.
struct Scope<'a> {
    graph: &'a Graph,
    around: Option<&'a Scope<'a>>,
    /// The name that each value has in the file.
    names: Vec<String>,
    /// The values by that name, but for those of the graphs around.
    own: HashMap<String, ValueId>,
    /// Values that some node reads or that the graph returns.
    used: RefCell<Vec<bool>>,
}

impl<'a> Scope<'a> {
    /// Names the values: as they are called, unless the name is taken, here or around. `captured` are inputs that
    /// stand for values of the graphs around, with their names.
    fn new(graph: &'a Graph, around: Option<&'a Scope<'a>>, captured: HashMap<ValueId, String>) -> Scope<'a> {
        let count = graph.values.len();
        let used = RefCell::new(vec![false; count]);
        let mut scope = Scope { graph, around, names: vec![String::new(); count], own: HashMap::new(), used };
        // What a caller knows by name comes first.
        let ids = (0..count).map(|i| ValueId(i as u32));
        let mut order: Vec<ValueId> = graph.inputs.iter().chain(&graph.outputs).copied().collect();
        order.extend(ids);
        let mut named = vec![false; count];
        for id in order {
            if std::mem::replace(&mut named[id.0 as usize], true) {
                continue;
            }
            let name = match captured.get(&id) {
                Some(name) => name.clone(),
                None => scope.free_name(id),
            };
            scope.names[id.0 as usize] = name;
        }
        scope
    }

    fn free_name(&mut self, id: ValueId) -> String {
        let value = self.graph.value(id);
        let base = if value.name.is_empty() { "value" } else { value.name.as_str() };
        // A constant of a graph around, seen from here.
        if let Some((scope, outer)) = self.around.and_then(|around| around.find(base))
            && let (Some(there), Some(here)) = (scope.graph.constant(outer), &value.constant)
            && there == here
        {
            return base.to_owned();
        }
        let mut free = std::iter::once(base.to_owned()).chain((1..).map(|i| format!("{base}_{i}")));
        let is_free = |name: &String| self.find(name).is_none();
        let name = free.find(is_free).expect("the numbers do not end");
        self.own.insert(name.clone(), id);
        name
    }

    /// The value of a name, here or around.
    fn find(&self, name: &str) -> Option<(&Scope<'a>, ValueId)> {
        match self.own.get(name) {
            Some(id) => Some((self, *id)),
            None => self.around?.find(name),
        }
    }

    fn name(&self, id: ValueId) -> String {
        let name = &self.names[id.0 as usize];
        match self.find(name) {
            Some((scope, id)) => scope.used.borrow_mut()[id.0 as usize] = true,
            None => unreachable!("every name was given to a value"),
        }
        name.clone()
    }

    /// The message of the graph; the first `inputs` of its inputs are handed in, the others are captured.
    fn write(&self, opset: i64, domains: &RefCell<Vec<&'static str>>, inputs: usize) -> GraphProto {
        let graph = self.graph;
        let mut writer = Writer { scope: self, opset, domains, nodes: Vec::new() };
        graph.nodes.iter().for_each(|n| writer.node(n));
        let mut node = writer.nodes;
        tell_apart(&mut node);
        let output = graph.outputs.iter().map(|&v| self.value_info(v)).collect();
        let input = graph.inputs[..inputs].iter().map(|&v| self.value_info(v)).collect();
        let used = self.used.borrow();
        let mut initializer = Vec::new();
        for (index, value) in graph.values.iter().enumerate() {
            let own = self.own.get(&self.names[index]) == Some(&ValueId(index as u32));
            if let Some(tensor) = value.constant.as_ref().filter(|_| used[index] && own) {
                initializer.push(tensor_to_proto(&self.names[index], tensor));
            }
        }
        let name = if graph.name.is_empty() { "graph".to_owned() } else { graph.name.clone() };
        GraphProto { node, name, initializer, input, output, ..GraphProto::default() }
    }

    fn value_info(&self, id: ValueId) -> ValueInfoProto {
        let dimension = |d: &Dim| match d {
            Dim::Known(n) => DimensionProto { dim_value: Some(*n as i64), dim_param: None },
            Dim::Symbol(name) => DimensionProto { dim_value: None, dim_param: Some(name.clone()) },
            Dim::Unknown => DimensionProto::default(),
        };
        let value = self.graph.value(id);
        let shape =
            value.dims.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dimension).collect() });
        // Only the values of bodies may be without a type.
        let tensor_type =
            value.dtype.map(|dtype| TensorTypeProto { elem_type: Some(dtype.onnx_number()), shape });
        let r#type = tensor_type.map(|tensor_type| TypeProto { tensor_type: Some(tensor_type) });
        ValueInfoProto { name: self.name(id), r#type }
    }
}

/// Gives nodes of one name different ones, the first keeping it: ONNX Runtime opens no graph in which two are called
/// alike, and a node that was made for a value may have the name that the model gave to another.
fn tell_apart(nodes: &mut [NodeProto]) {
    let mut taken: HashSet<String> = nodes.iter().map(|node| node.name.clone()).collect();
    let mut seen = HashSet::new();
    for node in nodes.iter_mut().filter(|node| !node.name.is_empty()) {
        if !seen.insert(node.name.clone()) {
            let base = std::mem::take(&mut node.name);
            let free = (1..).map(|i| format!("{base}_{i}")).find(|name| !taken.contains(name));
            node.name = free.expect("the numbers do not end");
            taken.insert(node.name.clone());
            seen.insert(node.name.clone());
        }
    }
}

struct Writer<'a, 's> {
    scope: &'s Scope<'a>,
    opset: i64,
    domains: &'s RefCell<Vec<&'static str>>,
    nodes: Vec<NodeProto>,
}

impl Writer<'_, '_> {
    fn node(&mut self, node: &Node) {
        let mut attributes = attributes(&node.op);
        let mut inputs = node.inputs.clone();
        if let Op::Reduce { kind, .. } = &node.op
            && *kind != Reduce::Sum
            && self.opset < REDUCE_AXES_OPERAND
        {
            let axes = inputs.get(1).copied().flatten().and_then(|v| self.scope.graph.constant(v));
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
        let listed = listed_inputs(node);
        let captured = inputs.split_off(listed.min(inputs.len()));
        for (index, body) in node.bodies.iter().enumerate() {
            let name = match (&node.op, index) {
                (Op::If, 0) => "then_branch",
                (Op::If, _) => "else_branch",
                _ => "body",
            };
            attributes.push(graph(name, self.body(body, &captured)));
        }
        let inputs: Vec<String> = inputs.iter().map(|v| self.name(*v)).collect();
        let outputs = node.outputs.iter().map(|v| self.name(Some(*v))).collect();
        self.push(&node.name, node.op.name(), inputs, outputs, attributes);
        if let Op::Other(other) = &node.op
            && !other.domain.is_empty()
        {
            self.nodes.last_mut().expect("just pushed").domain = other.domain.to_owned();
            self.domains.borrow_mut().push(other.domain);
        }
    }

    /// A body; its last inputs are `captured`.
    fn body(&self, body: &Graph, captured: &[Option<ValueId>]) -> GraphProto {
        let formal = body.inputs.len().saturating_sub(captured.len());
        let names = body.inputs[formal..].iter().zip(captured);
        let names = names.filter_map(|(&inner, outer)| Some((inner, self.name(Some((*outer)?)))));
        Scope::new(body, Some(self.scope), names.collect()).write(self.opset, self.domains, formal)
    }

    /// Before opset 13 Softmax ran over all axes from `axis` on, as one: flatten, softmax, and back.
    fn softmax_of_old(&mut self, node: &Node, axis: i64, log: bool) {
        let x = self.name(node.input(0));
        let y = self.name(Some(node.outputs[0]));
        let part = |suffix: &str| {
            let base = format!("{}_{suffix}", node.name);
            let mut free = std::iter::once(base.clone()).chain((1..).map(|i| format!("{base}_{i}")));
            free.find(|name| self.scope.find(name).is_none()).expect("the numbers do not end")
        };
        let kind = if log { "LogSoftmax" } else { "Softmax" };
        self.push(&part("shape"), "Shape", vec![x.clone()], vec![part("shape")], vec![]);
        self.push(&part("flat"), "Flatten", vec![x], vec![part("flat")], vec![int("axis", axis)]);
        self.push(&node.name, kind, vec![part("flat")], vec![part("soft")], vec![int("axis", -1)]);
        self.push(&part("back"), "Reshape", vec![part("soft"), part("shape")], vec![y], vec![]);
    }

    fn name(&self, id: Option<ValueId>) -> String {
        id.map_or_else(String::new, |id| self.scope.name(id))
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

/// How many operands ONNX lists; those after them are what the bodies capture, which they read by name.
fn listed_inputs(node: &Node) -> usize {
    match &node.op {
        Op::If => 1,
        Op::Loop { carried } => 2 + carried,
        Op::Scan(scan) => scan.states + scan.inputs.len(),
        _ => node.inputs.len(),
    }
}
