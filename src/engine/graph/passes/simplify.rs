//! The passes over a graph, one after another. Constants are folded in `exec`, which can compute.

use super::affine::fold_into_convs;
use super::halves::widen_halves;
use super::identities::remove_identities;
use super::pads::fold_pads;
use super::transposes::merge_transposes;
use super::windows::split_windows;
use super::{Pass, Passes};
use crate::engine::graph::Graph;

type Rewrite = fn(&mut Graph);

/// Brings a graph to fewer nodes by the passes that are on. Values that stay keep their names. Nodes that nobody
/// reads go in any case.
pub fn simplify(graph: &mut Graph, passes: Passes) {
    let all: [(Pass, Rewrite); 6] = [
        (Pass::WidenHalves, widen_halves),
        (Pass::RemoveIdentities, remove_identities),
        (Pass::MergeTransposes, merge_transposes),
        (Pass::FoldPads, fold_pads),
        (Pass::SplitWindows, split_windows),
        (Pass::FoldAffine, fold_into_convs),
    ];
    for (_, rewrite) in all.iter().filter(|(pass, _)| passes.has(*pass)) {
        rewrite(graph);
    }
    graph.remove_unused_nodes();
}
