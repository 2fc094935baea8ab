//! Which operators there are: ONNX name to the function that reads its attributes.

use crate::engine::graph::operator::{Call, Other};
use crate::engine::tensor::Tensor;

use super::{Entry, Made, quantized, quantized_math, quantized_products, select};

const FAMILIES: &[&[Entry]] =
    &[quantized::OPERATORS, quantized_math::OPERATORS, quantized_products::OPERATORS, select::OPERATORS];

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
    let Made { operator, added, dropped } = parse(call)?;
    let attributes = call.attributes.without(dropped);
    Ok(Some(Parsed { other: Other { name, domain, operator, attributes }, added }))
}

/// Domain and name of every operator that [`parse`] knows.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    FAMILIES.iter().flat_map(|family| family.iter()).map(|(domain, name, _)| (*domain, *name))
}
