//! The order of channels that only products of codes see: another one can suit their packed weights better. Channels that
//! stand for each other (those of a convolution, of the depthwise one behind it, and of what reads that) change places
//! together, so that no result changes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::engine::graph::op::{Op, Sliding};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::kernels::channel_order::{Matrix, best_order};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::parallel::map_each;
use crate::engine::tensor::{DType, Tensor};

use super::layout::Layout;
use super::ops_product::{is_depthwise, taps_first, turned};
use super::reorder::reorder;

/// Where the channels of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    /// `[N, C, …]`.
    Second,
    /// `[…, C]`.
    Last,
}

/// The channels of a value that stand in another order than the model has them.
#[derive(Clone, Debug)]
pub(super) struct Order {
    axis: Axis,
    /// Which channel stands where.
    channels: Arc<[u32]>,
}

impl Order {
    /// A value as the model has it, in the same layout.
    pub(super) fn undone(&self, tensor: &Tensor, layout: Layout) -> Tensor {
        let mut back = vec![0; self.channels.len()];
        for (at, &channel) in self.channels.iter().enumerate() {
            back[channel as usize] = at as u32;
        }
        let rank = tensor.shape().len();
        let axis = match self.axis {
            Axis::Second => 1,
            Axis::Last => rank - 1,
        };
        let mut tensor = tensor.clone();
        reorder(&mut tensor, layout.axis(axis, rank), &back);
        tensor
    }
}

/// An axis of a tensor, and which slice along it stands where.
type Along = (usize, Arc<[u32]>);

/// What a node with constant weights does with the channels of a value.
#[derive(Clone, Copy)]
enum Role {
    /// They are the results along this axis of the weights.
    Gives(usize),
    /// They are summed along this axis of the weights.
    Takes(usize),
    /// Each is the result of the one before.
    Keeps,
}

/// Orders channels where nothing but products of codes sees them, with up to `threads` threads: how, for each value that
/// has them.
pub(super) fn order_channels(graph: &mut Graph, isa: Isa, threads: usize) -> HashMap<ValueId, Order> {
    let mut bundles = Bundles::of(graph);
    let mut members: HashMap<usize, Vec<(usize, Role)>> = HashMap::new();
    for (node, value, role) in std::mem::take(&mut bundles.roles) {
        members.entry(bundles.root(value)).or_default().push((node, role));
    }
    let mut readers = graph.consumers();
    let mut made: HashMap<usize, Order> = HashMap::new();
    // In execution order: what a product takes is in order when it is asked for what it gives.
    let open = |root: &&usize| {
        let bundle = &bundles.all[**root];
        bundle.channels.is_some() && bundle.axis.is_some() && !bundle.fixed
    };
    let mut roots: Vec<usize> = members.keys().filter(open).copied().collect();
    roots.sort_by_key(|root| (members[root].iter().map(|(node, _)| *node).min(), *root));
    for roots in groups(&roots, |root| products(graph, &members[&root]).map(|(node, _)| node)) {
        let orders = map_each(threads, roots.to_vec(), |root| {
            let channels = bundles.all[root].channels.expect("of those that are open");
            order_of(graph, isa, channels, products(graph, &members[&root]))
        });
        let mut changes: BTreeMap<(usize, usize), Vec<Along>> = BTreeMap::new();
        for (&root, order) in roots.iter().zip(orders) {
            let Some(order) = order else { continue };
            for &(node, role) in &members[&root] {
                for (operand, axis) in operands(&graph.nodes[node], role) {
                    changes.entry((node, operand)).or_default().push((axis, order.clone()));
                }
            }
            let axis = bundles.all[root].axis.expect("of those that are open");
            made.insert(root, Order { axis, channels: order });
        }
        let taken = changes.into_iter().map(|((node, operand), orders)| {
            let tensor = take(graph, &mut readers, (node, operand));
            (node, operand, orders, tensor)
        });
        let changed = map_each(threads, taken.collect(), |(node, operand, orders, tensor)| {
            let mut tensor = Arc::unwrap_or_clone(tensor);
            for (axis, order) in &orders {
                reorder(&mut tensor, *axis, order);
            }
            (node, operand, orders, Arc::new(tensor))
        });
        for (node, operand, orders, tensor) in changed {
            install(graph, (node, operand), &orders, tensor);
        }
    }
    let ids = (0..bundles.parents.len() as u32).map(ValueId);
    ids.filter_map(|id| Some((id, made.get(&bundles.root(id))?.clone()))).collect()
}

