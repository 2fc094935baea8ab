//! Decides which nodes of a float graph compute on integers, and which values get codes. Knows nothing of data.
//!
//! The rules are those under which ONNX Runtime fuses a QDQ graph on x86 (facts: its `qdq_selectors.cc`), so that other
//! runtimes gain from the artifact too:
//!
//! - Conv with constant weights: integer; its result always gets codes. Over three spatial axes this program computes in
//!   float: for it the weights alone are stored in codes.
//! - Gemm with a constant matrix: integer; its result gets codes where an integer operator reads it, else it is real.
//! - MatMul with a constant matrix: integer product, real result (`MatMulIntegerToFloat`). Products of two
//!   activations stay in float, as do LayerNorm, Softmax and GELU: in integers they cost a transformer its accuracy.
//! - Relu or Clip behind a Conv, Gemm or Add: absorbed. The range is taken after it, so the codes saturate where
//!   it would clamp. Only where it is the single reader, and zero lies within its bounds.
//! - HardSwish or HardSigmoid behind a Conv or Gemm, where it is the single reader: absorbed as well, for this program
//!   computes them of the sums. Their codes are the first that anybody rounds.
//! - Add of two activations: integer where both come from convolutions (through pools and Adds), so a residual of
//!   a CNN is one and that of a transformer is not.
//! - A function of one such value, element by element (SiLU, HardSwish, a clamp that is not absorbed): a table of
//!   codes. Products of two (squeeze and excitation), joins, and what splits or enlarges an image, are integer too.
//! - Pools and reshapes pass codes on where they get them; MaxPool and reshapes keep the parameters of their input.
//! - Gather from a large constant table of reals: the table is stored as `i8` with a scale a column, its rows become
//!   reals after they are read. Embeddings are most of a small language model's bytes.
//! - LSTM, GRU and RNN: weights are stored as `i8` with a scale a gate, and made reals before they are used.
//! - Codes end where nobody computes with them: a pool, reshape or Add before a float operator stays in float.
//! - What training with quantization in mind has quantized stays as it is. What it left in float stays in float too,
//!   unless the recipe asks to complete it: then values that were trained keep their parameters.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use crate::engine::exec::fuse::activation_behind;
use crate::engine::graph::function::Function;
use crate::engine::graph::op::{Binary, CODED_AXES_MAX, Op, Unary};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::quant::schemes::stored;
use crate::engine::quant::targets::Profile;
use crate::engine::quant::trained::roles::{Role, Trained};
use crate::engine::quant::{Error, Functions, Recipe};
use crate::engine::tensor::DType;
use crate::engine::tensor::qparams::QuantParams;

use super::constants::{axes_of_weights, multiplies, table_of};
use super::decision::operands;
use super::nature::{
    clamps_around_zero, computes_mean, computes_on_reals, counts, is_data, is_logical, moves_data,
    passes_codes,
};

pub use super::decision::{Coded, Decision, Plan, Region};

/// Why a node of a model that comes quantized is in float.
const LEFT: &str = "left in float by what quantized the model; `complete` quantizes it";

/// Why windows that move along more than two axes are in float.
const MANY_AXES: &str = "windows over more than two spatial axes are computed in float";

/// Why an average is in float whose last windows reach beyond pads that count.
const BEYOND_PADS: &str = "with ceil_mode and count_include_pad its windows are divided by different counts";

/// Plans a simplified float graph.
///
/// # Errors
/// [`Error::NoMatch`] where a pattern of `keep_float` names no node.
pub fn plan(graph: &Graph, recipe: &Recipe) -> Result<Plan, Error> {
    plan_keeping(graph, recipe, &Kept::new())
}

/// Nodes that stay in float, with the reason of each.
pub type Kept = BTreeMap<usize, String>;

/// As [`plan`], with more nodes that stay in float.
///
/// # Errors
/// As [`plan`].
pub fn plan_keeping(graph: &Graph, recipe: &Recipe, kept: &Kept) -> Result<Plan, Error> {
    names_exist(graph, "keep_float", &recipe.keep_float)?;
    names_exist(graph, "sixteen_bit", &recipe.sixteen_bit)?;
    let mut planner = Planner::new(graph, recipe, kept);
    planner.find_candidates();
    planner.drop_useless();
    Ok(planner.finish())
}

