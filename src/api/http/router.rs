//! All routes and layers on one screen, and the OpenAPI document that they make.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{any, get};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::decompression::RequestDecompressionLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::Context;
use crate::api::http::{
    Shared, artifacts, datasets, endpoints, figures, infer, jobs, lint, models, observe, repository,
    settings, system, ui,
};

/// The head of the OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Octet",
        description = "Takes a float ONNX model and calibration data, quantizes the model to INT8, stores, serves \
                       and reports.\n\nRefusals of `/v1` are `application/problem+json`, those of `/v2` are the \
                       protocol's `{\"error\": …}`; both carry `code` and `request_id`. `X-Request-Id` is taken \
                       over and given back."
    ),
    tags(
        (name = "models", description = "Float models as uploaded"),
        (name = "datasets", description = "Calibration and evaluation data"),
        (name = "jobs", description = "Queued work"),
        (name = "artifacts", description = "INT8 products and their reports"),
        (name = "endpoints", description = "What is served under which name"),
        (name = "inference", description = "The Open Inference Protocol (KServe v2) with Triton's extensions"),
        (name = "repository", description = "Triton's model repository extension"),
        (name = "settings", description = "Triton's settings of the log and of traces"),
        (name = "health", description = "The server about itself"),
    )
)]
struct Head;

/// Uploads: their time is that of the network.
fn uploads() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(models::put, models::get, models::delete))
        .routes(routes!(models::post, models::list))
        .routes(routes!(lint::post))
        .routes(routes!(datasets::put, datasets::get, datasets::delete))
        .routes(routes!(repository::load))
}

/// Inference: bodies may be compressed.
fn inference() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(infer::infer)).routes(routes!(infer::infer_version))
}

/// Everything else.
fn rest() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(models::file))
        .routes(routes!(datasets::list))
        .routes(routes!(datasets::file))
        .routes(routes!(jobs::post, jobs::list))
        .routes(routes!(jobs::get, jobs::delete))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::events))
        .routes(routes!(artifacts::list))
        .routes(routes!(artifacts::get, artifacts::delete))
        .routes(routes!(artifacts::file))
        .routes(routes!(artifacts::report))
        .routes(routes!(artifacts::report_html))
        .routes(routes!(artifacts::statistics))
        .routes(routes!(artifacts::diff))
        .routes(routes!(endpoints::list))
        .routes(routes!(endpoints::get, endpoints::put, endpoints::delete))
        .routes(routes!(endpoints::changes))
        .routes(routes!(endpoints::statistics))
        .routes(routes!(figures::get))
        .routes(routes!(system::metadata))
        .routes(routes!(system::live))
        .routes(routes!(system::ready))
        .routes(routes!(system::metrics))
        .routes(routes!(system::openapi))
        .routes(routes!(system::model_names))
        .routes(routes!(infer::stats_all))
        .routes(routes!(infer::metadata))
        .routes(routes!(infer::metadata_version))
        .routes(routes!(infer::ready))
        .routes(routes!(infer::ready_version))
        .routes(routes!(infer::config))
        .routes(routes!(infer::config_version))
        .routes(routes!(infer::stats))
        .routes(routes!(infer::stats_version))
        .routes(routes!(repository::index))
        .routes(routes!(repository::unload))
        .routes(routes!(settings::log, settings::update_log))
        .routes(routes!(settings::trace, settings::update_trace))
        .routes(routes!(settings::trace_model, settings::update_trace_model))
        .route("/v2/systemsharedmemory/{*rest}", any(system::not_implemented))
        .route("/v2/cudasharedmemory/{*rest}", any(system::not_implemented))
}

/// Pages for people. They are no part of the document.
fn pages() -> axum::Router<Shared> {
    axum::Router::new()
        .route("/", get(ui::overview::page))
        .route("/models", get(ui::models::page))
        .route("/datasets", get(ui::datasets::page))
        .route("/jobs", get(ui::jobs::list))
        .route("/jobs/new", get(ui::jobs::form))
        .route("/jobs/{id}", get(ui::jobs::one))
        .route("/artifacts", get(ui::artifacts::list))
        .route("/artifacts/{id}", get(ui::artifacts::one))
        .route("/endpoints", get(ui::endpoints::list))
        .route("/endpoints/{name}", get(ui::endpoints::one))
        .route("/docs", get(|| async { ui::docs::page(document) }))
        .route("/assets/{digest}/{name}", get(ui::assets::get))
        .route("/favicon.ico", get(ui::assets::icon))
}

/// The server's routes over what they share.
pub fn router(shared: Arc<Context>) -> axum::Router {
    let limit = shared.limits.request_timeout;
    let in_time = from_fn_with_state(limit, observe::in_time);
    let (uploads, _) = uploads().split_for_parts();
    let (inference, _) = inference().split_for_parts();
    let (rest, _) = rest().split_for_parts();
    // The header counts plain bytes, so nothing behind this layer sees a compressed one.
    let inference = inference.layer(RequestDecompressionLayer::new()).layer(map_response(plain));
    inference
        .merge(rest)
        .merge(pages())
        .layer(in_time)
        .merge(uploads)
        .fallback(system::no_route)
        // Every handler bounds its own body, uploads by their own setting.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state(Arc::clone(&shared), observe::observe))
        .with_state(shared)
}

/// The routes of a process that only does jobs: its health and its figures.
pub fn of_worker(shared: Arc<Context>) -> axum::Router {
    let (routes, _) = OpenApiRouter::new()
        .routes(routes!(system::live))
        .routes(routes!(system::ready))
        .routes(routes!(system::metrics))
        .split_for_parts();
    routes
        .fallback(system::not_of_a_worker)
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state(Arc::clone(&shared), observe::observe))
        .with_state(shared)
}

/// Takes the body type of the decompression layer for that of axum.
async fn plain(response: Response) -> Response {
    response
}

/// The OpenAPI document as YAML: what `octet openapi` prints and `openapi.yaml` holds.
///
/// # Panics
/// Never: the document is made of the code alone, and a test makes it.
#[must_use]
pub fn openapi() -> String {
    described().to_yaml().expect("the document has only strings, numbers and lists")
}

/// The same document as JSON, for the page that shows it.
pub(crate) fn document() -> serde_json::Value {
    serde_json::to_value(described()).unwrap_or_default()
}

fn described() -> utoipa::openapi::OpenApi {
    let routes =
        OpenApiRouter::with_openapi(Head::openapi()).merge(uploads()).merge(inference()).merge(rest());
    routes.into_openapi()
}
