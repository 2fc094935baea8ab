//! One step of a plan: a compiled operator, where its operands lie, and how it reads them without a copy.

use std::ops::Range;
use std::sync::Arc;

use crate::engine::graph::passes::Pass;
use crate::engine::kernels::isa::Isa;
use crate::engine::tensor::{DType, Tensor, TensorView, TensorViewMut};

use super::{Memory, Options};

/// What a step computes. Shapes, axes and packed weights are fixed when it is compiled; running it allocates
/// nothing but what `Scratch` keeps. An error is a sentence about the data (an index out of range, say).
pub(super) type Kernel =
    Box<dyn Fn(&Operands<'_>, TensorViewMut<'_>, &mut Scratch) -> Result<(), String> + Send + Sync>;

/// How kernels are compiled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    /// Instruction set.
    pub(super) isa: Isa,
    /// Most threads of one step.
    pub(super) threads: usize,
    /// Whether convolutions may transform tiles.
    pub(super) winograd: bool,
    /// Whether weights should rather be small than fast.
    pub(super) small: bool,
}

impl Context {
    /// As the options say.
    pub(super) fn new(options: &Options) -> Context {
        let (isa, threads, small) = (options.isa, options.threads.max(1), options.memory == Memory::Small);
        let winograd = options.passes.has(Pass::Winograd) && !small;
        Context { isa, threads, winograd, small }
    }
}

/// Room that steps reuse from run to run.
#[derive(Default)]
pub(super) struct Scratch {
    /// Packed activations of a product of two computed matrices.
    pub(super) floats: Vec<f32>,
    /// A transposed operand.
    pub(super) more_floats: Vec<f32>,
}

/// Where an operand lies.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The caller's input of that index.
    Given(usize),
    /// The model.
    Constant(Arc<Tensor>),
    /// Bytes of the arena.
    Arena(Range<usize>),
}

/// An operand: where it lies, and what it is there (shapes are as in memory).
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) source: Source,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
}

/// The operands of one step in one run.
pub(super) struct Operands<'a> {
    operands: &'a [Option<Operand>],
    given: &'a [&'a Tensor],
    /// The arena before and after the bytes that the step writes.
    left: &'a [u8],
    right: &'a [u8],
    right_start: usize,
}

impl<'a> Operands<'a> {
    /// Operands that are all constants: how constants are folded.
    pub(super) fn constants(operands: &'a [Option<Operand>]) -> Operands<'a> {
        Operands { operands, given: &[], left: &[], right: &[], right_start: 0 }
    }

    /// Splits the arena into what the step writes (`out`) and what it may read (the rest).
    pub(super) fn split(
        operands: &'a [Option<Operand>],
        given: &'a [&'a Tensor],
        arena: &'a mut [u8],
        out: &Range<usize>,
    ) -> (Operands<'a>, &'a mut [u8]) {
        let (left, rest) = arena.split_at_mut(out.start);
        let (middle, right) = rest.split_at_mut(out.len());
        (Operands { operands, given, left, right, right_start: out.end }, middle)
    }

    /// Operands that are only read, nothing being written: how outputs are taken from the arena.
    pub(super) fn read(
        operands: &'a [Option<Operand>],
        given: &'a [&'a Tensor],
        arena: &'a [u8],
    ) -> Operands<'a> {
        Operands { operands, given, left: arena, right: &[], right_start: arena.len() }
    }

    /// Number of operands.
    pub(super) fn len(&self) -> usize {
        self.operands.len()
    }

    /// Operand `index`, where it is there.
    pub(super) fn get(&self, index: usize) -> Option<TensorView<'a>> {
        let operand = self.operands.get(index)?.as_ref()?;
        let bytes = match &operand.source {
            Source::Given(i) => self.given[*i].view().bytes,
            Source::Constant(tensor) => tensor.view().bytes,
            Source::Arena(range) if range.end <= self.left.len() => &self.left[range.clone()],
            Source::Arena(range) => &self.right[range.start - self.right_start..range.end - self.right_start],
        };
        Some(TensorView { dtype: operand.dtype, shape: &operand.shape, bytes })
    }

    /// Operand `index`, which the compiler of the step has seen.
    pub(super) fn need(&self, index: usize) -> TensorView<'a> {
        self.get(index).expect("the step was compiled with this operand")
    }
}
