//! Small graphs in each scheme: what is written, and that the executor does with it what it says.

use std::collections::HashMap;

use serde_json::json;

use super::float16::{self, Seen};
use super::{dynamic, weight_only};
use crate::engine::exec::Options;
use crate::engine::exec::session::Session;
use crate::engine::graph::op::{Op, Sliding, Unary};
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::quant::Recipe;
use crate::engine::quant::dial::{self, Dial};
use crate::engine::quant::plan::{self, Kept, Plan};
use crate::engine::quant::rewrite::{Rewritten, rewrite};
use crate::engine::tensor::qparams::{Codes, QuantParams};
use crate::engine::tensor::{DType, Tensor};

/// Numbers that look random, about -1 to 1.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
}

fn constant(graph: &mut Graph, name: &str, shape: &[usize], seed: usize) -> ValueId {
    let data = numbers(shape.iter().product(), seed);
    graph.add_constant(name, Tensor::from_slice(shape, &data))
}

/// `x [rows, 24] → MatMul → Relu → Gemm (transposed, biased) → y`, and a second MatMul of `x`.
fn perceptron() -> Graph {
    let mut g = Graph { opset: 17, ..Graph::default() };
    let names = ["x", "h", "r", "y", "z"];
    let [x, h, r, y, z] = names.map(|name| {
        g.add_value(Value { name: name.to_owned(), dtype: Some(DType::F32), ..Value::default() })
    });
    g.value_mut(x).dims = Some(vec![Dim::Symbol("rows".to_owned()), Dim::Known(24)]);
    let w = constant(&mut g, "w", &[24, 40], 1);
    let v = constant(&mut g, "v", &[20, 40], 2);
    let b = constant(&mut g, "b", &[20], 3);
    let u = constant(&mut g, "u", &[24, 33], 4);
    let gemm = Op::Gemm { alpha: 0.5, beta: 2.0, trans_a: false, trans_b: true };
    for (name, op, inputs, output) in [
        ("first", Op::MatMul, vec![x, w], h),
        ("relu", Op::Unary(Unary::Relu), vec![h], r),
        ("second", gemm, vec![r, v, b], y),
        ("other", Op::MatMul, vec![x, u], z),
    ] {
        let inputs = inputs.into_iter().map(Some).collect();
        g.nodes.push(Node::new(name.to_owned(), op, inputs, vec![output]));
    }
    (g.inputs, g.outputs) = (vec![x], vec![y, z]);
    g
}

fn written(graph: &Graph, plan: &Plan, recipe: &Recipe) -> Rewritten {
    rewrite(graph, plan, &HashMap::new(), recipe, &Dial::default())
}

fn lines(graph: &Graph) -> Vec<String> {
    let name = |v: &ValueId| graph.value(*v).name.as_str();
    let line = |n: &Node| {
        let inputs: Vec<&str> = n.inputs.iter().flatten().map(name).collect();
        format!("{} = {}({})", name(&n.outputs[0]), n.op.name(), inputs.join(", "))
    };
    graph.nodes.iter().map(line).collect()
}

fn run(graph: &Graph, x: &Tensor, integers: bool) -> Vec<Tensor> {
    let session = Session::new(graph.clone(), Options { integers, ..Options::default() }).unwrap();
    session.run(&[("x", x)]).unwrap()
}

/// Signal to noise, in dB.
fn sqnr_db(want: &Tensor, got: &Tensor) -> f64 {
    let pairs = want.to_f64().into_iter().zip(got.to_f64());
    let (signal, noise) = pairs.fold((0.0, 1e-30), |(s, n), (a, b)| (s + a * a, n + (a - b).powi(2)));
    10.0 * (signal / noise).log10()
}

#[test]
fn weights_alone_are_dequantized_before_each_node() {
    let (graph, recipe) = (perceptron(), Recipe::parse(&json!({"scheme": "weight_only"})).unwrap());
    let plan = weight_only::plan(&graph, &recipe, &Kept::new()).unwrap();
    let result = written(&graph, &plan, &recipe);
    let want = [
        "w_d = DequantizeLinear(w_q, w_s, w_z)",
        "h = MatMul(x, w_d)",
        "r = Relu(h)",
        "v_d = DequantizeLinear(v_q, v_s, v_z)",
        "y = Gemm(r, v_d, b)",
        "u_d = DequantizeLinear(u_q, u_s, u_z)",
        "z = MatMul(x, u_d)",
    ];
    assert_eq!(lines(&result.graph), want);
    assert_eq!(result.layers.len(), 3);
    let x = Tensor::from_slice(&[5, 24], &numbers(120, 9));
    let session = Session::new(result.graph.clone(), Options::default()).unwrap();
    let steps = session.steps(&[vec![5, 24]]).unwrap();
    assert!(
        steps.iter().all(|s| s.op != "DequantizeLinear"),
        "reals are made once, when the model is loaded"
    );
    for (want, got) in run(&graph, &x, true).iter().zip(session.run(&[("x", &x)]).unwrap()) {
        assert!(sqnr_db(want, &got) > 38.0, "{}", sqnr_db(want, &got));
    }
}