/// A plan without codes of activations, by a decision for each node; the nodes of `kept`, and those that the recipe names,
/// stay in float.
///
/// # Errors
/// [`Error::NoMatch`] where a pattern of `keep_float` names no node.
pub fn plan_each(
    graph: &Graph,
    recipe: &Recipe,
    kept: &Kept,
    decide: impl Fn(&Node) -> Decision,
) -> Result<Plan, Error> {
    names_exist(graph, "keep_float", &recipe.keep_float)?;
    let decide = |(n, node): (usize, &Node)| match kept.get(&n) {
        Some(reason) => Decision::Float(reason.clone()),
        None if recipe.keeps_float(&node.name) => Decision::Float("kept by the recipe".to_owned()),
        None => decide(node),
    };
    Ok(Plan::of_decisions(graph.nodes.iter().enumerate().map(decide).collect()))
}

/// Checks that each pattern of a field of a recipe names a node.
///
/// # Errors
/// [`Error::NoMatch`].
pub fn names_exist(graph: &Graph, field: &'static str, patterns: &[String]) -> Result<(), Error> {
    let unknown = |pattern: &&String| !graph.nodes.iter().any(|n| super::matches(pattern, &n.name));
    match patterns.iter().find(unknown) {
        Some(pattern) => {
            let near = super::near(pattern, graph.nodes.iter().map(|n| n.name.as_str()));
            Err(Error::NoMatch { field, pattern: pattern.clone(), near })
        }
        None => Ok(()),
    }
}

struct Planner<'a> {
    graph: &'a Graph,
    recipe: &'a Recipe,
    kept: &'a Kept,
    profile: Profile,
    trained: Trained,
    readers: Vec<Vec<usize>>,
    producers: HashMap<ValueId, usize>,
    decisions: Vec<Decision>,
    results: HashMap<usize, ValueId>,
    functions: HashMap<usize, Function>,
    /// For each absorbed activation the node that takes it over.
    absorbed: HashMap<usize, usize>,
    /// Values that integer nodes may make, and whether convolutions are behind them.
    codeable: HashMap<ValueId, Behind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Convolution,
    Product,
}

