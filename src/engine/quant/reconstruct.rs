//! Rounds the weights of a QDQ graph and corrects its biases, layer by layer from front to back, so that the results
//! stay as near as they can to those of the float model over a few samples.
//!
//! Two runs go side by side: that of the float graph, and that of the QDQ graph with the layers that are done. So a layer
//! sees the noise of all before it, and makes good for what it can (sequential correction). Whether a layer keeps what
//! was found is decided on samples that it was not found on.

use std::collections::{HashMap, HashSet};

use ndarray::{Array2, s};
use rayon::prelude::*;

use crate::engine::exec::Options;
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::quant::calibrate::Error;
use crate::engine::quant::constants;
use crate::engine::quant::dense::Dense;
use crate::engine::quant::noise;
use crate::engine::quant::rewrite::{Layer, Rewritten};
use crate::engine::quant::rounding;
use crate::engine::quant::rows::{Geometry, spread};
use crate::engine::quant::samples::{Samples, is_judged};
use crate::engine::quant::solver::{Group, Pair, Solver};
use crate::engine::quant::walk::Walk;
use crate::engine::quant::{Recipe, Rounding, weights};
use crate::engine::tensor::{DType, Tensor};

/// Rows over which a layer is looked at, for each of its terms, and their bounds.
const ROWS_PER_TERM: usize = 8;
const ROWS_MIN: usize = 2048;
const ROWS_MAX: usize = 8192;
/// Least part of the scale that fits the float weights.
const SCALE_LEAST: f32 = 0.5;
/// Columns that groups of channels are taken together for.
const COLUMNS: usize = 1152;

/// What was done to a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstructed {
    /// Name of the node.
    pub node: String,
    /// Share of its outputs whose weights were rounded for their results.
    pub optimal: f64,
    /// Signal to noise of its results by its weights alone, in dB.
    pub weights_db: f64,
    /// Signal to noise of its results by the noise of its operand, in dB.
    pub operand_db: f64,
}

/// Improves the constants of `rewritten` in place. `float` is the graph that it was written from.
///
/// # Errors
/// Where a graph cannot be run, or the caller wants to stop.
pub fn reconstruct(
    float: &Graph,
    rewritten: &mut Rewritten,
    samples: &Samples,
    recipe: &Recipe,
    options: &Options,
    on_layer: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<Reconstructed>, Error> {
    let failed = |source| Error::Run { sample: 0, source };
    let mut done = Vec::new();
    let dense = Dense { isa: options.isa, threads: options.threads };
    let places = Places::of(float, &rewritten.graph);
    let shared = shared(&rewritten.layers);
    let mut real = Walk::new(float, &samples.batches, options.clone());
    let mut coded = Walk::new(&rewritten.graph, &samples.batches, options.clone());
    let all = rewritten.layers.len();
    for l in 0..all {
        if !on_layer(l, all) {
            return Err(Error::Cancelled);
        }
        let layer = &rewritten.layers[l];
        let Some(constants) = &layer.constants else { continue };
        let Some((at_real, at_coded)) = places.both(&layer.node) else { continue };
        if shared.contains(&constants.codes) {
            continue;
        }
        real.advance(float, at_real).map_err(failed)?;
        coded.advance(&rewritten.graph, at_coded).map_err(failed)?;
        let Some(task) = Task::of(float, &rewritten.graph, layer, (at_real, at_coded), recipe, &places)
        else {
            continue;
        };
        let Some(rows) = task.rows(&real, &coded) else { continue };
        let Some(solved) = task.solve(&rows, dense) else { continue };
        let found = task.keep(solved, &mut rewritten.graph);
        done.push(found);
    }
    Ok(done)
}

/// Codes that more than one layer multiplies with.
fn shared(layers: &[Layer]) -> HashSet<String> {
    let mut seen = HashSet::new();
    let codes = layers.iter().filter_map(|l| Some(&l.constants.as_ref()?.codes));
    codes.filter(|codes| !seen.insert((*codes).clone())).cloned().collect()
}

/// Where nodes and constants are, by name.
struct Places {
    real: HashMap<String, usize>,
    coded: HashMap<String, usize>,
    values: HashMap<String, ValueId>,
    /// For each value of the QDQ graph the node that makes it.
    producers: HashMap<ValueId, usize>,
}

impl Places {
    fn of(float: &Graph, coded: &Graph) -> Places {
        let nodes =
            |graph: &Graph| graph.nodes.iter().enumerate().map(|(n, node)| (node.name.clone(), n)).collect();
        let value = |(i, v): (usize, &crate::engine::graph::Value)| (v.name.clone(), ValueId(i as u32));
        Places {
            real: nodes(float),
            coded: nodes(coded),
            values: coded.values.iter().enumerate().map(value).collect(),
            producers: coded.producers(),
        }
    }

    fn both(&self, node: &str) -> Option<(usize, usize)> {
        Some((*self.real.get(node)?, *self.coded.get(node)?))
    }
}

/// A layer to be rounded.
struct Task<'a> {
    name: &'a str,
    geometry: Geometry,
    /// `[N, K]` by [`Geometry::place`], with `alpha` of a Gemm.
    w: Vec<f32>,
    shape: Vec<usize>,
    axis: Option<usize>,
    bias: Option<Vec<f32>>,
    /// Its constants.
    bias_ids: Option<(ValueId, ValueId)>,
    /// Whether its mean error is taken out.
    corrects: bool,
    codes_id: ValueId,
    scales_id: ValueId,
    scale_x: f32,
    zero_x: i32,
    /// Operand in the float graph, or its codes where the model came with them, and its codes in the QDQ graph.
    x: (ValueId, ValueId),
    max_code: u8,
    rounding: Rounding,
    /// Where rows get their range in each run: the constants of sums and bias, the values of least code and step.
    by_row: Option<Rowwise>,
}

