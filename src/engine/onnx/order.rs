//! Nodes in an order in which they can run.

use std::collections::{HashMap, HashSet};

use super::NodeProto;
use super::decode::Error;
use super::subgraphs::reads;

/// The order in which each node stands after those it reads. ONNX asks for it; some tools do not keep it.
pub(super) fn order(nodes: &[NodeProto]) -> Result<Vec<usize>, Error> {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        maker.extend(node.output.iter().filter(|o| !o.is_empty()).map(|o| (o.as_str(), i)));
    }
    let needs = |node: &NodeProto| -> Vec<usize> {
        let found: HashSet<usize> =
            reads(node).iter().filter_map(|n| maker.get(n.as_str()).copied()).collect();
        found.into_iter().collect()
    };
    let needs: Vec<Vec<usize>> = nodes.iter().map(needs).collect();
    if needs.iter().enumerate().all(|(i, made)| made.iter().all(|&m| m < i)) {
        return Ok((0..nodes.len()).collect());
    }
    let mut waiting: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut readers = vec![Vec::new(); nodes.len()];
    for (i, made) in needs.iter().enumerate() {
        made.iter().for_each(|&m| readers[m].push(i));
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
    Ok(order)
}