impl<'a> Planner<'a> {
    fn new(graph: &'a Graph, recipe: &'a Recipe, kept: &'a Kept) -> Planner<'a> {
        Planner {
            graph,
            recipe,
            kept,
            profile: Profile::of(recipe),
            trained: Trained::of(graph),
            readers: graph.consumers(),
            producers: graph.producers(),
            decisions: vec![Decision::Data; graph.nodes.len()],
            results: HashMap::new(),
            functions: HashMap::new(),
            absorbed: HashMap::new(),
            codeable: HashMap::new(),
        }
    }

    /// Front to back: every node that could compute on integers is taken to do so.
    fn find_candidates(&mut self) {
        for (n, node) in self.graph.nodes.iter().enumerate() {
            self.decisions[n] = if self.absorbed.contains_key(&n) {
                Decision::Absorbed { into: self.absorbed[&n] }
            } else if let Some(decision) = self.trained(n, node) {
                decision
            } else if let Some(reason) = self.keeps(n) {
                Decision::Float(reason)
            } else if self.recipe.has_sixteen_bits(&node.name) && computes_on_reals(self.graph, node) {
                Decision::Sixteen
            } else {
                self.candidate(n, node)
            };
        }
    }

    /// What becomes of a node of a model that comes quantized, where that is no matter of its own.
    fn trained(&mut self, n: usize, node: &Node) -> Option<Decision> {
        if self.trained.is_empty() {
            return None;
        }
        match self.trained.role(n) {
            Role::Boundary => {
                let reals = node.outputs.iter().filter(|&&v| self.trained.is_dequantized(v));
                self.codeable.extend(reals.map(|&v| (v, Behind::Convolution)));
                Some(Decision::Data)
            }
            Role::Computes | Role::Clamps => Some(Decision::Trained),
            Role::Left if self.recipe.complete => None,
            Role::Left if is_data(self.graph, node) => Some(Decision::Data),
            Role::Left => Some(Decision::Float(LEFT.to_owned())),
        }
    }

    /// Why a node stays in float whatever it is.
    fn keeps(&self, n: usize) -> Option<String> {
        let by_name = self.recipe.keeps_float(&self.graph.nodes[n].name);
        by_name.then(|| "kept by the recipe".to_owned()).or_else(|| self.kept.get(&n).cloned())
    }

    fn candidate(&mut self, n: usize, node: &Node) -> Decision {
        let behind =
            |planner: &Planner<'_>, index| node.input(index).and_then(|v| planner.codeable.get(&v).copied());
        if self.function(n) {
            return Decision::Integer;
        }
        match &node.op {
            Op::Conv { .. } | Op::Gemm { .. } => {
                if let Err(reason) = multiplies(self.graph, node) {
                    return Decision::Float(reason);
                }
                let conv = matches!(node.op, Op::Conv { .. });
                if conv && self.profile.flat_windows && axes_of_weights(self.graph, node) > CODED_AXES_MAX {
                    return match stored::operands(self.graph, node).is_empty() {
                        true => Decision::Float(MANY_AXES.to_owned()),
                        false => Decision::Stored,
                    };
                }
                if !conv && self.recipe.ranges_by_row() && behind(self, 0) != Some(Behind::Convolution) {
                    return Decision::Dynamic;
                }
                let result = self.absorb_function(n);
                self.codeable.insert(result, if conv { Behind::Convolution } else { Behind::Product });
            }
            Op::MatMul => {
                if let Err(reason) = multiplies(self.graph, node) {
                    return Decision::Float(reason);
                }
                if self.profile.whole {
                    self.codeable.insert(node.outputs[0], Behind::Product);
                }
                if self.recipe.ranges_by_row() && behind(self, 0) != Some(Behind::Convolution) {
                    return Decision::Dynamic;
                }
            }
            Op::Binary(Binary::Add | Binary::Mul) => {
                if node.inputs.iter().flatten().any(|v| self.graph.constant(*v).is_some()) {
                    return Decision::Float("one operand is constant".to_owned());
                }
                if [0, 1].iter().any(|&i| behind(self, i) != Some(Behind::Convolution)) {
                    return Decision::Float("its operands are not both results of convolutions".to_owned());
                }
                let result = self.absorb(n, node.outputs[0]);
                self.codeable.insert(result, Behind::Convolution);
            }
            Op::Concat { .. } if !node.inputs.is_empty() => {
                if (0..node.inputs.len()).any(|i| behind(self, i) != Some(Behind::Convolution)) {
                    return Decision::Data;
                }
                self.codeable.insert(node.outputs[0], Behind::Convolution);
            }
            op if op.lays_blocks() && !self.profile.blocks => return Decision::Data,
            Op::AveragePool { sliding, count_include_pad }
                if self.profile.flat_windows && !sliding.averages_codes(*count_include_pad) =>
            {
                let reason = if sliding.kernel.len() > CODED_AXES_MAX { MANY_AXES } else { BEYOND_PADS };
                return Decision::Float(reason.to_owned());
            }
            op if passes_codes(op) || computes_mean(op) => match behind(self, 0) {
                Some(behind) => {
                    self.codeable.extend(node.outputs.iter().map(|&output| (output, behind)));
                }
                None if passes_codes(op) && !matches!(op, Op::MaxPool { .. }) => return Decision::Data,
                None => return Decision::Float("its input is not in codes".to_owned()),
            },
            Op::Gather { .. } if table_of(self.graph, node).is_some() => return Decision::Lookup,
            op if moves_data(op) || counts(self.graph, node) => return Decision::Data,
            Op::Unary(Unary::Relu) | Op::Clip => {
                let coded = node.input(0).is_some_and(|v| self.codeable.contains_key(&v));
                let reason = if coded { "its input has other readers" } else { "its input is real" };
                return Decision::Float(reason.to_owned());
            }
            Op::LayerNorm { .. } | Op::Softmax { .. } | Op::BatchNorm { .. } => {
                return Decision::Float("normalizes: integers would cost accuracy".to_owned());
            }
            _ if stored::is_recurrent(node) && !stored::operands(self.graph, node).is_empty() => {
                return Decision::Stored;
            }
            op => return Decision::Float(format!("{} is computed in float", op.name())),
        }
        Decision::Integer
    }

    /// Whether a function of one value in codes ends with a node; then its steps are noted.
    fn function(&mut self, n: usize) -> bool {
        // A value that a function makes is no source but a step on the way.
        let is_source = |v: ValueId| {
            self.codeable.get(&v) == Some(&Behind::Convolution)
                && !self.producers.get(&v).is_some_and(|p| self.functions.contains_key(p))
        };
        let Some(function) = Function::ending_at(self.graph, &self.producers, n, is_source) else {
            return false;
        };
        let kept = |&n: &usize| self.keeps(n).is_some();
        let taken = |n: &usize| self.absorbed.contains_key(n);
        if function.sources.len() != 1
            || (self.profile.single_functions && function.nodes.len() > 1)
            || !function.is_closed(self.graph, &self.readers)
            || function.nodes.iter().any(|n| kept(n) || taken(n))
        {
            return false;
        }
        for &step in function.nodes.iter().filter(|&&step| step != n) {
            self.decisions[step] = Decision::Inner { of: n };
            self.functions.remove(&step);
            self.codeable.remove(&self.graph.nodes[step].outputs[0]);
        }
        self.codeable.insert(self.graph.nodes[n].outputs[0], Behind::Convolution);
        self.functions.insert(n, function);
        true
    }

    /// Lets a product take over the function behind it, and the clamps behind that; gives the value that it then makes.
    fn absorb_function(&mut self, n: usize) -> ValueId {
        let result = self.graph.nodes[n].outputs[0];
        let Some((nodes, made)) = self.function_of_sums(result) else { return self.absorb(n, result) };
        self.absorbed.extend(nodes.into_iter().map(|node| (node, n)));
        self.absorb(n, made)
    }

    /// The nodes of a function that alone reads a value, if it is computed before that becomes codes, and what it makes.
    fn function_of_sums(&self, value: ValueId) -> Option<(Vec<usize>, ValueId)> {
        if self.profile.functions == Functions::Table || !self.trained.is_empty() {
            return None;
        }
        let (nodes, made) = activation_behind(self.graph, &self.readers, value)?;
        let quick = |n: &usize| {
            let op = &self.graph.nodes[*n].op;
            matches!(op, Op::Unary(Unary::HardSwish | Unary::HardSigmoid { .. }))
        };
        let asked =
            |n: &usize| self.keeps(*n).is_some() || self.recipe.has_sixteen_bits(&self.graph.nodes[*n].name);
        let wanted = self.profile.functions == Functions::Exact || nodes.iter().all(quick);
        (wanted && !nodes.iter().any(asked)).then_some((nodes, made))
    }

    /// Lets a node that makes `result` take over the clamps behind it; gives the value that it then makes.
    fn absorb(&mut self, n: usize, mut result: ValueId) -> ValueId {
        while let [reader] = self.readers[result.0 as usize][..] {
            let node = &self.graph.nodes[reader];
            let kept = self.graph.outputs.contains(&result) || self.keeps(reader).is_some();
            if kept || !clamps_around_zero(self.graph, node) {
                break;
            }
            self.absorbed.insert(reader, n);
            result = node.outputs[0];
        }
        self.results.insert(n, result);
        result
    }

    /// Whether an integer node computes with the codes of a value, so that they are worth keeping.
    fn wanted(&self, value: ValueId) -> bool {
        let wants = |&n: &usize| {
            let n = if let Decision::Inner { of } = self.decisions[n] { of } else { n };
            let multiplies = matches!(self.graph.nodes[n].op, Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul);
            self.decisions[n] == Decision::Integer
                && (!multiplies || self.graph.nodes[n].input(0) == Some(value))
        };
        self.trained.goes_to_codes(value) || self.readers[value.0 as usize].iter().any(wants)
    }

    /// Back to front: what nobody computes with stays in float, and so does what lives from it.
    fn drop_useless(&mut self) {
        for (n, node) in self.graph.nodes.iter().enumerate().rev() {
            let result = self.results.get(&n).copied().unwrap_or(node.outputs[0]);
            let others = node.outputs.iter().skip(1);
            if self.decisions[n] != Decision::Integer
                || self.profile.whole
                || self.wanted(result)
                || others.into_iter().any(|&output| self.wanted(output))
            {
                continue;
            }
            let reason = "no integer operator reads its result";
            if let Some(function) = self.functions.remove(&n) {
                function.nodes.iter().for_each(|&n| self.decisions[n] = Decision::Float(reason.to_owned()));
                self.codeable.remove(&result);
                continue;
            }
            match node.op {
                Op::MatMul => {}
                Op::Conv { .. } if !self.profile.real_results => {}
                // A product with a real result: the clamp behind it, if any, works on reals.
                Op::Conv { .. } | Op::Gemm { .. } => self.release(n, "its input is real"),
                ref op => {
                    let data = moves_data(op) || passes_codes(op) && !matches!(op, Op::MaxPool { .. });
                    self.decisions[n] =
                        if data { Decision::Data } else { Decision::Float(reason.to_owned()) };
                    self.release(n, reason);
                }
            }
        }
    }

    /// Gives back what a node has absorbed.
    fn release(&mut self, n: usize, reason: &str) {
        self.results.remove(&n).map(|result| self.codeable.remove(&result));
        self.graph.nodes[n].outputs.iter().for_each(|output| {
            self.codeable.remove(output);
        });
        for (clamp, _) in self.absorbed.extract_if(|_, into| *into == n) {
            self.decisions[clamp] = Decision::Float(reason.to_owned());
        }
    }

    fn finish(self) -> Plan {
        let mut coded: Vec<Coded> = Vec::new();
        let mut roots: HashMap<ValueId, ValueId> = HashMap::new();
        let region = |value: ValueId| {
            let island = |&n: &usize| matches!(self.graph.nodes[n].op, Op::MatMul);
            match self.readers[value.0 as usize].iter().any(island) {
                true => Region::Island,
                false => Region::Flow,
            }
        };
        // Front to back, so that the root of an input is known before that of the result.
        for (n, node) in self.graph.nodes.iter().enumerate() {
            if self.decisions[n] != Decision::Integer {
                continue;
            }
            for value in operands(node, self.functions.get(&n)) {
                if let Entry::Vacant(entry) = roots.entry(value) {
                    entry.insert(value);
                    coded.push(Coded { value, root: value, by_integer: false, region: region(value) });
                }
            }
            let result = self.results.get(&n).copied().unwrap_or(node.outputs[0]);
            for result in std::iter::once(result).chain(node.outputs.iter().skip(1).copied()) {
                if self.codeable.contains_key(&result) {
                    let input = node.input(0).filter(|_| passes_codes(&node.op));
                    let root = input.map_or(result, |input| roots[&input]);
                    roots.insert(result, root);
                    // Codes of the model's own follow.
                    if !self.trained.goes_to_codes(result) {
                        coded.push(Coded { value: result, root, by_integer: true, region: region(result) });
                    }
                }
            }
        }
        let (sixteen, skips) = (self.sixteen(), BTreeMap::new());
        Plan {
            decisions: self.decisions,
            coded,
            sixteen,
            skips,
            trained: self.trained,
            results: self.results,
            functions: self.functions,
        }
    }

    /// What goes into the nodes with 16-bit activations, and what they make.
    fn sixteen(&self) -> BTreeMap<ValueId, QuantParams> {
        let real = |id: &ValueId| {
            let dtype = self.graph.value(*id).dtype.unwrap_or(DType::F32);
            dtype == DType::F32 && self.graph.constant(*id).is_none()
        };
        let truth: Vec<ValueId> =
            self.graph.nodes.iter().filter(|n| is_logical(&n.op)).map(|n| n.outputs[0]).collect();
        let used = |id: &ValueId| self.graph.outputs.contains(id) || !self.readers[id.0 as usize].is_empty();
        let nodes = self.graph.nodes.iter().zip(&self.decisions).filter(|(_, d)| **d == Decision::Sixteen);
        let values = nodes.flat_map(|(node, _)| node.inputs.iter().flatten().chain(&node.outputs));
        let unseen = QuantParams::per_tensor(1.0, 0, DType::U16);
        let wanted = values.filter(|id| real(id) && used(id) && !truth.contains(id));
        wanted.map(|&id| (id, unseen.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::Value;
    use crate::engine::graph::op::Sliding;
    use crate::engine::quant::Scheme;
    use crate::engine::tensor::Tensor;

    /// Builds a graph from lines `result = Op(operand, …)`; `w*` are `[8, 8, 1, 1]` or `[8, 8]` constants.
    fn graph(lines: &str, outputs: &[&str]) -> Graph {
        let mut graph = Graph::default();
        let mut ids: HashMap<String, ValueId> = HashMap::new();
        let x = graph.add_value(Value { name: "x".to_owned(), ..Value::default() });
        graph.inputs.push(x);
        ids.insert("x".to_owned(), x);
        for line in lines.split(';').map(str::trim).filter(|l| !l.is_empty()) {
            let (results, call) = line.split_once(" = ").unwrap();
            let (name, operands) = call.trim_end_matches(')').split_once('(').unwrap();
            let mut inputs = Vec::new();
            for operand in operands.split(", ") {
                if !ids.contains_key(operand) {
                    let shape: &[usize] = match (operand, name) {
                        ("six" | "one" | "zero", _) => &[],
                        (_, "Conv") => &[8, 8, 1, 1],
                        ("small", "Conv3") => &[8, 1, 1, 1, 1],
                        (_, "Conv3") => &[8, 8, 3, 3, 3],
                        ("table", _) => &[512, 8],
                        _ => &[8, 8],
                    };
                    let value = [("six", 6.0f32), ("zero", 0.0)]
                        .iter()
                        .find(|(n, _)| *n == operand)
                        .map_or(1.0, |p| p.1);
                    let tensor = Tensor::from_slice(shape, &vec![value; shape.iter().product()]);
                    ids.insert(operand.to_owned(), graph.add_constant(operand, tensor));
                }
                inputs.push(Some(ids[operand]));
            }
            let op = match name {
                "Conv" | "Conv3" => Op::Conv { sliding: Sliding::default(), groups: 1 },
                "Gemm" => Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false },
                "MatMul" => Op::MatMul,
                "Relu" => Op::Unary(Unary::Relu),
                "Sigmoid" => Op::Unary(Unary::Sigmoid),
                "HardSwish" => Op::Unary(Unary::HardSwish),
                "Mul" => Op::Binary(Binary::Mul),
                "Concat" => Op::Concat { axis: 1 },
                "Gelu" => Op::Unary(Unary::Gelu { tanh: false }),
                "Clip" => Op::Clip,
                "Add" => Op::Binary(Binary::Add),
                "MaxPool" => Op::MaxPool { sliding: Sliding::default() },
                "Average3" => {
                    let sliding = Sliding { kernel: vec![2; 3], ..Sliding::default() };
                    Op::AveragePool { sliding, count_include_pad: false }
                }
                "Gap" => Op::GlobalAveragePool,
                "Flatten" => Op::Flatten { axis: 1 },
                "Split" => Op::Split { axis: 1, outputs: 2 },
                "Gather" => Op::Gather { axis: 0 },
                "Norm" => Op::LayerNorm { axis: -1, epsilon: 1e-5 },
                other => panic!("{other}"),
            };
            let mut outputs = Vec::new();
            for result in results.split(' ') {
                let output = graph.add_value(Value { name: result.to_owned(), ..Value::default() });
                ids.insert(result.to_owned(), output);
                outputs.push(output);
            }
            graph.nodes.push(Node::new(format!("n_{results}"), op, inputs, outputs));
        }
        graph.outputs = outputs.iter().map(|o| ids[*o]).collect();
        graph
    }

    /// One letter a node (Integer, Absorbed, Float, Data), and the coded values, `a<b` where `a` has `b`'s parameters.
    fn check(lines: &str, outputs: &[&str], recipe: serde_json::Value, want: &str) {
        let graph = graph(lines, outputs);
        let mut recipe = Recipe::parse(&recipe).unwrap();
        recipe.scheme = Scheme::Static;
        let plan = plan(&graph, &recipe).unwrap();
        let letter = |d: &Decision| match d {
            Decision::Integer => 'I',
            Decision::Lookup => 'L',
            Decision::Stored => 'S',
            Decision::Half => 'H',
            Decision::Sixteen => 'X',
            Decision::Dynamic => 'Y',
            Decision::Trained => 'T',
            Decision::Absorbed { .. } => 'A',
            Decision::Inner { .. } => 'i',
            Decision::Float(_) => 'F',
            Decision::Data => 'D',
        };
        let name = |v: ValueId| &graph.value(v).name;
        let coded = plan.coded.iter().map(|c| match c.value == c.root {
            true => name(c.value).clone(),
            false => format!("{}<{}", name(c.value), name(c.root)),
        });
        let coded: Vec<String> = coded.collect();
        let got = format!("{} {}", plan.decisions.iter().map(letter).collect::<String>(), coded.join(" "));
        assert_eq!(got, want, "{lines}\n{:?}", plan.decisions);
    }

    #[test]
    fn a_cnn_is_integer_from_its_input_to_its_last_product() {
        let lenet = "c = Conv(x, w); r = Relu(c); m = MaxPool(r); f = Flatten(m); g = Gemm(f, v); h = Relu(g); y = Gemm(h, u)";
        check(lenet, &["y"], serde_json::json!({}), "IAIIIAI x r m<r f<r h");
        let residual = "a = Conv(x, w); b = Clip(a, zero, six); c = Conv(b, w2); s = Add(c, b); r = Relu(s); p = Gap(r); f = Flatten(p); y = Gemm(f, v)";
        check(residual, &["y"], serde_json::json!({}), "IAIIAIII x b c r p f<p");
    }

    #[test]
    fn windows_over_three_axes_are_counted_as_the_float_that_they_are() {
        let volumes =
            "c = Conv3(x, w); r = Relu(c); p = Average3(r); g = Gap(p); f = Flatten(g); y = Gemm(f, v)";
        check(volumes, &["y"], serde_json::json!({}), "SFFFDI f");
        check(volumes, &["y"], serde_json::json!({"target": "openvino"}), "IAIIII x r p g f<g");
        check("c = Conv3(x, small); y = Conv3(c, w)", &["y"], serde_json::json!({}), "FS ");
        check(
            "c = Conv(x, w); p = Average3(c); y = Conv(p, v)",
            &["y"],
            serde_json::json!({}),
            "IFI x c p y",
        );
    }

    #[test]
    fn a_transformer_keeps_only_its_products_in_integers() {
        let block = "n = Norm(x, g); q = MatMul(n, w1); k = MatMul(n, w2); s = MatMul(q, k); t = Add(s, x); h = MatMul(t, w3); e = Gelu(h); y = MatMul(e, w4)";
        check(block, &["y"], serde_json::json!({}), "FIIFFIFI n t e");
        let gemms = "n = Norm(x, g); h = Gemm(n, w1); e = Gelu(h); z = Gemm(e, w2); y = Add(z, x)";
        check(gemms, &["y"], serde_json::json!({}), "FIFIF n e");
    }

    #[test]
    fn a_clamp_is_absorbed_only_where_nothing_is_lost() {
        for (lines, outputs, want) in [
            ("c = Conv(x, w); r = Relu(c); y = Conv(r, w2)", &["y"][..], "IAI x r y"),
            ("c = Conv(x, w); r = Relu(c); y = Conv(r, w2)", &["y", "c"], "III x c r y"),
            ("c = Conv(x, w); r = Relu(c); z = Conv(c, w3); y = Conv(r, w2)", &["y", "z"], "IIII x c r z y"),
            ("c = Conv(x, w); r = Clip(c, one, six); y = Conv(r, w2)", &["y"], "III x c r y"),
            ("c = Conv(x, w); r = Relu(c); s = Clip(r, zero, six); y = Conv(s, w2)", &["y"], "IAAI x s y"),
            ("g = Gemm(x, w); y = Relu(g)", &["y"], "IF x"),
        ] {
            check(lines, outputs, serde_json::json!({}), want);
        }
    }

    #[test]
    fn a_function_of_one_value_is_a_table() {
        for (lines, outputs, want) in [
            // SiLU, and one that goes on to another.
            ("c = Conv(x, w); s = Sigmoid(c); m = Mul(c, s); y = Conv(m, v)", &["y"][..], "IiII x c m y"),
            (
                "c = Conv(x, w); s = Sigmoid(c); m = Mul(c, s); h = Mul(m, six); y = Conv(h, v)",
                &["y"],
                "IiiII x c h y",
            ),
            // What is read on the way is a value of its own.
            ("c = Conv(x, w); s = Sigmoid(c); m = Mul(c, s); y = Conv(m, v)", &["y", "s"], "IIII x c s m y"),
            // Nobody multiplies the result.
            ("c = Conv(x, w); s = Sigmoid(c); y = Mul(c, s)", &["y"], "IFF x c"),
            // Squeeze and excitation: two values.
            (
                "c = Conv(x, w); p = Gap(c); d = Conv(p, u); s = Sigmoid(d); m = Mul(c, s); y = Conv(m, v)",
                &["y"],
                "IIIIII x c p d s m y",
            ),
        ] {
            check(lines, outputs, serde_json::json!({}), want);
        }
        let kept = serde_json::json!({"keep_float": ["n_s"]});
        check("c = Conv(x, w); s = Sigmoid(c); m = Mul(c, s); y = Conv(m, v)", &["y"], kept, "IFFI x c m y");
    }

    #[test]
    fn a_quick_function_of_sums_is_absorbed() {
        let plain = || serde_json::json!({});
        for (lines, outputs, recipe, want) in [
            ("c = Conv(x, w); h = HardSwish(c); y = Conv(h, v)", &["y"][..], plain(), "IAI x h y"),
            ("g = Gemm(x, w); h = HardSwish(g); y = Gemm(h, v)", &["y"], plain(), "IAI x h"),
            // Others see the sums.
            ("c = Conv(x, w); h = HardSwish(c); y = Conv(h, v)", &["y", "c"], plain(), "III x c h y"),
            (
                "c = Conv(x, w); h = HardSwish(c); z = Conv(c, u); y = Conv(h, v)",
                &["y", "z"],
                plain(),
                "IIII x c h z y",
            ),
            // Nobody computes with the codes.
            ("g = Gemm(x, w); y = HardSwish(g)", &["y"], plain(), "IF x"),
            (
                "c = Conv(x, w); h = HardSwish(c); y = Conv(h, v)",
                &["y"],
                serde_json::json!({"functions": "table"}),
                "III x c h y",
            ),
            (
                "c = Conv(x, w); h = HardSwish(c); y = Conv(h, v)",
                &["y"],
                serde_json::json!({"keep_float": ["n_h"]}),
                "IFI x c h y",
            ),
            (
                "c = Conv(x, w); h = HardSwish(c); y = Conv(h, v)",
                &["y"],
                serde_json::json!({"target": "openvino"}),
                "III x c h",
            ),
            // An exponential takes long.
            (
                "c = Conv(x, w); s = Sigmoid(c); m = Mul(c, s); y = Conv(m, v)",
                &["y"],
                serde_json::json!({"functions": "exact"}),
                "IAAI x m y",
            ),
        ] {
            check(lines, outputs, recipe, want);
        }
    }

    #[test]
    fn codes_are_split_and_joined() {
        let block = "c = Conv(x, w); a b = Split(c); d = Conv(b, v); j = Concat(a, b, d); y = Conv(j, u)";
        check(block, &["y"], serde_json::json!({}), "IIIII x c a<c b<c d j y");
        check(
            "c = Conv(x, w); j = Concat(c, x); y = Conv(j, u)",
            &["y"],
            serde_json::json!({}),
            "IDI x c j y",
        );
        check("c = Conv(x, w); a b = Split(c); y = Norm(a, g)", &["y"], serde_json::json!({}), "IDF x c");
    }

    #[test]
    fn codes_end_where_nobody_computes_with_them() {
        check("c = Conv(x, w); m = MaxPool(c); y = Gelu(m)", &["y"], serde_json::json!({}), "IFF x c");
        check("c = Conv(x, w); f = Flatten(c); y = Gelu(f)", &["y"], serde_json::json!({}), "IDF x c");
        check(
            "a = Conv(x, w); b = Conv(x, v); s = Add(a, b); r = Relu(s); y = Norm(r, g)",
            &["y"],
            serde_json::json!({}),
            "IIFFF x a b",
        );
        check("f = Flatten(x); y = Gemm(f, w)", &["y"], serde_json::json!({}), "DI f");
    }

    #[test]
    fn a_large_table_is_stored_in_codes() {
        check("e = Gather(table, x); y = MatMul(e, w)", &["y"], serde_json::json!({}), "LI e");
        check("e = Gather(small, x); y = MatMul(e, w)", &["y"], serde_json::json!({}), "DI e");
        let kept = serde_json::json!({"keep_float": ["n_e"]});
        check("e = Gather(table, x); y = MatMul(e, w)", &["y"], kept, "FI e");
    }

    #[test]
    fn the_recipe_keeps_nodes_in_float_by_name() {
        let lines = "a = Conv(x, w); b = Conv(a, v); s = Add(a, b); y = Conv(s, u)";
        check(lines, &["y"], serde_json::json!({"keep_float": ["n_b"]}), "IFFI x a s y");
        let recipe = Recipe::parse(&serde_json::json!({"keep_float": ["nope*"]})).unwrap();
        assert!(matches!(plan(&graph(lines, &["y"]), &recipe), Err(Error::NoMatch { .. })));
    }
}
