//! ONNX bytes to a [`Graph`]: which opsets are taken, and what a file must hold. The operators are in `operators`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::engine::onnx::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::engine::tensor::{DType, Tensor};

use super::attributes::Attributes;
use super::op::{Binary, Op};
use super::operators::{Lifted, lift};
use super::tensors::{dtype_from_onnx, tensor_from_proto};
use super::{Dim, Graph, Node, Value, ValueId};

/// Opsets of the default domain that are taken.
pub const OPSETS: std::ops::RangeInclusive<i64> = 7..=23;
/// Most nodes of a model. The largest public ones have some ten thousand.
const NODES_MAX: usize = 200_000;
/// Most operands or results of one node.
const OPERANDS_MAX: usize = 4_096;
/// Most unsupported nodes that one message lists.
const LISTED_MAX: usize = 20;

/// Why a file is not a model that we can run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not an ONNX file.
    #[error("not an ONNX model: {0}")]
    NotOnnx(String),
    /// Operators that are not supported; each with its node.
    #[error("not supported: {}", .0.join("; "))]
    Unsupported(Vec<String>),
    /// A model that contradicts itself.
    #[error("invalid model: {0}")]
    Invalid(String),
}

/// Reads a model.
///
/// # Errors
/// [`Error`], which names the node, tensor or field at fault.
pub fn import(bytes: &[u8]) -> Result<Graph, Error> {
    let model = decode(bytes)?;
    let opset = opset(&model)?;
    if let Some(function) = model.functions.first() {
        return Err(Error::Unsupported(vec![format!("model-local function `{}`", function.name)]));
    }
    let graph = model.graph.ok_or_else(|| Error::NotOnnx("it holds no graph".to_owned()))?;
    Importer::new(opset).import(graph)
}

fn decode(bytes: &[u8]) -> Result<ModelProto, Error> {
    if bytes.is_empty() {
        return Err(Error::NotOnnx("the file is empty".to_owned()));
    }
    let model = ModelProto::decode(Bytes::copy_from_slice(bytes)).map_err(|e| {
        // A file that starts like a model and breaks off is most often an upload that was cut.
        let starts_like_a_model = bytes[0] == 0x08;
        let kind = if starts_like_a_model { "truncated or damaged" } else { "not protobuf" };
        Error::NotOnnx(format!("{kind} ({} bytes): {e}", bytes.len()))
    })?;
    if model.ir_version.is_none() && model.opset_import.is_empty() && model.graph.is_none() {
        return Err(Error::NotOnnx("no ONNX field was found".to_owned()));
    }
    Ok(model)
}

fn opset(model: &ModelProto) -> Result<i64, Error> {
    let default = model.opset_import.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
    let version = default.map_or(1, |o| o.version);
    if !OPSETS.contains(&version) {
        let text = format!("opset {version}; opsets {} to {} are taken", OPSETS.start(), OPSETS.end());
        return Err(Error::Unsupported(vec![text]));
    }
    Ok(version)
}

struct Importer {
    opset: i64,
    graph: Graph,
    names: HashMap<String, ValueId>,
    /// Values that a node, an input or a constant has already made.
    made: HashSet<ValueId>,
    refused: Vec<String>,
}

impl Importer {
    fn new(opset: i64) -> Importer {
        Importer {
            opset,
            graph: Graph::default(),
            names: HashMap::new(),
            made: HashSet::new(),
            refused: Vec::new(),
        }
    }

    fn import(mut self, proto: GraphProto) -> Result<Graph, Error> {
        if proto.node.len() > NODES_MAX {
            return Err(Error::Invalid(format!("{} nodes, the limit is {NODES_MAX}", proto.node.len())));
        }
        self.graph.name = proto.name;
        for tensor in &proto.initializer {
            self.add_initializer(tensor)?;
        }
        for input in &proto.input {
            self.add_input(input)?;
        }
        for info in &proto.value_info {
            self.describe(info);
        }
        for (index, node) in sorted(proto.node)?.iter().enumerate() {
            self.add_node(index, node)?;
        }
        if !self.refused.is_empty() {
            return Err(Error::Unsupported(self.refused));
        }
        self.add_outputs(&proto.output)?;
        Ok(self.graph)
    }

