//! The `.npy` and `.npz` formats: headers, whole arrays in and out. Knows nothing of samples or models.
//!
//! Format: numpy `doc/neps/nep-0001-npy-format`. The header is a Python dictionary with three fixed keys; it is
//! read here by a parser without recursion, as a header comes from a stranger (the crates we looked at recurse
//! on nested brackets and multiply the shape without a check).

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use zip::ZipArchive;
use zip::write::SimpleFileOptions;

use super::{DType, Tensor, element_count};

/// Longest header that is read, in bytes: numpy's own `max_header_size`.
const HEADER_BYTES_MAX: usize = 10_000;
/// Most dimensions of an array: numpy's `NPY_MAXDIMS`.
const RANK_MAX: usize = 64;
/// Most arrays in one `.npz`.
const ARRAYS_MAX: usize = 256;
/// First bytes of an array file.
const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Why a file is not an array, or not one that is read here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a zip archive nor an array.
    #[error("neither an .npz archive nor an .npy array (it starts with {start:02x?})")]
    Magic {
        /// The first bytes.
        start: Vec<u8>,
    },
    /// A header that cannot be read.
    #[error("array `{array}`: the .npy header {reason}")]
    Header {
        /// Name in the archive.
        array: String,
        /// What is wrong.
        reason: String,
    },
    /// Elements that are not read here.
    #[error("array `{array}`: {reason}")]
    Unsupported {
        /// Name in the archive.
        array: String,
        /// What is not supported and what to do.
        reason: String,
    },
    /// An archive with too many members.
    #[error("the archive holds {got} arrays, more than {ARRAYS_MAX}")]
    TooManyArrays {
        /// How many there are.
        got: usize,
    },
    /// An archive member that is not an array.
    #[error("the archive holds `{0}`, which is not an .npy array")]
    NotAnArray(String),
    /// More or fewer bytes than the header announces.
    #[error("array `{array}` holds {got} bytes of data, its header announces {want}")]
    Size {
        /// Name in the archive.
        array: String,
        /// Bytes that are there.
        got: u64,
        /// Bytes of the shape and type in the header.
        want: u64,
    },
    /// Whole arrays that are larger than the caller takes.
    #[error("array `{array}` of {bytes} bytes goes over the limit of {limit} bytes in all")]
    TooLarge {
        /// Name in the archive.
        array: String,
        /// Its size.
        bytes: u64,
        /// The caller's limit.
        limit: u64,
    },
    /// The archive is damaged.
    #[error("zip archive: {0}")]
    Zip(#[from] zip::result::ZipError),
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// What one element of an array is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number or a truth value.
    Number(DType),
    /// `S`: bytes of a text, padded with zeros to this many.
    Bytes(usize),
    /// `U`: UTF-32 code units of a text, padded with zeros to this many.
    Unicode(usize),
}

impl Kind {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Kind::Number(dtype) => dtype.size(),
            Kind::Bytes(n) => n,
            Kind::Unicode(n) => n * 4,
        }
    }

    /// The type as numpy spells it.
    pub fn name(self) -> String {
        match self {
            Kind::Number(dtype) => dtype.name().to_owned(),
            Kind::Bytes(n) => format!("bytes{n}"),
            Kind::Unicode(n) => format!("str{n}"),
        }
    }
}

/// What the header of an array says. Row-major and little-endian: the rest is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What one element is.
    pub kind: Kind,
    /// Length of each dimension; the bytes of all elements fit `u64` and `usize`.
    pub shape: Vec<usize>,
    /// Bytes from the start of the file to the data.
    pub data_start: u64,
}

impl Header {
    /// Bytes of all elements.
    pub fn data_bytes(&self) -> u64 {
        let count = element_count(&self.shape).expect("checked when the header was read");
        (count * self.kind.size()) as u64
    }
}

