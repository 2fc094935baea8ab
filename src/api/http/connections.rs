//! Connections: accepts them, bounds their number and the time of their heads, and lets them end well when the server
//! stops.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinSet};
use tower::Service;
use tower::util::MapRequest;
use tower_http::metrics::InFlightRequests;
use tower_http::metrics::in_flight_requests::InFlightRequestsCounter;

use crate::api::http::at_once::AtOnce;
use crate::api::tls::Tls;

/// Requests of one HTTP/2 connection at a time: a gRPC client sends all of its calls over one.
const STREAMS_MAX: u32 = 1024;

/// Bytes that an HTTP/2 client may send before somebody reads them.
const WINDOW_BYTES: u32 = 1 << 20;

/// Bytes of the head of an HTTP/1 request, and of what is read at a time.
const HEAD_BYTES: usize = 64 << 10;

/// How often an HTTP/2 client is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Between two lines about the same want of connections.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// Time for the last bytes of a connection that is to end.
const LAST_TIME: Duration = Duration::from_secs(1);

/// What answers requests.
pub trait Serving:
    Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> Serving for S where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// What a stranger may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. Where they are all in use, one that asks nothing makes room for a new one.
    pub connections_max: usize,
    /// For the head of a request: a client that sends it byte by byte holds a connection no longer.
    pub head_time: Duration,
}

/// Serves until `stopping` is `true`, then until the requests under way are answered.
///
/// `axum::serve` sets no timer on its connections, so the time of a head would have no bound there.
pub async fn serve<S: Serving>(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    service: S,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let builder = builder(limits.head_time);
    let mut open = Open::new(limits.connections_max);
    // Whoever waits for the end of this function finds nothing left that holds the server's files.
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = tasks.join_next_with_id() => {
                open.remove(match ended {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                });
                continue;
            }
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
        if !open.make_room() {
            if tls.is_none() {
                refuse(stream);
            }
            continue;
        }
        // An answer is one or two small writes: waiting to fill a packet would cost 40 ms.
        let _ = stream.set_nodelay(true);
        let usage = Usage::new(Arc::clone(&open.requests));
        let (builder, service, noted) = (builder.clone(), service.clone(), usage.clone());
        let (tls, head_time, stopping) = (tls.clone(), limits.head_time, stopping.clone());
        let task = tasks.spawn(AtOnce::new(async move {
            let Some(tls) = tls else {
                return converse(builder, stream, service, noted, head_time, stopping).await;
            };
            match tokio::time::timeout(head_time, tls.accept(stream)).await {
                Ok(Ok(stream)) => converse(builder, stream, service, noted, head_time, stopping).await,
                // Scanners, and clients that do not trust the certificate.
                Ok(Err(error)) => tracing::debug!(%error, "A connection did not come to TLS: {error}"),
                Err(_) => tracing::debug!("A connection did not come to TLS in time"),
            }
        }));
        open.insert(task, usage);
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// How connections are spoken to.
fn builder(head_time: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // hyper takes 400 KiB of a head by default, from each of many connections.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head_time).max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .max_concurrent_streams(STREAMS_MAX)
        // 64 KiB, the default, would make a tensor wait for an answer of the network every 64 KiB.
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES);
    builder
}

/// Serves one connection to its end.
async fn converse<S: Serving>(
    builder: Builder<TokioExecutor>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: S,
    usage: Usage,
    head_time: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    let noted = usage.clone();
    let service = MapRequest::new(service, move |request| {
        noted.note();
        request
    });
    let service = TowerToHyperService::new(InFlightRequests::new(service, usage.in_flight.clone()));
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut first = pin!(tokio::time::sleep(head_time));
    let (mut is_new, mut is_ending) = (true, false);
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            // hyper's own time of a head begins when it knows the protocol: a client that says nothing has none.
            () = &mut first, if is_new => {
                is_new = false;
                if usage.is_unused() {
                    connection.as_mut().graceful_shutdown();
                    match tokio::time::timeout(LAST_TIME, connection.as_mut()).await {
                        Ok(ended) => break ended,
                        Err(_) => return,
                    }
                }
            }
            () = stops(&mut stopping), if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "A connection ended by a fault: {error}");
    }
}

