//! Endpoints: the list, and the page of one: what it serves, live charts, a box to try it, and changes.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::json;

use crate::api::error::Problem;
use crate::api::http::Shared;
use crate::api::http::ui::frame::{self, Act};
use crate::api::http::ui::{ago, bytes, escape, metric_name, put, rollout};
use crate::api::wire::datatype_name;
use crate::service::infer::Port;
use crate::service::infer::registry::{Entry, State as Loaded};
use crate::service::infer::served::Served;
use crate::service::store::{Artifact, ArtifactFilter, EndpointVersion, Name, Page};

/// Whether the default version answers.
pub(crate) fn answers(entry: &Entry) -> bool {
    matches!(entry.versions.get(&entry.endpoint.default_version.0), Some(Loaded::Ready(_)))
}

/// The list.
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Response, Problem> {
    let mut html = String::new();
    let says = "What is served under which name, over the Open Inference Protocol (KServe v2).";
    frame::head(&mut html, "Endpoints", says, "");
    table(&mut html, &shared.registry.all());
    Ok(frame::page("/endpoints", "Endpoints", &html))
}

/// A table of endpoints, by their default versions.
pub(crate) fn table(html: &mut String, endpoints: &[Arc<Entry>]) {
    if endpoints.is_empty() {
        let text = "No endpoints yet. A <a href=\"/jobs/new\">job</a> with an endpoint makes one, or, for a float model:";
        let command = "curl -X PUT $OCTET/v1/endpoints/NAME -d '{\"model\": \"MODEL\"}'";
        return frame::empty(html, text, command);
    }
    let row = |entry: &Arc<Entry>| {
        let endpoint = &entry.endpoint;
        let default = endpoint.default_version;
        let source = endpoint.versions.iter().find(|v| v.version == default);
        let state = entry.versions.get(&default.0);
        let (weights, answered, mean) = match state {
            Some(Loaded::Ready(served)) => {
                let figures = served.stats.figures();
                let mean_ms = figures.success.ns as f64 / figures.success.count.max(1) as f64 / 1e6;
                let mean = if figures.success.count > 0 { super::millis(mean_ms) } else { "–".to_owned() };
                (bytes(served.weight_bytes), figures.success.count.to_string(), mean)
            }
            _ => ("–".to_owned(), "–".to_owned(), "–".to_owned()),
        };
        vec![
            format!("<a class=\"name\" href=\"/endpoints/{0}\">{0}</a>", escape(endpoint.name.as_str())),
            state.map_or_else(|| frame::chip("busy", "loading"), frame::state_chip),
            format!("{default}"),
            source.map_or_else(String::new, |s| frame::precision(s.precision()).to_owned()),
            source.map_or_else(String::new, |s| {
                format!("<span class=\"long\">{}</span>", escape(&s.model.to_string()))
            }),
            weights,
            answered,
            mean,
        ]
    };
    let rows: Vec<_> = endpoints.iter().map(row).collect();
    let columns = [
        ("Endpoint", false),
        ("State", false),
        ("Version", true),
        ("Precision", false),
        ("Model", false),
        ("Weights", true),
        ("Answered", true),
        ("Mean time", true),
    ];
    frame::table(html, "Endpoints", &columns, &rows);
}

/// The page of an endpoint.
pub(crate) async fn one(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    frame::shown("/endpoints", endpoint_page(&shared, &name).await)
}

