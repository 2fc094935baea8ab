//! What a job would do, told without doing it and without data: which nodes would become integer, how large the artifact
//! would be, how long it would take and how much memory.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::files::{batch_for, data_error, is_large, load_asked, load_file, load_outline, ports};
use super::{Error, Request, gate, trained};
use crate::engine::artifact;
use crate::engine::exec::fold::fold_constants;
use crate::engine::exec::session::Session;
use crate::engine::exec::{Layer, Options, ShapesOf};
use crate::engine::graph::Graph;
use crate::engine::onnx::import;
use crate::engine::quant::dial::{self, Dial};
use crate::engine::quant::plan::{Decision, Kept, Plan, names_exist};
use crate::engine::quant::report::{Coverage, FloatRow, rows};
use crate::engine::quant::rewrite::{Rewritten, rewrite};
use crate::engine::quant::schemes::any;
use crate::engine::quant::schemes::float16::{self, Seen};
use crate::engine::quant::targets::{Profile, simplify_for};
use crate::engine::quant::{MaxCode, Recipe, Scheme, statistics};
use crate::engine::tensor::DType;
use crate::engine::tensor::dataset::{self, Dataset};
use crate::engine::tensor::qparams::QuantParams;

/// Multiply-accumulates a second and thread of the float kernels, over whole networks.
const FLOAT_MACS_S: f64 = 40e9;
/// The same of the integer kernels.
const INT8_MACS_S: f64 = 80e9;
/// Seconds for each element of the result of a step on reals: what memory and the operators without products take.
const FLOAT_ELEMENT_S: f64 = 0.4e-9;
/// The same on codes.
const INT8_ELEMENT_S: f64 = 0.15e-9;
/// Seconds for a step, however small.
const STEP_S: f64 = 0.5e-6;
/// Seconds for each element that goes into a histogram.
const HISTOGRAM_S: f64 = 1.5e-9;
/// Share of the work that a second thread takes.
const PARALLEL: f64 = 0.9;
/// Bytes of a histogram.
const HISTOGRAM_BYTES: u64 = 1 << 16;
/// Bytes of the program itself and of what every job takes.
const PROGRAM_BYTES: u64 = 40 << 20;
/// Samples that are counted on where no data are given.
const SAMPLES: u64 = 128;

/// What a job would do.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// SHA-256 of the model file, in hexadecimal.
    pub model_sha256: String,
    /// The recipe with every default filled in.
    pub recipe: Recipe,
    /// How many nodes compute on what.
    pub coverage: Coverage,
    /// The nodes that would compute on integers, in execution order.
    pub integer: Vec<IntegerRow>,
    /// The nodes that would compute on reals, with the reasons.
    pub float: Vec<FloatRow>,
    /// Shape of each input that the figures below are for; dimensions that nobody told count as one.
    pub shapes: Vec<(String, Vec<usize>)>,
    /// Multiply-accumulates of one run at batch 1; `None` where only a run tells.
    pub macs: Option<u64>,
    /// The share of them on integers.
    pub integer_share: Option<f64>,
    /// Bytes of the artifact.
    pub artifact_bytes: u64,
    /// Bytes of the artifact over bytes of the model.
    pub size_ratio: f64,
    /// Predicted times; `None` where only a run tells.
    pub seconds: Option<Seconds>,
    /// Samples of the calibration and of the evaluation that the times are for.
    pub samples: (u64, u64),
    /// Memory that the job takes at most, within a factor of about two; `None` where only a run tells.
    pub memory_bytes: Option<u64>,
    /// What the predictions rest on.
    pub basis: String,
}

/// A node that would compute on integers.
#[derive(Clone, Debug, Serialize)]
pub struct IntegerRow {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: &'static str,
    /// What becomes of it.
    pub becomes: String,
}

/// Predicted times, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Seconds {
    /// One run of the float model at batch 1.
    pub float_run: f64,
    /// One run of the INT8 model at batch 1.
    pub int8_run: f64,
    /// The float model runs over the calibration data.
    pub calibrate: f64,
    /// Both run over the evaluation data.
    pub evaluate: f64,
}

