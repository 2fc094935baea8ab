//! Weights scheduled for byte products that add in 16 bits: which quads of a panel may, proven when they are packed.
//! Knows no instructions.
//!
//! `vpmaddubsw` adds two products of a `u8` and an `i8` in a 16-bit lane, which 255 * 127 * 2 does not fit. Whether
//! it does depends on the weights alone: a lane holds every sum if its positive weights add up to 128 at most, and
//! its negative ones as well (255 * 128 = 32640). So the quads of a panel (four consecutive elements of its
//! columns) are sorted into three lists: two quads that even fit one lane together, quads that fit by themselves, and
//! quads that need wider products. The order of 32-bit sums is free, so the lists are used one after the other.

use super::isa::Isa;
use super::lines::Aligned;
use super::tiles::INT8_SCHEDULED;

/// Elements of a quad.
pub(super) const QUAD: usize = 4;
/// Most columns of a panel.
pub(super) const COLUMNS: usize = INT8_SCHEDULED.columns;
/// Sum of the weights of one sign that a 16-bit lane holds for every activation.
pub(super) const LIMIT: u8 = 128;
/// Most quads of a segment: their activations and weights stay in the first-level cache while a tile jumps between
/// them, and so do their lane sums while they are matched.
const SEGMENT: usize = 256;

/// Time of a quad in each list, and in pairs of 16 bits, in hundredths of the last: of vector instructions there are
/// 5, 6, 10 and 8 for 16 columns. Between what Xeons (63, 77, 121 and 65, 83, 118) and Zen 3 (68, 82, 114) measured.
const COST: [usize; 3] = [65, 82, 118];
/// What the loops over the lists of a segment take besides, over those of pairs, in hundredths of a quad of these.
const COST_OF_LISTS: usize = 110;
const COST_IN_PAIRS: usize = 100;

/// Weights `[columns, depth]` in panels whose quads are scheduled.
#[derive(Clone)]
pub(super) struct Schedule {
    /// Quads of a column, of a segment (the last may have fewer), and segments.
    quads: usize,
    segment: usize,
    segments: usize,
    /// The weights of all panels in the order of use.
    weights: Aligned<i8>,
    /// `[panels, quads]`: byte in the segment where a quad begins, in the order of use.
    offsets: Vec<u16>,
    /// `[panels, segments]`.
    counts: Vec<Counts>,
    /// `[panels + 1]`: where each begins in `weights`.
    starts: Vec<usize>,
}

/// How many steps of each kind a segment takes: twice `pairs`, `singles` and `wides` quads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Two quads whose products add up in 16 bits: `[2, columns, 4]` bytes of weights.
    pub(super) pairs: usize,
    /// One quad whose products add up in 16 bits two by two: `[columns, 4]` bytes.
    pub(super) singles: usize,
    /// One quad whose products need 32 bits: `[2, columns, 2]` of 16 bits, the even elements and then the odd ones.
    pub(super) wides: usize,
}

impl Counts {
    fn quads(self) -> [usize; 3] {
        [2 * self.pairs, self.singles, self.wides]
    }

    fn cost(self) -> usize {
        self.quads().iter().zip(COST).map(|(quads, cost)| quads * cost).sum::<usize>() + COST_OF_LISTS
    }
}

/// The weights of up to 16 columns. What [`Schedule::panel`] gives holds what its fields say, which tiles rely on.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// Steps of each segment.
    segments: &'a [Counts],
    /// Offsets of the quads of all segments, each at most `segment_bytes - 4`, and in the last segment within the
    /// depth that is left.
    offsets: &'a [u16],
    /// Weights of all steps, on a cache line if there are 16 columns.
    weights: &'a [i8],
    segment_bytes: usize,
    depth: usize,
    width: usize,
}

