//! Convolutions of sequences among real operators as products of rows: a row is what a window covers, and gets its range
//! in each run as the rows of other products do (`dynamic`). One range for a whole sequence, or for all of them, would be
//! that of its loudest place. The function of the model stays as it is:
//!
//! ```text
//! t = Transpose(x)                                  channels last
//! r = Concat(Slice(t, 0 …), Slice(t, 1 …), …)       a slice for each tap
//! y = Transpose(MatMul(r, W) + bias)
//! ```

use std::collections::HashSet;

use crate::engine::graph::op::{AutoPad, Binary, Op, PadMode};
use crate::engine::graph::{Graph, Node, Value, ValueId};
use crate::engine::quant::constants::bias_of;
use crate::engine::quant::plan::{Decision, Plan};
use crate::engine::tensor::{DType, Tensor};

/// A window of more taps is no longer a row of a product: it would be copied too often.
const TAPS_MAX: usize = 16;

/// The graph with products in the place of such convolutions; `None` where the plan has none.
pub fn unrolled(graph: &Graph, plan: &Plan) -> Option<Graph> {
    let found: Vec<Option<Taps>> = (0..graph.nodes.len()).map(|n| Taps::of(graph, plan, n)).collect();
    if found.iter().all(Option::is_none) {
        return None;
    }
    let names = graph.values.iter().map(|v| v.name.clone()).collect();
    let mut writer = Writer { source: graph, out: Graph { nodes: Vec::new(), ..graph.clone() }, names };
    for (node, taps) in graph.nodes.iter().zip(found) {
        match taps {
            Some(taps) => writer.product(node, &taps),
            None => writer.out.nodes.push(node.clone()),
        }
    }
    Some(writer.out)
}

/// The one axis along which a window covers more than one place.
struct Taps {
    /// Among the axes of the operand.
    axis: usize,
    count: usize,
    distance: usize,
    /// Places before and after.
    pads: [usize; 2],
}

impl Taps {
    /// Of a convolution on integers between real operators, of data that is no input of the model, in steps of one.
    fn of(graph: &Graph, plan: &Plan, n: usize) -> Option<Taps> {
        let node = &graph.nodes[n];
        let Op::Conv { sliding, groups: 1 } = &node.op else { return None };
        let x = node.input(0)?;
        let real = plan.coded(x).is_some_and(|coded| !coded.by_integer && coded.root == x);
        let result = plan.result(graph, n);
        if plan.decisions[n] != Decision::Integer
            || !real
            || graph.inputs.contains(&x)
            || result != node.outputs[0]
            || plan.coded(result).is_some()
            || sliding.strides.iter().any(|&step| step != 1)
        {
            return None;
        }
        let kernel = &graph.constant(node.input(1)?)?.shape()[2..];
        let axis = kernel.iter().position(|&taps| taps > 1).unwrap_or(0);
        let (count, axes) = (kernel[axis], kernel.len());
        let distance = sliding.dilations.get(axis).copied().unwrap_or(1);
        let more = (count - 1) * distance;
        let pads = match sliding.auto_pad {
            AutoPad::Explicit => [axis, axes + axis].map(|i| sliding.pads.get(i).copied().unwrap_or(0)),
            AutoPad::SameUpper => [more / 2, more - more / 2],
            AutoPad::SameLower => [more - more / 2, more / 2],
        };
        let others = kernel.iter().enumerate().any(|(i, &taps)| i != axis && taps > 1);
        let other_pads = sliding.auto_pad == AutoPad::Explicit
            && sliding.pads.iter().enumerate().any(|(i, &pad)| i % axes != axis && pad > 0);
        (!others && !other_pads && count <= TAPS_MAX).then_some(Taps {
            axis: axis + 2,
            count,
            distance,
            pads,
        })
    }
}

struct Writer<'a> {
    source: &'a Graph,
    out: Graph,
    names: HashSet<String>,
}

