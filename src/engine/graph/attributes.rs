//! The attributes of a node as the file has them, with typed access. Knows nothing of protobuf.

use crate::engine::tensor::Tensor;

/// The value of one attribute.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the ONNX names")]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Tensor(Tensor),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// The attributes of one node. Reading one as another type than it has is an error that names it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes(Vec<(String, Attribute)>);

impl Attributes {
    /// Attributes in the order of the file.
    pub fn new(all: Vec<(String, Attribute)>) -> Attributes {
        Attributes(all)
    }

    /// Name and value of each, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &(String, Attribute)> {
        self.0.iter()
    }

    /// Whether the attribute is there.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The attributes without those named.
    pub fn without(&self, names: &[&str]) -> Attributes {
        Attributes(self.0.iter().filter(|(name, _)| !names.contains(&name.as_str())).cloned().collect())
    }

    fn find(&self, name: &str) -> Option<&Attribute> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    fn typed<'a, T>(
        &'a self,
        name: &str,
        kind: &str,
        get: impl Fn(&'a Attribute) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.find(name) {
            None => Ok(None),
            Some(a) => get(a).map(Some).ok_or_else(|| format!("attribute `{name}` is not {kind}")),
        }
    }

    /// An integer.
    pub fn int(&self, name: &str) -> Result<Option<i64>, String> {
        self.typed(name, "an integer", |a| match a {
            Attribute::Int(value) => Some(*value),
            _ => None,
        })
    }

    /// An integer, or a default.
    pub fn int_or(&self, name: &str, default: i64) -> Result<i64, String> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// A truth value, written as an integer.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        Ok(self.int_or(name, i64::from(default))? != 0)
    }

    /// A real.
    pub fn float(&self, name: &str) -> Result<Option<f32>, String> {
        self.typed(name, "a float", |a| match a {
            Attribute::Float(value) => Some(*value),
            _ => None,
        })
    }

    /// A real, or a default.
    pub fn float_or(&self, name: &str, default: f32) -> Result<f32, String> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, String> {
        self.typed(name, "a string", |a| match a {
            Attribute::Text(value) => Some(value.as_str()),
            _ => None,
        })
    }

    /// A text, or a default.
    pub fn text_or<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str, String> {
        Ok(self.text(name)?.unwrap_or(default))
    }

    /// Texts.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>, String> {
        self.typed(name, "a list of strings", |a| match a {
            Attribute::Texts(values) => Some(values.clone()),
            _ => None,
        })
    }

    /// Integers; a list may be empty.
    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, String> {
        self.typed(name, "a list of integers", |a| match a {
            Attribute::Ints(values) => Some(values.clone()),
            _ => None,
        })
    }

    /// Integers that are not negative.
    pub fn sizes(&self, name: &str) -> Result<Option<Vec<usize>>, String> {
        let Some(ints) = self.ints(name)? else { return Ok(None) };
        let sizes: Option<Vec<usize>> = ints.iter().map(|&i| usize::try_from(i).ok()).collect();
        sizes
            .map(Some)
            .ok_or_else(|| format!("attribute `{name}` is {ints:?}: negative values are not supported"))
    }

    /// Reals.
    pub fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        self.typed(name, "a list of floats", |a| match a {
            Attribute::Floats(values) => Some(values.clone()),
            _ => None,
        })
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Result<Option<&Tensor>, String> {
        self.typed(name, "a tensor", |a| match a {
            Attribute::Tensor(value) => Some(value),
            _ => None,
        })
    }

    /// Refuses an attribute that is set to something that is not done.
    pub fn only(&self, name: &str, value: i64) -> Result<(), String> {
        match self.int_or(name, value)? {
            given if given == value => Ok(()),
            given => Err(format!("{name}={given} is not supported")),
        }
    }
}
