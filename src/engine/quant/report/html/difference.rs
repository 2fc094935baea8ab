//! The page that compares two reports.

use super::page::start;
use super::{escape, finished, folded, heading, name, put, short};
use crate::engine::quant::report::diff::{Difference, LayerChange, State};

/// Rows of layers that are shown from the start.
const SHOWN: usize = 24;

/// The page of a comparison. `a` and `b` are what the two are called.
pub fn page(d: &Difference, a: &str, b: &str) -> String {
    let model = d.b.model.as_deref().or(d.a.model.as_deref()).unwrap_or("model");
    let mut page = start(&format!("{model}: {a} and {b}"));
    let (badge, same) =
        if d.same_model { ("badge", "same float model") } else { ("badge bad", "not the same float model") };
    put(
        &mut page,
        format_args!(
            "<div class=\"head\"><div><h1>{}: what is different</h1><p class=\"sub\">from {} to {}</p></div><span class=\"{badge}\">{same}</span></div>",
            escape(model),
            escape(a),
            escape(b)
        ),
    );
    figures(&mut page, d);
    recipe(&mut page, d);
    layers(&mut page, d);
    groups(&mut page, d);
    page.push_str("</main></html>");
    finished(&page)
}

fn figures(page: &mut String, d: &Difference) {
    if d.figures.is_empty() {
        return;
    }
    heading(page, "Figures", "");
    put(
        page,
        format_args!(
            "<div class=\"wrap\"><table><tr><th>Figure<th class=\"r\">Before<th class=\"r\">After<th class=\"r\">Change"
        ),
    );
    for f in &d.figures {
        let class = match f.better {
            Some(true) => "good",
            Some(false) => "poor",
            None => "dim",
        };
        let (a, b) = (figure(f.a), figure(f.b));
        let delta = if f.delta == 0.0 {
            "–".to_owned()
        } else {
            format!("{}{}", if f.delta > 0.0 { "+" } else { "" }, figure(f.delta))
        };
        put(
            page,
            format_args!(
                "<tr><td>{}<td class=\"r\">{a}<td class=\"r\">{b}<td class=\"r\"><span class=\"{class}\">{delta}</span>",
                f.name
            ),
        );
    }
    put(page, format_args!("</table></div>"));
}

/// A figure with the digits that matter.
fn figure(x: f64) -> String {
    if x.fract() == 0.0 && x.abs() < 1e15 { format!("{x:.0}") } else { format!("{x:.4}") }
}

fn recipe(page: &mut String, d: &Difference) {
    heading(page, "Recipe", if d.recipe.is_empty() { "Both were asked the same." } else { "" });
    if d.recipe.is_empty() {
        return;
    }
    put(page, format_args!("<div class=\"wrap\"><table><tr><th>Field<th>Before<th>After"));
    for f in &d.recipe {
        put(
            page,
            format_args!(
                "<tr><td class=\"name\">{}<td><code>{}</code><td><code>{}</code>",
                escape(&f.field),
                escape(&f.a.to_string()),
                escape(&f.b.to_string())
            ),
        );
    }
    put(page, format_args!("</table></div>"));
}

fn layers(page: &mut String, d: &Difference) {
    let what = format!("{} changed, the most changed first; {} are the same.", d.layers.len(), d.layers_same);
    heading(page, "Layers", &what);
    let (first, rest) = d.layers.split_at(d.layers.len().min(SHOWN));
    if !first.is_empty() {
        table(page, first);
    }
    if !rest.is_empty() {
        let mut body = String::new();
        table(&mut body, rest);
        folded(page, false, &format!("{} more", rest.len()), &body);
    }
}

fn table(page: &mut String, rows: &[LayerChange]) {
    put(
        page,
        format_args!(
            "<div class=\"wrap\"><table><tr><th>Node or value<th>Computes on<th class=\"r\">Result, dB<th class=\"r\">Weights, dB<th class=\"r\">Largest code<th class=\"r\">Range"
        ),
    );
    for row in rows {
        let both = |of: &dyn Fn(&State) -> Option<String>| {
            let (a, b) = (row.a.as_ref().and_then(of), row.b.as_ref().and_then(of));
            match (a, b) {
                (a, b) if a == b => a.unwrap_or_default(),
                (a, b) => format!("{} → <b>{}</b>", a.unwrap_or("–".to_owned()), b.unwrap_or("–".to_owned())),
            }
        };
        let db = |x: f64| format!("{x:.1}");
        put(
            page,
            format_args!(
                "<tr><td class=\"name\">{}<td>{}<td class=\"r\">{}<td class=\"r\">{}<td class=\"r\">{}<td class=\"r\">{}",
                name(&row.node),
                both(&|s| s.decision.as_deref().map(escape)),
                both(&|s| s.noise_db.map(db)),
                both(&|s| s.weights_db.map(db)),
                both(&|s| s.max_code.map(|c| c.to_string())),
                both(&|s| s
                    .range
                    .map(|[lo, hi]| format!("{} … {}", short(lo), short(hi)))
                    .or(s.scale.map(short)))
            ),
        );
    }
    put(page, format_args!("</table></div>"));
}

fn groups(page: &mut String, d: &Difference) {
    if d.groups.is_empty() {
        return;
    }
    heading(page, "Classes and slices", "INT8 accuracy, the largest loss first.");
    put(
        page,
        format_args!(
            "<div class=\"wrap\"><table><tr><th>Group<th class=\"r\">Before<th class=\"r\">After<th class=\"r\">Change"
        ),
    );
    for g in d.groups.iter().take(super::ROWS_MAX) {
        let class = if g.delta < 0.0 { "poor" } else { "good" };
        put(
            page,
            format_args!(
                "<tr><td class=\"name\">{} {}<td class=\"r\">{:.2} %<td class=\"r\">{:.2} %<td class=\"r\"><span class=\"{class}\">{:+.2}</span>",
                g.kind,
                escape(&g.name),
                100.0 * g.a,
                100.0 * g.b,
                100.0 * g.delta
            ),
        );
    }
    put(page, format_args!("</table></div>"));
}
