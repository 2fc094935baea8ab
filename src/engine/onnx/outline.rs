//! The outline of a model file: everything in it but the data of large tensors, for which it says where they lie. A file
//! of many gigabytes is looked into, put together and loaded by it, and never held in memory twice, or at all.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use prost::encoding::encode_varint;

use super::bounds::{self, DEPTH_MAX, Fault, Holds, Kind, holds};

/// Data of so many bytes are left where they are.
pub const LARGE_BYTES: u64 = 1 << 16;

/// Fields of a `TensorProto` that only outlines have: where its data begin, and how many bytes they are.
const DATA_FROM: u32 = 1001;
const DATA_BYTES: u32 = 1002;
/// `TensorProto.raw_data`.
const RAW_DATA: u64 = 9;

/// Why there is no outline.
#[derive(Debug)]
pub(super) enum Error {
    /// The file cannot be read.
    Io(io::Error),
    /// Its bytes are no message.
    Damaged(&'static str),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

impl From<&'static str> for Error {
    fn from(damage: &'static str) -> Error {
        Error::Damaged(damage)
    }
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the file, where there are several.
    pub(super) file: usize,
    /// Its first byte.
    pub(super) from: u64,
    /// How many bytes it has.
    pub(super) bytes: u64,
}

impl Place {
    /// The part of an open file.
    pub(super) fn open(self, mut file: File) -> io::Result<io::Take<File>> {
        file.seek(SeekFrom::Start(self.from))?;
        Ok(file.take(self.bytes))
    }

    /// All bytes of it.
    pub(super) fn copy(self, file: File, out: &mut dyn io::Write) -> io::Result<()> {
        let copied = io::copy(&mut self.open(file)?, out)?;
        if copied == self.bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The messages that tensors are in.
fn inner(kind: Kind, tag: u64) -> Option<Kind> {
    match holds(kind, tag) {
        Holds::Message(
            inner @ (Kind::Graph | Kind::Function | Kind::Node | Kind::Attribute | Kind::Tensor),
        ) => Some(inner),
        _ => None,
    }
}

/// The outline of the model at a place.
pub(super) fn outline(file: File, place: Place) -> Result<Vec<u8>, Error> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(place.from))?;
    let end = place.from + place.bytes;
    Reader { reader, at: place.from }.message(Kind::Model, end, 1)
}

struct Reader {
    reader: BufReader<File>,
    /// Where it is in the file.
    at: u64,
}

impl Reader {
    fn byte(&mut self, end: u64) -> Result<u8, Error> {
        if self.at == end {
            return Err(Error::Damaged("it breaks off in a number"));
        }
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        self.at += 1;
        Ok(byte[0])
    }

    fn varint(&mut self, end: u64) -> Result<u64, Error> {
        bounds::varint(|| self.byte(end))
    }

    fn fits(&self, count: u64, end: u64) -> Result<(), Error> {
        match count <= end - self.at {
            true => Ok(()),
            false => Err(Error::Damaged("a field is longer than what it stands in")),
        }
    }