/// The ids of [`ByRow`].
struct Rowwise {
    sums: ValueId,
    low: ValueId,
    step: ValueId,
    bias: Option<ValueId>,
}

/// Operands of a layer at sampled positions.
struct Rows<'w> {
    batches: Vec<Sampled<'w>>,
}

/// Those of a batch.
struct Sampled<'w> {
    /// The rows that are taken.
    rows: Vec<usize>,
    /// Whether to judge by them.
    judged: bool,
    /// The operand in the float model, and its codes.
    real: &'w Tensor,
    coded: &'w Tensor,
    /// Least code and step of each row, where rows have their own: `(code + least) · step`.
    ranges: Option<(&'w Tensor, &'w Tensor)>,
}

/// What was found for a layer.
struct Solved {
    codes: Vec<i8>,
    scales: Vec<f32>,
    bias: Option<Vec<f32>>,
    optimal: usize,
    judged: usize,
    signal: f64,
    weight_noise: f64,
    operand_noise: f64,
}

impl Solved {
    /// Puts what was found for a group in its place.
    fn take(&mut self, g: &Geometry, group: usize, found: &Group) {
        for n in 0..g.outputs {
            let channel = group * g.outputs + n;
            for k in 0..g.terms {
                self.codes[g.place(group, n, k)] = found.codes[[k, n]] as i8;
            }
            if self.scales.len() == g.groups * g.outputs {
                self.scales[channel] = found.scales[n];
            }
            if let Some(bias) = &mut self.bias {
                bias[channel] += found.shift[n];
            }
        }
        self.optimal += found.optimal;
        self.judged += g.outputs;
        self.signal += found.signal;
        self.weight_noise += found.weight_noise;
        self.operand_noise += found.operand_noise;
    }
}

