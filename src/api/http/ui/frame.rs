//! The frame of every page: head, navigation, main, foot; tables, chips, cards; what a page may load.

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use crate::api::error::Problem;
use crate::api::http::ui::{ForPeople, assets, escape, put};
use crate::service::infer::registry::State as Loaded;
use crate::service::store::{Cursor, JobState, Precision};

/// Scripts, styles and pictures of ours, requests to us, nothing else, whatever a name or a message holds.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The pages of the navigation: path and name.
const NAVIGATION: [(&str, &str); 7] = [
    ("/", "Overview"),
    ("/models", "Models"),
    ("/datasets", "Datasets"),
    ("/jobs", "Jobs"),
    ("/artifacts", "Artifacts"),
    ("/endpoints", "Endpoints"),
    ("/docs", "API"),
];

/// A page in its frame. `place` is the path of the navigation it belongs to, `title` plain text, `main` HTML.
pub(crate) fn page(place: &str, title: &str, main: &str) -> Response {
    let mut html = String::with_capacity(main.len() + 4_096);
    let title = match place {
        "/" => "Octet".to_owned(),
        _ => format!("{} · Octet", escape(title)),
    };
    put(
        &mut html,
        format_args!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title>\
             <link rel=\"icon\" href=\"{}\"><link rel=\"stylesheet\" href=\"{}\">\
             <script type=\"module\" src=\"{}\"></script></head><body>\
             <a class=\"skip\" href=\"#main\">Skip to content</a>\
             <header class=\"top\"><div class=\"bar\"><a class=\"brand\" href=\"/\">\
             <svg viewBox=\"0 0 32 32\" aria-hidden=\"true\"><rect width=\"32\" height=\"32\" rx=\"8\"/>\
             <path d=\"M8 9h4v4H8zM14 9h4v4h-4zM20 9h4v4h-4zM8 15h4v4H8zM20 15h4v4h-4zM8 21h4v2H8zM14 21h4v2h-4zM20 21h4v2h-4z\"/>\
             </svg>Octet</a><nav aria-label=\"Main\">",
            assets::href("icon.svg"),
            assets::href("style.css"),
            assets::href("app.js"),
        ),
    );
    for (path, name) in NAVIGATION {
        let current = if path == place { " aria-current=\"page\"" } else { "" };
        put(&mut html, format_args!("<a href=\"{path}\"{current}>{name}</a>"));
    }
    put(
        &mut html,
        format_args!(
            "</nav></div></header><main id=\"main\" tabindex=\"-1\">{main}</main>\
             <footer><span>Octet {}</span><a href=\"/docs\">API reference</a>\
             <a href=\"/openapi.yaml\">openapi.yaml</a><a href=\"/metrics\">Metrics</a>\
             <a href=\"/login\">Access</a></footer>\
             <div id=\"announce\" class=\"unseen\" role=\"status\" aria-live=\"polite\"></div></body></html>",
            env!("CARGO_PKG_VERSION")
        ),
    );
    let fields = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("referrer-policy"), "same-origin"),
    ];
    (fields, Html(html)).into_response()
}

/// A page that tells why there is none.
pub(crate) fn refused(place: &str, problem: &Problem) -> Response {
    let status = problem.code.status();
    let mut main = String::new();
    head(&mut main, problem.code.title(), &escape(&problem.detail), "");
    let back = if place == "/" { "Go to the overview" } else { "Go back to the list" };
    put(&mut main, format_args!("<p><a class=\"button\" href=\"{place}\">{back}</a></p>"));
    let mut response = page(place, problem.code.title(), &main);
    *response.status_mut() = status;
    response.extensions_mut().insert(ForPeople);
    response
}

/// Gives the page, or the page that tells why not. Faults of ours go to the log as ever.
pub(crate) fn shown(place: &str, page: Result<Response, Problem>) -> Result<Response, Problem> {
    match page {
        Err(problem) if problem.code.status() != StatusCode::INTERNAL_SERVER_ERROR => {
            Ok(refused(place, &problem))
        }
        page => page,
    }
}

/// The heading of a page: `title` is plain text; `sub` and `actions` are HTML.
pub(crate) fn head(html: &mut String, title: &str, sub: &str, actions: &str) {
    put(html, format_args!("<div class=\"head\"><div><h1>{}</h1>", escape(title)));
    if !sub.is_empty() {
        put(html, format_args!("<p class=\"sub\">{sub}</p>"));
    }
    html.push_str("</div>");
    if !actions.is_empty() {
        put(html, format_args!("<div class=\"actions\">{actions}</div>"));
    }
    html.push_str("</div>");
}

