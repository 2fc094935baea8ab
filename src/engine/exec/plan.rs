//! A graph compiled for given input shapes: a list of steps over one arena. Decides the memory order of every
//! value, folds what is constant, lets products take over what follows them. Where a shape depends on data, the
//! plan ends: it says which nodes are left, and the session makes the next plan once the data is there.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index};
use crate::engine::graph::op::Op;
use crate::engine::graph::operator::Other;
use crate::engine::graph::passes::{Pass, Passes};
use crate::engine::graph::shapes::{self, infer};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::kernels::SumForm;
use crate::engine::kernels::parallel::map_each;
use crate::engine::tensor::{DType, Tensor, TensorViewMut};

use super::compile::Request;
use super::fold::{Budget, macs};
use super::fuse::{CodesTail, Finder, Fused, FusedCodes, Tail, gives_codes};
use super::half::compile;
use super::layout::{self, Layout, Rule};
use super::memory::{Lifetime, place};
use super::step::{Context, Kernel, Operand, Operands, Scratch, Source};
use super::weights::Weights;
use super::{Error, lower_by_row, ops_move, ops_product, others};

/// One compiled step.
pub(super) struct Step {
    /// Index of the node in the graph.
    pub(super) node: usize,
    /// The operator, or `to_channels_last` / `to_row_major`.
    pub(super) what: &'static str,
    /// Multiply-accumulates of one run.
    pub(super) macs: u64,
    pub(super) kernel: Kernel,
    pub(super) operands: Vec<Option<Operand>>,
    pub(super) out: Range<usize>,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
}

/// A value that can be shown to a tap once so many steps are done.
pub(super) struct Sight {
    pub(super) after_steps: usize,
    pub(super) value: ValueId,
    pub(super) operand: Option<Operand>,
    pub(super) layout: Layout,
    /// The shape that the model gives it.
    pub(super) shape: Vec<usize>,
}

/// A compiled graph.
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) arena_bytes: usize,
    /// The values that the plan hands over: the graph's outputs in their order, then what `rest` reads.
    pub(super) made: Vec<ValueId>,
    /// Where each of them lies.
    pub(super) outputs: Vec<Option<Operand>>,
    pub(super) sights: Vec<Sight>,
    /// Those of them that the plan knew without a run.
    pub(super) known: Vec<ValueId>,
    /// Nodes that could not be planned, in order: a shape depends on the data.
    pub(super) rest: Vec<usize>,
}

/// Where a plan begins: what is there, and what is to be done.
pub(super) struct Start {
    /// What the caller hands in, in order; what is known as a constant is not read from there.
    pub(super) given: Vec<(ValueId, Fact)>,
    /// Indices of nodes, in order.
    pub(super) nodes: Vec<usize>,
}

/// What a plan is compiled from.
pub(super) struct Blueprint<'a> {
    pub(super) graph: &'a Graph,
    pub(super) weights: &'a Weights,
    pub(super) context: Context,
    /// Most bytes of an arena.
    pub(super) memory_bytes_max: u64,
    /// Of them those that change the plan.
    pub(super) passes: Passes,
    /// Values that must not be fused away, because a tap wants to see them.
    pub(super) wanted: &'a HashSet<ValueId>,
    /// Most threads that pack weights, each those of a step.
    pub(super) packers: usize,
}

/// Where a form of a value lies while the plan is made.
#[derive(Clone)]
pub(super) enum Place {
    Given(usize),
    Constant(Arc<Tensor>),
    /// In [`Weights`]: the kernel has them.
    Held,
    /// Bytes of a buffer, from an offset on.
    Buffer {
        index: usize,
        start: usize,
        len: usize,
    },
}

/// A value in one memory order.
#[derive(Clone)]
pub(super) struct Form {
    pub(super) place: Place,
    pub(super) shape: Vec<usize>,
}

/// What is known of a value while the plan is made.
#[derive(Clone)]
pub(super) struct State {
    pub(super) fact: Fact,
    pub(super) row_major: Option<Form>,
    pub(super) channels_last: Option<Form>,
}

pub(super) struct Draft<'a> {
    pub(super) node: usize,
    pub(super) what: &'static str,
    pub(super) macs: u64,
    pub(super) kernel: Making<'a>,
    pub(super) operands: Vec<Option<(Form, DType)>>,
    pub(super) buffer: usize,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
}

