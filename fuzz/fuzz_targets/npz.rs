//! Fuzz target: a dataset through all that an upload and a job read of it.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/suite/support/memory.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod memory;
#[path = "../../tests/suite/corpus/npz.rs"]
mod npz;

/// A file of this process; in memory where `TMPDIR` is.
static SCRATCH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("octet-fuzz-{}", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    memory::within(npz::bytes_max(bytes.len()), || npz::exercise(bytes, &SCRATCH));
});
