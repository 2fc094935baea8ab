//! Files that are nearly models: no panic, no allocation beyond what is stated, none that takes long.
//!
//! Seeds are the models of tests/data and, where `OCTET_ZOO` names folders (with `:` between), all models below them that
//! are not large. The long run: `OCTET_ZOO=... cargo test --release -- --ignored mutated`.

pub(crate) mod exercise;
pub(crate) mod wire;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use octet::engine::exec::Options;
use octet::engine::onnx::operators;

use crate::support::memory;
use exercise::{Reached, exercise};
use wire::{Rng, mutated};

/// Longest seed: a run over a larger one shows nothing new and takes long.
const SEED_BYTES_MAX: u64 = 4 << 20;
/// Longest time of one file.
const SECONDS_MAX: u64 = 10;
/// Memory that a run may plan here.
const RUN_BYTES_MAX: u64 = 256 << 20;
/// What a file may cost besides: for each of its bytes what decoding may take (`onnx::bounds`) and the graph made of it
/// (`onnx::import`), and twice what a run may take (its values, and its results).
const BYTES_FACTOR: i64 = 64 + 16 + 32;
const BYTES_FREE: i64 = 2 * RUN_BYTES_MAX as i64 + (96 << 20);

/// The most that a file of so many bytes may cost.
pub(crate) fn bytes_max(length: usize) -> i64 {
    BYTES_FACTOR * length as i64 + BYTES_FREE
}

fn models(folder: &Path, all: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            models(&path, all);
        } else if path.extension().is_some_and(|e| e == "onnx")
            && path.metadata().is_ok_and(|m| m.len() <= SEED_BYTES_MAX)
        {
            all.push(path);
        }
    }
}

fn run(files: u64) {
    let mut paths = Vec::new();
    models(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"), &mut paths);
    for folder in std::env::var("OCTET_ZOO").unwrap_or_default().split(':').filter(|f| !f.is_empty()) {
        models(Path::new(folder), &mut paths);
    }
    let seeds: Vec<Vec<u8>> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
    // Small ones more often: they are faster, and more of them is structure.
    let mut weight = 0.0;
    let weigh = |seed: &Vec<u8>| {
        weight += 1.0 / (1.0 + seed.len() as f64 / 16384.0).sqrt();
        weight
    };
    let weights: Vec<f64> = seeds.iter().map(weigh).collect();
    let names: Vec<String> = operators::all().into_iter().map(|(_, name, _)| name.to_owned()).collect();
    let options = Options { memory_bytes_max: RUN_BYTES_MAX, ..Options::default() };
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let watched = Watch::start();
    let mut reached = [0u64; 4];
    let mut slowest = Duration::ZERO;
    for number in 0..files {
        let mut rng = Rng(number);
        let at = (rng.next() >> 11) as f64 / (1u64 << 53) as f64 * weight;
        let seed = weights.partition_point(|&w| w < at).min(seeds.len() - 1);
        let bytes = mutated(&seeds[seed], &mut rng, &names);
        watched.number.store(number, Ordering::Relaxed);
        watched.since_ms.store(watched.start.elapsed().as_millis() as u64, Ordering::Relaxed);
        let before = memory::live();
        memory::begin_peak();
        let start = Instant::now();
        let done = std::panic::catch_unwind(|| exercise(&bytes, &options, scratch.path()));
        let seconds = start.elapsed();
        watched.since_ms.store(u64::MAX, Ordering::Relaxed);
        let peak = memory::peak() - before;
        let what = || format!("file {number}, made of {}", paths[seed].display());
        let done: Reached = done.unwrap_or_else(|_| panic!("{}: a panic, see above", what()));
        reached[done as usize] += 1;
        let bound = bytes_max(bytes.len());
        assert!(peak <= bound, "{}: {peak} bytes, {bound} may be", what());
        slowest = slowest.max(seconds);
    }
    let [nothing, imported, loaded, ran] = reached;
    println!(
        "{files} files of {} seeds: {nothing} refused by the importer, {imported} by the session, {loaded} loaded, \
         {ran} ran; the slowest took {slowest:?}",
        seeds.len()
    );
    // Mutations that break every file would prove nothing.
    assert!(loaded + ran > files / 50, "{reached:?}");
}

/// Ends the process where a file takes too long: a thread cannot be ended.
struct Watch {
    number: &'static AtomicU64,
    since_ms: &'static AtomicU64,
    start: Instant,
}

impl Watch {
    fn start() -> Watch {
        let (number, since_ms): (&'static AtomicU64, &'static AtomicU64) =
            (Box::leak(Box::default()), Box::leak(Box::new(AtomicU64::new(u64::MAX))));
        let start = Instant::now();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(500));
                let now = start.elapsed().as_millis() as u64;
                let since = since_ms.load(Ordering::Relaxed);
                if since != u64::MAX && now.saturating_sub(since) > SECONDS_MAX * 1000 {
                    eprintln!("file {} takes more than {SECONDS_MAX} s", number.load(Ordering::Relaxed));
                    std::process::abort();
                }
            }
        });
        Watch { number, since_ms, start }
    }
}

#[test]
fn two_thousand_mutated_files_do_no_harm() {
    run(2_000);
}

#[test]
#[ignore = "minutes: for changes of the importer and the executor"]
fn a_hundred_thousand_mutated_files_do_no_harm() {
    run(100_000);
}
