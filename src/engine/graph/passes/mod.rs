//! Rewrites of a graph that keep its answer. Each has a name and can be switched off.

mod affine;
pub mod casts;
mod halves;
pub mod hard_swish;
mod identities;
mod pads;
pub mod simplify;
mod transposes;
mod windows;

/// One rewrite, of the graph or of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Pass {
    /// Nodes over constants are computed once.
    FoldConstants,
    /// Identity nodes go.
    RemoveIdentities,
    /// Values in float16 and bfloat16 become float32, but for inputs and outputs. Rounds less often than the nodes do.
    WidenHalves,
    /// ConvTranspose whose windows lie side by side becomes a Conv and blocks of pixels.
    SplitWindows,
    /// BatchNormalization, Mul and Add by channel move into the weights of the Conv before them. Rounds otherwise than
    /// the nodes it replaces, as does `WidenHalves` and no other pass.
    FoldAffine,
    /// Pads of zeros move into the Conv or AveragePool after them.
    FoldPads,
    /// Transposes that follow each other become one, or none.
    MergeTransposes,
    /// Channels that only products of codes see change places, so that more of their products add in 16 bits.
    OrderChannels,
    /// Products take over the bias, activation, residual addition and clamp after them.
    FuseEpilogues,
    /// Images keep the memory order of the kernels between steps.
    ChannelsLast,
    /// Convolutions of codes with 3x3 windows multiply transformed tiles, where that is faster.
    Winograd,
}

/// Name and meaning, for people.
const NAMES: [(Pass, &str); 11] = [
    (Pass::FoldConstants, "fold_constants"),
    (Pass::RemoveIdentities, "remove_identities"),
    (Pass::WidenHalves, "widen_halves"),
    (Pass::SplitWindows, "split_windows"),
    (Pass::FoldAffine, "fold_affine"),
    (Pass::FoldPads, "fold_pads"),
    (Pass::MergeTransposes, "merge_transposes"),
    (Pass::OrderChannels, "order_channels"),
    (Pass::FuseEpilogues, "fuse_epilogues"),
    (Pass::ChannelsLast, "channels_last"),
    (Pass::Winograd, "winograd"),
];

impl Pass {
    /// Every pass, in the order in which they run.
    pub fn all() -> impl Iterator<Item = Pass> {
        NAMES.iter().map(|(pass, _)| *pass)
    }

    /// The name.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// The pass of that name.
    pub fn named(name: &str) -> Option<Pass> {
        NAMES.iter().find(|(_, n)| *n == name).map(|(pass, _)| *pass)
    }
}

/// Which passes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes(u16);

impl Passes {
    /// Every pass.
    pub const ALL: Passes = Passes((1 << NAMES.len()) - 1);
    /// None: the graph as the file has it.
    pub const NONE: Passes = Passes(0);

    /// Whether a pass runs.
    pub fn has(self, pass: Pass) -> bool {
        self.0 & (1 << pass as u8) != 0
    }

    /// All of these but one.
    pub fn without(self, pass: Pass) -> Passes {
        Passes(self.0 & !(1 << pass as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pass_has_its_name_and_its_switch() {
        for pass in Pass::all() {
            assert_eq!(Pass::named(pass.name()), Some(pass));
            let but_one = Passes::ALL.without(pass);
            assert!(!but_one.has(pass) && Pass::all().filter(|p| but_one.has(*p)).count() == NAMES.len() - 1);
        }
        assert_eq!(Pass::all().fold(Passes::ALL, Passes::without), Passes::NONE);
        assert_eq!(Pass::named("frobnicate"), None);
    }
}
