//! Factors by channel that move from the constants behind a value to those before it: `(x · f) · (W / f)` is `x · W`, and
//! `x · f` is made by scaling what makes `x`. The graph computes the same; its values and weights have other ranges.
//! Knows nothing of data, nor of what the factors are good for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::engine::graph::op::{Binary, Op, Unary};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::{DType, Tensor};

/// Elements of a constant with several readers that one of them may get a copy of.
const COPIED_MAX: usize = 1 << 26;

/// Who makes and who reads the values of a graph.
pub struct Wiring {
    /// For each value the node that makes it.
    pub producers: HashMap<ValueId, usize>,
    /// For each value the nodes that read it, one entry an operand.
    pub readers: Vec<Vec<usize>>,
    given: HashSet<ValueId>,
}

impl Wiring {
    /// Of a graph.
    pub fn of(graph: &Graph) -> Wiring {
        let given = graph.outputs.iter().copied().collect();
        Wiring { producers: graph.producers(), readers: graph.consumers(), given }
    }
}

/// Which axis of a value has the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    /// The last one: of what products read and make.
    Last,
    /// That after the batch: of images.
    Second,
}

/// How the channels lie in a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Along an axis, so many elements for each channel as fit.
    Axis(usize),
    /// Inputs of a convolution with groups: `[O, C / groups, …]`.
    Inputs { groups: usize },
    /// One value for all channels: it becomes one for each.
    Spread,
}

/// An operand that takes factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    node: usize,
    operand: usize,
    layout: Layout,
    /// Whether it divides the value.
    divides: bool,
}

/// A value whose channels can be scaled: what makes it, and the layers that multiply it by constants.
#[derive(Clone, Debug)]
pub struct Link {
    /// What the layers read.
    pub value: ValueId,
    /// Number of factors.
    pub channels: usize,
    /// The Conv, Gemm and MatMul nodes that make it.
    pub layers: Vec<usize>,
    /// Whether other constants by channel make it: those of a normalization, or a factor.
    pub normalized: bool,
    /// The Clip nodes with an upper bound between them and the value: a factor moves their bounds too.
    pub clips: Vec<usize>,
    /// The layers that read it.
    pub readers: Vec<usize>,
    made_by: Vec<Place>,
    read_with: Vec<Place>,
    /// The values that are scaled, this one first, and where their channels are.
    values: Vec<(ValueId, Lead)>,
    /// Axes behind the channels of an image.
    spatial: usize,
}

/// A value that was scaled.
#[derive(Clone, Debug)]
pub struct Scaled {
    /// The value.
    pub value: ValueId,
    /// What it is called now: a value of another range has another name.
    pub name: String,
    /// What it was multiplied with; broadcasts to it.
    pub factors: Tensor,
}

/// Finds what makes a value and who reads it.
///
/// # Errors
/// Why its channels cannot be scaled.
pub fn link(graph: &Graph, wiring: &Wiring, value: ValueId) -> Result<Link, String> {
    if wiring.given.contains(&value) {
        return Err("it is a result of the model".to_owned());
    }
    let mut readers = wiring.readers[value.0 as usize].clone();
    readers.dedup();
    let (mut read_with, mut widths) = (Vec::new(), Vec::new());
    for &n in &readers {
        let (place, width, lead) = reader(graph, n, value)?;
        read_with.push(place);
        widths.push((width, lead));
    }
    let Some(&(width, lead)) = widths.first() else { return Err("nobody reads it".to_owned()) };
    if widths.iter().any(|other| *other != (width, lead)) {
        return Err("its readers see it in several forms".to_owned());
    }
    let mut trail = Trail { graph, wiring, root: value, width, channels: None, spatial: None, link: None };
    let link = Link {
        value,
        channels: 0,
        layers: Vec::new(),
        normalized: false,
        clips: Vec::new(),
        readers,
        made_by: Vec::new(),
        read_with,
        values: Vec::new(),
        spatial: 0,
    };
    trail.link = Some(link);
    trail.make(value, lead)?;
    let channels = trail.channels.ok_or("nothing by channel makes it")?;
    let flat = trail.link.as_ref().is_some_and(|link| link.values.iter().any(|v| v.1 != lead));
    let fits = channels > 0 && if flat { width.is_multiple_of(channels) } else { width == channels };
    let spatial = trail.spatial.unwrap_or(0);
    let link = trail.link.take().filter(|_| fits).ok_or("its channels are not those of its readers")?;
    let shared = |p: &Place| {
        let id = graph.nodes[p.node].inputs[p.operand].expect("a place has an operand");
        let copied = wiring.readers[id.0 as usize].len() > 1 || wiring.given.contains(&id);
        copied && graph.constant(id).is_some_and(|t| t.len() > COPIED_MAX)
    };
    if link.made_by.iter().chain(&link.read_with).any(shared) {
        return Err("its weights are large and others read them too".to_owned());
    }
    Ok(Link { channels, spatial, ..link })
}

