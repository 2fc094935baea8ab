//! AVX-512 with dot products: the three steps of Winograd's F(4x4,3x3) in integers, over runs of tiles. Knows packed
//! slices only; which tile lies where is the caller's.
//!
//! Dot products of 16 bits (`vpdpwssd`) are half as dense as those of bytes, but a quarter of them is wanted.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::tiles::Place;
use super::winograd_tiles::WIDE;
use super::winograd_transform::{NINTH, OUTPUTS_MAX, SIDE_MAX, Transform, f4_input, f4_output};
use super::x86_64_finish::opaque;
use super::x86_64_vnni::Avx512Vnni;
use super::x86_64_vnni_finish::{Finish, ToCodes, ToFloats, ToSums, ToSumsOfCodes, are_plain, lanes};
use std::arch::x86_64::*;

/// Channels of the input that are treated at once.
const STEP: usize = WIDE.channels;

/// Columns of a whole panel.
const COLUMNS: usize = WIDE.columns;

/// Most tiles of a register tile of the products.
const ROWS: usize = WIDE.rows;

/// The powers of two among the factors of the outputs.
const POWERS: [i32; OUTPUTS_MAX] = Transform::F4.powers();

/// Numbers that a tile becomes.
const POSITIONS: usize = SIDE_MAX * SIDE_MAX;

impl Avx512Vnni {
    /// Like [`Avx2::winograd_input`](super::x86_64::Avx2::winograd_input), with at least 32 `channels`.
    #[inline(always)]
    pub(super) fn winograd_input(
        self,
        x: &[u8],
        line: usize,
        pixel: usize,
        channels: usize,
        v: &mut [i16],
        slab: usize,
    ) {
        assert!(channels >= STEP && x.len() >= (SIDE_MAX - 1) * (line + pixel) + channels);
        assert!(v.len() >= (POSITIONS - 1) * slab + channels);
        // SAFETY: `self` proves the features; the lengths were just checked.
        unsafe { input(x, line, pixel, channels, v, slab) }
    }

    /// Like [`Avx2::winograd_products`](super::x86_64::Avx2::winograd_products), with panels of 16 or 32 columns.
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
            depth.is_multiple_of(2) && v.len() >= (count - 1) * ld + depth && panel.len() >= width * depth
        );
        assert!(m.len() >= (count - 1) * apart + width);
        // SAFETY: `self` proves the features; the lengths were just checked.
        unsafe {
            match width {
                32 => products::<2>(v.as_ptr(), ld, count, panel.as_ptr(), depth, m.as_mut_ptr(), apart),
                16 => products::<1>(v.as_ptr(), ld, count, panel.as_ptr(), depth, m.as_mut_ptr(), apart),
                _ => unreachable!("a panel has 16 or 32 columns"),
            }
        }
    }

    /// Like [`Avx2::winograd_outputs`](super::x86_64::Avx2::winograd_outputs). A sum of codes that registers can add is
    /// added if `summed`.
    #[expect(clippy::too_many_arguments, reason = "a run is its operands and its place")]
    #[inline(always)]
    pub(super) fn winograd_outputs(
        self,
        m: &[i32],
        width: usize,
        pixels: usize,
        lines: usize,
        line: usize,
        out: &mut IntOutput,
        place: Place,
        summed: bool,
    ) {
        assert!(m.len() >= pixels.div_ceil(OUTPUTS_MAX) * POSITIONS * COLUMNS);
        assert!(pixels > 0 && (1..=OUTPUTS_MAX).contains(&lines) && place.columns <= width);
        place.assert_within(pixels, out.len() - (lines - 1) * line);
        let run = Run { m: m.as_ptr(), pixels, lines, line, place };
        // SAFETY: `self` proves the features; the lengths were just checked.
        unsafe {
            match width {
                32 => outputs::<2>(run, out, summed),
                16 => outputs::<1>(run, out, summed),
                _ => unreachable!("a panel has 16 or 32 columns"),
            }
        }
    }
}