/// A heading of a table: its text, and whether numbers stand under it.
pub(crate) type Column = (&'static str, bool);

/// A table that scrolls by itself where it is wider than the page. `rows` are cells of HTML.
pub(crate) fn table(html: &mut String, label: &str, columns: &[Column], rows: &[Vec<String>]) {
    put(
        html,
        format_args!(
            "<div class=\"wrap\" role=\"region\" aria-label=\"Table: {}\" tabindex=\"0\"><table><thead><tr>",
            escape(label)
        ),
    );
    for (text, number) in columns {
        let class = if *number { " class=\"r\"" } else { "" };
        match text.is_empty() {
            true => put(html, format_args!("<td{class}></td>")),
            false => put(html, format_args!("<th scope=\"col\"{class}>{text}</th>")),
        }
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows {
        html.push_str("<tr>");
        for (cell, (_, number)) in row.iter().zip(columns) {
            let class = if *number { " class=\"r\"" } else { "" };
            put(html, format_args!("<td{class}>{cell}</td>"));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
}

/// The link to the next part of a list, where there is one.
pub(crate) fn older(html: &mut String, place: &str, next: Option<&Cursor>) {
    if let Some(next) = next {
        put(
            html,
            format_args!(
                "<p class=\"row\"><a class=\"button\" rel=\"next\" href=\"{place}?cursor={}\">Older ones</a></p>",
                escape(&next.to_string())
            ),
        );
    }
}

/// What stands where there is nothing yet: a sentence, and the command that changes it. `text` is HTML; in `command`,
/// which is plain text, `$OCTET` is the address of the server.
pub(crate) fn empty(html: &mut String, text: &str, command: &str) {
    put(html, format_args!("<div class=\"empty\"><p>{text}</p>"));
    if !command.is_empty() {
        curl(html, command);
    }
    html.push_str("</div>");
}

/// A command to copy. The script puts the address of the server in the place of `$OCTET`.
pub(crate) fn curl(html: &mut String, command: &str) {
    put(
        html,
        format_args!(
            "<div class=\"code\"><pre tabindex=\"0\"><code data-curl>{}</code></pre></div>",
            escape(command)
        ),
    );
}

/// A figure with its name and a note, all HTML.
pub(crate) fn card(html: &mut String, key: &str, value: &str, note: &str) {
    put(
        html,
        format_args!(
            "<div class=\"card\"><div class=\"k\">{key}</div><div class=\"v\">{value}</div><div class=\"n\">{note}</div></div>"
        ),
    );
}

/// The state of a job, in a colour and in a word.
pub(crate) fn job_chip(state: JobState) -> String {
    let (class, word) = match state {
        JobState::Queued => ("wait", "queued"),
        JobState::Running => ("busy", "running"),
        JobState::Succeeded => ("good", "succeeded"),
        JobState::GateFailed => ("bad", "gate failed"),
        JobState::Failed => ("bad", "failed"),
        JobState::Cancelled => ("wait", "cancelled"),
    };
    chip(class, word)
}

/// The state of a version of an endpoint.
pub(crate) fn state_chip(state: &Loaded) -> String {
    match state {
        Loaded::Ready(_) => chip("good", "ready"),
        Loaded::Loading => chip("busy", "loading"),
        Loaded::Failed(..) => chip("bad", "failed"),
        Loaded::Unloaded => chip("wait", "unloaded"),
        Loaded::Evicted => chip("wait", "made room"),
    }
}

/// In what numbers, as people write it.
pub(crate) fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "FP32",
        Precision::Fp16 => "float16",
        Precision::Int8 => "INT8",
    }
}

/// A word with a dot of its colour: the colour never says it alone.
pub(crate) fn chip(class: &str, word: &str) -> String {
    format!("<span class=\"chip {class}\">{word}</span>")
}

/// A button that asks before it does something: the script sends `method` to `path`, and goes to `then`.
pub(crate) struct Act<'a> {
    /// What stands on it.
    pub(crate) label: &'a str,
    /// The question, plain text.
    pub(crate) question: &'a str,
    /// `DELETE`, `POST` or `PUT`.
    pub(crate) method: &'a str,
    /// Where to.
    pub(crate) path: &'a str,
    /// The body, JSON; empty for none.
    pub(crate) body: &'a str,
    /// The `If-Match`; empty for none.
    pub(crate) if_match: &'a str,
    /// The page to go to afterwards.
    pub(crate) then: &'a str,
    /// Whether something is lost by it.
    pub(crate) danger: bool,
}

impl Act<'_> {
    /// The button.
    pub(crate) fn button(&self) -> String {
        let class = if self.danger { "button danger" } else { "button" };
        let mut html = format!(
            "<button type=\"button\" class=\"{class}\" data-act=\"{}\" data-path=\"{}\" data-question=\"{}\" data-then=\"{}\"",
            self.method,
            escape(self.path),
            escape(self.question),
            escape(self.then)
        );
        for (name, value) in [("body", self.body), ("match", self.if_match)] {
            if !value.is_empty() {
                put(&mut html, format_args!(" data-{name}=\"{}\"", escape(value)));
            }
        }
        put(&mut html, format_args!(">{}</button>", escape(self.label)));
        html
    }
}

/// Options of a `select`, of which one may be chosen: value and text, both plain.
pub(crate) fn options(html: &mut String, choices: &[(String, String)], chosen: Option<&str>) {
    for (value, text) in choices {
        let selected = if chosen == Some(value.as_str()) { " selected" } else { "" };
        put(html, format_args!("<option value=\"{}\"{selected}>{}</option>", escape(value), escape(text)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::Code;

    #[tokio::test]
    async fn a_page_loads_nothing_but_ours_and_says_where_one_is() {
        let response = page("/jobs", "a<b", "<p>x</p>");
        let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("<title>a&lt;b · Octet</title>"), "{text}");
        assert!(text.contains("<a href=\"/jobs\" aria-current=\"page\">"), "{text}");
        assert!(!text.contains("style=") && !text.contains("<style") && !text.contains("onclick"), "{text}");
    }

    #[test]
    fn what_is_not_there_is_told_on_a_page() {
        let response = refused("/jobs", &Problem::new(Code::NotFound, "no job `<x>`"));
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert!(response.extensions().get::<ForPeople>().is_some());
        let fault = shown("/jobs", Err(Problem::internal("secret")));
        assert!(fault.is_err(), "the log must hear of it");
    }
}
