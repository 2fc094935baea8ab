//! Blocks with outliers and without: what is smoothed, and what it gains.

use std::collections::HashMap;

use serde_json::json;

use super::Recipe;
use super::smooth::{Asked, Smoothed, places, smooth};
use crate::engine::exec::Options;
use crate::engine::exec::session::Session;
use crate::engine::graph::op::{Binary, Op};
use crate::engine::graph::{Dim, Graph, Node, Value};
use crate::engine::quant::dial::Dial;
use crate::engine::quant::equalize::tests::numbers;
use crate::engine::quant::plan;
use crate::engine::quant::rewrite::rewrite;
use crate::engine::quant::samples::Feeds;
use crate::engine::tensor::{DType, Tensor};

/// `x [rows, 24] → LayerNorm → two products`, with some channels `outlier` times as large as the others.
fn block(outlier: f32) -> Graph {
    let mut g = Graph { opset: 17, ..Graph::default() };
    let names = ["x", "n", "q", "k"];
    let [x, n, q, k] = names.map(|name| {
        g.add_value(Value { name: name.to_owned(), dtype: Some(DType::F32), ..Value::default() })
    });
    g.value_mut(x).dims = Some(vec![Dim::Symbol("rows".to_owned()), Dim::Known(24)]);
    let gamma: Vec<f32> = (0..24).map(|i| if i % 11 == 3 { outlier } else { 1.0 }).collect();
    let gamma = g.add_constant("gamma", Tensor::from_slice(&[24], &gamma));
    let beta = g.add_constant("beta", Tensor::from_slice(&[24], &numbers(24, 9)));
    let wq = g.add_constant("wq", Tensor::from_slice(&[24, 40], &numbers(960, 1)));
    let wk = g.add_constant("wk", Tensor::from_slice(&[16, 24], &numbers(384, 2)));
    let gemm = Op::Gemm { alpha: 0.5, beta: 1.0, trans_a: false, trans_b: true };
    for (name, op, inputs, output) in [
        ("norm", Op::LayerNorm { axis: -1, epsilon: 1e-5 }, vec![x, gamma, beta], n),
        ("query", Op::MatMul, vec![n, wq], q),
        ("key", gemm, vec![n, wk], k),
    ] {
        g.nodes.push(Node::new(name.to_owned(), op, inputs.into_iter().map(Some).collect(), vec![output]));
    }
    (g.inputs, g.outputs) = (vec![x], vec![q, k]);
    g
}

fn batches(count: usize) -> Vec<Feeds> {
    let batch = |i| vec![("x".to_owned(), Tensor::from_slice(&[32, 24], &numbers(768, 100 + i)))];
    (0..count).map(batch).collect()
}

fn recipe(scheme: &str, smooth: serde_json::Value) -> Recipe {
    Recipe::parse(&json!({"scheme": scheme, "smooth": smooth})).unwrap()
}

fn smoothed(graph: &Graph, recipe: &Recipe, threads: usize) -> (Graph, Smoothed) {
    let mut out = graph.clone();
    let plan = plan::plan(graph, recipe).unwrap();
    let float = Session::new(graph.clone(), Options { threads, ..Options::default() }).unwrap();
    let batches = batches(8);
    let asked = Asked { plan: &plan, recipe, float: &float, batches: &batches };
    let places = places(graph, &plan, recipe);
    let done = smooth(&mut out, &places, asked).unwrap();
    (out, done)
}

fn run(graph: &Graph) -> Vec<Tensor> {
    let session = Session::new(graph.clone(), Options::default()).unwrap();
    session.run(&[("x", &Tensor::from_slice(&[32, 24], &numbers(768, 5)))]).unwrap()
}

/// The least signal to noise of the results, in dB.
fn db(want: &[Tensor], got: &[Tensor]) -> f64 {
    let one = |(a, b): (&Tensor, &Tensor)| {
        let pairs = a.to_f64().into_iter().zip(b.to_f64());
        let (s, n) = pairs.fold((0.0, 1e-30), |(s, n), (a, b)| (s + a * a, n + (a - b).powi(2)));
        10.0 * (s / n).log10()
    };
    want.iter().zip(got).map(one).fold(f64::INFINITY, f64::min)
}

#[test]
fn outliers_move_to_the_weights_and_products_by_rows_gain() {
    let graph = block(60.0);
    let recipe = recipe("auto", json!("auto"));
    let (moved, done) = smoothed(&graph, &recipe, 1);
    assert_eq!(done.scaled.len(), 1, "{:?}", done.notes);
    assert!(done.notes[0].contains("`n` (alpha 0."), "{:?}", done.notes);
    let want = run(&graph);
    assert!(db(&want, &run(&moved)) > 100.0, "the float function stays");
    let written = |graph: &Graph| {
        let plan = plan::plan(graph, &recipe).unwrap();
        run(&rewrite(graph, &plan, &HashMap::new(), &recipe, &Dial::default()).graph)
    };
    let (before, after) = (db(&want, &written(&graph)), db(&want, &written(&moved)));
    assert!(after > before + 3.0, "{before} dB, then {after} dB");
}

