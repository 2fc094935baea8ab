//! What must hold of whole graphs: the same answer with and without passes, on every instruction set, for any
//! number of threads and any batch.

use std::sync::{Arc, Weak};

use crate::engine::graph::op::{Binary, Op, PadMode, Sliding, Unary};
use crate::engine::graph::passes::{Pass, Passes};
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::layout;
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::session::Session;
use super::{ElementOrder, Error, Options, Tap};

/// Makes graphs of random weights, with or without Q and DQ around every operator.
struct Maker {
    graph: Graph,
    seed: u32,
    quantized: bool,
    count: usize,
}

impl Maker {
    fn new(quantized: bool) -> Maker {
        Maker { graph: Graph::default(), seed: 7, quantized, count: 0 }
    }

    fn random(&mut self) -> f32 {
        self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.seed >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    }

    fn randoms(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.random()).collect();
        Tensor::from_slice(shape, &values)
    }

    fn value(&mut self, dtype: DType) -> ValueId {
        self.count += 1;
        let name = format!("v{}", self.count);
        self.graph.add_value(Value { name, dtype: Some(dtype), ..Value::default() })
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.count += 1;
        self.graph.add_constant(&format!("c{}", self.count), tensor)
    }

    fn node(&mut self, op: Op, inputs: &[ValueId], dtype: DType) -> ValueId {
        let output = self.value(dtype);
        let name = format!("n{}", self.graph.nodes.len());
        let inputs = inputs.iter().map(|&i| Some(i)).collect();
        self.graph.nodes.push(Node::new(name, op, inputs, vec![output]));
        output
    }

    /// An image input `[batch, c, h, w]`.
    fn input(&mut self, dims: [usize; 3]) -> ValueId {
        let id = self.value(DType::F32);
        let dims = dims.iter().map(|&d| Dim::Known(d));
        self.graph.value_mut(id).dims =
            Some(std::iter::once(Dim::Symbol("batch".to_owned())).chain(dims).collect());
        self.graph.inputs.push(id);
        id
    }

    /// `x` through codes and back, where the graph is quantized.
    fn through_codes(&mut self, x: ValueId, scale: f32, zero_point: u8) -> ValueId {
        if !self.quantized {
            return x;
        }
        let (s, z) = (self.constant(Tensor::scalar(scale)), self.constant(Tensor::scalar(zero_point)));
        let codes = self.node(Op::QuantizeLinear { axis: 1 }, &[x, s, z], DType::U8);
        self.node(Op::DequantizeLinear { axis: 1 }, &[codes, s, z], DType::F32)
    }

    /// Weights `[o, …]` as they are, or as codes with one scale for each output channel.
    fn weight(&mut self, shape: &[usize]) -> (ValueId, Vec<f32>) {
        let tensor = self.randoms(shape);
        let (out, inner) = (shape[0], shape[1..].iter().product::<usize>());
        let scales: Vec<f32> = (0..out).map(|o| (1.0 + o as f32) / 500.0).collect();
        if !self.quantized {
            return (self.constant(tensor), scales);
        }
        let code =
            |(i, &w): (usize, &f32)| (w / scales[i / inner]).round_ties_even().clamp(-127.0, 127.0) as i8;
        let codes: Vec<i8> = tensor.slice::<f32>().iter().enumerate().map(code).collect();
        let codes = self.constant(Tensor::from_slice(shape, &codes));
        let s = self.constant(Tensor::from_slice(&[out], &scales));
        let z = self.constant(Tensor::from_slice(&[out], &vec![0i8; out]));
        (self.node(Op::DequantizeLinear { axis: 0 }, &[codes, s, z], DType::F32), scales)
    }

    fn bias(&mut self, x_scale: f32, scales: &[f32]) -> ValueId {
        let tensor = self.randoms(&[scales.len()]);
        if !self.quantized {
            return self.constant(tensor);
        }
        let units: Vec<f32> = scales.iter().map(|s| s * x_scale).collect();
        let code = |(b, u): (&f32, &f32)| (b / u).round_ties_even() as i32;
        let codes: Vec<i32> = tensor.slice::<f32>().iter().zip(&units).map(code).collect();
        let codes = self.constant(Tensor::from_slice(&[scales.len()], &codes));
        let s = self.constant(Tensor::from_slice(&[scales.len()], &units));
        self.node(Op::DequantizeLinear { axis: 0 }, &[codes, s], DType::F32)
    }

    fn conv(&mut self, x: ValueId, x_scale: f32, weight: &[usize], groups: usize, stride: usize) -> ValueId {
        let (w, scales) = self.weight(weight);
        let b = self.bias(x_scale, &scales);
        let pad = weight[2] / 2;
        let sliding = Sliding { strides: vec![stride; 2], pads: vec![pad; 4], ..Sliding::default() };
        self.node(Op::Conv { sliding, groups }, &[x, w, b], DType::F32)
    }

    /// Stem, depthwise, residual block, pools, concat, and a Gemm: what image networks are made of.
    fn network(mut self) -> Graph {
        let x = self.input([3, 9, 11]);
        let x = self.through_codes(x, 0.02, 117);
        let a = self.conv(x, 0.02, &[8, 3, 3, 3], 1, 2);
        let a = self.node(Op::Unary(Unary::Relu), &[a], DType::F32);
        let a = self.through_codes(a, 0.03, 0);
        let d = self.conv(a, 0.03, &[8, 1, 3, 3], 8, 1);
        let (lo, hi) = (self.constant(Tensor::scalar(0.0f32)), self.constant(Tensor::scalar(2.0f32)));
        let d = self.node(Op::Clip, &[d, lo, hi], DType::F32);
        let d = self.through_codes(d, 0.01, 3);
        let p = self.conv(d, 0.01, &[8, 8, 1, 1], 1, 1);
        let p = self.through_codes(p, 0.05, 130);
        let sum = self.node(Op::Binary(Binary::Add), &[p, a], DType::F32);
        let sum = self.through_codes(sum, 0.06, 100);
        let g = self.conv(sum, 0.06, &[12, 4, 3, 3], 2, 1);
        let g = self.through_codes(g, 0.09, 128);
        let joined = self.node(Op::Concat { axis: 1 }, &[g, sum], DType::F32);
        let joined = self.through_codes(joined, 0.1, 128);
        let sliding = Sliding { kernel: vec![2; 2], strides: vec![2; 2], ..Sliding::default() };
        let m = self.node(Op::MaxPool { sliding }, &[joined], DType::F32);
        let m = self.through_codes(m, 0.1, 128);
        let mean = self.node(Op::GlobalAveragePool, &[m], DType::F32);
        let mean = self.through_codes(mean, 0.04, 128);
        let flat = self.node(Op::Flatten { axis: 1 }, &[mean], DType::F32);
        let flat = self.through_codes(flat, 0.04, 128);
        let (w, scales) = self.weight(&[5, 20]);
        let b = self.bias(0.04, &scales);
        let gemm = Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true };
        let y = self.node(gemm, &[flat, w, b], DType::F32);
        self.graph.outputs = vec![y];
        self.graph
    }
}

