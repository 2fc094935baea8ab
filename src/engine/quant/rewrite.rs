//! Writes the QDQ graph of a plan: float operators between `QuantizeLinear` and `DequantizeLinear`, weights and biases as
//! integers. This is the form of the artifact; runtimes fuse it to integer operators.
//!
//! New values are named after the user's: `NAME_q` codes, `NAME_s` scale, `NAME_z` zero point, `NAME_d` the reals
//! back, `NAME_f` the reals before the codes of a graph output. What ONNX Runtime 1.32 asks of the form, found by trial:
//! weights need their zero points `[channels]` written out (without, the exact mode does not load), biases need none,
//! and the scale of a bias must be `scale_x · scale_w` to the bit.

use std::collections::{HashMap, HashSet};

use crate::engine::graph::op::{Op, Unary};
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::quant::constants;
use crate::engine::quant::dial::Dial;
use crate::engine::quant::plan::{Decision, Plan};
use crate::engine::quant::targets::Profile;
use crate::engine::quant::{Recipe, weights};
use crate::engine::tensor::qparams::{QuantParams, code_range};
use crate::engine::tensor::{DType, Tensor};

/// A QDQ graph and what was done to each layer.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// The QDQ graph. Constants that nothing reads are gone.
    pub graph: Graph,
    /// The integer nodes, in execution order.
    pub layers: Vec<Layer>,
}

/// An integer node of a QDQ graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: &'static str,
    /// The value it makes, after absorption, in the float graph.
    pub float_value: String,
    /// The same value in the QDQ graph, before it is quantized.
    pub int8_value: String,
    /// Its weights, where it has any.
    pub weights: Option<LayerWeights>,
    /// The constants that hold them, where it multiplies by them.
    pub constants: Option<Constants>,
}

/// The constants of a QDQ graph that hold the weights and the bias of a layer, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constants {
    /// Codes of the weights.
    pub codes: String,
    /// Their scales.
    pub scales: String,
    /// Codes of the bias and their scales.
    pub bias: Option<(String, String)>,
    /// Where rows get their range in each run.
    pub by_row: Option<ByRow>,
}

/// What a product needs whose rows get their range in each run, by name. The weights are `[K, N]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByRow {
    /// Sums of the weight codes of each column.
    pub sums: String,
    /// The least code of each row: a real value is `(code + low) · step`.
    pub low: String,
    /// The width of a code of each row.
    pub step: String,
    /// The bias, in reals.
    pub bias: Option<String>,
}

/// What became of the weights of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    /// Their shape.
    pub shape: Vec<usize>,
    /// Largest magnitude that a code may have.
    pub max_code: u8,
    /// Signal to noise of the codes, in dB; `None` where they are exact.
    pub sqnr_db: Option<f64>,
    /// Channels whose scale was raised so that the bias fits 32 bits.
    pub raised_channels: usize,
    /// Largest scale over the median one: how unlike the channels are.
    pub scale_spread: f64,
}

/// Writes the QDQ graph. `params` has the parameters of every root of the plan.
///
/// # Panics
/// If a root has no parameters.
pub fn rewrite(
    graph: &Graph,
    plan: &Plan,
    params: &HashMap<ValueId, QuantParams>,
    recipe: &Recipe,
    dial: &Dial,
) -> Rewritten {
    let params = plan.with_trained(params);
    let mut writer = Writer {
        source: graph,
        plan,
        params: &params,
        per_channel: recipe.weights.per_channel,
        profile: Profile::of(recipe),
        absorbed: plan.absorbed(),
        with_bias: recipe.bias_correction,
        dial,
        names: graph.values.iter().map(|v| v.name.clone()).collect(),
        out: Graph { nodes: Vec::new(), ..graph.clone() },
        dequantized: HashMap::new(),
        constants: HashMap::new(),
        weights: HashMap::new(),
        tables: HashMap::new(),
        rows: HashMap::new(),
        numbers: HashMap::new(),
        sixteen: HashMap::new(),
        layers: Vec::new(),
    };
    for &input in &graph.inputs {
        writer.codes(input, input);
    }
    for (n, node) in graph.nodes.iter().enumerate() {
        match plan.decisions[n] {
            Decision::Absorbed { .. } | Decision::Inner { .. } => {}
            Decision::Integer => writer.integer(n, node),
            Decision::Lookup => writer.lookup(node),
            Decision::Stored => writer.stored(node),
            Decision::Sixteen => writer.sixteen(node),
            Decision::Dynamic => writer.dynamic(n, node),
            Decision::Trained => writer.trained(n, node),
            // What computes in float16 is written by its own scheme.
            Decision::Float(_) | Decision::Data | Decision::Half => writer.float(n, node),
        }
    }
    Rewritten { graph: compact(writer.out), layers: writer.layers }
}

