//! What must hold of quantized graphs in the forms that other tools write: the same bytes, however the codes are spelled.

use crate::engine::graph::op::{Binary, Op, Sliding, Unary};
use crate::engine::graph::passes::{Pass, Passes};
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::kernels::isa::Isa;
use crate::engine::tensor::{DType, Tensor};

use super::Options;
use super::session::Session;
use super::tests::Seen;

/// Makes graphs over one real input `x`, `[n, …]`.
struct Maker {
    graph: Graph,
    seed: u32,
}

impl Maker {
    fn new(dims: &[usize]) -> (Maker, ValueId) {
        let mut maker = Maker { graph: Graph::default(), seed: 3 };
        let x = maker.value("x");
        maker.graph.value_mut(x).dims = Some(dims.iter().map(|&d| Dim::Known(d)).collect());
        maker.graph.inputs = vec![x];
        (maker, x)
    }

    fn value(&mut self, name: &str) -> ValueId {
        let name = self.graph.unused_name(name);
        self.graph.add_value(Value { name, dtype: Some(DType::F32), ..Value::default() })
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = self.graph.unused_name("c");
        self.graph.add_constant(&name, tensor)
    }

    fn node(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let output = self.value("v");
        let name = format!("n{}", self.graph.nodes.len());
        self.graph.nodes.push(Node::new(name, op, inputs.iter().map(|&i| Some(i)).collect(), vec![output]));
        output
    }