/// Reads the header of an array; the reader then stands at the data. `array` is for the errors.
///
/// # Errors
/// [`Error::Header`], [`Error::Unsupported`]: object, structured, big-endian and column-major arrays are not read.
pub fn read_header(array: &str, reader: &mut dyn Read) -> Result<Header, Error> {
    let bad = |reason: &str| Error::Header { array: array.to_owned(), reason: reason.to_owned() };
    let mut start = [0u8; 8];
    reader.read_exact(&mut start).map_err(|_| bad("is cut short"))?;
    if start[..6] != *MAGIC {
        return Err(bad("does not start with \\x93NUMPY"));
    }
    let (length, prefix) = match start[6] {
        1 => {
            let mut len = [0u8; 2];
            reader.read_exact(&mut len).map_err(|_| bad("is cut short"))?;
            (usize::from(u16::from_le_bytes(len)), 10)
        }
        2 | 3 => {
            let mut len = [0u8; 4];
            reader.read_exact(&mut len).map_err(|_| bad("is cut short"))?;
            (u32::from_le_bytes(len) as usize, 12)
        }
        version => return Err(bad(&format!("has version {version}, which is not known"))),
    };
    if length > HEADER_BYTES_MAX {
        return Err(bad(&format!("has {length} bytes, more than {HEADER_BYTES_MAX}")));
    }
    let mut text = vec![0u8; length];
    reader.read_exact(&mut text).map_err(|_| bad("is cut short"))?;
    let text = String::from_utf8(text).map_err(|_| bad("is not UTF-8"))?;
    let fields = parse(&text).map_err(|reason| bad(&reason))?;

    let unsupported = |reason: String| Error::Unsupported { array: array.to_owned(), reason };
    let kind = kind_of(&fields.descr).map_err(unsupported)?;
    if fields.fortran_order && fields.shape.iter().filter(|&&d| d > 1).count() > 1 {
        return Err(unsupported("is column-major; save it with numpy.ascontiguousarray".to_owned()));
    }
    let count = element_count(&fields.shape).and_then(|n| n.checked_mul(kind.size().max(1)));
    if count.is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(bad(&format!("has a shape {:?} whose product overflows", fields.shape)));
    }
    Ok(Header { kind, shape: fields.shape, data_start: (prefix + length) as u64 })
}

/// The three entries of a header.
struct Fields {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse(text: &str) -> Result<Fields, String> {
    let mut rest = text.trim();
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    take(&mut rest, "{")?;
    while !rest.starts_with('}') {
        let key = quoted(&mut rest)?;
        take(&mut rest, ":")?;
        match key {
            "descr" if rest.starts_with('[') => return Err("describes a structured array".to_owned()),
            "descr" => descr = Some(quoted(&mut rest)?.to_owned()),
            "fortran_order" => fortran_order = Some(truth(&mut rest)?),
            "shape" => shape = Some(tuple(&mut rest)?),
            other => return Err(format!("has a key `{other}`, which is not known")),
        }
        if take(&mut rest, ",").is_err() && !rest.starts_with('}') {
            return Err("misses a comma".to_owned());
        }
    }
    match (descr, fortran_order, shape) {
        (Some(descr), Some(fortran_order), Some(shape)) => Ok(Fields { descr, fortran_order, shape }),
        _ => Err("misses one of descr, fortran_order, shape".to_owned()),
    }
}

/// Steps over `token` and the space after it.
fn take(rest: &mut &str, token: &str) -> Result<(), String> {
    *rest = rest.strip_prefix(token).ok_or_else(|| format!("misses `{token}`"))?.trim_start();
    Ok(())
}

/// A string in single or double quotes, without escapes.
fn quoted<'a>(rest: &mut &'a str) -> Result<&'a str, String> {
    let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"')).ok_or("misses a quote")?;
    let inner = &rest[1..];
    let end = inner.find(quote).ok_or("misses a closing quote")?;
    *rest = inner[end + 1..].trim_start();
    Ok(&inner[..end])
}

fn truth(rest: &mut &str) -> Result<bool, String> {
    match take(rest, "False") {
        Ok(()) => Ok(false),
        Err(_) => take(rest, "True").map(|()| true),
    }
}

/// `()`, `(3,)`, `(3, 4)`.
fn tuple(rest: &mut &str) -> Result<Vec<usize>, String> {
    let mut dims = Vec::new();
    take(rest, "(")?;
    while !rest.starts_with(')') {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let dim = rest[..digits].parse().map_err(|_| "has a dimension that is not a count".to_owned())?;
        dims.push(dim);
        if dims.len() > RANK_MAX {
            return Err(format!("has more than {RANK_MAX} dimensions"));
        }
        *rest = rest[digits..].trim_start();
        if take(rest, ",").is_err() && !rest.starts_with(')') {
            return Err("has a shape that is not a tuple of counts".to_owned());
        }
    }
    take(rest, ")")?;
    Ok(dims)
}

