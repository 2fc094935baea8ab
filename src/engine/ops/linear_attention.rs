//! Operators that carry a state of fixed size along a sequence in the place of attention: LinearAttention and the
//! causal convolution that stands before it.

use crate::engine::graph::fact::{Fact, Results, Unfit, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::kernels::math;
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] =
    &[("", "LinearAttention", linear_attention), ("", "CausalConvWithState", causal_conv)];

/// `q, k, v [, state] [, decay] [, beta]`: `q` is `[batch, steps, q heads × k size]`, `k` `[batch, steps, heads × k
/// size]`, `v` `[batch, steps, heads × v size]`, the state `[batch, heads, k size, v size]`, `decay` `[batch, steps,
/// heads]` or one number for each of `k`, `beta` `[batch, steps, heads or 1]`. For each step
///
/// ```text
/// S = exp(decay) S;  S = S + beta k (v - Sᵀ k)ᵀ;  y = scale · Sᵀ q
/// ```
///
/// without the decay, or without `beta` and what is subtracted, where they are not given.
#[derive(Debug)]
struct LinearAttention {
    q_heads: usize,
    heads: usize,
    scale: f32,
    decays: bool,
    corrects: bool,
}

fn linear_attention(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let heads = |name: &str| {
        let n = a.int(name)?.ok_or_else(|| format!("attribute `{name}` is missing"))?;
        usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(|| format!("{name}={n} is not positive"))
    };
    let (q_heads, heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    if q_heads % heads != 0 {
        return Err(format!("{q_heads} query heads are no multiple of {heads} heads"));
    }
    let (decays, corrects) = match a.text_or("update_rule", "gated_delta")? {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(format!("update_rule={other} is not supported")),
    };
    let both = [("decay", 4, decays), ("beta", 5, corrects)];
    if let Some((name, ..)) = both.iter().find(|(_, index, wanted)| call.has(*index) != *wanted) {
        return Err(format!("input {name} does not fit the update rule"));
    }
    Ok(Made::new(LinearAttention { q_heads, heads, scale: a.float_or("scale", 0.0)?, decays, corrects }))
}

/// The lengths that operands have in common.
struct Sizes {
    batch: usize,
    steps: usize,
    k_size: usize,
    v_size: usize,
    /// Numbers of `decay` and of `beta` for each step.
    decays: usize,
    betas: usize,
}

impl LinearAttention {
    fn sizes<'a>(&self, shape: impl Fn(usize) -> Option<&'a [usize]>) -> Result<Sizes, String> {
        let three = |index: usize| match shape(index) {
            Some(&[batch, steps, width]) => Ok([batch, steps, width]),
            other => Err(format!("input {index} has shape {other:?}, three dimensions are needed")),
        };
        let (q, k, v) = (three(0)?, three(1)?, three(2)?);
        let [batch, steps, width] = q;
        let (k_size, v_size) = (k[2] / self.heads, v[2] / self.heads);
        let fit = k_size.checked_mul(self.q_heads) == Some(width)
            && k == [batch, steps, k_size * self.heads]
            && v == [batch, steps, v_size * self.heads];
        if !fit || k_size == 0 || v_size == 0 {
            return Err(format!("query {q:?}, key {k:?} and value {v:?} do not fit their heads"));
        }
        let state = [batch, self.heads, k_size, v_size];
        if let Some(past) = shape(3).filter(|&past| past != state) {
            return Err(format!("past_state has shape {past:?}, {state:?} is needed"));
        }
        let each_step = |index: usize, wanted: bool, name: &str, widths: [usize; 2]| {
            if !wanted {
                return Ok(0);
            }
            match three(index)? {
                [b, s, width] if [b, s] == [batch, steps] && widths.contains(&width) => Ok(width),
                got => Err(format!("{name} of shape {got:?} does not fit query {q:?}")),
            }
        };
        let decays = each_step(4, self.decays, "decay", [self.heads, self.heads * k_size])?;
        let betas = each_step(5, self.corrects, "beta", [self.heads, 1])?;
        Ok(Sizes { batch, steps, k_size, v_size, decays, betas })
    }
}

