//! AVX2: sums of a register tile, sixteen columns wide, of products of floats or of pairs of 16-bit numbers, in assembly.
//! Knows no layout but rows and a panel.
//!
//! A step takes four bytes of each row: two loads, and for each row a broadcast and two multiplications, with additions if
//! the numbers are whole. Compiled loops had six instructions more, of 26 or 38, for addresses and counts, which cost 10 % where
//! another thread of the core takes its share of the front end. And both multiplications of a row come before its
//! additions: 5 % (Zen 3, where two of four vector ports multiply and all of them add).
#![expect(unsafe_code, reason = "instructions are given in their order")]

use std::arch::asm;
use std::arch::x86_64::{__m256, __m256i};

/// Steps between two counts.
pub(super) const BLOCK: usize = 4;

/// How often what is wanted next is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Requests {
    /// Once in [`BLOCK`] steps.
    InBlock,
    /// In every step.
    InStep,
}

/// Rows and a panel: `runs` runs of `steps` steps, and as much of the panel for each.
#[derive(Clone, Copy)]
pub(super) struct Tile<A, W> {
    /// The first row.
    pub(super) a: *const A,
    /// Elements from one row to the next.
    pub(super) row: usize,
    /// Elements from one run to the next.
    pub(super) run: usize,
    pub(super) runs: usize,
    pub(super) steps: usize,
    /// `[runs, steps, 16]` floats, or twice as many whole numbers.
    pub(super) panel: *const W,
    /// What is wanted next, and bytes from one request for it to the next.
    pub(super) next: *const i8,
    pub(super) pace: usize,
}

/// One row of a step of pairs.
#[rustfmt::skip]
macro_rules! pairs {
    ($at:literal, $k:literal, $low:ident, $high:ident) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [", $at, "+", $k, "]\n",
            "vpmaddwd {y}, {x}, {left}\n",
            "vpmaddwd {x}, {x}, {right}\n",
            "vpaddd {", stringify!($low), "}, {", stringify!($low), "}, {y}\n",
            "vpaddd {", stringify!($high), "}, {", stringify!($high), "}, {x}\n",
        )
    };
}

/// One row of a step of floats, each a chain of fused operations.
#[rustfmt::skip]
macro_rules! floats {
    ($at:literal, $k:literal, $low:ident, $high:ident) => {
        concat!(
            "vbroadcastss {x}, dword ptr [", $at, "+", $k, "]\n",
            "vfmadd231ps {", stringify!($low), "}, {x}, {left}\n",
            "vfmadd231ps {", stringify!($high), "}, {x}, {right}\n",
        )
    };
}

/// All runs: `load` reads `bytes` of a register of weights, `block` and `step` are asked for in a block and in a step.
macro_rules! tile {
    (
        $tile:ident, $acc:ident, $row:ident, $load:literal, $bytes:literal, $block:expr, $step:expr;
        $($r:literal $at:literal $low:ident $high:ident),*
    ) => {{
        macro_rules! step {
            ($k:literal, $left:literal, $right:literal) => {
                concat!(
                    $step,
                    $load, " {left}, [{panel}+", $bytes, "*", $left, "]\n",
                    $load, " {right}, [{panel}+", $bytes, "*", $right, "]\n",
                    $($row!($at, $k, $low, $high)),*
                )
            };
        }
        // SAFETY: the caller promises the rows and the panel; what is asked for early need not be there.
        unsafe {
            asm!(
                "2:",
                "mov {n}, {blocks}",
                "test {n}, {n}",
                "jz 4f",
                "3:",
                $block,
                step!("0", "0", "1"),
                step!("4", "2", "3"),
                step!("8", "4", "5"),
                step!("12", "6", "7"),
                "add {p}, 16",
                "add {q}, 16",
                concat!("add {panel}, 8*", $bytes),
                "dec {n}",
                "jnz 3b",
                "4:",
                "mov {n}, {rest}",
                "test {n}, {n}",
                "jz 6f",
                "5:",
                step!("0", "0", "1"),
                "add {p}, 4",
                "add {q}, 4",
                concat!("add {panel}, 2*", $bytes),
                "dec {n}",
                "jnz 5b",
                "6:",
                "add {p}, {skip}",
                "add {q}, {skip}",
                "dec {runs}",
                "jnz 2b",
                "/* not used by all: {y} {row} {next} {pace} */",
                // Rows 0 to 2 are reached from the first, the others from the fourth.
                p = inout(reg) $tile.a => _,
                q = inout(reg) $tile.a.wrapping_add(3 * $tile.row) => _,
                row = in(reg) $tile.row * bytes_of($tile.a),
                skip = in(reg) ($tile.run * bytes_of($tile.a)).wrapping_sub($tile.steps * STEP),
                runs = inout(reg) $tile.runs => _,
                blocks = in(reg) $tile.steps / BLOCK,
                rest = in(reg) $tile.steps % BLOCK,
                n = out(reg) _,
                panel = inout(reg) $tile.panel => _,
                next = inout(reg) $tile.next => _,
                pace = in(reg) $tile.pace,
                left = out(ymm_reg) _,
                right = out(ymm_reg) _,
                x = out(ymm_reg) _,
                y = out(ymm_reg) _,
                $($low = inout(ymm_reg) $acc[$r][0],)*
                $($high = inout(ymm_reg) $acc[$r][1],)*
                options(nostack, readonly),
            )
        }
    }};
}

