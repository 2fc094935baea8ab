//! Tensors whose data are in other files: they are read, within bounds, and put into the model, which is one file then.
//! Large data go from file to file and are never held in memory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use super::archive::Archive;
use super::decode::{self, decode_outline};
use super::outline::{self, Place};
use super::path::{self, Source, range};

pub use super::path::Error;
use super::{GraphProto, NodeProto, TensorProto};

/// The folder that a model lies in. Nothing else is read: no link is followed.
struct Folder {
    path: PathBuf,
    /// Those that were found. Each is opened when it is read: there may be one for each tensor.
    files: Vec<PathBuf>,
}

impl Source for Folder {
    fn find(&mut self, location: &str) -> Result<Place, Error> {
        let mut place = self.path.clone();
        for part in location.split('/') {
            place.push(part);
            if fs::symlink_metadata(&place).is_ok_and(|m| m.file_type().is_symlink()) {
                return Err("it is a link: links are not followed".into());
            }
        }
        let metadata = fs::metadata(&place).map_err(|e| e.to_string())?;
        if !metadata.is_file() {
            return Err("it is no file".into());
        }
        self.files.push(place);
        Ok(Place { file: self.files.len() - 1, from: 0, bytes: metadata.len() })
    }

    fn file(&self, number: usize) -> io::Result<File> {
        File::open(&self.files[number])
    }
}

/// Writes the model in a zip or tar file as one ONNX file, its data put in; gives `false`, and writes nothing, where the
/// file is neither. Neither what is unpacked nor the result may be longer than `bytes_max`.
///
/// # Errors
/// A sentence about the member or tensor at fault, or [`Error::Io`].
pub fn unpacked(file: &Path, bytes_max: u64, out: &mut dyn Write) -> Result<bool, Error> {
    let Some(mut archive) = Archive::open(file, bytes_max)? else { return Ok(false) };
    let name = archive.model()?;
    let model = archive.member(&name)?;
    archive.folder = name.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    with_data(model, &mut archive, bytes_max, out).map_err(|e| e.at(&format!("`{name}`")))?;
    Ok(true)
}

/// A model of the caller's own: an ONNX file, alone or with its data in files beside it, or either in a zip or tar
/// file. Only for files that the caller chose: what lies beside them is read.
///
/// # Errors
/// As [`unpacked`].
pub fn read(file: &Path, bytes_max: u64) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    if !unpacked(file, bytes_max, &mut out)? {
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let bytes = fs::metadata(file)?.len();
        let mut folder = Folder { path: folder, files: vec![file.to_owned()] };
        with_data(Place { file: 0, from: 0, bytes }, &mut folder, bytes_max, &mut out)?;
    }
    Ok(out)
}

/// Writes the model with all data in it; as it is where it has them already.
fn with_data(
    model: Place,
    source: &mut dyn Source,
    bytes_max: u64,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let unchanged = |source: &dyn Source, out| Ok(model.copy(source.file(model.file)?, out)?);
    let mut proto = match decode_outline(&source.file(model.file)?, model) {
        Ok(proto) => proto,
        Err(decode::Error::Read(e)) => return Err(e.into()),
        // What is no model is told so by the importer.
        Err(_) => return unchanged(source, out),
    };
    let mut merge = Merge { source, model, bytes_max, left: bytes_max, places: Vec::new(), found: false };
    if let Some(graph) = &mut proto.graph {
        merge.graph(graph)?;
    }
    proto.functions.iter_mut().try_for_each(|f| merge.nodes(&mut f.node))?;
    let Merge { source, places, found, .. } = merge;
    if !found {
        return unchanged(source, out);
    }
    let whole = outline::gaps(&proto.encode_to_vec()).map_err(|_| "it cannot be written again")?;
    let length = whole.whole_bytes();
    if length > bytes_max {
        let text = format!("with its data it has {length} bytes, more than the limit of {bytes_max}");
        return Err(Error::TooLong(text));
    }
    let mut at = 0;
    for gap in &whole.gaps {
        out.write_all(&whole.bytes[at..gap.at])?;
        at = gap.at;
        // What the tensors say of their data is the number of the place.
        let place = places[gap.from as usize];
        place.copy(source.file(place.file)?, out)?;
    }
    Ok(out.write_all(&whole.bytes[at..])?)
}

struct Merge<'a> {
    source: &'a mut dyn Source,
    model: Place,
    /// Bytes of data that may be put in, and those of them that still may.
    bytes_max: u64,
    left: u64,
    /// Where the data of tensors are, by the number that stands in them.
    places: Vec<Place>,
    /// Whether a tensor has its data elsewhere.
    found: bool,
}

