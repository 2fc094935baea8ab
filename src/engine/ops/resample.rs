//! Resampling along axes: each element of the result is a weighted sum of a few elements of the same line. Knows
//! tables of places and weights, not where they come from.

use super::real::{Real, for_each_chunk};

/// How one axis is resampled.
#[derive(Debug)]
pub(super) struct AxisMap {
    /// Elements of the axis.
    pub(super) length: usize,
    /// Elements that make one element of the result.
    pub(super) taps: usize,
    /// `[result, taps]`: where they stand, below `length`.
    pub(super) places: Vec<usize>,
    /// `[result, taps]`: their weights.
    pub(super) weights: Vec<f32>,
    /// `[result]`, or empty: what lies outside of the axis and is not computed.
    pub(super) outside: Vec<bool>,
}

impl AxisMap {
    /// Elements of the result.
    pub(super) fn out(&self) -> usize {
        self.places.len() / self.taps
    }
}

/// One entry an axis; `None` where it stays as it is.
pub(super) type Maps = [Option<AxisMap>];

/// The axes before the first that is resampled: their elements are done one by one.
fn outer_axes(maps: &Maps) -> usize {
    maps.iter().position(Option::is_some).unwrap_or(maps.len())
}

/// Copies the one element at each place: `x`, `[shape]`, to `out`.
pub(super) fn pick<T: Copy + Send + Sync>(x: &[T], shape: &[usize], maps: &Maps, out: &mut [T]) {
    let outer = outer_axes(maps);
    let from: usize = shape[outer..].iter().product();
    let blocks: usize = shape[..outer].iter().product();
    let to = out.len() / blocks.max(1);
    for_each_chunk(out, to, to / 2, |i, out| {
        pick_axis(&x[i * from..][..from], &shape[outer..], &maps[outer..], out);
    });
}

fn pick_axis<T: Copy>(x: &[T], shape: &[usize], maps: &Maps, out: &mut [T]) {
    if maps.iter().all(Option::is_none) {
        return out.copy_from_slice(x);
    }
    let inner = x.len() / shape[0].max(1);
    let Some(map) = &maps[0] else {
        let to = out.len() / shape[0];
        for (x, out) in x.chunks_exact(inner).zip(out.chunks_exact_mut(to)) {
            pick_axis(x, &shape[1..], &maps[1..], out);
        }
        return;
    };
    if maps.len() == 1 {
        return pick_line(x, &map.places, out);
    }
    let to = out.len() / map.places.len();
    for (o, &place) in map.places.iter().enumerate() {
        // A row that is repeated is copied from the row before.
        if o > 0 && map.places[o - 1] == place {
            out.copy_within((o - 1) * to..o * to, o * to);
        } else {
            let x = &x[place * inner..][..inner];
            pick_axis(x, &shape[1..], &maps[1..], &mut out[o * to..][..to]);
        }
    }
}

/// One line, `out[o] = x[places[o]]`.
fn pick_line<T: Copy>(x: &[T], places: &[usize], out: &mut [T]) {
    // Twice as many is what networks that draw images ask for, and the only case worth a loop of its own.
    if out.len() == 2 * x.len() && places.iter().enumerate().all(|(o, &place)| place == o / 2) {
        for (pair, &v) in out.chunks_exact_mut(2).zip(x) {
            pair[0] = v;
            pair[1] = v;
        }
    } else {
        for (y, &place) in out.iter_mut().zip(places) {
            *y = x[place];
        }
    }
}

/// Sums the weighted elements, one axis after another: `x`, `[shape]`, to `out`.
pub(super) fn blend<T: Real>(x: &[T], shape: &[usize], maps: &Maps, out: &mut [T]) {
    let outer = outer_axes(maps);
    let from: usize = shape[outer..].iter().product();
    let blocks: usize = shape[..outer].iter().product();
    let to = out.len() / blocks.max(1);
    // What shrinks goes first, then the axis whose elements lie closest: the fewest lines are computed.
    let mut order: Vec<(usize, &AxisMap)> =
        maps.iter().enumerate().skip(outer).filter_map(|(axis, map)| Some((axis, map.as_ref()?))).collect();
    order.sort_by(|(a, m), (b, n)| (m.out() * n.length).cmp(&(n.out() * m.length)).then(b.cmp(a)));
    let taps: usize = order.iter().map(|(_, map)| map.taps).sum();
    for_each_chunk(out, to, to.max(from) * taps, |i, out| {
        let mut lengths = shape.to_vec();
        let mut made: Vec<T> = Vec::new();
        let block = &x[i * from..][..from];
        for (n, &(axis, map)) in order.iter().enumerate() {
            let before: usize = lengths[outer..axis].iter().product();
            let inner: usize = lengths[axis + 1..].iter().product();
            lengths[axis] = map.out();
            let current = if n == 0 { block } else { &made };
            if n + 1 == order.len() {
                blend_axis(current, before, map, inner, out);
            } else {
                let mut next = vec![T::default(); before * map.out() * inner];
                blend_axis(current, before, map, inner, &mut next);
                made = next;
            }
        }
    });
}

