//! Lists of tensors, as exporters write them (sequences, and tensors that are optional). Values here are tensors only,
//! so a list is followed while the file is read: what is in it must be known then. Its elements are values of the graph.

use std::collections::HashMap;

use crate::engine::graph::attributes::Attributes;

use super::NodeProto;
use super::parts::{Parts, int};
use super::tensors::attributes_from_proto;

/// What is known of tensors while the file is read, by their names.
pub(super) trait Known {
    /// The integers of a constant.
    fn ints(&self, name: &str) -> Option<Vec<i64>>;
    /// The length of an axis.
    fn length(&self, name: &str, axis: i64) -> Option<usize>;
    /// Whether this is a constant without dimensions.
    fn is_scalar(&self, name: &str) -> bool;
}

/// The lists of a graph, and what optional values hold.
#[derive(Default)]
pub(super) struct Sequences {
    /// For each list the names of its elements.
    lists: HashMap<String, Vec<String>>,
    /// For each optional value the name of the tensor or list in it.
    optionals: HashMap<String, Option<String>>,
    /// Elements of all lists.
    total: usize,
}

/// Most elements of a list.
const ELEMENTS_MAX: usize = 4096;
/// Most elements of all lists: each node that changes a list makes another.
const TOTAL_MAX: usize = 1 << 18;

impl Sequences {
    /// The nodes that stand in the place of one that reads or makes lists; `None` where it does neither.
    ///
    /// # Errors
    /// A sentence about what is not known while the file is read.
    pub(super) fn resolve(
        &mut self,
        name: &str,
        proto: &NodeProto,
        known: &impl Known,
    ) -> Result<Option<Vec<NodeProto>>, String> {
        if !matches!(proto.domain.as_str(), "" | "ai.onnx") {
            return Ok(None);
        }
        let mut parts = Parts::new(name, proto);
        let result = match proto.op_type.as_str() {
            "SequenceEmpty" => return self.make(proto, Vec::new()),
            "SequenceConstruct" => return self.make(proto, proto.input.clone()),
            "SequenceInsert" => {
                let mut list = self.list(parts.input(0))?.to_vec();
                let at = position(known, parts.input(2), list.len(), true)?;
                list.insert(at, parts.input(1).to_owned());
                return self.make(proto, list);
            }
            "SequenceErase" => {
                let mut list = self.list(parts.input(0))?.to_vec();
                let at = position(known, parts.input(1), list.len(), false)?;
                list.remove(at);
                return self.make(proto, list);
            }
            "SplitToSequence" => {
                let attributes = attributes_from_proto(proto)?;
                let list = split(&mut parts, &attributes, known)?;
                self.make(proto, list)?;
                return Ok(Some(parts.into_nodes()));
            }
            "SequenceAt" => {
                let list = self.list(parts.input(0))?;
                let at = position(known, parts.input(1), list.len(), false)?;
                parts.add("Identity", &[&list[at]], vec![])
            }
            "SequenceLength" => {
                let length = self.list(parts.input(0))?.len();
                parts.index(length as i64)
            }
            "ConcatFromSequence" => {
                let list = self.list(parts.input(0))?;
                concat(&mut parts, &attributes_from_proto(proto)?, list)?
            }
            "Optional" | "OptionalGetElement" | "Identity" => {
                let get = proto.op_type == "OptionalGetElement";
                let Some(held) = self.held(parts.input(0), get)? else { return self.hold(proto, None) };
                if let Some(list) = self.lists.get(&held) {
                    let list = list.clone();
                    return self.make(proto, list);
                }
                if proto.op_type == "Identity" && !self.optionals.contains_key(&held) {
                    return Ok(None);
                }
                if !get {
                    return self.hold(proto, Some(held));
                }
                parts.add("Identity", &[&held], vec![])
            }
            "OptionalHasElement" => {
                let input = parts.input(0);
                let has = match self.optionals.get(input) {
                    Some(held) => held.is_some(),
                    None => !input.is_empty(),
                };
                let has = parts.index(i64::from(has));
                // 9 is bool.
                parts.add("Cast", &[&has], vec![int("to", 9)])
            }
            _ => return Ok(None),
        };
        Ok(Some(parts.finish(&result, 0)))
    }

