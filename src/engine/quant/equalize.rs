//! Cross-layer equalization: the channels between two layers are scaled so that the weights that make one and those that
//! read it have the same largest magnitude. Weights with one scale for a tensor then use all of their codes.
//!
//! Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1:
//! `s = sqrt(r1 / r2)`, `W1 / s`, `b1 / s`, `W2 · s`, pair after pair until nothing moves; on a triple with a depthwise
//! convolution in the middle that ends where its formula of three does. Ranges are taken as parts of the largest in their
//! tensor, which is the same where every channel may move, and right where some may not.
//!
//! A clamp at 6 is not the same for a scaled channel, and ONNX has no clamp by channel that runtimes fuse. So channels
//! go through one only where the weights prove that they never reach it, and no further than that stays so.

use std::collections::{BTreeMap, HashMap};

use crate::engine::graph::op::{Op, Unary};
use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::channels::{Link, Scaled, Wiring, bounds, link, reals};
use crate::engine::tensor::Tensor;

/// Rounds over all pairs, at most, and the largest step that ends them.
const ROUNDS: usize = 40;
const STILL: f64 = 1e-3;
/// How far a channel may be scaled in all.
const FACTOR_MAX: f64 = 100.0;

/// What was done.
#[derive(Debug, Default)]
pub struct Equalized {
    /// The values that were scaled.
    pub scaled: Vec<Scaled>,
    /// For people: what was done, what was left alone and why.
    pub notes: Vec<String>,
}

/// Scales the channels between layers in place. The float function stays the same, up to rounding.
pub fn equalize(graph: &mut Graph) -> Equalized {
    let wiring = Wiring::of(graph);
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    let mut pairs: Vec<Pair> = Vec::new();
    for value in candidates(graph) {
        let found = link(graph, &wiring, value).and_then(|link| Pair::of(graph, &wiring, link));
        match found {
            Ok(pair) => pairs.push(pair),
            Err(reason) => *left.entry(reason).or_default() += 1,
        }
    }
    let mut weights: HashMap<usize, Magnitudes> = HashMap::new();
    for pair in &pairs {
        for &n in pair.link.layers.iter().chain(&pair.link.readers) {
            weights.entry(n).or_insert_with(|| Magnitudes::of(graph, n));
        }
    }
    for _ in 0..ROUNDS {
        let steps = pairs.iter_mut().map(|pair| pair.step(&mut weights));
        if steps.fold(0f64, f64::max) < STILL {
            break;
        }
    }
    let mut done = Equalized::default();
    let mut names = Vec::new();
    for pair in pairs.iter().filter(|pair| pair.factors.iter().any(|f| (f - 1.0).abs() > STILL)) {
        names.push(graph.value(pair.link.value).name.clone());
        done.scaled.extend(pair.link.scale(graph, &pair.factors, "equalized"));
    }
    done.notes.push(match names.is_empty() {
        true => "equalize: there is nothing whose channels could be made alike".to_owned(),
        false => format!("equalize: channels are made alike at {}: {}", names.len(), listed(&names)),
    });
    let clipped: Vec<String> = pairs.iter().filter_map(|pair| pair.clipped(graph)).collect();
    if !clipped.is_empty() {
        let text = "equalize: a clamp of scaled channels would need a bound for each; channels that could reach theirs \
                    stay as they are: ";
        done.notes.push(format!("{text}{}", listed(&clipped)));
    }
    if !left.is_empty() {
        let reasons: Vec<String> = left.iter().map(|(reason, n)| format!("{reason} ({n})")).collect();
        done.notes.push(format!("equalize: left alone where {}", listed(&reasons)));
    }
    done
}

/// What layers read, in execution order.
fn candidates(graph: &Graph) -> Vec<ValueId> {
    let mut all: Vec<ValueId> = Vec::new();
    for node in &graph.nodes {
        let layer = matches!(node.op, Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul);
        let constant = node.input(1).is_some_and(|id| graph.constant(id).is_some());
        if let Some(x) = node.input(0).filter(|x| layer && constant && graph.constant(*x).is_none())
            && !all.contains(&x)
        {
            all.push(x);
        }
    }
    all
}

/// The first few of a list, and how many more there are.
fn listed(all: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN {
        text += &format!(" and {} more", all.len() - SHOWN);
    }
    text
}

/// Two layers and the factors of the channels between them.
struct Pair {
    link: Link,
    factors: Vec<f64>,
    /// The largest factor that each channel may have; 1 where it must stay as it is.
    most: Vec<f64>,
}