/// The constant that a node multiplies a value by, the length of the axis, and which axis of the value that is.
fn reader(graph: &Graph, n: usize, value: ValueId) -> Result<(Place, usize, Lead), String> {
    let node = &graph.nodes[n];
    let other = || format!("`{}` ({}) reads it too", node.name, node.op.name());
    let weight = node.input(1).and_then(|id| reals(graph, id)).ok_or_else(other)?;
    if node.input(0) != Some(value) || node.inputs.iter().skip(1).any(|v| *v == Some(value)) {
        return Err(other());
    }
    let shape = weight.shape();
    let (layout, width, lead) = match node.op {
        Op::Conv { groups, .. } if shape.len() >= 3 => {
            (Layout::Inputs { groups }, shape[1] * groups, Lead::Second)
        }
        Op::Gemm { trans_a: false, trans_b, .. } if shape.len() == 2 => {
            let axis = usize::from(trans_b);
            (Layout::Axis(axis), shape[axis], Lead::Last)
        }
        Op::MatMul if shape.len() == 2 => (Layout::Axis(0), shape[0], Lead::Last),
        _ => return Err(other()),
    };
    Ok((Place { node: n, operand: 1, layout, divides: true }, width, lead))
}

/// A constant of finite f32 that is not empty.
pub(super) fn reals(graph: &Graph, id: ValueId) -> Option<&Arc<Tensor>> {
    let tensor = graph.constant(id).filter(|t| t.dtype() == DType::F32 && !t.is_empty())?;
    tensor.slice::<f32>().iter().all(|x| x.is_finite()).then_some(tensor)
}

/// A walk from a value back to the constants that make it.
struct Trail<'a> {
    graph: &'a Graph,
    wiring: &'a Wiring,
    root: ValueId,
    width: usize,
    channels: Option<usize>,
    spatial: Option<usize>,
    link: Option<Link>,
}

