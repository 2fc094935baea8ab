//! The order of channels in which most products of bytes add in 16 bits: see [`schedule`](super::schedule). Which four
//! elements of a column make a quad, and which 16 columns a panel, is as the channels lie. Where only products of codes
//! see them, any order gives the same sums. Knows matrices of codes only.

use super::isa::Isa;

/// Columns of a panel, elements of a quad and what a lane holds, as `schedule` has them on x86-64.
#[cfg(target_arch = "x86_64")]
use super::schedule::{COLUMNS, LIMIT, QUAD};
#[cfg(not(target_arch = "x86_64"))]
const COLUMNS: usize = 16;
#[cfg(not(target_arch = "x86_64"))]
const QUAD: usize = 4;
#[cfg(not(target_arch = "x86_64"))]
const LIMIT: u8 = 128;

/// Most channels that the next one of a panel is chosen from, the heaviest that are left: a choice looks at all of them.
const CHOICE: usize = 80;

/// Codes of a product that gives `channels`, or takes them.
pub enum Matrix<'a> {
    /// `[channels, depth]`.
    Gives(&'a [i8]),
    /// `[rows, channels]`.
    Takes(&'a [i8]),
}

/// Rows that are looked at in one go.
const CHUNK: usize = 64;

/// An order of `channels` for these products: which channel stands where.
///
/// First channels that have their unsafe quads in common become a panel, so that few quads of it are unsafe; then those
/// of a panel become quads of the products that take them, the heavy ones beside ones that they fit a lane with.
pub fn best_order(isa: Isa, channels: usize, matrices: &[Matrix<'_>]) -> Vec<u32> {
    // Compiled for an instruction that counts bits, which the baseline does not have.
    let mut order = isa.vectorize(
        #[inline(always)]
        || panels(channels, matrices),
    );
    let taken = taken(channels, matrices);
    if let Some(rows) = taken.len().checked_div(channels).filter(|rows| *rows > 0) {
        let column = |c: u32| &taken[c as usize * rows..][..rows];
        for panel in order.chunks_mut(COLUMNS) {
            pair(panel, |a, b| {
                isa.vectorize(
                    #[inline(always)]
                    || misfits(column(a), column(b)),
                )
            });
        }
    }
    order
}

/// Channels by panels.
#[inline(always)]
fn panels(channels: usize, matrices: &[Matrix<'_>]) -> Vec<u32> {
    let unsafe_quads = UnsafeQuads::of(channels, matrices);
    let mut left: Vec<u32> = (0..channels as u32).collect();
    left.sort_by_key(|&c| std::cmp::Reverse(unsafe_quads.count(c)));
    let mut order = Vec::with_capacity(channels);
    while !left.is_empty() {
        let first = left.remove(0);
        let mut panel = unsafe_quads.of_channel(first).to_vec();
        order.push(first);
        for _ in 1..COLUMNS.min(left.len() + 1) {
            // The fewest quads more, and of these the most that are there already: others may do without them. A loop,
            // since an iterator's would not be compiled with what is around it.
            let (mut choice, mut least) = (0, None);
            for (at, &c) in left.iter().take(CHOICE).enumerate() {
                let (mut more, mut common) = (0, 0);
                for (&own, &panel) in unsafe_quads.of_channel(c).iter().zip(&panel) {
                    more += (own & !panel).count_ones();
                    common += (own & panel).count_ones();
                }
                let cost = (more, std::cmp::Reverse(common));
                if least.is_none_or(|least| cost < least) {
                    (choice, least) = (at, Some(cost));
                }
            }
            let next = left.remove(choice);
            panel.iter_mut().zip(unsafe_quads.of_channel(next)).for_each(|(all, own)| *all |= own);
            order.push(next);
        }
    }
    order
}

/// For each channel the quads of its column, of all products that give it, that a lane does not hold: bits.
struct UnsafeQuads {
    words: usize,
    bits: Vec<u64>,
}

impl UnsafeQuads {
    #[inline(always)]
    fn of(channels: usize, matrices: &[Matrix<'_>]) -> UnsafeQuads {
        let given = || {
            matrices.iter().filter_map(|matrix| match matrix {
                Matrix::Gives(codes) => Some((*codes, codes.len() / channels)),
                Matrix::Takes(_) => None,
            })
        };
        let quads: usize = given().map(|(_, depth)| depth.div_ceil(QUAD)).sum();
        let words = quads.div_ceil(64);
        let mut bits = vec![0; channels * words];
        let mut first = 0;
        for (codes, depth) in given() {
            for (codes, bits) in codes.chunks_exact(depth).zip(bits.chunks_exact_mut(words)) {
                let mut at = first;
                for codes in codes.chunks(8 * QUAD) {
                    let unsafe_quads = u64::from(unsafe_of_eight(codes));
                    bits[at / 64] |= unsafe_quads << (at % 64);
                    // Those of the next word, if this one is filled in between.
                    if at % 64 > 56 && at / 64 + 1 < words {
                        bits[at / 64 + 1] |= unsafe_quads >> (64 - at % 64);
                    }
                    at += codes.len().div_ceil(QUAD);
                }
            }
            first += depth.div_ceil(QUAD);
        }
        UnsafeQuads { words, bits }
    }

    fn of_channel(&self, channel: u32) -> &[u64] {
        &self.bits[channel as usize * self.words..][..self.words]
    }

    fn count(&self, channel: u32) -> u32 {
        self.of_channel(channel).iter().map(|word| word.count_ones()).sum()
    }
}

/// Which of up to eight quads a lane does not hold: bits.
#[inline(always)]
fn unsafe_of_eight(codes: &[i8]) -> u8 {
    let mut whole = [0; 8 * QUAD];
    let codes = match codes.first_chunk() {
        Some(codes) => codes,
        None => {
            whole[..codes.len()].copy_from_slice(codes);
            &whole
        }
    };
    let mut bits = 0;
    for (quad, &[a, b, c, d]) in codes.as_chunks::<QUAD>().0.iter().enumerate() {
        bits |= u8::from(!(fit(a, b) & fit(c, d))) << quad;
    }
    bits
}

/// `[channels, rows]`: the codes of all products that take the channels.
fn taken(channels: usize, matrices: &[Matrix<'_>]) -> Vec<i8> {
    let takes = || {
        matrices.iter().filter_map(|matrix| match matrix {
            Matrix::Takes(codes) => Some(*codes),
            Matrix::Gives(_) => None,
        })
    };
    let rows: usize = takes().map(|codes| codes.len() / channels).sum();
    let mut columns = vec![0; channels * rows];
    let mut first = 0;
    // As many rows as there are lines of both in the first-level cache.
    for codes in takes().flat_map(|codes| codes.chunks(CHUNK * channels)) {
        let count = codes.len() / channels;
        for (channel, column) in columns.chunks_exact_mut(rows).enumerate() {
            for (row, to) in column[first..first + count].iter_mut().enumerate() {
                *to = codes[row * channels + channel];
            }
        }
        first += count;
    }
    columns
}

/// Orders the channels of a panel so that neighbours have few `misfits`, and neighbouring pairs about as many.
fn pair(panel: &mut [u32], mut misfits: impl FnMut(u32, u32) -> u32) {
    let count = panel.len();
    let mut costs = [[0; COLUMNS]; COLUMNS];
    for a in 0..count {
        for b in a + 1..count {
            costs[a][b] = misfits(panel[a], panel[b]);
            costs[b][a] = costs[a][b];
        }
    }
    let mut left: Vec<usize> = (0..count).collect();
    left.sort_by_key(|&a| std::cmp::Reverse(costs[a].iter().sum::<u32>()));
    let mut pairs = Vec::with_capacity(count / 2);
    while left.len() > 1 {
        let a = left.remove(0);
        let b = (0..left.len()).min_by_key(|&i| costs[a][left[i]]).expect("one is left");
        pairs.push([a, left.remove(b)]);
    }
    // Two pairs exchange partners as long as this gains.
    let mut gained = true;
    while gained {
        gained = false;
        for i in 0..pairs.len() {
            for j in i + 1..pairs.len() {
                let ([a, b], [c, d]) = (pairs[i], pairs[j]);
                let cost = |a: usize, b: usize, c: usize, d: usize| costs[a][b] + costs[c][d];
                let (now, across, along) = (cost(a, b, c, d), cost(a, c, b, d), cost(a, d, b, c));
                if across.min(along) < now {
                    (pairs[i], pairs[j]) = if across <= along { ([a, c], [b, d]) } else { ([a, d], [b, c]) };
                    gained = true;
                }
            }
        }
    }
    pairs.sort_by_key(|&[a, b]| std::cmp::Reverse(costs[a][b]));
    let old = panel.to_vec();
    for (to, from) in panel.iter_mut().zip(pairs.as_flattened().iter().chain(&left)) {
        *to = old[*from];
    }
}

/// Rows in which two columns do not fit a lane.
#[inline(always)]
fn misfits(a: &[i8], b: &[i8]) -> u32 {
    let mut all = 0;
    for (a, b) in a.chunks(CHUNK).zip(b.chunks(CHUNK)) {
        let mut count = 0u16;
        for (&a, &b) in a.iter().zip(b) {
            count += u16::from(!fit(a, b));
        }
        all += u32::from(count);
    }
    all
}

/// Whether the products of two weights add in 16 bits, whatever they are multiplied with. Of different signs they always
/// do.
#[inline(always)]
fn fit(a: i8, b: i8) -> bool {
    (i16::from(a) + i16::from(b)).unsigned_abs() <= u16::from(LIMIT)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    fn sorted(order: &[u32]) -> Vec<u32> {
        let mut order = order.to_vec();
        order.sort_unstable();
        order
    }

    /// Unsafe quads of the panels of a matrix `[columns, depth]`.
    fn unsafe_quads(codes: &[i8], depth: usize) -> usize {
        let panel = |panel: &[i8]| {
            let unsafe_quad = |quad: &usize| {
                panel.chunks_exact(depth).any(|column| {
                    column[quad * QUAD..].chunks_exact(2).take(2).any(|pair| !fit(pair[0], pair[1]))
                })
            };
            (0..depth / QUAD).filter(unsafe_quad).count()
        };
        codes.chunks(COLUMNS * depth).map(panel).sum()
    }

    #[test]
    fn an_order_has_every_channel_once() {
        let mut random = Random::new(11);
        for channels in [1, 2, 3, 15, 16, 17, 33, 100] {
            let (given, taken) = (random.i8s(channels * 10), random.i8s(7 * channels));
            for matrices in [
                &[][..],
                &[Matrix::Gives(&given)],
                &[Matrix::Takes(&taken)],
                &[Matrix::Gives(&given), Matrix::Takes(&taken), Matrix::Takes(&given)],
            ] {
                let order = best_order(Isa::Scalar, channels, matrices);
                assert_eq!(sorted(&order), (0..channels as u32).collect::<Vec<_>>());
                Isa::available()
                    .into_iter()
                    .for_each(|isa| assert_eq!(best_order(isa, channels, matrices), order, "{isa:?}"));
            }
        }
    }

    /// Few heavy weights, as trained layers have them, in a column of each.
    #[test]
    fn fewer_quads_are_unsafe_in_a_good_order() {
        let (channels, depth, rows) = (96, 64, 32);
        let mut random = Random::new(5);
        let mut codes = |count: usize| -> Vec<i8> {
            (0..count)
                .map(|_| if random.next().is_multiple_of(12) { 100 } else { (random.next() % 61) as i8 - 30 })
                .collect()
        };
        let (given, taken) = (codes(channels * depth), codes(rows * channels));
        let order = best_order(Isa::best(), channels, &[Matrix::Gives(&given), Matrix::Takes(&taken)]);
        let rows_of = |c: &u32| &given[*c as usize * depth..][..depth];
        let given_now: Vec<i8> = order.iter().flat_map(rows_of).copied().collect();
        let taken_now: Vec<i8> =
            taken.chunks(channels).flat_map(|row| order.iter().map(|&c| row[c as usize])).collect();
        for (before, after, depth) in [(&given, &given_now, depth), (&taken, &taken_now, channels)] {
            let (before, after) = (unsafe_quads(before, depth), unsafe_quads(after, depth));
            assert!(after * 4 < before * 3, "{before} unsafe quads before, {after} after");
        }
    }

    #[test]
    fn every_unsafe_quad_has_its_bit() {
        let (mut random, channels) = (Random::new(3), 5);
        for depths in [[4, 4], [244, 281], [1, 263], [236, 3], [256, 256], [227, 35]] {
            let codes = depths.map(|depth| random.i8s(channels * depth));
            let all = UnsafeQuads::of(channels, &[Matrix::Gives(&codes[0]), Matrix::Gives(&codes[1])]);
            for channel in 0..channels {
                let quads = codes
                    .iter()
                    .zip(depths)
                    .flat_map(|(codes, depth)| codes[channel * depth..][..depth].chunks(QUAD));
                let mut want = vec![0u64; all.words];
                for (at, quad) in quads.enumerate() {
                    let holds = quad.chunks_exact(2).all(|pair| fit(pair[0], pair[1]));
                    want[at / 64] |= u64::from(!holds) << (at % 64);
                }
                assert_eq!(all.of_channel(channel as u32), want, "{depths:?}");
            }
        }
    }

    #[test]
    fn lanes_hold_two_weights_of_one_sign_up_to_128() {
        assert!(fit(127, 1) && fit(-128, 0) && fit(-64, -64) && fit(127, -128));
        assert!(!fit(127, 2) && !fit(-128, -1) && !fit(65, 64));
    }
}
