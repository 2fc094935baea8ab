//! Fuzz target: bytes through all that an upload and a first run do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octet::engine::exec::Options;

#[path = "../../tests/suite/mutated/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| {
    let options = Options { memory_bytes_max: 256 << 20, ..Options::default() };
    exercise::exercise(bytes, &options);
});
