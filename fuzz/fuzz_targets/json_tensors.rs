//! Fuzz target: bodies of inference requests that are all JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/suite/support/memory.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod memory;
#[path = "../../tests/suite/corpus/tensors.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod tensors;

fuzz_target!(|bytes: &[u8]| {
    memory::within(tensors::bytes_max(bytes.len()), || tensors::json(bytes));
});
