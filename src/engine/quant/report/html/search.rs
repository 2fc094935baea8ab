//! The sections on the search: what each layer costs alone, and the models that were tried.

use super::{EXACT_DB, Plot, bytes, decibels, escape, folded, heading, large, name, percent, put};
use crate::engine::quant::Gate;
use crate::engine::quant::report::Findings;
use crate::engine::quant::search::{Sensitivity, Trial};

/// Layers that are shown from the start.
const SHOWN: usize = 16;
/// Decibels that fill a bar.
const BAR_FULL_DB: f64 = 60.0;
/// How far above the best figure an exact model is drawn, in dB.
const EXACT_ROOM_DB: f64 = 6.0;

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
    let (measure, limit) = measure(&f.recipe.gate, f.evaluation.float.value, trials);
    let mut what = tried(trials.len(), trials.iter().filter(|t| t.passes).count());
    if trials.len() > 1 {
        put(
            &mut what,
            format_args!(
                " Right is cheaper, up is better ({}); the line joins those that none beats in both. The one that is made is tuned once more, so its own figures differ a little.",
                measure.name()
            ),
        );
    }
    if let Some(why) = trials.iter().find_map(|t| t.refused.as_ref()) {
        put(
            &mut what,
            format_args!(
                " Too few integers is as bad as a figure beyond its limit, because what is left is the float model: {}.",
                escape(why)
            ),
        );
    }
    heading(page, "What was tried", &what);
    // A single dot is no picture.
    if trials.len() > 1 {
        let dashed = limit.map_or_else(String::new, |l| {
            format!("<span>dashed: the gate, {} of {l:.1} {}</span>", measure.name(), measure.unit())
        });
        put(
            page,
            format_args!(
                "<div class=\"box\"><div class=\"key\"><span><i class=\"good\"></i>keeps the gate</span><span><i class=\"hollow\" style=\"border-color:var(--bad)\"></i>does not</span>{dashed}</div>{}</div>",
                picture(trials, measure, limit)
            ),
        );
    }
    folded(page, trials.len() <= SHOWN, "All trials, in order", &table(trials));
}

/// How many models were tried, and how many keep the gate.
fn tried(models: usize, passing: usize) -> String {
    match (models, passing) {
        (1, 0) => "One model was tried, and it does not keep the gate.".to_owned(),
        (1, _) => "One model was tried, and it keeps the gate.".to_owned(),
        (_, 0) => format!("{models} models were tried, none keeps the gate."),
        (_, 1) => format!("{models} models were tried, one keeps the gate."),
        _ => format!("{models} models were tried, {passing} keep the gate."),
    }
}

/// The trials: what the gate speaks of against what is cheap, with the limit of the gate.
fn picture(trials: &[Trial], measure: Measure, limit: Option<f64>) -> String {
    // What is exact has no decibels: it stands a little above the others and the limit.
    let exact = measure == Measure::Noise;
    let known = trials.iter().map(|t| measure.of(t)).filter(|&v| !exact || v < EXACT_DB).chain(limit);
    let top = known.fold(f64::NEG_INFINITY, f64::max);
    let top = if exact && top.is_finite() { top + EXACT_ROOM_DB } else { EXACT_DB };
    let good = |t: &Trial| measure.of(t).min(top);
    let unit = measure.unit();
    let cheap = |t: &Trial| 100.0 * t.integer_mac_share;
    let ends = |of: &dyn Fn(&Trial) -> f64| {
        let (lo, hi) =
            trials.iter().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let room = 0.08 * (hi - lo).max(0.2);
        (lo - room, hi + room)
    };
    let (x, mut y) = (ends(&cheap), ends(&good));
    if let Some(limit) = limit {
        y = (y.0.min(limit - 0.1), y.1.max(limit + 0.1));
    }
    let share = |(lo, hi): (f64, f64)| (lo.max(0.0), hi.min(100.0));
    let (x, y) = (share(x), if unit == "dB" { y } else { share(y) });
    let mut plot = Plot::new(x, y);
    for part in [0.0, 0.5, 1.0] {
        let at = y.0 + part * (y.1 - y.0);
        plot.across(at, &format!("{at:.1} {unit}"));
    }
    if let Some(limit) = limit {
        plot.line("limit", [(x.0, limit), (x.1, limit)]);
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
        let mut title = format!("{} · {:.1} % of MACs in integers · {}", measure.words(t), cheap(t), kept(t));
        if let Some(why) = &t.refused {
            put(&mut title, format_args!(" · not kept: {why}"));
        }
        plot.dot(if t.passes { "good" } else { "poor" }, cheap(t), good(t), &title);
        if !t.passes {
            plot.dot("ring", cheap(t), good(t), &title);
        }
    }
    let digits = usize::from(x.1 - x.0 < 4.0);
    for part in [0.0, 0.5, 1.0] {
        let at = x.0 + part * (x.1 - x.0);
        plot.below(at, &format!("{at:.digits$} % of MACs"));
    }
    plot.finish(&format!("{} against the share of multiplications in integers", measure.name()))
}

