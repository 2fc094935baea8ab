//! All routes and layers on one screen, and the OpenAPI document that they make.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{any, get, post};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::Context;
use crate::api::http::access::Needs;
use crate::api::http::{
    Shared, access, artifacts, audit, datasets, document, endpoints, figures, infer, jobs, lint, models,
    observe, repository, settings, shared_memory, system, tus, ui,
};
use crate::service::store::Scope;

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
        (name = "uploads", description = "Uploads in parts, by tus 1.0.0"),
        (name = "jobs", description = "Queued work"),
        (name = "artifacts", description = "INT8 products and their reports"),
        (name = "endpoints", description = "What is served under which name"),
        (name = "inference", description = "The Open Inference Protocol (KServe v2) with Triton's extensions"),
        (name = "shared memory", description = "Triton's system shared memory extension"),
        (name = "repository", description = "Triton's model repository extension"),
        (name = "settings", description = "Triton's settings of the log and of traces"),
        (name = "audit", description = "Who changed what"),
        (name = "health", description = "The server about itself"),
    )
)]
struct Head;

/// Routes that have what is around them in common.
struct Group {
    /// What a key must allow; `None` is open to everybody.
    needs: Option<Scope>,
    /// What is special about them.
    kind: Kind,
    routes: OpenApiRouter<Shared>,
}

/// What is special about the routes of a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing.
    Plain,
    /// Their time is that of the network.
    Upload,
    /// Bodies may be compressed: the handlers see to it.
    Inference,
    /// For people. They are no part of the document.
    Page,
}

/// Every route, with the one scope that it needs: there is no other way for a route to come into the server.
fn groups() -> [Group; 10] {
    let group = |needs, kind, routes| Group { needs, kind, routes };
    [
        group(None, Kind::Plain, health()),
        group(None, Kind::Page, doors()),
        group(Some(Scope::Read), Kind::Page, pages()),
        group(Some(Scope::Read), Kind::Plain, reading()),
        group(Some(Scope::Infer), Kind::Inference, inference()),
        group(Some(Scope::Infer), Kind::Plain, regions()),
        group(Some(Scope::Write), Kind::Upload, uploads()),
        group(Some(Scope::Write), Kind::Plain, changes()),
        group(Some(Scope::Admin), Kind::Upload, OpenApiRouter::new().routes(routes!(repository::load))),
        group(Some(Scope::Admin), Kind::Plain, administration()),
    ]
}

/// For probes, which have no key.
fn health() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(system::live)).routes(routes!(system::ready))
}

/// What a browser needs to sign in.
fn doors() -> OpenApiRouter<Shared> {
    let form = DefaultBodyLimit::max(ui::sign_in::FORM_BYTES_MAX);
    OpenApiRouter::new()
        .route("/login", get(ui::sign_in::page).post(ui::sign_in::sign_in).layer(form))
        .route("/logout", post(ui::sign_in::sign_out))
        .route("/assets/{digest}/{name}", get(ui::assets::get))
        .route("/favicon.ico", get(ui::assets::icon))
}

fn pages() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
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
        .route("/docs", get(|| async { ui::docs::page(as_json) }))
}

fn reading() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(system::system))
        .routes(routes!(models::list))
        .routes(routes!(models::get))
        .routes(routes!(models::file))
        .routes(routes!(datasets::list))
        .routes(routes!(datasets::get))
        .routes(routes!(datasets::file))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::get))
        .routes(routes!(jobs::events))
        .routes(routes!(artifacts::list))
        .routes(routes!(artifacts::get))
        .routes(routes!(artifacts::file))
        .routes(routes!(artifacts::report))
        .routes(routes!(artifacts::report_html))
        .routes(routes!(artifacts::statistics))
        .routes(routes!(artifacts::diff))
        .routes(routes!(endpoints::list))
        .routes(routes!(endpoints::get))
        .routes(routes!(endpoints::changes))
        .routes(routes!(endpoints::statistics))
        .routes(routes!(figures::get))
        .routes(routes!(system::metadata))
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
        .routes(routes!(settings::log))
        .routes(routes!(settings::trace))
        .routes(routes!(settings::trace_model))
        .routes(routes!(shared_memory::status_all))
        .routes(routes!(shared_memory::status))
        .route("/v2/cudasharedmemory/{*rest}", any(shared_memory::no_cuda))
}

