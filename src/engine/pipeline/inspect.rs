//! What can be told of a model, a dataset and a recipe without doing a job.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Error;
use super::files::{data_error, is_large, load, load_file, load_outline, read};
use crate::engine::exec::fold::fold_constants;
use crate::engine::exec::session::Session;
use crate::engine::exec::{self, Options, Port};
use crate::engine::graph::op::Op;
use crate::engine::graph::passes::Passes;
use crate::engine::graph::passes::simplify::simplify;
use crate::engine::graph::{Dim, Graph, ValueId};
use crate::engine::onnx::outline::LARGE_BYTES;
use crate::engine::quant::nature;
use crate::engine::quant::plan::{self, Decision};
use crate::engine::quant::report::{self, rows};
use crate::engine::quant::statistics::{self, Statistics};
use crate::engine::quant::trained::is_quantized;
use crate::engine::quant::{self, Recipe};
use crate::engine::tensor::{Tensor, npy};

/// Whether a file is a model that can be run, and what it is: what an upload is checked with. Gives `inputs`, `outputs`
/// (`{name, dtype, shape}`, numbers or names), `operators` (counts), `parameters`, `macs` (of one sample, `null` where
/// the shapes are not fixed but for the batch), `quantized`, and what a job with the default recipe would do: `integer`
/// (node names), `float` (`{node, op, reason}`); and `memory`, the bytes that it takes: `weights` as loaded, `run` of
/// one sample, where dimensions that are not given count as one (`null` where only a run tells).
///
/// Of a float model of 256 MiB and more the weights are not read: nothing is computed ahead of a run, so that nodes may be
/// told apart that a job makes one of, and `weights` counts each of them twice.
///
/// # Errors
/// [`Error::Model`] or [`Error::Io`].
pub fn inspect(model: &Path, memory_bytes_max: u64) -> Result<Value, Error> {
    if is_large(model)? {
        let graph = load_outline(model)?;
        // Codes say with their values what can run on them.
        if !is_quantized(&graph) {
            return tell(graph, Weights::OnDisk, memory_bytes_max);
        }
    }
    tell(load_file(model)?, Weights::InMemory, memory_bytes_max)
}

/// As [`inspect`].
///
/// # Errors
/// [`Error::Model`].
pub fn inspect_bytes(model: &[u8], memory_bytes_max: u64) -> Result<Value, Error> {
    tell(load(model)?, Weights::InMemory, memory_bytes_max)
}

/// Where the weights of a graph are.
#[derive(Clone, Copy, PartialEq)]
enum Weights {
    InMemory,
    /// Zeros stand for them.
    OnDisk,
}

