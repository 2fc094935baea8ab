//! What a job is asked to be, and which state may follow which. Knows no database and no engine.

use serde_json::Value;
use tokio::sync::watch;

use crate::service::store::{JobId, JobState, Name, Wanted};

#[cfg(test)]
mod faults;
mod monitor;
mod outcome;
pub mod queue;
#[cfg(test)]
mod reference;
pub mod webhooks;
pub mod worker;

/// A job as asked for, before names are resolved.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// The float model; without a version, the newest.
    pub model: Wanted,
    /// Where ranges come from.
    pub calibration: Calibration,
    /// The evaluation data; without them, the calibration data are used, or those of the job whose statistics are.
    pub evaluation: Option<Wanted>,
    /// Whether the calibration data stay when the job has ended.
    pub keep: bool,
    /// The recipe; `null` or `{}` means the defaults.
    pub recipe: Value,
    /// The endpoint that shall serve the artifact on success.
    pub endpoint: Option<Name>,
    /// Whom to tell when it has ended.
    pub webhook_url: Option<String>,
    /// At most so many attempts; without it, the setting `jobs.attempts_max`, which is also the most.
    pub attempts_max: Option<u32>,
}

/// Where ranges come from.
#[derive(Clone, Debug)]
pub enum Calibration {
    /// Data; without a version, the newest.
    Data(Wanted),
    /// The statistics that an earlier job on the same model has kept.
    Of(JobId),
    /// The model: it comes quantized, and only the evaluation needs data.
    Model,
}

/// What can happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker takes it.
    Lease,
    /// The worker has an artifact that keeps its gate.
    Succeed,
    /// The worker has an artifact that does not.
    FailGate,
    /// The worker cannot do it, and trying again is of no use.
    Fail,
    /// The worker cannot do it now; an attempt is left.
    Retry,
    /// The worker has stopped as the user asked.
    Stop,
    /// The worker stops with the process and gives the job back.
    HandBack,
    /// The user asks to stop.
    Cancel,
    /// The lease runs out; an attempt is left.
    Expire,
    /// The lease runs out; no attempt is left.
    ExpireLast,
}

impl Event {
    /// Every event.
    pub const ALL: [Event; 10] = [
        Event::Lease,
        Event::Succeed,
        Event::FailGate,
        Event::Fail,
        Event::Retry,
        Event::Stop,
        Event::HandBack,
        Event::Cancel,
        Event::Expire,
        Event::ExpireLast,
    ];
}

/// The state after `event`; `None` where it cannot happen in `state`.
///
/// ```text
///            Lease                 Succeed, FailGate, Fail, ExpireLast
/// queued ─────────────▶ running ─────────────────────────────────────▶ succeeded, gate_failed, failed
///   │ ▲                  │  │
///   │ └──────────────────┘  └─ Stop ─▶ cancelled
///   │  Retry, HandBack, Expire            ▲
///   └────────────── Cancel ───────────────┘
/// ```
///
/// `Cancel` while running only asks: the job stays running until the worker stops, ends otherwise, or dies.
/// The catalog does the same in SQL, where it is atomic; `queue.rs` tests that both agree on every pair.
#[must_use]
pub fn after(state: JobState, event: Event) -> Option<JobState> {
    match (state, event) {
        (JobState::Queued, Event::Lease) => Some(JobState::Running),
        (JobState::Queued, Event::Cancel) => Some(JobState::Cancelled),
        (JobState::Running, Event::Succeed) => Some(JobState::Succeeded),
        (JobState::Running, Event::FailGate) => Some(JobState::GateFailed),
        (JobState::Running, Event::Fail | Event::ExpireLast) => Some(JobState::Failed),
        (JobState::Running, Event::Retry | Event::HandBack | Event::Expire) => Some(JobState::Queued),
        (JobState::Running, Event::Stop) => Some(JobState::Cancelled),
        (JobState::Running, Event::Cancel) => Some(JobState::Running),
        // Asking again for what has happened is no fault.
        (JobState::Cancelled, Event::Cancel) => Some(JobState::Cancelled),
        _ => None,
    }
}

/// Whether nobody has asked to stop.
fn goes_on(stop: &watch::Receiver<bool>) -> bool {
    // `has_changed` fails once the sender is gone.
    !*stop.borrow() && stop.has_changed().is_ok()
}

/// Waits until `stop` is `true` or nobody can set it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the process that would have stopped us.
    let _ = stop.wait_for(|stop| *stop).await;
}
