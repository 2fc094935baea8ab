//! ONNX messages to a [`Graph`]: which opsets are taken, and what a file must hold. The operators are in `lift`.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::engine::graph::attributes::{Attribute, Attributes};
use crate::engine::graph::fact::axis_index;
use crate::engine::graph::op::{Binary, Op};
use crate::engine::graph::operator::Call;
use crate::engine::graph::shapes::bounded;
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::tensor::{DType, Tensor};

use super::bounds::NODES_MAX;
use super::composites;
use super::control::control;
use super::decode::{Data, decode, open};
use super::flex_attention;
use super::functions::inlined;
use super::lift::{Lifted, lift};
use super::order::order;
use super::parts;
use super::sequences::{Known, Sequences};
use super::subgraphs::{bodies, free_names};
use super::tensors::{attributes_from_proto, dtype_from_onnx, tensor_from_outline, tensor_from_proto};
use super::{FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

pub use super::decode::Error;

/// Opsets of the default domain that are taken.
pub const OPSETS: std::ops::RangeInclusive<i64> = 1..=27;
/// How deep graphs and functions may stand in each other.
const DEPTH_MAX: usize = 16;
/// Most operands or results of one node, and most values that its bodies read from around them.
const OPERANDS_MAX: usize = 4_096;
/// What the graph may hold for each byte of the file: data are there once, or eight times where they are written as
/// numbers of one byte; a function's are there once for each call.
const GRAPH_FACTOR: usize = 16;
/// What it may hold whatever the file.
const GRAPH_FREE: usize = 16 << 20;
/// Most unsupported nodes that one message lists.
const LISTED_MAX: usize = 20;

/// Reads a model.
///
/// # Errors
/// [`Error`], which names the node, tensor or field at fault.
pub fn import(bytes: &[u8]) -> Result<Graph, Error> {
    import_owned(bytes.to_vec())
}

/// As [`import`], of bytes that nobody needs any more: the file is held once.
///
/// # Errors
/// As [`import`].
pub fn import_owned(bytes: impl Into<Bytes>) -> Result<Graph, Error> {
    let bytes = bytes.into();
    graph_of(&decode(&bytes)?, Data::Inside, bytes.len() as u64)
}

/// Reads the model in a file. Large tensors come from the file into their place: it is never in memory beside them.
///
/// # Errors
/// As [`import`], or [`Error::Read`].
pub fn import_file(path: &Path) -> Result<Graph, Error> {
    let (file, model, bytes) = open(path)?;
    graph_of(&model, Data::File(&file), bytes)
}

/// As [`import_file`], but tensors of [`LARGE_BYTES`](super::outline::LARGE_BYTES) and more are zeros: what can be told of a model without
/// its weights, in little memory.
///
/// # Errors
/// As [`import_file`].
pub fn import_outline(path: &Path) -> Result<Graph, Error> {
    let (_, model, bytes) = open(path)?;
    graph_of(&model, Data::Zeros, bytes)
}

fn graph_of(model: &ModelProto, data: Data<'_>, file_bytes: u64) -> Result<Graph, Error> {
    let graph = model.graph.as_ref().ok_or_else(|| Error::NotOnnx("it holds no graph".to_owned()))?;
    let opset = opset(model)?;
    let mut functions = Functions::new();
    for f in &model.functions {
        if functions.insert((f.domain.as_str(), f.name.as_str()), f).is_some() {
            return Err(Error::Invalid(format!("function `{}` stands there twice", f.name)));
        }
    }
    let file_bytes = usize::try_from(file_bytes).unwrap_or(usize::MAX);
    let left = Left {
        nodes: Cell::new(NODES_MAX),
        bytes: Cell::new(file_bytes.saturating_mul(GRAPH_FACTOR).saturating_add(GRAPH_FREE)),
    };
    let around = Around { functions: &functions, left: &left, data };
    let mut importer = Importer::new(opset, around, 0);
    importer.import(graph, &[])?;
    match importer.refused.is_empty() {
        true => Ok(importer.graph),
        false => Err(Error::Unsupported(importer.refused)),
    }
}

fn opset(model: &ModelProto) -> Result<i64, Error> {
    let default = model.opset_import.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
    let version = match default {
        Some(own) => own.version,
        // A model that speaks other domains only.
        None if !model.opset_import.is_empty() => *OPSETS.end(),
        // Only files before IR version 3 may leave it out, and they are older than what is taken.
        None => {
            let text = "opset_import does not say which opset of ONNX the model speaks";
            return Err(Error::Invalid(text.to_owned()));
        }
    };
    if !OPSETS.contains(&version) {
        let text = format!("opset {version}; opsets {} to {} are taken", OPSETS.start(), OPSETS.end());
        return Err(Error::Unsupported(vec![text]));
    }
    Ok(version)
}

/// Functions by domain and name.
type Functions<'f> = HashMap<(&'f str, &'f str), &'f FunctionProto>;

/// What may still be added, in all graphs together: functions multiply what a file holds.
struct Left {
    nodes: Cell<usize>,
    bytes: Cell<usize>,
}

impl Left {
    fn node(&self) -> Result<(), String> {
        let left = self.nodes.get().checked_sub(1);
        self.nodes.set(left.ok_or_else(|| format!("more than {NODES_MAX} nodes, functions written out"))?);
        Ok(())
    }

    fn bytes(&self, count: usize) -> Result<(), String> {
        let left = self.bytes.get().checked_sub(count);
        let text = "its functions and constants take far more memory than the file is long";
        self.bytes.set(left.ok_or_else(|| text.to_owned())?);
        Ok(())
    }
}

/// What all graphs of a file share.
#[derive(Clone, Copy)]
struct Around<'f> {
    functions: &'f Functions<'f>,
    left: &'f Left,
    data: Data<'f>,
}

