//! Packed weights: each constant operand is packed once a session, whatever the shapes and however many plans.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::kernels::depthwise::PackedDepthwise;
use crate::engine::kernels::depthwise_f32::PackedDepthwiseF32;
use crate::engine::kernels::gemm_f32::PackedF32;
use crate::engine::kernels::gemm_int8::PackedInt8;
use crate::engine::kernels::winograd::PackedWinograd;

/// The weights of one node, in the order that its kernel reads.
pub(super) enum Packed {
    /// One matrix a group.
    Float(Vec<PackedF32>),
    /// Depthwise.
    DepthwiseFloat(PackedDepthwiseF32),
    /// One matrix a group.
    Int8(Vec<PackedInt8>),
    /// 3x3 windows, transformed.
    WinogradInt8(PackedWinograd),
    /// Depthwise.
    DepthwiseInt8(PackedDepthwise),
}

impl Packed {
    /// Bytes that the packed weights take.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Packed::Float(groups) => groups.iter().map(PackedF32::bytes).sum(),
            Packed::DepthwiseFloat(packed) => packed.bytes(),
            Packed::Int8(groups) => groups.iter().map(PackedInt8::bytes).sum(),
            Packed::WinogradInt8(packed) => packed.bytes(),
            Packed::DepthwiseInt8(packed) => packed.bytes(),
        }
    }

    /// Sum of the codes of each output channel.
    pub(super) fn column_sums(&self) -> Vec<i32> {
        match self {
            Packed::Int8(groups) => groups.iter().flat_map(|g| g.column_sums().iter().copied()).collect(),
            Packed::WinogradInt8(packed) => packed.column_sums().to_vec(),
            Packed::DepthwiseInt8(packed) => packed.column_sums().to_vec(),
            Packed::Float(_) | Packed::DepthwiseFloat(_) => unreachable!("floats have no code sums"),
        }
    }
}

/// The packed weights of a session, by node.
#[derive(Default)]
pub(super) struct Weights {
    packs: Mutex<HashMap<usize, Arc<Packed>>>,
}

impl Weights {
    /// The packed weights of a node; packs them the first time.
    pub(super) fn get(&self, node: usize, pack: impl FnOnce() -> Packed) -> Arc<Packed> {
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        packs.entry(node).or_insert_with(|| Arc::new(pack())).clone()
    }

    /// Bytes of all packed weights.
    pub(super) fn bytes(&self) -> u64 {
        let packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        packs.values().map(|p| p.bytes() as u64).sum()
    }
}