/// A numpy type string, such as `<f4`.
fn kind_of(descr: &str) -> Result<Kind, String> {
    let unknown =
        || format!("elements of type `{descr}` are not read; use a number, a truth value or a text");
    if !descr.is_ascii() || descr.len() < 2 {
        return Err(unknown());
    }
    let (order, class, size) = (&descr[..1], &descr[1..2], &descr[2..]);
    if class == "O" {
        return Err("holds Python objects (a pickle), which are never read".to_owned());
    }
    if order == ">" && size != "1" {
        return Err(format!("is big-endian (`{descr}`); save it as `<{class}{size}`"));
    }
    let number = |dtype| Ok(Kind::Number(dtype));
    match (class, size) {
        ("f", "2") => number(DType::F16),
        ("f", "4") => number(DType::F32),
        ("f", "8") => number(DType::F64),
        ("i", "1") => number(DType::I8),
        ("i", "2") => number(DType::I16),
        ("i", "4") => number(DType::I32),
        ("i", "8") => number(DType::I64),
        ("u", "1") => number(DType::U8),
        ("u", "2") => number(DType::U16),
        ("u", "4") => number(DType::U32),
        ("u", "8") => number(DType::U64),
        ("b", "1") => number(DType::Bool),
        ("S" | "U", n) => match n.parse::<usize>() {
            Ok(n) if (1..=65_536).contains(&n) => {
                Ok(if class == "S" { Kind::Bytes(n) } else { Kind::Unicode(n) })
            }
            _ => Err(unknown()),
        },
        _ => Err(unknown()),
    }
}

/// The numpy type string of a data type.
///
/// `bfloat16` has none and is written as `float32` by [`write_array`].
fn descr_of(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 | DType::BF16 => "<f4",
        DType::F64 => "<f8",
        DType::F16 => "<f2",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::I16 => "<i2",
        DType::I8 => "|i1",
        DType::U64 => "<u8",
        DType::U32 => "<u4",
        DType::U16 => "<u2",
        DType::U8 => "|u1",
        DType::Bool => "|b1",
    }
}

/// Reads the data after a header whole, and checks that nothing follows it.
///
/// # Errors
/// [`Error::Size`] where the data are shorter or longer than the header says.
pub fn read_data(array: &str, header: &Header, reader: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let want = header.data_bytes();
    let mut bytes = Vec::new();
    // One byte more than announced shows data that are too long; memory grows with what is there only.
    let got = reader.take(want.saturating_add(1)).read_to_end(&mut bytes)? as u64;
    if got != want {
        return Err(Error::Size { array: array.to_owned(), got, want });
    }
    Ok(bytes)
}

/// A file with arrays: an `.npz` archive or a single `.npy`, told apart by the first bytes.
pub struct Archive {
    source: Source,
    arrays: Vec<Entry>,
}

enum Source {
    Npz(ZipArchive<BufReader<File>>),
    Npy(BufReader<File>),
}

/// One array of a file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name without `.npy`; empty for a file that is one array.
    pub name: String,
    /// What its header says.
    pub header: Header,
}

impl Archive {
    /// Opens a file and reads all headers, no data.
    ///
    /// # Errors
    /// [`Error`]; a member of an archive whose size is not the one its header announces is refused here.
    pub fn open(path: &Path) -> Result<Archive, Error> {
        let mut file = BufReader::new(File::open(path)?);
        let mut start = Vec::new();
        (&mut file).take(6).read_to_end(&mut start)?;
        file.seek(SeekFrom::Start(0))?;
        if start.starts_with(b"PK") {
            return Archive::of_zip(ZipArchive::new(file)?);
        }
        if start != MAGIC {
            return Err(Error::Magic { start });
        }
        let header = read_header("", &mut file)?;
        let got = file.get_ref().metadata()?.len().saturating_sub(header.data_start);
        if got != header.data_bytes() {
            return Err(Error::Size { array: String::new(), got, want: header.data_bytes() });
        }
        let arrays = vec![Entry { name: String::new(), header }];
        Ok(Archive { source: Source::Npy(file), arrays })
    }

