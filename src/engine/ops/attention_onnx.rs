//! ONNX's own Attention (opset 23 and later).

use crate::engine::graph::fact::{Fact, Results, Unfit, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::attention::{Attention, Rows, Stage, past_length};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("", "Attention", attention)];

/// `q, k, v [, mask] [, past_key] [, past_value] [, kv_lengths]`: each of the first three `[batch, heads, length,
/// size]`, or `[batch, length, heads × size]`. Gives the result in the form of `q`, keys and values with those of the
/// past before them, and one stage on the way, `[batch, heads, queries, keys]`.
#[derive(Debug)]
struct OnnxAttention {
    causal: bool,
    scale: Option<f32>,
    cap: f32,
    shown: Stage,
    q_heads: Option<usize>,
    kv_heads: Option<usize>,
}

fn attention(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let heads = |name: &str| match a.int(name)? {
        None => Ok(None),
        Some(n) => usize::try_from(n)
            .ok()
            .filter(|&n| n > 0)
            .map(Some)
            .ok_or_else(|| format!("{name}={n} is not positive")),
    };
    let shown = match a.int_or("qk_matmul_output_mode", 0)? {
        0 => Stage::Products,
        1 => Stage::Capped,
        2 => Stage::Masked,
        3 => Stage::Probabilities,
        mode => return Err(format!("qk_matmul_output_mode={mode} is not supported")),
    };
    // The softmax is computed in float32, which holds every half; double would need more.
    if a.int("softmax_precision")? == Some(11) {
        return Err("softmax_precision=11 (double) is not supported".to_owned());
    }
    Ok(Made::new(OnnxAttention {
        causal: a.flag("is_causal", false)?,
        scale: a.float("scale")?,
        cap: a.float_or("softcap", 0.0)?,
        shown,
        q_heads: heads("q_num_heads")?,
        kv_heads: heads("kv_num_heads")?,
    }))
}

/// The lengths that operands have in common.
struct Sizes {
    /// `[batch, heads, length, size]`.
    q: [usize; 4],
    k: [usize; 4],
    v: [usize; 4],
    past: usize,
    keys: usize,
    /// Whether heads lie within rows.
    flat: bool,
}

impl OnnxAttention {
    fn sizes<'a>(&self, shape: impl Fn(usize) -> Option<&'a [usize]>) -> Result<Sizes, String> {
        let four = |index: usize, name: &str, heads: Option<usize>, attribute: &str| match *shape(index)
            .ok_or_else(|| format!("input {index} is missing"))?
        {
            [batch, heads, length, size] => Ok([batch, heads, length, size]),
            [batch, length, width] => {
                let heads =
                    heads.ok_or_else(|| format!("{name} has three dimensions and {attribute} is missing"))?;
                match width % heads {
                    0 => Ok([batch, heads, length, width / heads]),
                    _ => {
                        Err(format!("the last dimension of {name}, {width}, is no multiple of {heads} heads"))
                    }
                }
            }
            ref other => Err(format!("{name} has shape {other:?}, three or four dimensions are needed")),
        };
        let q = four(0, "Q", self.q_heads, "q_num_heads")?;
        let k = four(1, "K", self.kv_heads, "kv_num_heads")?;
        let v = four(2, "V", self.kv_heads, "kv_num_heads")?;
        if q[0] != k[0] || k[..3] != v[..3] || q[3] != k[3] || k[1] == 0 || q[1] % k[1] != 0 {
            return Err(format!("heads of Q {q:?}, K {k:?} and V {v:?} do not fit each other"));
        }
        let (key, value) = (shape(4), shape(5));
        let past = past_length(key, value, k, v).ok_or_else(|| {
            format!("past_key and past_value of shapes {key:?} and {value:?} do not fit K and V")
        })?;
        if let Some(lengths) = shape(6) {
            if lengths != [q[0]] {
                return Err(format!("nonpad_kv_seqlen has shape {lengths:?}, [{}] is needed", q[0]));
            }
            if past > 0 {
                return Err("nonpad_kv_seqlen together with past_key is not supported".to_owned());
            }
        }
        let keys = past.checked_add(k[2]).ok_or("the number of keys overflows")?;
        if let Some(mask) = shape(3) {
            let fits = |(have, most): (&usize, usize)| *have == 1 || *have == most;
            let leading = mask.iter().rev().skip(1).zip([q[2], q[1], q[0]]).all(fits);
            let last = mask.last().is_some_and(|&n| n <= keys);
            if mask.len() > 4 || !leading || !last {
                return Err(format!(
                    "attn_mask of shape {mask:?} does not fit [{}, {}, {}, {keys}]",
                    q[0], q[1], q[2]
                ));
            }
        }
        let flat = shape(0).is_some_and(|s| s.len() == 3);
        Ok(Sizes { q, k, v, past, keys, flat })
    }
}