async fn stops(stopping: &mut watch::Receiver<bool>) {
    // What it gives holds a lock. An error is a sender that is gone: nobody is left who waits.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// What a connection is used for.
#[derive(Clone, Debug)]
struct Usage {
    /// Counts the requests of all connections. No clock: two requests may come at one time.
    requests: Arc<AtomicU64>,
    /// Which of them was the latest one of this connection, from 1 on; 0 where there was none.
    asked: Arc<AtomicU64>,
    /// Requests whose answers are not yet sent to their end.
    in_flight: InFlightRequestsCounter,
}

impl Usage {
    fn new(requests: Arc<AtomicU64>) -> Usage {
        Usage { requests, asked: Arc::default(), in_flight: InFlightRequestsCounter::new() }
    }

    fn note(&self) {
        self.asked.store(self.requests.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn is_unused(&self) -> bool {
        self.asked.load(Ordering::Relaxed) == 0
    }
}

/// The open connections.
struct Open {
    max: usize,
    requests: Arc<AtomicU64>,
    opened: u64,
    connections: HashMap<Id, (u64, AbortHandle, Usage)>,
    told: Option<Instant>,
}

impl Open {
    fn new(max: usize) -> Open {
        Open { max, requests: Arc::default(), opened: 0, connections: HashMap::new(), told: None }
    }

    fn insert(&mut self, task: AbortHandle, usage: Usage) {
        self.opened += 1;
        self.connections.insert(task.id(), (self.opened, task, usage));
    }

    fn remove(&mut self, id: Id) {
        self.connections.remove(&id);
    }

    /// Where there are as many as allowed, ends one that asks nothing; `false` where each has a request under way.
    fn make_room(&mut self) -> bool {
        if self.connections.len() < self.max {
            return true;
        }
        if self.told.is_none_or(|told| told.elapsed() > TELL_AGAIN) {
            self.told = Some(Instant::now());
            let connections = self.max;
            tracing::warn!(
                connections,
                "All {connections} connections (limits.connections) are in use: idle ones make room"
            );
        }
        let idle = self.connections.iter().filter(|(_, (_, _, usage))| usage.in_flight.get() == 0);
        // First those that never asked anything, the oldest first: many of these are an attack, or useless. Then those
        // that asked the longest ago.
        let least = idle.min_by_key(|(_, (opened, _, usage))| (usage.asked.load(Ordering::Relaxed), *opened));
        let Some(id) = least.map(|(id, _)| *id) else { return false };
        if let Some((_, task, _)) = self.connections.remove(&id) {
            task.abort();
        }
        true
    }
}

/// Tells a client that there is no room, as far as it can be told without waiting for it: where it has sent something
/// that nobody read, its system may show it a reset connection instead.
fn refuse(stream: TcpStream) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    if let Ok(mut stream) = stream.into_std() {
        // It does not block, and nothing stands in the way of so few bytes.
        let _ = stream.write_all(ANSWER);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    async fn server(connections_max: usize, head_time: Duration) -> (SocketAddr, watch::Sender<bool>) {
        server_that(connections_max, head_time, Arc::default()).await
    }

    /// A server with a page that answers and one that never does, and tells `seen`; ends with the sender.
    async fn server_that(
        connections_max: usize,
        head_time: Duration,
        seen: Arc<Notify>,
    ) -> (SocketAddr, watch::Sender<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let never = move || async move {
            seen.notify_one();
            std::future::pending::<()>().await;
        };
        let router = Router::new().route("/", get(|| async { "here" })).route("/never", get(never));
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(serve(listener, None, router, Limits { connections_max, head_time }, stopping));
        (address, stop)
    }

    async fn asked(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            let mut part = [0; 1024];
            match stream.read(&mut part).await.unwrap() {
                0 => break,
                n => answer.extend_from_slice(&part[..n]),
            }
        }
        String::from_utf8(answer).unwrap()
    }

    async fn rest(mut stream: TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end too.
        let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut bytes)).await.expect("it ends");
        bytes
    }

    #[tokio::test]
    async fn who_does_not_ask_in_time_is_left() {
        let (address, _stop) = server(100, Duration::from_millis(100)).await;
        for text in
            ["", "P", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\nHost"]
        {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            rest(stream).await;
        }
        // Who has asked and waits for the answer is not.
        let mut waiting = TcpStream::connect(address).await.unwrap();
        waiting.write_all(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let read = tokio::time::timeout(Duration::from_millis(500), waiting.read(&mut [0; 8])).await;
        assert!(read.is_err(), "{read:?}");
    }

    #[tokio::test]
    async fn who_asks_nothing_makes_room_for_a_new_one() {
        let (address, _stop) = server(2, LONG).await;
        let mut used = TcpStream::connect(address).await.unwrap();
        assert!(asked(&mut used).await.starts_with("HTTP/1.1 200"));
        let silent = TcpStream::connect(address).await.unwrap();
        let mut new = TcpStream::connect(address).await.unwrap();
        assert!(asked(&mut new).await.starts_with("HTTP/1.1 200"));
        assert_eq!(rest(silent).await, b"");
        // Its connection still stands.
        assert!(asked(&mut used).await.starts_with("HTTP/1.1 200"));
        // `new` asked longer ago than `used`.
        let mut newer = TcpStream::connect(address).await.unwrap();
        assert!(asked(&mut newer).await.starts_with("HTTP/1.1 200"));
        rest(new).await;
        assert!(asked(&mut used).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn where_every_connection_has_a_request_a_new_one_is_refused() {
        let seen = Arc::new(Notify::new());
        let (address, _stop) = server_that(1, LONG, Arc::clone(&seen)).await;
        let mut busy = TcpStream::connect(address).await.unwrap();
        busy.write_all(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        // Until the server has seen the request, the connection counts as idle.
        seen.notified().await;
        let refused = rest(TcpStream::connect(address).await.unwrap()).await;
        assert!(refused.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&refused));
        let read = tokio::time::timeout(Duration::from_millis(100), busy.read(&mut [0; 8])).await;
        assert!(read.is_err(), "{read:?}");
    }

    #[tokio::test]
    async fn a_server_that_stops_lets_idle_connections_go() {
        let (address, stop) = server(10, LONG).await;
        let silent = TcpStream::connect(address).await.unwrap();
        let mut used = TcpStream::connect(address).await.unwrap();
        asked(&mut used).await;
        stop.send(true).unwrap();
        rest(silent).await;
        rest(used).await;
    }
}
