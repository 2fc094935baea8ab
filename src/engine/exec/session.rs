//! A model that is ready to run: `Session::new(graph, options)`, `run(inputs)`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::graph::op::Op;
use crate::engine::graph::{Dim, Graph, ValueId};
use crate::engine::tensor::{Buffer, DType, Tensor, TensorView};

use super::layout::{Layout, convert};
use super::lower::{Lowered, lower};
use super::plan::{Blueprint, Plan, Sight, Step, build};
use super::step::{Context, Operand, Operands, Scratch, Source};
use super::weights::Weights;
use super::{Error, Layer, Options, Port, Tap};

/// Plans that a session keeps, one for each set of input shapes; the least recently used goes first.
const PLANS_MAX: usize = 8;
/// Arenas that a plan keeps for its next runs.
const ARENAS_MAX: usize = 8;

/// A loaded model. Many threads may call `run` at once; plans and packed weights are shared.
pub struct Session {
    graph: Graph,
    /// For the codes of a quantized value the name of the real value that the model gives them.
    real_names: HashMap<ValueId, String>,
    options: Options,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    weights: Weights,
    plans: Mutex<Vec<Ready>>,
}

/// A plan and the arenas of runs that have ended.
#[derive(Clone)]
struct Ready {
    shapes: Vec<Vec<usize>>,
    plan: Arc<Plan>,
    arenas: Arc<Mutex<Vec<Arena>>>,
}

/// The memory of one run.
struct Arena {
    buffer: Buffer,
    scratch: Scratch,
}

impl Session {
    /// Prepares a graph. QDQ nodes become integer operators where they can.
    ///
    /// # Errors
    /// [`Error::Node`] where a node cannot run whatever the shapes.
    pub fn new(graph: Graph, options: Options) -> Result<Session, Error> {
        let port = |id: &ValueId| {
            let value = graph.value(*id);
            Port {
                name: value.name.clone(),
                dtype: value.dtype.unwrap_or(DType::F32),
                dims: value.dims.clone().unwrap_or_default(),
            }
        };
        let inputs: Vec<Port> = graph.inputs.iter().map(port).collect();
        let outputs: Vec<Port> = graph.outputs.iter().map(port).collect();
        let Lowered { graph, real_names } =
            if options.integers { lower(graph) } else { Lowered::unchanged(graph) };
        let weights = Weights::default();
        let session =
            Session { graph, real_names, options, inputs, outputs, weights, plans: Mutex::new(Vec::new()) };
        // A model with fixed shapes tells now whether it can run.
        let fixed: Option<Vec<Vec<usize>>> = session.inputs.iter().map(|p| p.shape(|_| None)).collect();
        if let Some(shapes) = fixed {
            session.ready(&shapes)?;
        }
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

    /// Runs the model: the outputs in the order of [`Session::outputs`]. Inputs may come in any order.
    ///
    /// # Errors
    /// Inputs that do not fit the model, or shapes that do not fit a node.
    pub fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> {
        let given = self.arrange(inputs)?;
        let ready = self.ready(&shapes_of(&given))?;
        self.execute(&ready, &given, |_, _, _| {})
    }

    /// Runs the model and shows values to a tap.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_tapped(&self, inputs: &[(&str, &Tensor)], tap: &mut dyn Tap) -> Result<Vec<Tensor>, Error> {
        let given = self.arrange(inputs)?;
        let ids = (0..self.graph.values.len()).map(|i| ValueId(i as u32));
        let wanted: HashSet<ValueId> =
            ids.filter(|&id| self.graph.constant(id).is_none() && tap.wants(self.real_name(id))).collect();
        let plan = Arc::new(build(&self.blueprint(&wanted), &shapes_of(&given))?);
        let ready = Ready { shapes: Vec::new(), plan, arenas: Arc::default() };
        let show = |sight: &Sight, given: &[&Tensor], arena: &[u8]| self.show(sight, given, arena, tap);
        self.execute_with_sights(&ready, &given, show)
    }