impl Operator for OnnxAttention {
    fn infer(&self, inputs: &[Option<&Fact>], outputs: usize) -> Result<Results, Unfit> {
        let sizes = self.sizes(|i| operand(inputs, i).map(|f| f.shape.as_slice()))?;
        let (q, v) = (needed(inputs, 0)?.dtype, needed(inputs, 2)?.dtype);
        for dtype in [0, 1, 2, 4, 5].iter().filter_map(|&i| operand(inputs, i)).map(|f| f.dtype) {
            if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
                return Err(format!("{dtype} is not supported").into());
            }
        }
        if let Some(mask) = operand(inputs, 3)
            && !matches!(mask.dtype, DType::Bool | DType::F32 | DType::F16 | DType::BF16)
        {
            return Err(format!("a mask of {} is not supported", mask.dtype).into());
        }
        if let Some(lengths) = operand(inputs, 6).filter(|f| f.dtype != DType::I64) {
            return Err(format!("nonpad_kv_seqlen is {}, int64 is needed", lengths.dtype).into());
        }
        let Sizes {
            q: [batch, heads, queries, _],
            k: [_, kv_heads, _, k_size],
            v: [.., v_size],
            keys,
            flat,
            ..
        } = sizes;
        let width = heads.checked_mul(v_size).ok_or("the width of the result overflows")?;
        let y = if flat { vec![batch, queries, width] } else { vec![batch, heads, queries, v_size] };
        let mut results = vec![
            (q, y),
            (needed(inputs, 1)?.dtype, vec![batch, kv_heads, keys, k_size]),
            (v, vec![batch, kv_heads, keys, v_size]),
            (q, vec![batch, heads, queries, keys]),
        ];
        results.truncate(outputs.max(1));
        Ok(results)
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], outputs: usize) -> Result<Vec<Tensor>, String> {
        let view = |index: usize| inputs.get(index).copied().flatten();
        let sizes = self.sizes(|i| view(i).map(|v| v.shape))?;
        let rows = |index: usize, shape: [usize; 4]| {
            let x = view(index).ok_or_else(|| format!("input {index} is missing"))?;
            let data = x.slice::<f32>();
            Ok::<_, String>(if x.shape.len() == 3 {
                Rows::length_first(data, shape)
            } else {
                Rows::heads_first(data, shape)
            })
        };
        let (q, mut k, mut v) = (rows(0, sizes.q)?, rows(1, sizes.k)?, rows(2, sizes.v)?);
        let keys = sizes.keys;
        let mut present = None;
        if outputs > 1 || view(4).is_some() {
            let past = |index: usize| view(index).map(|p| p.slice::<f32>());
            present = Some((k.appended(past(4)), v.appended(past(5))));
        }
        let long = |[batch, heads, _, size]: [usize; 4]| [batch, heads, keys, size];
        let (k_shape, v_shape) = (long(sizes.k), long(sizes.v));
        if let Some((all_k, all_v)) = &present {
            (k, v) = (Rows::heads_first(all_k, k_shape), Rows::heads_first(all_v, v_shape));
        }
        let lengths = view(6).map(|l| l.slice::<i64>());
        let masks = view(3).map(|m| Mask::new(m, sizes.q));
        let add = |at: [usize; 3], row: &mut [f32]| {
            if let Some(mask) = &masks {
                mask.add(at, row);
            }
            if let Some(lengths) = lengths {
                let length = usize::try_from(lengths[at[0]]).unwrap_or(0);
                row.iter_mut().skip(length).for_each(|x| *x = f32::NEG_INFINITY);
            }
        };
        let scale = self.scale.unwrap_or(1.0 / (sizes.q[3] as f32).sqrt());
        let causal = self.causal.then_some(sizes.past);
        let shown = (outputs > 3).then_some(self.shown);
        let made = Attention { q, k, v, scale, cap: self.cap, causal, shown }.run(&add);
        let [batch, heads, queries, _] = sizes.q;
        let size = sizes.v[3];
        let mut results = vec![match sizes.flat {
            true => Tensor::from_slice(&[batch, queries, heads * size], &made.length_first(heads, size)),
            false => Tensor::from_slice(&[batch, heads, queries, size], &made.heads_first()),
        }];
        if let Some((k, v)) = present {
            results.push(Tensor::from_slice(&k_shape, &k));
            results.push(Tensor::from_slice(&v_shape, &v));
        }
        if outputs > 3 {
            results.push(Tensor::from_slice(&[batch, heads, queries, keys], &made.shown));
        }
        Ok(results)
    }

    fn opset(&self) -> i64 {
        24
    }
}

/// A mask that broadcasts to `[batch, heads, queries, keys]`; keys beyond its last column are hidden.
struct Mask<'a> {
    view: TensorView<'a>,
    /// Elements from one sample, head and query to the next.
    strides: [usize; 3],
    columns: usize,
}

