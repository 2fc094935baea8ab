//! Rotary position embeddings: ONNX's (opset 23) and that of com.microsoft.

use crate::engine::graph::fact::{Fact, Results, Unfit, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "RotaryEmbedding", |call| rotary(call, Operands { positions: 3, cos: 1, sin: 2 })),
    ("com.microsoft", "RotaryEmbedding", |call| rotary(call, Operands { positions: 1, cos: 2, sin: 3 })),
];

/// Where the operands stand.
#[derive(Clone, Copy, Debug)]
struct Operands {
    positions: usize,
    cos: usize,
    sin: usize,
}

/// `x, cos, sin [, positions]`: `x` is `[batch, heads, length, size]` or `[batch, length, heads × size]`. With
/// positions, `[batch, length]` or one first position, `cos` and `sin` are tables `[places, turned / 2]`; without
/// them they are `[batch, length, turned / 2]`.
#[derive(Debug)]
struct Rotary {
    operands: Operands,
    heads: Option<usize>,
    /// How much of a head is turned; all of it where `None`.
    turned: Option<usize>,
    interleaved: bool,
}

fn rotary(call: &Call<'_>, operands: Operands) -> Result<Made, String> {
    let a = call.attributes;
    let size = |name: &str| {
        let n = a.int_or(name, 0)?;
        usize::try_from(n).map(|n| (n > 0).then_some(n)).map_err(|_| format!("{name}={n} is negative"))
    };
    a.only("is_packed_batching", 0)?;
    if let Some(scale) = a.float("scale")?.filter(|&s| s != 1.0) {
        return Err(format!("scale={scale} is not supported"));
    }
    Ok(Made::new(Rotary {
        operands,
        heads: size("num_heads")?,
        turned: size("rotary_embedding_dim")?,
        interleaved: a.flag("interleaved", false)?,
    }))
}

/// The lengths that operands have in common.
struct Sizes {
    batch: usize,
    heads: usize,
    length: usize,
    size: usize,
    /// Half of what is turned of a head.
    half: usize,
    /// Rows of the tables, where positions choose them.
    places: Option<usize>,
    flat: bool,
}

impl Rotary {
    fn sizes<'a>(&self, shape: impl Fn(usize) -> Option<&'a [usize]>) -> Result<Sizes, String> {
        let need = |index: usize| shape(index).ok_or_else(|| format!("input {index} is missing"));
        let (cos, sin) = (need(self.operands.cos)?, need(self.operands.sin)?);
        let (batch, heads, length, size, flat) = match *need(0)? {
            [batch, heads, length, size] => (batch, heads, length, size, false),
            [batch, length, width] => {
                // Files of com.microsoft leave the heads out where the whole head is turned: the tables tell its size.
                let from_tables =
                    || cos.last().map(|half| half * 2).filter(|&s| s > 0 && self.turned.is_none());
                let heads = self.heads.or_else(|| from_tables().map(|size| width / size)).filter(|&h| h > 0);
                let heads = heads.ok_or("X has three dimensions and num_heads is missing")?;
                if width % heads != 0 {
                    return Err(format!("the last dimension of X, {width}, is no multiple of {heads} heads"));
                }
                (batch, heads, length, width / heads, true)
            }
            ref other => return Err(format!("X has shape {other:?}, three or four dimensions are needed")),
        };
        let turned = self.turned.unwrap_or(size);
        if turned > size || !turned.is_multiple_of(2) {
            return Err(format!("{turned} of a head's {size} numbers cannot be turned in pairs"));
        }
        let half = turned / 2;
        let places = match shape(self.operands.positions) {
            Some(positions) => {
                if positions != [batch, length] && positions.iter().product::<usize>() != 1 {
                    return Err(format!(
                        "position_ids has shape {positions:?}, [{batch}, {length}] is needed"
                    ));
                }
                Some(cos.first().copied().unwrap_or(0))
            }
            None => None,
        };
        let want = places.map_or_else(|| vec![batch, length, half], |places| vec![places, half]);
        if cos != want || sin != want {
            return Err(format!(
                "cos_cache and sin_cache have shapes {cos:?} and {sin:?}, {want:?} is needed"
            ));
        }
        Ok(Sizes { batch, heads, length, size, half, places, flat })
    }

    /// One head of one step: pairs `(a, b)` become `(a cos − b sin, a sin + b cos)`.
    fn turn(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        let half = cos.len();
        for (i, (cos, sin)) in cos.iter().zip(sin).enumerate() {
            let (a, b) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, half + i) };
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
        }
    }
}

