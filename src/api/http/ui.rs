//! The page at `/`: models, jobs, artifacts, endpoints. Rendered here; no scripts, nothing from elsewhere.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};

use crate::api::error::Problem;
use crate::api::http::Shared;
use crate::service::infer::registry::{Entry, State as Loaded};
use crate::service::store::{Artifact, ArtifactFilter, Job, JobFilter, JobState, Model, Page};

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--dim:#888;--good:#2a7f3f;--bad:#c0392b;--busy:#b7791f}\
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1.5rem}\
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{margin:.25rem 0;color:var(--dim)}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}\
th{font-weight:600;color:var(--dim)}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
code{font:13px ui-monospace,monospace}pre{overflow-x:auto;padding:.8rem;border:1px solid var(--line);border-radius:6px}\
.good{color:var(--good)}.bad{color:var(--bad)}.busy{color:var(--busy)}progress{width:7rem}.wide{overflow-x:auto}";

/// How many records of a kind the page shows.
const SHOWN: u32 = 20;

/// The page.
pub(crate) async fn page(State(shared): State<Shared>) -> Result<Response, Problem> {
    let first = Page::first(SHOWN);
    let models = shared.catalog.models(None, &first).await?.items;
    let jobs = shared.queue.list(&JobFilter::default(), &first).await?.items;
    let artifacts = shared.catalog.artifacts(&ArtifactFilter::default(), &first).await?.items;
    let endpoints = shared.registry.all();
    let busy = jobs.iter().any(|job| !job.state.is_final());
    let refresh = if busy { "<meta http-equiv=\"refresh\" content=\"2\">" } else { "" };
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">{refresh}\
         <title>Octet</title><style>{STYLE}</style></head><body><h1>Octet</h1>\
         <p>Float ONNX in, INT8 out, with what was gained and what was lost. Version {}. \
         <a href=\"/openapi.yaml\">API</a> · <a href=\"/metrics\">metrics</a></p>",
        env!("CARGO_PKG_VERSION")
    );
    endpoint_table(&mut html, &endpoints);
    job_table(&mut html, &jobs);
    artifact_table(&mut html, &artifacts);
    model_table(&mut html, &models);
    html.push_str("</body></html>");
    // Nothing but the style above may come in, whatever a name holds.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
    let fields = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ];
    Ok((fields, Html(html)).into_response())
}

