//! The report as one self-contained page: inline style and pictures, light and dark, nothing from elsewhere.

use std::fmt::Write;

use crate::engine::quant::Gate;
use crate::engine::quant::evaluate::{Group, Share};
use crate::engine::quant::report::{Activation, Findings, LayerRow};

/// Most rows of a table of classes, slices or float nodes that are shown.
const ROWS_MAX: usize = 200;
/// Decibels that fill a bar.
const BAR_FULL_DB: f64 = 60.0;

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#16202c;--dim:#66727f;--line:#e3e7ec;--accent:#0b7285;
--good:#2b8a3e;--fair:#e67700;--bad:#c92a2a;--track:#edf0f3;--kept:#0b728526}
@media(prefers-color-scheme:dark){:root{--bg:#0f1419;--card:#171e26;--ink:#e6ebf0;--dim:#93a1af;--line:#27313c;
--accent:#3bc9db;--good:#69db7c;--fair:#ffc078;--bad:#ff8787;--track:#222c36;--kept:#3bc9db26}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0;letter-spacing:-.01em}h2{font-size:18px;margin:40px 0 12px}
.sub{color:var(--dim);margin:2px 0 10px;overflow-wrap:anywhere}.head{display:flex;gap:16px;align-items:flex-start;justify-content:space-between;flex-wrap:wrap}
.badge{border-radius:99px;padding:5px 14px;font-weight:600;color:#fff;background:var(--good);white-space:nowrap}
.badge.bad{background:var(--bad)}.badge.none{background:var(--dim)}@media(prefers-color-scheme:dark){.badge{color:#0f1419}}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:14px;margin-top:24px}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px}
.card .k{color:var(--dim);font-size:13px}.card .v{font-size:28px;font-weight:650;letter-spacing:-.02em;line-height:1.25}
.card .n{color:var(--dim);font-size:13px}
.wrap{background:var(--card);border:1px solid var(--line);border-radius:12px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}th,td{padding:7px 14px;text-align:left;border-top:1px solid var(--line);vertical-align:middle}
tr:first-child th{border-top:0}th{font-weight:600;color:var(--dim);font-size:12.5px;white-space:nowrap}
td.r,th.r{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.name{font-family:ui-monospace,SFMono-Regular,Menlo,monospace;font-size:12.5px;overflow-wrap:anywhere;max-width:340px}
.bar{display:inline-block;width:130px;height:8px;border-radius:4px;background:var(--track);overflow:hidden;vertical-align:middle;margin-right:10px}
.bar i{display:block;height:100%;border-radius:4px}.good{color:var(--good)}.fair{color:var(--fair)}.poor{color:var(--bad)}
i.good{background:var(--good)}i.fair{background:var(--fair)}i.poor{background:var(--bad)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:14px}
.act{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 14px}
.act b{font:600 12.5px ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
.act svg{display:block;width:100%;height:84px;margin:8px 0 4px}.act p{margin:0;color:var(--dim);font-size:12.5px}
.tip{border-left:3px solid var(--fair);background:var(--card);border-radius:0 10px 10px 0;padding:10px 16px;margin:0 0 10px}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,monospace;background:var(--track);padding:1px 6px;border-radius:5px;overflow-wrap:anywhere}
.fail{border:1px solid var(--bad);border-radius:12px;padding:14px 18px;margin-top:20px;background:var(--card)}
footer{margin-top:48px;color:var(--dim);font-size:12.5px;overflow-wrap:anywhere}";

/// The page.
pub fn page(f: &Findings) -> String {
    let title = if f.model.name.is_empty() { "model" } else { &f.model.name };
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0} in INT8</title><style>{STYLE}</style><main>",
        escape(title)
    );
    let asked = f.recipe.gate != Gate::default();
    let (badge, text) = match f.gate_failure {
        None if asked => ("badge", "gate kept"),
        None => ("badge none", "no gate set"),
        Some(_) => ("badge bad", "gate failed"),
    };
    put(
        &mut page,
        format_args!(
            "<div class=\"head\"><div><h1>{} in INT8</h1><p class=\"sub\">{} samples of {} data · {} weights · {}</p></div>\
         <span class=\"{badge}\">{text}</span></div>",
            escape(title),
            f.evaluation.samples,
            f.evaluated_on,
            grouped(f.model.parameters),
            f.engine
        ),
    );
    if let Some(reason) = &f.gate_failure {
        put(
            &mut page,
            format_args!(
                "<div class=\"fail\"><b class=\"poor\">The gate is not kept.</b> {}</div>",
                escape(reason)
            ),
        );
    }
    for note in &f.notes {
        put(&mut page, format_args!("<p class=\"sub\">{}</p>", escape(note)));
    }
    cards(&mut page, f);
    advice(&mut page, f);
    layers(&mut page, &f.layers);
    activations(&mut page, &f.activations);
    float_nodes(&mut page, f);
    worst(&mut page, f);
    groups(&mut page, "Classes", "Class", &f.evaluation.classes);
    groups(&mut page, "Slices", "Slice", &f.evaluation.slices);
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
    page
}

fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a string takes everything");
}

fn cards(page: &mut String, f: &Findings) {
    let e = &f.evaluation;
    let delta = 100.0 * (e.int8.value - e.float.value);
    let interval = |s: &Share| format!("{:.2}–{:.2} %", 100.0 * s.low, 100.0 * s.high);
    let name = if e.metric == "top1" { "Top-1 accuracy" } else { "Agreement with float" };
    let against = match e.metric {
        "top1" => format!("float {:.2} %, {delta:+.2} points", 100.0 * e.float.value),
        _ => format!("95 % interval {}", interval(&e.int8)),
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
    card(name, format!("{:.2} %", 100.0 * e.int8.value), against);
    if e.metric == "top1" {
        let note = format!("{} decisions broken, {} mended", e.broken, e.mended);
        card("Same decision as float", format!("{:.2} %", 100.0 * e.agreement.value), note);
    }
    let size = format!("{} → {}", bytes(f.size.float_bytes), bytes(f.size.int8_bytes));
    card("Size", format!("{:.0} %", 100.0 * f.size.ratio), size);
    let time = format!("{} → {} at batch 1", millis(f.latency.float_ms), millis(f.latency.int8_ms));
    card("Speed", format!("{:.2}×", f.latency.speedup), time);
    card("Output signal to noise", format!("{:.1} dB", e.sqnr_db), format!("cosine {:.5}", e.cosine));
    let c = f.coverage;
    let share = 100.0 * c.integer as f64 / (c.integer + c.float).max(1) as f64;
    card("Nodes on integers", format!("{share:.0} %"), format!("{} integer, {} float", c.integer, c.float));
    put(page, format_args!("</div>"));
}

fn advice(page: &mut String, f: &Findings) {
    if f.advice.is_empty() {
        return;
    }
    put(page, format_args!("<h2>What could be better</h2>"));
    for a in &f.advice {
        put(
            page,
            format_args!(
                "<div class=\"tip\"><b>{}</b>: {}. Try <code>{}</code></div>",
                escape(&a.node),
                escape(&a.finding),
                escape(&a.recipe.to_string())
            ),
        );
    }
}

fn grade(db: f64) -> &'static str {
    match db {
        db if db >= 30.0 => "good",
        db if db >= 20.0 => "fair",
        _ => "poor",
    }
}

fn bar(db: Option<f64>) -> String {
    let Some(db) = db else { return "–".to_owned() };
    let (class, width) = (grade(db), (100.0 * db / BAR_FULL_DB).clamp(2.0, 100.0));
    let shown = if db >= 200.0 { "exact".to_owned() } else { format!("{db:.1} dB") };
    format!("<span class=\"bar\"><i class=\"{class}\" style=\"width:{width:.0}%\"></i></span>{shown}")
}

fn layers(page: &mut String, rows: &[LayerRow]) {
    put(
        page,
        format_args!(
            "<h2>Layers</h2><p class=\"sub\">Signal to noise of each result against the float model, with the noise of all layers before it.</p>\
         <div class=\"wrap\"><table><tr><th>Node<th>Operator<th>Weights<th>Result<th>Weight codes<th class=\"r\">Largest error"
        ),
    );
    for row in rows {
        let shape = row
            .weight_shape
            .as_ref()
            .map_or(String::new(), |s| s.iter().map(usize::to_string).collect::<Vec<_>>().join("×"));
        let error = row.noise.as_ref().map_or("–".to_owned(), |n| format!("{:.3}", n.max_abs_error));
        let (result, weights) = (bar(row.noise.as_ref().map(|n| n.sqnr_db)), bar(row.weight_sqnr_db));
        put(
            page,
            format_args!(
                "<tr><td class=\"name\">{}<td>{}<td>{shape}<td>{result}<td>{weights}<td class=\"r\">{error}",
                escape(&row.node),
                row.op
            ),
        );
    }
    put(page, format_args!("</table></div>"));
}

fn activations(page: &mut String, rows: &[Activation]) {
    put(
        page,
        format_args!(
            "<h2>Activations</h2><p class=\"sub\">Values seen in calibration (counts on a logarithmic scale); the shaded span is what the 256 codes stand for.</p><div class=\"grid\">"
        ),
    );
    for row in rows {
        let sqnr = row.sqnr_db.map_or("exact".to_owned(), |db| format!("{db:.1} dB"));
        put(
            page,
            format_args!(
                "<div class=\"act\"><b>{}</b>{}<p>{} … {} of {} … {}</p><p>{} · {sqnr} · {:.3} % clipped · {:.0} % zeros</p></div>",
                escape(&row.value),
                picture(row),
                short(row.lo),
                short(row.hi),
                short(row.min),
                short(row.max),
                row.method,
                100.0 * row.clipped,
                100.0 * row.zeros
            ),
        );
    }
    put(page, format_args!("</div>"));
}

/// The histogram with the span of the codes: one path, 240 × 84 units.
fn picture(row: &Activation) -> String {
    let (width, height) = (240.0, 84.0);
    let (least, most) = (row.min.min(row.lo), row.max.max(row.hi));
    let span = if most > least { most - least } else { 1.0 };
    let x = |value: f64| (value - least) / span * width;
    let tallest = row.histogram.iter().max().map_or(1.0, |&n| (n as f64).ln_1p()).max(1e-9);
    let step = (row.max - row.min) / row.histogram.len().max(1) as f64;
    let mut path = String::new();
    for (i, &count) in row.histogram.iter().enumerate().filter(|(_, n)| **n > 0) {
        let left = x(row.min + step * i as f64);
        let bar = (x(row.min + step * (i + 1) as f64) - left - 0.4).max(0.6);
        let tall = ((count as f64).ln_1p() / tallest * (height - 4.0)).max(1.0);
        put(&mut path, format_args!("M{left:.1} {height}v-{tall:.1}h{bar:.1}v{tall:.1}z"));
    }
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"histogram\">\
         <rect x=\"{:.1}\" width=\"{:.1}\" height=\"{height}\" fill=\"var(--kept)\"/><path d=\"{path}\" fill=\"var(--accent)\"/></svg>",
        x(row.lo),
        (x(row.hi) - x(row.lo)).max(0.5)
    )
}

fn float_nodes(page: &mut String, f: &Findings) {
    if f.float_nodes.is_empty() {
        return;
    }
    put(
        page,
        format_args!(
            "<h2>What stays in float, and why</h2><div class=\"wrap\"><table><tr><th>Node<th>Operator<th>Reason"
        ),
    );
    for row in f.float_nodes.iter().take(ROWS_MAX) {
        put(
            page,
            format_args!(
                "<tr><td class=\"name\">{}<td>{}<td>{}",
                escape(&row.node),
                row.op,
                escape(&row.reason)
            ),
        );
    }
    put(page, format_args!("</table></div>"));
    left_out(page, f.float_nodes.len());
}

fn worst(page: &mut String, f: &Findings) {
    if f.evaluation.worst.is_empty() {
        return;
    }
    let class = |c: Option<i64>| c.map_or("–".to_owned(), |c| c.to_string());
    put(
        page,
        format_args!(
            "<h2>Samples that changed most</h2><div class=\"wrap\"><table><tr><th class=\"r\">Sample<th class=\"r\">Label\
         <th class=\"r\">Float says<th class=\"r\">INT8 says<th>Output"
        ),
    );
    for w in &f.evaluation.worst {
        let int8 = if w.agrees { "r" } else { "r poor" };
        put(
            page,
            format_args!(
                "<tr><td class=\"r\">{}<td class=\"r\">{}<td class=\"r\">{}<td class=\"{int8}\">{}<td>{}",
                w.sample,
                class(w.label),
                class(w.float_class),
                class(w.int8_class),
                bar(Some(w.sqnr_db))
            ),
        );
    }
    put(page, format_args!("</table></div>"));
}

fn groups(page: &mut String, title: &str, key: &str, rows: &[Group]) {
    if rows.is_empty() {
        return;
    }
    put(
        page,
        format_args!(
            "<h2>{title}</h2><div class=\"wrap\"><table><tr><th>{key}<th class=\"r\">Samples<th class=\"r\">Float\
         <th class=\"r\">INT8<th class=\"r\">Change<th class=\"r\">95 % interval"
        ),
    );
    for g in rows.iter().take(ROWS_MAX) {
        let change = if g.delta < -0.01 { "r poor" } else { "r" };
        put(
            page,
            format_args!(
                "<tr><td class=\"name\">{}<td class=\"r\">{}<td class=\"r\">{:.2} %<td class=\"r\">{:.2} %<td class=\"{change}\">{:+.2}\
             <td class=\"r\">{:.1}–{:.1} %",
                escape(&g.name),
                g.samples,
                100.0 * g.float,
                100.0 * g.int8.value,
                100.0 * g.delta,
                100.0 * g.int8.low,
                100.0 * g.int8.high
            ),
        );
    }
    put(page, format_args!("</table></div>"));
    left_out(page, rows.len());
}

fn left_out(page: &mut String, rows: usize) {
    if rows > ROWS_MAX {
        put(page, format_args!("<p class=\"sub\">{} more rows are in the JSON report.</p>", rows - ROWS_MAX));
    }
}

/// Text that a stranger chose, as HTML shows it.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

fn bytes(n: u64) -> String {
    match n {
        n if n < 10_000 => format!("{n} B"),
        n if n < 1_000_000 => format!("{:.0} kB", n as f64 / 1e3),
        n => format!("{:.1} MB", n as f64 / 1e6),
    }
}

fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0} µs", 1e3 * ms),
        ms if ms < 100.0 => format!("{ms:.2} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// Three significant digits or so.
fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.2e}"),
        a if a < 1.0 => format!("{x:.3}"),
        a if a < 100.0 => format!("{x:.2}"),
        _ => format!("{x:.0}"),
    }
}

