//! Walks the bytes of a file before anything is decoded: a field of two bytes can become a message of hundreds, so
//! what the decoder would allocate is added up first. Allocates nothing itself.

use super::{
    AttributeProto, DimensionProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};

/// How deep messages may stand in each other. A graph in a graph is three levels (node, attribute, graph), and the
/// importer takes sixteen of those; the decoder itself gives up at a hundred.
pub(super) const DEPTH_MAX: usize = 64;
/// Most nodes of a file, bodies and functions included. The largest public ones have some ten thousand; some passes
/// compare each with each.
pub(super) const NODES_MAX: usize = 1 << 16;
/// Most tensors, and most attributes, described values and functions: a few of each for a node.
const OTHERS_MAX: usize = 1 << 20;
/// Longest name of a node, a value or an attribute. The importer makes names of names, so that long ones multiply.
const NAME_BYTES_MAX: usize = 4096;
/// What the decoder may allocate for each byte of a file. An attribute of twelve bytes (`axis`, 1) becomes 300, which
/// a list that grows holds up to three times: the densest real files stay under half of this.
const DECODED_FACTOR: u64 = 64;
/// A smaller file counts as one of this length.
const FILE_BYTES_MIN: u64 = 1024;
/// Beyond this much, what the decoder allocates must be data: twice the file, and the growth of lists.
const DECODED_FREE: u64 = 1 << 30;
/// See [`DECODED_FREE`].
const DECODED_FACTOR_LARGE: u64 = 4;
/// A list that grows doubles, and while it moves both copies are there.
const GROWTH: u64 = 3;

/// Why a file is not decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The bytes are not the fields of a message.
    Damaged(&'static str),
    /// They are, but too many.
    Excess(String),
}

/// What the decoder may allocate for a file of so many bytes.
fn decoded_bytes_max(file_bytes: u64) -> u64 {
    let small = file_bytes.saturating_add(FILE_BYTES_MIN).saturating_mul(DECODED_FACTOR);
    small.min(DECODED_FREE.saturating_add(file_bytes.saturating_mul(DECODED_FACTOR_LARGE)))
}

/// The messages that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dimension,
    Opset,
    Entry,
}

/// What a field of a message holds.
#[derive(Clone, Copy)]
pub(super) enum Holds {
    Message(Kind),
    /// A name: short.
    Name,
    Text,
    /// Bytes that stay where they are in the file.
    Bytes,
    /// Numbers of so many bytes in memory; as a list in one field, or one a field.
    Numbers {
        varint: bool,
        bytes: u64,
    },
    /// A number in the message itself, or a field that is not read.
    Nothing,
}

/// The fields that allocate, by the numbers of `onnx.proto`.
pub(super) fn holds(kind: Kind, tag: u64) -> Holds {
    use Holds::{Bytes, Message, Name, Numbers, Text};
    match (kind, tag) {
        (Kind::Model, 7) => Message(Kind::Graph),
        (Kind::Model, 8) | (Kind::Function, 9) => Message(Kind::Opset),
        (Kind::Model, 14) => Message(Kind::Entry),
        (Kind::Model, 25) => Message(Kind::Function),
        (Kind::Model, 2 | 3) => Text,
        (Kind::Graph, 1) | (Kind::Function, 7) => Message(Kind::Node),
        (Kind::Graph, 2) => Name,
        (Kind::Graph, 5) | (Kind::Attribute, 5) | (Kind::Sparse, 1) => Message(Kind::Tensor),
        (Kind::Graph, 11..=13) => Message(Kind::ValueInfo),
        (Kind::Graph, 15) => Message(Kind::Sparse),
        (Kind::Function, 1 | 4 | 5 | 6 | 10 | 13) => Name,
        (Kind::Function, 11) | (Kind::Node, 5) => Message(Kind::Attribute),
        (Kind::Node, 1..=4 | 7 | 8) => Name,
        (Kind::Attribute, 1 | 21) => Name,
        (Kind::Attribute, 4 | 9) => Bytes,
        (Kind::Attribute, 6 | 11) => Message(Kind::Graph),
        (Kind::Attribute, 7) => Numbers { varint: false, bytes: 4 },
        (Kind::Attribute, 8) => Numbers { varint: true, bytes: 8 },
        (Kind::Tensor, 1 | 7 | 11) => Numbers { varint: true, bytes: 8 },
        (Kind::Tensor, 4) => Numbers { varint: false, bytes: 4 },
        (Kind::Tensor, 5) => Numbers { varint: true, bytes: 4 },
        (Kind::Tensor, 6 | 9) => Bytes,
        (Kind::Tensor, 8) => Name,
        (Kind::Tensor, 10) => Numbers { varint: false, bytes: 8 },
        (Kind::Tensor, 13) => Message(Kind::Entry),
        (Kind::ValueInfo, 1) => Name,
        (Kind::ValueInfo, 2) => Message(Kind::Type),
        (Kind::Type, 1) => Message(Kind::TensorType),
        (Kind::TensorType, 2) => Message(Kind::Shape),
        (Kind::Shape, 1) => Message(Kind::Dimension),
        (Kind::Dimension, 2) => Name,
        (Kind::Opset, 1) => Name,
        (Kind::Entry, 1 | 2) => Text,
        _ => Holds::Nothing,
    }
}

