//! Settings to the values and objects that each part is handed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::api;
use crate::api::http::connections;
use crate::api::tls::{self, Tls};
use crate::config::{self, AuthMode, LogRequests, Role, Settings, Store, Weights};
use crate::engine::exec::{Memory, Options};
use crate::engine::kernels::isa::Isa;
use crate::engine::pipeline;
use crate::service::infer;
use crate::service::infer::batcher::Batcher;
use crate::service::infer::registry::Registry;
use crate::service::jobs::queue::{self, Queue};
use crate::service::jobs::webhooks::{self, Receivers, Webhooks};
use crate::service::jobs::worker::{self, Workers};
use crate::service::keys::Keys;
use crate::service::metrics::process::Metrics;
use crate::service::store::blobs::{self, Blobs};
use crate::service::store::remote::S3;
use crate::service::store::sql::open::Sql;
use crate::service::store::{Catalog, Clock, Timestamp};
use crate::service::tokens::{self, KeysAt, Tokens};

use super::Error;
use super::process::{open_files, or_cores, size, stand_back};

/// Calibration that takes less is done again by another attempt as fast as what it found out is kept.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);

/// Threads that a run which is alone has at most, where nobody says how many: steps of some 100 us have no more parts.
const RUN_THREADS: usize = 16;

/// An address that other machines reach needs keys, unless the settings say that something else keeps strangers away.
pub(super) fn refuse_public(settings: &Settings) -> Result<(), Error> {
    if settings.auth.mode == AuthMode::Keys || settings.auth.allow_public {
        return Ok(());
    }
    let addresses = [Some(settings.listen), settings.grpc_listen.0];
    let public = addresses.into_iter().flatten().find(|address| !address.ip().to_canonical().is_loopback());
    public.map_or(Ok(()), |address| Err(Error::Public { address }))
}

pub(super) fn tls(settings: &config::Tls) -> Result<Option<Arc<Tls>>, Error> {
    let given = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
    let (Some(certificate), Some(key)) = (given(&settings.certificate), given(&settings.key)) else {
        return Ok(None);
    };
    let files = tls::Files { certificate, key, client_ca: given(&settings.client_ca) };
    Ok(Some(Arc::new(Tls::open(files)?)))
}