/// A QDQ graph that is being written. The schemes add to it what they need, in files of their own.
pub(super) struct Writer<'a> {
    pub(super) source: &'a Graph,
    pub(super) plan: &'a Plan,
    params: &'a HashMap<ValueId, QuantParams>,
    pub(super) per_channel: bool,
    pub(super) profile: Profile,
    /// For each node those that it takes over.
    absorbed: HashMap<usize, Vec<usize>>,
    /// Whether layers that could have a bias get one, so that their mean error can be taken out.
    with_bias: bool,
    pub(super) dial: &'a Dial,
    names: HashSet<String>,
    pub(super) out: Graph,
    /// For each value that has codes the reals that they stand for.
    dequantized: HashMap<ValueId, ValueId>,
    /// Scale and zero point of each root.
    constants: HashMap<ValueId, (ValueId, ValueId)>,
    /// Dequantized weights by operand and scales: a weight that several nodes share is written once.
    weights: HashMap<(ValueId, Vec<u32>), (Integers, LayerWeights)>,
    /// What was made of each table.
    pub(super) tables: HashMap<ValueId, Table>,
    /// Codes, least code and step of values whose rows get their range in each run.
    pub(super) rows: HashMap<ValueId, [ValueId; 3]>,
    /// Constants that the form of those rows needs, once for all, by what they are.
    pub(super) numbers: HashMap<&'static str, ValueId>,
    /// For each value that has 16-bit codes the reals that they stand for.
    pub(super) sixteen: HashMap<ValueId, ValueId>,
    pub(super) layers: Vec<Layer>,
}

/// The constants of a table in codes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) codes: ValueId,
    pub(super) scales: ValueId,
    /// Zero points, where columns have the scales.
    pub(super) zeros: Option<ValueId>,
}

/// Codes that stand for reals: the reals, and the names of the constants.
#[derive(Clone, Debug)]
pub(super) struct Integers {
    pub(super) reals: ValueId,
    pub(super) codes: String,
    pub(super) scales: String,
}

/// A bias: the reals, and the names of codes and scales where it has them.
type Bias = (ValueId, Option<(String, String)>);

