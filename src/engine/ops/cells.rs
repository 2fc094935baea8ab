//! One step of an LSTM, a GRU and an RNN, for all sequences of a batch at once.

use crate::engine::kernels::isa::Isa;

use super::activation::Activation;
use super::matrix::Matrix;

/// Which cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `h' = f(gate)`.
    Rnn,
    /// Gates z, r, h.
    Gru { linear_before_reset: bool },
    /// Gates i, o, f, c.
    Lstm { input_forget: bool },
}

impl Kind {
    /// Rows of the weights for each hidden number.
    pub(super) fn gates(self) -> usize {
        match self {
            Kind::Rnn => 1,
            Kind::Gru { .. } => 3,
            Kind::Lstm { .. } => 4,
        }
    }

    /// The functions of one direction where the file names none.
    pub(super) fn default_functions(self) -> &'static [&'static str] {
        match self {
            Kind::Rnn => &["Tanh"],
            Kind::Gru { .. } => &["Sigmoid", "Tanh"],
            Kind::Lstm { .. } => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

/// A cell with its functions.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) kind: Kind,
    /// As many as [`Kind::default_functions`].
    pub(super) functions: Vec<Activation>,
    /// Bound of what goes into the functions of the gates.
    pub(super) clip: Option<f32>,
}

/// The weights as the file has them.
#[derive(Clone, Copy)]
pub(super) struct Parameters<'a> {
    input: &'a [f32],
    recurrence: &'a [f32],
    bias: Option<&'a [f32]>,
    peepholes: Option<&'a [f32]>,
}

impl<'a> Parameters<'a> {
    /// From operands, by their index.
    pub(super) fn of_operands(data: impl Fn(usize) -> Option<&'a [f32]>) -> Result<Parameters<'a>, String> {
        let input = data(1).ok_or("input 1 is missing")?;
        let recurrence = data(2).ok_or("input 2 is missing")?;
        Ok(Parameters { input, recurrence, bias: data(3), peepholes: data(7) })
    }

    /// The part of direction `d` of `count`.
    pub(super) fn of(self, d: usize, count: usize) -> Parameters<'a> {
        let part = |all: &'a [f32]| &all[d * (all.len() / count)..][..all.len() / count];
        Parameters {
            input: part(self.input),
            recurrence: part(self.recurrence),
            bias: self.bias.map(part),
            peepholes: self.peepholes.map(part),
        }
    }
}

/// The packed weights of one direction.
pub(super) struct Direction {
    input: Matrix,
    /// `[gates × hidden]`: what can be added before the steps begin.
    bias: Vec<f32>,
    /// All gates; of a GRU that resets first z and r, then h.
    recurrence: Vec<Matrix>,
    /// What is added to the recurrence of each gate.
    recurrence_bias: Option<Vec<f32>>,
    /// i, o, f.
    peepholes: Option<Vec<f32>>,
}

impl Direction {
    /// `x · W^T + bias` of all steps: `x` is `[rows, inputs]`, `out` `[rows, gates × hidden]`.
    pub(super) fn project(&self, x: &[f32], rows: usize, out: &mut [f32]) {
        self.input.multiply(x, rows, Some(&self.bias), out);
    }
}

/// The state of all sequences of a batch, and room for the next one.
pub(super) struct State {
    batch: usize,
    size: usize,
    h: Vec<f32>,
    c: Vec<f32>,
    next_h: Vec<f32>,
    next_c: Vec<f32>,
    /// What the recurrence gives, `[batch, gates × hidden]`.
    room: Vec<f32>,
}

impl State {
    /// Zeros.
    pub(super) fn new(batch: usize, size: usize, kind: Kind) -> State {
        let zeros = || vec![0.0; batch * size];
        let memory = || if matches!(kind, Kind::Lstm { .. }) { zeros() } else { Vec::new() };
        let room = vec![0.0; batch * size * kind.gates()];
        State { batch, size, h: zeros(), c: memory(), next_h: zeros(), next_c: memory(), room }
    }

