//! The parts of an endpoint's page that roll out: versions and their requests, how it serves, and what was changed.

use serde_json::{Value, json};

use crate::api::http::ui::frame::{self, Act, precision};
use crate::api::http::ui::result::accuracy_line;
use crate::api::http::ui::{ago, bytes, escape, percent, put, short};
use crate::service::infer::drift::Drift;
use crate::service::infer::registry::{Entry, State as Loaded};
use crate::service::infer::served::Served;
use crate::service::store::{Artifact, Endpoint, EndpointRecord, EndpointVersion, Timestamp, Version};

/// So many changes are shown; all are in the JSON.
const CHANGES_SHOWN: usize = 10;
/// From this share of values outside of the calibrated range on, the page says that something is to be done.
const DRIFT_MUCH: f64 = 0.01;

fn ready(entry: Option<&Entry>, version: Version) -> Option<&Served> {
    match entry?.versions.get(&version.0)? {
        Loaded::Ready(served) => Some(served),
        _ => None,
    }
}

/// The table of versions, newest first, what their inputs are like, and the form of their shares.
pub(crate) fn versions(
    html: &mut String,
    endpoint: &Endpoint,
    entry: Option<&Entry>,
    artifacts: &[Artifact],
    tag: &str,
) {
    let rows: Vec<_> =
        endpoint.versions.iter().rev().map(|v| row(endpoint, v, entry, artifacts, tag)).collect();
    let columns = [
        ("Version", false),
        ("State", false),
        ("Requests", false),
        ("Serves", false),
        ("Accuracy, float → artifact", false),
        ("Agreement, live", false),
        ("Out of range", true),
        ("Weights", true),
    ];
    frame::table(html, "Versions", &columns, &rows);
    for version in endpoint.versions.iter().rev() {
        let drift = ready(entry, version.version).and_then(|served| served.drift.as_ref());
        if let Some((input, share)) = drift.and_then(most_outside) {
            put(
                html,
                format_args!("<p class=\"hint under\">{}</p>", drift_told(version.version, &input, share)),
            );
        }
    }
    if endpoint.versions.len() > 1 {
        shares(html, endpoint, tag);
    }
}

/// The input with the largest share of recent values outside of what calibration saw.
fn most_outside(drift: &Drift) -> Option<(String, f64)> {
    let known = drift.shares().filter_map(|(input, share)| Some((input.to_owned(), share?)));
    known.max_by(|a, b| a.1.total_cmp(&b.1))
}

fn drift_told(version: Version, input: &str, share: f64) -> String {
    let input = escape(input);
    if share <= 0.0 {
        return format!(
            "Version {version}: all recent values of <code>{input}</code> lie in the range that calibration saw."
        );
    }
    let advice = if share < DRIFT_MUCH {
        "That is little."
    } else {
        "Such values are cut off at the ends of the range: calibrate anew with data as it comes now."
    };
    format!(
        "Version {version}: {} of the recent values of <code>{input}</code> lie outside of the range that calibration saw. {advice}",
        percent(share)
    )
}