impl Trail<'_> {
    fn make(&mut self, value: ValueId, lead: Lead) -> Result<(), String> {
        let (graph, wiring) = (self.graph, self.wiring);
        let name = &graph.value(value).name;
        let read_once = wiring.readers[value.0 as usize].len() == 1 && !wiring.given.contains(&value);
        if value != self.root && !read_once {
            return Err(format!("`{name}` has other readers"));
        }
        if graph.value(value).dtype.is_some_and(|dtype| dtype != DType::F32) {
            return Err(format!("`{name}` is not f32"));
        }
        let n = *wiring.producers.get(&value).ok_or_else(|| format!("`{name}` is an input of the model"))?;
        let node = &graph.nodes[n];
        if node.outputs.len() != 1 {
            return Err(format!("`{}` has several results", node.name));
        }
        self.link().values.push((value, lead));
        let x = node.input(0).ok_or("an operand is missing")?;
        match (&node.op, lead) {
            (Op::Unary(Unary::Relu | Unary::LeakyRelu { .. }) | Op::Identity, _) => self.make(x, lead),
            (Op::Other(other), _) if other.name == "PRelu" && other.domain.is_empty() => self.make(x, lead),
            (Op::Clip, _) => {
                let (lo, hi) = bounds(graph, node).ok_or("a Clip has bounds that are computed")?;
                if lo != 0.0 && lo != f64::NEG_INFINITY {
                    return Err(format!("`{}` clips at {lo}", node.name));
                }
                if hi != f64::INFINITY {
                    self.link().clips.push(n);
                }
                self.make(x, lead)
            }
            (
                Op::MaxPool { .. } | Op::AveragePool { .. } | Op::GlobalAveragePool | Op::GlobalMaxPool,
                Lead::Second,
            ) => self.make(x, lead),
            (Op::Flatten { axis: 1 }, Lead::Last) => self.flattened(x),
            (Op::Reshape { allow_zero: false }, Lead::Last) if keeps_items(graph, node) => self.flattened(x),
            (Op::Conv { .. }, Lead::Second) => {
                let shape = self.weights(n)?;
                self.spatial = Some(shape.len() - 2);
                self.layer(n, 0, shape[0])?;
                self.addend(n, 2)
            }
            (Op::Gemm { trans_b, .. }, Lead::Last) => {
                let axis = usize::from(!trans_b);
                let shape = self.weights(n)?;
                self.layer(n, axis, shape[axis])?;
                self.addend(n, 2)
            }
            (Op::MatMul, Lead::Last) => {
                let shape = self.weights(n)?;
                if shape.len() != 2 {
                    return Err("a matrix of more than two dimensions".to_owned());
                }
                self.layer(n, 1, shape[1])
            }
            (Op::LayerNorm { .. }, Lead::Last) => {
                if reals(graph, node.input(1).ok_or("no scale")?).is_none_or(|s| s.shape() != [self.width]) {
                    return Err(format!("`{}` normalizes more than one axis", node.name));
                }
                self.count(self.width)?;
                self.link().normalized = true;
                self.addend(n, 1)?;
                self.addend(n, 2)
            }
            (Op::Binary(op), Lead::Last) => self.binary(n, *op),
            (op, _) => Err(format!("`{}` ({}) makes it", node.name, op.name())),
        }
    }

    /// Before the axes of an image became one.
    fn flattened(&mut self, x: ValueId) -> Result<(), String> {
        match self.link().made_by.is_empty() {
            true => self.make(x, Lead::Second),
            false => Err("something is added to a flattened image".to_owned()),
        }
    }

    fn link(&mut self) -> &mut Link {
        self.link.as_mut().expect("it is taken at the end of the walk")
    }

    fn binary(&mut self, n: usize, op: Binary) -> Result<(), String> {
        let node = &self.graph.nodes[n];
        let (Some(a), Some(b)) = (node.input(0), node.input(1)) else {
            return Err("an operand is missing".to_owned());
        };
        let constant = |id: ValueId| self.graph.constant(id).is_some();
        match op {
            Binary::Add | Binary::Sub => {
                for (operand, id) in [a, b].into_iter().enumerate() {
                    match constant(id) {
                        true => self.addend(n, operand)?,
                        false => self.make(id, Lead::Last)?,
                    }
                }
                Ok(())
            }
            Binary::Mul | Binary::Div => {
                // One of the two takes the factors: a constant if it can, since nothing behind it has to change. A
                // number stays one: with it GELU in its long spelling is known, and computed in one step.
                let of_constant = [1, 0].into_iter().find(|&i| {
                    let place = self.place(n, i).ok().flatten();
                    (op == Binary::Mul || i == 1) && place.is_some_and(|p| p.layout != Layout::Spread)
                });
                if let Some(operand) = of_constant {
                    let divides = op == Binary::Div;
                    let place = self.place(n, operand)?.expect("it was found");
                    self.count(self.width)?;
                    self.link().normalized = true;
                    self.link().made_by.push(Place { divides, ..place });
                    return Ok(());
                }
                let before = (self.link.clone(), self.channels, self.spatial);
                let first = if constant(a) { Err("a constant".to_owned()) } else { self.make(a, Lead::Last) };
                if first.is_ok() || op == Binary::Div || constant(b) {
                    return first;
                }
                (self.link, self.channels, self.spatial) = before;
                self.make(b, Lead::Last)
            }
            _ => Err(format!("`{}` ({}) makes it", node.name, op.name())),
        }
    }

    /// The shape of the constant weights of a layer.
    fn weights(&self, n: usize) -> Result<Vec<usize>, String> {
        let node = &self.graph.nodes[n];
        let weights = node.input(1).and_then(|id| reals(self.graph, id));
        let shape = weights.map(|w| w.shape().to_vec()).filter(|shape| shape.len() >= 2);
        shape.ok_or_else(|| format!("the weights of `{}` are not constant", node.name))
    }

    fn layer(&mut self, n: usize, axis: usize, channels: usize) -> Result<(), String> {
        self.count(channels)?;
        let place = Place { node: n, operand: 1, layout: Layout::Axis(axis), divides: false };
        self.link().layers.push(n);
        self.link().made_by.push(place);
        Ok(())
    }

    fn count(&mut self, channels: usize) -> Result<(), String> {
        match self.channels.replace(channels) {
            Some(other) if other != channels => Err("its parts have other channels".to_owned()),
            _ => Ok(()),
        }
    }

    /// A constant that is added, if there is one.
    fn addend(&mut self, n: usize, operand: usize) -> Result<(), String> {
        let place = self.place(n, operand)?;
        self.link().made_by.extend(place);
        Ok(())
    }

    /// A constant with a value for each channel on its last axis, or with one value.
    fn place(&self, n: usize, operand: usize) -> Result<Option<Place>, String> {
        let node = &self.graph.nodes[n];
        let Some(id) = node.input(operand) else { return Ok(None) };
        let tensor = reals(self.graph, id);
        let tensor = tensor.ok_or_else(|| format!("an operand of `{}` is not constant", node.name))?;
        let layout = match tensor.shape().split_last() {
            _ if tensor.len() == 1 => Layout::Spread,
            Some((&last, _)) if last == self.channels.unwrap_or(self.width) => {
                Layout::Axis(tensor.shape().len() - 1)
            }
            _ => return Err(format!("an operand of `{}` has another shape", node.name)),
        };
        Ok(Some(Place { node: n, operand, layout, divides: false }))
    }
}

