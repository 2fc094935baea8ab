//! Noise of each layer: both models run on some samples, and the values of the layers are compared.

use std::collections::HashMap;

use serde::Serialize;

use crate::engine::exec::Tap;
use crate::engine::exec::session::Session;
use crate::engine::tensor::dataset::{Batch, Dataset};
use crate::engine::tensor::{DType, TensorView};

use super::abreast;
use super::calibrate::{Error, OnSamples};
use super::noise::Noise;
use super::rewrite::Layer;
use super::spread::Channels;

/// Samples that are run together while layers are compared.
const LAYERS_BATCH: usize = 4;

/// Noise that a layer's result has gathered.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LayerNoise {
    /// Signal to noise of the value in the INT8 model against the float model, in dB; at most 200.
    pub sqnr_db: f64,
    /// Cosine of the two.
    pub cosine: f64,
    /// Largest difference.
    pub max_abs_error: f64,
    /// Size of the channels in the float model.
    #[serde(skip)]
    pub channels: Channels,
}

/// Noise of each layer over the first samples: both models run, and the values of the layers are compared.
/// `None` for a layer whose value the executor did not show. Memory: the layers' values of the batches that run side by side.
///
/// # Errors
/// [`Error`].
pub fn layers(
    float: &Session,
    int8: &Session,
    data: &Dataset,
    layers: &[Layer],
    samples_max: usize,
    on_samples: OnSamples<'_>,
) -> Result<Vec<Option<LayerNoise>>, Error> {
    let mut sums: Vec<Sums> = vec![None; layers.len()];
    let mut reader = data.reader()?;
    let batches = abreast::up_to(samples_max, reader.batches(LAYERS_BATCH)?);
    let run = |_, batch: &Batch| compare(float, int8, layers, batch);
    abreast::batches(batches, run, |batch, found| {
        for (sum, found) in sums.iter_mut().zip(found) {
            match (sum, found) {
                (_, None) => {}
                (Some((noise, channels)), Some((more, others))) => {
                    noise.merge(&more);
                    channels.merge(others);
                }
                (sum, found) => *sum = found,
            }
        }
        if on_samples(batch.first + batch.samples) { Ok(()) } else { Err(Error::Cancelled) }
    })?;
    let noise = |(n, channels): (Noise, Channels)| LayerNoise {
        sqnr_db: n.sqnr_db(),
        cosine: n.cosine(),
        max_abs_error: n.max_abs_error,
        channels,
    };
    Ok(sums.into_iter().map(|sum| sum.map(noise)).collect())
}

/// Noise of a layer and the size of its channels; nothing before the layer was seen.
type Sums = Option<(Noise, Channels)>;

/// Runs both models on a batch: the bytes that it took, about, and the noise of each layer.
fn compare(
    float: &Session,
    int8: &Session,
    layers: &[Layer],
    batch: &Batch,
) -> Result<(u64, Vec<Sums>), Error> {
    let failed = |source| Error::Run { sample: batch.first, source };
    let mut kept = Keeper { values: layers.iter().map(|l| (l.float_value.clone(), None)).collect() };
    float.run_tapped(&batch.feeds(), &mut kept).map_err(failed)?;
    let bytes = |values: &Vec<f32>| size_of_val(&values[..]) as u64;
    let bytes = kept.values.values().flatten().map(bytes).sum::<u64>();
    let places = layers.iter().enumerate().map(|(i, l)| (l.int8_value.as_str(), i)).collect();
    let mut sums = vec![None; layers.len()];
    let mut comparer = Comparer { layers, places, float: &kept.values, sums: &mut sums };
    int8.run_tapped(&batch.feeds(), &mut comparer).map_err(failed)?;
    Ok((bytes.saturating_add(abreast::run_bytes(float, batch)), sums))
}

/// Keeps the values of the float model.
struct Keeper {
    values: HashMap<String, Option<Vec<f32>>>,
}

impl Tap for Keeper {
    fn wants(&self, value: &str) -> bool {
        self.values.contains_key(value)
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        if tensor.dtype == DType::F32
            && let Some(kept) = self.values.get_mut(value)
        {
            *kept = Some(tensor.slice::<f32>().to_vec());
        }
    }
}

/// Compares the values of the INT8 model with them.
struct Comparer<'a> {
    layers: &'a [Layer],
    places: HashMap<&'a str, usize>,
    float: &'a HashMap<String, Option<Vec<f32>>>,
    sums: &'a mut [Sums],
}

impl Tap for Comparer<'_> {
    fn wants(&self, value: &str) -> bool {
        self.places.contains_key(value)
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        let Some(&place) = self.places.get(value) else { return };
        let Some(Some(float)) = self.float.get(&self.layers[place].float_value) else { return };
        if tensor.dtype != DType::F32 || tensor.len() != float.len() {
            return;
        }
        let (sum, channels) = self.sums[place].get_or_insert_default();
        let axis = channel_axis(self.layers[place].op, tensor.shape.len());
        if let Some(axis) = axis {
            channels.observe(float, tensor.shape[axis], tensor.shape[axis + 1..].iter().product());
        }
        sum.merge(&Noise::of_reals(float, tensor.slice::<f32>()));
    }
}

/// Where the channels of a layer's result are; `None` where it has none.
fn channel_axis(op: &str, rank: usize) -> Option<usize> {
    match (op, rank) {
        (_, 0 | 1) => None,
        ("Gemm" | "MatMul", _) | (_, 2 | 3) => Some(rank - 1),
        _ => Some(1),
    }
}
