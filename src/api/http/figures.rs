//! What an endpoint has done, as cumulative figures: who asks twice has the rates. The page of an endpoint does.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::error::Problem;
use crate::api::http::artifacts::AccuracyView;
use crate::api::http::endpoints::ShadowView;
use crate::api::http::{ProblemBody, Shared};
use crate::service::infer::registry::State as Loaded;
use crate::service::metrics::endpoints::{EndpointReading, HistogramReading};
use crate::service::store::{EndpointVersion, Name};

/// What an endpoint has done since its versions were loaded.
#[derive(Serialize, ToSchema)]
pub(crate) struct EndpointFigures {
    /// The endpoint.
    name: String,
    /// When the figures were read, milliseconds since 1970.
    at_ms: i64,
    /// Which version answers when the client names none.
    default_version: u32,
    /// By ascending number.
    versions: Vec<VersionFigures>,
}

/// What a version of an endpoint has done since it was loaded.
#[derive(Serialize, ToSchema)]
pub(crate) struct VersionFigures {
    /// Its number in the endpoint.
    version: u32,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    state: &'static str,
    /// Samples that were run.
    samples: u64,
    /// Runs by their number of samples.
    batches: Vec<BatchFigures>,
    /// By the numbers that are computed in; the first is what is served when none is asked for.
    precisions: Vec<PrecisionFigures>,
    /// Float against INT8 on the evaluation data of the job; `null` where it is the float model.
    accuracy: Option<AccuracyView>,
    /// Float against INT8 on a part of the requests; `null` without a float twin.
    shadow: Option<ShadowView>,
    /// Percent of the requests that name no version.
    weight: u32,
}

/// Runs of one batch size.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchFigures {
    /// Samples in each.
    samples: usize,
    /// How many runs.
    runs: u64,
}

/// What one precision of a version has done.
#[derive(Serialize, ToSchema)]
pub(crate) struct PrecisionFigures {
    /// `int8`, `fp16` or `fp32`.
    precision: &'static str,
    /// Requests by how they ended: `ok`, `rejected`, `cancelled`, `deadline`, `invalid`, `error`.
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    requests: serde_json::Map<String, serde_json::Value>,
    /// Requests that wait.
    queue_depth: u64,
    /// So many may wait.
    queue_limit: u64,
    /// Requests being served, waiting ones included.
    in_flight: u64,
    /// Seconds of a whole request.
    latency: HistogramFigures,
    /// Seconds in the queue.
    queue: HistogramFigures,
    /// Seconds of a run.
    compute: HistogramFigures,
}

/// Counts of observations up to bounds.
#[derive(Serialize, ToSchema)]
pub(crate) struct HistogramFigures {
    /// Pairs of a bound and how many observations are at most that, ascending; what is beyond is in `count` only.
    buckets: Vec<(f64, u64)>,
    /// Sum of all observations.
    sum: f64,
    /// Number of all observations.
    count: u64,
}

impl From<HistogramReading> for HistogramFigures {
    fn from(reading: HistogramReading) -> HistogramFigures {
        let HistogramReading { buckets, sum, count } = reading;
        HistogramFigures { buckets, sum, count }
    }
}

/// What an endpoint has done since its versions were loaded.
///
/// All counts are cumulative and begin at 0 when a version is loaded: rates and quantiles of a time are those of the
/// difference of two answers.
#[utoipa::path(get, path = "/v1/endpoints/{name}/figures", operation_id = "get_endpoint_figures", tag = "endpoints", params(("name" = String, Path)),
    responses((status = 200, description = "The figures", body = EndpointFigures),
        (status = 404, description = "No such endpoint", body = ProblemBody)))]
pub(crate) async fn get(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<EndpointFigures>, Problem> {
    let name: Name = name.parse()?;
    let endpoint = shared.catalog.endpoint(&name).await?;
    let loaded = shared.registry.entry(name.as_str(), None).ok().map(|(entry, _)| entry);
    let mut versions = Vec::with_capacity(endpoint.versions.len());
    for version in &endpoint.versions {
        let accuracy = match version.artifact {
            Some(id) => shared.catalog.artifact(id).await.ok().map(|a| AccuracyView::from(a.accuracy)),
            None => None,
        };
        let state = loaded.as_ref().and_then(|entry| entry.versions.get(&version.version.0));
        let weight = endpoint.weight(version.version);
        versions.push(figures_of(version, state, accuracy, weight));
    }
    let default_version = endpoint.default_version.0;
    Ok(Json(EndpointFigures { name: name.to_string(), at_ms: (shared.clock)().0, default_version, versions }))
}

fn figures_of(
    version: &EndpointVersion,
    state: Option<&Loaded>,
    accuracy: Option<AccuracyView>,
    weight: u32,
) -> VersionFigures {
    let mut figures = VersionFigures {
        version: version.version.0,
        state: state.map_or("LOADING", Loaded::name),
        samples: 0,
        batches: Vec::new(),
        precisions: Vec::new(),
        accuracy,
        shadow: None,
        weight,
    };
    if let Some(Loaded::Ready(served)) = state {
        let stats = served.stats.figures();
        figures.samples = stats.inference_count;
        figures.batches = stats
            .batches
            .iter()
            .map(|(&samples, tally)| BatchFigures { samples, runs: tally.compute.count })
            .collect();
        figures.precisions = served.readings().into_iter().map(|(p, r)| precision(p.as_str(), r)).collect();
        figures.shadow = served.comparer.as_ref().map(|comparer| comparer.figures().into());
    }
    figures
}

fn precision(precision: &'static str, reading: EndpointReading) -> PrecisionFigures {
    PrecisionFigures {
        precision,
        requests: reading
            .requests
            .into_iter()
            .map(|(outcome, count)| (outcome.to_owned(), count.into()))
            .collect(),
        queue_depth: reading.queue_depth,
        queue_limit: reading.queue_limit,
        in_flight: reading.in_flight,
        latency: reading.duration.into(),
        queue: reading.queue.into(),
        compute: reading.compute.into(),
    }
}
