//! The sections on accuracy: classes and slices with their intervals, confusion, the samples that changed most.

use super::layers::left_out;
use super::{ROWS_MAX, bar, escape, folded, heading, put};
use crate::engine::quant::evaluate::{Group, wilson};
use crate::engine::quant::report::Findings;

/// Groups that are shown from the start.
const SHOWN: usize = 24;
/// Most classes that a picture of confusion has room for.
const MATRIX_MAX: usize = 24;

/// Classes or slices, each with float and INT8 and its interval.
pub fn groups(page: &mut String, f: &Findings, title: &str, rows: &[Group]) {
    if rows.is_empty() {
        return;
    }
    let labelled = f.evaluation.metric != "agreement";
    let numbers = f.recipe.scheme.numbers();
    let what = match labelled {
        true => {
            format!(
                "The dot is {numbers} with its 95 % interval, the bar across is float. Where both are low, look at the data; where the dot is left of the bar, {numbers} loses."
            )
        }
        false => format!("Share on which {numbers} decides as float does, with its 95 % interval."),
    };
    heading(page, title, &what);
    let (least, ticks) = scale(rows.iter().map(|g| g.int8.low.min(g.float)).fold(1.0, f64::min));
    let mut sorted: Vec<&Group> = rows.iter().collect();
    if rows.len() > SHOWN {
        sorted.sort_by(|a, b| {
            (a.delta, a.int8.value).partial_cmp(&(b.delta, b.int8.value)).unwrap_or(std::cmp::Ordering::Equal)
        });
    }
    sorted.truncate(ROWS_MAX);
    // Single samples say little of a group.
    let few = rows.iter().map(|g| g.samples).sum::<u64>() < 4 * rows.len() as u64;
    let (first, rest) = sorted.split_at(if few { 0 } else { sorted.len().min(SHOWN) });
    put(page, format_args!("<div class=\"box\">"));
    if !first.is_empty() {
        axis(page, least, &ticks);
    }
    first.iter().for_each(|g| group(page, g, least, &ticks, (labelled, numbers)));
    if !rest.is_empty() {
        let mut body = String::new();
        axis(&mut body, least, &ticks);
        rest.iter().for_each(|g| group(&mut body, g, least, &ticks, (labelled, numbers)));
        let summary = match few {
            true => format!("{} groups of few samples each", rest.len()),
            false => format!("{} more, that lose less", rest.len()),
        };
        folded(page, false, &summary, &body);
    }
    put(page, format_args!("</div>"));
    left_out(page, rows.len());
}

/// Where the axis of shares begins so that `least` is on it, and what is written along it: tenths, or fifths where there
/// are many.
fn scale(least: f64) -> (f64, Vec<f64>) {
    // In tenths; a share that is a tenth but for its rounding begins there.
    let from = (10.0 * least + 1e-9).floor().clamp(0.0, 9.0) as usize;
    let (step, from) = if from < 5 { (2, from / 2 * 2) } else { (1, from) };
    let tenth = |n: usize| n as f64 / 10.0;
    (tenth(from), (from..=10).step_by(step).map(tenth).collect())
}

/// Place of a share on an axis that begins at `least`, in per cent of its length.
fn at(share: f64, least: f64) -> f64 {
    (100.0 * (share - least) / (1.0 - least).max(1e-9)).clamp(0.0, 100.0)
}

fn axis(page: &mut String, least: f64, ticks: &[f64]) {
    put(page, format_args!("<div class=\"row axis\"><b></b><div class=\"span\">"));
    for &share in ticks {
        put(page, format_args!("<em style=\"left:{:.1}%\">{:.0} %</em>", at(share, least), 100.0 * share));
    }
    put(page, format_args!("</div><div class=\"num\"></div></div>"));
}

/// Whether a group lost more than chance would take: each share lies outside of the other's interval.
fn lost(g: &Group) -> bool {
    let float = wilson((g.float * g.samples as f64).round() as u64, g.samples);
    g.delta < 0.0 && (g.int8.high < g.float || g.int8.value < float.low)
}