/// Runs of `roots` in which none has a product with another one, so that their orders do not wait for each other.
fn groups<N: Iterator<Item = usize>>(roots: &[usize], nodes: impl Fn(usize) -> N) -> Vec<&[usize]> {
    let mut seen: HashSet<usize> = HashSet::new();
    let (mut all, mut first) = (Vec::new(), 0);
    for (at, &root) in roots.iter().enumerate() {
        if nodes(root).any(|node| seen.contains(&node)) {
            all.push(&roots[first..at]);
            first = at;
            seen.clear();
        }
        seen.extend(nodes(root));
    }
    all.push(&roots[first..]);
    all
}

/// The products among nodes for which the order matters.
fn products<'g>(
    graph: &'g Graph,
    members: &'g [(usize, Role)],
) -> impl Iterator<Item = (usize, Role)> + use<'g> {
    members.iter().copied().filter(|(node, role)| suits(&graph.nodes[*node], *role))
}

/// The best order of the channels of a bundle, where a product has them.
fn order_of(
    graph: &Graph,
    isa: Isa,
    channels: usize,
    products: impl Iterator<Item = (usize, Role)>,
) -> Option<Arc<[u32]>> {
    let rows: Vec<(Role, Cow<'_, [i8]>)> = products
        .map(|(node, role)| {
            (role, rows_of(isa, weights(graph, &graph.nodes[node]).expect("seen before"), role))
        })
        .collect();
    let matrices: Vec<Matrix<'_>> = rows
        .iter()
        .map(|(role, codes)| match role {
            Role::Takes(_) => Matrix::Takes(codes),
            Role::Gives(_) | Role::Keeps => Matrix::Gives(codes),
        })
        .collect();
    (!matrices.is_empty()).then(|| best_order(isa, channels, &matrices).into())
}

/// The constant weights of a product or convolution of codes.
fn weights<'g>(graph: &'g Graph, node: &Node) -> Option<&'g Arc<Tensor>> {
    graph.constant(node.input(1)?).filter(|weights| weights.dtype() == DType::I8)
}

/// The shape of constant weights whose scales and whose bias are one for all results, which lie along `axis`, or one for each.
fn shape_of_whole<'g>(graph: &'g Graph, node: &Node, axis: usize) -> Option<&'g [usize]> {
    let shape = weights(graph, node)?.shape();
    let outputs = *shape.get(axis)?;
    let params = graph.value(node.input(1)?).qparams.as_ref()?;
    let by_channel =
        params.axis == Some(axis) && [params.scale.len(), params.zero_point.len()] == [outputs; 2];
    let bias = node.input(2).is_none_or(|id| graph.constant(id).is_some_and(|b| b.shape() == [outputs]));
    (bias && (by_channel || params.axis.is_none())).then_some(shape)
}

/// Whether the order matters to how fast a node is: small windows of stride 1 are transformed before they are multiplied.
fn suits(node: &Node, role: Role) -> bool {
    let transformed = |sliding: &Sliding| sliding.strides.is_empty() && sliding.kernel[..] == [3, 3];
    match (&node.op, role) {
        (_, Role::Keeps) => false,
        (Op::QConv { sliding, .. }, _) => !transformed(sliding),
        _ => true,
    }
}

/// Weights as they are packed: `[outputs, taps, inputs]`.
fn rows_of(isa: Isa, weights: &Tensor, role: Role) -> Cow<'_, [i8]> {
    let (shape, codes) = (weights.shape(), weights.slice::<i8>());
    match (shape, role) {
        (&[k, n], Role::Gives(1) | Role::Takes(0)) => turned(isa, true, codes, [k, n]),
        (&[_, _], _) => codes.into(),
        _ => taps_first(isa, codes, shape),
    }
}

/// The constant operands of a node that have something for each channel, and the axis along which.
fn operands(node: &Node, role: Role) -> impl Iterator<Item = (usize, usize)> {
    let (axis, gives) = match role {
        Role::Gives(axis) => (axis, true),
        Role::Takes(axis) => (axis, false),
        Role::Keeps => (0, true),
    };
    let bias = gives && node.input(2).is_some();
    [(1, axis)].into_iter().chain(bias.then_some((2, 0)))
}

