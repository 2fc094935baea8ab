//! AVX2: the three steps of Winograd's transforms in integers, over runs of tiles. Knows packed slices only; which tile
//! lies where is the caller's.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::tiles::Place;
use super::winograd_tiles::NARROW;
use super::winograd_transform::{NINTH, OUTPUTS_MAX, Transform, f4_input, f4_output};
use super::x86_64::Avx2;
use super::x86_64_finish::{Codes, Finish, ToCodes, ToFloats, ToSums, bias_lanes, factor_lanes};
use super::x86_64_tile::{Requests, Tile};
use std::arch::x86_64::*;

/// Channels of the input that are treated at once.
const STEP: usize = NARROW.channels;

/// Columns of a whole panel.
const COLUMNS: usize = NARROW.columns;

/// Most tiles of a register tile of the products.
const ROWS: usize = NARROW.rows;

impl Avx2 {
    /// Transforms one tile: pixel `(i, j)` of it has its channels at `x[i * line + j * pixel ..]`. Position `p`, channel
    /// `c` goes to `v[p * slab + c]`. At least 16 `channels`.
    #[expect(clippy::too_many_arguments, reason = "a tile is its place in two tensors")]
    #[inline(always)]
    pub(super) fn winograd_input(
        self,
        transform: Transform,
        x: &[u8],
        line: usize,
        pixel: usize,
        channels: usize,
        v: &mut [i16],
        slab: usize,
    ) {
        let side = transform.side();
        assert!(channels >= STEP && x.len() >= (side - 1) * (line + pixel) + channels);
        assert!(v.len() >= (transform.positions() - 1) * slab + channels);
        // SAFETY: `self` proves AVX2; the lengths were just checked.
        unsafe { input(transform, x, line, pixel, channels, v, slab) }
    }

    /// Products of one position: `count` rows of `v`, `ld` apart, times a panel of `width` columns and `depth` (a
    /// multiple of 4) elements, to `m[tile * apart + column]`.
    #[expect(clippy::too_many_arguments, reason = "a product is its operands and their strides")]
    #[inline(always)]
    pub(super) fn winograd_products(
        self,
        v: &[i16],
        ld: usize,
        count: usize,
        panel: &[i16],
        width: usize,
        depth: usize,
        m: &mut [i32],
        apart: usize,
    ) {
        assert!(
            depth.is_multiple_of(4) && v.len() >= (count - 1) * ld + depth && panel.len() >= width * depth
        );
        assert!(m.len() >= (count - 1) * apart + width);
        assert!(panel.as_ptr().addr().is_multiple_of(32), "panels are aligned");
        // SAFETY: `self` proves AVX2; the lengths and the alignment were just checked.
        unsafe {
            match width {
                16 => products::<2>(v.as_ptr(), ld, count, panel.as_ptr(), depth, m.as_mut_ptr(), apart),
                8 => products::<1>(v.as_ptr(), ld, count, panel.as_ptr(), depth, m.as_mut_ptr(), apart),
                _ => unreachable!("a panel has 8 or 16 columns"),
            }
        }
    }

    /// Outputs of neighbouring tiles, `pixels` in each of `lines` output lines that are `line` elements apart, from sums
    /// `m`, `[tiles, positions, COLUMNS]`, through the epilogue (without the table and a sum of codes). `place` is the
    /// first pixel's.
    #[expect(clippy::too_many_arguments, reason = "a run is its operands and its place")]
    #[inline(always)]
    pub(super) fn winograd_outputs(
        self,
        transform: Transform,
        m: &[i32],
        width: usize,
        pixels: usize,
        lines: usize,
        line: usize,
        out: &mut IntOutput,
        place: Place,
    ) {
        let outputs = transform.outputs();
        assert!(m.len() >= pixels.div_ceil(outputs) * transform.positions() * COLUMNS);
        assert!(pixels > 0 && (1..=outputs).contains(&lines) && place.columns <= width);
        place.assert_within(pixels, out.len() - (lines - 1) * line);
        let run = Run { transform, m: m.as_ptr(), pixels, lines, line, place };
        // SAFETY: `self` proves AVX2; the lengths were just checked.
        unsafe {
            match width {
                16 => outputs_to::<2>(run, out),
                8 => outputs_to::<1>(run, out),
                _ => unreachable!("a panel has 8 or 16 columns"),
            }
        }
    }
}

/// See [`Avx2::winograd_input`].
///
/// # Safety
/// Every pixel has `channels` (at least 16) elements in `x`, every position in `v`.
#[target_feature(enable = "avx2,fma")]
unsafe fn input(
    transform: Transform,
    x: &[u8],
    line: usize,
    pixel: usize,
    channels: usize,
    v: &mut [i16],
    slab: usize,
) {
    // SAFETY: the caller promises it.
    unsafe {
        match transform {
            Transform::F2 => input_by::<4>(x, line, pixel, channels, v, slab, |d| four(d)),
            Transform::F4 => input_by::<6>(x, line, pixel, channels, v, slab, |d| six(d)),
        }
    }
}