fn inference() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(infer::infer)).routes(routes!(infer::infer_version))
}

/// Where inference finds tensors.
fn regions() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(shared_memory::register))
        .routes(routes!(shared_memory::unregister))
        .routes(routes!(shared_memory::unregister_all))
}

fn uploads() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(models::put))
        .routes(routes!(models::post))
        .routes(routes!(lint::post))
        .routes(routes!(datasets::put))
        .merge(in_parts())
}

/// Uploads that a client can go on with where they were cut off.
fn in_parts() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(tus::options, tus::post))
        .routes(routes!(tus::head, tus::patch, tus::delete, tus::post_override))
        .layer(from_fn(tus::speak))
}

fn changes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(models::delete))
        .routes(routes!(datasets::delete))
        .routes(routes!(jobs::post))
        .routes(routes!(jobs::delete))
        .routes(routes!(jobs::cancel))
        .routes(routes!(artifacts::delete))
        .routes(routes!(endpoints::put, endpoints::delete))
}

fn administration() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(audit::list))
        .routes(routes!(repository::unload))
        .routes(routes!(settings::update_log))
        .routes(routes!(settings::update_trace))
        .routes(routes!(settings::update_trace_model))
}

/// The server's routes over what they share.
pub fn router(shared: Arc<Context>) -> axum::Router {
    let routes = guarded(groups(), &shared).fallback(system::no_route);
    around(routes, shared)
}

/// The routes of a process that only does jobs: its health and its figures.
pub fn of_worker(shared: Arc<Context>) -> axum::Router {
    let figures = OpenApiRouter::new().routes(routes!(system::metrics));
    let groups = [
        Group { needs: None, kind: Kind::Plain, routes: health() },
        Group { needs: Some(Scope::Read), kind: Kind::Plain, routes: figures },
    ];
    let routes = guarded(groups, &shared).fallback(system::not_of_a_worker);
    around(routes, shared)
}

/// The routes of the groups, each behind what its group asks for.
fn guarded(groups: impl IntoIterator<Item = Group>, shared: &Shared) -> axum::Router<Shared> {
    let in_time = from_fn_with_state(shared.limits.request_timeout, observe::in_time);
    let mut all = axum::Router::new();
    for Group { needs, kind, routes } in groups {
        let (mut routes, _) = routes.split_for_parts();
        // Bodies of inference may be compressed, and it deletes nothing.
        if kind != Kind::Inference {
            routes = routes
                .layer(from_fn_with_state(Arc::clone(shared), observe::with_reserve))
                .layer(from_fn(observe::uncompressed));
        }
        if kind != Kind::Upload {
            routes = routes.layer(in_time.clone());
        }
        if let Some(scope) = needs {
            let needs = Needs { shared: Arc::clone(shared), scope, page: kind == Kind::Page };
            routes = routes.layer(from_fn_with_state(needs, access::require));
        }
        all = all.merge(routes);
    }
    all
}

fn around(routes: axum::Router<Shared>, shared: Shared) -> axum::Router {
    routes
        // Every handler bounds its own body, uploads by their own setting.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(&shared), observe::observe))
        .with_state(shared)
}

/// The OpenAPI document as YAML: what `octet openapi` prints and `openapi.yaml` holds.
///
/// # Panics
/// Never: the document is made of the code alone, and a test makes it.
#[must_use]
pub fn openapi() -> String {
    yaml_serde::to_string(&as_json()).expect("the document has only strings, numbers and lists")
}

/// The same document as JSON, for the page that shows it.
pub(crate) fn as_json() -> serde_json::Value {
    let mut document = Head::openapi();
    access::describe(&mut document);
    for Group { needs, routes, .. } in groups() {
        let mut part = routes.into_openapi();
        if let Some(scope) = needs {
            access::describe_needs(&mut part, scope);
        }
        document.merge(part);
    }
    document::completed(&document)
}
