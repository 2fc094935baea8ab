//! What is known of values before a run, and what every shape rule asks of its operands.

use std::sync::Arc;

use crate::engine::tensor::{DType, Tensor};

/// Type and shape of each result of an operator.
pub type Results = Vec<(DType, Vec<usize>)>;

/// What is known of a value before a run: type and shape always, data where it is a constant.
#[derive(Clone, Debug)]
pub struct Fact {
    /// What one element is.
    pub dtype: DType,
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// The data of a constant.
    pub constant: Option<Arc<Tensor>>,
}

impl Fact {
    /// A constant.
    pub fn constant(tensor: Arc<Tensor>) -> Fact {
        Fact { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), constant: Some(tensor) }
    }

    /// A value that is computed.
    pub fn computed(dtype: DType, shape: Vec<usize>) -> Fact {
        Fact { dtype, shape, constant: None }
    }

    /// Bytes of the value.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// Why type and shape of a result cannot be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The operands do not fit the operator, whatever the data: a sentence.
    Wrong(String),
    /// They depend on this operand's data.
    AtRun(String),
}

impl From<String> for Unfit {
    fn from(reason: String) -> Unfit {
        Unfit::Wrong(reason)
    }
}

impl From<&str> for Unfit {
    fn from(reason: &str) -> Unfit {
        Unfit::Wrong(reason.to_owned())
    }
}

impl From<Unfit> for String {
    fn from(unfit: Unfit) -> String {
        match unfit {
            Unfit::Wrong(reason) => reason,
            Unfit::AtRun(what) => format!("`{what}` depends on the data"),
        }
    }
}

/// `axis` counted from the front, or what is wrong with it. `rank` itself is taken where `inclusive`.
pub fn axis_index(axis: i64, rank: usize, inclusive: bool) -> Result<usize, String> {
    let limit = rank as i64 + i64::from(inclusive);
    let index = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    match (0..limit).contains(&index) {
        true => Ok(index as usize),
        false => Err(format!("axis {axis} is outside of a tensor with {rank} dimensions")),
    }
}

/// The shape of two operands that broadcast (numpy's rule).
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    let merged = (0..rank).map(|i| match (at(a, i), at(b, i)) {
        (x, y) if x == y => Ok(x),
        (1, y) => Ok(y),
        (x, 1) => Ok(x),
        _ => Err(format!("shapes {a:?} and {b:?} do not broadcast")),
    });
    merged.collect()
}

/// Operand `index`, where it is there.
pub fn operand<'a>(inputs: &[Option<&'a Fact>], index: usize) -> Option<&'a Fact> {
    inputs.get(index).copied().flatten()
}

/// Operand `index`, or that it is missing.
pub fn needed<'a>(inputs: &[Option<&'a Fact>], index: usize) -> Result<&'a Fact, String> {
    operand(inputs, index).ok_or_else(|| format!("input {index} is missing"))
}

/// The integers of an operand that must be known before the run.
pub fn constant_ints(inputs: &[Option<&Fact>], index: usize, what: &str) -> Result<Vec<i64>, Unfit> {
    Ok(constant(inputs, index, what)?.to_i64())
}

/// The data of an operand that must be known before the run.
pub fn constant<'a>(inputs: &[Option<&'a Fact>], index: usize, what: &str) -> Result<&'a Tensor, Unfit> {
    let fact = needed(inputs, index)?;
    fact.constant.as_deref().ok_or_else(|| Unfit::AtRun(what.to_owned()))
}