/// Takes a constant operand of a node out of the graph; where others read it as it is, the node gets a value of its own.
fn take(graph: &mut Graph, readers: &mut Vec<Vec<usize>>, (node, operand): (usize, usize)) -> Arc<Tensor> {
    let mut id = graph.nodes[node].input(operand).expect("a constant operand");
    if readers[id.0 as usize].len() > 1 || graph.outputs.contains(&id) {
        let at = readers[id.0 as usize].iter().position(|reader| *reader == node).expect("it reads this");
        readers[id.0 as usize].remove(at);
        let mut value = graph.value(id).clone();
        value.name = graph.unused_name(&format!("{}.ordered", value.name));
        id = graph.add_value(value);
        readers.push(vec![node]);
        graph.nodes[node].inputs[operand] = Some(id);
    }
    graph.value_mut(id).constant.take().expect("a constant operand")
}

/// Puts a constant operand of a node back, in other orders along some axes, and its scales where they go along these.
fn install(graph: &mut Graph, (node, operand): (usize, usize), orders: &[Along], tensor: Arc<Tensor>) {
    let value = graph.value_mut(graph.nodes[node].input(operand).expect("a constant operand"));
    value.constant = Some(tensor);
    for (axis, order) in orders {
        if let Some(params) = value.qparams.as_mut().filter(|params| params.axis == Some(*axis)) {
            let (scale, zero_point) = (params.scale.clone(), params.zero_point.clone());
            params.scale = order.iter().map(|&c| scale[c as usize]).collect();
            params.zero_point = order.iter().map(|&c| zero_point[c as usize]).collect();
        }
    }
}

/// Values whose channels stand for each other.
#[derive(Clone, Debug, Default)]
struct Bundle {
    /// Whether somebody sees the order: a caller, or a node that is no product of codes.
    fixed: bool,
    channels: Option<usize>,
    axis: Option<Axis>,
    rank: Option<usize>,
}

impl Bundle {
    /// Notes what is known of one of its values.
    fn note(&mut self, channels: Option<usize>, axis: Option<Axis>, rank: Option<usize>) {
        fn both<T: PartialEq + Copy>(a: &mut Option<T>, b: Option<T>) -> bool {
            let agree = a.is_none() || b.is_none() || *a == b;
            *a = a.or(b);
            agree
        }
        self.fixed |= !both(&mut self.channels, channels);
        self.fixed |= !both(&mut self.axis, axis);
        self.fixed |= !both(&mut self.rank, rank);
    }
}

/// The values of a graph in bundles.
struct Bundles {
    /// For each value another one of its bundle, or itself.
    parents: Vec<usize>,
    all: Vec<Bundle>,
    /// Node, value and what the one does with the channels of the other.
    roles: Vec<(usize, ValueId, Role)>,
}

impl Bundles {
    fn of(graph: &Graph) -> Bundles {
        let count = graph.values.len();
        let mut bundles =
            Bundles { parents: (0..count).collect(), all: vec![Bundle::default(); count], roles: Vec::new() };
        for &id in graph.inputs.iter().chain(&graph.outputs) {
            bundles.fix(id);
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            if bundles.look_at(graph, index, node).is_none() {
                node.inputs.iter().flatten().chain(&node.outputs).for_each(|&id| bundles.fix(id));
            }
        }
        bundles
    }

    /// Takes in a node; nothing if it sees the order of its operands or has one of its own for its results.
    fn look_at(&mut self, graph: &Graph, index: usize, node: &Node) -> Option<()> {
        let &[output] = &node.outputs[..] else { return None };
        let x = node.input(0).filter(|x| graph.constant(*x).is_none())?;
        // A function of reals that become codes again has no order of its own.
        let plain = |id: ValueId| graph.value(id).qparams.as_ref().is_some_and(|p| p.axis.is_none());
        match node.op {
            Op::Unary(_) => {
                self.merge(x, output);
                return Some(());
            }
            Op::QuantizeLinear { .. } if plain(output) => {
                self.merge(x, output);
                return Some(());
            }
            _ => {}
        }
        // Only codes with one scale have no order in their parameters.
        if !plain(x) {
            return None;
        }
        match &node.op {
            Op::QConv { groups, .. } => {
                let shape = shape_of_whole(graph, node, 0)?;
                let (second, rank) = (Some(Axis::Second), Some(shape.len()));
                if is_depthwise(*groups, shape) {
                    self.merge(x, output);
                    self.roles.push((index, x, Role::Keeps));
                } else if *groups == 1 {
                    self.roles.push((index, x, Role::Takes(1)));
                    self.roles.push((index, output, Role::Gives(0)));
                } else {
                    return None;
                }
                let inputs = if *groups == 1 { shape[1] } else { *groups };
                self.note(x, Some(inputs), second, rank);
                self.note(output, Some(shape[0]), second, rank);
                Some(())
            }
            Op::QMatMul { trans_b, .. } => {
                let (of_k, of_n) = (usize::from(*trans_b), usize::from(!*trans_b));
                let shape = shape_of_whole(graph, node, of_n)?;
                let (k, n) = (*shape.get(of_k)?, *shape.get(of_n)?);
                self.roles.push((index, x, Role::Takes(of_k)));
                self.roles.push((index, output, Role::Gives(of_n)));
                self.note(x, Some(k), Some(Axis::Last), None);
                self.note(output, Some(n), Some(Axis::Last), None);
                Some(())
            }
            Op::QTable { .. } | Op::Recode | Op::Identity => {
                self.merge(x, output);
                Some(())
            }
            Op::MaxPool { .. } | Op::GlobalMaxPool | Op::QAveragePool { .. } | Op::QGlobalAveragePool => {
                self.merge(x, output);
                self.note(x, None, Some(Axis::Second), None);
                Some(())
            }
            _ => None,
        }
    }

