//! Endpoints: the versions that one serves, who answers, and how it came to that.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::names::{ArtifactId, Name, Pinned, Version};
use super::settings::{EndpointSettings, SettingsPatch};
use super::time::Timestamp;

/// A name under `/v2/models/` that serves versions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    /// The name.
    pub name: Name,
    /// What is served, by ascending number; 1 to [`ENDPOINT_VERSIONS_MAX`].
    pub versions: Vec<EndpointVersion>,
    /// Which of them is meant when the client names none and only one can be: the one with the most requests.
    pub default_version: Version,
    /// Who answers requests that name no version; only weights above 0, adding up to 100.
    pub routes: Vec<Route>,
    /// How it serves.
    pub settings: EndpointSettings,
    /// Goes up with every change: the ETag. Not reset when the endpoint is deleted and made again.
    pub revision: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it changed last.
    pub updated_at: Timestamp,
}

/// One version of an endpoint: what it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointVersion {
    /// Its number in the endpoint; not the version of the model.
    pub version: Version,
    /// The artifact that is served; `None` serves the float `model` itself.
    pub artifact: Option<ArtifactId>,
    /// What the manifest of the artifact tells.
    pub artifact_precision: Option<Precision>,
    /// The float model: the twin of the artifact, or what is served.
    pub model: Pinned,
}

impl EndpointVersion {
    /// In what numbers it computes.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.artifact.map_or(Precision::Fp32, |_| Precision::of_artifact(self.artifact_precision))
    }
}

/// So many versions an endpoint has at most. When one is added, those without requests go, except the way back: the
/// version that answered before, so that a swap can be taken back without loading anything.
pub const ENDPOINT_VERSIONS_MAX: usize = 4;

/// In what numbers a version of an endpoint computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// The float model.
    Fp32,
    /// An artifact with half as many bits.
    Fp16,
    /// Any other artifact.
    Int8,
}

impl Precision {
    /// As shown in the API and the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
        }
    }

    /// That of an artifact; the manifests of old ones do not tell.
    pub(super) fn of_artifact(told: Option<Precision>) -> Precision {
        told.unwrap_or(Precision::Int8)
    }
}

/// A share of the requests that name no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Who answers.
    pub version: Version,
    /// Percent; those of an endpoint add up to 100.
    pub weight: u32,
}

/// What shall change of an endpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointChange {
    /// Adds a version: the artifact, or the float model where there is none. Its number is one more than any the name
    /// ever had.
    pub add: Option<(Option<ArtifactId>, Pinned)>,
    /// Percent of the requests that the added version gets, 0 to 100; the others share the rest as before.
    pub weight: Option<u32>,
    /// All routes anew. Versions that are not named get no requests but those that name them.
    pub routes: Option<Vec<Route>>,
    /// Settings.
    pub settings: SettingsPatch,
    /// Who changes it: `api`, `job`, `rollback`, or the key that was used.
    pub by: Cow<'static, str>,
    /// Why, where there is more to say.
    pub reason: Option<String>,
}

/// One change that an endpoint has seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointRecord {
    /// The revision that it made.
    pub revision: u64,
    /// When.
    pub at: Timestamp,
    /// See [`EndpointChange::by`].
    pub by: String,
    /// What was changed: the fields of the change, and the routes that came of it.
    pub change: Value,
    /// See [`EndpointChange::reason`].
    pub reason: Option<String>,
}

/// What an endpoint has to look like for a change to be made (`If-Match`, `If-None-Match`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything, or nothing.
    Any,
    /// It must not exist.
    Absent,
    /// It must exist.
    Present,
    /// It must have this revision.
    Revision(u64),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Any => f.write_str("anything"),
            Expect::Absent => f.write_str("that it does not exist"),
            Expect::Present => f.write_str("that it exists"),
            Expect::Revision(revision) => write!(f, "revision {revision}"),
        }
    }
}
