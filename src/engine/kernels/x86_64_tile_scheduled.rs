//! AVX2: sums of a register tile of scheduled panels, sixteen columns wide, in assembly. Knows no layout but rows and the
//! lists of a panel.
//!
//! Five rows take ten of sixteen registers, so most weights are read where they are multiplied, and multiplications come
//! before additions: see `x86_64_tile.rs` for why that is not left to the compiler.
#![expect(unsafe_code, reason = "instructions are given in their order")]

use super::schedule::Counts;
use std::arch::asm;
use std::arch::x86_64::{__m256i, _mm256_set1_epi16};

/// Fewest rows of a tile.
pub(super) const ROWS_MIN: usize = 3;

/// Where a tile is: its first row of the segment, the next offset and the next weights.
#[derive(Clone, Copy)]
pub(super) struct Cursor {
    pub(super) a: *const u8,
    pub(super) quad: *const u16,
    pub(super) weights: *const i8,
    /// Weights that are wanted next, and how far apart they are asked for.
    pub(super) next: *const i8,
    pub(super) pace: usize,
}

/// A row of a step of two quads at `x` and `y`, whose products add in 16 bits.
#[rustfmt::skip]
macro_rules! pair {
    ($x:literal, $y:literal, $low:ident, $high:ident) => {
        concat!(
            "vpbroadcastd {s}, dword ptr [", $x, "]\n",
            "vpbroadcastd {t}, dword ptr [", $y, "]\n",
            "vpmaddubsw {u}, {s}, {b}\n",
            "vpmaddubsw {v}, {t}, ymmword ptr [{weights}+64]\n",
            "vpmaddubsw {s}, {s}, ymmword ptr [{weights}+32]\n",
            "vpmaddubsw {t}, {t}, ymmword ptr [{weights}+96]\n",
            "vpaddw {u}, {u}, {v}\n",
            "vpaddw {s}, {s}, {t}\n",
            "vpmaddwd {u}, {u}, {constant}\n",
            "vpmaddwd {s}, {s}, {constant}\n",
            "vpaddd {", stringify!($low), "}, {", stringify!($low), "}, {u}\n",
            "vpaddd {", stringify!($high), "}, {", stringify!($high), "}, {s}\n",
        )
    };
}

/// A row of a step of one quad, whose products add in 16 bits two by two.
#[rustfmt::skip]
macro_rules! single {
    ($x:literal, $y:literal, $low:ident, $high:ident) => {
        concat!(
            "vpbroadcastd {s}, dword ptr [", $x, "]\n",
            "vpmaddubsw {u}, {s}, {b}\n",
            "vpmaddubsw {s}, {s}, {v}\n",
            "vpmaddwd {u}, {u}, {constant}\n",
            "vpmaddwd {s}, {s}, {constant}\n",
            "vpaddd {", stringify!($low), "}, {", stringify!($low), "}, {u}\n",
            "vpaddd {", stringify!($high), "}, {", stringify!($high), "}, {s}\n",
        )
    };
}

/// A row of a step of one quad, whose elements are widened in place, by a mask and by a shift.
#[rustfmt::skip]
macro_rules! wide {
    ($x:literal, $y:literal, $low:ident, $high:ident) => {
        concat!(
            "vpbroadcastd {s}, dword ptr [", $x, "]\n",
            "vpsrlw {t}, {s}, 8\n",
            "vpand {s}, {s}, {constant}\n",
            "vpmaddwd {v}, {t}, ymmword ptr [{weights}+64]\n",
            "vpmaddwd {t}, {t}, ymmword ptr [{weights}+96]\n",
            "vpmaddwd {u}, {s}, {b}\n",
            "vpmaddwd {s}, {s}, ymmword ptr [{weights}+32]\n",
            "vpaddd {", stringify!($low), "}, {", stringify!($low), "}, {v}\n",
            "vpaddd {", stringify!($high), "}, {", stringify!($high), "}, {t}\n",
            "vpaddd {", stringify!($low), "}, {", stringify!($low), "}, {u}\n",
            "vpaddd {", stringify!($high), "}, {", stringify!($high), "}, {s}\n",
        )
    };
}

