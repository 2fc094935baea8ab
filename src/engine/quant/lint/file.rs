//! What is to say of a file as a whole, for one target: opsets, weights that are there in float, and scales that do not
//! fit.

use std::collections::BTreeMap;

use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::Target;
use crate::engine::tensor::DType;

use super::net::Net;
use super::{Note, Severity};

/// How many names one note lists.
const LISTED_MAX: usize = 5;
/// Elements beyond which constant reals are taken for weights.
const REALS_MIN: usize = 64;
/// Most pairs of tensors that are compared.
const PAIRS_MAX: usize = 1 << 16;

/// The notes for a target.
pub(super) fn notes(graph: &Graph, target: Target) -> Vec<Note> {
    let net = Net::new(graph);
    let checks: [fn(&Net, Target) -> Option<Note>; 7] = [
        not_quantized,
        opset,
        scale_shapes,
        missing_zero_points,
        float_weights,
        quantized_while_running,
        bodies,
    ];
    checks.iter().filter_map(|check| check(&net, target)).collect()
}

pub(super) fn note(severity: Severity, rule: &'static str, reason: String, remedy: &str) -> Option<Note> {
    Some(Note { severity, rule, reason, remedy: remedy.to_owned() })
}

/// Some names, and how many more.
pub(super) fn listed(names: &[String]) -> String {
    let some: Vec<String> = names.iter().take(LISTED_MAX).map(|n| format!("`{n}`")).collect();
    match names.len().saturating_sub(LISTED_MAX) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}

fn boundaries(net: &Net) -> impl Iterator<Item = usize> {
    net.nodes().into_iter().filter(|&n| net.is_quantizer(n) || net.is_dequantizer(n))
}

fn not_quantized(net: &Net, _: Target) -> Option<Note> {
    let any = net.nodes().into_iter().any(|n| {
        net.is_quantizer(n)
            || net.is_dequantizer(n)
            || super::net::on_codes(net.node(n))
            || net.node(n).op.name() == "DynamicQuantizeLinear"
    });
    match any {
        true => None,
        false => note(
            Severity::Warning,
            "not_quantized",
            "the file has no QuantizeLinear, DequantizeLinear or integer operator: it is a float model"
                .to_owned(),
            "quantize it",
        ),
    }
}

fn opset(net: &Net, target: Target) -> Option<Note> {
    let opset = net.graph.opset;
    let per_axis: Vec<String> = boundaries(net)
        .filter(|&n| net.params(n).is_some_and(|p| p.scale.len() > 1))
        .map(|n| net.name(n).to_owned())
        .collect();
    if (1..13).contains(&opset) && !per_axis.is_empty() {
        let text = format!(
            "the file speaks opset {opset}, but scales by channel ({}) are from opset 13 on",
            listed(&per_axis)
        );
        return note(Severity::Error, "opset_per_axis", text, "write the file in opset 13 or later");
    }
    let has_pairs = boundaries(net).next().is_some();
    match target {
        Target::Tensorrt if (1..13).contains(&opset) && has_pairs => note(
            Severity::Error,
            "opset",
            format!("the file speaks opset {opset}; TensorRT takes int8 Q and DQ from opset 13 on"),
            "write the file in opset 13 or later",
        ),
        Target::Onnxruntime | Target::Openvino if opset > 21 && has_pairs => note(
            Severity::Note,
            "opset_new",
            format!("the file speaks opset {opset}; older releases know Q and DQ up to opset 21"),
            "write the file in opset 13 or 21 for the widest reach",
        ),
        _ => None,
    }
}

/// Scales along an axis of another length, or zero points unlike their scales.
fn scale_shapes(net: &Net, _: Target) -> Option<Note> {
    let mut wrong = Vec::new();
    for n in boundaries(net) {
        let Some(params) = net.params(n) else { continue };
        let node = net.node(n);
        let zero = net.constant(node.input(2)).map(|z| z.shape().to_vec());
        if zero
            .as_ref()
            .is_some_and(|z| *z != params.shape && !(params.is_scalar() && z.iter().all(|&d| d == 1)))
        {
            wrong.push(format!(
                "{} (scale {:?}, zero point {:?})",
                net.name(n),
                params.shape,
                zero.unwrap_or_default()
            ));
            continue;
        }
        let Some(data) = net.constant(node.input(0)).filter(|_| params.scale.len() > 1) else { continue };
        let rank = data.shape().len() as i64;
        let axis = if params.axis < 0 { params.axis + rank } else { params.axis };
        let length = usize::try_from(axis).ok().and_then(|axis| data.shape().get(axis).copied());
        if length != Some(params.scale.len()) {
            let place = length.map_or("no such axis".to_owned(), |l| format!("{l} long"));
            wrong.push(format!(
                "{} ({} scales along axis {}, which is {place})",
                net.name(n),
                params.scale.len(),
                params.axis
            ));
        }
    }
    match wrong.is_empty() {
        true => None,
        false => note(
            Severity::Error,
            "scale_shape",
            format!("scales do not fit what they scale: {}", listed(&wrong)),
            "set `axis` to the one the scales were taken along",
        ),
    }
}

