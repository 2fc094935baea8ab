//! One pass of the float model over the calibration data: a histogram for each value that will get codes.
//! Every range method can be chosen afterwards without the data.

use std::collections::HashMap;

use crate::engine::exec::session::Session;
use crate::engine::exec::{self, Tap};
use crate::engine::quant::histogram::Histogram;
use crate::engine::tensor::dataset::{self, Dataset};
use crate::engine::tensor::{DType, TensorView};

/// Bytes of input that make a batch worth its overhead.
const BATCH_BYTES: usize = 1 << 21;
/// Most samples in a batch.
const BATCH_MAX: usize = 32;

/// Why calibration or evaluation did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] dataset::Error),
    /// The model cannot be run on them.
    #[error("sample {sample}: {source}")]
    Run {
        /// First sample of the batch.
        sample: usize,
        /// Why.
        source: exec::Error,
    },
    /// The model makes values that are no numbers.
    #[error("value `{value}` holds NaN or infinity on {count} elements")]
    NotFinite {
        /// The value.
        value: String,
        /// How many elements.
        count: u64,
    },
    /// A value that the plan needs did not appear.
    #[error("value `{0}` did not appear while the model ran")]
    Unseen(String),
    /// The outputs cannot be judged.
    #[error("{0}")]
    Outputs(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// Told how many samples are done; says whether to go on.
pub type OnSamples<'a> = &'a mut dyn FnMut(usize) -> bool;

/// Samples in a batch for inputs of this size.
pub fn batch_size(input_bytes: usize) -> usize {
    (BATCH_BYTES / input_bytes.max(1)).clamp(1, BATCH_MAX)
}

/// Runs the data through a float model and counts the values named in `wanted`.
///
/// The result depends on the samples only, not on their order nor on batches.
///
/// # Errors
/// [`Error`]; NaN or infinity anywhere among the wanted values is one.
pub fn calibrate(
    session: &Session,
    data: &Dataset,
    wanted: &[String],
    batch: usize,
    on_samples: OnSamples<'_>,
) -> Result<HashMap<String, Histogram>, Error> {
    let inputs: Vec<&str> = session.inputs().iter().map(|p| p.name.as_str()).collect();
    let mut histograms: HashMap<String, Histogram> =
        wanted.iter().map(|name| (name.clone(), Histogram::default())).collect();
    let mut reader = data.reader()?;
    for batch in reader.batches(batch)? {
        let batch = batch?;
        for (name, tensor) in &batch.inputs {
            if let Some(histogram) = histograms.get_mut(name) {
                observe(histogram, tensor.view());
            }
        }
        let feeds: Vec<_> = batch.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut tap = Counter { histograms: &mut histograms, inputs: &inputs };
        let run = session.run_tapped(&feeds, &mut tap);
        run.map_err(|source| Error::Run { sample: batch.first, source })?;
        if !on_samples(batch.first + batch.samples) {
            return Err(Error::Cancelled);
        }
    }
    for name in wanted {
        let histogram = &histograms[name];
        match (histogram.not_finite(), histogram.range()) {
            (0, Some(_)) => {}
            (0, None) => return Err(Error::Unseen(name.clone())),
            (count, _) => return Err(Error::NotFinite { value: name.clone(), count }),
        }
    }
    Ok(histograms)
}

/// Counts what flows by; inputs were counted when they were read.
struct Counter<'a> {
    histograms: &'a mut HashMap<String, Histogram>,
    inputs: &'a [&'a str],
}

impl Tap for Counter<'_> {
    fn wants(&self, value: &str) -> bool {
        self.histograms.contains_key(value) && !self.inputs.contains(&value)
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        if let Some(histogram) = self.histograms.get_mut(value) {
            observe(histogram, tensor);
        }
    }
}

fn observe(histogram: &mut Histogram, tensor: TensorView<'_>) {
    if tensor.dtype == DType::F32 {
        histogram.observe(tensor.slice::<f32>());
    }
}
