//! What must hold where data decides: shapes that only a run tells, bodies of If, Loop and Scan, and halves.

use std::sync::Arc;

use crate::engine::graph::attributes::Attributes;
use crate::engine::graph::fact::{Fact, Results, Unfit};
use crate::engine::graph::op::{Binary, Op, Reduce, Scan, Unary};
use crate::engine::graph::operator::{Operator, Other};
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::session::Session;
use super::{Options, Tap};

/// A graph under construction; every value but constants is named by the caller.
#[derive(Default)]
struct Maker(Graph);

impl Maker {
    fn input(&mut self, name: &str, dtype: DType, dims: Vec<Dim>) -> ValueId {
        let value = Value { name: name.to_owned(), dtype: Some(dtype), dims: Some(dims), ..Value::default() };
        let id = self.0.add_value(value);
        self.0.inputs.push(id);
        id
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = format!("c{}", self.0.values.len());
        self.0.add_constant(&name, tensor)
    }

    fn node(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        let output = self.0.add_value(Value { name: name.to_owned(), ..Value::default() });
        let inputs = inputs.iter().map(|&i| Some(i)).collect();
        self.0.nodes.push(Node::new(format!("n_{name}"), op, inputs, vec![output]));
        output
    }

    fn with_bodies(
        &mut self,
        names: &[&str],
        op: Op,
        inputs: &[ValueId],
        bodies: Vec<Graph>,
    ) -> Vec<ValueId> {
        let first = self.node(names[0], op, inputs);
        let mut outputs = vec![first];
        for name in &names[1..] {
            outputs.push(self.0.add_value(Value { name: (*name).to_owned(), ..Value::default() }));
        }
        let node = self.0.nodes.last_mut().expect("just added");
        node.outputs.clone_from(&outputs);
        node.bodies = bodies.into_iter().map(Arc::new).collect();
        outputs
    }

    fn done(mut self, outputs: &[ValueId]) -> Graph {
        self.0.outputs = outputs.to_vec();
        self.0
    }
}

/// `x`: the places of what is not zero, `[1, count]`: an operator whose result only a run can size.
#[derive(Debug)]
struct Places;

impl Operator for Places {
    fn infer(&self, _: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        Err(Unfit::AtRun("x".to_owned()))
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = inputs[0].ok_or("input 0 is missing")?.slice::<f32>();
        let places: Vec<i64> = (0..x.len()).filter(|&i| x[i] != 0.0).map(|i| i as i64).collect();
        Ok(vec![Tensor::from_slice(&[1, places.len()], &places)])
    }
}

/// Two threes, of nothing.
#[derive(Debug)]
struct Threes;

impl Operator for Threes {
    fn infer(&self, _: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        Ok(vec![(DType::F32, vec![2])])
    }

    fn run(&self, _: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        Ok(vec![Tensor::from_slice(&[2], &[3.0f32; 2])])
    }
}

fn run(graph: Graph, inputs: &[(&str, Tensor)]) -> Vec<Tensor> {
    let session = Session::new(graph, Options::default()).unwrap();
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
    let first = session.run(&inputs).unwrap();
    assert_eq!(first, session.run(&inputs).unwrap(), "the second run takes the same plans");
    first
}

/// The values above zero, doubled, and their sum: `[n] → [m], []`.
fn positives() -> Graph {
    let mut g = Maker::default();
    let x = g.input("x", DType::F32, vec![Dim::Unknown]);
    let relu = g.node("relu", Op::Unary(Unary::Relu), &[x]);
    let attributes = Attributes::default();
    let other = Other { name: "Places", domain: "", operator: Arc::new(Places), attributes };
    let places = g.node("places", Op::Other(other), &[relu]);
    let zero = g.constant(Tensor::from_slice(&[1], &[0i64]));
    let flat = g.node("flat", Op::Squeeze, &[places, zero]);
    let kept = g.node("kept", Op::Gather { axis: 0 }, &[x, flat]);
    let two = g.constant(Tensor::scalar(2.0f32));
    let doubled = g.node("doubled", Op::Binary(Binary::Mul), &[kept, two]);
    let op = Op::Reduce { kind: Reduce::Sum, keep_dims: false, noop_with_empty_axes: false };
    let sum = g.node("sum", op, &[doubled]);
    g.done(&[doubled, sum])
}