pub(super) async fn keys(
    settings: &Settings,
    catalog: &Arc<dyn Catalog>,
    clock: &Clock,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<Keys>>, Error> {
    if settings.auth.mode == AuthMode::Off {
        return Ok(None);
    }
    let tokens = tokens(&settings.auth)?;
    let none = tokens.is_none();
    let keys = Keys::open(Arc::clone(catalog), Arc::clone(clock), Arc::clone(metrics), tokens).await?;
    if keys.is_empty() && none {
        warn!("There is no key yet: make one with `octet key create --name NAME --scope admin`");
    }
    Ok(Some(keys))
}

fn tokens(auth: &config::Auth) -> Result<Option<Arc<Tokens>>, Error> {
    if auth.jwt_issuer.is_empty() {
        return Ok(None);
    }
    let keys = match auth.jwt_keys.as_str() {
        "" => KeysAt::Issuer,
        url if url.contains("://") => KeysAt::Url(url.to_owned()),
        path => KeysAt::File(path.into()),
    };
    let options = tokens::Options {
        issuer: auth.jwt_issuer.clone(),
        audience: auth.jwt_audience.clone(),
        keys,
        claim: auth.jwt_claim.clone(),
        prefix: auth.jwt_prefix.clone(),
    };
    Ok(Some(Tokens::new(options)?))
}

pub(super) fn isa(asked: &str) -> Result<Isa, Error> {
    let unknown = || Error::Isa {
        asked: asked.to_owned(),
        available: Isa::available().into_iter().map(Isa::name).collect(),
    };
    if asked == "auto" { Ok(Isa::best()) } else { Isa::named(asked).ok_or_else(unknown) }
}

pub(super) fn registry(
    settings: &Settings,
    isa: Isa,
    catalog: &Arc<dyn Catalog>,
    blobs: &Blobs,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Registry>, Error> {
    let threads = or_cores(settings.serving.threads);
    let limits = infer::Limits {
        runs_max: threads,
        queue_max: size(settings.serving.queue_limit),
        batch_samples_max: size(settings.serving.batch_max),
        batch_delay: Duration::from_micros(settings.serving.batch_delay_us),
    };
    let run_threads = match settings.serving.run_threads {
        0 => threads.min(RUN_THREADS),
        number => size(number),
    };
    let pool = |name: &'static str, threads| {
        let named = move |n| format!("{name}-{n}");
        rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(named).build()
    };
    let batcher = Batcher::new(pool("infer", threads)?, pool("together", run_threads)?, limits);
    let memory_bytes_max = settings.limits.model_memory_bytes;
    let memory = match settings.memory {
        Weights::Fast => Memory::Fast,
        Weights::Small => Memory::Small,
    };
    let options = Options { isa, threads: run_threads, memory_bytes_max, memory, ..Options::default() };
    let loader = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .thread_name(|_| "load".to_owned())
        .start_handler(|_| stand_back())
        .build()?;
    let metrics = Arc::clone(metrics);
    let (catalog, loader) = (Arc::clone(catalog), Arc::new(loader));
    let memory_bytes = settings.serving.memory_bytes;
    Ok(Registry::new(catalog, blobs.clone(), batcher, metrics, options, loader, memory_bytes))
}

pub(super) fn workers(
    settings: &Settings,
    queue: &Arc<Queue>,
    catalog: &Arc<dyn Catalog>,
    blobs: &Blobs,
    metrics: &Arc<Metrics>,
) -> Result<Workers, Error> {
    let workers = if settings.role == Role::Api { 0 } else { size(settings.jobs.workers) };
    let threads = or_cores(settings.jobs.threads);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(workers))
        .thread_name(|n| format!("job-{n}"))
        .start_handler(|_| stand_back())
        .build()?;
    Ok(Workers {
        queue: Arc::clone(queue),
        catalog: Arc::clone(catalog),
        blobs: blobs.clone(),
        metrics: Arc::clone(metrics),
        engine: Arc::new(pipeline::job::quantize),
        pool: Arc::new(pool),
        options: worker::Options {
            workers,
            threads,
            // One process a data folder: whoever holds its lock is the host.
            host: host(&settings.data_dir)?,
            poll: Duration::from_millis(settings.jobs.poll_ms),
            checkpoint_after: CHECKPOINT_AFTER,
            timeout: Some(settings.jobs.timeout_seconds).filter(|&s| s > 0).map(Duration::from_secs),
        },
    })
}

pub(super) fn about(settings: &Settings, isa: Isa, database: &Sql, started_at: Timestamp) -> api::About {
    api::About {
        role: match settings.role {
            Role::All => "all",
            Role::Api => "api",
            Role::Worker => "worker",
        },
        isa: isa.name(),
        isas: Isa::available().into_iter().map(Isa::name).collect(),
        cores: or_cores(0),
        serving_threads: or_cores(settings.serving.threads),
        job_workers: if settings.role == Role::Api { 0 } else { size(settings.jobs.workers) },
        database: if settings.store.database_url.is_empty() { "sqlite" } else { "postgres" },
        schema_version: database.schema_version(),
        files: if settings.store.s3_bucket.is_empty() { "local" } else { "s3" },
        started_at,
    }
}

pub(super) fn queue_options(settings: &Settings) -> queue::Options {
    let jobs = &settings.jobs;
    queue::Options {
        attempts_max: u32::try_from(jobs.attempts_max).unwrap_or(u32::MAX),
        queued_max: jobs.queued_max,
        lease: Duration::from_secs(jobs.lease_seconds),
        retry_wait: Duration::from_millis(jobs.retry_wait_ms),
        receivers: receivers(&settings.webhooks),
    }
}