impl Pair {
    fn of(graph: &Graph, wiring: &Wiring, link: Link) -> Result<Pair, String> {
        let (&[layer], false) = (&link.layers[..], link.normalized) else {
            return Err("more than a layer makes what the next one reads".to_owned());
        };
        let most = match link.clips[..] {
            [] => vec![f64::INFINITY; link.channels],
            [clip] => match reach(graph, wiring, layer, clip) {
                Some((reach, bound)) => {
                    let room = |r: &f64| if *r <= 0.0 { f64::INFINITY } else { bound / r };
                    // Below 1 the clamp may act: the channel stays.
                    reach.iter().map(room).collect()
                }
                None => vec![0.0; link.channels],
            },
            _ => return Err("several clamps are behind each other".to_owned()),
        };
        Ok(Pair { factors: vec![1.0; link.channels], link, most })
    }

    /// Brings the ranges on both sides together; gives the largest step.
    fn step(&mut self, weights: &mut HashMap<usize, Magnitudes>) -> f64 {
        let channels = self.link.channels;
        let parts = |mut ranges: Vec<f64>| {
            let largest = ranges.iter().fold(0.0, |a: f64, &b| a.max(b));
            ranges.iter_mut().for_each(|r| *r = if largest > 0.0 { *r / largest } else { 0.0 });
            ranges
        };
        let made = parts(weights[&self.link.layers[0]].of_outputs());
        let mut read = vec![0f64; channels];
        for n in &self.link.readers {
            let inputs = parts(weights[n].of_inputs());
            let each = inputs.len() / channels;
            inputs.iter().enumerate().for_each(|(i, m)| read[i / each] = read[i / each].max(*m));
        }
        let mut steps = vec![1.0; channels];
        for (c, step) in steps.iter_mut().enumerate() {
            if made[c] * read[c] <= 0.0 || self.most[c] < 1.0 {
                continue;
            }
            let wanted = self.factors[c] * (read[c] / made[c]).sqrt();
            let factor = wanted.clamp(1.0 / FACTOR_MAX, FACTOR_MAX.min(self.most[c]));
            *step = factor / self.factors[c];
            self.factors[c] = factor;
        }
        let known = "every layer of a pair has its magnitudes";
        weights.get_mut(&self.link.layers[0]).expect(known).scale_outputs(&steps);
        for n in &self.link.readers {
            weights.get_mut(n).expect(known).scale_inputs(&steps);
        }
        steps.iter().map(|s| (s - 1.0).abs()).fold(0.0, f64::max)
    }

    /// The clamp behind the pair, where it keeps channels back.
    fn clipped(&self, graph: &Graph) -> Option<String> {
        let kept = self.most.iter().filter(|most| **most < 1.0).count();
        let &clip = self.link.clips.first()?;
        (kept > 0).then(|| format!("`{}` ({kept} of {})", graph.nodes[clip].name, self.most.len()))
    }
}

/// The largest value that each output of a convolution can have before a clamp, by its weights and the range of its
/// operand, and the bound of the clamp. `None` where the operand has no bounds.
fn reach(graph: &Graph, wiring: &Wiring, layer: usize, clip: usize) -> Option<(Vec<f64>, f64)> {
    let node = &graph.nodes[layer];
    let (_, bound) = bounds(graph, &graph.nodes[clip])?;
    if graph.nodes[clip].input(0) != Some(node.outputs[0]) || bound <= 0.0 {
        return None;
    }
    let Op::Conv { .. } = node.op else { return None };
    let (lo, hi) = range(graph, wiring, node.input(0)?, 8)?;
    let weights = reals(graph, node.input(1)?)?;
    let channels = weights.shape()[0];
    let mut reach = match node.input(2) {
        Some(bias) => reals(graph, bias)?.to_f64(),
        None => vec![0.0; channels],
    };
    let each = weights.len() / channels;
    for (i, &w) in weights.slice::<f32>().iter().enumerate() {
        let w = f64::from(w);
        reach[i / each] += (w * lo).max(w * hi);
    }
    // Sums in f32 round.
    reach.iter_mut().for_each(|r| *r += 1e-4 * r.abs());
    Some((reach, bound))
}

/// Bounds of a value that hold whatever the input of the model is, zero among them.
fn range(graph: &Graph, wiring: &Wiring, value: ValueId, depth: usize) -> Option<(f64, f64)> {
    let node = &graph.nodes[*wiring.producers.get(&value)?];
    let (lo, hi) = match &node.op {
        Op::Clip => bounds(graph, node)?,
        Op::Unary(Unary::Sigmoid | Unary::HardSigmoid { .. }) => (0.0, 1.0),
        Op::Unary(Unary::Tanh) => (-1.0, 1.0),
        Op::MaxPool { .. } | Op::AveragePool { .. } | Op::GlobalAveragePool | Op::Unary(Unary::Relu)
            if depth > 0 =>
        {
            range(graph, wiring, node.input(0)?, depth - 1)?
        }
        _ => return None,
    };
    (lo.is_finite() && hi.is_finite()).then(|| (lo.min(0.0), hi.max(0.0)))
}