    /// Sets the state of sequence `b` before the first step.
    pub(super) fn set(&mut self, b: usize, h: Option<&[f32]>, c: Option<&[f32]>) {
        let range = b * self.size..(b + 1) * self.size;
        if let Some(h) = h {
            self.h[range.clone()].copy_from_slice(h);
        }
        if let Some(c) = c
            && !self.c.is_empty()
        {
            self.c[range].copy_from_slice(c);
        }
    }

    /// Takes the last step of sequence `b` as its state, and gives the hidden one.
    pub(super) fn keep(&mut self, b: usize) -> &[f32] {
        let range = b * self.size..(b + 1) * self.size;
        self.h[range.clone()].copy_from_slice(&self.next_h[range.clone()]);
        if !self.c.is_empty() {
            self.c[range.clone()].copy_from_slice(&self.next_c[range.clone()]);
        }
        &self.h[range]
    }

    /// The hidden state of sequence `b`.
    pub(super) fn hidden(&self, b: usize) -> &[f32] {
        &self.h[b * self.size..][..self.size]
    }

    /// The cell of sequence `b`, where there is one.
    pub(super) fn memory(&self, b: usize) -> Option<&[f32]> {
        (!self.c.is_empty()).then(|| &self.c[b * self.size..][..self.size])
    }
}

impl Cell {
    /// Packs the weights of one direction.
    pub(super) fn pack(&self, p: Parameters<'_>, hidden: usize, inputs: usize) -> Direction {
        let gates = self.kind.gates();
        let rows = gates * hidden;
        let mut bias = vec![0.0; rows];
        let mut recurrence_bias = None;
        if let Some(both) = p.bias {
            let (input, recurrence) = both.split_at(rows);
            bias.copy_from_slice(input);
            // The hidden gate of a GRU that resets last multiplies its second bias too: that one waits.
            let reset_last = matches!(self.kind, Kind::Gru { linear_before_reset: true });
            let early = if reset_last { 2 * hidden } else { rows };
            bias[..early].iter_mut().zip(recurrence).for_each(|(b, r)| *b += r);
            if reset_last {
                let mut late = vec![0.0; rows];
                late[early..].copy_from_slice(&recurrence[early..]);
                recurrence_bias = Some(late);
            }
        }
        let recurrence = match self.kind {
            Kind::Gru { linear_before_reset: false } => {
                let (zr, h) = p.recurrence.split_at(2 * hidden * hidden);
                vec![Matrix::of_transpose(zr, 2 * hidden, hidden), Matrix::of_transpose(h, hidden, hidden)]
            }
            _ => vec![Matrix::of_transpose(p.recurrence, rows, hidden)],
        };
        Direction {
            input: Matrix::of_transpose(p.input, rows, inputs),
            bias,
            recurrence,
            recurrence_bias,
            peepholes: p.peepholes.map(<[f32]>::to_vec),
        }
    }

    /// One step: `gates` is the projection of the input, `[batch, gates × hidden]`, and is used up.
    pub(super) fn step(&self, weights: &Direction, gates: &mut [f32], state: &mut State) {
        match self.kind {
            Kind::Rnn => self.rnn(weights, gates, state),
            Kind::Gru { linear_before_reset } => self.gru(weights, gates, state, linear_before_reset),
            Kind::Lstm { input_forget } => self.lstm(weights, gates, state, input_forget),
        }
    }

    /// Function `index` of what is clipped, in its place.
    fn function(&self, isa: Isa, index: usize, xs: &mut [f32]) {
        if let Some(clip) = self.clip {
            xs.iter_mut().for_each(|x| *x = x.clamp(-clip, clip));
        }
        self.functions[index].apply(isa, xs);
    }

    fn rnn(&self, weights: &Direction, gates: &mut [f32], state: &mut State) {
        weights.recurrence[0].multiply(&state.h, state.batch, None, &mut state.room);
        add(gates, &state.room);
        self.function(Isa::best(), 0, gates);
        state.next_h.copy_from_slice(gates);
    }