impl Writer<'_> {
    fn product(&mut self, node: &Node, taps: &Taps) {
        let [x, w] = [0, 1].map(|i| node.input(i).expect("the plan checked the operands"));
        let weights = self.source.constant(w).expect("the plan checked the weights");
        let (rank, channels) = (weights.shape().len(), weights.shape()[0]);
        let bias = bias_of(self.source, node, channels).expect("the plan checked the bias");
        let matrix = matrix(weights, taps.count);
        let result = node.outputs[0];
        // [N, C, …] to [N, …, C], where the axis of the window is one further to the front.
        let last: Vec<usize> = std::iter::once(0).chain(2..rank).chain([1]).collect();
        let first: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        let axis = taps.axis - 1;
        let mut rows = self.made(Op::Transpose { perm: last }, &[x], x, "t");
        if taps.pads != [0, 0] {
            let mut pads = vec![0i64; 2 * rank];
            (pads[axis], pads[rank + axis]) = (taps.pads[0] as i64, taps.pads[1] as i64);
            let pads = self.constant(x, "pads", Tensor::from_slice(&[2 * rank], &pads));
            rows = self.made(Op::Pad { mode: PadMode::Constant }, &[rows, pads], x, "p");
        }
        if taps.count > 1 {
            let slices: Vec<ValueId> =
                (0..taps.count).map(|tap| self.slice(rows, x, axis, tap, taps)).collect();
            rows = self.made(Op::Concat { axis: -1 }, &slices, x, "w");
        }
        let matrix = self.constant(w, "m", matrix);
        let mut product = self.value(result, "p");
        let operands = vec![Some(rows), Some(matrix)];
        self.out.nodes.push(Node::new(node.name.clone(), Op::MatMul, operands, vec![product]));
        if let Some(bias) = bias {
            let bias = self.constant(node.input(2).unwrap_or(w), "r", Tensor::from_slice(&[channels], &bias));
            product = self.made(Op::Binary(Binary::Add), &[product, bias], result, "b");
        }
        self.push(Op::Transpose { perm: first }, &[product], result);
    }

    /// What one tap of each window covers.
    fn slice(&mut self, rows: ValueId, x: ValueId, axis: usize, tap: usize, taps: &Taps) -> ValueId {
        let start = (tap * taps.distance) as i64;
        let end = match start - ((taps.count - 1) * taps.distance) as i64 {
            0 => i64::MAX,
            from_end => from_end,
        };
        let [start, end, axis] = [("from", start), ("to", end), ("axis", axis as i64)]
            .map(|(suffix, number)| self.constant(x, suffix, Tensor::from_slice(&[1], &[number])));
        self.made(Op::Slice, &[rows, start, end, axis], x, "s")
    }

    fn name(&mut self, like: ValueId, suffix: &str) -> String {
        let stem = format!("{}_{suffix}", self.out.value(like).name);
        let names = std::iter::once(stem.clone()).chain((2..).map(|i| format!("{stem}{i}")));
        let name = names.into_iter().find(|name| !self.names.contains(name)).expect("numbers do not end");
        self.names.insert(name.clone());
        name
    }

    fn value(&mut self, like: ValueId, suffix: &str) -> ValueId {
        let name = self.name(like, suffix);
        self.out.add_value(Value { name, dtype: Some(DType::F32), ..Value::default() })
    }

    fn constant(&mut self, like: ValueId, suffix: &str, tensor: Tensor) -> ValueId {
        let name = self.name(like, suffix);
        self.out.add_constant(&name, tensor)
    }

    fn made(&mut self, op: Op, operands: &[ValueId], like: ValueId, suffix: &str) -> ValueId {
        let made = self.value(like, suffix);
        self.push(op, operands, made);
        made
    }

    fn push(&mut self, op: Op, operands: &[ValueId], made: ValueId) {
        let name = self.out.value(made).name.clone();
        let inputs = operands.iter().map(|&id| Some(id)).collect();
        self.out.nodes.push(Node::new(name, op, inputs, vec![made]));
    }
}

