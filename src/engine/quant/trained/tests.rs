//! A small network of convolutions as training with quantization in mind leaves it, whole and with a layer in float.

use std::collections::{HashMap, HashSet};

use serde_json::json;

use super::reference::without_quantization;
use super::roles::{Role, Trained};
use crate::engine::exec::Options;
use crate::engine::exec::fold::{fold_constants, fold_quantized};
use crate::engine::exec::session::Session;
use crate::engine::graph::attributes::{Attribute, Attributes};
use crate::engine::graph::op::{Op, Sliding, Unary};
use crate::engine::graph::operator::Other;
use crate::engine::graph::passes::casts::tests::named;
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::quant::Recipe;
use crate::engine::quant::dial::Dial;
use crate::engine::quant::plan::{Decision, Kept};
use crate::engine::quant::rewrite::rewrite;
use crate::engine::quant::schemes::any;
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor};

/// Numbers that look random, about -1 to 1.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// A graph that grows node by node; a result has the name of its node.
struct Builder {
    graph: Graph,
}

impl Builder {
    fn new() -> Builder {
        let mut graph = Graph { opset: 17, ..Graph::default() };
        let dims = Some([Dim::Symbol("n".to_owned()), Dim::Known(4), Dim::Known(6), Dim::Known(6)].to_vec());
        let x = Value { name: "x".to_owned(), dtype: Some(DType::F32), dims, ..Value::default() };
        let x = graph.add_value(x);
        graph.inputs = vec![x];
        Builder { graph }
    }

    fn node(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        let output = self.graph.add_value(Value { name: name.to_owned(), ..Value::default() });
        let inputs = inputs.iter().map(|&v| Some(v)).collect();
        self.graph.nodes.push(Node::new(name.to_owned(), op, inputs, vec![output]));
        output
    }

    /// `x` through codes and back.
    fn pair(&mut self, x: ValueId, scale: f32, zero: Tensor) -> ValueId {
        let name = self.graph.value(x).name.clone();
        let scale = self.graph.add_constant(&format!("{name}.scale"), Tensor::scalar(scale));
        let zero = self.graph.add_constant(&format!("{name}.zero"), zero);
        let codes = self.node(&format!("{name}.q"), Op::QuantizeLinear { axis: 1 }, &[x, scale, zero]);
        self.node(&format!("{name}.d"), Op::DequantizeLinear { axis: 1 }, &[codes, scale, zero])
    }

    /// Weights `[4, 4, 3, 3]`, through codes with a scale a channel where they were `trained`.
    fn weights(&mut self, name: &str, seed: usize, trained: bool) -> ValueId {
        let reals = Tensor::from_slice(&[4, 4, 3, 3], &numbers(144, seed));
        let reals = self.graph.add_constant(name, reals);
        if !trained {
            return reals;
        }
        let scales = Tensor::from_slice(&[4], &[0.01f32, 0.008, 0.0072, 0.012]);
        let scale = self.graph.add_constant(&format!("{name}.scale"), scales);
        let zero = self.graph.add_constant(&format!("{name}.zero"), Tensor::zeros(DType::I8, &[4]));
        let codes = self.node(&format!("{name}.q"), Op::QuantizeLinear { axis: 0 }, &[reals, scale, zero]);
        // As PyTorch exports them: it trains with one code less.
        let bounds = [-127i8, 127].map(Tensor::scalar);
        let [lo, hi] = bounds.map(|bound| {
            let name = self.graph.unused_name(&format!("{name}.bound"));
            self.graph.add_constant(&name, bound)
        });
        let codes = self.node(&format!("{name}.c"), Op::Clip, &[codes, lo, hi]);
        self.node(&format!("{name}.d"), Op::DequantizeLinear { axis: 0 }, &[codes, scale, zero])
    }

