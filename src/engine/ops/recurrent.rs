//! LSTM, GRU and RNN: how a cell is carried over the steps of a sequence. What one step does is in `cells`.

use crate::engine::graph::fact::{Fact, Results, Unfit, needed, operand};
use crate::engine::graph::operator::{Call, Operator, Prepared};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::activation::named;
use super::cells::{Cell, Direction, Kind, Parameters, State};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "LSTM", |call| {
        recurrent(call, Kind::Lstm { input_forget: call.attributes.flag("input_forget", false)? })
    }),
    ("", "GRU", |call| {
        let linear_before_reset = call.attributes.flag("linear_before_reset", false)?;
        recurrent(call, Kind::Gru { linear_before_reset })
    }),
    ("", "RNN", |call| recurrent(call, Kind::Rnn)),
];

/// `x, w, r [, b] [, sequence_lens] [, initial_h] [, initial_c] [, p]`: `x` is `[steps, batch, inputs]`, `w`
/// `[directions, gates × hidden, inputs]`, `r` `[directions, gates × hidden, hidden]`. Gives the hidden state of every
/// step, `[steps, directions, batch, hidden]`, then the last hidden state and (LSTM) cell, `[directions, batch,
/// hidden]`. Where `batch_first`, `x` and the first result begin `[batch, steps`, states `[batch, directions`.
#[derive(Clone, Debug)]
struct Recurrent {
    /// One a direction.
    cells: Vec<Cell>,
    /// For each direction whether it goes from the end to the start.
    reversed: Vec<bool>,
    batch_first: bool,
    hidden: Option<usize>,
}

fn recurrent(call: &Call<'_>, kind: Kind) -> Result<Made, String> {
    let a = call.attributes;
    let reversed = match a.text_or("direction", "forward")? {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => return Err(format!("direction={other} is not supported")),
    };
    let defaults = kind.default_functions();
    let names = match a.texts("activations")? {
        Some(names) => names,
        None => (0..reversed.len()).flat_map(|_| defaults.iter().map(|&n| n.to_owned())).collect(),
    };
    // A file may name the functions of both directions though it has one (the default of RNN does).
    let needed = defaults.len() * reversed.len();
    let names =
        names.get(..needed).ok_or_else(|| format!("{} activations, {needed} are needed", names.len()))?;
    let alphas = a.floats("activation_alpha")?.unwrap_or_default();
    let betas = a.floats("activation_beta")?.unwrap_or_default();
    let functions = named(names, &alphas, &betas)?;
    let clip = a.float("clip")?;
    if let Some(clip) = clip.filter(|c| c.is_nan() || *c <= 0.0) {
        return Err(format!("clip={clip} is not positive"));
    }
    let layout = a.int_or("layout", 0)?;
    if !(0..=1).contains(&layout) {
        return Err(format!("layout={layout} is not supported"));
    }
    let hidden =
        a.int("hidden_size")?.map(|h| usize::try_from(h).map_err(|_| format!("hidden_size={h} is negative")));
    let cell = |functions: &[_]| Cell { kind, functions: functions.to_vec(), clip };
    let cells = functions.chunks_exact(defaults.len()).map(cell).collect();
    let hidden = hidden.transpose()?;
    Ok(Made::new(Recurrent { cells, reversed, batch_first: layout == 1, hidden }))
}

/// The lengths that operands have in common.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    steps: usize,
    batch: usize,
    inputs: usize,
    directions: usize,
    hidden: usize,
}

