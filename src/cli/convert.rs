//! `octet convert`: a model, as one ONNX file in the form that the engine has it.

use std::path::PathBuf;

use octet::engine::exec::fold::fold_constants;
use octet::engine::graph::passes::Passes;
use octet::engine::graph::passes::simplify::simplify;
use octet::engine::onnx::export;

use crate::cli::{Error, import, write};

/// Arguments of `octet convert`.
#[derive(clap::Args)]
pub(crate) struct Convert {
    /// The ONNX model: a file, alone or with its data in files beside it, or a zip or tar file with all of them.
    input: PathBuf,
    /// Where to write the ONNX file.
    output: PathBuf,
    /// Fold constants, and what scales or shifts the results of a convolution, as quantizing does first.
    #[arg(long)]
    simplify: bool,
}

impl Convert {
    /// Reads and writes the model.
    pub(crate) fn run(self) -> Result<(), Error> {
        let mut graph = import(&self.input)?;
        if self.simplify {
            fold_constants(&mut graph);
            simplify(&mut graph, Passes::ALL);
        }
        write(&self.output, &export::export(&graph, &[]))
    }
}