    fn lstm(&self, weights: &Direction, gates: &mut [f32], state: &mut State, input_forget: bool) {
        let (isa, size) = (Isa::best(), state.size);
        weights.recurrence[0].multiply(&state.h, state.batch, None, &mut state.room);
        add(gates, &state.room);
        for b in 0..state.batch {
            let [i, o, f, g] = parts(&mut gates[b * 4 * size..][..4 * size], size);
            let range = b * size..(b + 1) * size;
            let c = &state.c[range.clone()];
            let (next_h, next_c) = (&mut state.next_h[range.clone()], &mut state.next_c[range]);
            let peephole = weights.peepholes.as_ref().map(|p| [0, 1, 2].map(|k| &p[k * size..][..size]));
            if let Some([pi, _, pf]) = peephole {
                add_products(i, pi, c);
                add_products(f, pf, c);
            }
            self.function(isa, 0, i);
            match input_forget {
                true => f.iter_mut().zip(i.iter()).for_each(|(f, i)| *f = 1.0 - i),
                false => self.function(isa, 0, f),
            }
            self.function(isa, 1, g);
            for (k, next) in next_c.iter_mut().enumerate() {
                *next = f[k] * c[k] + i[k] * g[k];
            }
            if let Some([_, po, _]) = peephole {
                add_products(o, po, next_c);
            }
            self.function(isa, 0, o);
            next_h.copy_from_slice(next_c);
            // The cell itself is not clipped here: the text of the operator leaves it open, ONNX Runtime does not.
            self.functions[2].apply(isa, next_h);
            next_h.iter_mut().zip(o.iter()).for_each(|(h, o)| *h *= o);
        }
    }

    fn gru(&self, weights: &Direction, gates: &mut [f32], state: &mut State, linear_before_reset: bool) {
        let (isa, size, batch) = (Isa::best(), state.size, state.batch);
        let width = if linear_before_reset { 3 * size } else { 2 * size };
        let recurrence = &mut state.room[..batch * width];
        weights.recurrence[0].multiply(&state.h, batch, weights.recurrence_bias.as_deref(), recurrence);
        for b in 0..batch {
            let (zr, h) = gates[b * 3 * size..][..3 * size].split_at_mut(2 * size);
            let row = &recurrence[b * width..][..width];
            add(zr, &row[..2 * size]);
            self.function(isa, 0, zr);
            match linear_before_reset {
                true => add_products(h, &zr[size..], &row[2 * size..]),
                false => {
                    let reset = state.h[b * size..][..size].iter().zip(&zr[size..]).map(|(h, r)| h * r);
                    state.next_h[b * size..][..size].iter_mut().zip(reset).for_each(|(y, x)| *y = x);
                }
            }
        }
        if !linear_before_reset {
            let recurrence = &mut state.room[..batch * size];
            weights.recurrence[1].multiply(&state.next_h, batch, None, recurrence);
            for b in 0..batch {
                add(&mut gates[b * 3 * size + 2 * size..][..size], &recurrence[b * size..][..size]);
            }
        }
        for b in 0..batch {
            let (zr, h) = gates[b * 3 * size..][..3 * size].split_at_mut(2 * size);
            self.function(isa, 1, h);
            let previous = &state.h[b * size..][..size];
            for (k, next) in state.next_h[b * size..][..size].iter_mut().enumerate() {
                *next = (1.0 - zr[k]) * h[k] + zr[k] * previous[k];
            }
        }
    }
}

/// The four gates of one row.
fn parts(row: &mut [f32], size: usize) -> [&mut [f32]; 4] {
    let (i, rest) = row.split_at_mut(size);
    let (o, rest) = rest.split_at_mut(size);
    let (f, g) = rest.split_at_mut(size);
    [i, o, f, g]
}

fn add(xs: &mut [f32], ys: &[f32]) {
    xs.iter_mut().zip(ys).for_each(|(x, y)| *x += y);
}

fn add_products(xs: &mut [f32], a: &[f32], b: &[f32]) {
    xs.iter_mut().zip(a.iter().zip(b)).for_each(|(x, (a, b))| *x += a * b);
}
