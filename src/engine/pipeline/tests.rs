//! Whole jobs on a small model: what a recipe makes, and whether a dry run foresaw it.

use std::path::Path;

use serde_json::{Value as Json, json};
use tempfile::NamedTempFile;

use super::dry_run::{DryRun, dry_run};
use super::{Error, Named, Outcome, Phase, Progress, Request, job};
use crate::engine::artifact;
use crate::engine::exec::integers::forms;
use crate::engine::graph::op::{Op, Sliding, Unary};
use crate::engine::graph::passes::casts::tests::named;
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::onnx::import::import;
use crate::engine::tensor::{DType, Tensor, dataset};

/// A caller that waits.
struct Patient;

impl Progress for Patient {
    fn update(&self, _: Phase, _: u64, _: u64) {}

    fn cancelled(&self) -> bool {
        false
    }

    fn seconds(&self) -> f64 {
        0.0
    }
}

/// Numbers that look random, `-size` to `size`, more of them near zero.
fn numbers(count: usize, seed: u32, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut one = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| size * one() * one()).collect()
}

/// A model `x [batch, 1, 8, 8] → conv → relu → wide → clamp → flat → gemm → y [batch, 10]`, and samples of it. Those of the
/// evaluation reach half as far again as those of the calibration.
struct Files {
    model: NamedTempFile,
    calibration: NamedTempFile,
    evaluation: NamedTempFile,
}

impl Files {
    fn new() -> Files {
        Files::with(Op::Unary(Unary::Relu))
    }

    /// With another function behind the first convolution.
    fn with(function: Op) -> Files {
        let mut g = Graph { opset: 17, ..Graph::default() };
        let [x, c, r, w, s, f, y] = ["x", "c", "r", "w", "s", "f", "y"].map(|name| {
            g.add_value(Value { name: name.to_owned(), dtype: Some(DType::F32), ..Value::default() })
        });
        let batch = || Dim::Symbol("batch".to_owned());
        g.value_mut(x).dims = Some(vec![batch(), Dim::Known(1), Dim::Known(8), Dim::Known(8)]);
        g.value_mut(y).dims = Some(vec![batch(), Dim::Known(10)]);
        let mut constant = |name: &str, shape: &[usize], seed, size| {
            let data = numbers(shape.iter().product(), seed, size);
            g.add_constant(name, Tensor::from_slice(shape, &data))
        };
        let (k1, b1) = (constant("k1", &[8, 1, 3, 3], 1, 0.6), constant("b1", &[8], 2, 0.1));
        let (k2, b2) = (constant("k2", &[16, 8, 3, 3], 3, 0.3), constant("b2", &[16], 4, 0.1));
        let (k3, b3) = (constant("k3", &[1024, 10], 5, 0.1), constant("b3", &[10], 6, 0.1));
        let conv = || {
            let sliding = Sliding { pads: vec![1; 4], ..Sliding::default() };
            Op::Conv { sliding, groups: 1 }
        };
        let gemm = Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false };
        let nodes: [(&str, Op, &[ValueId], ValueId); 6] = [
            ("conv", conv(), &[x, k1, b1], c),
            ("relu", function, &[c], r),
            ("wide", conv(), &[r, k2, b2], w),
            ("clamp", Op::Unary(Unary::Relu), &[w], s),
            ("flat", Op::Flatten { axis: 1 }, &[s], f),
            ("gemm", gemm, &[f, k3, b3], y),
        ];
        for (name, op, inputs, output) in nodes {
            let inputs = inputs.iter().map(|&id| Some(id)).collect();
            g.nodes.push(Node::new(name.to_owned(), op, inputs, vec![output]));
        }
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        let file = |bytes: &[u8]| {
            let file = NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            file
        };
        let samples = |seed, size| {
            let x = Tensor::from_slice(&[96, 1, 8, 8], &numbers(96 * 64, seed, size));
            dataset::tests::file(&[("x", &x)])
        };
        Files {
            model: file(&artifact::write(&g, &Json::Null)),
            calibration: samples(7, 1.0),
            evaluation: samples(8, 1.5),
        }
    }

    fn request<'a>(&'a self, recipe: &'a Json, data: Option<&'a Path>) -> Request<'a> {
        Request {
            model: self.model.path(),
            calibration: data,
            statistics: None,
            evaluation: data.map(|_| self.evaluation.path()),
            recipe,
            threads: 1,
            beside: false,
            named: Named::default(),
        }
    }

    fn job(&self, recipe: &Json) -> Outcome {
        job::quantize(&self.request(recipe, Some(self.calibration.path())), &Patient).unwrap()
    }

    fn dry_run(&self, recipe: &Json) -> Result<DryRun, Error> {
        dry_run(&self.request(recipe, None), u64::MAX)
    }
}

