//! What came of a job, as its page, that of the artifact and that of the endpoint show it: verdict, figures, recipe.

use crate::api::http::ui::{bytes, escape, frame, metric_name, millis, percent, points, put, times};
use crate::service::store::Artifact;

/// Whether the gate is kept, in a sentence.
pub(crate) fn verdict(html: &mut String, gate_failure: Option<&str>, recipe: &serde_json::Value) {
    let asked = recipe["gate"].as_object().is_some_and(|gate| gate.values().any(|v| !v.is_null()));
    match gate_failure {
        Some(reason) => put(
            html,
            format_args!("<div class=\"fail\"><b>The gate is not kept.</b> {}</div>", escape(reason)),
        ),
        None if asked => html.push_str(
            "<div class=\"kept\"><b>The gate is kept.</b> Accuracy stays within what was asked.</div>",
        ),
        None => html.push_str(
            "<div class=\"kept plain\">No gate was set: the result is kept whatever it lost.</div>",
        ),
    }
}

/// The figures of an artifact, float against INT8.
pub(crate) fn figures(html: &mut String, artifact: &Artifact) {
    let (accuracy, latency) = (&artifact.accuracy, &artifact.latency);
    html.push_str("<div class=\"cards\">");
    let note = format!(
        "float {}, {}; {}",
        percent(accuracy.float),
        points(accuracy.delta),
        super::counted(accuracy.samples, "sample")
    );
    frame::card(html, &escape(metric_name(accuracy)), &percent(accuracy.int8), &note);
    frame::card(html, "Same decision as float", &percent(accuracy.agreement), "on the same samples");
    let float_bytes = artifact.bytes as f64 / artifact.size_ratio.max(1e-9);
    let note = format!("{} → {}", bytes(float_bytes.round() as u64), bytes(artifact.bytes));
    frame::card(html, "Size", &format!("{:.0} %", artifact.size_ratio * 100.0), &note);
    let note = format!("{} → {} at batch 1", millis(latency.float_ms), millis(latency.int8_ms));
    frame::card(html, "Speed", &times(latency.float_ms, latency.int8_ms), &note);
    frame::card(html, "Signal to noise", &format!("{:.1} dB", accuracy.sqnr_db), "of the first output");
    html.push_str("</div>");
}

/// `98.75 → 98.70 %`, and by how much.
pub(crate) fn accuracy_line(float: f64, int8: f64) -> String {
    let delta = int8 - float;
    let class = if delta < -0.01 { "poor" } else { "dim" };
    format!(
        "<span class=\"num\">{:.2} → {}</span> <span class=\"{class}\">{}</span>",
        float * 100.0,
        percent(int8),
        points(delta)
    )
}

/// A recipe in full, folded.
pub(crate) fn recipe(html: &mut String, recipe: &serde_json::Value) {
    let text = serde_json::to_string_pretty(recipe).unwrap_or_default();
    put(
        html,
        format_args!(
            "<details><summary>Recipe in full</summary><div class=\"code\"><pre tabindex=\"0\"><code>{}</code></pre></div></details>",
            escape(&text)
        ),
    );
}