fn row(
    endpoint: &Endpoint,
    version: &EndpointVersion,
    entry: Option<&Entry>,
    artifacts: &[Artifact],
    tag: &str,
) -> Vec<String> {
    let number = version.version;
    let state = entry.and_then(|entry| entry.versions.get(&number.0));
    let served = ready(entry, number);
    let share = endpoint.weight(number);
    let mark = if number == endpoint.default_version { " <span class=\"tag\">default</span>" } else { "" };
    let artifact = version.artifact.map_or_else(
        || "the float model".to_owned(),
        |id| format!("<a href=\"/artifacts/{id}\">{}</a>", short(&id.to_string())),
    );
    let accuracy = artifacts.iter().find(|a| Some(a.id) == version.artifact).map(|a| &a.accuracy);
    let none = || "–".to_owned();
    let agreement = match (version.artifact, served.and_then(|s| s.comparer.as_ref())) {
        (None, _) => "<span class=\"dim\">is float</span>".to_owned(),
        (_, None) => none(),
        (_, Some(comparer)) => {
            let figures = comparer.figures();
            let (agreed, compared) = match figures.recent {
                0 => ("–".to_owned(), "none compared".to_owned()),
                _ => (percent(figures.agreement), format!("{} compared", figures.compared)),
            };
            format!(
                "<span data-agreement=\"{number}\"><b class=\"num\">{agreed}</b><span class=\"second\">{compared}</span></span>"
            )
        }
    };
    let outside =
        served.and_then(|s| s.drift.as_ref()).and_then(most_outside).map(|(_, share)| percent(share));
    let send = (share < 100).then(|| {
        Act {
            label: "Send all here",
            question: &format!(
                "Send all requests to version {number} ({}, {})? The other versions stay loaded and get none.",
                version.model,
                precision(version.precision())
            ),
            method: "PUT",
            path: &format!("/v1/endpoints/{}", endpoint.name),
            body: &json!({ "routes": [{ "version": number, "weight": 100 }] }).to_string(),
            if_match: tag,
            then: &format!("/endpoints/{}", endpoint.name),
            danger: false,
        }
        .button()
    });
    vec![
        format!("<span class=\"num\"><b>{number}</b>{mark}</span>"),
        state.map_or_else(|| frame::chip("busy", "loading"), frame::state_chip),
        format!(
            "<span class=\"share\"><span class=\"num\">{share} %</span><progress max=\"100\" value=\"{share}\" aria-label=\"Requests to version {number}\"></progress></span>{}",
            send.unwrap_or_default()
        ),
        format!(
            "<span class=\"long\">{}</span> · {}<span class=\"second\">{artifact}</span>",
            escape(&version.model.to_string()),
            precision(version.precision())
        ),
        accuracy.map_or_else(none, |a| accuracy_line(a.float, a.int8)),
        agreement,
        outside.unwrap_or_else(none),
        served.map_or_else(none, |served| bytes(served.weight_bytes)),
    ]
}

/// The form of all percentages.
fn shares(html: &mut String, endpoint: &Endpoint, tag: &str) {
    put(
        html,
        format_args!(
            "<form class=\"panel\" data-routes=\"/v1/endpoints/{}\" data-match=\"{}\" aria-labelledby=\"shares\" autocomplete=\"off\" novalidate>\
             <h2 id=\"shares\">Share of the requests</h2><div class=\"fields narrow\">",
            endpoint.name,
            escape(tag)
        ),
    );
    for version in &endpoint.versions {
        let number = version.version;
        put(
            html,
            format_args!(
                "<div class=\"field\"><label for=\"share-{number}\">Version {number}, %</label>\
                 <input id=\"share-{number}\" type=\"number\" min=\"0\" max=\"100\" step=\"1\" required data-version=\"{number}\" value=\"{}\" aria-describedby=\"shares-sum\"></div>",
                endpoint.weight(number)
            ),
        );
    }
    html.push_str(
        "</div><p class=\"hint\" id=\"shares-sum\" data-sum>They must add up to 100.</p>\
         <p class=\"hint\">Of the requests that name no version; those that name one are not routed.</p>\
         <p class=\"problem\" role=\"alert\" hidden></p>\
         <div class=\"row\"><button class=\"button\" type=\"submit\">Set shares</button><span class=\"dim\" data-said></span></div></form>",
    );
}

/// A field of the settings: id, label, least, most and step, and what it is now; empty where the server decides.
struct Number<'a> {
    id: &'a str,
    label: &'a str,
    range: (u32, u32),
    step: &'a str,
    now: Option<f64>,
}

impl Number<'_> {
    fn put(&self, html: &mut String) {
        let Number { id, label, range: (least, most), step, now } = self;
        // A share such as 0.07 times 100 is a little off: four digits are enough.
        let now = now.map_or_else(String::new, |x| format!("{}", (x * 1e4).round() / 1e4));
        put(
            html,
            format_args!(
                "<div class=\"field\"><label for=\"{id}\">{label}</label>\
                 <input id=\"{id}\" name=\"{id}\" type=\"number\" min=\"{least}\" max=\"{most}\" step=\"{step}\" value=\"{now}\"></div>"
            ),
        );
    }
}

