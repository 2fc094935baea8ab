//! The page at `/`: what there is, what goes on, what came of it, what is served.

use axum::extract::State;
use axum::response::Response;

use crate::api::error::Problem;
use crate::api::http::Shared;
use crate::api::http::ui::{artifacts, bytes, endpoints, frame, jobs, put};
use crate::service::store::{ArtifactFilter, JobFilter, JobState, Page};

/// How many records of a kind the page shows.
const SHOWN: usize = 5;

/// The page.
pub(crate) async fn page(State(shared): State<Shared>) -> Result<Response, Problem> {
    let most = Page::first(Page::LIMIT_MAX);
    let models = shared.catalog.models(None, &most).await?;
    let datasets = shared.catalog.datasets(None, &most).await?;
    let products = shared.catalog.artifacts(&ArtifactFilter::default(), &most).await?;
    let newest = shared.queue.list(&JobFilter::default(), &Page::first(SHOWN as u32)).await?.items;
    let census = shared.catalog.census().await?;
    let endpoints = shared.registry.all();
    let now = (shared.clock)();

    let mut html = String::new();
    let start = "<a class=\"button primary\" href=\"/jobs/new\">Start a job</a>";
    let says = "Float ONNX in, INT8 out, with what was gained and what was lost.";
    frame::head(&mut html, "Overview", says, start);
    let count = |items: usize, more: bool| if more { format!("{items}+") } else { items.to_string() };
    let jobs_in = |state: JobState| {
        let index = JobState::ALL.iter().position(|s| *s == state);
        index.map_or(0, |index| census.jobs[index])
    };
    let (running, queued) = (jobs_in(JobState::Running), jobs_in(JobState::Queued));
    let ready = endpoints.iter().filter(|entry| endpoints::answers(entry)).count();
    let tiles = [
        ("/models", "Models", count(models.items.len(), models.next.is_some()), bytes(census.float_bytes)),
        (
            "/datasets",
            "Datasets",
            count(datasets.items.len(), datasets.next.is_some()),
            bytes(census.dataset_bytes),
        ),
        (
            "/jobs",
            "Jobs",
            census.jobs.iter().sum::<u64>().to_string(),
            format!("{running} running, {queued} queued"),
        ),
        (
            "/artifacts",
            "Artifacts",
            count(products.items.len(), products.next.is_some()),
            bytes(census.int8_bytes),
        ),
        ("/endpoints", "Endpoints", endpoints.len().to_string(), format!("{ready} ready")),
    ];
    html.push_str("<div class=\"cards tiles\">");
    for (path, name, value, note) in tiles {
        put(
            &mut html,
            format_args!(
                "<a class=\"card\" href=\"{path}\"><span class=\"k\">{name}</span>\
                 <span class=\"v\">{value}</span><span class=\"n\">{note}</span></a>"
            ),
        );
    }
    html.push_str("</div>");
    if newest.is_empty() && endpoints.is_empty() {
        first_steps(&mut html, models.items.is_empty(), datasets.items.is_empty());
        return Ok(frame::page("/", "Overview", &html));
    }
    html.push_str("<section aria-labelledby=\"endpoints\"><h2 id=\"endpoints\">Endpoints</h2>");
    endpoints::table(&mut html, &endpoints);
    html.push_str("</section><section aria-labelledby=\"jobs\"><h2 id=\"jobs\">Newest jobs</h2>");
    jobs::table(&mut html, &newest, now);
    html.push_str("</section><section aria-labelledby=\"results\"><h2 id=\"results\">Newest artifacts</h2>");
    artifacts::table(&mut html, &products.items[..products.items.len().min(SHOWN)], now);
    html.push_str("</section>");
    Ok(frame::page("/", "Overview", &html))
}

/// What to do where nothing was done yet.
fn first_steps(html: &mut String, no_model: bool, no_data: bool) {
    html.push_str("<h2 id=\"first\">First steps</h2><ol class=\"steps\" aria-labelledby=\"first\">");
    let steps = [
        (
            !no_model,
            "<a href=\"/models\">Upload a model</a>",
            "A float ONNX file, or a zip of one with its data.",
            "curl -T model.onnx $OCTET/v1/models/resnet8",
        ),
        (
            !no_data,
            "<a href=\"/datasets\">Upload calibration data</a>",
            "An npz file with some hundred samples of what the model will see.",
            "curl -T calib.npz $OCTET/v1/datasets/calib",
        ),
        (
            false,
            "<a href=\"/jobs/new\">Start a job</a>",
            "It calibrates, quantizes, compares, measures, and serves the result under a name.",
            "curl $OCTET/v1/jobs -d '{\"kind\": \"quantize\", \"model\": \"resnet8\", \"calibration\": \"calib\", \"endpoint\": \"resnet8\"}'",
        ),
    ];
    for (done, title, text, command) in steps {
        let class = if done { " class=\"done\"" } else { "" };
        let mark = if done { " <span class=\"chip good\">done</span>" } else { "" };
        put(html, format_args!("<li{class}><div><h3>{title}{mark}</h3><p class=\"dim\">{text}</p>"));
        frame::curl(html, command);
        html.push_str("</div></li>");
    }
    html.push_str("</ol>");
}
