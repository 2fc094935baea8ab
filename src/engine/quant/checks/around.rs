//! The checks around a job: all that can be told before it, and what its figures tell after it.

use super::convergence::{self, Convergence, SampleRanges};
use super::normalization::{self, FirstLayer};
use super::probe::Picked;
use super::survey::Survey;
use super::{Check, Severity, labels, samples, worst_first};
use crate::engine::exec::session::Session;
use crate::engine::graph::Dim;
use crate::engine::quant::calibrate::Error;
use crate::engine::quant::evaluate::Evaluation;
use crate::engine::tensor::dataset::{self, Dataset};

/// Slices that are looked into.
const SLICES_MAX: usize = 3;

/// What was seen before a job.
#[derive(Clone, Debug)]
pub struct Before {
    checks: Vec<Check>,
    /// Number of calibration samples, where there are any.
    samples: Option<usize>,
    /// Of the data that the model is judged on.
    judged: Survey,
}

/// Looks at the data: one pass over each file, and the float model on some labelled samples.
///
/// # Errors
/// Which data, and what makes a job impossible: they cannot be read, NaN or infinity (with the array and the sample),
/// labels that are no classes.
pub fn before(
    layers: &[FirstLayer],
    float: &Session,
    calibration: Option<&Dataset>,
    evaluation: Option<&Dataset>,
) -> Result<Before, (&'static str, Error)> {
    let of = |which: &'static str| move |e: dataset::Error| (which, Error::Data(e));
    let survey = |data: &Dataset| Survey::of(data, None);
    let first = calibration.map(survey).transpose().map_err(of("calibration"))?;
    let survey = |data: &Dataset| Survey::of(data, first.as_ref());
    let second = evaluation.map(survey).transpose().map_err(of("evaluation"))?;
    let classes = classes(float);
    let mut checks = Vec::new();
    for (data, which) in [(calibration, "calibration"), (evaluation, "evaluation")] {
        checks.extend(data.map_or_else(Vec::new, |data| labels::labels(data, classes, which)));
        if let Some(error) = checks.iter().find(|c: &&Check| c.severity == Severity::Error) {
            return Err((which, Error::Outputs(format!("{}. {}", error.text, error.remedy))));
        }
    }
    for (survey, which) in [(&first, "calibration"), (&second, "evaluation")] {
        checks.extend(survey.as_ref().map_or_else(Vec::new, |survey| samples::repeated(survey, which)));
    }
    if let (Some(first), Some(second)) = (&first, &second) {
        checks.extend(samples::overlap(first, second));
        checks.extend(samples::unlike(first, second, evaluation.and_then(Dataset::slices)));
    }
    checks.extend(normalization(layers, first.as_ref(), second.as_ref()));
    let samples = first.as_ref().map(|survey| survey.samples);
    let which = if evaluation.is_some() { "evaluation" } else { "calibration" };
    let judged = second.or(first).unwrap_or_default();
    if let Some(data) = evaluation.or(calibration)
        && let Some(picked) = Picked::from(data, &judged, |_| true).map_err(|e| (which, e))?
        && let Some(check) = picked.normalization(float, &judged).map_err(|e| (which, e))?
    {
        // What was tried says more than what is unusual.
        checks.retain(|c| c.code != "normalization" || c.severity > Severity::Note);
        checks.push(check);
    }
    Ok(Before { checks, samples, judged })
}

/// The checks of the normalization; those that hold for both files are said once.
fn normalization(
    layers: &[FirstLayer],
    calibration: Option<&Survey>,
    evaluation: Option<&Survey>,
) -> Vec<Check> {
    let of = |survey: Option<&Survey>, which| {
        survey.map_or_else(Vec::new, |survey| normalization::checks(layers, survey, which))
    };
    let (first, second) = (of(calibration, "calibration"), of(evaluation, "evaluation"));
    match (first.is_empty(), second.is_empty()) {
        (false, false) => of(evaluation, "calibration and evaluation"),
        _ => [first, second].concat(),
    }
}

/// What the figures of a job tell of the data, with all that was seen before; the worst first.
///
/// # Errors
/// Where the data cannot be read again, or the float model cannot be run on them.
pub fn after(
    before: Before,
    ranges: &SampleRanges,
    float: &Session,
    judged: &Dataset,
    evaluation: &Evaluation,
) -> Result<(Vec<Check>, Option<Convergence>), Error> {
    let Before { mut checks, samples, judged: survey } = before;
    let convergence = ranges.convergence();
    let prepared = checks.iter().any(|c| c.code == "normalization" && c.severity > Severity::Note);
    checks.extend(labels::believable(evaluation, prepared));
    for bad in labels::bad_slices(evaluation).iter().take(SLICES_MAX) {
        let inside = |sample: usize| judged.slices().is_some_and(|slices| slices[sample] == bad.name);
        let picked = Picked::from(judged, &survey, inside)?;
        let found = picked.map(|p| p.orientation(float)).transpose()?.flatten();
        checks.push(labels::slice(bad, found.as_deref()));
    }
    checks.extend(labels::hurt_slices(evaluation));
    checks.extend(samples.map(|samples| convergence::enough(samples, convergence.as_ref())));
    worst_first(&mut checks);
    Ok((checks, convergence))
}

/// Number of classes that the first output tells, where it is known.
fn classes(model: &Session) -> Option<usize> {
    let dims = &model.outputs().first()?.dims;
    let known: Vec<usize> =
        dims.iter().skip(1).filter_map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect();
    match (&known[..], dims.len()) {
        ([classes, rest @ ..], rank)
            if rank == known.len() + 1 && *classes > 1 && rest.iter().all(|&d| d == 1) =>
        {
            Some(*classes)
        }
        _ => None,
    }
}
