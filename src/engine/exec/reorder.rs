//! Brings the slices of a tensor along one of its axes to another order. Moves bytes and asks nothing of them.

use crate::engine::tensor::Tensor;

/// Brings the slices of a tensor along an axis to another order. Where they lie, since weights in two places are memory
/// that nobody gives back.
pub(super) fn reorder(tensor: &mut Tensor, axis: usize, order: &[u32]) {
    let slice: usize = tensor.shape()[axis + 1..].iter().product::<usize>() * tensor.dtype().size();
    let whole = slice * order.len();
    if whole == 0 {
        return;
    }
    let mut room = Vec::new();
    for block in tensor.view_mut().bytes.chunks_exact_mut(whole) {
        match slice {
            // Most weights are of 1x1 and 3x3 windows: a call for each would take several times as long.
            1 => reorder_short::<1>(block, order, &mut room),
            9 => reorder_short::<9>(block, order, &mut room),
            _ => reorder_long(block, order, slice, &mut room),
        }
    }
}

/// Slices of `N` bytes.
fn reorder_short<const N: usize>(bytes: &mut [u8], order: &[u32], room: &mut Vec<u8>) {
    room.clear();
    room.extend_from_slice(bytes);
    let (from, to) = (room.as_chunks::<N>().0, bytes.as_chunks_mut::<N>().0);
    to.iter_mut().zip(order).for_each(|(to, &channel)| *to = from[channel as usize]);
}

/// Slices of `len` bytes: what goes to a place comes from another, until that is the first one again.
fn reorder_long(bytes: &mut [u8], order: &[u32], len: usize, room: &mut Vec<u8>) {
    let mut done = vec![false; order.len()];
    for first in 0..order.len() {
        if std::mem::replace(&mut done[first], true) {
            continue;
        }
        room.clear();
        room.extend_from_slice(&bytes[first * len..][..len]);
        let mut to = first;
        while order[to] as usize != first {
            let from = order[to] as usize;
            bytes.copy_within(from * len..(from + 1) * len, to * len);
            done[from] = true;
            to = from;
        }
        bytes[to * len..][..len].copy_from_slice(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_every_length_are_brought_to_an_order() {
        let order = [3, 0, 2, 5, 4, 1, 6];
        for (shape, axis) in [
            ([7, 1, 1], 0),
            ([1, 7, 1], 1),
            ([2, 7, 9], 1),
            ([7, 2, 9], 0),
            ([3, 7, 5], 1),
            ([2, 3, 7], 2),
            ([7, 0, 3], 0),
        ] {
            let values: Vec<i16> = (0..shape.iter().product::<usize>() as i16).collect();
            let bytes: Vec<u8> = values.iter().map(|&v| v as u8).collect();
            let slice: usize = shape[axis + 1..].iter().product();
            let from = |i: usize| {
                let (before, channel, within) = (i / slice / 7, i / slice % 7, i % slice);
                (before * 7 + order[channel] as usize) * slice + within
            };
            let want: Vec<i16> = (0..values.len()).map(|i| values[from(i)]).collect();
            let mut got = Tensor::from_slice(&shape, &values);
            reorder(&mut got, axis, &order);
            assert_eq!(got.slice::<i16>(), want, "{shape:?} {axis}");
            let mut got = Tensor::from_slice(&shape, &bytes);
            reorder(&mut got, axis, &order);
            assert_eq!(
                got.slice::<u8>(),
                want.iter().map(|&v| v as u8).collect::<Vec<_>>(),
                "{shape:?} {axis}"
            );
        }
    }
}