impl<'a> Mask<'a> {
    fn new(view: TensorView<'a>, [batch, heads, queries, _]: [usize; 4]) -> Mask<'a> {
        let columns = view.shape.last().copied().unwrap_or(1);
        let mut strides = [0; 3];
        let mut elements = columns;
        for (axis, (&length, _)) in view.shape.iter().rev().skip(1).zip([queries, heads, batch]).enumerate() {
            strides[2 - axis] = if length == 1 { 0 } else { elements };
            elements *= length;
        }
        Mask { view, strides, columns }
    }

    fn add(&self, at: [usize; 3], row: &mut [f32]) {
        let start: usize = at.iter().zip(self.strides).map(|(i, stride)| i * stride).sum();
        let (known, beyond) = row.split_at_mut(self.columns.min(row.len()));
        match self.view.dtype {
            DType::Bool => {
                let keep = &self.view.slice::<u8>()[start..][..known.len()];
                for (x, &keep) in known.iter_mut().zip(keep) {
                    *x = if keep == 0 { f32::NEG_INFINITY } else { *x };
                }
            }
            _ => {
                let add = &self.view.slice::<f32>()[start..][..known.len()];
                known.iter_mut().zip(add).for_each(|(x, add)| *x += add);
            }
        }
        beyond.fill(f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator() -> OnnxAttention {
        let heads = (Some(2), Some(1));
        OnnxAttention {
            causal: false,
            scale: Some(1.0),
            cap: 0.0,
            shown: Stage::Masked,
            q_heads: heads.0,
            kv_heads: heads.1,
        }
    }

    #[test]
    fn a_mask_broadcasts_and_hides_what_lies_beyond_its_columns() {
        // Two query heads share one head of keys; the mask has a row for each head and two of three columns.
        let q = Tensor::from_slice(&[1, 1, 2], &[1.0f32, 2.0]);
        let k = Tensor::from_slice(&[1, 3, 1], &[1.0f32, 1.0, 1.0]);
        let v = Tensor::from_slice(&[1, 3, 1], &[10.0f32, 20.0, 30.0]);
        let hidden = f32::NEG_INFINITY;
        let float = Tensor::from_slice(&[2, 1, 2], &[hidden, 0.0, 0.0, 0.0]);
        let keep = Tensor::from_slice(&[2, 1, 2], &[0u8, 1, 1, 1]).retyped(DType::Bool);
        for mask in [float, keep] {
            let given = [Some(q.view()), Some(k.view()), Some(v.view()), Some(mask.view())];
            let made = operator().run(&given, 4).unwrap();
            assert_eq!(made[0].slice::<f32>(), [20.0, 15.0]);
            assert_eq!(made[3].slice::<f32>(), [hidden, 1.0, hidden, 2.0, 2.0, hidden]);
        }
    }

    #[test]
    fn keys_of_the_past_come_first_and_a_length_hides_the_last() {
        let q = Tensor::from_slice(&[1, 1, 2], &[1.0f32, 1.0]);
        let new = Tensor::from_slice(&[1, 1, 1], &[3.0f32]);
        let past = Tensor::from_slice(&[1, 1, 2, 1], &[1.0f32, 2.0]);
        let given =
            [Some(q.view()), Some(new.view()), Some(new.view()), None, Some(past.view()), Some(past.view())];
        let made = operator().run(&given, 3).unwrap();
        assert_eq!(made[1].slice::<f32>(), [1.0, 2.0, 3.0]);
        let (cache, length) =
            (Tensor::from_slice(&[1, 2, 1], &[7.0f32, 9.0]), Tensor::from_slice(&[1], &[1i64]));
        let given =
            [Some(q.view()), Some(cache.view()), Some(cache.view()), None, None, None, Some(length.view())];
        assert_eq!(operator().run(&given, 1).unwrap()[0].slice::<f32>(), [7.0, 7.0]);
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let fact = |shape: &[usize]| Fact::computed(DType::F32, shape.to_vec());
        let (q, k, mask) = (fact(&[1, 4, 6]), fact(&[1, 5, 3]), fact(&[3, 5]));
        let infer = |inputs: &[Option<&Fact>]| operator().infer(inputs, 1);
        assert_eq!(infer(&[Some(&q), Some(&k), Some(&k)]), Ok(vec![(DType::F32, vec![1, 4, 6])]));
        for (inputs, word) in [
            ([Some(&q), Some(&q), Some(&k), None], "heads of Q"),
            ([Some(&fact(&[1, 4, 5])), Some(&k), Some(&k), None], "multiple of 2 heads"),
            ([Some(&q), Some(&k), Some(&k), Some(&mask)], "attn_mask"),
        ] {
            let Err(Unfit::Wrong(text)) = infer(&inputs) else { panic!("{word}") };
            assert!(text.contains(word), "{text}");
        }
    }
}
