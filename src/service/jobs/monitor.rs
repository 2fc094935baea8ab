//! What the engine tells of an attempt, and how it is told to stop. Knows neither the queue nor the catalog.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::pipeline::{Phase, Progress};
use crate::service::metrics::process::Metrics;
use crate::service::store::JobProgress;

/// Hears of the work and stops it. Lives on both sides: the engine's threads write, the worker reads.
pub(super) struct Monitor {
    metrics: Arc<Metrics>,
    begun: Instant,
    stop: AtomicBool,
    now: Mutex<Now>,
    checkpoint_after: Duration,
}

#[derive(Default)]
struct Now {
    /// What calibration has found out, until it is kept.
    statistics: Option<Vec<u8>>,
    phase: Option<(Phase, Instant)>,
    done: u64,
    total: u64,
    /// Whether the catalog does not know it yet.
    news: bool,
}

impl Monitor {
    pub(super) fn new(metrics: Arc<Metrics>, checkpoint_after: Duration) -> Monitor {
        let begun = Instant::now();
        Monitor { metrics, begun, stop: AtomicBool::new(false), now: Mutex::default(), checkpoint_after }
    }

    /// What calibration has found out, once.
    pub(super) fn statistics(&self) -> Option<Vec<u8>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).statistics.take()
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The progress, if there is any since the last call.
    pub(super) fn news(&self) -> Option<JobProgress> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let (phase, _) = now.phase.filter(|_| now.news)?;
        now.news = false;
        Some(JobProgress { phase: phase.name().to_owned(), done: now.done, total: now.total })
    }

    pub(super) fn leave_phase(&self) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.count_phase(&mut now);
    }

    fn count_phase(&self, now: &mut Now) {
        let Some((phase, since)) = now.phase.take() else { return };
        self.metrics.job_phase(phase.name(), since.elapsed().as_secs_f64());
        if phase == Phase::Calibrate {
            self.metrics.calibration_samples(now.done);
        }
    }
}

impl Progress for Monitor {
    fn update(&self, phase: Phase, done: u64, total: u64) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.phase.is_none_or(|(current, _)| current != phase) {
            self.count_phase(&mut now);
            now.phase = Some((phase, Instant::now()));
        }
        (now.done, now.total, now.news) = (done, total, true);
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn calibrated(&self, statistics: &[u8]) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.phase.is_some_and(|(_, since)| since.elapsed() >= self.checkpoint_after) {
            now.statistics = Some(statistics.to_vec());
        }
    }
}

pub(super) struct StopEngine(pub(super) Arc<Monitor>);

impl Drop for StopEngine {
    fn drop(&mut self) {
        self.0.stop();
    }
}