    fn conv(&mut self, name: &str, x: ValueId, seed: usize, trained: bool) -> ValueId {
        let w = self.weights(&format!("{name}.w"), seed, trained);
        let b = Tensor::from_slice(&[4], &numbers(4, seed + 1));
        let b = self.graph.add_constant(&format!("{name}.b"), b);
        let sliding = Sliding { pads: vec![1; 4], kernel: vec![3, 3], ..Sliding::default() };
        let sliding = Sliding { strides: vec![1, 1], dilations: vec![1, 1], ..sliding };
        self.node(name, Op::Conv { sliding, groups: 1 }, &[x, w, b])
    }
}

/// `x → [a → Relu] → [b] → [c] → y`, in brackets what is between codes; `b` is in float where it was `left`. The Relu
/// behind `b` is not there: the codes of its result begin at zero.
fn network(left: bool) -> Graph {
    let mut g = Builder::new();
    let x = g.graph.inputs[0];
    let x = g.pair(x, 0.0081, Tensor::scalar(126u8));
    let a = g.conv("a", x, 1, true);
    let a = g.node("a.relu", Op::Unary(Unary::Relu), &[a]);
    let a = g.pair(a, 0.021, Tensor::scalar(0u8));
    let b = g.conv("b", a, 11, !left);
    let b = g.pair(b, 0.05, Tensor::scalar(0u8));
    let c = g.conv("c", b, 21, true);
    g.graph.outputs = vec![g.pair(c, 0.1, Tensor::scalar(120u8))];
    g.graph
}

fn fold(graph: &mut Graph) {
    fold_quantized(graph);
    fold_constants(graph);
}

fn samples() -> Tensor {
    Tensor::from_slice(&[2, 4, 6, 6], &numbers(288, 77))
}

fn run(graph: &Graph, integers: bool) -> Vec<f32> {
    let session = Session::new(graph.clone(), Options { integers, ..Options::default() }).unwrap();
    let made = session.run(&[("x", &samples())]).unwrap();
    made[0].slice::<f32>().to_vec()
}

fn role(graph: &Graph, trained: &Trained, node: &str) -> Role {
    trained.role(graph.nodes.iter().position(|n| n.name == node).unwrap())
}

fn value(graph: &Graph, name: &str) -> ValueId {
    ValueId(graph.values.iter().position(|v| v.name == name).expect(name) as u32)
}

fn recipe(complete: bool) -> Recipe {
    Recipe::parse(&json!({"complete": complete, "bias_correction": false})).unwrap()
}

#[test]
fn training_tells_what_it_quantized() {
    let graph = network(true);
    let trained = Trained::of(&graph);
    for (node, want) in [
        ("x.q", Role::Boundary),
        ("a", Role::Computes),
        ("a.relu", Role::Clamps),
        ("b", Role::Left),
        ("c", Role::Computes),
    ] {
        assert_eq!(role(&graph, &trained, node), want, "{node}");
    }
    assert_eq!(role(&network(false), &Trained::of(&network(false)), "b"), Role::Computes);
    let params = trained.params(value(&graph, "a.relu.d")).unwrap();
    assert_eq!(*params, QuantParams::per_tensor(0.021, 0, DType::U8));
    assert!(trained.goes_to_codes(value(&graph, "b")) && trained.is_dequantized(value(&graph, "b.d")));
    let mut float = Graph { outputs: graph.inputs.clone(), ..graph.clone() };
    float.nodes.clear();
    assert!(Trained::of(&float).is_empty());
}

#[test]
fn folded_weights_are_the_codes_that_a_run_would_make() {
    for left in [false, true] {
        let (graph, mut folded) = (network(left), network(left));
        assert_eq!(fold_quantized(&mut folded), if left { 2 } else { 3 });
        fold_constants(&mut folded);
        let codes = folded.constant(value(&folded, "a.w.c")).unwrap();
        assert_eq!((codes.dtype(), codes.slice::<i8>()[0]), (DType::I8, -43));
        // The narrow scale of the third channel clips: to one code less than there are.
        let least = folded.constant(value(&folded, "c.w.c")).unwrap().to_i64().into_iter().min();
        assert_eq!(least, Some(-127));
        for integers in [false, true] {
            assert_eq!(run(&graph, integers), run(&folded, integers), "left {left}, integers {integers}");
        }
    }
}

