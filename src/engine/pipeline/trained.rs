//! Jobs on models that come quantized: what a recipe may ask of them, what they are compared with, what the report says.

use std::collections::{BTreeMap, BTreeSet};

use super::Error;
use crate::engine::artifact::Source;
use crate::engine::exec::fold::{fold_constants, fold_quantized};
use crate::engine::graph::Graph;
use crate::engine::graph::op::Op;
use crate::engine::quant::plan::{Decision, Plan};
use crate::engine::quant::report::Advice;
use crate::engine::quant::statistics::Statistics;
use crate::engine::quant::trained::roles::{Role, Trained};
use crate::engine::quant::trained::{is_quantized, reference};
use crate::engine::quant::{self, Activations, Recipe, Scheme, Smooth, Target};
use crate::engine::tensor::DType;
use crate::engine::tensor::digest::SampleDigests;

/// Readies a model that comes quantized, and gives the float model that it is compared with; `None` where it comes in
/// float. Weights become the codes that they stand for; where the model is completed, the recipe takes over its kind of codes.
///
/// # Errors
/// [`Error::Recipe`] names the field that asks for what such a model cannot have, [`Error::Model`] the node that has no
/// float form.
pub(super) fn take(graph: &mut Graph, recipe: &mut Recipe) -> Result<Option<Graph>, Error> {
    if !is_quantized(graph) {
        return Ok(None);
    }
    fold_quantized(graph);
    declare_codes(graph);
    fold_constants(graph);
    check(graph, recipe).map_err(|e| Error::Recipe(e.to_string()))?;
    let mut reference = reference::without_quantization(graph).map_err(|reason| {
        Error::Model(format!("it comes quantized, and there is no float model to compare it with: {reason}"))
    })?;
    fold_constants(&mut reference);
    Ok(Some(reference))
}

/// Tells the type of codes where the file does not: parts of a graph that begin with them cannot be run without.
fn declare_codes(graph: &mut Graph) {
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let zero_point = node.input(2).and_then(|id| graph.constant(id)).map(|tensor| tensor.dtype());
        let (codes, dtype) = match node.op {
            Op::QuantizeLinear { .. } => (node.outputs.first().copied(), zero_point.or(Some(DType::U8))),
            Op::DequantizeLinear { .. } => (node.input(0), zero_point),
            _ => continue,
        };
        if let (Some(codes), Some(dtype)) = (codes, dtype) {
            graph.value_mut(codes).dtype.get_or_insert(dtype);
        }
    }
}

/// What a recipe may not ask of a model that comes quantized.
fn check(graph: &Graph, recipe: &mut Recipe) -> Result<(), quant::Error> {
    let fault = |field: &str, reason: String| Err(quant::Error::Field { field: field.to_owned(), reason });
    if !matches!(recipe.scheme, Scheme::Auto | Scheme::Static) {
        let reason = "the model comes quantized: auto or static keeps it as it was trained";
        return fault("scheme", reason.to_owned());
    }
    if !recipe.sixteen_bit.is_empty() {
        return fault("sixteen_bit", "the model comes quantized, and keeps its codes".to_owned());
    }
    if recipe.equalize {
        return fault("equalize", "the model comes quantized, and keeps its weights".to_owned());
    }
    if let Smooth::Alpha(_) = recipe.smooth {
        return fault("smooth", "the model comes quantized, and keeps its weights".to_owned());
    }
    let trained = Trained::of(graph);
    for pattern in &recipe.keep_float {
        let kept = |n: &usize| {
            let role = trained.role(*n);
            matches!(role, Role::Computes | Role::Clamps) && quant::matches(pattern, &graph.nodes[*n].name)
        };
        if let Some(n) = (0..graph.nodes.len()).find(kept) {
            let name = &graph.nodes[n].name;
            return fault("keep_float", format!("`{pattern}`: node `{name}` comes quantized, and stays so"));
        }
    }
    fits_target(graph, &trained, recipe)?;
    let kinds: BTreeSet<&str> = trained.values().map(|(_, params)| params.dtype.name()).collect();
    let only = |dtype: DType| kinds.len() == 1 && kinds.contains(dtype.name());
    if recipe.complete && recipe.activations == Activations::S8 && only(DType::U8) {
        return fault("activations", "the model comes with codes of u8: complete it with those".to_owned());
    }
    if recipe.complete && only(DType::I8) {
        // Runtimes fuse operators whose operands and results are of one type.
        recipe.activations = Activations::S8;
    }
    Ok(())
}

