//! The largest weight code of each layer, 64 to 127. Smaller codes add up in 16 bits more often, which processors without
//! byte dot products compute faster; what they cost is noise. Turns the dial of each layer as far as a gate allows.
//! Knows no models: whoever asks measures.

use std::collections::HashMap;

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node};
use crate::engine::quant::MaxCode;
use crate::engine::quant::constants::weights_of;
use crate::engine::quant::plan::{Decision, Plan};

/// What the search tries for what the least code is too small for.
const STEPS: [u8; 3] = [MaxCode::LEAST, 96, 112];

/// The largest weight code of each node; [`MaxCode::MOST`] where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dial {
    codes: HashMap<usize, u8>,
}

impl Dial {
    /// The same code for all of `layers`.
    pub fn fixed(layers: &[usize], code: u8) -> Dial {
        Dial { codes: layers.iter().map(|&layer| (layer, code)).collect() }
    }

    /// The largest weight code of a node.
    pub fn max_code(&self, node: usize) -> u8 {
        self.codes.get(&node).copied().unwrap_or(MaxCode::MOST)
    }

    fn with(&self, layers: &[usize], code: u8) -> Dial {
        let mut dial = self.clone();
        dial.codes.extend(layers.iter().map(|&layer| (layer, code)));
        dial
    }
}

/// The integer nodes that gain from smaller codes: dense products with constant weights.
pub fn layers(graph: &Graph, plan: &Plan) -> Vec<usize> {
    let integer = |n: usize| matches!(plan.decisions[n], Decision::Integer | Decision::Dynamic);
    let dense = |&n: &usize| integer(n) && is_dense(graph, &graph.nodes[n]);
    (0..graph.nodes.len()).filter(dense).collect()
}

/// Whether a node sums over many channels; a depthwise convolution sums over few taps.
fn is_dense(graph: &Graph, node: &Node) -> bool {
    match &node.op {
        Op::Conv { groups: 1, .. } | Op::Gemm { .. } | Op::MatMul => true,
        Op::Conv { .. } => weights_of(graph, node)
            .is_ok_and(|(id, ..)| graph.constant(id).is_some_and(|weights| weights.shape()[1] > 1)),
        _ => false,
    }
}

/// What a search asks of whoever can run the model.
pub trait Trials {
    /// What went wrong while a model ran.
    type Error;

    /// How much noise a dial makes, on a few samples: the noise power over the signal's.
    ///
    /// # Errors
    /// Where the model cannot be run.
    fn noise(&mut self, dial: &Dial) -> Result<f64, Self::Error>;

    /// Whether the gate holds, on all samples.
    ///
    /// # Errors
    /// Where the model cannot be run.
    fn passes(&mut self, dial: &Dial) -> Result<bool, Self::Error>;
}

/// Turns the dial of every layer as far down as the gate holds: all of them if it can be; else the layers in the order
/// of the noise that each makes alone, as many as the gate allows, first to the least code, then what is left to larger
/// ones. The gate is asked some ten times, not once a layer.
///
/// # Errors
/// What a trial gives.
pub fn search<T: Trials>(layers: &[usize], trials: &mut T) -> Result<Dial, T::Error> {
    let mut dial = Dial::default();
    let all = Dial::fixed(layers, MaxCode::LEAST);
    if trials.passes(&all)? {
        return Ok(all);
    }
    if !trials.passes(&dial)? {
        // Nothing to give away.
        return Ok(dial);
    }
    let mut noise = Vec::with_capacity(layers.len());
    for &layer in layers {
        noise.push((trials.noise(&Dial::fixed(&[layer], MaxCode::LEAST))?, layer));
    }
    noise.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut left: Vec<usize> = noise.into_iter().map(|(_, layer)| layer).collect();
    for code in STEPS {
        // Between a number that passes and one that does not.
        let (mut good, mut bad) = (0, left.len() + 1);
        while bad - good > 1 {
            let middle = (good + bad) / 2;
            match trials.passes(&dial.with(&left[..middle], code))? {
                true => good = middle,
                false => bad = middle,
            }
        }
        dial = dial.with(&left[..good], code);
        left.drain(..good);
    }
    Ok(dial)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers that each make a noise of their own, the more the smaller their codes, and a limit to the sum.
    struct Made {
        noise: Vec<f64>,
        limit: f64,
        asked: usize,
    }

    impl Made {
        fn sum(&self, dial: &Dial) -> f64 {
            let one = |(n, noise): (usize, &f64)| noise * (127.0 / f64::from(dial.max_code(n)) - 1.0);
            self.noise.iter().enumerate().map(one).sum()
        }
    }

    impl Trials for Made {
        type Error = ();

        fn noise(&mut self, dial: &Dial) -> Result<f64, ()> {
            Ok(self.sum(dial))
        }

        fn passes(&mut self, dial: &Dial) -> Result<bool, ()> {
            self.asked += 1;
            Ok(self.sum(dial) <= self.limit)
        }
    }

    fn found(noise: &[f64], limit: f64) -> Vec<u8> {
        let mut trials = Made { noise: noise.to_vec(), limit, asked: 0 };
        let layers: Vec<usize> = (0..noise.len()).collect();
        let dial = search(&layers, &mut trials).unwrap();
        assert!(trials.sum(&dial) <= limit.max(0.0), "the gate holds");
        assert!(trials.asked <= 2 + 3 * (noise.len() as f64 + 1.0).log2().ceil() as usize);
        layers.iter().map(|&layer| dial.max_code(layer)).collect()
    }

    #[test]
    fn quiet_layers_are_turned_down_and_loud_ones_less() {
        assert_eq!(found(&[1.0, 1.0], 100.0), [64, 64], "all of them if the gate allows");
        assert_eq!(found(&[1.0, 1.0], 0.0), [127, 127]);
        assert_eq!(found(&[9.0, 0.1, 0.1, 9.0], 0.5), [127, 64, 64, 127]);
        assert_eq!(found(&[1.0, 0.1], 0.45), [96, 64]);
        assert_eq!(found(&[1.0, 0.1], 0.25), [112, 64]);
    }

    #[test]
    fn a_gate_that_fails_as_it_is_leaves_all_codes() {
        assert_eq!(found(&[1.0, 1.0], -1.0), [127, 127]);
    }
}