#[test]
fn what_the_recipe_keeps_has_no_codes() {
    let graph = perceptron();
    for scheme in ["weight_only", "dynamic"] {
        let recipe = Recipe::parse(&json!({"scheme": scheme, "keep_float": ["first", "other"]})).unwrap();
        let plan = match scheme {
            "dynamic" => dynamic::plan(&graph, &recipe, &Kept::new()).unwrap(),
            _ => weight_only::plan(&graph, &recipe, &Kept::new()).unwrap(),
        };
        let result = written(&graph, &plan, &recipe);
        assert!(lines(&result.graph).contains(&"h = MatMul(x, w)".to_owned()), "{scheme}");
        assert_eq!(result.layers.len(), 1, "{scheme}");
        let wrong = Recipe::parse(&json!({"scheme": scheme, "keep_float": ["nobody"]})).unwrap();
        assert!(
            weight_only::plan(&graph, &wrong, &Kept::new()).is_err()
                && dynamic::plan(&graph, &wrong, &Kept::new()).is_err()
        );
    }
}

#[test]
fn dynamic_rows_are_two_steps_and_keep_their_bits() {
    let (graph, recipe) = (perceptron(), Recipe::parse(&json!({"scheme": "dynamic"})).unwrap());
    let plan = dynamic::plan(&graph, &recipe, &Kept::new()).unwrap();
    let result = written(&graph, &plan, &recipe);
    let session = Session::new(result.graph.clone(), Options::default()).unwrap();
    let steps: Vec<String> = session.steps(&[vec![5, 24]]).unwrap().into_iter().map(|s| s.op).collect();
    // The Relu and the bias are done by the products; both products of `x` share its codes.
    assert_eq!(steps, ["RowCodes", "RowProduct", "RowCodes", "RowProduct", "RowProduct"]);
    let mut data = numbers(7 * 24, 9);
    // Rows of zeros, of one sign, and of another size.
    data[..24].fill(0.0);
    data[24..48].iter_mut().for_each(|x| *x = x.abs() * 1e-6);
    data[48..72].iter_mut().for_each(|x| *x *= 3e4);
    let x = Tensor::from_slice(&[7, 24], &data);
    let (fast, float) = (run(&result.graph, &x, true), run(&graph, &x, true));
    let one = Tensor::from_slice(&[1, 24], &data[72..96]);
    let alone = run(&result.graph, &one, true);
    for (n, (want, got)) in float.iter().zip(&fast).enumerate() {
        let width = want.shape()[1];
        let row = |t: &Tensor, row: usize| {
            Tensor::from_slice(&[1, width], &t.slice::<f32>()[row * width..][..width])
        };
        for r in 1..7 {
            assert!(sqnr_db(&row(want, r), &row(got, r)) > 34.0, "row {r} of output {n}");
        }
        assert_eq!(row(got, 3), alone[n], "a row does not depend on the others");
    }
}

#[test]
fn dynamic_products_have_no_larger_codes_than_the_dial_says() {
    let (graph, recipe) = (perceptron(), Recipe::parse(&json!({"scheme": "dynamic"})).unwrap());
    let plan = dynamic::plan(&graph, &recipe, &Kept::new()).unwrap();
    let layers = dial::layers(&graph, &plan);
    assert_eq!(layers.len(), 3);
    let dial = Dial::fixed(&layers[..2], 64);
    let result = rewrite(&graph, &plan, &HashMap::new(), &recipe, &dial);
    for (layer, most) in result.layers.iter().zip([64, 64, 127]) {
        assert_eq!(layer.weights.as_ref().unwrap().max_code, most, "{}", layer.node);
        let name = &layer.constants.as_ref().unwrap().codes;
        let codes = result.graph.values.iter().find(|value| value.name == *name).unwrap();
        let codes = codes.constant.as_ref().unwrap();
        let largest = codes.slice::<i8>().iter().map(|code| code.unsigned_abs()).max().unwrap();
        assert_eq!(largest, most, "{name}");
    }
}