    fn copy(&mut self, count: u64, end: u64, out: &mut Vec<u8>) -> Result<(), Error> {
        self.fits(count, end)?;
        let copied = (&mut self.reader).take(count).read_to_end(out)?;
        self.at += count;
        if copied as u64 == count {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }

    fn skip(&mut self, count: u64, end: u64) -> Result<(), Error> {
        self.fits(count, end)?;
        self.at += count;
        // `seek_relative` keeps what is buffered, and takes an `i64`.
        match i64::try_from(count) {
            Ok(count) => Ok(self.reader.seek_relative(count)?),
            Err(_) => Err(Error::Damaged("a field is longer than what it stands in")),
        }
    }

    fn message(&mut self, kind: Kind, end: u64, depth: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        // The last `raw_data` counts, as in every reader.
        let mut data = None;
        while self.at < end {
            let key = self.varint(end)?;
            let tag = key >> 3;
            match key & 7 {
                0 => {
                    let value = self.varint(end)?;
                    if kind != Kind::Tensor || (tag != u64::from(DATA_FROM) && tag != u64::from(DATA_BYTES)) {
                        put_number(&mut out, key, value);
                    }
                }
                wire @ (1 | 5) => {
                    encode_varint(key, &mut out);
                    self.copy(if wire == 1 { 8 } else { 4 }, end, &mut out)?;
                }
                2 => {
                    let length = self.varint(end)?;
                    self.fits(length, end)?;
                    let raw = kind == Kind::Tensor && tag == RAW_DATA;
                    if raw && length >= LARGE_BYTES {
                        data = Some((self.at, length));
                        self.skip(length, end)?;
                        continue;
                    }
                    if raw {
                        data = None;
                    }
                    // Too deep a message is refused by `bounds`, which sees it as it is.
                    // Attributes are read as they are: their tensors are small in all but odd files.
                    match inner(kind, tag).filter(|inner| {
                        depth < DEPTH_MAX && (kind, *inner) != (Kind::Attribute, Kind::Tensor)
                    }) {
                        Some(inner) => {
                            let message = self.message(inner, self.at + length, depth + 1)?;
                            put_number(&mut out, key, message.len() as u64);
                            out.extend_from_slice(&message);
                        }
                        None => {
                            put_number(&mut out, key, length);
                            self.copy(length, end, &mut out)?;
                        }
                    }
                }
                _ => return Err(Error::Damaged("a field has no known form")),
            }
        }
        if let Some((from, bytes)) = data {
            put_number(&mut out, u64::from(DATA_FROM) << 3, from);
            put_number(&mut out, u64::from(DATA_BYTES) << 3, bytes);
        }
        Ok(out)
    }
}

/// An outline without the places of its data, and the gaps that they leave.
#[derive(Default)]
pub(super) struct Gaps {
    pub(super) bytes: Vec<u8>,
    pub(super) gaps: Vec<Gap>,
}

/// Where data go into the bytes of a file.
pub(super) struct Gap {
    /// Before this byte.
    pub(super) at: usize,
    /// What the tensor says of where they are: what it means is up to who wrote the outline.
    pub(super) from: u64,
    /// Length of the data.
    pub(super) bytes: u64,
}

impl Gaps {
    /// Length of the file with all its data.
    pub(super) fn whole_bytes(&self) -> u64 {
        self.gaps.iter().fold(self.bytes.len() as u64, |sum, gap| sum.saturating_add(gap.bytes))
    }