#[test]
fn a_model_is_kept_as_it_was_trained_to_the_bit() {
    for left in [false, true] {
        let mut graph = network(left);
        fold(&mut graph);
        let recipe = recipe(false);
        let plan = any::plan(&graph, &recipe, &Kept::new()).unwrap();
        assert!(plan.coded.is_empty() && plan.integer_nodes() == 0);
        let kept = rewrite(&graph, &plan, &HashMap::new(), &recipe, &Dial::default());
        let shown = |graph: &Graph| {
            let name = |v: &ValueId| graph.value(*v).name.clone();
            let names = |node: &Node| node.inputs.iter().flatten().chain(&node.outputs).map(name).collect();
            graph.nodes.iter().map(names).collect::<Vec<Vec<String>>>()
        };
        assert_eq!(shown(&kept.graph), shown(&graph));
        assert_eq!(run(&kept.graph, true), run(&network(left), true), "left {left}");
        let layers: Vec<(&str, &str)> =
            kept.layers.iter().map(|l| (l.node.as_str(), l.int8_value.as_str())).collect();
        let b = if left { &[][..] } else { &[("b", "b")] };
        assert_eq!(layers, [&[("a", "a.relu")], b, &[("c", "c")]].concat());
        let reasons = plan.decisions.iter().filter(|d| matches!(d, Decision::Float(_)));
        assert_eq!(reasons.count(), usize::from(left));
    }
}

#[test]
fn completing_adds_codes_and_changes_none() {
    let mut graph = network(true);
    fold(&mut graph);
    let recipe = recipe(true);
    let plan = any::plan(&graph, &recipe, &Kept::new()).unwrap();
    assert_eq!(plan.integer_nodes(), 1);
    // The operand of `b` is the one value that it needs, and has parameters: others are not to change them.
    let coded: Vec<&str> = plan.coded.iter().map(|c| graph.value(c.value).name.as_str()).collect();
    assert_eq!(coded, ["a.relu.d"]);
    let root = plan.coded[0].root;
    let wrong = HashMap::from([(root, QuantParams::per_tensor(9.0, 7, DType::U8))]);
    assert_eq!(plan.with_trained(&wrong)[&root], QuantParams::per_tensor(0.021, 0, DType::U8));
    let made = rewrite(&graph, &plan, &wrong, &recipe, &Dial::default());
    let count = |graph: &Graph, is: fn(&Op) -> bool| graph.nodes.iter().filter(|n| is(&n.op)).count();
    assert_eq!(
        count(&made.graph, |op| matches!(op, Op::QuantizeLinear { .. })),
        count(&graph, |op| matches!(op, Op::QuantizeLinear { .. })),
        "no value goes through codes twice"
    );
    for name in ["x.scale", "x.zero", "a.relu.scale", "a.w.c", "a.w.scale", "b.scale", "c.w.c", "c.scale"] {
        let constant = |graph: &Graph| graph.constant(value(graph, name)).unwrap().to_f64();
        assert_eq!(constant(&made.graph), constant(&graph), "{name}");
    }
    assert_eq!(made.graph.constant(value(&made.graph, "b.w_q")).unwrap().dtype(), DType::I8);
    // The bias has the scale of the trained operand.
    let scale = |name: &str| made.graph.constant(value(&made.graph, name)).unwrap().slice::<f32>()[0];
    assert_eq!(scale("b.b_s"), 0.021 * scale("b.w_s"));
    let on_codes = |graph: &Graph| {
        let session = Session::new(graph.clone(), Options::default()).unwrap();
        session.nodes().filter(|(.., on_codes)| *on_codes).map(|n| n.0.to_owned()).collect::<HashSet<_>>()
    };
    let more = &on_codes(&made.graph) - &on_codes(&graph);
    assert!(more.contains("b"), "{more:?}");
    let (before, after) = (run(&graph, true), run(&made.graph, true));
    let far = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(far <= 0.31 && before != after, "weights of 8 bits move a result by a code or three, not {far}");
}

