//! The only place that builds things: settings to stores, pools, queue, endpoints, server; and the graceful stop.

pub mod backup;
pub mod doctor;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::api::http::connections;
use crate::api::tls::{self, Tls};
use crate::api::{self, Context, InFlight, Logs, Readiness, Traces};
use crate::config::{self, AuthMode, LogRequests, Role, Settings, Store, Weights};
use crate::engine::exec::{Memory, Options};
use crate::engine::kernels::isa::Isa;
use crate::engine::pipeline;
use crate::service::infer::batcher::Batcher;
use crate::service::infer::registry::Registry;
use crate::service::infer::shared_memory::SharedMemory;
use crate::service::infer::watch::Watch;
use crate::service::infer::{self};
use crate::service::jobs::queue::{self, Queue};
use crate::service::jobs::webhooks::{self, Receivers, Webhooks};
use crate::service::jobs::worker::{self, Workers};
use crate::service::keys::Keys;
use crate::service::metrics::process::Metrics;
use crate::service::store::blobs::Blobs;
use crate::service::store::partial::{self, Partials};
use crate::service::store::remote::{Remote, S3};
use crate::service::store::sql::open::Sql;
use crate::service::store::{self, Catalog, Clock, Timestamp, blobs};
use crate::service::tokens::{self, KeysAt, Tokens};

/// Calibration that takes less is done again by another attempt as fast as what it found out is kept.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);

/// Threads that a run which is alone has at most, where nobody says how many: steps of some 100 us have no more parts.
const RUN_THREADS: usize = 16;