fn table(trials: &[Trial]) -> String {
    let mut body = "<div class=\"wrap\"><table><tr><th>Gate<th class=\"r\">Metric<th class=\"r\">Agreement<th class=\"r\">Signal to noise<th class=\"r\">Integer MACs<th class=\"r\">Weights<th>Stays in float".to_owned();
    for t in trials {
        let gate = match (t.passes, &t.refused) {
            (true, _) => "<span class=\"good\">kept</span>",
            (false, None) => "<span class=\"poor\">not kept</span>",
            (false, Some(_)) => "<span class=\"poor\">too few integers</span>",
        };
        put(
            &mut body,
            format_args!(
                "<tr><td>{gate}<td class=\"r\">{}<td class=\"r\">{}<td class=\"r\">{}<td class=\"r\">{:.1} %<td class=\"r\">{}<td class=\"name\">{}",
                percent(t.metric),
                percent(t.agreement),
                decibels(t.sqnr_db),
                100.0 * t.integer_mac_share,
                bytes(t.bytes),
                escape(&kept(t))
            ),
        );
    }
    body.push_str("</table></div>");
    body
}

/// What a gate speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Metric,
    Agreement,
    Noise,
}

impl Measure {
    fn of(self, t: &Trial) -> f64 {
        match self {
            Measure::Metric => 100.0 * t.metric,
            Measure::Agreement => 100.0 * t.agreement,
            Measure::Noise => t.sqnr_db,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Measure::Metric | Measure::Agreement => "%",
            Measure::Noise => "dB",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Measure::Metric => "the metric",
            Measure::Agreement => "agreement with float",
            Measure::Noise => "signal to noise of the output",
        }
    }

    fn words(self, t: &Trial) -> String {
        match self {
            Measure::Metric => percent(t.metric),
            Measure::Agreement => percent(t.agreement),
            Measure::Noise => decibels(t.sqnr_db),
        }
    }
}

/// What trials are judged by, and the limit of the gate in its unit, where there is one for all samples. A gate that asks
/// for several things is shown by what most trials miss: by another, dots above the line would be called too low.
fn measure(gate: &Gate, float: f64, trials: &[Trial]) -> (Measure, Option<f64>) {
    // Another metric than that of the evaluation has another float figure.
    let float = gate.metric.is_none().then_some(float);
    let asked = [
        gate.max_drop.map(|drop| (Measure::Metric, float.map(|float| 100.0 * (float - drop)))),
        gate.min_sqnr_db.map(|db| (Measure::Noise, Some(db))),
        gate.min_agreement.map(|share| (Measure::Agreement, Some(100.0 * share))),
    ];
    let missed = |(measure, limit): &(Measure, Option<f64>)| {
        limit.map_or(0, |limit| trials.iter().filter(|t| measure.of(t) < limit).count())
    };
    // The first of those that are missed alike.
    asked.into_iter().flatten().rev().max_by_key(missed).unwrap_or((Measure::Metric, None))
}