impl Recurrent {
    /// The sizes, once every operand fits them. `shape` gives the shape of an operand that is there.
    fn sizes<'a>(&self, shape: impl Fn(usize) -> Option<&'a [usize]>) -> Result<Sizes, String> {
        let three = |index: usize, what: &str| {
            let shape = shape(index).ok_or_else(|| format!("input {index} is missing"))?;
            <[usize; 3]>::try_from(shape)
                .map_err(|_| format!("{what} has shape {shape:?}, three dimensions are needed"))
        };
        let [first, second, inputs] = three(0, "X")?;
        let (steps, batch) = if self.batch_first { (second, first) } else { (first, second) };
        let [_, _, hidden] = three(2, "R")?;
        if let Some(said) = self.hidden.filter(|&h| h != hidden) {
            return Err(format!("hidden_size is {said}, R has {hidden}"));
        }
        if hidden == 0 {
            return Err("the hidden size is 0".to_owned());
        }
        let directions = self.reversed.len();
        let kind = self.cells[0].kind;
        let rows = |count: usize| {
            hidden.checked_mul(count).ok_or_else(|| format!("hidden size {hidden} is too large"))
        };
        let gates = rows(kind.gates())?;
        let state = if self.batch_first { [batch, directions, hidden] } else { [directions, batch, hidden] };
        let wanted: [(usize, &str, Vec<usize>); 7] = [
            (1, "W", vec![directions, gates, inputs]),
            (2, "R", vec![directions, gates, hidden]),
            (3, "B", vec![directions, rows(2 * kind.gates())?]),
            (4, "sequence_lens", vec![batch]),
            (5, "initial_h", state.to_vec()),
            (6, "initial_c", state.to_vec()),
            (7, "P", vec![directions, rows(3)?]),
        ];
        for (index, name, want) in wanted {
            match shape(index) {
                Some(got) if got != want => {
                    return Err(format!("{name} has shape {got:?}, {want:?} is needed"));
                }
                _ => {}
            }
        }
        Ok(Sizes { steps, batch, inputs, directions, hidden })
    }

    /// The weights of each direction, packed.
    fn pack(&self, operands: Parameters<'_>, sizes: Sizes) -> Vec<Direction> {
        let pack = |(d, cell): (usize, &Cell)| {
            cell.pack(operands.of(d, sizes.directions), sizes.hidden, sizes.inputs)
        };
        self.cells.iter().enumerate().map(pack).collect()
    }

    fn compute(
        &self,
        packed: &[Direction],
        inputs: &[Option<TensorView<'_>>],
    ) -> Result<Vec<Tensor>, String> {
        let view = |index: usize| inputs.get(index).copied().flatten();
        let sizes = self.sizes(|i| view(i).map(|v| v.shape))?;
        let Sizes { steps, batch, directions, hidden, .. } = sizes;
        let x = view(0).ok_or("input 0 is missing")?.slice::<f32>();
        let lengths = lengths(view(4), sizes)?;
        let floats = |index: usize| view(index).map(|v| v.slice::<f32>());
        let state_shape =
            if self.batch_first { [batch, directions, hidden] } else { [directions, batch, hidden] };
        let place = |d: usize, b: usize| if self.batch_first { b * directions + d } else { d * batch + b };
        let all_shape = match self.batch_first {
            true => [batch, steps, directions, hidden],
            false => [steps, directions, batch, hidden],
        };
        let mut all = Tensor::zeros(DType::F32, &all_shape);
        let mut last = [Tensor::zeros(DType::F32, &state_shape), Tensor::zeros(DType::F32, &state_shape)];
        for (d, (cell, weights)) in self.cells.iter().zip(packed).enumerate() {
            let gates = cell.kind.gates() * hidden;
            let mut projected = vec![0.0; steps * batch * gates];
            weights.project(x, steps * batch, &mut projected);
            let mut state = State::new(batch, hidden, cell.kind);
            for b in 0..batch {
                let at = place(d, b) * hidden;
                let initial = |index: usize| floats(index).map(|v| &v[at..at + hidden]);
                state.set(b, initial(5), initial(6));
            }
            let mut gathered = vec![0.0; batch * gates];
            let longest = lengths.iter().copied().max().unwrap_or(0);
            for step in 0..longest {
                // The step of the sequence that row `b` is at; it stays where it is once its sequence has ended.
                let time = |b: usize| if self.reversed[d] { lengths[b] - 1 - step } else { step };
                let running = |b: &usize| step < lengths[*b];
                for b in (0..batch).filter(running) {
                    let row = if self.batch_first { b * steps + time(b) } else { time(b) * batch + b };
                    gathered[b * gates..][..gates].copy_from_slice(&projected[row * gates..][..gates]);
                }
                cell.step(weights, &mut gathered, &mut state);
                for b in (0..batch).filter(running) {
                    let row = match self.batch_first {
                        true => (b * steps + time(b)) * directions + d,
                        false => (time(b) * directions + d) * batch + b,
                    };
                    let hidden_state = state.keep(b);
                    all.slice_mut::<f32>()[row * hidden..][..hidden].copy_from_slice(hidden_state);
                }
            }
            for b in (0..batch).filter(|&b| lengths[b] > 0) {
                let at = place(d, b) * hidden;
                last[0].slice_mut::<f32>()[at..at + hidden].copy_from_slice(state.hidden(b));
                if let Some(memory) = state.memory(b) {
                    last[1].slice_mut::<f32>()[at..at + hidden].copy_from_slice(memory);
                }
            }
        }
        let [h, c] = last;
        Ok(match self.cells[0].kind {
            Kind::Lstm { .. } => vec![all, h, c],
            _ => vec![all, h],
        })
    }
}

/// The steps of each sequence.
fn lengths(given: Option<TensorView<'_>>, sizes: Sizes) -> Result<Vec<usize>, String> {
    let Some(given) = given else { return Ok(vec![sizes.steps; sizes.batch]) };
    let length = |&n: &i32| {
        let length = usize::try_from(n).ok().filter(|&n| n <= sizes.steps);
        length.ok_or_else(|| format!("a sequence length is {n}, not between 0 and {}", sizes.steps))
    };
    given.slice::<i32>().iter().map(length).collect()
}