fn image(batch: usize) -> Tensor {
    Maker { seed: 99, ..Maker::new(false) }.randoms(&[batch, 3, 9, 11])
}

fn run(graph: &Graph, options: Options, x: &Tensor) -> Tensor {
    let session = Session::new(graph.clone(), options).expect("the graph is sound");
    session.run(&[("v1", x)]).expect("the input fits").remove(0)
}

#[test]
fn a_graph_answers_the_same_without_passes() {
    for quantized in [false, true] {
        let graph = Maker::new(quantized).network();
        let with = run(&graph, Options::default(), &image(2));
        let without = run(&graph, Options { passes: Passes::NONE, ..Options::default() }, &image(2));
        assert_eq!(with, without);
        assert!(with.slice::<f32>().iter().any(|&y| y != 0.0));
    }
}

#[test]
fn every_isa_and_thread_count_and_batch_gives_the_same_bytes() {
    for quantized in [false, true] {
        let graph = Maker::new(quantized).network();
        let x = image(5);
        let want = run(&graph, Options { isa: Isa::Scalar, ..Options::default() }, &x);
        for isa in Isa::available() {
            for threads in [1, 2, 4] {
                assert_eq!(
                    run(&graph, Options { isa, threads, ..Options::default() }, &x),
                    want,
                    "{isa:?} {threads}"
                );
            }
            for sample in 0..5 {
                let one = &x.slice::<f32>()[sample * 297..(sample + 1) * 297];
                let one = Tensor::from_slice(&[1, 3, 9, 11], one);
                let got = run(&graph, Options { isa, ..Options::default() }, &one);
                assert_eq!(got.slice::<f32>(), &want.slice::<f32>()[sample * 5..(sample + 1) * 5], "{isa:?}");
            }
        }
    }
}

