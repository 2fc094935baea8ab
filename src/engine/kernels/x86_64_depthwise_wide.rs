//! AVX-512 with byte dot products: square depthwise kernels. Knows packed slices only; packing and walking are the callers'.
//!
//! Four neighbouring pixels of a line become a quad of bytes in each channel. They are put together once for all outputs
//! that they touch, each of which has weights of its own for them, with zeros beyond the kernel.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::depthwise_quads::{
    CHANNELS_MIN, OUTPUTS, QUAD, quad_count, quads_at_once, quads_before, quads_of_line,
};
use super::halo::BLOCK;
use super::tiles::Place;
use super::x86_64_vnni::Avx512Vnni;
use super::x86_64_vnni_finish::{Finish, ToCodes, ToFloats, ToSums, are_plain, lanes};
use std::arch::x86_64::*;

/// Bytes of a quad of pixels in a block of channels.
const BYTES: usize = QUAD * BLOCK;

impl Avx512Vnni {
    /// Puts the pixels of a line, `[width, channels]`, together: `to` is `[quads, channels, 4]`. The line begins `left` pixels
    /// into it; what is before and behind it is `padding`, `[channels]`.
    pub(super) fn put_together(
        self,
        line: &[u8],
        channels: usize,
        left: usize,
        padding: &[u8],
        to: &mut [u8],
    ) {
        assert!(channels >= CHANNELS_MIN && padding.len() == channels, "a register of channels");
        assert!(
            line.len().is_multiple_of(channels) && to.len().is_multiple_of(QUAD * channels),
            "whole pixels"
        );
        // SAFETY: `self` proves the features, and the lengths were just checked.
        unsafe { put_together(line, channels, left, padding, to) }
    }

    /// Output rows, `line_len` apart, of a depthwise convolution with a `size` x `size` kernel in a block of up to 32
    /// channels. [`pays`](super::depthwise_quads::pays) holds for the kernel.
    ///
    /// Pixel `t`, channel `c` of quad `q` of kernel line `i` of output row `l` is
    /// `x[starts[l * size + i] + (q * channels + c) * 4 + t]`. `weights` are those of
    /// [`pack_lines`](super::depthwise_quads::pack_lines).
    #[expect(clippy::too_many_arguments, reason = "rows are their operands and their place")]
    pub(super) fn depthwise_lines(
        self,
        x: &[u8],
        starts: &[usize],
        (size, stride): (usize, usize),
        channels: usize,
        count: usize,
        weights: &[i8],
        out: &mut IntOutput,
        place: Place,
        line_len: usize,
    ) {
        let last = (quads_of_line(size, stride, count) - 1) * channels + place.channel;
        let last = starts.iter().max().expect("a kernel has a line") + last * QUAD;
        assert!(x.len() >= last + BYTES && place.columns <= BLOCK);
        assert_eq!(
            weights.len(),
            quads_before(size, stride, QUAD / stride) * BYTES,
            "the packed weights of a block"
        );
        Place { at: place.at + (starts.len() / size - 1) * line_len, ..place }
            .assert_within(count, out.len());
        let rows = Rows { x, starts, channels, count, weights, place, line_len };
        // SAFETY: `self` proves the features, and the lengths were just checked.
        unsafe {
            match (size, stride) {
                (3, 1) => finished::<3, 1>(rows, out),
                (3, 2) => finished::<3, 2>(rows, out),
                (5, 1) => finished::<5, 1>(rows, out),
                _ => unreachable!("a kernel for which it pays"),
            }
        }
    }
}

/// See [`Avx512Vnni::depthwise_lines`].
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [u8],
    starts: &'a [usize],
    channels: usize,
    count: usize,
    weights: &'a [i8],
    place: Place,
    line_len: usize,
}

/// # Safety
/// There are `SIZE` lines for each row with the quads of every `OUTPUTS` outputs, their weights, and `count` outputs at
/// `place` and every `line_len` from there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn finished<const SIZE: usize, const STRIDE: usize>(rows: Rows, out: &mut IntOutput) {
    let place = rows.place;
    // SAFETY: the caller promises it.
    unsafe {
        match out {
            IntOutput::U8(out, requant) => {
                let bias = lanes::<i32, 2>(requant.bias, place);
                match are_plain::<2>(requant, place) {
                    true => {
                        outputs::<SIZE, STRIDE>(rows, bias, ToCodes::<2, true>::new(out, requant, place));
                    }
                    false => {
                        outputs::<SIZE, STRIDE>(rows, bias, ToCodes::<2, false>::new(out, requant, place));
                    }
                }
            }
            IntOutput::F32(out, dequant) => {
                let bias = lanes::<i32, 2>(dequant.bias, place);
                outputs::<SIZE, STRIDE>(rows, bias, ToFloats::new(out, dequant, place));
            }
            IntOutput::I32(out, bias) => {
                outputs::<SIZE, STRIDE>(rows, lanes::<i32, 2>(bias, place), ToSums { out, place });
            }
        }
    }
}