/// Digits in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_wrote_is_escaped() {
        assert_eq!(
            escape("<script>'a' & \"b\"</script>"),
            "&lt;script&gt;&#39;a&#39; &amp; &quot;b&quot;&lt;/script&gt;"
        );
    }

    #[test]
    fn numbers_are_short() {
        for (x, want) in
            [(0.0, "0"), (0.123_456, "0.123"), (-12.345, "-12.35"), (123_456.0, "1.23e5"), (1e-5, "1.00e-5")]
        {
            assert_eq!(short(x), want);
        }
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(12), "12");
        assert_eq!(bytes(125_000), "125 kB");
    }

    #[test]
    fn a_picture_stays_within_its_frame() {
        let row = Activation {
            value: "x".to_owned(),
            method: "mse".into(),
            min: -1.0,
            max: 3.0,
            lo: -0.5,
            hi: 2.0,
            scale: 0.01,
            zero_point: 50,
            clipped: 0.0,
            zeros: 0.0,
            sqnr_db: None,
            histogram: vec![1, 0, 5, 2],
        };
        let svg = picture(&row);
        assert!(svg.contains("<rect x=\"30.0\" width=\"150.0\""), "{svg}");
        assert_eq!(svg.matches('M').count(), 3, "one bar for each step that holds something");
    }
}
