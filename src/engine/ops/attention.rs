//! Scaled dot-product attention over heads, wherever their rows lie. Knows no operator: those are in
//! `attention_onnx` and `attention_microsoft`.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::math;
use crate::engine::kernels::parallel::{parts, threads};

use super::matrix::multiply;

/// Scores that a thread holds at a time, where one query does not have more: a megabyte.
const SCORES_MAX: usize = 1 << 18;

/// How many keys of earlier calls go before those of this one; `None` where they do not fit. Every shape is
/// `[N, heads, length, size]`.
pub(super) fn past_length(
    key: Option<&[usize]>,
    value: Option<&[usize]>,
    k: [usize; 4],
    v: [usize; 4],
) -> Option<usize> {
    match (key, value) {
        (None, None) => Some(0),
        (Some(&[kb, kh, length, ks]), Some(&[vb, vh, also, vs])) => {
            let fits = [kb, kh, ks] == [k[0], k[1], k[3]] && [vb, vh, vs] == [v[0], v[1], v[3]];
            (fits && length == also).then_some(length)
        }
        _ => None,
    }
}

/// Rows of `size` numbers, `length` for each of `heads` heads of each of `batch` samples, in a larger tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    data: &'a [f32],
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) length: usize,
    pub(super) size: usize,
    place: Place,
}

/// The distance in elements from one sample, head and row to the next, and where the first begins.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    sample: usize,
    head: usize,
    row: usize,
}

impl<'a> Rows<'a> {
    /// Of `[batch, heads, length, size]`.
    pub(super) fn heads_first(data: &'a [f32], [batch, heads, length, size]: [usize; 4]) -> Rows<'a> {
        let place = Place { start: 0, sample: heads * length * size, head: length * size, row: size };
        Rows { data, batch, heads, length, size, place }
    }

    /// Of `[batch, length, heads × size]`.
    pub(super) fn length_first(data: &'a [f32], [batch, heads, length, size]: [usize; 4]) -> Rows<'a> {
        Rows::packed(data, [batch, heads, length, size], 0, 1)
    }

    /// Part `index` of `count` in `[batch, length, heads, count, size]`.
    pub(super) fn packed(
        data: &'a [f32],
        [batch, heads, length, size]: [usize; 4],
        index: usize,
        count: usize,
    ) -> Rows<'a> {
        let head = count * size;
        let place = Place { start: index * size, sample: length * heads * head, head, row: heads * head };
        Rows { data, batch, heads, length, size, place }
    }

    /// Row `row` of a head.
    pub(super) fn row(&self, sample: usize, head: usize, row: usize) -> &'a [f32] {
        let Place { start, sample: by_sample, head: by_head, row: by_row } = self.place;
        &self.data[start + sample * by_sample + head * by_head + row * by_row..][..self.size]
    }

    /// The rows of one head, one after another.
    fn head(&self, sample: usize, head: usize) -> Cow<'a, [f32]> {
        if self.place.row == self.size && self.length > 0 {
            let start = self.place.start + sample * self.place.sample + head * self.place.head;
            return Cow::Borrowed(&self.data[start..][..self.length * self.size]);
        }
        Cow::Owned((0..self.length).flat_map(|row| self.row(sample, head, row)).copied().collect())
    }

    /// The rows of one head as columns: `[size, length]`.
    fn head_transposed(&self, sample: usize, head: usize) -> Vec<f32> {
        let mut turned = vec![0.0; self.size * self.length];
        for row in 0..self.length {
            for (column, &x) in self.row(sample, head, row).iter().enumerate() {
                turned[column * self.length + row] = x;
            }
        }
        turned
    }

    /// All rows as `[batch, heads, length, size]`, each head after those of `before`, which is laid out so.
    pub(super) fn appended(&self, before: Option<&[f32]>) -> Vec<f32> {
        if self.length * self.size == 0 && before.is_none_or(<[f32]>::is_empty) {
            return Vec::new();
        }
        let heads = self.batch * self.heads;
        let old = before.map_or(0, |b| b.len() / heads.max(1));
        let mut all = Vec::with_capacity(heads * (old + self.length * self.size));
        for (sample, head) in (0..heads).map(|i| (i / self.heads, i % self.heads)) {
            if let Some(before) = before {
                all.extend_from_slice(&before[(sample * self.heads + head) * old..][..old]);
            }
            all.extend((0..self.length).flat_map(|row| self.row(sample, head, row)));
        }
        all
    }
}

