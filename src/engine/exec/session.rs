//! A model that is ready to run: `Session::new(graph, options)`, `run(inputs)`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::graph::fact::{Fact, Unfit};
use crate::engine::graph::op::Op;
use crate::engine::graph::passes::Pass;
use crate::engine::graph::passes::simplify::simplify;
use crate::engine::graph::shapes::{bounded, infer};
use crate::engine::graph::{Dim, Graph, ValueId};
use crate::engine::kernels::parallel::in_company;
use crate::engine::kernels::requant::dequantize;
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::arena::{Arena, Arenas};
use super::channels::{Order, order_channels};
use super::compile::packs;
use super::fold::{fold_constants, fold_weights};
use super::layout::{Layout, bring};
use super::lower::{Lowered, lower};
use super::plan::{Blueprint, Plan, Sight, Start, build};
use super::step::{Context, Operands};
use super::weights::Weights;
use super::{ElementOrder, Error, Options, Port, Tap, control, others, symbolic};

/// Plans that a session keeps, one for each set of input shapes; the least recently used goes first.
const PLANS_MAX: usize = 16;
/// Largest operand whose data may decide a shape; larger ones are only ever read by the run.
const KNOWN_ELEMENTS_MAX: usize = 1024;

/// A loaded model. Many threads may call `run` at once; plans and packed weights are shared.
pub struct Session {
    pub(super) graph: Graph,
    /// For the codes of a quantized value the name of the real value that the model gives them.
    real_names: HashMap<ValueId, String>,
    /// Values whose channels do not stand as the model has them.
    orders: HashMap<ValueId, Order>,
    options: Options,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    weights: Weights,
    /// The bodies of nodes that hold graphs, by the index of the node.
    bodies: HashMap<usize, Vec<Session>>,
    plans: Mutex<Vec<Ready>>,
    arenas: Arenas,
    /// Plans made so far; each gets a number.
    made: AtomicU64,
    /// Whether nobody else has it yet. Then a plan may share out work: a thread that waits for others is given what the
    /// pool has to do, and a run of this session among that would wait for the plan.
    is_new: bool,
}

/// What a plan was made for.
#[derive(Clone, PartialEq)]
pub(super) struct Key {
    /// The plan that ran before, 0 for the first: it says which nodes are left.
    after: u64,
    /// Type and shape of what is given, and its data where shapes depend on it.
    given: Vec<(ValueId, DType, Vec<usize>, Option<Tensor>)>,
    /// Values that a tap wants to see.
    wanted: Vec<ValueId>,
}

/// A plan, and what it is for.
#[derive(Clone)]
pub(super) struct Ready {
    key: Arc<Key>,
    number: u64,
    pub(super) plan: Arc<Plan>,
}

impl Ready {
    /// Whether the plan is for operands of these types and shapes.
    pub(super) fn takes(&self, given: &[&Tensor]) -> bool {
        let mut pairs = self.key.given.iter().zip(given);
        self.key.given.len() == given.len()
            && pairs.all(|((_, dtype, shape, _), t)| (*dtype, &shape[..]) == (t.dtype(), t.shape()))
    }
}

/// Values between two plans.
type Values<'a> = HashMap<ValueId, Cow<'a, Tensor>>;

/// What is to be done with a node that a plan left.
enum Next {
    /// It can be planned where the data of these operands is known.
    Plan(Vec<ValueId>),
    /// Its operands are not there yet.
    Wait,
    /// Only running it tells.
    Now,
}

