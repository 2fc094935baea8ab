//! The corpus of each fuzz target (`fuzz/corpus`), and files that are made of it, go through what the target does.

mod manifest;
mod npz;
mod tensors;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use octet::engine::exec::Options;
use octet::engine::pipeline::inspect::inspect_dataset;
use octet::engine::quant::observed::{Observed, Samples};
use octet::engine::quant::statistics::Statistics;
use octet::engine::tensor::Tensor;

use crate::mutated;
use crate::mutated::exercise::exercise;
use crate::mutated::wire::{Rng, damage};
use crate::support::memory;

/// Calls `act` with each file of the corpus of `target`, and with so many others that are made of it; it may hold so many
/// bytes as `most` says.
fn each(target: &str, others: u64, most: impl Fn(&[u8]) -> i64, mut act: impl FnMut(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for (path, seed) in paths.iter().zip(&seeds) {
        for number in 0..=others {
            let bytes = if number == 0 { seed.clone() } else { made_of(seed, &seeds, &mut Rng(number)) };
            let what = || format!("{} of {}", number, path.display());
            let done = catch_unwind(AssertUnwindSafe(|| memory::within(most(&bytes), || act(&bytes))));
            done.unwrap_or_else(|_| panic!("{}: a panic, see above: {}", what(), bytes.escape_ascii()));
        }
    }
}

/// A file like `seed`, with a few places changed, and perhaps a part of another one.
fn made_of(seed: &[u8], seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    let other = &seeds[rng.below(seeds.len())];
    if rng.below(3) == 0 && !other.is_empty() {
        let from = rng.below(other.len());
        let part = &other[from..from + rng.below(other.len() - from)];
        let at = rng.below(bytes.len());
        let end = at + rng.below(bytes.len() - at);
        bytes.splice(at..end, part.iter().copied());
    }
    for _ in 0..rng.below(4) {
        damage(&mut bytes, rng);
    }
    bytes
}

fn models(others: u64) {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let options = Options { memory_bytes_max: 256 << 20, ..Options::default() };
    let act = |bytes: &[u8]| {
        exercise(bytes, &options, scratch.path());
    };
    each("import", others, |bytes| mutated::bytes_max(bytes.len()), act);
}

fn datasets(others: u64) {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let mut best = npz::Reached::Nothing;
    let act = |bytes: &[u8]| best = best.max(npz::exercise(bytes, scratch.path()));
    each("npz", others, |bytes| npz::bytes_max(bytes.len()), act);
    assert_eq!(best, npz::Reached::Read);
}

fn bodies(target: &str, exercise: fn(&[u8]) -> tensors::Reached, others: u64) {
    let mut best = tensors::Reached::Nothing;
    let act = |bytes: &[u8]| best = best.max(exercise(bytes));
    each(target, others, |bytes| tensors::bytes_max(bytes.len()), act);
    assert_eq!(best, tensors::Reached::Tensors, "{target}");
}

fn kept(others: u64) {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let mut best = manifest::Reached::Nothing;
    let act = |bytes: &[u8]| best = best.max(manifest::exercise(bytes, scratch.path()));
    each("manifest", others, manifest::bytes_max, act);
    assert_eq!(best, manifest::Reached::Read);
}

/// Besides each file so many that are made of it.
const FEW: u64 = 20;

#[test]
fn models_of_the_corpus_do_no_harm() {
    models(FEW);
}

#[test]
fn datasets_of_the_corpus_read_the_same_twice() {
    datasets(FEW);
}

#[test]
fn bodies_of_the_corpus_come_back_the_same() {
    bodies("json_tensors", tensors::json, FEW);
    bodies("binary_tensors", tensors::binary, FEW);
}

#[test]
fn what_is_kept_of_the_corpus_reads_the_same_again() {
    kept(FEW);
}

/// `OCTET_OTHERS` says how many are made of each file.
#[test]
#[ignore = "minutes: for changes of what reads files and bodies, where there is no nightly compiler for the fuzz targets"]
fn many_files_made_of_the_corpus_do_no_harm() {
    let others = std::env::var("OCTET_OTHERS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    datasets(others);
    bodies("json_tensors", tensors::json, others);
    bodies("binary_tensors", tensors::binary, others);
    kept(others);
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