impl Operator for Recurrent {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let Sizes { steps, batch, directions, hidden, .. } =
            self.sizes(|i| operand(inputs, i).map(|f| f.shape.as_slice()))?;
        let dtype = needed(inputs, 0)?.dtype;
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(format!("{dtype} is not supported").into());
        }
        for index in [1, 2, 3, 5, 6, 7] {
            if let Some(other) = operand(inputs, index).filter(|f| f.dtype != dtype) {
                return Err(format!("input {index} is {}, X is {dtype}", other.dtype).into());
            }
        }
        if let Some(lengths) = operand(inputs, 4).filter(|f| f.dtype != DType::I32) {
            return Err(format!("sequence_lens is {}, int32 is needed", lengths.dtype).into());
        }
        let (all, state) = match self.batch_first {
            true => (vec![batch, steps, directions, hidden], vec![batch, directions, hidden]),
            false => (vec![steps, directions, batch, hidden], vec![directions, batch, hidden]),
        };
        let mut results = vec![(dtype, all), (dtype, state.clone())];
        if let Kind::Lstm { .. } = self.cells[0].kind {
            results.push((dtype, state));
        }
        Ok(results)
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let view = |index: usize| inputs.get(index).copied().flatten();
        let sizes = self.sizes(|i| view(i).map(|v| v.shape))?;
        let parameters = Parameters::of_operands(|i| view(i).map(|v| v.slice::<f32>()))?;
        self.compute(&self.pack(parameters, sizes), inputs)
    }

    fn prepare(&self, inputs: &[Option<&Fact>]) -> Option<Prepared> {
        let sizes = self.sizes(|i| operand(inputs, i).map(|f| f.shape.as_slice())).ok()?;
        let given = |i: usize| operand(inputs, i);
        let fixed = |f: &Fact| f.dtype == DType::F32 && f.constant.is_some();
        if ![1, 2, 3, 7].iter().all(|&i| given(i).is_none_or(fixed)) {
            return None;
        }
        let data = |i: usize| given(i).and_then(|f| f.constant.as_deref()).map(|t| t.slice::<f32>());
        let packed = self.pack(Parameters::of_operands(data).ok()?, sizes);
        let this = self.clone();
        Some(Box::new(move |inputs, _| this.compute(&packed, inputs)))
    }

    fn opset(&self) -> i64 {
        14
    }
}

#[cfg(test)]
mod tests {
    use super::super::activation::Activation;
    use super::*;

    /// An RNN without a bend: with weights of 1 the hidden state is the sum of what was read.
    fn sums(reversed: bool) -> Recurrent {
        let functions = vec![Activation::Affine { alpha: 1.0, beta: 0.0 }];
        let cells = vec![Cell { kind: Kind::Rnn, functions, clip: None }];
        Recurrent { cells, reversed: vec![reversed], batch_first: false, hidden: None }
    }

    fn check(reversed: bool, lengths: &[i32], want_all: &[f32], want_last: &[f32]) {
        // Two sequences of three steps: 1, 2, 3 and 10, 20, 30.
        let x = Tensor::from_slice(&[3, 2, 1], &[1.0f32, 10.0, 2.0, 20.0, 3.0, 30.0]);
        let one = Tensor::from_slice(&[1, 1, 1], &[1.0f32]);
        let lengths = Tensor::from_slice(&[2], lengths);
        let given = [Some(x.view()), Some(one.view()), Some(one.view()), None, Some(lengths.view())];
        let made = sums(reversed).run(&given, 2).unwrap();
        assert_eq!(made[0].slice::<f32>(), want_all);
        assert_eq!(made[1].slice::<f32>(), want_last);
    }

    #[test]
    fn a_sequence_that_has_ended_keeps_its_state_and_gives_zeros() {
        check(false, &[3, 1], &[1.0, 10.0, 3.0, 0.0, 6.0, 0.0], &[6.0, 10.0]);
        check(false, &[0, 2], &[0.0, 10.0, 0.0, 30.0, 0.0, 0.0], &[0.0, 30.0]);
    }

    #[test]
    fn a_sequence_is_read_backwards_from_its_own_end() {
        check(true, &[3, 2], &[6.0, 30.0, 5.0, 20.0, 3.0, 0.0], &[6.0, 30.0]);
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let computed = |shape: &[usize]| Fact::computed(DType::F32, shape.to_vec());
        let (x, w, r) = (computed(&[3, 2, 4]), computed(&[1, 5, 4]), computed(&[1, 5, 5]));
        assert!(sums(false).infer(&[Some(&x), Some(&w), Some(&r)], 1).is_ok());
        let wrong = computed(&[1, 5, 3]);
        let Err(Unfit::Wrong(text)) = sums(false).infer(&[Some(&x), Some(&wrong), Some(&r)], 1) else {
            panic!("W does not fit X")
        };
        assert!(text.contains("W has shape"), "{text}");
        let lengths = Tensor::from_slice(&[2], &[4i32, 1]);
        let sizes = Sizes { steps: 3, batch: 2, inputs: 1, directions: 1, hidden: 1 };
        assert!(super::lengths(Some(lengths.view()), sizes).is_err());
    }
}