impl<'a> Panel<'a> {
    pub(super) fn segments(self) -> &'a [Counts] {
        self.segments
    }

    /// Steps of all segments.
    pub(super) fn steps(self) -> usize {
        self.segments.iter().map(|counts| counts.pairs + counts.singles + counts.wides).sum()
    }

    pub(super) fn offsets(self) -> &'a [u16] {
        self.offsets
    }

    pub(super) fn weights(self) -> &'a [i8] {
        self.weights
    }

    /// Bytes of activations from one segment to the next.
    pub(super) fn segment_bytes(self) -> usize {
        self.segment_bytes
    }

    /// Bytes of activations in a row, a multiple of 4.
    pub(super) fn depth(self) -> usize {
        self.depth
    }

    /// Columns, 8 or 16.
    pub(super) fn width(self) -> usize {
        self.width
    }
}

impl Schedule {
    /// Schedules `codes`, `[columns, depth]`; none if pairs of 16 bits are faster, as far as `most` hundredths of
    /// their time go.
    pub(super) fn pack(isa: Isa, codes: &[i8], depth: usize, most: usize) -> Option<Schedule> {
        let columns = codes.len() / depth;
        let quads = depth.div_ceil(QUAD);
        let segment = quads.div_ceil(quads.div_ceil(SEGMENT));
        let segments = quads.div_ceil(segment);
        let panels = columns.div_ceil(COLUMNS);
        let mut schedule = Schedule {
            quads,
            segment,
            segments,
            weights: Aligned::zeros(0),
            offsets: Vec::with_capacity(panels * quads),
            counts: Vec::with_capacity(panels * segments),
            starts: vec![0],
        };
        let mut weights: Vec<i8> = Vec::with_capacity(codes.len() + codes.len() / 4);
        let mut packer = Packer::default();
        let (mut spent, mut left) = (0, panels * quads);
        for codes in codes.chunks(COLUMNS * depth) {
            let width = INT8_SCHEDULED.width(0, codes.len() / depth);
            for first in (0..quads).step_by(segment) {
                let range = first..(first + segment).min(quads);
                left -= range.len();
                let counts = isa.vectorize(
                    #[inline(always)]
                    || {
                        packer.load(codes, depth, range);
                        packer.sort_quads();
                        packer.store(width, &mut schedule.offsets, &mut weights)
                    },
                );
                schedule.counts.push(counts);
                spent += counts.cost();
            }
            schedule.starts.push(weights.len());
            if (spent + left * COST[0]) / 100
                > (panels * quads * COST_IN_PAIRS / 100).saturating_mul(most) / 100
            {
                return None;
            }
        }
        schedule.weights = Aligned::zeros(weights.len());
        schedule.weights.copy_from_slice(&weights);
        Some(schedule)
    }

    /// The panel that starts at column `first`.
    pub(super) fn panel(&self, first: usize, width: usize) -> Panel<'_> {
        let panel = first / COLUMNS;
        Panel {
            segments: &self.counts[panel * self.segments..][..self.segments],
            offsets: &self.offsets[panel * self.quads..][..self.quads],
            weights: &self.weights[self.starts[panel]..self.starts[panel + 1]],
            segment_bytes: self.segment * QUAD,
            depth: self.quads * QUAD,
            width,
        }
    }

    /// What a tile should ask for early: its share of the weights of the panel behind that of column `first`.
    pub(super) fn ahead(&self, first: usize, (from, to, of): (usize, usize, usize)) -> &[i8] {
        let panel = first / COLUMNS + 1;
        match self.starts.get(panel..panel + 2) {
            Some(&[start, end]) => {
                &self.weights[start + (end - start) * from / of..start + (end - start) * to / of]
            }
            _ => &[],
        }
    }

    /// Quads in pairs, single ones and wide ones.
    pub(super) fn quads(&self) -> [usize; 3] {
        let mut sum = [0; 3];
        for counts in &self.counts {
            sum.iter_mut().zip(counts.quads()).for_each(|(sum, quads)| *sum += quads);
        }
        sum
    }

    /// Size in memory.
    pub(super) fn bytes(&self) -> usize {
        self.weights.bytes()
            + size_of_val(&self.offsets[..])
            + size_of_val(&self.counts[..])
            + size_of_val(&self.starts[..])
    }
}

/// Sums of the weights of each 16-bit lane of a quad: positive ones and then, without their sign, negative ones.
type Lanes = [u8; 4 * COLUMNS];

