//! Jobs that scale channels: the order of samples and the number of threads leave no trace, and statistics of an earlier
//! job are used for the values that they are of.

use std::path::PathBuf;

use octet::engine::graph::op::{Op, Unary};
use octet::engine::graph::{Dim, Graph, Node, Value, ValueId};
use octet::engine::onnx::export;
use octet::engine::pipeline::{self, Error, Named, Outcome, Request};
use octet::engine::tensor::{DType, Tensor};
use serde_json::{Value as Json, json};

use crate::support::{Silent, files};

/// Numbers that look random, about -1 to 1.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// `x [batch, 6, 16] → LayerNormalization → MatMul → Relu → MatMul → y`: two channels of the first are large, and those
/// between the products are unlike.
fn model() -> Vec<u8> {
    let mut g = Graph { name: "block".to_owned(), ..Graph::default() };
    let value = |g: &mut Graph, name: &str, width: usize| -> ValueId {
        let dims = vec![Dim::Symbol("batch".to_owned()), Dim::Known(6), Dim::Known(width)];
        let value =
            Value { name: name.to_owned(), dtype: Some(DType::F32), dims: Some(dims), ..Value::default() };
        g.add_value(value)
    };
    let [x, n] = ["x", "n"].map(|name| value(&mut g, name, 16));
    let [h, r] = ["h", "r"].map(|name| value(&mut g, name, 12));
    let y = value(&mut g, "y", 5);
    let gamma: Vec<f32> = (0..16).map(|i| if i % 9 == 4 { 50.0 } else { 1.0 }).collect();
    let gamma = g.add_constant("gamma", Tensor::from_slice(&[16], &gamma));
    let beta = g.add_constant("beta", Tensor::from_slice(&[16], &numbers(16, 1)));
    let first: Vec<f32> =
        numbers(192, 2).iter().enumerate().map(|(i, w)| w * [1.0, 0.05, 8.0][i % 12 % 3]).collect();
    let first = g.add_constant("first", Tensor::from_slice(&[16, 12], &first));
    let second = g.add_constant("second", Tensor::from_slice(&[12, 5], &numbers(60, 3)));
    for (name, op, inputs, output) in [
        ("norm", Op::LayerNorm { axis: -1, epsilon: 1e-5 }, vec![x, gamma, beta], n),
        ("into", Op::MatMul, vec![n, first], h),
        ("relu", Op::Unary(Unary::Relu), vec![h], r),
        ("out", Op::MatMul, vec![r, second], y),
    ] {
        g.nodes.push(Node::new(name.to_owned(), op, inputs.into_iter().map(Some).collect(), vec![output]));
    }
    (g.inputs, g.outputs) = (vec![x], vec![y]);
    export::export(&g, &[])
}

/// A model and its samples in a folder that goes with them.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        let files = Files { folder: tempfile::tempdir().unwrap() };
        std::fs::write(files.path("model.onnx"), model()).unwrap();
        let samples: Vec<Vec<f32>> = (0..24).map(|i| numbers(96, 50 + i)).collect();
        let mut turned = samples.clone();
        turned.rotate_left(7);
        turned.swap(2, 13);
        for (name, samples) in [("data.npz", samples), ("turned.npz", turned)] {
            let x = Tensor::from_slice(&[24, 6, 16], &samples.concat());
            std::fs::write(files.path(name), files::npz(&[("x", x)])).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn job(&self, data: &str, statistics: bool, recipe: &Json, threads: usize) -> Result<Outcome, Error> {
        let (model, data, known) = (self.path("model.onnx"), self.path(data), self.path("statistics"));
        let request = Request {
            model: &model,
            calibration: (!statistics).then_some(&data),
            statistics: statistics.then_some(&known),
            evaluation: Some(&data),
            recipe,
            threads,
            named: Named::default(),
            beside: false,
        };
        pipeline::job::quantize(&request, &Silent)
    }

    /// Keeps the statistics of a job for those that follow.
    fn keep(&self, outcome: &Outcome) {
        std::fs::write(self.path("statistics"), &outcome.statistics).unwrap();
    }
}

fn notes(outcome: &Outcome) -> String {
    outcome.report["notes"].to_string()
}

#[test]
fn what_is_scaled_depends_on_the_samples_as_a_set() {
    let files = Files::new();
    for recipe in [json!({}), json!({"scheme": "static", "equalize": true, "smooth": {"alpha": 0.5}})] {
        let first = files.job("data.npz", false, &recipe, 1).unwrap();
        assert!(notes(&first).contains("smooth: spread moved to the weights at `n`"), "{}", notes(&first));
        for (data, threads) in [("data.npz", 2), ("turned.npz", 1)] {
            let other = files.job(data, false, &recipe, threads).unwrap();
            assert!(first.artifact == other.artifact, "{recipe}: {data}, {threads} threads");
            assert!(first.statistics == other.statistics, "{recipe}: {data}, {threads} threads");
        }
    }
}

#[test]
fn smoothing_gains_against_the_model_as_it_came() {
    let files = Files::new();
    for (scheme, gain) in [("auto", 2.0), ("dynamic", 2.0)] {
        let db = |smooth: &str| {
            let recipe = json!({"scheme": scheme, "smooth": smooth});
            files.job("data.npz", false, &recipe, 1).unwrap().accuracy.sqnr_db
        };
        let (off, auto) = (db("off"), db("auto"));
        assert!(auto > off + gain, "{scheme}: {off} dB, then {auto} dB");
    }
}

#[test]
fn statistics_serve_the_values_that_they_are_of() {
    let files = Files::new();
    let plain = files.job("data.npz", false, &json!({}), 1).unwrap();
    files.keep(&plain);
    let later = files.job("data.npz", true, &json!({}), 1).unwrap();
    assert!(!notes(&later).contains("smooth: "), "{}", notes(&later));
    let says = |recipe: Json| files.job("data.npz", true, &recipe, 1).unwrap_err().to_string();
    assert!(says(json!({"smooth": {"alpha": 0.5}})).contains("`smooth`: what it scales was not calibrated"));
    let static_ = json!({"scheme": "static", "equalize": true});
    assert!(says(static_.clone()).contains("`r.equalized`: calibrate again"), "{}", says(static_.clone()));

    let equalized = files.job("data.npz", false, &static_, 1).unwrap();
    assert!(notes(&equalized).contains("equalize: channels are made alike at 1: r"), "{}", notes(&equalized));
    files.keep(&equalized);
    for recipe in [static_, json!({"scheme": "static"}), json!({})] {
        files.job("data.npz", true, &recipe, 1).unwrap();
    }
}