    fn add_initializer(&mut self, proto: &TensorProto) -> Result<(), Error> {
        if proto.name.is_empty() {
            return Err(Error::Invalid("an initializer has no name".to_owned()));
        }
        let tensor = tensor_from_proto(proto)
            .map_err(|e| Error::Invalid(format!("initializer `{}`: {e}", proto.name)))?;
        self.define_constant(&proto.name, tensor)
    }

    fn define_constant(&mut self, name: &str, tensor: Tensor) -> Result<(), Error> {
        let id = self.define(name)?;
        let value = self.graph.value_mut(id);
        value.dtype = Some(tensor.dtype());
        value.dims = Some(tensor.shape().iter().map(|&d| Dim::Known(d)).collect());
        value.constant = Some(Arc::new(tensor));
        Ok(())
    }

    /// The value of a name, made if it is not there yet.
    fn id(&mut self, name: &str) -> ValueId {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        let id = self.graph.add_value(Value { name: name.to_owned(), ..Value::default() });
        self.names.insert(name.to_owned(), id);
        id
    }

    /// The value of a name that is being made here, and nowhere else.
    fn define(&mut self, name: &str) -> Result<ValueId, Error> {
        let id = self.id(name);
        if !self.made.insert(id) {
            return Err(Error::Invalid(format!("value `{name}` is made twice")));
        }
        Ok(id)
    }

    fn add_input(&mut self, info: &ValueInfoProto) -> Result<(), Error> {
        // Before IR version 4 every initializer was an input as well: it stays a constant.
        if self.names.get(&info.name).is_some_and(|&id| self.graph.constant(id).is_some()) {
            return Ok(());
        }
        let (dtype, dims) =
            declared(info).map_err(|e| Error::Invalid(format!("input `{}`: {e}", info.name)))?;
        let id = self.define(&info.name)?;
        let value = self.graph.value_mut(id);
        value.dtype = Some(dtype);
        value.dims = dims;
        self.graph.inputs.push(id);
        Ok(())
    }

    /// Takes what the file says of a value in between; a wrong word there is not worth a refusal.
    fn describe(&mut self, info: &ValueInfoProto) {
        if let Ok((dtype, dims)) = declared(info) {
            let id = self.id(&info.name);
            let value = self.graph.value_mut(id);
            if value.constant.is_none() {
                value.dtype = Some(dtype);
                value.dims = dims;
            }
        }
    }

    fn add_outputs(&mut self, outputs: &[ValueInfoProto]) -> Result<(), Error> {
        if outputs.is_empty() {
            return Err(Error::Invalid("the graph has no output".to_owned()));
        }
        for info in outputs {
            let made = self.names.get(&info.name).copied().filter(|id| self.made.contains(id));
            let id =
                made.ok_or_else(|| Error::Invalid(format!("output `{}` is made by no node", info.name)))?;
            if let Ok((dtype, dims)) = declared(info) {
                let value = self.graph.value_mut(id);
                value.dtype = Some(dtype);
                value.dims = dims;
            }
            self.graph.outputs.push(id);
        }
        Ok(())
    }

    fn add_node(&mut self, index: usize, proto: &NodeProto) -> Result<(), Error> {
        let op_type = &proto.op_type;
        let name = if proto.name.is_empty() { format!("{op_type}_{index}") } else { proto.name.clone() };
        let at = |e: String| Error::Invalid(format!("node `{name}` ({op_type}): {e}"));
        if proto.input.len().max(proto.output.len()) > OPERANDS_MAX {
            return Err(at(format!("more than {OPERANDS_MAX} operands")));
        }
        let inputs = self.operands(proto).map_err(&at)?;
        let default_domain = matches!(proto.domain.as_str(), "" | "ai.onnx");
        if default_domain && op_type == "Constant" {
            let tensor = constant(proto).map_err(&at)?;
            let output = proto.output.first().ok_or_else(|| at("it has no output".to_owned()))?;
            return self.define_constant(output, tensor);
        }
        let lifted = if default_domain { lift(proto, self.opset) } else { Ok(None) };
        match lifted {
            Ok(Some(lifted)) => self.push(&name, proto, inputs, lifted).map_err(at),
            Ok(None) => {
                let domain = if default_domain { "" } else { &format!("{}.", proto.domain) };
                self.refuse(
                    format!("operator {domain}{op_type} (opset {}) at node `{name}`", self.opset),
                    proto,
                )
            }
            Err(e) => self.refuse(format!("node `{name}` ({op_type}): {e}"), proto),
        }
    }

