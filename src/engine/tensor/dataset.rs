//! Calibration and evaluation data: a streamed view of an `.npz` or `.npy`, one batch at a time.
//! Knows the ports of a model as names, types and dimensions; does not know what runs it.
//!
//! One array for each input, named as the input (a single array may have any name). The first dimension counts the
//! samples. Where an array has one dimension more than the input, every sample is a whole run of a model
//! without batch axis. Byte images: `NAME_u8` with `NAME_mean` and `NAME_std` stand for `(u8 / 255 − mean) / std`,
//! mean and std one value or one for each channel (axis 1 of the array). `labels`: integers `[samples]`.
//! `slice`: integers or texts `[samples]`.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::byte_images::Scale;
use super::convert::{convert, convertible, first_not_finite, is_integer};
use super::npy::{self, Archive, Entry, Kind};
use super::{DType, Tensor, element_count};

/// Largest single sample that is read, in bytes.
const SAMPLE_BYTES_MAX: usize = 1 << 29;

/// Why data do not fit a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not one with arrays.
    #[error(transparent)]
    File(#[from] npy::Error),
    /// An input without an array.
    #[error("no array for input `{input}`: the file holds {got:?}, the model needs {want:?}")]
    Missing {
        /// The input.
        input: String,
        /// The arrays of the file.
        got: Vec<String>,
        /// The inputs of the model.
        want: Vec<String>,
    },
    /// An array that belongs to no input.
    #[error(
        "array `{array}` belongs to no input; the model needs {want:?} (and may have `labels` and `slice`)"
    )]
    Extra {
        /// The array.
        array: String,
        /// The inputs of the model.
        want: Vec<String>,
    },
    /// An array of a type that does not become the input's without loss.
    #[error("array `{array}` holds {got}, input `{input}` is {want}{hint}")]
    Type {
        /// The array.
        array: String,
        /// The input.
        input: String,
        /// What the array holds.
        got: String,
        /// What the model declares.
        want: DType,
        /// What to do.
        hint: &'static str,
    },
    /// An array of a shape that the input does not take.
    #[error("array `{array}` has shape {got:?}, expected [{want}]")]
    Shape {
        /// The array.
        array: String,
        /// Its shape.
        got: Vec<usize>,
        /// What fits.
        want: String,
    },
    /// Arrays that disagree on the number of samples.
    #[error("array `{array}` has {got} samples, `{first}` has {want}")]
    Samples {
        /// The array.
        array: String,
        /// Its samples.
        got: usize,
        /// The array it is compared with.
        first: String,
        /// The samples of that one.
        want: usize,
    },
    /// Some arrays are whole runs, some are batches.
    #[error("array `{array}` has one dimension more than its input (whole runs), `{first}` has not")]
    MixedForm {
        /// The array with whole runs.
        array: String,
        /// The array without.
        first: String,
    },
    /// A model with a fixed batch that does not divide the samples.
    #[error("the model takes exactly {batch} samples at a time, which does not divide {samples} samples")]
    FixedBatch {
        /// Batch of the model.
        batch: usize,
        /// Samples of the file.
        samples: usize,
    },
    /// A value that cannot be used.
    #[error("array `{array}`, sample {sample}: {reason}")]
    Value {
        /// The array.
        array: String,
        /// Index of the sample.
        sample: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// `labels` or `slice` or the parts of a byte image are not what they must be.
    #[error("array `{array}`: {reason}")]
    Array {
        /// The array.
        array: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file without samples.
    #[error("the file holds no samples")]
    Empty,
}

/// An input of a model, as far as data care.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name in the model.
    pub name: String,
    /// What one element is.
    pub dtype: DType,
    /// Length of each dimension; `None` where any length will do.
    pub dims: Vec<Option<usize>>,
}

/// A file of samples that fits a model.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    feeds: Vec<Feed>,
    samples: usize,
    form: Form,
    labels: Option<Vec<i64>>,
    slices: Option<Vec<String>>,
}

/// How samples become runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The first dimension is the batch: any length, or exactly this one.
    Batches(Option<usize>),
    /// Every sample is a whole run.
    Runs,
}

