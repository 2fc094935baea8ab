//! The instruction sets that the kernels are written for, and which of them this processor has. Knows no kernel.

#[cfg(target_arch = "aarch64")]
use super::aarch64_dot::NeonDot;
#[cfg(target_arch = "aarch64")]
use super::aarch64_neon::Neon;
#[cfg(target_arch = "x86_64")]
use super::x86_64::Avx2;
#[cfg(target_arch = "x86_64")]
use super::x86_64_amx::Amx;
#[cfg(target_arch = "x86_64")]
use super::x86_64_avxvnni::AvxVnni;
#[cfg(target_arch = "x86_64")]
use super::x86_64_vnni::Avx512Vnni;

/// An instruction set that this processor has: the vector ones carry a proof that only detection makes.
///
/// All give the same bits; they differ in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, compiled for the target's baseline.
    Scalar,
    /// AVX2 and FMA (Haswell, Zen and later).
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX2 with byte dot products (Alder Lake, Zen 5 and later).
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    /// AVX-512 with byte dot products (Cascade Lake, Zen 4 and later).
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    /// Matrix tiles of bytes beside those (Sapphire Rapids and later).
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    /// What every 64-bit Arm processor has.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// NEON with byte dot products (Cortex-A55, A76, Neoverse N1, Apple A11 and later).
    #[cfg(target_arch = "aarch64")]
    NeonDot(NeonDot),
}

impl Isa {
    /// The fastest instruction set of this processor.
    pub fn best() -> Isa {
        *Isa::available().last().expect("the scalar one is always there")
    }

    /// The instruction sets of this processor, the slowest first.
    pub fn available() -> Vec<Isa> {
        #[cfg(target_arch = "x86_64")]
        let vector = [
            Avx2::detect().map(Isa::Avx2),
            AvxVnni::detect().map(Isa::AvxVnni),
            Avx512Vnni::detect().map(Isa::Avx512Vnni),
            Amx::detect().map(Isa::Amx),
        ];
        #[cfg(target_arch = "aarch64")]
        let vector = [Neon::detect().map(Isa::Neon), NeonDot::detect().map(Isa::NeonDot)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let vector: [Option<Isa>; 0] = [];
        std::iter::once(Isa::Scalar).chain(vector.into_iter().flatten()).collect()
    }

    /// The instruction set called `scalar`, `avx2`, `avxvnni`, `avx512vnni`, `amx`, `neon` or `neondot`; none if the
    /// name is unknown or the processor lacks it.
    pub fn named(name: &str) -> Option<Isa> {
        Isa::available().into_iter().find(|isa| isa.name() == name)
    }

    /// What [`Isa::named`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(_) => "amx",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot(_) => "neondot",
        }
    }

    /// The proof of AVX2, which every wider instruction set includes.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn avx2(self) -> Option<Avx2> {
        match self {
            Isa::Scalar => None,
            Isa::Avx2(avx2) => Some(avx2),
            Isa::AvxVnni(vnni) => Some(vnni.avx2()),
            Isa::Avx512Vnni(wide) => Some(wide.avx2()),
            Isa::Amx(amx) => Some(amx.wide().avx2()),
        }
    }

    /// The proof of AVX-512 with byte dot products, which matrix tiles come with.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn wide(self) -> Option<Avx512Vnni> {
        match self {
            Isa::Scalar | Isa::Avx2(_) | Isa::AvxVnni(_) => None,
            Isa::Avx512Vnni(wide) => Some(wide),
            Isa::Amx(amx) => Some(amx.wide()),
        }
    }

    /// The proof of NEON, which dot products come with.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn neon(self) -> Option<Neon> {
        match self {
            Isa::Scalar => None,
            Isa::Neon(neon) => Some(neon),
            Isa::NeonDot(dot) => Some(dot.neon()),
        }
    }

    /// Runs `f`, a loop over plain slices, compiled for this instruction set. Write the closure as `#[inline(always)] ||`,
    /// and loops in it as `for`: what is not inlined is compiled for the baseline.
    #[inline(always)]
    pub(in crate::engine) fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Isa::Scalar => f(),
            Isa::Avx2(avx2) => avx2.vectorize(f),
            Isa::AvxVnni(vnni) => vnni.avx2().vectorize(f),
            Isa::Avx512Vnni(wide) => wide.vectorize(f),
            Isa::Amx(amx) => amx.wide().vectorize(f),
        };
        // NEON is in the baseline of 64-bit Arm.
        #[cfg(not(target_arch = "x86_64"))]
        f()
    }

    /// Whether the order of channels decides how fast products of codes are: where pairs of byte products add in 16 bits.
    pub(in crate::engine) fn prefers_an_order(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, Isa::Avx2(_));
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Products of bytes in a dense product that one core does in a nanosecond, roughly, like
    /// [`Isa::products_per_ns`].
    pub(super) fn byte_products_per_ns(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(_) => 128,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) => 192,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(_) => 768,
            _ => self.products_per_ns(),
        }
    }

    /// Integer or float products that one core does in a nanosecond, roughly: what a split of work is judged by.
    pub(in crate::engine) fn products_per_ns(self) -> usize {
        match self {
            Isa::Scalar => 4,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) | Isa::AvxVnni(_) => 48,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) | Isa::Amx(_) => 96,
            // Guesses from the width of the units.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => 12,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot(_) => 48,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_what_is_available() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(isa.name()), Some(isa));
        }
        assert_eq!(Isa::named("mmx"), None);
        assert_eq!(Isa::available()[0], Isa::Scalar);
    }
}