    fn append(&mut self, other: Gaps) {
        let before = self.bytes.len();
        self.gaps.extend(other.gaps.into_iter().map(|gap| Gap { at: before + gap.at, ..gap }));
        self.bytes.extend_from_slice(&other.bytes);
    }
}

/// The file that an outline is of, with gaps in `raw_data` for the data.
pub(super) fn gaps(outline: &[u8]) -> Result<Gaps, Fault> {
    gaps_of(Kind::Model, outline, 1)
}

fn gaps_of(kind: Kind, bytes: &[u8], depth: usize) -> Result<Gaps, Fault> {
    let mut reader = bounds::Reader { bytes, at: 0 };
    let mut out = Gaps::default();
    let (mut from, mut length) = (None, None);
    while reader.at < bytes.len() {
        let start = reader.at;
        let key = reader.varint()?;
        match key & 7 {
            0 => {
                let value = reader.varint()?;
                match key >> 3 {
                    tag if kind == Kind::Tensor && tag == u64::from(DATA_FROM) => from = Some(value),
                    tag if kind == Kind::Tensor && tag == u64::from(DATA_BYTES) => length = Some(value),
                    _ => out.bytes.extend_from_slice(&bytes[start..reader.at]),
                }
            }
            wire @ (1 | 5) => {
                reader.skip(if wire == 1 { 8 } else { 4 }, bytes.len())?;
                out.bytes.extend_from_slice(&bytes[start..reader.at]);
            }
            2 => {
                let length = reader.varint()?;
                let first = reader.at;
                reader.skip(length, bytes.len())?;
                match inner(kind, key >> 3).filter(|_| depth < DEPTH_MAX) {
                    Some(inner) => {
                        let message = gaps_of(inner, &bytes[first..reader.at], depth + 1)?;
                        put_number(&mut out.bytes, key, message.whole_bytes());
                        out.append(message);
                    }
                    None => out.bytes.extend_from_slice(&bytes[start..reader.at]),
                }
            }
            _ => return Err(Fault::Damaged("a field has no known form")),
        }
    }
    if let (Some(from), Some(length)) = (from, length) {
        put_number(&mut out.bytes, RAW_DATA << 3 | 2, length);
        out.gaps.push(Gap { at: out.bytes.len(), from, bytes: length });
    }
    Ok(out)
}

/// A key, and the number behind it: a value, or the length of what follows.
fn put_number(out: &mut Vec<u8>, key: u64, number: u64) {
    encode_varint(key, out);
    encode_varint(number, out);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bytes::Bytes;
    use prost::Message;

    use super::super::export::export;
    use super::super::{decode, import};
    use super::*;
    use crate::engine::graph::op::{Binary, Op};
    use crate::engine::graph::{Dim, Graph, Node, Value};
    use crate::engine::tensor::{DType, Tensor};

    /// Weights of this many floats are left out of an outline.
    const COUNT: usize = 1 << 14;

    /// `y = x + w + b`, `w` large and `b` small.
    fn model() -> Vec<u8> {
        let mut graph = Graph { name: "g".to_owned(), ..Graph::default() };
        let value = |name: &str| Value {
            name: name.to_owned(),
            dtype: Some(DType::F32),
            dims: Some(vec![Dim::Known(COUNT)]),
            ..Value::default()
        };
        let [x, sum, y] = ["x", "sum", "y"].map(|name| graph.add_value(value(name)));
        let numbers: Vec<f32> = (0..COUNT).map(|i| i as f32).collect();
        let w = graph.add_constant("w", Tensor::from_slice(&[COUNT], &numbers));
        let b = graph.add_constant("b", Tensor::from_slice(&[1], &[0.5f32]));
        for (name, a, b, out) in [("first", x, w, sum), ("second", sum, b, y)] {
            let operands = vec![Some(a), Some(b)];
            graph.nodes.push(Node::new(name.to_owned(), Op::Binary(Binary::Add), operands, vec![out]));
        }
        (graph.inputs, graph.outputs) = (vec![x], vec![y]);
        export(&graph, &[])
    }

    fn kept(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn an_outline_and_its_data_are_the_file() {
        let bytes = model();
        let file = kept(&bytes);
        let place = Place { file: 0, from: 0, bytes: bytes.len() as u64 };
        let outline = outline(file.reopen().unwrap(), place).unwrap();
        assert!(outline.len() < 1000, "{} bytes", outline.len());
        let Gaps { bytes: mut whole, gaps } = gaps(&outline).unwrap();
        let [Gap { at, from, bytes: length }] = gaps[..] else { panic!("{} gaps", gaps.len()) };
        let data = &bytes[from as usize..(from + length) as usize];
        whole.splice(at..at, data.iter().copied());
        let read = |bytes: &[u8]| super::super::ModelProto::decode(Bytes::copy_from_slice(bytes)).unwrap();
        assert_eq!(read(&whole), read(&bytes));
    }

    #[test]
    fn a_file_is_the_same_graph_as_its_bytes() {
        let bytes = model();
        let file = kept(&bytes);
        let written = |graph: &Graph| export(graph, &[]);
        let whole = import::import(&bytes).unwrap();
        assert_eq!(written(&import::import_file(file.path()).unwrap()), written(&whole));
        let without = import::import_outline(file.path()).unwrap();
        let constant = |name: &str| {
            let value = without.values.iter().find(|v| v.name == name).unwrap();
            value.constant.clone().unwrap()
        };
        assert_eq!(constant("w").shape(), [COUNT]);
        assert_eq!((constant("w").slice::<f32>()[9], constant("b").slice::<f32>()[0]), (0.0, 0.5));
        let missing = import::import_file(&file.path().join("nowhere"));
        assert!(matches!(missing, Err(import::Error::Read(_))));
    }

    #[test]
    fn damage_is_refused_alike() {
        let whole = model();
        let mut random = 1u64;
        let mut refused = 0;
        for turn in 0..3000 {
            let mut bytes = whole.clone();
            let mut number = |below: usize| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (random >> 33) as usize % below
            };
            // What is around the data.
            let around = bytes.len() - 4 * COUNT;
            for _ in 0..1 + turn % 3 {
                let at = number(around);
                let at = if at < around / 2 { at } else { bytes.len() - (around - at) };
                bytes[at] = number(256) as u8;
            }
            if turn % 5 == 0 {
                bytes.truncate(number(bytes.len()));
            }
            let (a, b) = (import::import(&bytes), import::import_file(kept(&bytes).path()));
            match (a, b) {
                (Ok(a), Ok(b)) => assert_eq!(export(&a, &[]), export(&b, &[])),
                // Where there is more than one fault, which is told first may differ.
                (Err(_), Err(_)) => refused += 1,
                (a, b) => panic!("{:?}; as a file: {:?}", a.map(|_| ()), b.map(|_| ())),
            }
        }
        assert!(refused > 500, "{refused}");
    }

    #[test]
    fn a_file_cannot_claim_to_be_an_outline() {
        let mut model = decode::decode(&model().into()).unwrap();
        let tensor = model.graph.as_mut().unwrap().initializer.iter_mut().find(|t| t.name == "w").unwrap();
        (tensor.raw_data, tensor.data_from, tensor.data_bytes) = (None, Some(0), Some(4 * COUNT as u64));
        let bytes = model.encode_to_vec();
        let refused = [import::import(&bytes), import::import_file(kept(&bytes).path())];
        for error in refused.map(|r| r.unwrap_err().to_string()) {
            assert!(error.contains("the file has 0"), "{error}");
        }
    }
}
