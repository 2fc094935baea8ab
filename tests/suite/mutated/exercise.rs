//! What is done with a file that may be hostile: all that an upload and a first run do.

use std::path::Path;

use octet::engine::exec::fold::fold_constants;
use octet::engine::exec::session::Session;
use octet::engine::exec::{Options, Port};
use octet::engine::graph::passes::Passes;
use octet::engine::graph::passes::simplify::simplify;
use octet::engine::graph::{Graph, Value};
use octet::engine::onnx::import;
use octet::engine::tensor::Tensor;

/// Elements of a value beyond which a model is loaded but not run: a run would only take time.
const RUN_ELEMENTS_MAX: u64 = 1 << 22;
/// Multiply-accumulates beyond which it is not run.
const RUN_MACS_MAX: u64 = 1 << 28;

/// How far a file came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reached {
    /// The importer refused it.
    Nothing,
    /// The session refused it.
    Imported,
    /// It was loaded; it is too large to be run here, or its run was refused.
    Loaded,
    /// It ran.
    Ran,
}

/// Imports, folds, simplifies, loads, and runs over zeros. `scratch` is a path that may be written to.
///
/// # Panics
/// Where the file at a path is read as another model than its bytes.
pub(crate) fn exercise(bytes: &[u8], options: &Options, scratch: &Path) -> Reached {
    std::fs::write(scratch, bytes).expect("the scratch file is written");
    let (read, of_file) = (import::import(bytes), import::import_file(scratch));
    assert_eq!(read.is_ok(), of_file.is_ok(), "{:?} against {:?}", read.err(), of_file.err());
    let Ok(mut graph) = read else { return Reached::Nothing };
    assert!(same(&graph, &of_file.expect("it is read as its bytes are")), "a file is read as another model");
    fold_constants(&mut graph);
    simplify(&mut graph, Passes::ALL);
    let Ok(session) = Session::new(graph, options.clone()) else { return Reached::Imported };
    let shape = |p: &Port| p.shape(|_| Some(1)).unwrap_or_default();
    let shapes: Vec<Vec<usize>> = session.inputs().iter().map(shape).collect();
    let elements =
        |shape: &[usize]| shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64)).unwrap_or(u64::MAX);
    if shapes.iter().any(|s| elements(s) > RUN_ELEMENTS_MAX) {
        return Reached::Loaded;
    }
    let Ok(steps) = session.steps(&shapes) else { return Reached::Loaded };
    let macs = steps.iter().fold(0u64, |sum, s| sum.saturating_add(s.macs));
    if macs > RUN_MACS_MAX || steps.iter().any(|s| elements(&s.shape) > RUN_ELEMENTS_MAX) {
        return Reached::Loaded;
    }
    let zeros: Vec<Tensor> =
        session.inputs().iter().zip(&shapes).map(|(p, shape)| Tensor::zeros(p.dtype, shape)).collect();
    let feeds: Vec<(&str, &Tensor)> = session.inputs().iter().map(|p| p.name.as_str()).zip(&zeros).collect();
    match session.run(&feeds) {
        Ok(_) => Reached::Ran,
        Err(_) => Reached::Loaded,
    }
}

/// Whether two graphs have the same nodes and the same values, constants to the bit.
fn same(a: &Graph, b: &Graph) -> bool {
    fn data(value: &Value) -> Option<&[u8]> {
        value.constant.as_ref().map(|tensor| tensor.view().bytes)
    }
    let alike = |(a, b): (&Value, &Value)| {
        (&a.name, a.dtype, &a.dims) == (&b.name, b.dtype, &b.dims) && data(a) == data(b)
    };
    a.nodes.iter().map(|n| &n.name).eq(b.nodes.iter().map(|n| &n.name))
        && a.values.len() == b.values.len()
        && a.values.iter().zip(&b.values).all(alike)
}