impl Operator for LinearAttention {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let sizes = self.sizes(|i| operand(inputs, i).map(|f| f.shape.as_slice()))?;
        only_floats(inputs)?;
        let dtype = needed(inputs, 0)?.dtype;
        let state = operand(inputs, 3).map_or(dtype, |f| f.dtype);
        let Sizes { batch, steps, k_size, v_size, .. } = sizes;
        let width = self.q_heads.checked_mul(v_size).ok_or("the width of the result overflows")?;
        Ok(vec![(dtype, vec![batch, steps, width]), (state, vec![batch, self.heads, k_size, v_size])])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let view = |index: usize| inputs.get(index).copied().flatten();
        let Sizes { batch, steps, k_size, v_size, decays, betas } =
            self.sizes(|i| view(i).map(|v| v.shape))?;
        let floats = |index: usize| view(index).map_or(&[][..], |v| v.slice::<f32>());
        let (q, k, v, decay, beta) = (floats(0), floats(1), floats(2), floats(4), floats(5));
        let state_shape = [batch, self.heads, k_size, v_size];
        let mut state = view(3).map_or_else(|| Tensor::zeros(DType::F32, &state_shape), |s| s.to_tensor());
        let mut y = Tensor::zeros(DType::F32, &[batch, steps, self.q_heads * v_size]);
        let scale = if self.scale == 0.0 { 1.0 / (k_size as f32).sqrt() } else { self.scale };
        let shared = self.q_heads / self.heads;
        let mut recalled = vec![0.0; v_size];
        for (b, head) in (0..batch).flat_map(|b| (0..self.heads).map(move |h| (b, h))) {
            let matrix = k_size * v_size;
            let s = &mut state.slice_mut::<f32>()[(b * self.heads + head) * matrix..][..matrix];
            for row in b * steps..(b + 1) * steps {
                let k = &k[(row * self.heads + head) * k_size..][..k_size];
                let v = &v[(row * self.heads + head) * v_size..][..v_size];
                if self.decays {
                    // One number a head, or one for each number of `k`.
                    let per_key = decays / self.heads;
                    let decay = &decay[row * decays + head * per_key..][..per_key];
                    for (i, line) in s.chunks_exact_mut(v_size).enumerate() {
                        let factor = math::exp(decay[if per_key == 1 { 0 } else { i }]);
                        line.iter_mut().for_each(|x| *x *= factor);
                    }
                }
                recalled.fill(0.0);
                if self.corrects {
                    for (line, k) in s.chunks_exact(v_size).zip(k) {
                        recalled.iter_mut().zip(line).for_each(|(r, x)| *r += k * x);
                    }
                }
                let rate = match betas {
                    0 => 1.0,
                    1 => beta[row],
                    _ => beta[row * betas + head],
                };
                for (line, k) in s.chunks_exact_mut(v_size).zip(k) {
                    for (x, (v, r)) in line.iter_mut().zip(v.iter().zip(&recalled)) {
                        *x += rate * k * (v - r);
                    }
                }
                for q_head in head * shared..(head + 1) * shared {
                    let at = row * self.q_heads + q_head;
                    let out = &mut y.slice_mut::<f32>()[at * v_size..][..v_size];
                    for (line, q) in s.chunks_exact(v_size).zip(&q[at * k_size..][..k_size]) {
                        out.iter_mut().zip(line).for_each(|(y, x)| *y += scale * q * x);
                    }
                }
            }
        }
        Ok(vec![y, state])
    }

    fn opset(&self) -> i64 {
        27
    }
}

/// `x, weight [, bias] [, state]`: `x` is `[batch, channels, length]`, `weight` `[channels, 1, taps]`, the state `[batch,
/// channels, taps − 1]`: what stood before `x`. Gives the convolution of each channel with its taps, and the last `taps
/// − 1` columns for the next call.
#[derive(Debug)]
struct CausalConv {
    silu: bool,
}

fn causal_conv(call: &Call<'_>) -> Result<Made, String> {
    match call.attributes.text_or("activation", "none")? {
        "none" => Ok(Made::new(CausalConv { silu: false })),
        "silu" | "swish" => Ok(Made::new(CausalConv { silu: true })),
        other => Err(format!("activation={other} is not supported")),
    }
}

impl CausalConv {
    /// Batch, channels, length and columns of the state.
    fn sizes<'a>(shape: impl Fn(usize) -> Option<&'a [usize]>) -> Result<[usize; 4], String> {
        let (Some(&[batch, channels, length]), Some(&[outputs, 1, taps])) = (shape(0), shape(1)) else {
            return Err(format!("input and weight have shapes {:?} and {:?}", shape(0), shape(1)));
        };
        let state = taps.checked_sub(1).ok_or("the weight has no tap")?;
        let fits = outputs == channels
            && shape(2).is_none_or(|bias| bias == [channels])
            && shape(3).is_none_or(|past| past == [batch, channels, state]);
        match fits {
            true => Ok([batch, channels, length, state]),
            false => Err(format!("weight, bias and past_state do not fit an input of {channels} channels")),
        }
    }
}