#[test]
fn a_quantized_network_computes_on_codes_throughout() {
    let graph = Maker::new(true).network();
    let session = Session::new(graph, Options::default()).unwrap();
    let steps = session.steps(&[vec![1, 3, 9, 11]]).unwrap();
    let ops: Vec<&str> = steps.iter().map(|s| s.op.as_str()).collect();
    // The sum is done by the last convolution that it adds.
    let want = [
        "to_channels_last",
        "QuantizeLinear",
        "QConv",
        "QConv",
        "QConv",
        "QConv",
        "QConcat",
        "MaxPool",
        "QGlobalAveragePool",
        "QMatMul",
    ];
    let mut sorted = (ops.clone(), want.to_vec());
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    assert_eq!(sorted.0, sorted.1, "{ops:?}");
}

/// Keeps what it sees.
#[derive(Default)]
pub(super) struct Seen(pub(super) Vec<(String, Tensor)>);

impl Tap for Seen {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        self.0.push((value.to_owned(), tensor.to_tensor()));
    }
}

fn seen(graph: &Graph, options: Options) -> Vec<(String, Tensor)> {
    let session = Session::new(graph.clone(), options).unwrap();
    let mut tap = Seen::default();
    let plain = session.run(&[("v1", &image(2))]).unwrap();
    assert_eq!(
        session.run_tapped(&[("v1", &image(2))], &mut tap).unwrap(),
        plain,
        "watching changes nothing"
    );
    tap.0
}

#[test]
fn integers_are_within_one_code_of_the_unfused_reference() {
    let graph = Maker::new(true).network();
    let unfused = Options { integers: false, ..Options::default() };
    let (fused, unfused) = (seen(&graph, Options::default()), seen(&graph, unfused));
    // Each value before Q is compared with the same value of the float run once that went through codes as well.
    let mut compared = 0;
    for node in graph.nodes.iter().filter(|n| matches!(n.op, Op::QuantizeLinear { .. })) {
        let name = |id: ValueId| graph.value(id).name.clone();
        let find = |list: &[(String, Tensor)], name: &str| {
            list.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone())
        };
        let real = node.input(0).unwrap();
        let scale = graph.constant(node.input(1).unwrap()).unwrap().slice::<f32>()[0];
        let back = graph.nodes.iter().find(|n| n.input(0) == Some(node.outputs[0])).unwrap().outputs[0];
        let (Some(got), Some(want)) = (find(&fused, &name(real)), find(&unfused, &name(back))) else {
            continue;
        };
        if graph.inputs.contains(&real) {
            continue;
        }
        for (g, w) in got.slice::<f32>().iter().zip(want.slice::<f32>()) {
            assert!((g - w).abs() <= 1.01 * scale, "{}: {g} and {w}, one code is {scale}", name(real));
        }
        compared += 1;
    }
    assert_eq!(compared, 9);
}

