//! Test: what is exported is read back as the same graph, and exported again as the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;

use super::ModelProto;
use crate::engine::graph::op::{Op, Unary};
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::onnx::{export, import};
use crate::engine::tensor::DType;

/// Says where two graphs differ. Constants are compared by their data: an operand that older opsets wrote as an
/// attribute has a name of our own.
fn difference(a: &Graph, b: &Graph) -> Result<(), String> {
    let value = |g: &Graph, id: Option<ValueId>| match id.map(|id| (g.value(id), g.constant(id))) {
        None => "none".to_owned(),
        Some((_, Some(tensor))) => format!("{}{:?}", tensor.dtype(), tensor.shape()),
        Some((value, None)) => value.name.clone(),
    };
    let data = |g: &Graph, id: Option<ValueId>| id.and_then(|id| g.constant(id).cloned());
    let ports = |g: &Graph, ids: &[ValueId]| -> Vec<String> {
        let port = |&id: &ValueId| {
            let v = g.value(id);
            format!("{} {:?} {:?}", v.name, v.dtype, v.dims)
        };
        ids.iter().map(port).collect()
    };
    let same = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        let (a, b) = (format!("{a:?}"), format!("{b:?}"));
        if a == b { Ok(()) } else { Err(format!("{what}: {a} became {b}")) }
    };
    same("inputs", &ports(a, &a.inputs), &ports(b, &b.inputs))?;
    same("outputs", &ports(a, &a.outputs), &ports(b, &b.outputs))?;
    let list = |g: &Graph| g.nodes.iter().map(|n| format!("{} {}", n.name, n.op.name())).collect::<Vec<_>>();
    same("nodes", &list(a), &list(b))?;
    for (x, y) in a.nodes.iter().zip(&b.nodes) {
        let at = |e: String| format!("node `{}`: {e}", x.name);
        same("operator", &x.op, &y.op).map_err(at)?;
        let operands = |g: &Graph, n: &Node| n.inputs.iter().map(|&id| value(g, id)).collect::<Vec<_>>();
        same("operands", &operands(a, x), &operands(b, y)).map_err(at)?;
        if x.inputs.iter().zip(&y.inputs).any(|(&i, &j)| data(a, i) != data(b, j)) {
            return Err(at("a constant changed".to_owned()));
        }
        let results = |g: &Graph, n: &Node| {
            n.outputs
                .iter()
                .map(|&id| g.value(id).name.clone())
                .filter(|n| !n.contains(".unused"))
                .collect::<Vec<_>>()
        };
        same("results", &results(a, x), &results(b, y)).map_err(at)?;
        if x.bodies.len() != y.bodies.len() {
            return Err(at("bodies came or went".to_owned()));
        }
        for (x, y) in x.bodies.iter().zip(&y.bodies) {
            difference(x, y).map_err(|e| at(format!("in a body: {e}")))?;
        }
    }
    Ok(())
}

/// Exports and imports a model; says what is not the same. `None` where the importer does not take it.
pub(crate) fn lost(bytes: &[u8]) -> Option<String> {
    let graph = import::import(bytes).ok()?;
    let once = export::export(&graph, &[]);
    let again = match import::import(&once) {
        Ok(again) => again,
        Err(e) => return Some(format!("not read back: {e}")),
    };
    let difference = difference(&graph, &again).err();
    difference
        .or_else(|| (export::export(&again, &[]) != once).then(|| "other bytes the second time".to_owned()))
}

/// The `.onnx` files below a folder.
pub(crate) fn models(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            models(&path, all);
        } else if path.extension().is_some_and(|e| e == "onnx") {
            all.push(path);
        }
    }
}

#[test]
fn models_survive_export_and_import() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    models(&root.join("tests/data"), &mut all);
    models(&root.join("examples"), &mut all);
    assert!(all.len() > 3, "{all:?}");
    for path in all {
        let bytes = fs::read(&path).expect("it was just listed");
        if let Some(lost) = lost(&bytes) {
            panic!("{}: {lost}", path.display());
        }
    }
}

#[test]
fn nodes_of_one_name_are_told_apart() {
    let mut graph = Graph::default();
    let mut value = |name: &str| {
        let dims = Some(vec![Dim::Known(2)]);
        graph.add_value(Value { name: name.to_owned(), dtype: Some(DType::F32), dims, ..Value::default() })
    };
    let ids = ["x", "a", "b", "c"].map(&mut value);
    for (name, pair) in ["relu", "relu", "relu_1"].into_iter().zip(ids.windows(2)) {
        let node = Node::new(name.to_owned(), Op::Unary(Unary::Relu), vec![Some(pair[0])], vec![pair[1]]);
        graph.nodes.push(node);
    }
    (graph.inputs, graph.outputs) = (vec![ids[0]], vec![ids[3]]);
    let file = ModelProto::decode(&export::export(&graph, &[])[..]).expect("it was just written");
    let names: Vec<String> = file.graph.expect("it has one").node.into_iter().map(|n| n.name).collect();
    assert_eq!(names, ["relu", "relu_2", "relu_1"]);
}
