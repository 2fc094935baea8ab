//! Operators of com.microsoft that are several of ONNX's own in one: what ONNX Runtime's optimizer writes. A node of
//! theirs becomes its parts, so that whatever is done to a convolution is done to a fused one.

use crate::engine::graph::attributes::Attributes;

use super::NodeProto;
use super::parts::{Parts, float, int, text};
use super::tensors::attributes_from_proto;

/// The parts of a node called `name`; `None` where it is none of these operators.
///
/// # Errors
/// A sentence about the attribute that is wrong or not supported.
pub(super) fn parts(name: &str, proto: &NodeProto) -> Result<Option<Vec<NodeProto>>, String> {
    if proto.domain != "com.microsoft" {
        return Ok(None);
    }
    let a = attributes_from_proto(proto)?;
    let mut parts = Parts::new(name, proto);
    let result = match proto.op_type.as_str() {
        "Gelu" => parts.add("Gelu", &[parts.input(0)], vec![]),
        "BiasGelu" => {
            let x = parts.sum_of_first();
            parts.add("Gelu", &[&x], vec![])
        }
        "FastGelu" => {
            let x = parts.sum_of_first();
            parts.add("Gelu", &[&x], vec![text("approximate", "tanh")])
        }
        "QuickGelu" => {
            let alpha = parts.number(a.float_or("alpha", 1.702)?);
            let scaled = parts.add("Mul", &[parts.input(0), &alpha], vec![]);
            let gate = parts.add("Sigmoid", &[&scaled], vec![]);
            parts.add("Mul", &[parts.input(0), &gate], vec![])
        }
        "FusedMatMul" | "TransposeMatMul" => match fused_matmul(&mut parts, &a)? {
            Some(result) => result,
            None => return Ok(None),
        },
        "FusedGemm" => {
            let kept = parts.kept(&["alpha", "beta", "transA", "transB"]);
            let sum = parts.add("Gemm", &[parts.input(0), parts.input(1), parts.input(2)], kept);
            let parameters = ["activation_alpha", "activation_beta", "activation_gamma"].map(|n| a.float(n));
            let parameters: Vec<f32> =
                parameters.into_iter().flat_map(Result::transpose).collect::<Result<_, _>>()?;
            activation(&mut parts, &sum, a.text_or("activation", "")?, &parameters)?
        }
        "FusedConv" => {
            let kept = parts.kept(&["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]);
            let mut sum = parts.add("Conv", &[parts.input(0), parts.input(1), parts.input(2)], kept);
            if !parts.input(3).is_empty() {
                sum = parts.add("Add", &[&sum, parts.input(3)], vec![]);
            }
            let parameters = a.floats("activation_params")?.unwrap_or_default();
            activation(&mut parts, &sum, a.text_or("activation", "")?, &parameters)?
        }
        "EmbedLayerNormalization" => embedding(&mut parts, &a)?,
        "Attention" => attention(&mut parts, &a)?,
        _ => return Ok(None),
    };
    Ok(Some(parts.finish(&result, 0)))
}

/// A product with a factor. One that transposes is an operator of its own: how depends on the rank.
fn fused_matmul(parts: &mut Parts<'_>, a: &Attributes) -> Result<Option<String>, String> {
    for name in ["transA", "transB", "transBatchA", "transBatchB"] {
        if a.flag(name, false)? {
            return Ok(None);
        }
    }
    let product = parts.add("MatMul", &[parts.input(0), parts.input(1)], vec![]);
    let alpha = a.float_or("alpha", 1.0)?;
    if alpha == 1.0 {
        return Ok(Some(product));
    }
    let alpha = parts.number(alpha);
    Ok(Some(parts.add("Mul", &[&product, &alpha], vec![])))
}

/// The function called `name` of `x`.
fn activation(parts: &mut Parts<'_>, x: &str, name: &str, parameters: &[f32]) -> Result<String, String> {
    let names: &[&str] = match name {
        "" => return Ok(parts.add("Identity", &[x], vec![])),
        "Clip" => {
            let [lo, hi] = parameters else { return Err("its Clip has not two bounds".to_owned()) };
            let (lo, hi) = (parts.number(*lo), parts.number(*hi));
            return Ok(parts.add("Clip", &[x, &lo, &hi], vec![]));
        }
        "Relu" | "Tanh" | "Sigmoid" | "Softplus" | "Softsign" | "HardSwish" => &[],
        "LeakyRelu" | "Elu" | "ThresholdedRelu" => &["alpha"],
        "HardSigmoid" => &["alpha", "beta"],
        other => return Err(format!("activation={other} is not supported")),
    };
    let attributes = names.iter().zip(parameters).map(|(name, &value)| float(name, value)).collect();
    Ok(parts.add(name, &[x], attributes))
}

/// `ids [, segments], words, positions [, segment words], scale, bias [, mask] [, position ids]`.
fn embedding(parts: &mut Parts<'_>, a: &Attributes) -> Result<String, String> {
    let epsilon = float("epsilon", a.float_or("epsilon", 1e-12)?);
    let input = |index: usize| parts.input(index);
    let [ids, segments, words, positions, segment_words] = [0, 1, 2, 3, 4].map(input);
    let [scale, bias, mask, position_ids] = [5, 6, 7, 8].map(input);
    let word = parts.add("Gather", &[words, ids], vec![]);
    let position = if position_ids.is_empty() {
        let length = parts.add("Shape", &[ids], vec![int("start", 1), int("end", 2)]);
        let start = parts.numbers(&[0]);
        parts.add("Slice", &[positions, &start, &length], vec![])
    } else {
        parts.add("Gather", &[positions, position_ids], vec![])
    };
    let mut sum = parts.add("Add", &[&word, &position], vec![]);
    if !segments.is_empty() && !segment_words.is_empty() {
        let segment = parts.add("Gather", &[segment_words, segments], vec![]);
        sum = parts.add("Add", &[&sum, &segment], vec![]);
    }
    if parts.wants(2) {
        let shown = parts.add("Identity", &[&sum], vec![]);
        parts.rename(&shown, 2);
    }
    if parts.wants(1) {
        // How many words count; without a mask ONNX Runtime gives zeros.
        let counted = if mask.is_empty() { parts.add("Sub", &[ids, ids], vec![]) } else { mask.to_owned() };
        let axis = parts.numbers(&[1]);
        let count = parts.add("ReduceSum", &[&counted, &axis], vec![int("keepdims", 0)]);
        // 6 is int32.
        let count = parts.add("Cast", &[&count], vec![int("to", 6)]);
        parts.rename(&count, 1);
    }
    Ok(parts.add("LayerNormalization", &[&sum, scale, bias], vec![int("axis", -1), epsilon]))
}

/// `x, weights [, bias] [, mask] [, past] [, added]`: the projection, then MultiHeadAttention.
fn attention(parts: &mut Parts<'_>, a: &Attributes) -> Result<String, String> {
    a.only("do_rotary", 0)?;
    a.only("past_present_share_buffer", 0)?;
    if !parts.input(6).is_empty() {
        return Err("past_sequence_length is not supported".to_owned());
    }
    let [x, weights, bias, mask, past, added] = [0, 1, 2, 3, 4, 5].map(|index| parts.input(index));
    let mut projected = parts.add("MatMul", &[x, weights], vec![]);
    if !bias.is_empty() {
        projected = parts.add("Add", &[&projected, bias], vec![]);
    }
    let sizes = match a.ints("qkv_hidden_sizes")? {
        Some(sizes) if sizes.len() == 3 => parts.numbers(&sizes),
        Some(sizes) => return Err(format!("qkv_hidden_sizes={sizes:?} are not three sizes")),
        None => String::new(),
    };
    let count = if sizes.is_empty() { vec![int("num_outputs", 3)] } else { vec![] };
    let [q, k, v] = parts.split_in_three(&projected, &sizes, count);
    let mut pasts = [String::new(), String::new()];
    if !past.is_empty() {
        for (index, part) in pasts.iter_mut().enumerate() {
            let index = parts.index(index as i64);
            *part = parts.add("Gather", &[past, &index], vec![int("axis", 0)]);
        }
    }
    let kept = parts.kept(&["num_heads", "unidirectional", "scale", "mask_filter_value"]);
    let inputs = [&q, &k, &v, "", mask, added, &pasts[0], &pasts[1]];
    let y = parts.add_of("com.microsoft", "MultiHeadAttention", &inputs, kept);
    if parts.wants(1) {
        let outputs = ["key", "value"].map(|what| format!("{y}/present_{what}"));
        parts.more_results(&outputs);
        let front = parts.numbers(&[0]);
        let [key, value] = outputs.map(|present| parts.add("Unsqueeze", &[&present, &front], vec![]));
        let both = parts.add("Concat", &[&key, &value], vec![int("axis", 0)]);
        parts.rename(&both, 1);
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::super::{AttributeProto, attribute_type};
    use super::*;

    fn check(op: &str, inputs: &[&str], attribute: Vec<AttributeProto>, want: &[&str]) {
        let proto = NodeProto {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec!["y".to_owned()],
            op_type: op.to_owned(),
            domain: "com.microsoft".to_owned(),
            attribute,
            ..NodeProto::default()
        };
        let made = parts("n", &proto).unwrap().unwrap();
        let ops: Vec<&str> = made.iter().map(|n| n.op_type.as_str()).filter(|o| *o != "Constant").collect();
        assert_eq!(ops, want, "{op}");
        assert_eq!(made.iter().filter(|n| n.output.iter().any(|o| o == "y")).count(), 1, "{op}");
    }

    #[test]
    fn a_fused_node_is_its_parts() {
        check("BiasGelu", &["x", "b"], vec![], &["Add", "Gelu"]);
        check("FastGelu", &["x"], vec![], &["Gelu"]);
        check("QuickGelu", &["x"], vec![], &["Mul", "Sigmoid", "Mul"]);
        check("FusedMatMul", &["a", "b"], vec![float("alpha", 0.5)], &["MatMul", "Mul"]);
        check("FusedConv", &["x", "w", "", "z"], vec![text("activation", "Relu")], &["Conv", "Add", "Relu"]);
        let clip = AttributeProto {
            floats: vec![0.0, 6.0],
            r#type: Some(attribute_type::FLOATS),
            ..float("activation_params", 0.0)
        };
        check("FusedConv", &["x", "w"], vec![text("activation", "Clip"), clip], &["Conv", "Clip"]);
        check("FusedGemm", &["a", "b"], vec![text("activation", "LeakyRelu")], &["Gemm", "LeakyRelu"]);
        check(
            "Attention",
            &["x", "w", "b"],
            vec![int("num_heads", 2)],
            &["MatMul", "Add", "Split", "MultiHeadAttention"],
        );
        let norm = ["Gather", "Shape", "Slice", "Add", "LayerNormalization"];
        check("EmbedLayerNormalization", &["i", "", "w", "p", "", "g", "b"], vec![], &norm);
    }

    #[test]
    fn an_activation_that_is_not_known_is_named() {
        let proto = NodeProto {
            op_type: "FusedConv".to_owned(),
            domain: "com.microsoft".to_owned(),
            attribute: vec![text("activation", "Mish")],
            ..NodeProto::default()
        };
        assert!(parts("n", &proto).unwrap_err().contains("Mish"));
    }
}