async fn endpoint_page(shared: &Shared, name: &str) -> Result<Response, Problem> {
    let name: Name = name.parse()?;
    let kept = shared.catalog.endpoint(&name).await?;
    let entry = shared.registry.entry(name.as_str(), None).ok().map(|(entry, _)| entry);
    let default = kept.default_version;
    let state = entry.as_ref().and_then(|entry| entry.versions.get(&default.0));
    let now = (shared.clock)();
    let mut html = String::new();
    let path = format!("/v1/endpoints/{name}");
    let tag = format!("\"{}\"", kept.revision);
    let delete = Act {
        label: "Delete",
        question: &format!(
            "Take the endpoint {name} out of service? Requests to it are refused from then on."
        ),
        method: "DELETE",
        path: &path,
        body: "",
        if_match: &tag,
        then: "/endpoints",
        danger: true,
    };
    let before = kept.versions.iter().rev().find(|v| v.version != default);
    let back = before.map_or_else(String::new, |version| roll_back(&name, &path, &tag, version));
    let chip = state.map_or_else(|| frame::chip("busy", "loading"), frame::state_chip);
    let sub = format!(
        "{chip} <code>/v2/models/{name}/infer</code> <span>changed {}</span>",
        ago(kept.updated_at, now)
    );
    frame::head(&mut html, name.as_str(), &sub, &(back + &delete.button()));
    if let Some(reason) = state.map(Loaded::reason).filter(|reason| !reason.is_empty()) {
        put(
            &mut html,
            format_args!("<div class=\"fail\"><b>It does not answer.</b> {}</div>", escape(&reason)),
        );
    }
    let mut artifacts = Vec::new();
    for version in &kept.versions {
        if let Some(id) = version.artifact {
            artifacts.extend(shared.catalog.artifact(id).await.ok());
        }
    }
    html.push_str("<section aria-labelledby=\"live\"><div class=\"row between\"><h2 id=\"live\">Live</h2><span class=\"dim\" data-pulse></span></div>");
    let of_default = kept.versions.iter().find(|v| v.version == default).and_then(|v| v.artifact);
    charts(&mut html, &name, artifacts.iter().find(|a| Some(a.id) == of_default));
    html.push_str("</section>");
    if let Some(Loaded::Ready(served)) = state {
        try_it(&mut html, &name, served);
    }
    html.push_str("<section aria-labelledby=\"versions\"><h2 id=\"versions\">Versions</h2>");
    rollout::versions(&mut html, &kept, entry.as_deref(), &artifacts, &tag);
    html.push_str("</section>");
    change(&mut html, shared, &name, &tag).await?;
    let served = match state {
        Some(Loaded::Ready(served)) => Some(&**served),
        _ => None,
    };
    rollout::settings(&mut html, &kept, served, &tag);
    rollout::changes(&mut html, &kept, &shared.catalog.endpoint_records(&name).await?, now);
    Ok(frame::page("/endpoints", &format!("Endpoint {name}"), &html))
}

/// Serves what the version before served, as a new version.
fn roll_back(name: &Name, path: &str, tag: &str, version: &EndpointVersion) -> String {
    let body = match version.artifact {
        Some(id) => json!({ "artifact": id.to_string() }),
        None => json!({ "model": version.model.to_string() }),
    };
    Act {
        label: "Roll back",
        question: &format!(
            "Serve again what version {} of {name} served ({}, {})? It becomes a new version; the present one answers until it is loaded.",
            version.version,
            version.model,
            frame::precision(version.precision())
        ),
        method: "PUT",
        path,
        body: &body.to_string(),
        if_match: tag,
        then: &format!("/endpoints/{name}"),
        danger: false,
    }
    .button()
}

