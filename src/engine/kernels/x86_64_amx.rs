//! AMX-INT8: tiles of 16 rows of 64 bytes, and the block of 32 x 32 sums that four of them hold. Knows packed
//! slices only; packing and walking are the callers'.
//!
//! The intrinsics are not stable, so the instructions are written out. Compilers never use tile registers on their
//! own: what one piece of assembly leaves in them the next one finds.
#![expect(unsafe_code, reason = "tiles are loaded through pointers, and target features must be proven")]

use super::x86_64_vnni::Avx512Vnni;
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows and columns of a block: two tiles each way.
pub(super) const SIDE: usize = 32;

/// Rows of a tile, and columns.
pub(super) const TILE: usize = 16;

/// Most elements of the depth that one step takes.
pub(super) const STEP: usize = 64;

/// Proof that this processor has AMX-INT8 beside AVX-512 VNNI and that the kernel lets this process use it: only
/// [`Amx::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx {
    wide: Avx512Vnni,
}

/// Tile registers of this thread in use: as many rows a tile as were asked for, until it is dropped.
pub(super) struct Tiles {
    height: usize,
    step: usize,
    /// Tile registers belong to a thread.
    thread: PhantomData<*const ()>,
}

/// Sums of a block, row by row; tile 2 begins at row 16 however high the tiles are.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [i32; SIDE * SIDE]);

/// Rows of a product and the weights they meet.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) a: &'a [u8],
    /// Where the two tiles of rows begin in `a`.
    pub(super) starts: [usize; 2],
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// Where the elements of each step begin, from the row's start on.
    pub(super) steps: &'a [usize],
    /// `[steps * step / 4, width, 4]`.
    pub(super) panel: &'a [i8],
    /// Columns of the panel: 16 or 32.
    pub(super) width: usize,
    /// Which side should not push the other out of the first-level cache.
    pub(super) passing: Passing,
}

/// The operand that is read once while the other stays.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    Rows,
    Panel,
}

impl Amx {
    /// The token, if the processor has what it stands for and the operating system gives it to this process.
    pub fn detect() -> Option<Amx> {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        let wide = Avx512Vnni::detect()?;
        PERMITTED.get_or_init(|| has_tiles() && ask_permission()).then_some(Amx { wide })
    }

    /// The proof of the smaller instruction set.
    pub(super) fn wide(self) -> Avx512Vnni {
        self.wide
    }

    /// Sets this thread's tile registers up for row tiles of `height` (1 to 16) rows and steps of `step` elements, a
    /// multiple of 4 up to [`STEP`].
    pub(super) fn tiles(self, height: usize, step: usize) -> Tiles {
        assert!((1..=TILE).contains(&height), "a tile has 1 to 16 rows");
        assert!((4..=STEP).contains(&step) && step.is_multiple_of(4), "a tile row has 4 to 64 elements");
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        // Bytes of a row and rows of each tile: 0 to 3 are sums, 4 and 5 rows of the product, 6 and 7 weights.
        let (sums, rows, weights) = ((64, height), (step, height), (64, step / 4));
        let tiles = [sums, sums, sums, sums, rows, rows, weights, weights];
        for (tile, (bytes, rows)) in tiles.into_iter().enumerate() {
            config.0[16 + 2 * tile] = bytes as u8;
            config.0[48 + tile] = rows as u8;
        }
        // SAFETY: `self` proves that this process may use tiles; the configuration is 64 bytes of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags, readonly)) }
        Tiles { height, step, thread: PhantomData }
    }
}

/// CPUID's word on tiles and their byte products, and the operating system's on keeping them.
fn has_tiles() -> bool {
    let (tile, int8) = (1 << 24, 1 << 25);
    let features = __cpuid_count(7, 0).edx;
    let osxsave = __cpuid_count(1, 0).ecx & 1 << 27 != 0;
    if !osxsave || features & tile == 0 || features & int8 == 0 {
        return false;
    }
    // SAFETY: CPUID says that XGETBV may be executed.
    let enabled = unsafe { xgetbv() };
    let tile_state = 0b11 << 17;
    enabled & tile_state == tile_state
}

#[target_feature(enable = "xsave")]
fn xgetbv() -> u64 {
    // SAFETY: register 0 is always there.
    unsafe { _xgetbv(0) }
}

/// Asks the kernel to keep tile registers for this process: 8 KiB a thread, which it gives on demand only.
#[cfg(target_os = "linux")]
fn ask_permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn ask_permission() -> bool {
    false
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a `Tiles` exists only where tiles may be used, and stays on its thread.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}

impl Sums {
    pub(super) const ZERO: Sums = Sums([0; SIDE * SIDE]);
}

