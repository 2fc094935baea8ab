//! Counts what a version of an endpoint has done, since it was loaded: the figures of `/v2/models/NAME/stats`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// How often something happened, and how long it took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// Nanoseconds in all.
    pub ns: u64,
}

impl Tally {
    fn add(&mut self, duration: Duration) {
        self.count += 1;
        self.ns += u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    }
}

/// Runs of one batch size.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchTally {
    /// Putting inputs together.
    pub merge: Tally,
    /// Running.
    pub compute: Tally,
    /// Taking outputs apart.
    pub split: Tally,
}

/// Where the time of one answered request went, from its first byte decoded to its last byte encoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// The whole request.
    pub total: Duration,
    /// In the queue.
    pub queue: Duration,
    /// Bytes to tensors, and tensors into a batch.
    pub input: Duration,
    /// In the run that it was part of.
    pub compute: Duration,
    /// The batch into tensors, and tensors to bytes.
    pub output: Duration,
}

/// All figures at one moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Unix time of the last answered request in milliseconds; 0 before the first.
    pub last_inference_ms: i64,
    /// Samples that were run.
    pub inference_count: u64,
    /// Runs.
    pub execution_count: u64,
    /// Answered requests.
    pub success: Tally,
    /// Requests that were refused or failed.
    pub fail: Tally,
    /// Time of answered requests in the queue.
    pub queue: Tally,
    /// See [`Spent::input`].
    pub input: Tally,
    /// See [`Spent::compute`].
    pub compute: Tally,
    /// See [`Spent::output`].
    pub output: Tally,
    /// By number of samples in the run; large numbers stand under the next power of two.
    pub batches: BTreeMap<usize, BatchTally>,
}

/// Runs of up to so many samples are counted by their exact number.
const SIZES_MAX: usize = 1024;

/// The counters. Many threads write; a lock for some nanoseconds twice a request is not seen beside a run.
#[derive(Debug, Default)]
pub struct Stats(Mutex<Figures>);

impl Stats {
    /// Notes one run of the model.
    pub fn ran(&self, samples: usize, merge: Duration, compute: Duration, split: Duration) {
        let mut figures = self.lock();
        figures.execution_count += 1;
        figures.inference_count += samples as u64;
        // A client chooses how many samples a request has: each number by itself would be kept for ever.
        let rounded = if samples > SIZES_MAX { samples.next_power_of_two() } else { samples };
        let batch = figures.batches.entry(rounded).or_default();
        batch.merge.add(merge);
        batch.compute.add(compute);
        batch.split.add(split);
    }

    /// Notes a request that was answered at `now_ms`.
    pub fn answered(&self, now_ms: i64, spent: &Spent) {
        let mut figures = self.lock();
        figures.last_inference_ms = now_ms;
        figures.success.add(spent.total);
        figures.queue.add(spent.queue);
        figures.input.add(spent.input);
        figures.compute.add(spent.compute);
        figures.output.add(spent.output);
    }

    /// Notes a request that was not answered.
    pub fn failed(&self, total: Duration) {
        self.lock().fail.add(total);
    }

    /// See [`Figures::last_inference_ms`].
    #[must_use]
    pub fn last_inference_ms(&self) -> i64 {
        self.lock().last_inference_ms
    }

    /// All figures.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Figures> {
        // Counters stay usable whatever a thread that held them did.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