/// Frames that the script draws into. Without it, the sentence in them says where the figures are.
fn charts(html: &mut String, name: &Name, artifact: Option<&Artifact>) {
    put(html, format_args!("<div class=\"charts\" data-figures=\"/v1/endpoints/{name}/figures\">"));
    let frames = [
        ("latency", "Latency", "p50 and p99 of the last 10 s"),
        ("throughput", "Throughput", "requests a second, by outcome"),
        ("batch", "Batch size", "samples in each run, since it was loaded"),
    ];
    for (key, title, note) in frames {
        put(
            html,
            format_args!(
                "<figure class=\"chart\" data-chart=\"{key}\"><figcaption><b>{title}</b><span class=\"n\">{note}</span></figcaption>\
                 <div class=\"now\" data-now>–</div><div class=\"plot\" data-plot></div><div class=\"key\" data-key></div></figure>"
            ),
        );
    }
    html.push_str("<figure class=\"chart\" data-chart=\"accuracy\"><figcaption><b>Accuracy</b>");
    match artifact {
        Some(artifact) => {
            let accuracy = &artifact.accuracy;
            put(
                html,
                format_args!(
                    "<span class=\"n\">{}, on {} of the job</span></figcaption><div class=\"now\" data-now>{}</div>",
                    escape(metric_name(accuracy)),
                    super::counted(accuracy.samples, "sample"),
                    super::percent(accuracy.int8)
                ),
            );
            for (label, class, value) in [
                ("Float", "one", accuracy.float),
                (frame::precision(artifact.precision()), "", accuracy.int8),
                ("Same decision", "", accuracy.agreement),
            ] {
                put(
                    html,
                    format_args!(
                        "<div class=\"meter\"><span>{label}</span><progress class=\"{class}\" max=\"1\" value=\"{value}\" aria-label=\"{label}\"></progress><span class=\"num\">{}</span></div>",
                        super::percent(value)
                    ),
                );
            }
        }
        None => html.push_str(
            "<span class=\"n\">float against INT8</span></figcaption><div class=\"now\" data-now>–</div>\
             <p class=\"dim\">This is the float model itself.</p>",
        ),
    }
    html.push_str(
        "<div class=\"shadow\" data-shadow hidden><b>Live agreement with float</b> <span class=\"n\" data-now></span><div class=\"plot\" data-plot></div></div></figure></div>",
    );
    put(
        html,
        format_args!(
            "<noscript><p class=\"hint\">The charts need scripts. The figures are in <a href=\"/v1/endpoints/{name}/figures\">figures</a> and <a href=\"/metrics\">metrics</a>.</p></noscript>"
        ),
    );
}

/// The box that sends a request.
fn try_it(html: &mut String, name: &Name, served: &Arc<Served>) {
    put(
        html,
        format_args!(
            "<section aria-labelledby=\"try\"><h2 id=\"try\">Try it</h2><form class=\"panel\" data-try=\"/v2/models/{name}/infer\" aria-labelledby=\"try\" novalidate>"
        ),
    );
    for (i, port) in served.inputs.iter().enumerate() {
        input(html, i, port);
    }
    html.push_str("<div class=\"row\"><button class=\"button primary\" type=\"submit\">Send</button>");
    let precisions: Vec<(String, String)> =
        served.precisions().map(|p| (p.as_str().to_owned(), frame::precision(p).to_owned())).collect();
    if precisions.len() > 1 {
        html.push_str("<label class=\"inline\" for=\"try-precision\">in</label><select id=\"try-precision\" name=\"precision\">");
        frame::options(html, &precisions, None);
        html.push_str("</select>");
    }
    html.push_str(
        "<span class=\"dim\" data-said role=\"status\"></span></div><p class=\"problem\" role=\"alert\" hidden></p>\
         <div data-answer hidden aria-label=\"Answer\" role=\"region\"></div>\
         <details data-curl-box><summary>The same with curl</summary><div class=\"code\"><pre tabindex=\"0\"><code data-command></code></pre></div></details>\
         <noscript><p class=\"hint\">The box needs scripts; curl does not.</p></noscript></form></section>",
    );
}