/// The bounds of a Clip; infinite where there are none, `None` where they are computed.
pub(super) fn bounds(graph: &Graph, node: &Node) -> Option<(f64, f64)> {
    let bound = |index: usize, default: f64| match node.input(index) {
        None => Some(default),
        Some(id) => graph.constant(id).and_then(|t| t.to_f64().first().copied()),
    };
    Some((bound(1, f64::NEG_INFINITY)?, bound(2, f64::INFINITY)?))
}

/// Whether a Reshape gives each item of the batch as one row.
fn keeps_items(graph: &Graph, node: &Node) -> bool {
    let shape = node.input(1).and_then(|id| graph.constant(id));
    shape.is_some_and(|shape| shape.dtype() == DType::I64 && shape.slice::<i64>() == [0, -1])
}

impl Link {
    /// Multiplies the channels of the value by `factors` and divides the weights of its readers by them. The values that
    /// change get a new name: the old one, a dot and `suffix`.
    ///
    /// # Panics
    /// If there are not as many factors as channels.
    pub fn scale(&self, graph: &mut Graph, factors: &[f64], suffix: &str) -> Vec<Scaled> {
        assert_eq!(factors.len(), self.channels);
        for place in self.made_by.iter().chain(&self.read_with) {
            place.multiply(graph, factors, suffix);
        }
        let mut scaled = Vec::new();
        for &(value, lead) in &self.values {
            let base = format!("{}.{suffix}", graph.value(value).name);
            let name = graph.unused_name(&base);
            graph.value_mut(value).name.clone_from(&name);
            let single: Vec<f32> = factors.iter().map(|&f| f as f32).collect();
            let factors = match lead {
                Lead::Second => {
                    let mut shape = vec![1; self.spatial + 1];
                    shape[0] = self.channels;
                    Tensor::from_slice(&shape, &single)
                }
                Lead::Last => {
                    let width = self.width(graph);
                    let each = width / self.channels;
                    let list: Vec<f32> = (0..width).map(|i| single[i / each]).collect();
                    Tensor::from_slice(&[width], &list)
                }
            };
            scaled.push(Scaled { value, name, factors });
        }
        scaled
    }

    /// The length of the axis that readers see.
    fn width(&self, graph: &Graph) -> usize {
        let place = &self.read_with[0];
        let id = graph.nodes[place.node].inputs[place.operand].expect("a place has an operand");
        let shape = graph.constant(id).expect("a place is constant").shape();
        match place.layout {
            Layout::Axis(axis) => shape[axis],
            _ => self.channels,
        }
    }
}

impl Place {
    fn multiply(&self, graph: &mut Graph, factors: &[f64], suffix: &str) {
        let id = graph.nodes[self.node].inputs[self.operand].expect("a place has an operand");
        let old = graph.constant(id).expect("a place is constant").clone();
        let factor = |channel: usize| if self.divides { 1.0 / factors[channel] } else { factors[channel] };
        let shape = old.shape();
        let mut data: Vec<f32> = old.slice::<f32>().to_vec();
        let mut new_shape = shape.to_vec();
        let scaled = |x: f32, channel: usize| (f64::from(x) * factor(channel)) as f32;
        match self.layout {
            Layout::Spread => {
                data = (0..factors.len()).map(|c| scaled(data[0], c)).collect();
                new_shape.pop();
                new_shape.push(factors.len());
            }
            Layout::Axis(axis) => {
                let inner: usize = shape[axis + 1..].iter().product();
                let each = shape[axis] / factors.len();
                for (i, x) in data.iter_mut().enumerate() {
                    *x = scaled(*x, i / inner % shape[axis] / each);
                }
            }
            Layout::Inputs { groups } => {
                let taps: usize = shape[2..].iter().product();
                let (of_group, outputs) = (shape[1], shape[0] / groups);
                for (i, x) in data.iter_mut().enumerate() {
                    let (row, column) = (i / taps / of_group, i / taps % of_group);
                    *x = scaled(*x, row / outputs * of_group + column);
                }
            }
        }
        let tensor = Tensor::from_slice(&new_shape, &data);
        let reads = |node: &Node| node.inputs.iter().filter(|v| **v == Some(id)).count();
        let alone = graph.nodes.iter().map(reads).sum::<usize>() == 1 && !graph.outputs.contains(&id);
        if alone && tensor.shape() == old.shape() {
            graph.value_mut(id).constant = Some(Arc::new(tensor));
            return;
        }
        let base = format!("{}.{suffix}", graph.value(id).name);
        let name = graph.unused_name(&base);
        let copy = graph.add_constant(&name, tensor);
        graph.nodes[self.node].inputs[self.operand] = Some(copy);
    }
}