struct Importer<'f> {
    opset: i64,
    around: Around<'f>,
    depth: usize,
    graph: Graph,
    names: HashMap<String, ValueId>,
    /// Values that a node, an input or a constant has already made.
    made: HashSet<ValueId>,
    sequences: Sequences,
    refused: Vec<String>,
}

impl Known for Importer<'_> {
    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        let constant = self.graph.constant(*self.names.get(name)?)?;
        let few = constant.len() <= OPERANDS_MAX;
        (few && matches!(constant.dtype(), DType::I64 | DType::I32)).then(|| constant.to_i64())
    }

    fn length(&self, name: &str, axis: i64) -> Option<usize> {
        let dims = self.graph.value(*self.names.get(name)?).dims.as_ref()?;
        match dims.get(axis_index(axis, dims.len(), false).ok()?)? {
            Dim::Known(length) => Some(*length),
            Dim::Symbol(_) | Dim::Unknown => None,
        }
    }

    fn is_scalar(&self, name: &str) -> bool {
        let constant = self.names.get(name).and_then(|id| self.graph.constant(*id));
        constant.is_some_and(|tensor| tensor.shape().is_empty())
    }
}

impl<'f> Importer<'f> {
    fn new(opset: i64, around: Around<'f>, depth: usize) -> Importer<'f> {
        Importer {
            opset,
            around,
            depth,
            graph: Graph::default(),
            names: HashMap::new(),
            made: HashSet::new(),
            sequences: Sequences::default(),
            refused: Vec::new(),
        }
    }

    /// Fills the graph. `captured` are the values of the graph around this one that it reads.
    fn import(&mut self, proto: &GraphProto, captured: &[(String, Value)]) -> Result<(), Error> {
        if let Some(sparse) = proto.sparse_initializer.first() {
            let name = sparse.values.as_ref().map_or("", |values| values.name.as_str());
            return Err(Error::Unsupported(vec![format!("sparse_initializer `{name}`")]));
        }
        self.graph.name.clone_from(&proto.name);
        self.graph.opset = self.opset;
        for tensor in &proto.initializer {
            self.add_initializer(tensor)?;
        }
        for input in &proto.input {
            self.add_input(input)?;
        }
        for (name, value) in captured {
            let id = self.define(name)?;
            if value.constant.is_none() {
                self.graph.inputs.push(id);
            }
            *self.graph.value_mut(id) = value.clone();
        }
        for info in &proto.value_info {
            self.describe(info);
        }
        self.add_nodes(&proto.node)?;
        self.add_outputs(&proto.output)
    }

    fn add_nodes(&mut self, nodes: &[NodeProto]) -> Result<(), Error> {
        for index in order(nodes)? {
            self.add_node(index, &nodes[index])?;
        }
        Ok(())
    }

    fn add_initializer(&mut self, proto: &TensorProto) -> Result<(), Error> {
        if proto.name.is_empty() {
            return Err(Error::Invalid("an initializer has no name".to_owned()));
        }
        let tensor = match self.around.data {
            // A file may claim to be an outline.
            Data::Inside => tensor_from_proto(proto),
            data => tensor_from_outline(proto, |from, bytes| data.read(from, bytes)),
        };
        let tensor = tensor.map_err(|e| Error::Invalid(format!("initializer `{}`: {e}", proto.name)))?;
        self.define_constant(&proto.name, tensor)
    }

    fn define_constant(&mut self, name: &str, tensor: Tensor) -> Result<(), Error> {
        let id = self.define(name)?;
        self.around.left.bytes(tensor.view().bytes.len() + name.len()).map_err(Error::Invalid)?;
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
        if info.name.is_empty() {
            return Err(Error::Invalid("an input has no name".to_owned()));
        }
        // Before IR version 4 every initializer was an input as well: it stays a constant.
        if self.names.get(&info.name).is_some_and(|&id| self.graph.constant(id).is_some()) {
            return Ok(());
        }
        let known = declared(info).map_err(|e| Error::Invalid(format!("input `{}`: {e}", info.name)));
        // The inputs of a body have the types of what is handed in, whether it says so or not.
        let (dtype, dims) = match known {
            Ok((dtype, dims)) => (Some(dtype), dims),
            Err(_) if self.depth > 0 => (None, None),
            Err(e) => return Err(e),
        };
        let id = self.define(&info.name)?;
        let value = self.graph.value_mut(id);
        value.dtype = dtype;
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
            if self.sequences.makes(&info.name) {
                return Err(Error::Unsupported(vec![format!("output `{}`: it is not a tensor", info.name)]));
            }
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
        self.around.left.node().map_err(&at)?;
        if let Some(done) = self.add_sequence(&name, proto) {
            return done;
        }
        let inputs = self.operands(proto).map_err(&at)?;
        let domain = if proto.domain == "ai.onnx" { "" } else { proto.domain.as_str() };
        if let Some(function) = self.around.functions.get(&(proto.domain.as_str(), op_type.as_str())) {
            return self.add_function(&name, proto, function);
        }
        let dtype = inputs.first().copied().flatten().and_then(|id| self.graph.value(id).dtype);
        let made = match composites::parts(&name, proto) {
            Ok(None) => flex_attention::parts(&name, proto, dtype),
            made => made,
        };
        match made {
            Ok(None) => {}
            Ok(Some(parts)) => return self.add_in_opset(parts::OPSET, &parts),
            Err(e) => return self.refuse(format!("node `{name}` ({op_type}): {e}"), proto),
        }
        let attributes = attributes_from_proto(proto).map_err(&at)?;
        self.around.left.bytes(attributes.iter().map(|(_, a)| bytes_of(a)).sum()).map_err(&at)?;
        if domain.is_empty() && op_type == "Constant" {
            let tensor = constant(&attributes).map_err(&at)?;
            let output = proto.output.first().ok_or_else(|| at("it has no output".to_owned()))?;
            return self.define_constant(output, tensor);
        }
        if domain.is_empty() && matches!(op_type.as_str(), "If" | "Loop" | "Scan") {
            return self.add_control(&name, proto, inputs, &attributes);
        }
        let call = Call {
            domain,
            name: op_type,
            opset: self.opset,
            attributes: &attributes,
            inputs: inputs.iter().map(Option::is_some).collect(),
            outputs: proto.output.iter().map(|o| !o.is_empty()).collect(),
        };
        match lift(&call) {
            Ok(Some(lifted)) => self.push(&name, proto, inputs, lifted).map_err(at),
            Ok(None) => {
                let domain = if domain.is_empty() { "" } else { &format!("{domain}.") };
                let hint = match proto.domain.as_str() {
                    "com.microsoft.nchwc" => {
                        ": ONNX Runtime wrote this file for one processor; write it at its level `extended`"
                    }
                    _ => "",
                };
                let text =
                    format!("operator {domain}{op_type} (opset {}) at node `{name}`{hint}", self.opset);
                self.refuse(text, proto)
            }
            Err(e) => self.refuse(format!("node `{name}` ({op_type}): {e}"), proto),
        }
    }

    /// The nodes of a model-local function in the place of its call.
    fn add_function(&mut self, name: &str, proto: &NodeProto, function: &FunctionProto) -> Result<(), Error> {
        let at = |e: String| Error::Invalid(format!("node `{name}`: function `{}`: {e}", function.name));
        if self.depth == DEPTH_MAX {
            return Err(at("stands in itself too deeply".to_owned()));
        }
        // Every name in it becomes one that begins with the caller's.
        let bytes =
            function.encoded_len().saturating_add(name.len().saturating_mul(names_in(&function.node)));
        self.around.left.bytes(bytes).map_err(&at)?;
        let own = function.opset_import.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
        self.depth += 1;
        let opset = own.map_or(self.opset, |o| o.version);
        let added = self.add_in_opset(opset, &inlined(function, proto, name));
        self.depth -= 1;
        added
    }

    /// A node that reads or makes a list of tensors; `None` where it does neither.
    fn add_sequence(&mut self, name: &str, proto: &NodeProto) -> Option<Result<(), Error>> {
        let mut sequences = std::mem::take(&mut self.sequences);
        let resolved = sequences.resolve(name, proto, self);
        self.sequences = sequences;
        match resolved {
            Ok(nodes) => Some(self.add_in_opset(parts::OPSET, &nodes?)),
            Err(e) => Some(self.refuse(format!("node `{name}` ({}): {e}", proto.op_type), proto)),
        }
    }

    /// Nodes that speak another opset than those around them.
    fn add_in_opset(&mut self, opset: i64, nodes: &[NodeProto]) -> Result<(), Error> {
        let around = std::mem::replace(&mut self.opset, opset);
        let added = self.add_nodes(nodes);
        self.opset = around;
        added
    }

    /// If, Loop and Scan: their bodies become graphs, what those read from around them becomes operands.
    fn add_control(
        &mut self,
        name: &str,
        proto: &NodeProto,
        mut inputs: Vec<Option<ValueId>>,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        let at = |e: String| Error::Invalid(format!("node `{name}` ({}): {e}", proto.op_type));
        if self.depth == DEPTH_MAX {
            return Err(at(format!("graphs stand in each other more than {DEPTH_MAX} deep")));
        }
        let body = |wanted: &str| {
            let found = bodies(proto).find(|(attribute, _)| *attribute == wanted).map(|(_, graph)| graph);
            found.ok_or_else(|| at(format!("attribute `{wanted}` is missing")))
        };
        let protos = match proto.op_type.as_str() {
            "If" => vec![body("then_branch")?, body("else_branch")?],
            _ => vec![body("body")?],
        };
        let mut captured: Vec<(String, Value)> = Vec::new();
        let mut known = HashSet::new();
        let given = inputs.len();
        for free in protos.iter().flat_map(|p| free_names(p)) {
            if !known.insert(free.clone()) {
                continue;
            }
            if known.len() > OPERANDS_MAX {
                return Err(at(format!("its body reads more than {OPERANDS_MAX} values from around it")));
            }
            let id = self.names.get(&free).copied().filter(|id| self.made.contains(id));
            let id =
                id.ok_or_else(|| at(format!("its body reads `{free}`, which is made by no node before")))?;
            let value = self.graph.value(id).clone();
            if value.constant.is_none() {
                inputs.push(Some(id));
            }
            captured.push((free, value));
        }
        let mut graphs = Vec::new();
        for graph in protos {
            let mut importer = Importer::new(self.opset, self.around, self.depth + 1);
            importer.import(graph, &captured).map_err(|e| match e {
                Error::Invalid(e) => at(format!("in its body: {e}")),
                e => e,
            })?;
            self.refused.append(&mut importer.refused);
            let computed = captured.iter().filter(|(_, value)| value.constant.is_none()).count();
            let (takes, handed) =
                (importer.graph.inputs.len() - computed, if proto.op_type == "If" { 0 } else { given });
            if takes != handed {
                return Err(at(format!("its body takes {takes} values, {handed} are handed in")));
            }
            graphs.push(Arc::new(importer.graph));
        }
        let op = control(proto, attributes, given, &graphs).map_err(at)?;
        let mut outputs = Vec::new();
        for (i, output) in proto.output.iter().enumerate() {
            let unnamed = format!("{name}.unused{i}");
            outputs.push(self.define(if output.is_empty() { &unnamed } else { output })?);
        }
        if outputs.is_empty() {
            return Err(at("it has no output".to_owned()));
        }
        self.graph.nodes.push(Node { name: name.to_owned(), op, inputs, outputs, bodies: graphs });
        Ok(())
    }

    /// Notes a node that we cannot run and goes on, so that the caller hears of all of them.
    fn refuse(&mut self, text: String, proto: &NodeProto) -> Result<(), Error> {
        match self.refused.len() {
            LISTED_MAX => self.refused.push("…".to_owned()),
            n if n < LISTED_MAX => self.refused.push(text),
            _ => {}
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
            // Where an older opset had another operand there, that one moves on.
            match &mut inputs[position] {
                Some(_) => inputs.insert(position, Some(constant)),
                open => *open = Some(constant),
            }
        }
        if let Some(axis) = lifted.aligned_at {
            self.align(name, axis, &mut inputs)?;
        }
        if proto.op_type == "Dropout" && matches!(lifted.op, Op::Identity) {
            let training = inputs.get(2).copied().flatten();
            let off = training.is_none_or(|id| self.graph.constant(id).is_some_and(|t| t.to_i64() == [0]));
            if !off {
                return Err("training_mode is not known to be false: not supported".to_owned());
            }
            inputs.truncate(1);
        }
        check_arity(&lifted.op, &inputs)?;
        // Results that nobody reads are left out where they are the last ones.
        let kept = proto.output.iter().rposition(|o| !o.is_empty()).map_or(0, |last| last + 1);
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
                self.around.left.bytes(inputs.len().saturating_mul(name.len()))?;
                self.push_chain(name, op, &inputs, outputs[0]);
            }
            op => self.graph.nodes.push(Node::new(name.to_owned(), op, inputs, outputs)),
        }
        Ok(())
    }

    /// Before opset 7 operand 1 could begin at any axis of operand 0: it gets axes of length 1 behind its own.
    fn align(&mut self, name: &str, axis: i64, inputs: &mut [Option<ValueId>]) -> Result<(), String> {
        let [Some(a), Some(b)] = *inputs else { return Err("it has not two inputs".to_owned()) };
        let rank = |id: ValueId| self.graph.value(id).dims.as_ref().map(Vec::len);
        let (Some(of_a), Some(of_b)) = (rank(a), rank(b)) else {
            return Err(format!("axis={axis} before opset 7 needs declared shapes"));
        };
        let start = usize::try_from(axis).unwrap_or(of_a.saturating_sub(of_b));
        let behind = of_a.saturating_sub(start + of_b);
        if behind == 0 {
            return Ok(());
        }
        let axes: Vec<i64> = (of_b..of_b + behind).map(|i| i as i64).collect();
        let axes = self.graph.add_constant(&format!("{name}.axes"), Tensor::from_slice(&[behind], &axes));
        let aligned = Value { name: format!("{name}.aligned"), ..Value::default() };
        let aligned = self.graph.add_value(aligned);
        self.made.extend([axes, aligned]);
        let node =
            Node::new(format!("{name}.align"), Op::Unsqueeze, vec![Some(b), Some(axes)], vec![aligned]);
        self.graph.nodes.push(node);
        inputs[1] = Some(aligned);
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
            nodes.push(Node::new(label, Op::Binary(op), vec![left, *right], vec![out]));
            left = Some(out);
        }
        if inputs.len() == 1 {
            nodes.push(Node::new(name.to_owned(), Op::Identity, vec![left], vec![output]));
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
        Op::Other(_) => (0, OPERANDS_MAX),
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
    let known: Vec<usize> =
        shape.dim.iter().map(|d| d.dim_value.and_then(|n| usize::try_from(n).ok()).unwrap_or(1)).collect();
    bounded(dtype, &known)?;
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

/// How many names of values and nodes stand in a function, bodies included.
fn names_in(nodes: &[NodeProto]) -> usize {
    let of_graph = |g: &GraphProto| {
        names_in(&g.node) + g.initializer.len() + g.input.len() + g.output.len() + g.value_info.len()
    };
    let of_node = |n: &NodeProto| {
        1 + n.input.len() + n.output.len() + bodies(n).map(|(_, body)| of_graph(body)).sum::<usize>()
    };
    nodes.iter().map(of_node).sum()
}

/// Bytes of the value of an attribute.
fn bytes_of(attribute: &Attribute) -> usize {
    match attribute {
        Attribute::Int(_) | Attribute::Float(_) => 8,
        Attribute::Text(text) => text.len(),
        Attribute::Tensor(tensor) => tensor.view().bytes.len(),
        Attribute::Ints(all) => 8 * all.len(),
        Attribute::Floats(all) => 4 * all.len(),
        Attribute::Texts(all) => all.iter().map(|text| text.len() + size_of::<String>()).sum(),
    }
}

/// The data of a Constant node.
fn constant(a: &Attributes) -> Result<Tensor, String> {
    let Some((name, value)) = a.iter().next() else { return Err("it has no value".to_owned()) };
    match (name.as_str(), value) {
        ("value", Attribute::Tensor(tensor)) => Ok(tensor.clone()),
        ("value_float", Attribute::Float(value)) => Ok(Tensor::scalar(*value)),
        ("value_int", Attribute::Int(value)) => Ok(Tensor::scalar(*value)),
        ("value_floats", Attribute::Floats(values)) => Ok(Tensor::from_slice(&[values.len()], values)),
        ("value_ints", Attribute::Ints(values)) => Ok(Tensor::from_slice(&[values.len()], values)),
        _ => Err(format!("a constant given as `{name}` is not supported")),
    }
}
