//! Labels and slices: whether they can be right, before a job and after the float model has been judged by them.

use std::collections::BTreeMap;

use super::{Check, Severity};
use crate::engine::quant::confusion::{Confusion, Cycle, Pattern};
use crate::engine::quant::evaluate::{Evaluation, Group, wilson};
use crate::engine::tensor::dataset::Dataset;

/// Ratio of the largest class to the smallest that is worth a note.
const UNBALANCED: usize = 5;
/// How far above chance the float model must be, as a part of what there is between chance and all, to be believed.
const ABOVE_CHANCE: f64 = 0.15;
/// Samples without which nothing is said of a slice or of chance.
const SAMPLES_MIN: u64 = 20;
/// Most groups of exchanged classes that are told.
const CYCLES_MAX: usize = 3;
/// Who is to blame for labels and samples that do not fit.
const BLAME: &str = "The data are at fault, not the quantization.";
/// How far a slice must be below the others, as a share.
const SLICE_GAP: f64 = 0.1;

/// Labels that cannot be, and classes that are rare. `classes` is the number of classes of the model, where it is known.
pub fn labels(data: &Dataset, classes: Option<usize>, which: &str) -> Vec<Check> {
    let Some(labels) = data.labels() else { return Vec::new() };
    let outside =
        |label: &i64| *label < 0 || classes.is_some_and(|n| usize::try_from(*label).map_or(true, |l| l >= n));
    if let Some(sample) = labels.iter().position(outside) {
        let (label, count) = (labels[sample], labels.iter().filter(|l| outside(l)).count());
        let has = classes.map_or("has no negative ones".to_owned(), |n| format!("has {n}: 0 to {}", n - 1));
        return vec![Check::new(
            "label_range",
            Severity::Error,
            format!(
                "label {label} of sample {sample} is no class of the model, which {has} ({count} such labels)"
            ),
            "Number the classes as the outputs of the model, from 0.",
        )];
    }
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    labels.iter().for_each(|label| *counts.entry(*label).or_default() += 1);
    let (most, least) = (counts.iter().max_by_key(|c| c.1), counts.iter().min_by_key(|c| c.1));
    let (Some((largest, most)), Some((smallest, least))) = (most, least) else { return Vec::new() };
    if counts.len() == 1 && labels.len() as u64 >= SAMPLES_MIN {
        return vec![Check::new(
            "class_balance",
            Severity::Note,
            format!("{which} data: all {most} samples are of class {largest}: of the others nothing is told"),
            "Take samples of each class.",
        )];
    }
    let missing = classes.filter(|n| *n <= labels.len() / 4).map_or(0, |n| n - counts.len());
    if missing == 0 && *most <= UNBALANCED * least {
        return Vec::new();
    }
    let absent = match missing {
        0 => String::new(),
        n => format!("; {n} classes of the model have none"),
    };
    vec![Check::new(
        "class_balance",
        Severity::Note,
        format!(
            "{which} data: class {largest} has {most} samples, class {smallest} {least}{absent}: accuracy is mostly that of the common classes"
        ),
        "Look at the classes one by one, or take as many samples of each.",
    )]
}

/// Whether the labels belong to the samples, judged by what the float model answers. `prepared` says that the samples
/// are known to be prepared wrongly, which explains wrong answers better.
pub fn believable(e: &Evaluation, prepared: bool) -> Option<Check> {
    let confusion = e.confusion.as_ref().filter(|c| c.samples() >= SAMPLES_MIN && !prepared)?;
    let chance = confusion.chance();
    if (e.float.value - chance) / (1.0 - chance).max(1e-9) > ABOVE_CHANCE {
        return exchanged(confusion);
    }
    // Where nearly all samples are of one class, right answers are what chance would give, and right all the same.
    if e.float.value > 0.5 && confusion.beside_commonest() < SAMPLES_MIN {
        return None;
    }
    let figures = format!(
        "the float model itself is right on {:.1} % of the samples, where chance would give {:.1} %; float and INT8 agree on {:.1} %",
        100.0 * e.float.value,
        100.0 * chance,
        100.0 * e.agreement.value
    );
    let (code, text, remedy) = match confusion.pattern() {
        Pattern::OneClass(class, share) => (
            "normalization",
            format!(
                "{figures}. It chooses class {class} on {:.0} % of them: the samples are not what it was trained on",
                100.0 * share
            ),
            "Prepare the samples as in training: mean, scale, order of colours.",
        ),
        Pattern::Offset(by, share) => (
            "labels",
            format!(
                "{figures}. On {:.0} % of them it chooses label {} {}: the classes are numbered in another way",
                100.0 * share,
                if by < 0 { '-' } else { '+' },
                by.abs()
            ),
            "Number the classes as the outputs of the model.",
        ),
        Pattern::Renamed(share) => (
            "labels",
            format!(
                "{figures}. Under other names of the classes it would be right on {:.0} %",
                100.0 * share
            ),
            "Number the classes as the outputs of the model.",
        ),
        Pattern::Weak => (
            "normalization",
            format!(
                "{figures}. That is more than chance, so the labels belong to the samples, but these are not what it was trained on"
            ),
            "Prepare the samples as in training: mean, scale, sign, orientation, order of colours.",
        ),
        Pattern::Unrelated => (
            "labels",
            format!(
                "{figures}. Its answers are spread over the classes and have nothing to do with the labels: shuffled, or those of other samples"
            ),
            "Check that sample and label of one index belong together; shuffle both alike or neither.",
        ),
    };
    Some(Check::new(code, Severity::Warning, text, format!("{remedy} {BLAME}")))
}