/// The form of how it serves.
pub(crate) fn settings(html: &mut String, endpoint: &Endpoint, served: Option<&Served>, tag: &str) {
    let now = &endpoint.settings;
    let check = |id: &str, label: &str, on: bool| {
        let on = if on { " checked" } else { "" };
        format!(
            "<label class=\"check\" for=\"{id}\"><input id=\"{id}\" name=\"{id}\" type=\"checkbox\"{on}>{label}</label>"
        )
    };
    let fields = |html: &mut String, numbers: &[Number<'_>]| {
        html.push_str("<div class=\"fields\">");
        numbers.iter().for_each(|number| number.put(html));
        html.push_str("</div>");
    };
    let share = |x: f64| x * 100.0;
    let number = |id, label, range, step, now| Number { id, label, range, step, now };
    put(
        html,
        format_args!(
            "<form class=\"panel\" data-settings=\"/v1/endpoints/{}\" data-match=\"{}\" aria-labelledby=\"settings\" autocomplete=\"off\" novalidate>\
             <h2 id=\"settings\">How it serves</h2><p class=\"hint gap\">An empty field leaves it to the settings of the server.</p>\
             <fieldset><legend>Compare with float</legend>",
            endpoint.name,
            escape(tag)
        ),
    );
    let fraction = now.shadow.map(|s| share(s.fraction));
    fields(html, &[number("fraction", "Share of the requests to compare, %", (0, 100), "any", fraction)]);
    html.push_str(&check(
        "statistics",
        "Collect statistics for calibration: histograms, no samples",
        now.shadow.is_some_and(|s| s.statistics),
    ));
    let collected = |served: &Served| {
        let live = served.live.as_ref()?;
        // While a comparison runs there are samples, or are soon.
        Some(live.try_lock().map_or(true, |live| live.samples() > 0))
    };
    if served.and_then(collected) == Some(true) {
        put(
            html,
            format_args!(
                "<p class=\"gap\"><a href=\"/v1/endpoints/{}/statistics\" download>Statistics of live traffic</a> <span class=\"hint\">are calibration data for a job of the same model</span></p>",
                endpoint.name
            ),
        );
    }
    html.push_str("</fieldset><fieldset><legend>Take requests from a version that fails</legend>");
    let rule = now.rollback;
    fields(
        html,
        &[
            number(
                "min_agreement",
                "Least agreement with float, %",
                (0, 100),
                "any",
                rule.and_then(|r| r.min_agreement).map(share),
            ),
            number(
                "max_error_ratio",
                "Largest share of errors, %",
                (0, 100),
                "any",
                rule.and_then(|r| r.max_error_ratio).map(share),
            ),
            number(
                "min_requests",
                "Judged after so many requests",
                (1, 1_000_000),
                "1",
                rule.map(|r| f64::from(r.min_requests)),
            ),
        ],
    );
    html.push_str("</fieldset><fieldset><legend>Queue and batches</legend>");
    let batching = now.batching;
    fields(
        html,
        &[
            number(
                "queue_limit",
                "Requests that may wait",
                (1, 100_000),
                "1",
                now.queue_limit.map(f64::from),
            ),
            number("concurrency", "Runs at the same time", (1, 1024), "1", now.concurrency.map(f64::from)),
            number(
                "batch_max",
                "Samples in a batch at most",
                (1, 1024),
                "1",
                batching.and_then(|b| b.max).map(f64::from),
            ),
            number(
                "batch_delay",
                "Wait for a batch, µs",
                (0, 1_000_000),
                "1",
                batching.and_then(|b| b.delay_us).map(f64::from),
            ),
        ],
    );
    html.push_str(&check(
        "required",
        "The server is ready only when this endpoint answers",
        now.required == Some(true),
    ));
    html.push_str(
        "</fieldset><p class=\"problem\" role=\"alert\" hidden></p>\
         <div class=\"row\"><button class=\"button\" type=\"submit\">Save</button><span class=\"dim\" data-said></span></div></form>",
    );
}

/// What was changed, newest first.
pub(crate) fn changes(html: &mut String, endpoint: &Endpoint, records: &[EndpointRecord], now: Timestamp) {
    html.push_str("<section aria-labelledby=\"changes\"><h2 id=\"changes\">Changes</h2>");
    let rows: Vec<_> = records
        .iter()
        .take(CHANGES_SHOWN)
        .map(|record| {
            let by = match record.by.as_str() {
                "rollback" => "its rollback rule",
                "job" => "a job",
                "api" => "the API",
                key => key,
            };
            let reason = record.reason.as_deref().unwrap_or("–");
            vec![
                ago(record.at, now),
                escape(by),
                format!("<span class=\"long\">{}</span>", escape(&told(&record.change))),
                format!("<span class=\"long\">{}</span>", escape(reason)),
            ]
        })
        .collect();
    frame::table(
        html,
        "Changes",
        &[("When", false), ("By", false), ("What", false), ("Reason", false)],
        &rows,
    );
    put(
        html,
        format_args!(
            "<p class=\"hint under\"><a href=\"/v1/endpoints/{}/changes\">All changes</a> as JSON, at most the last 200.</p></section>",
            endpoint.name
        ),
    );
}