fn tell(mut graph: Graph, at: Weights, memory_bytes_max: u64) -> Result<Value, Error> {
    let mut operators: BTreeMap<&str, u64> = BTreeMap::new();
    for node in &graph.nodes {
        *operators.entry(node.op.name()).or_default() += 1;
    }
    let quantized = is_quantized(&graph);
    let (parameters, name) = (rows::parameters(&graph), graph.name.clone());
    let (mut integer, mut float) = (Vec::new(), Vec::new());
    if !quantized {
        if at == Weights::InMemory {
            fold_constants(&mut graph);
            simplify(&mut graph, Passes::ALL);
        }
        let plan = plan::plan(&graph, &Recipe::default()).map_err(|e| Error::Recipe(e.to_string()))?;
        let named = graph
            .nodes
            .iter()
            .zip(&plan.decisions)
            .filter(|(_, d)| matches!(d, Decision::Integer | Decision::Dynamic | Decision::Lookup));
        integer = named.map(|(n, _)| n.name.clone()).collect();
        float = rows::float_rows(&graph, &plan);
    }
    // No value is allocated yet: a session plans, and packs weights.
    let constants =
        graph.values.iter().filter_map(|v| v.constant.as_ref()).map(|t| t.view().bytes.len() as u64);
    let constants: u64 = constants.sum();
    let options = Options { memory_bytes_max, ..Options::default() };
    let inputs = graph.inputs.len();
    let (options, packed) = match at {
        Weights::InMemory => (options, None),
        // Packed they are about as long.
        Weights::OnDisk => {
            weights_become_inputs(&mut graph);
            (Options { passes: Passes::NONE, ..options }, Some(constants))
        }
    };
    let session = Session::new(graph, options).map_err(|e| Error::Model(e.to_string()))?;
    let shape = |p: &Port| p.shape(|_| Some(1)).expect("every dimension has a length");
    let run = session.arena_bytes(&session.inputs().iter().map(shape).collect::<Vec<_>>());
    let run = match run {
        Err(e @ exec::Error::TooLarge { .. }) => return Err(Error::Model(e.to_string())),
        run => run.ok(),
    };
    let weights = constants.saturating_add(packed.unwrap_or_else(|| session.weight_bytes()));
    let memory = weights.saturating_add(run.unwrap_or(0));
    if memory > memory_bytes_max {
        let text = format!("it takes {memory} bytes of memory, more than the limit of {memory_bytes_max}");
        return Err(Error::Model(text));
    }
    if quantized {
        integer =
            session.nodes().filter(|(.., on_codes)| *on_codes).map(|(name, ..)| name.to_owned()).collect();
        let boundary = |op: &Op| matches!(op, Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. });
        let left =
            session.nodes().filter(|(_, op, on_codes)| !on_codes && !boundary(op) && !nature::moves_data(op));
        float = left.map(|(node, op, _)| report::FloatRow::not_in_codes(node, op.name())).collect();
    }
    let dim = |d: &Dim| match d {
        Dim::Known(n) => json!(n),
        Dim::Symbol(name) => json!(name),
        Dim::Unknown => Value::Null,
    };
    let port = |p: &Port| json!({"name": p.name, "dtype": p.dtype.name(), "shape": p.dims.iter().map(dim).collect::<Vec<_>>()});
    Ok(json!({
        "name": name,
        "inputs": session.inputs()[..inputs].iter().map(port).collect::<Vec<_>>(),
        "outputs": session.outputs().iter().map(port).collect::<Vec<_>>(),
        "operators": operators,
        "parameters": parameters,
        "macs": macs(&session),
        "memory": {"weights": weights, "run": run},
        "quantized": quantized,
        "integer": integer,
        "float": float,
        "unsupported": [],
    }))
}

/// So that a session plans with their shapes, and packs none.
fn weights_become_inputs(graph: &mut Graph) {
    for index in 0..graph.values.len() {
        let id = ValueId(index as u32);
        let large = |t: &&Arc<Tensor>| t.view().bytes.len() as u64 >= LARGE_BYTES;
        if graph.value(id).constant.as_ref().filter(large).is_some() {
            graph.value_mut(id).constant = None;
            graph.inputs.push(id);
        }
    }
}

/// Checks that a file is a dataset (`.npz` or `.npy` with arrays that share their first dimension), without a model.
/// Gives `{"samples": n, "arrays": [{"name", "dtype", "shape"}]}`. A file of statistics, from which a job can take ranges,
/// is one as well: it has no arrays, and `"statistics"` is the number of values that it knows. The arrays may have
/// `bytes_max` bytes together: a few MiB of compressed zeros would else keep a job busy for days.
///
/// # Errors
/// [`Error::Data`], [`Error::TooLong`] or [`Error::Io`].
pub fn inspect_dataset(path: &Path, bytes_max: u64) -> Result<Value, Error> {
    if Statistics::is_file(path) {
        let bytes = read(path)?;
        let refused = |e: statistics::Error| Error::Data { which: "dataset", reason: e.to_string() };
        let (samples, values) = Statistics::inspect(&bytes).map_err(refused)?;
        return Ok(json!({ "samples": samples, "arrays": [], "statistics": values }));
    }
    let failed = |e: npy::Error| data_error(e.into(), path, "dataset");
    let archive = npy::Archive::open(path).map_err(failed)?;
    let refused = |reason: String| Error::Data { which: "dataset", reason };
    let bytes = archive.arrays().iter().fold(0u64, |sum, e| sum.saturating_add(e.header.data_bytes()));
    if bytes > bytes_max {
        let text = format!("its arrays have {bytes} bytes, more than the limit of {bytes_max}");
        return Err(Error::TooLong(text));
    }
    let mut samples: Option<(&str, usize)> = None;
    for entry in archive.arrays() {
        // The mean and deviation of a byte image are not samples.
        let scaling = ["_mean", "_std"].iter().find_map(|suffix| entry.name.strip_suffix(suffix));
        if scaling.is_some_and(|name| archive.arrays().iter().any(|e| e.name == format!("{name}_u8"))) {
            continue;
        }
        let Some(&first) = entry.header.shape.first() else {
            return Err(refused(format!("array `{}` has no dimension, expected samples first", entry.name)));
        };
        match samples {
            None => samples = Some((&entry.name, first)),
            Some((_, n)) if n == first => {}
            Some((other, n)) => {
                let reason = format!("array `{}` has {first} samples, `{other}` has {n}", entry.name);
                return Err(refused(reason));
            }
        }
    }
    let samples = samples.map_or(0, |(_, n)| n);
    if samples == 0 {
        return Err(refused("the file holds no samples".to_owned()));
    }
    let array =
        |e: &npy::Entry| json!({"name": e.name, "dtype": e.header.kind.name(), "shape": e.header.shape});
    Ok(json!({"samples": samples, "arrays": archive.arrays().iter().map(array).collect::<Vec<_>>()}))
}

