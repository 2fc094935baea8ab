//! Which operators there are: ONNX name to the function that reads its attributes.

use crate::engine::graph::operator::{Call, Other};
use crate::engine::tensor::Tensor;

use super::{
    Entry, Made, chance, cumulate, curves, einsum, elements, extremes, gather, geometry, rearrange, regions,
    scatter, select, tables, unique,
};

const FAMILIES: &[&[Entry]] = &[
    chance::OPERATORS,
    cumulate::OPERATORS,
    curves::OPERATORS,
    einsum::OPERATORS,
    elements::OPERATORS,
    extremes::OPERATORS,
    gather::OPERATORS,
    geometry::OPERATORS,
    rearrange::OPERATORS,
    regions::OPERATORS,
    scatter::OPERATORS,
    select::OPERATORS,
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
    let Made { operator, name: today, added, set, dropped } = parse(call)?;
    let mut attributes = call.attributes.without(dropped);
    set.into_iter().for_each(|(name, value)| attributes.set(name, value));
    let name = today.unwrap_or(name);
    Ok(Some(Parsed { other: Other { name, domain, operator, attributes }, added }))
}

/// Domain and name of every operator that [`parse`] knows.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    FAMILIES.iter().flat_map(|family| family.iter()).map(|(domain, name, _)| (*domain, *name))
}
