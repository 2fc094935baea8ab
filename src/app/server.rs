//! The server: builds its parts and ties them together, starts them, and stops them gracefully.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::api::http::connections;
use crate::api::{self, Context, InFlight, Readiness};
use crate::config::{Role, Settings};
use crate::service::infer::registry::Registry;
use crate::service::infer::shared_memory::SharedMemory;
use crate::service::infer::watch::Watch;
use crate::service::jobs::queue::Queue;
use crate::service::metrics::process::Metrics;
use crate::service::store::Catalog;
use crate::service::store::blobs::{self, Blobs};
use crate::service::store::partial::Partials;
use crate::service::store::remote::Remote;

use super::database::database;
use super::parts::{
    about, connection_limits, isa, keys, limits, log_requests, queue_options, refuse_public, registry, s3,
    tls, webhooks, workers,
};
use super::process::{asked_to_end, clock, size};
use super::{Error, Outside};

/// What has had its time is looked for so often.
const TIDY: Duration = Duration::from_secs(60);

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
        log_requests: log_requests(&settings.log),
    };
    let context = Arc::new(context);
    let open = connection_limits(settings);
    let http = match settings.role {
        Role::All | Role::Api => {
            let service = api::http::direct::Direct::new(&context);
            tokio::spawn(connections::serve(listener, tls.clone(), service, open, stopping.clone()))
        }
        Role::Worker => {
            let service = api::http::router::of_worker(Arc::clone(&context));
            tokio::spawn(connections::serve(listener, tls.clone(), service, open, stopping.clone()))
        }
    };
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
