//! `grpc.health.v1`: what probes of orchestrators ask.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as Calls;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::Context;
use crate::api::grpc::INFERENCE;

/// Follows the readiness of the server, for the server as a whole (`""`) and for its one service.
pub(crate) struct Health {
    shared: Arc<Context>,
}

impl Health {
    /// The service over what all handlers share.
    pub(crate) fn new(shared: Arc<Context>) -> Health {
        Health { shared }
    }
}

fn is_known(service: &str) -> bool {
    service.is_empty() || service == INFERENCE
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn status(ready: bool) -> ServingStatus {
    if ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

#[tonic::async_trait]
impl Calls for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if !is_known(service) {
            return Err(Status::not_found(format!("no service `{service}`")));
        }
        Ok(Response::new(response(status(self.shared.unready().is_none()))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// The state now and each time that it changes, until the server stops.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut stopping = self.shared.stopping.clone();
        let stop = Box::pin(async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        });
        if !is_known(&request.get_ref().service) {
            // The protocol keeps the call open: the service may come.
            let unknown =
                stream::iter([Ok(response(ServingStatus::ServiceUnknown))]).chain(stream::pending());
            return Ok(Response::new(Box::pin(unknown.take_until(stop))));
        }
        let changes =
            stream::unfold((self.shared.readiness.changes(), true), |(mut changes, first)| async move {
                if !first {
                    changes.changed().await.ok()?;
                }
                let ready = *changes.borrow_and_update();
                Some((Ok(response(status(ready))), (changes, false)))
            });
        Ok(Response::new(Box::pin(changes.take_until(stop))))
    }
}
