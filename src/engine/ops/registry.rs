//! Which operators there are: ONNX name to the function that reads its attributes.

use crate::engine::graph::attributes::Attributes;
use crate::engine::graph::operator::{Call, Other};
use crate::engine::tensor::Tensor;

use super::{
    Entry, attention_microsoft, attention_onnx, chance, channel_norm, col2im, conv_transpose, cumulate,
    curves, einsum, elements, extremes, fourier, fused_matmul, gather, geometry, layer_norm,
    linear_attention, losses, pooling, quantized, quantized_conv, quantized_math, quantized_products,
    rearrange, recurrent, regions, resize, rotary, sampling, scatter, select, signal, tables, unique,
};

const FAMILIES: &[&[Entry]] = &[
    attention_microsoft::OPERATORS,
    attention_onnx::OPERATORS,
    chance::OPERATORS,
    channel_norm::OPERATORS,
    col2im::OPERATORS,
    conv_transpose::OPERATORS,
    cumulate::OPERATORS,
    curves::OPERATORS,
    einsum::OPERATORS,
    elements::OPERATORS,
    extremes::OPERATORS,
    fourier::OPERATORS,
    fused_matmul::OPERATORS,
    gather::OPERATORS,
    geometry::OPERATORS,
    layer_norm::OPERATORS,
    linear_attention::OPERATORS,
    losses::OPERATORS,
    pooling::OPERATORS,
    quantized::OPERATORS,
    quantized_conv::OPERATORS,
    quantized_math::OPERATORS,
    quantized_products::OPERATORS,
    rearrange::OPERATORS,
    recurrent::OPERATORS,
    regions::OPERATORS,
    resize::OPERATORS,
    rotary::OPERATORS,
    sampling::OPERATORS,
    scatter::OPERATORS,
    select::OPERATORS,
    signal::OPERATORS,
    tables::OPERATORS,
    unique::OPERATORS,
];

/// An operator and the operands that its node wrote as attributes.
pub struct Parsed {
    /// The operator.
    pub other: Other,
    /// Operands that older opsets wrote as attributes: position and data.
    pub added: Vec<(usize, Tensor)>,
}

/// What a node does; `None` where the operator is not known here.
///
/// # Errors
/// A sentence about the attribute that is wrong or not supported.
pub fn parse(call: &Call<'_>) -> Result<Option<Parsed>, String> {
    let known = FAMILIES.iter().flat_map(|family| family.iter());
    let mut found = known.filter(|(domain, name, _)| *domain == call.domain && *name == call.name);
    let Some((domain, name, parse)) = found.next() else { return Ok(None) };
    let made = parse(call)?;
    let instead: Vec<&str> = made.written.iter().map(|(name, _)| name.as_str()).collect();
    let kept = call.attributes.without(made.dropped).without(&instead);
    let attributes = Attributes::new(kept.iter().chain(&made.written).cloned().collect());
    let name = made.name.unwrap_or(name);
    Ok(Some(Parsed { other: Other { name, domain, operator: made.operator, attributes }, added: made.added }))
}

/// Domain and name of every operator that [`parse`] knows.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    FAMILIES.iter().flat_map(|family| family.iter()).map(|(domain, name, _)| (*domain, *name))
}
