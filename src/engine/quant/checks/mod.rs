//! What is wrong with data, told in words: what was seen, how bad it is, what to do.
//! Knows nothing of recipes or reports.

pub mod around;
pub mod convergence;
pub mod labels;
pub mod normalization;
pub mod probe;
pub mod samples;
pub mod survey;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Note,
    /// The result is probably worse than it could be, or means something else than it seems to.
    Warning,
    /// The job cannot give a result that means anything: it stops.
    Error,
}

/// Something that was seen in the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is, in one word that stays the same: `normalization`, `labels`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was seen, with the figures.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

impl Check {
    /// A check of this kind.
    pub fn new(
        code: &'static str,
        severity: Severity,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        Check { code, severity, text: text.into(), remedy: remedy.into() }
    }
}

/// Sorts checks for reading: the worst first, else in the order in which they were found.
pub fn worst_first(checks: &mut [Check]) {
    checks.sort_by_key(|check| std::cmp::Reverse(check.severity));
}
