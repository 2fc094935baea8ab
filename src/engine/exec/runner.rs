//! A session with everything made for inputs of certain shapes: plan, arena, scratch. Runs without allocating.

use crate::engine::tensor::Tensor;

use super::Error;
use super::arena::Arena;
use super::session::{Ready, Session};
use super::step::Operands;

/// Runs a model over inputs of the shapes that it was made for, one run at a time.
pub struct Runner<'s> {
    session: &'s Session,
    ready: Ready,
    arena: Arena,
}

impl Session {
    /// What runs the model over and over on inputs of the types and shapes of `inputs`, in any order, without allocating.
    ///
    /// # Errors
    /// Inputs that do not fit the model, shapes that do not fit a node, and [`Error::NotPlanned`] where a shape depends on
    /// the data.
    pub fn runner(&self, inputs: &[(&str, &Tensor)]) -> Result<Runner<'_>, Error> {
        let given = self.arrange(inputs)?;
        let ready = self.ready_for(&given)?;
        if let Some(&node) = ready.plan.rest.first() {
            return Err(Error::NotPlanned { node: self.node_name(node).to_owned() });
        }
        let arena = Arena::of(ready.plan.arena_bytes);
        Ok(Runner { session: self, ready, arena })
    }
}

impl Runner<'_> {
    /// Runs the model over `inputs`, in the order of [`Session::inputs`], into `outputs`, in that of [`Session::outputs`]
    /// and of their types and shapes. After the first run nothing is allocated where one thread computes, but by what
    /// few operators need that make their results by themselves.
    ///
    /// # Errors
    /// What a node says of the data.
    ///
    /// # Panics
    /// If the inputs or outputs are not of the types and shapes that the runner was made for.
    pub fn run(&mut self, inputs: &[&Tensor], outputs: &mut [Tensor]) -> Result<(), Error> {
        assert!(self.ready.takes(inputs), "inputs of the types and shapes that the runner was made for");
        self.session.run_steps(&self.ready.plan, inputs, &mut self.arena, |_, _, _| {})?;
        let results = Operands::read(&self.ready.plan.outputs, inputs, self.arena.buffer.bytes());
        assert_eq!(outputs.len(), results.len(), "an output for each of the model's");
        for (i, output) in outputs.iter_mut().enumerate() {
            let result = results.need(i);
            assert!(
                (output.dtype(), output.shape()) == (result.dtype, result.shape),
                "outputs of the types and shapes that the model makes"
            );
            output.view_mut().bytes.copy_from_slice(result.bytes);
        }
        Ok(())
    }
}
