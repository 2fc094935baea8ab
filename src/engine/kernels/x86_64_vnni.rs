//! AVX-512 with byte dot products: the register tile of the integer product. Knows packed slices only.

use super::x86_64::Avx2;

/// Proof that this processor has AVX-512 F, BW, VL and VNNI beside AVX2 and FMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Vnni {
    avx2: Avx2,
}

impl Avx512Vnni {
    /// The token, if the processor has what it stands for.
    pub fn detect() -> Option<Avx512Vnni> {
        None
    }

    /// The proof of the smaller instruction set.
    pub(super) fn avx2(self) -> Avx2 {
        self.avx2
    }
}
