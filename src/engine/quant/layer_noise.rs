//! Noise of each layer: both models run on some samples, and the values of the layers are compared.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Serialize;

use crate::engine::exec::session::Session;
use crate::engine::exec::{ElementOrder, Tap};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::layout::nhwc_to_nchw;
use crate::engine::tensor::dataset::Batch;
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::abreast;
use super::calibrate::{Error, OnSamples};
use super::evaluate::{Evaluation, Judge, Reference, first_output};
use super::noise::Noise;
use super::rewrite::Layer;
use super::spread::Channels;

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

/// A model whose layers are compared.
#[derive(Clone, Copy)]
pub struct Compared<'a> {
    /// The model.
    pub int8: &'a Session,
    /// The float model that it was made of; its layers are named there.
    pub float: &'a Session,
    /// The layers.
    pub layers: &'a [Layer],
}

/// Compares a model on all data, and its layers on the first `closely` samples: `None` for a layer whose value the executor
/// did not show. Memory: the layers' values of the batches that run side by side.
///
/// # Errors
/// As [`Reference::evaluate`].
pub fn evaluate(
    reference: &Reference<'_>,
    compared: Compared<'_>,
    closely: usize,
    batch: usize,
    on_samples: OnSamples<'_>,
) -> Result<(Evaluation, Vec<Option<LayerNoise>>), Error> {
    let mut judge = Judge::new(reference);
    let mut sums: Vec<Sums> = vec![None; compared.layers.len()];
    let mut reader = reference.data.reader()?;
    // One sample at a time: the values of all layers of a batch are kept.
    let mut batches = reader.batches(1)?;
    let run = |_, batch: &Batch| compared.run(reference, batch);
    abreast::batches(batches.before(closely), run, |batch, (outputs, found)| {
        judge.batch(batch, &outputs[0], &outputs[1])?;
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
    batches.at_most(batch);
    reference.judge(compared.int8, batches, &mut judge, on_samples)?;
    let noise = |(n, channels): (Noise, Channels)| LayerNoise {
        sqnr_db: n.sqnr_db(),
        cosine: n.cosine(),
        max_abs_error: n.max_abs_error,
        channels,
    };
    Ok((judge.finish(), sums.into_iter().map(|sum| sum.map(noise)).collect()))
}

/// Noise of a layer and the size of its channels; nothing before the layer was seen.
type Sums = Option<(Noise, Channels)>;

/// The first outputs of the float model and of the other one, and the noise of each layer.
type Found = ([Tensor; 2], Vec<Sums>);

impl Compared<'_> {
    /// Runs both models on a batch: the bytes that it took, about, and what was found.
    fn run(&self, reference: &Reference<'_>, batch: &Batch) -> Result<(u64, Found), Error> {
        let Compared { int8, float, layers } = *self;
        let (feeds, data) = (batch.feeds(), reference.data);
        let mut kept = Keeper { values: layers.iter().map(|l| (l.float_value.clone(), None)).collect() };
        let own = first_output(float, data, batch, float.run_tapped(&feeds, &mut kept))?;
        // Channels may have been scaled in the model that the other one was made of.
        let own = if std::ptr::eq(float, reference.float) { own } else { reference.output(batch)? };
        let bytes = |kept: &Kept| size_of_val(&kept.values[..]) as u64;
        let bytes = kept.values.values().flatten().map(bytes).sum::<u64>();
        let places = layers.iter().enumerate().map(|(i, l)| (l.int8_value.as_str(), i)).collect();
        let mut sums = vec![None; layers.len()];
        let mut comparer = Comparer { layers, places, float: &kept.values, sums: &mut sums };
        let other = first_output(int8, data, batch, int8.run_tapped(&feeds, &mut comparer))?;
        Ok((bytes.saturating_add(abreast::run_bytes(float, batch)), ([own, other], sums)))
    }
}

/// A value of the float model.
struct Kept {
    values: Vec<f32>,
    channels_last: bool,
}

impl Kept {
    fn of(tensor: TensorView<'_>, channels_last: bool) -> Option<Kept> {
        let values = (tensor.dtype == DType::F32).then(|| tensor.slice::<f32>().to_vec())?;
        Some(Kept { values, channels_last })
    }

    /// As the model has a value of this shape.
    fn in_order(&self, shape: &[usize]) -> Cow<'_, [f32]> {
        match shape {
            [batch, channels, inner @ ..] if self.channels_last => {
                let mut moved = vec![0.0; self.values.len()];
                let pixels = inner.iter().product();
                nhwc_to_nchw(Isa::best(), &self.values, *batch, *channels, pixels, &mut moved, 1);
                Cow::Owned(moved)
            }
            _ => Cow::Borrowed(&self.values),
        }
    }
}

/// Keeps the values of the float model.
struct Keeper {
    values: HashMap<String, Option<Kept>>,
}

impl Tap for Keeper {
    fn wants(&self, value: &str) -> bool {
        self.values.contains_key(value)
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        if let Some(kept) = self.values.get_mut(value) {
            *kept = Kept::of(tensor, false);
        }
    }

    fn observe_channels_last(&mut self, value: &str, tensor: TensorView<'_>) {
        if let Some(kept) = self.values.get_mut(value) {
            *kept = Kept::of(tensor, true);
        }
    }

    fn order(&self, _: &str) -> ElementOrder {
        ElementOrder::ChannelsLast
    }
}