impl Operator for Rotary {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        self.sizes(|i| operand(inputs, i).map(|f| f.shape.as_slice()))?;
        let x = needed(inputs, 0)?;
        for dtype in [0, self.operands.cos, self.operands.sin].map(|i| operand(inputs, i).map(|f| f.dtype)) {
            if !matches!(dtype, Some(DType::F32 | DType::F16 | DType::BF16)) {
                return Err("only float32, float16 and bfloat16 are supported".into());
            }
        }
        if let Some(positions) = operand(inputs, self.operands.positions).filter(|f| f.dtype != DType::I64) {
            return Err(format!("position_ids is {}, int64 is needed", positions.dtype).into());
        }
        Ok(vec![(x.dtype, x.shape.clone())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let view = |index: usize| inputs.get(index).copied().flatten();
        let Sizes { batch, heads, length, size, half, places, flat } =
            self.sizes(|i| view(i).map(|v| v.shape))?;
        let floats = |index: usize| view(index).map(|v| v.slice::<f32>()).ok_or("an input is missing");
        let (cos, sin) = (floats(self.operands.cos)?, floats(self.operands.sin)?);
        let positions = view(self.operands.positions).map(|p| p.slice::<i64>());
        let mut y = view(0).ok_or("input 0 is missing")?.to_tensor();
        if y.is_empty() {
            return Ok(vec![y]);
        }
        for (sample, step) in (0..batch).flat_map(|b| (0..length).map(move |s| (b, s))) {
            let row = match (positions, places) {
                (Some(positions), Some(places)) => {
                    // A single position is that of the first step.
                    let position = match positions {
                        [first] => first.saturating_add(step as i64),
                        all => all[sample * length + step],
                    };
                    let row = usize::try_from(position).ok().filter(|&p| p < places);
                    row.ok_or_else(|| format!("position {position} is outside of tables with {places} rows"))?
                }
                _ => sample * length + step,
            };
            let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
            for head in 0..heads {
                let at = match flat {
                    true => ((sample * length + step) * heads + head) * size,
                    false => ((sample * heads + head) * length + step) * size,
                };
                self.turn(&mut y.slice_mut::<f32>()[at..at + size], cos, sin);
            }
        }
        Ok(vec![y])
    }

    fn opset(&self) -> i64 {
        23
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_swaps_the_numbers_of_a_pair() {
        let rotary = |interleaved| Rotary {
            operands: Operands { positions: 3, cos: 1, sin: 2 },
            heads: Some(1),
            turned: None,
            interleaved,
        };
        let x = Tensor::from_slice(&[1, 1, 4], &[1.0f32, 2.0, 3.0, 4.0]);
        let (cos, sin) = (
            Tensor::from_slice(&[2, 2], &[1.0f32, 1.0, 0.0, 0.0]),
            Tensor::from_slice(&[2, 2], &[0.0f32, 0.0, 1.0, 1.0]),
        );
        let run = |interleaved, position: i64| {
            let position = Tensor::from_slice(&[1, 1], &[position]);
            let given = [Some(x.view()), Some(cos.view()), Some(sin.view()), Some(position.view())];
            rotary(interleaved).run(&given, 1).map(|made| made[0].slice::<f32>().to_vec())
        };
        assert_eq!(run(false, 0).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(run(false, 1).unwrap(), [-3.0, -4.0, 1.0, 2.0]);
        assert_eq!(run(true, 1).unwrap(), [-2.0, 1.0, -4.0, 3.0]);
        assert!(run(true, 2).unwrap_err().contains("position 2"));
        assert!(run(true, -1).unwrap_err().contains("position -1"));
    }
}