    /// Notes a node that we cannot run and goes on, so that the caller hears of all of them.
    fn refuse(&mut self, text: String, proto: &NodeProto) -> Result<(), Error> {
        if self.refused.len() == LISTED_MAX {
            self.refused.push("…".to_owned());
        } else if self.refused.len() < LISTED_MAX {
            self.refused.push(text);
        }
        for output in proto.output.iter().filter(|o| !o.is_empty()) {
            self.define(output)?;
        }
        Ok(())
    }

    fn operands(&mut self, proto: &NodeProto) -> Result<Vec<Option<ValueId>>, String> {
        let operand = |name: &String| match name.as_str() {
            "" => Ok(None),
            name => match self.names.get(name) {
                Some(id) if self.made.contains(id) => Ok(Some(*id)),
                _ => Err(format!("input `{name}` is made by no node before it")),
            },
        };
        proto.input.iter().map(operand).collect()
    }

    fn push(
        &mut self,
        name: &str,
        proto: &NodeProto,
        mut inputs: Vec<Option<ValueId>>,
        lifted: Lifted,
    ) -> Result<(), String> {
        for (position, tensor) in lifted.added {
            let constant = self.graph.add_constant(&format!("{name}.operand{position}"), tensor);
            self.made.insert(constant);
            inputs.resize(inputs.len().max(position + 1), None);
            inputs[position].get_or_insert(constant);
        }
        check_arity(&lifted.op, &inputs)?;
        let kept = if proto.op_type == "Dropout" { 1 } else { proto.output.len() };
        let mut outputs = Vec::new();
        for output in proto.output.iter().take(kept) {
            // An optional output that is left out still needs a value to stand for it.
            let unnamed = format!("{name}.unused{}", outputs.len());
            let label = if output.is_empty() { &unnamed } else { output };
            outputs.push(self.define(label).map_err(|e| e.to_string())?);
        }
        if outputs.is_empty() {
            return Err("it has no output".to_owned());
        }
        match lifted.op {
            Op::Binary(op @ (Binary::Add | Binary::Min | Binary::Max)) if inputs.len() != 2 => {
                self.push_chain(name, op, &inputs, outputs[0]);
            }
            op => self.graph.nodes.push(Node { name: name.to_owned(), op, inputs, outputs }),
        }
        Ok(())
    }

    /// Sum, Min and Max take any number of operands: a chain of two at a time.
    fn push_chain(&mut self, name: &str, op: Binary, inputs: &[Option<ValueId>], output: ValueId) {
        let mut nodes = Vec::new();
        let mut left = inputs[0];
        for (i, right) in inputs.iter().enumerate().skip(1) {
            let last = i + 1 == inputs.len();
            let out = if last {
                output
            } else {
                let partial = Value { name: format!("{name}.part{i}"), ..Value::default() };
                self.graph.add_value(partial)
            };
            let label = if last { name.to_owned() } else { format!("{name}.part{i}") };
            nodes.push(Node {
                name: label,
                op: Op::Binary(op),
                inputs: vec![left, *right],
                outputs: vec![out],
            });
            left = Some(out);
        }
        if inputs.len() == 1 {
            nodes.push(Node {
                name: name.to_owned(),
                op: Op::Identity,
                inputs: vec![left],
                outputs: vec![output],
            });
        }
        self.graph.nodes.extend(nodes);
    }
}

/// How many operands an operator takes: the least, the most, and of those how many must be there.
fn check_arity(op: &Op, inputs: &[Option<ValueId>]) -> Result<(), String> {
    let (least, most) = match op {
        Op::Conv { .. } | Op::Gemm { .. } => (2, 3),
        Op::LayerNorm { .. } | Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } => (2, 3),
        Op::BatchNorm { .. } => (5, 5),
        Op::Binary(Binary::Add | Binary::Min | Binary::Max) => (1, OPERANDS_MAX),
        Op::Concat { .. } => (1, OPERANDS_MAX),
        Op::MatMul | Op::Binary(_) | Op::Gather { .. } | Op::Expand | Op::Tile => (2, 2),
        Op::Reshape { .. } | Op::Unsqueeze => (2, 2),
        Op::Clip => (1, 3),
        Op::Reduce { .. } | Op::Squeeze | Op::Split { .. } => (1, 2),
        Op::Slice => (3, 5),
        Op::Pad { .. } => (2, 4),
        Op::Range | Op::Where => (3, 3),
        _ => (1, 2),
    };
    let given = inputs.len();
    if !(least..=most).contains(&given) {
        return Err(format!("it has {given} inputs, the operator takes {least} to {most}"));
    }
    match inputs.iter().take(least).position(Option::is_none) {
        Some(i) => Err(format!("input {i} is missing")),
        None => Ok(()),
    }
}

