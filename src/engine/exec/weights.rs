//! Packed weights: each constant operand is packed once a session, whatever the shapes and however many plans. What
//! nobody reads in another form is kept in that form only.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::graph::fact::Fact;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::kernels::depthwise::PackedDepthwise;
use crate::engine::kernels::depthwise_f32::PackedDepthwiseF32;
use crate::engine::kernels::gemm_f32::PackedF32;
use crate::engine::kernels::gemm_int8::PackedInt8;
use crate::engine::kernels::winograd::PackedWinograd;
use crate::engine::tensor::Tensor;

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

/// The weights of a session.
#[derive(Default)]
pub(super) struct Weights {
    /// Values whose data is here and not in the graph, with their type and shape.
    held: HashMap<ValueId, Fact>,
    forms: Mutex<Forms>,
}

/// The weights of each node, by its index, in one of two forms.
#[derive(Default)]
struct Forms {
    /// As the graph had them, until the node has packed them; nodes that read the same value share it.
    plain: HashMap<usize, Arc<Tensor>>,
    packed: HashMap<usize, Arc<Packed>>,
}

impl Weights {
    /// Takes constants out of a graph that nobody reads but nodes that pack their second operand, so that they need
    /// not be kept in both forms.
    pub(super) fn take(graph: &mut Graph, packs: impl Fn(&Graph, &Node) -> bool) -> Weights {
        let mut read_otherwise: HashSet<ValueId> = graph.outputs.iter().copied().collect();
        let mut readers: Vec<(usize, ValueId)> = Vec::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            let packed = node.input(1).filter(|_| packs(graph, node));
            readers.extend(packed.map(|id| (index, id)));
            let others = node.inputs.iter().enumerate().filter(|(i, _)| *i != 1 || packed.is_none());
            read_otherwise.extend(others.filter_map(|(_, id)| *id));
        }
        readers.retain(|(_, id)| !read_otherwise.contains(id));
        let (mut held, mut plain) = (HashMap::new(), HashMap::new());
        for &(index, id) in &readers {
            if let Some(tensor) = graph.constant(id) {
                held.insert(id, Fact::computed(tensor.dtype(), tensor.shape().to_vec()));
                plain.insert(index, tensor.clone());
            }
        }
        held.keys().for_each(|&id| graph.value_mut(id).constant = None);
        Weights { held, forms: Mutex::new(Forms { plain, packed: HashMap::new() }) }
    }

    /// Type and shape of a value whose data is held here.
    pub(super) fn fact(&self, id: ValueId) -> Option<&Fact> {
        self.held.get(&id)
    }

    /// Whether a value is the same in every run.
    pub(super) fn is_constant(&self, graph: &Graph, id: ValueId) -> bool {
        graph.constant(id).is_some() || self.held.contains_key(&id)
    }

    /// All values whose data is held here.
    pub(super) fn facts(&self) -> impl Iterator<Item = (ValueId, &Fact)> {
        self.held.iter().map(|(id, fact)| (*id, fact))
    }

    /// The packed weights of a node; packs them the first time. `None` where they are no constant.
    pub(super) fn get(
        &self,
        node: usize,
        weight: &Fact,
        pack: impl FnOnce(&Tensor) -> Packed,
    ) -> Option<Arc<Packed>> {
        // Other nodes pack theirs meanwhile; of one node no two plans are made at once.
        let forms = || self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packed) = forms().packed.get(&node) {
            return Some(packed.clone());
        }
        let plain = forms().plain.remove(&node).or_else(|| weight.constant.clone())?;
        let packed = Arc::new(pack(&plain));
        forms().packed.insert(node, packed.clone());
        Some(packed)
    }

    /// Bytes of all packed weights.
    pub(super) fn bytes(&self) -> u64 {
        let forms = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        forms.packed.values().map(|p| p.bytes() as u64).sum()
    }
}
