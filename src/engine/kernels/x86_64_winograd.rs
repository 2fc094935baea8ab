//! AVX2: the three steps of Winograd's F(2x2,3x3) in integers, over runs of tiles. Knows packed slices only; which tile
//! lies where is the caller's.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::tiles::Place;
use super::winograd_tiles::{COLUMNS, POSITIONS, ROWS};
use super::x86_64::Avx2;
use super::x86_64_finish::{Codes, bias_lanes, factor_lanes, store_int};
use std::arch::x86_64::*;

/// Channels of the input that are treated at once.
const STEP: usize = 16;

impl Avx2 {
    /// Transforms one tile: pixel `(i, j)` of the 4 x 4 has its channels at `x[i * line + j * pixel ..]`. Position
    /// `p`, channel `c` goes to `v[p * slab + c]`. At least 16 `channels`.
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
        assert!(channels >= STEP && x.len() >= 3 * (line + pixel) + channels);
        assert!(v.len() >= (POSITIONS - 1) * slab + channels);
        // SAFETY: `self` proves AVX2; the lengths were just checked.
        unsafe { input(x, line, pixel, channels, v, slab) }
    }

    /// Products of one position: `count` rows of `v`, `ld` apart, times a panel of `width` columns and `depth` (a
    /// multiple of 4) elements, to `m[tile * POSITIONS * COLUMNS + column]`.
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
    ) {
        assert!(
            depth.is_multiple_of(4) && v.len() >= (count - 1) * ld + depth && panel.len() >= width * depth
        );
        assert!(m.len() >= (count - 1) * POSITIONS * COLUMNS + width);
        assert!(panel.as_ptr().addr().is_multiple_of(32), "panels are aligned");
        // SAFETY: `self` proves AVX2; the lengths and the alignment were just checked.
        unsafe {
            match width {
                16 => products::<2>(v.as_ptr(), ld, count, panel.as_ptr(), depth, m.as_mut_ptr()),
                8 => products::<1>(v.as_ptr(), ld, count, panel.as_ptr(), depth, m.as_mut_ptr()),
                _ => unreachable!("a panel has 8 or 16 columns"),
            }
        }
    }

    /// Outputs of neighbouring tiles, `pixels` in each of `lines` (1 or 2) output lines that are `line` elements apart,
    /// from products `m`, `[tiles, POSITIONS, COLUMNS]`, through the epilogue (without the table). `place` is the first
    /// pixel's.
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
    ) {
        assert!(m.len() >= pixels.div_ceil(2) * POSITIONS * COLUMNS && place.columns <= width);
        assert!(pixels > 0 && (1..=2).contains(&lines));
        place.assert_within(pixels, out.len() - (lines - 1) * line);
        // SAFETY: `self` proves AVX2; the lengths were just checked.
        unsafe {
            match width {
                16 => outputs::<2>(m.as_ptr(), pixels, lines, line, out, place),
                8 => outputs::<1>(m.as_ptr(), pixels, lines, line, out, place),
                _ => unreachable!("a panel has 8 or 16 columns"),
            }
        }
    }
}

/// See [`Avx2::winograd_input`]: B^T d B, whose entries are sums of four codes with signs and so within 16 bits.
///
/// # Safety
/// Every pixel has `channels` (at least 16) elements in `x`, every position in `v`.
#[target_feature(enable = "avx2,fma")]
unsafe fn input(x: &[u8], line: usize, pixel: usize, channels: usize, v: &mut [i16], slab: usize) {
    let mut first = 0;
    while first < channels {
        // The last step is moved back to be whole.
        let c = first.min(channels - STEP);
        let mut t = [[_mm256_setzero_si256(); 4]; 4];
        for j in 0..4 {
            // SAFETY: the caller promises 16 channels from `c` on of each pixel.
            let d = [0, 1, 2, 3].map(|i| unsafe {
                _mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().add(i * line + j * pixel + c).cast()))
            });
            let column = four(d);
            for i in 0..4 {
                t[i][j] = column[i];
            }
        }
        for i in 0..4 {
            let row = four(t[i]);
            for j in 0..4 {
                // SAFETY: the caller promises 16 channels from `c` on of each position.
                unsafe { _mm256_storeu_si256(v.as_mut_ptr().add((i * 4 + j) * slab + c).cast(), row[j]) }
            }
        }
        first += STEP;
    }
}

/// B^T d for one column.
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