/// A Q without zero point gives `u8`, whatever the weights were meant to be.
fn missing_zero_points(net: &Net, _: Target) -> Option<Note> {
    let bare = |n: &usize| net.is_quantizer(*n) && net.node(*n).input(2).is_none();
    let constant = |n: &usize| net.node(*n).input(0).is_some_and(|id| net.is_constant(id));
    let names: Vec<String> =
        boundaries(net).filter(|n| bare(n) && constant(n)).map(|n| net.name(n).to_owned()).collect();
    match names.is_empty() {
        true => None,
        false => note(
            Severity::Error,
            "weights_without_zero_point",
            format!(
                "weights go through QuantizeLinear without a zero point ({}): negative ones become 0",
                listed(&names)
            ),
            "write an int8 zero point",
        ),
    }
}

/// Weights in float beside their codes.
fn float_weights(net: &Net, _: Target) -> Option<Note> {
    let mut real: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
    let mut coded: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
    let mut bytes = 0;
    let mut twice = Vec::new();
    for (id, value) in net.graph.values.iter().enumerate() {
        let id = ValueId(u32::try_from(id).unwrap_or(u32::MAX));
        let Some(tensor) = &value.constant else { continue };
        let read_by =
            |test: fn(&Net, usize) -> bool| net.readers(id).iter().any(|&(n, at)| at == 0 && test(net, n));
        match tensor.dtype() {
            DType::I8 | DType::U8 if read_by(Net::is_dequantizer) => {
                coded.entry(tensor.len()).or_default().push(id)
            }
            DType::F32 if tensor.len() > REALS_MIN => real.entry(tensor.len()).or_default().push(id),
            _ => {}
        }
    }
    let pairs = coded.iter().flat_map(|(length, codes)| {
        let reals = real.get(length).map_or(&[][..], Vec::as_slice);
        codes.iter().flat_map(move |&c| reals.iter().map(move |&r| (*length, c, r)))
    });
    for (length, codes, reals) in pairs.take(PAIRS_MAX) {
        if stands_for(net, codes, reals) {
            twice.push(net.value_name(reals).to_owned());
            bytes += 4 * length;
        }
    }
    twice.sort();
    twice.dedup();
    match twice.is_empty() {
        true => None,
        false => note(
            Severity::Warning,
            "weights_twice",
            format!("{bytes} bytes of weights are there in float beside their codes: {}", listed(&twice)),
            "share one dequantized tensor among its readers, or leave the float copy out",
        ),
    }
}

/// Whether codes are those of reals, up to half a step, on a few elements.
fn stands_for(net: &Net, codes: ValueId, reals: ValueId) -> bool {
    let (Some(q), Some(x)) = (net.constant(Some(codes)), net.constant(Some(reals))) else { return false };
    let dq = net.readers(codes).iter().find(|r| net.is_dequantizer(r.0));
    let Some(params) = dq.and_then(|r| net.params(r.0)) else { return false };
    if q.shape() != x.shape() {
        return false;
    }
    let rank = q.shape().len() as i64;
    let axis =
        if params.axis < 0 { params.axis + rank } else { params.axis }.clamp(0, rank.max(1) - 1) as usize;
    let inner: usize = q.shape().iter().skip(axis + 1).product();
    let length = q.shape().get(axis).copied().unwrap_or(1).max(1);
    let code = |i: usize| match q.dtype() {
        DType::I8 => i64::from(q.slice::<i8>()[i]),
        _ => i64::from(q.slice::<u8>()[i]),
    };
    let x = x.slice::<f32>();
    let step = (q.len() / 64).max(1);
    (0..q.len()).step_by(step).all(|i| {
        let c =
            if params.scale.len() == 1 { 0 } else { (i / inner.max(1) % length).min(params.scale.len() - 1) };
        let zero = params.zeros.get(c).or(params.zeros.first()).copied().unwrap_or(0);
        let far = x[i] - (code(i) - zero) as f32 * params.scale[c];
        far.abs() <= 0.501 * params.scale[c].abs()
    })
}

/// Weights that are stored in float and become codes when the file is loaded.
fn quantized_while_running(net: &Net, _: Target) -> Option<Note> {
    let names: Vec<String> = boundaries(net)
        .filter(|&n| net.is_quantizer(n))
        .filter_map(|n| {
            net.node(n).input(0).filter(|id| net.graph.constant(*id).is_some_and(|t| t.len() > 1))
        })
        .map(|id| net.value_name(id).to_owned())
        .collect();
    match names.is_empty() {
        true => None,
        false => note(
            Severity::Note,
            "weights_in_float",
            format!("weights are stored in float and quantized when the file is loaded: {}", listed(&names)),
            "store their codes: a quarter of the bytes",
        ),
    }
}

fn bodies(net: &Net, _: Target) -> Option<Note> {
    let names: Vec<String> = net
        .nodes()
        .into_iter()
        .filter(|&n| !net.node(n).bodies.is_empty())
        .map(|n| net.name(n).to_owned())
        .collect();
    match names.is_empty() {
        true => None,
        false => note(
            Severity::Note,
            "bodies",
            format!("what stands in the bodies of {} was not looked at", listed(&names)),
            "",
        ),
    }
}
