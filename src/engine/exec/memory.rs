//! Places buffers in one arena so that those alive together do not overlap. Knows sizes and lifetimes only.

use std::ops::Range;

/// Every buffer starts on a cache line.
const ALIGN: usize = 64;

/// A buffer: its size, and the steps from the one that writes it to the last that reads it.
#[derive(Clone, Debug)]
pub(super) struct Lifetime {
    pub(super) bytes: usize,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// The place of each buffer, and the bytes of the arena. Largest first, each in the lowest gap that fits
/// (the heuristic of XNNPACK's planner and of Pisarchyk & Lee 2020).
pub(super) fn place(buffers: &[Lifetime]) -> (Vec<Range<usize>>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].bytes), i));
    let mut places = vec![0..0; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let b = &buffers[i];
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|&&p| buffers[p].first <= b.last && b.first <= buffers[p].last)
            .map(|&p| places[p].clone())
            .collect();
        taken.sort_by_key(|r| r.start);
        let mut at = 0;
        for range in taken {
            if at + b.bytes <= range.start {
                break;
            }
            at = at.max(range.end.next_multiple_of(ALIGN));
        }
        places[i] = at..at + b.bytes;
        total = total.max(at + b.bytes);
        placed.push(i);
    }
    (places, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_live_together_do_not_overlap() {
        let mut seed = 1u32;
        let mut next = |n: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % n
        };
        let buffers: Vec<Lifetime> = (0..200)
            .map(|_| {
                let first = next(50);
                Lifetime { bytes: next(1000), first, last: first + next(8) }
            })
            .collect();
        let (places, total) = place(&buffers);
        for i in 0..buffers.len() {
            assert_eq!(places[i].len(), buffers[i].bytes);
            assert!(places[i].start.is_multiple_of(ALIGN) && places[i].end <= total);
            for j in 0..i {
                let together = buffers[i].first <= buffers[j].last && buffers[j].first <= buffers[i].last;
                let apart = places[i].end <= places[j].start || places[j].end <= places[i].start;
                assert!(!together || apart || places[i].is_empty() || places[j].is_empty(), "{i} {j}");
            }
        }
        let sum: usize = buffers.iter().map(|b| b.bytes).sum();
        assert!(total < sum / 3, "{total} of {sum}: memory is used again");
    }
}