#[test]
fn auto_leaves_alone_what_has_no_outliers() {
    for scheme in ["auto", "static", "dynamic"] {
        let graph = block(1.0);
        let (same, done) = smoothed(&graph, &recipe(scheme, json!("auto")), 1);
        assert!(done.scaled.is_empty() && done.notes.is_empty(), "{scheme}: {:?}", done.notes);
        for (a, b) in graph.values.iter().zip(&same.values) {
            assert_eq!(a.name, b.name);
            let bytes = |v: &Value| v.constant.as_ref().map(|t| t.view().bytes.to_vec());
            assert_eq!(bytes(a), bytes(b), "{}", a.name);
        }
    }
}

#[test]
fn auto_leaves_alone_what_a_product_makes_for_one_range() {
    let mut graph = block(1.0);
    let up = graph.add_constant("up", Tensor::from_slice(&[24, 24], &numbers(576, 4)));
    let rows = graph.nodes[0].inputs[0];
    graph.nodes[0] =
        Node::new("up".to_owned(), Op::MatMul, vec![rows, Some(up)], graph.nodes[0].outputs.clone());
    for (smooth, want) in [(json!("auto"), 0), (json!({"alpha": 0.5}), 1)] {
        let recipe = recipe("static", smooth);
        let plan = plan::plan(&graph, &recipe).unwrap();
        assert_eq!(places(&graph, &plan, &recipe).len(), want);
    }
    let recipe = recipe("static", json!("auto"));
    let normalized = block(1.0);
    assert_eq!(places(&normalized, &plan::plan(&normalized, &recipe).unwrap(), &recipe).len(), 1);
}

#[test]
fn a_number_is_taken_at_its_word_in_every_scheme() {
    for scheme in ["auto", "static", "dynamic", "weight_only"] {
        for (outlier, alpha) in [(1.0, 0.3), (60.0, 0.5), (60.0, 1.0)] {
            let graph = block(outlier);
            let (moved, done) = smoothed(&graph, &recipe(scheme, json!({"alpha": alpha})), 1);
            assert_eq!(done.scaled.len(), 1, "{scheme} {alpha}");
            assert!(db(&run(&graph), &run(&moved)) > 100.0, "{scheme} {alpha}");
        }
    }
    let (_, done) = smoothed(&block(60.0), &recipe("auto", json!("off")), 1);
    assert!(done.scaled.is_empty());
}

#[test]
fn static_ranges_gain_too() {
    let (_, done) = smoothed(&block(60.0), &recipe("static", json!("auto")), 1);
    assert_eq!(done.scaled.len(), 1, "{:?}", done.notes);
}

#[test]
fn threads_leave_no_trace() {
    let recipe = recipe("auto", json!("auto"));
    let factors = |threads| smoothed(&block(60.0), &recipe, threads).1.scaled[0].factors.clone();
    assert_eq!(factors(1).slice::<f32>(), factors(2).slice::<f32>());
}

#[test]
fn an_activation_that_something_else_reads_stays() {
    let mut graph = block(60.0);
    let n = graph.nodes[0].outputs[0];
    let sum = graph.add_value(Value { name: "sum".to_owned(), ..Value::default() });
    let inputs = vec![Some(n), Some(graph.inputs[0])];
    graph.nodes.push(Node::new("skip".to_owned(), Op::Binary(Binary::Add), inputs, vec![sum]));
    graph.outputs.push(sum);
    let (_, done) = smoothed(&graph, &recipe("auto", json!({"alpha": 0.5})), 1);
    assert!(done.scaled.is_empty());
    assert_eq!(done.notes, ["smooth: no activation could be smoothed"]);
}

#[test]
fn constants_of_every_form_take_the_factors() {
    // Mul and Add by constants, a product with a bias, a scalar factor.
    let mut g = block(1.0);
    let names = ["t", "u", "v", "w", "y"];
    let [t, u, v, w, y] = names.map(|name| {
        g.add_value(Value { name: name.to_owned(), dtype: Some(DType::F32), ..Value::default() })
    });
    let gamma = g.add_constant("g2", Tensor::from_slice(&[1, 24], &numbers(24, 3)));
    let shift = g.add_constant("b2", Tensor::scalar(0.7f32));
    let matrix = g.add_constant("m2", Tensor::from_slice(&[24, 12], &numbers(288, 4)));
    let bias = g.add_constant("c2", Tensor::from_slice(&[12], &numbers(12, 6)));
    let last = g.add_constant("m3", Tensor::from_slice(&[12, 5], &numbers(60, 7)));
    let x = g.inputs[0];
    for (name, op, inputs, output) in [
        ("mul", Op::Binary(Binary::Mul), vec![x, gamma], t),
        ("shift", Op::Binary(Binary::Add), vec![shift, t], u),
        ("first", Op::MatMul, vec![u, matrix], v),
        ("bias", Op::Binary(Binary::Add), vec![v, bias], w),
        ("last", Op::MatMul, vec![w, last], y),
    ] {
        g.nodes.push(Node::new(name.to_owned(), op, inputs.into_iter().map(Some).collect(), vec![output]));
    }
    g.outputs.push(y);
    let (moved, done) = smoothed(&g, &recipe("dynamic", json!({"alpha": 0.5})), 1);
    let names: Vec<&str> = done.scaled.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["n.smoothed", "u.smoothed", "t.smoothed", "w.smoothed", "v.smoothed"]);
    assert!(db(&run(&g), &run(&moved)) > 100.0, "{}", db(&run(&g), &run(&moved)));
}