/// Checks a recipe without running it; gives it back with every default filled in.
///
/// # Errors
/// [`Error::Recipe`] with the field at fault.
pub fn check_recipe(recipe: &Value) -> Result<Value, Error> {
    let recipe: Result<Recipe, quant::Error> = Recipe::parse(recipe);
    let recipe = recipe.map_err(|e| Error::Recipe(e.to_string()))?;
    Ok(serde_json::to_value(recipe).expect("a recipe is numbers and texts"))
}

/// Multiply-accumulates of one sample; `None` where more than the first dimension is open.
fn macs(session: &Session) -> Option<u64> {
    let length = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Known(n) => Some(*n),
        Dim::Symbol(_) | Dim::Unknown => (axis == 0).then_some(1),
    };
    let shape = |p: &Port| p.dims.iter().enumerate().map(length).collect::<Option<Vec<usize>>>();
    let shapes: Option<Vec<Vec<usize>>> = session.inputs().iter().map(shape).collect();
    let steps = session.steps(&shapes?).ok()?;
    Some(steps.iter().map(|step| step.macs).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tensor::dataset::tests::file;

    #[test]
    fn a_dataset_is_told_by_its_arrays() {
        let floats = |shape: &[usize]| Tensor::zeros(crate::engine::tensor::DType::F32, shape);
        let (x, mean, odd) = (floats(&[4, 3]), floats(&[]), floats(&[3]));
        for (arrays, want) in [
            (&[("x_u8", &x), ("x_mean", &mean), ("x_std", &mean)][..], Ok(4)),
            (&[("x", &x), ("y", &odd)], Err("`y` has 3 samples, `x` has 4")),
            (&[("x", &mean)], Err("no dimension")),
            (&[("x", &floats(&[0, 1]))], Err("no samples")),
        ] {
            let file = file(arrays);
            match (inspect_dataset(file.path(), 1 << 20), want) {
                (Ok(found), Ok(samples)) => {
                    assert_eq!(found["samples"], samples);
                    assert_eq!(
                        found["arrays"][0],
                        json!({"name": "x_u8", "dtype": "float32", "shape": [4, 3]})
                    );
                }
                (Err(error), Err(says)) => assert!(error.to_string().contains(says), "{error}"),
                (found, want) => panic!("{found:?}, expected {want:?}"),
            }
        }
        // Two arrays of 48 bytes, however few they are in the file.
        let file = file(&[("x", &x), ("y", &x)]);
        assert!(inspect_dataset(file.path(), 96).is_ok());
        let refused = inspect_dataset(file.path(), 95).unwrap_err().to_string();
        assert!(refused.contains("96 bytes, more than the limit of 95"), "{refused}");
        assert!(matches!(inspect_dataset(Path::new("/nowhere/x.npz"), 0), Err(Error::Io { .. })));
    }

    #[test]
    fn a_recipe_comes_back_in_full() {
        let full = check_recipe(&json!({"ranges": "mse"})).unwrap();
        assert_eq!(full["weights"]["per_channel"], true);
        assert_eq!(full["ranges"], "mse");
        assert_eq!(check_recipe(&full).unwrap(), full);
        assert!(check_recipe(&json!({"ranges": 1})).unwrap_err().to_string().contains("`ranges`"));
    }
}
