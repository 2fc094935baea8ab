//! The services of the gRPC port, and what is around every call: its id, the limits, the log line of a fault.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::codec::CompressionEncoding;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;
use tower_http::catch_panic::CatchPanicLayer;

use crate::api::access::{Noted, admit, given};
use crate::api::answered::{self, Trail};
use crate::api::error::Problem;
use crate::api::grpc::access;
use crate::api::grpc::health::Health;
use crate::api::grpc::proto::grpc_inference_service_server::GrpcInferenceServiceServer;
use crate::api::grpc::service::Service;
use crate::api::grpc::{Cause, DESCRIPTOR, INFERENCE};
use crate::api::http::observe::{REQUEST_ID, request_id};
use crate::api::{Answered, Call, Context, until};
use crate::service::keys::Caller;
use crate::service::store::Scope;

/// The call that may carry a model.
const LOAD: &str = "/inference.GRPCInferenceService/RepositoryModelLoad";

/// For a call that carries a model, however slowly it comes.
const LOAD_TIME: Duration = Duration::from_secs(3600);

/// The services over what they share.
///
/// # Panics
/// Never: reflection reads only what the build has written, and a test does so too.
pub fn router(shared: Arc<Context>) -> axum::Router {
    let bytes = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
    let infer_bytes = bytes(shared.limits.infer_body_bytes);
    // Beside the file there are names and a configuration.
    let load_bytes = bytes(shared.limits.model_bytes.saturating_add(shared.limits.json_body_bytes));
    let inference = |limit| {
        GrpcInferenceServiceServer::new(Service::new(Arc::clone(&shared)))
            .max_decoding_message_size(limit)
            .max_encoding_message_size(usize::MAX)
            // Answers are not compressed: the Python clients offer to take it with every call, asked or not.
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
    };
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let read = "the build wrote the descriptors";
    // Clients know the older name of reflection; new ones try the newer first.
    let (v1, v1alpha) = (reflection().build_v1().expect(read), reflection().build_v1alpha().expect(read));
    axum::Router::new()
        .route_service(LOAD, inference(load_bytes))
        .route_service(&calls_of(INFERENCE), inference(infer_bytes))
        .route_service(&calls_of(name_of(&v1)), v1)
        .route_service(&calls_of(name_of(&v1alpha)), v1alpha)
        .route_service("/grpc.health.v1.Health/{call}", HealthServer::new(Health::new(Arc::clone(&shared))))
        .fallback(no_service)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(shared, around))
}

fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

fn calls_of(service: &str) -> String {
    format!("/{service}/{{call}}")
}

async fn no_service() -> Response {
    Status::unimplemented("").into_http()
}

/// The answer to a panic in a call.
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    Status::from(Problem::of_panic(&*panic)).into_http()
}