    fn randoms(&mut self, count: usize) -> Vec<f32> {
        let mut next = || {
            self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.seed >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn zero_point(&mut self, codes: DType, zero_point: i32) -> ValueId {
        self.constant(match codes {
            DType::I8 => Tensor::scalar(zero_point as i8),
            _ => Tensor::scalar(zero_point as u8),
        })
    }

    fn quantize(&mut self, x: ValueId, scale: f32, codes: DType, zero_point: i32) -> ValueId {
        let (s, z) = (self.constant(Tensor::scalar(scale)), self.zero_point(codes, zero_point));
        let codes_id = self.node(Op::QuantizeLinear { axis: 1 }, &[x, s, z]);
        self.graph.value_mut(codes_id).dtype = Some(codes);
        codes_id
    }

    fn dequantize(&mut self, x: ValueId, scale: f32, codes: DType, zero_point: i32) -> ValueId {
        let (s, z) = (self.constant(Tensor::scalar(scale)), self.zero_point(codes, zero_point));
        self.node(Op::DequantizeLinear { axis: 1 }, &[x, s, z])
    }

    /// Through codes and back. `zero_point` is that of `u8`; `i8` has one that is 128 less.
    fn through(&mut self, x: ValueId, scale: f32, codes: DType, zero_point: i32) -> ValueId {
        let zero_point = if codes == DType::I8 { zero_point - 128 } else { zero_point };
        let q = self.quantize(x, scale, codes, zero_point);
        self.dequantize(q, scale, codes, zero_point)
    }
}

fn check_same(a: &Graph, b: &Graph, dims: &[usize], want_op: &str) {
    let x =
        Tensor::from_slice(dims, &Maker { graph: Graph::default(), seed: 77 }.randoms(dims.iter().product()));
    let run = |graph: &Graph, isa: Isa, passes: Passes| {
        let session = Session::new(graph.clone(), Options { isa, passes, ..Options::default() }).unwrap();
        let ops: Vec<String> = session.nodes().map(|(_, op, _)| op.name().to_owned()).collect();
        assert!(ops.iter().any(|op| op == want_op), "{ops:?}");
        session.run(&[("x", &x)]).unwrap().remove(0)
    };
    let want = run(a, Isa::Scalar, Passes::ALL);
    assert!(want.to_f64().iter().any(|y| *y != want.to_f64()[0]), "{want:?}");
    for isa in Isa::available() {
        for passes in [Passes::ALL, Passes::NONE] {
            assert_eq!(run(b, isa, passes), want, "{isa:?} {passes:?}");
        }
    }
}

/// How a network's codes are spelled.
#[derive(Clone, Copy)]
struct Spelling {
    activations: DType,
    /// `i8` around 0, or `u8` around this zero point.
    weights: Option<i32>,
    /// Weights are floats, and a QuantizeLinear makes the codes.
    float_weights: bool,
}

const PLAIN: Spelling = Spelling { activations: DType::U8, weights: None, float_weights: false };

/// A convolution of `groups` and a product, a pool and a sum between.
fn network(spelling: Spelling, groups: usize) -> Graph {
    let (mut m, x) = Maker::new(&[2, 4, 6, 7]);
    let codes = spelling.activations;
    let x = m.through(x, 0.01, codes, 121);
    let w = weights(&mut m, spelling, &[4, 4 / groups, 3, 3]);
    let sliding = Sliding { pads: vec![1; 4], ..Sliding::default() };
    let y = m.node(Op::Conv { sliding, groups }, &[x, w]);
    let y = m.through(y, 0.02, codes, 140);
    let window = Sliding { kernel: vec![2, 2], strides: vec![2, 2], ..Sliding::default() };
    let y = m.node(Op::MaxPool { sliding: window }, &[y]);
    let y = m.through(y, 0.02, codes, 140);
    let y = m.node(Op::Flatten { axis: 1 }, &[y]);
    let y = m.through(y, 0.02, codes, 140);
    let w = weights(&mut m, spelling, &[36, 5]);
    let y = m.node(Op::MatMul, &[y, w]);
    let y = m.through(y, 0.05, codes, 99);
    let five: Vec<i32> = [3, 250, 128, 100, 7].to_vec();
    let constant = match codes {
        DType::I8 => Tensor::from_slice(&[5], &five.iter().map(|q| (q - 128) as i8).collect::<Vec<_>>()),
        _ => Tensor::from_slice(&[5], &five.iter().map(|&q| q as u8).collect::<Vec<_>>()),
    };
    let constant = m.constant(constant);
    let other = m.dequantize(constant, 0.01, codes, if codes == DType::I8 { -28 } else { 100 });
    let y = m.node(Op::Binary(Binary::Add), &[y, other]);
    let y = m.through(y, 0.05, codes, 99);
    m.graph.outputs = vec![y];
    m.graph
}

/// Weights of codes from -60 to 60.
fn weights(m: &mut Maker, spelling: Spelling, shape: &[usize]) -> ValueId {
    let codes: Vec<i32> = m.randoms(shape.iter().product()).iter().map(|x| (x * 60.0) as i32).collect();
    if spelling.float_weights {
        let reals: Vec<f32> = codes.iter().map(|&q| q as f32 * 0.01).collect();
        let reals = m.constant(Tensor::from_slice(shape, &reals));
        let q = m.quantize(reals, 0.01, DType::I8, 0);
        return m.dequantize(q, 0.01, DType::I8, 0);
    }
    match spelling.weights {
        None => {
            let codes: Vec<i8> = codes.iter().map(|&q| q as i8).collect();
            let id = m.constant(Tensor::from_slice(shape, &codes));
            m.dequantize(id, 0.01, DType::I8, 0)
        }
        Some(zero_point) => {
            let codes: Vec<u8> = codes.iter().map(|&q| (q + zero_point) as u8).collect();
            let id = m.constant(Tensor::from_slice(shape, &codes));
            m.dequantize(id, 0.01, DType::U8, zero_point)
        }
    }
}

#[test]
fn every_spelling_of_the_same_codes_gives_the_same_bytes() {
    let spellings = [
        Spelling { activations: DType::I8, ..PLAIN },
        Spelling { weights: Some(128), ..PLAIN },
        Spelling { weights: Some(77), ..PLAIN },
        Spelling { weights: Some(190), activations: DType::I8, ..PLAIN },
        Spelling { float_weights: true, ..PLAIN },
    ];
    for groups in [1, 2, 4] {
        for spelling in spellings {
            let (plain, other) = (network(PLAIN, groups), network(spelling, groups));
            check_same(&plain, &other, &[2, 4, 6, 7], "QConv");
            check_same(&plain, &other, &[2, 4, 6, 7], "QMatMul");
        }
    }
}

#[test]
fn signed_codes_at_the_edge_stay_signed() {
    let (mut m, x) = Maker::new(&[3, 8]);
    let q = m.quantize(x, 0.01, DType::I8, 5);
    let real = m.dequantize(q, 0.01, DType::I8, 5);
    let q2 = m.quantize(real, 0.02, DType::I8, -7);
    m.graph.outputs = vec![q, q2];
    let x = Tensor::from_slice(&[3, 8], &m.randoms(24));
    let run = |integers: bool| {
        let session = Session::new(m.graph.clone(), Options { integers, ..Options::default() }).unwrap();
        session.run(&[("x", &x)]).unwrap()
    };
    assert_eq!(run(true), run(false));
    assert_eq!(run(true)[0].dtype(), DType::I8);
}

#[test]
fn a_product_of_two_activations_is_within_one_code_of_the_unfused_reference() {
    for (codes, b_zero) in [(DType::U8, 128), (DType::U8, 99), (DType::I8, 140)] {
        let (mut m, x) = Maker::new(&[2, 3, 6, 6]);
        let a = m.through(x, 0.01, codes, 131);
        let b = m.node(Op::Transpose { perm: vec![0, 1, 3, 2] }, &[x]);
        let b = m.through(b, 0.012, codes, b_zero);
        let y = m.node(Op::MatMul, &[a, b]);
        let y = m.quantize(y, 0.03, codes, if codes == DType::I8 { 3 } else { 131 });
        m.graph.outputs = vec![y];
        check_same(&m.graph, &m.graph, &[2, 3, 6, 6], "QProduct");
        let x = Tensor::from_slice(&[2, 3, 6, 6], &m.randoms(216));
        let run = |integers: bool| {
            let session = Session::new(m.graph.clone(), Options { integers, ..Options::default() }).unwrap();
            session.run(&[("x", &x)]).unwrap().remove(0).to_f64()
        };
        assert!(run(true).iter().zip(run(false)).all(|(a, b)| (a - b).abs() <= 1.0), "{codes}");
    }
}

#[test]
fn the_same_codes_may_stand_for_other_reals() {
    let (mut m, x) = Maker::new(&[2, 8]);
    let q = m.quantize(x, 0.01, DType::U8, 128);
    let (a, b) = (m.dequantize(q, 0.01, DType::U8, 128), m.dequantize(q, 0.5, DType::U8, 3));
    let y = m.node(Op::Binary(Binary::Add), &[a, b]);
    let y = m.through(y, 0.6, DType::U8, 10);
    m.graph.outputs = vec![y];
    let x = Tensor::from_slice(&[2, 8], &m.randoms(16));
    let run = |integers: bool| {
        let session = Session::new(m.graph.clone(), Options { integers, ..Options::default() }).unwrap();
        session.run(&[("x", &x)]).unwrap()
    };
    assert_eq!(run(true), run(false));
}

/// Weights of all codes with a scale for each index along `axis`.
fn weights_by_channel(m: &mut Maker, shape: &[usize], axis: usize) -> ValueId {
    let codes: Vec<i8> = m.randoms(shape.iter().product()).iter().map(|x| (x * 128.0) as i8).collect();
    let scale: Vec<f32> = m.randoms(shape[axis]).iter().map(|x| 0.002 + 0.001 * x).collect();
    let zero_point = vec![0i8; shape[axis]];
    let operands = [
        m.constant(Tensor::from_slice(shape, &codes)),
        m.constant(Tensor::from_slice(&[shape[axis]], &scale)),
        m.constant(Tensor::from_slice(&[shape[axis]], &zero_point)),
    ];
    m.node(Op::DequantizeLinear { axis: axis as i64 }, &operands)
}

/// Channels that only products see, in a convolution network with a branch and in a perceptron behind it.
fn hidden_channels(codes: DType) -> Graph {
    let (mut m, x) = Maker::new(&[2, 20, 6, 7]);
    let x = m.through(x, 0.01, codes, 121);
    let sums = |m: &mut Maker, x: ValueId, shape: &[usize], groups: usize, pad: usize| {
        let w = weights_by_channel(m, shape, 0);
        let bias = m.randoms(shape[0]);
        let bias = m.constant(Tensor::from_slice(&[shape[0]], &bias));
        let sliding = Sliding { pads: vec![pad; 4], ..Sliding::default() };
        m.node(Op::Conv { sliding, groups }, &[x, w, bias])
    };
    let conv = |m: &mut Maker, x: ValueId, shape: &[usize], groups: usize, pad: usize| {
        let y = sums(m, x, shape, groups, pad);
        m.through(y, 0.03, codes, 119)
    };
    let wide = sums(&mut m, x, &[50, 20, 1, 1], 1, 0);
    let wide = m.node(Op::Unary(Unary::HardSwish), &[wide]);
    let wide = m.through(wide, 0.01, codes, 30);
    let each = conv(&mut m, wide, &[50, 1, 3, 3], 50, 1);
    let window = Sliding { kernel: vec![2, 2], strides: vec![2, 2], ..Sliding::default() };
    let pooled = m.node(Op::MaxPool { sliding: window }, &[each]);
    let pooled = m.through(pooled, 0.03, codes, 119);
    let narrow = conv(&mut m, pooled, &[24, 50, 1, 1], 1, 0);
    let branch = conv(&mut m, pooled, &[24, 50, 3, 3], 1, 1);
    let sum = m.node(Op::Binary(Binary::Add), &[narrow, branch]);
    let sum = m.through(sum, 0.04, codes, 130);
    let flat = m.node(Op::Flatten { axis: 1 }, &[sum]);
    let flat = m.through(flat, 0.04, codes, 130);
    let product = |m: &mut Maker, x: ValueId, shape: &[usize]| {
        let w = weights_by_channel(m, shape, 1);
        let y = m.node(Op::MatMul, &[x, w]);
        m.through(y, 0.05, codes, 125)
    };
    let wide = product(&mut m, flat, &[24 * 9, 40]);
    let active = m.node(Op::Unary(Unary::Sigmoid), &[wide]);
    let active = m.through(active, 0.004, codes, 0);
    let y = product(&mut m, active, &[40, 9]);
    m.graph.outputs = vec![y];
    m.graph
}

#[test]
fn channels_in_another_order_change_nothing_that_anybody_sees() {
    for codes in [DType::U8, DType::I8] {
        let graph = hidden_channels(codes);
        check_same(&graph, &graph, &[2, 20, 6, 7], "QTable");
        let x = Tensor::from_slice(&[2, 20, 6, 7], &Maker::new(&[1]).0.randoms(2 * 20 * 6 * 7));
        let seen = |isa: Isa, passes: Passes| {
            let session = Session::new(graph.clone(), Options { isa, passes, ..Options::default() }).unwrap();
            let mut seen = Seen::default();
            session.run_tapped(&[("x", &x)], &mut seen).unwrap();
            seen.0
        };
        for isa in Isa::available() {
            let without = Passes::ALL.without(Pass::OrderChannels);
            assert_eq!(seen(isa, Passes::ALL), seen(isa, without), "{isa:?}");
        }
    }
}

/// Convolutions and a product with a function between sums and codes.
fn functions_of_sums(
    codes: DType,
    function: &dyn Fn(&mut Maker, ValueId) -> ValueId,
    (scale, zero_point): (f32, i32),
) -> Graph {
    let (mut m, x) = Maker::new(&[2, 8, 14, 13]);
    let x = m.through(x, 0.01, codes, 121);
    let conv = |m: &mut Maker, x: ValueId, shape: &[usize], groups: usize, pad: usize| {
        let w = weights_by_channel(m, shape, 0);
        let sliding = Sliding { pads: vec![pad; 4], ..Sliding::default() };
        let y = m.node(Op::Conv { sliding, groups }, &[x, w]);
        let y = function(m, y);
        m.through(y, 0.013, codes, 40)
    };
    let wide = conv(&mut m, x, &[40, 8, 1, 1], 1, 0);
    let each = conv(&mut m, wide, &[40, 1, 3, 3], 40, 1);
    let narrow = conv(&mut m, each, &[16, 40, 3, 3], 1, 1);
    let mean = m.node(Op::GlobalAveragePool, &[narrow]);
    let mean = m.through(mean, 0.013, codes, 40);
    let flat = m.node(Op::Flatten { axis: 1 }, &[mean]);
    let flat = m.through(flat, 0.013, codes, 40);
    let w = weights_by_channel(&mut m, &[16, 7], 1);
    let y = m.node(Op::MatMul, &[flat, w]);
    let y = function(&mut m, y);
    let y = m.through(y, scale, codes, zero_point);
    m.graph.outputs = vec![y];
    m.graph
}

/// Parameters for what is about 0.
const SMALL: (f32, i32) = (0.0005, 128);
/// Parameters for what lies between 0 and 1.
const SHARE: (f32, i32) = (0.004, 0);

#[test]
fn a_function_of_sums_is_computed_before_they_become_codes() {
    let gelu = Unary::Gelu { tanh: false };
    let hard = Unary::HardSigmoid { alpha: 0.2, beta: 0.5 };
    let small = [Unary::HardSwish, Unary::Tanh, gelu].map(|unary| (unary, SMALL));
    for (unary, last) in small.into_iter().chain([(hard, SHARE), (Unary::Sigmoid, SHARE)]) {
        for codes in [DType::U8, DType::I8] {
            let graph = functions_of_sums(codes, &|m, x| m.node(Op::Unary(unary), &[x]), last);
            check_same(&graph, &graph, &[2, 8, 14, 13], "QConv");
        }
    }
    let silu = |m: &mut Maker, x: ValueId| {
        let gate = m.node(Op::Unary(Unary::Sigmoid), &[x]);
        m.node(Op::Binary(Binary::Mul), &[x, gate])
    };
    let graph = functions_of_sums(DType::U8, &silu, SMALL);
    check_same(&graph, &graph, &[2, 8, 14, 13], "QConv");
}

#[test]
fn a_function_of_sums_whose_weights_have_zero_points_is_computed_before_they_become_codes() {
    let spelling = Spelling { weights: Some(117), ..PLAIN };
    let (mut m, x) = Maker::new(&[2, 4, 6, 7]);
    let x = m.through(x, 0.01, DType::U8, 121);
    let w = weights(&mut m, spelling, &[5, 4, 3, 3]);
    let y = m.node(Op::Conv { sliding: Sliding::default(), groups: 1 }, &[x, w]);
    let y = m.node(Op::Unary(Unary::HardSwish), &[y]);
    let y = m.through(y, 0.01, DType::U8, 40);
    m.graph.outputs = vec![y];
    check_same(&m.graph, &m.graph, &[2, 4, 6, 7], "QConv");
}

#[test]
fn what_becomes_codes_of_a_function_is_one_step() {
    let graph = functions_of_sums(DType::U8, &|m, x| m.node(Op::Unary(Unary::HardSwish), &[x]), SMALL);
    let steps = |passes: Passes| -> Vec<String> {
        let session = Session::new(graph.clone(), Options { passes, ..Options::default() }).unwrap();
        let steps = session.steps(&[vec![2, 8, 14, 13]]).unwrap();
        steps.into_iter().map(|step| step.op).collect()
    };
    let count = |steps: &[String], what: &str| steps.iter().filter(|step| *step == what).count();
    let fused = steps(Passes::ALL);
    assert_eq!([count(&fused, "HardSwish"), count(&fused, "QuantizeLinear")], [0, 1], "{fused:?}");
    let apart = steps(Passes::ALL.without(Pass::FuseEpilogues));
    assert_eq!([count(&apart, "HardSwish"), count(&apart, "QuantizeLinear")], [4, 5], "{apart:?}");
}

/// Codes, one operator, codes: on codes where it has such a form and in float where it has none.
fn check_between_codes(op: Op, dims: &[usize], weight: &[usize]) {
    let (mut m, x) = Maker::new(dims);
    let x = m.through(x, 0.01, DType::U8, 121);
    let mut inputs = vec![x];
    if !weight.is_empty() {
        inputs.push(weights(&mut m, PLAIN, weight));
    }
    let name = format!("{op:?}");
    // Operators that pass codes on have one scale on both sides.
    let y = m.node(op, &inputs);
    let y = m.through(y, 0.01, DType::U8, 121);
    m.graph.outputs = vec![y];
    let x = Tensor::from_slice(dims, &m.randoms(dims.iter().product()));
    let run = |integers: bool| {
        let session = Session::new(m.graph.clone(), Options { integers, ..Options::default() }).unwrap();
        session.run(&[("x", &x)]).unwrap_or_else(|e| panic!("{name}: {e}")).remove(0)
    };
    let (got, want) = (run(true), run(false));
    assert_eq!(got.shape(), want.shape(), "{name}");
    for (got, want) in got.to_f64().iter().zip(want.to_f64()) {
        // Ties may go to the code beside it.
        assert!((got - want).abs() < 0.0101, "{name}: {got} {want}");
    }
}

#[test]
fn windows_over_three_axes_run_between_codes() {
    let sliding = |axes: usize| Sliding {
        kernel: vec![2; axes],
        strides: vec![2; axes],
        pads: vec![1; 2 * axes],
        ..Sliding::default()
    };
    let volume = [2, 4, 5, 6, 7];
    for count_include_pad in [false, true] {
        for (dims, axes) in [(&volume[..], 3), (&volume[..4], 2), (&volume[..3], 1)] {
            for ceil_mode in [false, true] {
                let sliding = Sliding { ceil_mode, ..sliding(axes) };
                check_between_codes(Op::AveragePool { sliding, count_include_pad }, dims, &[]);
            }
        }
    }
    check_between_codes(Op::MaxPool { sliding: sliding(3) }, &volume, &[]);
    check_between_codes(Op::GlobalAveragePool, &volume, &[]);
    check_between_codes(Op::GlobalMaxPool, &volume, &[]);
    let conv = |groups| Op::Conv { sliding: Sliding { kernel: vec![], ..sliding(3) }, groups };
    check_between_codes(conv(1), &volume, &[6, 4, 2, 2, 2]);
    check_between_codes(conv(4), &volume, &[4, 1, 2, 2, 2]);
}