/// Largest magnitudes of a layer's weights for each output and each input that it reads.
struct Magnitudes {
    /// `[outputs, inputs of a group]`.
    largest: Vec<f64>,
    inputs: usize,
    groups: usize,
}

impl Magnitudes {
    fn of(graph: &Graph, n: usize) -> Magnitudes {
        let node = &graph.nodes[n];
        let id = node.input(1).expect("a layer of a pair has weights");
        let weights: &Tensor = graph.constant(id).expect("a layer of a pair has weights");
        let shape = weights.shape();
        let (outputs, inputs, groups) = match node.op {
            Op::Conv { groups, .. } => (shape[0], shape[1], groups),
            Op::Gemm { trans_b: true, .. } => (shape[0], shape[1], 1),
            _ => (shape[1], shape[0], 1),
        };
        let taps = weights.len() / (outputs * inputs);
        let rows_first = matches!(node.op, Op::Conv { .. } | Op::Gemm { trans_b: true, .. });
        let mut largest = vec![0f64; outputs * inputs];
        for (i, &w) in weights.slice::<f32>().iter().enumerate() {
            let at = match rows_first {
                true => i / taps,
                false => i % outputs * inputs + i / outputs,
            };
            largest[at] = largest[at].max(f64::from(w.abs()));
        }
        Magnitudes { largest, inputs, groups }
    }

    fn of_outputs(&self) -> Vec<f64> {
        self.largest.chunks(self.inputs).map(|row| row.iter().fold(0.0, |a: f64, &b| a.max(b))).collect()
    }

    fn of_inputs(&self) -> Vec<f64> {
        let mut all = vec![0f64; self.inputs * self.groups];
        for (i, &m) in self.largest.iter().enumerate() {
            let input = self.input_of(i);
            all[input] = all[input].max(m);
        }
        all
    }

    /// The input channel that element `i` multiplies.
    fn input_of(&self, i: usize) -> usize {
        let rows = self.largest.len() / self.inputs / self.groups;
        i / self.inputs / rows * self.inputs + i % self.inputs
    }

    fn scale_outputs(&mut self, steps: &[f64]) {
        let inputs = self.inputs;
        self.largest.iter_mut().enumerate().for_each(|(i, m)| *m *= steps[i / inputs]);
    }