/// One segment of a panel while it is packed.
#[derive(Default)]
struct Packer {
    /// `[quads, 16, 4]`; zeros where there is no column or element.
    weights: Vec<[i8; 4 * COLUMNS]>,
    lanes: Vec<Lanes>,
    /// Quads that fit a lane by themselves, as `(weight << 16) + quad`, heaviest first. The sum of the squares of the
    /// lanes tells better than the heaviest lane what is hard to match.
    order: Vec<u32>,
    /// `next[i]`: the position in `order` after `i` that has no partner yet.
    next: Vec<u16>,
    pairs: Vec<[u16; 2]>,
    singles: Vec<u16>,
    wides: Vec<u16>,
}

impl Packer {
    /// Takes quads `quads` of up to 16 columns `codes`, `[columns, depth]`, and adds up their lanes.
    #[inline(always)]
    fn load(&mut self, codes: &[i8], depth: usize, quads: std::ops::Range<usize>) {
        self.weights.clear();
        self.weights.resize(quads.len(), [0; 4 * COLUMNS]);
        for (column, codes) in codes.chunks_exact(depth).enumerate() {
            let codes = &codes[quads.start * QUAD..depth.min(quads.end * QUAD)];
            let (whole, tail) = codes.as_chunks::<QUAD>();
            for (to, quad) in self.weights.iter_mut().zip(whole) {
                to[column * QUAD..][..QUAD].copy_from_slice(quad);
            }
            if !tail.is_empty() {
                self.weights[whole.len()][column * QUAD..][..tail.len()].copy_from_slice(tail);
            }
        }
        self.lanes.clear();
        self.lanes.resize(quads.len(), [0; 4 * COLUMNS]);
        for (lanes, quad) in self.lanes.iter_mut().zip(&self.weights) {
            *lanes = lane_sums(quad);
        }
    }

    /// Sorts the quads into the three lists.
    #[inline(always)]
    fn sort_quads(&mut self) {
        self.pairs.clear();
        self.singles.clear();
        self.wides.clear();
        self.order.clear();
        for (quad, lanes) in self.lanes.iter().enumerate() {
            let (mut heaviest, mut squares) = (0, 0);
            for &lane in lanes {
                heaviest = lane.max(heaviest);
                squares += u32::from(lane) * u32::from(lane);
            }
            if heaviest > LIMIT {
                self.wides.push(quad as u16);
            } else {
                self.order.push((squares >> 5) << 16 | quad as u32);
            }
        }
        self.order.sort_unstable_by(|a, b| b.cmp(a));
        self.next.clear();
        self.next.extend(1..=self.order.len() as u16);
        let quad_at = |at: usize| (self.order[at] & 0xffff) as u16;
        let end = self.order.len();
        let mut head = 0;
        while head < end {
            let quad = quad_at(head);
            let lanes = &self.lanes[usize::from(quad)];
            let (mut before, mut at) = (head, usize::from(self.next[head]));
            while at < end && !fit(lanes, &self.lanes[usize::from(quad_at(at))]) {
                (before, at) = (at, usize::from(self.next[at]));
            }
            if at < end {
                self.next[before] = self.next[at];
                self.pairs.push([quad, quad_at(at)]);
            } else {
                self.singles.push(quad);
            }
            head = usize::from(self.next[head]);
        }
    }

    /// Appends the lists to a panel of `width` columns.
    #[inline(always)]
    fn store(&self, width: usize, offsets: &mut Vec<u16>, weights: &mut Vec<i8>) -> Counts {
        let bytes = width * QUAD;
        for &quad in self.pairs.as_flattened().iter().chain(&self.singles) {
            offsets.push(quad * QUAD as u16);
            weights.extend_from_slice(&self.weights[usize::from(quad)][..bytes]);
        }
        for &quad in &self.wides {
            offsets.push(quad * QUAD as u16);
            let pairs = self.weights[usize::from(quad)].as_chunks::<2>().0;
            let half = |odd: usize| -> [i16; 2 * COLUMNS] {
                std::array::from_fn(|lane| i16::from(pairs[lane][odd]))
            };
            for half in [half(0), half(1)] {
                weights.extend_from_slice(&bytemuck::cast_slice(&half)[..bytes]);
            }
        }
        Counts { pairs: self.pairs.len(), singles: self.singles.len(), wides: self.wides.len() }
    }
}