#[test]
fn a_tap_sees_values_in_the_shape_of_the_model() {
    let graph = Maker::new(false).network();
    let plain = Options { passes: Passes::NONE, ..Options::default() };
    let (with, without) = (seen(&graph, Options::default()), seen(&graph, plain));
    assert_eq!(with.len(), without.len());
    assert!(with.iter().any(|(_, t)| t.shape() == [2, 8, 5, 6]));
    for (name, tensor) in &with {
        assert_eq!(without.iter().find(|(n, _)| n == name).map(|(_, t)| t), Some(tensor), "{name}");
    }
}

/// Takes channels last where they are so in memory, and brings them back; counts these values.
#[derive(Default)]
struct Moved(Seen, usize);

impl Tap for Moved {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        self.0.observe(value, tensor);
    }

    fn observe_channels_last(&mut self, value: &str, tensor: TensorView<'_>) {
        let &[n, h, w, c] = tensor.shape else { panic!("{value}: {:?}", tensor.shape) };
        let mut moved = vec![0f32; tensor.len()];
        layout::nhwc_to_nchw(Isa::Scalar, tensor.slice(), n, c, h * w, &mut moved, 1);
        self.0.observe(value, Tensor::from_slice(&[n, c, h, w], &moved).view());
        self.1 += 1;
    }

    fn order(&self, _: &str) -> ElementOrder {
        ElementOrder::ChannelsLast
    }
}

#[test]
fn a_tap_can_take_channels_last() {
    for codes in [false, true] {
        let graph = Maker::new(codes).network();
        for isa in Isa::available() {
            let options = Options { isa, ..Options::default() };
            let session = Session::new(graph.clone(), options.clone()).unwrap();
            let mut tap = Moved::default();
            session.run_tapped(&[("v1", &image(2))], &mut tap).unwrap();
            assert!(tap.1 > 3, "{isa:?}: {} values", tap.1);
            assert_eq!(tap.0.0, seen(&graph, options), "{isa:?}");
        }
    }
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let session = Session::new(Maker::new(false).network(), Options::default()).unwrap();
    let x = image(1);
    let check = |inputs: &[(&str, &Tensor)], want: &str| {
        let got = session.run(inputs).unwrap_err().to_string();
        assert!(got.contains(want), "{got}");
    };
    check(&[], "input `v1` is missing");
    check(&[("v1", &x), ("w", &x)], "no input `w`");
    check(
        &[("v1", &Tensor::zeros(DType::F64, &[1, 3, 9, 11]))],
        "input `v1` is float64, the model needs float32",
    );
    check(&[("v1", &Tensor::zeros(DType::F32, &[1, 3, 9]))], "[batch, 3, 9, 11]");
    check(&[("v1", &Tensor::zeros(DType::F32, &[1, 3, 9, 10]))], "has shape [1, 3, 9, 10]");
    assert!(session.run(&[("v1", &Tensor::zeros(DType::F32, &[0, 3, 9, 11]))]).is_ok(), "an empty batch");
}

#[test]
fn a_node_that_does_not_fit_is_named() {
    let mut maker = Maker::new(false);
    let x = maker.input([3, 4, 4]);
    let w = maker.constant(Tensor::zeros(DType::F32, &[8, 5, 1, 1]));
    let y = maker.node(Op::Conv { sliding: Sliding::default(), groups: 1 }, &[x, w], DType::F32);
    maker.graph.outputs = vec![y];
    let session = Session::new(maker.graph, Options::default()).unwrap();
    let error = session.run(&[("v1", &Tensor::zeros(DType::F32, &[1, 3, 4, 4]))]).unwrap_err();
    assert!(matches!(&error, Error::Node { node, op: "Conv", .. } if node == "n0"), "{error}");
}

#[test]
fn many_threads_may_make_one_session() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for quantized in [false, true] {
        let mut graph = Maker::new(quantized).network();
        let x = graph.inputs[0];
        // Its plan is made with the session.
        graph.value_mut(x).dims = Some([3, 3, 9, 11].map(Dim::Known).to_vec());
        let result = |threads| {
            let options = Options { threads, ..Options::default() };
            pool.install(|| run(&graph, options, &image(3)))
        };
        assert_eq!(result(3), result(1));
    }
}

