//! Where a function of one value does not change any more: codes beyond tell nothing, and a range without them has a finer
//! scale. HardSwish is 0 below −3, SiLU nearly so below −7.

use crate::engine::exec::{self, Options};
use crate::engine::graph::function::Function;
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::quant::histogram::{Bin, Histogram};
use crate::engine::quant::walk::session_of;
use crate::engine::tensor::{DType, Tensor};

/// Places where the function is looked at.
const PLACES: usize = 4096;
/// So far below the largest exponent of a row a term is nothing in f32, also a million times: e⁻³² is 10⁻¹⁴.
const EXPONENTS: f64 = 32.0;
/// By so much, as a share of the span of its results, it may change beyond the range: a quarter of a code.
const TOLERANCE: f32 = 0.25 / 255.0;

/// The range of the source outside of which `function` stays about what it is at its ends; within `range`. `None` where it
/// has several sources or cannot be looked at.
///
/// # Errors
/// Where its nodes cannot be run.
pub fn telling_range(
    graph: &Graph,
    function: &Function,
    range: (f32, f32),
    options: &Options,
) -> Result<Option<(f32, f32)>, exec::Error> {
    let &[source] = &function.sources[..] else { return Ok(None) };
    let nodes: Vec<&Node> = function.nodes.iter().map(|&n| &graph.nodes[n]).collect();
    let Some(result) = nodes.last().and_then(|last| last.outputs.first()) else { return Ok(None) };
    let (session, inputs) = session_of(graph, &nodes, &[*result], None, options.clone())?;
    if inputs != [source] {
        return Ok(None);
    }
    let step = (range.1 - range.0) / (PLACES - 1) as f32;
    let places: Vec<f32> = (0..PLACES).map(|i| range.0 + step * i as f32).collect();
    let name: &str = &graph.value(source).name;
    let made = session.run(&[(name, &Tensor::from_slice(&[PLACES], &places))])?;
    let results = made.first().filter(|t| t.dtype() == DType::F32 && t.len() == PLACES);
    Ok(results.map(|results| {
        let results = results.slice::<f32>();
        let reversed: Vec<f32> = results.iter().rev().copied().collect();
        let [low, high] = [flat_places(results), flat_places(&reversed)];
        if low + high >= PLACES { range } else { (places[low], places[PLACES - 1 - high]) }
    }))
}

/// How many places from the first on one is a substitute for all before it.
fn flat_places(results: &[f32]) -> usize {
    let ends = |values: &[f32]| {
        values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)))
    };
    let (least, most) = ends(results);
    let tolerance = TOLERANCE * (most - least);
    let (mut lo, mut hi, mut flat) = (f32::INFINITY, f32::NEG_INFINITY, 0);
    for (i, &x) in results.iter().enumerate() {
        (lo, hi) = (lo.min(x), hi.max(x));
        if x - lo <= tolerance && hi - x <= tolerance {
            flat = i;
        }
        if hi - lo > 2.0 * tolerance {
            break;
        }
    }
    flat
}

/// The range that tells a Softmax anything, of what it was seen to read. A mask adds −10,000 or less to what is to have no
/// weight: codes that reach so far are 0.3 apart in 16 bits, where they should tell exponents apart. Beyond a gap of
/// [`EXPONENTS`] below the other values it does not matter how far: each row with one of the others gives those nothing. A
/// row without any of them has equal weights. `None` where nothing was seen.
pub fn telling_exponents(histogram: &Histogram) -> Option<(f32, f32)> {
    let (min, max) = histogram.range()?;
    let (mut bins, mut least): (Vec<Bin>, f64) = (histogram.bins().collect(), max.into());
    if bins.iter().any(|bin| bin.hi - bin.lo > EXPONENTS) {
        // The bins are too wide to see the gap: exponents are as far below zero as above.
        return Some((min.max(-max.abs() - EXPONENTS as f32), max));
    }
    bins.extend((histogram.zeros() > 0).then_some(Bin { lo: 0.0, hi: 0.0, count: histogram.zeros() }));
    bins.sort_by(|a, b| b.hi.total_cmp(&a.hi));
    for bin in bins {
        if bin.hi < least - EXPONENTS {
            break;
        }
        least = least.min(bin.lo);
    }
    Some((min.max((least - EXPONENTS) as f32), max))
}

/// Whether a Softmax, or several, is all that reads a value.
pub fn only_exponents(graph: &Graph, value: ValueId) -> bool {
    let mut readers = graph.nodes.iter().filter(|node| node.inputs.contains(&Some(value))).peekable();
    readers.peek().is_some()
        && !graph.outputs.contains(&value)
        && readers.all(|node| matches!(node.op, Op::Softmax { log: false, .. }))
}

