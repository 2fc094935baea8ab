//! The sections on layers: what would help, the noise along the graph, the table, what stays in float.

use super::{
    Plot, ROWS_MAX, bar, counted, decibels, escape, folded, grade, heading, name, put, sentence, short,
};
use crate::engine::quant::Scheme;
use crate::engine::quant::report::{Advice, Findings, LayerRow};

/// Rows up to which a table is open from the start.
const OPEN_MAX: usize = 16;
/// Where the picture ends: more is no better for anyone.
const SHOWN_DB: f64 = 60.0;

/// What could be done better.
pub fn advice(page: &mut String, f: &Findings) {
    if f.advice.is_empty() {
        return;
    }
    heading(
        page,
        "What could be better",
        "Layers where accuracy is lost, the worst first, with the line of the recipe that would help.",
    );
    f.advice.iter().for_each(|advice| boxed(page, advice));
}

fn boxed(page: &mut String, a: &Advice) {
    let others: String =
        a.alternatives.iter().map(|r| format!("<code>{}</code>", escape(&r.to_string()))).collect();
    let or = if others.is_empty() { "" } else { "<span class=\"dim\">or</span>" };
    put(
        page,
        format_args!(
            "<div class=\"box warning\"><b class=\"name\">{}</b> <span class=\"chip\">{}</span><p>{}</p>\
             <div class=\"fix\"><span class=\"dim\">{}:</span><code class=\"best\">{}</code>{or}{others}</div></div>",
            name(&a.node),
            a.cause.name(),
            sentence(&a.finding),
            escape(&a.remedy),
            escape(&a.recipe.to_string())
        ),
    );
}

/// Noise along the graph, and the table of layers.
pub fn section(page: &mut String, f: &Findings) {
    if f.layers.is_empty() {
        return;
    }
    heading(
        page,
        "Noise along the graph",
        &format!(
            "Signal to noise of each layer {} against the float model, first to last: from 30 dB on (green) it rarely matters, below 20 dB (red) it may change decisions. A line that falls at one layer is that layer's doing; a slow fall is noise that adds up.",
            match f.recipe.scheme {
                Scheme::Float16 => "in float16",
                Scheme::WeightOnly => "with weights of 8 bits",
                Scheme::Auto | Scheme::Static | Scheme::Dynamic => "on integers",
            }
        ),
    );
    picture(page, f);
    table(page, f);
}

fn codes_db(f: &Findings, row: &LayerRow) -> Option<f64> {
    f.activations.iter().find(|a| a.value == row.value).and_then(|a| a.sqnr_db)
}

fn picture(page: &mut String, f: &Findings) {
    let rows = &f.layers;
    let measured: Vec<(f64, &LayerRow, f64)> = rows
        .iter()
        .enumerate()
        .filter_map(|(i, row)| Some((i as f64, row, row.noise.as_ref()?.sqnr_db)))
        .collect();
    let Some(least) = measured.iter().map(|m| m.2).reduce(f64::min) else { return };
    let end = measured.last().map_or(least, |m| m.2);
    let told = format!(
        "Signal to noise of {}: {} at the noisiest, {} at the last",
        counted(measured.len() as u64, "layer"),
        decibels(least),
        decibels(end)
    );
    let bottom = (least / 10.0).floor().min(0.0) * 10.0;
    let bottom = bottom.max(-20.0);
    let mut plot = Plot::new((0.0, (rows.len() - 1) as f64), (bottom, SHOWN_DB));
    plot.band(bottom, 20.0, "bad");
    plot.band(20.0, 30.0, "fair");
    for tick in 0..=8 {
        let db = bottom + 10.0 * f64::from(tick);
        if db <= SHOWN_DB && (db as i64) % 20 == 0 {
            plot.across(db, &format!("{db:.0} dB"));
        }
    }
    plot.line("", measured.iter().map(|m| (m.0, m.2)));
    for (i, row) in rows.iter().enumerate() {
        let x = i as f64;
        if let Some(db) = row.weight_sqnr_db {
            plot.dot("one", x, db, &format!("{}: weights {}", row.node, decibels(db)));
        }
        if let Some(db) = codes_db(f, row) {
            plot.dot("two", x, db, &format!("{}: codes of the result {}", row.node, decibels(db)));
        }
    }
    for (x, row, db) in &measured {
        let class = if *db < 20.0 { "poor" } else { "" };
        plot.dot(class, *x, *db, &format!("{} ({}): {}", row.node, row.op, decibels(*db)));
    }
    plot.below(0.0, "1");
    plot.below((rows.len() - 1) as f64, &format!("{} layers", rows.len()));
    put(
        page,
        format_args!(
            "<div class=\"box\"><div class=\"key\"><span><i class=\"main\"></i>result, with all noise before it</span>\
             <span><i class=\"one\"></i>its weights in codes</span><span><i class=\"two\"></i>its result in codes</span></div>{}</div>",
            plot.finish(&told)
        ),
    );
}

