//! What waits at one loaded model, and how a batch of it runs: requests joined, run as one, taken apart again.
//! Knows how to run a model only as a function, and nothing of the other lanes.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::engine::tensor::Tensor;
use crate::service::infer::{Answer, Error, Inputs, Limits, Timing};
use crate::service::store::{Precision, panic_text};

/// Runs a model: named inputs in, outputs in their order out.
pub type Run = Box<dyn Fn(&[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> + Send + Sync>;

/// Hears of each run: samples, then the time to merge, to compute and to split.
pub type Heard = Box<dyn Fn(usize, Duration, Duration, Duration) + Send + Sync>;

/// A run that takes no longer is made where the request is: to wake another thread takes as long.
const AT_ONCE: Duration = Duration::from_micros(200);

/// The queue of one loaded model in one precision.
pub struct Lane {
    pub(super) name: String,
    precision: Precision,
    run: Run,
    heard: Heard,
    // Runs when the others have nothing to do, and then and when in between.
    pub(super) background: bool,
    batching: AtomicBool,
    pub(super) running: AtomicUsize,
    // Nanoseconds of a sample, smoothed; 0 before the first.
    sample_ns: AtomicU64,
    pub(super) queue: Mutex<Queue>,
}

pub(super) struct Queue {
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) limits: Limits,
    // Whether the lane stands in `Turns`.
    pub(super) listed: bool,
    // Whether a timer will list it.
    pub(super) timer: bool,
}

impl Queue {
    fn refuse_late(&mut self, now: Instant) {
        while let Some(late) = self.waiting.iter().position(|w| w.deadline.is_some_and(|d| d <= now)) {
            if let Some(late) = self.waiting.remove(late) {
                // A client that has gone in this moment does not hear of it; that is all.
                let _ = late.reply.send(Err(Error::Deadline));
            }
        }
    }
}

pub(super) struct Waiting {
    pub(super) inputs: Inputs,
    pub(super) samples: usize,
    pub(super) since: Instant,
    pub(super) deadline: Option<Instant>,
    // The lowest goes first.
    pub(super) priority: u64,
    pub(super) reply: oneshot::Sender<Result<Answer, Error>>,
}

impl Lane {
    /// A lane named `name` in errors. With `batching`, the first dimension of every input and output is the
    /// sample, and samples do not see each other.
    #[must_use]
    pub fn new(
        name: String,
        precision: Precision,
        batching: bool,
        limits: Limits,
        run: Run,
        heard: Heard,
    ) -> Lane {
        Lane {
            name,
            precision,
            run,
            heard,
            background: false,
            batching: AtomicBool::new(batching),
            running: AtomicUsize::new(0),
            sample_ns: AtomicU64::new(0),
            queue: Mutex::new(Queue { waiting: VecDeque::new(), limits, listed: false, timer: false }),
        }
    }

    /// The same lane for runs that can wait until the other lanes have nothing to do.
    #[must_use]
    pub fn in_background(self) -> Lane {
        Lane { background: true, ..self }
    }

    /// Requests that wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        lock(&self.queue).waiting.len()
    }

    /// Runs under way.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// From now on these limits hold. What waits already goes on waiting.
    pub fn set_limits(&self, limits: Limits) {
        lock(&self.queue).limits = limits;
    }

    /// The limits that hold.
    #[must_use]
    pub fn limits(&self) -> Limits {
        lock(&self.queue).limits.clone()
    }

    /// Answers those that have waited beyond their deadline.
    pub(super) fn refuse_late(&self) {
        lock(&self.queue).refuse_late(Instant::now());
    }

    /// What a run of so many samples takes on one thread, where one was made.
    pub(super) fn expected(&self, samples: usize) -> Option<Duration> {
        let ns = self.sample_ns.load(Ordering::Relaxed);
        (ns > 0).then(|| Duration::from_nanos(ns.saturating_mul(samples as u64)))
    }

    /// Whether a run of so many samples is over before another thread would be awake.
    pub(super) fn is_quick(&self, samples: usize) -> bool {
        self.expected(samples).is_some_and(|time| time < AT_ONCE)
    }

    /// Takes a run for a quick request that nobody stands before and that waits for no other. It takes none of the runs of
    /// the pool: those who ask are no more than the threads that speak to clients.
    pub(super) fn take_at_once(&self, samples: usize) -> bool {
        let queue = lock(&self.queue);
        let waits = self.batching.load(Ordering::Relaxed)
            && !queue.limits.batch_delay.is_zero()
            && samples < queue.limits.batch_samples_max;
        if self.background || waits || !queue.waiting.is_empty() || self.running() >= queue.limits.runs_max {
            return false;
        }
        self.running.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn learn(&self, samples: usize, compute: Duration, threads: usize) {
        let ns = u64::try_from(compute.as_nanos()).unwrap_or(u64::MAX) / samples.max(1) as u64;
        let before = self.sample_ns.load(Ordering::Relaxed);
        let now = match threads {
            1 if before == 0 => ns,
            1 => (before / 8).saturating_mul(7).saturating_add(ns / 8),
            // One thread takes no longer than all of them one after another.
            _ => before.min(ns.saturating_mul(threads as u64)),
        };
        self.sample_ns.store(now.max(1), Ordering::Relaxed);
    }
}

/// Takes a batch from the front of a queue: requests that can be run together, in order.
pub(super) fn next_batch(lane: &Lane, queue: &mut Queue) -> Next {
    let now = Instant::now();
    queue.waiting.retain(|w| !w.reply.is_closed());
    queue.refuse_late(now);
    let limits = &queue.limits;
    // It is listed again when a run of it ends.
    if lane.running() >= limits.runs_max {
        return Next::Nothing;
    }
    let Some(first) = queue.waiting.front() else { return Next::Nothing };
    let batching = lane.batching.load(Ordering::Relaxed);
    let full = if batching { limits.batch_samples_max } else { 1 };
    let mut samples = first.samples;
    let mut count = 1;
    for next in queue.waiting.iter().skip(1) {
        if samples + next.samples > full || !alike(&first.inputs, &next.inputs) {
            break;
        }
        samples += next.samples;
        count += 1;
    }
    let waited = now.duration_since(first.since);
    let alone = count == queue.waiting.len();
    if samples < full && alone && waited < limits.batch_delay {
        return Next::Later(limits.batch_delay - waited);
    }
    Next::Batch(queue.waiting.drain(..count).collect())
}

/// What a queue has to run.
pub(super) enum Next {
    Nothing,
    Later(Duration),
    Batch(Vec<Waiting>),
}

/// Whether two requests differ in the number of samples only. Inputs are in the order of the model.
fn alike(a: &Inputs, b: &Inputs) -> bool {
    let same = |((_, a), (_, b)): (&(String, Tensor), &(String, Tensor))| {
        a.dtype() == b.dtype() && a.shape().get(1..) == b.shape().get(1..)
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

impl Lane {
    pub(super) fn run_batch(&self, batch: Vec<Waiting>, threads: usize) {
        if batch.len() > 1 && self.batching.load(Ordering::Relaxed) {
            match self.run_merged(batch, threads) {
                None => {}
                Some(batch) => batch.into_iter().for_each(|waiting| self.run_one(waiting, threads)),
            }
        } else {
            batch.into_iter().for_each(|waiting| self.run_one(waiting, threads));
        }
    }

    fn run_one(&self, waiting: Waiting, threads: usize) {
        if waiting.reply.is_closed() {
            return;
        }
        let Waiting { inputs, samples, since, reply, .. } = waiting;
        // A client that has gone does not need its answer.
        let _ = reply.send(self.answer(&inputs, samples, since, threads));
    }

    pub(super) fn answer(
        &self,
        inputs: &Inputs,
        samples: usize,
        since: Instant,
        threads: usize,
    ) -> Result<Answer, Error> {
        let start = Instant::now();
        let outputs = self.guarded(inputs)?;
        let compute = start.elapsed();
        self.learn(samples, compute, threads);
        (self.heard)(samples, Duration::ZERO, compute, Duration::ZERO);
        let timing = Timing {
            queue: start.duration_since(since),
            compute,
            batch_samples: samples,
            samples,
            ..Timing::default()
        };
        Ok(Answer { outputs, precision: self.precision, timing })
    }

    /// Runs requests as one; gives them back where that does not work, so that one caller's fault is not
    /// another's.
    fn run_merged(&self, batch: Vec<Waiting>, threads: usize) -> Option<Vec<Waiting>> {
        let start = Instant::now();
        let merged = merge(&batch);
        let merge_time = start.elapsed();
        let Ok(outputs) = self.guarded(&merged) else { return Some(batch) };
        let compute = start.elapsed() - merge_time;
        let total: usize = batch.iter().map(|w| w.samples).sum();
        if outputs.iter().any(|o| o.shape().first() != Some(&total)) {
            // The model mixes samples: never again.
            self.batching.store(false, Ordering::Relaxed);
            tracing::warn!(endpoint = %self.name, "Endpoint {} does not batch: outputs lose samples", self.name);
            return Some(batch);
        }
        let split_start = Instant::now();
        let mut at = 0;
        let mut parts = Vec::with_capacity(batch.len());
        for waiting in &batch {
            parts.push(outputs.iter().map(|o| rows(o, at, waiting.samples)).collect::<Vec<_>>());
            at += waiting.samples;
        }
        let split = split_start.elapsed();
        self.learn(total, compute, threads);
        (self.heard)(total, merge_time, compute, split);
        for (waiting, outputs) in batch.into_iter().zip(parts) {
            let timing = Timing {
                queue: start.duration_since(waiting.since),
                merge: merge_time,
                compute,
                split,
                batch_samples: total,
                samples: waiting.samples,
            };
            let answer = Answer { outputs, precision: self.precision, timing };
            let _ = waiting.reply.send(Ok(answer));
        }
        None
    }

    /// A panic in a kernel fails the requests of this run, not the server.
    fn guarded(&self, inputs: &Inputs) -> Result<Vec<Tensor>, Error> {
        let refs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        catch_unwind(AssertUnwindSafe(|| (self.run)(&refs))).unwrap_or_else(|panic| {
            let text = panic_text(&*panic);
            tracing::error!(endpoint = %self.name, panic = %text, "A run of endpoint {} panicked", self.name);
            Err(Error::Internal("the engine stopped unexpectedly; the log has the reason".to_owned()))
        })
    }
}

/// The inputs of several requests, one after the other along the first dimension.
fn merge(batch: &[Waiting]) -> Inputs {
    let first = &batch[0].inputs;
    let merge_input = |(index, (name, like)): (usize, &(String, Tensor))| {
        let mut shape = like.shape().to_vec();
        shape[0] = batch.iter().map(|w| w.inputs[index].1.shape()[0]).sum();
        let parts: Vec<&[u8]> = batch.iter().map(|w| w.inputs[index].1.view().bytes).collect();
        let merged = Tensor::from_parts(like.dtype(), &shape, &parts).expect("rows of the same length");
        (name.clone(), merged)
    };
    first.iter().enumerate().map(merge_input).collect()
}

/// `count` rows of the first dimension from row `at`.
fn rows(tensor: &Tensor, at: usize, count: usize) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let row_bytes = tensor.view().bytes.len() / shape[0].max(1);
    shape[0] = count;
    let bytes = &tensor.view().bytes[at * row_bytes..(at + count) * row_bytes];
    Tensor::from_bytes(tensor.dtype(), &shape, bytes).expect("so many rows of so many bytes")
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks; if it did, the queue itself is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::service::infer::batcher::tests::{batcher, doubling, gated, lane, x};

    #[tokio::test]
    async fn a_request_is_answered_with_its_own_rows() {
        let batcher = batcher(Limits::default());
        let (lane, _heard) = lane(&batcher, true, Box::new(doubling));
        let answer = batcher.infer(&lane, x(&[1.0, 2.0]), 2, None, 0).await.unwrap();
        assert_eq!(answer.outputs[0].to_f64(), [2.0, 4.0]);
        assert_eq!(answer.timing.batch_samples, 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_that_wait_are_run_together_and_split_again() {
        let batcher = batcher(Limits { batch_samples_max: 4, ..Limits::default() });
        let (run, began, go) = gated(Box::new(doubling));
        let (lane, heard) = lane(&batcher, true, run);
        let task = |values: Vec<f32>| {
            let (batcher, lane) = (Arc::clone(&batcher), Arc::clone(&lane));
            tokio::spawn(async move {
                let samples = values.len();
                batcher.infer(&lane, x(&values), samples, None, 0).await.unwrap().outputs[0].to_f64()
            })
        };
        let first = task(vec![0.0]);
        began.recv().unwrap();
        let mut others = Vec::new();
        for (n, values) in
            [vec![1.0], vec![2.0, 3.0], vec![4.0], vec![5.0], vec![6.0; 5]].into_iter().enumerate()
        {
            others.push(task(values));
            while lane.depth() <= n {
                tokio::task::yield_now().await;
            }
        }
        drop(go);
        assert_eq!(first.await.unwrap(), [0.0]);
        let mut answers = Vec::new();
        for other in others {
            answers.push(other.await.unwrap());
        }
        assert_eq!(answers, [vec![2.0], vec![4.0, 6.0], vec![8.0], vec![10.0], vec![12.0; 5]]);
        // The last is larger than a batch and runs alone all the same.
        assert_eq!(heard.iter().take(4).collect::<Vec<_>>(), [1, 4, 1, 5]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_batch_that_fails_fails_only_the_request_at_fault() {
        let batcher = batcher(Limits::default());
        let picky: Run = Box::new(|inputs| {
            assert!(!inputs[0].1.slice::<f32>().contains(&13.0), "thirteen");
            doubling(inputs)
        });
        let (run, began, go) = gated(picky);
        let (lane, _heard) = lane(&batcher, true, run);
        let task = |value| {
            let (batcher, lane) = (Arc::clone(&batcher), Arc::clone(&lane));
            tokio::spawn(async move { batcher.infer(&lane, x(&[value]), 1, None, 0).await.map(drop) })
        };
        let first = task(0.0);
        began.recv().unwrap();
        let (good, bad) = (task(1.0), task(13.0));
        while lane.depth() < 2 {
            tokio::task::yield_now().await;
        }
        drop(go);
        first.await.unwrap().unwrap();
        good.await.unwrap().unwrap();
        assert!(matches!(bad.await.unwrap(), Err(Error::Internal(_))));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn any_mix_of_requests_gets_its_own_rows_back() {
        // A small linear congruence: other sizes, priorities and delays in each round.
        let mut state = 1u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..30 {
            let limits = Limits {
                runs_max: 1 + next(3) as usize,
                queue_max: 1000,
                batch_samples_max: 1 + next(9) as usize,
                batch_delay: Duration::from_micros(next(300)),
            };
            let batcher = batcher(limits);
            let (lane, heard) = lane(&batcher, true, Box::new(doubling));
            let mut tasks = Vec::new();
            let mut total = 0;
            for request in 0..40 {
                let count = 1 + next(6) as usize;
                total += count;
                let values: Vec<f32> = (0..count).map(|n| (round * 1000 + request * 10 + n) as f32).collect();
                let (b, l, priority) = (Arc::clone(&batcher), Arc::clone(&lane), next(4));
                tasks.push(tokio::spawn(async move {
                    let answer = b.infer(&l, x(&values), values.len(), None, priority).await.unwrap();
                    let want: Vec<f64> = values.iter().map(|v| f64::from(*v) * 2.0).collect();
                    assert_eq!(answer.outputs[0].to_f64(), want);
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
            drop(lane);
            assert_eq!(heard.iter().sum::<usize>(), total, "every sample ran once");
        }
    }
}
