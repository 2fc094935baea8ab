//! Connections: accepts them, bounds the time of their heads, and lets them end well when the server stops.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::tls::Tls;

/// The head of a request must be there after this time: a client that sends it byte by byte holds a connection
/// no longer.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// Requests of one HTTP/2 connection at a time: a gRPC client sends all of its calls over one.
const STREAMS_MAX: u32 = 1024;

/// Bytes that an HTTP/2 client may send before somebody reads them.
const WINDOW_BYTES: u32 = 1 << 20;

/// Serves until `stopping` is `true`, then until the requests under way are answered.
///
/// `axum::serve` sets no timer on its connections, so the time of a head would have no bound there.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIME)
        .max_concurrent_streams(STREAMS_MAX)
        // 64 KiB, the default, would make a tensor wait for an answer of the network every 64 KiB.
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES);
    let graceful = GracefulShutdown::new();
    // Whoever waits for the end of this function finds nothing left that holds the server's files.
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
            _ = stopping.wait_for(|stopping| *stopping) => break,
        };
        let stream: TcpStream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: those in use must end first.
                tracing::warn!(%error, "A connection could not be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // An answer is one or two small writes: waiting to fill a packet would cost 40 ms.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let (builder, watcher, tls) = (builder.clone(), graceful.watcher(), tls.clone());
        tasks.spawn(async move {
            let Some(tls) = tls else { return attend(&builder, watcher, stream, service).await };
            match tls.accept(stream).await {
                Ok(stream) => attend(&builder, watcher, stream, service).await,
                // Scanners, and clients that do not trust the certificate.
                Err(error) => tracing::debug!(%error, "A connection did not come to TLS: {error}"),
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
    while tasks.join_next().await.is_some() {}
}

/// Answers the requests of a connection until it ends.
async fn attend<S>(
    builder: &Builder<TokioExecutor>,
    watcher: Watcher,
    stream: S,
    service: TowerToHyperService<Router>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "A connection ended by a fault: {error}");
    }
}