fn table(page: &mut String, f: &Findings) {
    let rows = &f.layers;
    let spread = rows.iter().any(|r| r.channel_spread.is_some());
    let mut body = "<div class=\"wrap\"><table><tr><th>Node<th>Result<th>Weight codes<th class=\"wide\">Result codes<th class=\"r wide\">Largest error"
        .to_owned();
    if spread {
        body.push_str("<th class=\"r wide\">Largest channel / median");
    }
    for row in rows {
        let sides = |s: &Vec<usize>| s.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
        let shape = row.weight_shape.as_ref().map_or(String::new(), |s| format!(" {}", sides(s)));
        let error = row.noise.as_ref().map_or("–".to_owned(), |n| short(n.max_abs_error));
        put(
            &mut body,
            format_args!(
                "<tr><td class=\"name\">{}<span class=\"of\">{}{shape}</span><td class=\"db\">{}<td class=\"db\">{}<td class=\"db wide\">{}<td class=\"r wide\">{error}",
                name(&row.node),
                row.op,
                bar(row.noise.as_ref().map(|n| n.sqnr_db)),
                bar(row.weight_sqnr_db),
                bar(codes_db(f, row))
            ),
        );
        if spread {
            let class = if row.channel_spread.is_some_and(|s| s.ratio >= 30.0) { " poor" } else { "" };
            let ratio = row.channel_spread.map_or("–".to_owned(), |s| format!("{:.1}×", s.ratio));
            put(&mut body, format_args!("<td class=\"r wide{class}\">{ratio}"));
        }
    }
    body.push_str("</table></div>");
    let poor = rows.iter().filter(|r| r.noise.as_ref().is_some_and(|n| grade(n.sqnr_db) == "poor")).count();
    let summary = match poor {
        0 => format!("All {} layers", rows.len()),
        n => format!("All {} layers, {n} of them below 20 dB", rows.len()),
    };
    folded(page, rows.len() <= OPEN_MAX, &summary, &body);
}

/// What stays in float, and why.
pub fn float_nodes(page: &mut String, f: &Findings) {
    if f.float_nodes.is_empty() {
        return;
    }
    heading(page, "What stays in float, and why", "");
    let mut body = "<div class=\"wrap\"><table><tr><th>Node<th>Operator<th>Reason".to_owned();
    for row in f.float_nodes.iter().take(ROWS_MAX) {
        put(
            &mut body,
            format_args!(
                "<tr><td class=\"name\">{}<td>{}<td>{}",
                name(&row.node),
                row.op,
                escape(&row.reason)
            ),
        );
    }
    body.push_str("</table></div>");
    left_out(&mut body, f.float_nodes.len());
    folded(page, f.float_nodes.len() <= OPEN_MAX, &counted(f.float_nodes.len() as u64, "node"), &body);
}

/// Says that rows are missing.
pub fn left_out(page: &mut String, rows: usize) {
    if rows > ROWS_MAX {
        put(page, format_args!("<p class=\"sub\">{} more rows are in the JSON report.</p>", rows - ROWS_MAX));
    }
}