#[test]
fn a_node_that_does_not_fit_is_named_by_many_threads_too() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let mut maker = Maker::new(false);
    let x = maker.input([3, 4, 4]);
    maker.graph.value_mut(x).dims = Some([1, 3, 4, 4].map(Dim::Known).to_vec());
    let indices = maker.constant(Tensor::from_slice(&[1], &[0.0f32]));
    for _ in 0..9 {
        let y = maker.node(Op::Gather { axis: 2 }, &[x, indices], DType::F32);
        maker.graph.outputs.push(y);
    }
    let options = Options { threads: 3, ..Options::default() };
    let error = pool.install(|| Session::new(maker.graph, options).err()).expect("indices are integers");
    assert!(matches!(&error, Error::Node { node, op: "Gather", .. } if node == "n0"), "{error}");
}

#[test]
fn many_threads_may_run_one_session() {
    let graph = Maker::new(true).network();
    let session = Arc::new(Session::new(graph, Options::default()).unwrap());
    let want = session.run(&[("v1", &image(3))]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (session, want) = (session.clone(), &want);
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(&session.run(&[("v1", &image(3))]).unwrap(), want);
                }
            });
        }
    });
}

/// What follows products in image networks and in transformers, all of which they take over: the graph, and the
/// operators of its steps.
fn followed() -> (Graph, &'static [&'static str]) {
    let mut maker = Maker::new(false);
    let x = maker.input([3, 9, 11]);
    let float = DType::F32;
    let scalar = |maker: &mut Maker, v: f32| maker.constant(Tensor::scalar(v));
    // Conv, Conv + Relu + residual that has to wait for the Relu, Conv + residual + Relu, Conv + SiLU + residual.
    let a = maker.conv(x, 1.0, &[8, 3, 3, 3], 1, 1);
    let b = maker.conv(a, 1.0, &[8, 8, 1, 1], 1, 1);
    let b = maker.node(Op::Unary(Unary::Relu), &[b], float);
    let b = maker.node(Op::Binary(Binary::Add), &[b, a], float);
    let c = maker.conv(b, 1.0, &[8, 1, 3, 3], 8, 1);
    let c = maker.node(Op::Binary(Binary::Add), &[b, c], float);
    let c = maker.node(Op::Unary(Unary::Relu), &[c], float);
    let d = maker.conv(c, 1.0, &[8, 4, 3, 3], 2, 1);
    let s = maker.node(Op::Unary(Unary::Sigmoid), &[d], float);
    let d = maker.node(Op::Binary(Binary::Mul), &[d, s], float);
    let d = maker.node(Op::Binary(Binary::Add), &[d, c], float);
    // MatMul + bias + GELU spelled out, MatMul + bias + residual + Clip, MatMul of computed operands.
    let w = maker.randoms(&[11, 40]);
    let (w, list) = (maker.constant(w), maker.randoms(&[40]));
    let e = maker.node(Op::MatMul, &[d, w], float);
    let list = maker.constant(list);
    let e = maker.node(Op::Binary(Binary::Add), &[list, e], float);
    let root = scalar(&mut maker, std::f32::consts::SQRT_2);
    let quotient = maker.node(Op::Binary(Binary::Div), &[e, root], float);
    let erf = maker.node(Op::Unary(Unary::Erf), &[quotient], float);
    let one = scalar(&mut maker, 1.0);
    let sum = maker.node(Op::Binary(Binary::Add), &[erf, one], float);
    let product = maker.node(Op::Binary(Binary::Mul), &[e, sum], float);
    let half = scalar(&mut maker, 0.5);
    let e = maker.node(Op::Binary(Binary::Mul), &[product, half], float);
    let (w, list) = (maker.randoms(&[40, 11]), maker.randoms(&[1, 11]));
    let (w, list) = (maker.constant(w), maker.constant(list));
    let f = maker.node(Op::MatMul, &[e, w], float);
    let f = maker.node(Op::Binary(Binary::Add), &[f, list], float);
    let f = maker.node(Op::Binary(Binary::Add), &[d, f], float);
    let (lo, hi) = (scalar(&mut maker, -2.0), scalar(&mut maker, 40.0));
    let f = maker.node(Op::Clip, &[f, lo, hi], float);
    let g = maker.node(Op::Transpose { perm: vec![0, 1, 3, 2] }, &[f], float);
    let y = maker.node(Op::MatMul, &[f, g], float);
    maker.graph.outputs = vec![y];
    let steps = &[
        "to_channels_last",
        "Conv",
        "Conv",
        "Add",
        "Conv",
        "Conv",
        "to_row_major",
        "MatMul",
        "MatMul",
        "Transpose",
        "MatMul",
    ];
    (maker.graph, steps)
}

