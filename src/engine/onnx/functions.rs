//! Model-local functions: a call becomes the function's nodes, its names made the caller's.

use std::collections::HashMap;

use super::{AttributeProto, FunctionProto, GraphProto, NodeProto};

/// The nodes of one call, each value and node name made unique by the caller's name.
pub(super) fn inlined(function: &FunctionProto, call: &NodeProto, name: &str) -> Vec<NodeProto> {
    let mut names: HashMap<String, String> = HashMap::new();
    let formal =
        function.input.iter().zip(call.input.iter().map(String::as_str).chain(std::iter::repeat("")));
    names.extend(formal.map(|(formal, given)| (formal.clone(), given.to_owned())));
    let results = function.output.iter().zip(call.output.iter()).filter(|(_, given)| !given.is_empty());
    names.extend(results.map(|(formal, given)| (formal.clone(), given.clone())));
    let renaming = Renaming { prefix: name, names, function, call };
    function.node.iter().map(|node| renaming.node(node)).collect()
}

struct Renaming<'a> {
    prefix: &'a str,
    names: HashMap<String, String>,
    function: &'a FunctionProto,
    call: &'a NodeProto,
}

impl Renaming<'_> {
    fn name(&self, name: &str) -> String {
        match self.names.get(name) {
            Some(given) => given.clone(),
            None if name.is_empty() => String::new(),
            None => format!("{}/{name}", self.prefix),
        }
    }

    fn node(&self, node: &NodeProto) -> NodeProto {
        NodeProto {
            input: node.input.iter().map(|n| self.name(n)).collect(),
            output: node.output.iter().map(|n| self.name(n)).collect(),
            name: if node.name.is_empty() { String::new() } else { format!("{}/{}", self.prefix, node.name) },
            attribute: node.attribute.iter().filter_map(|a| self.attribute(a)).collect(),
            ..node.clone()
        }
    }

    /// An attribute that stands for one of the call is that one, or the function's default, or not there.
    fn attribute(&self, attribute: &AttributeProto) -> Option<AttributeProto> {
        let mut attribute = if attribute.ref_attr_name.is_empty() {
            attribute.clone()
        } else {
            let all = self.call.attribute.iter().chain(&self.function.attribute_proto);
            let given = all.into_iter().find(|a| a.name == attribute.ref_attr_name)?;
            AttributeProto { name: attribute.name.clone(), ..given.clone() }
        };
        attribute.g = attribute.g.map(|graph| Box::new(self.graph(&graph)));
        Some(attribute)
    }

    fn graph(&self, graph: &GraphProto) -> GraphProto {
        let info = |all: &[super::ValueInfoProto]| {
            let renamed =
                |v: &super::ValueInfoProto| super::ValueInfoProto { name: self.name(&v.name), ..v.clone() };
            all.iter().map(renamed).collect()
        };
        let tensor = |t: &super::TensorProto| super::TensorProto { name: self.name(&t.name), ..t.clone() };
        GraphProto {
            node: graph.node.iter().map(|n| self.node(n)).collect(),
            name: graph.name.clone(),
            initializer: graph.initializer.iter().map(tensor).collect(),
            input: info(&graph.input),
            output: info(&graph.output),
            value_info: info(&graph.value_info),
            sparse_initializer: graph.sparse_initializer.clone(),
        }
    }
}
