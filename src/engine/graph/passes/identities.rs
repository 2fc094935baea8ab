//! Identity nodes go.

use std::collections::{HashMap, HashSet};

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, ValueId};

/// Takes Identity nodes out, unless they give a graph output its name.
pub(super) fn remove_identities(graph: &mut Graph) {
    let given: HashSet<ValueId> = graph.outputs.iter().copied().collect();
    let mut instead: HashMap<ValueId, ValueId> = HashMap::new();
    for node in &mut graph.nodes {
        for id in node.inputs.iter_mut().flatten() {
            *id = instead.get(id).copied().unwrap_or(*id);
        }
        if matches!(node.op, Op::Identity)
            && !given.contains(&node.outputs[0])
            && let Some(input) = node.input(0)
        {
            instead.insert(node.outputs[0], input);
        }
    }
    graph.remove_unused_nodes();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::op::Unary;
    use crate::engine::graph::{Node, Value};

    #[test]
    fn an_identity_stays_where_it_names_an_output() {
        let mut g = Graph::default();
        let [x, a, b, y] =
            ["x", "a", "b", "y"].map(|n| g.add_value(Value { name: n.to_owned(), ..Value::default() }));
        let node = |op, from, to| Node::new(String::new(), op, vec![Some(from)], vec![to]);
        g.nodes =
            vec![node(Op::Identity, x, a), node(Op::Unary(Unary::Relu), a, b), node(Op::Identity, b, y)];
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        remove_identities(&mut g);
        assert_eq!(g.nodes.len(), 2);
        assert_eq!(g.nodes[0].input(0), Some(x));
        assert_eq!(g.nodes[1].outputs, [y]);
    }
}