fn receivers(webhooks: &config::Webhooks) -> Receivers {
    match (webhooks.secret.is_empty(), webhooks.allow_private) {
        (true, _) => Receivers::None,
        (false, false) => Receivers::Public,
        (false, true) => Receivers::Any,
    }
}

/// What tells the ends of jobs; `None` where there is nothing to sign with.
pub(super) fn webhooks(
    settings: &Settings,
    catalog: &Arc<dyn Catalog>,
    clock: &Clock,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<Webhooks>>, Error> {
    let given = &settings.webhooks;
    let receivers = receivers(given);
    if receivers == Receivers::None {
        return Ok(None);
    }
    let options = webhooks::Options {
        secrets: given.secret.reveal(),
        receivers,
        retry_wait: Duration::from_millis(given.retry_wait_ms),
    };
    let (catalog, metrics, clock) = (Arc::clone(catalog), Arc::clone(metrics), Arc::clone(clock));
    Ok(Some(Webhooks::new(catalog, metrics, clock, &options)?))
}

pub(super) fn limits(settings: &Settings) -> api::Limits {
    let limits = &settings.limits;
    api::Limits {
        model_bytes: limits.model_bytes,
        model_memory_bytes: limits.model_memory_bytes,
        job_threads: or_cores(settings.jobs.threads),
        dataset_bytes: limits.dataset_bytes,
        infer_body_bytes: limits.infer_body_bytes,
        json_body_bytes: limits.json_body_bytes,
        json_depth: size(limits.json_depth),
        request_timeout: Duration::from_millis(limits.request_timeout_ms),
        requests_in_flight: size(limits.requests_in_flight),
    }
}

pub(super) fn log_requests(settings: &config::Log) -> api::LogRequests {
    match settings.requests {
        LogRequests::Off => api::LogRequests::Off,
        LogRequests::Errors => api::LogRequests::Errors,
        LogRequests::All => api::LogRequests::All,
    }
}

pub(super) fn connection_limits(settings: &Settings) -> connections::Limits {
    let asked = size(settings.limits.connections);
    let connections_max = connections_that_fit(asked, open_files());
    if connections_max < asked {
        warn!(
            connections_max,
            "limits.connections is {asked}; the process may open files for {connections_max} a port (ulimit -n)"
        );
    }
    connections::Limits { connections_max, head_time: Duration::from_millis(settings.limits.head_timeout_ms) }
}

/// Connections of each of two ports that leave files for everything else; `files` is `None` where there is no limit.
fn connections_that_fit(asked: usize, files: Option<u64>) -> usize {
    const OTHERS: u64 = 256;
    let fit = files.map_or(usize::MAX, |files| size(files.saturating_sub(OTHERS) / 2));
    // Better to run out of files than to serve nobody.
    asked.min(fit.max(16))
}

/// Where the bucket is; `None` keeps files in the data folder.
pub(super) fn s3(store: &Store) -> Option<S3> {
    if store.s3_bucket.is_empty() {
        return None;
    }
    Some(S3 {
        bucket: store.s3_bucket.clone(),
        prefix: store.s3_prefix.clone(),
        endpoint: store.s3_endpoint.clone(),
        region: store.s3_region.clone(),
        access_key_id: store.s3_access_key_id.clone(),
        secret_access_key: store.s3_secret_access_key.reveal().to_owned(),
    })
}

/// Names this data folder: leases of an earlier process that had it are its own. Made once.
fn host(data_dir: &Path) -> Result<String, Error> {
    let path = data_dir.join("host");
    let failed = |source| blobs::Error::Io { tried: "reading or writing", path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        _ => {
            let name = uuid::Uuid::now_v7().simple().to_string();
            std::fs::write(&path, &name).map_err(failed)?;
            Ok(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        assert_eq!(connections_that_fit(8192, None), 8192);
        assert_eq!(connections_that_fit(8192, Some(1 << 20)), 8192);
        assert_eq!(connections_that_fit(8192, Some(1024)), 384);
        assert_eq!(connections_that_fit(8192, Some(100)), 16);
        assert_eq!(connections_that_fit(10, Some(1024)), 10);
    }
}