impl Tiles {
    /// Makes the sums of a block, modulo 2^32 and without biases. They stay in the tiles. Calls `between` with each
    /// step's number: vector work there runs while the tiles multiply.
    #[inline(always)]
    pub(super) fn multiply(&mut self, operands: Operands, mut between: impl FnMut(usize)) {
        let Operands { a, starts, stride, steps, panel, width, passing } = operands;
        let last_step = steps.iter().max().map_or(0, |step| step + self.step);
        let last = starts[0].max(starts[1]) + (self.height - 1) * stride + last_step;
        assert!(last <= a.len() && panel.len() >= steps.len() * self.step * width, "operands of a block");
        assert!(width == 16 || width == 32, "a panel has 16 or 32 columns");
        let [first, second] = starts.map(|start| a.as_ptr().wrapping_add(start));
        // SAFETY: a `Tiles` exists only where tiles are set up.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, preserves_flags, nomem),
            );
        }
        for (i, &step) in steps.iter().enumerate() {
            let rows = [first.wrapping_add(step), second.wrapping_add(step)];
            let weights = panel.as_ptr().wrapping_add(i * self.step * width);
            // SAFETY: a `Tiles` exists only where tiles are set up; the rows of this step and the panel were checked to
            // lie within their slices.
            unsafe {
                match (width, passing) {
                    (16, _) => half_step(rows, stride, weights),
                    (_, Passing::Rows) => step_with_panel_kept(rows, stride, weights),
                    (_, Passing::Panel) => step_with_rows_kept(rows, stride, weights),
                }
            }
            between(i);
        }
    }
}

macro_rules! step {
    ($(#[$doc:meta])* $name:ident, $width:literal, $($line:literal)*) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Tiles are set up; their rows, `stride` apart, and the rows of weights are there.
        #[inline(always)]
        unsafe fn $name([first, second]: [*const u8; 2], stride: usize, weights: *const i8) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    $($line,)*
                    first = in(reg) first,
                    second = in(reg) second,
                    stride = in(reg) stride,
                    b = in(reg) weights,
                    width = in(reg) $width * 4usize,
                    options(nostack, preserves_flags, readonly),
                );
            }
        }
    };
}

// `tdpbusd` multiplies in 32 bits and so exactly. A product whose weights are those of the one before starts sooner,
// so rows change between two, not weights.
step!(
    /// A step of 16 columns.
    half_step, 16,
    "tileloadd tmm6, [{b} + {width}]"
    "tileloadd tmm4, [{first} + {stride}]"
    "tdpbusd tmm0, tmm4, tmm6"
    "tileloadd tmm5, [{second} + {stride}]"
    "tdpbusd tmm2, tmm5, tmm6"
);
step!(
    /// A step of 32 columns whose weights the next block finds in the first-level cache.
    step_with_panel_kept, 32,
    "tileloadd tmm6, [{b} + {width}]"
    "tileloadd tmm4, [{first} + {stride}]"
    "tdpbusd tmm0, tmm4, tmm6"
    "tileloadd tmm5, [{second} + {stride}]"
    "tdpbusd tmm2, tmm5, tmm6"
    "tileloadd tmm7, [{b} + {width} + 64]"
    "tdpbusd tmm1, tmm4, tmm7"
    "tdpbusd tmm3, tmm5, tmm7"
);
step!(
    /// A step of 32 columns whose weights should not push the rows out of the first-level cache.
    step_with_rows_kept, 32,
    "tileloaddt1 tmm6, [{b} + {width}]"
    "tileloadd tmm4, [{first} + {stride}]"
    "tdpbusd tmm0, tmm4, tmm6"
    "tileloadd tmm5, [{second} + {stride}]"
    "tdpbusd tmm2, tmm5, tmm6"
    "tileloaddt1 tmm7, [{b} + {width} + 64]"
    "tdpbusd tmm1, tmm4, tmm7"
    "tdpbusd tmm3, tmm5, tmm7"
);

impl Tiles {
    /// Stores the sums in the tiles.
    ///
    /// A store waits for the products and keeps what follows waiting: work that does not need the sums should come
    /// between them and this.
    #[inline(always)]
    pub(super) fn store(&mut self, sums: &mut Sums) {
        // SAFETY: a `Tiles` exists only where tiles are set up; the sums hold 32 rows of 32.
        unsafe {
            asm!(
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 2048], tmm2",
                "tilestored [{sums} + {stride} + 64], tmm1",
                "tilestored [{sums} + {stride} + 2112], tmm3",
                sums = in(reg) sums.0.as_mut_ptr(),
                stride = in(reg) SIDE * 4,
                options(nostack, preserves_flags),
            );
        }
    }
}
