//! Which instruction set the kernels use. Stands in until the kernels land.

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust.
    Scalar,
}

impl Isa {
    /// The fastest one of this machine.
    pub fn best() -> Isa {
        Isa::Scalar
    }

    /// By name: `scalar`, `avx2`, …; `None` where the machine lacks it.
    pub fn named(name: &str) -> Option<Isa> {
        (name == "scalar").then_some(Isa::Scalar)
    }

    /// The name.
    pub fn name(self) -> &'static str {
        "scalar"
    }
}