impl Session {
    /// Prepares a graph. QDQ nodes become integer operators where they can.
    ///
    /// # Errors
    /// [`Error::Node`] where a node cannot run whatever the shapes.
    pub fn new(mut graph: Graph, options: Options) -> Result<Session, Error> {
        if options.passes.has(Pass::FoldConstants) {
            fold_constants(&mut graph);
        }
        simplify(&mut graph, options.passes);
        let port = |id: &ValueId| {
            let value = graph.value(*id);
            Port {
                name: value.name.clone(),
                dtype: value.dtype.unwrap_or(DType::F32),
                dims: value.dims.clone().unwrap_or_default(),
                ranked: value.dims.is_some(),
            }
        };
        let inputs: Vec<Port> = graph.inputs.iter().map(port).collect();
        let outputs: Vec<Port> = graph.outputs.iter().map(port).collect();
        let Lowered { mut graph, real_names } =
            if options.integers { lower(graph) } else { Lowered::unchanged(graph) };
        if options.passes.has(Pass::FoldConstants) {
            fold_weights(&mut graph);
        }
        let orders = match options.passes.has(Pass::OrderChannels) && options.isa.prefers_an_order() {
            true => order_channels(&mut graph, options.isa, options.threads),
            false => HashMap::new(),
        };
        let mut bodies = HashMap::new();
        for (index, node) in graph.nodes.iter().enumerate().filter(|(_, n)| !n.bodies.is_empty()) {
            // A round is in memory beside what the one before it made.
            let share = if matches!(node.op, Op::If) { 1 } else { 2 };
            let options = Options { memory_bytes_max: options.memory_bytes_max / share, ..options.clone() };
            let all = node.bodies.iter().map(|body| Session::new((**body).clone(), options.clone()));
            bodies.insert(index, all.collect::<Result<_, _>>()?);
        }
        let weights = Weights::take(&mut graph, packs);
        let mut session = Session {
            graph,
            real_names,
            orders,
            options,
            inputs,
            outputs,
            weights,
            bodies,
            plans: Mutex::new(Vec::new()),
            arenas: Arenas::default(),
            made: AtomicU64::new(0),
            is_new: true,
        };
        // A model with fixed shapes tells now whether it can run.
        let declared =
            |id: &ValueId| session.graph.value(*id).dtype.and(session.graph.value(*id).dims.as_ref());
        let all = session.graph.inputs.iter().all(|id| declared(id).is_some());
        let fixed: Option<Vec<Vec<usize>>> = session.inputs.iter().map(|p| p.shape(|_| None)).collect();
        if let Some(shapes) = fixed.filter(|_| all) {
            session.first(&shapes)?;
        }
        if session.outputs.iter().any(|p| !p.ranked) {
            let known = symbolic::shapes(&session);
            for port in session.outputs.iter_mut().filter(|p| !p.ranked) {
                if let Some((_, _, dims)) = known.iter().find(|(name, ..)| *name == port.name) {
                    (port.dims, port.ranked) = (dims.clone(), true);
                }
            }
        }
        session.is_new = false;
        Ok(session)
    }

    /// What a caller hands in.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What a caller gets back, in order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Bytes of weights that the session holds, packed.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// Bytes that runs have for their values: as many arenas as there were runs at a time.
    pub fn run_bytes(&self) -> u64 {
        self.arenas.bytes()
    }

    /// Runs the model: the outputs in the order of [`Session::outputs`]. Inputs may come in any order.
    ///
    /// # Errors
    /// Inputs that do not fit the model, or shapes that do not fit a node.
    pub fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> {
        self.run_in_order(&self.arrange(inputs)?)
    }

    /// The first plan for operands of these shapes.
    pub(super) fn ready_for(&self, given: &[&Tensor]) -> Result<Ready, Error> {
        self.ready(self.key(given, &[]), || self.all_nodes())
    }

    pub(super) fn node_name(&self, node: usize) -> &str {
        &self.graph.nodes[node].name
    }

    /// As [`Session::run`], over the graph's inputs in their order, unchecked: bodies get what their node has.
    fn run_in_order(&self, given: &[&Tensor]) -> Result<Vec<Tensor>, Error> {
        let ready = self.ready_for(given)?;
        let made = self.execute(&ready, given, |_, _, _| {})?;
        match ready.plan.rest.is_empty() {
            true => Ok(made),
            false => self.run_rest(ready, given, made, None),
        }
    }