#[test]
fn the_model_without_its_quantization_keeps_what_codes_do_for_an_activation() {
    let mut graph = network(false);
    fold(&mut graph);
    let reference = without_quantization(&graph).unwrap();
    assert!(!super::is_quantized(&reference));
    let clips: Vec<&str> =
        reference.nodes.iter().filter(|n| matches!(n.op, Op::Clip)).map(|n| n.name.as_str()).collect();
    // Not the input, and not the result: nothing tells that their ranges mean anything.
    assert_eq!(clips, ["a.relu.q", "b.q"]);
    let w = reference.constant(value(&reference, "a.w.d")).unwrap().slice::<f32>();
    let codes = graph.constant(value(&graph, "a.w.c")).unwrap();
    assert_eq!(w[..2], [0.01 * f32::from(codes.slice::<i8>()[0]), 0.01 * f32::from(codes.slice::<i8>()[1])]);
    let (real, coded) = (run(&reference, true), run(&graph, true));
    let (mut signal, mut noise) = (0.0, 0.0);
    for (a, b) in real.iter().zip(&coded).filter(|(a, _)| (-11.9..13.4).contains(*a)) {
        signal += f64::from(a * a);
        noise += f64::from((a - b) * (a - b));
    }
    assert!(noise > 0.0 && signal / noise > 1e3, "{signal} {noise}");
}

#[test]
fn what_counts_with_codes_has_no_float_model() {
    let mut g = Builder::new();
    let x = g.graph.inputs[0];
    g.pair(x, 0.1, Tensor::scalar(3u8));
    let codes = value(&g.graph, "x.q");
    let cast = g.node("cast", Op::Cast { to: DType::F32 }, &[codes]);
    g.graph.outputs = vec![cast];
    let refused = without_quantization(&g.graph).unwrap_err();
    assert!(refused.contains("node `cast` (Cast) computes with the numbers of codes"), "{refused}");
    g.graph.outputs = vec![codes];
    g.graph.nodes.retain(|n| n.name != "cast");
    let refused = without_quantization(&g.graph).unwrap_err();
    assert!(refused.contains("its output `x.q` is codes"), "{refused}");
}

#[test]
fn an_image_of_codes_that_is_resized_has_a_float_model() {
    for (mode, place, taken) in [
        ("nearest", "asymmetric", true),
        ("linear", "half_pixel", true),
        ("cubic", "half_pixel", true),
        ("linear", "tf_crop_and_resize", false),
    ] {
        let text = |name: &str, text: &str| (name.to_owned(), Attribute::Text(text.to_owned()));
        let attributes =
            Attributes::new(vec![text("mode", mode), text("coordinate_transformation_mode", place)]);
        let resize = Other { attributes, ..named("Resize") };
        let mut g = Builder::new();
        let x = g.graph.inputs[0];
        g.pair(x, 0.1, Tensor::scalar(3u8));
        let [codes, scale, zero] = ["x.q", "x.scale", "x.zero"].map(|name| value(&g.graph, name));
        let resized = g.node("resized", Op::Other(resize), &[codes]);
        let y = g.node("y", Op::DequantizeLinear { axis: 1 }, &[resized, scale, zero]);
        g.graph.outputs = vec![y];
        let float = without_quantization(&g.graph);
        assert_eq!(float.is_ok(), taken, "{mode} {place}: {float:?}");
        let refused = float.map_or_else(|reason| reason.contains("node `resized` (Resize)"), |_| true);
        assert!(refused, "{mode} {place}");
    }
}
