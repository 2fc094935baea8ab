//! What the targets of an artifact ask of a plan and of the file: whose rules of fusion it follows. Here is the
//! vocabulary; `planner` plans for a target, `settle` gives values one scale where the target wants it, `shared` stores
//! weights as the target can share them.

pub mod planner;
pub mod settle;
pub mod shared;
mod tensorrt;

use super::{Activations, Functions, Recipe, Target};
use crate::engine::graph::Graph;
use crate::engine::graph::passes::hard_swish::name_hard_swish;
use crate::engine::graph::passes::simplify::simplify;
use crate::engine::graph::passes::{Pass, Passes};
use crate::engine::tensor::DType;
use crate::engine::tensor::qparams::Codes;

/// Signed codes with zero anywhere: those of TensorFlow Lite.
pub const S8_ANYWHERE: Codes = Codes { dtype: DType::I8, symmetric: false };

/// Brings a float graph to the nodes that a plan for the target of a recipe is made of.
pub fn simplify_for(graph: &mut Graph, recipe: &Recipe) {
    let Profile { functions, blocks, .. } = Profile::of(recipe);
    simplify(graph, if blocks { Passes::ALL } else { Passes::ALL.without(Pass::SplitWindows) });
    if functions != Functions::Table {
        name_hard_swish(graph);
    }
}

/// Which values have one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// Those that codes are passed on between as they are.
    Passed,
    /// The operands and the result of a join, too.
    Joined,
    /// What goes into and comes out of an average, too.
    Averaged,
}

/// What a target asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Codes of activations.
    pub codes: Codes,
    /// Whether biases stay real.
    pub real_bias: bool,
    /// Whether a convolution may give reals, where nobody computes with its codes.
    pub real_results: bool,
    /// Whether a function of one value is one operator: no tables of several steps.
    pub single_functions: bool,
    /// Which functions are computed of the sums of the product before them.
    pub functions: Functions,
    /// Whether codes are passed on through blocks of pixels that become channels, or the other way.
    pub blocks: bool,
    /// Whether windows are computed on codes over one and two spatial axes only.
    pub flat_windows: bool,
    /// Whether results become codes although nobody computes with them.
    pub whole: bool,
    /// Whether matrices have one scale, and only kernels of convolutions one a channel.
    pub matrices_by_tensor: bool,
    /// Whether the rows of a table may have a scale each, in operators that compute on reals.
    pub tables_by_row: bool,
    /// Which values have one scale.
    pub shared: Shared,
}

impl Profile {
    /// What the target of a recipe asks for.
    pub fn of(recipe: &Recipe) -> Profile {
        let asked = match recipe.activations {
            Activations::U8 => Codes::U8,
            Activations::S8 => Codes::S8,
        };
        let plain = Profile {
            codes: asked,
            real_bias: false,
            real_results: false,
            single_functions: false,
            functions: Functions::Table,
            blocks: false,
            flat_windows: false,
            whole: false,
            matrices_by_tensor: false,
            tables_by_row: false,
            shared: Shared::Passed,
        };
        match recipe.target {
            Target::Octet => Profile {
                real_results: recipe.ranges_by_row(),
                tables_by_row: true,
                functions: recipe.functions,
                blocks: true,
                flat_windows: true,
                ..plain
            },
            Target::Onnxruntime => Profile { single_functions: true, ..plain },
            Target::Openvino => Profile { real_results: true, shared: Shared::Joined, ..plain },
            Target::Tensorrt => Profile { codes: Codes::S8, real_bias: true, ..plain },
            Target::TfliteRules => Profile {
                codes: if recipe.activations == Activations::S8 { Codes::S8 } else { S8_ANYWHERE },
                single_functions: true,
                whole: true,
                matrices_by_tensor: true,
                shared: Shared::Averaged,
                ..plain
            },
        }
    }
}