impl<'a> Task<'a> {
    fn of(
        float: &'a Graph,
        coded: &Graph,
        layer: &'a Layer,
        (at_real, at_coded): (usize, usize),
        recipe: &Recipe,
        places: &Places,
    ) -> Option<Task<'a>> {
        let constants = layer.constants.as_ref()?;
        let node = &float.nodes[at_real];
        let (operand, axis, _) = constants::weights_of(float, node).ok()?;
        let tensor = float.constant(operand)?;
        let alpha = if let Op::Gemm { alpha, .. } = node.op { alpha } else { 1.0 };
        let channels = tensor.shape()[axis];
        let bias = constants::bias_of(float, node, channels).ok()?;
        let id = |name: &String| places.values.get(name).copied();
        let scales_id = id(&constants.scales)?;
        let w: Vec<f32> = tensor.slice::<f32>().iter().map(|w| w * alpha).collect();
        let reals = coded.nodes[at_coded].input(0)?;
        let plain = Task {
            name: &layer.node,
            geometry: Geometry::of(node, tensor.shape())?,
            w,
            shape: tensor.shape().to_vec(),
            // Whether there is a scale a channel is for the writer to say: some targets have one for a matrix.
            axis: coded.constant(scales_id).filter(|t| !t.shape().is_empty()).map(|_| axis),
            bias,
            corrects: false,
            bias_ids: None,
            codes_id: id(&constants.codes)?,
            scales_id,
            scale_x: 1.0,
            zero_x: 0,
            x: (node.input(0)?, reals),
            max_code: layer.weights.as_ref()?.max_code,
            rounding: recipe.rounding,
            by_row: None,
        };
        if let Some(by_row) = &constants.by_row {
            let bias = by_row.bias.as_ref().map(id);
            let (terms, outputs) = (plain.w.len() / channels, channels);
            let at = |k: usize, n: usize| if axis == 0 { n * terms + k } else { k * outputs + n };
            let product = Node::new(String::new(), Op::MatMul, Vec::new(), Vec::new());
            return Some(Task {
                geometry: Geometry::of(&product, &[terms, outputs])?,
                w: (0..plain.w.len()).map(|i| plain.w[at(i / outputs, i % outputs)]).collect(),
                shape: vec![terms, outputs],
                axis: recipe.weights.per_channel.then_some(1),
                corrects: recipe.bias_correction && bias.is_some(),
                by_row: Some(Rowwise {
                    sums: id(&by_row.sums)?,
                    low: id(&by_row.low)?,
                    step: id(&by_row.step)?,
                    bias: bias.flatten(),
                }),
                ..plain
            });
        }
        let bias_ids = match &constants.bias {
            Some((codes, scales)) => Some((id(codes)?, id(scales)?)),
            None => None,
        };
        // What it reads is made of codes (QuantizeLinear, DequantizeLinear), or real where only weights are codes.
        let inline = places.producers.get(&reals).map(|&n| &coded.nodes[n]);
        let inline = inline.filter(|n| matches!(n.op, Op::DequantizeLinear { .. }));
        let made = float.nodes.iter().find(|n| node.input(0).is_some_and(|x| n.outputs.contains(&x)));
        let own = made.filter(|n| matches!(n.op, Op::DequantizeLinear { .. })).and_then(|n| n.input(0));
        let parameter = |i: usize| match inline {
            // The rows of a table have a scale a column; what reads them stays as it was.
            Some(inline) => coded.constant(inline.input(i)?).filter(|t| t.len() == 1).map(|t| t.to_f64()[0]),
            None => Some(0.0),
        };
        Some(Task {
            bias: match bias_ids {
                Some(_) => Some(plain.bias.unwrap_or_else(|| vec![0.0; channels])),
                None => plain.bias,
            },
            corrects: recipe.bias_correction && bias_ids.is_some(),
            bias_ids,
            scale_x: parameter(1)? as f32,
            zero_x: parameter(2).unwrap_or(0.0) as i32,
            x: (own.unwrap_or(plain.x.0), inline.map_or(Some(reals), |inline| inline.input(0))?),
            ..plain
        })
    }

    fn rows<'w>(&self, real: &'w Walk, walk: &'w Walk) -> Option<Rows<'w>> {
        let (real, coded) = (real.value(self.x.0)?, walk.value(self.x.1)?);
        let ranges = match &self.by_row {
            Some(by_row) => Some((walk.value(by_row.low)?, walk.value(by_row.step)?)),
            None => None,
        };
        let count: Vec<usize> = real.iter().map(|x| self.geometry.rows(x)).collect();
        let all: usize = count.iter().sum();
        let wanted = (ROWS_PER_TERM * self.geometry.terms.min(rounding::BLOCK)).clamp(ROWS_MIN, ROWS_MAX);
        let batch = |b: usize| {
            let ranges = ranges.map(|(low, step)| (&low[b], &step[b]));
            Sampled {
                rows: Vec::new(),
                judged: is_judged(b, count.len()),
                real: &real[b],
                coded: &coded[b],
                ranges,
            }
        };
        let mut batches: Vec<Sampled<'w>> = (0..count.len()).map(batch).collect();
        if !batches.iter().all(|batch| self.fits(batch)) {
            return None;
        }
        let (mut batch, mut before) = (0, 0);
        for row in spread(all, wanted) {
            while row - before >= count[batch] {
                before += count[batch];
                batch += 1;
            }
            batches[batch].rows.push(row - before);
        }
        Some(Rows { batches })
    }

    /// Whether the codes of an operand are of a type and shape that is known here.
    fn fits(&self, Sampled { real, coded, ranges, .. }: &Sampled<'_>) -> bool {
        let known = |codes: &Tensor| {
            matches!(codes.dtype(), DType::U8 | DType::I8 | DType::U16 | DType::I16 | DType::F32)
        };
        match ranges {
            None => known(coded) && known(real),
            Some((low, step)) => {
                let rows = coded.len() / self.geometry.terms.max(1);
                coded.dtype() == DType::U8 && low.len() == rows && step.len() == rows
            }
        }
    }

    /// Rows of an operand as its codes stand for them, to `out`.
    fn reals(
        &self,
        codes: &Tensor,
        ranges: Option<(&Tensor, &Tensor)>,
        rows: &[usize],
        groups: (usize, usize),
        out: &mut [f32],
    ) {
        let g = &self.geometry;
        let real = |code: i32| (code - self.zero_x) as f32 * self.scale_x;
        match (codes.dtype(), ranges) {
            (DType::F32, _) => g.gather(codes, rows, groups, 0f32, out, |_, x| x),
            (DType::I8, _) => {
                g.gather(codes, rows, groups, self.zero_x as i8, out, |_, code| real(code.into()));
            }
            (DType::I16, _) => {
                g.gather(codes, rows, groups, self.zero_x as i16, out, |_, code| real(code.into()));
            }
            (DType::U16, _) => {
                g.gather(codes, rows, groups, self.zero_x as u16, out, |_, code| real(code.into()));
            }
            (_, None) => g.gather(codes, rows, groups, self.zero_x as u8, out, |_, code| real(code.into())),
            (_, Some((low, step))) => {
                let (low, step) = (low.slice::<f32>(), step.slice::<f32>());
                g.gather(codes, rows, groups, 0u8, out, |i, code| {
                    (f32::from(code) + low[rows[i]]) * step[rows[i]]
                });
            }
        }
    }

    /// Rows of some groups: `(float, codes)` to find by, and to judge by.
    fn gather(&self, rows: &Rows<'_>, groups: (usize, usize)) -> [Pair; 2] {
        [false, true].map(|judge| {
            let batches: Vec<_> = rows.batches.iter().filter(|batch| batch.judged == judge).collect();
            let all = batches.iter().map(|batch| batch.rows.len()).sum();
            let width = groups.1 * self.geometry.terms;
            let mut pair: Pair = (Array2::zeros((all, width)), Array2::zeros((all, width)));
            let mut rest = [&mut pair.0, &mut pair.1].map(|a| a.as_slice_mut().expect("it is contiguous"));
            let mut tasks = Vec::new();
            for &batch in &batches {
                for (out, coded) in rest.iter_mut().zip([false, true]) {
                    let (own, others) = std::mem::take(out).split_at_mut(batch.rows.len() * width);
                    *out = others;
                    tasks.push((batch, coded, own));
                }
            }
            tasks.into_par_iter().for_each(|(batch, coded, out)| match coded {
                false => self.reals(batch.real, None, &batch.rows, groups, out),
                true => self.reals(batch.coded, batch.ranges, &batch.rows, groups, out),
            });
            pair
        })
    }

    /// The scales that fit the float weights and leave room for the bias, and the least that each may become.
    fn scales(&self) -> (Vec<f32>, Vec<f32>) {
        let tensor = Tensor::from_slice(&self.shape, &self.w);
        let mut scales = weights::scales(&tensor, self.axis, self.max_code);
        let mut least = vec![0f32; scales.len()];
        // Room for a bias that is somewhat larger than the model's.
        let coded = self.bias.iter().filter(|_| self.bias_ids.is_some());
        let bias: Vec<f32> = coded.flatten().map(|b| 1.5 * b).collect();
        weights::raise_for_bias(&mut least, self.scale_x, &bias, self.geometry.terms);
        for (scale, least) in scales.iter_mut().zip(&mut least) {
            *scale = scale.max(*least);
            // A scale much below what fits the float weights would only clip; a dead channel has none of its own.
            *least = least.max(SCALE_LEAST * *scale);
        }
        (scales, least)
    }

    /// Looks for codes, scales and bias; `None` where there is nothing to look at.
    fn solve(&self, rows: &Rows<'_>, dense: Dense) -> Option<Solved> {
        let g = &self.geometry;
        let (scales, least) = self.scales();
        let own = |scales: &[f32], n: usize| scales[if scales.len() == 1 { 0 } else { n }];
        let mut solved = Solved {
            codes: vec![0; self.w.len()],
            scales: scales.clone(),
            bias: self.bias.clone().filter(|_| self.by_row.is_some() || self.bias_ids.is_some()),
            optimal: 0,
            judged: 0,
            signal: 0.0,
            weight_noise: 0.0,
            operand_noise: 0.0,
        };
        let solver = Solver {
            max_code: self.max_code,
            rounding: self.rounding,
            corrects: self.corrects,
            by_channel: self.axis.is_some(),
            dense,
        };
        let together = (COLUMNS / g.terms.max(1)).clamp(1, g.groups);
        for first in (0..g.groups).step_by(together) {
            let groups = together.min(g.groups - first);
            let [find, judge] = self.gather(rows, (first, groups));
            let found_on = rows.batches.iter().filter(|batch| !batch.judged);
            let parts: Vec<usize> = found_on.map(|batch| batch.rows.len()).collect();
            if find.0.nrows() == 0 {
                return None;
            }
            let solve = |group: usize| {
                let columns = s![.., (group - first) * g.terms..(group - first + 1) * g.terms];
                let part = |a: &Array2<f32>| a.slice(columns).to_owned();
                let part = |(a, b): &Pair| (part(a), part(b));
                let apart = (groups > 1).then(|| (part(&find), part(&judge)));
                let (find, judge) = apart.as_ref().map_or((&find, &judge), |(find, judge)| (find, judge));
                let w = Array2::from_shape_fn((g.terms, g.outputs), |(k, n)| self.w[g.place(group, n, k)]);
                let of_group: Vec<f32> =
                    (0..g.outputs).map(|n| own(&scales, group * g.outputs + n)).collect();
                let least: Vec<f32> = (0..g.outputs).map(|n| own(&least, group * g.outputs + n)).collect();
                solver.solve(&w, find, judge, &parts, (&of_group, &least))
            };
            let found: Option<Vec<Group>> = (first..first + groups).into_par_iter().map(solve).collect();
            for (group, found) in (first..).zip(found?) {
                solved.take(g, group, &found);
            }
        }
        Some(solved)
    }

    /// Puts what was found into the graph.
    fn keep(&self, solved: Solved, graph: &mut Graph) -> Reconstructed {
        let db = |noise: f64| noise::db(solved.signal, noise).unwrap_or(f64::INFINITY);
        let done = Reconstructed {
            node: self.name.to_owned(),
            optimal: solved.optimal as f64 / solved.judged.max(1) as f64,
            weights_db: db(solved.weight_noise),
            operand_db: db(solved.operand_noise),
        };
        if let (Some(bias), None) = (&solved.bias, &self.by_row) {
            let mut raised = solved.scales.clone();
            weights::raise_for_bias(&mut raised, self.scale_x, bias, self.geometry.terms);
            if raised != solved.scales {
                // The corrected bias does not fit beside the products: the layer stays as it was.
                return Reconstructed { optimal: 0.0, ..done };
            }
        }
        if let Some(by_row) = &self.by_row {
            put_rowwise(graph, self, &solved, by_row);
            return done;
        }
        let mut put =
            |id: ValueId, tensor: Tensor| graph.value_mut(id).constant = Some(std::sync::Arc::new(tensor));
        let codes = Tensor::from_slice(&self.shape, &solved.codes);
        let scales_shape: Vec<usize> = self.axis.map(|_| solved.scales.len()).into_iter().collect();
        put(self.scales_id, Tensor::from_slice(&scales_shape, &solved.scales));
        if let (Some((codes_id, scales_id)), Some(bias)) = (self.bias_ids, &solved.bias) {
            let quantized = weights::quantize_bias(bias, self.scale_x, &solved.scales);
            let shape: Vec<usize> =
                quantized.params.axis.map(|_| quantized.params.scale.len()).into_iter().collect();
            put(codes_id, quantized.codes);
            put(scales_id, Tensor::from_slice(&shape, &quantized.params.scale));
        }
        put(self.codes_id, codes);
        done
    }
}

/// Puts what was found for a product by rows into the graph.
fn put_rowwise(graph: &mut Graph, task: &Task<'_>, solved: &Solved, by_row: &Rowwise) {
    let outputs = task.shape[1];
    let mut put =
        |id: ValueId, tensor: Tensor| graph.value_mut(id).constant = Some(std::sync::Arc::new(tensor));
    let mut sums = vec![0f32; outputs];
    for row in solved.codes.chunks_exact(outputs) {
        sums.iter_mut().zip(row).for_each(|(sum, &code)| *sum += f32::from(code));
    }
    let scales: Vec<f32> = (0..outputs).map(|n| solved.scales[n % solved.scales.len()]).collect();
    put(task.codes_id, Tensor::from_slice(&task.shape, &solved.codes));
    put(task.scales_id, Tensor::from_slice(&[outputs], &scales));
    put(by_row.sums, Tensor::from_slice(&[outputs], &sums));
    if let (Some(id), Some(bias)) = (by_row.bias, &solved.bias) {
        put(id, Tensor::from_slice(&[outputs], bias));
    }
}
