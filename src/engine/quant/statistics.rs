//! Everything that a later job needs in order to choose ranges without the data: what was observed of each value, and of
//! which model and data it is. As bytes: the same for the same samples in any order.
//!
//! The file is a zip archive with one deflated member, so that bytes that are not whole do not pass. Numbers in it are
//! little-endian, counts are LEB128 (7 bits a byte, the least first).

use std::collections::BTreeMap;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::Recipe;
use crate::engine::quant::extremes::{ExactSum, Extremes};
use crate::engine::quant::histogram::{Histogram, State};
use crate::engine::quant::nature;
use crate::engine::quant::observed::Observed;
use crate::engine::quant::plan::{self, Decision};

/// First bytes of the member; the last of them is the version of the form.
const MAGIC: [u8; 8] = *b"OCTSTAT\x01";
/// Name of the member.
const MEMBER: &str = "statistics";
/// Most values, so that a small file cannot ask for much memory: each takes 64 KiB.
const VALUES_MAX: u64 = 1 << 14;
/// Longest name of a value, in bytes.
const NAME_BYTES_MAX: u64 = 1 << 16;
/// Longest member, in bytes.
const BYTES_MAX: u64 = 1 << 30;

/// What calibration found out.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// SHA-256 of the model file.
    pub model: [u8; 32],
    /// Digest of the samples, whatever their order was.
    pub data: [u8; 32],
    /// Number of samples.
    pub samples: u64,
    /// What is known of each value, by its name in the simplified graph.
    pub values: BTreeMap<String, Observed>,
}

