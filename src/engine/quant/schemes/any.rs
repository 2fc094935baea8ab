//! The plan of a recipe, whatever its scheme.

use crate::engine::graph::Graph;
use crate::engine::quant::plan::{Decision, Kept, Plan};
use crate::engine::quant::targets::planner;
use crate::engine::quant::{Error, Recipe, Scheme};

use super::{dynamic, weight_only};

/// Plans a simplified float graph; the nodes of `kept` stay in float.
///
/// # Errors
/// [`Error::NoMatch`] where a pattern of the recipe names no node.
pub fn plan(graph: &Graph, recipe: &Recipe, kept: &Kept) -> Result<Plan, Error> {
    match recipe.scheme {
        Scheme::Auto | Scheme::Static => planner::plan(graph, recipe, kept),
        Scheme::Dynamic => dynamic::plan(graph, recipe, kept),
        Scheme::WeightOnly => weight_only::plan(graph, recipe, kept),
        // Which nodes can be in float16 is known once the data has been seen.
        Scheme::Float16 => Ok(Plan::of_decisions(vec![Decision::Half; graph.nodes.len()])),
    }
}
