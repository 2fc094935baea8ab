//! What is done with a dataset that may be hostile: all that an upload does, and all that a job reads of it.

use std::fmt::Write as _;
use std::io::{Cursor, Write};
use std::path::Path;

use octet::engine::pipeline::inspect::inspect_dataset;
use octet::engine::quant::statistics::Statistics;
use octet::engine::tensor::dataset::{Dataset, Port};
use octet::engine::tensor::digest::SampleDigests;
use octet::engine::tensor::npy::{self, Entry, Kind};
use octet::engine::tensor::{DType, Tensor};
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

/// Bytes that all arrays of a file may have here: what a server has as `limits.dataset_bytes`.
const ARRAY_BYTES_MAX: u64 = 1 << 20;
/// Samples beyond which they are not read one at a time: that would only take time.
const ONE_BY_ONE_MAX: usize = 4096;
/// What stands between the members of a file that is packed here.
const BETWEEN: &[u8] = b"\n--\n";

/// How far a file came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reached {
    /// It is no dataset.
    Nothing,
    /// The upload was taken.
    Inspected,
    /// Samples were read.
    Read,
}

/// The most that [`exercise`] may hold at a time for so many bytes. Of the arrays: an integer is looked at in 16 bytes
/// before it is narrowed, beside it stand where it came from (8) and where it goes (8), and a sample of one byte has a
/// slice, a digest and a label besides. Of the file: the directory, and the file that is packed of it.
pub(crate) fn bytes_max(length: usize) -> i64 {
    160 * ARRAY_BYTES_MAX as i64 + 64 * length as i64 + (4 << 20)
}

/// Inspects, reads whole, writes and reads again, and reads as samples for models whose inputs fit. `input` is a file as it
/// is, or its members before they are packed: the checksums of an archive stop all changes but those that come before
/// them. `scratch` is a path that may be written to.
///
/// # Panics
/// Where what was taken does not read the same twice.
pub(crate) fn exercise(input: &[u8], scratch: &Path) -> Reached {
    let packed = packed(input);
    std::fs::write(scratch, packed.as_deref().unwrap_or(input)).expect("the scratch file can be written");
    if Statistics::is_file(scratch) {
        // The target `manifest` looks at those.
        return Reached::Nothing;
    }
    let inspected = inspect_dataset(scratch, ARRAY_BYTES_MAX);
    let whole = npy::read_npz(scratch, ARRAY_BYTES_MAX);
    let archive = npy::Archive::open(scratch);
    if let Ok(info) = &inspected {
        let archive = archive.as_ref().expect("an upload that is taken can be opened");
        assert_eq!(info["arrays"].as_array().map(Vec::len), Some(archive.arrays().len()));
        let bytes: u64 = archive.arrays().iter().map(|entry| entry.header.data_bytes()).sum();
        assert!(bytes <= ARRAY_BYTES_MAX, "{bytes} bytes of arrays");
    }
    let entries = archive.map(|archive| archive.arrays().to_vec()).unwrap_or_default();
    let mut reached = if inspected.is_ok() { Reached::Inspected } else { Reached::Nothing };
    if inspected.is_ok() {
        for form in [Form::Own, Form::Other(DType::F32), Form::Other(DType::I64), Form::Runs] {
            if samples_of(scratch, &ports(&entries, form)) {
                reached = Reached::Read;
            }
        }
    }
    if let Ok(tensors) = whole {
        assert_eq!(tensors.len(), entries.len());
        written_again(&tensors, scratch);
    }
    reached
}

/// The archive of members that stand one after the other, each `NAME\n` and its bytes; the first byte of all is `d` for
/// deflated and `s` for stored ones. A member that begins with `{` is the dictionary of an `.npy` file and its data, or
/// where they begin with `*` a pattern that fills the shape. `None` where `input` begins as a file does.
fn packed(input: &[u8]) -> Option<Vec<u8>> {
    let (&kind, rest) = input.split_first()?;
    let method = match kind {
        b'd' => CompressionMethod::Deflated,
        b's' => CompressionMethod::Stored,
        _ => return None,
    };
    let options = SimpleFileOptions::default().compression_method(method);
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for member in split(rest, BETWEEN).into_iter().take(300) {
        let name_end = member.iter().position(|&b| b == b'\n').unwrap_or(member.len());
        let (name, content) = member.split_at(name_end);
        let content = content.get(1..).unwrap_or_default();
        // A name twice is refused by the writer: then there is no such file.
        zip.start_file(String::from_utf8_lossy(name), options).ok()?;
        zip.write_all(&array_of(content)).ok()?;
    }
    Some(zip.finish().ok()?.into_inner())
}

fn split<'a>(mut bytes: &'a [u8], between: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    while let Some(at) = bytes.windows(between.len()).position(|window| window == between) {
        parts.push(&bytes[..at]);
        bytes = &bytes[at + between.len()..];
    }
    parts.push(bytes);
    parts
}

