//! A bounded queue for each loaded model, and batches by size and delay. Refuses when full, forgets requests
//! whose client has gone, and shares the runs fairly. Knows how to run a model only as a function.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::engine::tensor::Tensor;
use crate::service::infer::{Answer, Error, Inputs, Limits, Timing};
use crate::service::store::Precision;

/// Runs a model: named inputs in, outputs in their order out.
pub type Run = Box<dyn Fn(&[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> + Send + Sync>;

/// Hears of each run: samples, then the time to merge, to compute and to split.
pub type Heard = Box<dyn Fn(usize, Duration, Duration, Duration) + Send + Sync>;

/// Hands runs to a rayon pool: at most [`Limits::runs_max`] at a time, lanes in turn.
pub struct Batcher {
    pool: Arc<rayon::ThreadPool>,
    // Runs end on rayon threads, which have no runtime of their own to sleep on.
    runtime: tokio::runtime::Handle,
    limits: Limits,
    turns: Mutex<Turns>,
}

/// Whose turn it is. Locked before any lane.
struct Turns {
    free: usize,
    lanes: VecDeque<Arc<Lane>>,
}

/// The queue of one loaded model in one precision.
pub struct Lane {
    name: String,
    precision: Precision,
    run: Run,
    heard: Heard,
    batching: AtomicBool,
    running: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    // Whether the lane stands in `Turns::lanes`.
    listed: bool,
    // Whether a timer will list it.
    timer: bool,
}

struct Waiting {
    inputs: Inputs,
    samples: usize,
    since: Instant,
    deadline: Option<Instant>,
    reply: oneshot::Sender<Result<Answer, Error>>,
}

impl Lane {
    /// A lane named `name` in errors. With `batching`, the first dimension of every input and output is the
    /// sample, and samples do not see each other.
    #[must_use]
    pub fn new(name: String, precision: Precision, batching: bool, run: Run, heard: Heard) -> Arc<Lane> {
        Arc::new(Lane {
            name,
            precision,
            run,
            heard,
            batching: AtomicBool::new(batching),
            running: AtomicUsize::new(0),
            queue: Mutex::default(),
        })
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
}

impl Batcher {
    /// Runs on `pool`. Must be called within a tokio runtime, which its timers use.
    #[must_use]
    pub fn new(pool: Arc<rayon::ThreadPool>, limits: Limits) -> Arc<Batcher> {
        let turns = Mutex::new(Turns { free: limits.runs_max.max(1), lanes: VecDeque::new() });
        Arc::new(Batcher { pool, runtime: tokio::runtime::Handle::current(), limits, turns })
    }

    /// What it was made with.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Queues a request and waits for its answer. Dropping the future takes the request out of the queue.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Deadline`], and what the run gives.
    pub async fn infer(
        self: &Arc<Batcher>,
        lane: &Arc<Lane>,
        inputs: Inputs,
        samples: usize,
        deadline: Option<Instant>,
    ) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { inputs, samples, since: Instant::now(), deadline, reply };
        self.enqueue(lane, waiting)?;
        self.pump();
        answer.await.unwrap_or_else(|_| Err(Error::Internal("the run was dropped".to_owned())))
    }

    fn enqueue(&self, lane: &Arc<Lane>, waiting: Waiting) -> Result<(), Error> {
        let mut turns = lock(&self.turns);
        let mut queue = lock(&lane.queue);
        if queue.waiting.len() >= self.limits.queue_max {
            queue.waiting.retain(|w| !w.reply.is_closed());
        }
        // A request that finds a free run and nobody before it does not really wait.
        let at_once = turns.free > 0 && queue.waiting.is_empty();
        if queue.waiting.len() >= self.limits.queue_max && !at_once {
            return Err(Error::QueueFull { name: lane.name.clone(), limit: self.limits.queue_max });
        }
        queue.waiting.push_back(waiting);
        if !queue.listed {
            queue.listed = true;
            turns.lanes.push_back(Arc::clone(lane));
        }
        Ok(())
    }

    /// Starts what can start.
    fn pump(self: &Arc<Batcher>) {
        let mut turns = lock(&self.turns);
        while turns.free > 0 {
            let Some(lane) = turns.lanes.pop_front() else { return };
            let mut queue = lock(&lane.queue);
            match self.next_batch(&lane, &mut queue) {
                Next::Nothing => queue.listed = false,
                Next::Later(wait) => {
                    queue.listed = false;
                    if !queue.timer {
                        queue.timer = true;
                        self.list_later(Arc::clone(&lane), wait);
                    }
                }
                Next::Batch(batch) => {
                    queue.listed = !queue.waiting.is_empty();
                    drop(queue);
                    turns.free -= 1;
                    lane.running.fetch_add(1, Ordering::Relaxed);
                    self.start(Arc::clone(&lane), batch);
                    if lock(&lane.queue).listed {
                        turns.lanes.push_back(lane);
                    }
                }
            }
        }
    }

    fn start(self: &Arc<Batcher>, lane: Arc<Lane>, batch: Vec<Waiting>) {
        let batcher = Arc::clone(self);
        self.pool.spawn(move || {
            lane.run_batch(batch);
            lane.running.fetch_sub(1, Ordering::Relaxed);
            drop(lane);
            lock(&batcher.turns).free += 1;
            batcher.pump();
        });
    }

    /// Takes a batch from the front of a queue: requests that can be run together, in order.
    fn next_batch(&self, lane: &Lane, queue: &mut Queue) -> Next {
        let now = Instant::now();
        queue.waiting.retain_mut(|w| !w.reply.is_closed());
        while queue.waiting.front().is_some_and(|w| w.deadline.is_some_and(|d| d <= now)) {
            if let Some(late) = queue.waiting.pop_front() {
                // A client that has gone in this moment does not hear of it; that is all.
                let _ = late.reply.send(Err(Error::Deadline));
            }
        }
        let Some(first) = queue.waiting.front() else { return Next::Nothing };
        let batching = lane.batching.load(Ordering::Relaxed);
        let full = if batching { self.limits.batch_samples_max } else { 1 };
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
        if samples < full && alone && waited < self.limits.batch_delay {
            return Next::Later(self.limits.batch_delay - waited);
        }
        Next::Batch(queue.waiting.drain(..count).collect())
    }

    fn list_later(self: &Arc<Batcher>, lane: Arc<Lane>, wait: Duration) {
        let batcher = Arc::clone(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(wait).await;
            {
                let mut turns = lock(&batcher.turns);
                let mut queue = lock(&lane.queue);
                queue.timer = false;
                if !queue.listed && !queue.waiting.is_empty() {
                    queue.listed = true;
                    turns.lanes.push_back(Arc::clone(&lane));
                }
            }
            batcher.pump();
        });
    }
}

/// What a queue has to run.
enum Next {
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
    fn run_batch(&self, batch: Vec<Waiting>) {
        if batch.len() > 1 && self.batching.load(Ordering::Relaxed) {
            match self.run_merged(batch) {
                None => {}
                Some(batch) => batch.into_iter().for_each(|waiting| self.run_one(waiting)),
            }
        } else {
            batch.into_iter().for_each(|waiting| self.run_one(waiting));
        }
    }

    fn run_one(&self, waiting: Waiting) {
        if waiting.reply.is_closed() {
            return;
        }
        let Waiting { inputs, samples, since, reply, .. } = waiting;
        let start = Instant::now();
        let result = self.guarded(&inputs);
        let compute = start.elapsed();
        if result.is_ok() {
            (self.heard)(samples, Duration::ZERO, compute, Duration::ZERO);
        }
        let timing = Timing {
            queue: start.duration_since(since),
            compute,
            batch_samples: samples,
            samples,
            ..Timing::default()
        };
        let precision = self.precision;
        // A client that has gone does not need its answer.
        let _ = reply.send(result.map(|outputs| Answer { outputs, precision, timing }));
    }

    /// Runs requests as one; gives them back where that does not work, so that one caller's fault is not
    /// another's.
    fn run_merged(&self, batch: Vec<Waiting>) -> Option<Vec<Waiting>> {
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
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
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
        let mut merged = Tensor::zeros(like.dtype(), &shape);
        let bytes = merged.view_mut().bytes;
        let mut at = 0;
        for waiting in batch {
            let part = waiting.inputs[index].1.view().bytes;
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks; if it did, the queue itself is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A batcher over one thread.
    fn batcher(limits: Limits) -> Arc<Batcher> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(limits.runs_max).build().unwrap();
        Batcher::new(Arc::new(pool), limits)
    }

    fn doubling(inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> {
        let x = inputs[0].1;
        let doubled: Vec<f32> = x.slice::<f32>().iter().map(|v| v * 2.0).collect();
        Ok(vec![Tensor::from_slice(x.shape(), &doubled)])
    }

    fn lane(batching: bool, run: Run) -> (Arc<Lane>, mpsc::Receiver<usize>) {
        let (tx, rx) = mpsc::channel();
        let tx = Mutex::new(tx);
        let heard = Box::new(move |samples, _, _, _| lock(&tx).send(samples).unwrap());
        (Lane::new("m".to_owned(), Precision::Int8, batching, run, heard), rx)
    }

    fn x(values: &[f32]) -> Inputs {
        vec![("x".to_owned(), Tensor::from_slice(&[values.len(), 1], values))]
    }

    /// A run that waits until the test lets it go on; tells when it has begun.
    fn gated(run: Run) -> (Run, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (began_tx, began) = mpsc::channel();
        let (go, go_rx) = mpsc::channel::<()>();
        let gate = Mutex::new((began_tx, go_rx));
        let run = Box::new(move |inputs: &[(&str, &Tensor)]| {
            let gate = lock(&gate);
            gate.0.send(()).unwrap();
            let _ = gate.1.recv();
            drop(gate);
            run(inputs)
        });
        (run, began, go)
    }

    #[tokio::test]
    async fn a_request_is_answered_with_its_own_rows() {
        let batcher = batcher(Limits::default());
        let (lane, _heard) = lane(true, Box::new(doubling));
        let answer = batcher.infer(&lane, x(&[1.0, 2.0]), 2, None).await.unwrap();
        assert_eq!(answer.outputs[0].to_f64(), [2.0, 4.0]);
        assert_eq!(answer.timing.batch_samples, 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_that_wait_are_run_together_and_split_again() {
        let batcher = batcher(Limits { batch_samples_max: 4, ..Limits::default() });
        let (run, began, go) = gated(Box::new(doubling));
        let (lane, heard) = lane(true, run);
        let task = |values: Vec<f32>| {
            let (batcher, lane) = (Arc::clone(&batcher), Arc::clone(&lane));
            tokio::spawn(async move {
                let samples = values.len();
                batcher.infer(&lane, x(&values), samples, None).await.unwrap().outputs[0].to_f64()
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
    async fn a_full_queue_refuses_and_a_client_that_goes_makes_room() {
        let batcher = batcher(Limits { queue_max: 2, ..Limits::default() });
        let (run, began, go) = gated(Box::new(doubling));
        let (lane, heard) = lane(false, run);
        let task = || {
            let (batcher, lane) = (Arc::clone(&batcher), Arc::clone(&lane));
            tokio::spawn(async move { batcher.infer(&lane, x(&[1.0]), 1, None).await.map(drop) })
        };
        let first = task();
        began.recv().unwrap();
        let (second, third) = (task(), task());
        while lane.depth() < 2 {
            tokio::task::yield_now().await;
        }
        let refused = task().await.unwrap().unwrap_err();
        assert!(matches!(refused, Error::QueueFull { limit: 2, .. }), "{refused}");
        second.abort();
        let _ = second.await;
        let fourth = task();
        while lock(&lane.queue).waiting.iter().any(|w| w.reply.is_closed()) {
            tokio::task::yield_now().await;
        }
        drop(go);
        for task in [first, third, fourth] {
            task.await.unwrap().unwrap();
        }
        assert_eq!(heard.iter().take(3).count(), 3);
        assert!(heard.try_recv().is_err(), "the request of the client that went was not run");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_request_past_its_deadline_is_not_run() {
        let batcher = batcher(Limits::default());
        let (run, began, go) = gated(Box::new(doubling));
        let (lane, _heard) = lane(false, run);
        let (b, l) = (Arc::clone(&batcher), Arc::clone(&lane));
        let first = tokio::spawn(async move { b.infer(&l, x(&[1.0]), 1, None).await.map(drop) });
        began.recv().unwrap();
        let (b, l) = (Arc::clone(&batcher), Arc::clone(&lane));
        let late =
            tokio::spawn(async move { b.infer(&l, x(&[1.0]), 1, Some(Instant::now())).await.map(drop) });
        while lane.depth() < 1 {
            tokio::task::yield_now().await;
        }
        drop(go);
        first.await.unwrap().unwrap();
        assert!(matches!(late.await.unwrap(), Err(Error::Deadline)));
    }

    #[tokio::test]
    async fn with_a_delay_requests_wait_for_each_other() {
        let limits =
            Limits { batch_samples_max: 2, batch_delay: Duration::from_secs(3600), ..Limits::default() };
        let batcher = batcher(limits);
        let (lane, heard) = lane(true, Box::new(doubling));
        let (a, b) =
            tokio::join!(batcher.infer(&lane, x(&[1.0]), 1, None), batcher.infer(&lane, x(&[2.0]), 1, None));
        assert_eq!(a.unwrap().outputs[0].to_f64(), [2.0]);
        assert_eq!(b.unwrap().outputs[0].to_f64(), [4.0]);
        assert_eq!(heard.recv(), Ok(2));
    }

    #[tokio::test]
    async fn a_delay_that_ends_runs_what_there_is() {
        let limits =
            Limits { batch_samples_max: 2, batch_delay: Duration::from_millis(1), ..Limits::default() };
        let batcher = batcher(limits);
        let (lane, heard) = lane(true, Box::new(doubling));
        batcher.infer(&lane, x(&[1.0]), 1, None).await.unwrap();
        assert_eq!(heard.recv(), Ok(1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_batch_that_fails_fails_only_the_request_at_fault() {
        let batcher = batcher(Limits::default());
        let picky: Run = Box::new(|inputs| {
            assert!(!inputs[0].1.slice::<f32>().contains(&13.0), "thirteen");
            doubling(inputs)
        });
        let (run, began, go) = gated(picky);
        let (lane, _heard) = lane(true, run);
        let task = |value| {
            let (batcher, lane) = (Arc::clone(&batcher), Arc::clone(&lane));
            tokio::spawn(async move { batcher.infer(&lane, x(&[value]), 1, None).await.map(drop) })
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
}
