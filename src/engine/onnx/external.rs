//! Tensors whose data are in other files: they are read, within bounds, and put into the model, which is one file then.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::archive::Archive;
use super::path::{self, Source, range};
use super::{GraphProto, NodeProto, TensorProto, import};

/// The folder that a model lies in. Nothing else is read: no link is followed.
struct Folder(PathBuf);

impl Source for Folder {
    fn read(&mut self, location: &str, offset: u64, length: Option<u64>) -> Result<Bytes, String> {
        let mut place = self.0.clone();
        for part in location.split('/') {
            place.push(part);
            if fs::symlink_metadata(&place).is_ok_and(|m| m.file_type().is_symlink()) {
                return Err("it is a link: links are not followed".to_owned());
            }
        }
        let failed = |e: std::io::Error| e.to_string();
        let mut file = File::open(&place).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err("it is no file".to_owned());
        }
        let range = range(metadata.len(), offset, length)?;
        file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
        let mut data = vec![0; usize::try_from(range.end - range.start).map_err(|e| e.to_string())?];
        file.read_exact(&mut data).map_err(failed)?;
        Ok(Bytes::from(data))
    }
}

/// The model in a zip or tar file as one ONNX file, its data put in; `None` where the file is neither. Neither what is
/// unpacked nor the result may be longer than `bytes_max`.
///
/// # Errors
/// A sentence about the member or tensor at fault.
pub fn unpacked(file: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, String> {
    let Some(mut archive) = Archive::open(file, bytes_max)? else { return Ok(None) };
    let name = archive.model()?;
    let bytes = archive.take(&name)?;
    archive.folder = name.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    let whole = with_data(&bytes, &mut archive, bytes_max).map_err(|e| format!("`{name}`: {e}"))?;
    Ok(Some(whole.unwrap_or_else(|| bytes.to_vec())))
}

/// A model of the caller's own: an ONNX file, alone or with its data in files beside it, or either in a zip or tar
/// file. Only for files that the caller chose: what lies beside them is read.
///
/// # Errors
/// A sentence.
pub fn read(file: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    if let Some(bytes) = unpacked(file, bytes_max)? {
        return Ok(bytes);
    }
    let bytes = Bytes::from(fs::read(file).map_err(|e| e.to_string())?);
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let whole = with_data(&bytes, &mut Folder(folder), bytes_max)?;
    // Nobody else holds the file, so it is not copied.
    Ok(whole.unwrap_or_else(|| bytes.into()))
}

/// The file with all data in it; `None` where it has them already.
fn with_data(bytes: &Bytes, source: &mut dyn Source, bytes_max: u64) -> Result<Option<Vec<u8>>, String> {
    // What is no model is told so by the importer.
    let Ok(mut model) = import::decode(bytes) else { return Ok(None) };
    let mut merge = Merge { source, left: bytes_max, found: false };
    if let Some(graph) = &mut model.graph {
        merge.graph(graph)?;
    }
    model.functions.iter_mut().try_for_each(|f| merge.nodes(&mut f.node))?;
    if !merge.found {
        return Ok(None);
    }
    let length = model.encoded_len() as u64;
    if length > bytes_max {
        return Err(format!("with its data it has {length} bytes, more than the limit of {bytes_max}"));
    }
    Ok(Some(model.encode_to_vec()))
}

struct Merge<'a> {
    source: &'a mut dyn Source,
    /// Bytes of data that may still be put in.
    left: u64,
    found: bool,
}

impl Merge<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), String> {
        graph.initializer.iter_mut().try_for_each(|t| self.tensor(t))?;
        self.nodes(&mut graph.node)
    }

    fn nodes(&mut self, nodes: &mut [NodeProto]) -> Result<(), String> {
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

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), String> {
        if tensor.data_location != Some(1) {
            return Ok(());
        }
        let at = |e: String| format!("the data of tensor `{}`: {e}", tensor.name);
        let mut entries: HashMap<&str, &str> = HashMap::new();
        for entry in &tensor.external_data {
            if entries.insert(&entry.key, &entry.value).is_some() {
                return Err(at(format!("`{}` stands there twice", entry.key)));
            }
        }
        let number = |key: &str| match entries.get(key) {
            None => Ok(None),
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| at(format!("{key} is `{text}`, which is no number"))),
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let location = entries.get("location").ok_or_else(|| at("it has no location".to_owned()))?;
        let location = path::checked(location).map_err(at)?;
        let limit = || at(format!("file `{location}`: more data than the limit"));
        if length.is_some_and(|length| length > self.left) {
            return Err(limit());
        }
        let data = self.source.read(&location, offset, length);
        let data = data.map_err(|e| at(format!("file `{location}`: {e}")))?;
        self.left = self.left.checked_sub(data.len() as u64).ok_or_else(limit)?;
        tensor.raw_data = Some(data);
        tensor.external_data.clear();
        tensor.data_location = None;
        self.found = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use zip::write::SimpleFileOptions;

    use super::super::{StringStringEntryProto, export};
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
        let mut model = import::decode(&whole().into()).unwrap();
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
        unpacked(file.path(), 1 << 20)
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
        assert!(read(&file, 8).unwrap_err().contains("limit"));
        let refused = import::import(&fs::read(&file).unwrap()).unwrap_err().to_string();
        assert!(refused.contains("`w.bin`"), "{refused}");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(folder.path().join("w.bin"), folder.path().join("link.bin")).unwrap();
            fs::write(&file, apart(&[("location", "link.bin")])).unwrap();
            assert!(read(&file, 1 << 20).unwrap_err().contains("link"));
        }
        fs::write(&file, apart(&[("location", "none.bin")])).unwrap();
        assert!(read(&file, 1 << 20).unwrap_err().contains("none.bin"));
    }

    #[test]
    fn data_that_do_not_fill_the_tensor_are_refused() {
        let bytes =
            zip(&[("m.onnx", &apart(&[("location", "w.bin"), ("length", "12")])), ("w.bin", &data())]);
        let merged = open(&bytes).unwrap().unwrap();
        assert!(import::import(&merged).unwrap_err().to_string().contains("needs 16 bytes, the file has 12"));
    }
}
