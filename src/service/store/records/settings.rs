//! How an endpoint serves, and what is said of it to change that.

use serde::{Deserialize, Serialize};

/// How an endpoint serves. Fields that are not set leave it to the settings of the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSettings {
    /// Runs a part of the requests in float as well, and compares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// When a version loses its requests to another without anybody asking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// How requests are run together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// Requests that may wait at a version, 1 to 100,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_limit: Option<u32>,
    /// Runs of a version at the same time, 1 to 1,024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Whether the server is ready only when the default version answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Runs of made-up samples before a version is ready, 1 to 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<u32>,
}

/// See [`EndpointSettings::shadow`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// Part of the requests, 0 to 1.
    pub fraction: f64,
    /// Whether the compared requests also add to statistics (histograms, no samples) that a job can take ranges from.
    #[serde(default)]
    pub statistics: bool,
}

/// See [`EndpointSettings::rollback`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Least agreement with the float twin over the recent comparisons, 0 to 1; needs `shadow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_agreement: Option<f64>,
    /// Largest part of the recent requests that may end in a fault of the server, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_error_ratio: Option<f64>,
    /// So many comparisons or requests there must be before either is judged, 1 to 1,000,000.
    #[serde(default = "min_requests")]
    pub min_requests: u32,
}

fn min_requests() -> u32 {
    50
}

/// See [`EndpointSettings::batching`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// Samples that run together at most, 1 to 1,024; 1 is no batching.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Microseconds that a sample waits for others, 0 to 1,000,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_us: Option<u32>,
}

/// New values of [`EndpointSettings`], field by field: `None` keeps, `Some(None)` takes back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SettingsPatch {
    /// See [`EndpointSettings::shadow`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Option<Shadow>>,
    /// See [`EndpointSettings::rollback`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Option<Rollback>>,
    /// See [`EndpointSettings::batching`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub batching: Option<Option<Batching>>,
    /// See [`EndpointSettings::queue_limit`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub queue_limit: Option<Option<u32>>,
    /// See [`EndpointSettings::concurrency`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Option<u32>>,
    /// See [`EndpointSettings::required`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub required: Option<Option<bool>>,
    /// See [`EndpointSettings::warm_up`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<Option<u32>>,
}

/// A field that stands there, `null` or not.
///
/// # Errors
/// As `T`.
pub fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}