/// B^T d B by `transform`, B^T of one column, for tiles of `S` pixels in each direction.
///
/// # Safety
/// Like [`input`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn input_by<const S: usize>(
    x: &[u8],
    line: usize,
    pixel: usize,
    channels: usize,
    v: &mut [i16],
    slab: usize,
    transform: impl Fn([__m256i; S]) -> [__m256i; S],
) {
    let mut first = 0;
    while first < channels {
        // The last step is moved back to be whole.
        let c = first.min(channels - STEP);
        let mut t = [[_mm256_setzero_si256(); S]; S];
        for j in 0..S {
            let mut d = [_mm256_setzero_si256(); S];
            for i in 0..S {
                // SAFETY: the caller promises 16 channels from `c` on of each pixel.
                d[i] = unsafe {
                    _mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().add(i * line + j * pixel + c).cast()))
                };
            }
            let column = transform(d);
            for i in 0..S {
                t[i][j] = column[i];
            }
        }
        for i in 0..S {
            let row = transform(t[i]);
            for j in 0..S {
                // SAFETY: the caller promises 16 channels from `c` on of each position.
                unsafe { _mm256_storeu_si256(v.as_mut_ptr().add((i * S + j) * slab + c).cast(), row[j]) }
            }
        }
        first += STEP;
    }
}

/// See [`Avx2::winograd_products`].
///
/// # Safety
/// `v` leads to `count` rows of `depth` elements, `panel` to `V * 8 * depth`, `m` to `count` rows of `V * 8`,
/// `apart` from each other.
#[target_feature(enable = "avx2,fma")]
unsafe fn products<const V: usize>(
    v: *const i16,
    ld: usize,
    count: usize,
    panel: *const i16,
    depth: usize,
    m: *mut i32,
    apart: usize,
) {
    // Groups of about the same size: five rows are as fast a row as six.
    let groups = count.div_ceil(ROWS);
    let (size, mut more) = (count / groups, count % groups);
    let (mut v, mut m) = (v, m);
    for g in 0..groups {
        let rows = size + usize::from(more > 0);
        more = more.saturating_sub(1);
        // What comes next is asked for early: with the first group the next position's panel, with others their
        // successor's rows.
        let next = match g {
            0 => (panel.wrapping_add(depth * V * 8), 64),
            _ => (v.wrapping_add(rows * ld), 4 * rows),
        };
        // SAFETY: the caller promises `count` rows, which is what the groups have together.
        unsafe {
            match rows {
                6 => product::<6, V>(v, ld, panel, depth, m, apart, next),
                5 => product::<5, V>(v, ld, panel, depth, m, apart, next),
                4 => product::<4, V>(v, ld, panel, depth, m, apart, next),
                3 => product::<3, V>(v, ld, panel, depth, m, apart, next),
                2 => product::<2, V>(v, ld, panel, depth, m, apart, next),
                _ => product::<1, V>(v, ld, panel, depth, m, apart, next),
            }
            v = v.add(rows * ld);
            m = m.add(rows * apart);
        }
    }
}

/// # Safety
/// As for [`products`], with `R` rows.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn product<const R: usize, const V: usize>(
    v: *const i16,
    ld: usize,
    panel: *const i16,
    depth: usize,
    m: *mut i32,
    apart: usize,
    (mut next_lines, advance): (*const i16, usize),
) {
    let mut acc = [[_mm256_setzero_si256(); V]; R];
    if V == 2 {
        let next = next_lines.cast();
        let tile = Tile { a: v, row: ld, run: 0, runs: 1, steps: depth / 2, panel, next, pace: advance };
        // SAFETY: the caller promises `R` rows and a panel of that depth.
        unsafe { tile.add(Requests::InStep, &mut acc) };
    } else {
        for k in (0..depth).step_by(2) {
            _mm_prefetch::<_MM_HINT_T0>(next_lines.cast());
            next_lines = next_lines.wrapping_byte_add(advance);
            for r in 0..R {
                // SAFETY: `k + 1 < depth`, and the caller promises `R` rows and a panel of that depth.
                unsafe {
                    let values = _mm256_set1_epi32(v.add(r * ld + k).cast::<i32>().read_unaligned());
                    for c in 0..V {
                        let column = _mm256_load_si256(panel.add(k * V * 8 + c * 16).cast());
                        acc[r][c] = _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(values, column));
                    }
                }
            }
        }
    }
    for r in 0..R {
        for c in 0..V {
            // SAFETY: the caller promises `R` rows of `m`.
            unsafe { _mm256_storeu_si256(m.add(r * apart + c * 8).cast(), acc[r][c]) }
        }
    }
}

/// A run of [`Avx2::winograd_outputs`].
#[derive(Clone, Copy)]
struct Run {
    transform: Transform,
    m: *const i32,
    pixels: usize,
    lines: usize,
    line: usize,
    place: Place,
}

