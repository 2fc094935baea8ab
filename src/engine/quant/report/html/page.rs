//! The page of a report: its head, its figures, and the order of its sections.

use super::style::STYLE;
use super::{
    accuracy, activations, bytes, counted, data, escape, finished, folded, grouped, layers, millis, percent,
    put, search, sentence,
};
use crate::engine::quant::Gate;
use crate::engine::quant::report::Findings;

/// Letters of notes that are shown from the start.
const NOTES_SHOWN: usize = 800;

/// The page.
pub fn page(f: &Findings) -> String {
    let title = if f.model.name.is_empty() { "model" } else { &f.model.name };
    let numbers = f.recipe.scheme.numbers();
    let mut page = start(&format!("{title} in {numbers}"));
    let asked = f.recipe.gate != Gate::default();
    let (badge, text) = match f.gate_failure {
        None if asked => ("badge", "gate kept"),
        None => ("badge none", "no gate set"),
        Some(_) => ("badge bad", "gate failed"),
    };
    put(
        &mut page,
        format_args!(
            "<div class=\"head\"><div><h1>{} in {numbers}</h1><p class=\"sub\">{} of {} data · {} · {}{}</p></div>\
             <span class=\"{badge}\">{text}</span></div>",
            escape(title),
            counted(f.evaluation.samples, "sample"),
            f.evaluated_on,
            counted(f.model.parameters, "weight"),
            f.engine,
            named(f)
        ),
    );
    if let Some(reason) = &f.gate_failure {
        let what = format!("<b class=\"poor\">The gate is not kept.</b> {}", sentence(reason));
        put(&mut page, format_args!("<div class=\"fail\">{what}</div>"));
    }
    cards(&mut page, f);
    notes(&mut page, &f.notes);
    data::section(&mut page, f);
    layers::advice(&mut page, f);
    layers::section(&mut page, f);
    search::sensitivity(&mut page, &f.sensitivity);
    search::trials(&mut page, f);
    accuracy::groups(&mut page, f, "Slices", &f.evaluation.slices);
    accuracy::groups(&mut page, f, "Classes", &f.evaluation.classes);
    accuracy::confusion(&mut page, f);
    accuracy::worst(&mut page, f);
    activations::section(&mut page, &f.activations);
    layers::float_nodes(&mut page, f);
    put(
        &mut page,
        format_args!(
            "<footer>{} · numeric contract {} · model sha256 {} · recipe <code>{}</code></footer></main></html>",
            f.engine,
            f.contract,
            f.model.sha256,
            escape(&serde_json::to_string(&f.recipe).unwrap_or_default())
        ),
    );
    finished(&page)
}

/// What was done on the way. Notes that name every layer of a deep model open at a click.
fn notes(page: &mut String, notes: &[String]) {
    let body: String = notes.iter().map(|note| format!("<p class=\"sub\">{}</p>", sentence(note))).collect();
    if body.len() > NOTES_SHOWN {
        let summary = format!("{} on how it was made", counted(notes.len() as u64, "note"));
        folded(page, false, &summary, &body);
    } else if !body.is_empty() {
        put(page, format_args!("<div class=\"notes\">{body}</div>"));
    }
}

/// What the data are called and when the job was begun, where that is known.
fn named(f: &Findings) -> String {
    let mut text = String::new();
    // The JSON has milliseconds.
    let begun = f.begun_at.as_ref().map(|at| at.get(..16).unwrap_or(at).replace('T', " ") + " UTC");
    for (what, name) in
        [("calibrated on", &f.calibration), ("evaluated on", &f.evaluated), ("begun at", &begun)]
    {
        if let Some(name) = name {
            put(&mut text, format_args!(" · {what} {}", escape(name)));
        }
    }
    text
}

/// The beginning of a page, up to its first line.
pub fn start(title: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style><main>",
        escape(title)
    )
}

fn cards(page: &mut String, f: &Findings) {
    let e = &f.evaluation;
    let delta = 100.0 * (e.int8.value - e.float.value);
    let name = match e.metric {
        "top1" => "Top-1 accuracy",
        "top5" => "Top-5 accuracy",
        _ => "Agreement with float",
    };
    let labelled = e.metric != "agreement";
    let interval = format!("95 % interval {}–{}", short_percent(e.int8.low), percent(e.int8.high));
    let against = match labelled {
        true => format!("float {}, {delta:+.2} points; {interval}", percent(e.float.value)),
        false => interval,
    };
    put(page, format_args!("<div class=\"cards\">"));
    let mut card = |key: &str, value: String, note: String| {
        put(
            page,
            format_args!(
                "<div class=\"card\"><div class=\"k\">{key}</div><div class=\"v\">{value}</div><div class=\"n\">{note}</div></div>"
            ),
        );
    };
    card(name, percent(e.int8.value), against);
    if labelled {
        let note = format!("{} decisions broken, {} mended", grouped(e.broken), grouped(e.mended));
        card("Same decision as float", percent(e.agreement.value), note);
    }
    let size = format!("{} → {}", bytes(f.size.float_bytes), bytes(f.size.int8_bytes));
    card("Size", format!("{:.0} %", 100.0 * f.size.ratio), size);
    let time = format!("{} → {} at batch 1", millis(f.latency.float_ms), millis(f.latency.int8_ms));
    card("Speed", format!("{:.2}×", f.latency.speedup), time);
    card("Output signal to noise", super::decibels(e.sqnr_db), format!("cosine {:.5}", e.cosine));
    let c = f.coverage;
    let share = 100.0 * c.integer as f64 / (c.integer + c.float).max(1) as f64;
    card("Nodes on integers", format!("{share:.0} %"), format!("{} integer, {} float", c.integer, c.float));
    put(page, format_args!("</div>"));
}

/// A share in per cent, without its sign.
fn short_percent(share: f64) -> String {
    percent(share).trim_end_matches(" %").to_owned()
}