/// A point on the way from queries to probabilities that an operator can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// `scale · q · kᵀ`.
    Products,
    /// Those, capped.
    Capped,
    /// Those, with what masks add.
    Masked,
    /// Their softmax.
    Probabilities,
}

/// `softmax(cap(scale · q · kᵀ) + mask) · v` for each head of `q`; a head of `k` and `v` serves `q.heads / k.heads`
/// heads of `q` in a row.
pub(super) struct Attention<'a> {
    pub(super) q: Rows<'a>,
    pub(super) k: Rows<'a>,
    pub(super) v: Rows<'a>,
    pub(super) scale: f32,
    /// `cap · tanh(x / cap)`, where it is not 0.
    pub(super) cap: f32,
    /// Each query sees the keys up to its own place, the first of them this many before it.
    pub(super) causal: Option<usize>,
    /// What is to be shown.
    pub(super) shown: Option<Stage>,
}

/// Adds what masks say to one row of scores: sample, head, query.
pub(super) type AddMask<'a> = &'a (dyn Fn([usize; 3], &mut [f32]) + Sync);

/// What attention gives.
pub(super) struct Attended {
    /// For each sample and head `[queries, v.size]`.
    heads: Vec<Vec<f32>>,
    /// `[batch, heads, queries, keys]`.
    pub(super) shown: Vec<f32>,
}

impl Attention<'_> {
    /// Runs all heads, on all threads where that is worth it.
    pub(super) fn run(&self, mask: AddMask<'_>) -> Attended {
        let shared = (self.q.heads / self.k.heads.max(1)).max(1);
        let head = |i: usize| {
            let (sample, head) = (i / self.q.heads, i % self.q.heads);
            self.head([sample, head, head / shared], mask)
        };
        // A tensor without elements may still claim any number of heads.
        let count = if self.q.length == 0 { 0 } else { self.q.batch * self.q.heads };
        let products = count * self.q.length * self.k.length * (self.q.size + self.v.size);
        let made: Vec<(Vec<f32>, Vec<f32>)> =
            if parts(threads(), products / Isa::best().products_per_ns()) > 1 {
                (0..count).into_par_iter().map(head).collect()
            } else {
                (0..count).map(head).collect()
            };
        let (heads, shown): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        Attended { heads, shown: shown.concat() }
    }

    /// One head: its rows of the result, and what is shown of it.
    fn head(&self, [sample, head, kv_head]: [usize; 3], mask: AddMask<'_>) -> (Vec<f32>, Vec<f32>) {
        let (queries, keys) = (self.q.length, self.k.length);
        let q = self.q.head(sample, head);
        let (k, v) = (self.k.head_transposed(sample, kv_head), self.v.head(sample, kv_head));
        let (mut out, mut shown) = (vec![0.0; queries * self.v.size], Vec::new());
        let block = (SCORES_MAX / keys.max(1)).clamp(1, queries.max(1));
        let mut scores = vec![0.0; block * keys];
        for first in (0..queries).step_by(block) {
            let count = block.min(queries - first);
            let scores = &mut scores[..count * keys];
            let rows = &q[first * self.q.size..][..count * self.q.size];
            multiply(rows, &k, (count, self.q.size, keys), scores);
            self.probabilities([sample, head, first], scores, mask, &mut shown);
            let out = &mut out[first * self.v.size..][..count * self.v.size];
            multiply(scores, &v, (count, keys, self.v.size), out);
        }
        (out, shown)
    }

    /// Makes probabilities of products, `[queries from first on, keys]`.
    fn probabilities(
        &self,
        [sample, head, first]: [usize; 3],
        scores: &mut [f32],
        mask: AddMask<'_>,
        shown: &mut Vec<f32>,
    ) {
        let isa = Isa::best();
        let mut show = |stage: Stage, scores: &[f32]| {
            if self.shown == Some(stage) {
                shown.extend_from_slice(scores);
            }
        };
        isa.vectorize(|| scores.iter_mut().for_each(|x| *x *= self.scale));
        show(Stage::Products, scores);
        if self.cap != 0.0 {
            isa.vectorize(|| scores.iter_mut().for_each(|x| *x = self.cap * math::tanh(*x / self.cap)));
        }
        show(Stage::Capped, scores);
        let keys = self.k.length.max(1);
        for (query, row) in (first..).zip(scores.chunks_exact_mut(keys)) {
            mask([sample, head, query], row);
            if let Some(before) = self.causal {
                row.iter_mut().skip(before + query + 1).for_each(|x| *x = f32::NEG_INFINITY);
            }
        }
        show(Stage::Masked, scores);
        scores.chunks_exact_mut(keys).for_each(|row| isa.vectorize(|| math::softmax(row, false)));
        show(Stage::Probabilities, scores);
    }
}