/// What makes the kernel of a step, where it does not stand there yet. To pack its weights takes most of the time that a
/// plan takes, and nothing else of the plan waits for it.
pub(super) type Making<'a> = Box<dyn FnOnce() -> Result<Kernel, String> + Send + 'a>;

pub(super) struct DraftSight {
    pub(super) after_steps: usize,
    pub(super) value: ValueId,
    pub(super) form: Form,
    pub(super) dtype: DType,
    pub(super) layout: Layout,
    pub(super) shape: Vec<usize>,
}

pub(super) struct Builder<'a> {
    pub(super) source: &'a Blueprint<'a>,
    pub(super) states: Vec<Option<State>>,
    pub(super) drafts: Vec<Draft<'a>>,
    pub(super) buffers: Vec<Lifetime>,
    pub(super) sights: Vec<DraftSight>,
    /// Nodes that the step of another does.
    pub(super) fused: HashSet<usize>,
    /// What may still be computed while the plan is made.
    pub(super) budget: Budget,
    pub(super) consumers: Vec<Vec<usize>>,
}

/// Compiles the nodes of a graph for operands of the given shapes, as far as shapes can be told.
///
/// # Errors
/// [`Error::Node`] where a node does not fit its operands; [`Error::TooLarge`].
pub(super) fn build(source: &Blueprint<'_>, start: Start) -> Result<Plan, Error> {
    let (builder, rest, later) = walk(source, start)?;
    builder.finish(rest, &later)
}

/// Type and shape of a value.
type TypeAndShape = (DType, Vec<usize>);

/// Type and shape of every value that can be told from the shapes of the operands; [`build`] without a plan.
pub(super) fn facts(source: &Blueprint<'_>, start: Start) -> Result<Vec<Option<TypeAndShape>>, Error> {
    let (builder, ..) = walk(source, start)?;
    let fact = |state: Option<State>| state.map(|s| (s.fact.dtype, s.fact.shape));
    Ok(builder.states.into_iter().map(fact).collect())
}

/// Plans node by node; with the nodes that could not be planned, and their results.
fn walk<'a>(
    source: &'a Blueprint<'a>,
    start: Start,
) -> Result<(Builder<'a>, Vec<usize>, HashSet<ValueId>), Error> {
    let graph = source.graph;
    let mut builder = Builder {
        source,
        states: vec![None; graph.values.len()],
        drafts: Vec::new(),
        buffers: Vec::new(),
        sights: Vec::new(),
        fused: HashSet::new(),
        budget: Budget::of(graph, source.weights),
        consumers: graph.consumers(),
    };
    for (id, value) in graph.values.iter().enumerate() {
        if let Some(tensor) = &value.constant {
            builder.states[id] = Some(constant_state(tensor.clone()));
        }
    }
    for (id, fact) in source.weights.facts() {
        let form = Form { place: Place::Held, shape: fact.shape.clone() };
        let state = State { fact: fact.clone(), row_major: Some(form), channels_last: None };
        builder.states[id.0 as usize] = Some(state);
    }
    for (index, (id, fact)) in start.given.into_iter().enumerate() {
        match fact.constant {
            Some(tensor) => builder.set_constant(id, tensor),
            None => {
                let form = Form { place: Place::Given(index), shape: fact.shape.clone() };
                builder.set(id, fact, Some(form), None);
            }
        }
    }
    let mut later: HashSet<ValueId> = HashSet::new();
    let mut rest = Vec::new();
    for index in start.nodes {
        let node = &graph.nodes[index];
        let waits = node.inputs.iter().flatten().any(|id| later.contains(id));
        let planned = if waits { Err(Unfit::AtRun(String::new())) } else { builder.node(index, node) };
        match planned {
            Ok(()) => {}
            Err(Unfit::Wrong(reason)) => return Err(at(node, reason)),
            Err(Unfit::AtRun(_)) => {
                rest.push(index);
                later.extend(&node.outputs);
            }
        }
    }
    Ok((builder, rest, later))
}

fn at(node: &Node, reason: String) -> Error {
    Error::Node { node: node.name.clone(), op: node.op.name(), reason }
}

