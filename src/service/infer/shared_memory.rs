//! Regions of POSIX shared memory that clients on this machine have registered (Triton's extension): a request then says
//! where a tensor lies instead of carrying it.
//!
//! A region is read and written as a file, one copy each way, and not mapped. So a client that shortens it meets an
//! error and does not end the server, and a model never runs on bytes that change under it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use rustix::io::{Errno, pread};

/// Most regions at a time: each holds a file open.
const REGIONS_MAX: usize = 1024;

/// Where the objects of POSIX shared memory are files.
const FOLDER: &str = "/dev/shm";

/// The regions that are registered.
pub struct SharedMemory {
    folder: PathBuf,
    regions: RwLock<BTreeMap<String, Arc<Region>>>,
}

/// A part of an object in shared memory.
#[derive(Debug)]
pub struct Region {
    /// Name of the object, as it came.
    pub key: String,
    /// Its first byte in the object.
    pub offset: u64,
    /// Its length.
    pub byte_size: u64,
    file: File,
}

/// What cannot be done with a region.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No region has this name.
    #[error("no region `{0}` of shared memory is registered")]
    Unknown(String),
    /// A region has this name.
    #[error("a region `{0}` of shared memory is registered already: unregister it first")]
    Taken(String),
    /// There are as many as there may be.
    #[error("{REGIONS_MAX} regions of shared memory are registered: unregister some first")]
    TooMany,
    /// Not the name of an object in shared memory.
    #[error("`{0}` is not a key of shared memory: one name, perhaps behind a slash")]
    BadKey(String),
    /// The object cannot be opened.
    #[error("shared memory `{key}` cannot be opened: {source}")]
    Open {
        /// Name of the object.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// The object is shorter than the region.
    #[error("shared memory `{key}` has {size} bytes: there are no {byte_size} from byte {offset} on")]
    Short {
        /// Name of the object.
        key: String,
        /// Its length.
        size: u64,
        /// First byte of the region.
        offset: u64,
        /// Length of the region.
        byte_size: u64,
    },
    /// The region is shorter than the tensor.
    #[error(
        "region `{name}` of shared memory has {size} bytes: there are no {byte_size} from byte {offset} on"
    )]
    Outside {
        /// Name of the region.
        name: String,
        /// Its length.
        size: u64,
        /// First byte of the tensor.
        offset: u64,
        /// Length of the tensor.
        byte_size: usize,
    },
    /// The object is no longer what it was when the region was registered.
    #[error("region `{name}` of shared memory cannot be used: {source}")]
    Io {
        /// Name of the region.
        name: String,
        /// Why.
        source: io::Error,
    },
}

impl Default for SharedMemory {
    fn default() -> SharedMemory {
        SharedMemory::in_folder(PathBuf::from(FOLDER))
    }
}

impl SharedMemory {
    /// No regions yet, of objects in `folder`.
    fn in_folder(folder: PathBuf) -> SharedMemory {
        SharedMemory { folder, regions: RwLock::default() }
    }