/// Readies a model as a job does; gives the float model behind one that comes quantized.
fn ready(graph: &mut Graph, recipe: &mut Recipe) -> Result<Option<Graph>, Error> {
    let reference = trained::take(graph, recipe)?;
    fold_constants(graph);
    if reference.is_none() || recipe.complete {
        simplify_for(graph, recipe);
    }
    Ok(reference)
}

/// Checks that the nodes that a recipe names are in a model. Of a large model whose file has them all the weights are not
/// read: one that becomes a part of another node is found out by the job then.
///
/// # Errors
/// [`Error::Recipe`] names the field and what it may have meant; else as [`dry_run`].
pub fn check_nodes(model: &Path, recipe: &Value) -> Result<(), Error> {
    let mut recipe = Recipe::parse(recipe).map_err(|e| Error::Recipe(e.to_string()))?;
    if recipe.keep_float.is_empty() && recipe.sixteen_bit.is_empty() {
        return Ok(());
    }
    let exist = |graph: &Graph, recipe: &Recipe| {
        names_exist(graph, "keep_float", &recipe.keep_float)?;
        names_exist(graph, "sixteen_bit", &recipe.sixteen_bit)
    };
    if is_large(model)? && exist(&load_outline(model)?, &recipe).is_ok() {
        return Ok(());
    }
    let mut graph = load_file(model)?;
    ready(&mut graph, &mut recipe)?;
    exist(&graph, &recipe).map_err(|e| Error::Recipe(e.to_string()))
}

/// Plans the job of a request; data are looked at for their number and shapes, if there are any.
///
/// # Errors
/// As the job itself up to where the model would run.
pub fn dry_run(request: &Request<'_>, memory_bytes_max: u64) -> Result<DryRun, Error> {
    let mut recipe = Recipe::parse(request.recipe).map_err(|e| Error::Recipe(e.to_string()))?;
    let (mut graph, model) = load_asked(request)?;
    let reference = ready(&mut graph, &mut recipe)?;
    let as_trained = reference.is_some() && !recipe.complete;
    let plan = any::plan(&graph, &recipe, &Kept::new()).map_err(|e| Error::Recipe(e.to_string()))?;
    let options = Options { threads: request.threads.max(1), memory_bytes_max, ..Options::default() };
    let session = |graph| Session::new(graph, options.clone()).map_err(|e| Error::Model(e.to_string()));
    let float = session(reference.unwrap_or_else(|| graph.clone()))?;
    let ports = ports(float.inputs());
    let calibration = open(request.calibration, &ports, "calibration")?;
    let evaluation = open(request.evaluation, &ports, "evaluation")?;
    let judged = evaluation.as_ref().map(|data| (data, "evaluation"));
    if let Some((data, which)) = judged.or(calibration.as_ref().map(|data| (data, "calibration")))
        && let Some(reason) = gate::unanswered(&recipe.gate, data)
    {
        return Err(Error::Data { which, reason });
    }

    let shapes = shapes(&float, calibration.as_ref().or(evaluation.as_ref()))?;
    let one: Vec<Vec<usize>> = shapes.iter().map(|(_, shape)| shape.clone()).collect();
    let (plan, rewritten) = match recipe.scheme {
        Scheme::Float16 => float16::rewrite(&graph, &recipe, &unseen(&graph, &float, &one))
            .map_err(|e| Error::Recipe(e.to_string()))?,
        Scheme::Auto | Scheme::Static | Scheme::Dynamic | Scheme::WeightOnly => {
            let rewritten = coded(&graph, &plan, &recipe);
            (plan, rewritten)
        }
    };
    let written = artifact::write(&rewritten.graph, &serde_json::Value::Null);
    let artifact_bytes = written.len() as u64;
    drop(rewritten);
    let int8 = import::import(&written).map_err(|e| Error::Model(format!("the artifact: {e}")))?;
    let int8 = session(int8)?;

    let steps = float.steps(&one).ok().zip(int8.steps(&one).ok());
    let count = |data: &Option<Dataset>| data.as_ref().map(|data| data.samples() as u64);
    let calibrated = count(&calibration).unwrap_or(SAMPLES);
    let evaluated = count(&evaluation).unwrap_or(calibrated);
    // What is kept as it was trained needs no ranges.
    let samples = (if as_trained { 0 } else { calibrated }, evaluated);
    let observed = statistics::wanted(&graph);
    let observed: HashSet<&str> = observed.iter().map(|&v| graph.value(v).name.as_str()).collect();
    let seconds = steps.as_ref().map(|(float_steps, int8_steps)| {
        let elements = elements(&float, &one, &observed);
        seconds(float_steps, int8_steps, elements, samples, request.threads)
    });
    let macs: Option<u64> = steps.as_ref().map(|(float, _)| float.iter().map(|step| step.macs).sum());
    let integer_share = steps.as_ref().map(|(float, _)| integer_share(&graph, &plan, float));
    let constants: u64 =
        graph.values.iter().filter_map(|v| v.constant.as_ref()).map(|t| t.view().bytes.len() as u64).sum();
    let batch = batch_for(&float);
    let arena = |session: &Session| {
        // What does not take other batches runs one by one.
        let batched: Vec<Vec<usize>> = one.iter().map(|shape| batched(shape, batch)).collect();
        session.arena_bytes(&batched).or_else(|_| session.arena_bytes(&one)).ok()
    };
    let memory_bytes = arena(&float).zip(arena(&int8)).map(|(float_arena, int8_arena)| {
        // Weights are there as read, as packed, as rounded; several plans have arenas. Fitted to the peaks of jobs on
        // five models (40 to 760 MB), which it meets within a factor of about two.
        let weights = 5 * (constants.max(float.weight_bytes()) + artifact_bytes);
        let arenas = 3 * (float_arena + int8_arena) / 2;
        PROGRAM_BYTES + weights + arenas + HISTOGRAM_BYTES * observed.len() as u64
    });
    Ok(DryRun {
        model_sha256: model.sha256,
        coverage: rows::coverage(&plan),
        integer: integer_rows(&graph, &plan),
        float: rows::float_rows(&graph, &plan),
        recipe,
        shapes,
        macs,
        integer_share,
        artifact_bytes,
        size_ratio: artifact_bytes as f64 / model.bytes.max(1) as f64,
        seconds,
        samples,
        memory_bytes,
        basis: format!(
            "{:.0} GMAC/s a thread in float and {:.0} in INT8, {} threads; searches and trials not counted; {} calibration samples{}",
            FLOAT_MACS_S / 1e9,
            INT8_MACS_S / 1e9,
            request.threads.max(1),
            samples.0,
            if calibration.is_some() { "" } else { " (assumed)" },
        ),
    })
}

