//! The corpus of each fuzz target (`fuzz/corpus`) goes through what the target does with it.

mod manifest;
mod npz;
mod tensors;

use std::path::Path;

use octet::engine::exec::Options;
use octet::engine::pipeline::inspect::inspect_dataset;
use octet::engine::quant::observed::{Observed, Samples};
use octet::engine::quant::statistics::Statistics;
use octet::engine::tensor::Tensor;

use crate::mutated;
use crate::mutated::exercise::exercise;
use crate::support::memory;

/// Calls `act` with each file of the corpus of `target`; it may hold so many bytes as `most` says.
fn each(target: &str, most: impl Fn(&[u8]) -> i64, mut act: impl FnMut(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        let bytes = std::fs::read(&path).unwrap();
        memory::within(most(&bytes), || act(&bytes));
        files += 1;
    }
    assert!(files > 0, "{} is empty", folder.display());
}

#[test]
fn models_of_the_corpus_do_no_harm() {
    let options = Options { memory_bytes_max: 256 << 20, ..Options::default() };
    let act = |bytes: &[u8]| {
        exercise(bytes, &options);
    };
    each("import", |bytes| mutated::bytes_max(bytes.len()), act);
}

#[test]
fn datasets_of_the_corpus_read_the_same_twice() {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let mut best = npz::Reached::Nothing;
    let act = |bytes: &[u8]| best = best.max(npz::exercise(bytes, scratch.path()));
    each("npz", |bytes| npz::bytes_max(bytes.len()), act);
    assert_eq!(best, npz::Reached::Read);
}

#[test]
fn bodies_of_the_corpus_come_back_the_same() {
    for (target, exercise) in
        [("json_tensors", tensors::json as fn(&[u8]) -> _), ("binary_tensors", tensors::binary)]
    {
        let mut best = tensors::Reached::Nothing;
        each(target, |bytes| tensors::bytes_max(bytes.len()), |bytes| best = best.max(exercise(bytes)));
        assert_eq!(best, tensors::Reached::Tensors, "{target}");
    }
}

#[test]
fn what_is_kept_of_the_corpus_reads_the_same_again() {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let mut best = manifest::Reached::Nothing;
    let act = |bytes: &[u8]| best = best.max(manifest::exercise(bytes, scratch.path()));
    each("manifest", manifest::bytes_max, act);
    assert_eq!(best, manifest::Reached::Read);
}

/// Each took 64 KiB until the upload was taken or refused: a file of some KiB made a GiB of them.
#[test]
fn values_of_statistics_are_looked_at_one_by_one() {
    let mut observed = Observed::default();
    observed.observe(Tensor::scalar(1f32).view(), Samples::One);
    let values = (0..2000).map(|n| (format!("{n:04}"), observed.clone())).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes = Statistics { model: [1; 32], data: [2; 32], samples: 1, values }.encode();
    std::fs::write(file.path(), &bytes).unwrap();
    let info = memory::within(1 << 20, || inspect_dataset(file.path(), 1 << 30)).unwrap();
    assert_eq!(info["statistics"], 2000);
    assert!(bytes.len() < 100_000, "{} bytes", bytes.len());
}
