//! What another runtime makes of an INT8 graph: which nodes it computes on integers, which not, and why. Here is the
//! vocabulary; each target has a file of rules, `check` asks them.

pub mod check;
mod file;
mod net;
mod octet;
mod onnxruntime;
mod onnxruntime_codes;
mod onnxruntime_notes;
mod onnxruntime_passes;
mod openvino;
mod shapes;
mod tensorrt;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tflite_rules;

use std::collections::BTreeMap;

use serde::Serialize;

use super::Target;

impl Target {
    /// Every target, in the order of summaries.
    pub const ALL: [Target; 5] =
        [Target::Octet, Target::Onnxruntime, Target::Openvino, Target::Tensorrt, Target::TfliteRules];

    /// The name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Target::Octet => "octet",
            Target::Onnxruntime => "onnxruntime",
            Target::Tensorrt => "tensorrt",
            Target::Openvino => "openvino",
            Target::TfliteRules => "tflite_rules",
        }
    }

    /// The target of a name.
    ///
    /// # Errors
    /// A sentence with the names that there are.
    pub fn named(name: &str) -> Result<Target, String> {
        let known = || Target::ALL.map(Target::name).join(", ");
        Target::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .ok_or_else(|| format!("`{name}` is no target; the targets are {}", known()))
    }
}

/// What a target does with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It computes on integers, as one operator with the Q and DQ nodes around it.
    Fuses,
    /// It computes on reals.
    StaysFloat,
    /// The target does not take the file with this node as it is.
    Refused,
}

/// What a target does with one node, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: &'static str,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The target's operator in its place; `null` where it stays, or is taken over by its neighbour.
    pub becomes: Option<&'static str>,
    /// The rule that decided, for programs.
    pub rule: &'static str,
    /// Why; empty where it fuses.
    pub reason: String,
    /// What would change it; empty where nothing has to.
    pub remedy: String,
}

/// How bad a note is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The target does not take the file, or gives other answers.
    Error,
    /// It costs speed, bytes or accuracy.
    Warning,
    /// Worth to know.
    Note,
}

/// What is to say of the file as a whole, or of one of its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// How bad it is.
    pub severity: Severity,
    /// The rule, for programs.
    pub rule: &'static str,
    /// What is the case, with the names of values and nodes.
    pub reason: String,
    /// What would change it; empty where nothing has to.
    pub remedy: String,
}

/// What a target makes of a graph.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The target.
    pub target: Target,
    /// How often each of the target's integer operators stands in what it runs.
    pub fused: BTreeMap<&'static str, u64>,
    /// Nodes on reals, by operator.
    pub float: BTreeMap<&'static str, u64>,
    /// Nodes that the target refuses, by operator.
    pub refused: BTreeMap<&'static str, u64>,
    /// About the file as a whole, the worst first.
    pub notes: Vec<Note>,
    /// About each node that computes, in execution order.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Counts what was found.
    pub fn new(target: Target, mut notes: Vec<Note>, findings: Vec<Finding>) -> Report {
        notes.sort_by_key(|note| note.severity);
        let count = |verdict: Verdict| {
            let mut counts = BTreeMap::new();
            for finding in findings.iter().filter(|f| f.verdict == verdict) {
                let name = match verdict {
                    Verdict::Fuses => finding.becomes,
                    Verdict::StaysFloat | Verdict::Refused => Some(finding.op),
                };
                if let Some(name) = name {
                    *counts.entry(name).or_default() += 1;
                }
            }
            counts
        };
        let [fused, float, refused] = [Verdict::Fuses, Verdict::StaysFloat, Verdict::Refused].map(count);
        Report { target, fused, float, refused, notes, findings }
    }
}

/// A verdict with its reasons, before it is known whose.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Judged {
    verdict: Verdict,
    becomes: Option<&'static str>,
    rule: &'static str,
    reason: String,
    remedy: String,
}

impl Judged {
    fn fuses(becomes: &'static str) -> Judged {
        let (reason, remedy) = (String::new(), String::new());
        Judged { verdict: Verdict::Fuses, becomes: Some(becomes), rule: "fuses", reason, remedy }
    }

    /// The node before it or the quantizer behind it does its work.
    fn absorbed(reason: impl Into<String>) -> Judged {
        let (reason, remedy) = (reason.into(), String::new());
        Judged { verdict: Verdict::Fuses, becomes: None, rule: "absorbed", reason, remedy }
    }

    fn float(rule: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Judged {
        let (reason, remedy) = (reason.into(), remedy.into());
        Judged { verdict: Verdict::StaysFloat, becomes: None, rule, reason, remedy }
    }

    fn refused(rule: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Judged {
        Judged { verdict: Verdict::Refused, ..Judged::float(rule, reason, remedy) }
    }

    fn of(self, node: &str, op: &'static str) -> Finding {
        let Judged { verdict, becomes, rule, reason, remedy } = self;
        Finding { node: node.to_owned(), op, verdict, becomes, rule, reason, remedy }
    }
}