#[test]
fn products_take_over_what_follows_them() {
    let (graph, want) = followed();
    let session = Session::new(graph, Options::default()).unwrap();
    let steps = session.steps(&[vec![1, 3, 9, 11]]).unwrap();
    assert_eq!(steps.iter().map(|s| s.op.as_str()).collect::<Vec<_>>(), want);
}

#[test]
fn what_products_take_over_keeps_its_bits() {
    let (graph, _) = followed();
    let want =
        run(&graph, Options { isa: Isa::Scalar, passes: Passes::NONE, ..Options::default() }, &image(2));
    assert!(want.slice::<f32>().iter().all(|y| y.is_finite()));
    for isa in Isa::available() {
        for (threads, passes) in [(1, Passes::ALL), (1, Passes::NONE), (3, Passes::ALL)] {
            let options = Options { isa, threads, passes, ..Options::default() };
            assert_eq!(run(&graph, options, &image(2)), want, "{isa:?} {threads} {passes:?}");
        }
    }
}

#[test]
fn a_value_that_a_tap_wants_is_not_taken_over() {
    let (graph, _) = followed();
    let plain = Options { passes: Passes::NONE, ..Options::default() };
    let (with, without) = (seen(&graph, Options::default()), seen(&graph, plain));
    assert_eq!(with.len(), without.len());
    for (name, tensor) in &with {
        assert_eq!(without.iter().find(|(n, _)| n == name).map(|(_, t)| t), Some(tensor), "{name}");
    }
}

/// What every pass has something to do on: a Pad, a BatchNormalization, transposes back and forth, an Identity, a
/// constant to compute, and what products take over.
fn everything() -> Graph {
    let mut m = Maker::new(false);
    let x = m.input([3, 8, 10]);
    let x = m.node(Op::Identity, &[x], DType::F32);
    let pads = m.constant(Tensor::from_slice(&[8], &[0i64, 0, 1, 0, 0, 0, 1, 2]));
    let padded = m.node(Op::Pad { mode: PadMode::Constant }, &[x, pads], DType::F32);
    let a = m.conv(padded, 1.0, &[4, 3, 3, 3], 1, 1);
    let lists = [0.7f32, 0.1, -0.2, 1.3].map(|v| {
        let list: Vec<f32> = (0..4).map(|i| v + 0.1 * i as f32).collect();
        m.constant(Tensor::from_slice(&[4], &list))
    });
    let a = m.node(Op::BatchNorm { epsilon: 1e-5 }, &[&[a], lists.as_slice()].concat(), DType::F32);
    let a = m.node(Op::Unary(Unary::Relu), &[a], DType::F32);
    let b = m.node(Op::Transpose { perm: vec![0, 2, 3, 1] }, &[a], DType::F32);
    let b = m.node(Op::Unary(Unary::Tanh), &[b], DType::F32);
    let b = m.node(Op::Transpose { perm: vec![0, 3, 1, 2] }, &[b], DType::F32);
    let c = m.node(Op::Transpose { perm: vec![0, 3, 1, 2] }, &[a], DType::F32);
    let c = m.node(Op::Transpose { perm: vec![0, 2, 3, 1] }, &[c], DType::F32);
    let sum = m.node(Op::Binary(Binary::Add), &[b, c], DType::F32);
    let (one, two) = (m.constant(Tensor::scalar(1.5f32)), m.constant(Tensor::scalar(2.0f32)));
    let factor = m.node(Op::Binary(Binary::Mul), &[one, two], DType::F32);
    let scaled = m.node(Op::Binary(Binary::Mul), &[sum, factor], DType::F32);
    let y = m.conv(scaled, 1.0, &[5, 4, 3, 3], 1, 2);
    m.graph.outputs = vec![y];
    m.graph
}