fn declared(info: &ValueInfoProto) -> Result<(DType, Option<Vec<Dim>>), String> {
    let kind = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let tensor = kind.ok_or("it is not a tensor")?;
    let dtype = dtype_from_onnx(tensor.elem_type.unwrap_or(0))?;
    let Some(shape) = &tensor.shape else { return Ok((dtype, None)) };
    let dims = shape.dim.iter().map(|d| match (d.dim_value, &d.dim_param) {
        // Some exporters write a dynamic dimension as -1.
        (Some(n), _) if n < 0 => Ok(Dim::Unknown),
        (Some(n), _) => usize::try_from(n).map(Dim::Known).map_err(|_| format!("dimension {n}")),
        // Paddle names every dynamic dimension `?`: they are not the same one.
        (None, Some(name)) if !name.is_empty() && name != "?" => Ok(Dim::Symbol(name.clone())),
        _ => Ok(Dim::Unknown),
    });
    Ok((dtype, Some(dims.collect::<Result<_, _>>()?)))
}

/// The data of a Constant node.
fn constant(node: &NodeProto) -> Result<Tensor, String> {
    let a = Attributes(node);
    if let Some(tensor) = a.tensor("value")? {
        return Ok(tensor);
    }
    let has = |name: &str| node.attribute.iter().any(|x| x.name == name);
    if has("value_float") {
        return Ok(Tensor::scalar(a.float_or("value_float", 0.0)?));
    }
    if has("value_int") {
        return Ok(Tensor::scalar(a.int_or("value_int", 0)?));
    }
    if let Some(floats) = a.floats("value_floats")? {
        return Ok(Tensor::from_slice(&[floats.len()], &floats));
    }
    if let Some(ints) = a.ints("value_ints")? {
        return Ok(Tensor::from_slice(&[ints.len()], &ints));
    }
    let names: Vec<&str> = node.attribute.iter().map(|x| x.name.as_str()).collect();
    Err(format!("a constant given as {names:?} is not supported"))
}

/// The nodes so that each stands after those it reads. ONNX asks for that order; some tools do not keep it.
fn sorted(nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>, Error> {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        maker.extend(node.output.iter().filter(|o| !o.is_empty()).map(|o| (o.as_str(), i)));
    }
    let reads = |i: usize| nodes[i].input.iter().filter_map(|name| maker.get(name.as_str()).copied());
    if (0..nodes.len()).all(|i| reads(i).all(|m| m < i)) {
        return Ok(nodes);
    }
    let mut waiting: Vec<usize> = (0..nodes.len()).map(|i| reads(i).collect::<HashSet<_>>().len()).collect();
    let mut readers = vec![Vec::new(); nodes.len()];
    for i in 0..nodes.len() {
        reads(i).collect::<HashSet<_>>().into_iter().for_each(|m| readers[m].push(i));
    }
    let mut ready: std::collections::BTreeSet<usize> =
        (0..nodes.len()).filter(|&i| waiting[i] == 0).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(i) = ready.pop_first() {
        order.push(i);
        for &r in &readers[i] {
            waiting[r] -= 1;
            if waiting[r] == 0 {
                ready.insert(r);
            }
        }
    }
    if order.len() < nodes.len() {
        let stuck = (0..nodes.len()).find(|&i| waiting[i] > 0).expect("not all nodes were ordered");
        let (op, name) = (&nodes[stuck].op_type, &nodes[stuck].name);
        return Err(Error::Invalid(format!(
            "node `{name}` ({op}) reads its own result: the graph has a circle"
        )));
    }
    let mut nodes: Vec<Option<NodeProto>> = nodes.into_iter().map(Some).collect();
    Ok(order.into_iter().map(|i| nodes[i].take().expect("each index once")).collect())
}
