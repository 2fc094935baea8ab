//! The section on the data: what is wrong with them, and whether there were enough.

use super::{Plot, folded, heading, put, sentence};
use crate::engine::quant::checks::convergence::Convergence;
use crate::engine::quant::checks::{Check, Severity};
use crate::engine::quant::report::Findings;

/// What was seen in the data.
pub fn section(page: &mut String, f: &Findings) {
    if f.data_checks.is_empty() && f.convergence.is_none() {
        return;
    }
    let serious = f.data_checks.iter().filter(|c| c.severity > Severity::Note);
    let (serious, notes): (Vec<&Check>, Vec<&Check>) =
        (serious.collect(), f.data_checks.iter().filter(|c| c.severity == Severity::Note).collect());
    let what = match serious.len() {
        0 => "Nothing in the calibration and evaluation data looks wrong.",
        _ => {
            "What looks wrong with the calibration or evaluation data. Both models read the same samples: what is wrong here, no quantizer can mend."
        }
    };
    heading(page, "Data", what);
    serious.iter().for_each(|check| boxed(page, check));
    let mut body = String::new();
    notes.iter().for_each(|check| boxed(&mut body, check));
    if let Some(convergence) = f.convergence.as_ref().filter(|c| c.curve.len() > 2) {
        settled(&mut body, convergence);
    }
    if !body.is_empty() {
        let summary = match notes.len() {
            0 => "How ranges settled".to_owned(),
            1 => "One note".to_owned(),
            n => format!("{n} notes"),
        };
        folded(page, serious.is_empty(), &summary, &body);
    }
}

fn boxed(page: &mut String, check: &Check) {
    let severity = match check.severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    put(
        page,
        format_args!(
            "<div class=\"box {severity}\"><span class=\"chip {severity}\">{}</span><p>{}</p><p class=\"dim\">{}</p></div>",
            check.code.replace('_', " "),
            sentence(&check.text),
            sentence(&check.remedy)
        ),
    );
}

/// How ranges grew with the samples.
fn settled(page: &mut String, c: &Convergence) {
    let most = c.curve.iter().map(|p| 100.0 * p.1).fold(1.0, f64::max);
    let place = |samples: usize| (samples as f64).log2();
    let mut plot = Plot::new((0.0, place(c.samples)), (0.0, most));
    plot.across(0.0, "0 %");
    plot.across(most, &format!("{most:.0} %"));
    plot.line("", c.curve.iter().map(|p| (place(p.0), 100.0 * p.1)));
    for (samples, narrower) in &c.curve {
        let title = format!("{samples} samples: {:.1} % narrower", 100.0 * narrower);
        plot.dot("", place(*samples), 100.0 * narrower, &title);
    }
    let shown =
        c.curve.iter().map(|p| p.0).filter(|k| k.is_power_of_two() && place(c.samples) - place(*k) > 0.7);
    shown.for_each(|samples| plot.below(place(samples), &samples.to_string()));
    plot.below(place(c.samples), &c.samples.to_string());
    let html = plot.finish("how much narrower ranges are with fewer samples");
    put(
        page,
        format_args!(
            "<div class=\"box\"><h3>How much narrower ranges are with fewer calibration samples</h3>{}</div>",
            html.replacen("class=\"plot\"", "class=\"plot low\"", 1)
        ),
    );
}
