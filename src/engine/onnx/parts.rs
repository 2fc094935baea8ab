//! Nodes that stand in the place of one: a node's parts, added one after another.

use bytes::Bytes;

use super::{AttributeProto, GraphProto, NodeProto, attribute_type};

/// The opset whose forms the parts have.
pub(super) const OPSET: i64 = 20;

/// The parts of one node, as they are added.
pub(super) struct Parts<'a> {
    name: &'a str,
    /// What the names of values begin with: the node's own name need not be the only one of its kind, that of its
    /// result is.
    result: &'a str,
    proto: &'a NodeProto,
    nodes: Vec<NodeProto>,
}

impl<'a> Parts<'a> {
    /// None yet; their names will begin with `name`.
    pub(super) fn new(name: &'a str, proto: &'a NodeProto) -> Parts<'a> {
        let result = proto.output.iter().find(|o| !o.is_empty()).map_or(name, String::as_str);
        Parts { name, result, proto, nodes: Vec::new() }
    }

    /// The name of operand `index`, empty where it is left out.
    pub(super) fn input(&self, index: usize) -> &'a str {
        self.proto.input.get(index).map_or("", String::as_str)
    }

    pub(super) fn wants(&self, index: usize) -> bool {
        self.proto.output.get(index).is_some_and(|o| !o.is_empty())
    }

    /// The attributes with these names, as the node has them.
    pub(super) fn kept(&self, names: &[&str]) -> Vec<AttributeProto> {
        self.proto.attribute.iter().filter(|a| names.contains(&a.name.as_str())).cloned().collect()
    }

    /// Adds an operator of ONNX's own; gives the name of its result.
    pub(super) fn add(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.add_of("", op, inputs, attributes)
    }

    pub(super) fn add_of(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> String {
        let given = inputs.len() - inputs.iter().rev().take_while(|i| i.is_empty()).count();
        let label = format!("{op}_{}", self.nodes.len());
        let value = format!("{}/{label}", self.result);
        self.nodes.push(NodeProto {
            input: inputs[..given].iter().map(|&i| i.to_owned()).collect(),
            output: vec![value.clone()],
            name: format!("{}/{label}", self.name),
            op_type: op.to_owned(),
            domain: domain.to_owned(),
            attribute,
            ..NodeProto::default()
        });
        value
    }

    /// The graph in an attribute.
    pub(super) fn graph(&self, attribute: &str) -> Option<&'a GraphProto> {
        self.proto.attribute.iter().find(|a| a.name == attribute)?.g.as_deref()
    }

    /// Adds the nodes that a call with operand `x` stands for; gives the name of its result.
    pub(super) fn add_body(
        &mut self,
        what: &str,
        x: &str,
        nodes: impl FnOnce(&str, &NodeProto) -> Vec<NodeProto>,
    ) -> String {
        let name = format!("{}/{what}", self.result);
        let result = format!("{name}.result");
        let call =
            NodeProto { input: vec![x.to_owned()], output: vec![result.clone()], ..NodeProto::default() };
        self.nodes.extend(nodes(&name, &call));
        result
    }

    pub(super) fn number(&mut self, value: f32) -> String {
        self.add("Constant", &[], vec![float("value_float", value)])
    }

    pub(super) fn index(&mut self, value: i64) -> String {
        self.add("Constant", &[], vec![int("value_int", value)])
    }

    pub(super) fn numbers(&mut self, values: &[i64]) -> String {
        self.add("Constant", &[], vec![ints("value_ints", values)])
    }

    /// The first operand, with the second added where it is there.
    pub(super) fn sum_of_first(&mut self) -> String {
        match self.input(1) {
            "" => self.input(0).to_owned(),
            bias => self.add("Add", &[self.input(0), bias], vec![]),
        }
    }

    pub(super) fn split_in_three(
        &mut self,
        x: &str,
        sizes: &str,
        mut attributes: Vec<AttributeProto>,
    ) -> [String; 3] {
        attributes.push(int("axis", -1));
        let first = self.add("Split", &[x, sizes], attributes);
        let others = [1, 2].map(|i| format!("{first}.{i}"));
        self.more_results(&others);
        let [second, third] = others;
        [first, second, third]
    }

    /// More results of the part that was added last.
    pub(super) fn more_results(&mut self, names: &[String]) {
        if let Some(node) = self.nodes.last_mut() {
            node.output.extend_from_slice(names);
        }
    }

    /// Gives a value that only one part makes the name of the node's result `index`.
    pub(super) fn rename(&mut self, value: &str, index: usize) {
        let to = self.proto.output.get(index).cloned().unwrap_or_default();
        for name in self.nodes.iter_mut().flat_map(|n| n.input.iter_mut().chain(&mut n.output)) {
            if name == value {
                name.clone_from(&to);
            }
        }
    }

    /// The parts, the one that makes `value` making the node's result `index`.
    pub(super) fn finish(mut self, value: &str, index: usize) -> Vec<NodeProto> {
        self.rename(value, index);
        self.nodes
    }

    /// The parts, where none makes a result of the node.
    pub(super) fn into_nodes(self) -> Vec<NodeProto> {
        self.nodes
    }
}

pub(super) fn float(name: &str, value: f32) -> AttributeProto {
    let r#type = Some(attribute_type::FLOAT);
    AttributeProto { name: name.to_owned(), f: Some(value), r#type, ..AttributeProto::default() }
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    let r#type = Some(attribute_type::INT);
    AttributeProto { name: name.to_owned(), i: Some(value), r#type, ..AttributeProto::default() }
}

pub(super) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let r#type = Some(attribute_type::INTS);
    AttributeProto { name: name.to_owned(), ints: values.to_vec(), r#type, ..AttributeProto::default() }
}

pub(super) fn text(name: &str, value: &str) -> AttributeProto {
    let s = Some(Bytes::copy_from_slice(value.as_bytes()));
    let r#type = Some(attribute_type::STRING);
    AttributeProto { name: name.to_owned(), s, r#type, ..AttributeProto::default() }
}