/// Targets whose codes are prescribed take a model that has those, and nothing that Octet would add.
fn fits_target(graph: &Graph, trained: &Trained, recipe: &Recipe) -> Result<(), quant::Error> {
    let symmetric = match recipe.target {
        Target::Octet | Target::Onnxruntime | Target::Openvino => return Ok(()),
        Target::Tensorrt => true,
        Target::TfliteRules => false,
    };
    let name = recipe.target.name();
    let fault = |reason: String| Err(quant::Error::Field { field: "target".to_owned(), reason });
    if recipe.complete {
        return fault(format!(
            "{name}: a model that comes quantized is completed for octet, onnxruntime, openvino"
        ));
    }
    for (value, params) in trained.values() {
        let (zero, value) = (params.zero_point[0], &graph.value(value).name);
        if params.dtype != DType::I8 || symmetric && zero != 0 {
            let wants = if symmetric { "int8 with zero at code 0" } else { "int8" };
            return fault(format!(
                "{name} wants codes of {wants}; the model comes with {} and zero at {zero} for `{value}`",
                params.dtype.name()
            ));
        }
    }
    Ok(())
}

/// What the reader of a report must know.
pub(super) fn notes(plan: &Plan, recipe: &Recipe) -> Vec<String> {
    let count = |of: &dyn Fn(&Decision) -> bool| plan.decisions.iter().filter(|d| of(d)).count();
    if plan.trained.is_empty() {
        let text = "complete: the model comes in float, so all of it is quantized";
        return recipe.complete.then(|| text.to_owned()).into_iter().collect();
    }
    let trained = count(&|d| *d == Decision::Trained);
    let float = count(&|d| matches!(d, Decision::Float(_)));
    let more = count(&|d| !matches!(d, Decision::Trained | Decision::Float(_) | Decision::Data));
    let left = match recipe.complete {
        false => format!("{float} nodes that it left in float stay so: `complete` quantizes them"),
        true => format!(
            "of those that it left in float, {more} were quantized here by calibration, {float} could not be; ranges, rounding and bias_correction of the recipe are for those alone"
        ),
    };
    vec![
        format!("the model comes quantized: {trained} nodes keep the scales, zero points and codes that they came with; {left}"),
        "float stands for the model without its quantization: weights are what their codes stand for, values are neither \
         rounded nor cut, but for ranges that begin or end at zero, which may stand for an activation. Labels tell the \
         accuracy of both; sizes are over that of the file as it came"
            .to_owned(),
    ]
}

/// Where nothing is calibrated nothing was seen.
pub(super) fn nothing_seen(model: &Source) -> Statistics {
    let mut digest = [0; 32];
    hex::decode_to_slice(&model.sha256, &mut digest).expect("a digest is 64 hexadecimal digits");
    let none = SampleDigests::default();
    Statistics { model: digest, samples: 0, data: none.finish(), values: BTreeMap::new() }
}

/// Advice for the layers that Octet has quantized: of the others no recipe changes anything.
pub(super) fn of_own(advice: Vec<Advice>, graph: &Graph, plan: &Plan) -> Vec<Advice> {
    let trained: BTreeSet<&str> = graph
        .nodes
        .iter()
        .zip(&plan.decisions)
        .filter(|(_, d)| **d == Decision::Trained)
        .map(|(node, _)| node.name.as_str())
        .collect();
    advice.into_iter().filter(|a| !trained.contains(a.node.as_str())).collect()
}