/// # Safety
/// `m` leads to the tiles' sums, in panels of `V * 8` columns, and `out` holds the pixels of all lines.
#[target_feature(enable = "avx2,fma")]
unsafe fn outputs_to<const V: usize>(run: Run, out: &mut IntOutput) {
    let place = run.place;
    let bias = bias_lanes::<V>(out, place);
    // SAFETY: the caller promises it.
    unsafe {
        match out {
            IntOutput::U8(out, requant) => {
                let factor = factor_lanes::<V>(requant.multiplier, place);
                finish(run, bias, ToCodes { out, codes: Codes::<false>::new(requant), factor, place });
            }
            IntOutput::F32(out, dequant) => {
                let factor = factor_lanes::<V>(dequant.scale, place);
                finish(run, bias, ToFloats { out, factor, place });
            }
            IntOutput::I32(out, _) => finish(run, bias, ToSums { out, place }),
        }
    }
}

/// # Safety
/// Like [`outputs_to`], `finish` having its output.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn finish<const V: usize>(run: Run, bias: [__m256i; V], finish: impl Finish<V>) {
    let ninth = _mm256_set1_epi32(NINTH);
    // SAFETY: the caller promises it.
    unsafe {
        match run.transform {
            Transform::F2 => finish_by::<4, 2, V>(run, bias, finish, |m| two_outputs(m), |sum| sum),
            Transform::F4 => {
                let divide = |sum| _mm256_mullo_epi32(sum, ninth);
                finish_by::<6, 4, V>(run, bias, finish, |m| four_outputs(m), divide);
            }
        }
    }
}

/// A^T M A by `transform`, A^T of one column, divided by `divide` and powers of two, + bias of each tile, line by line: see
/// [`Transform::sum`]. `S` numbers in each direction become `O` outputs.
///
/// # Safety
/// Like [`finish`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn finish_by<const S: usize, const O: usize, const V: usize>(
    run: Run,
    bias: [__m256i; V],
    mut finish: impl Finish<V>,
    transform: impl Fn([__m256i; S]) -> [__m256i; O],
    divide: impl Fn(__m256i) -> __m256i,
) {
    let Run { m, pixels, lines, line, place, .. } = run;
    let powers = run.transform.powers();
    for first in (0..pixels).step_by(O) {
        let m = m.wrapping_add(first / O * S * S * COLUMNS);
        let mut t = [[[_mm256_setzero_si256(); S]; V]; O];
        for v in 0..V {
            for j in 0..S {
                let mut column = [_mm256_setzero_si256(); S];
                for i in 0..S {
                    let from = m.wrapping_add((i * S + j) * COLUMNS + v * 8);
                    // SAFETY: the caller promises all positions of 16 columns of the tile.
                    column[i] = unsafe { _mm256_loadu_si256(from.cast()) };
                }
                let column = transform(column);
                for i in 0..O {
                    t[i][v][j] = column[i];
                }
            }
        }
        for y in 0..lines {
            let mut sums = [[_mm256_setzero_si256(); V]; OUTPUTS_MAX];
            for v in 0..V {
                let row = transform(t[y][v]);
                for x in 0..O {
                    let shift = _mm256_set1_epi32(powers[y] + powers[x]);
                    sums[x][v] = _mm256_add_epi32(_mm256_srav_epi32(divide(row[x]), shift), bias[v]);
                }
            }
            let at = place.at + first * place.stride + y * line;
            let [a, b, c, d] = sums;
            // SAFETY: the caller promises the pixels of all lines.
            unsafe {
                match O.min(pixels - first) {
                    4 => finish.put(&[a, b, c, d], at),
                    3 => finish.put(&[a, b, c], at),
                    2 => finish.put(&[a, b], at),
                    _ => finish.put(&[a], at),
                }
            }
        }
    }
}

/// See [`Transform::input`] for F2.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn four(d: [__m256i; 4]) -> [__m256i; 4] {
    [
        _mm256_sub_epi16(d[0], d[2]),
        _mm256_add_epi16(d[1], d[2]),
        _mm256_sub_epi16(d[2], d[1]),
        _mm256_sub_epi16(d[1], d[3]),
    ]
}

/// See [`Transform::input`] for F4.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn six(d: [__m256i; 6]) -> [__m256i; 6] {
    let (add, sub) = (|a, b| _mm256_add_epi16(a, b), |a, b| _mm256_sub_epi16(a, b));
    f4_input!(d, add, sub, |a| _mm256_slli_epi16::<2>(a))
}

/// See [`Transform::output`] for F2.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn two_outputs(m: [__m256i; 4]) -> [__m256i; 2] {
    let (sum, difference) = (_mm256_add_epi32(m[1], m[2]), _mm256_sub_epi32(m[1], m[2]));
    [_mm256_add_epi32(m[0], sum), _mm256_sub_epi32(difference, m[3])]
}

/// See [`Transform::output`] for F4.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn four_outputs(m: [__m256i; 6]) -> [__m256i; 4] {
    let (add, sub) = (|a, b| _mm256_add_epi32(a, b), |a, b| _mm256_sub_epi32(a, b));
    f4_output!(m, add, sub, |a| _mm256_slli_epi32::<2>(a))
}
