//! Counts what a version of an endpoint has done, since it was loaded: the figures of `/v2/models/NAME/stats`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::service::infer::Timing;

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
        self.ns += whole_ns(duration);
    }
}

fn whole_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs of one batch size: how many there were, and what took how long for all requests in them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchTally {
    /// Bytes to tensors, and tensors into a batch.
    pub input: Tally,
    /// Running.
    pub compute: Tally,
    /// The batch into tensors, and tensors to bytes.
    pub output: Tally,
}

/// Where the time of one answered request went, from its first byte decoded to its last byte encoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// The whole request.
    pub total: Duration,
    /// Bytes to tensors.
    pub decode: Duration,
    /// In the queue, and in the run that it was part of.
    pub run: Timing,
    /// Tensors to bytes.
    pub encode: Duration,
}

impl Spent {
    /// Bytes to tensors, and tensors into a batch.
    #[must_use]
    pub fn input(&self) -> Duration {
        self.decode + self.run.merge
    }

    /// The batch into tensors, and tensors to bytes.
    #[must_use]
    pub fn output(&self) -> Duration {
        self.run.split + self.encode
    }
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
    /// In the run that a request was part of.
    pub compute: Tally,
    /// See [`Spent::output`].
    pub output: Tally,
    /// By number of samples in the run; large numbers stand under the next power of two.
    pub batches: BTreeMap<usize, BatchTally>,
}

/// Runs of up to so many samples are counted by their exact number.
const SIZES_MAX: usize = 1024;

/// A client chooses how many samples a request has: each number by itself would be kept for ever.
fn counted_as(samples: usize) -> usize {
    if samples > SIZES_MAX { samples.next_power_of_two() } else { samples }
}

/// The counters. Many threads write; a lock for some nanoseconds twice a request is not seen beside a run.
#[derive(Debug, Default)]
pub struct Stats(Mutex<Figures>);

impl Stats {
    /// Notes one run of the model.
    pub fn ran(&self, samples: usize, merge: Duration, compute: Duration, split: Duration) {
        let mut figures = self.lock();
        figures.execution_count += 1;
        figures.inference_count += samples as u64;
        let batch = figures.batches.entry(counted_as(samples)).or_default();
        batch.input.add(merge);
        batch.compute.add(compute);
        batch.output.add(split);
    }

    /// Notes a request that was answered at `now_ms`.
    pub fn answered(&self, now_ms: i64, spent: &Spent) {
        let mut figures = self.lock();
        figures.last_inference_ms = now_ms;
        figures.success.add(spent.total);
        figures.queue.add(spent.run.queue);
        figures.input.add(spent.input());
        figures.compute.add(spent.run.compute);
        figures.output.add(spent.output());
        // The run was counted when it ended; what it took to read and to write this request is known only now.
        if let Some(batch) = figures.batches.get_mut(&counted_as(spent.run.batch_samples)) {
            batch.input.ns += whole_ns(spent.decode);
            batch.output.ns += whole_ns(spent.encode);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_charged_with_reading_and_writing_each_of_its_requests() {
        let ns = Duration::from_nanos;
        let stats = Stats::default();
        stats.ran(3, ns(10), ns(100), ns(20));
        let run =
            Timing { merge: ns(10), compute: ns(100), split: ns(20), batch_samples: 3, ..Timing::default() };
        for decode in [1, 2] {
            stats.answered(7, &Spent { total: ns(1000), decode: ns(decode), run, encode: ns(5) });
        }
        let figures = stats.figures();
        let once = |ns| Tally { count: 1, ns };
        let want = BatchTally { input: once(10 + 1 + 2), compute: once(100), output: once(20 + 5 + 5) };
        assert_eq!(figures.batches[&3], want);
        assert_eq!((figures.input, figures.output), (Tally { count: 2, ns: 23 }, Tally { count: 2, ns: 50 }));
    }
}