/// A request.
macro_rules! request {
    () => {
        "prefetcht0 byte ptr [{next}]\nadd {next}, {pace}\n"
    };
}

/// The rows of a tile.
macro_rules! rows {
    ($rows:expr, $tile:ident, $acc:ident, $row:ident, $load:literal, $bytes:literal, $block:expr, $step:expr) => {
        match $rows {
            6 => tile!($tile, $acc, $row, $load, $bytes, $block, $step;
                0 "{p}" a0 a1, 1 "{p}+{row}" b0 b1, 2 "{p}+2*{row}" c0 c1,
                3 "{q}" d0 d1, 4 "{q}+{row}" e0 e1, 5 "{q}+2*{row}" f0 f1),
            5 => tile!($tile, $acc, $row, $load, $bytes, $block, $step;
                0 "{p}" a0 a1, 1 "{p}+{row}" b0 b1, 2 "{p}+2*{row}" c0 c1,
                3 "{q}" d0 d1, 4 "{q}+{row}" e0 e1),
            4 => tile!($tile, $acc, $row, $load, $bytes, $block, $step;
                0 "{p}" a0 a1, 1 "{p}+{row}" b0 b1, 2 "{p}+2*{row}" c0 c1, 3 "{q}" d0 d1),
            3 => tile!($tile, $acc, $row, $load, $bytes, $block, $step;
                0 "{p}" a0 a1, 1 "{p}+{row}" b0 b1, 2 "{p}+2*{row}" c0 c1),
            2 => tile!($tile, $acc, $row, $load, $bytes, $block, $step;
                0 "{p}" a0 a1, 1 "{p}+{row}" b0 b1),
            1 => tile!($tile, $acc, $row, $load, $bytes, $block, $step; 0 "{p}" a0 a1),
            _ => unreachable!("a tile of 1 to 6 rows"),
        }
    };
}

/// Bytes that a step takes of a row.
const STEP: usize = 4;

fn bytes_of<T>(_: *const T) -> usize {
    size_of::<T>()
}

impl<W> Tile<i16, W> {
    /// Adds the products of `R` rows, 1 to 6, to `acc`: those of two numbers are added in 32 bits, which is exact for every `u8`
    /// and `i8`. `V` is 2, and weights are of 8 or 16 bits.
    ///
    /// # Safety
    /// The processor has AVX2, there is at least one run, and the rows and the panel are there. Its registers are aligned.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) unsafe fn add<const R: usize, const V: usize>(
        self,
        requests: Requests,
        acc: &mut [[__m256i; V]; R],
    ) {
        assert!(V == 2, "a tile has sixteen columns");
        match (size_of::<W>(), requests) {
            (2, Requests::InStep) => rows!(R, self, acc, pairs, "vmovdqa", "32", "", request!()),
            (2, Requests::InBlock) => rows!(R, self, acc, pairs, "vmovdqa", "32", request!(), ""),
            (1, Requests::InBlock) => rows!(R, self, acc, pairs, "vpmovsxbw", "16", request!(), ""),
            _ => unreachable!("weights of 16 bits, or of 8"),
        }
    }
}

impl Tile<f32, f32> {
    /// Adds the products of `R` rows, 1 to 6, to `acc`, one after the other and fused. `V` is 2. Nothing is asked for early.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA, there is at least one run, and the rows and the panel are there. Its registers are
    /// aligned.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(super) unsafe fn fuse<const R: usize, const V: usize>(self, acc: &mut [[__m256; V]; R]) {
        assert!(V == 2, "a tile has sixteen columns");
        rows!(R, self, acc, floats, "vmovaps", "32", "", "")
    }
}