/// Lane `i` holds the products of elements `2 i` and `2 i + 1`.
#[inline(always)]
fn lane_sums(quad: &[i8; 4 * COLUMNS]) -> Lanes {
    let mut lanes = [0; 4 * COLUMNS];
    let (positive, negative) = lanes.split_at_mut(2 * COLUMNS);
    for ((positive, negative), w) in positive.iter_mut().zip(negative).zip(quad.chunks_exact(2)) {
        let (a, b) = (i16::from(w[0]), i16::from(w[1]));
        *positive = (a.max(0) + b.max(0)) as u8;
        // Two of -128 make 256, which is beyond the limit as well as 255 is.
        *negative = ((-a).max(0) + (-b).max(0)).min(255) as u8;
    }
    lanes
}

/// Whether two quads fit a 16-bit lane together. Each fits one by itself.
#[inline(always)]
fn fit(a: &Lanes, b: &Lanes) -> bool {
    let mut excess = 0;
    for (&a, &b) in a.iter().zip(b) {
        excess |= a.saturating_sub(LIMIT - b);
    }
    excess == 0
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    /// The quads of a schedule put back where they were, each lane's sums checked on the way.
    fn check(codes: &[i8], depth: usize) {
        let columns = codes.len() / depth;
        for isa in Isa::available() {
            let schedule = Schedule::pack(isa, codes, depth, usize::MAX).expect("at any cost");
            let mut wants = codes.chunks(COLUMNS * depth);
            for first in (0..columns).step_by(COLUMNS) {
                let width = INT8_SCHEDULED.width(first, columns);
                let panel = schedule.panel(first, width);
                let got = unpacked(panel);
                assert_eq!(got.len(), width * panel.depth());
                for (want, got) in wants.next().expect("a panel").chunks(depth).zip(got.chunks(panel.depth()))
                {
                    assert_eq!((want, &got[depth..]), (&got[..depth], &[0; QUAD][..got.len() - depth]));
                }
            }
            assert_eq!(
                schedule.quads().iter().sum::<usize>(),
                depth.div_ceil(QUAD) * columns.div_ceil(COLUMNS)
            );
        }
    }

    /// The codes of a panel, `[width, depth]`.
    fn unpacked(panel: Panel) -> Vec<i8> {
        let bytes = panel.width() * QUAD;
        let mut codes = vec![0; panel.width() * panel.depth()];
        let mut seen = vec![false; panel.depth() / QUAD];
        let (mut offsets, mut weights) = (panel.offsets().iter(), panel.weights());
        for (s, counts) in panel.segments().iter().enumerate() {
            let mut put = |quad: &[i8]| {
                let offset = usize::from(*offsets.next().expect("an offset a quad"));
                assert!(offset + QUAD <= panel.segment_bytes(), "a quad of this segment");
                let k = s * panel.segment_bytes() + offset;
                assert!(!std::mem::replace(&mut seen[k / QUAD], true), "quad {k} once");
                for (column, quad) in quad.chunks(QUAD).enumerate() {
                    codes[column * panel.depth() + k..][..QUAD].copy_from_slice(quad);
                }
            };
            let mut take = |bytes: usize| {
                let (taken, rest) = weights.split_at(bytes);
                weights = rest;
                taken
            };
            for _ in 0..counts.pairs {
                let pair = take(2 * bytes);
                assert_fits(pair.split_at(bytes).0, pair.split_at(bytes).1);
                put(&pair[..bytes]);
                put(&pair[bytes..]);
            }
            for _ in 0..counts.singles {
                let single = take(bytes);
                assert_fits(single, &vec![0; bytes]);
                put(single);
            }
            for _ in 0..counts.wides {
                let (even, odd) = take(2 * bytes).split_at(bytes);
                let words = even.chunks(2).zip(odd.chunks(2));
                let word =
                    |w: &[i8]| i8::try_from(i16::from_ne_bytes([w[0] as u8, w[1] as u8])).expect("a code");
                put(&words.flat_map(|(even, odd)| [word(even), word(odd)]).collect::<Vec<_>>());
            }
        }
        assert!(seen.iter().all(|&seen| seen) && weights.is_empty(), "every quad");
        codes
    }

    /// The least and the largest sum of each lane, over all activations, fit 16 bits.
    fn assert_fits(a: &[i8], b: &[i8]) {
        for (a, b) in a.chunks(2).zip(b.chunks(2)) {
            let weights = [a[0], a[1], b[0], b[1]].map(i32::from);
            let most: i32 = weights.iter().map(|&w| 255 * w.max(0)).sum();
            let least: i32 = weights.iter().map(|&w| 255 * w.min(0)).sum();
            assert!(i16::try_from(most).is_ok() && i16::try_from(least).is_ok(), "{weights:?}");
        }
    }

    #[test]
    fn every_quad_occurs_once_and_no_lane_overflows() {
        let mut random = Random::new(3);
        for (columns, depth) in [
            (1, 1),
            (16, 4),
            (17, 5),
            (8, 64),
            (9, 1023),
            (40, 130),
            (33, 1024),
            (24, 1030),
            (16, 2500),
            (5, 4100),
        ] {
            let codes = random.i8s(columns * depth);
            check(&codes, depth);
            // Smaller codes in some quads, so that there are all lists; then bell-shaped ones.
            let shifted: Vec<i8> =
                codes.iter().enumerate().map(|(i, code)| code >> (i % depth / QUAD % 5)).collect();
            check(&shifted, depth);
            let mut bell =
                || (0..4).map(|_| random.next() as i32 % 64 - 32).sum::<i32>().clamp(-128, 127) as i8;
            check(&(0..columns * depth).map(|_| bell()).collect::<Vec<_>>(), depth);
            check(&vec![32; columns * depth], depth);
            check(&vec![-128; columns * depth], depth);
        }
    }

    #[test]
    fn a_lane_takes_128_of_either_sign_and_no_more() {
        // The list of one quad, and of two equal ones.
        for (quad, alone, twice) in [
            ([64, 64, -64, -64], [0, 1, 0], [0, 2, 0]),
            ([65, 64, 0, 0], [0, 0, 1], [0, 0, 2]),
            ([0, 0, -64, -65], [0, 0, 1], [0, 0, 2]),
            ([-128, 127, 127, -128], [0, 1, 0], [0, 2, 0]),
            ([-128, -1, 0, 0], [0, 0, 1], [0, 0, 2]),
            ([-128, -128, 127, 127], [0, 0, 1], [0, 0, 2]),
            ([32, 32, -32, -32], [0, 1, 0], [2, 0, 0]),
            ([64, -64, 64, -64], [0, 1, 0], [2, 0, 0]),
            ([33, 32, -64, 64], [0, 1, 0], [0, 2, 0]),
            ([32, 32, -33, -32], [0, 1, 0], [0, 2, 0]),
        ] {
            let quads = |codes: &[i8]| {
                let schedule = Schedule::pack(Isa::Scalar, codes, codes.len(), usize::MAX);
                schedule.expect("at any cost").quads()
            };
            assert_eq!((quads(&quad), quads(&[quad, quad].concat())), (alone, twice), "{quad:?}");
        }
    }

    #[test]
    fn quads_whose_lanes_complement_each_other_are_paired() {
        let codes = [128u8 as i8, 0, 0, 0, 64, 63, 1, 1, 0, 0, 127, 1, -100, 0, -28, 100];
        let schedule = Schedule::pack(Isa::Scalar, &codes, codes.len(), usize::MAX).expect("at any cost");
        assert_eq!(schedule.quads(), [4, 0, 0]);
    }

    #[test]
    fn slow_schedules_are_not_made() {
        assert!(Schedule::pack(Isa::Scalar, &[127; 64 * 64], 64, 100).is_none());
        assert!(Schedule::pack(Isa::Scalar, &[64; 64 * 64], 64, 100).is_some());
    }
}