pub(super) fn constant_state(tensor: Arc<Tensor>) -> State {
    let form = Form { place: Place::Constant(tensor.clone()), shape: tensor.shape().to_vec() };
    State { fact: Fact::constant(tensor), row_major: Some(form), channels_last: None }
}

impl<'a> Builder<'a> {
    pub(super) fn emit(
        &mut self,
        step: (usize, &'static str, u64),
        kernel: Kernel,
        operands: Vec<Option<(Form, DType)>>,
        dtype: DType,
        shape: Vec<usize>,
    ) -> Form {
        self.emit_later(step, Box::new(|| Ok(kernel)), operands, dtype, shape)
    }

    fn emit_later(
        &mut self,
        (node, what, macs): (usize, &'static str, u64),
        kernel: Making<'a>,
        operands: Vec<Option<(Form, DType)>>,
        dtype: DType,
        shape: Vec<usize>,
    ) -> Form {
        let step = self.drafts.len();
        operands.iter().flatten().for_each(|(form, _)| self.touch(form, step));
        let bytes = shape.iter().product::<usize>() * dtype.size();
        self.buffers.push(Lifetime { bytes, first: step, last: step });
        let buffer = self.buffers.len() - 1;
        self.drafts.push(Draft { node, what, macs, kernel, operands, buffer, dtype, shape: shape.clone() });
        Form { place: Place::Buffer { index: buffer, start: 0, len: bytes }, shape }
    }

    fn node(&mut self, index: usize, node: &Node) -> Result<(), Unfit> {
        if self.fused.contains(&index) {
            return Ok(());
        }
        let facts: Vec<Option<Fact>> = node
            .inputs
            .iter()
            .map(|id| id.map(|id| self.state(id).map(|s| s.fact.clone())).transpose())
            .collect::<Result<_, _>>()?;
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let mut results = infer(&node.op, &refs, node.outputs.len())?;
        // A product of codes whose result has no parameters is real.
        let real = self.source.graph.value(node.outputs[0]).qparams.is_none();
        if matches!(node.op, Op::QConv { .. } | Op::QMatMul { .. } | Op::QProduct { .. }) && real {
            results[0].0 = DType::F32;
        }
        if results.len() < node.outputs.len() {
            let text = format!("{} results are asked for, {} are made", node.outputs.len(), results.len());
            return Err(Unfit::Wrong(text));
        }
        let bytes =
            |(dtype, shape): &(DType, Vec<usize>)| Fact::computed(*dtype, shape.clone()).bytes() as u64;
        let (made, limit) = (results.iter().map(bytes).sum::<u64>(), self.source.memory_bytes_max);
        if made > limit {
            return Err(Unfit::Wrong(format!(
                "its results take {made} bytes, more than the limit of {limit}"
            )));
        }
        if self.alias(node, &facts, &results)? || self.turn(node, &results)? || self.shape_of(node, &facts) {
            return Ok(());
        }
        let constant = facts.iter().flatten().all(|f| f.constant.is_some())
            && self.budget.admits(&node.op, &facts, &results);
        match &node.op {
            Op::Split { axis, .. } => self.split(index, node, &facts, *axis, &results)?,
            Op::Other(other) if constant => self.folded_other(node, other, &facts, &results)?,
            Op::Other(other) => self.other(index, node, other, &facts, results)?,
            _ if constant => self.folded(index, node, &facts, &results[0])?,
            _ => self.step(index, node, &facts, results.into_iter().next().expect("at least one result"))?,
        }
        Ok(())
    }

    /// An operator that is one object: one step that writes all its results, one after another.
    fn other(
        &mut self,
        index: usize,
        node: &Node,
        other: &Other,
        facts: &[Option<Fact>],
        results: Results,
    ) -> Result<(), String> {
        if self.written(index, node, other, facts, &results)? {
            return Ok(());
        }
        let mut operands = Vec::new();
        for (id, fact) in node.inputs.iter().zip(facts) {
            operands.push(match (id, fact) {
                (Some(id), Some(fact)) => Some((self.form(index, *id, Layout::RowMajor)?, fact.dtype)),
                _ => None,
            });
        }
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let (ranges, bytes) = others::ranges(&results);
        let kernel = lower_by_row::kernel(self.source.context, other, &results)
            .unwrap_or_else(|| others::kernel(other, &refs, results.clone()));
        let Form { place: Place::Buffer { index: buffer, .. }, .. } =
            self.emit((index, other.name, 0), kernel, operands, DType::U8, vec![bytes])
        else {
            unreachable!("emit makes a buffer");
        };
        for ((&id, (dtype, shape)), range) in node.outputs.iter().zip(results).zip(ranges) {
            let place = Place::Buffer { index: buffer, start: range.start, len: range.len() };
            self.set(id, Fact::computed(dtype, shape.clone()), Some(Form { place, shape }), None);
        }
        Ok(())
    }

    /// An operator that is one object and writes its one result straight from its first operand, in the memory order
    /// that it finds.
    fn written(
        &mut self,
        index: usize,
        node: &Node,
        other: &Other,
        facts: &[Option<Fact>],
        results: &Results,
    ) -> Result<bool, String> {
        let (Some(x), Some(Some(fact)), [(dtype, shape)]) = (node.input(0), facts.first(), &results[..])
        else {
            return Ok(false);
        };
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let layout = if fact.shape.len() == shape.len() { self.found(x)? } else { Layout::RowMajor };
        let Some(writer) = other.operator.writer(&refs, layout == Layout::ChannelsLast) else {
            return Ok(false);
        };
        let kernel: Kernel = Box::new(move |operands, out, _| {
            writer(&operands.need(0), out.bytes);
            Ok(())
        });
        let operands = vec![Some((self.form(index, x, layout)?, fact.dtype))];
        let form = self.emit((index, other.name, 0), kernel, operands, *dtype, layout.shape(shape));
        self.set_in(node.outputs[0], Fact::computed(*dtype, shape.clone()), form, layout);
        Ok(true)
    }

    /// An operator that is one object, over constants.
    fn folded_other(
        &mut self,
        node: &Node,
        other: &Other,
        facts: &[Option<Fact>],
        results: &Results,
    ) -> Result<(), String> {
        let constants: Vec<Option<&Tensor>> =
            facts.iter().map(|f| f.as_ref().and_then(|f| f.constant.as_deref())).collect();
        let tensors = others::run(other, &constants, Some(results))?;
        for (&id, tensor) in node.outputs.iter().zip(tensors) {
            self.set_constant(id, Arc::new(tensor));
        }
        Ok(())
    }

    /// The shape of a value is known once the shapes of the inputs are.
    fn shape_of(&mut self, node: &Node, facts: &[Option<Fact>]) -> bool {
        let (Op::Shape { start, end }, Some(x)) = (&node.op, facts.first().and_then(Option::as_ref)) else {
            return false;
        };
        let dims: Vec<i64> =
            x.shape[shapes::shape_range(x.shape.len(), *start, *end)].iter().map(|&d| d as i64).collect();
        self.set_constant(node.outputs[0], Arc::new(Tensor::from_slice(&[dims.len()], &dims)));
        true
    }

    fn request(&self, index: usize, layout: Layout) -> Request<'a> {
        Request {
            graph: self.source.graph,
            weights: self.source.weights,
            context: self.source.context,
            index,
            node: &self.source.graph.nodes[index],
            layout,
            fused: Fused::NONE,
            fused_codes: FusedCodes::default(),
        }
    }

    fn folded(
        &mut self,
        index: usize,
        node: &Node,
        facts: &[Option<Fact>],
        result: &(DType, Vec<usize>),
    ) -> Result<(), String> {
        let rule = layout::rule(&node.op);
        let needs = if rule == Rule::ChannelsLast { Layout::ChannelsLast } else { Layout::RowMajor };
        let mut physical = facts.to_vec();
        if needs == Layout::ChannelsLast {
            let x = facts[0].as_ref().ok_or("input 0 is missing")?;
            let form = self.form(index, node.input(0).expect("it has a fact"), needs)?;
            let Place::Constant(tensor) = form.place else {
                return Err("a constant lost its data".to_owned());
            };
            physical[0] = Some(Fact { dtype: x.dtype, shape: form.shape, constant: Some(tensor) });
        }
        let refs: Vec<Option<&Fact>> = physical.iter().map(Option::as_ref).collect();
        let shape = needs.shape(&result.1);
        let kernel = compile(&self.request(index, needs), &refs, result.0, &shape)?;
        let operand = |fact: &Option<Fact>| {
            fact.as_ref().and_then(|f| f.constant.clone().map(|t| constant_operand(t, &f.shape)))
        };
        let operands: Vec<Option<Operand>> = physical.iter().map(operand).collect();
        let tensor = Arc::new(fold(&kernel, &operands, result.0, &shape)?);
        if needs == Layout::RowMajor {
            self.set_constant(node.outputs[0], tensor);
        } else {
            let back = layout::convert(self.source.context, Layout::RowMajor, result.0, &result.1);
            let tensor = fold(&back, &[Some(constant_operand(tensor, &shape))], result.0, &result.1)?;
            self.set_constant(node.outputs[0], Arc::new(tensor));
        }
        Ok(())
    }

    fn split(
        &mut self,
        index: usize,
        node: &Node,
        facts: &[Option<Fact>],
        axis: i64,
        results: &[(DType, Vec<usize>)],
    ) -> Result<(), String> {
        let x = facts[0].as_ref().ok_or("input 0 is missing")?;
        let axis = axis_index(axis, x.shape.len(), false)?;
        let id = node.input(0).ok_or("input 0 is missing")?;
        let layout = self.found(id)?;
        let form = self.form(index, id, layout)?;
        let physical = Fact::computed(x.dtype, form.shape.clone());
        let outs: Vec<Vec<usize>> = results.iter().map(|(_, shape)| shape.clone()).collect();
        let parts = ops_move::split_parts(axis, &outs);
        for ((&id, (start, length)), shape) in node.outputs.iter().zip(parts).zip(outs) {
            let kernel = ops_move::part(&physical, layout.axis(axis, x.shape.len()), start, length);
            let operands = vec![Some((form.clone(), x.dtype))];
            if let Some(tensor) = &x.constant {
                let operand = constant_operand(tensor.clone(), &x.shape);
                let part = fold(&kernel, &[Some(operand)], x.dtype, &shape)?;
                self.set_constant(id, Arc::new(part));
                continue;
            }
            let out = self.emit((index, "Split", 0), kernel, operands, x.dtype, layout.shape(&shape));
            self.set_in(id, Fact::computed(x.dtype, shape), out, layout);
        }
        Ok(())
    }

    fn step(
        &mut self,
        index: usize,
        node: &Node,
        facts: &[Option<Fact>],
        (dtype, shape): (DType, Vec<usize>),
    ) -> Result<(), String> {
        let layout = self.choose(node, facts, shape.len());
        let wide = layout::rule(&node.op) == Rule::FollowBroadcast && layout == Layout::ChannelsLast;
        let mut operands = Vec::new();
        for (position, id) in node.inputs.iter().enumerate() {
            let (Some(id), Some(fact)) = (id, &facts[position]) else {
                operands.push(None);
                continue;
            };
            let own = layout::of_operand(&node.op, position, layout, fact.shape.len());
            let form =
                if wide { self.widened(index, *id, fact, shape.len())? } else { self.form(index, *id, own)? };
            operands.push(Some((form, fact.dtype)));
        }
        let tail = self.tail(node, facts, dtype, &shape);
        let dtype = if tail.codes.is_some() { DType::U8 } else { dtype };
        let (activation, clamp, codes) = (tail.activation, tail.clamp, tail.codes);
        let mut fused = Fused { activation, clamp, codes, ..Fused::NONE };
        // What the tail reads comes after the operands of the node.
        for (id, place, layout) in
            [(tail.bias, &mut fused.bias, Layout::RowMajor), (tail.residual, &mut fused.residual, layout)]
        {
            if let Some(id) = id {
                *place = Some(operands.len());
                operands.push(Some((self.form(index, id, layout)?, DType::F32)));
            }
        }
        let codes = self.codes_tail(node, &tail, dtype, &shape);
        let mut fused_codes = FusedCodes { table: codes.table, sum: None };
        if let Some((id, scales)) = codes.sum {
            fused_codes.sum = Some((operands.len(), scales, SumForm::fit(&scales)));
            operands.push(Some((self.form(index, id, layout)?, DType::U8)));
        }
        let output = if codes.nodes.is_empty() { tail.output } else { codes.output };
        let physical: Vec<Option<Fact>> = operands
            .iter()
            .enumerate()
            .map(|(position, operand)| {
                let known = || facts.get(position)?.as_ref()?.constant.clone();
                operand.as_ref().map(|(form, dtype)| Fact {
                    dtype: *dtype,
                    shape: form.shape.clone(),
                    constant: match &form.place {
                        Place::Constant(tensor) => Some(tensor.clone()),
                        _ => known(),
                    },
                })
            })
            .collect();
        let out_shape = layout.shape(&shape);
        let request = Request { fused, fused_codes, ..self.request(index, layout) };
        let made_shape = out_shape.clone();
        let kernel = Box::new(move || {
            let refs: Vec<Option<&Fact>> = physical.iter().map(Option::as_ref).collect();
            compile(&request, &refs, dtype, &made_shape)
        });
        self.fused.extend(tail.nodes.iter().chain(&codes.nodes));
        let macs = macs(&node.op, facts, &shape);
        let form = self.emit_later((index, node.op.name(), macs), kernel, operands, dtype, out_shape);
        self.set_in(output, Fact::computed(dtype, shape), form, layout);
        if !self.source.passes.has(Pass::ChannelsLast) && layout == Layout::ChannelsLast {
            self.form(index, output, Layout::RowMajor)?;
            self.states[output.0 as usize].as_mut().expect("set above").channels_last = None;
        }
        Ok(())
    }

    /// What the step of a node takes over from the nodes after it.
    fn tail(&self, node: &Node, facts: &[Option<Fact>], dtype: DType, shape: &[usize]) -> Tail {
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let constant = node.input(1).is_some_and(|id| self.is_constant(id));
        match ops_product::epilogue_of(&node.op, &refs, constant) {
            Some(bias) if self.source.passes.has(Pass::FuseEpilogues) && dtype == DType::F32 => {
                let codes = gives_codes(&node.op);
                self.finder(|finder| finder.tail(node.outputs[0], shape, bias, codes))
            }
            _ => Tail::none(node.outputs[0]),
        }
    }

    /// Whether the data of a value is known, here or by [`Weights`].
    fn is_constant(&self, id: ValueId) -> bool {
        let state = self.states[id.0 as usize].as_ref();
        state.is_some_and(|s| s.fact.constant.is_some()) || self.source.weights.fact(id).is_some()
    }

    /// What the step of a product of codes takes over from the nodes after it.
    fn codes_tail(&self, node: &Node, tail: &Tail, dtype: DType, shape: &[usize]) -> CodesTail {
        if !gives_codes(&node.op)
            || tail.codes.is_some()
            || dtype != DType::U8
            || !self.source.passes.has(Pass::FuseEpilogues)
        {
            return CodesTail::none(node.outputs[0]);
        }
        self.finder(|finder| finder.codes_tail(node.outputs[0], shape))
    }

    fn finder<R>(&self, f: impl FnOnce(Finder<'_>) -> R) -> R {
        let fact = |id: ValueId| self.states[id.0 as usize].as_ref().map(|s| &s.fact);
        let (graph, consumers, wanted) = (self.source.graph, &self.consumers, self.source.wanted);
        f(Finder { graph, consumers, wanted, fact: &fact })
    }

    /// The memory order in which an operator runs here.
    fn choose(&self, node: &Node, facts: &[Option<Fact>], rank: usize) -> Layout {
        let last_only = |id: &Option<ValueId>| {
            id.and_then(|id| self.states[id.0 as usize].as_ref()).is_some_and(|s| {
                s.row_major.is_none() && s.channels_last.is_some() && s.fact.shape.len() == rank
            })
        };
        match layout::rule(&node.op) {
            Rule::ChannelsLast => Layout::ChannelsLast,
            Rule::RowMajor => Layout::RowMajor,
            Rule::Follow if layout::is_per_axis(&node.op, facts) => Layout::RowMajor,
            Rule::Follow => match node.inputs.first() {
                Some(id) if last_only(id) => Layout::ChannelsLast,
                _ => Layout::RowMajor,
            },
            Rule::FollowBroadcast | Rule::FollowAll => {
                let all_ranked = facts.iter().flatten().all(|f| f.shape.len() == rank);
                let broadcast = layout::rule(&node.op) == Rule::FollowBroadcast;
                match node.inputs.iter().any(last_only) && (all_ranked || broadcast) {
                    true => Layout::ChannelsLast,
                    false => Layout::RowMajor,
                }
            }
        }
    }

    /// Nodes of `rest` are done later, with the values in `later`.
    fn finish(mut self, rest: Vec<usize>, later: &HashSet<ValueId>) -> Result<Plan, Error> {
        let graph = self.source.graph;
        let mut made: Vec<ValueId> = graph.outputs.clone();
        let read_later = rest.iter().flat_map(|&n| graph.nodes[n].inputs.iter().flatten());
        made.extend(read_later.filter(|id| !self.source.weights.is_constant(graph, **id)));
        made.retain(|id| !later.contains(id) && self.states[id.0 as usize].is_some());
        let is_known =
            |id: &ValueId| self.states[id.0 as usize].as_ref().is_some_and(|s| s.fact.constant.is_some());
        let known = made.iter().copied().filter(is_known).collect();
        let mut outputs = Vec::new();
        for &id in &made {
            let fail = |reason| Error::Node { node: graph.value(id).name.clone(), op: "output", reason };
            let last = graph.nodes.len().saturating_sub(1);
            let form = self.form(last, id, Layout::RowMajor).map_err(fail)?;
            let dtype = self.state(id).map_err(fail)?.fact.dtype;
            outputs.push((form, dtype));
        }
        // Outputs are read after the last step.
        let end = self.drafts.len();
        outputs.iter().for_each(|(form, _)| self.touch(form, end));
        let (places, arena_bytes) = place(&self.buffers);
        let limit_bytes = self.source.memory_bytes_max;
        if arena_bytes as u64 > limit_bytes {
            return Err(Error::TooLarge { need_bytes: arena_bytes as u64, limit_bytes });
        }
        let operand = |(form, dtype): &(Form, DType)| {
            let source = match &form.place {
                Place::Given(i) => Source::Given(*i),
                Place::Constant(tensor) => Source::Constant(tensor.clone()),
                Place::Held => return None,
                Place::Buffer { index, start, len } => {
                    let at = places[*index].start + start;
                    Source::Arena(at..at + len)
                }
            };
            Some(Operand { source, dtype: *dtype, shape: form.shape.clone() })
        };
        let outputs = outputs.iter().map(operand).collect();
        let sights = self.sights.iter().map(|s| Sight {
            after_steps: s.after_steps,
            value: s.value,
            operand: operand(&(s.form.clone(), s.dtype)),
            layout: s.layout,
            shape: s.shape.clone(),
        });
        let sights = sights.collect();
        let step = |d: Draft<'_>| {
            Ok(Step {
                operands: d.operands.iter().map(|o| o.as_ref().and_then(operand)).collect(),
                node: d.node,
                what: d.what,
                macs: d.macs,
                kernel: (d.kernel)().map_err(|reason| at(&graph.nodes[d.node], reason))?,
                out: places[d.buffer].clone(),
                dtype: d.dtype,
                shape: d.shape,
            })
        };
        let steps = map_each(self.source.packers, self.drafts, step);
        let steps = steps.into_iter().collect::<Result<_, _>>()?;
        Ok(Plan { steps, arena_bytes, made, known, outputs, sights, rest })
    }
}

pub(super) fn constant_operand(tensor: Arc<Tensor>, shape: &[usize]) -> Operand {
    Operand { dtype: tensor.dtype(), shape: shape.to_vec(), source: Source::Constant(tensor) }
}

/// Runs a kernel on constants.
pub(super) fn fold(
    kernel: &Kernel,
    operands: &[Option<Operand>],
    dtype: DType,
    shape: &[usize],
) -> Result<Tensor, String> {
    let mut tensor = Tensor::zeros(dtype, shape);
    let view: TensorViewMut<'_> = tensor.view_mut();
    kernel(&Operands::constants(operands), view, &mut Scratch::default())?;
    Ok(tensor)
}