#[test]
fn each_pass_alone_can_be_switched_off() {
    let graph = everything();
    let x = Maker { seed: 99, ..Maker::new(false) }.randoms(&[2, 3, 8, 10]);
    let answer = |passes| run(&graph, Options { passes, ..Options::default() }, &x);
    let plain = answer(Passes::NONE);
    for pass in Pass::all() {
        // Without the one that rounds otherwise the bits are those of the plain graph.
        let exact = Passes::ALL.without(Pass::FoldAffine).without(pass);
        assert_eq!(answer(exact), plain, "{}", pass.name());
        let near = answer(Passes::ALL.without(pass));
        for (a, b) in near.slice::<f32>().iter().zip(plain.slice::<f32>()) {
            // Two roundings of each weight and one of the sum, over sums of some 40 terms of size 1.
            assert!((a - b).abs() <= 2e-5 * b.abs().max(1.0), "{}: {a} {b}", pass.name());
        }
    }
}

#[test]
fn what_is_packed_is_kept_in_no_other_form() {
    for quantized in [false, true] {
        let mut maker = Maker::new(quantized);
        let x = maker.input([4, 6, 6]);
        let x = maker.through_codes(x, 0.01, 128);
        let y = maker.conv(x, 0.01, &[8, 4, 3, 3], 1, 1);
        let y = maker.through_codes(y, 0.05, 128);
        maker.graph.outputs.push(y);
        let options = Options { integers: quantized, ..Options::default() };
        let weights = |graph: &Graph| -> Vec<Weak<Tensor>> {
            let large = |v: &Value| v.constant.as_ref().filter(|t| t.len() == 8 * 4 * 9).map(Arc::downgrade);
            graph.values.iter().filter_map(large).collect()
        };
        let there = |weights: &[Weak<Tensor>]| weights.iter().filter(|w| w.upgrade().is_some()).count();
        let input = |batch: usize| Tensor::from_slice(&[batch, 4, 6, 6], &vec![0.25f32; batch * 4 * 36]);
        let name = maker.graph.value(maker.graph.inputs[0]).name.clone();

        let seen = weights(&maker.graph);
        assert_eq!(seen.len(), 1);
        let mut read_twice = maker.graph.clone();
        let session = Session::new(maker.graph, options.clone()).unwrap();
        let one = session.run(&[(&name, &input(1))]).unwrap();
        // A plan for another batch has the packed weights only, the same answers for each sample.
        let two = session.run(&[(&name, &input(2))]).unwrap();
        assert_eq!(one[0].to_f64(), two[0].to_f64()[..one[0].len()]);
        drop(two);
        let mut ids = (0..read_twice.values.len()).map(|i| ValueId(i as u32));
        let is_weight = |&id: &ValueId| read_twice.constant(id).is_some_and(|t| t.len() == 8 * 4 * 9);
        let weight = ids.find(is_weight).unwrap();
        read_twice.outputs.push(weight);
        assert_eq!(there(&seen), 1, "the other graph has them");
        let kept = Session::new(read_twice, options).unwrap();
        let results = kept.run(&[(&name, &input(1))]).unwrap();
        assert_eq!((&results[0], results[1].len()), (&one[0], 8 * 4 * 9));
        assert_eq!(there(&seen), 1, "an output is read by somebody");
        drop(kept);
        assert_eq!(there(&seen), 0, "the first session has them packed only");
    }
}
