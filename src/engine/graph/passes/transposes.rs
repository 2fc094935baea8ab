//! Transposes that follow each other become one, or none: models from TensorFlow turn images back and forth.

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, ValueId};

/// Lets each Transpose read what the Transpose before it reads; one that turns nothing any more goes.
pub(super) fn merge_transposes(graph: &mut Graph) {
    let producers = graph.producers();
    let mut gone: Vec<(ValueId, ValueId)> = Vec::new();
    for index in 0..graph.nodes.len() {
        let Op::Transpose { perm: second } = graph.nodes[index].op.clone() else { continue };
        let Some(x) = graph.nodes[index].input(0) else { continue };
        let Some(first) = producers.get(&x).map(|&n| graph.nodes[n].clone()) else { continue };
        let Op::Transpose { perm: first_perm } = &first.op else { continue };
        // An empty permutation means: reversed, of a rank that the node does not tell.
        if second.is_empty() || first_perm.len() != second.len() {
            continue;
        }
        let Some(merged) =
            second.iter().map(|&axis| first_perm.get(axis).copied()).collect::<Option<Vec<_>>>()
        else {
            continue;
        };
        graph.nodes[index].inputs[0] = first.inputs[0];
        let output = graph.nodes[index].outputs[0];
        if merged.iter().copied().eq(0..merged.len())
            && let Some(source) = first.inputs[0]
            && !graph.outputs.contains(&output)
        {
            gone.push((output, source));
        }
        graph.nodes[index].op = Op::Transpose { perm: merged };
    }
    for (output, source) in gone {
        graph.replace_uses(output, source);
    }
    graph.remove_unused_nodes();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::op::Unary;
    use crate::engine::graph::{Node, Value};

    fn merged(first: &[usize], second: &[usize]) -> Vec<Op> {
        let mut g = Graph::default();
        let [x, a, b, y] =
            ["x", "a", "b", "y"].map(|n| g.add_value(Value { name: n.to_owned(), ..Value::default() }));
        let node = |op, from, to| Node::new(String::new(), op, vec![Some(from)], vec![to]);
        g.nodes = vec![
            node(Op::Transpose { perm: first.to_vec() }, x, a),
            node(Op::Transpose { perm: second.to_vec() }, a, b),
            node(Op::Unary(Unary::Relu), b, y),
        ];
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        merge_transposes(&mut g);
        g.nodes.into_iter().map(|n| n.op).collect()
    }

    #[test]
    fn two_transposes_are_one_or_none() {
        assert!(matches!(&merged(&[0, 3, 1, 2], &[0, 2, 3, 1])[..], [Op::Unary(_)]));
        let ops = merged(&[1, 2, 0], &[1, 2, 0]);
        assert!(matches!(&ops[..], [Op::Transpose { perm }, Op::Unary(_)] if perm == &[2, 0, 1]), "{ops:?}");
        assert_eq!(merged(&[], &[1, 0]).len(), 3);
    }
}
