//! Fuzz target: bytes through all that an upload and a first run do.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use octet::engine::exec::Options;

#[path = "../../tests/suite/mutated/exercise.rs"]
mod exercise;

/// A file of this process; in memory where `TMPDIR` is.
static SCRATCH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("octet-fuzz-{}", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    let options = Options { memory_bytes_max: 256 << 20, ..Options::default() };
    exercise::exercise(bytes, &options, &SCRATCH);
});