#[test]
fn sixteen_bits_stand_around_the_nodes_that_are_named() {
    let graph = perceptron();
    let recipe = Recipe::parse(&json!({"scheme": "static", "sixteen_bit": ["first"]})).unwrap();
    let mut plan = plan::plan(&graph, &recipe).unwrap();
    let names: Vec<&str> = plan.sixteen.keys().map(|id| graph.value(*id).name.as_str()).collect();
    assert_eq!(names, ["x", "h"]);
    for params in plan.sixteen.values_mut() {
        *params = QuantParams::from_range(Codes::U16, -16.0, 16.0);
    }
    let params = plan.coded.iter().map(|c| (c.root, QuantParams::per_tensor(0.1, 128, DType::U8))).collect();
    let result = rewrite(&graph, &plan, &params, &recipe, &Dial::default());
    let lines = lines(&result.graph);
    for want in [
        "x_x = DequantizeLinear(x_q1, x_s1, x_z1)",
        "h_f = MatMul(x_x, w_d)",
        "h_q = QuantizeLinear(h_f, h_s, h_z)",
        "h = DequantizeLinear(h_q, h_s, h_z)",
        "z = MatMul(x_d, u_d)",
    ] {
        assert!(lines.iter().any(|l| l == want), "{want}\n{lines:#?}");
    }
    let x = Tensor::from_slice(&[5, 24], &numbers(120, 9));
    assert_eq!(run(&result.graph, &x, true).len(), 2);
    let dynamic = Recipe::parse(&json!({"scheme": "dynamic", "sixteen_bit": ["first"]}));
    assert!(dynamic.unwrap_err().to_string().contains("only the static scheme"));
}

#[test]
fn float16_has_casts_at_the_boundary_and_around_what_stays() {
    let graph = perceptron();
    let recipe = Recipe::parse(&json!({"scheme": "float16", "keep_float": ["relu"]})).unwrap();
    let seen = |largest: f32| -> HashMap<String, Seen> {
        let names =
            ["x", "h", "r", "y", "z"].map(|n| (n.to_owned(), Seen { dtype: DType::F32, largest: 9.0 }));
        let mut all = HashMap::from(names);
        all.insert("z".to_owned(), Seen { dtype: DType::F32, largest });
        all
    };
    let (_, result) = float16::rewrite(&graph, &recipe, &seen(9.0)).unwrap();
    let want = [
        "x_h = Cast(x)",
        "h_h = MatMul(x_h, w_h)",
        "h = Cast(h_h)",
        "r = Relu(h)",
        "r_h = Cast(r)",
        "y_h = Gemm(r_h, v_h, b_h)",
        "y = Cast(y_h)",
        "z_h = MatMul(x_h, u_h)",
        "z = Cast(z_h)",
    ];
    assert_eq!(lines(&result.graph), want);
    let x = Tensor::from_slice(&[5, 24], &numbers(120, 9));
    for (want, got) in run(&graph, &x, true).iter().zip(run(&result.graph, &x, true)) {
        assert!(got.dtype() == DType::F32 && sqnr_db(want, &got) > 55.0);
    }
    // What does not fit stays as it is.
    let (_, result) = float16::rewrite(&graph, &recipe, &seen(50_000.0)).unwrap();
    assert!(lines(&result.graph).contains(&"z = MatMul(x, u)".to_owned()));
}

#[test]
fn a_table_is_stored_whatever_the_scheme() {
    let mut g = Graph::default();
    let [i, a, y] = ["i", "a", "y"].map(|n| g.add_value(Value { name: n.to_owned(), ..Value::default() }));
    g.value_mut(i).dtype = Some(DType::I64);
    let table = constant(&mut g, "t", &[512, 16], 1);
    let w = constant(&mut g, "w", &[8, 16, 1, 1], 2);
    g.nodes.push(Node::new("look".to_owned(), Op::Gather { axis: 0 }, vec![Some(table), Some(i)], vec![a]));
    let conv = Op::Conv { sliding: Sliding::default(), groups: 1 };
    g.nodes.push(Node::new("conv".to_owned(), conv, vec![Some(a), Some(w)], vec![y]));
    (g.inputs, g.outputs) = (vec![i], vec![y]);
    for scheme in ["weight_only", "dynamic"] {
        let recipe = Recipe::parse(&json!({"scheme": scheme})).unwrap();
        let plan = match scheme {
            "dynamic" => dynamic::plan(&g, &recipe, &Kept::new()).unwrap(),
            _ => weight_only::plan(&g, &recipe, &Kept::new()).unwrap(),
        };
        let want = [
            "a_r = Gather(t_q, i)",
            "a_c = Cast(a_r)",
            "a_s = Gather(t_s, i)",
            "a = Mul(a_c, a_s)",
            "w_d = DequantizeLinear(w_q, w_s, w_z)",
            "y = Conv(a, w_d)",
        ];
        assert_eq!(lines(&written(&g, &plan, &recipe).graph), want, "{scheme}");
    }
}
