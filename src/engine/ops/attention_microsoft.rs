//! com.microsoft's MultiHeadAttention, as ONNX Runtime's optimizer writes it for transformers.

use std::borrow::Cow;

use crate::engine::graph::fact::{Fact, Results, Unfit, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::attention::{Attention, Rows, past_length};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("com.microsoft", "MultiHeadAttention", multi_head)];

/// `q [, k] [, v] [, bias] [, padding mask] [, added] [, past k] [, past v]`: `q` is `[batch, length, heads × size]`, `k`
/// and `v` too, or as they come from a cache, `[batch, heads, length, size]`; or `q` holds all three, `[batch, length,
/// heads, 3, size]`, or `k` holds both, `[batch, length, heads, 2, size]`. Gives `[batch, length, heads × v size]`, then
/// keys and values with those of the past before them, `[batch, heads, keys, size]`.
#[derive(Debug)]
struct MultiHead {
    heads: usize,
    causal: bool,
    scale: Option<f32>,
    /// What is added where the padding mask hides a key.
    hidden: f32,
}

fn multi_head(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let heads = a.int("num_heads")?.ok_or("attribute `num_heads` is missing")?;
    let heads = usize::try_from(heads).ok().filter(|&n| n > 0).ok_or("num_heads is not positive")?;
    if call.wants(3) {
        return Err("the output `qk` is not supported".to_owned());
    }
    for (index, name) in [(8, "past_sequence_length"), (9, "cache_indirection")] {
        if call.has(index) {
            return Err(format!("{name} is not supported"));
        }
    }
    Ok(Made::new(MultiHead {
        heads,
        causal: a.flag("unidirectional", false)?,
        scale: a.float("scale")?.filter(|&s| s != 0.0),
        hidden: a.float_or("mask_filter_value", -10_000.0)?,
    }))
}

/// In which operand the rows of q, k or v lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// `[batch, length, heads × size]`.
    Flat,
    /// `[batch, heads, length, size]`.
    Cached,
    /// Part `index` of `[batch, length, heads, count, size]`.
    Packed { index: usize, count: usize },
}

/// Where q, k or v lie: operand, form, `[batch, heads, length, size]`.
#[derive(Clone, Copy, Debug)]
struct Source(usize, Form, [usize; 4]);

struct Sizes {
    sources: [Source; 3],
    past: usize,
    keys: usize,
}