/// What has had its time is looked for so often.
const TIDY: Duration = Duration::from_secs(60);

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data folder cannot be used.
    #[error(transparent)]
    Blobs(#[from] blobs::Error),
    /// The folder of uploads cannot be used.
    #[error(transparent)]
    Partials(#[from] partial::Error),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The address cannot be used.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// There is nothing to work on.
    #[error(
        "there is no database `{path}`: name the folder of the server with --data-dir, or its settings with --config"
    )]
    NoDatabase {
        /// The file.
        path: PathBuf,
    },
    /// Strangers could reach a server that asks nobody.
    #[error(
        "{address} can be reached from other machines, and nobody is asked for a key: make keys with \
         `octet key create` and set auth.mode = \"keys\", or set auth.allow_public = true where something else keeps \
         strangers away"
    )]
    Public {
        /// The address.
        address: SocketAddr,
    },
    /// The files of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Tokens cannot be taken as the settings say.
    #[error("tokens: {0}")]
    Tokens(#[from] tokens::Error),
    /// The kernels cannot run as the settings say.
    #[error("isa `{asked}`: this CPU has {available:?}")]
    Isa {
        /// As asked.
        asked: String,
        /// What there is.
        available: Vec<&'static str>,
    },
    /// Ends of jobs cannot be told.
    #[error(transparent)]
    Webhooks(#[from] webhooks::Error),
    /// Threads cannot be made.
    #[error("making threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// A server that runs.
pub struct Server {
    address: SocketAddr,
    grpc_address: Option<SocketAddr>,
    readiness: Readiness,
    stop: watch::Sender<bool>,
    drain_delay: Duration,
    drain_timeout: Duration,
    http: JoinHandle<()>,
    grpc: JoinHandle<()>,
    workers: JoinHandle<()>,
    webhooks: JoinHandle<()>,
    following: JoinHandle<()>,
    watching: JoinHandle<()>,
    listening: JoinHandle<()>,
    refreshing: Vec<JoinHandle<()>>,
}

/// Starts a server. When it answers, endpoints of an earlier run may still be loading: see
/// `/v2/health/ready`.
///
/// # Errors
/// [`Error`]; nothing runs then.
pub async fn start(settings: &Settings) -> Result<Server, Error> {
    start_with(settings, Outside::default()).await
}

/// What the process has and a server makes use of.
#[derive(Default)]
pub struct Outside {
    /// Changes the level of the log while the server runs.
    pub logs: Option<Arc<dyn Logs>>,
    /// Takes what traces are made of.
    pub traces: Option<Arc<dyn Traces>>,
}

/// The same, with what the process has.
///
/// # Errors
/// [`Error`]; nothing runs then.
async fn start_with(settings: &Settings, outside: Outside) -> Result<Server, Error> {
    let isa = isa(&settings.isa)?;
    refuse_public(settings)?;
    let tls = tls(&settings.tls)?;
    let (listener, address) = bind(settings.listen).await?;
    let answers = settings.role != Role::Worker;
    let grpc = match settings.grpc_listen.0 {
        Some(address) if answers => Some(bind(address).await?),
        _ => None,
    };
    // TLS of clients: the object store, webhooks. A second call finds it done.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let clock = clock();
    let database = database(settings, Arc::clone(&clock)).await?;
    let catalog: Arc<dyn Catalog> = Arc::clone(&database) as _;
    let remote = match s3(&settings.store) {
        None => None,
        Some(s3) => Some(Remote::s3(&s3, Arc::clone(&catalog)).map_err(blobs::Error::from)?),
    };
    let blobs = Blobs::open_with(&settings.data_dir, remote, settings.store.cache_bytes)?;
    let lifetime = Duration::from_secs(settings.limits.upload_expires_s);
    let partials = Partials::open(&settings.data_dir, Arc::clone(&clock), lifetime)?;
    let listening = database.listen();
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"), isa.name()));
    let keys = keys(settings, &catalog, &clock, &metrics).await?;
    let webhooks = webhooks(settings, &catalog, &clock, &metrics)?;
    let queue = Queue::new(Arc::clone(&catalog), Arc::clone(&metrics), queue_options(settings));
    let registry = registry(settings, isa, &catalog, &blobs, &metrics)?;
    let (stop, stopping) = watch::channel(false);
    let workers = workers(settings, &queue, &catalog, &blobs, &metrics)?;
    let readiness = Readiness::default();
    let watch = Watch::new(Arc::clone(&registry), Arc::clone(&catalog));
    let records = Arc::clone(&catalog);
    let keep = Duration::from_secs(settings.audit.keep_days * 86_400);
    let context = Context {
        catalog,
        blobs,
        partials: Arc::clone(&partials),
        queue,
        registry: Arc::clone(&registry),
        shared_memory: settings.serving.shared_memory.then(SharedMemory::default),
        metrics,
        clock: Arc::clone(&clock),
        limits: limits(settings),
        readiness: readiness.clone(),
        stopping: stopping.clone(),
        in_flight: InFlight::new(size(settings.limits.requests_in_flight)),
        compress_bytes: settings.serving.compress_bytes,
        loading: tokio::sync::Mutex::default(),
        keys: keys.clone(),
        tls: tls.is_some(),
        about: about(settings, isa, &database, clock()),
        logs: outside.logs,
        traces: outside.traces,
        log_requests: match settings.log.requests {
            LogRequests::Off => api::LogRequests::Off,
            LogRequests::Errors => api::LogRequests::Errors,
            LogRequests::All => api::LogRequests::All,
        },
    };
    let context = Arc::new(context);
    let http = match settings.role {
        Role::All | Role::Api => api::http::router::router(Arc::clone(&context)),
        Role::Worker => api::http::router::of_worker(Arc::clone(&context)),
    };
    let open = connection_limits(settings);
    let http = tokio::spawn(connections::serve(listener, tls.clone(), http, open, stopping.clone()));
    let grpc_address = grpc.as_ref().map(|(_, address)| *address);
    let grpc = tokio::spawn({
        let (tls, stopping) = (tls.clone(), stopping.clone());
        async move {
            if let Some((listener, _)) = grpc {
                connections::serve(listener, tls, api::grpc::router::router(context), open, stopping).await;
            }
        }
    });
    let workers = tokio::spawn(workers.run(stopping.clone()));
    let webhooks = tokio::spawn(async move {
        if let Some(webhooks) = webhooks {
            webhooks.run(stopping).await;
        }
    });
    let following = if answers {
        tokio::spawn(follow(registry, readiness.clone()))
    } else {
        readiness.set(true);
        tokio::spawn(std::future::ready(()))
    };
    let watching = tokio::spawn(watch.run());
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut refreshing = vec![tokio::spawn(tidy(partials, records, keep))];
    let tokens = keys.as_ref().and_then(|keys| keys.tokens());
    refreshing.extend(tokens.map(|tokens| tokio::spawn(tokens.keep_fresh())));
    refreshing.extend(keys.map(|keys| tokio::spawn(keys.keep_fresh())));
    refreshing.extend(tls.map(|tls| tokio::spawn(tls.keep_fresh())));
    let grpc_text = grpc_address.map_or_else(|| "off".to_owned(), |address| address.to_string());
    info!(%address, grpc = grpc_text, isa = isa.name(), data_dir = %settings.data_dir.display(), "Octet listens on {scheme}://{address}, gRPC: {grpc_text}");
    Ok(Server {
        address,
        grpc_address,
        readiness,
        stop,
        drain_delay: Duration::from_millis(settings.serving.drain_delay_ms),
        drain_timeout: Duration::from_millis(settings.serving.drain_timeout_ms),
        http,
        grpc,
        workers,
        webhooks,
        following,
        watching,
        listening,
        refreshing,
    })
}

/// An address that other machines reach needs keys, unless the settings say that something else keeps strangers away.
fn refuse_public(settings: &Settings) -> Result<(), Error> {
    if settings.auth.mode == AuthMode::Keys || settings.auth.allow_public {
        return Ok(());
    }
    let addresses = [Some(settings.listen), settings.grpc_listen.0];
    let public = addresses.into_iter().flatten().find(|address| !address.ip().to_canonical().is_loopback());
    public.map_or(Ok(()), |address| Err(Error::Public { address }))
}

fn tls(settings: &config::Tls) -> Result<Option<Arc<Tls>>, Error> {
    let given = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
    let (Some(certificate), Some(key)) = (given(&settings.certificate), given(&settings.key)) else {
        return Ok(None);
    };
    let files = tls::Files { certificate, key, client_ca: given(&settings.client_ca) };
    Ok(Some(Arc::new(Tls::open(files)?)))
}

async fn keys(
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

/// The records of a server, which may run meanwhile: only the files have one owner. Makes them where there are none, as
/// the server does.
///
/// # Errors
/// [`Error`] where they cannot be opened.
pub async fn open_catalog(settings: &Settings) -> Result<Arc<dyn Catalog>, Error> {
    Ok(database(settings, clock()).await?)
}

/// The same for who has nothing to do where there are none: in a folder that was misspelt.
///
/// # Errors
/// [`Error::NoDatabase`], and as [`open_catalog`].
pub async fn open_existing_catalog(settings: &Settings) -> Result<Arc<dyn Catalog>, Error> {
    match missing_database(settings) {
        Some(path) => Err(Error::NoDatabase { path }),
        None => open_catalog(settings).await,
    }
}

/// The SQLite file that whoever opens the records would make; `None` where there is one, and where Postgres keeps them.
#[must_use]
pub fn missing_database(settings: &Settings) -> Option<PathBuf> {
    let path = settings.data_dir.join("octet.db");
    (settings.store.database_url.is_empty() && !path.exists()).then_some(path)
}

/// Brings the database to what this program knows. Gives the version, and the names of what was applied.
///
/// # Errors
/// [`Error::Store`], or [`Error::Blobs`] where the data folder cannot be used.
pub async fn migrate(settings: &Settings) -> Result<(i64, Vec<&'static str>), Error> {
    let sql = database(settings, clock()).await?;
    Ok((sql.schema_version(), sql.applied().to_vec()))
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

impl Server {
    /// Where it listens: the port that was given for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for gRPC; `None` where that is off.
    #[must_use]
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc_address
    }

    /// Stops: not ready at once, answers during the drain delay, then takes no more connections, finishes the
    /// requests and webhooks it has, and hands running jobs back.
    pub async fn stop(self) {
        self.readiness.set(false);
        // A load balancer needs this time to notice.
        tokio::time::sleep(self.drain_delay).await;
        self.stop.send_replace(true);
        let tasks = [
            ("The HTTP server", self.http),
            ("The gRPC server", self.grpc),
            ("The workers", self.workers),
            ("The sender of webhooks", self.webhooks),
        ];
        let aborts = tasks.each_ref().map(|(_, task)| task.abort_handle());
        let ended = tokio::time::timeout(self.drain_timeout, async {
            for (what, task) in tasks {
                if let Err(error) = task.await {
                    error!(%error, "{what} ended by a fault");
                }
            }
        });
        if ended.await.is_err() {
            let drain_timeout_ms = self.drain_timeout.as_millis();
            warn!(drain_timeout_ms, "Requests, jobs or webhooks were cut off after {drain_timeout_ms} ms");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
        for task in [self.following, self.watching, self.listening].into_iter().chain(self.refreshing) {
            task.abort();
            // It ends with an error that says it was aborted.
            let _ = task.await;
        }
        info!("Octet has stopped");
    }
}

/// Runs a server until the process is asked to end (SIGTERM, Ctrl-C); a second time ends it at once.
///
/// # Errors
/// [`Error`] where it does not start.
pub async fn serve(settings: &Settings, outside: Outside) -> Result<(), Error> {
    let server = start_with(settings, outside).await?;
    asked_to_end().await;
    info!("Octet stops; once more ends it at once");
    tokio::select! {
        () = server.stop() => {}
        () = asked_to_end() => warn!("Octet ends at once"),
    }
    Ok(())
}

/// Waits for SIGTERM or Ctrl-C.
pub async fn asked_to_end() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    if let Err(error) = tokio::signal::ctrl_c().await {
        error!(%error, "Signals cannot be heard");
        std::future::pending::<()>().await;
    }
}

/// Loads what the catalog has, says so, and follows it.
async fn follow(registry: Arc<Registry>, readiness: Readiness) {
    if let Err(error) = registry.follow().await {
        error!(%error, "The endpoints could not be read: {error}");
    }
    readiness.set(true);
    registry.keep_following().await;
}

/// Removes what has had its time, until it is aborted.
async fn tidy(partials: Arc<Partials>, catalog: Arc<dyn Catalog>, keep: Duration) {
    loop {
        match partials.expire().await {
            Ok(0) => {}
            Ok(uploads) => info!(uploads, "{uploads} uploads that nobody went on with were given up"),
            Err(error) => warn!(%error, "Uploads that have expired are left for later: {error}"),
        }
        if let Err(error) = catalog.prune_audit(keep).await {
            warn!(%error, "Old lines of the audit log are left for later: {error}");
        }
        tokio::time::sleep(TIDY).await;
    }
}

fn isa(asked: &str) -> Result<Isa, Error> {
    let unknown = || Error::Isa {
        asked: asked.to_owned(),
        available: Isa::available().into_iter().map(Isa::name).collect(),
    };
    if asked == "auto" { Ok(Isa::best()) } else { Isa::named(asked).ok_or_else(unknown) }
}

fn registry(
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

fn workers(
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

fn about(settings: &Settings, isa: Isa, database: &Sql, started_at: Timestamp) -> api::About {
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

fn queue_options(settings: &Settings) -> queue::Options {
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
fn webhooks(
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

fn limits(settings: &Settings) -> api::Limits {
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

fn connection_limits(settings: &Settings) -> connections::Limits {
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

/// Files that the process may open, raised as far as it may raise it: many systems begin with 1,024 for the sake of
/// programs that use `select`. `None` where there is no limit.
fn open_files() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            Ok(()) => maximum,
            Err(error) => {
                tracing::debug!(%error, "The limit of open files stays as it is: {error}");
                current
            }
        }
    }
    #[cfg(not(unix))]
    None
}

/// Lets threads that answer requests go before this one.
fn stand_back() {
    // On Linux a niceness is that of a thread. Where it cannot be set, the work is done all the same.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!(%error, "A thread keeps its priority: {error}");
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A number of threads, where 0 is one for each core.
fn or_cores(number: u64) -> usize {
    match number {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        number => size(number),
    }
}

/// The time of day.
#[must_use]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The time.
#[must_use]
pub fn now() -> Timestamp {
    clock()()
}

/// The time of day at the start, and what has passed since: a clock that somebody sets does not end leases.
fn clock() -> Clock {
    let start = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begun = Instant::now();
    Arc::new(move || {
        let since = start + begun.elapsed();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}

/// Opens what keeps the records.
async fn database(settings: &Settings, clock: Clock) -> Result<Arc<Sql>, Error> {
    let url = settings.store.database_url.reveal();
    let sql = if url.is_empty() {
        let folder = &settings.data_dir;
        std::fs::create_dir_all(folder).map_err(|source| blobs::Error::Io {
            tried: "making folder",
            path: folder.clone(),
            source,
        })?;
        Sql::sqlite(&folder.join("octet.db"), clock).await?
    } else {
        Sql::postgres(url, clock).await?
    };
    Ok(Arc::new(sql))
}

/// Where the bucket is; `None` keeps files in the data folder.
fn s3(store: &Store) -> Option<S3> {
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
