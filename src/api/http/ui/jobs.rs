//! Jobs: the list, the form that starts one, and the page of one with its progress and what came of it.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;

use crate::api::error::Problem;
use crate::api::http::fields::Query;
use crate::api::http::ui::frame::{self, Act};
use crate::api::http::ui::result::{accuracy_line, figures, recipe, verdict};
use crate::api::http::ui::{ago, counted, escape, lasting, prose, put, short};
use crate::api::http::{PageQuery, Shared, page as page_of};
use crate::service::store::{ArtifactId, Job, JobFilter, JobId, JobState, Name, Page, Slice, Timestamp};

/// The phases of a job, in their order.
const PHASES: [&str; 7] = ["import", "calibrate", "quantize", "evaluate", "measure", "export", "store"];

/// The list.
pub(crate) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    frame::shown("/jobs", listed(&shared, &query).await)
}

async fn listed(shared: &Shared, query: &PageQuery) -> Result<Response, Problem> {
    let page = page_of(query.limit, query.cursor.as_deref())?;
    let Slice { items: jobs, next } = shared.queue.list(&JobFilter::default(), &page).await?;
    let mut html = String::new();
    let start = "<a class=\"button primary\" href=\"/jobs/new\">Start a job</a>";
    frame::head(&mut html, "Jobs", "Each takes a model and data, and makes an artifact and a report.", start);
    table(&mut html, &jobs, (shared.clock)());
    frame::older(&mut html, "/jobs", next.as_ref());
    Ok(frame::page("/jobs", "Jobs", &html))
}