    fn root(&mut self, id: ValueId) -> usize {
        let mut at = id.0 as usize;
        while self.parents[at] != at {
            self.parents[at] = self.parents[self.parents[at]];
            at = self.parents[at];
        }
        at
    }

    fn fix(&mut self, id: ValueId) {
        let root = self.root(id);
        self.all[root].fixed = true;
    }

    fn note(&mut self, id: ValueId, channels: Option<usize>, axis: Option<Axis>, rank: Option<usize>) {
        let root = self.root(id);
        self.all[root].note(channels, axis, rank);
    }

    fn merge(&mut self, a: ValueId, b: ValueId) {
        let (a, b) = (self.root(a), self.root(b));
        if a != b {
            let Bundle { fixed, channels, axis, rank } = std::mem::take(&mut self.all[b]);
            self.parents[b] = a;
            self.all[a].note(channels, axis, rank);
            self.all[a].fixed |= fixed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::Value;
    use crate::engine::tensor::qparams::QuantParams;

    fn value(
        graph: &mut Graph,
        name: &str,
        constant: Option<Tensor>,
        params: Option<QuantParams>,
    ) -> ValueId {
        let constant = constant.map(Arc::new);
        graph.add_value(Value { name: name.to_owned(), constant, qparams: params, ..Value::default() })
    }

    /// Codes `[outputs, inputs / groups, 1, 1]`, in which no two are alike for long, with a scale for each output.
    fn convolution(
        graph: &mut Graph,
        x: ValueId,
        [outputs, inputs]: [usize; 2],
        groups: usize,
        output: &str,
    ) -> ValueId {
        let codes: Vec<i8> = (0..outputs * inputs / groups).map(|i| (i * 89 % 251) as u8 as i8).collect();
        let scale: Vec<f32> = (0..outputs).map(|n| 0.1 + n as f32).collect();
        let params = QuantParams { zero_point: vec![0; outputs], scale, axis: Some(0), dtype: DType::I8 };
        let tensor = Tensor::from_slice(&[outputs, inputs / groups, 1, 1], &codes);
        let w = value(graph, &format!("{output}.w"), Some(tensor), Some(params));
        let bias: Vec<i32> = (0..outputs as i32).collect();
        let bias = value(graph, &format!("{output}.b"), Some(Tensor::from_slice(&[outputs], &bias)), None);
        let y = value(graph, output, None, Some(QuantParams::per_tensor(1.0, 0, DType::U8)));
        let op = Op::QConv { sliding: Sliding::default(), groups, clamp: (0, 255) };
        let inputs = vec![Some(x), Some(w), Some(bias)];
        graph.nodes.push(Node::new(output.to_owned(), op, inputs, vec![y]));
        y
    }

    fn input(graph: &mut Graph) -> ValueId {
        let x = value(graph, "x", None, Some(QuantParams::per_tensor(1.0, 0, DType::U8)));
        graph.inputs = vec![x];
        x
    }

    /// A convolution that gives 40 channels, one that takes them, and these channels.
    fn hidden() -> (Graph, ValueId) {
        let mut graph = Graph::default();
        let x = input(&mut graph);
        let wide = convolution(&mut graph, x, [40, 12], 1, "wide");
        let y = convolution(&mut graph, wide, [8, 40], 1, "y");
        graph.outputs = vec![y];
        (graph, wide)
    }

    /// What the weights, biases and scales of a graph are.
    fn constants(graph: &Graph) -> Vec<(Option<Arc<Tensor>>, Option<QuantParams>)> {
        graph.values.iter().map(|v| (v.constant.clone(), v.qparams.clone())).collect()
    }

    #[test]
    fn what_belongs_to_a_channel_moves_with_it() {
        let mut graph = Graph::default();
        let x = input(&mut graph);
        let wide = convolution(&mut graph, x, [40, 12], 1, "wide");
        let each = convolution(&mut graph, wide, [40, 40], 40, "each");
        let y = convolution(&mut graph, each, [8, 40], 1, "y");
        graph.outputs = vec![y];
        let before = graph.clone();
        let orders = order_channels(&mut graph, Isa::best(), 1);
        let mut ids: Vec<ValueId> = orders.keys().copied().collect();
        ids.sort_unstable();
        assert_eq!(ids, [wide, each], "what a caller sees stays");
        let order = orders[&wide].channels.clone();
        assert!(!order.is_sorted());
        let constant = |graph: &Graph, node: usize, operand: usize| {
            graph.constant(graph.nodes[node].input(operand).unwrap()).unwrap().clone()
        };
        for node in 0..2 {
            let (old, new) = (constant(&before, node, 1), constant(&graph, node, 1));
            let row = old.len() / 40;
            for (at, &channel) in order.iter().enumerate() {
                let rows = (
                    &new.slice::<i8>()[at * row..][..row],
                    &old.slice::<i8>()[channel as usize * row..][..row],
                );
                assert_eq!(rows.0, rows.1);
                assert_eq!(constant(&graph, node, 2).slice::<i32>()[at], channel as i32);
                let params = graph.value(graph.nodes[node].input(1).unwrap()).qparams.clone().unwrap();
                assert_eq!(params.scale[at], 0.1 + channel as f32);
            }
        }
        let (old, new) = (constant(&before, 2, 1), constant(&graph, 2, 1));
        for row in 0..8 {
            for (at, &channel) in order.iter().enumerate() {
                assert_eq!(new.slice::<i8>()[row * 40 + at], old.slice::<i8>()[row * 40 + channel as usize]);
            }
        }
        assert_eq!(constant(&graph, 2, 2), constant(&before, 2, 2));
    }

    #[test]
    fn orders_are_the_same_whatever_the_threads() {
        let mut graph = Graph::default();
        let x = input(&mut graph);
        let ends = [12, 40].map(|channels| {
            let wide = convolution(&mut graph, x, [40, 12], 1, &format!("wide{channels}"));
            let narrow = convolution(&mut graph, wide, [channels, 40], 1, &format!("narrow{channels}"));
            convolution(&mut graph, narrow, [8, channels], 1, &format!("y{channels}"))
        });
        graph.outputs = ends.to_vec();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let ordered = |threads| {
            let mut graph = graph.clone();
            let orders = pool.install(|| order_channels(&mut graph, Isa::best(), threads));
            let mut orders: Vec<_> = orders.into_iter().map(|(id, order)| (id, order.channels)).collect();
            orders.sort_unstable();
            (orders, constants(&graph))
        };
        let alone = ordered(1);
        assert_eq!(alone.0.len(), 4);
        assert_eq!(ordered(3), alone);
    }

    #[test]
    fn bundles_with_a_product_in_common_wait_for_each_other() {
        let nodes = |root: usize| [&[0, 1][..], &[5, 6], &[1, 2], &[7], &[2, 8]][root].iter().copied();
        assert_eq!(groups(&[0, 1, 2, 3, 4], nodes), [&[0, 1][..], &[2, 3], &[4]]);
        assert_eq!(groups(&[3], nodes), [[3]]);
    }

    #[test]
    fn channels_that_others_see_stay() {
        let graphs: [fn(&mut Graph, ValueId) -> Vec<ValueId>; 4] = [
            // A caller.
            |_, wide| vec![wide],
            // A convolution in groups.
            |graph, wide| vec![convolution(graph, wide, [40, 40], 2, "groups")],
            // A node that is no product.
            |graph, wide| {
                let y = value(graph, "softmax", None, None);
                let op = Op::Softmax { axis: 1, log: false, coerce_2d: false };
                graph.nodes.push(Node::new("softmax".to_owned(), op, vec![Some(wide)], vec![y]));
                vec![y]
            },
            // A product over another axis.
            |graph, wide| {
                let w = value(
                    graph,
                    "m.w",
                    Some(Tensor::from_slice(&[40, 2], &[1i8; 80])),
                    Some(QuantParams::per_tensor(1.0, 0, DType::I8)),
                );
                let y = value(graph, "m", None, None);
                let op = Op::QMatMul { trans_b: false, clamp: (0, 255) };
                graph.nodes.push(Node::new("m".to_owned(), op, vec![Some(wide), Some(w)], vec![y]));
                vec![y]
            },
        ];
        for more in graphs {
            let (mut graph, wide) = hidden();
            let others = more(&mut graph, wide);
            graph.outputs.extend(others);
            let before = constants(&graph);
            assert!(order_channels(&mut graph, Isa::best(), 1).is_empty());
            assert_eq!(constants(&graph), before);
        }
    }

    /// The kernel says what is wrong with it.
    #[test]
    fn what_does_not_fit_its_channels_stays() {
        let faults: [fn(&mut Graph, ValueId, ValueId); 3] = [
            |graph, _, bias| graph.value_mut(bias).constant = Some(Arc::new(Tensor::scalar(5i32))),
            |graph, _, bias| {
                graph.value_mut(bias).constant = Some(Arc::new(Tensor::from_slice(&[39], &[5i32; 39])));
            },
            |graph, weights, _| graph.value_mut(weights).qparams.as_mut().unwrap().scale.truncate(3),
        ];
        for fault in faults {
            let (mut graph, _) = hidden();
            let [weights, bias] = [1, 2].map(|i| graph.nodes[0].input(i).unwrap());
            fault(&mut graph, weights, bias);
            let before = constants(&graph);
            assert!(order_channels(&mut graph, Isa::best(), 1).is_empty());
            assert_eq!(constants(&graph), before);
        }
    }

    #[test]
    fn weights_that_a_caller_sees_stay() {
        let (mut graph, _) = hidden();
        let seen: Vec<ValueId> =
            graph.nodes.iter().flat_map(|n| [n.input(1), n.input(2)]).flatten().collect();
        graph.outputs.extend(&seen);
        let constants =
            |graph: &Graph| -> Vec<_> { seen.iter().map(|&id| graph.constant(id).cloned()).collect() };
        let before = constants(&graph);
        assert_eq!(order_channels(&mut graph, Isa::best(), 1).len(), 1);
        assert_eq!(constants(&graph), before);
        assert_ne!(graph.nodes[0].input(1), Some(seen[0]));
    }

    fn reordered(tensor: &Tensor, axis: usize, order: &[u32]) -> Tensor {
        let mut tensor = tensor.clone();
        reorder(&mut tensor, axis, order);
        tensor
    }

    /// Of weights `[24, 12, 1, 1]`, as `[12, 24]`.
    fn transposed(weights: &Tensor) -> Tensor {
        let codes = weights.slice::<i8>();
        let column = |i: usize| codes.iter().skip(i).step_by(12).copied();
        Tensor::from_slice(&[12, 24], &(0..12).flat_map(column).collect::<Vec<i8>>())
    }

    #[test]
    fn weights_that_two_nodes_read_are_ordered_for_each() {
        let mut graph = Graph::default();
        let x = input(&mut graph);
        let first = convolution(&mut graph, x, [24, 12], 1, "first");
        let second = convolution(&mut graph, x, [24, 12], 1, "second");
        let shared = graph.nodes[0].input(1);
        graph.nodes[1].inputs[1] = shared;
        graph.outputs = vec![second];
        let y = convolution(&mut graph, first, [8, 24], 1, "y");
        graph.outputs.push(y);
        let before = graph.constant(shared.unwrap()).unwrap().clone();
        let orders = order_channels(&mut graph, Isa::best(), 1);
        assert_eq!(orders.len(), 1);
        assert_eq!(*graph.constant(graph.nodes[1].input(1).unwrap()).unwrap(), before);
        let now = graph.constant(graph.nodes[0].input(1).unwrap()).unwrap();
        assert_ne!(*now, before);
        assert_eq!(reordered(&before, 0, &orders[&first].channels), **now);
        let rows = now.as_ref().clone().reshaped(&[1, 24, 12, 1]).unwrap();
        assert_eq!(orders[&first].undone(&rows, Layout::RowMajor).slice::<i8>(), before.slice::<i8>());
        let columns = reordered(&transposed(&before), 1, &orders[&first].channels);
        let columns = columns.reshaped(&[1, 12, 1, 24]).unwrap();
        assert_eq!(
            orders[&first].undone(&columns, Layout::ChannelsLast).slice::<i8>(),
            transposed(&before).slice::<i8>()
        );
    }
}