impl Writer<'_> {
    /// A node on reals.
    fn float(&mut self, n: usize, node: &Node) {
        let mut inputs = self.reals(node);
        if let Some(&skip) = self.plan.skips.get(&n) {
            inputs[skip] = node.input(skip).map(|v| self.dequantized[&v]);
        }
        self.out.nodes.push(Node { inputs, ..node.clone() });
        for &output in &node.outputs {
            self.codes(output, output);
        }
    }

    /// A node that the model itself has between codes: as it is.
    fn trained(&mut self, n: usize, node: &Node) {
        self.float(n, node);
        let Some(result) = self.plan.trained.result(n) else { return };
        let value = self.source.value(result).name.clone();
        self.layers.push(Layer {
            node: node.name.clone(),
            op: node.op.name(),
            float_value: value.clone(),
            int8_value: value,
            weights: None,
            constants: None,
        });
    }

    /// What a node on reals reads: the reals behind codes that an integer node made, else the value as it is.
    pub(super) fn reals(&self, node: &Node) -> Vec<Option<ValueId>> {
        let read = |v: &ValueId| match self.plan.coded(*v) {
            Some(coded) if coded.by_integer => self.dequantized[v],
            _ => *v,
        };
        node.inputs.iter().map(|v| v.as_ref().map(read)).collect()
    }

    /// The nodes that a node takes over and that codes alone would not do: they stand behind it.
    fn written_behind(&self, n: usize, result: ValueId) -> Vec<usize> {
        let Some(absorbed) = self.absorbed.get(&n) else { return Vec::new() };
        // What goes to codes of the model's own: nobody knows here whether those do it.
        let Some(coded) = self.plan.coded(result) else { return absorbed.clone() };
        let params = &self.params[&coded.root];
        let (least, most) = code_range(params.dtype);
        let done = |&n: &usize| {
            let node = &self.source.nodes[n];
            let bound = |i: usize| {
                let tensor = self.source.constant(node.input(i)?)?;
                tensor.to_f64().first().map(|&x| i64::from(params.quantize(x as f32, 0)))
            };
            match node.op {
                Op::Unary(Unary::Relu) => i64::from(params.zero_point[0]) == least,
                Op::Clip => bound(1).is_none_or(|q| q <= least) && bound(2).is_none_or(|q| q >= most),
                _ => false,
            }
        };
        if absorbed.iter().all(done) { Vec::new() } else { absorbed.clone() }
    }

    /// A node on codes: its operands dequantized, its weights in integers, its result quantized where the plan says so.
    fn integer(&mut self, n: usize, node: &Node) {
        if let Some(function) = self.plan.function(n) {
            return self.function(n, &function.nodes);
        }
        let mut inputs = node.inputs.clone();
        for (operand, input) in self.plan.operands(self.source, n).into_iter().zip(&mut inputs) {
            *input = Some(self.dequantized[&operand]);
        }
        let (mut op, mut layer_weights, mut constants) = (node.op.clone(), None, None);
        if matches!(op, Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul) {
            let (weight, bias, summary) = self.weighted(node, self.dial.max_code(n));
            inputs.truncate(1);
            inputs.push(Some(weight.reals));
            inputs.extend(bias.as_ref().map(|(reals, _)| Some(*reals)));
            constants = Some(Constants {
                codes: weight.codes,
                scales: weight.scales,
                bias: bias.and_then(|(_, names)| names),
                by_row: None,
            });
            layer_weights = Some(summary);
            if let Op::Gemm { alpha, beta, .. } = &mut op {
                (*alpha, *beta) = (1.0, 1.0);
            }
        }
        let result = self.plan.result(self.source, n);
        let coded = self.plan.coded(result).is_some_and(|coded| coded.by_integer);
        let made = match coded && self.source.outputs.contains(&result) {
            true => self.value_like(result, "f", DType::F32),
            false => result,
        };
        self.layers.push(Layer {
            node: node.name.clone(),
            op: op.name(),
            float_value: self.source.value(result).name.clone(),
            int8_value: self.out.value(made).name.clone(),
            weights: layer_weights,
            constants,
        });
        let behind = self.written_behind(n, result);
        let mut outputs = vec![if behind.is_empty() { made } else { node.outputs[0] }];
        for &other in node.outputs.iter().skip(1) {
            outputs.push(match self.source.outputs.contains(&other) {
                true => self.value_like(other, "f", DType::F32),
                false => other,
            });
        }
        self.out.nodes.push(Node::new(node.name.clone(), op, inputs, outputs.clone()));
        for &follower in &behind {
            let mut node = self.source.nodes[follower].clone();
            if behind.last() == Some(&follower) {
                node.outputs[0] = made;
            }
            self.out.nodes.push(node);
        }
        self.codes(result, made);
        for (&value, made) in node.outputs.iter().zip(outputs).skip(1) {
            self.codes(value, made);
        }
    }

    /// The steps of a function of one value, between its codes and those of its result.
    fn function(&mut self, last: usize, steps: &[usize]) {
        let result = self.source.nodes[last].outputs[0];
        let made = match self.source.outputs.contains(&result) {
            true => self.value_like(result, "f", DType::F32),
            false => result,
        };
        for &step in steps {
            let node = &self.source.nodes[step];
            let read = |v: &ValueId| self.dequantized.get(v).copied().unwrap_or(*v);
            let inputs = node.inputs.iter().map(|v| v.as_ref().map(read)).collect();
            let outputs = if step == last { vec![made] } else { node.outputs.clone() };
            self.out.nodes.push(Node { inputs, outputs, ..node.clone() });
        }
        let node = &self.source.nodes[last];
        self.layers.push(Layer {
            node: node.name.clone(),
            op: node.op.name(),
            float_value: self.source.value(result).name.clone(),
            int8_value: self.out.value(made).name.clone(),
            weights: None,
            constants: None,
        });
        self.codes(result, made);
    }

    /// Quantizes `made` and dequantizes it again, if `value` has codes; the two differ for graph outputs.
    pub(super) fn codes(&mut self, value: ValueId, made: ValueId) {
        let Some(coded) = self.plan.coded(value) else { return };
        if coded.root == value && self.plan.trained.is_dequantized(value) {
            // It comes from codes with these parameters.
            self.dequantized.insert(value, made);
            return;
        }
        let (scale, zero) = self.parameters(coded.root);
        let codes = self.value_like(value, "q", self.params[&coded.root].dtype);
        self.quantization(true, made, scale, zero, codes);
        let reals = match made == value {
            true => self.value_like(value, "d", DType::F32),
            // The graph output is what the codes stand for, and readers share it.
            false => value,
        };
        self.quantization(false, codes, scale, zero, reals);
        self.dequantized.insert(value, reals);
    }

    pub(super) fn quantization(
        &mut self,
        quantize: bool,
        from: ValueId,
        scale: ValueId,
        zero: ValueId,
        to: ValueId,
    ) {
        let op = if quantize { Op::QuantizeLinear { axis: 1 } } else { Op::DequantizeLinear { axis: 1 } };
        let name = self.out.value(to).name.clone();
        self.out.nodes.push(Node::new(name, op, vec![Some(from), Some(scale), Some(zero)], vec![to]));
    }

    /// Scale and zero point of a root as constants.
    fn parameters(&mut self, root: ValueId) -> (ValueId, ValueId) {
        if let Some(&both) = self.constants.get(&root) {
            return both;
        }
        let params = self.params.get(&root).expect("calibration gives every root its parameters");
        let code = "a zero point is a code";
        let zero = match params.dtype {
            DType::I8 => Tensor::scalar(i8::try_from(params.zero_point[0]).expect(code)),
            _ => Tensor::scalar(u8::try_from(params.zero_point[0]).expect(code)),
        };
        let scale = self.constant(root, "s", Tensor::scalar(params.scale[0]));
        let zero = self.constant(root, "z", zero);
        self.constants.insert(root, (scale, zero));
        (scale, zero)
    }

    /// Weights and bias of a node as dequantized integers.
    fn weighted(&mut self, node: &Node, max_code: u8) -> (Integers, Option<Bias>, LayerWeights) {
        let (operand, axis, terms) =
            constants::weights_of(self.source, node).expect("the plan checked the weights");
        let mut tensor =
            self.source.constant(operand).expect("the plan checked the weights").as_ref().clone();
        if let Op::Gemm { alpha, .. } = node.op {
            tensor.slice_mut::<f32>().iter_mut().for_each(|w| *w *= alpha);
        }
        let channels = tensor.shape()[axis];
        let bias = constants::bias_of(self.source, node, channels).expect("the plan checked the bias");
        let may_have_bias = self.with_bias && !self.profile.real_bias && !matches!(node.op, Op::MatMul);
        let bias = bias.or_else(|| may_have_bias.then(|| vec![0.0; channels]));
        let x = node.input(0).expect("the plan checked the operand");
        let root = self.plan.coded(x).expect("operands of integer nodes have codes").root;
        let scale_x = self.params[&root].scale[0];
        let whole = self.profile.matrices_by_tensor && !matches!(node.op, Op::Conv { .. });
        let axis = (self.per_channel && !whole).then_some(axis);
        let natural = weights::scales(&tensor, axis, max_code);
        let mut scales = natural.clone();
        if !self.profile.real_bias {
            weights::raise_for_bias(&mut scales, scale_x, bias.as_deref().unwrap_or_default(), terms);
        }
        let raised = natural.iter().zip(&scales).filter(|(a, b)| a != b).count();
        let biased = bias.map(|bias| {
            let stem = match node.input(2) {
                Some(operand) => self.source.value(operand).name.clone(),
                None => format!("{}_bias", self.source.value(node.outputs[0]).name),
            };
            if self.profile.real_bias {
                let name = unused(&mut self.names, &stem, "b");
                return (self.out.add_constant(&name, Tensor::from_slice(&[bias.len()], &bias)), None);
            }
            let codes = weights::quantize_bias(&bias, scale_x, &scales);
            let integers = self.integers(&stem, &codes, false);
            (integers.reals, Some((integers.codes, integers.scales)))
        });
        let (weight, summary) = self.shared_weights(operand, &tensor, axis, scales, max_code, raised);
        (weight, biased, summary)
    }

    pub(super) fn shared_weights(
        &mut self,
        operand: ValueId,
        tensor: &Tensor,
        axis: Option<usize>,
        scales: Vec<f32>,
        max_code: u8,
        raised_channels: usize,
    ) -> (Integers, LayerWeights) {
        // `alpha` is in the scales: two nodes that scale one matrix differently have different ones.
        let key = (operand, scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>());
        if let Some(both) = self.weights.get(&key) {
            return both.clone();
        }
        let scale_spread = spread(&scales);
        let quantized = weights::quantize(tensor, axis, scales, max_code);
        let sqnr_db = weights::sqnr_db(tensor, &quantized);
        let shape = tensor.shape().to_vec();
        let summary = LayerWeights { shape, max_code, sqnr_db, raised_channels, scale_spread };
        let stem = self.source.value(operand).name.clone();
        let integers = self.integers(&stem, &quantized, true);
        self.weights.insert(key, (integers.clone(), summary.clone()));
        (integers, summary)
    }

    /// Integer constants and the node that makes reals of them.
    fn integers(&mut self, stem: &str, quantized: &weights::Weights, with_zeros: bool) -> Integers {
        let params = &quantized.params;
        let shape: &[usize] = if params.axis.is_some() { &[params.scale.len()] } else { &[] };
        let [codes_name, scales_name] = ["q", "s"].map(|suffix| unused(&mut self.names, stem, suffix));
        let codes = self.out.add_constant(&codes_name, quantized.codes.clone());
        let scales = self.out.add_constant(&scales_name, Tensor::from_slice(shape, &params.scale));
        let mut inputs = vec![Some(codes), Some(scales)];
        if with_zeros {
            let name = unused(&mut self.names, stem, "z");
            inputs.push(Some(self.out.add_constant(&name, Tensor::zeros(params.dtype, shape))));
        }
        let name = unused(&mut self.names, stem, "d");
        let dims = quantized.codes.shape().iter().map(|&d| Dim::Known(d)).collect();
        let value =
            Value { name: name.clone(), dtype: Some(DType::F32), dims: Some(dims), ..Value::default() };
        let reals = self.out.add_value(value);
        let op = Op::DequantizeLinear { axis: params.axis.unwrap_or(1) as i64 };
        self.out.nodes.push(Node::new(name, op, inputs, vec![reals]));
        Integers { reals, codes: codes_name, scales: scales_name }
    }

    pub(super) fn constant(&mut self, named: ValueId, suffix: &str, tensor: Tensor) -> ValueId {
        let name = self.name(named, suffix);
        self.out.add_constant(&name, tensor)
    }

    /// A value of the shape of another.
    pub(super) fn value_like(&mut self, like: ValueId, suffix: &str, dtype: DType) -> ValueId {
        let name = self.name(like, suffix);
        let dims = self.source.value(like).dims.clone();
        self.out.add_value(Value { name, dtype: Some(dtype), dims, ..Value::default() })
    }

    /// A name that no value has, after that of a value.
    pub(super) fn name(&mut self, named: ValueId, suffix: &str) -> String {
        unused(&mut self.names, &self.source.value(named).name, suffix)
    }

    /// A name that no value has.
    pub(super) fn unused(&mut self, stem: &str, suffix: &str) -> String {
        unused(&mut self.names, stem, suffix)
    }
}