impl Merge<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), Error> {
        graph.initializer.iter_mut().try_for_each(|t| self.tensor(t))?;
        self.nodes(&mut graph.node)
    }

    fn nodes(&mut self, nodes: &mut [NodeProto]) -> Result<(), Error> {
        for attribute in nodes.iter_mut().flat_map(|n| &mut n.attribute) {
            if let Some(tensor) = &mut attribute.t {
                self.tensor(tensor)?;
            }
            if let Some(graph) = &mut attribute.g {
                self.graph(graph)?;
            }
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), Error> {
        if tensor.data_location != Some(1) {
            if let (Some(from), Some(bytes)) = (tensor.data_from, tensor.data_bytes) {
                self.put(tensor, Place { file: self.model.file, from, bytes });
            }
            return Ok(());
        }
        let place = self.place(tensor).map_err(|e| e.at(&format!("the data of tensor `{}`", tensor.name)))?;
        tensor.external_data.clear();
        (tensor.data_location, tensor.raw_data) = (None, None);
        self.found = true;
        self.put(tensor, place);
        Ok(())
    }

    fn put(&mut self, tensor: &mut TensorProto, place: Place) {
        tensor.data_from = Some(self.places.len() as u64);
        tensor.data_bytes = Some(place.bytes);
        self.places.push(place);
    }

    /// Where the data of a tensor are.
    fn place(&mut self, tensor: &TensorProto) -> Result<Place, Error> {
        let mut entries: HashMap<&str, &str> = HashMap::new();
        for entry in &tensor.external_data {
            if entries.insert(&entry.key, &entry.value).is_some() {
                return Err(format!("`{}` stands there twice", entry.key).into());
            }
        }
        let number = |key: &str| match entries.get(key) {
            None => Ok(None),
            Some(text) => {
                let number = text.parse::<u64>();
                number.map(Some).map_err(|_| format!("{key} is `{text}`, which is no number"))
            }
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let location = path::checked(entries.get("location").ok_or("it has no location")?)?;
        let name = format!("file `{location}`");
        let bytes_max = self.bytes_max;
        let limit = || Error::TooLong(format!("more data than the limit of {bytes_max} bytes")).at(&name);
        if length.is_some_and(|length| length > self.left) {
            return Err(limit());
        }
        let file = self.source.find(&location).map_err(|e| e.at(&name))?;
        let part = range(file.bytes, offset, length).map_err(|e| Error::from(e).at(&name))?;
        let bytes = part.end - part.start;
        self.left = self.left.checked_sub(bytes).ok_or_else(limit)?;
        Ok(Place { file: file.file, from: file.from + part.start, bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use zip::write::SimpleFileOptions;

    use super::super::{StringStringEntryProto, export, import};
    use super::*;
    use crate::engine::graph::op::{Binary, Op};
    use crate::engine::graph::{Dim, Graph, Node, Value};
    use crate::engine::tensor::{DType, Tensor};

    const WEIGHTS: [f32; 4] = [1.0, 2.0, 3.0, 4.0];

    /// `y = x + w`.
    fn whole() -> Vec<u8> {
        let mut graph = Graph { name: "g".to_owned(), ..Graph::default() };
        let value = |name: &str| Value {
            name: name.to_owned(),
            dtype: Some(DType::F32),
            dims: Some(vec![Dim::Known(4)]),
            ..Value::default()
        };
        let (x, y) = (graph.add_value(value("x")), graph.add_value(value("y")));
        let w = graph.add_constant("w", Tensor::from_slice(&[4], &WEIGHTS));
        graph.nodes.push(Node::new(
            "add".to_owned(),
            Op::Binary(Binary::Add),
            vec![Some(x), Some(w)],
            vec![y],
        ));
        (graph.inputs, graph.outputs) = (vec![x], vec![y]);
        export::export(&graph, &[])
    }

    /// The same with its data elsewhere.
    fn apart(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut model = decode::decode(&whole().into()).unwrap();
        let tensor = &mut model.graph.as_mut().unwrap().initializer[0];
        tensor.raw_data = None;
        tensor.data_location = Some(1);
        let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        tensor.external_data = entries.iter().map(entry).collect();
        model.encode_to_vec()
    }

    /// Three bytes, then the weights.
    fn data() -> Vec<u8> {
        [b"abc".as_slice(), bytemuck::cast_slice(&WEIGHTS)].concat()
    }

    fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in members {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn tar_member(name: &str, kind: u8, bytes: &[u8]) -> Vec<u8> {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut out = [&block, bytes].concat();
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }

    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out: Vec<u8> =
            members.iter().flat_map(|(name, bytes)| tar_member(name, b'0', bytes)).collect();
        out.extend([0; 1024]);
        out
    }

    fn open(bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        let mut out = Vec::new();
        let found = unpacked(file.path(), 1 << 20, &mut out).map_err(|e| e.to_string())?;
        assert!(found || out.is_empty());
        Ok(found.then_some(out))
    }

    #[test]
    fn an_archive_becomes_one_file() {
        let model = apart(&[("location", "./w.bin"), ("offset", "3"), ("length", "16")]);
        let data = data();
        let flat: &[(&str, &[u8])] = &[("model.onnx", &model), ("w.bin", &data)];
        let deep: &[(&str, &[u8])] = &[("./m/net.onnx", &model), ("m/w.bin", &data), ("m/README", b"hello")];
        for bytes in [zip(flat), tar(flat), zip(deep), tar(deep)] {
            let merged = open(&bytes).unwrap().unwrap();
            let graph = import::import(&merged).unwrap();
            let w = graph.values.iter().find(|v| v.name == "w").unwrap();
            assert_eq!(w.constant.as_ref().unwrap().slice::<f32>(), WEIGHTS);
        }
        assert_eq!(open(&zip(&[("a.onnx", &whole())])).unwrap().unwrap(), whole(), "nothing is put in");
        assert_eq!(open(&whole()), Ok(None));
        let mac: &[(&str, &[u8])] = &[
            ("m/model.onnx", &whole()),
            ("__MACOSX/m/._model.onnx", b"x"),
            ("m/._a.onnx", b"x"),
            (".DS_Store", b"x"),
        ];
        for bytes in [zip(mac), tar(mac)] {
            assert_eq!(open(&bytes).unwrap().unwrap(), whole(), "what macOS adds is passed over");
        }
        let long = format!("{}/model.onnx", "folder".repeat(30));
        let header = format!("{} path={long}\n", 3 + 1 + 5 + long.len() + 1);
        let pax = [tar_member("x", b'x', header.as_bytes()), tar(&[("short", &whole())])].concat();
        assert_eq!(open(&pax).unwrap().unwrap(), whole(), "the name of a pax header");
    }

    #[test]
    fn hostile_archives_are_refused_with_the_reason() {
        let model = |entries: &[(&str, &str)]| zip(&[("m.onnx", &apart(entries)), ("w.bin", &data())]);
        let plain = whole();
        let bomb = vec![0u8; 2 << 20];
        let rows: &[(Vec<u8>, &str)] = &[
            (model(&[("location", "../w.bin")]), "leads out"),
            (model(&[("location", "/etc/passwd")]), "absolute"),
            (model(&[("location", "c:w.bin")]), "colon"),
            (model(&[("location", "other.bin")]), "not in the archive"),
            (model(&[]), "no location"),
            (model(&[("location", "w.bin"), ("location", "w.bin")]), "twice"),
            (model(&[("location", "w.bin"), ("offset", "-1")]), "no number"),
            (model(&[("location", "w.bin"), ("offset", "4"), ("length", "16")]), "19 bytes, 16 bytes from 4"),
            (model(&[("location", "w.bin"), ("offset", "20")]), "the rest from 20"),
            (model(&[("location", "w.bin"), ("length", "18446744073709551615")]), "limit"),
            (model(&[("location", "w.bin"), ("offset", "1"), ("length", "18446744073709551615")]), "limit"),
            (zip(&[("../m.onnx", &plain)]), "leads out"),
            (zip(&[("m.onnx", &plain), ("./m.onnx", &plain)]), "twice"),
            (zip(&[("a.onnx", &plain), ("b.onnx", &plain)]), "2 files"),
            (zip(&[("a.txt", &plain)]), "no file named"),
            (zip(&[("m.onnx", &bomb)]), "longer than the limit"),
            (tar(&[("/m.onnx", &plain)]), "absolute"),
            ([tar_member("m.onnx", b'2', b""), tar(&[])].concat(), "link"),
            ([tar_member("m.onnx", b'3', b""), tar(&[])].concat(), "no plain file"),
            (tar(&[("m.onnx", &plain)])[..600].to_vec(), "breaks off"),
            (b"PK\x03\x04 and then nothing".to_vec(), "not a zip file"),
        ];
        for (bytes, want) in rows {
            let got = open(bytes).unwrap_err();
            assert!(got.contains(want), "{got}, expected {want}");
        }
        let mut broken = tar(&[("m.onnx", &plain)]);
        broken[0] = b'n';
        assert!(open(&broken).unwrap_err().contains("damaged"));
    }

    #[test]
    fn data_beside_a_model_are_read_and_nothing_behind_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.onnx");
        fs::write(folder.path().join("w.bin"), data()).unwrap();
        fs::write(&file, apart(&[("location", "w.bin"), ("offset", "3")])).unwrap();
        assert_eq!(read(&file, 1 << 20).unwrap(), whole());
        assert!(read(&file, 8).unwrap_err().to_string().contains("limit"));
        let refused = import::import(&fs::read(&file).unwrap()).unwrap_err().to_string();
        assert!(refused.contains("`w.bin`"), "{refused}");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(folder.path().join("w.bin"), folder.path().join("link.bin")).unwrap();
            fs::write(&file, apart(&[("location", "link.bin")])).unwrap();
            assert!(read(&file, 1 << 20).unwrap_err().to_string().contains("link"));
        }
        fs::write(&file, apart(&[("location", "none.bin")])).unwrap();
        assert!(read(&file, 1 << 20).unwrap_err().to_string().contains("none.bin"));
    }

    #[test]
    fn data_that_do_not_fill_the_tensor_are_refused() {
        let bytes =
            zip(&[("m.onnx", &apart(&[("location", "w.bin"), ("length", "12")])), ("w.bin", &data())]);
        let merged = open(&bytes).unwrap().unwrap();
        assert!(import::import(&merged).unwrap_err().to_string().contains("needs 16 bytes, the file has 12"));
    }
}
