//! Whether data can answer the gate of a recipe, whether an evaluation keeps it, and by how much.

use crate::engine::quant::evaluate::{Evaluation, Group, Share};
use crate::engine::quant::{Gate, Metric};
use crate::engine::tensor::dataset::Dataset;

/// Shares are quotients of counts: a drop of exactly `max_drop` must not fail by the last bit of a difference.
const ROUNDING: f64 = 1e-9;
/// A slice with fewer samples says nothing of its own.
const SLICE_MIN: u64 = 20;

/// What a gate says to an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    /// Why the gate is not kept, with the figures.
    pub(super) failure: Option<String>,
    /// The least distance of a figure from its limit, as a share (20 dB count as one); infinite without a gate.
    pub(super) margin: f64,
}

/// The metric that `max_drop` speaks of: its name, float and INT8.
pub(super) fn metric(gate: &Gate, e: &Evaluation) -> Result<(&'static str, Share, Share), String> {
    let labelled = e.metric == "top1";
    match gate.metric {
        None => Ok((e.metric, e.float, e.int8)),
        Some(Metric::Top1) if labelled => Ok(("top1", e.float, e.int8)),
        Some(Metric::Top5) => match (e.float_top5, e.int8_top5) {
            (Some(float), Some(int8)) => Ok(("top5", float, int8)),
            _ => Err("the gate asks for top5: that needs labels and more than five classes".to_owned()),
        },
        Some(Metric::Top1) => Err("the gate asks for top1: that needs labels and classes".to_owned()),
        Some(Metric::Agreement) => {
            let all = Share { value: 1.0, low: 1.0, high: 1.0, count: e.samples };
            Ok(("agreement", all, e.agreement))
        }
    }
}

/// Why data cannot answer what a gate asks, as far as they tell before anything is run.
pub(super) fn unanswered(gate: &Gate, data: &Dataset) -> Option<String> {
    if gate.max_drop_per_slice.is_some() && data.slices().is_none() {
        return Some("`gate.max_drop_per_slice` needs an array `slice` in them".to_owned());
    }
    let needs = |name| Some(format!("`gate.metric` is {name}: that needs an array `labels` in them"));
    match gate.metric {
        Some(Metric::Top1) if data.labels().is_none() => needs("top1"),
        Some(Metric::Top5) if data.labels().is_none() => needs("top5"),
        _ => None,
    }
}

