//! Zip and tar files that strangers packed: members by name. What is packed densely is unpacked beside the archive,
//! within a bound; all else is read where it is.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::outline::Place;
use super::path::{self, Error, Source};

/// Most members: a model has one file and some of data.
const MEMBERS_MAX: usize = 4096;
/// Longest name of a member.
const NAME_BYTES_MAX: u64 = 4096;
/// A tar file is made of these.
const BLOCK: u64 = 512;
/// The number of the archive among the files of places.
const ARCHIVE: usize = 0;
/// That of the file that members are unpacked into.
const UNPACKED: usize = 1;

/// Where a member is.
#[derive(Clone, Copy)]
enum Member {
    Here(Place),
    /// Number in the zip file, where it is compressed.
    Packed(usize),
}

/// An open archive.
pub(super) struct Archive {
    file: File,
    zip: Option<ZipArchive<BufReader<File>>>,
    members: HashMap<String, Member>,
    /// One behind the other; nobody else sees the file, and it goes with the archive.
    unpacked: File,
    /// Bytes that may be unpacked, and those of them that still may.
    bytes_max: u64,
    left: u64,
    /// The folder that locations are below.
    pub(super) folder: Option<String>,
}

impl Archive {
    /// Lists the members; `None` where the file is neither a zip nor a tar file.
    pub(super) fn open(file: &Path, bytes_max: u64) -> Result<Option<Archive>, Error> {
        let folder = file.parent().unwrap_or(Path::new(""));
        let file = File::open(file)?;
        let mut reader = BufReader::new(file.try_clone()?);
        let mut start = Vec::new();
        (&mut reader).take(BLOCK).read_to_end(&mut start)?;
        reader.seek(SeekFrom::Start(0))?;
        let (zip, listed) = if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            let mut zip = ZipArchive::new(reader).map_err(|e| format!("not a zip file: {e}"))?;
            let listed = list_zip(&mut zip)?;
            (Some(zip), listed)
        } else if start.get(257..262) == Some(b"ustar") {
            (None, list_tar(&mut reader)?)
        } else {
            return Ok(None);
        };
        let mut members = HashMap::new();
        for (name, member) in listed {
            if is_of_a_mac(&name) {
                continue;
            }
            let name = path::checked(&name)?;
            if members.insert(name.clone(), member).is_some() {
                return Err(format!("`{name}` is in the archive twice").into());
            }
        }
        let unpacked = tempfile::tempfile_in(folder)?;
        Ok(Some(Archive { file, zip, members, unpacked, bytes_max, left: bytes_max, folder: None }))
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

    /// Where the bytes of a member are.
    pub(super) fn member(&mut self, name: &str) -> Result<Place, Error> {
        let member = *self.members.get(name).ok_or("it is not in the archive")?;
        let (zip, index) = match (member, &mut self.zip) {
            (Member::Here(place), _) => return Ok(place),
            (Member::Packed(index), Some(zip)) => (zip, index),
            (Member::Packed(_), None) => unreachable!("only zip files have packed members"),
        };
        let from = self.unpacked.seek(SeekFrom::End(0))?;
        let bytes = {
            let packed = zip.by_index(index).map_err(|e| e.to_string())?;
            let mut packed = Unpacking { packed: packed.take(self.left.saturating_add(1)), damage: None };
            let copied = io::copy(&mut packed, &mut self.unpacked);
            if let Some(damage) = packed.damage {
                return Err(format!("it cannot be unpacked: {damage}").into());
            }
            copied?
        };
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| {
            let limit = self.bytes_max;
            Error::TooLong(format!("unpacked, the archive is longer than the limit of {limit} bytes"))
        })?;
        let place = Place { file: UNPACKED, from, bytes };
        self.members.insert(name.to_owned(), Member::Here(place));
        Ok(place)
    }
}

/// Whether a member is what macOS puts beside the files of others when it packs them.
fn is_of_a_mac(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    name.split('/').any(|part| part == "__MACOSX") || file.starts_with("._") || file == ".DS_Store"
}

/// Tells an archive that does not unpack from a disk that takes no more.
struct Unpacking<R> {
    packed: R,
    damage: Option<String>,
}

impl<R: Read> Read for Unpacking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.packed.read(buffer).inspect_err(|error| self.damage = Some(error.to_string()))
    }
}

impl Source for Archive {
    fn find(&mut self, location: &str) -> Result<Place, Error> {
        match &self.folder {
            Some(folder) => self.member(&format!("{folder}/{location}")),
            None => self.member(location),
        }
    }

    fn file(&self, number: usize) -> io::Result<File> {
        if number == ARCHIVE { self.file.try_clone() } else { self.unpacked.try_clone() }
    }
}

fn list_zip(zip: &mut ZipArchive<BufReader<File>>) -> Result<Vec<(String, Member)>, String> {
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
            let stored = member.compression() == CompressionMethod::Stored;
            let bytes = member.compressed_size();
            let place = member.data_start().filter(|_| stored);
            let place = place.map(|from| Member::Here(Place { file: ARCHIVE, from, bytes }));
            listed.push((name.to_owned(), place.unwrap_or(Member::Packed(index))));
        }
    }
    Ok(listed)
}

/// Members of a tar file (POSIX.1-2017, pax): plain files; folders are passed over, all else is refused.
fn list_tar(file: &mut BufReader<File>) -> Result<Vec<(String, Member)>, String> {
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
            b'0' | 0 => listed.push((name, Member::Here(Place { file: ARCHIVE, from, bytes: size }))),
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