    fn of_zip(mut zip: ZipArchive<BufReader<File>>) -> Result<Archive, Error> {
        if zip.len() > ARRAYS_MAX {
            return Err(Error::TooManyArrays { got: zip.len() });
        }
        if zip.has_duplicate_names() {
            let reason = "stands in the archive more than once (or another does)".to_owned();
            let array = zip.name_for_index(0).transpose()?.map_or_else(String::new, |n| n.into_owned());
            return Err(Error::Unsupported { array, reason });
        }
        let mut arrays = Vec::with_capacity(zip.len());
        for index in 0..zip.len() {
            let mut member = zip.by_index(index)?;
            let file_name = member.name()?.into_owned();
            let Some(name) = file_name.strip_suffix(".npy") else {
                return Err(Error::NotAnArray(file_name));
            };
            let size = member.size();
            let header = read_header(name, &mut member)?;
            let got = size.saturating_sub(header.data_start);
            if got != header.data_bytes() {
                return Err(Error::Size { array: name.to_owned(), got, want: header.data_bytes() });
            }
            arrays.push(Entry { name: name.to_owned(), header });
        }
        Ok(Archive { source: Source::Npz(zip), arrays })
    }

    /// The arrays, in the order of the file.
    pub fn arrays(&self) -> &[Entry] {
        &self.arrays
    }

    /// The data of array `index` as a stream that stands behind the header.
    ///
    /// # Errors
    /// [`Error::Zip`], [`Error::Io`].
    pub fn stream(&mut self, index: usize) -> Result<Box<dyn Read + '_>, Error> {
        let entry = &self.arrays[index];
        match &mut self.source {
            Source::Npz(zip) => {
                let mut member = zip.by_index(index)?;
                read_header(&entry.name, &mut member)?;
                Ok(Box::new(member))
            }
            Source::Npy(file) => {
                file.seek(SeekFrom::Start(entry.header.data_start))?;
                Ok(Box::new(file))
            }
        }
    }

    /// The data of array `index`, whole.
    ///
    /// # Errors
    /// As [`read_data`].
    pub fn read(&mut self, index: usize) -> Result<Vec<u8>, Error> {
        let Entry { name, header } = self.arrays[index].clone();
        read_data(&name, &header, &mut *self.stream(index)?)
    }
}

/// All arrays of an `.npz` or `.npy` file, whole, with their names (`""` for an `.npy`).
///
/// # Errors
/// [`Error`]; [`Error::TooLarge`] where the arrays together have more than `bytes_max`, before they are read.
pub fn read_npz(path: &Path, bytes_max: u64) -> Result<Vec<(String, Tensor)>, Error> {
    let mut archive = Archive::open(path)?;
    let mut total = 0u64;
    let mut tensors = Vec::new();
    for index in 0..archive.arrays().len() {
        let Entry { name, header } = archive.arrays()[index].clone();
        let Kind::Number(dtype) = header.kind else {
            let reason = format!("holds {}, not numbers", header.kind.name());
            return Err(Error::Unsupported { array: name, reason });
        };
        total = total.saturating_add(header.data_bytes());
        if total > bytes_max {
            return Err(Error::TooLarge { array: name, bytes: header.data_bytes(), limit: bytes_max });
        }
        let bytes = archive.read(index)?;
        if dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
            let reason = "holds truth values that are neither 0 nor 1".to_owned();
            return Err(Error::Unsupported { array: name, reason });
        }
        let tensor = Tensor::from_bytes(dtype, &header.shape, &bytes).expect("the size was checked");
        tensors.push((name, tensor));
    }
    Ok(tensors)
}