    /// Whether this is the name of a list or of an optional value.
    pub(super) fn makes(&self, name: &str) -> bool {
        self.lists.contains_key(name) || self.optionals.contains_key(name)
    }

    fn list(&self, name: &str) -> Result<&[String], String> {
        let list = self.lists.get(name);
        list.map(Vec::as_slice).ok_or_else(|| {
            format!("what is in the sequence `{name}` is known only at run, which is not supported")
        })
    }

    /// Notes that the node makes a list.
    fn make(&mut self, proto: &NodeProto, list: Vec<String>) -> Result<Option<Vec<NodeProto>>, String> {
        self.total += list.len();
        if list.len() > ELEMENTS_MAX || self.total > TOTAL_MAX {
            return Err(format!("a sequence of more than {ELEMENTS_MAX} tensors is not supported"));
        }
        let name = proto.output.first().ok_or("it has no output")?;
        self.lists.insert(name.clone(), list);
        Ok(Some(Vec::new()))
    }

    /// Notes that the node makes an optional value that holds `held`.
    fn hold(&mut self, proto: &NodeProto, held: Option<String>) -> Result<Option<Vec<NodeProto>>, String> {
        let name = proto.output.first().ok_or("it has no output")?;
        self.optionals.insert(name.clone(), held);
        Ok(Some(Vec::new()))
    }

    /// What the value of a name holds: itself, where it is no optional value.
    fn held(&self, name: &str, needed: bool) -> Result<Option<String>, String> {
        match self.optionals.get(name) {
            Some(None) if needed => Err(format!("`{name}` holds nothing")),
            Some(held) => Ok(held.clone()),
            None if name.is_empty() && needed => Err("input 0 is missing".to_owned()),
            None => Ok((!name.is_empty()).then(|| name.to_owned())),
        }
    }
}

/// A position in a list of `length`, counted from the end where it is negative. `end`: one past the last is taken, and is
/// meant where none is given.
fn position(known: &impl Known, name: &str, length: usize, end: bool) -> Result<usize, String> {
    if name.is_empty() && end {
        return Ok(length);
    }
    let ints = known.ints(name).ok_or_else(|| {
        format!("position `{name}` in a sequence is known only at run, which is not supported")
    })?;
    let [at] = ints[..] else { return Err(format!("position {ints:?} is not one number")) };
    let from_start = if at < 0 { at.saturating_add(length as i64) } else { at };
    let fits = usize::try_from(from_start).ok().filter(|&i| i < length + usize::from(end));
    fits.ok_or_else(|| format!("position {at} is outside of a sequence of {length}"))
}

/// The elements of a list as one tensor, along an axis that they have or a new one.
fn concat(parts: &mut Parts<'_>, a: &Attributes, list: &[String]) -> Result<String, String> {
    if list.is_empty() {
        return Err("an empty sequence cannot be joined".to_owned());
    }
    let axis = a.int("axis")?.ok_or("attribute `axis` is missing")?;
    let mut elements = list.to_vec();
    if a.flag("new_axis", false)? {
        let axes = parts.numbers(&[axis]);
        elements = list.iter().map(|x| parts.add("Unsqueeze", &[x, &axes], vec![])).collect();
    }
    let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
    Ok(parts.add("Concat", &elements, vec![int("axis", axis)]))
}