#[test]
fn a_dry_run_without_data_foresees_the_size_of_every_artifact() {
    let files = Files::new();
    let recipes = [
        json!({}),
        json!({"scheme": "static"}),
        json!({"scheme": "weight_only"}),
        json!({"scheme": "float16"}),
        json!({"scheme": "float16", "keep_float": ["wide"]}),
        json!({"sixteen_bit": ["*"]}),
        json!({"sixteen_bit": ["wide"]}),
        json!({"sixteen_bit": ["*"], "target": "onnxruntime"}),
        json!({"sixteen_bit": ["*"], "target": "openvino"}),
        json!({"sixteen_bit": ["gemm"], "target": "openvino"}),
    ];
    for mut recipe in recipes {
        // Whether channels are worth scaling only data tell.
        recipe["smooth"] = json!("off");
        let (told, made) = (files.dry_run(&recipe).unwrap(), files.job(&recipe));
        let (told, made) = (told.artifact_bytes, made.artifact.len() as u64);
        assert!(told.abs_diff(made) < 64, "{recipe}: {told} bytes foreseen, {made} made");
    }
}

#[test]
fn sixteen_bits_are_no_noisier_than_eight() {
    let files = Files::new();
    for target in ["octet", "onnxruntime"] {
        let eight = files.job(&json!({ "target": target }));
        let sixteen = files.job(&json!({ "target": target, "sixteen_bit": ["*"] }));
        let (eight, all) = (eight.accuracy.sqnr_db, sixteen.accuracy.sqnr_db);
        assert!(all >= eight, "{target}: {eight} dB in 8 bits, {all} dB in 16");
        // Each value has its row, and nothing of it was cut off.
        let rows = sixteen.report["activations"].as_array().unwrap();
        let names: Vec<&str> = rows.iter().filter_map(|row| row["value"].as_str()).collect();
        assert!(["x", "c", "r", "y"].iter().all(|name| names.contains(name)), "{names:?}");
        assert!(rows.iter().all(|row| row["bits"] == 16 && row["clipped"] == 0.0), "{rows:?}");
    }
}

#[test]
fn a_search_that_keeps_half_in_integers_says_so() {
    let files = Files::new();
    let made = files.job(&json!({"gate": {"min_sqnr_db": 90}, "search": {"trials": 6}}));
    let why = made.gate_failure.unwrap();
    assert!(why.contains("less than min_sqnr_db 90; with 3 layers in float the figures would be"), "{why}");
    assert!(why.contains("a search keeps at least 50 % there"), "{why}");
    let trials = made.report["trials"].as_array().unwrap();
    let refused: Vec<&Json> = trials.iter().filter(|t| !t["refused"].is_null()).collect();
    assert!(!refused.is_empty() && refused.iter().all(|t| t["passes"] == false), "{trials:#?}");
    assert!(made.report_html.contains("too few integers"));
}

#[test]
fn every_function_of_one_value_is_a_table() {
    for name in ["Celu", "Selu", "Softsign", "Shrink", "Atan"] {
        let files = Files::with(Op::Other(named(name)));
        let [made, kept] = [json!({}), json!({"keep_float": ["relu"]})].map(|recipe| files.job(&recipe));
        let float = made.report["float_nodes"].as_array().unwrap();
        assert!(float.is_empty(), "{name}: {float:?}");
        let forms = forms(import(&made.artifact).unwrap());
        assert!(forms.iter().any(|form| form.op == "QTable"), "{name}: {forms:?}");
        let (made, kept) = (made.accuracy.sqnr_db, kept.accuracy.sqnr_db);
        assert!(made > kept - 2.0, "{name}: {made} dB, computed in float {kept} dB");
    }
}

#[test]
fn what_computes_in_float16_is_not_called_int8() {
    let made = Files::new().job(&json!({"scheme": "float16"}));
    assert!(made.report_html.contains("in float16</h1>") && !made.report_html.contains("INT8"));
}