    /// Runs the model and shows values to a tap.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_tapped(&self, inputs: &[(&str, &Tensor)], tap: &mut dyn Tap) -> Result<Vec<Tensor>, Error> {
        let given = self.arrange(inputs)?;
        let ids = (0..self.graph.values.len()).map(|i| ValueId(i as u32));
        let is_constant = |id| self.weights.is_constant(&self.graph, id);
        let wanted: Vec<ValueId> =
            ids.filter(|&id| !is_constant(id) && tap.wants(self.real_name(id))).collect();
        let ready = self.ready(self.key(&given, &wanted), || self.all_nodes())?;
        let show = |sight: &Sight, given: &[&Tensor], arena: &[u8]| self.show(sight, given, arena, tap);
        let made = self.execute_with_sights(&ready, &given, show)?;
        match ready.plan.rest.is_empty() {
            true => Ok(made),
            false => self.run_rest(ready, &given, made, Some(tap)),
        }
    }

    /// Goes on where a plan ended: makes and runs the next one, over and over, each with data that the ones before
    /// gave. A node whose results only the run can tell runs between two plans.
    fn run_rest(
        &self,
        mut ready: Ready,
        given: &[&Tensor],
        made: Vec<Tensor>,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<Vec<Tensor>, Error> {
        let mut there: Values<'_> = Values::default();
        there.extend(self.graph.inputs.iter().copied().zip(given.iter().map(|t| Cow::Borrowed(*t))));
        there.extend(ready.plan.made.iter().copied().zip(made.into_iter().map(Cow::Owned)));
        let wanted = ready.key.wanted.clone();
        let mut known: HashSet<ValueId> = HashSet::new();
        while !ready.plan.rest.is_empty() {
            let mut todo = Vec::new();
            known.extend(&ready.plan.known);
            for &index in &ready.plan.rest {
                match self.look_at(index, &there)? {
                    Next::Plan(constants) => {
                        todo.push(index);
                        known.extend(constants);
                    }
                    Next::Wait => todo.push(index),
                    Next::Now => {
                        let node = &self.graph.nodes[index];
                        let made = self.run_now(index, &there)?;
                        if made.len() < node.outputs.len() {
                            let reason = format!(
                                "{} results are asked for, {} are made",
                                node.outputs.len(),
                                made.len()
                            );
                            return Err(Error::Node { node: node.name.clone(), op: node.op.name(), reason });
                        }
                        for (&id, tensor) in node.outputs.iter().zip(made) {
                            if let Some(tap) = tap.as_deref_mut().filter(|_| wanted.contains(&id)) {
                                tap.observe(self.real_name(id), tensor.view());
                            }
                            there.insert(id, Cow::Owned(tensor));
                        }
                    }
                }
            }
            if todo.is_empty() {
                break;
            }
            let reads = |id: &ValueId| {
                todo.iter().any(|&n| self.graph.nodes[n].inputs.iter().flatten().any(|read| read == id))
            };
            let mut ids: Vec<ValueId> = there.keys().copied().filter(reads).collect();
            ids.sort_unstable();
            let tensors: Vec<&Tensor> = ids.iter().map(|id| &*there[id]).collect();
            let entry = |(&id, t): (&ValueId, &&Tensor)| {
                (id, t.dtype(), t.shape().to_vec(), known.contains(&id).then(|| (*t).clone()))
            };
            let key = Key {
                after: ready.number,
                given: ids.iter().zip(&tensors).map(entry).collect(),
                wanted: wanted.clone(),
            };
            let next = self.ready(key, || todo.clone())?;
            if next.plan.rest.len() == todo.len() {
                let node = &self.graph.nodes[todo[0]];
                let reason = "its operands never come".to_owned();
                return Err(Error::Node { node: node.name.clone(), op: node.op.name(), reason });
            }
            let show = |sight: &Sight, given: &[&Tensor], arena: &[u8]| {
                // What was there before was shown by the plan that made it.
                if let Some(tap) = tap.as_deref_mut().filter(|_| !ids.contains(&sight.value)) {
                    self.show(sight, given, arena, tap);
                }
            };
            let made = self.execute_with_sights(&next, &tensors, show)?;
            there.extend(next.plan.made.iter().copied().zip(made.into_iter().map(Cow::Owned)));
            ready = next;
        }
        let output = |id: &ValueId| match there.get(id) {
            Some(tensor) => tensor.clone().into_owned(),
            None => (**self.graph.constant(*id).expect("every node has run")).clone(),
        };
        Ok(self.graph.outputs.iter().map(output).collect())
    }

    /// What is to be done with a node that a plan left.
    fn look_at(&self, index: usize, there: &Values<'_>) -> Result<Next, Error> {
        let node = &self.graph.nodes[index];
        let facts = |with_data: bool| -> Option<Vec<Option<Fact>>> {
            let fact = |id: &Option<ValueId>| match id {
                None => Some(None),
                Some(id) => match (self.graph.constant(*id), there.get(id)) {
                    (Some(tensor), _) => Some(Some(Fact::constant(tensor.clone()))),
                    (None, None) => self.weights.fact(*id).cloned().map(Some),
                    (None, Some(t)) if with_data && t.len() <= KNOWN_ELEMENTS_MAX => {
                        Some(Some(Fact::constant(Arc::new(t.clone().into_owned()))))
                    }
                    (None, Some(t)) => Some(Some(Fact::computed(t.dtype(), t.shape().to_vec()))),
                },
            };
            node.inputs.iter().map(fact).collect()
        };
        let Some(plain) = facts(false) else { return Ok(Next::Wait) };
        let infers = |facts: &[Option<Fact>]| {
            let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
            infer(&node.op, &refs, node.outputs.len()).map(|_| ())
        };
        let wrong = |reason| Error::Node { node: node.name.clone(), op: node.op.name(), reason };
        match infers(&plain) {
            Ok(()) => return Ok(Next::Plan(Vec::new())),
            Err(Unfit::Wrong(reason)) => return Err(wrong(reason)),
            Err(Unfit::AtRun(_)) => {}
        }
        let with_data = facts(true).expect("all operands are there");
        match infers(&with_data) {
            Ok(()) => {
                let small = |(id, fact): (&Option<ValueId>, &Option<Fact>)| {
                    id.filter(|_| fact.as_ref().is_some_and(|f| f.constant.is_some()))
                };
                Ok(Next::Plan(node.inputs.iter().zip(&with_data).filter_map(small).collect()))
            }
            Err(Unfit::Wrong(reason)) => Err(wrong(reason)),
            Err(Unfit::AtRun(_)) => Ok(Next::Now),
        }
    }

    fn as_body(&self) -> control::Body<'_> {
        control::Body { run: Box::new(|given| self.run_in_order(given)), outputs: &self.outputs }
    }

    /// Runs one node outside of any plan.
    fn run_now(&self, index: usize, there: &Values<'_>) -> Result<Vec<Tensor>, Error> {
        let node = &self.graph.nodes[index];
        let tensor = |id: &Option<ValueId>| -> Option<&Tensor> {
            let id = (*id)?;
            self.graph.constant(id).map(|t| &**t).or_else(|| there.get(&id).map(|t| &**t))
        };
        let inputs: Vec<Option<&Tensor>> = node.inputs.iter().map(tensor).collect();
        let wrong = |reason| Error::Node { node: node.name.clone(), op: node.op.name(), reason };
        let bodies: Vec<control::Body<'_>> =
            self.bodies.get(&index).into_iter().flatten().map(Session::as_body).collect();
        match &node.op {
            Op::Other(other) => others::run(other, &inputs, None).map_err(wrong),
            Op::If => control::branch(node, &bodies, &inputs),
            Op::Loop { carried } => {
                control::repeat(node, &bodies, *carried, &inputs, self.options.memory_bytes_max)
            }
            Op::Scan(scan) => control::scan(node, &bodies, scan, &inputs, self.options.memory_bytes_max),
            _ => Err(wrong("its shape depends on data that is too large to be a shape".to_owned())),
        }
    }

    pub(super) fn real_name(&self, id: ValueId) -> &str {
        self.real_names.get(&id).unwrap_or(&self.graph.value(id).name)
    }

    /// The caller's tensors in the order of the graph's inputs, checked.
    pub(super) fn arrange<'t>(&self, inputs: &[(&str, &'t Tensor)]) -> Result<Vec<&'t Tensor>, Error> {
        let names = || self.inputs.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        if let Some((name, _)) = inputs.iter().find(|(name, _)| !self.inputs.iter().any(|p| p.name == *name))
        {
            return Err(Error::UnknownInput { name: (*name).to_owned(), expected: names() });
        }
        let mut symbols: HashMap<&str, usize> = HashMap::new();
        let mut given = Vec::with_capacity(self.inputs.len());
        for port in &self.inputs {
            let found = inputs.iter().find(|(name, _)| *name == port.name).map(|(_, tensor)| *tensor);
            let tensor =
                found.ok_or_else(|| Error::MissingInput { name: port.name.clone(), expected: names() })?;
            if tensor.dtype() != port.dtype {
                let (got, want) = (tensor.dtype(), port.dtype);
                return Err(Error::InputType { name: port.name.clone(), got, want });
            }
            if port.ranked && !fits(port, tensor.shape(), &mut symbols) {
                let want: Vec<String> = port.dims.iter().map(Dim::to_string).collect();
                let (got, want) = (tensor.shape().to_vec(), want.join(", "));
                return Err(Error::InputShape { name: port.name.clone(), got, want });
            }
            given.push(tensor);
        }
        Ok(given)
    }

    pub(super) fn all_nodes(&self) -> Vec<usize> {
        (0..self.graph.nodes.len()).collect()
    }

    /// What the first plan for these inputs is made for.
    pub(super) fn key(&self, given: &[&Tensor], wanted: &[ValueId]) -> Key {
        let entry = |(&id, t): (&ValueId, &&Tensor)| (id, t.dtype(), t.shape().to_vec(), None);
        Key {
            after: 0,
            given: self.graph.inputs.iter().zip(given).map(entry).collect(),
            wanted: wanted.to_vec(),
        }
    }

    /// The first plan for inputs of these shapes, of the types that the model declares.
    pub(super) fn first(&self, shapes: &[Vec<usize>]) -> Result<Ready, Error> {
        let dtype = |id: ValueId| self.graph.value(id).dtype.unwrap_or(DType::F32);
        for (&id, shape) in self.graph.inputs.iter().zip(shapes) {
            let wrong = |reason| Error::Node { node: self.graph.value(id).name.clone(), op: "input", reason };
            bounded(dtype(id), shape).map_err(wrong)?;
        }
        let entry = |(&id, shape): (&ValueId, &Vec<usize>)| (id, dtype(id), shape.clone(), None);
        let given = self.graph.inputs.iter().zip(shapes).map(entry).collect();
        self.ready(Key { after: 0, given, wanted: Vec::new() }, || self.all_nodes())
    }

    pub(super) fn blueprint<'a>(&'a self, wanted: &'a HashSet<ValueId>) -> Blueprint<'a> {
        Blueprint {
            graph: &self.graph,
            weights: &self.weights,
            context: Context::new(&self.options),
            memory_bytes_max: self.options.memory_bytes_max,
            passes: self.options.passes,
            wanted,
            packers: if self.is_new { self.options.threads } else { 1 },
        }
    }

    /// The plan for a key; compiled the first time, for the nodes that `todo` gives.
    pub(super) fn ready(&self, key: Key, todo: impl FnOnce() -> Vec<usize>) -> Result<Ready, Error> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = plans.iter().position(|r| *r.key == key) {
            let ready = plans.remove(at);
            plans.push(ready.clone());
            return Ok(ready);
        }
        let wanted: HashSet<ValueId> = key.wanted.iter().copied().collect();
        let blueprint = self.blueprint(&wanted);
        let fact = |(id, dtype, shape, data): &(ValueId, DType, Vec<usize>, Option<Tensor>)| {
            let fact = match data {
                Some(tensor) => Fact::constant(Arc::new(tensor.clone())),
                None => Fact::computed(*dtype, shape.clone()),
            };
            (*id, fact)
        };
        let start = Start { given: key.given.iter().map(fact).collect(), nodes: todo() };
        let plan = Arc::new(build(&blueprint, start)?);
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        let ready = Ready { key: Arc::new(key), number, plan };
        if plans.len() == PLANS_MAX {
            plans.remove(0);
        }
        plans.push(ready.clone());
        self.arenas.shrink(plans.iter().map(|r| r.plan.arena_bytes).max().unwrap_or(0));
        Ok(ready)
    }

    pub(super) fn execute(
        &self,
        ready: &Ready,
        given: &[&Tensor],
        mut after: impl FnMut(usize, &[&Tensor], &[u8]) + Send,
    ) -> Result<Vec<Tensor>, Error> {
        let mut arena = self.arenas.take(ready.plan.arena_bytes);
        self.run_steps(&ready.plan, given, &mut arena, &mut after)?;
        let results = Operands::read(&ready.plan.outputs, given, arena.buffer.bytes());
        let outputs = (0..results.len()).map(|i| results.need(i).to_tensor()).collect();
        self.arenas.put(arena);
        Ok(outputs)
    }

    /// Runs every step of a plan.
    pub(super) fn run_steps(
        &self,
        plan: &Plan,
        given: &[&Tensor],
        arena: &mut Arena,
        mut after: impl FnMut(usize, &[&Tensor], &[u8]) + Send,
    ) -> Result<(), Error> {
        in_company(self.options.threads, || {
            for (index, step) in plan.steps.iter().enumerate() {
                let bytes = arena.buffer.bytes_mut();
                let (operands, out) = Operands::split(&step.operands, given, bytes, &step.out);
                let view = crate::engine::tensor::TensorViewMut {
                    dtype: step.dtype,
                    shape: &step.shape,
                    bytes: out,
                };
                (step.kernel)(&operands, view, &mut arena.scratch).map_err(|reason| {
                    let node = &self.graph.nodes[step.node];
                    Error::Node { node: node.name.clone(), op: step.what, reason }
                })?;
                after(index, given, arena.buffer.bytes());
            }
            Ok(())
        })
    }

    fn execute_with_sights(
        &self,
        ready: &Ready,
        given: &[&Tensor],
        mut show: impl FnMut(&Sight, &[&Tensor], &[u8]) + Send,
    ) -> Result<Vec<Tensor>, Error> {
        let plan = ready.plan.clone();
        let mut shown = 0;
        // Inputs, and what needs no step, are there from the start.
        while plan.sights.get(shown).is_some_and(|s| s.after_steps == 0) {
            show(&plan.sights[shown], given, &[]);
            shown += 1;
        }
        self.execute(ready, given, |index, given, arena| {
            while plan.sights.get(shown).is_some_and(|s| s.after_steps <= index + 1) {
                show(&plan.sights[shown], given, arena);
                shown += 1;
            }
        })
    }

    /// Shows one value to a tap, in the order and type that the model gives it.
    fn show(&self, sight: &Sight, given: &[&Tensor], arena: &[u8], tap: &mut dyn Tap) {
        let operands = [sight.operand.clone()];
        let view = Operands::read(&operands, given, arena).need(0);
        let (name, context) = (self.real_name(sight.value), Context::new(&self.options));
        let wanted = tap.order(name);
        let last = sight.layout == Layout::ChannelsLast && !super::layout::same_memory(&sight.shape);
        let layout = if last && wanted != ElementOrder::Model { sight.layout } else { Layout::RowMajor };
        let moved;
        let view = match (last, layout) {
            (true, Layout::RowMajor) => {
                let mut tensor = Tensor::zeros(view.dtype, &sight.shape);
                bring(context, layout, view.dtype, &sight.shape, view.bytes, tensor.view_mut().bytes);
                moved = tensor;
                moved.view()
            }
            (true, Layout::ChannelsLast) => view,
            (false, _) => TensorView { shape: &sight.shape, ..view },
        };
        let in_order;
        let view = match self.orders.get(&sight.value).filter(|_| wanted != ElementOrder::Any) {
            Some(order) => {
                in_order = order.undone(&view.to_tensor(), layout);
                in_order.view()
            }
            None => view,
        };
        let mut reals = Vec::new();
        let view = match &self.graph.value(sight.value).qparams {
            Some(q) if q.axis.is_none() && view.dtype == DType::U8 => {
                reals.resize(view.len(), 0.0);
                let (scale, zero_point) = (q.scale[0], q.zero_point[0] as u8);
                dequantize(context.isa, view.slice(), scale, zero_point, &mut reals, context.threads);
                TensorView { dtype: DType::F32, bytes: bytemuck::cast_slice(&reals), ..view }
            }
            _ => view,
        };
        match (layout, wanted) {
            (Layout::ChannelsLast, ElementOrder::ChannelsLast) => tap.observe_channels_last(name, view),
            _ => tap.observe(name, view),
        }
    }
}

/// Whether a shape fits what a port declares; the same symbol must be the same length everywhere.
fn fits<'p>(port: &'p Port, shape: &[usize], symbols: &mut HashMap<&'p str, usize>) -> bool {
    port.dims.len() == shape.len()
        && port.dims.iter().zip(shape).all(|(dim, &length)| match dim {
            Dim::Known(n) => *n == length,
            Dim::Symbol(name) => *symbols.entry(name).or_insert(length) == length,
            Dim::Unknown => true,
        })
}