    /// Registers `byte_size` bytes from `offset` on of the object `key`.
    ///
    /// # Errors
    /// [`Error`]: the name is taken, or there is no such object of this length that may be read and written.
    pub fn register(&self, name: &str, key: &str, offset: u64, byte_size: u64) -> Result<(), Error> {
        let file = self.open(key)?;
        let opened = |source| Error::Open { key: key.to_owned(), source };
        let about = file.metadata().map_err(opened)?;
        if !about.is_file() {
            return Err(opened(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        if offset.checked_add(byte_size).is_none_or(|end| end > about.len()) {
            return Err(Error::Short { key: key.to_owned(), size: about.len(), offset, byte_size });
        }
        let mut regions = self.write_lock();
        if regions.contains_key(name) {
            return Err(Error::Taken(name.to_owned()));
        }
        if regions.len() == REGIONS_MAX {
            return Err(Error::TooMany);
        }
        regions.insert(name.to_owned(), Arc::new(Region { key: key.to_owned(), offset, byte_size, file }));
        Ok(())
    }

    /// Forgets a region, where there is one.
    pub fn unregister(&self, name: &str) {
        self.write_lock().remove(name);
    }

    /// Forgets all regions.
    pub fn unregister_all(&self) {
        self.write_lock().clear();
    }

    /// All regions by name.
    #[must_use]
    pub fn regions(&self) -> Vec<(String, Arc<Region>)> {
        self.read_lock().iter().map(|(name, region)| (name.clone(), Arc::clone(region))).collect()
    }

    /// A region.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn region(&self, name: &str) -> Result<Arc<Region>, Error> {
        self.read_lock().get(name).cloned().ok_or_else(|| Error::Unknown(name.to_owned()))
    }

    /// Appends `byte_size` bytes from byte `offset` of a region on to `bytes`.
    ///
    /// # Errors
    /// [`Error`] where there is no such region, it is shorter, or its object is by now.
    pub fn read(&self, name: &str, offset: u64, byte_size: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let (region, start) = self.place(name, offset, byte_size)?;
        let failed = |source| Error::Io { name: name.to_owned(), source };
        let before = bytes.len();
        // Room that was zeroed first would take longer than the reading.
        bytes.reserve(byte_size);
        while bytes.len() - before < byte_size {
            let at = start + (bytes.len() - before) as u64;
            match pread(&region.file, spare_capacity(bytes), at) {
                Ok(0) => return Err(failed(io::Error::from(io::ErrorKind::UnexpectedEof))),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        // There may be more room than that.
        bytes.truncate(before + byte_size);
        Ok(())
    }

    /// Writes `bytes` from byte `offset` of a region on.
    ///
    /// # Errors
    /// As [`SharedMemory::read`].
    pub fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let (region, start) = self.place(name, offset, bytes.len())?;
        let failed = |source| Error::Io { name: name.to_owned(), source };
        // Writing beyond the end would make the object longer.
        let size = region.file.metadata().map_err(failed)?.len();
        if size < start + bytes.len() as u64 {
            return Err(failed(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        region.file.write_all_at(bytes, start).map_err(failed)
    }

    /// A region, and where in its object `byte_size` bytes from `offset` on begin.
    fn place(&self, name: &str, offset: u64, byte_size: usize) -> Result<(Arc<Region>, u64), Error> {
        let region = self.region(name)?;
        if offset.checked_add(byte_size as u64).is_none_or(|end| end > region.byte_size) {
            return Err(Error::Outside { name: name.to_owned(), size: region.byte_size, offset, byte_size });
        }
        let start = region.offset + offset;
        Ok((region, start))
    }

    /// Opens the object `key`. As `shm_open` does it follows no link.
    fn open(&self, key: &str) -> Result<File, Error> {
        let name = key.strip_prefix('/').unwrap_or(key);
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(Error::BadKey(key.to_owned()));
        }
        // A pipe by this name must not make the server wait.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags.bits().cast_signed());
        let file = options.open(self.folder.join(name));
        file.map_err(|source| Error::Open { key: key.to_owned(), source })
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Region>>> {
        self.regions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Arc<Region>>> {
        self.regions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_object(bytes: &[u8]) -> (tempfile::TempDir, SharedMemory) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("object"), bytes).unwrap();
        let memory = SharedMemory::in_folder(folder.path().to_owned());
        (folder, memory)
    }

    #[test]
    fn a_region_is_a_window_of_its_object() {
        let (folder, memory) = with_object(&[0, 1, 2, 3, 4, 5, 6, 7]);
        memory.register("r", "/object", 2, 4).unwrap();
        let mut bytes = Vec::with_capacity(100);
        bytes.push(7);
        memory.read("r", 1, 3, &mut bytes).unwrap();
        memory.read("r", 0, 1, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 3, 4, 5, 2]);
        memory.write("r", 0, &[9, 9]).unwrap();
        assert_eq!(std::fs::read(folder.path().join("object")).unwrap(), [0, 1, 9, 9, 4, 5, 6, 7]);
        let [(name, region)] = &memory.regions()[..] else { panic!("one region") };
        let about = (name.as_str(), region.key.as_str(), region.offset, region.byte_size);
        assert_eq!(about, ("r", "/object", 2, 4));
        memory.unregister("nobody");
        memory.unregister("r");
        assert!(matches!(memory.read("r", 0, 1, &mut bytes), Err(Error::Unknown(name)) if name == "r"));
    }

    #[test]
    fn nothing_outside_of_the_region_is_touched() {
        let (folder, memory) = with_object(&[1; 8]);
        memory.register("r", "object", 2, 4).unwrap();
        for (offset, len) in [(0, 5), (4, 1), (5, 0), (u64::MAX, 1)] {
            let read = memory.read("r", offset, len, &mut Vec::new());
            assert!(matches!(read, Err(Error::Outside { .. })), "{offset}");
            let written = memory.write("r", offset, &vec![7; len]);
            assert!(matches!(written, Err(Error::Outside { .. })), "{offset}");
        }
        assert_eq!(std::fs::read(folder.path().join("object")).unwrap(), [1; 8]);
        let mut none = Vec::new();
        memory.read("r", 4, 0, &mut none).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn an_object_that_was_shortened_is_an_error_and_is_not_made_longer() {
        let (folder, memory) = with_object(&[1; 8]);
        memory.register("r", "object", 0, 8).unwrap();
        let path = folder.path().join("object");
        File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
        assert!(matches!(memory.read("r", 0, 8, &mut Vec::new()), Err(Error::Io { .. })));
        assert!(matches!(memory.write("r", 0, &[0; 8]), Err(Error::Io { .. })));
        assert_eq!(std::fs::metadata(path).unwrap().len(), 4);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let (folder, memory) = with_object(&[1; 8]);
        for key in ["", "/", "..", "/..", "a/b", "//object", "../object", "a\0b"] {
            assert!(matches!(memory.register("r", key, 0, 1), Err(Error::BadKey(_))), "{key}");
        }
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("object"), folder.path().join("link")).unwrap();
        for key in ["nobody", "folder", "link"] {
            assert!(matches!(memory.register("r", key, 0, 1), Err(Error::Open { .. })), "{key}");
        }
        for (offset, byte_size) in [(0, 9), (9, 0), (8, 1), (u64::MAX, 1), (1, u64::MAX)] {
            let error = memory.register("r", "object", offset, byte_size).unwrap_err();
            assert!(matches!(error, Error::Short { size: 8, .. }), "{error}");
        }
        memory.register("r", "object", 0, 8).unwrap();
        assert!(matches!(memory.register("r", "object", 0, 8), Err(Error::Taken(_))));
        for n in 1..REGIONS_MAX {
            memory.register(&n.to_string(), "object", 0, 8).unwrap();
        }
        assert!(matches!(memory.register("one more", "object", 0, 8), Err(Error::TooMany)));
        memory.unregister_all();
        assert!(memory.regions().is_empty());
    }
}
