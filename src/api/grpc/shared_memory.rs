//! Regions of shared memory as messages.

use std::sync::Arc;

use crate::api::error::Problem;
use crate::api::grpc::proto::SystemSharedMemoryStatusResponse;
use crate::api::grpc::proto::system_shared_memory_status_response::RegionStatus;
use crate::service::infer::shared_memory::{Region, SharedMemory};

/// The region `name`, or all.
///
/// # Errors
/// 404 where there is no such region.
pub(crate) fn status(
    regions: &SharedMemory,
    name: Option<&str>,
) -> Result<SystemSharedMemoryStatusResponse, Problem> {
    let chosen = match name {
        Some(name) => vec![(name.to_owned(), regions.region(name)?)],
        None => regions.regions(),
    };
    let status = |(name, region): (String, Arc<Region>)| {
        let status = RegionStatus {
            name: name.clone(),
            key: region.key.clone(),
            offset: region.offset,
            byte_size: region.byte_size,
        };
        (name, status)
    };
    Ok(SystemSharedMemoryStatusResponse { regions: chosen.into_iter().map(status).collect() })
}