/// What one input is filled with.
fn input(html: &mut String, i: usize, port: &Port) {
    let dtype = datatype_name(port.dtype);
    let dims: Vec<i64> =
        port.shape.iter().map(|d| d.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX))).collect();
    let rank = dims.len();
    let picture = rank == 4 && dtype == "FP32" && (matches!(dims[1], 1 | 3) || matches!(dims[3], 1 | 3));
    put(
        html,
        format_args!(
            "<fieldset data-input=\"{}\" data-dtype=\"{dtype}\" data-shape=\"{}\"><legend><code>{}</code> <span class=\"dim\">{dtype}</span></legend><div class=\"fields\">",
            escape(&port.name),
            dims.iter().map(i64::to_string).collect::<Vec<_>>().join(","),
            escape(&port.name)
        ),
    );
    html.push_str(
        "<div class=\"field\"><span class=\"label\" aria-hidden=\"true\">Shape</span><span class=\"dims\">",
    );
    for (at, dim) in dims.iter().enumerate() {
        if at > 0 {
            html.push_str("<span class=\"dim\">×</span>");
        }
        match dim {
            -1 => put(
                html,
                format_args!(
                    "<input type=\"number\" min=\"1\" max=\"100000\" value=\"1\" data-dim=\"{at}\" aria-label=\"Dimension {} of {}{}\">",
                    at + 1,
                    escape(&port.name),
                    match port.dims.get(at).filter(|d| *d != "?") {
                        Some(symbol) => format!(", {}", escape(symbol)),
                        None => String::new(),
                    }
                ),
            ),
            n => put(html, format_args!("<b>{n}</b>")),
        }
    }
    let mut fills = vec![
        ("random".to_owned(), "random numbers".to_owned()),
        ("zeros".to_owned(), "zeros".to_owned()),
        ("json".to_owned(), "JSON…".to_owned()),
    ];
    if picture {
        fills.push(("picture".to_owned(), "a picture…".to_owned()));
    }
    put(
        html,
        format_args!(
            "</span></div><div class=\"field\"><label for=\"fill-{i}\">Filled with</label><select id=\"fill-{i}\" data-fill>"
        ),
    );
    frame::options(html, &fills, None);
    put(
        html,
        format_args!(
            "</select></div><div class=\"field wide\" data-for=\"json\" hidden><label for=\"json-{i}\">Values, flat or nested</label>\
             <textarea id=\"json-{i}\" rows=\"4\" spellcheck=\"false\" data-json placeholder=\"[0.5, 0.25, …]\"></textarea></div>"
        ),
    );
    if picture {
        put(
            html,
            format_args!(
                "<div class=\"field wide\" data-for=\"picture\" hidden><label for=\"picture-{i}\">Picture, scaled to the shape, values 0 to 1</label>\
                 <input id=\"picture-{i}\" type=\"file\" accept=\"image/*\" data-picture></div>"
            ),
        );
    }
    html.push_str("</div></fieldset>");
}

/// The form that serves something else under the name.
async fn change(html: &mut String, shared: &Shared, name: &Name, tag: &str) -> Result<(), Problem> {
    let most = Page::first(50);
    let artifacts = shared.catalog.artifacts(&ArtifactFilter::default(), &most).await?.items;
    let models = shared.catalog.models(None, &most).await?.items;
    let kept = artifacts.iter().filter(|a| a.gate_failure.is_none()).map(|a| {
        let text = format!(
            "{} in {}, {} ({})",
            a.model,
            frame::precision(a.precision()),
            super::percent(a.accuracy.int8),
            super::short(&a.id.to_string())
        );
        (json!({ "artifact": a.id.to_string() }).to_string(), text)
    });
    let float = models.iter().map(|m| {
        (json!({ "model": m.pinned().to_string() }).to_string(), format!("{} in float", m.pinned()))
    });
    let choices: Vec<_> = kept.chain(float).collect();
    if choices.is_empty() {
        return Ok(());
    }
    put(
        html,
        format_args!(
            "<form class=\"panel\" data-promote=\"/v1/endpoints/{name}\" data-match=\"{}\" aria-labelledby=\"serve-other\" novalidate>\
             <h2 id=\"serve-other\">Serve something else</h2><div class=\"fields serve\"><div class=\"field\"><label for=\"what\">Artifact or model</label>\
             <select id=\"what\" name=\"what\" aria-describedby=\"what-hint\">",
            escape(tag)
        ),
    );
    frame::options(html, &choices, None);
    html.push_str(
        "</select><span class=\"hint\" id=\"what-hint\">It becomes a new version. The present one answers until it is loaded, and stays beside it.</span></div>\
         <div class=\"field\"><label for=\"weight\">Share of the requests, %</label>\
         <input id=\"weight\" name=\"weight\" type=\"number\" min=\"0\" max=\"100\" step=\"1\" value=\"100\" required aria-describedby=\"weight-hint\">\
         <span class=\"hint\" id=\"weight-hint\">100 swaps; 5 is a canary, tried on a few requests first.</span></div></div>\
         <p class=\"problem\" role=\"alert\" hidden></p>\
         <div class=\"row\"><button class=\"button\" type=\"submit\">Serve it</button><span class=\"dim\" data-said></span></div></form>",
    );
    Ok(())
}