fn kept(t: &Trial) -> String {
    match &t.keeps_float[..] {
        [] => "all in integers".to_owned(),
        names if names.len() <= 6 => names.join(", "),
        names => format!("{}, … {} more", names[..5].join(", "), names.len() - 5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_a_dot_and_the_gate_a_line() {
        let trial = |metric: f64, sqnr_db: f64, share: f64, passes: bool| Trial {
            keeps_float: vec!["<a>".to_owned()],
            metric,
            agreement: metric,
            sqnr_db,
            integer_mac_share: share,
            bytes: 1000,
            passes,
            refused: None,
            margin: 0.0,
        };
        let trials = [trial(0.9, 30.0, 1.0, false), trial(0.9, 45.0, 0.5, true), trial(0.9, 41.0, 0.4, true)];
        for (measure, limit, lines) in [(Measure::Noise, Some(40.0), 2), (Measure::Metric, None, 1)] {
            let svg = picture(&trials, measure, limit);
            assert_eq!(svg.matches("class=\"line").count(), lines, "{measure:?}");
            assert_eq!(svg.matches("class=\"dot good").count(), 2, "{measure:?}");
            // One that does not pass is hollow; the cheapest that passes has a halo.
            assert_eq!(svg.matches("class=\"dot ring").count(), 1, "{measure:?}");
            assert_eq!(svg.matches("class=\"dot chosen").count(), 1, "{measure:?}");
            assert!(!svg.contains("<a>") && !svg.contains("NaN"), "{svg}");
        }
        assert!(table(&trials).contains("30.0 dB"));
    }

    #[test]
    fn a_gate_is_shown_by_what_it_fails_for() {
        let trial = |metric: f64, sqnr_db: f64| Trial {
            keeps_float: Vec::new(),
            metric,
            agreement: metric,
            sqnr_db,
            integer_mac_share: 1.0,
            bytes: 1000,
            passes: false,
            refused: None,
            margin: 0.0,
        };
        let trials = [trial(0.9, 30.0), trial(0.8, 31.0)];
        let gate = |max_drop, min_sqnr_db| Gate { max_drop, min_sqnr_db, ..Gate::default() };
        for (gate, want) in [
            (gate(Some(0.0), Some(40.0)), (Measure::Noise, Some(40.0))),
            (gate(Some(0.0), Some(20.0)), (Measure::Metric, Some(90.0))),
            (gate(Some(0.5), Some(20.0)), (Measure::Metric, Some(40.0))),
            (gate(None, None), (Measure::Metric, None)),
        ] {
            assert_eq!(measure(&gate, 0.9, &trials), want);
        }
        assert_eq!(tried(1, 1), "One model was tried, and it keeps the gate.");
        assert_eq!(tried(7, 0), "7 models were tried, none keeps the gate.");
        assert_eq!(tried(7, 1), "7 models were tried, one keeps the gate.");
    }

    #[test]
    fn a_model_that_is_exact_stays_on_the_axes_and_says_why_it_does_not_count() {
        let trial = |sqnr_db: f64, share: f64, refused: Option<&str>| Trial {
            keeps_float: Vec::new(),
            metric: 1.0,
            agreement: 1.0,
            sqnr_db,
            integer_mac_share: share,
            bytes: 1000,
            passes: false,
            refused: refused.map(str::to_owned),
            margin: 0.0,
        };
        let trials = [trial(40.0, 1.0, None), trial(200.0, 0.0, Some("0.0 % stay in integers"))];
        for (measure, limit) in
            [(Measure::Noise, Some(60.0)), (Measure::Noise, None), (Measure::Metric, None)]
        {
            let svg = picture(&trials, measure, limit);
            let labels = svg.split("%\">").skip(1).filter_map(|rest| rest.split("</span>").next());
            for label in labels {
                let number: f64 = label.split(' ').next().unwrap().parse().unwrap();
                assert!((0.0..=100.0).contains(&number), "{label} of {measure:?}");
            }
            assert!(svg.contains("not kept: 0.0 % stay in integers"), "{svg}");
        }
        assert!(table(&trials).contains("too few integers"));
    }
}
