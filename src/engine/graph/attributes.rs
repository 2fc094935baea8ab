//! Typed access to the attributes of a node.

use bytes::Bytes;

use crate::engine::onnx::{AttributeProto, NodeProto};
use crate::engine::tensor::Tensor;

use super::tensors::tensor_from_proto;

/// The attributes of one node. Reading one of another type than asked is an error that names it.
pub(super) struct Attributes<'a>(pub(super) &'a NodeProto);

impl Attributes<'_> {
    fn find(&self, name: &str) -> Option<&AttributeProto> {
        self.0.attribute.iter().find(|a| a.name == name)
    }

    fn typed<T>(
        &self,
        name: &str,
        kind: &str,
        get: impl Fn(&AttributeProto) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.find(name) {
            None => Ok(None),
            Some(a) => get(a).map(Some).ok_or_else(|| format!("attribute `{name}` is not {kind}")),
        }
    }

    /// An integer.
    pub(super) fn int(&self, name: &str) -> Result<Option<i64>, String> {
        self.typed(name, "an integer", |a| a.i)
    }

    /// An integer, or a default.
    pub(super) fn int_or(&self, name: &str, default: i64) -> Result<i64, String> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// A truth value, written as an integer.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        Ok(self.int_or(name, i64::from(default))? != 0)
    }

    /// A real, or a default.
    pub(super) fn float_or(&self, name: &str, default: f32) -> Result<f32, String> {
        Ok(self.typed(name, "a float", |a| a.f)?.unwrap_or(default))
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, String> {
        let utf8 = |s: &Bytes| String::from_utf8(s.to_vec()).ok();
        self.typed(name, "a string", |a| a.s.as_ref().and_then(utf8))
    }

    /// Integers; a list may be empty.
    pub(super) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, String> {
        self.typed(name, "a list of integers", |a| (a.f.is_none() && a.s.is_none()).then(|| a.ints.clone()))
    }

    /// Integers that are not negative.
    pub(super) fn sizes(&self, name: &str) -> Result<Option<Vec<usize>>, String> {
        let Some(ints) = self.ints(name)? else { return Ok(None) };
        let sizes: Option<Vec<usize>> = ints.iter().map(|&i| usize::try_from(i).ok()).collect();
        sizes
            .map(Some)
            .ok_or_else(|| format!("attribute `{name}` is {ints:?}: negative values are not supported"))
    }

    /// Reals.
    pub(super) fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        self.typed(name, "a list of floats", |a| (a.i.is_none() && a.s.is_none()).then(|| a.floats.clone()))
    }

    /// A tensor.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Tensor>, String> {
        let Some(proto) = self.typed(name, "a tensor", |a| a.t.clone())? else { return Ok(None) };
        tensor_from_proto(&proto).map(Some).map_err(|e| format!("attribute `{name}`: {e}"))
    }
}