/// See [`Avx512Vnni::winograd_input`]: B^T d B.
///
/// # Safety
/// Every pixel has `channels` (at least 32) elements in `x`, every position in `v`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn input(x: &[u8], line: usize, pixel: usize, channels: usize, v: &mut [i16], slab: usize) {
    let mut first = 0;
    while first < channels {
        // The last step is moved back to be whole.
        let c = first.min(channels - STEP);
        let mut t = [[_mm512_setzero_si512(); SIDE_MAX]; SIDE_MAX];
        for j in 0..SIDE_MAX {
            let column = [0, 1, 2, 3, 4, 5].map(|i| {
                let from = x.as_ptr().wrapping_add(i * line + j * pixel + c);
                // SAFETY: the caller promises 32 channels from `c` on of each pixel.
                unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast())) }
            });
            let column = six(column);
            for i in 0..SIDE_MAX {
                t[i][j] = column[i];
            }
        }
        for i in 0..SIDE_MAX {
            let row = six(t[i]);
            for j in 0..SIDE_MAX {
                let to = v.as_mut_ptr().wrapping_add((i * SIDE_MAX + j) * slab + c);
                // SAFETY: the caller promises 32 channels from `c` on of each position.
                unsafe { _mm512_storeu_si512(to.cast(), row[j]) }
            }
        }
        first += STEP;
    }
}

/// See [`Avx512Vnni::winograd_products`].
///
/// # Safety
/// `v` leads to `count` rows of `depth` elements, `panel` to `V * 16 * depth`, `m` to `count` rows of `V * 16`, `apart`
/// from each other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn products<const V: usize>(
    v: *const i16,
    ld: usize,
    count: usize,
    panel: *const i16,
    depth: usize,
    m: *mut i32,
    apart: usize,
) {
    // Each register tile asks for its share of the next position's panel, in even steps: what is asked for in one go
    // keeps the rows waiting.
    let tiles = count.div_ceil(ROWS);
    let (bytes, pace) = (depth * V * 32, V * 64 / tiles);
    let mut next = panel.wrapping_byte_add(bytes);
    let mut row = 0;
    while row < count {
        let left = count - row;
        let rows = left.div_ceil(left.div_ceil(ROWS));
        macro_rules! product {
            ($($rows:literal)*) => {
                match rows {
                    // SAFETY: the caller promises the rows, of which these are some.
                    $($rows => unsafe {
                        let (v, m) = (v.add(row * ld), m.add(row * apart));
                        product::<$rows, V>(v, ld, panel, depth, m, apart, (next, pace));
                    },)*
                    _ => unreachable!("a tile has 1 to 12 rows"),
                }
            };
        }
        product!(1 2 3 4 5 6 7 8 9 10 11 12);
        row += rows;
        next = next.wrapping_byte_add(bytes / tiles);
    }
}

/// # Safety
/// As for [`products`], with `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn product<const R: usize, const V: usize>(
    v: *const i16,
    ld: usize,
    panel: *const i16,
    depth: usize,
    m: *mut i32,
    apart: usize,
    (mut next, pace): (*const i16, usize),
) {
    let mut acc = [[_mm512_setzero_si512(); V]; R];
    let mut rows: [*const i16; 4] = std::array::from_fn(|i| opaque(v.wrapping_add(3 * i * ld)));
    let mut panel = panel;
    for _ in 0..depth / 2 {
        // In every step, because a branch would cost the accumulators their registers.
        _mm_prefetch::<_MM_HINT_T0>(next.cast());
        next = next.wrapping_byte_add(pace);
        // SAFETY: the caller promises `R` rows and a panel of that depth, of which this is a step.
        unsafe {
            let mut columns = [_mm512_setzero_si512(); V];
            for c in 0..V {
                columns[c] = _mm512_loadu_si512(panel.add(c * 32).cast());
            }
            for r in 0..R {
                let pair = _mm512_set1_epi32(rows[r / 3].add(r % 3 * ld).cast::<i32>().read_unaligned());
                for c in 0..V {
                    acc[r][c] = _mm512_dpwssd_epi32(acc[r][c], pair, columns[c]);
                }
            }
        }
        for row in &mut rows {
            *row = row.wrapping_add(2);
        }
        panel = panel.wrapping_add(V * 32);
    }
    for r in 0..R {
        for c in 0..V {
            // SAFETY: the caller promises `R` rows of `m`.
            unsafe { _mm512_storeu_si512(m.add(r * apart + c * 16).cast(), acc[r][c]) }
        }
    }
}