/// Compares the values of the INT8 model with them.
struct Comparer<'a> {
    layers: &'a [Layer],
    places: HashMap<&'a str, usize>,
    float: &'a HashMap<String, Option<Kept>>,
    sums: &'a mut [Sums],
}

impl<'a> Comparer<'a> {
    /// The place of a layer, and its value in the float model.
    fn layer(&self, value: &str) -> Option<(usize, &'a Kept)> {
        let &place = self.places.get(value)?;
        Some((place, self.float.get(&self.layers[place].float_value)?.as_ref()?))
    }
}

/// Compares the reals of a layer, in the order of `shape`, whose channels lie along `axis`.
fn compare(sums: &mut Sums, float: &[f32], int8: &[f32], shape: &[usize], axis: Option<usize>) {
    let (sum, channels) = sums.get_or_insert_default();
    if let Some(axis) = axis {
        channels.observe(float, shape[axis], shape[axis + 1..].iter().product());
    }
    sum.merge(&Noise::of_reals(float, int8));
}

impl Tap for Comparer<'_> {
    fn wants(&self, value: &str) -> bool {
        self.places.contains_key(value)
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        let Some((place, kept)) = self.layer(value) else { return };
        if tensor.dtype == DType::F32 && tensor.len() == kept.values.len() {
            let float = kept.in_order(tensor.shape);
            let axis = channel_axis(self.layers[place].op, tensor.shape.len());
            compare(&mut self.sums[place], &float, tensor.slice(), tensor.shape, axis);
        }
    }

    fn observe_channels_last(&mut self, value: &str, tensor: TensorView<'_>) {
        let Some((place, kept)) = self.layer(value) else { return };
        if tensor.dtype == DType::F32 && tensor.len() == kept.values.len() {
            let rank = tensor.shape.len();
            let axis = channel_axis(self.layers[place].op, rank);
            let axis = axis.map(|axis| if axis == 1 { rank - 1 } else { axis - 1 });
            compare(&mut self.sums[place], &kept.values, tensor.slice(), tensor.shape, axis);
        }
    }

    fn order(&self, value: &str) -> ElementOrder {
        match self.layer(value) {
            Some((_, kept)) if kept.channels_last => ElementOrder::ChannelsLast,
            _ => ElementOrder::Model,
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::exec::Options;
    use crate::engine::graph::op::{Op, Sliding, Unary};
    use crate::engine::graph::passes::Passes;
    use crate::engine::graph::{Dim, Graph, Node, Value};
    use crate::engine::tensor::dataset::tests::samples_of;

    /// `r = Relu(Conv(x, w))` of whole numbers, whose sums do not depend on their order.
    fn session(passes: Passes) -> Session {
        let mut graph = Graph::default();
        let batch = || Dim::Symbol("batch".to_owned());
        let [x, c, r] = [("x", 3), ("c", 8), ("r", 8)].map(|(name, channels)| {
            let dims = vec![batch(), Dim::Known(channels), Dim::Known(5), Dim::Known(6)];
            let (name, dtype) = (name.to_owned(), Some(DType::F32));
            graph.add_value(Value { name, dtype, dims: Some(dims), ..Value::default() })
        });
        let weights: Vec<f32> = (0..8 * 3 * 9u16).map(|i| f32::from(i * 29 % 13) - 6.0).collect();
        let w = graph.add_constant("w", Tensor::from_slice(&[8, 3, 3, 3], &weights));
        let sliding = Sliding { pads: vec![1; 4], ..Sliding::default() };
        let conv = Op::Conv { sliding, groups: 1 };
        graph.nodes.push(Node::new("conv".to_owned(), conv, vec![Some(x), Some(w)], vec![c]));
        graph.nodes.push(Node::new("relu".to_owned(), Op::Unary(Unary::Relu), vec![Some(c)], vec![r]));
        (graph.inputs, graph.outputs) = (vec![x], vec![r]);
        Session::new(graph, Options { passes, ..Options::default() }).unwrap()
    }

    #[test]
    fn values_are_compared_whatever_their_order_in_memory() {
        let values: Vec<f32> = (0..5 * 3 * 30u16).map(|i| f32::from(i * 37 % 64) - 20.0).collect();
        let x = Tensor::from_slice(&[5, 3, 5, 6], &values);
        let (_file, data) = samples_of(&x, &[None, Some(3), Some(5), Some(6)]);
        let value = || "r".to_owned();
        let layer = Layer {
            node: "conv".to_owned(),
            op: "Conv",
            float_value: value(),
            int8_value: value(),
            weights: None,
            constants: None,
        };
        let sessions = [Passes::ALL, Passes::NONE].map(session);
        let mut spreads = Vec::new();
        for float in &sessions {
            let reference = Reference::new(float, &data);
            let plain = reference.evaluate(&sessions[0], usize::MAX, 2, &mut |_| true).unwrap();
            for int8 in &sessions {
                let compared = Compared { int8, float, layers: std::slice::from_ref(&layer) };
                let (found, noise) = evaluate(&reference, compared, 3, 2, &mut |_| true).unwrap();
                assert_eq!((&found, found.samples, found.sqnr_db), (&plain, 5, 200.0));
                let noise = noise[0].as_ref().expect("it was seen");
                assert_eq!((noise.sqnr_db, noise.max_abs_error), (200.0, 0.0));
                spreads.push(noise.channels.spread().unwrap());
            }
        }
        assert_eq!(spreads, [spreads[0]; 4]);
        assert_eq!(spreads[0].channels, 8);
    }
}
