//! Statistics of what is served: each run of the float model adds to the histograms, and nothing of a sample is kept.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::engine::exec::fold::fold_constants;
use crate::engine::exec::session::Session;
use crate::engine::exec::{Error, Options};
use crate::engine::graph::Graph;
use crate::engine::graph::passes::Passes;
use crate::engine::graph::passes::simplify::simplify;
use crate::engine::quant::calibrate::{Axes, Counter, axes_of_samples};
use crate::engine::quant::checks::convergence::SampleRanges;
use crate::engine::quant::observed::Observed;
use crate::engine::quant::statistics::{self, Statistics};
use crate::engine::tensor::Tensor;

/// A float model that counts what flows through it.
pub struct Live {
    session: Session,
    model: [u8; 32],
    inputs: Vec<String>,
    axes: Option<Axes>,
    values: BTreeMap<String, Observed>,
    samples: u64,
}

impl Live {
    /// Of a float model as it was imported; `model` is the SHA-256 of its file. Takes the memory of a session and 64 KiB
    /// for each value.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn new(mut graph: Graph, model: [u8; 32], options: Options) -> Result<Live, Error> {
        // As a job does, so that the values have the names that the job looks for.
        fold_constants(&mut graph);
        simplify(&mut graph, Passes::ALL);
        let name = |value| graph.value(value).name.clone();
        let values = statistics::wanted(&graph).into_iter().map(|v| (name(v), Observed::default())).collect();
        let session = Session::new(graph, options)?;
        let inputs = session.inputs().iter().map(|port| port.name.clone()).collect();
        Ok(Live { session, model, inputs, axes: None, values, samples: 0 })
    }

    /// Runs so many samples, along the first axis of each input where `by_sample`, and counts them.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        samples: usize,
        by_sample: bool,
    ) -> Result<Vec<Tensor>, Error> {
        let count = by_sample.then_some(samples);
        let session = &self.session;
        let axes = self.axes.get_or_insert_with(|| {
            let owned: Vec<_> =
                inputs.iter().map(|&(name, tensor)| (name.to_owned(), tensor.clone())).collect();
            if by_sample { axes_of_samples(session, &owned) } else { Axes::default() }
        });
        let names: Vec<&str> = self.inputs.iter().map(String::as_str).collect();
        // How the ranges settle is of interest for data that come to an end.
        let mut ranges = SampleRanges::default();
        let mut counter =
            Counter { values: &mut self.values, inputs: &names, axes, count, ranges: &mut ranges };
        inputs.iter().for_each(|(name, tensor)| counter.count(name, tensor.view()));
        let outputs = session.run_tapped(inputs, &mut counter)?;
        self.samples += if by_sample { samples as u64 } else { 1 };
        Ok(outputs)
    }

    /// Samples that were counted.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// What was counted so far. Its digest of the data is one of the counts: the samples themselves are gone.
    pub fn statistics(&self) -> Statistics {
        let seen = |observed: &Observed| observed.histogram.count() + observed.histogram.not_finite() > 0;
        let values = self.values.iter().filter(|(_, observed)| seen(observed));
        let values = values.map(|(name, observed)| (name.clone(), observed.clone())).collect();
        let mut statistics = Statistics { model: self.model, samples: self.samples, data: [0; 32], values };
        statistics.data = Sha256::digest(statistics.encode()).into();
        statistics
    }
}