/// Why bytes are not statistics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a zip archive with the one member, or one that is damaged.
    #[error("not a file of statistics: {0}")]
    Archive(#[from] zip::result::ZipError),
    /// The member cannot be read: cut short, or its checksum is wrong.
    #[error("not a file of statistics: {0}")]
    Read(#[from] std::io::Error),
    /// The member does not begin as it should.
    #[error("not a file of statistics, or of another version of the form (it begins with {0:02x?})")]
    Magic([u8; 8]),
    /// Something in it cannot be.
    #[error("damaged statistics: {0}")]
    Damaged(String),
}

/// The values of a simplified float graph that some recipe could give codes to: what operators that compute read and make.
/// More than one plan needs, so that statistics serve the next recipe too. In the order of the graph.
///
/// What a clamp takes over from a product is not among them: no target gives it codes, it would need a recipe that keeps
/// the clamp alone in float, and it is a third of the values of a network of convolutions.
pub fn wanted(graph: &Graph) -> Vec<ValueId> {
    let mut seen = vec![false; graph.values.len()];
    let mut all = Vec::new();
    let plan = plan::plan(graph, &Recipe::default()).expect("the default recipe names no node");
    for (node, decision) in graph.nodes.iter().zip(&plan.decisions) {
        let clamps = node.op.is_clamp();
        if let (Decision::Absorbed { .. }, Some(value), true) = (decision, node.input(0), clamps) {
            seen[value.0 as usize] = true;
        }
    }
    for node in &graph.nodes {
        // What moves data has codes only where a neighbour that computes has them.
        if nature::moves_data(&node.op) && !matches!(node.op, Op::Concat { .. }) || takes_shape_only(&node.op)
        {
            continue;
        }
        for &value in node.inputs.iter().flatten().chain(&node.outputs) {
            if graph.constant(value).is_none() && !std::mem::replace(&mut seen[value.0 as usize], true) {
                all.push(value);
            }
        }
    }
    all
}

/// Whether an operator gives the same values in another shape.
fn takes_shape_only(op: &Op) -> bool {
    matches!(op, Op::Flatten { .. } | Op::Reshape { .. } | Op::Transpose { .. } | Op::Squeeze | Op::Unsqueeze)
}

impl Statistics {
    /// Whether a file says that it is one of statistics, by the name of its member; what it holds is not looked at.
    pub fn is_file(path: &Path) -> bool {
        let file = std::fs::File::open(path).map(BufReader::new);
        let zip = file.map_err(zip::result::ZipError::from).and_then(zip::ZipArchive::new);
        zip.is_ok_and(|zip| zip.index_for_name(MEMBER).is_some())
    }

    /// The bytes of a file. Of a model with more than 16,384 values it holds so many; one whose name is longer than
    /// 65,536 bytes is not in it.
    pub fn encode(&self) -> Vec<u8> {
        let fits = |(name, _): &(&String, &Observed)| name.len() as u64 <= NAME_BYTES_MAX;
        let values: Vec<_> = self.values.iter().filter(fits).take(VALUES_MAX as usize).collect();
        let mut body = MAGIC.to_vec();
        body.extend(self.model);
        body.extend(self.data);
        number(&mut body, self.samples);
        number(&mut body, values.len() as u64);
        for (name, observed) in values {
            number(&mut body, name.len() as u64);
            body.extend(name.as_bytes());
            write_value(&mut body, observed);
        }
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated)
            .last_modified_time(zip::DateTime::default());
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let written = zip.start_file(MEMBER, options).and_then(|()| Ok(zip.write_all(&body)?));
        written.and_then(|()| zip.finish()).expect("writing to memory does not fail").into_inner()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`]. Memory stays in proportion to the values that are there: 64 KiB each.
    pub fn decode(bytes: &[u8]) -> Result<Statistics, Error> {
        let mut values = BTreeMap::new();
        let keep = |name: &str, observed| drop(values.insert(name.to_owned(), observed));
        let Head { model, data, samples, .. } = read(bytes, keep)?;
        Ok(Statistics { model, data, samples, values })
    }

    /// Checks a file as [`Statistics::decode`] does, but keeps no more than a value at a time: some KiB of a stranger's can
    /// hold as many values as there may be, which take a GiB. Gives the number of samples and of values.
    ///
    /// # Errors
    /// [`Error`].
    pub fn inspect(bytes: &[u8]) -> Result<(u64, u64), Error> {
        let Head { samples, values, .. } = read(bytes, |_, _| {})?;
        Ok((samples, values))
    }
}

/// What a file says before its values.
struct Head {
    model: [u8; 32],
    data: [u8; 32],
    samples: u64,
    values: u64,
}

/// Reads a file and hands out its values, in the order of their names.
fn read(bytes: &[u8], mut take: impl FnMut(&str, Observed)) -> Result<Head, Error> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes))?;
    let member = archive.by_name(MEMBER)?.take(BYTES_MAX);
    let mut body = Body(BufReader::new(member));
    let magic = body.bytes()?;
    if magic != MAGIC {
        return Err(Error::Magic(magic));
    }
    let (model, data, samples) = (body.bytes()?, body.bytes()?, body.number()?);
    let values = body.number_to(VALUES_MAX, "values")?;
    let mut last: Option<String> = None;
    for _ in 0..values {
        let length = body.number_to(NAME_BYTES_MAX, "bytes in a name")?;
        let mut name = Vec::new();
        (&mut body.0).take(length).read_to_end(&mut name)?;
        let name = String::from_utf8(name).map_err(|_| damaged("a name is no text"))?;
        if last.is_some_and(|last| last >= name) {
            return Err(damaged(format!("value `{name}` is out of order")));
        }
        let observed = read_value(&mut body)?.ok_or_else(|| damaged(format!("value `{name}`")))?;
        take(&name, observed);
        last = Some(name);
    }
    // Reading to the end checks the sum of the archive.
    match body.0.read(&mut [0])? {
        0 => Ok(Head { model, data, samples, values }),
        _ => Err(damaged("something follows the last value")),
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged(what.into())
}

fn write_value(body: &mut Vec<u8>, observed: &Observed) {
    let State { exponent, zeros, not_finite, range, bins } = observed.histogram.state();
    body.extend(exponent.to_le_bytes());
    number(body, zeros);
    number(body, not_finite);
    let (min, max) = range.unwrap_or((f32::INFINITY, f32::NEG_INFINITY));
    body.extend(min.to_le_bytes());
    body.extend(max.to_le_bytes());
    number(body, bins.len() as u64);
    let mut next = 0;
    for (bin, count) in bins {
        number(body, u64::from(bin - next));
        number(body, count);
        next = bin + 1;
    }
    let Extremes { samples, least, largest, mixed } = &observed.extremes;
    body.push(u8::from(*mixed));
    number(body, *samples);
    for sum in [least, largest] {
        body.push(sum.parts().len() as u8);
        for (field, part) in sum.parts() {
            body.push(field);
            body.extend(part.to_le_bytes());
        }
    }
}

/// `None` where it cannot be what was observed.
fn read_value(body: &mut Body<impl Read>) -> Result<Option<Observed>, Error> {
    let exponent = i32::from_le_bytes(body.bytes()?);
    let (zeros, not_finite) = (body.number()?, body.number()?);
    let (min, max) = (f32::from_le_bytes(body.bytes()?), f32::from_le_bytes(body.bytes()?));
    let range = (min <= max).then_some((min, max));
    let length = body.number_to(State::BINS, "bins")?;
    let (mut bins, mut next) = (Vec::new(), 0);
    for _ in 0..length {
        let bin = next + body.number_to(State::BINS, "bins to skip")?;
        let count = body.number()?;
        bins.push((u32::try_from(bin).unwrap_or(u32::MAX), count));
        next = bin + 1;
    }
    let histogram = Histogram::from_state(State { exponent, zeros, not_finite, range, bins });
    let [mixed] = body.bytes()?;
    let samples = body.number()?;
    let mut sums = [None, None];
    for sum in &mut sums {
        let [length] = body.bytes()?;
        let mut parts = Vec::new();
        for _ in 0..length {
            let [field] = body.bytes()?;
            parts.push((field, i64::from_le_bytes(body.bytes()?)));
        }
        *sum = ExactSum::from_parts(parts, samples);
    }
    let ([Some(least), Some(largest)], Some(histogram), 0 | 1) = (sums, histogram, mixed) else {
        return Ok(None);
    };
    let extremes = Extremes { samples, least, largest, mixed: mixed == 1 };
    Ok(Some(Observed { histogram, extremes }))
}

fn number(body: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        body.push(n as u8 | 0x80);
        n >>= 7;
    }
    body.push(n as u8);
}

/// The member, read from front to back.
struct Body<R>(BufReader<R>);

impl<R: Read> Body<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, Error> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.bytes()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                break;
            }
            n |= part << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(damaged("a count of more than 64 bits"))
    }

    fn number_to(&mut self, most: u64, what: &str) -> Result<u64, Error> {
        let n = self.number()?;
        if n <= most { Ok(n) } else { Err(damaged(format!("{n} {what}, more than {most}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::quant::observed::Samples;
    use crate::engine::tensor::Tensor;

    fn observed(values: &[f32], samples: Samples) -> Observed {
        let mut observed = Observed::default();
        observed.observe(Tensor::from_slice(&[values.len()], values).view(), samples);
        observed
    }

    fn statistics() -> Statistics {
        let wave: Vec<f32> = (0..6000).map(|i| (i as f32 * 0.01).sin() * i as f32).collect();
        let values = [
            ("wave", observed(&wave, Samples::Along { axis: 0, count: 3 })),
            ("zeros", observed(&[0.0, 0.0], Samples::One)),
            ("wide", observed(&[f32::MIN, f32::MAX, 1e-45, -1e-45, f32::NAN], Samples::Mixed)),
            ("small", observed(&[1e-44], Samples::One)),
            ("nothing", Observed::default()),
        ];
        let values = values.map(|(name, observed)| (name.to_owned(), observed)).into();
        Statistics { model: [1; 32], data: [2; 32], samples: 3, values }
    }

    #[test]
    fn what_is_written_is_read_back_and_small() {
        let statistics = statistics();
        let bytes = statistics.encode();
        assert_eq!(Statistics::decode(&bytes).unwrap(), statistics);
        assert_eq!(Statistics::inspect(&bytes).unwrap(), (3, 5));
        assert_eq!(statistics.encode(), bytes);
        assert!(bytes.len() < 16_000, "{} bytes", bytes.len());
    }

    #[test]
    fn bytes_that_are_cut_or_changed_are_refused() {
        let statistics = statistics();
        let bytes = statistics.encode();
        for length in (0..bytes.len()).step_by(97) {
            assert!(Statistics::decode(&bytes[..length]).is_err(), "cut to {length}");
        }
        let mut refused = 0;
        for at in (0..bytes.len()).step_by(13) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x55;
            match Statistics::decode(&changed) {
                // Dates and flags of the archive mean nothing here.
                Ok(read) => assert_eq!(read, statistics, "byte {at}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > bytes.len() / 13 - 20, "{refused}");
    }

    /// A file with this member.
    fn archive(body: &[u8]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        zip.start_file(MEMBER, options).unwrap();
        zip.write_all(body).unwrap();
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn a_member_that_lies_is_refused() {
        let head = [&MAGIC[..], &[0; 64], &[1]].concat();
        let huge = [0xff; 9];
        for (name, body, says) in [
            ("empty", Vec::new(), "fill whole buffer"),
            ("another version", b"OCTSTAT\x02........".to_vec(), "another version"),
            ("many values", [&head[..], &huge, &[0]].concat(), "values, more than"),
            ("a number without end", [&head[..], &huge, &[0xff, 0xff]].concat(), "64 bits"),
            ("a long name", [&head[..], &[1], &huge, &[0]].concat(), "bytes in a name"),
            ("no values but more bytes", [&head[..], &[0, 0]].concat(), "follows"),
            ("a name that is no text", [&head[..], &[1, 1, 0xff]].concat(), "no text"),
        ] {
            let error = Statistics::decode(&archive(&body)).unwrap_err().to_string();
            assert!(error.contains(says), "{name}: {error}");
        }
        // A value whose histogram and range do not agree.
        let mut body = Vec::new();
        write_value(&mut body, &observed(&[1.0, 2.0], Samples::One));
        let value = |body: &[u8]| {
            let file = archive(&[&head[..], &[1, 1, b'x'], body].concat());
            Statistics::decode(&file)
        };
        assert!(value(&body).is_ok());
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] = changed[at].wrapping_add(0x81);
            // Whatever it is then, it is used without a panic.
            if let Ok(read) = value(&changed) {
                use crate::engine::quant::ranges::{Method, choose};
                use crate::engine::tensor::qparams::Codes;
                for method in Method::CANDIDATES {
                    choose(&read.values["x"], method, Codes::U8);
                }
                read.values["x"].histogram.chart(8);
            }
        }
    }
}