/// The names of the pieces of a tensor.
fn split(parts: &mut Parts<'_>, a: &Attributes, known: &impl Known) -> Result<Vec<String>, String> {
    let (x, pieces) = (parts.input(0), parts.input(1));
    let axis = a.int_or("axis", 0)?;
    let length = known.length(x, axis);
    let unknown =
        || format!("the length of axis {axis} of `{x}` is known only at run, which is not supported");
    let squeeze = pieces.is_empty() && !a.flag("keepdims", true)?;
    let sizes = match (pieces, known.ints(pieces)) {
        ("", _) => vec![1; length.ok_or_else(unknown)?.min(ELEMENTS_MAX + 1)],
        (_, Some(sizes)) if !known.is_scalar(pieces) => sizes,
        (_, Some(size)) => {
            let length = length.ok_or_else(unknown)?;
            let size = size.first().and_then(|&s| usize::try_from(s).ok()).filter(|&s| s > 0);
            let size = size.ok_or("the size of the pieces is not positive")?;
            let count = length.div_ceil(size).min(ELEMENTS_MAX + 1);
            (0..count).map(|i| size.min(length - i * size) as i64).collect()
        }
        (_, None) => {
            return Err(format!("the sizes `{pieces}` are known only at run, which is not supported"));
        }
    };
    if sizes.is_empty() || sizes.len() > ELEMENTS_MAX {
        return Err(format!("{} pieces are not supported, 1 to {ELEMENTS_MAX} are", sizes.len()));
    }
    let (count, sizes) = (sizes.len(), parts.numbers(&sizes));
    let first = parts.add("Split", &[x, &sizes], vec![int("axis", axis)]);
    let others: Vec<String> = (1..count).map(|i| format!("{first}.{i}")).collect();
    parts.more_results(&others);
    let all = std::iter::once(first).chain(others);
    if !squeeze {
        return Ok(all.collect());
    }
    let axes = parts.numbers(&[axis]);
    Ok(all.map(|piece| parts.add("Squeeze", &[&piece, &axes], vec![])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `x` is `[2, 5]`, `i-1` is -1, `size2` is a scalar 2, `sizes` is `[1, 4]`.
    struct Example;

    impl Known for Example {
        fn ints(&self, name: &str) -> Option<Vec<i64>> {
            match name {
                "i-1" => Some(vec![-1]),
                "size2" => Some(vec![2]),
                "sizes" => Some(vec![1, 4]),
                _ => None,
            }
        }

        fn length(&self, name: &str, axis: i64) -> Option<usize> {
            (name == "x").then_some(if axis == 0 { 2 } else { 5 })
        }

        fn is_scalar(&self, name: &str) -> bool {
            name == "size2"
        }
    }

    fn node(op: &str, inputs: &[&str], attribute: Vec<super::super::AttributeProto>) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![format!("{op}.out")],
            op_type: op.to_owned(),
            attribute,
            ..NodeProto::default()
        }
    }

    /// The operators in the place of the last of `nodes`.
    fn check(nodes: &[NodeProto], want: &[&str]) {
        let mut sequences = Sequences::default();
        let mut last = Vec::new();
        for node in nodes {
            last = sequences.resolve(&node.op_type, node, &Example).unwrap().unwrap();
        }
        let ops: Vec<&str> = last.iter().map(|n| n.op_type.as_str()).filter(|o| *o != "Constant").collect();
        assert_eq!(ops, want);
    }

    #[test]
    fn a_list_whose_elements_are_known_is_followed() {
        let axis = || vec![int("axis", 1)];
        let of = |op: &str| format!("{op}.out");
        let made = node("SequenceConstruct", &["a", "b"], vec![]);
        let from = of("SequenceConstruct");
        check(&[made.clone(), node("ConcatFromSequence", &[&from], axis())], &["Concat"]);
        check(&[made.clone(), node("SequenceAt", &[&from, "i-1"], vec![])], &["Identity"]);
        check(&[made, node("SequenceLength", &[&from], vec![])], &[]);
        check(&[node("SplitToSequence", &["x", "size2"], axis())], &["Split"]);
        check(&[node("SplitToSequence", &["y", "sizes"], axis())], &["Split"]);
        let squeezed = vec![int("axis", 0), int("keepdims", 0)];
        check(&[node("SplitToSequence", &["x"], squeezed)], &["Split", "Squeeze", "Squeeze"]);
        let optional = node("Optional", &["a"], vec![]);
        check(&[optional, node("OptionalGetElement", &[&of("Optional")], vec![])], &["Identity"]);
    }

    #[test]
    fn what_only_a_run_tells_is_named() {
        let mut sequences = Sequences::default();
        for (op, inputs, word) in [
            ("SequenceLength", &["s"][..], "`s`"),
            ("SplitToSequence", &["y", "size2"], "`y`"),
            ("SplitToSequence", &["x", "computed"], "`computed`"),
        ] {
            let refused = sequences.resolve("n", &node(op, inputs, vec![]), &Example).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
        let identity = node("Identity", &["a"], vec![]);
        assert_eq!(sequences.resolve("n", &identity, &Example), Ok(None));
    }
}
