//! AVX2: the register tile of scheduled panels. Knows packed slices only.
#![expect(unsafe_code, reason = "vector loads take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::schedule::Panel;
use super::tiles::{Ahead, INT8_SCHEDULED, Place};
use super::x86_64::Avx2;
use super::x86_64_finish::{Sums, tiles};
use super::x86_64_tile_scheduled::{Cursor, ROWS_MIN, add};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

impl Avx2 {
    /// Rows of an integer product: `rows` rows of `a`, `lda` apart, times a scheduled panel, to `out` through its
    /// epilogue (without the table). `ahead` is asked for early.
    #[expect(clippy::too_many_arguments, reason = "a tile is its operands and its place")]
    #[inline(always)]
    pub(super) fn scheduled_rows(
        self,
        a: &[u8],
        lda: usize,
        rows: usize,
        panel: Panel,
        ahead: &[i8],
        out: &mut IntOutput,
        place: Place,
    ) {
        assert!(a.len() >= (rows - 1) * lda + panel.depth() && place.columns <= panel.width());
        assert!(panel.weights().as_ptr().addr().is_multiple_of(32), "panels are aligned");
        place.assert_within(rows, out.len());
        let ahead = Ahead::new(ahead, rows, panel.steps());
        let product = Rows { a, lda, panel, ahead };
        // SAFETY: `self` proves AVX2 and FMA; the lengths and the alignment were just checked.
        unsafe {
            match panel.width() {
                16 => tiles::<2>(&product, rows, out, place),
                8 => tiles::<1>(&product, rows, out, place),
                _ => unreachable!("a panel has 8 or 16 columns"),
            }
        }
    }
}

/// `rows` rows, `lda` apart, and a panel.
struct Rows<'a> {
    a: &'a [u8],
    lda: usize,
    panel: Panel<'a>,
    ahead: Ahead,
}

impl<const V: usize> Sums<V> for Rows<'_> {
    const ROWS: usize = INT8_SCHEDULED.rows;

    /// The three lists of each segment, one after the other: two `vpmaddubsw` added before one `vpmaddwd`, one of each, and
    /// two `vpmaddwd` of bytes widened in place, by a mask and by a shift.
    #[target_feature(enable = "avx2,fma")]
    #[inline(never)]
    unsafe fn sums<const R: usize>(
        &self,
        row: usize,
        bias: [__m256i; V],
        out: &mut MaybeUninit<[[__m256i; V]; R]>,
    ) {
        let (panel, lda) = (self.panel, self.lda);
        let mut acc = [bias; R];
        let mut at = Cursor {
            a: self.a.as_ptr().wrapping_add(row * lda),
            quad: panel.offsets().as_ptr(),
            weights: panel.weights().as_ptr(),
            next: self.ahead.of_row(row),
            pace: self.ahead.pace * R,
        };
        for segment in panel.segments() {
            // SAFETY: `Schedule::pack` wrote as many offsets and weights as the segments' steps take, and offsets of quads
            // within the depth; the caller promises `R` rows of it.
            unsafe {
                if V == 2 && R >= ROWS_MIN {
                    add(&mut acc, &mut at, lda, *segment);
                } else {
                    acc = pairs(acc, &mut at, lda, segment.pairs);
                    acc = singles(acc, &mut at, lda, segment.singles);
                    acc = wides(acc, &mut at, lda, segment.wides);
                }
            }
            // Past the last segment there may be nothing to point at.
            at.a = at.a.wrapping_add(panel.segment_bytes());
        }
        out.write(acc);
    }
}

/// # Safety
/// `at` leads to `steps` steps of two quads each, and to `R` rows, `lda` apart, that hold these quads.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn pairs<const R: usize, const V: usize>(
    mut acc: [[__m256i; V]; R],
    at: &mut Cursor,
    lda: usize,
    steps: usize,
) -> [[__m256i; V]; R] {
    let Cursor { a, mut quad, mut weights, mut next, pace } = *at;
    let one = _mm256_set1_epi16(1);
    for _ in 0..steps {
        // SAFETY: the caller promises the step.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(next);
            let b = load::<V>(weights);
            let d = load::<V>(weights.add(V * 32));
            let (x, y) = (a.add(usize::from(*quad)), a.add(usize::from(*quad.add(1))));
            for r in 0..R {
                let (x, y) = (broadcast(x.add(r * lda)), broadcast(y.add(r * lda)));
                for v in 0..V {
                    let sums = _mm256_add_epi16(_mm256_maddubs_epi16(x, b[v]), _mm256_maddubs_epi16(y, d[v]));
                    acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(sums, one));
                }
            }
            (quad, weights) = (quad.add(2), weights.add(V * 64));
            next = next.wrapping_add(pace);
        }
    }
    (at.quad, at.weights, at.next) = (quad, weights, next);
    acc
}

/// # Safety
/// Like [`pairs`], with one quad a step.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn singles<const R: usize, const V: usize>(
    mut acc: [[__m256i; V]; R],
    at: &mut Cursor,
    lda: usize,
    steps: usize,
) -> [[__m256i; V]; R] {
    let Cursor { a, mut quad, mut weights, mut next, pace } = *at;
    let one = _mm256_set1_epi16(1);
    for _ in 0..steps {
        // SAFETY: the caller promises the step.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(next);
            let b = load::<V>(weights);
            let x = a.add(usize::from(*quad));
            for r in 0..R {
                let x = broadcast(x.add(r * lda));
                for v in 0..V {
                    let sums = _mm256_madd_epi16(_mm256_maddubs_epi16(x, b[v]), one);
                    acc[r][v] = _mm256_add_epi32(acc[r][v], sums);
                }
            }
            (quad, weights) = (quad.add(1), weights.add(V * 32));
            next = next.wrapping_add(pace);
        }
    }
    (at.quad, at.weights, at.next) = (quad, weights, next);
    acc
}

/// # Safety
/// Like [`pairs`], with one quad a step.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn wides<const R: usize, const V: usize>(
    mut acc: [[__m256i; V]; R],
    at: &mut Cursor,
    lda: usize,
    steps: usize,
) -> [[__m256i; V]; R] {
    let Cursor { a, mut quad, mut weights, mut next, pace } = *at;
    let low = _mm256_set1_epi16(0xff);
    for _ in 0..steps {
        // SAFETY: the caller promises the step.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(next);
            let b = load::<V>(weights);
            let d = load::<V>(weights.add(V * 32));
            let x = a.add(usize::from(*quad));
            for r in 0..R {
                let x = broadcast(x.add(r * lda));
                let (even, odd) = (_mm256_and_si256(x, low), _mm256_srli_epi16::<8>(x));
                for v in 0..V {
                    acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(even, b[v]));
                    acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(odd, d[v]));
                }
            }
            (quad, weights) = (quad.add(1), weights.add(V * 64));
            next = next.wrapping_add(pace);
        }
    }
    (at.quad, at.weights, at.next) = (quad, weights, next);
    acc
}

/// `V` registers of weights.
///
/// # Safety
/// `from` is aligned to 32 bytes and leads to `V * 32`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load<const V: usize>(from: *const i8) -> [__m256i; V] {
    let mut lanes = [_mm256_setzero_si256(); V];
    for v in 0..V {
        // SAFETY: the caller promises it.
        lanes[v] = unsafe { _mm256_load_si256(from.add(v * 32).cast()) };
    }
    lanes
}

/// A quad of activations in every lane.
///
/// # Safety
/// `from` leads to four bytes.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn broadcast(from: *const u8) -> __m256i {
    // SAFETY: the caller promises it.
    _mm256_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() })
}
