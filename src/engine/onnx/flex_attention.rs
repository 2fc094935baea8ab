//! FlexAttention (ai.onnx.preview): attention whose scores and probabilities pass through graphs of the model. The node
//! becomes its parts, with those graphs among them.

use crate::engine::tensor::DType;

use super::functions::inlined;
use super::parts::{Parts, float, int, ints};
use super::tensors::attributes_from_proto;
use super::{AttributeProto, FunctionProto, NodeProto, attribute_type};

/// The parts of a node called `name` whose query is of `dtype`, where that is known; `None` where it is another operator.
///
/// # Errors
/// A sentence about the attribute that is wrong.
pub(super) fn parts(
    name: &str,
    proto: &NodeProto,
    dtype: Option<DType>,
) -> Result<Option<Vec<NodeProto>>, String> {
    if proto.domain != "ai.onnx.preview" || proto.op_type != "FlexAttention" {
        return Ok(None);
    }
    // Graphs are no attributes that can be read; they are found below.
    let plain: Vec<AttributeProto> = proto.attribute.iter().filter(|a| a.g.is_none()).cloned().collect();
    let a = attributes_from_proto(&NodeProto { attribute: plain, ..proto.clone() })?;
    let single = i64::from(DType::F32.onnx_number());
    let double = i64::from(DType::F64.onnx_number());
    let precision = if dtype == Some(DType::F64) { double } else { single };
    let precision = a.int_or("softmax_precision", precision)?;
    let mut parts = Parts::new(name, proto);
    let [q, k, v] = [0, 1, 2].map(|index| parts.input(index));
    let to_precision = |parts: &mut Parts<'_>, x: &str| parts.add("Cast", &[x], vec![int("to", precision)]);
    let [q_cast, k_cast, v_cast] = [q, k, v].map(|x| to_precision(&mut parts, x));

    // The query heads that share a head of keys lie one after another: they are more rows of that head.
    let shared_q = shape(&mut parts, &[(q, 0, 1), (k, 1, 2), ("", 0, 0), (q, 3, 4)]);
    let rows = parts.add("Reshape", &[&q_cast, &shared_q], vec![]);
    let turned = parts.add("Transpose", &[&k_cast], vec![ints("perm", &[0, 1, 3, 2])]);
    let products = parts.add("MatMul", &[&rows, &turned], vec![]);
    let scale = match a.float("scale")? {
        Some(scale) => parts.add("Constant", &[], vec![float("value_float", scale)]),
        None => {
            let size = parts.add("Shape", &[q], vec![int("start", 3), int("end", 4)]);
            let size = parts.add("Cast", &[&size], vec![int("to", single)]);
            let root = parts.add("Sqrt", &[&size], vec![]);
            parts.add("Reciprocal", &[&root], vec![])
        }
    };
    let scale = to_precision(&mut parts, &scale);
    let scaled = parts.add("Mul", &[&products, &scale], vec![]);
    let scores_shape = shape(&mut parts, &[(q, 0, 3), (k, 2, 3)]);
    let scores = parts.add("Reshape", &[&scaled, &scores_shape], vec![]);
    let scores = modified(&mut parts, "score_mod", scores)?;
    let probabilities = parts.add("Softmax", &[&scores], vec![int("axis", -1)]);
    let probabilities = modified(&mut parts, "prob_mod", probabilities)?;
    let shared_p = shape(&mut parts, &[(q, 0, 1), (k, 1, 2), ("", 0, 0), (k, 2, 3)]);
    let rows = parts.add("Reshape", &[&probabilities, &shared_p], vec![]);
    let y = parts.add("MatMul", &[&rows, &v_cast], vec![]);
    let y_shape = shape(&mut parts, &[(q, 0, 3), (v, 3, 4)]);
    let y = parts.add("Reshape", &[&y, &y_shape], vec![]);
    let y = parts.add("CastLike", &[&y, q], vec![]);
    Ok(Some(parts.finish(&y, 0)))
}

/// A shape of dimensions of values, from one on and up to another; without a value whatever is left.
fn shape(parts: &mut Parts<'_>, of: &[(&str, i64, i64)]) -> String {
    let pieces: Vec<String> = of
        .iter()
        .map(|&(value, start, end)| match value {
            "" => parts.numbers(&[-1]),
            _ => parts.add("Shape", &[value], vec![int("start", start), int("end", end)]),
        })
        .collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    parts.add("Concat", &pieces, vec![int("axis", 0)])
}

/// What the graph in attribute `attribute` makes of `x`; `x` where there is none.
fn modified(parts: &mut Parts<'_>, attribute: &str, x: String) -> Result<String, String> {
    let Some(graph) = parts.graph(attribute) else { return Ok(x) };
    let ([input], [output]) = (&graph.input[..], &graph.output[..]) else {
        return Err(format!("{attribute} has not one input and one output"));
    };
    let constant = |tensor: &super::TensorProto| NodeProto {
        output: vec![tensor.name.clone()],
        op_type: "Constant".to_owned(),
        attribute: vec![AttributeProto {
            name: "value".to_owned(),
            t: Some(Box::new(tensor.clone())),
            r#type: Some(attribute_type::TENSOR),
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    };
    let body = FunctionProto {
        input: vec![input.name.clone()],
        output: vec![output.name.clone()],
        node: graph.initializer.iter().map(constant).chain(graph.node.iter().cloned()).collect(),
        ..FunctionProto::default()
    };
    Ok(parts.add_body(attribute, &x, |name, call| inlined(&body, call, name)))
}

#[cfg(test)]
mod tests {
    use super::super::{GraphProto, ValueInfoProto};
    use super::*;

    #[test]
    fn the_graphs_of_a_node_stand_among_its_parts() {
        let value = |name: &str| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() };
        let negate = NodeProto {
            input: vec!["scores".to_owned()],
            output: vec!["negated".to_owned()],
            op_type: "Neg".to_owned(),
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: vec![negate],
            input: vec![value("scores")],
            output: vec![value("negated")],
            ..GraphProto::default()
        };
        let attribute = |graph: GraphProto| AttributeProto {
            name: "score_mod".to_owned(),
            g: Some(Box::new(graph)),
            ..AttributeProto::default()
        };
        let node = |graph: GraphProto| NodeProto {
            input: ["q", "k", "v"].map(str::to_owned).to_vec(),
            output: vec!["y".to_owned()],
            op_type: "FlexAttention".to_owned(),
            domain: "ai.onnx.preview".to_owned(),
            attribute: vec![attribute(graph)],
            ..NodeProto::default()
        };
        let made = parts("n", &node(graph), None).unwrap().unwrap();
        let at = |op: &str| made.iter().position(|n| n.op_type == op).unwrap();
        let (neg, softmax) = (&made[at("Neg")], &made[at("Softmax")]);
        assert_eq!(neg.output[0], softmax.input[0]);
        assert_eq!(made.last().unwrap().output, ["y"]);
        let empty = parts("n", &node(GraphProto::default()), None).unwrap_err();
        assert!(empty.contains("score_mod"), "{empty}");
    }
}