impl Attended {
    /// `[batch, heads, queries, size]`.
    pub(super) fn heads_first(&self) -> Vec<f32> {
        self.heads.concat()
    }

    /// `[batch, queries, heads × size]` for so many heads of rows of `size`.
    pub(super) fn length_first(&self, heads: usize, size: usize) -> Vec<f32> {
        let mut all = Vec::with_capacity(self.heads.iter().map(Vec::len).sum());
        for sample in self.heads.chunks_exact(heads.max(1)) {
            for query in 0..sample[0].len() / size.max(1) {
                all.extend(sample.iter().flat_map(|head| &head[query * size..][..size]));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_sees_one_key_gives_its_value() {
        let (q, k, v) = ([1.0, 2.0, 3.0, 4.0], [0.5, 0.25, -1.0, 2.0], [10.0, 11.0, 20.0, 21.0]);
        let rows = |data| Rows::length_first(data, [1, 1, 2, 2]);
        let (q, k, v) = (rows(&q), rows(&k), rows(&v));
        let made =
            Attention { q, k, v, scale: 1.0, cap: 0.0, causal: Some(0), shown: Some(Stage::Probabilities) }
                .run(&|_, _| {});
        assert_eq!(made.heads_first()[..2], [10.0, 11.0]);
        assert_eq!(made.shown[..2], [1.0, 0.0]);
    }

    #[test]
    fn rows_are_the_same_wherever_they_lie() {
        // Two heads of two rows of two numbers: head · 10 + row, then the same negated.
        let heads_first = [0.0, -0.5, 1.0, -1.0, 10.0, -10.0, 11.0, -11.0];
        let length_first = [0.0, -0.5, 10.0, -10.0, 1.0, -1.0, 11.0, -11.0];
        let packed: Vec<f32> = length_first.chunks(2).flat_map(|row| [row, &[77.0, 78.0]].concat()).collect();
        let shape = [1, 2, 2, 2];
        for rows in [
            Rows::heads_first(&heads_first, shape),
            Rows::length_first(&length_first, shape),
            Rows::packed(&packed, shape, 0, 2),
        ] {
            assert_eq!(rows.appended(None), heads_first);
            assert_eq!(rows.head(0, 1)[..], heads_first[4..]);
            assert_eq!(rows.head_transposed(0, 1), [10.0, 11.0, -10.0, -11.0]);
        }
        let made =
            Attended { heads: vec![heads_first[..4].to_vec(), heads_first[4..].to_vec()], shown: vec![] };
        assert_eq!(made.length_first(2, 2), length_first);
    }
}