/// A run of [`Avx512Vnni::winograd_outputs`].
#[derive(Clone, Copy)]
struct Run {
    m: *const i32,
    pixels: usize,
    lines: usize,
    line: usize,
    place: Place,
}

/// # Safety
/// `m` leads to the tiles' sums, in panels of `V * 16` columns, and `out` holds the pixels of all lines.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn outputs<const V: usize>(run: Run, out: &mut IntOutput, summed: bool) {
    let place = run.place;
    // SAFETY: the caller promises it.
    unsafe {
        match out {
            IntOutput::U8(out, requant) => {
                let bias = lanes::<i32, V>(requant.bias, place);
                match requant.sum_in_registers().filter(|_| summed) {
                    Some(sum) => finish(run, bias, ToSumsOfCodes::new(out, requant, sum, place)),
                    None if are_plain::<V>(requant, place) => {
                        finish(run, bias, ToCodes::<V, true>::new(out, requant, place));
                    }
                    None => finish(run, bias, ToCodes::<V, false>::new(out, requant, place)),
                }
            }
            IntOutput::F32(out, dequant) => {
                let bias = lanes::<i32, V>(dequant.bias, place);
                finish(run, bias, ToFloats::new(out, dequant, place));
            }
            IntOutput::I32(out, bias) => finish(run, lanes::<i32, V>(bias, place), ToSums { out, place }),
        }
    }
}

/// A^T M A, divided, + bias of each tile, line by line. What an output is divided by is in
/// [`Transform::sum`].
///
/// # Safety
/// Like [`outputs`], `finish` having its output.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn finish<const V: usize>(run: Run, bias: [__m512i; V], mut finish: impl Finish<V>) {
    let Run { m, pixels, lines, line, place } = run;
    let ninth = _mm512_set1_epi32(NINTH);
    for first in (0..pixels).step_by(OUTPUTS_MAX) {
        let m = m.wrapping_add(first / OUTPUTS_MAX * POSITIONS * COLUMNS);
        let mut t = [[[_mm512_setzero_si512(); SIDE_MAX]; V]; OUTPUTS_MAX];
        for v in 0..V {
            for j in 0..SIDE_MAX {
                let column = [0, 1, 2, 3, 4, 5].map(|i| {
                    let from = m.wrapping_add((i * SIDE_MAX + j) * COLUMNS + v * 16);
                    // SAFETY: the caller promises 36 positions of 32 columns of the tile.
                    unsafe { _mm512_loadu_si512(from.cast()) }
                });
                let column = four(column);
                for i in 0..OUTPUTS_MAX {
                    t[i][v][j] = column[i];
                }
            }
        }
        for y in 0..lines {
            let mut sums = [[_mm512_setzero_si512(); V]; OUTPUTS_MAX];
            for v in 0..V {
                let row = four(t[y][v]);
                for x in 0..OUTPUTS_MAX {
                    let sum = _mm512_mullo_epi32(row[x], ninth);
                    let shift = _mm512_set1_epi32(POWERS[y] + POWERS[x]);
                    sums[x][v] = _mm512_add_epi32(_mm512_srav_epi32(sum, shift), bias[v]);
                }
            }
            let at = place.at + first * place.stride + y * line;
            let [a, b, c, d] = sums;
            // SAFETY: the caller promises the pixels of all lines.
            unsafe {
                match pixels - first {
                    1 => finish.put([a], at),
                    2 => finish.put([a, b], at),
                    3 => finish.put([a, b, c], at),
                    _ => finish.put([a, b, c, d], at),
                }
            }
        }
    }
}

/// See [`Transform::input`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn six(d: [__m512i; 6]) -> [__m512i; 6] {
    let (add, sub) = (|a, b| _mm512_add_epi16(a, b), |a, b| _mm512_sub_epi16(a, b));
    f4_input!(d, add, sub, |a| _mm512_slli_epi16::<2>(a))
}

/// See [`Transform::output`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn four(m: [__m512i; 6]) -> [__m512i; 4] {
    let (add, sub) = (|a, b| _mm512_add_epi32(a, b), |a, b| _mm512_sub_epi32(a, b));
    f4_output!(m, add, sub, |a| _mm512_slli_epi32::<2>(a))
}