/// See [`Avx2::winograd_products`].
///
/// # Safety
/// `v` leads to `count` rows of `depth` elements, `panel` to `V * 8 * depth`, `m` to `count` rows of `V * 8`.
#[target_feature(enable = "avx2,fma")]
unsafe fn products<const V: usize>(
    v: *const i16,
    ld: usize,
    count: usize,
    panel: *const i16,
    depth: usize,
    m: *mut i32,
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
                6 => product::<6, V>(v, ld, panel, depth, m, next),
                5 => product::<5, V>(v, ld, panel, depth, m, next),
                4 => product::<4, V>(v, ld, panel, depth, m, next),
                3 => product::<3, V>(v, ld, panel, depth, m, next),
                2 => product::<2, V>(v, ld, panel, depth, m, next),
                _ => product::<1, V>(v, ld, panel, depth, m, next),
            }
            v = v.add(rows * ld);
            m = m.add(rows * POSITIONS * COLUMNS);
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
    (mut next_lines, advance): (*const i16, usize),
) {
    let mut acc = [[_mm256_setzero_si256(); V]; R];
    // SAFETY: the caller promises `R` rows; of those that there are not nothing is read.
    let [first, fourth] = [0, 3].map(|r| unsafe { v.add(r.min(R - 1) * ld) }.cast::<i32>());
    let (next, mut panel) = (ld / 2, panel);
    // Two rows' pointers and a common index, and two steps at once: what computes addresses competes with the
    // vectors for ports.
    for pair in (0..depth / 2).step_by(2) {
        for pair in [pair, pair + 1] {
            // SAFETY: `pair < depth / 2`, and the caller promises `R` rows and a panel of that depth.
            unsafe {
                let mut columns = [_mm256_setzero_si256(); V];
                for c in 0..V {
                    columns[c] = _mm256_load_si256(panel.add(c * 16).cast());
                }
                panel = panel.add(V * 16);
                _mm_prefetch::<_MM_HINT_T0>(next_lines.cast());
                next_lines = next_lines.wrapping_byte_add(advance);
                for r in 0..R {
                    let row = if r < 3 { first.add(r * next) } else { fourth.add((r - 3) * next) };
                    let values = _mm256_set1_epi32(row.add(pair).read_unaligned());
                    for c in 0..V {
                        acc[r][c] = _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(values, columns[c]));
                    }
                }
            }
        }
    }
    for r in 0..R {
        for c in 0..V {
            // SAFETY: the caller promises `R` rows of `m`.
            unsafe { _mm256_storeu_si256(m.add(r * POSITIONS * COLUMNS + c * 8).cast(), acc[r][c]) }
        }
    }
}

/// See [`Avx2::winograd_outputs`].
///
/// # Safety
/// `m` leads to the tiles' products, and `out` holds `pixels` rows at `place` and again `line` elements further, if
/// there are two lines.
#[target_feature(enable = "avx2,fma")]
unsafe fn outputs<const V: usize>(
    m: *const i32,
    pixels: usize,
    lines: usize,
    line: usize,
    out: &mut IntOutput,
    place: Place,
) {
    let bias = bias_lanes::<V>(out, place);
    if let IntOutput::U8(out, requant) = out
        && V == 2
        && place.columns == COLUMNS
    {
        let epilogue = Codes::new(requant);
        let factor = factor_lanes::<V>(requant.multiplier, place);
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        for x in (0..pixels).step_by(2) {
            // SAFETY: the caller promises the products of the tile and the pixels stored.
            unsafe {
                let sums = tile_sums::<V>(m.add(x / 2 * POSITIONS * COLUMNS), bias);
                let to = out.as_mut_ptr().add(place.at + x * place.stride);
                for y in 0..lines {
                    let mut q = [_mm256_setzero_si256(); 4];
                    for i in 0..4 {
                        q[i] = epilogue.rounded(sums[y][i / 2][i % V], factor[i % V]);
                    }
                    let codes = _mm256_permutevar8x32_epi32(epilogue.bytes(q), order);
                    let to = to.add(y * line);
                    _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(codes));
                    if x + 1 < pixels {
                        _mm_storeu_si128(to.add(place.stride).cast(), _mm256_extracti128_si256::<1>(codes));
                    }
                }
            }
        }
        return;
    }
    for x in (0..pixels).step_by(2) {
        // SAFETY: likewise.
        unsafe {
            let sums = tile_sums::<V>(m.add(x / 2 * POSITIONS * COLUMNS), bias);
            for y in 0..lines {
                let place = Place { at: place.at + x * place.stride + y * line, ..place };
                if x + 1 < pixels {
                    store_int::<2, V>(sums[y], out, place);
                } else {
                    store_int::<1, V>([sums[y][0]], out, place);
                }
            }
        }
    }
}

/// A^T M A / 4 + bias of one tile, `[y][x]`. The products add up to four times the sum of the convolution, which fits
/// 32 bits, so the shift drops two zeros and keeps the sign.
///
/// # Safety
/// `m` leads to the products of a tile.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn tile_sums<const V: usize>(m: *const i32, bias: [__m256i; V]) -> [[[__m256i; V]; 2]; 2] {
    let mut sums = [[[_mm256_setzero_si256(); V]; 2]; 2];
    for v in 0..V {
        let mut t = [[_mm256_setzero_si256(); 4]; 2];
        for j in 0..4 {
            // SAFETY: the caller promises 16 positions of 16 columns.
            let column = [0, 1, 2, 3]
                .map(|i| unsafe { _mm256_loadu_si256(m.add((i * 4 + j) * COLUMNS + v * 8).cast()) });
            [t[0][j], t[1][j]] = two(column);
        }
        for y in 0..2 {
            let row = two(t[y]);
            for x in 0..2 {
                sums[y][x][v] = _mm256_add_epi32(_mm256_srai_epi32::<2>(row[x]), bias[v]);
            }
        }
    }
    sums
}

/// A^T m for one column.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn two(m: [__m256i; 4]) -> [__m256i; 2] {
    let (sum, difference) = (_mm256_add_epi32(m[1], m[2]), _mm256_sub_epi32(m[1], m[2]));
    [_mm256_add_epi32(m[0], sum), _mm256_sub_epi32(difference, m[3])]
}