/// # Safety
/// Like [`finished`], `finish` having its output.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn outputs<const SIZE: usize, const STRIDE: usize>(
    rows: Rows,
    bias: [__m512i; 2],
    mut finish: impl Finish<2>,
) {
    let Rows { x, starts, channels, count, weights, place, line_len } = rows;
    let next = channels * QUAD;
    for (line, starts) in starts.chunks_exact(SIZE).enumerate() {
        let start = |i: usize| x.as_ptr().wrapping_add(starts[i] + place.channel * QUAD);
        let mut lines: [*const u8; SIZE] = std::array::from_fn(start);
        for ox in (0..count).step_by(OUTPUTS) {
            let mut acc = [bias; OUTPUTS];
            for i in 0..SIZE {
                for v in 0..2 {
                    let mut quads = [_mm512_setzero_si512(); 3];
                    for q in 0..const { quads_at_once(SIZE, STRIDE) } {
                        // SAFETY: the caller promises the quads.
                        quads[q] =
                            unsafe { _mm512_loadu_si512(lines[i].wrapping_add(q * next + v * 64).cast()) };
                    }
                    for r in 0..OUTPUTS {
                        let (q, offset) = (r * STRIDE / QUAD, r * STRIDE % QUAD);
                        let count = quad_count(SIZE, offset);
                        let first = quads_before(SIZE, STRIDE, r % (QUAD / STRIDE)) + i * count;
                        let weights = weights.as_ptr().wrapping_add(first * BYTES + v * 64);
                        // SAFETY: the caller promises the weights, of which these are one or two quads.
                        unsafe {
                            let first = _mm512_loadu_si512(weights.cast());
                            acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], quads[q], first);
                            if count == 2 {
                                let second = _mm512_loadu_si512(weights.wrapping_add(BYTES).cast());
                                acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], quads[q + 1], second);
                            }
                        }
                    }
                }
                lines[i] = lines[i].wrapping_add(STRIDE * next);
            }
            let at = place.at + line * line_len + ox * place.stride;
            let [a, b, c, d] = acc;
            // SAFETY: the caller promises `count` outputs.
            unsafe {
                match count - ox {
                    1 => finish.put([a], at),
                    2 => finish.put([a, b], at),
                    3 => finish.put([a, b, c], at),
                    _ => finish.put([a, b, c, d], at),
                }
            }
        }
    }
}

/// See [`Avx512Vnni::put_together`]. 16 channels of four pixels at a time: first four channels of each pixel into a lane, then
/// those of a channel.
///
/// # Safety
/// There are at least 16 channels, `padding` has as many elements, and `line` and `to` are whole pixels and quads of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn put_together(line: &[u8], channels: usize, left: usize, padding: &[u8], to: &mut [u8]) {
    const FOURTHS: [u8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
    // Hidden from the compiler, which would make eleven shuffles of these two.
    let fourths = std::hint::black_box(FOURTHS);
    // SAFETY: the array has 16 bytes.
    let fourths = unsafe { _mm_loadu_si128(fourths.as_ptr().cast()) };
    let (across, within) = (_mm512_cvtepu8_epi32(fourths), _mm512_broadcast_i32x4(fourths));
    let width = line.len() / channels;
    for (quad, to) in to.chunks_exact_mut(QUAD * channels).enumerate() {
        let pixels: [*const u8; QUAD] = std::array::from_fn(|t| {
            let at = (quad * QUAD + t).wrapping_sub(left);
            if at < width { line[at * channels..].as_ptr() } else { padding.as_ptr() }
        });
        for c in (0..channels).step_by(CHANNELS_MIN) {
            // The last ones are moved back to be whole.
            let c = c.min(channels - CHANNELS_MIN);
            // SAFETY: there are as many elements of each pixel as channels, and four times as many of the quad.
            unsafe {
                let [first, second, third, fourth] =
                    pixels.map(|at| _mm_loadu_si128(at.wrapping_add(c).cast()));
                let all = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(first), second);
                let all = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(all, third), fourth);
                let bytes = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(across, all), within);
                _mm512_storeu_si512(to.as_mut_ptr().add(c * QUAD).cast(), bytes);
            }
        }
    }
}