/// One axis: `x`, `[before, length, inner]`, to `out`, `[before, result, inner]`.
fn blend_axis<T: Real>(x: &[T], before: usize, map: &AxisMap, inner: usize, out: &mut [T]) {
    let (length, taps) = (map.length, map.taps);
    let weights: Vec<T> = map.weights.iter().map(|&w| T::of(w.into())).collect();
    for b in 0..before {
        let x = &x[b * length * inner..][..length * inner];
        let out = &mut out[b * map.out() * inner..][..map.out() * inner];
        let lines = map.places.chunks_exact(taps).zip(weights.chunks_exact(taps));
        match (inner, taps) {
            (1, 2) => {
                for ((places, weights), y) in lines.zip(out) {
                    *y = x[places[0]] * weights[0] + x[places[1]] * weights[1];
                }
            }
            (1, _) => {
                for ((places, weights), y) in lines.zip(out) {
                    *y = places.iter().zip(weights).map(|(&p, &w)| x[p] * w).sum();
                }
            }
            (_, 2) => {
                for ((places, weights), row) in lines.zip(out.chunks_exact_mut(inner)) {
                    let (a, b) = (&x[places[0] * inner..][..inner], &x[places[1] * inner..][..inner]);
                    for ((y, &a), &b) in row.iter_mut().zip(a).zip(b) {
                        *y = a * weights[0] + b * weights[1];
                    }
                }
            }
            _ => {
                for ((places, weights), row) in lines.zip(out.chunks_exact_mut(inner)) {
                    row.fill(T::default());
                    for (&place, &weight) in places.iter().zip(weights) {
                        for (y, &v) in row.iter_mut().zip(&x[place * inner..][..inner]) {
                            *y += v * weight;
                        }
                    }
                }
            }
        }
    }
}

/// Puts `value` wherever some axis lies outside; `shape` is that of `out`.
pub(super) fn fill_outside<T: Copy>(out: &mut [T], shape: &[usize], maps: &Maps, value: T) {
    for (axis, map) in maps.iter().enumerate() {
        let outside = map.as_ref().map_or(&[][..], |m| &m.outside);
        let inner: usize = shape[axis + 1..].iter().product();
        if inner == 0 || !outside.contains(&true) {
            continue;
        }
        for (i, line) in out.chunks_exact_mut(inner).enumerate() {
            if outside[i % outside.len()] {
                line.fill(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(length: usize, taps: usize, places: &[usize], weights: &[f32]) -> Option<AxisMap> {
        let (places, weights) = (places.to_vec(), weights.to_vec());
        Some(AxisMap { length, taps, places, weights, outside: Vec::new() })
    }

    #[test]
    fn picking_twice_each_repeats_rows_and_columns() {
        let twice = || map(2, 1, &[0, 0, 1, 1], &[1.0; 4]);
        let mut out = [0u8; 16];
        pick(&[1, 2, 3, 4], &[1, 2, 2], &[None, twice(), twice()], &mut out);
        assert_eq!(out, [1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4]);
        let mut out = [0u8; 4];
        pick(&[1, 2, 3, 4], &[2, 2], &[map(2, 1, &[1, 0], &[1.0; 2]), None], &mut out);
        assert_eq!(out, [3, 4, 1, 2]);
    }

    #[test]
    fn blending_sums_along_every_axis() {
        let mean = || map(2, 2, &[0, 1], &[0.5, 0.5]);
        let mut out = [0f64; 1];
        blend(&[1.0, 2.0, 3.0, 6.0], &[2, 2], &[mean(), mean()], &mut out);
        assert_eq!(out, [3.0]);
        let more = || map(2, 3, &[0, 1, 1, 1, 1, 1, 0, 0, 0], &[1.0; 9]);
        let mut out = [0f32; 6];
        blend(&[1.0, 2.0, 3.0, 6.0], &[2, 2], &[None, more()], &mut out);
        assert_eq!(out, [5.0, 6.0, 3.0, 15.0, 18.0, 9.0]);
        let mut out = [0f32; 6];
        blend(&[1.0, 2.0, 3.0, 6.0], &[2, 2], &[more(), None], &mut out);
        assert_eq!(out, [7.0, 14.0, 9.0, 18.0, 3.0, 6.0]);
    }

    #[test]
    fn what_lies_outside_is_filled() {
        let mut outside = map(2, 1, &[0, 0], &[1.0; 2]);
        outside.as_mut().unwrap().outside = vec![false, true];
        let mut out = [1, 2, 3, 4, 5, 6, 7, 8];
        fill_outside(&mut out, &[2, 2, 2], &[None, outside, None], 9);
        assert_eq!(out, [1, 2, 9, 9, 5, 6, 9, 9]);
    }
}