fn group(page: &mut String, g: &Group, least: f64, ticks: &[f64], (labelled, called): (bool, &str)) {
    let at = |share: f64| at(share, least);
    let float = wilson((g.float * g.samples as f64).round() as u64, g.samples);
    let bad = lost(g);
    let class = if bad { "span bad" } else { "span" };
    let (low, high) = (at(g.int8.low), at(g.int8.high));
    let tick = if labelled { format!("<s style=\"left:{:.1}%\"></s>", at(g.float)) } else { String::new() };
    let rules: String =
        ticks.iter().map(|&share| format!("<em style=\"left:{:.1}%\"></em>", at(share))).collect();
    let numbers = match labelled {
        true => format!(
            "{:.1} % <span class=\"{}\">{:+.1}</span>",
            100.0 * g.int8.value,
            if bad { "poor" } else { "dim" },
            100.0 * g.delta
        ),
        false => format!("{:.1} %", 100.0 * g.int8.value),
    };
    put(
        page,
        format_args!(
            "<div class=\"row\" title=\"float {:.1} % ({:.1} to {:.1}), {called} {:.1} % ({:.1} to {:.1})\"><b>{}</b>\
             <div class=\"{class}\">{rules}<i style=\"left:{low:.1}%;width:{:.1}%\"></i><u style=\"left:{:.1}%\"></u>{tick}</div>\
             <div class=\"num\">{numbers} <span class=\"dim\">of {}</span></div></div>",
            100.0 * float.value,
            100.0 * float.low,
            100.0 * float.high,
            100.0 * g.int8.value,
            100.0 * g.int8.low,
            100.0 * g.int8.high,
            super::name(&g.name),
            high - low,
            at(g.int8.value),
            g.samples
        ),
    );
}

/// What float chooses for each label: shuffled labels, renamed classes and one class for all look different.
pub fn confusion(page: &mut String, f: &Findings) {
    let Some(confusion) = &f.evaluation.confusion else { return };
    let mut classes: Vec<i64> = confusion.pairs().flat_map(|(label, class, _)| [label, class]).collect();
    classes.sort_unstable();
    classes.dedup();
    if classes.len() < 2 || classes.len() > MATRIX_MAX {
        return;
    }
    heading(
        page,
        "What float answers for each label",
        "A row is a label, a column the class that the float model chooses. Right answers are on the diagonal. Labels that belong to other samples give rows that are all alike.",
    );
    let place = |class: i64| classes.binary_search(&class).unwrap_or(0);
    let n = classes.len();
    let (side, cell) = (26.0 * n as f64 + 30.0, 26.0);
    let mut totals = vec![0u64; n];
    confusion.pairs().for_each(|(label, _, count)| totals[place(label)] += count);
    let mut svg = format!(
        "<svg class=\"matrix\" viewBox=\"0 0 {side} {side}\" role=\"img\" aria-label=\"confusion of the float model\">"
    );
    for (i, class) in classes.iter().enumerate() {
        let at = 30.0 + cell * (i as f64 + 0.5);
        put(
            &mut svg,
            format_args!(
                "<text class=\"k\" x=\"{at}\" y=\"16\">{class}</text><text class=\"k\" x=\"16\" y=\"{at}\">{class}</text>"
            ),
        );
    }
    for (label, class, count) in confusion.pairs() {
        let (row, column) = (place(label), place(class));
        let share = count as f64 / totals[row].max(1) as f64;
        let (x, y) = (30.0 + cell * column as f64, 30.0 + cell * row as f64);
        let off = if row == column { "" } else { "off" };
        put(
            &mut svg,
            format_args!(
                "<rect class=\"{off}\" x=\"{:.1}\" y=\"{:.1}\" width=\"25\" height=\"25\" rx=\"3\" fill-opacity=\"{:.2}\"><title>label {label}, answer {class}: {count} ({:.1} %)</title></rect>",
                x + 0.5,
                y + 0.5,
                0.06 + 0.74 * share,
                100.0 * share
            ),
        );
        if share >= 0.01 {
            put(
                &mut svg,
                format_args!("<text x=\"{:.1}\" y=\"{:.1}\">{:.0}</text>", x + 13.0, y + 13.0, 100.0 * share),
            );
        }
    }
    put(
        page,
        format_args!(
            "<div class=\"box\">{svg}</svg><p class=\"dim\">Per cent of the samples of each label.</p></div>"
        ),
    );
}

