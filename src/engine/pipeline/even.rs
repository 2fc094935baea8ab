//! What a job does to the channels of a model before it calibrates: the float function stays the same, values get other
//! ranges. Where nothing changes, nothing is made.

use std::collections::{HashMap, HashSet};

use super::Error;
use super::files::run_error;
use super::running::Job;
use crate::engine::exec::session::Session;
use crate::engine::graph::op::{Binary, Op};
use crate::engine::graph::{Graph, Node, Value, ValueId};
use crate::engine::quant::channels::Scaled;
use crate::engine::quant::equalize::equalize;
use crate::engine::quant::plan::Plan;
use crate::engine::quant::samples::Samples;
use crate::engine::quant::smooth::{self, Asked, smooth};
use crate::engine::quant::{Recipe, Scheme, Smooth, calibrate, statistics};

/// Why an exponent does not go with statistics.
const WITHOUT_VALUES: &str = "`smooth`: what it scales was not calibrated, and ranges come from the statistics of an \
                              earlier job: calibrate again, or leave it at \"auto\" or \"off\"";

/// The graph that is quantized.
pub(super) struct Even {
    pub(super) graph: Graph,
    /// What was done to it.
    pub(super) notes: Vec<String>,
    changed: Option<Changed>,
}

struct Changed {
    session: Session,
    /// The model as it came, that also makes the values as they are now.
    observer: Session,
    /// What values were called before.
    before: Vec<String>,
}

impl Even {
    /// A graph as it came.
    pub(super) fn unchanged(graph: Graph, notes: Vec<String>) -> Even {
        Even { graph, notes, changed: None }
    }

    /// A session of the graph; `float` is one of the model as it came.
    pub(super) fn session<'a>(&'a self, float: &'a Session) -> &'a Session {
        self.changed.as_ref().map_or(float, |changed| &changed.session)
    }

    /// A session that makes the values of the model and those of the graph, so that statistics serve both.
    pub(super) fn observer<'a>(&'a self, float: &'a Session) -> &'a Session {
        self.changed.as_ref().map_or(float, |changed| &changed.observer)
    }

    /// What the values that changed are called in the model.
    pub(super) fn before(&self) -> &[String] {
        self.changed.as_ref().map_or(&[], |changed| &changed.before)
    }
}

impl Job<'_> {
    /// Scales channels as far as the recipe asks for it. `plan` is that of `graph`, and of what becomes of it: nodes and
    /// values keep their places.
    pub(super) fn even(
        &self,
        graph: Graph,
        plan: &Plan,
        recipe: &Recipe,
        float: &Session,
        samples: &Samples,
    ) -> Result<Even, Error> {
        let again = self.request.statistics.is_none();
        if !again && matches!(recipe.smooth, Smooth::Alpha(_)) {
            return Err(Error::Recipe(WITHOUT_VALUES.to_owned()));
        }
        if recipe.scheme == Scheme::Float16 {
            return Ok(Even::unchanged(graph, Vec::new()));
        }
        let (mut scaled, mut notes) = (Vec::new(), Vec::new());
        let mut changed = graph.clone();
        if recipe.equalize {
            let done = equalize(&mut changed);
            scaled.extend(done.scaled);
            notes.extend(done.notes);
        }
        let places = match recipe.smooth {
            Smooth::Auto | Smooth::Alpha(_) if again => smooth::places(&changed, plan, recipe),
            _ => Vec::new(),
        };
        let asked = !places.is_empty() || again && matches!(recipe.smooth, Smooth::Alpha(_));
        if asked && !samples.batches.is_empty() {
            let equalized = (!scaled.is_empty()).then(|| self.session(changed.clone())).transpose()?;
            let float = equalized.as_ref().unwrap_or(float);
            let asked = Asked { plan, recipe, float, batches: &samples.batches };
            match smooth(&mut changed, &places, asked) {
                Ok(done) => {
                    scaled.extend(done.scaled);
                    notes.extend(done.notes);
                }
                // Calibration comes to the same sample and tells which it is.
                Err(calibrate::Error::Run { .. }) if recipe.smooth == Smooth::Auto => {}
                Err(e) => return Err(run_error(e, "calibration")),
            }
        }
        if scaled.is_empty() {
            return Ok(Even::unchanged(graph, notes));
        }
        let mut counted: HashSet<ValueId> = statistics::wanted(&graph).into_iter().collect();
        counted.extend(plan.coded.iter().map(|c| c.value));
        counted.extend(plan.sixteen.keys());
        scaled.retain(|s| counted.contains(&s.value));
        let before = scaled.iter().map(|s| graph.value(s.value).name.clone()).collect();
        let session = self.session(changed.clone())?;
        let observer = self.session(with_values(graph, &scaled))?;
        Ok(Even { graph: changed, notes, changed: Some(Changed { session, observer, before }) })
    }
}

/// A graph that makes scaled values too, each under its name.
fn with_values(mut graph: Graph, scaled: &[Scaled]) -> Graph {
    let mut latest: HashMap<ValueId, ValueId> = HashMap::new();
    for Scaled { value, name, factors } in scaled {
        let from = latest.get(value).copied().unwrap_or(*value);
        let dims = graph.value(*value).dims.clone();
        let factors_name = graph.unused_name(&format!("{name}.factors"));
        let factors = graph.add_constant(&factors_name, factors.clone());
        let made = graph.add_value(Value { name: name.clone(), dims, ..graph.value(*value).clone() });
        let op = Op::Binary(Binary::Mul);
        graph.nodes.push(Node::new(name.clone(), op, vec![Some(from), Some(factors)], vec![made]));
        graph.outputs.push(made);
        latest.insert(*value, made);
    }
    graph
}