/// A table of jobs; of those that have not ended the script keeps the state true.
pub(crate) fn table(html: &mut String, jobs: &[Job], now: Timestamp) {
    if jobs.is_empty() {
        let text = "No jobs yet. <a href=\"/jobs/new\">Start one here</a>, or from a shell:";
        let command = "curl $OCTET/v1/jobs -d '{\"kind\": \"quantize\", \"model\": \"NAME\", \"calibration\": \"NAME\"}'";
        return frame::empty(html, text, command);
    }
    let row = |job: &Job| {
        let state = match &job.progress {
            Some(p) if job.state == JobState::Running => format!(
                "<progress aria-label=\"Progress\" max=\"{}\" value=\"{}\"></progress> <span class=\"dim\" data-phase>{}</span>",
                p.total.max(1),
                p.done,
                escape(&p.phase)
            ),
            _ => String::new(),
        };
        let live = if job.state.is_final() { String::new() } else { format!(" data-follow=\"{}\"", job.id) };
        let accuracy = |result: &serde_json::Value| {
            let accuracy = &result["accuracy"];
            Some(accuracy_line(accuracy["float"].as_f64()?, accuracy["int8"].as_f64()?))
        };
        let came = match (&job.result, &job.error) {
            (Some(result), _) => accuracy(result).unwrap_or_default(),
            (None, Some(error)) => {
                format!("<span class=\"cut\" title=\"{0}\">{0}</span>", escape(&error.message))
            }
            (None, None) => String::new(),
        };
        vec![
            format!("<a class=\"name\" href=\"/jobs/{0}\">{1}</a>", job.id, short(&job.id.to_string())),
            format!("<span class=\"state\"{live}>{} {state}</span>", frame::job_chip(job.state)),
            format!("<span class=\"long\">{}</span>", escape(&job.model.to_string())),
            format!("<span class=\"long\">{}</span>", escape(&job.calibration.to_string())),
            came,
            ago(job.created_at, now),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    let columns = [
        ("Job", false),
        ("State", false),
        ("Model", false),
        ("Calibration", false),
        ("Accuracy, float → artifact", false),
        ("Asked for", false),
    ];
    frame::table(html, "Jobs", &columns, &rows);
}

/// What the form begins with.
#[derive(Deserialize)]
pub(crate) struct Chosen {
    model: Option<String>,
    calibration: Option<String>,
}

/// The form that starts a job.
pub(crate) async fn form(
    State(shared): State<Shared>,
    Query(chosen): Query<Chosen>,
) -> Result<Response, Problem> {
    let most = Page::first(Page::LIMIT_MAX);
    let models = shared.catalog.models(None, &most).await?.items;
    let datasets = shared.catalog.datasets(None, &most).await?.items;
    let done = JobFilter { state: Some(JobState::Succeeded), model: None };
    let done = shared.queue.list(&done, &Page::first(20)).await?.items;
    let no_data = datasets.is_empty() && done.is_empty();
    let mut html = String::new();
    let says = "Quantizes a model, compares it with the float model, and keeps it if the gate holds.";
    frame::head(&mut html, "Start a job", says, "");
    if models.is_empty() || no_data {
        let missing = match (models.is_empty(), no_data) {
            (true, true) => {
                "<a href=\"/models\">Upload a model</a> and <a href=\"/datasets\">calibration data</a> first."
            }
            (true, false) => "<a href=\"/models\">Upload a model</a> first.",
            (false, _) => "<a href=\"/datasets\">Upload calibration data</a> first.",
        };
        let command = "curl -T model.onnx $OCTET/v1/models/NAME\ncurl -T calib.npz $OCTET/v1/datasets/NAME";
        frame::empty(&mut html, missing, command);
        return Ok(frame::page("/jobs", "Start a job", &html));
    }
    let twice = |text: String| (text.clone(), text);
    let of_models: Vec<_> = models.iter().map(|model| twice(model.pinned().to_string())).collect();
    let of_data: Vec<_> = datasets
        .iter()
        .map(|data| {
            (data.pinned().to_string(), format!("{} · {}", data.pinned(), counted(data.samples, "sample")))
        })
        .collect();
    html.push_str("<form class=\"panel\" data-job aria-label=\"Job\" novalidate><fieldset><legend>What</legend><div class=\"fields\">");
    select(&mut html, "model", "Model", "", &of_models, chosen.model.as_deref(), true);
    let hint = "Ranges are taken from these samples, or from what an earlier job found in them.";
    let mut of_calibration = of_data.clone();
    // The newest may be what is held out: nobody takes it by pressing a button.
    if datasets.len() > 1 {
        of_calibration.insert(0, (String::new(), "choose …".to_owned()));
    }
    of_calibration.extend(done.iter().map(|job| {
        let words = format!("statistics of {} on {}", short(&job.id.to_string()), job.model);
        (format!("of:{}", job.id), words)
    }));
    select(
        &mut html,
        "calibration",
        "Calibration data",
        hint,
        &of_calibration,
        chosen.calibration.as_deref(),
        true,
    );
    let mut of_evaluation = vec![(String::new(), "those of the calibration".to_owned())];
    of_evaluation.extend(of_data);
    select(
        &mut html,
        "evaluation",
        "Evaluation data",
        "Float and INT8 are compared on these.",
        &of_evaluation,
        None,
        false,
    );
    html.push_str(
        "<div class=\"field\"><label for=\"endpoint\">Endpoint</label><input id=\"endpoint\" name=\"endpoint\" maxlength=\"128\" \
         pattern=\"[A-Za-z0-9][A-Za-z0-9._\\-]*\" autocomplete=\"off\" autocapitalize=\"off\" spellcheck=\"false\" aria-describedby=\"endpoint-hint\">\
         <span class=\"hint\" id=\"endpoint-hint\">Serves the artifact under this name. Empty: nothing is served.</span></div></div>\
         <label class=\"check\"><input type=\"checkbox\" name=\"keep\" checked aria-describedby=\"keep-hint\"> Keep the calibration data when the job has ended</label>\
         <span class=\"hint\" id=\"keep-hint\">Unchecked, the server deletes them then; where they are the evaluation data as well, those are gone too.</span></fieldset>\
         <fieldset><legend>How</legend><div class=\"fields\">",
    );
    let choices = |list: &[(&str, &str)]| {
        list.iter().map(|(v, t)| ((*v).to_owned(), (*t).to_owned())).collect::<Vec<_>>()
    };
    let schemes = choices(&[
        ("", "auto"),
        ("static", "static: ranges from calibration"),
        ("dynamic", "dynamic: ranges of each row"),
        ("weight_only", "weights only"),
        ("float16", "float16"),
    ]);
    select(&mut html, "scheme", "Scheme", "", &schemes, None, false);
    let ranges = choices(&[
        ("", "auto"),
        ("minmax", "minmax"),
        ("mean_minmax", "mean of minmax"),
        ("percentile", "percentile"),
        ("entropy", "entropy"),
        ("mse", "mean squared error"),
    ]);
    select(&mut html, "ranges", "Ranges", "How the range of an activation is chosen.", &ranges, None, false);
    let targets = choices(&[
        ("", "Octet"),
        ("onnxruntime", "ONNX Runtime"),
        ("openvino", "OpenVINO"),
        ("tensorrt", "TensorRT"),
        ("tflite_rules", "TensorFlow Lite rules"),
    ]);
    select(&mut html, "target", "Target", "What will run the artifact.", &targets, None, false);
    html.push_str("</div></fieldset><fieldset><legend>Gate</legend><div class=\"fields\">");
    number(
        &mut html,
        "max_drop",
        "Largest drop, in points",
        "The accuracy may fall by so much, e.g. 0.5. Empty: any.",
    );
    number(
        &mut html,
        "min_agreement",
        "Least agreement, in %",
        "So many decisions must be those of the float model, e.g. 98.",
    );
    html.push_str(
        "</div></fieldset><details><summary>Advanced: recipe as JSON</summary><div class=\"field wide\">\
         <label for=\"recipe\">Recipe</label><textarea id=\"recipe\" name=\"recipe\" rows=\"6\" spellcheck=\"false\" \
         placeholder='{\"keep_float\": [\"/head/*\"], \"smooth\": \"auto\"}' aria-describedby=\"recipe-hint\"></textarea>\
         <span class=\"hint\" id=\"recipe-hint\">Its fields come on top of those above.</span></div></details>\
         <p class=\"problem\" role=\"alert\" hidden></p>\
         <div class=\"row\"><button class=\"button primary\" type=\"submit\">Start the job</button>\
         <button class=\"button\" type=\"button\" data-dry>Only predict</button><span class=\"dim\" data-said></span></div>\
         <div class=\"predicted\" data-predicted hidden role=\"status\"></div>\
         <noscript><p class=\"hint\">Starting a job from this page needs scripts; curl does not.</p></noscript></form>",
    );
    Ok(frame::page("/jobs", "Start a job", &html))
}

fn select(
    html: &mut String,
    name: &str,
    label: &str,
    hint: &str,
    choices: &[(String, String)],
    chosen: Option<&str>,
    required: bool,
) {
    let required = if required { " required" } else { "" };
    let described =
        if hint.is_empty() { String::new() } else { format!(" aria-describedby=\"{name}-hint\"") };
    put(
        html,
        format_args!(
            "<div class=\"field\"><label for=\"{name}\">{label}</label><select id=\"{name}\" name=\"{name}\"{described}{required}>"
        ),
    );
    frame::options(html, choices, chosen);
    html.push_str("</select>");
    if !hint.is_empty() {
        put(html, format_args!("<span class=\"hint\" id=\"{name}-hint\">{hint}</span>"));
    }
    html.push_str("</div>");
}

fn number(html: &mut String, name: &str, label: &str, hint: &str) {
    put(
        html,
        format_args!(
            "<div class=\"field\"><label for=\"{name}\">{label}</label><input id=\"{name}\" name=\"{name}\" type=\"number\" \
             min=\"0\" max=\"100\" step=\"any\" inputmode=\"decimal\" aria-describedby=\"{name}-hint\">\
             <span class=\"hint\" id=\"{name}-hint\">{hint}</span></div>"
        ),
    );
}

/// The page of a job.
pub(crate) async fn one(State(shared): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    frame::shown("/jobs", job_page(&shared, &id).await)
}

async fn job_page(shared: &Shared, id: &str) -> Result<Response, Problem> {
    let id: JobId = id.parse()?;
    let job = shared.queue.find(id).await?;
    let now = (shared.clock)();
    let mut html = String::new();
    let sub = format!("<code>{id}</code> asked for {}", ago(job.created_at, now));
    let action = if job.state.is_final() { again(&job) + &delete(&job) } else { cancel(&job) };
    frame::head(&mut html, &format!("Job on {}", job.model), &sub, &action);
    html.push_str("<div class=\"statusline\">");
    put(&mut html, format_args!("<span data-state>{}</span>", frame::job_chip(job.state)));
    if let (Some(start), Some(end)) = (job.started_at, job.finished_at) {
        put(&mut html, format_args!("<span class=\"dim\">took {}</span>", lasting(end.seconds_since(start))));
    }
    html.push_str("</div>");
    if !job.state.is_final() {
        progress(&mut html, &job);
    }
    if let Some(error) = &job.error {
        put(
            &mut html,
            format_args!(
                "<div class=\"fail\"><b>{}</b> <code>{}</code>{}</div>",
                if job.state.is_final() { "Why it ended so" } else { "Why the last attempt failed" },
                error.code.as_str(),
                prose(&error.message)
            ),
        );
    }
    result(&mut html, shared, &job).await;
    facts(&mut html, &job, now);
    Ok(frame::page("/jobs", &format!("Job on {}", job.model), &html))
}

/// The progress, which the script follows.
fn progress(html: &mut String, job: &Job) {
    let at = job.progress.as_ref().and_then(|p| PHASES.iter().position(|phase| *phase == p.phase));
    put(
        html,
        format_args!(
            "<section class=\"panel live\" data-live=\"{}\" aria-label=\"Progress\"><ol class=\"phases\">",
            job.id
        ),
    );
    for (i, phase) in PHASES.iter().enumerate() {
        let class = match at {
            Some(at) if i < at => " class=\"done\"",
            Some(at) if i == at => " class=\"now\" aria-current=\"step\"",
            _ => "",
        };
        put(html, format_args!("<li data-step=\"{phase}\"{class}>{phase}</li>"));
    }
    let (done, total) = job.progress.as_ref().map_or((0, 0), |p| (p.done, p.total));
    put(
        html,
        format_args!(
            "</ol><progress aria-label=\"Progress of the phase\" max=\"{}\" value=\"{done}\"></progress>\
             <div class=\"row between\"><span data-count>{}</span><span class=\"dim\" data-eta></span></div></section>",
            total.max(1),
            if job.state == JobState::Queued {
                "Waits for a worker".to_owned()
            } else {
                format!("{done} of {total}")
            }
        ),
    );
}

/// What came of the job: the verdict and the figures.
async fn result(html: &mut String, shared: &Shared, job: &Job) {
    let id = job.result.as_ref().and_then(|r| r.pointer("/artifact/id")?.as_str());
    let Some(id) = id.and_then(|text| text.parse::<ArtifactId>().ok()) else { return };
    let Ok(artifact) = shared.catalog.artifact(id).await else {
        html.push_str("<p class=\"dim\">Its artifact was deleted.</p>");
        return;
    };
    if job.error.is_none() {
        verdict(html, artifact.gate_failure.as_deref(), &job.recipe);
    }
    figures(html, &artifact);
    put(
        html,
        format_args!(
            "<div class=\"row\"><a class=\"button primary\" href=\"/v1/artifacts/{id}/report.html\">Open the report</a>\
             <a class=\"button\" href=\"/artifacts/{id}\">Artifact</a>\
             <a class=\"button\" href=\"/v1/artifacts/{id}/download\">Download {} ONNX</a>",
            frame::precision(artifact.precision())
        ),
    );
    let served = job.result.as_ref().and_then(|r| r.pointer("/endpoint/name")?.as_str());
    if let Some(name) =
        served.or(job.endpoint.as_ref().filter(|_| job.state == JobState::Succeeded).map(Name::as_str))
    {
        put(html, format_args!("<a class=\"button\" href=\"/endpoints/{0}\">Endpoint {0}</a>", escape(name)));
    }
    html.push_str("</div>");
}

/// What was asked for.
fn facts(html: &mut String, job: &Job, now: Timestamp) {
    html.push_str("<h2>Asked for</h2><dl class=\"facts\">");
    let mut fact =
        |name: &str, value: String| put(html, format_args!("<div><dt>{name}</dt><dd>{value}</dd></div>"));
    fact("Model", escape(&job.model.to_string()));
    match job.calibration_of {
        Some(of) => fact("Statistics of", format!("<a href=\"/jobs/{of}\">{}</a>", short(&of.to_string()))),
        None => fact("Calibration data", escape(&job.calibration.to_string())),
    }
    let same = || "the calibration data".to_owned();
    fact("Evaluation data", job.evaluation.as_ref().map_or_else(same, |data| escape(&data.to_string())));
    fact("Endpoint", job.endpoint.as_ref().map_or_else(|| "none".to_owned(), |name| escape(name.as_str())));
    fact("Attempt", format!("{} of at most {}", job.attempt, job.attempts_max));
    if let Some(at) = job.started_at {
        fact("Started", ago(at, now));
    }
    if let Some(at) = job.finished_at {
        fact("Ended", ago(at, now));
    }
    if let Some(at) = job.calibration_deleted_at {
        fact("Calibration data deleted", ago(at, now));
    }
    html.push_str("</dl>");
    recipe(html, &job.recipe);
}

/// A link to the form with the same choices. Where the data are deleted, what was found in them is there.
fn again(job: &Job) -> String {
    let calibration = match job.calibration_deleted_at {
        Some(_) => format!("of:{}", job.id),
        None => job.calibration.to_string(),
    };
    format!(
        "<a class=\"button\" href=\"/jobs/new?model={}&amp;calibration={}\">Start another</a>",
        escape(&job.model.to_string()),
        escape(&calibration)
    )
}

fn cancel(job: &Job) -> String {
    let path = format!("/v1/jobs/{}/cancel", job.id);
    let then = format!("/jobs/{}", job.id);
    let question = "Cancel this job? What it has done so far is lost.";
    Act {
        label: "Cancel",
        question,
        method: "POST",
        path: &path,
        body: "",
        if_match: "",
        then: &then,
        danger: true,
    }
    .button()
}

fn delete(job: &Job) -> String {
    let path = format!("/v1/jobs/{}", job.id);
    let question = "Delete the record of this job? Its artifact stays.";
    Act {
        label: "Delete",
        question,
        method: "DELETE",
        path: &path,
        body: "",
        if_match: "",
        then: "/jobs",
        danger: true,
    }
    .button()
}