fn array_of(content: &[u8]) -> Vec<u8> {
    let end = content.iter().position(|&b| b == b'\n').map_or(content.len(), |at| at + 1);
    let (dictionary, data) = content.split_at(end);
    let Some(length) = u16::try_from(dictionary.len()).ok().filter(|_| dictionary.starts_with(b"{")) else {
        return content.to_vec();
    };
    let mut array = [&b"\x93NUMPY\x01\x00"[..], &length.to_le_bytes(), dictionary].concat();
    match data.strip_prefix(b"*").filter(|pattern| !pattern.is_empty()) {
        None => array.extend_from_slice(data),
        Some(pattern) => {
            let header = npy::read_header("", &mut &array[..]).ok();
            let bytes = header.map_or(0, |header| header.data_bytes().min(2 * ARRAY_BYTES_MAX));
            array.extend(pattern.iter().cycle().take(bytes as usize));
        }
    }
    array
}

/// How the inputs of a model are made of the arrays.
#[derive(Clone, Copy)]
enum Form {
    /// Of the type of their array, any number of samples at a time.
    Own,
    /// Of another type.
    Other(DType),
    /// Every sample is a whole run.
    Runs,
}

fn ports(entries: &[Entry], form: Form) -> Vec<Port> {
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    let mut ports = Vec::new();
    for entry in entries {
        let image = ["_u8", "_mean", "_std"].iter().find_map(|suffix| entry.name.strip_suffix(suffix));
        let image = image.filter(|name| has(&format!("{name}_u8")));
        let Some((_, dims)) = entry.header.shape.split_first() else { continue };
        let (name, own) = match (entry.header.kind, image) {
            _ if ["labels", "slice"].contains(&entry.name.as_str()) => continue,
            (_, Some(_)) if !entry.name.ends_with("_u8") => continue,
            (_, Some(image)) => (image, DType::F32),
            (Kind::Number(dtype), None) => (entry.name.as_str(), dtype),
            _ => continue,
        };
        let dims = dims.iter().copied().map(Some);
        let dims = match form {
            Form::Runs => dims.collect(),
            Form::Own | Form::Other(_) => [None].into_iter().chain(dims).collect(),
        };
        let dtype = if let Form::Other(dtype) = form { dtype } else { own };
        ports.push(Port { name: name.to_owned(), dtype, dims });
    }
    ports
}

/// Reads all samples twice, in batches of other lengths. Whether they could be read.
fn samples_of(file: &Path, ports: &[Port]) -> bool {
    let Ok(data) = Dataset::open(file, ports) else { return false };
    let few = if data.samples() > ONE_BY_ONE_MAX { 1000 } else { 1 };
    let read = [few, 4099].map(|batch_max| {
        let mut digests = SampleDigests::default();
        let mut reader = data.reader().expect("it was opened before");
        let mut next = 0;
        for batch in reader.batches(batch_max).expect("it was opened before") {
            let batch = batch.ok()?;
            assert_eq!(batch.first, next);
            assert!(batch.samples <= batch_max);
            next += batch.samples;
            for ((name, tensor), port) in batch.inputs.iter().zip(ports) {
                assert_eq!((name, tensor.dtype()), (&port.name, port.dtype));
                let finite = |x: &f32| x.is_finite();
                assert!(port.dtype != DType::F32 || tensor.slice::<f32>().iter().all(finite));
            }
            digests.add(&data, &batch);
        }
        assert_eq!(next, data.samples());
        Some(digests.finish())
    });
    assert!(data.labels().is_none_or(|labels| labels.len() == data.samples()));
    assert!(data.slices().is_none_or(|slices| slices.len() == data.samples()));
    assert_eq!(read[0], read[1], "batches change what is read");
    read[0].is_some()
}

/// Writes arrays and reads them back.
fn written_again(tensors: &[(String, Tensor)], scratch: &Path) {
    let bytes = match tensors {
        [(name, one)] if name.is_empty() => {
            let mut bytes = Vec::new();
            npy::write_array(&mut bytes, one).expect("writing to memory does not fail");
            bytes
        }
        _ => {
            let arrays: Vec<(&str, &Tensor)> =
                tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            let written = npy::write_npz(Cursor::new(Vec::new()), &arrays);
            written.expect("names that were read can be written").into_inner()
        }
    };
    std::fs::write(scratch, bytes).expect("the scratch file can be written");
    let again = npy::read_npz(scratch, ARRAY_BYTES_MAX).expect("what is written can be read");
    assert!(again == tensors, "{}", names(&again, tensors));
}

fn names(left: &[(String, Tensor)], right: &[(String, Tensor)]) -> String {
    let mut text = "what is written is not what is read:".to_owned();
    for ((a, x), (b, y)) in left.iter().zip(right) {
        let _ = write!(text, " {a:?} {}{:?} and {b:?} {}{:?};", x.dtype(), x.shape(), y.dtype(), y.shape());
    }
    text
}
