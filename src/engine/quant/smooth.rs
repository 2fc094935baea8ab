//! SmoothQuant: a channel of an activation that is much larger than the others takes the codes of all. Part of its size
//! moves into the weights that read it, by a factor for each channel that what makes the activation takes over.
//!
//! Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", eq. 4:
//!
//! ```text
//! s[j] = max|X[j]|^α / max|W[j]|^(1 − α),   X[j] / s[j],   W[j] · s[j]
//! ```
//!
//! It can hurt as well as help (facts: `swin_base` loses 1.6 points, `vit_b_16` dies without it). So `auto` does it only
//! where the results of the products gain on samples that the exponent was not chosen by, with the codes that they get.

use std::collections::{BTreeMap, HashMap};

use ndarray::Array2;

use crate::engine::exec::Tap;
use crate::engine::exec::session::Session;
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::calibrate::Error;
use crate::engine::quant::channels::{Link, Scaled, Wiring, link};
use crate::engine::quant::constants::weights_of;
use crate::engine::quant::effect::candidates;
use crate::engine::quant::observed::{Observed, Samples};
use crate::engine::quant::plan::{Decision, Plan};
use crate::engine::quant::ranges;
use crate::engine::quant::rows::spread;
use crate::engine::quant::samples::{Feeds, is_judged};
use crate::engine::quant::targets::Profile;
use crate::engine::quant::{MaxCode, Recipe, Rounding, Smooth, weights};
use crate::engine::tensor::dataset::feeds;
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor, TensorView};

/// Exponents that are tried.
const ALPHAS: [f64; 4] = [0.5, 0.65, 0.8, 0.95];
/// Least gain of the results, in dB, where rows have their own ranges, and where all have one: channels that are alike all
/// come near its end, and what calibration did not show is cut off.
const GAIN_DB: f64 = 0.5;
const GAIN_BY_TENSOR_DB: f64 = 2.0;
/// Part of the noise of weights rounded to the nearest code that is left where they are rounded for their results.
const OPTIMAL_LEFT: f64 = 0.5;
/// Batches that are looked at, at most.
const BATCHES: usize = 16;
/// Rows of each batch and columns of each matrix that noise is measured over, at most.
const ROWS: usize = 96;
const COLUMNS: usize = 256;
/// How far a channel may be scaled, against the middle of all.
const FACTOR_MAX: f64 = 100.0;

/// What is asked.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// How its products will be quantized.
    pub plan: &'a Plan,
    /// How far.
    pub recipe: &'a Recipe,
    /// A session of the graph.
    pub float: &'a Session,
    /// Samples in an order of their own: see `samples`.
    pub batches: &'a [Feeds],
}

/// What was done.
#[derive(Debug, Default)]
pub struct Smoothed {
    /// The values that were scaled.
    pub scaled: Vec<Scaled>,
    /// For people: where, how far, and what it gains.
    pub notes: Vec<String>,
}

/// The activations of a graph that can be smoothed: products alone read them, and constants take the factors.
pub fn places(graph: &Graph, plan: &Plan, recipe: &Recipe) -> Vec<Link> {
    let coded = |n: usize| match plan.decisions[n] {
        Decision::Dynamic | Decision::Integer => true,
        // Only weights have codes: what is asked is done, `auto` has nothing to move.
        Decision::Stored => recipe.smooth != Smooth::Auto,
        _ => false,
    };
    let mut values: Vec<ValueId> = Vec::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        let product = matches!(node.op, Op::MatMul | Op::Gemm { .. }) && coded(n);
        if let Some(x) = node.input(0).filter(|x| product && !values.contains(x)) {
            values.push(x);
        }
    }
    if values.is_empty() {
        return Vec::new();
    }
    let wiring = Wiring::of(graph);
    let found = values.into_iter().filter_map(|value| link(graph, &wiring, value).ok());
    let fits = |link: &Link| {
        let product = |&n: &usize| coded(n) && weights_of(graph, &graph.nodes[n]).is_ok();
        // A product that takes factors makes a value with one range for channels that are uneven now: what its codes lose is
        // not seen in the results of those that read behind it.
        let ranges = |&n: &usize| plan.decisions[n] == Decision::Integer;
        let hidden = !link.layers.is_empty() && link.readers.iter().any(ranges);
        let blind = recipe.smooth == Smooth::Auto && hidden;
        link.clips.is_empty() && link.readers.iter().all(product) && !blind
    };
    found.filter(fits).collect()
}