#[test]
fn an_operator_may_read_nothing() {
    let mut g = Maker::default();
    let attributes = Attributes::default();
    let x = g.input("x", DType::F32, vec![Dim::Known(2)]);
    let other = Other { name: "Threes", domain: "", operator: Arc::new(Threes), attributes };
    let threes = g.node("threes", Op::Other(other), &[]);
    let sum = g.node("sum", Op::Binary(Binary::Add), &[x, threes]);
    let results = run(g.done(&[sum]), &[("x", Tensor::from_slice(&[2], &[1.0f32, 2.0]))]);
    assert_eq!(results[0].slice::<f32>(), [4.0, 5.0]);
}

#[test]
fn a_shape_that_the_data_decides_is_planned_when_the_data_is_there() {
    for (values, want) in [
        (vec![1.0f32, -2.0, 3.0, 0.0], vec![2.0f32, 6.0]),
        (vec![-1.0, -2.0], vec![]),
        (vec![5.0], vec![10.0]),
    ] {
        let x = Tensor::from_slice(&[values.len()], &values);
        let made = run(positives(), &[("x", x)]);
        assert_eq!(made[0].slice::<f32>(), want);
        assert_eq!(made[1].slice::<f32>(), [want.iter().sum::<f32>()]);
    }
}

#[test]
fn weights_behind_what_the_data_decides_are_packed_there() {
    let mut g = Maker(positives());
    let kept = g.0.outputs[0];
    let (axis, w) = (
        g.constant(Tensor::from_slice(&[1], &[1i64])),
        g.constant(Tensor::from_slice(&[1, 2], &[1.0f32, -3.0])),
    );
    let column = g.node("column", Op::Unsqueeze, &[kept, axis]);
    let y = g.node("y", Op::MatMul, &[column, w]);
    let session = Session::new(g.done(&[y]), Options::default()).unwrap();
    for (values, want) in
        [(vec![1.0f32, -2.0, 3.0], vec![2.0f32, -6.0, 6.0, -18.0]), (vec![5.0], vec![10.0, -30.0])]
    {
        let made = session.run(&[("x", &Tensor::from_slice(&[values.len()], &values))]).unwrap();
        assert_eq!((made[0].slice::<f32>(), made[0].shape()), (&want[..], &[want.len() / 2, 2][..]));
    }
}

