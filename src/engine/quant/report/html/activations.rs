//! The section on activations: what was seen in calibration, the range that was chosen, and what is beyond it.

use super::{escape, folded, heading, name, put, short};
use crate::engine::quant::report::Activation;

/// Pictures that are shown from the start: the noisiest.
const SHOWN: usize = 12;

/// Pictures of the values that have codes.
pub fn section(page: &mut String, rows: &[Activation]) {
    if rows.is_empty() {
        return;
    }
    heading(
        page,
        "Activations",
        "Values seen in calibration (counts on a logarithmic scale). The shaded span is what the codes stand for; what is red saturates.",
    );
    let mut sorted: Vec<&Activation> = rows.iter().collect();
    if rows.len() > SHOWN {
        let noise = |a: &Activation| a.sqnr_db.unwrap_or(f64::INFINITY);
        sorted.sort_by(|a, b| noise(a).total_cmp(&noise(b)));
    }
    let (first, rest) = sorted.split_at(sorted.len().min(SHOWN));
    put(page, format_args!("<div class=\"grid\">"));
    first.iter().for_each(|row| card(page, row));
    put(page, format_args!("</div>"));
    if !rest.is_empty() {
        let mut body = "<div class=\"grid\">".to_owned();
        rest.iter().for_each(|row| card(&mut body, row));
        body.push_str("</div>");
        folded(page, false, &format!("{} more, with less noise", rest.len()), &body);
    }
}

fn card(page: &mut String, row: &Activation) {
    let sqnr = row.sqnr_db.map_or("exact".to_owned(), |db| format!("{db:.1} dB"));
    let wide = if row.bits > 8 { format!(" of {} bits", row.bits) } else { String::new() };
    let clipped = if row.clipped > 0.001 { " class=\"poor\"" } else { "" };
    put(
        page,
        format_args!(
            "<div class=\"act\"><b>{}</b>{}<div class=\"ends\"><span>{}</span><span>{}</span></div>\
             <p>codes{wide} for {} … {} by {} · {sqnr}</p><p><span{clipped}>{:.3} % clipped</span> · {:.0} % zeros</p></div>",
            name(&row.value),
            picture(row),
            short(row.min.min(row.lo)),
            short(row.max.max(row.hi)),
            short(row.lo),
            short(row.hi),
            row.method,
            100.0 * row.clipped,
            100.0 * row.zeros
        ),
    );
}

/// The histogram with the span of the codes: one path for what is within, one for what is beyond; 240 × 84 units.
fn picture(row: &Activation) -> String {
    let (width, height) = (240.0, 84.0);
    let (least, most) = (row.min.min(row.lo), row.max.max(row.hi));
    let span = if most > least { most - least } else { 1.0 };
    let x = |value: f64| (value - least) / span * width;
    let tallest = row.histogram.iter().max().map_or(1.0, |&n| (n as f64).ln_1p()).max(1e-9);
    let step = (row.max - row.min) / row.histogram.len().max(1) as f64;
    let (mut within, mut beyond) = (String::new(), String::new());
    for (i, &count) in row.histogram.iter().enumerate().filter(|(_, n)| **n > 0) {
        let from = row.min + step * i as f64;
        let left = x(from);
        let bar = (x(from + step) - left - 0.3).max(0.6);
        let tall = ((count as f64).ln_1p() / tallest * (height - 4.0)).max(1.0);
        let centre = from + 0.5 * step;
        let path = if centre < row.lo || centre > row.hi { &mut beyond } else { &mut within };
        put(path, format_args!("M{left:.1} {height}v-{tall:.1}h{bar:.1}v{tall:.1}z"));
    }
    let (lo, hi) = (x(row.lo), x(row.hi));
    let zero = if least <= 0.0 && most >= 0.0 { x(0.0) } else { -1.0 };
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Histogram of {}: {} to {}, codes from {} to {}\">\
         <rect x=\"{lo:.1}\" width=\"{:.1}\" height=\"{height}\" fill=\"var(--kept)\"/>\
         <path d=\"M{zero:.1} 0V{height}\" stroke=\"var(--line)\" vector-effect=\"non-scaling-stroke\"/>\
         <path d=\"{within}\" fill=\"var(--accent)\"/><path d=\"{beyond}\" fill=\"var(--bad)\"/>\
         <path d=\"M{lo:.1} 0V{height}M{hi:.1} 0V{height}\" stroke=\"var(--accent)\" stroke-dasharray=\"3 3\" vector-effect=\"non-scaling-stroke\"/></svg>",
        escape(&row.value),
        short(row.min),
        short(row.max),
        short(row.lo),
        short(row.hi),
        (hi - lo).max(0.5)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_tells_what_is_beyond_the_range() {
        let row = Activation {
            value: "x".to_owned(),
            bits: 8,
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
            histogram: vec![0, 1, 5, 2],
        };
        let svg = picture(&row);
        assert!(svg.contains("<rect x=\"30.0\" width=\"150.0\""), "{svg}");
        let bars = |fill: &str| {
            let end = svg.find(&format!("\" fill=\"var(--{fill})\"/><path")).unwrap();
            svg[svg[..end].rfind("d=\"").unwrap()..end].matches('M').count()
        };
        assert_eq!((bars("accent"), bars("bad")), (2, 1), "{svg}");
    }
}
