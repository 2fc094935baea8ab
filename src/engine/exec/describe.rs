//! What a session tells of itself: its nodes and steps, how long each takes, what memory a run needs, shapes of values.

use std::collections::HashSet;

use crate::engine::graph::ValueId;
use crate::engine::graph::fact::Fact;
use crate::engine::graph::op::Op;
use crate::engine::tensor::{DType, Tensor};

use super::plan::{Start, Step, facts};
use super::session::Session;
use super::{Error, Layer, Port, ShapesOf};

impl Session {
    /// Runs the model `runs` times and gives for each step its median time; `seconds` is the clock.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn layers(
        &self,
        inputs: &[(&str, &Tensor)],
        runs: usize,
        seconds: &(dyn Fn() -> f64 + Sync),
    ) -> Result<Vec<Layer>, Error> {
        let given = self.arrange(inputs)?;
        let ready = self.ready(self.key(&given, &[]), || self.all_nodes())?;
        let mut times = vec![Vec::new(); ready.plan.steps.len()];
        for _ in 0..runs.max(1) {
            let mut before = seconds();
            self.execute(&ready, &given, |index, _, _| {
                let now = seconds();
                times[index].push(now - before);
                before = now;
            })?;
        }
        let layer = |(step, mut times): (&Step, Vec<f64>)| {
            times.sort_by(f64::total_cmp);
            self.layer(step, times.get(times.len() / 2).copied().unwrap_or(0.0))
        };
        Ok(ready.plan.steps.iter().zip(times).map(layer).collect())
    }

    /// The steps that a run over these inputs takes, untimed, up to where a shape depends on the data.
    ///
    /// # Errors
    /// Shapes that do not fit the model.
    pub fn steps(&self, shapes: &[Vec<usize>]) -> Result<Vec<Layer>, Error> {
        let ready = self.first(shapes)?;
        Ok(ready.plan.steps.iter().map(|step| self.layer(step, 0.0)).collect())
    }

    fn layer(&self, step: &Step, seconds: f64) -> Layer {
        let node = &self.graph.nodes[step.node];
        Layer {
            node: node.name.clone(),
            op: step.what.to_owned(),
            integer: node.op.is_integer(),
            macs: step.macs,
            shape: step.shape.clone(),
            seconds,
        }
    }

    /// Bytes of the arena that a run over these shapes takes.
    ///
    /// # Errors
    /// Shapes that do not fit the model.
    pub fn arena_bytes(&self, shapes: &[Vec<usize>]) -> Result<u64, Error> {
        Ok(self.first(shapes)?.plan.arena_bytes as u64)
    }

    /// The nodes that the session runs: name, operator, and whether it computes on codes.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Op, bool)> {
        self.graph.nodes.iter().map(|node| {
            let boundary = matches!(node.op, Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. });
            let reads_codes = node.input(0).is_some_and(|id| self.graph.value(id).qparams.is_some());
            (node.name.as_str(), &node.op, node.op.is_integer() || (reads_codes && !boundary))
        })
    }
}

impl ShapesOf for Session {
    fn inputs(&self) -> &[Port] {
        Session::inputs(self)
    }

    fn value_shapes(&self, shapes: &[Vec<usize>]) -> Result<Vec<(String, DType, Vec<usize>)>, Error> {
        let dtype = |id: ValueId| self.graph.value(id).dtype.unwrap_or(DType::F32);
        let given = self.graph.inputs.iter().zip(shapes);
        let given = given.map(|(&id, shape)| (id, Fact::computed(dtype(id), shape.clone()))).collect();
        let start = Start { given, nodes: self.all_nodes() };
        let wanted = HashSet::new();
        let facts = facts(&self.blueprint(&wanted), start)?;
        let named = facts.into_iter().enumerate().filter_map(|(i, fact)| {
            let (dtype, shape) = fact?;
            Some((self.real_name(ValueId(i as u32)).to_owned(), dtype, shape))
        });
        Ok(named.collect())
    }
}