/// Classes that have each other's labels, where the others are right.
fn exchanged(confusion: &Confusion) -> Option<Check> {
    let mut cycles = confusion.cycles();
    cycles.retain(|cycle| cycle.classes.iter().map(|c| c.1).sum::<u64>() >= SAMPLES_MIN);
    let classes = cycles.iter().flat_map(|cycle| &cycle.classes);
    let next = cycles.iter().flat_map(|cycle| cycle.classes.iter().cycle().skip(1).take(cycle.classes.len()));
    let names = classes.zip(next).map(|(from, to)| (from.0, to.0)).collect();
    let told = |cycle: &Cycle| {
        let next = cycle.classes.iter().cycle().skip(1);
        let one = |((label, samples, count), (class, ..)): (&(i64, u64, u64), &(i64, u64, u64))| {
            format!("{count} of {samples} samples of class {label} are answered {class}")
        };
        cycle.classes.iter().zip(next).map(one).collect::<Vec<_>>().join(", ")
    };
    let told: Vec<String> = cycles.iter().take(CYCLES_MAX).map(told).collect();
    (!cycles.is_empty()).then(|| {
        Check::new(
            "labels",
            Severity::Warning,
            format!(
                "labels seem to be exchanged: by the float model {}. Under each other's names it would be right on {:.1} % of all samples, not {:.1} %",
                told.join("; "),
                100.0 * confusion.renamed(&names).right(),
                100.0 * confusion.right()
            ),
            format!("Number the classes as the outputs of the model. {BLAME}"),
        )
    })
}

/// A slice on which float itself, and INT8 with it, is far below the others.
#[derive(Clone, Debug, PartialEq)]
pub struct BadSlice {
    /// Its name.
    pub name: String,
    /// What was seen, in words.
    pub text: String,
}

/// Slices whose float accuracy is far below that of the others: the lower end of the others' interval is above the
/// upper end of theirs.
pub fn bad_slices(e: &Evaluation) -> Vec<BadSlice> {
    if e.metric == "agreement" {
        return Vec::new();
    }
    let bad = |slice: &Group| {
        let (n, others) = (slice.samples, e.samples - slice.samples);
        if n < SAMPLES_MIN || others < SAMPLES_MIN {
            return None;
        }
        let right = (slice.float * n as f64).round() as u64;
        let (own, rest) = (wilson(right, n), wilson(e.float.count.saturating_sub(right), others));
        let rest_int8 = wilson(e.int8.count.saturating_sub(slice.int8.count), others);
        (own.high + SLICE_GAP < rest.low).then(|| BadSlice {
            name: slice.name.clone(),
            text: format!(
                "slice `{}` ({n} samples): float is right on {:.1} %, INT8 on {:.1} %; on all others float on {:.1} %, INT8 on {:.1} %",
                slice.name,
                100.0 * own.value,
                100.0 * slice.int8.value,
                100.0 * rest.value,
                100.0 * rest_int8.value
            ),
        })
    };
    e.slices.iter().filter_map(bad).collect()
}

/// The check of a slice that float fails on too. `found` is what else was found out about its samples.
pub fn slice(bad: &BadSlice, found: Option<&str>) -> Check {
    let found = found.map_or(String::new(), |found| format!("; {found}"));
    Check::new(
        "slice",
        Severity::Warning,
        format!("{}{found}", bad.text),
        format!(
            "Look at how the samples of `{}` were taken and prepared. Float fails on them too: the data are at fault, not the quantization.",
            bad.name
        ),
    )
}

/// Slices on which INT8 alone loses: more than on the others, and more than chance would explain.
pub fn hurt_slices(e: &Evaluation) -> Vec<Check> {
    let hurt = |slice: &Group| {
        let (n, overall) = (slice.samples, e.int8.value - e.float.value);
        // Half as much again as all samples lose: else it is no matter of the slice.
        let lost = slice.int8.high < slice.float && slice.delta < 1.5 * overall - 0.02;
        (n >= SAMPLES_MIN && lost).then(|| {
            Check::new(
                "slice_loss",
                Severity::Warning,
                format!(
                    "slice `{}` ({n} samples) falls by {:.1} points in INT8, all samples by {:.1}",
                    slice.name,
                    -100.0 * slice.delta,
                    -100.0 * overall
                ),
                "Take calibration samples of this slice too, and set max_drop_per_slice in the gate: here it is the quantization that loses.",
            )
        })
    };
    e.slices.iter().filter_map(hurt).collect()
}
