//! The report as one self-contained page: inline style and pictures, light and dark, wide and narrow, nothing from
//! elsewhere. Here is what its sections share: writing, numbers for people, bars, plots.

pub mod accuracy;
pub mod activations;
pub mod data;
pub mod difference;
pub mod layers;
pub mod page;
pub mod search;
pub mod style;

use std::fmt::{Arguments, Write};

/// Most rows of a table that are shown.
pub const ROWS_MAX: usize = 200;
/// Decibels that fill a bar.
const BAR_FULL_DB: f64 = 60.0;
/// Decibels from which on two results are called the same.
pub const EXACT_DB: f64 = 200.0;

/// Appends text.
pub fn put(page: &mut String, text: Arguments<'_>) {
    page.write_fmt(text).expect("a string takes everything");
}

/// Text that a stranger chose, as HTML shows it.
pub fn escape(text: &str) -> String {
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

/// A sentence, with what stands in backquotes as code.
pub fn prose(text: &str) -> String {
    let parts: Vec<String> = text.split('`').map(escape).collect();
    if parts.len().is_multiple_of(2) {
        // One quote too many: a name has one in it.
        return escape(text);
    }
    let code = |(n, part): (usize, String)| if n % 2 == 1 { format!("<code>{part}</code>") } else { part };
    parts.into_iter().enumerate().map(code).collect()
}

/// Text of a check or a finding, which begins and ends as the JSON has it, as a sentence of its own.
pub fn sentence(text: &str) -> String {
    let mut letters = text.trim().chars();
    let first = letters.next().map_or(String::new(), |c| c.to_uppercase().collect());
    let end = if text.is_empty() || text.ends_with(['.', '!', '?', ':']) { "" } else { "." };
    prose(&format!("{first}{}{end}", letters.as_str()))
}

/// A long name with places where a narrow page may break it.
pub fn name(text: &str) -> String {
    escape(text).replace('/', "/<wbr>").replace('.', ".<wbr>").replace('_', "_<wbr>")
}

/// The page with what every table owes to readers who are told of it, or who have no mouse: headings that say which
/// cells they are of and stand on every printed page, a name, and a place in the order of the keys, since wide ones
/// scroll. At the end, so that none forgets it. Nothing else begins so: what strangers wrote is escaped.
pub fn finished(page: &str) -> String {
    let page = page.replace("<th>", "<th scope=\"col\">").replace("<th class=", "<th scope=\"col\" class=");
    let mut parts = page.split("<div class=\"wrap\"><table><tr>");
    let mut done = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // A table is called by what is over it.
        let title =
            ["<h2>", "<summary>"].map(|tag| done.rfind(tag).map(|at| at + tag.len())).into_iter().max();
        let title = title.flatten().map_or("", |at| done[at..].split('<').next().unwrap_or_default());
        let region = format!(
            "<div class=\"wrap\" role=\"region\" aria-label=\"Table: {title}\" tabindex=\"0\"><table><thead><tr>"
        );
        done.push_str(&region);
        done.push_str(&part.replacen("<tr>", "<tbody><tr>", 1));
    }
    done
}

/// How many, in words: `1 sample`, `2 samples`.
pub fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// The beginning of a section.
pub fn heading(page: &mut String, title: &str, what: &str) {
    put(page, format_args!("<h2>{title}</h2>"));
    if !what.is_empty() {
        put(page, format_args!("<p class=\"sub\">{what}</p>"));
    }
}

/// Something that opens at a click; open from the start where it is short.
pub fn folded(page: &mut String, open: bool, summary: &str, body: &str) {
    let open = if open { " open" } else { "" };
    put(page, format_args!("<details{open}><summary>{summary}</summary>{body}</details>"));
}

/// How good a number of decibels is: a class of the style.
pub fn grade(db: f64) -> &'static str {
    match db {
        db if db >= 30.0 => "good",
        db if db >= 20.0 => "fair",
        _ => "poor",
    }
}

/// Decibels in words.
pub fn decibels(db: f64) -> String {
    if db >= EXACT_DB { "exact".to_owned() } else { format!("{db:.1} dB") }
}

/// A bar of decibels with its number.
pub fn bar(db: Option<f64>) -> String {
    let Some(db) = db else { return "<span class=\"dim\">–</span>".to_owned() };
    let (class, width) = (grade(db), (100.0 * db / BAR_FULL_DB).clamp(2.0, 100.0));
    format!(
        "<span class=\"bar\"><i class=\"{class}\" style=\"width:{width:.0}%\"></i></span><span class=\"n\">{}</span>",
        decibels(db)
    )
}

/// A picture with axes that fills the width of the page: shapes in an SVG that is stretched, texts beside it in HTML, so
/// that letters and dots keep their size on a phone.
pub struct Plot {
    shapes: String,
    labels: String,
    x: (f64, f64),
    y: (f64, f64),
}

impl Plot {
    /// A plot of these ends of the axes.
    pub fn new(x: (f64, f64), y: (f64, f64)) -> Plot {
        let wide = |(lo, hi): (f64, f64)| if hi > lo { (lo, hi) } else { (lo - 0.5, lo + 0.5) };
        Plot { shapes: String::new(), labels: String::new(), x: wide(x), y: wide(y) }
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let part = |v: f64, (lo, hi): (f64, f64)| (100.0 * (v - lo) / (hi - lo)).clamp(0.0, 100.0);
        (part(x, self.x), 100.0 - part(y, self.y))
    }

