//! The page that compares two reports.

use super::page::start;
use super::{escape, finished, folded, heading, name, put, short};
use crate::engine::quant::report::diff::{Difference, LayerChange, OTHER_DATA, State, change_of, figure};

/// Rows of layers that are shown from the start.
const SHOWN: usize = 24;

/// The page of a comparison. `a` and `b` are what the two are called.
pub fn page(d: &Difference, a: &str, b: &str) -> String {
    let model = d.b.model.as_deref().or(d.a.model.as_deref()).unwrap_or("model");
    let mut page = start(&format!("{model}: {a} and {b}"));
    let (badge, same) = match d.same_model {
        Some(true) => ("badge", "same float model"),
        Some(false) => ("badge bad", "not the same float model"),
        None => ("badge none", "float model not known"),
    };
    put(
        &mut page,
        format_args!(
            "<div class=\"head\"><div><h1>{}: what is different</h1><p class=\"sub\">from {} to {}</p></div><span class=\"{badge}\">{same}</span></div>",
            escape(model),
            escape(a),
            escape(b)
        ),
    );
    if d.same_data == Some(false) {
        put(
            &mut page,
            format_args!(
                "<div class=\"box warning\"><span class=\"chip warning\">other data</span><p>The two were {OTHER_DATA}.</p></div>"
            ),
        );
    }
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
        let (a, b) = (figure(f.figure, f.a), figure(f.figure, f.b));
        let delta = change_of(f.figure, f.delta).unwrap_or("–".to_owned());
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
    let what = match d.layers.len() {
        0 => format!("None changed: {} are the same.", d.layers_same),
        n => format!("{n} changed, the most changed first; {} are the same.", d.layers_same),
    };
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
        let class = match d.same_data {
            Some(false) => "dim",
            _ if g.delta < 0.0 => "poor",
            _ => "good",
        };
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::quant::report::diff::diff;

    #[test]
    fn other_data_are_told_and_nothing_is_painted() {
        let side = |data: &str, right: f64| {
            json!({
                "model": { "sha256": "ab" }, "evaluated_on_sha256": data,
                "evaluation": { "int8": { "value": right }, "classes": [{ "name": "0", "int8": { "value": right } }] },
            })
        };
        for (data, told) in [("1", false), ("2", true)] {
            let page = page(&diff(&side("1", 0.9), &side(data, 0.1)), "a", "b");
            assert_eq!(page.contains(OTHER_DATA), told, "{data}");
            assert_eq!(page.contains("class=\"poor\""), !told, "{data}");
        }
    }
}