impl MultiHead {
    fn sizes<'a>(&self, shape: impl Fn(usize) -> Option<&'a [usize]>) -> Result<Sizes, String> {
        let sources = self.sources(&shape)?;
        let [Source(.., q), Source(.., k), Source(.., v)] = sources;
        if q[0] != k[0] || k[..3] != v[..3] || q[3] != k[3] {
            return Err(format!("heads of query {q:?}, key {k:?} and value {v:?} do not fit each other"));
        }
        // ONNX Runtime lets the last query see every key then, and the others those up to their own place.
        if self.causal && q[2] != k[2] {
            return Err(format!(
                "unidirectional attention of {} queries to {} keys is not supported",
                q[2], k[2]
            ));
        }
        let width =
            [q, k, v].iter().try_fold(0usize, |sum, s| sum.checked_add(self.heads.checked_mul(s[3])?));
        if let Some(bias) = shape(3) {
            if sources.iter().any(|Source(_, form, _)| matches!(form, Form::Packed { .. })) {
                return Err("a bias for packed queries, keys and values is not supported".to_owned());
            }
            if bias.len() != 1 || Some(bias[0]) != width {
                return Err(format!("bias has shape {bias:?}, query {q:?}, key {k:?} and value {v:?}"));
            }
        }
        let (key, value) = (shape(6), shape(7));
        let past = past_length(key, value, k, v)
            .ok_or_else(|| format!("past_key and past_value of shapes {key:?} and {value:?} do not fit"))?;
        let keys = past.checked_add(k[2]).ok_or("the number of keys overflows")?;
        if let Some(mask) = shape(4)
            && mask != [q[0]]
            && mask != [q[0], keys]
            && mask != [q[0], q[2], keys]
        {
            return Err(format!(
                "a mask of shape {mask:?} for {} samples of {keys} keys is not supported",
                q[0]
            ));
        }
        if let Some(added) = shape(5) {
            let leading = |at: usize| added.get(at).is_some_and(|&n| n == 1 || n == q[at]);
            if added.len() != 4 || !leading(0) || !leading(1) || added[2..] != [q[2], keys] {
                return Err(format!(
                    "attention_bias of shape {added:?} does not fit query {q:?} and {keys} keys"
                ));
            }
        }
        Ok(Sizes { sources, past, keys })
    }

    fn sources<'a>(&self, shape: impl Fn(usize) -> Option<&'a [usize]>) -> Result<[Source; 3], String> {
        let source = |index: usize, name: &str, part: Option<(usize, usize)>| match (shape(index), part) {
            (Some(&[batch, length, width]), None) if width % self.heads == 0 => {
                Ok(Source(index, Form::Flat, [batch, self.heads, length, width / self.heads]))
            }
            (Some(&[batch, heads, length, size]), None) if heads == self.heads && index > 0 => {
                Ok(Source(index, Form::Cached, [batch, heads, length, size]))
            }
            (Some(&[batch, length, heads, of, size]), Some((part, count)))
                if heads == self.heads && of == count =>
            {
                Ok(Source(index, Form::Packed { index: part, count }, [batch, heads, length, size]))
            }
            (None, _) => Err(format!("{name} is missing")),
            (Some(other), _) => Err(format!("{name} of shape {other:?} does not fit {} heads", self.heads)),
        };
        Ok(match (shape(1), shape(2)) {
            (None, None) => {
                let part = |index: usize| source(0, "query", Some((index, 3)));
                [part(0)?, part(1)?, part(2)?]
            }
            (Some(_), None) => {
                let part = |index: usize| source(1, "key", Some((index, 2)));
                [source(0, "query", None)?, part(0)?, part(1)?]
            }
            _ => [source(0, "query", None)?, source(1, "key", None)?, source(2, "value", None)?],
        })
    }

    /// Adds to one row of scores what the padding mask says.
    fn add_padding(
        &self,
        mask: &TensorView<'_>,
        [sample, _, query]: [usize; 3],
        queries: usize,
        row: &mut [f32],
    ) {
        let values = mask.slice::<i32>();
        let keys = row.len();
        let kept = match mask.shape.len() {
            1 => {
                let length = usize::try_from(values[sample]).unwrap_or(0);
                row.iter_mut().skip(length).for_each(|x| *x += self.hidden);
                return;
            }
            2 => &values[sample * keys..][..keys],
            _ => &values[(sample * queries + query) * keys..][..keys],
        };
        for (x, _) in row.iter_mut().zip(kept).filter(|(_, kept)| **kept <= 0) {
            *x += self.hidden;
        }
    }
}