/// Weights `[N, C, taps]` as `[taps · C, N]`.
fn matrix(weights: &Tensor, taps: usize) -> Tensor {
    let [outputs, channels] = [weights.shape()[0], weights.shape()[1]];
    let from = weights.slice::<f32>();
    let at = |row: usize, n: usize| from[(n * channels + row % channels) * taps + row / channels];
    let turned: Vec<f32> = (0..from.len()).map(|i| at(i / outputs, i % outputs)).collect();
    Tensor::from_slice(&[taps * channels, outputs], &turned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::exec::Options;
    use crate::engine::exec::session::Session;
    use crate::engine::graph::Dim;
    use crate::engine::graph::op::{Sliding, Unary};
    use crate::engine::quant::Recipe;
    use crate::engine::quant::plan;
    use crate::engine::quant::rewrite::tests::lines;

    /// `z = Tanh(Conv(Tanh(x), w, b))`, or without the first Tanh; `x` is `[batch, 2, 7, 1]` or `[batch, 2, 7]`.
    fn graph(sliding: Sliding, kernel: &[usize], groups: usize, inner: bool) -> Graph {
        let mut g = Graph::default();
        let spatial = [7, 1].into_iter().take(kernel.len()).map(Dim::Known);
        let dims: Vec<Dim> =
            [Dim::Symbol("batch".to_owned()), Dim::Known(2)].into_iter().chain(spatial).collect();
        let x = Value { name: "x".to_owned(), dtype: Some(DType::F32), dims: Some(dims), ..Value::default() };
        let x = g.add_value(x);
        let mut value = |name: &str| {
            g.add_value(Value { name: name.to_owned(), dtype: Some(DType::F32), ..Value::default() })
        };
        let [t, y, z] = ["t", "y", "z"].map(&mut value);
        let shape: Vec<usize> = [4, 2 / groups].into_iter().chain(kernel.iter().copied()).collect();
        let weights: Vec<f32> =
            (0..shape.iter().product()).map(|i: usize| (i * 7 % 11) as f32 - 5.3).collect();
        let w = g.add_constant("w", Tensor::from_slice(&shape, &weights));
        let b = g.add_constant("b", Tensor::from_slice(&[4], &[0.5f32, -2.0, 0.0, 1.0]));
        let first = if inner { t } else { x };
        for (name, op, inputs, output) in [
            ("n_t", Op::Unary(Unary::Tanh), vec![x], t),
            ("n_y", Op::Conv { sliding, groups }, vec![first, w, b], y),
            ("n_z", Op::Unary(Unary::Tanh), vec![y], z),
        ] {
            let inputs = inputs.into_iter().map(Some).collect();
            g.nodes.push(Node::new(name.to_owned(), op, inputs, vec![output]));
        }
        (g.inputs, g.outputs) = (vec![x], vec![z]);
        g
    }

    fn unrolled_of(graph: &Graph) -> Option<Graph> {
        unrolled(graph, &plan::plan(graph, &Recipe::default()).unwrap())
    }

    #[test]
    fn windows_are_rows_and_the_function_stays() {
        let explicit = |pads: &[usize], dilations: &[usize]| Sliding {
            pads: pads.to_vec(),
            dilations: dilations.to_vec(),
            ..Sliding::default()
        };
        let auto = |auto_pad| Sliding { auto_pad, ..Sliding::default() };
        for (sliding, kernel) in [
            (explicit(&[], &[]), &[3][..]),
            (explicit(&[1, 2], &[2]), &[3]),
            (explicit(&[], &[]), &[1]),
            (explicit(&[2, 0, 2, 0], &[1, 1]), &[5, 1]),
            (auto(AutoPad::SameUpper), &[4]),
            (auto(AutoPad::SameLower), &[4, 1]),
        ] {
            let graph = graph(sliding.clone(), kernel, 1, true);
            let found = unrolled_of(&graph).unwrap_or_else(|| panic!("{sliding:?}"));
            assert!(unrolled_of(&found).is_none(), "once is enough");
            let shape: Vec<usize> = [2, 2, 7, 1].into_iter().take(2 + kernel.len()).collect();
            let values: Vec<f32> = (0..28).map(|i| (i * 5 % 13) as f32 * 0.1 - 0.6).collect();
            let x = Tensor::from_slice(&shape, &values);
            let run = |graph: &Graph| {
                Session::new(graph.clone(), Options::default()).unwrap().run(&[("x", &x)]).unwrap().remove(0)
            };
            let (a, b) = (run(&graph), run(&found));
            assert_eq!(a.shape(), b.shape());
            assert!(a.slice::<f32>().iter().zip(b.slice::<f32>()).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn the_form_is_a_product_of_slices() {
        let sliding = Sliding { pads: vec![1, 1], ..Sliding::default() };
        let want = [
            "t = Tanh(x)",
            "t_t = Transpose(t)",
            "t_p = Pad(t_t, t_pads)",
            "t_s = Slice(t_p, t_from, t_to, t_axis)",
            "t_s2 = Slice(t_p, t_from2, t_to2, t_axis2)",
            "t_s3 = Slice(t_p, t_from3, t_to3, t_axis3)",
            "t_w = Concat(t_s, t_s2, t_s3)",
            "y_p = MatMul(t_w, w_m)",
            "y_b = Add(y_p, b_r)",
            "y = Transpose(y_b)",
            "z = Tanh(y)",
        ];
        let found = unrolled_of(&graph(sliding, &[3], 1, true)).unwrap();
        assert_eq!(lines(&found), want);
        assert_eq!(found.nodes[7].name, "n_y", "reports speak of the layer by its name");
    }

    #[test]
    fn other_convolutions_stay() {
        let plain = Sliding::default;
        for graph in [
            graph(plain(), &[3], 1, false),
            graph(plain(), &[3], 2, true),
            graph(plain(), &[3, 3], 1, true),
            graph(Sliding { strides: vec![2], ..plain() }, &[3], 1, true),
            graph(Sliding { pads: vec![0, 1, 0, 1], ..plain() }, &[3, 1], 1, true),
            graph(plain(), &[TAPS_MAX + 1], 1, true),
        ] {
            assert!(unrolled_of(&graph).is_none(), "{:?}", graph.nodes[1].op);
        }
    }
}