/// A change in words; plain text.
fn told(change: &Value) -> String {
    if change["deleted"] == true {
        return "The endpoint was deleted.".to_owned();
    }
    let mut said = Vec::new();
    let added = &change["added"];
    if added.is_object() {
        let model = match &added["model"] {
            Value::String(text) => text.clone(),
            of => format!("{}@{}", of["name"].as_str().unwrap_or_default(), of["version"]),
        };
        let numbers = if added["artifact"].is_null() { "float" } else { "INT8" };
        said.push(format!("Version {} came: {model} in {numbers}.", added["version"]));
    }
    let settings = change["settings"].as_object();
    for (name, value) in settings.into_iter().flatten() {
        said.push(setting_told(name, value));
    }
    if settings.is_none() || added.is_object() {
        let routes = change["routes"].as_array().into_iter().flatten();
        let shares: Vec<_> =
            routes.map(|r| format!("{} % to version {}", r["weight"], r["version"])).collect();
        if !shares.is_empty() {
            said.push(format!("Requests: {}.", shares.join(", ")));
        }
    }
    said.join(" ")
}

fn setting_told(name: &str, value: &Value) -> String {
    let share = |x: &Value| format!("{} %", (x.as_f64().unwrap_or_default() * 1e4).round() / 1e2);
    let known = [
        ("shadow", "Comparison with float"),
        ("rollback", "Rollback rule"),
        ("batching", "Batches"),
        ("queue_limit", "Requests that may wait"),
        ("concurrency", "Runs at the same time"),
        ("required", "Needed for readiness"),
        ("warm_up", "Runs before it is ready"),
    ];
    let label = known.iter().find(|(key, _)| *key == name).map_or(name, |(_, label)| label);
    let text = match (name, value) {
        (_, Value::Null) => "as the server".to_owned(),
        ("shadow", value) => {
            let kept = if value["statistics"] == true { ", with statistics" } else { "" };
            format!("{} of the requests{kept}", share(&value["fraction"]))
        }
        ("rollback", value) => {
            let mut parts = Vec::new();
            if !value["min_agreement"].is_null() {
                parts.push(format!("agreement below {}", share(&value["min_agreement"])));
            }
            if !value["max_error_ratio"].is_null() {
                parts.push(format!("errors above {}", share(&value["max_error_ratio"])));
            }
            format!("{}, after {}", parts.join(" or "), value["min_requests"])
        }
        ("batching", value) => {
            let most = value["max"].as_u64().map(|n| format!("at most {n} samples"));
            let wait = value["delay_us"].as_u64().map(|n| format!("wait {n} µs"));
            most.into_iter().chain(wait).collect::<Vec<_>>().join(", ")
        }
        (_, Value::Bool(on)) => if *on { "yes" } else { "no" }.to_owned(),
        (_, value) => value.to_string(),
    };
    format!("{label}: {text}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_as_sentences() {
        for (change, want) in [
            (json!({ "deleted": true }), "The endpoint was deleted."),
            (
                json!({ "added": { "version": 2, "artifact": "art_1", "model": "m@1" },
                    "routes": [{ "version": 1, "weight": 80 }, { "version": 2, "weight": 20 }] }),
                "Version 2 came: m@1 in INT8. Requests: 80 % to version 1, 20 % to version 2.",
            ),
            (
                json!({ "routes": [{ "version": 1, "weight": 100 }], "settings": { "queue_limit": null } }),
                "Requests that may wait: as the server.",
            ),
            (
                json!({ "settings": { "rollback": { "min_agreement": 0.98, "min_requests": 50 } } }),
                "Rollback rule: agreement below 98 %, after 50.",
            ),
        ] {
            assert_eq!(told(&change), want);
        }
    }

    #[test]
    fn drift_is_told_plainly_and_escaped() {
        let told = drift_told(Version(2), "<x>", 0.05);
        assert!(told.contains("5.00 % of the recent values of <code>&lt;x&gt;</code>"), "{told}");
        assert!(told.contains("calibrate anew"), "{told}");
    }
}