/// The model in codes, with parameters that are not those of the job: its artifact has other bytes, but as many.
fn coded(graph: &Graph, plan: &Plan, recipe: &Recipe) -> Rewritten {
    let codes = Profile::of(recipe).codes;
    let params = plan.coded.iter().map(|coded| (coded.root, QuantParams::from_range(codes, 0.0, 1.0)));
    let dial = Dial::fixed(&dial::layers(graph, plan), MaxCode::MOST);
    rewrite(graph, plan, &params.collect(), recipe, &dial)
}

/// Types of values for float16, as far as they are known without a run. Magnitudes are not: what turns out too large for
/// float16 stays in float, and takes a few bytes more.
fn unseen(graph: &Graph, float: &Session, one: &[Vec<usize>]) -> HashMap<String, Seen> {
    let seen = |dtype| Seen { dtype, largest: 0.0 };
    let declared = graph.values.iter().map(|v| (v.name.clone(), seen(v.dtype.unwrap_or(DType::F32))));
    let mut all: HashMap<String, Seen> = declared.collect();
    let worked_out = float.value_shapes(one).unwrap_or_default();
    all.extend(worked_out.into_iter().map(|(name, dtype, _)| (name, seen(dtype))));
    all
}

fn open(path: Option<&Path>, ports: &[dataset::Port], which: &'static str) -> Result<Option<Dataset>, Error> {
    path.map(|path| Dataset::open(path, ports).map_err(|e| data_error(e, path, which))).transpose()
}