/// What the decoder makes of one message, without what is in it.
fn size_of(kind: Kind) -> u64 {
    let bytes = match kind {
        Kind::Model => size_of::<ModelProto>(),
        Kind::Graph => size_of::<GraphProto>(),
        Kind::Function => size_of::<FunctionProto>(),
        Kind::Node => size_of::<NodeProto>(),
        Kind::Attribute => size_of::<AttributeProto>(),
        Kind::Tensor => size_of::<TensorProto>(),
        Kind::Sparse => size_of::<SparseTensorProto>(),
        Kind::ValueInfo => size_of::<ValueInfoProto>(),
        Kind::Type => size_of::<TypeProto>(),
        Kind::TensorType => size_of::<TensorTypeProto>(),
        Kind::Shape => size_of::<TensorShapeProto>(),
        Kind::Dimension => size_of::<DimensionProto>(),
        Kind::Opset => size_of::<OperatorSetIdProto>(),
        Kind::Entry => size_of::<StringStringEntryProto>(),
    };
    return bytes as u64;

    fn size_of<T>() -> usize {
        std::mem::size_of::<T>()
    }
}

/// Most messages of a kind in one file.
fn count_max(kind: Kind) -> usize {
    match kind {
        Kind::Node => NODES_MAX,
        _ => OTHERS_MAX,
    }
}

/// Reads fields out of bytes.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    /// The next byte.
    pub(super) at: usize,
}

impl Reader<'_> {
    pub(super) fn varint(&mut self) -> Result<u64, Fault> {
        varint(|| {
            let byte = *self.bytes.get(self.at).ok_or("it breaks off in a number")?;
            self.at += 1;
            Ok(byte)
        })
        .map_err(Fault::Damaged)
    }

    /// Skips `count` bytes before `end`; gives where they end.
    pub(super) fn skip(&mut self, count: u64, end: usize) -> Result<(), Fault> {
        let left = end.saturating_sub(self.at);
        match usize::try_from(count).ok().filter(|&count| count <= left) {
            Some(count) => {
                self.at += count;
                Ok(())
            }
            None => Err(Fault::Damaged("a field is longer than what it stands in")),
        }
    }
}

/// The number that the next bytes are.
pub(super) fn varint<E: From<&'static str>>(mut next: impl FnMut() -> Result<u8, E>) -> Result<u64, E> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = next()?;
        // The tenth byte has room for one bit.
        if shift == 63 && byte > 1 {
            return Err("a number is longer than 64 bits".into());
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    unreachable!("the tenth byte is the last, or too large")
}

/// Adds up what the decoder would allocate.
struct Tally {
    bytes: u64,
    bytes_max: u64,
    counts: [usize; Kind::Entry as usize + 1],
}

impl Tally {
    fn add(&mut self, bytes: u64) -> Result<(), Fault> {
        self.bytes = self.bytes.saturating_add(bytes);
        match self.bytes <= self.bytes_max {
            true => Ok(()),
            false => Err(Fault::Excess(format!(
                "its many small fields would take more than {} bytes of memory",
                self.bytes_max
            ))),
        }
    }

    fn message(&mut self, kind: Kind) -> Result<(), Fault> {
        let count = &mut self.counts[kind as usize];
        *count += 1;
        if *count > count_max(kind) {
            let what = match kind {
                Kind::Node => "nodes",
                Kind::Attribute => "attributes",
                Kind::Tensor => "tensors",
                Kind::ValueInfo => "described values",
                _ => "messages of one kind",
            };
            return Err(Fault::Excess(format!("more than {} {what}", count_max(kind))));
        }
        self.add(GROWTH * size_of(kind))
    }

    fn text(&mut self, bytes: u64) -> Result<(), Fault> {
        self.add(GROWTH * std::mem::size_of::<String>() as u64 + bytes)
    }
}

