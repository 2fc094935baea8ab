//! The calls of `inference.GRPCInferenceService`: each takes a message apart and hands it on.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use tonic::{Request, Response, Status, Streaming};

use crate::api::Context;
use crate::api::access::By;
use crate::api::answered::Trail;
use crate::api::error::Problem;
use crate::api::grpc::proto::grpc_inference_service_server::GrpcInferenceService;
use crate::api::grpc::proto::repository_index_response::ModelIndex;
use crate::api::grpc::proto::{
    LogSettingsRequest, LogSettingsResponse, ModelConfigRequest, ModelConfigResponse, ModelInferRequest,
    ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStatisticsRequest, ModelStatisticsResponse, RepositoryIndexRequest, RepositoryIndexResponse,
    RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse, SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryRegisterResponse, SystemSharedMemoryStatusRequest, SystemSharedMemoryStatusResponse,
    SystemSharedMemoryUnregisterRequest, SystemSharedMemoryUnregisterResponse, TraceSettingRequest,
    TraceSettingResponse,
};
use crate::api::grpc::{describe, given, infer, repository, settings, shared_memory};
use crate::api::until::Until;
use crate::api::v2;
use crate::service::keys::Caller;

type Answer<T> = Result<Response<T>, Status>;

/// The service over what all handlers share.
pub(crate) struct Service {
    shared: Arc<Context>,
}

impl Service {
    /// The service.
    pub(crate) fn new(shared: Arc<Context>) -> Service {
        Service { shared }
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answer<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answer<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: self.shared.unready().is_none() }))
    }

    /// As in Triton, a model that there is not is not ready; it is no error.
    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Answer<ModelReadyResponse> {
        let message = request.into_inner();
        let ready = self.shared.registry.find(&message.name, given(&message.version)).is_ok();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Answer<ServerMetadataResponse> {
        Ok(Response::new(ServerMetadataResponse {
            name: v2::describe::NAME.to_owned(),
            version: v2::describe::VERSION.to_owned(),
            extensions: v2::describe::extensions(&self.shared).into_iter().map(str::to_owned).collect(),
        }))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Answer<ModelMetadataResponse> {
        let message = request.into_inner();
        let model = v2::describe::metadata(&self.shared, &message.name, given(&message.version))?;
        Ok(Response::new(describe::metadata(model)))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        let deadline = infer::deadline(request.metadata());
        let until = request.extensions().get::<Until>().copied();
        let trail = request.extensions().get::<Trail>().cloned();
        let answer = infer::answer(&self.shared, request.into_inner(), deadline, until, trail.as_ref()).await;
        Ok(Response::new(answer?))
    }

    type ModelStreamInferStream = infer::Answers;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        let deadline = infer::deadline(request.metadata());
        let caller = request.extensions().get::<Caller>().cloned();
        let answers = infer::answer_all(Arc::clone(&self.shared), request.into_inner(), deadline, caller);
        Ok(Response::new(answers))
    }

    async fn model_config(&self, request: Request<ModelConfigRequest>) -> Answer<ModelConfigResponse> {
        let message = request.into_inner();
        let config = v2::describe::configuration(&self.shared, &message.name, given(&message.version))?;
        Ok(Response::new(ModelConfigResponse { config: Some(describe::configuration(config)) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Answer<ModelStatisticsResponse> {
        let message = request.into_inner();
        let all = v2::describe::loaded(&self.shared, given(&message.name), given(&message.version))?;
        let model_stats = all.iter().map(|served| describe::statistics(served)).collect();
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Answer<RepositoryIndexResponse> {
        let entries = v2::repository::index(&self.shared, request.get_ref().ready);
        let model = |entry: v2::repository::IndexEntry| ModelIndex {
            name: entry.name,
            version: entry.version,
            state: entry.state.to_owned(),
            reason: entry.reason,
        };
        Ok(Response::new(RepositoryIndexResponse { models: entries.into_iter().map(model).collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Answer<RepositoryModelLoadResponse> {
        let by = By::of(request.extensions());
        let trail = request.extensions().get::<Trail>().cloned().unwrap_or_default();
        let load = repository::Load::read(request.into_inner(), &trail)?;
        let bytes = |bytes| stream::iter([Ok::<Bytes, Infallible>(bytes)]);
        let file = load.file.as_ref().map(|(path, file)| (path.as_str(), bytes(file.clone())));
        v2::repository::load(&self.shared, &load.name, load.config.as_deref(), file, &by).await?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Answer<RepositoryModelUnloadResponse> {
        let message = request.get_ref();
        let name = repository::name(&message.model_name, &message.repository_name);
        if let Some(trail) = request.extensions().get::<Trail>() {
            trail.set_endpoint(name);
        }
        self.shared.registry.unload(name).map_err(Problem::from)?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<SystemSharedMemoryStatusRequest>,
    ) -> Answer<SystemSharedMemoryStatusResponse> {
        let regions = v2::shared_memory::regions(&self.shared)?;
        Ok(Response::new(shared_memory::status(regions, given(&request.get_ref().name))?))
    }

    async fn system_shared_memory_register(
        &self,
        request: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Answer<SystemSharedMemoryRegisterResponse> {
        let SystemSharedMemoryRegisterRequest { name, key, offset, byte_size } = request.get_ref();
        let regions = v2::shared_memory::regions(&self.shared)?;
        regions.register(name, key, *offset, *byte_size).map_err(Problem::from)?;
        Ok(Response::new(SystemSharedMemoryRegisterResponse {}))
    }

    async fn system_shared_memory_unregister(
        &self,
        request: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<SystemSharedMemoryUnregisterResponse> {
        let regions = v2::shared_memory::regions(&self.shared)?;
        match given(&request.get_ref().name) {
            Some(name) => regions.unregister(name),
            None => regions.unregister_all(),
        }
        Ok(Response::new(SystemSharedMemoryUnregisterResponse {}))
    }

    async fn trace_setting(&self, request: Request<TraceSettingRequest>) -> Answer<TraceSettingResponse> {
        let message = request.into_inner();
        let changes: Vec<_> =
            message.settings.into_iter().map(|(name, setting)| (name, setting.value)).collect();
        let all = v2::settings::update_trace(&self.shared, given(&message.model_name), &changes)?;
        Ok(Response::new(settings::trace(all)))
    }

    async fn log_settings(&self, request: Request<LogSettingsRequest>) -> Answer<LogSettingsResponse> {
        let changes = settings::log_changes(request.into_inner())?;
        let all = if changes.is_empty() {
            v2::settings::log(&self.shared)?
        } else {
            v2::settings::update_log(&self.shared, &changes)?
        };
        Ok(Response::new(settings::log(all)))
    }
}
