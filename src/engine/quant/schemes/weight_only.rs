//! Weight-only: weights are stored in `i8` with a scale a channel, tables of embeddings with a scale a column, and
//! become reals again before they are used. Nothing is asked of activations, so no calibration data are needed.

use crate::engine::graph::{Graph, Node};
use crate::engine::quant::constants::table_of;
use crate::engine::quant::nature::is_data;
use crate::engine::quant::plan::{Decision, Kept, Plan, plan_each};
use crate::engine::quant::{Error, Recipe};

use super::stored;

/// Plans a simplified float graph; the nodes of `kept` stay in float.
///
/// # Errors
/// [`Error::NoMatch`] where a pattern of `keep_float` names no node.
pub fn plan(graph: &Graph, recipe: &Recipe, kept: &Kept) -> Result<Plan, Error> {
    plan_each(graph, recipe, kept, |node| decide(graph, node))
}

fn decide(graph: &Graph, node: &Node) -> Decision {
    if !stored::operands(graph, node).is_empty() {
        return Decision::Stored;
    }
    if table_of(graph, node).is_some() {
        return Decision::Lookup;
    }
    match is_data(graph, node) {
        true => Decision::Data,
        false => Decision::Float("it has no weights that are worth storing in 8 bits".to_owned()),
    }
}