/// How one array feeds one input.
#[derive(Clone, Debug)]
struct Feed {
    input: String,
    array: String,
    /// Position in the archive.
    index: usize,
    from: DType,
    to: DType,
    /// Shape of one sample: the array's without its first dimension.
    shape: Vec<usize>,
    /// For byte images: what their bytes stand for.
    scale: Option<Scale>,
}

/// Some samples, ready to run.
#[derive(Debug)]
pub struct Batch {
    /// Index of the first sample.
    pub first: usize,
    /// Number of samples.
    pub samples: usize,
    /// One tensor for each input: `[samples, …]`, or without the first dimension where every sample is a whole run.
    pub inputs: Vec<(String, Tensor)>,
}

impl Batch {
    /// The inputs as a run takes them.
    pub fn feeds(&self) -> Vec<(&str, &Tensor)> {
        feeds(&self.inputs)
    }
}

/// Inputs by name as a run takes them.
pub fn feeds(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

impl Dataset {
    /// Opens a file for a model. Reads headers, labels and slices; the samples stay where they are.
    ///
    /// # Errors
    /// [`Error`], with what was expected and what was found.
    pub fn open(path: &Path, ports: &[Port]) -> Result<Dataset, Error> {
        let mut archive = Archive::open(path)?;
        let entries = archive.arrays().to_vec();
        let used = assign(&entries, ports)?;
        let mut feeds = Vec::new();
        let (mut samples, mut form) = (None::<(String, usize)>, None::<(String, Form)>);
        for (port, source) in ports.iter().zip(&used) {
            let entry = &entries[source.index()];
            let this = form_of(entry, port)?;
            match &form {
                None => form = Some((entry.name.clone(), this)),
                Some((first, Form::Runs)) if this != Form::Runs => {
                    return Err(Error::MixedForm { array: first.clone(), first: entry.name.clone() });
                }
                Some((first, Form::Batches(_))) if this == Form::Runs => {
                    return Err(Error::MixedForm { array: entry.name.clone(), first: first.clone() });
                }
                // One input with a fixed batch fixes it for all.
                Some((_, Form::Batches(None))) => form = Some((entry.name.clone(), this)),
                Some(_) => {}
            }
            same_samples(&mut samples, entry)?;
            feeds.push(feed(&mut archive, &entries, source, port)?);
        }
        let (_, form) = form.ok_or(Error::Empty)?;
        let (_, samples) = samples.clone().filter(|(_, n)| *n > 0).ok_or(Error::Empty)?;
        if let Form::Batches(Some(batch)) = form
            && (batch == 0 || samples % batch != 0)
        {
            return Err(Error::FixedBatch { batch, samples });
        }
        let labels = read_labels(&mut archive, &entries, samples)?;
        let slices = read_slices(&mut archive, &entries, samples)?;
        Ok(Dataset { path: path.to_owned(), feeds, samples, form, labels, slices })
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Whether every sample is a whole run of a model without batch axis.
    pub fn whole_runs(&self) -> bool {
        self.form == Form::Runs
    }

    /// Whether samples may be run together in any number.
    pub fn any_batch(&self) -> bool {
        self.form == Form::Batches(None)
    }

    /// The right class of each sample.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// The group that each sample belongs to.
    pub fn slices(&self) -> Option<&[String]> {
        self.slices.as_deref()
    }

    /// Opens the file for reading the samples: one handle for each array, as a zip member is read from front to back.
    ///
    /// # Errors
    /// Where the file cannot be opened any more.
    pub fn reader(&self) -> Result<Reader<'_>, Error> {
        let archives = self.feeds.iter().map(|_| Archive::open(&self.path)).collect::<Result<_, _>>()?;
        Ok(Reader { dataset: self, archives })
    }
}

/// An open file of samples.
pub struct Reader<'a> {
    dataset: &'a Dataset,
    archives: Vec<Archive>,
}