    /// A shaded span between two heights.
    pub fn band(&mut self, from: f64, to: f64, class: &str) {
        let (top, bottom) = (self.at(0.0, to).1, self.at(0.0, from).1);
        if bottom > top {
            put(
                &mut self.shapes,
                format_args!(
                    "<rect class=\"band {class}\" y=\"{top:.2}\" width=\"100\" height=\"{:.2}\"/>",
                    bottom - top
                ),
            );
        }
    }

    /// A line across at a height, with its label at the left.
    pub fn across(&mut self, y: f64, label: &str) {
        let (_, at) = self.at(self.x.0, y);
        put(&mut self.shapes, format_args!("<path class=\"rule\" d=\"M0 {at:.2}H100\"/>"));
        put(&mut self.labels, format_args!("<span class=\"y\" style=\"top:{at:.2}%\">{label}</span>"));
    }

    /// A label below.
    pub fn below(&mut self, x: f64, label: &str) {
        let (at, _) = self.at(x, self.y.0);
        put(&mut self.labels, format_args!("<span class=\"x\" style=\"left:{at:.2}%\">{label}</span>"));
    }

    /// A line through points.
    pub fn line(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = self.at(x, y);
            let to = if path.is_empty() { 'M' } else { 'L' };
            put(&mut path, format_args!("{to}{x:.2} {y:.2}"));
        }
        put(&mut self.shapes, format_args!("<path class=\"line {class}\" d=\"{path}\"/>"));
    }

    /// A dot with a text that shows when it is pointed at.
    pub fn dot(&mut self, class: &str, x: f64, y: f64, title: &str) {
        let (x, y) = self.at(x, y);
        put(
            &mut self.shapes,
            format_args!(
                "<path class=\"dot {class}\" d=\"M{x:.2} {y:.2}h0\"><title>{}</title></path>",
                escape(title)
            ),
        );
    }

    /// The whole, for readers that see and readers that are told.
    pub fn finish(self, told: &str) -> String {
        format!(
            "<div class=\"plot\"><svg viewBox=\"0 0 100 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">{}</svg>{}</div>",
            escape(told),
            self.shapes,
            self.labels
        )
    }
}

/// A share in per cent, with two digits below 100.
pub fn percent(share: f64) -> String {
    if share >= 1.0 { "100 %".to_owned() } else { format!("{:.2} %", 100.0 * share) }
}

/// A number of bytes.
pub fn bytes(n: u64) -> String {
    match n {
        n if n < 10_000 => format!("{n} B"),
        n if n < 1_000_000 => format!("{:.0} kB", n as f64 / 1e3),
        n => format!("{:.1} MB", n as f64 / 1e6),
    }
}

/// A time.
pub fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0} µs", 1e3 * ms),
        ms if ms < 100.0 => format!("{ms:.2} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// Three significant digits or so.
pub fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.2e}"),
        a if a < 1.0 => format!("{x:.3}"),
        a if a < 100.0 => format!("{x:.2}"),
        _ => format!("{x:.0}"),
    }
}

/// A large count: `12.3 M`.
pub fn large(n: u64) -> String {
    match n {
        n if n < 10_000 => n.to_string(),
        n if n < 1_000_000 => format!("{:.0} k", n as f64 / 1e3),
        n if n < 1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        n => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// Digits in groups of three.
pub fn grouped(n: u64) -> String {
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
        assert_eq!(prose("of `<a>` and b"), "of <code>&lt;a&gt;</code> and b");
        assert_eq!(prose("odd ` one"), "odd ` one");
        assert_eq!(name("a<b/c.d"), "a&lt;b/<wbr>c.<wbr>d");
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
        assert_eq!(
            (counted(1, "node"), counted(1_000, "node")),
            ("1 node".into(), "1\u{202f}000 nodes".into())
        );
        assert_eq!(bytes(125_000), "125 kB");
        assert_eq!(large(12_345_678), "12.3 M");
        assert_eq!((percent(1.0), percent(0.9967)), ("100 %".to_owned(), "99.67 %".to_owned()));
    }

    #[test]
    fn tables_have_headings_of_columns_a_name_and_are_reached_by_keys() {
        let table = "<div class=\"wrap\"><table><tr><th>a<th class=\"r\">b<tr><td>1<td>2<tr><td>3<td>4";
        let page = finished(&format!("<h2>One</h2>{table}<summary>Two</summary>{table}"));
        for name in ["One", "Two"] {
            let want = format!(
                "<div class=\"wrap\" role=\"region\" aria-label=\"Table: {name}\" tabindex=\"0\"><table><thead><tr>\
                 <th scope=\"col\">a<th scope=\"col\" class=\"r\">b<tbody><tr><td>1<td>2<tr><td>3<td>4"
            );
            assert!(page.contains(&want), "{page}");
        }
    }

    #[test]
    fn a_finding_is_a_sentence() {
        for (text, want) in [
            ("noise of `a` adds up", "Noise of <code>a</code> adds up."),
            ("`x` is 3 %", "<code>x</code> is 3 %."),
            ("Done.", "Done."),
            ("", ""),
        ] {
            assert_eq!(sentence(text), want);
        }
    }

    #[test]
    fn a_plot_stays_within_its_frame() {
        let mut plot = Plot::new((0.0, 4.0), (0.0, 50.0));
        plot.dot("a", 2.0, 25.0, "<middle>");
        plot.dot("a", 9.0, -30.0, "outside");
        let html = plot.finish("told");
        assert!(
            html.contains("M50.00 50.00h0\"><title>&lt;middle&gt;") && html.contains("M100.00 100.00h0"),
            "{html}"
        );
        assert!(Plot::new((1.0, 1.0), (2.0, 2.0)).at(1.0, 2.0).0.is_finite());
    }
}