/// Shapes of one sample: those of the data, else those that the model declares.
fn shapes(float: &Session, data: Option<&Dataset>) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let Some(data) = data else {
        let shape = |port: &crate::engine::exec::Port| {
            (port.name.clone(), port.shape(|_| Some(1)).expect("every dimension has a length"))
        };
        return Ok(float.inputs().iter().map(shape).collect());
    };
    let failed = |e: dataset::Error| Error::Data { which: "calibration", reason: e.to_string() };
    let mut reader = data.reader().map_err(failed)?;
    let first = reader.batches(1).map_err(failed)?.next().expect("a dataset has samples").map_err(failed)?;
    Ok(first.inputs.into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect())
}

/// A shape with so many samples along its first axis, where that is one.
fn batched(shape: &[usize], batch: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(first) = shape.first_mut().filter(|first| **first == 1) {
        *first = batch;
    }
    shape
}

/// Elements of the observed values of one run.
fn elements(float: &Session, one: &[Vec<usize>], observed: &HashSet<&str>) -> f64 {
    let shapes = float.value_shapes(one).unwrap_or_default();
    let seen = shapes.iter().filter(|(name, ..)| observed.contains(name.as_str()));
    seen.map(|(_, _, shape)| shape.iter().product::<usize>() as f64).sum()
}

fn seconds(float: &[Layer], int8: &[Layer], elements: f64, samples: (u64, u64), threads: usize) -> Seconds {
    let threads = 1.0 + PARALLEL * (threads.max(1) - 1) as f64;
    let time = |steps: &[Layer]| {
        let step = |step: &Layer| {
            let (macs_s, element_s) = match step.integer {
                true => (INT8_MACS_S, INT8_ELEMENT_S),
                false => (FLOAT_MACS_S, FLOAT_ELEMENT_S),
            };
            let elements = step.shape.iter().product::<usize>() as f64;
            STEP_S + (step.macs as f64 / macs_s + elements * element_s) / threads
        };
        steps.iter().map(step).sum::<f64>()
    };
    let (float_run, int8_run) = (time(float), time(int8));
    Seconds {
        float_run,
        int8_run,
        calibrate: samples.0 as f64 * (float_run + elements * HISTOGRAM_S),
        evaluate: samples.1 as f64 * (float_run + int8_run),
    }
}

/// The share of the multiply-accumulates whose nodes would compute on integers.
fn integer_share(graph: &Graph, plan: &Plan, steps: &[Layer]) -> f64 {
    let on_integers = graph
        .nodes
        .iter()
        .zip(&plan.decisions)
        .filter(|(_, d)| matches!(d, Decision::Integer | Decision::Dynamic | Decision::Trained));
    let names: HashSet<&str> = on_integers.map(|(node, _)| node.name.as_str()).collect();
    let sum = |which: &dyn Fn(&Layer) -> bool| {
        steps.iter().filter(|step| which(step)).map(|step| step.macs as f64).sum::<f64>()
    };
    sum(&|step| names.contains(step.node.as_str())) / sum(&|_| true).max(1.0)
}

fn integer_rows(graph: &Graph, plan: &Plan) -> Vec<IntegerRow> {
    let name = |node: usize| &graph.nodes[node].name;
    let row = |(node, decision): (&crate::engine::graph::Node, &Decision)| {
        let becomes = match decision {
            Decision::Integer => "computes on codes".to_owned(),
            Decision::Lookup => "reads rows of a table in codes".to_owned(),
            Decision::Absorbed { into } if node.op.is_clamp() => {
                format!("the codes of `{}` saturate where it would clamp", name(*into))
            }
            Decision::Absorbed { into } => {
                format!("computed of the sums of `{}`, before they become codes", name(*into))
            }
            Decision::Inner { of } => format!("a table of codes together with `{}`", name(*of)),
            Decision::Dynamic => "computes on codes of rows that get their range in each run".to_owned(),
            Decision::Stored => "computes on reals, its weights are stored in codes".to_owned(),
            Decision::Sixteen => "reads codes of 16 bits, its weights are stored in codes".to_owned(),
            Decision::Half => "computes in float16".to_owned(),
            Decision::Trained => "computes on codes, as it was trained".to_owned(),
            Decision::Float(_) | Decision::Data => return None,
        };
        Some(IntegerRow { node: node.name.clone(), op: node.op.name(), becomes })
    };
    graph.nodes.iter().zip(&plan.decisions).filter_map(row).collect()
}
