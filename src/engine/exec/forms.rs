//! Where the values of a plan lie, and in which memory order: finds the order that is asked for, makes it where there is
//! only the other, and gives one memory two names where an operator changes nothing but the shape.

use std::sync::Arc;

use crate::engine::graph::fact::{Fact, Results};
use crate::engine::graph::op::Op;
use crate::engine::graph::passes::Pass;
use crate::engine::graph::{Node, ValueId};
use crate::engine::tensor::{DType, Tensor};

use super::layout::{self, Layout};
use super::plan::{Builder, DraftSight, Form, Place, State, constant_operand, constant_state, fold};

impl Builder<'_> {
    pub(super) fn state(&self, id: ValueId) -> Result<&State, String> {
        let state = self.states[id.0 as usize].as_ref();
        state.ok_or_else(|| {
            format!("value `{}` is made by no node before it", self.source.graph.value(id).name)
        })
    }

    pub(super) fn set(
        &mut self,
        id: ValueId,
        fact: Fact,
        row_major: Option<Form>,
        channels_last: Option<Form>,
    ) {
        let shown = row_major.as_ref().map(|f| (f, Layout::RowMajor));
        let shown = shown.or(channels_last.as_ref().map(|f| (f, Layout::ChannelsLast)));
        if self.source.wanted.contains(&id)
            && let Some((form, layout)) = shown
        {
            let (form, done) = (form.clone(), self.drafts.len());
            self.touch(&form, done.saturating_sub(1));
            self.sights.push(DraftSight {
                after_steps: done,
                value: id,
                form,
                dtype: fact.dtype,
                layout,
                shape: fact.shape.clone(),
            });
        }
        self.states[id.0 as usize] = Some(State { fact, row_major, channels_last });
    }

    pub(super) fn set_in(&mut self, id: ValueId, fact: Fact, form: Form, layout: Layout) {
        match layout {
            Layout::RowMajor => self.set(id, fact, Some(form), None),
            Layout::ChannelsLast => self.set(id, fact, None, Some(form)),
        }
    }

    pub(super) fn set_constant(&mut self, id: ValueId, tensor: Arc<Tensor>) {
        let state = constant_state(tensor);
        self.set(id, state.fact, state.row_major, None);
    }

    /// Keeps the buffer of a form alive up to a step.
    pub(super) fn touch(&mut self, form: &Form, step: usize) {
        if let Place::Buffer { index, .. } = form.place {
            self.buffers[index].last = self.buffers[index].last.max(step);
        }
    }

    /// The memory order that a computed value has already.
    pub(super) fn found(&self, id: ValueId) -> Result<Layout, String> {
        let state = self.state(id)?;
        let last_only = state.row_major.is_none() && state.channels_last.is_some();
        Ok(if last_only { Layout::ChannelsLast } else { Layout::RowMajor })
    }

    /// A value in a given memory order; converts it where it has only the other.
    pub(super) fn form(&mut self, node: usize, id: ValueId, layout: Layout) -> Result<Form, String> {
        let state = self.state(id)?;
        let (have, other) = match layout {
            Layout::RowMajor => (&state.row_major, &state.channels_last),
            Layout::ChannelsLast => (&state.channels_last, &state.row_major),
        };
        if let Some(form) = have {
            return Ok(form.clone());
        }
        let from = other.clone().ok_or("a value has no form")?;
        let (dtype, logical) = (state.fact.dtype, state.fact.shape.clone());
        let shape = layout.shape(&logical);
        let form = if layout::same_memory(&logical) {
            Form { place: from.place.clone(), shape }
        } else {
            let kernel = layout::convert(self.source.context, layout, dtype, &logical);
            match &from.place {
                Place::Constant(tensor) => {
                    let folded =
                        fold(&kernel, &[Some(constant_operand(tensor.clone(), &from.shape))], dtype, &shape)?;
                    Form { place: Place::Constant(Arc::new(folded)), shape }
                }
                _ => {
                    self.emit((node, layout.conversion(), 0), kernel, vec![Some((from, dtype))], dtype, shape)
                }
            }
        };
        let state = self.states[id.0 as usize].as_mut().expect("read above");
        match layout {
            Layout::RowMajor => state.row_major = Some(form.clone()),
            Layout::ChannelsLast => state.channels_last = Some(form.clone()),
        }
        Ok(form)
    }

    /// An operand of a broadcast in channels-last order: missing leading axes are put in first.
    pub(super) fn widened(
        &mut self,
        index: usize,
        id: ValueId,
        fact: &Fact,
        rank: usize,
    ) -> Result<Form, String> {
        if fact.shape.len() == rank {
            return self.form(index, id, Layout::ChannelsLast);
        }
        let from = self.form(index, id, Layout::RowMajor)?;
        let logical = [vec![1; rank - fact.shape.len()], fact.shape.clone()].concat();
        let shape = Layout::ChannelsLast.shape(&logical);
        if layout::same_memory(&logical) {
            return Ok(Form { place: from.place, shape });
        }
        let kernel = layout::convert(self.source.context, Layout::ChannelsLast, fact.dtype, &logical);
        match &from.place {
            Place::Constant(tensor) => {
                let tensor =
                    fold(&kernel, &[Some(constant_operand(tensor.clone(), &logical))], fact.dtype, &shape)?;
                Ok(Form { place: Place::Constant(Arc::new(tensor)), shape })
            }
            place => {
                let from = Form { place: place.clone(), shape: logical };
                let what = Layout::ChannelsLast.conversion();
                Ok(self.emit((index, what, 0), kernel, vec![Some((from, fact.dtype))], fact.dtype, shape))
            }
        }
    }

    /// Operators that only rename the shape: no step.
    pub(super) fn alias(
        &mut self,
        node: &Node,
        facts: &[Option<Fact>],
        results: &[(DType, Vec<usize>)],
    ) -> Result<bool, String> {
        let renames = match &node.op {
            Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze | Op::Unsqueeze | Op::Identity => true,
            Op::Cast { to } => facts[0].as_ref().is_some_and(|x| x.dtype == *to),
            _ => false,
        };
        let Some(x) = node.input(0).filter(|_| renames) else { return Ok(false) };
        let (dtype, shape) = results[0].clone();
        if let Some(tensor) = self.state(x)?.fact.constant.clone() {
            let tensor = (*tensor).clone().reshaped(&shape).ok_or("the number of elements changes")?;
            self.set_constant(node.outputs[0], Arc::new(tensor));
            return Ok(true);
        }
        let mut channels_last = None;
        if matches!(node.op, Op::Identity) || self.state(x)?.fact.shape == shape {
            channels_last = self.state(x)?.channels_last.clone();
        }
        let have_row_major = self.state(x)?.row_major.is_some();
        let row_major = if have_row_major || channels_last.is_none() {
            let form = self.form(self.drafts.last().map_or(0, |d| d.node), x, Layout::RowMajor)?;
            Some(Form { place: form.place, shape: shape.clone() })
        } else {
            None
        };
        self.set(node.outputs[0], Fact::computed(dtype, shape), row_major, channels_last);
        Ok(true)
    }

    /// A Transpose between `[N, C, …]` and `[N, …, C]` is the same memory in the other order: no step.
    pub(super) fn turn(&mut self, node: &Node, results: &Results) -> Result<bool, String> {
        let (Op::Transpose { perm }, Some(x)) = (&node.op, node.input(0)) else { return Ok(false) };
        let rank = perm.len();
        if rank < 3 || !self.source.passes.has(Pass::ChannelsLast) || self.state(x)?.fact.constant.is_some() {
            return Ok(false);
        }
        let channels_first = [0, rank - 1].into_iter().chain(1..rank - 1);
        let channels_last = std::iter::once(0).chain(2..rank).chain([1]);
        let state = self.state(x)?;
        let (row_major, last) = if perm.iter().copied().eq(channels_first) {
            (None, state.row_major.clone())
        } else if perm.iter().copied().eq(channels_last) {
            (state.channels_last.clone(), None)
        } else {
            return Ok(false);
        };
        if row_major.is_none() && last.is_none() {
            return Ok(false);
        }
        let (dtype, shape) = results[0].clone();
        self.set(node.outputs[0], Fact::computed(dtype, shape), row_major, last);
        Ok(true)
    }
}