    /// Runs the model `runs` times and gives for each step its median time; `seconds` is the clock.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn layers(
        &self,
        inputs: &[(&str, &Tensor)],
        runs: usize,
        seconds: &dyn Fn() -> f64,
    ) -> Result<Vec<Layer>, Error> {
        let given = self.arrange(inputs)?;
        let ready = self.ready(&shapes_of(&given))?;
        let mut times = vec![Vec::new(); ready.plan.steps.len()];
        for _ in 0..runs.max(1) {
            let mut before = seconds();
            self.execute(&ready, &given, |index, _, _| {
                let now = seconds();
                times[index].push(now - before);
                before = now;
            })?;
        }
        let layer = |(step, mut times): (&Step, Vec<f64>)| {
            times.sort_by(f64::total_cmp);
            let node = &self.graph.nodes[step.node];
            Layer {
                node: node.name.clone(),
                op: step.what.to_owned(),
                integer: node.op.is_integer(),
                macs: step.macs,
                shape: step.shape.clone(),
                seconds: times.get(times.len() / 2).copied().unwrap_or(0.0),
            }
        };
        Ok(ready.plan.steps.iter().zip(times).map(layer).collect())
    }

    /// The steps that a run over these inputs takes, untimed.
    ///
    /// # Errors
    /// Shapes that do not fit the model.
    pub fn steps(&self, shapes: &[Vec<usize>]) -> Result<Vec<Layer>, Error> {
        let ready = self.ready(shapes)?;
        let layer = |step: &Step| {
            let node = &self.graph.nodes[step.node];
            Layer {
                node: node.name.clone(),
                op: step.what.to_owned(),
                integer: node.op.is_integer(),
                macs: step.macs,
                shape: step.shape.clone(),
                seconds: 0.0,
            }
        };
        Ok(ready.plan.steps.iter().map(layer).collect())
    }

    /// Bytes of the arena that a run over these shapes takes.
    ///
    /// # Errors
    /// Shapes that do not fit the model.
    pub fn arena_bytes(&self, shapes: &[Vec<usize>]) -> Result<u64, Error> {
        Ok(self.ready(shapes)?.plan.arena_bytes as u64)
    }

    /// The nodes that the session runs: name, operator, and whether it computes on codes.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Op, bool)> {
        self.graph.nodes.iter().map(|node| {
            let boundary = matches!(node.op, Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. });
            let reads_codes = node.input(0).is_some_and(|id| self.graph.value(id).qparams.is_some());
            (node.name.as_str(), &node.op, node.op.is_integer() || (reads_codes && !boundary))
        })
    }

    fn real_name(&self, id: ValueId) -> &str {
        self.real_names.get(&id).unwrap_or(&self.graph.value(id).name)
    }

    /// The caller's tensors in the order of the graph's inputs, checked.
    fn arrange<'t>(&self, inputs: &[(&str, &'t Tensor)]) -> Result<Vec<&'t Tensor>, Error> {
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
            if !fits(port, tensor.shape(), &mut symbols) {
                let want: Vec<String> = port.dims.iter().map(Dim::to_string).collect();
                let (got, want) = (tensor.shape().to_vec(), want.join(", "));
                return Err(Error::InputShape { name: port.name.clone(), got, want });
            }
            given.push(tensor);
        }
        Ok(given)
    }

    fn blueprint<'a>(&'a self, wanted: &'a HashSet<ValueId>) -> Blueprint<'a> {
        let context = Context { isa: self.options.isa, threads: self.options.threads.max(1) };
        Blueprint { graph: &self.graph, weights: &self.weights, context, passes: self.options.passes, wanted }
    }

    /// The plan for these shapes; compiled the first time.
    fn ready(&self, shapes: &[Vec<usize>]) -> Result<Ready, Error> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = plans.iter().position(|r| r.shapes == shapes) {
            let ready = plans.remove(at);
            plans.push(ready.clone());
            return Ok(ready);
        }
        let plan = Arc::new(build(&self.blueprint(&HashSet::new()), shapes)?);
        let ready = Ready { shapes: shapes.to_vec(), plan, arenas: Arc::default() };
        if plans.len() == PLANS_MAX {
            plans.remove(0);
        }
        plans.push(ready.clone());
        Ok(ready)
    }

    fn execute(
        &self,
        ready: &Ready,
        given: &[&Tensor],
        mut after: impl FnMut(usize, &[&Tensor], &[u8]),
    ) -> Result<Vec<Tensor>, Error> {
        let spare = ready.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut arena = spare.unwrap_or_else(|| Arena {
            buffer: Buffer::zeroed(ready.plan.arena_bytes),
            scratch: Scratch::default(),
        });
        for (index, step) in ready.plan.steps.iter().enumerate() {
            let bytes = arena.buffer.bytes_mut();
            let (operands, out) = Operands::split(&step.operands, given, bytes, &step.out);
            let view =
                crate::engine::tensor::TensorViewMut { dtype: step.dtype, shape: &step.shape, bytes: out };
            (step.kernel)(&operands, view, &mut arena.scratch).map_err(|reason| {
                let node = &self.graph.nodes[step.node];
                Error::Node { node: node.name.clone(), op: step.what, reason }
            })?;
            after(index, given, arena.buffer.bytes());
        }
        let results = Operands::read(&ready.plan.outputs, given, arena.buffer.bytes());
        let outputs = (0..results.len()).map(|i| results.need(i).to_tensor()).collect();
        let mut arenas = ready.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if arenas.len() < ARENAS_MAX {
            arenas.push(arena);
        }
        Ok(outputs)
    }

    fn execute_with_sights(
        &self,
        ready: &Ready,
        given: &[&Tensor],
        mut show: impl FnMut(&Sight, &[&Tensor], &[u8]),
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
        let name = self.real_name(sight.value);
        let moved;
        let view = if sight.layout == Layout::ChannelsLast && !super::layout::same_memory(&sight.shape) {
            let context = Context { isa: self.options.isa, threads: 1 };
            let kernel = convert(context, Layout::RowMajor, view.dtype, &sight.shape);
            let source = Source::Constant(Arc::new(view.to_tensor()));
            let operand = Operand { source, dtype: view.dtype, shape: view.shape.to_vec() };
            let mut tensor = Tensor::zeros(view.dtype, &sight.shape);
            let done =
                kernel(&Operands::constants(&[Some(operand)]), tensor.view_mut(), &mut Scratch::default());
            done.expect("a change of order cannot fail");
            moved = tensor;
            moved.view()
        } else {
            TensorView { shape: &sight.shape, ..view }
        };
        match &self.graph.value(sight.value).qparams {
            Some(q) if q.axis.is_none() && view.dtype == DType::U8 => {
                let real: Vec<f32> =
                    view.slice::<u8>().iter().map(|&code| q.dequantize(code.into(), 0)).collect();
                tap.observe(name, Tensor::from_slice(view.shape, &real).view());
            }
            _ => tap.observe(name, view),
        }
    }
}

fn shapes_of(given: &[&Tensor]) -> Vec<Vec<usize>> {
    given.iter().map(|t| t.shape().to_vec()).collect()
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