/// Smooths `graph` in place at some of its `places`.
///
/// # Errors
/// Where the model cannot be run.
pub fn smooth(graph: &mut Graph, places: &[Link], asked: Asked<'_>) -> Result<Smoothed, Error> {
    let mut done = Smoothed::default();
    if asked.recipe.smooth == Smooth::Off || asked.batches.is_empty() {
        return Ok(done);
    }
    let mut seen = Seen::default();
    for place in places {
        seen.values.insert(graph.value(place.value).name.clone(), Rows::default());
    }
    // Evenly from all, so that a few samples of each kind are among them.
    let all = asked.batches.len();
    let taken = if places.is_empty() { 0 } else { all.min(BATCHES) };
    for (i, at) in (0..taken).map(|i| i * all / taken).enumerate() {
        seen.judge = asked.recipe.smooth == Smooth::Auto && is_judged(i, taken);
        asked
            .float
            .run_tapped(&feeds(&asked.batches[at]), &mut seen)
            .map_err(|source| Error::Run { sample: 0, source })?;
    }
    let mut moved = Vec::new();
    for place in places {
        let name = graph.value(place.value).name.clone();
        let rows = &seen.values[&name];
        let Some(task) = Task::of(graph, place, rows, asked) else { continue };
        let found = match asked.recipe.smooth {
            Smooth::Alpha(alpha) => Some((alpha, None)),
            _ => task.best().map(|(alpha, gain)| (alpha, Some(gain))),
        };
        if let Some((alpha, gain)) = found {
            moved.push(match gain {
                Some(gain) => format!("`{name}` (alpha {alpha}, {gain:.1} dB better)"),
                None => format!("`{name}`"),
            });
            done.scaled.extend(place.scale(graph, &task.factors(alpha), "smoothed"));
        }
    }
    match (asked.recipe.smooth, moved.is_empty()) {
        (_, false) => done.notes.push(format!("smooth: spread moved to the weights at {}", moved.join(", "))),
        (Smooth::Alpha(_), true) => done.notes.push("smooth: no activation could be smoothed".to_owned()),
        _ => {}
    }
    Ok(done)
}

/// Rows of an activation.
#[derive(Default)]
struct Rows {
    width: usize,
    /// Largest magnitude of each channel, over all rows to find by.
    largest: Vec<f32>,
    find: Vec<f32>,
    judge: Vec<f32>,
    /// Whether it changed its width, is no f32, or holds what is no number.
    unfit: bool,
}

/// Takes rows of the activations of all places.
#[derive(Default)]
struct Seen {
    values: BTreeMap<String, Rows>,
    judge: bool,
}

impl Tap for Seen {
    fn wants(&self, value: &str) -> bool {
        self.values.contains_key(value)
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        let Some(rows) = self.values.get_mut(value) else { return };
        let width = tensor.shape.last().copied().unwrap_or(0);
        if tensor.dtype != DType::F32 || width == 0 || (rows.width != 0 && rows.width != width) {
            rows.unfit = true;
            return;
        }
        rows.width = width;
        rows.largest.resize(width, 0.0);
        let all = tensor.slice::<f32>();
        rows.unfit |= !all.iter().all(|x| x.is_finite());
        if !self.judge {
            for row in all.chunks_exact(width) {
                rows.largest.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(x.abs()));
            }
        }
        let to = if self.judge { &mut rows.judge } else { &mut rows.find };
        for row in spread(all.len() / width, ROWS) {
            to.extend_from_slice(&all[row * width..(row + 1) * width]);
        }
    }
}

/// How the operand of a product becomes codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    /// Each row with its own range.
    ByRow,
    /// All with one range.
    ByTensor,
    /// Not at all.
    Real,
}

/// A matrix that reads an activation: `[K, N]`.
struct Matrix {
    weights: Array2<f32>,
    form: Form,
    /// Whether each column has a scale.
    by_column: bool,
    max_code: u8,
}

/// An activation and the matrices that read it.
struct Task<'a> {
    recipe: &'a Recipe,
    matrices: Vec<Matrix>,
    find: Array2<f32>,
    judge: Array2<f32>,
    /// Largest magnitude of each channel of the activation and of the weights, in factors: some channels may be one.
    x_largest: Vec<f64>,
    w_largest: Vec<f64>,
}