    fn scale_inputs(&mut self, steps: &[f64]) {
        let each = self.inputs * self.groups / steps.len();
        for i in 0..self.largest.len() {
            self.largest[i] /= steps[self.input_of(i) / each];
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::exec::Options;
    use crate::engine::exec::session::Session;
    use crate::engine::graph::op::Sliding;
    use crate::engine::graph::{Dim, Node, Value};
    use crate::engine::quant::weights;
    use crate::engine::tensor::DType;

    /// Numbers that look random, about -1 to 1.
    pub(in crate::engine::quant) fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// A graph under construction: each layer reads the one before.
    struct Chain {
        graph: Graph,
        last: ValueId,
    }

    impl Chain {
        fn new(shape: &[usize]) -> Chain {
            let mut graph = Graph { opset: 17, ..Graph::default() };
            let dims = shape.iter().map(|&d| Dim::Known(d)).collect();
            let x =
                Value { name: "x".to_owned(), dtype: Some(DType::F32), dims: Some(dims), ..Value::default() };
            let last = graph.add_value(x);
            graph.inputs = vec![last];
            Chain { graph, last }
        }

        fn node(mut self, op: Op, operands: &[ValueId]) -> Chain {
            let n = self.graph.nodes.len();
            let made = Value { name: format!("v{n}"), dtype: Some(DType::F32), ..Value::default() };
            let made = self.graph.add_value(made);
            let inputs = std::iter::once(self.last).chain(operands.iter().copied()).map(Some).collect();
            self.graph.nodes.push(Node::new(format!("n{n}"), op, inputs, vec![made]));
            self.last = made;
            self
        }

        fn constant(&mut self, shape: &[usize], gain: impl Fn(usize) -> f32) -> ValueId {
            let n = self.graph.values.len();
            let mut data = numbers(shape.iter().product(), n);
            let inner: usize = shape[1..].iter().product();
            data.iter_mut().enumerate().for_each(|(i, x)| *x *= gain(i / inner));
            self.graph.add_constant(&format!("c{n}"), Tensor::from_slice(shape, &data))
        }

        /// A convolution with a bias whose outputs differ by `gain`.
        fn conv(mut self, shape: [usize; 4], groups: usize, gain: impl Fn(usize) -> f32) -> Chain {
            let w = self.constant(&shape, &gain);
            let b = self.constant(&[shape[0]], &gain);
            let pads = vec![shape[2] / 2; 4];
            let op = Op::Conv { sliding: Sliding { pads, ..Sliding::default() }, groups };
            self.node(op, &[w, b])
        }

        fn clip(mut self, hi: f32) -> Chain {
            let lo = self.graph.add_constant(&format!("lo{}", self.graph.values.len()), Tensor::scalar(0f32));
            let hi = self.graph.add_constant(&format!("hi{}", self.graph.values.len()), Tensor::scalar(hi));
            self.node(Op::Clip, &[lo, hi])
        }

        fn end(mut self) -> Graph {
            self.graph.outputs = vec![self.last];
            self.graph
        }
    }

    /// Channels whose sizes lie a factor of 1000 apart.
    fn unlike(c: usize) -> f32 {
        [1.0, 0.01, 3.0, 0.1, 10.0][c % 5]
    }

    fn run(graph: &Graph, gain: f32) -> Vec<f64> {
        let session = Session::new(graph.clone(), Options::default()).unwrap();
        let shape = session.inputs()[0].shape(|_| Some(1)).unwrap();
        let data: Vec<f32> = numbers(shape.iter().product(), 77).iter().map(|x| x * gain).collect();
        session.run(&[("x", &Tensor::from_slice(&shape, &data))]).unwrap()[0].to_f64()
    }

    fn db(want: &[f64], got: &[f64]) -> f64 {
        let (signal, noise) =
            want.iter().zip(got).fold((0.0, 1e-30), |(s, n), (a, b)| (s + a * a, n + (a - b).powi(2)));
        10.0 * (signal / noise).log10()
    }

    /// The graph with the weights of its layers as codes of one scale a tensor stand for them.
    fn by_tensor(graph: &Graph) -> Graph {
        let mut graph = graph.clone();
        for n in 0..graph.nodes.len() {
            if !matches!(graph.nodes[n].op, Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul) {
                continue;
            }
            let id = graph.nodes[n].input(1).unwrap();
            let w = graph.constant(id).unwrap().clone();
            let q = weights::quantize(&w, None, weights::scales(&w, None, 127), 127);
            let reals: Vec<f32> =
                q.codes.slice::<i8>().iter().map(|&c| q.params.dequantize(c.into(), 0)).collect();
            graph.value_mut(id).constant = Some(Tensor::from_slice(w.shape(), &reals).into());
        }
        graph
    }

    /// A small network in the manner of MobileNet, whose channels between layers are alike.
    fn mobile() -> Graph {
        let relu = || Op::Unary(Unary::Relu);
        let mut chain = Chain::new(&[2, 4, 8, 8])
            .conv([10, 4, 3, 3], 1, |_| 1.0)
            .node(relu(), &[])
            .conv([10, 1, 3, 3], 10, |_| 1.0)
            .node(Op::Unary(Unary::LeakyRelu { alpha: 0.1 }), &[])
            .conv([6, 10, 1, 1], 1, |_| 1.0)
            .node(relu(), &[])
            .conv([9, 2, 3, 3], 3, |_| 1.0)
            .node(relu(), &[])
            .node(Op::GlobalAveragePool, &[])
            .node(Op::Flatten { axis: 1 }, &[]);
        let w = chain.constant(&[7, 9], |_| 1.0);
        let b = chain.constant(&[7], |_| 1.0);
        chain.node(Op::Gemm { alpha: 0.5, beta: 2.0, trans_a: false, trans_b: true }, &[w, b]).end()
    }

    #[test]
    fn the_float_function_stays_and_weights_of_one_scale_gain() {
        let alike = mobile();
        let mut graph = alike.clone();
        let wiring = Wiring::of(&graph);
        for value in candidates(&graph).into_iter().skip(1) {
            let link = link(&graph, &wiring, value).unwrap();
            let factors: Vec<f64> = (0..link.channels).map(|c| unlike(c).into()).collect();
            link.scale(&mut graph, &factors, "planted");
        }
        let mut equal = graph.clone();
        let done = equalize(&mut equal);
        assert_eq!(equal.nodes.len(), graph.nodes.len());
        assert!(done.notes[0].contains("at 4: "), "{:?}", done.notes);
        assert!(done.scaled.iter().all(|s| s.name.ends_with(".equalized")));
        for gain in [0.1, 1.0, 50.0] {
            let want = run(&alike, gain);
            for (what, other) in [("planted", &graph), ("equalized", &equal)] {
                assert!(
                    db(&want, &run(other, gain)) > 100.0,
                    "{what} {gain}: {}",
                    db(&want, &run(other, gain))
                );
            }
            let of = |graph: &Graph| db(&want, &run(&by_tensor(graph), gain));
            let (before, after) = (of(&graph), of(&equal));
            assert!(after > before + 10.0 && after > 25.0, "{gain}: {before} dB, then {after} dB");
        }
    }

    #[test]
    fn weights_that_others_read_too_are_copied() {
        let mut chain = Chain::new(&[1, 6, 5, 5]);
        let w = chain.constant(&[6, 6, 1, 1], unlike);
        let conv = || Op::Conv { sliding: Sliding::default(), groups: 1 };
        let relu = || Op::Unary(Unary::Relu);
        let graph = chain
            .node(conv(), &[w])
            .node(relu(), &[])
            .node(conv(), &[w])
            .node(relu(), &[])
            .node(conv(), &[w]);
        let graph = graph.end();
        let mut equal = graph.clone();
        let done = equalize(&mut equal);
        assert!(!done.scaled.is_empty(), "{:?}", done.notes);
        let (want, got) = (run(&graph, 1.0), run(&equal, 1.0));
        assert!(db(&want, &got) > 100.0, "{}", db(&want, &got));
    }

    #[test]
    fn a_dead_channel_stays_as_it_is() {
        let graph = Chain::new(&[1, 3, 6, 6])
            .conv([5, 3, 3, 3], 1, |c| if c == 2 { 0.0 } else { unlike(c) })
            .node(Op::Unary(Unary::Relu), &[])
            .conv([4, 5, 1, 1], 1, |_| 1.0)
            .end();
        let mut equal = graph.clone();
        let done = equalize(&mut equal);
        assert_eq!(done.scaled[0].factors.slice::<f32>()[2], 1.0);
        assert!(run(&equal, 1.0).iter().all(|y| y.is_finite()));
        assert!(db(&run(&graph, 1.0), &run(&equal, 1.0)) > 100.0);
    }

    #[test]
    fn through_a_clamp_go_only_channels_that_never_reach_it() {
        // What the second convolution reads is at most 6: most of its channels stay below the clamp behind it.
        let graph = Chain::new(&[1, 4, 8, 8])
            .conv([6, 4, 3, 3], 1, |_| 1.0)
            .clip(6.0)
            .conv([6, 1, 3, 3], 6, |c| if c == 1 { 5.0 } else { 0.01 })
            .clip(6.0)
            .conv([4, 6, 1, 1], 1, |_| 1.0)
            .end();
        let mut equal = graph.clone();
        let done = equalize(&mut equal);
        assert_eq!(done.scaled.len(), 2, "{:?}", done.notes);
        let factors = done.scaled[0].factors.slice::<f32>();
        assert!(factors[1] == 1.0 && factors.iter().filter(|f| **f > 2.0).count() == 5, "{factors:?}");
        assert!(done.notes.iter().any(|n| n.contains("`n1` (6 of 6), `n3` (1 of 6)")), "{:?}", done.notes);
        // Inputs that the first clamp stops, and the second one.
        for gain in [1.0, 100.0, 10_000.0] {
            let (want, got) = (run(&graph, gain), run(&equal, gain));
            assert!(db(&want, &got) > 100.0, "{gain}: {}", db(&want, &got));
        }
    }

    #[test]
    fn what_has_other_readers_or_another_function_is_left_alone() {
        for (what, op) in [("HardSwish", Op::Unary(Unary::HardSwish)), ("Tanh", Op::Unary(Unary::Tanh))] {
            let graph = Chain::new(&[1, 3, 4, 4]).conv([4, 3, 1, 1], 1, unlike).node(op, &[]).conv(
                [2, 4, 1, 1],
                1,
                unlike,
            );
            let mut equal = graph.end();
            let done = equalize(&mut equal);
            assert!(done.scaled.is_empty(), "{what}");
            assert!(done.notes.iter().any(|n| n.contains(what)), "{:?}", done.notes);
        }
        let mut graph =
            Chain::new(&[1, 3, 4, 4]).conv([4, 3, 1, 1], 1, unlike).conv([2, 4, 1, 1], 1, unlike).end();
        let inner = graph.nodes[0].outputs[0];
        graph.outputs.push(inner);
        assert!(equalize(&mut graph).scaled.is_empty(), "a result of the model keeps its values");
    }
}