#[test]
fn a_shape_operand_that_is_computed_is_read_at_run() {
    let mut g = Maker::default();
    let x = g.input("x", DType::F32, vec![Dim::Unknown]);
    let shape = g.input("shape", DType::I64, vec![Dim::Unknown]);
    let turned = g.node("turned", Op::Reshape { allow_zero: false }, &[x, shape]);
    let y = g.node("y", Op::Transpose { perm: vec![1, 0] }, &[turned]);
    let graph = g.done(&[y]);
    let x = Tensor::from_slice(&[6], &[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let session = Session::new(graph, Options::default()).unwrap();
    for (shape, want) in [([2i64, 3], [3, 2]), ([3, -1], [2, 3])] {
        let shape = Tensor::from_slice(&[2], &shape);
        let made = session.run(&[("x", &x), ("shape", &shape)]).unwrap();
        assert_eq!(made[0].shape(), want);
        assert_eq!(made[0].slice::<f32>()[1], want[0] as f32);
    }
    let wrong = Tensor::from_slice(&[2], &[4i64, 4]);
    let error = session.run(&[("x", &x), ("shape", &wrong)]).unwrap_err().to_string();
    assert!(error.contains("n_turned") && error.contains("cannot become"), "{error}");
}

#[test]
fn a_tap_sees_values_on_both_sides_of_what_the_data_decides() {
    struct Names(Vec<String>);
    impl Tap for Names {
        fn wants(&self, value: &str) -> bool {
            ["x", "relu", "kept", "doubled"].contains(&value)
        }
        fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
            self.0.push(format!("{value}{:?}", tensor.shape));
        }
    }
    let session = Session::new(positives(), Options::default()).unwrap();
    let mut tap = Names(Vec::new());
    let x = Tensor::from_slice(&[3], &[1.0f32, -1.0, 1.0]);
    session.run_tapped(&[("x", &x)], &mut tap).unwrap();
    assert_eq!(tap.0, ["x[3]", "relu[3]", "kept[2]", "doubled[2]"]);
}

#[test]
fn if_runs_the_branch_that_the_condition_says() {
    let branch = |op| {
        let mut g = Maker::default();
        let x = g.input("x", DType::F32, vec![Dim::Unknown]);
        let y = g.node("y", op, &[x, x]);
        g.done(&[y])
    };
    let mut g = Maker::default();
    let condition = g.input("condition", DType::Bool, vec![]);
    let x = g.input("x", DType::F32, vec![Dim::Unknown]);
    let bodies = vec![branch(Op::Binary(Binary::Add)), branch(Op::Binary(Binary::Mul))];
    let y = g.with_bodies(&["z"], Op::If, &[condition, x], bodies);
    let graph = g.done(&y);
    let x = || Tensor::from_slice(&[2], &[3.0f32, 4.0]);
    let truth = |b: u8| Tensor::scalar(b).retyped(DType::Bool);
    assert_eq!(run(graph.clone(), &[("condition", truth(1)), ("x", x())])[0].slice::<f32>(), [6.0, 8.0]);
    assert_eq!(run(graph, &[("condition", truth(0)), ("x", x())])[0].slice::<f32>(), [9.0, 16.0]);
}

/// `sum = sum + step` as long as it is under `limit`; each sum is kept.
fn counting() -> Graph {
    let mut b = Maker::default();
    b.input("round", DType::I64, vec![]);
    b.input("on", DType::Bool, vec![]);
    let sum = b.input("sum", DType::F32, vec![]);
    let (step, limit) = (b.input("step", DType::F32, vec![]), b.input("limit", DType::F32, vec![]));
    let next = b.node("next", Op::Binary(Binary::Add), &[sum, step]);
    let goes_on = b.node("goes_on", Op::Binary(Binary::Less), &[next, limit]);
    let body = b.done(&[goes_on, next, next]);
    let mut g = Maker::default();
    let rounds = g.input("rounds", DType::I64, vec![]);
    let (step, limit) = (g.input("step", DType::F32, vec![]), g.input("limit", DType::F32, vec![]));
    let zero = g.constant(Tensor::scalar(0.0f32));
    let on = g.constant(Tensor::scalar(1u8).retyped(DType::Bool));
    let inputs = [rounds, on, zero, step, limit];
    let outputs = g.with_bodies(&["last", "all"], Op::Loop { carried: 1 }, &inputs, vec![body]);
    g.done(&outputs)
}

#[test]
fn loop_ends_by_count_or_by_condition() {
    let inputs = |rounds: i64, limit: f32| {
        [
            ("rounds", Tensor::scalar(rounds)),
            ("step", Tensor::scalar(2.0f32)),
            ("limit", Tensor::scalar(limit)),
        ]
    };
    let made = run(counting(), &inputs(3, 100.0));
    assert_eq!((made[0].to_f64(), made[1].to_f64()), (vec![6.0], vec![2.0, 4.0, 6.0]));
    let made = run(counting(), &inputs(100, 5.0));
    assert_eq!((made[0].to_f64(), made[1].to_f64()), (vec![6.0], vec![2.0, 4.0, 6.0]));
    let made = run(counting(), &inputs(0, 5.0));
    assert_eq!((made[0].to_f64(), made[1].shape()), (vec![0.0], &[0][..]));
}

#[test]
fn scan_goes_over_slices_and_stacks_what_it_gives() {
    let mut b = Maker::default();
    let (sum, slice) =
        (b.input("sum", DType::F32, vec![Dim::Known(2)]), b.input("slice", DType::F32, vec![Dim::Known(2)]));
    let next = b.node("next", Op::Binary(Binary::Add), &[sum, slice]);
    let body = b.done(&[next, next]);
    let mut g = Maker::default();
    let zero = g.constant(Tensor::from_slice(&[2], &[0.0f32, 0.0]));
    let x = g.input("x", DType::F32, vec![Dim::Known(2), Dim::Unknown]);
    let op = Scan { states: 1, inputs: vec![(1, true)], outputs: vec![(1, false)] };
    let outputs = g.with_bodies(&["last", "all"], Op::Scan(op), &[zero, x], vec![body]);
    let x = Tensor::from_slice(&[2, 3], &[1.0f32, 2.0, 3.0, 10.0, 20.0, 30.0]);
    let made = run(g.done(&outputs), &[("x", x)]);
    assert_eq!(made[0].slice::<f32>(), [6.0, 60.0]);
    assert_eq!(
        (made[1].shape(), made[1].slice::<f32>()),
        (&[2, 3][..], &[3.0f32, 5.0, 6.0, 30.0, 50.0, 60.0][..])
    );
}

#[test]
fn a_loop_that_doubles_what_it_carries_ends_at_half_the_memory_of_a_run() {
    let mut b = Maker::default();
    b.input("round", DType::I64, vec![]);
    let on = b.input("on", DType::Bool, vec![]);
    let x = b.input("x", DType::F32, vec![Dim::Unknown]);
    let goes_on = b.node("goes_on", Op::Identity, &[on]);
    let twice = b.node("twice", Op::Concat { axis: 0 }, &[x, x]);
    let body = b.done(&[goes_on, twice]);
    let mut g = Maker::default();
    let (rounds, on) = (g.input("rounds", DType::I64, vec![]), g.input("on", DType::Bool, vec![]));
    let x = g.input("x", DType::F32, vec![Dim::Unknown]);
    let outputs = g.with_bodies(&["y"], Op::Loop { carried: 1 }, &[rounds, on, x], vec![body]);
    let options = Options { memory_bytes_max: 64 << 10, ..Options::default() };
    let session = Session::new(g.done(&outputs), options).unwrap();
    let on = Tensor::scalar(1u8).retyped(DType::Bool);
    let x = Tensor::from_slice(&[256], &[1f32; 256]);
    let run = |rounds: i64| session.run(&[("rounds", &Tensor::scalar(rounds)), ("on", &on), ("x", &x)]);
    assert_eq!(run(5).unwrap()[0].shape(), [32 * 256]);
    let refused = run(6).unwrap_err().to_string();
    assert!(refused.contains("limit of 32768"), "{refused}");
}

#[test]
fn a_cast_to_halves_and_back_rounds_to_even_and_overflows() {
    let mut g = Maker::default();
    let x = g.input("x", DType::F32, vec![Dim::Unknown]);
    let h = g.node("h", Op::Cast { to: DType::F16 }, &[x]);
    let y = g.node("y", Op::Cast { to: DType::F32 }, &[h]);
    // What ONNX Runtime 1.32 gives for them.
    let values = [0.1f32, 2049.0, 2051.0, 65_519.0, 65_520.0, -1e6, 2e-8, 3e-8, f32::INFINITY];
    let want = [
        0.099_975_586f32,
        2048.0,
        2052.0,
        65_504.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        5.960_464_5e-8,
        f32::INFINITY,
    ];
    let made = run(g.done(&[y]), &[("x", Tensor::from_slice(&[9], &values))]);
    assert_eq!(made[0].slice::<f32>(), want);
}

#[test]
fn halves_run_in_float32_and_are_rounded_after_each_operator() {
    let mut g = Maker::default();
    let x = g.input("x", DType::F16, vec![Dim::Unknown]);
    let factor = g.constant(Tensor::from_slice(&[1], &[half::f16::from_f32(1.0 / 3.0)]));
    let y = g.node("y", Op::Binary(Binary::Mul), &[x, factor]);
    let z = g.node("z", Op::Unary(Unary::Exp), &[y]);
    let graph = g.done(&[z]);
    let values = [0.5f32, 2.0, -1.0].map(half::f16::from_f32);
    let made = run(graph, &[("x", Tensor::from_slice(&[3], &values))]);
    let want = values.map(|v| {
        let product = half::f16::from_f32(v.to_f32() * half::f16::from_f32(1.0 / 3.0).to_f32());
        half::f16::from_f32(product.to_f32().exp())
    });
    assert_eq!(made[0].slice::<half::f16>(), want);
}

#[test]
fn shapes_are_told_in_the_names_that_the_model_gives() {
    let mut g = Maker::default();
    let symbol = |s: &str| Dim::Symbol(s.to_owned());
    let x = g.input("x", DType::F32, vec![symbol("batch"), symbol("length"), Dim::Known(6)]);
    let shape = g.constant(Tensor::from_slice(&[4], &[0i64, 0, 2, 3]));
    let heads = g.node("heads", Op::Reshape { allow_zero: false }, &[x, shape]);
    let turned = g.node("turned", Op::Transpose { perm: vec![0, 2, 1, 3] }, &[heads]);
    let flat = g.constant(Tensor::from_slice(&[2], &[0i64, -1]));
    let rows = g.node("rows", Op::Reshape { allow_zero: false }, &[turned, flat]);
    let session = Session::new(g.done(&[turned, rows]), Options::default()).unwrap();
    let dims = |i: usize| session.outputs()[i].dims.iter().map(Dim::to_string).collect::<Vec<_>>();
    assert_eq!(dims(0), ["batch", "2", "length", "3"]);
    assert_eq!(dims(1), ["batch", "6*length"]);
}
