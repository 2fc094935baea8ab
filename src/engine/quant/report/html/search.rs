//! The sections on the search: what each layer costs alone, and the models that were tried.

use super::{Plot, bytes, decibels, escape, folded, heading, large, name, percent, put};
use crate::engine::quant::report::Findings;
use crate::engine::quant::search::{Sensitivity, Trial};

/// Layers that are shown from the start.
const SHOWN: usize = 16;
/// Decibels that fill a bar.
const BAR_FULL_DB: f64 = 60.0;

/// What each layer costs alone, the worst first.
pub fn sensitivity(page: &mut String, rows: &[Sensitivity]) {
    if rows.is_empty() {
        return;
    }
    heading(
        page,
        "What each layer costs alone",
        "Signal to noise of the output with one layer in codes and all others in float: shorter is worse. Its weights and its activations apart.",
    );
    let mut sorted: Vec<&Sensitivity> = rows.iter().collect();
    sorted.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db).then_with(|| a.node.cmp(&b.node)));
    let (first, rest) = sorted.split_at(sorted.len().min(SHOWN));
    put(
        page,
        format_args!(
            "<div class=\"box\"><div class=\"key\"><span><i class=\"one\"></i>weights in codes</span><span><i class=\"two\"></i>activations in codes</span></div>"
        ),
    );
    first.iter().for_each(|row| one(page, row));
    if !rest.is_empty() {
        let mut body = String::new();
        rest.iter().for_each(|row| one(&mut body, row));
        folded(page, false, &format!("{} more", rest.len()), &body);
    }
    put(page, format_args!("</div>"));
}

fn one(page: &mut String, row: &Sensitivity) {
    let bar = |class: &str, db: f64| {
        let width = (100.0 * db / BAR_FULL_DB).clamp(1.0, 100.0);
        format!("<span class=\"bar\"><i class=\"{class}\" style=\"width:{width:.0}%\"></i></span>")
    };
    put(
        page,
        format_args!(
            "<div class=\"row\" title=\"{} MACs, {} saved\"><b>{}</b><div class=\"pair\">{}{}</div><div class=\"num\">{} · {}</div></div>",
            large(row.macs),
            bytes(row.bytes),
            name(&row.node),
            bar("one", row.weights_db),
            bar("two", row.activations_db),
            decibels(row.weights_db),
            decibels(row.activations_db)
        ),
    );
}

/// The models that were tried: how much stays in integers against what is kept.
pub fn trials(page: &mut String, f: &Findings) {
    let trials = &f.trials;
    if trials.is_empty() {
        return;
    }
    let passing = trials.iter().filter(|t| t.passes).count();
    let what = format!(
        "{} models were tried, {passing} keep the gate. Right is cheaper, up is better; the line joins those that none beats in both.",
        trials.len()
    );
    heading(page, "What was tried", &what);
    // Without labels the metric is the agreement; noise tells more where all agree.
    let by_noise = f.evaluation.metric == "agreement" && f.recipe.gate.min_sqnr_db.is_some();
    let good = |t: &Trial| if by_noise { t.sqnr_db } else { 100.0 * t.metric };
    let shown = |t: &Trial| if by_noise { decibels(t.sqnr_db) } else { percent(t.metric) };
    let cheap = |t: &Trial| 100.0 * t.integer_mac_share;
    let ends = |of: &dyn Fn(&Trial) -> f64| {
        let (lo, hi) =
            trials.iter().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let room = 0.08 * (hi - lo).max(0.2);
        (lo - room, hi + room)
    };
    let (x, y) = (ends(&cheap), ends(&good));
    let (x, y) = ((x.0, x.1.min(100.0)), if by_noise { y } else { (y.0, y.1.min(100.0)) });
    let mut plot = Plot::new(x, y);
    let unit = if by_noise { "dB" } else { "%" };
    for part in [0.0, 0.5, 1.0] {
        let at = y.0 + part * (y.1 - y.0);
        plot.across(at, &format!("{at:.1} {unit}"));
    }
    let mut frontier: Vec<&Trial> = trials
        .iter()
        .filter(|t| {
            !trials.iter().any(|o| {
                cheap(o) >= cheap(t) && good(o) >= good(t) && (cheap(o) > cheap(t) || good(o) > good(t))
            })
        })
        .collect();
    frontier.sort_by(|a, b| cheap(a).total_cmp(&cheap(b)));
    plot.line("faint", frontier.iter().map(|t| (cheap(t), good(t))));
    // The model that was made is the cheapest that passes.
    let chosen = trials.iter().filter(|t| t.passes).max_by(|a, b| cheap(a).total_cmp(&cheap(b)));
    if let Some(t) = chosen {
        plot.dot("chosen", cheap(t), good(t), "the cheapest that keeps the gate");
    }
    for t in trials {
        let title = format!("{} · {:.1} % of MACs in integers · {}", shown(t), cheap(t), kept(t));
        plot.dot(if t.passes { "good" } else { "poor" }, cheap(t), good(t), &title);
        if !t.passes {
            plot.dot("ring", cheap(t), good(t), &title);
        }
    }
    for part in [0.0, 0.5, 1.0] {
        let at = x.0 + part * (x.1 - x.0);
        plot.below(at, &format!("{at:.0} % of MACs"));
    }
    put(
        page,
        format_args!(
            "<div class=\"box\"><div class=\"key\"><span><i class=\"good\"></i>keeps the gate</span><span><i class=\"hollow\" style=\"border-color:var(--bad)\"></i>does not</span></div>{}</div>",
            plot.finish("accuracy against the share of multiplications in integers")
        ),
    );
    let mut body = "<div class=\"wrap\"><table><tr><th>Gate<th class=\"r\">Metric<th class=\"r\">Agreement<th class=\"r\">Signal to noise<th class=\"r\">Integer MACs<th class=\"r\">Weights<th>Stays in float".to_owned();
    for t in trials {
        let gate = if t.passes {
            "<span class=\"good\">kept</span>"
        } else {
            "<span class=\"poor\">not kept</span>"
        };
        put(
            &mut body,
            format_args!(
                "<tr><td>{gate}<td class=\"r\">{}<td class=\"r\">{}<td class=\"r\">{}<td class=\"r\">{:.1} %<td class=\"r\">{}<td class=\"name\">{}",
                percent(t.metric),
                percent(t.agreement),
                decibels(t.sqnr_db),
                cheap(t),
                bytes(t.bytes),
                escape(&kept(t))
            ),
        );
    }
    body.push_str("</table></div>");
    folded(page, trials.len() <= SHOWN, "All trials, in order", &body);
}

fn kept(t: &Trial) -> String {
    match &t.keeps_float[..] {
        [] => "all in integers".to_owned(),
        names if names.len() <= 6 => names.join(", "),
        names => format!("{}, … {} more", names[..5].join(", "), names.len() - 5),
    }
}