/// `steps` steps. A processor foresees the end of a short loop, so that the next tile begins before this one is done: hence
/// eight at a time.
macro_rules! list {
    ($steps:expr, $constant:literal, $step:expr, $acc:ident, $at:ident, $lda:ident; $($r:literal $low:ident $high:ident)*) => {
        // SAFETY: the caller promises the steps; what is asked for early need not be there.
        unsafe {
            asm!(
                "mov {eights}, {n}",
                "shr {eights}, 3",
                "jz 4f",
                "2:",
                "mov {i:e}, 8",
                "3:",
                $step,
                "dec {i:e}",
                "jnz 3b",
                "dec {eights}",
                "jnz 2b",
                "4:",
                "and {n}, 7",
                "jz 6f",
                "5:",
                $step,
                "dec {n}",
                "jnz 5b",
                "6:",
                "/* not used by every list: {y} {lda} {lda3} {t} {v} */",
                a = in(reg) $at.a,
                x = out(reg) _,
                y = out(reg) _,
                quad = inout(reg) $at.quad,
                weights = inout(reg) $at.weights,
                next = inout(reg) $at.next,
                pace = in(reg) $at.pace,
                lda = in(reg) $lda,
                lda3 = in(reg) 3 * $lda,
                n = inout(reg) $steps => _,
                eights = out(reg) _,
                i = out(reg) _,
                s = out(ymm_reg) _,
                t = out(ymm_reg) _,
                u = out(ymm_reg) _,
                v = out(ymm_reg) _,
                b = out(ymm_reg) _,
                constant = in(ymm_reg) _mm256_set1_epi16($constant),
                $($low = inout(ymm_reg) $acc[$r][0],)*
                $($high = inout(ymm_reg) $acc[$r][1],)*
                options(nostack, readonly),
            )
        }
    };
}

/// The three lists of a segment.
macro_rules! lists {
    ($acc:ident, $at:ident, $lda:ident, $counts:ident; $($r:literal $x:literal $y:literal $low:ident $high:ident),*) => {{
        list!($counts.pairs, 1, concat!(
            "prefetcht0 byte ptr [{next}]\n",
            "add {next}, {pace}\n",
            "movzx {x:e}, word ptr [{quad}]\n",
            "movzx {y:e}, word ptr [{quad}+2]\n",
            "add {quad}, 4\n",
            "add {x}, {a}\n",
            "add {y}, {a}\n",
            "vmovdqa {b}, ymmword ptr [{weights}]\n",
            $(pair!($x, $y, $low, $high),)*
            "sub {weights}, -128\n",
        ), $acc, $at, $lda; $($r $low $high)*);
        list!($counts.singles, 1, concat!(
            "prefetcht0 byte ptr [{next}]\n",
            "add {next}, {pace}\n",
            "movzx {x:e}, word ptr [{quad}]\n",
            "add {quad}, 2\n",
            "add {x}, {a}\n",
            "vmovdqa {b}, ymmword ptr [{weights}]\n",
            "vmovdqa {v}, ymmword ptr [{weights}+32]\n",
            $(single!($x, $y, $low, $high),)*
            "add {weights}, 64\n",
        ), $acc, $at, $lda; $($r $low $high)*);
        list!($counts.wides, 0xff, concat!(
            "prefetcht0 byte ptr [{next}]\n",
            "add {next}, {pace}\n",
            "movzx {x:e}, word ptr [{quad}]\n",
            "add {quad}, 2\n",
            "add {x}, {a}\n",
            "vmovdqa {b}, ymmword ptr [{weights}]\n",
            $(wide!($x, $y, $low, $high),)*
            "sub {weights}, -128\n",
        ), $acc, $at, $lda; $($r $low $high)*);
    }};
}

/// Adds the products of a segment, of `R` rows, `lda` apart, 3 to 5, to `acc`. `V` is 2.
///
/// # Safety
/// The processor has AVX2, and `at` leads to the steps that `counts` counts and to rows that hold their quads. Weights are
/// aligned.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn add<const R: usize, const V: usize>(
    acc: &mut [[__m256i; V]; R],
    at: &mut Cursor,
    lda: usize,
    counts: Counts,
) {
    assert!(V == 2, "a tile has sixteen columns");
    match R {
        5 => lists!(acc, at, lda, counts;
            0 "{x}" "{y}" a0 a1, 1 "{x}+{lda}" "{y}+{lda}" b0 b1, 2 "{x}+2*{lda}" "{y}+2*{lda}" c0 c1,
            3 "{x}+{lda3}" "{y}+{lda3}" d0 d1, 4 "{x}+4*{lda}" "{y}+4*{lda}" e0 e1),
        4 => lists!(acc, at, lda, counts;
            0 "{x}" "{y}" a0 a1, 1 "{x}+{lda}" "{y}+{lda}" b0 b1, 2 "{x}+2*{lda}" "{y}+2*{lda}" c0 c1,
            3 "{x}+{lda3}" "{y}+{lda3}" d0 d1),
        3 => lists!(acc, at, lda, counts;
            0 "{x}" "{y}" a0 a1, 1 "{x}+{lda}" "{y}+{lda}" b0 b1, 2 "{x}+2*{lda}" "{y}+2*{lda}" c0 c1),
        _ => unreachable!("a tile of 3 to 5 rows"),
    }
}