impl Reader<'_> {
    /// The samples from the first on, at most `batch_max` at a time; exactly the model's batch where it is fixed,
    /// one where every sample is a whole run. Memory: one batch.
    ///
    /// # Errors
    /// Where the file cannot be read; each batch has errors of its own.
    pub fn batches(&mut self, batch_max: usize) -> Result<Batches<'_>, Error> {
        let dataset = self.dataset;
        let streams =
            dataset.feeds.iter().zip(&mut self.archives).map(|(feed, archive)| archive.stream(feed.index));
        let streams = streams.collect::<Result<_, _>>()?;
        let mut batches = Batches { dataset, streams, next: 0, batch: 1, failed: false };
        batches.at_most(batch_max);
        Ok(batches)
    }
}

/// Batches of samples, front to back.
pub struct Batches<'a> {
    dataset: &'a Dataset,
    streams: Vec<Box<dyn Read + 'a>>,
    next: usize,
    batch: usize,
    failed: bool,
}

impl Batches<'_> {
    /// From now on at most so many samples at a time, as [`Reader::batches`] takes them.
    pub fn at_most(&mut self, batch_max: usize) {
        let dataset = self.dataset;
        self.batch = match dataset.form {
            Form::Runs => 1,
            Form::Batches(Some(fixed)) => fixed,
            Form::Batches(None) => {
                let largest = dataset.feeds.iter().map(Feed::sample_bytes).max().unwrap_or(1).max(1);
                batch_max.min(SAMPLE_BYTES_MAX / largest).max(1)
            }
        };
    }

    /// Those that begin before a number of samples; the others can be taken after them.
    pub fn before(&mut self, samples: usize) -> impl Iterator<Item = Result<Batch, Error>> {
        std::iter::from_fn(move || if self.next < samples { self.next() } else { None })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Result<Batch, Error>> {
        if self.failed || self.next == self.dataset.samples {
            return None;
        }
        let (first, samples) = (self.next, self.batch.min(self.dataset.samples - self.next));
        self.next += samples;
        let last = self.next == self.dataset.samples;
        let mut inputs = Vec::with_capacity(self.streams.len());
        for (feed, stream) in self.dataset.feeds.iter().zip(&mut self.streams) {
            let whole_run = self.dataset.form == Form::Runs;
            match feed.read(stream.as_mut(), first, samples, whole_run, last) {
                Ok(tensor) => inputs.push((feed.input.clone(), tensor)),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        Some(Ok(Batch { first, samples, inputs }))
    }
}

impl Feed {
    /// Bytes of one sample, as stored or as fed, whichever is more.
    fn sample_bytes(&self) -> usize {
        let count: usize = self.shape.iter().product();
        count * self.from.size().max(self.to.size())
    }

    fn read(
        &self,
        stream: &mut dyn Read,
        first: usize,
        samples: usize,
        whole_run: bool,
        last: bool,
    ) -> Result<Tensor, Error> {
        let count: usize = self.shape.iter().product();
        let mut stored = Tensor::zeros(self.from, &[samples, count]);
        stream.read_exact(stored.view_mut().bytes).map_err(npy::Error::Io)?;
        // The end of a zip member is where its checksum is compared, and where a member that is too long shows.
        if last && stream.read(&mut [0]).map_err(npy::Error::Io)? != 0 {
            let want = (first + samples) as u64 * (count * self.from.size()) as u64;
            return Err(npy::Error::Size { array: self.array.clone(), got: want + 1, want }.into());
        }
        let tensor = match &self.scale {
            Some(scale) => scale.reals(&stored, &self.shape),
            None => convert(stored, self.to)
                .map_err(|(at, reason)| self.value(first + at / count.max(1), reason))?,
        };
        if let Some(at) = first_not_finite(&tensor) {
            return Err(self.value(first + at / count.max(1), "holds NaN or infinity".to_owned()));
        }
        let mut shape = self.shape.clone();
        if !whole_run {
            shape.insert(0, samples);
        }
        Ok(tensor.reshaped(&shape).expect("one run is one sample"))
    }

    fn value(&self, sample: usize, reason: String) -> Error {
        Error::Value { array: self.array.clone(), sample, reason }
    }
}

/// Where the data of an input are.
enum Source {
    Plain(usize),
    Bytes { data: usize, mean: usize, std: usize },
}

impl Source {
    fn index(&self) -> usize {
        match self {
            Source::Plain(index) | Source::Bytes { data: index, .. } => *index,
        }
    }
}

/// Finds the arrays of each input; every array must have a use.
fn assign(entries: &[Entry], ports: &[Port]) -> Result<Vec<Source>, Error> {
    let find = |name: &str| entries.iter().position(|e| e.name == name);
    let want = || ports.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let mut used: HashSet<usize> = ["labels", "slice"].iter().filter_map(|n| find(n)).collect();
    // A port of that very name takes the array.
    used.retain(|&i| ports.iter().all(|p| p.name != entries[i].name));
    let mut sources = Vec::new();
    for port in ports {
        let source = if let Some(index) = find(&port.name) {
            Source::Plain(index)
        } else if let Some(source) = bytes_source(&port.name, entries)? {
            source
        } else if let (1, Some(source)) = (ports.len(), only_array(entries, &used)?) {
            source
        } else {
            let got = entries.iter().map(|e| e.name.clone()).collect();
            return Err(Error::Missing { input: port.name.clone(), got, want: want() });
        };
        match source {
            Source::Plain(index) => used.extend([index]),
            Source::Bytes { data, mean, std } => used.extend([data, mean, std]),
        }
        sources.push(source);
    }
    match (0..entries.len()).find(|i| !used.contains(i)) {
        Some(extra) => Err(Error::Extra { array: entries[extra].name.clone(), want: want() }),
        None => Ok(sources),
    }
}

/// `NAME_u8` with its mean and deviation, if there is a `NAME_u8`.
fn bytes_source(name: &str, entries: &[Entry]) -> Result<Option<Source>, Error> {
    let find = |suffix: &str| entries.iter().position(|e| e.name == format!("{name}_{suffix}"));
    match (find("u8"), find("mean"), find("std")) {
        (None, _, _) => Ok(None),
        (Some(data), Some(mean), Some(std)) => Ok(Some(Source::Bytes { data, mean, std })),
        (Some(_), mean, _) => {
            let missing = if mean.is_none() { "mean" } else { "std" };
            let reason = format!("needs `{name}_{missing}` beside it");
            Err(Error::Array { array: format!("{name}_u8"), reason })
        }
    }
}

/// The single data array of a file, whatever its name.
fn only_array(entries: &[Entry], used: &HashSet<usize>) -> Result<Option<Source>, Error> {
    let free: Vec<usize> = (0..entries.len()).filter(|i| !used.contains(i)).collect();
    if let [one] = free[..] {
        return Ok(Some(Source::Plain(one)));
    }
    match free.iter().find_map(|&i| entries[i].name.strip_suffix("_u8")) {
        Some(name) if free.len() == 3 => bytes_source(name, entries),
        _ => Ok(None),
    }
}

/// Checks the shape of an array against an input and finds out how samples become runs.
fn form_of(entry: &Entry, port: &Port) -> Result<Form, Error> {
    let shape = &entry.header.shape;
    let fits = |got: &[usize], want: &[Option<usize>]| {
        got.len() == want.len() && got.iter().zip(want).all(|(g, w)| w.is_none_or(|w| w == *g))
    };
    if !port.dims.is_empty() && shape.len() == port.dims.len() && fits(&shape[1..], &port.dims[1..]) {
        return Ok(Form::Batches(port.dims[0]));
    }
    if shape.len() == port.dims.len() + 1 && fits(&shape[1..], &port.dims) {
        return Ok(Form::Runs);
    }
    let dims = port.dims.iter().map(|d| d.map_or("any".to_owned(), |d| d.to_string()));
    let mut want: Vec<String> = dims.collect();
    match want.first_mut() {
        Some(first) => "samples".clone_into(first),
        None => want.push("samples".to_owned()),
    }
    Err(Error::Shape { array: entry.name.clone(), got: shape.clone(), want: want.join(", ") })
}

fn same_samples(samples: &mut Option<(String, usize)>, entry: &Entry) -> Result<(), Error> {
    let got = entry.header.shape[0];
    match samples {
        None => *samples = Some((entry.name.clone(), got)),
        Some((_, want)) if *want == got => {}
        Some((first, want)) => {
            return Err(Error::Samples { array: entry.name.clone(), got, first: first.clone(), want: *want });
        }
    }
    Ok(())
}

fn feed(archive: &mut Archive, entries: &[Entry], source: &Source, port: &Port) -> Result<Feed, Error> {
    let entry = &entries[source.index()];
    let shape = entry.header.shape[1..].to_vec();
    let wrong_type = |hint| Error::Type {
        array: entry.name.clone(),
        input: port.name.clone(),
        got: entry.header.kind.name(),
        want: port.dtype,
        hint,
    };
    let Kind::Number(from) = entry.header.kind else { return Err(wrong_type("")) };
    // First of all: what is read below is as large as a sample may be.
    let bytes = element_count(&shape).and_then(|n| n.checked_mul(from.size().max(port.dtype.size())));
    if bytes.is_none_or(|b| b > SAMPLE_BYTES_MAX) {
        let reason = format!("one sample of shape {shape:?} has more than {SAMPLE_BYTES_MAX} bytes");
        return Err(Error::Array { array: entry.name.clone(), reason });
    }
    if shape.contains(&0) {
        return Err(Error::Array {
            array: entry.name.clone(),
            reason: format!("samples of shape {shape:?} are empty"),
        });
    }
    let scale = match source {
        Source::Plain(_) => {
            convertible(from, port.dtype).map_err(wrong_type)?;
            None
        }
        Source::Bytes { mean, std, .. } => {
            if from != DType::U8 || port.dtype != DType::F32 {
                return Err(wrong_type("; a byte image is uint8 and becomes float32"));
            }
            let channels = shape.first().copied().unwrap_or(1);
            let mean = per_channel(archive, &entries[*mean], *mean, channels)?;
            let std = per_channel(archive, &entries[*std], *std, channels)?;
            if std.iter().any(|s| !s.is_finite() || *s == 0.0) || mean.iter().any(|m| !m.is_finite()) {
                let reason = "mean and std must be finite, and std not zero".to_owned();
                return Err(Error::Array { array: entry.name.clone(), reason });
            }
            Some(Scale::new(mean, std, &shape))
        }
    };
    let (input, array, index) = (port.name.clone(), entry.name.clone(), source.index());
    Ok(Feed { input, array, index, from, to: port.dtype, shape, scale })
}

/// Mean or deviation: one value, or one for each channel.
fn per_channel(
    archive: &mut Archive,
    entry: &Entry,
    index: usize,
    channels: usize,
) -> Result<Vec<f32>, Error> {
    let wrong = |reason: String| Error::Array { array: entry.name.clone(), reason };
    let count = element_count(&entry.header.shape).unwrap_or(0);
    let Kind::Number(dtype @ (DType::F32 | DType::F64 | DType::F16)) = entry.header.kind else {
        return Err(wrong(format!("holds {}, expected float32", entry.header.kind.name())));
    };
    if count != 1 && count != channels {
        return Err(wrong(format!("has {count} values, expected 1 or {channels} (one a channel)")));
    }
    let bytes = archive.read(index)?;
    let tensor = Tensor::from_bytes(dtype, &[count], &bytes).expect("the size was checked");
    Ok(tensor.to_f64().into_iter().map(|x| x as f32).collect())
}

fn read_labels(archive: &mut Archive, entries: &[Entry], samples: usize) -> Result<Option<Vec<i64>>, Error> {
    let Some((index, entry)) = optional("labels", entries, samples)? else { return Ok(None) };
    match entry.header.kind {
        Kind::Number(dtype) if is_integer(dtype) => Ok(Some(integers(archive, index, dtype, samples)?)),
        kind => Err(Error::Array {
            array: entry.name.clone(),
            reason: format!("holds {}, expected integers (the index of the class)", kind.name()),
        }),
    }
}

fn read_slices(
    archive: &mut Archive,
    entries: &[Entry],
    samples: usize,
) -> Result<Option<Vec<String>>, Error> {
    let Some((index, entry)) = optional("slice", entries, samples)? else { return Ok(None) };
    let texts = match entry.header.kind {
        Kind::Number(dtype) if is_integer(dtype) => {
            integers(archive, index, dtype, samples)?.iter().map(i64::to_string).collect()
        }
        Kind::Bytes(n) => {
            let text = |t: &[u8]| String::from_utf8_lossy(t).trim_end_matches('\0').to_owned();
            archive.read(index)?.chunks_exact(n).map(text).collect()
        }
        Kind::Unicode(n) => {
            let letter =
                |c: &[u8]| char::from_u32(u32::from_le_bytes([c[0], c[1], c[2], c[3]])).unwrap_or('\u{fffd}');
            let text = |t: &[u8]| {
                t.chunks_exact(4).map(letter).collect::<String>().trim_end_matches('\0').to_owned()
            };
            archive.read(index)?.chunks_exact(n * 4).map(text).collect()
        }
        kind @ Kind::Number(_) => {
            let reason = format!("holds {}, expected integers or texts", kind.name());
            return Err(Error::Array { array: entry.name.clone(), reason });
        }
    };
    Ok(Some(texts))
}

/// An array `[samples]` that may be left out.
fn optional<'a>(
    name: &str,
    entries: &'a [Entry],
    samples: usize,
) -> Result<Option<(usize, &'a Entry)>, Error> {
    let Some(index) = entries.iter().position(|e| e.name == name) else { return Ok(None) };
    let entry = &entries[index];
    if entry.header.shape != [samples] {
        let got = entry.header.shape.clone();
        return Err(Error::Shape { array: name.to_owned(), got, want: samples.to_string() });
    }
    Ok(Some((index, entry)))
}

fn integers(archive: &mut Archive, index: usize, dtype: DType, samples: usize) -> Result<Vec<i64>, Error> {
    let array = archive.arrays()[index].name.clone();
    let bytes = archive.read(index)?;
    let tensor = Tensor::from_bytes(dtype, &[samples], &bytes).expect("the size was checked");
    let tensor =
        convert(tensor, DType::I64).map_err(|(sample, reason)| Error::Value { array, sample, reason })?;
    Ok(tensor.slice::<i64>().to_vec())
}

#[cfg(test)]
pub(in crate::engine) mod tests {
    use std::io::Cursor;

    use super::*;

    fn port(name: &str, dtype: DType, dims: &[Option<usize>]) -> Port {
        Port { name: name.to_owned(), dtype, dims: dims.to_vec() }
    }

    /// An `.npz` of these arrays.
    pub(in crate::engine) fn file(arrays: &[(&str, &Tensor)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes = npy::write_npz(Cursor::new(Vec::new()), arrays).unwrap().into_inner();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    /// Data for a model with one input `x` of these dimensions, and the file that they are in.
    pub(in crate::engine) fn samples_of(
        x: &Tensor,
        dims: &[Option<usize>],
    ) -> (tempfile::NamedTempFile, Dataset) {
        let file = file(&[("x", x)]);
        let data = Dataset::open(file.path(), &[port("x", x.dtype(), dims)]).unwrap();
        (file, data)
    }

    fn floats(shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        Tensor::from_slice(shape, &(0..count).map(|x| x as f32).collect::<Vec<_>>())
    }

    fn all(dataset: &Dataset, batch_max: usize) -> Vec<Batch> {
        dataset.reader().unwrap().batches(batch_max).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn batches_cover_the_samples_in_order() {
        let x = floats(&[5, 2]);
        let data = file(&[("x", &x)]);
        for (batch_dim, batch_max, want) in
            [(None, 2, vec![2, 2, 1]), (None, 8, vec![5]), (Some(1), 8, vec![1; 5]), (Some(5), 1, vec![5])]
        {
            let dataset =
                Dataset::open(data.path(), &[port("x", DType::F32, &[batch_dim, Some(2)])]).unwrap();
            let batches = all(&dataset, batch_max);
            assert_eq!(batches.iter().map(|b| b.samples).collect::<Vec<_>>(), want);
            let values: Vec<f32> =
                batches.iter().flat_map(|b| b.inputs[0].1.slice::<f32>().to_vec()).collect();
            assert_eq!(values, x.slice::<f32>());
            assert_eq!(batches[0].inputs[0].1.shape(), [want[0], 2]);
        }
    }

    #[test]
    fn the_first_samples_can_be_taken_apart_from_the_others() {
        let data = file(&[("x", &floats(&[7, 2]))]);
        let data = Dataset::open(data.path(), &[port("x", DType::F32, &[None, Some(2)])]).unwrap();
        let mut reader = data.reader().unwrap();
        let mut batches = reader.batches(2).unwrap();
        let place = |batch: Result<Batch, Error>| batch.map(|b| (b.first, b.samples)).unwrap();
        // Whole batches: the second begins before the third sample.
        assert_eq!(batches.before(3).map(place).collect::<Vec<_>>(), [(0, 2), (2, 2)]);
        assert!(batches.before(4).next().is_none());
        batches.at_most(9);
        assert_eq!(batches.map(place).collect::<Vec<_>>(), [(4, 3)]);
    }

    #[test]
    fn one_dimension_more_is_a_whole_run_a_sample() {
        let data = file(&[("x", &floats(&[3, 4, 2])), ("h", &floats(&[3, 1, 1, 2]))]);
        let ports =
            [port("x", DType::F32, &[None, Some(2)]), port("h", DType::F32, &[Some(1), Some(1), Some(2)])];
        let dataset = Dataset::open(data.path(), &ports).unwrap();
        assert!(dataset.whole_runs());
        let batches = all(&dataset, 8);
        assert_eq!(batches.len(), 3);
        assert_eq!(
            (batches[2].inputs[0].1.shape(), batches[2].inputs[1].1.shape()),
            (&[4, 2][..], &[1, 1, 2][..])
        );
        assert_eq!(batches[2].inputs[1].1.slice::<f32>(), [4.0, 5.0]);
    }

    #[test]
    fn byte_images_are_scaled_channel_by_channel() {
        let bytes = Tensor::from_slice(&[2, 2, 1, 2], &[0u8, 255, 51, 102, 1, 2, 3, 4]);
        let mean = Tensor::from_slice(&[2], &[0.5f32, 0.0]);
        let std = Tensor::from_slice(&[1], &[0.5f32]);
        let data = file(&[("x_u8", &bytes), ("x_mean", &mean), ("x_std", &std)]);
        for name in ["x", "any"] {
            let dataset =
                Dataset::open(data.path(), &[port(name, DType::F32, &[None, Some(2), None, None])]).unwrap();
            let batch = &all(&dataset, 1)[0];
            assert_eq!(batch.inputs[0].0, name);
            let want = [(0.0 - 0.5) / 0.5, (1.0 - 0.5) / 0.5, 51.0 / 255.0 / 0.5, 102.0 / 255.0 / 0.5f32];
            assert_eq!(batch.inputs[0].1.slice::<f32>(), want);
        }
    }

    #[test]
    fn labels_and_slices_are_read() {
        let data = file(&[
            ("x", &floats(&[2, 3])),
            ("labels", &Tensor::from_slice(&[2], &[7i32, -1])),
            ("slice", &Tensor::from_slice(&[2], &[3u8, 4])),
        ]);
        let dataset = Dataset::open(data.path(), &[port("input", DType::F32, &[None, Some(3)])]).unwrap();
        assert_eq!(dataset.labels(), Some(&[7i64, -1][..]));
        assert_eq!(dataset.slices(), Some(&["3".to_owned(), "4".to_owned()][..]));
    }

    #[test]
    fn types_that_keep_every_value_are_converted() {
        for (tensor, to) in [
            (Tensor::from_slice(&[1, 2], &[0.5f64, 1.0]), DType::F32),
            (Tensor::from_slice(&[1, 2], &[1i32, 2]), DType::I64),
            (Tensor::from_slice(&[1, 2], &[1i64, 2]), DType::I32),
            (Tensor::from_slice(&[1, 2], &[1u64, 2]), DType::U8),
        ] {
            let data = file(&[("x", &tensor)]);
            let dataset = Dataset::open(data.path(), &[port("x", to, &[None, Some(2)])]).unwrap();
            assert_eq!(all(&dataset, 1)[0].inputs[0].1.dtype(), to);
            assert_eq!(all(&dataset, 1)[0].inputs[0].1.to_f64(), tensor.to_f64());
        }
    }

    #[test]
    fn data_that_do_not_fit_are_refused_with_what_was_expected() {
        let x = floats(&[2, 3]);
        let one = [port("x", DType::F32, &[None, Some(3)])];
        let two = [one[0].clone(), port("y", DType::F32, &[None])];
        let fixed = [port("x", DType::F32, &[Some(4), Some(3)])];
        let tokens = [port("x", DType::I32, &[None, Some(1)])];
        let nan = Tensor::from_slice(&[2, 3], &[0.0, 1.0, 2.0, 3.0, f32::NAN, 5.0]);
        let i64s = |v: &[i64]| Tensor::from_slice(&[v.len()], v);
        type Case<'a> = (&'a [(&'a str, &'a Tensor)], &'a [Port], &'a str);
        let cases: [Case<'_>; 13] = [
            (&[("a", &x), ("b", &x)], &one, "no array for input `x`"),
            (&[("x", &x), ("b", &x)], &one, "array `b` belongs to no input"),
            (&[("x", &floats(&[2, 4]))], &one, "shape [2, 4], expected [samples, 3]"),
            (
                &[("x", &i64s(&[1, 2]))],
                &[port("x", DType::F32, &[None])],
                "holds int64, input `x` is float32",
            ),
            (&[("x", &Tensor::from_slice(&[2, 3], &[0u8; 6]))], &one, "NAME_u8 with NAME_mean and NAME_std"),
            (&[("x", &x), ("y", &floats(&[3]))], &two, "`y` has 3 samples, `x` has 2"),
            (&[("x", &x), ("y", &floats(&[2, 5]))], &two, "`y` has one dimension more"),
            (&[("x", &x)], &fixed, "exactly 4 samples"),
            (&[("x", &floats(&[0, 3]))], &one, "no samples"),
            (&[("x", &x), ("labels", &i64s(&[1]))], &one, "`labels` has shape [1], expected [2]"),
            (&[("x", &x), ("labels", &floats(&[2]))], &one, "expected integers"),
            (&[("x", &nan)], &one, "array `x`, sample 1: holds NaN"),
            (
                &[("x", &i64s(&[1, 1 << 40]).reshaped(&[2, 1]).unwrap())],
                &tokens,
                "sample 1: holds 1099511627776, which int32 cannot",
            ),
        ];
        for (arrays, ports, says) in cases {
            let data = file(arrays);
            let error = match Dataset::open(data.path(), ports) {
                Err(error) => error,
                Ok(dataset) => {
                    let mut reader = dataset.reader().unwrap();
                    let mut batches = reader.batches(2).unwrap();
                    let error = batches.find_map(Result::err).expect(says);
                    assert!(batches.next().is_none(), "a stream ends with its error");
                    error
                }
            };
            assert!(error.to_string().contains(says), "{says}: {error}");
        }
    }

    #[test]
    fn a_damaged_member_is_noticed() {
        let data = file(&[("x", &floats(&[64, 3]))]);
        let mut bytes = std::fs::read(data.path()).unwrap();
        // Inside the deflated data, past the 64 bytes of zip and .npy headers.
        bytes[150] ^= 0x10;
        std::fs::write(data.path(), bytes).unwrap();
        let ports = [port("x", DType::F32, &[None, Some(3)])];
        let noticed = match Dataset::open(data.path(), &ports) {
            Err(_) => true,
            Ok(dataset) => dataset.reader().unwrap().batches(7).unwrap().any(|b| b.is_err()),
        };
        assert!(noticed);
    }
}