/// Gives a call its id, bounds how many there are and how long each takes, and logs what went wrong in us.
async fn around(State(shared): State<Arc<Context>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(request.headers());
    let path = request.uri().path().to_owned();
    let trail = Trail::default();
    request.extensions_mut().insert(trail.clone());
    let parents = if shared.traces.is_some() { answered::parents(request.headers()) } else { [None, None] };
    let mut response = admitted(&shared, &path, &id, request, next).await;
    let cause = response.extensions().get::<Status>().and_then(|status| status.source());
    if let Some(cause) = cause.filter(|source| source.is::<Cause>()) {
        tracing::error!(request_id = %id, %path, %cause, "Call {id} failed: {cause}");
    }
    if let Some(other) = Status::from_header_map(response.headers()).and_then(|s| plainer(&s, &path)) {
        response = other.into_http();
    }
    if let Ok(value) = HeaderValue::try_from(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    // Where an answer comes, its status follows in the trailers: it is OK.
    let code = code_of(&response);
    shared.metrics.grpc_request(access::call_of(&path), &format!("{code:?}"), start.elapsed().as_secs_f64());
    let answered = Answered {
        request_id: &id,
        call: Call::Grpc { path: &path, status: code as i32 },
        endpoint: trail.endpoint(),
        parent: parents[0].as_deref(),
        state: parents[1].as_deref(),
        start,
        end: Instant::now(),
        phases: trail.phases(),
    };
    answered::note(&shared, &answered, is_probe(&path));
    response
}

/// Lets a call in whose key allows it, and notes whose it is.
async fn admitted(shared: &Context, path: &str, id: &str, mut request: Request, next: Next) -> Response {
    let Some(scope) = access::scope_of(path) else { return bounded(shared, path, request, next).await };
    let caller = match admit(shared, given(request.headers()), scope).await {
        Ok(caller) => caller,
        Err(refused) => return Status::from(Problem::from(refused)).into_http(),
    };
    if let Some(caller) = &caller {
        request.extensions_mut().insert::<Caller>(caller.clone());
    }
    if !matches!(scope, Scope::Write | Scope::Admin) {
        return bounded(shared, path, request, next).await;
    }
    let trail = request.extensions().get::<Trail>().cloned().unwrap_or_default();
    let noted = Noted::begin(shared, caller.as_ref(), id, "gRPC", path, path);
    let response = bounded(shared, path, request, next).await;
    let code = code_of(&response);
    // The path of a call does not say it, as that of a request does.
    let record = trail.endpoint().filter(|name| !name.is_empty()).map(|name| format!("/v1/endpoints/{name}"));
    noted.end(record, format!("{code:?}")).await;
    response
}

fn code_of(response: &Response) -> Code {
    Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
}

async fn bounded(shared: &Context, path: &str, request: Request, next: Next) -> Response {
    let own = path.starts_with(&format!("/{INFERENCE}/"));
    if !own || is_probe(path) {
        // Probes must get through when nothing else does.
        return next.run(request).await;
    }
    let Some(_entered) = shared.in_flight.enter() else {
        return Status::from(Problem::overloaded(shared.in_flight.max())).into_http();
    };
    if path == LOAD {
        // One at a time: each may hold a whole model in memory. Its time is that of the network.
        let _turn = shared.loading.lock().await;
        return in_time(LOAD_TIME, request, next).await;
    }
    in_time(shared.limits.request_timeout, request, next).await
}

fn is_probe(path: &str) -> bool {
    path.ends_with("/ServerLive")
        || path.ends_with("/ServerReady")
        || path.starts_with("/grpc.health.v1.Health/")
}

async fn in_time(limit: Duration, request: Request, next: Next) -> Response {
    until::in_time(limit, request, |request| next.run(request))
        .await
        .unwrap_or_else(|late| Status::from(late).into_http())
}

/// What tonic says, in the words and codes that clients of the protocol know.
fn plainer(status: &Status, path: &str) -> Option<Status> {
    match status.code() {
        // A message longer than the limit: everybody else calls it so.
        Code::OutOfRange => Some(Status::resource_exhausted(status.message())),
        Code::Unimplemented if status.message().is_empty() => {
            let what = if path.contains("CudaSharedMemory") { "CUDA shared memory" } else { path };
            Some(Status::unimplemented(format!("{what} is not part of this server")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_tonic_is_told_in_other_words_where_it_is_strange() {
        let long = plainer(&Status::out_of_range("decoded message length too large"), "/x").unwrap();
        assert_eq!(long.code(), Code::ResourceExhausted);
        let missing =
            plainer(&Status::unimplemented(""), "/inference.GRPCInferenceService/CudaSharedMemoryStatus");
        assert_eq!(missing.unwrap().message(), "CUDA shared memory is not part of this server");
        assert!(plainer(&Status::not_found("no endpoint"), "/x").is_none());
        assert_eq!(<GrpcInferenceServiceServer<Service> as NamedService>::NAME, INFERENCE);
        assert!(LOAD.starts_with(&format!("/{INFERENCE}/")));
    }

    #[test]
    fn reflection_reads_what_the_build_wrote() {
        let builder = tonic_reflection::server::Builder::configure();
        assert!(builder.register_encoded_file_descriptor_set(DESCRIPTOR).build_v1().is_ok());
    }
}