impl<'a> Task<'a> {
    /// `None` where the activation was not seen, or is no matrix that fits.
    fn of(graph: &Graph, place: &Link, rows: &Rows, asked: Asked<'a>) -> Option<Task<'a>> {
        if rows.unfit || rows.find.is_empty() || !rows.width.is_multiple_of(place.channels) {
            return None;
        }
        let each = rows.width / place.channels;
        let matrix =
            |list: &[f32]| Array2::from_shape_vec((list.len() / rows.width, rows.width), list.to_vec()).ok();
        let mut matrices = Vec::new();
        let mut w_largest = vec![0f64; place.channels];
        let profile = Profile::of(asked.recipe);
        for &n in &place.readers {
            let (operand, axis, _) = weights_of(graph, &graph.nodes[n]).ok()?;
            let tensor = graph.constant(operand)?;
            let (a, b) = (tensor.shape()[0], tensor.shape()[1]);
            let view = Array2::from_shape_vec((a, b), tensor.slice::<f32>().to_vec()).ok()?;
            let weights = if axis == 0 { view.t().as_standard_layout().to_owned() } else { view };
            if weights.nrows() != rows.width {
                return None;
            }
            for (k, row) in weights.outer_iter().enumerate() {
                let largest = row.iter().fold(0f32, |m, w| m.max(w.abs()));
                w_largest[k / each] = w_largest[k / each].max(f64::from(largest));
            }
            let form = match asked.plan.decisions[n] {
                Decision::Dynamic => Form::ByRow,
                Decision::Stored => Form::Real,
                _ => Form::ByTensor,
            };
            let by_tensor = form == Form::ByTensor && profile.matrices_by_tensor;
            matrices.push(Matrix {
                weights,
                form,
                by_column: asked.recipe.weights.per_channel && !by_tensor,
                max_code: match (form, asked.recipe.weights.max_code) {
                    (Form::ByTensor | Form::ByRow, MaxCode::Fixed(code)) => code,
                    _ => MaxCode::MOST,
                },
            });
        }
        let mut x_largest = vec![0f64; place.channels];
        for (k, &largest) in rows.largest.iter().enumerate() {
            x_largest[k / each] = x_largest[k / each].max(f64::from(largest));
        }
        let (find, judge) = (matrix(&rows.find)?, matrix(&rows.judge)?);
        Some(Task { recipe: asked.recipe, matrices, find, judge, x_largest, w_largest })
    }

    /// What the activation is multiplied with: `1 / s`, whose middle is 1. Channels of zeros stay.
    fn factors(&self, alpha: f64) -> Vec<f64> {
        let pairs = || self.x_largest.iter().zip(&self.w_largest);
        let log =
            |(x, w): (&f64, &f64)| (*x > 0.0 && *w > 0.0).then(|| (1.0 - alpha) * w.ln() - alpha * x.ln());
        let known: Vec<f64> = pairs().filter_map(log).collect();
        let middle = known.iter().sum::<f64>() / known.len().max(1) as f64;
        let factor = |log: Option<f64>| {
            log.map_or(1.0, |log| (log - middle).exp().clamp(1.0 / FACTOR_MAX, FACTOR_MAX))
        };
        pairs().map(|pair| factor(log(pair))).collect()
    }

    /// The best exponent and its gain in dB; `None` where none gains enough.
    fn best(&self) -> Option<(f64, f64)> {
        if self.judge.nrows() == 0 {
            return None;
        }
        let one = vec![1.0; self.x_largest.len()];
        let noise = |factors: &[f64], rows: &Array2<f32>| self.noise(rows, factors);
        let before = noise(&one, &self.find)?;
        let mut best: Option<(f64, f64)> = None;
        for alpha in ALPHAS {
            let found = noise(&self.factors(alpha), &self.find)?;
            if best.is_none_or(|(_, so_far)| found < so_far) {
                best = Some((alpha, found));
            }
        }
        let (alpha, found) = best?;
        let gain = |before: f64, after: f64| 10.0 * (before / after.max(f64::MIN_POSITIVE)).log10();
        let by_tensor = self.matrices.iter().any(|matrix| matrix.form == Form::ByTensor);
        let least = if by_tensor { GAIN_BY_TENSOR_DB } else { GAIN_DB };
        if gain(before, found) < least {
            return None;
        }
        let judged = gain(noise(&one, &self.judge)?, noise(&self.factors(alpha), &self.judge)?);
        (judged >= least).then_some((alpha, judged.min(gain(before, found))))
    }

    /// Noise of the results of all matrices, each against its own power, where the channels have these factors. Ranges
    /// come from the rows to find by. `None` where there is nothing to measure.
    fn noise(&self, rows: &Array2<f32>, factors: &[f64]) -> Option<f64> {
        let each = rows.ncols() / factors.len();
        let scaled = |rows: &Array2<f32>| {
            let mut rows = rows.clone();
            for mut row in rows.outer_iter_mut() {
                row.iter_mut().enumerate().for_each(|(k, x)| *x *= factors[k / each] as f32);
            }
            rows
        };
        let x = scaled(rows);
        let mut coded: HashMap<Form, Vec<Array2<f32>>> = HashMap::new();
        let mut sum = 0.0;
        for matrix in &self.matrices {
            let columns = spread(matrix.weights.ncols(), COLUMNS);
            let wanted = rows.dot(&taken(&matrix.weights, &columns));
            let power = power(&wanted);
            if power <= 0.0 {
                continue;
            }
            let operands = coded.entry(matrix.form).or_insert_with(|| match matrix.form {
                Form::ByRow => vec![by_rows(&x)],
                Form::Real => vec![x.clone()],
                Form::ByTensor => {
                    let found = scaled(&self.find);
                    self.ranges(&found).iter().map(|params| through(&x, params)).collect()
                }
            });
            let (real, codes) = matrix.scaled(factors, &columns);
            // The range that is chosen in the end is the one that leaves the least noise, or the only one.
            let noise = operands.iter().map(|x| power_of_difference(&x.dot(&real), &wanted));
            let left = if self.recipe.rounding == Rounding::Optimal { OPTIMAL_LEFT } else { 1.0 };
            let of_weights = left * power_of_difference(&x.dot(&codes), &wanted);
            sum += (noise.fold(f64::INFINITY, f64::min) + of_weights) / power;
        }
        (sum.is_finite() && sum > 0.0).then_some(sum)
    }

    /// The parameters that one range for all can have under the recipe.
    fn ranges(&self, rows: &Array2<f32>) -> Vec<QuantParams> {
        let methods = candidates(&self.recipe.ranges);
        let list: Vec<f32> = rows.iter().copied().collect();
        let tensor = Tensor::from_slice(&[list.len()], &list);
        let mut observed = Observed::default();
        observed.observe(tensor.view(), Samples::One);
        let codes = Profile::of(self.recipe).codes;
        methods.into_iter().map(|method| ranges::choose(&observed, method, codes).params).collect()
    }
}

impl Matrix {
    /// Some columns of the weights where the channels have these factors, and as their codes stand for them.
    fn scaled(&self, factors: &[f64], columns: &[usize]) -> (Array2<f32>, Array2<f32>) {
        let each = self.weights.nrows() / factors.len();
        let mut weights = self.weights.clone();
        for (k, mut row) in weights.outer_iter_mut().enumerate() {
            row.iter_mut().for_each(|w| *w = (f64::from(*w) / factors[k / each]) as f32);
        }
        let shape = [weights.nrows(), weights.ncols()];
        let tensor = Tensor::from_slice(&shape, weights.as_slice().expect("rows lie one after the other"));
        let scales = weights::scales(&tensor, self.by_column.then_some(1), self.max_code);
        let most = f32::from(self.max_code);
        let real = taken(&weights, columns);
        let mut codes = real.clone();
        for mut row in codes.outer_iter_mut() {
            for (w, &column) in row.iter_mut().zip(columns) {
                let scale = scales[column % scales.len()];
                *w = (*w / scale).round_ties_even().clamp(-most, most) * scale;
            }
        }
        (real, codes)
    }
}

fn taken(matrix: &Array2<f32>, columns: &[usize]) -> Array2<f32> {
    Array2::from_shape_fn((matrix.nrows(), columns.len()), |(k, n)| matrix[[k, columns[n]]])
}

/// What is left of rows that go through `u8` codes with a range each: the form of `schemes::dynamic`.
fn by_rows(rows: &Array2<f32>) -> Array2<f32> {
    let mut out = rows.clone();
    for mut row in out.outer_iter_mut() {
        let lo = row.iter().fold(0f32, |m, &x| m.min(x));
        let hi = row.iter().fold(0f32, |m, &x| m.max(x));
        let range = (hi - lo).max(1e-30);
        let (inverse, step) = (255.0 / range, range / 255.0);
        let low = (lo * inverse).round_ties_even();
        row.iter_mut()
            .for_each(|x| *x = ((*x * inverse - low).round_ties_even().clamp(0.0, 255.0) + low) * step);
    }
    out
}

fn through(rows: &Array2<f32>, params: &QuantParams) -> Array2<f32> {
    rows.mapv(|x| params.dequantize(params.quantize(x, 0), 0))
}

fn power(a: &Array2<f32>) -> f64 {
    a.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

fn power_of_difference(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum()
}
