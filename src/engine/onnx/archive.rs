//! Zip and tar files that strangers packed: members by name, unpacked in memory within a bound.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use zip::ZipArchive;

use super::path::{self, Source, range};

/// Most members: a model has one file and some of data.
const MEMBERS_MAX: usize = 4096;
/// Longest name of a member.
const NAME_BYTES_MAX: u64 = 4096;
/// A tar file is made of these.
const BLOCK: u64 = 512;

/// Where a member's bytes are.
enum Place {
    /// Number in the zip file.
    Zip(usize),
    /// From where to where in the tar file.
    Tar(u64, u64),
}

enum Reader {
    Zip(Box<ZipArchive<BufReader<File>>>),
    Tar(BufReader<File>),
}

/// An open archive.
pub(super) struct Archive {
    reader: Reader,
    members: HashMap<String, Place>,
    unpacked: HashMap<String, Bytes>,
    /// Bytes that may still be unpacked.
    left: u64,
    /// The folder that locations are below.
    pub(super) folder: Option<String>,
}

impl Archive {
    /// Lists the members; `None` where the file is neither a zip nor a tar file.
    pub(super) fn open(file: &Path, bytes_max: u64) -> Result<Option<Archive>, String> {
        let failed = |e: std::io::Error| e.to_string();
        let mut file = BufReader::new(File::open(file).map_err(failed)?);
        let mut start = Vec::new();
        (&mut file).take(BLOCK).read_to_end(&mut start).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let (reader, listed) = if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            let mut zip = ZipArchive::new(file).map_err(|e| format!("not a zip file: {e}"))?;
            let listed = list_zip(&mut zip)?;
            (Reader::Zip(Box::new(zip)), listed)
        } else if start.get(257..262) == Some(b"ustar") {
            let listed = list_tar(&mut file)?;
            (Reader::Tar(file), listed)
        } else {
            return Ok(None);
        };
        let mut members = HashMap::new();
        for (name, place) in listed {
            let name = path::checked(&name)?;
            if members.insert(name.clone(), place).is_some() {
                return Err(format!("`{name}` is in the archive twice"));
            }
        }
        Ok(Some(Archive { reader, members, unpacked: HashMap::new(), left: bytes_max, folder: None }))
    }

    /// The name of the one ONNX file.
    pub(super) fn model(&self) -> Result<String, String> {
        let mut models: Vec<&String> = self.members.keys().filter(|name| name.ends_with(".onnx")).collect();
        models.sort();
        match models[..] {
            [model] => Ok(model.clone()),
            [] => Err("the archive holds no file named `….onnx`".to_owned()),
            _ => Err(format!("the archive holds {} files named `….onnx`, one is needed", models.len())),
        }
    }

    /// The bytes of a member.
    pub(super) fn take(&mut self, name: &str) -> Result<Bytes, String> {
        if let Some(bytes) = self.unpacked.get(name) {
            return Ok(bytes.clone());
        }
        let place = self.members.get(name).ok_or("it is not in the archive")?;
        let mut bytes = Vec::new();
        let read = match (&mut self.reader, place) {
            (Reader::Zip(zip), Place::Zip(index)) => {
                let mut member = zip.by_index(*index).map_err(|e| e.to_string())?;
                (&mut member).take(self.left.saturating_add(1)).read_to_end(&mut bytes)
            }
            (Reader::Tar(file), Place::Tar(from, to)) => {
                file.seek(SeekFrom::Start(*from)).map_err(|e| e.to_string())?;
                let length = (to - from).min(self.left.saturating_add(1));
                file.take(length).read_to_end(&mut bytes)
            }
            _ => unreachable!("places are of the reader that listed them"),
        };
        read.map_err(|e| format!("it cannot be unpacked: {e}"))?;
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or("unpacked, the archive is longer than the limit")?;
        let bytes = Bytes::from(bytes);
        self.unpacked.insert(name.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

impl Source for Archive {
    fn read(&mut self, location: &str, offset: u64, length: Option<u64>) -> Result<Bytes, String> {
        let name = match &self.folder {
            Some(folder) => format!("{folder}/{location}"),
            None => location.to_owned(),
        };
        let bytes = self.take(&name)?;
        let range = range(bytes.len() as u64, offset, length)?;
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }
}

fn list_zip(zip: &mut ZipArchive<BufReader<File>>) -> Result<Vec<(String, Place)>, String> {
    if zip.len() > MEMBERS_MAX {
        return Err(format!("the archive has {} members, the limit is {MEMBERS_MAX}", zip.len()));
    }
    let mut listed = Vec::new();
    for index in 0..zip.len() {
        let member = zip.by_index_raw(index).map_err(|e| e.to_string())?;
        let name =
            std::str::from_utf8(member.name_raw()).map_err(|_| "a name in the archive is not UTF-8")?;
        if member.is_symlink() {
            return Err(format!("`{}` in the archive is a link", name.escape_debug()));
        }
        if member.encrypted() {
            return Err(format!("`{}` in the archive is encrypted", name.escape_debug()));
        }
        if !member.is_dir() {
            listed.push((name.to_owned(), Place::Zip(index)));
        }
    }
    Ok(listed)
}

/// Members of a tar file (POSIX.1-2017, pax): plain files; folders are passed over, all else is refused.
fn list_tar(file: &mut BufReader<File>) -> Result<Vec<(String, Place)>, String> {
    let failed = |e: std::io::Error| format!("the tar file: {e}");
    let file_bytes = file.get_ref().metadata().map_err(failed)?.len();
    let mut listed = Vec::new();
    let mut headers = 0;
    let mut long_name: Option<String> = None;
    let mut at = 0;
    while at + BLOCK <= file_bytes {
        let mut block = [0u8; BLOCK as usize];
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        file.read_exact(&mut block).map_err(failed)?;
        if block.iter().all(|&b| b == 0) {
            break;
        }
        headers += 1;
        if headers > MEMBERS_MAX {
            return Err(format!("the archive has more than {MEMBERS_MAX} members"));
        }
        let stated = octal(&block[148..156])?;
        block[148..156].fill(b' ');
        if block.iter().map(|&b| u64::from(b)).sum::<u64>() != stated {
            return Err(format!("the tar file is damaged at byte {at}"));
        }
        let size = octal(&block[124..136])?;
        let from = at + BLOCK;
        let to = from.checked_add(size).filter(|&to| to <= file_bytes);
        let to = to.ok_or_else(|| format!("the tar file breaks off in the member at byte {at}"))?;
        let name = match long_name.take() {
            Some(name) => name,
            None => short_name(&block)?,
        };
        match block[156] {
            b'0' | 0 => listed.push((name, Place::Tar(from, to))),
            b'5' | b'g' => {}
            b'x' => long_name = pax_path(&text_at(file, from, size)?)?,
            b'L' => long_name = Some(text_at(file, from, size)?.trim_end_matches('\0').to_owned()),
            b'1' | b'2' => return Err(format!("`{}` in the archive is a link", name.escape_debug())),
            _ => return Err(format!("`{}` in the archive is no plain file", name.escape_debug())),
        }
        at = to.next_multiple_of(BLOCK);
    }
    Ok(listed)
}

fn octal(field: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(field).unwrap_or("?").trim_matches(['\0', ' ']);
    u64::from_str_radix(if text.is_empty() { "0" } else { text }, 8)
        .map_err(|_| "a number in the tar file is not octal".to_owned())
}

fn short_name(block: &[u8]) -> Result<String, String> {
    let text = |field: &[u8]| {
        let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
        String::from_utf8(field[..end].to_vec()).map_err(|_| "a name in the archive is not UTF-8".to_owned())
    };
    // GNU tar uses the field of the prefix otherwise, and says so.
    let prefix = if &block[257..263] == b"ustar\0" { text(&block[345..500])? } else { String::new() };
    let name = text(&block[..100])?;
    Ok(if prefix.is_empty() { name } else { format!("{prefix}/{name}") })
}

fn text_at(file: &mut BufReader<File>, from: u64, size: u64) -> Result<String, String> {
    if size > 4 * NAME_BYTES_MAX {
        return Err("a name in the archive is too long".to_owned());
    }
    let mut bytes = vec![0; size as usize];
    file.seek(SeekFrom::Start(from)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|_| "a name in the archive is not UTF-8".to_owned())
}

/// The path in a pax header: lines of `LENGTH KEY=VALUE\n`. One that changes the size is refused.
fn pax_path(records: &str) -> Result<Option<String>, String> {
    let mut path = None;
    let mut rest = records;
    while !rest.is_empty() {
        let damaged = || "a pax header in the tar file is damaged".to_owned();
        let (length, _) = rest.split_once(' ').ok_or_else(damaged)?;
        let length: usize = length.parse().map_err(|_| damaged())?;
        let record = rest.get(..length).and_then(|r| r.strip_suffix('\n')).ok_or_else(damaged)?;
        rest = &rest[length..];
        let (key, value) = record.split_once(' ').and_then(|(_, r)| r.split_once('=')).ok_or_else(damaged)?;
        match key {
            "path" => path = Some(value.to_owned()),
            "size" => return Err("members of 8 GiB and more are not supported".to_owned()),
            "linkpath" => return Err("a link is in the archive".to_owned()),
            _ => {}
        }
    }
    Ok(path)
}
