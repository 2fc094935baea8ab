//! What is uploaded under a name: models and datasets.

use serde::Serialize;
use serde_json::Value;

use super::names::{DatasetId, Digest, KeyId, ModelId, Name, Pinned, Version};
use super::time::Timestamp;

/// A float model as uploaded. Never changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Its id; listings sort by it.
    pub id: ModelId,
    /// The name it was uploaded under.
    pub name: Name,
    /// Which upload under the name.
    pub version: Version,
    /// Of the file.
    pub sha256: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// What `engine::pipeline::inspect::inspect` found: inputs, outputs, operators.
    pub info: Value,
    /// When it was uploaded first.
    pub created_at: Timestamp,
}

impl Model {
    /// Its name and version.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        Pinned { name: self.name.clone(), version: self.version }
    }
}

/// Calibration or evaluation inputs as uploaded. Never changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dataset {
    /// Its id; listings sort by it.
    pub id: DatasetId,
    /// The name it was uploaded under.
    pub name: Name,
    /// Which upload under the name.
    pub version: Version,
    /// Of the file.
    pub sha256: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// How many samples it holds.
    pub samples: u64,
    /// What `engine::pipeline::inspect::inspect_dataset` found: arrays, types, shapes.
    pub info: Value,
    /// When it was uploaded first.
    pub created_at: Timestamp,
}

impl Dataset {
    /// Its name and version.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        Pinned { name: self.name.clone(), version: self.version }
    }
}

/// What an upload becomes. The blob must be there already.
#[derive(Clone, Debug)]
pub struct NewModel {
    /// The name.
    pub name: Name,
    /// Of the file.
    pub sha256: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// What `inspect` found.
    pub info: Value,
    /// Whose key it counts for; `None` where nobody was asked for one.
    pub owner: Option<Owner>,
}

/// What an upload becomes. The blob must be there already.
#[derive(Clone, Debug)]
pub struct NewDataset {
    /// The name.
    pub name: Name,
    /// Of the file.
    pub sha256: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// How many samples it holds.
    pub samples: u64,
    /// What `inspect_dataset` found.
    pub info: Value,
    /// Whose key it counts for; `None` where nobody was asked for one.
    pub owner: Option<Owner>,
}

/// Whose key stores something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The key.
    pub key: KeyId,
    /// Bytes of models and datasets that it may have stored; `None` is no limit of its own.
    pub quota: Option<u64>,
}

/// A record, and whether this call made it: an upload of bytes that the name already has makes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Created<T> {
    /// The record.
    pub record: T,
    /// `false` where it was there before.
    pub new: bool,
}