/// Walks the bytes, or the outline, of a file that is `file_bytes` long.
///
/// # Errors
/// [`Fault`].
pub(super) fn check(bytes: &[u8], file_bytes: u64) -> Result<(), Fault> {
    let bytes_max = decoded_bytes_max(file_bytes);
    let mut tally = Tally { bytes: 0, bytes_max, counts: [0; Kind::Entry as usize + 1] };
    let mut reader = Reader { bytes, at: 0 };
    // The messages that the walk is in, each with its end.
    let mut around = [(Kind::Model, bytes.len()); DEPTH_MAX];
    let mut depth = 0;
    loop {
        let (kind, end) = around[depth];
        if reader.at == end {
            if depth == 0 {
                return Ok(());
            }
            depth -= 1;
            continue;
        }
        let key = reader.varint()?;
        let held = holds(kind, key >> 3);
        match key & 7 {
            0 => {
                reader.varint()?;
                if let Holds::Numbers { bytes, .. } = held {
                    tally.add(GROWTH * bytes)?;
                }
            }
            wire @ (1 | 5) => {
                reader.skip(if wire == 1 { 8 } else { 4 }, end)?;
                if let Holds::Numbers { bytes, .. } = held {
                    tally.add(GROWTH * bytes)?;
                }
            }
            2 => {
                let length = reader.varint()?;
                let from = reader.at;
                reader.skip(length, end)?;
                match held {
                    Holds::Message(inner) => {
                        tally.message(inner)?;
                        depth += 1;
                        if depth == DEPTH_MAX {
                            let text = format!("messages stand in each other more than {DEPTH_MAX} deep");
                            return Err(Fault::Excess(text));
                        }
                        around[depth] = (inner, reader.at);
                        reader.at = from;
                    }
                    Holds::Name if length > NAME_BYTES_MAX as u64 => {
                        let text = format!("a name of {length} bytes, the limit is {NAME_BYTES_MAX}");
                        return Err(Fault::Excess(text));
                    }
                    Holds::Name | Holds::Text => tally.text(length)?,
                    // A handle to the bytes of the file, in a list.
                    Holds::Bytes => tally.add(GROWTH * std::mem::size_of::<bytes::Bytes>() as u64)?,
                    Holds::Numbers { varint, bytes } => {
                        let data = &reader.bytes[from..reader.at];
                        let count = match varint {
                            true => data.iter().filter(|&&b| b < 0x80).count() as u64,
                            false => length / bytes,
                        };
                        tally.add(GROWTH.saturating_mul(count.saturating_mul(bytes)))?;
                    }
                    Holds::Nothing => {}
                }
            }
            _ => return Err(Fault::Damaged("a field has no known form")),
        }
        if reader.at > around[depth].1 {
            return Err(Fault::Damaged("a field is longer than what it stands in"));
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn check(bytes: &[u8]) -> Result<(), Fault> {
        super::check(bytes, bytes.len() as u64)
    }

    fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![tag << 3 | 2];
        let mut length = bytes.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn many_empty_nodes_are_refused_before_they_are_made() {
        let nodes = [1 << 3 | 2, 0].repeat(60_000);
        let found = check(&field(7, &nodes)).unwrap_err();
        assert!(matches!(&found, Fault::Excess(text) if text.contains("bytes of memory")), "{found:?}");
        // A file that is large otherwise hides them from the factor, not from the count.
        let nodes = [1 << 3 | 2, 0].repeat(1_000_000);
        let padded = [field(2, &vec![b'x'; 20_000_000]), field(7, &nodes)].concat();
        let found = check(&padded).unwrap_err();
        assert!(matches!(&found, Fault::Excess(text) if text == "more than 65536 nodes"), "{found:?}");
    }

    #[test]
    fn what_does_not_fit_is_damaged_or_too_deep() {
        let damaged = |bytes: &[u8]| matches!(check(bytes), Err(Fault::Damaged(_)));
        assert!(damaged(&[0x08]));
        assert!(damaged(&[0x08, 0x80]));
        let of_64_bits = |last: u8| [&[0x08][..], &[0xff; 9], &[last]].concat();
        assert!(check(&of_64_bits(1)).is_ok() && damaged(&of_64_bits(2)) && damaged(&of_64_bits(0x81)));
        assert!(damaged(&[0x3a, 0x05, 0x12]));
        assert!(damaged(&[0x3a, 0x01, 0x0d]), "a number that reaches out of its message");
        assert!(damaged(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]));
        assert!(check(&[]).is_ok() && damaged(&[0x0b]), "groups are not ONNX");
        let mut nested = Vec::new();
        for _ in 0..30 {
            nested = field(1, &field(5, &field(6, &nested)));
        }
        assert!(matches!(check(&field(7, &nested)), Err(Fault::Excess(_))));
        assert!(matches!(check(&field(2, &[b'x'; 5000])), Ok(())), "the producer is no name");
        assert!(matches!(check(&field(7, &field(2, &[b'x'; 5000]))), Err(Fault::Excess(_))));
    }

    #[test]
    fn a_dense_file_is_taken() {
        let attribute = |i: i64| AttributeProto { name: "axis".to_owned(), i: Some(i), ..Default::default() };
        let node = |i: i64| NodeProto {
            input: vec![format!("x{i}")],
            output: vec![format!("x{}", i + 1)],
            op_type: "Softmax".to_owned(),
            attribute: vec![attribute(i)],
            ..Default::default()
        };
        let graph = GraphProto { node: (0..10_000).map(node).collect(), ..Default::default() };
        let model = ModelProto { graph: Some(graph), ..Default::default() };
        assert_eq!(check(&model.encode_to_vec()), Ok(()));
    }
}