/// `STEM_SUFFIX`, or with a number where that is taken; then it is taken.
pub(super) fn unused(names: &mut HashSet<String>, stem: &str, suffix: &str) -> String {
    let base = format!("{stem}_{suffix}");
    let mut name = base.clone();
    for i in 1.. {
        if names.insert(name.clone()) {
            break;
        }
        name = format!("{base}{i}");
    }
    name
}

/// Largest scale over the median.
pub(super) fn spread(scales: &[f32]) -> f64 {
    let mut sorted = scales.to_vec();
    sorted.sort_by(f32::total_cmp);
    match (sorted.last(), sorted.get(sorted.len() / 2)) {
        (Some(&largest), Some(&median)) => f64::from(largest) / f64::from(median),
        _ => 1.0,
    }
}

/// Leaves out values that nothing reads or makes.
pub(super) fn compact(mut graph: Graph) -> Graph {
    let mut places: HashMap<ValueId, ValueId> = HashMap::new();
    let mut values = Vec::new();
    let mut move_value = |id: &mut ValueId| {
        let next = ValueId(u32::try_from(values.len()).expect("no more values than before"));
        let place = *places.entry(*id).or_insert(next);
        if place == next {
            values.push(std::mem::take(&mut graph.values[id.0 as usize]));
        }
        *id = place;
    };
    graph.inputs.iter_mut().for_each(&mut move_value);
    for node in &mut graph.nodes {
        node.inputs.iter_mut().flatten().for_each(&mut move_value);
        node.outputs.iter_mut().for_each(&mut move_value);
    }
    graph.outputs.iter_mut().for_each(&mut move_value);
    graph.values = values;
    graph
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::graph::op::{Sliding, Unary};
    use crate::engine::quant::{Target, plan};

    /// `x → Conv → Relu → Flatten → Gemm → y`, with a second output `r` on request.
    fn small(relu_is_output: bool) -> Graph {
        let mut g = Graph::default();
        let value =
            |g: &mut Graph, name: &str| g.add_value(Value { name: name.to_owned(), ..Value::default() });
        let [x, c, r, f, y] = ["x", "c", "r", "f", "y"].map(|n| value(&mut g, n));
        let w = g.add_constant("w", Tensor::from_slice(&[2, 1, 1, 1], &[1.27f32, -0.5]));
        let b = g.add_constant("b", Tensor::from_slice(&[2], &[0.1f32, 1.0]));
        let v = g.add_constant("v", Tensor::from_slice(&[2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let mut node = |name: &str, op, inputs: &[ValueId], output| {
            let inputs = inputs.iter().map(|&i| Some(i)).collect();
            g.nodes.push(Node::new(name.to_owned(), op, inputs, vec![output]));
        };
        node("conv", Op::Conv { sliding: Sliding::default(), groups: 1 }, &[x, w, b], c);
        node("relu", Op::Unary(Unary::Relu), &[c], r);
        node("flat", Op::Flatten { axis: 1 }, &[r], f);
        node("gemm", Op::Gemm { alpha: 0.5, beta: 1.0, trans_a: false, trans_b: false }, &[f, v], y);
        g.inputs = vec![x];
        g.outputs = if relu_is_output { vec![y, r] } else { vec![y] };
        g
    }

    pub(in crate::engine::quant) fn lines(graph: &Graph) -> Vec<String> {
        let name = |v: &ValueId| graph.value(*v).name.as_str();
        let line = |n: &Node| {
            let inputs: Vec<&str> = n.inputs.iter().flatten().map(name).collect();
            format!("{} = {}({})", name(&n.outputs[0]), n.op.name(), inputs.join(", "))
        };
        graph.nodes.iter().map(line).collect()
    }

    fn rewritten(graph: &Graph) -> Rewritten {
        rewritten_by(graph, Recipe::default().target)
    }

    pub(in crate::engine::quant) fn rewritten_by(graph: &Graph, target: Target) -> Rewritten {
        let recipe = Recipe { target, ..Recipe::default() };
        let plan = plan::plan(graph, &recipe).unwrap();
        let params =
            plan.coded.iter().map(|c| (c.root, QuantParams::per_tensor(0.5, 0, DType::U8))).collect();
        rewrite(graph, &plan, &params, &recipe, &Dial::default())
    }

    #[test]
    fn operators_stand_between_codes_and_weights_are_integers() {
        let result = rewritten(&small(false));
        let want = [
            "x_q = QuantizeLinear(x, x_s, x_z)",
            "x_d = DequantizeLinear(x_q, x_s, x_z)",
            "b_d = DequantizeLinear(b_q, b_s)",
            "w_d = DequantizeLinear(w_q, w_s, w_z)",
            "r = Conv(x_d, w_d, b_d)",
            "r_q = QuantizeLinear(r, r_s, r_z)",
            "r_d = DequantizeLinear(r_q, r_s, r_z)",
            "f = Flatten(r_d)",
            "f_q = QuantizeLinear(f, r_s, r_z)",
            "f_d = DequantizeLinear(f_q, r_s, r_z)",
            "y_bias_d = DequantizeLinear(y_bias_q, y_bias_s)",
            "v_d = DequantizeLinear(v_q, v_s, v_z)",
            "y = Gemm(f_d, v_d, y_bias_d)",
        ];
        assert_eq!(lines(&result.graph), want);
        let constant = |name: &str| {
            let value = result.graph.values.iter().find(|v| v.name == name).expect(name);
            value.constant.clone().unwrap()
        };
        assert_eq!(constant("w_q").slice::<i8>(), [127, -127]);
        assert_eq!(constant("w_z").shape(), [2]);
        assert_eq!(
            constant("b_s").slice::<f32>(),
            [0.5 * constant("w_s").slice::<f32>()[0], 0.5 * constant("w_s").slice::<f32>()[1]]
        );
        // alpha is in the weights: column 1 is [1, 2.5].
        assert_eq!(constant("v_s").slice::<f32>()[1], 2.5 / 127.0);
        assert!(
            result.graph.values.iter().all(|v| !["w", "v", "b", "c"].contains(&v.name.as_str())),
            "what is not read is gone"
        );
        assert_eq!(
            result.layers.iter().map(|l| l.node.as_str()).collect::<Vec<_>>(),
            ["conv", "flat", "gemm"]
        );
    }

    #[test]
    fn a_coded_graph_output_is_what_its_codes_stand_for() {
        let result = rewritten(&small(true));
        let lines = lines(&result.graph);
        for want in [
            "r_f = Conv(x_d, w_d, b_d)",
            "r_q = QuantizeLinear(r_f, r_s, r_z)",
            "r = DequantizeLinear(r_q, r_s, r_z)",
            "f = Flatten(r)",
        ] {
            assert!(lines.iter().any(|l| l == want), "{want}\n{lines:#?}");
        }
        assert_eq!(result.layers[0].int8_value, "r_f");
        assert_eq!(result.layers[0].float_value, "r");
    }

    #[test]
    fn a_name_that_is_taken_is_not_taken_again() {
        let mut graph = small(false);
        graph.value_mut(ValueId(1)).name = "x_q".to_owned();
        let result = rewritten(&graph);
        let mut names: Vec<&str> = result.graph.values.iter().map(|v| v.name.as_str()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
