//! What the process has of the system it runs on: the time, cores, open files, priorities, signals.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tracing::error;

use crate::service::store::{Clock, Timestamp};

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

/// Files that the process may open, raised as far as it may raise it: many systems begin with 1,024 for the sake of
/// programs that use `select`. `None` where there is no limit.
pub(super) fn open_files() -> Option<u64> {
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
pub(super) fn stand_back() {
    // On Linux a niceness is that of a thread. Where it cannot be set, the work is done all the same.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!(%error, "A thread keeps its priority: {error}");
    }
}

pub(super) fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A number of threads, where 0 is one for each core.
pub(super) fn or_cores(number: u64) -> usize {
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
pub(super) fn clock() -> Clock {
    let start = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begun = Instant::now();
    Arc::new(move || {
        let since = start + begun.elapsed();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}
