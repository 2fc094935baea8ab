//! Room that is put by on the disk. What makes room, a deletion, has to be written down first: on a full disk it is given
//! this room to be written in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Some hundred times what a deletion writes: other writers may be faster.
const BYTES: usize = 4 << 20;

/// A file that only takes up room.
#[derive(Clone, Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// The one of a folder.
    pub(super) fn of(folder: &Path) -> Reserve {
        Reserve { path: folder.join("reserve") }
    }

    /// Puts the room by, where it is not. Blocks.
    ///
    /// # Errors
    /// Where the disk has no room for it.
    pub fn keep(&self) -> io::Result<()> {
        if fs::metadata(&self.path).is_ok_and(|file| file.len() == BYTES as u64) {
            return Ok(());
        }
        let written = fs::write(&self.path, filling());
        if written.is_err() {
            self.give();
        }
        written
    }

    /// Gives the room away; `false` where there is none.
    pub fn give(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

/// Bytes that a file system which compresses keeps as they are.
fn filling() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..BYTES).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_put_by_and_given_once() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(folder.path());
        assert!(!reserve.give());
        fs::write(folder.path().join("reserve"), "half written").unwrap();
        for _ in 0..2 {
            reserve.keep().unwrap();
            assert_eq!(fs::metadata(folder.path().join("reserve")).unwrap().len(), BYTES as u64);
        }
        assert!(reserve.give() && !reserve.give());
        let bytes = filling();
        let most = (0..=255u8).map(|byte| bytes.iter().filter(|&&b| b == byte).count()).max();
        assert!(most < Some(BYTES / 200), "it would be compressed");
    }
}