/// The samples that changed most.
pub fn worst(page: &mut String, f: &Findings) {
    let rows = &f.evaluation.worst;
    if rows.is_empty() {
        return;
    }
    heading(
        page,
        "Samples that changed most",
        "Changed decisions first, then by noise. The number counts the samples of the file from 0.",
    );
    let labelled = rows.iter().any(|w| w.label.is_some());
    let classed = rows.iter().any(|w| w.float_class.is_some());
    let mut body = "<div class=\"wrap\"><table><tr><th class=\"r\">Sample".to_owned();
    if labelled {
        body.push_str("<th class=\"r\">Label");
    }
    if classed {
        let numbers = f.recipe.scheme.numbers();
        put(&mut body, format_args!("<th class=\"r\">Float says<th class=\"r\">{numbers} says"));
    }
    body.push_str("<th>Output");
    let class = |c: Option<i64>| c.map_or("–".to_owned(), |c| c.to_string());
    for w in rows {
        put(&mut body, format_args!("<tr><td class=\"r\">{}", w.sample));
        if labelled {
            put(&mut body, format_args!("<td class=\"r\">{}", class(w.label)));
        }
        if classed {
            let wrong = |c: Option<i64>| if w.label.is_some() && c != w.label { "r poor" } else { "r" };
            let int8 = if w.label.is_none() && !w.agrees { "r poor" } else { wrong(w.int8_class) };
            put(
                &mut body,
                format_args!(
                    "<td class=\"{}\">{}<td class=\"{int8}\">{}",
                    wrong(w.float_class),
                    class(w.float_class),
                    class(w.int8_class)
                ),
            );
        }
        put(&mut body, format_args!("<td class=\"db\">{}", bar(Some(w.sqnr_db))));
    }
    body.push_str("</table></div>");
    let changed = rows.iter().filter(|w| !w.agrees).count();
    folded(
        page,
        true,
        &escape(&format!("{} samples, {changed} of them with another decision", rows.len())),
        &body,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_the_least_share_and_says_what_it_is() {
        for (least, from, ticks) in [
            (0.0, 0.0, 6),
            (0.34, 0.2, 5),
            (0.3, 0.2, 5),
            (0.85, 0.8, 3),
            (0.9, 0.9, 2),
            (1.0, 0.9, 2),
            (0.5, 0.5, 6),
        ] {
            let found = scale(least);
            assert_eq!((found.0, found.1.len()), (from, ticks), "{least}");
            assert_eq!((found.1[0], *found.1.last().unwrap()), (from, 1.0), "{least}");
        }
        assert!((at(0.85, 0.8) - 25.0).abs() < 1e-9);
        let mut page = String::new();
        axis(&mut page, 0.8, &scale(0.85).1);
        assert!(
            ["left:0.0%\">80 %", "left:50.0%\">90 %", "left:100.0%\">100 %"].iter().all(|s| page.contains(s)),
            "{page}"
        );
    }

    #[test]
    fn a_group_that_lost_nothing_is_not_painted() {
        for (samples, float, int8, want) in [
            (53, 53, 53, false),
            (1, 1, 1, false),
            (53, 0, 0, false),
            (53, 53, 40, true),
            (53, 50, 49, false),
            (53, 40, 53, false),
        ] {
            let share = |count: u64| count as f64 / samples as f64;
            let (name, delta) = (String::new(), share(int8) - share(float));
            let group = Group { name, samples, float: share(float), int8: wilson(int8, samples), delta };
            assert_eq!(lost(&group), want, "{float} and {int8} of {samples}");
        }
    }
}
