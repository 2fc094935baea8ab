//! The words that the pages share: how text, bytes, times and shares are written in HTML. Knows no page.

pub(crate) mod artifacts;
pub(crate) mod assets;
pub(crate) mod datasets;
pub(crate) mod docs;
pub(crate) mod endpoints;
pub(crate) mod frame;
pub(crate) mod jobs;
pub(crate) mod models;
pub(crate) mod overview;
pub(crate) mod result;
pub(crate) mod rollout;
pub(crate) mod sign_in;

use std::fmt;

use crate::service::store::{AccuracySummary, Timestamp};

/// Marks an answer as a page for people: its body stays, whatever its status is.
#[derive(Clone, Copy)]
pub(crate) struct ForPeople;

/// Adds to a page. A `String` takes everything.
pub(crate) fn put(html: &mut String, arguments: fmt::Arguments<'_>) {
    let _ = fmt::Write::write_fmt(html, arguments);
}

/// Text that a browser shows as it is, between tags and in attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Escaped text in which what stands in backquotes is code, and an empty line begins a paragraph.
pub(crate) fn prose(text: &str) -> String {
    let mut html = String::new();
    for paragraph in text.split("\n\n").filter(|p| !p.trim().is_empty()) {
        html.push_str("<p>");
        let parts: Vec<&str> = paragraph.split('`').collect();
        for (i, part) in parts.iter().enumerate() {
            match (i % 2 == 1, i + 1 < parts.len()) {
                (true, true) => put(&mut html, format_args!("<code>{}</code>", escape(part))),
                // The last backquote has no partner.
                (true, false) => put(&mut html, format_args!("`{}", escape(part))),
                (false, _) => html.push_str(&escape(part)),
            }
        }
        html.push_str("</p>");
    }
    html
}

/// The end of an id: its beginning is the time, and alike for all of a day.
pub(crate) fn short(id: &str) -> String {
    let (kind, digits) = id.split_once('_').unwrap_or(("", id));
    format!("{kind}_…{}", digits.get(digits.len().saturating_sub(8)..).unwrap_or(digits))
}

/// `12.3 kB`.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

/// A count in few digits: `44.4 k`.
pub(crate) fn large(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{:.1} k", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} G", count as f64 / 1e9),
    }
}

/// How many: `1 sample`, `2 samples`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A share in per cent: `98.75 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Milliseconds with three digits that count.
pub(crate) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0} µs", ms * 1e3),
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1e3),
    }
}

/// How much faster or slower: `1.62×`.
pub(crate) fn times(before: f64, after: f64) -> String {
    if after > 0.0 { format!("{:.2}×", before / after) } else { "–".to_owned() }
}

/// A moment as people say it, with the exact one as its title. The script keeps it true.
pub(crate) fn ago(at: Timestamp, now: Timestamp) -> String {
    let words = ago_words(now.seconds_since(at));
    format!("<time datetime=\"{at}\" title=\"{at}\">{words}</time>")
}

fn ago_words(seconds: f64) -> String {
    let (count, unit) = match seconds {
        s if s < 10.0 => return "just now".to_owned(),
        s if s < 60.0 => (s, "s"),
        s if s < 3_600.0 => (s / 60.0, "min"),
        s if s < 86_400.0 => (s / 3_600.0, "h"),
        s => (s / 86_400.0, "d"),
    };
    format!("{} {unit} ago", count.floor())
}

/// A duration: `4.2 s`, `3 min 5 s`.
pub(crate) fn lasting(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => millis(s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3_600.0 => format!("{} min {} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s => format!("{} h {} min", (s / 3_600.0).floor(), (s % 3_600.0 / 60.0).floor()),
    }
}

/// What the accuracy of an artifact is called.
pub(crate) fn metric_name(accuracy: &AccuracySummary) -> &str {
    match accuracy.metric.as_str() {
        "top1" => "Top-1 accuracy",
        "top5" => "Top-5 accuracy",
        "agreement" => "Agreement with float",
        other => other,
    }
}

/// The difference in points, with its sign: `−0.10 points`.
pub(crate) fn points(delta: f64) -> String {
    let points = delta * 100.0;
    if points.abs() < 0.005 {
        return "no change".to_owned();
    }
    format!("{}{:.2} points", if points < 0.0 { "−" } else { "+" }, points.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_stranger_wrote_becomes_markup() {
        assert_eq!(escape("<script>\"'&"), "&lt;script&gt;&quot;&#39;&amp;");
        assert_eq!(
            prose("a `<b>` c\n\n<i>d</i>"),
            "<p>a <code>&lt;b&gt;</code> c</p><p>&lt;i&gt;d&lt;/i&gt;</p>"
        );
        assert_eq!(prose("odd ` <one>"), "<p>odd ` &lt;one&gt;</p>");
    }

    #[test]
    fn figures_read_well() {
        for (seconds, want) in [
            (0.0, "just now"),
            (9.9, "just now"),
            (10.0, "10 s ago"),
            (59.9, "59 s ago"),
            (60.0, "1 min ago"),
            (7_200.0, "2 h ago"),
            (90_000.0, "1 d ago"),
        ] {
            assert_eq!(ago_words(seconds), want);
        }
        assert_eq!(points(-0.001), "−0.10 points");
        assert_eq!(points(0.0), "no change");
        assert_eq!((counted(1, "sample"), counted(0, "sample")), ("1 sample".into(), "0 samples".into()));
        assert_eq!(
            (millis(0.087), millis(1.5), millis(1_500.0)),
            ("87 µs".into(), "1.50 ms".into(), "1.50 s".into())
        );
        assert_eq!(
            (bytes(999), bytes(1_500), bytes(2_000_000)),
            ("999 B".into(), "1.5 kB".into(), "2.0 MB".into())
        );
    }
}
