//! Artifacts: the list, and the page of one: figures, report, download, serving it.

use axum::extract::{Path, State};
use axum::response::Response;

use crate::api::error::Problem;
use crate::api::http::fields::Query;
use crate::api::http::ui::frame::{self, Act};
use crate::api::http::ui::result::{self, accuracy_line, figures, verdict};
use crate::api::http::ui::{ago, escape, put, short, times};
use crate::api::http::{PageQuery, Shared, page as page_of};
use crate::service::store::{Artifact, ArtifactFilter, ArtifactId, Page, Slice, Timestamp};

/// The list.
pub(crate) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    frame::shown("/artifacts", listed(&shared, &query).await)
}

async fn listed(shared: &Shared, query: &PageQuery) -> Result<Response, Problem> {
    let page = page_of(query.limit, query.cursor.as_deref())?;
    let Slice { items: artifacts, next } =
        shared.catalog.artifacts(&ArtifactFilter::default(), &page).await?;
    let mut html = String::new();
    let says = "What jobs made: standard ONNX files, each with its report.";
    frame::head(&mut html, "Artifacts", says, "");
    table(&mut html, &artifacts, (shared.clock)());
    frame::older(&mut html, "/artifacts", next.as_ref());
    Ok(frame::page("/artifacts", "Artifacts", &html))
}

/// A table of artifacts.
pub(crate) fn table(html: &mut String, artifacts: &[Artifact], now: Timestamp) {
    if artifacts.is_empty() {
        let text = "No artifacts yet. <a href=\"/jobs/new\">A job</a> makes one.";
        return frame::empty(html, text, "");
    }
    let row = |artifact: &Artifact| {
        let id = artifact.id;
        let name = short(&id.to_string());
        vec![
            format!("<a class=\"name\" href=\"/artifacts/{id}\">{name}</a>"),
            format!(
                "<span class=\"long\">{}</span> <span class=\"dim\">in {}</span>",
                escape(&artifact.model.to_string()),
                frame::precision(artifact.precision())
            ),
            accuracy_line(artifact.accuracy.float, artifact.accuracy.int8),
            format!("{:.0} %", artifact.size_ratio * 100.0),
            times(artifact.latency.float_ms, artifact.latency.int8_ms),
            gate(artifact),
            ago(artifact.created_at, now),
            format!("<a class=\"button\" href=\"/v1/artifacts/{id}/report.html\">Report</a>"),
        ]
    };
    let rows: Vec<_> = artifacts.iter().map(row).collect();
    let columns = [
        ("Artifact", false),
        ("Model", false),
        ("Accuracy, float → artifact", false),
        ("Size", true),
        ("Speed", true),
        ("Gate", false),
        ("Made", false),
        ("", false),
    ];
    frame::table(html, "Artifacts", &columns, &rows);
}

fn gate(artifact: &Artifact) -> String {
    let asked =
        artifact.manifest["recipe"]["gate"].as_object().is_some_and(|g| g.values().any(|v| !v.is_null()));
    match &artifact.gate_failure {
        Some(_) => frame::chip("bad", "not kept"),
        None if asked => frame::chip("good", "kept"),
        None => frame::chip("wait", "none set"),
    }
}

/// The page of an artifact.
pub(crate) async fn one(State(shared): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    frame::shown("/artifacts", artifact_page(&shared, &id).await)
}

async fn artifact_page(shared: &Shared, id: &str) -> Result<Response, Problem> {
    let id: ArtifactId = id.parse()?;
    let artifact = shared.catalog.artifact(id).await?;
    let siblings = ArtifactFilter { model: Some(artifact.model.name.clone()), job: None };
    let siblings = shared.catalog.artifacts(&siblings, &Page::first(21)).await?.items;
    let now = (shared.clock)();
    let mut html = String::new();
    let path = format!("/v1/artifacts/{id}");
    let delete = Act {
        label: "Delete",
        question: "Delete this artifact and its report? What an endpoint serves is refused.",
        method: "DELETE",
        path: &path,
        body: "",
        if_match: "",
        then: "/artifacts",
        danger: true,
    };
    let actions = format!(
        "<a class=\"button primary\" href=\"{path}/report.html\">Open the report</a>\
         <a class=\"button\" href=\"{path}/download\">Download</a>{}",
        delete.button()
    );
    let sub = format!("<code>{id}</code> made {}", ago(artifact.created_at, now));
    frame::head(
        &mut html,
        &format!("{} in {}", artifact.model, frame::precision(artifact.precision())),
        &sub,
        &actions,
    );
    let recipe = &artifact.manifest["recipe"];
    verdict(&mut html, artifact.gate_failure.as_deref(), recipe);
    figures(&mut html, &artifact);
    serve_form(&mut html, &artifact);
    html.push_str("<h2>The file</h2><dl class=\"facts\">");
    let mut fact = |name: &str, value: String| {
        put(&mut html, format_args!("<div><dt>{name}</dt><dd>{value}</dd></div>"))
    };
    fact("Job", format!("<a href=\"/jobs/{0}\">{1}</a>", artifact.job, short(&artifact.job.to_string())));
    fact("Model", escape(&artifact.model.to_string()));
    fact("SHA-256", format!("<code>{}</code>", artifact.sha256));
    fact("Report as JSON", format!("<a href=\"{path}/report\">report</a>"));
    if artifact.statistics.is_some() {
        fact("Calibration statistics", format!("<a href=\"{path}/statistics\">statistics</a>"));
    }
    html.push_str("</dl>");
    result::recipe(&mut html, recipe);
    let others: Vec<&Artifact> = siblings.iter().filter(|other| other.id != id).collect();
    if !others.is_empty() {
        html.push_str("<h2>Compare with</h2><ul class=\"plain-list spaced\">");
        for other in others {
            put(
                &mut html,
                format_args!(
                    "<li><a href=\"/v1/artifacts/{}/diff/{id}\">{}</a> <span>in {}</span> <span>{}</span> <span class=\"dim\">made {}</span></li>",
                    other.id,
                    short(&other.id.to_string()),
                    frame::precision(other.precision()),
                    accuracy_line(other.accuracy.float, other.accuracy.int8),
                    ago(other.created_at, now)
                ),
            );
        }
        html.push_str("</ul>");
    }
    Ok(frame::page(
        "/artifacts",
        &format!("{} in {}", artifact.model, frame::precision(artifact.precision())),
        &html,
    ))
}

/// The form that serves the artifact.
fn serve_form(html: &mut String, artifact: &Artifact) {
    put(
        html,
        format_args!(
            "<form class=\"panel\" data-serve=\"{}\" aria-labelledby=\"serve-title\" novalidate><h2 id=\"serve-title\">Serve it</h2>\
             <div class=\"fields one\"><div class=\"field\"><label for=\"serve-name\">Endpoint</label>\
             <input id=\"serve-name\" name=\"name\" required maxlength=\"128\" pattern=\"[A-Za-z0-9][A-Za-z0-9._\\-]*\" autocomplete=\"off\" \
             autocapitalize=\"off\" spellcheck=\"false\" value=\"{}\" aria-describedby=\"serve-hint\">\
             <span class=\"hint\" id=\"serve-hint\">An endpoint that is there gets a new version; the one before answers until it is loaded.</span></div></div>\
             <p class=\"problem\" role=\"alert\" hidden></p>\
             <div class=\"row\"><button class=\"button\" type=\"submit\">Serve</button><span class=\"dim\" data-said></span></div></form>",
            artifact.id,
            escape(artifact.model.name.as_str())
        ),
    );
}