impl Operator for MultiHead {
    fn infer(&self, inputs: &[Option<&Fact>], outputs: usize) -> Result<Results, Unfit> {
        let Sizes { sources: [Source(.., q), _, Source(.., v)], keys, .. } =
            self.sizes(|i| operand(inputs, i).map(|f| f.shape.as_slice()))?;
        let dtype = needed(inputs, 0)?.dtype;
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(format!("{dtype} is not supported").into());
        }
        for index in [1, 2, 3, 5, 6, 7] {
            if let Some(other) = operand(inputs, index).filter(|f| f.dtype != dtype) {
                return Err(format!("input {index} is {}, the query is {dtype}", other.dtype).into());
            }
        }
        if let Some(mask) = operand(inputs, 4).filter(|f| f.dtype != DType::I32) {
            return Err(format!("the padding mask is {}, int32 is needed", mask.dtype).into());
        }
        let width = self.heads.checked_mul(v[3]).ok_or("the width of the result overflows")?;
        let present = |size: usize| (dtype, vec![q[0], self.heads, keys, size]);
        let mut results = vec![(dtype, vec![q[0], q[2], width]), present(q[3]), present(v[3])];
        results.truncate(outputs.max(1));
        Ok(results)
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], outputs: usize) -> Result<Vec<Tensor>, String> {
        let view = |index: usize| inputs.get(index).copied().flatten();
        let Sizes { sources, past, keys } = self.sizes(|i| view(i).map(|v| v.shape))?;
        let [Source(.., q_shape), Source(.., k_shape), Source(.., v_shape)] = sources;
        let mut first = 0;
        let mut data: Vec<Cow<'_, [f32]>> = Vec::with_capacity(3);
        for Source(index, form, [_, _, _, size]) in sources {
            let x = view(index).ok_or_else(|| format!("input {index} is missing"))?.slice::<f32>();
            let width = self.heads * size;
            // What comes from a cache had its bias added when it went there.
            data.push(match view(3).map(|bias| &bias.slice::<f32>()[first..first + width]) {
                Some(bias) if form == Form::Flat && width > 0 => {
                    let row = |row: &[f32]| row.iter().zip(bias).map(|(x, b)| x + b).collect::<Vec<_>>();
                    Cow::Owned(x.chunks_exact(width).flat_map(row).collect())
                }
                _ => Cow::Borrowed(x),
            });
            first += width;
        }
        let rows = |i: usize| {
            let Source(_, form, shape) = sources[i];
            match form {
                Form::Flat => Rows::length_first(&data[i], shape),
                Form::Cached => Rows::heads_first(&data[i], shape),
                Form::Packed { index, count } => Rows::packed(&data[i], shape, index, count),
            }
        };
        let (q, mut k, mut v) = (rows(0), rows(1), rows(2));
        let mut present = None;
        if outputs > 1 || past > 0 {
            let old = |index: usize| view(index).map(|p| p.slice::<f32>());
            present = Some((k.appended(old(6)), v.appended(old(7))));
        }
        let long = |[batch, heads, _, size]: [usize; 4]| [batch, heads, keys, size];
        let (k_shape, v_shape) = (long(k_shape), long(v_shape));
        if let Some((all_k, all_v)) = &present {
            (k, v) = (Rows::heads_first(all_k, k_shape), Rows::heads_first(all_v, v_shape));
        }
        let [batch, heads, queries, size] = q_shape;
        let add = |at: [usize; 3], row: &mut [f32]| {
            if let Some(mask) = view(4) {
                self.add_padding(&mask, at, queries, row);
            }
            if let Some(added) = view(5) {
                let place = |axis: usize| if added.shape[axis] == 1 { 0 } else { at[axis] };
                let start = ((place(0) * added.shape[1] + place(1)) * queries + at[2]) * row.len();
                let added = &added.slice::<f32>()[start..][..row.len()];
                row.iter_mut().zip(added).for_each(|(x, add)| *x += add);
            }
        };
        let scale = self.scale.unwrap_or(1.0 / (size as f32).sqrt());
        let causal = self.causal.then_some(past);
        let made = Attention { q, k, v, scale, cap: 0.0, causal, shown: None }.run(&add);
        let shape = [batch, queries, heads * v_shape[3]];
        let mut results = vec![Tensor::from_slice(&shape, &made.length_first(heads, v_shape[3]))];
        if let Some((k, v)) = present {
            results.push(Tensor::from_slice(&k_shape, &k));
            results.push(Tensor::from_slice(&v_shape, &v));
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_flat_and_cached_operands_give_the_same() {
        let operator = MultiHead { heads: 2, causal: true, scale: None, hidden: -10_000.0 };
        let number = |i: usize| ((i * 7) % 11) as f32 * 0.1;
        // [batch 1, length 3, heads 2, three, size 2]
        let packed: Vec<f32> = (0..36).map(number).collect();
        let part =
            |of: usize| -> Vec<f32> { packed.chunks(2).skip(of).step_by(3).flatten().copied().collect() };
        let flat = [0, 1, 2].map(|of| Tensor::from_slice(&[1, 3, 4], &part(of)));
        let cached = [1, 2].map(|of: usize| {
            let rows = Rows::length_first(flat[of].slice::<f32>(), [1, 2, 3, 2]).appended(None);
            Tensor::from_slice(&[1, 2, 3, 2], &rows)
        });
        let packed = Tensor::from_slice(&[1, 3, 2, 3, 2], &packed);
        let run = |inputs: &[Option<TensorView<'_>>]| operator.run(inputs, 1).unwrap().remove(0);
        let want = run(&[Some(flat[0].view()), Some(flat[1].view()), Some(flat[2].view())]);
        assert_eq!(run(&[Some(packed.view())]), want);
        assert_eq!(run(&[Some(flat[0].view()), Some(cached[0].view()), Some(cached[1].view())]), want);
        // The first query sees the first value only.
        assert_eq!(want.slice::<f32>()[..4], flat[2].slice::<f32>()[..4]);
    }

    #[test]
    fn masks_that_are_not_known_are_refused_by_shape() {
        let operator = MultiHead { heads: 2, causal: false, scale: None, hidden: -10_000.0 };
        let x = Fact::computed(DType::F32, vec![2, 3, 4]);
        let infer = |mask: &[usize]| {
            let mask = Fact::computed(DType::I32, mask.to_vec());
            operator.infer(&[Some(&x), Some(&x), Some(&x), None, Some(&mask)], 1)
        };
        for known in [&[2][..], &[2, 3], &[2, 3, 3]] {
            assert!(infer(known).is_ok(), "{known:?}");
        }
        for other in [&[4][..], &[8], &[3, 2]] {
            let Err(Unfit::Wrong(text)) = infer(other) else { panic!("{other:?}") };
            assert!(text.contains("a mask of shape"), "{text}");
        }
    }
}