/// Writes one array as `.npy` (version 1.0, data on a 64-byte boundary).
///
/// # Errors
/// Where the writer fails.
pub fn write_array(writer: &mut dyn Write, tensor: &Tensor) -> std::io::Result<()> {
    let shape = match tensor.shape() {
        [one] => format!("({one},)"),
        dims => format!("({})", dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    };
    let descr = descr_of(tensor.dtype());
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let padded = (10 + dict.len() + 1).next_multiple_of(64) - 10;
    let length = u16::try_from(padded).expect("64 dimensions of 20 digits are shorter");
    writer.write_all(MAGIC)?;
    writer.write_all(&[1, 0])?;
    writer.write_all(&length.to_le_bytes())?;
    writer.write_all(format!("{dict:<0$}\n", padded - 1).as_bytes())?;
    if tensor.dtype() == DType::BF16 {
        let floats: Vec<f32> = tensor.slice::<half::bf16>().iter().map(|x| x.to_f32()).collect();
        return writer.write_all(bytemuck::cast_slice(&floats));
    }
    writer.write_all(tensor.view().bytes)
}

/// Writes arrays under their names as an `.npz` with deflate. The same arrays give the same bytes.
///
/// # Errors
/// [`Error::Zip`] (a name twice), [`Error::Io`].
pub fn write_npz<W: Write + Seek>(writer: W, arrays: &[(&str, &Tensor)]) -> Result<W, Error> {
    let mut zip = zip::ZipWriter::new(writer);
    for (name, tensor) in arrays {
        let large = tensor.view().bytes.len() as u64 > u64::from(u32::MAX) / 2;
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated)
            .last_modified_time(zip::DateTime::default())
            .large_file(large);
        zip.start_file(format!("{name}.npy"), options)?;
        write_array(&mut zip, tensor)?;
    }
    Ok(zip.finish()?)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn header(dict: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&u16::try_from(dict.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(dict.as_bytes());
        bytes
    }

    #[test]
    fn headers_as_numpy_writes_them_are_read() {
        for (dict, kind, shape) in [
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }  \n",
                Kind::Number(DType::F32),
                vec![3, 4],
            ),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (), }\n", Kind::Number(DType::U8), vec![]),
            ("{'descr': '<U5', 'fortran_order': False, 'shape': (7,), }\n", Kind::Unicode(5), vec![7]),
            ("{\"shape\": (2,), \"descr\": \"|S3\", \"fortran_order\": True}", Kind::Bytes(3), vec![2]),
            (
                "{'descr': '<i8', 'fortran_order': False, 'shape': (0, 3), }",
                Kind::Number(DType::I64),
                vec![0, 3],
            ),
        ] {
            let got = read_header("a", &mut &header(dict)[..]).unwrap();
            assert_eq!((got.kind, got.shape), (kind, shape), "{dict}");
        }
    }

    #[test]
    fn headers_that_cannot_be_trusted_are_refused() {
        let nested = format!("{{'descr': {}", "[".repeat(5000));
        for (dict, says) in [
            ("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", "pickle"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (3,), }", "big-endian"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 2), }", "column-major"),
            ("{'descr': '<c8', 'fortran_order': False, 'shape': (3,), }", "<c8"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }", "structured"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", "overflows"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", "not a count"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "not a count"),
            ("{'descr': '<f4', 'fortran_order': False, }", "misses"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'x': 1}", "`x`"),
            ("{'descr': '<f4' 'fortran_order': False}", "comma"),
            ("{'descr': '<f4", "quote"),
            ("", "misses"),
            (&nested, "structured"),
        ] {
            let error = read_header("a", &mut &header(dict)[..]).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("`a`"), "{dict}: {error}");
        }
        let long = header(&" ".repeat(10_001));
        assert!(read_header("a", &mut &long[..]).unwrap_err().to_string().contains("10001 bytes"));
        assert!(read_header("a", &mut &long[..9]).unwrap_err().to_string().contains("cut short"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let a = Tensor::from_slice(&[2, 3], &[1.5f32, -2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = Tensor::scalar(-7i64);
        let c = Tensor::from_slice(&[2], &[1u8, 0]).retyped(DType::Bool);
        let bytes =
            write_npz(Cursor::new(Vec::new()), &[("a", &a), ("b/x", &b), ("c", &c)]).unwrap().into_inner();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let back = read_npz(file.path(), 1000).unwrap();
        assert_eq!(back, [("a".to_owned(), a.clone()), ("b/x".to_owned(), b), ("c".to_owned(), c)]);
        assert!(matches!(read_npz(file.path(), 24), Err(Error::TooLarge { .. })));

        let mut single = Vec::new();
        write_array(&mut single, &a).unwrap();
        assert_eq!((single.len() - 24) % 64, 0);
        std::fs::write(file.path(), &single).unwrap();
        assert_eq!(read_npz(file.path(), 24).unwrap(), [(String::new(), a)]);
        for wrong in [&single[..single.len() - 1], &[&single[..], b"x"].concat()] {
            std::fs::write(file.path(), wrong).unwrap();
            assert!(matches!(read_npz(file.path(), 1000), Err(Error::Size { .. })));
        }
    }

    #[test]
    fn a_file_that_is_neither_is_refused_by_its_first_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [&b""[..], b"GIF89a...", b"\x93NUM"] {
            std::fs::write(file.path(), bytes).unwrap();
            assert!(matches!(Archive::open(file.path()), Err(Error::Magic { .. })), "{bytes:?}");
        }
        std::fs::write(file.path(), b"PK\x03\x04 not a zip").unwrap();
        assert!(matches!(Archive::open(file.path()), Err(Error::Zip(_))));
    }
}
