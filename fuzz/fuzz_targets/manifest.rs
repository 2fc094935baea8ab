//! Fuzz target: what the server reads back of what it kept: recipes, reports, records, statistics, artifacts.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/suite/corpus/manifest.rs"]
mod manifest;
#[path = "../../tests/suite/support/memory.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod memory;

/// A file of this process; in memory where `TMPDIR` is.
static SCRATCH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("octet-fuzz-{}", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    memory::within(manifest::bytes_max(bytes), || manifest::exercise(bytes, &SCRATCH));
});