/// Judges an evaluation. A gate that the data cannot answer is not kept.
pub(super) fn judge(gate: &Gate, e: &Evaluation) -> Verdict {
    let mut verdict = Verdict { failure: None, margin: f64::INFINITY };
    let mut reasons: Vec<String> = Vec::new();
    let mut limit = |margin: f64, reason: &dyn Fn() -> String| {
        verdict.margin = verdict.margin.min(margin);
        if margin < -ROUNDING {
            reasons.push(reason());
        }
    };
    let interval = |s: &Share| format!("95 % interval {:.4} to {:.4}", s.low, s.high);
    if gate.max_drop.is_some() || gate.metric.is_some() {
        match metric(gate, e) {
            Err(reason) => limit(-1.0, &|| reason.clone()),
            Ok((name, float, int8)) => {
                let (drop, most) = (float.value - int8.value, gate.max_drop.unwrap_or(1.0));
                limit(most - drop, &|| {
                    format!(
                        "{name} fell by {drop:.4} (from {:.4} to {:.4} on {} samples, {}), more than max_drop {most}",
                        float.value,
                        int8.value,
                        e.samples,
                        interval(&int8)
                    )
                });
            }
        }
    }
    if let Some(most) = gate.max_drop_per_slice {
        if e.slices.is_empty() {
            let reason = "max_drop_per_slice needs evaluation data with an array `slice`".to_owned();
            limit(-1.0, &|| reason.clone());
        }
        let judged = |slice: &&Group| slice.samples >= SLICE_MIN;
        for slice in e.slices.iter().filter(judged) {
            limit(most + slice.delta, &|| {
                format!(
                    "on slice `{}` {} fell by {:.4} (from {:.4} to {:.4} on {} samples, {}), more than \
                     max_drop_per_slice {most}",
                    slice.name,
                    e.metric,
                    -slice.delta,
                    slice.float,
                    slice.int8.value,
                    slice.samples,
                    interval(&slice.int8)
                )
            });
        }
    }
    if let Some(least) = gate.min_agreement {
        limit(e.agreement.value - least, &|| {
            format!(
                "float and the artifact agree on {:.4} of {} samples ({}), less than min_agreement {least}",
                e.agreement.value,
                e.samples,
                interval(&e.agreement)
            )
        });
    }
    if let Some(least) = gate.min_sqnr_db {
        limit((e.sqnr_db - least) / 20.0, &|| {
            format!(
                "the first output has {:.2} dB of signal to noise, less than min_sqnr_db {least}",
                e.sqnr_db
            )
        });
    }
    verdict.failure = (!reasons.is_empty()).then(|| reasons.join("; "));
    verdict
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::quant::Recipe;
    use crate::engine::quant::evaluate::wilson;

    fn found(float: u64, int8: u64, agree: u64) -> Evaluation {
        let slice = |name: &str, samples: u64, delta: f64| Group {
            name: name.to_owned(),
            samples,
            float: 0.9,
            int8: Share { value: 0.9 + delta, ..Share::default() },
            delta,
        };
        Evaluation {
            metric: "top1",
            agreement_by: "class",
            samples: 1000,
            float: wilson(float, 1000),
            int8: wilson(int8, 1000),
            float_top5: Some(wilson(990, 1000)),
            int8_top5: Some(wilson(980, 1000)),
            agreement: Share { value: agree as f64 / 1000.0, ..Share::default() },
            broken: 0,
            mended: 0,
            sqnr_db: 30.0,
            cosine: 1.0,
            worst: Vec::new(),
            classes: Vec::new(),
            slices: vec![slice("night", 500, -0.03), slice("few", 3, -0.9)],
            confusion: None,
        }
    }

    #[test]
    fn a_gate_that_is_not_kept_says_by_how_much() {
        for (gate, float, int8, agree, want) in [
            (json!({}), 900, 100, 0, None),
            (json!({"max_drop": 0.01}), 900, 890, 0, None),
            (json!({"max_drop": 0.01}), 900, 889, 0, Some("from 0.9000 to 0.8890 on 1000 samples")),
            (json!({"max_drop": 0.005, "metric": "top5"}), 900, 900, 0, Some("top5 fell by 0.0100")),
            (
                json!({"max_drop": 0.005, "metric": "agreement"}),
                900,
                900,
                990,
                Some("agreement fell by 0.0100"),
            ),
            (json!({"max_drop_per_slice": 0.03}), 900, 900, 0, None),
            (json!({"max_drop_per_slice": 0.02}), 900, 900, 0, Some("on slice `night` top1 fell by 0.0300")),
            (json!({"min_agreement": 0.98}), 900, 900, 979, Some("agree on 0.9790")),
            (json!({"min_sqnr_db": 30}), 900, 900, 979, None),
            (json!({"min_sqnr_db": 31}), 900, 900, 979, Some("30.00 dB")),
        ] {
            let recipe = Recipe::parse(&json!({"gate": gate})).unwrap();
            let got = judge(&recipe.gate, &found(float, int8, agree));
            assert_eq!(got.failure.is_some(), got.margin < -ROUNDING, "{gate}");
            match want {
                None => assert_eq!(got.failure, None, "{gate}"),
                Some(says) => {
                    assert!(got.failure.as_deref().is_some_and(|g| g.contains(says)), "{gate}: {got:?}");
                }
            }
        }
    }

    #[test]
    fn a_gate_that_the_data_cannot_answer_is_not_kept() {
        let unlabelled =
            Evaluation { metric: "agreement", float_top5: None, slices: Vec::new(), ..found(1000, 900, 900) };
        for gate in [json!({"max_drop": 0.5, "metric": "top5"}), json!({"max_drop_per_slice": 0.5})] {
            let recipe = Recipe::parse(&json!({"gate": gate})).unwrap();
            assert!(judge(&recipe.gate, &unlabelled).failure.is_some(), "{gate}");
        }
    }
}