impl Operator for CausalConv {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let [batch, channels, length, state] =
            CausalConv::sizes(|i| operand(inputs, i).map(|f| f.shape.as_slice()))?;
        only_floats(inputs)?;
        let dtype = needed(inputs, 0)?.dtype;
        Ok(vec![(dtype, vec![batch, channels, length]), (dtype, vec![batch, channels, state])])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let view = |index: usize| inputs.get(index).copied().flatten();
        let [batch, channels, length, state] = CausalConv::sizes(|i| view(i).map(|v| v.shape))?;
        let floats = |index: usize| view(index).map(|v| v.slice::<f32>());
        let (x, weight) = (floats(0).ok_or("input 0 is missing")?, floats(1).ok_or("input 1 is missing")?);
        let (bias, past) = (floats(2), floats(3));
        let mut y = Tensor::zeros(DType::F32, &[batch, channels, length]);
        let mut present = Tensor::zeros(DType::F32, &[batch, channels, state]);
        if y.is_empty() && present.is_empty() {
            return Ok(vec![y, present]);
        }
        let mut line = vec![0.0; state + length];
        for row in 0..batch * channels {
            let channel = row % channels;
            match past {
                Some(past) => line[..state].copy_from_slice(&past[row * state..][..state]),
                None => line[..state].fill(0.0),
            }
            line[state..].copy_from_slice(&x[row * length..][..length]);
            let taps = &weight[channel * (state + 1)..][..state + 1];
            let start = bias.map_or(0.0, |bias| bias[channel]);
            for (y, window) in
                y.slice_mut::<f32>()[row * length..][..length].iter_mut().zip(line.windows(state + 1))
            {
                let sum = window.iter().zip(taps).fold(start, |sum, (x, tap)| sum + x * tap);
                *y = if self.silu { sum * math::sigmoid(sum) } else { sum };
            }
            present.slice_mut::<f32>()[row * state..][..state].copy_from_slice(&line[length..]);
        }
        Ok(vec![y, present])
    }

    fn opset(&self) -> i64 {
        27
    }
}

fn only_floats(inputs: &[Option<&Fact>]) -> Result<(), String> {
    let float = |f: &&&Fact| matches!(f.dtype, DType::F32 | DType::F16 | DType::BF16);
    match inputs.iter().flatten().find(|f| !float(f)) {
        None => Ok(()),
        Some(other) => Err(format!("{} is not supported", other.dtype)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_under_a_key_is_read_with_it_and_corrected_once_written_again() {
        let (q, k) = (Tensor::from_slice(&[1, 2, 2], &[1.0f32, 0.0, 1.0, 0.0]), [1.0f32, 0.0, 1.0, 0.0]);
        let k = Tensor::from_slice(&[1, 2, 2], &k);
        let v = Tensor::from_slice(&[1, 2, 1], &[5.0f32, 7.0]);
        let beta = Tensor::from_slice(&[1, 2, 1], &[1.0f32, 1.0]);
        let made = |corrects: bool| {
            let operator = LinearAttention { q_heads: 1, heads: 1, scale: 1.0, decays: false, corrects };
            let given = [Some(q.view()), Some(k.view()), Some(v.view()), None, None, Some(beta.view())];
            operator.run(&given, 2).unwrap()[0].slice::<f32>().to_vec()
        };
        assert_eq!(made(false), [5.0, 12.0]);
        assert_eq!(made(true), [5.0, 7.0]);
    }

    #[test]
    fn a_convolution_in_two_calls_is_that_in_one() {
        let weight = Tensor::from_slice(&[1, 1, 3], &[1.0f32, 10.0, 100.0]);
        let conv = |x: &[f32], past: Option<&Tensor>| {
            let x = Tensor::from_slice(&[1, 1, x.len()], x);
            let given = [Some(x.view()), Some(weight.view()), None, past.map(Tensor::view)];
            CausalConv { silu: false }.run(&given, 2).unwrap()
        };
        let whole = conv(&[1.0, 2.0, 3.0], None);
        let first = conv(&[1.0], None);
        let second = conv(&[2.0, 3.0], Some(&first[1]));
        assert_eq!(whole[0].slice::<f32>(), [100.0, 210.0, 321.0]);
        assert_eq!(second[0].slice::<f32>(), [210.0, 321.0]);
        assert_eq!(whole[1], second[1]);
    }
}