/// Whether all that reads a value belongs to the function.
pub fn reads_alone(graph: &Graph, function: &Function, value: ValueId) -> bool {
    let reads = |node: &Node| node.inputs.contains(&Some(value));
    !graph.outputs.contains(&value)
        && graph.nodes.iter().enumerate().all(|(n, node)| !reads(node) || function.nodes.contains(&n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::Value;
    use crate::engine::graph::op::{Binary, Unary};

    /// `f(x)` of unary operators one after the other, the last times `x` on request.
    fn function(steps: &[Unary], times_x: bool) -> (Graph, Function) {
        let mut g = Graph::default();
        let mut value =
            |name: String| g.add_value(Value { name, dtype: Some(DType::F32), ..Value::default() });
        let values: Vec<ValueId> = (0..steps.len() + 2).map(|i| value(format!("v{i}"))).collect();
        for (i, &step) in steps.iter().enumerate() {
            let inputs = vec![Some(values[i])];
            g.nodes.push(Node::new(format!("n{i}"), Op::Unary(step), inputs, vec![values[i + 1]]));
        }
        if times_x {
            let inputs = vec![Some(values[0]), Some(values[steps.len()])];
            let outputs = vec![values[steps.len() + 1]];
            g.nodes.push(Node::new("times".to_owned(), Op::Binary(Binary::Mul), inputs, outputs));
        }
        g.inputs = vec![values[0]];
        let nodes = (0..g.nodes.len()).collect();
        (g, Function { sources: vec![values[0]], nodes })
    }

    #[test]
    fn a_function_tells_up_to_where_it_is_flat() {
        let hard = Unary::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 };
        for (steps, times_x, range, want) in [
            (vec![hard], false, (-9.0, 9.0), (-3.0, 3.0)),
            (vec![hard], true, (-9.0, 9.0), (-3.0, 9.0)),
            (vec![hard], true, (-1.0, 2.0), (-1.0, 2.0)),
            // x · sigmoid(x) is −0.009 at −6.6, a quarter of a code of 9.3.
            (vec![Unary::Sigmoid], true, (-20.0, 9.0), (-6.6, 9.0)),
            (vec![Unary::Relu], false, (-4.0, 4.0), (0.0, 4.0)),
            (vec![Unary::Abs], false, (-4.0, 4.0), (-4.0, 4.0)),
        ] {
            let (graph, function) = function(&steps, times_x);
            let found = telling_range(&graph, &function, range, &Options::default()).unwrap().unwrap();
            let near = |a: f32, b: f32| (a - b).abs() < 0.25;
            assert!(near(found.0, want.0) && near(found.1, want.1), "{steps:?} {found:?} {want:?}");
            assert!(reads_alone(&graph, &function, function.sources[0]));
        }
    }

    #[test]
    fn a_mask_before_a_softmax_takes_no_codes() {
        for (values, want) in [
            (&[-10_001.0f32, -9_990.0, -7.5, 0.0, 4.5][..], (-40.0, 4.5)),
            // A gap is no mask where exponents of the other side may have weight.
            (&[-40.0, -12.0, 4.5], (-40.0, 4.5)),
            (&[-3.0, 2.0], (-3.0, 2.0)),
            (&[f32::MIN, -3.0, 4.5], (-36.5, 4.5)),
            (&[-500.0, 0.0], (-32.0, 0.0)),
        ] {
            let mut histogram = Histogram::default();
            histogram.observe(values);
            let (lo, hi) = telling_exponents(&histogram).unwrap();
            // Ends of bins: of 4 up to 16,384.
            assert!((lo - want.0).abs() <= 4.0 && hi == want.1, "{values:?}: {lo} to {hi}");
        }
        assert_eq!(telling_exponents(&Histogram::default()), None);
        let mut graph = function(&[Unary::Relu], false).0;
        let (x, y) = (graph.inputs[0], graph.nodes[0].outputs[0]);
        let softmax = Op::Softmax { axis: -1, log: false, coerce_2d: false };
        graph.nodes.push(Node::new("softmax".to_owned(), softmax, vec![Some(y)], vec![]));
        assert!(only_exponents(&graph, y) && !only_exponents(&graph, x));
        graph.outputs = vec![y];
        assert!(!only_exponents(&graph, y));
    }

    #[test]
    fn what_others_read_is_told_apart() {
        let (mut graph, function) = function(&[Unary::Relu], false);
        graph.outputs = vec![function.sources[0]];
        assert!(!reads_alone(&graph, &function, function.sources[0]));
        graph.outputs.clear();
        graph.nodes.push(Node::new(
            "other".to_owned(),
            Op::Unary(Unary::Abs),
            vec![Some(function.sources[0])],
            vec![],
        ));
        assert!(!reads_alone(&graph, &function, function.sources[0]));
    }
}
