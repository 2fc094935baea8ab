//! The epilogue of blocks of matrix tiles, in AVX-512: from sums in memory to codes, floats or sums. Knows nothing of tiles.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]

use super::x86_64_amx::{Amx, SIDE, Sums, TILE};
use super::x86_64_vnni_finish::mask;
use super::{IntOutput, Requant};
use bytemuck::{Pod, Zeroable};
use std::arch::x86_64::*;

/// Epilogue values of the columns of a block, with zeros past the last.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
pub(super) struct Columns {
    bias: [i32; SIDE],
    factor: [f32; SIDE],
}

/// Consecutive rows of a block that lie one stride after the other in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// First row of the block.
    pub(super) row: usize,
    pub(super) count: usize,
    /// Element of the output that the first row's first column goes to.
    pub(super) at: usize,
}

/// The epilogue of blocks.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    #[expect(dead_code, reason = "the proof of AVX-512")]
    pub(super) amx: Amx,
    pub(super) columns: &'a Columns,
    /// Columns to write.
    pub(super) count: usize,
    /// Elements from one row of the output to the next.
    pub(super) stride: usize,
    /// Whether [`Columns::is_small`] holds for all.
    pub(super) small: bool,
}

impl Run {
    pub(super) const NONE: Run = Run { row: 0, count: 0, at: 0 };
}

impl Columns {
    /// The values of `count` (up to 32) channels from `channel` on.
    pub(super) fn new(out: &IntOutput, channel: usize, count: usize) -> Columns {
        let mut columns = Columns::zeroed();
        let (bias, factor): (&[i32], &[f32]) = match out {
            IntOutput::U8(_, requant) => (requant.bias, requant.multiplier),
            IntOutput::F32(_, dequant) => (dequant.bias, dequant.scale),
            IntOutput::I32(_, bias) => (bias, &[]),
        };
        columns.bias[..count].copy_from_slice(&bias[channel..][..count]);
        if !factor.is_empty() {
            columns.factor[..count].copy_from_slice(&factor[channel..][..count]);
        }
        columns
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn lanes(&self) -> ([__m512i; 2], [__m512; 2]) {
        let at = [0, TILE];
        // SAFETY: 32 biases and 32 factors.
        unsafe {
            (
                at.map(|at| _mm512_loadu_si512(self.bias.as_ptr().add(at).cast())),
                at.map(|at| _mm512_loadu_ps(self.factor.as_ptr().add(at))),
            )
        }
    }

    /// Whether no sum times its factor leaves the range of `i32`: below a half none reaches 2^30. Not-a-number is not
    /// below.
    pub(super) fn is_small(&self) -> bool {
        self.factor.iter().fold(true, |small, factor| small & (factor.abs() < 0.5))
    }
}

impl Finish<'_> {
    /// Writes the next `most` (an even number) rows of `runs` of a block through the epilogue of `out` (without the
    /// table), and takes them off.
    #[inline(always)]
    pub(super) fn write(&self, sums: &Sums, runs: &mut &mut [Run], most: usize, out: &mut IntOutput) {
        let mut left = most;
        while left > 0
            && let Some(run) = runs.first_mut()
        {
            let now = Run { count: run.count.min(left), ..*run };
            *run = Run {
                row: run.row + now.count,
                count: run.count - now.count,
                at: run.at + now.count * self.stride,
            };
            left -= now.count;
            if run.count == 0 {
                *runs = &mut std::mem::take(runs)[1..];
            }
            if now.count > 0 {
                self.write_run(sums, now, out);
            }
        }
    }

    #[inline(always)]
    fn write_run(&self, sums: &Sums, run: Run, out: &mut IntOutput) {
        assert!((1..=SIDE).contains(&self.count), "columns of a block");
        assert!(run.row + run.count <= SIDE, "rows of a block");
        assert!(run.at + (run.count - 1) * self.stride + self.count <= out.len(), "rows of the output");
        // SAFETY: an `Amx` proves AVX-512, and the rows were just checked.
        unsafe {
            match out {
                IntOutput::U8(out, requant) => match (self.small, (requant.lo, requant.hi) != (0, 255)) {
                    (true, false) => self.store_codes::<true, false>(sums, run, requant, out),
                    (true, true) => self.store_codes::<true, true>(sums, run, requant, out),
                    (false, _) => self.store_codes::<false, true>(sums, run, requant, out),
                },
                IntOutput::F32(out, _) => self.store_words::<true>(sums, run, out.as_mut_ptr().cast()),
                IntOutput::I32(out, _) => self.store_words::<false>(sums, run, out.as_mut_ptr()),
            }
        }
    }

