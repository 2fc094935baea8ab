//! What is done with what the server reads back of what it kept, and with recipes: each is read, written and read again.

use std::io::{Cursor, Write};
use std::path::Path;

use octet::engine::artifact::{self, Origin, Source};
use octet::engine::pipeline::compare::{compare, read_side};
use octet::engine::pipeline::inspect::{check_recipe, inspect_bytes};
use octet::engine::pipeline::lint::{Targets, lint_bytes};
use octet::engine::quant::Recipe;
use octet::engine::quant::ranges::{Method, choose};
use octet::engine::quant::statistics::Statistics;
use octet::engine::tensor::qparams::Codes;
use octet::service::store::partial::Partial;
use octet::service::store::{
    AccuracySummary, EndpointSettings, EndpointVersion, JobProgress, LatencySummary, Route, SettingsPatch,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use zip::write::SimpleFileOptions;

/// Between two reports that are compared.
const BETWEEN: u8 = 0x1e;
/// Memory that a model may plan here.
const RUN_BYTES_MAX: u64 = 64 << 20;
/// A tag that no page has, so that one which has it did not escape it.
const FOREIGN: &str = "<fz";

/// How far the bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reached {
    /// They are not what they should be.
    Nothing,
    /// They were read.
    Read,
}

/// The most that [`exercise`] may hold at a time for so many bytes.
pub(crate) fn bytes_max(input: &[u8]) -> i64 {
    let length = input.len() as i64;
    match input.first() {
        // A value of 25 bytes has a histogram of 64 KiB; two of them, as it is read again, and what ranges are chosen with.
        Some(b's') => 2 * (64 << 10) * length / 25 + (16 << 20),
        // What decoding may take, the graph and its session.
        Some(b'a') => (64 + 16 + 32) * length + 2 * RUN_BYTES_MAX as i64 + (96 << 20),
        // A value of JSON, of two bytes, has 72 at least, and its name; the states of layers, the page.
        _ => 1024 * length + (4 << 20),
    }
}

/// The first byte says what the others are: `r` a recipe, `d` two reports or manifests, `e` records of the catalog, `s` the
/// member of a file of statistics, `a` an artifact. `scratch` is a path that may be written to.
///
/// # Panics
/// Where what was read is not the same when it has been written and is read again.
pub(crate) fn exercise(input: &[u8], scratch: &Path) -> Reached {
    let Some((&kind, rest)) = input.split_first() else { return Reached::Nothing };
    let read = match kind {
        b'r' => recipe(rest),
        b'd' => reports(rest),
        b'e' => records(rest),
        b's' => statistics(rest),
        b'a' => artifact(rest, scratch),
        _ => false,
    };
    if read { Reached::Read } else { Reached::Nothing }
}

fn recipe(text: &[u8]) -> bool {
    let Ok(json) = serde_json::from_slice::<Value>(text) else { return false };
    let Ok(recipe) = Recipe::parse(&json) else {
        assert!(check_recipe(&json).is_err());
        return false;
    };
    let full = check_recipe(&json).expect("it was read before");
    assert_eq!(Recipe::parse(&full), Ok(recipe.clone()));
    // As the catalog keeps it, and as a manifest has it.
    let kept: Value = serde_json::from_str(&full.to_string()).expect("what is written is JSON");
    assert_eq!(Recipe::parse(&kept), Ok(recipe.clone()), "a recipe is kept as another");
    let source = Source { sha256: "00".to_owned(), bytes: 1 };
    let samples = artifact::Samples { sha256: "01".to_owned(), samples: 2 };
    let origin = Origin {
        model: &source,
        calibration: &samples,
        evaluation: None,
        recipe: &recipe,
        values: &[],
        max_codes: &[],
    };
    let manifest = artifact::manifest(&origin);
    let again: Value = serde_json::from_str(&manifest.to_string()).expect("what is written is JSON");
    assert_eq!(again.to_string(), manifest.to_string(), "a manifest is kept as another");
    assert_eq!(Recipe::parse(&again["recipe"]), Ok(recipe));
    true
}

fn reports(text: &[u8]) -> bool {
    let at = text.iter().position(|&b| b == BETWEEN).unwrap_or(text.len());
    let side = |text: &[u8]| serde_json::from_slice::<Value>(text).ok();
    let Some(a) = side(&text[..at]) else { return false };
    let b = text.get(at + 1..).and_then(side);
    for (a, b) in [(&a, &a), (&a, b.as_ref().unwrap_or(&Value::Null)), (b.as_ref().unwrap_or(&a), &a)] {
        let (found, page) = compare(a, b, [FOREIGN, FOREIGN]);
        assert!(!page.contains(FOREIGN), "a page has a tag of a report");
        if a == b {
            let empty = |key: &str| found[key].as_array().is_some_and(Vec::is_empty);
            assert!(empty("recipe") && empty("layers") && empty("groups"), "{found}");
        }
    }
    true
}

fn records(text: &[u8]) -> bool {
    // All of them, whichever it is.
    let read = [
        same_again::<EndpointSettings>(text),
        same_again::<SettingsPatch>(text),
        same_again::<Vec<EndpointVersion>>(text),
        same_again::<Vec<Route>>(text),
        same_again::<AccuracySummary>(text),
        same_again::<LatencySummary>(text),
        same_again::<JobProgress>(text),
        same_again::<Partial>(text),
        same_again::<Value>(text),
    ];
    read.contains(&true)
}

fn same_again<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(text: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(text) else { return false };
    let written = serde_json::to_string(&value).expect("records are JSON");
    let again: T = serde_json::from_str(&written).expect("what is written can be read");
    assert_eq!(again, value, "{written}");
    true
}

fn statistics(body: &[u8]) -> bool {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let packed =
        zip.start_file("statistics", SimpleFileOptions::default()).and_then(|()| Ok(zip.write_all(body)?));
    let file = packed.and_then(|()| zip.finish()).expect("writing to memory does not fail").into_inner();
    let inspected = Statistics::inspect(&file).ok();
    let Ok(statistics) = Statistics::decode(&file) else {
        assert_eq!(inspected, None, "what an upload takes a job can read");
        return false;
    };
    assert_eq!(inspected, Some((statistics.samples, statistics.values.len() as u64)));
    let again = Statistics::decode(&statistics.encode()).expect("what is written can be read");
    assert!(again == statistics, "statistics are kept as others");
    for observed in statistics.values.values() {
        for method in Method::CANDIDATES.into_iter().chain([Method::MeanMinmax, Method::Trained]) {
            for codes in [Codes::U8, Codes::S8, Codes::U16] {
                let params = choose(observed, method, codes).params;
                assert!(params.scale[0].is_finite() && params.scale[0] > 0.0, "{method:?}: {params:?}");
            }
        }
        observed.histogram.chart(8);
    }
    true
}

fn artifact(bytes: &[u8], scratch: &Path) -> bool {
    let inspected = inspect_bytes(bytes, RUN_BYTES_MAX).is_ok();
    let linted = lint_bytes(bytes, &Targets::named(None).expect("none is all"));
    assert!(!inspected || linted.is_ok(), "what is taken as a model can be held against targets");
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        return inspected;
    }
    std::fs::write(scratch, bytes).expect("the scratch file can be written");
    let Ok(side) = read_side(scratch) else {
        assert!(!inspected, "what is taken as a model can be compared");
        return false;
    };
    let (_, page) = compare(&side, &side, ["a", "b"]);
    assert!(!page.contains(FOREIGN), "a page has a tag of a model");
    inspected
}