/// A heading and a table; a sentence where there are no rows.
fn table(html: &mut String, title: &str, heads: &[&str], rows: &[Vec<String>], none: &str) {
    let _ = write!(html, "<h2>{title}</h2>");
    if rows.is_empty() {
        let _ = write!(html, "<p>{none}</p>");
        return;
    }
    html.push_str("<div class=\"wide\"><table><tr>");
    for head in heads {
        let _ = write!(html, "<th>{head}</th>");
    }
    html.push_str("</tr>");
    for row in rows {
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<td>{cell}</td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div>");
}

fn endpoint_table(html: &mut String, endpoints: &[std::sync::Arc<Entry>]) {
    let mut rows = Vec::new();
    for entry in endpoints {
        for (version, state) in &entry.versions {
            let class = match state {
                Loaded::Ready(_) => "good",
                Loaded::Loading => "busy",
                Loaded::Failed(_) | Loaded::Unloaded | Loaded::Evicted => "bad",
            };
            let default = if entry.endpoint.default_version.0 == *version { " (default)" } else { "" };
            let source = entry.endpoint.versions.iter().find(|v| v.version.0 == *version);
            let (precision, memory, answered, mean) = match state {
                Loaded::Ready(served) => {
                    let figures = served.stats.figures();
                    let mean_ms = figures.success.ns as f64 / figures.success.count.max(1) as f64 / 1e6;
                    let precision = served.source.precision().as_str();
                    (precision, bytes(served.weight_bytes), figures.success.count, format!("{mean_ms:.2} ms"))
                }
                Loaded::Loading | Loaded::Failed(_) | Loaded::Unloaded | Loaded::Evicted => {
                    ("", String::new(), 0, String::new())
                }
            };
            rows.push(vec![
                format!("<code>{}</code>", escape(entry.endpoint.name.as_str())),
                format!("{version}{default}"),
                source.map_or_else(String::new, |s| escape(&s.model.to_string())),
                precision.to_owned(),
                format!("<span class=\"{class}\">{}</span> {}", state.name(), escape(&state.reason())),
                memory,
                answered.to_string(),
                mean,
            ]);
        }
    }
    let heads = ["endpoint", "version", "model", "precision", "state", "weights", "answered", "mean time"];
    table(html, "Endpoints", &heads, &rows, "None. A job with <code>endpoint</code> makes one.");
}

fn job_table(html: &mut String, jobs: &[Job]) {
    let row = |job: &Job| {
        let class = match job.state {
            JobState::Succeeded => "good",
            JobState::Queued | JobState::Running => "busy",
            JobState::GateFailed | JobState::Failed | JobState::Cancelled => "bad",
        };
        let progress = match &job.progress {
            Some(p) if !job.state.is_final() => {
                let bar = format!("<progress max=\"{}\" value=\"{}\"></progress>", p.total.max(1), p.done);
                format!("{} {bar}", escape(&p.phase))
            }
            _ => String::new(),
        };
        let error = job.error.as_ref().map_or_else(String::new, |e| escape(&e.message));
        vec![
            format!("<a href=\"/v1/jobs/{0}\"><code>{0}</code></a>", job.id),
            escape(&job.model.to_string()),
            escape(&job.calibration.to_string()),
            format!("<span class=\"{class}\">{}</span> {progress}{error}", job.state),
            job.created_at.to_string(),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    let none = "None. <code>POST /v1/jobs</code> with a model and calibration data makes one.";
    table(html, "Jobs", &["job", "model", "calibration", "state", "asked for"], &rows, none);
}

fn artifact_table(html: &mut String, artifacts: &[Artifact]) {
    let row = |artifact: &Artifact| {
        let (id, accuracy, latency) = (artifact.id, &artifact.accuracy, &artifact.latency);
        vec![
            format!("<a href=\"/v1/artifacts/{id}/report.html\">report</a>"),
            format!("<a href=\"/v1/artifacts/{id}/download\">{}</a>", bytes(artifact.bytes)),
            escape(&artifact.model.to_string()),
            format!("{:.1} %", artifact.size_ratio * 100.0),
            format!(
                "{} {:.4} → {:.4} ({:+.4})",
                escape(&accuracy.metric),
                accuracy.float,
                accuracy.int8,
                accuracy.delta
            ),
            format!("{:.3} → {:.3} ms", latency.float_ms, latency.int8_ms),
            match &artifact.gate_failure {
                None => "<span class=\"good\">kept</span>".to_owned(),
                Some(reason) => format!("<span class=\"bad\">not kept</span> {}", escape(reason)),
            },
        ]
    };
    let rows: Vec<_> = artifacts.iter().map(row).collect();
    let heads = ["report", "download", "model", "size", "accuracy, float → INT8", "time", "gate"];
    table(html, "Artifacts", &heads, &rows, "None yet.");
}

fn model_table(html: &mut String, models: &[Model]) {
    let row = |model: &Model| {
        vec![
            format!("<a href=\"/v1/models/{0}\">{0}</a>", escape(&model.pinned().to_string())),
            bytes(model.bytes),
            format!("<code>{}</code>", &model.sha256.to_string()[..12]),
            model.created_at.to_string(),
        ]
    };
    let rows: Vec<_> = models.iter().map(row).collect();
    let none = "None. <code>curl -T model.onnx HOST/v1/models/NAME</code> makes one.";
    table(html, "Models", &["model", "size", "SHA-256", "uploaded"], &rows, none);
}

fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

/// Text that a browser shows as it is.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_stranger_wrote_becomes_markup() {
        assert_eq!(escape("<script>\"'&"), "&lt;script&gt;&quot;&#39;&amp;");
    }
}