    /// `SMALL`: no product leaves the range of `i32`. `CLAMP`: not every code may be written.
    ///
    /// # Safety
    /// AVX-512 is there, `sums` and `out` hold the rows of `run`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    unsafe fn store_codes<const SMALL: bool, const CLAMP: bool>(
        &self,
        sums: &Sums,
        run: Run,
        requant: &Requant,
        out: &mut [u8],
    ) {
        let (bias, factor) = self.columns.lanes();
        let hi = _mm512_set1_ps(requant.bounds().1);
        let zero_point = _mm512_set1_epi16(i16::from(requant.zero_point));
        let (lo_code, hi_code) = (_mm512_set1_epi8(requant.lo as i8), _mm512_set1_epi8(requant.hi as i8));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let admitted = u32::MAX >> (SIDE - self.count);
        // SAFETY: the caller promises the row.
        let words = |row: *const i32| unsafe {
            let mut q = [_mm512_setzero_si512(); 2];
            for v in 0..2 {
                let sum = _mm512_add_epi32(_mm512_load_si512(row.add(v * TILE).cast()), bias[v]);
                let mut product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), factor[v]);
                // What would become the least `i32` though it is too high is cut before; not-a-number becomes it.
                if !SMALL {
                    product = _mm512_min_ps(hi, product);
                }
                q[v] = _mm512_cvtps_epi32(product);
            }
            _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), zero_point)
        };
        let mut from = sums.0.as_ptr().wrapping_add(run.row * SIDE);
        let mut to = out.as_mut_ptr().wrapping_add(run.at);
        for r in (0..run.count).step_by(2) {
            // Two rows fill a register of bytes; an odd last row is its own partner.
            let partner = usize::from(r + 1 < run.count);
            let mut codes = _mm512_packus_epi16(words(from), words(from.wrapping_add(partner * SIDE)));
            if CLAMP {
                codes = _mm512_min_epu8(_mm512_max_epu8(codes, lo_code), hi_code);
            }
            let codes = _mm512_permutexvar_epi32(order, codes);
            let (first, second) = (_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes));
            let second_to = to.wrapping_add(partner * self.stride);
            // SAFETY: the caller promises the rows; the mask admits their columns only.
            unsafe {
                if self.count == SIDE {
                    _mm256_storeu_si256(to.cast(), first);
                    _mm256_storeu_si256(second_to.cast(), second);
                } else {
                    _mm256_mask_storeu_epi8(to.cast(), admitted, first);
                    _mm256_mask_storeu_epi8(second_to.cast(), admitted, second);
                }
            }
            from = from.wrapping_add(2 * SIDE);
            to = to.wrapping_add(2 * self.stride);
        }
    }

    /// Floats, or the sums with their biases.
    ///
    /// # Safety
    /// AVX-512 is there, `sums` and `out` hold the rows of `run`.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn store_words<const FLOATS: bool>(&self, sums: &Sums, run: Run, out: *mut i32) {
        let (bias, factor) = self.columns.lanes();
        for r in 0..run.count {
            for v in 0..2 {
                let mask = mask(self.count.saturating_sub(v * TILE));
                // SAFETY: the caller promises a row of the block and of the output; the mask admits its columns only.
                unsafe {
                    let from = sums.0.as_ptr().add((run.row + r) * SIDE + v * TILE);
                    let mut word = _mm512_add_epi32(_mm512_load_si512(from.cast()), bias[v]);
                    if FLOATS {
                        word = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(word), factor[v]));
                    }
                    let to = out.wrapping_add(run.at + r * self.stride + v * TILE);
                    _mm512_mask_storeu_epi32(to, mask, word);
                }
            }
        }
    }
}
