//! A bounded queue for each loaded model, and batches by size and delay. Refuses when full, forgets requests
//! whose client has gone, takes the urgent first, and shares the runs fairly. Knows how to run a model only as a
//! function.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::engine::exec::on_this_thread;
use crate::engine::tensor::Tensor;
use crate::service::infer::{Answer, Error, Inputs, Limits, PRIORITY_DEFAULT, Timing};
use crate::service::store::Precision;

/// Runs a model: named inputs in, outputs in their order out.
pub type Run = Box<dyn Fn(&[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> + Send + Sync>;

/// Hears of each run: samples, then the time to merge, to compute and to split.
pub type Heard = Box<dyn Fn(usize, Duration, Duration, Duration) + Send + Sync>;

/// A run that takes no longer is made where the request is: to wake another thread takes as long.
const AT_ONCE: Duration = Duration::from_micros(200);

/// A run that takes no longer is not worth the waking of all threads.
const TOGETHER: Duration = Duration::from_micros(500);

/// A lane in the background gets a run after so many of the others, even if those are never done.
const BACKGROUND_EVERY: u32 = 16;

/// Hands runs to a rayon pool: at most [`Limits::runs_max`] at a time, lanes in turn. Each has one thread; one that
/// begins while there is no other has a pool of its own, with as many threads as it is given.
pub struct Batcher {
    pool: rayon::ThreadPool,
    together: rayon::ThreadPool,
    // Runs end on rayon threads, which have no runtime of their own to sleep on.
    runtime: tokio::runtime::Handle,
    limits: Limits,
    turns: Mutex<Turns>,
}

/// Whose turn it is. Locked before any lane.
struct Turns {
    free: usize,
    lanes: VecDeque<Arc<Lane>>,
    background: VecDeque<Arc<Lane>>,
    since_background: u32,
}

impl Turns {
    fn is_empty(&self) -> bool {
        self.lanes.is_empty() && self.background.is_empty()
    }

    fn list(&mut self, lane: Arc<Lane>) {
        if lane.background { self.background.push_back(lane) } else { self.lanes.push_back(lane) }
    }

    fn next(&mut self) -> Option<Arc<Lane>> {
        let owed = self.since_background >= BACKGROUND_EVERY || self.lanes.is_empty();
        if owed && let Some(lane) = self.background.pop_front() {
            self.since_background = 0;
            return Some(lane);
        }
        self.since_background = self.since_background.saturating_add(1);
        self.lanes.pop_front()
    }
}

/// The queue of one loaded model in one precision.
pub struct Lane {
    name: String,
    precision: Precision,
    run: Run,
    heard: Heard,
    // Runs when the others have nothing to do, and then and when in between.
    background: bool,
    batching: AtomicBool,
    running: AtomicUsize,
    // Nanoseconds of a sample, smoothed; 0 before the first.
    sample_ns: AtomicU64,
    queue: Mutex<Queue>,
}

struct Queue {
    waiting: VecDeque<Waiting>,
    limits: Limits,
    // Whether the lane stands in `Turns`.
    listed: bool,
    // Whether a timer will list it.
    timer: bool,
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

struct Waiting {
    inputs: Inputs,
    samples: usize,
    since: Instant,
    deadline: Option<Instant>,
    // The lowest goes first.
    priority: u64,
    reply: oneshot::Sender<Result<Answer, Error>>,
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
    fn refuse_late(&self) {
        lock(&self.queue).refuse_late(Instant::now());
    }

    /// What a run of so many samples takes on one thread, where one was made.
    fn expected(&self, samples: usize) -> Option<Duration> {
        let ns = self.sample_ns.load(Ordering::Relaxed);
        (ns > 0).then(|| Duration::from_nanos(ns.saturating_mul(samples as u64)))
    }

    /// Whether a run of so many samples is over before another thread would be awake.
    fn is_quick(&self, samples: usize) -> bool {
        self.expected(samples).is_some_and(|time| time < AT_ONCE)
    }

    /// Takes a run for a quick request that nobody stands before and that waits for no other. It takes none of the runs of
    /// the pool: those who ask are no more than the threads that speak to clients.
    fn take_at_once(&self, samples: usize) -> bool {
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

impl Batcher {
    /// Runs on `pool`, or on `together` where a run is alone. Must be called within a tokio runtime, which its timers use.
    #[must_use]
    pub fn new(pool: rayon::ThreadPool, together: rayon::ThreadPool, limits: Limits) -> Arc<Batcher> {
        let free = limits.runs_max.max(1);
        let (lanes, background) = (VecDeque::new(), VecDeque::new());
        let turns = Mutex::new(Turns { free, lanes, background, since_background: 0 });
        Arc::new(Batcher { pool, together, runtime: tokio::runtime::Handle::current(), limits, turns })
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
        priority: u64,
    ) -> Result<Answer, Error> {
        if lane.is_quick(samples) && lane.take_at_once(samples) {
            let since = Instant::now();
            let _slot = Slot { batcher: self, lane, of_pool: 0 };
            return on_this_thread(|| lane.answer(&inputs, samples, since, 1));
        }
        let (reply, mut answer) = oneshot::channel();
        let priority = if priority == 0 { PRIORITY_DEFAULT } else { priority };
        let waiting = Waiting { inputs, samples, since: Instant::now(), deadline, priority, reply };
        self.enqueue(lane, waiting)?;
        self.pump();
        if let Some(deadline) = deadline {
            match tokio::time::timeout_at(deadline.into(), &mut answer).await {
                Ok(answer) => return answer.unwrap_or_else(|_| Err(dropped())),
                // It is told even while all runs are taken; one whose run has begun waits for its end.
                Err(_) => lane.refuse_late(),
            }
        }
        answer.await.unwrap_or_else(|_| Err(dropped()))
    }

    fn enqueue(&self, lane: &Arc<Lane>, waiting: Waiting) -> Result<(), Error> {
        let mut turns = lock(&self.turns);
        let mut queue = lock(&lane.queue);
        let limit = queue.limits.queue_max;
        if queue.waiting.len() >= limit {
            queue.waiting.retain(|w| !w.reply.is_closed());
        }
        // A request that finds a free run and nobody before it does not really wait.
        let at_once = turns.free > 0 && queue.waiting.is_empty() && lane.running() < queue.limits.runs_max;
        if queue.waiting.len() >= limit && !at_once {
            let full = Error::QueueFull { name: lane.name.clone(), limit };
            // An urgent request takes the place of the last that is less so.
            match queue.waiting.back() {
                Some(last) if last.priority > waiting.priority => {
                    if let Some(last) = queue.waiting.pop_back() {
                        // A client that has gone in this moment does not hear of it; that is all.
                        let _ = last.reply.send(Err(full));
                    }
                }
                _ => return Err(full),
            }
        }
        let place =
            queue.waiting.iter().rposition(|w| w.priority <= waiting.priority).map_or(0, |last| last + 1);
        queue.waiting.insert(place, waiting);
        if !queue.listed {
            queue.listed = true;
            turns.list(Arc::clone(lane));
        }
        Ok(())
    }

    /// Starts what can start.
    fn pump(self: &Arc<Batcher>) {
        let mut turns = lock(&self.turns);
        while turns.free > 0 {
            let Some(lane) = turns.next() else { return };
            let mut queue = lock(&lane.queue);
            match next_batch(&lane, &mut queue) {
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
                    let listed = queue.listed;
                    drop(queue);
                    let alone = turns.free == self.limits.runs_max && turns.is_empty() && !listed;
                    turns.free -= 1;
                    lane.running.fetch_add(1, Ordering::Relaxed);
                    self.start(Arc::clone(&lane), batch, alone);
                    if listed {
                        turns.list(lane);
                    }
                }
            }
        }
    }

    fn start(self: &Arc<Batcher>, lane: Arc<Lane>, batch: Vec<Waiting>, alone: bool) {
        let samples = batch.iter().map(|w| w.samples).sum();
        let long = || lane.expected(samples).is_some_and(|time| time > TOGETHER);
        let threads = self.together.current_num_threads();
        let together = alone && threads > 1 && !lane.background && long();
        let batcher = Arc::clone(self);
        let pool = if together { &self.together } else { &self.pool };
        pool.spawn(move || {
            let _slot = Slot { batcher: &batcher, lane: &lane, of_pool: 1 };
            if together {
                lane.run_batch(batch, threads);
            } else {
                on_this_thread(|| lane.run_batch(batch, 1));
            }
        });
    }

    /// A run of a lane has ended, and so many of the pool: it may have waited for that.
    fn give_back(self: &Arc<Batcher>, lane: &Arc<Lane>, of_pool: usize) {
        {
            let mut turns = lock(&self.turns);
            lane.running.fetch_sub(1, Ordering::Relaxed);
            turns.free += of_pool;
            let mut queue = lock(&lane.queue);
            if !queue.listed && !queue.timer && !queue.waiting.is_empty() {
                queue.listed = true;
                turns.list(Arc::clone(lane));
            }
        }
        self.pump();
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
                    turns.list(Arc::clone(&lane));
                }
            }
            batcher.pump();
        });
    }
}

/// A run of a lane that was taken; given back when it ends, however it ends.
struct Slot<'a> {
    batcher: &'a Arc<Batcher>,
    lane: &'a Arc<Lane>,
    // Runs of the pool that it takes: none where it is made on the thread of the request.
    of_pool: usize,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.batcher.give_back(self.lane, self.of_pool);
    }
}

/// Takes a batch from the front of a queue: requests that can be run together, in order.
fn next_batch(lane: &Lane, queue: &mut Queue) -> Next {
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

fn dropped() -> Error {
    Error::Internal("the run was dropped".to_owned())
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
    fn run_batch(&self, batch: Vec<Waiting>, threads: usize) {
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

    fn answer(
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks; if it did, the queue itself is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A batcher over one thread for each run, and two for one that is alone.
    fn batcher(limits: Limits) -> Arc<Batcher> {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        Batcher::new(pool(limits.runs_max), pool(2), limits)
    }

    fn doubling(inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> {
        let x = inputs[0].1;
        let doubled: Vec<f32> = x.slice::<f32>().iter().map(|v| v * 2.0).collect();
        Ok(vec![Tensor::from_slice(x.shape(), &doubled)])
    }

    fn lane(batcher: &Batcher, batching: bool, run: Run) -> (Arc<Lane>, mpsc::Receiver<usize>) {
        let (tx, rx) = mpsc::channel();
        let tx = Mutex::new(tx);
        let heard = Box::new(move |samples, _, _, _| lock(&tx).send(samples).unwrap());
        (
            Arc::new(Lane::new(
                "m".to_owned(),
                Precision::Int8,
                batching,
                batcher.limits().clone(),
                run,
                heard,
            )),
            rx,
        )
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
    async fn a_long_run_has_all_threads_where_it_begins_alone() {
        let batcher = batcher(Limits { runs_max: 3, ..Limits::default() });
        let (began_tx, began) = mpsc::channel();
        let began_tx = Mutex::new(began_tx);
        let held = Arc::new(AtomicBool::new(false));
        let hold = Arc::clone(&held);
        let run = move |inputs: &[(&str, &Tensor)]| {
            lock(&began_tx).send(rayon::current_num_threads()).unwrap();
            std::thread::sleep(4 * TOGETHER);
            while hold.load(Ordering::Relaxed) {
                std::thread::sleep(TOGETHER);
            }
            doubling(inputs)
        };
        let (lane, _heard) = lane(&batcher, false, Box::new(run));
        let request = || {
            let (batcher, lane) = (Arc::clone(&batcher), Arc::clone(&lane));
            tokio::spawn(async move { batcher.infer(&lane, x(&[1.0]), 1, None, 0).await.map(drop) })
        };
        // How long the first takes is not known; so it has one of the three.
        for threads in [3, 2, 2] {
            request().await.unwrap().unwrap();
            assert_eq!(began.recv().unwrap(), threads);
            // A run is given back after its answer.
            while lane.running() > 0 {
                tokio::task::yield_now().await;
            }
        }
        held.store(true, Ordering::Relaxed);
        let first = request();
        assert_eq!(began.recv().unwrap(), 2);
        let second = request();
        assert_eq!(began.recv().unwrap(), 3, "beside another");
        held.store(false, Ordering::Relaxed);
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_full_queue_refuses_and_a_client_that_goes_makes_room() {
        let batcher = batcher(Limits { queue_max: 2, ..Limits::default() });
        let (run, began, go) = gated(Box::new(doubling));
        let (lane, heard) = lane(&batcher, false, run);
        let task = || {
            let (batcher, lane) = (Arc::clone(&batcher), Arc::clone(&lane));
            tokio::spawn(async move { batcher.infer(&lane, x(&[1.0]), 1, None, 0).await.map(drop) })
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
        let (lane, heard) = lane(&batcher, false, run);
        let (b, l) = (Arc::clone(&batcher), Arc::clone(&lane));
        let first = tokio::spawn(async move { b.infer(&l, x(&[1.0]), 1, None, 0).await.map(drop) });
        began.recv().unwrap();
        let late = batcher.infer(&lane, x(&[1.0]), 1, Some(Instant::now()), 0).await;
        assert!(matches!(late, Err(Error::Deadline)), "{late:?}");
        drop(go);
        first.await.unwrap().unwrap();
        assert_eq!(heard.recv(), Ok(1));
        assert!(heard.try_recv().is_err(), "the late request was not run");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_deadline_is_told_while_all_runs_are_taken() {
        let batcher = batcher(Limits::default());
        let (run, began, go) = gated(Box::new(doubling));
        let (lane, _heard) = lane(&batcher, false, run);
        let (b, l) = (Arc::clone(&batcher), Arc::clone(&lane));
        let first = tokio::spawn(async move { b.infer(&l, x(&[1.0]), 1, None, 0).await.map(drop) });
        began.recv().unwrap();
        let deadline = Some(Instant::now() + Duration::from_millis(5));
        let late = batcher.infer(&lane, x(&[1.0]), 1, deadline, 0).await;
        assert!(matches!(late, Err(Error::Deadline)), "{late:?}");
        assert_eq!(lane.depth(), 0);
        drop(go);
        first.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn with_a_delay_requests_wait_for_each_other() {
        let limits =
            Limits { batch_samples_max: 2, batch_delay: Duration::from_secs(3600), ..Limits::default() };
        let batcher = batcher(limits);
        let (lane, heard) = lane(&batcher, true, Box::new(doubling));
        let (a, b) = tokio::join!(
            batcher.infer(&lane, x(&[1.0]), 1, None, 0),
            batcher.infer(&lane, x(&[2.0]), 1, None, 0)
        );
        assert_eq!(a.unwrap().outputs[0].to_f64(), [2.0]);
        assert_eq!(b.unwrap().outputs[0].to_f64(), [4.0]);
        assert_eq!(heard.recv(), Ok(2));
    }

    #[tokio::test]
    async fn a_delay_that_ends_runs_what_there_is() {
        let limits =
            Limits { batch_samples_max: 2, batch_delay: Duration::from_millis(1), ..Limits::default() };
        let batcher = batcher(limits);
        let (lane, heard) = lane(&batcher, true, Box::new(doubling));
        batcher.infer(&lane, x(&[1.0]), 1, None, 0).await.unwrap();
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

    /// Begins to ask for each value in turn, so that all wait in this order.
    async fn line_up(
        batcher: &Arc<Batcher>,
        lane: &Arc<Lane>,
        asks: &[(f32, u64)],
    ) -> Vec<tokio::task::JoinHandle<Result<(), Error>>> {
        let mut tasks = Vec::new();
        for (n, &(value, priority)) in asks.iter().enumerate() {
            let (b, l) = (Arc::clone(batcher), Arc::clone(lane));
            tasks.push(tokio::spawn(
                async move { b.infer(&l, x(&[value]), 1, None, priority).await.map(drop) },
            ));
            while lane.depth() <= n {
                tokio::task::yield_now().await;
            }
        }
        tasks
    }

    /// A run that notes what it was given.
    fn noting() -> (Run, Arc<Mutex<Vec<f32>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&seen);
        let run = Box::new(move |inputs: &[(&str, &Tensor)]| {
            lock(&notes).extend(inputs[0].1.slice::<f32>());
            doubling(inputs)
        });
        (run, seen)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_urgent_go_first_and_equals_in_their_order() {
        let batcher = batcher(Limits { queue_max: 5, ..Limits::default() });
        let (run, seen) = noting();
        let (run, began, go) = gated(run);
        let (lane, _heard) = lane(&batcher, false, run);
        let (b, l) = (Arc::clone(&batcher), Arc::clone(&lane));
        let first = tokio::spawn(async move { b.infer(&l, x(&[0.0]), 1, None, 0).await.map(drop) });
        began.recv().unwrap();
        let asks = [(1.0, 0), (2.0, 1), (3.0, PRIORITY_DEFAULT), (4.0, 2), (5.0, 1000)];
        let mut tasks = line_up(&batcher, &lane, &asks).await;
        // The queue is full: one more that is urgent takes the place of the last.
        let (b, l) = (Arc::clone(&batcher), Arc::clone(&lane));
        let urgent = tokio::spawn(async move { b.infer(&l, x(&[6.0]), 1, None, 1).await.map(drop) });
        let last = tasks.pop().unwrap().await.unwrap();
        assert!(matches!(last, Err(Error::QueueFull { .. })), "{last:?}");
        let refused = batcher.infer(&lane, x(&[7.0]), 1, None, 0).await;
        assert!(matches!(refused, Err(Error::QueueFull { .. })));
        drop(go);
        for task in tasks.into_iter().chain([first, urgent]) {
            task.await.unwrap().unwrap();
        }
        assert_eq!(*lock(&seen), [0.0, 2.0, 6.0, 4.0, 1.0, 3.0]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lane_has_no_more_runs_than_its_limit() {
        let batcher = batcher(Limits { runs_max: 2, ..Limits::default() });
        let most = Arc::new(AtomicUsize::new(0));
        let (now, seen) = (AtomicUsize::new(0), Arc::clone(&most));
        let run: Run = Box::new(move |inputs| {
            seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            now.fetch_sub(1, Ordering::SeqCst);
            doubling(inputs)
        });
        let (lane, _heard) = lane(&batcher, false, run);
        lane.set_limits(Limits { runs_max: 1, ..lane.limits() });
        let mut tasks = Vec::new();
        for _ in 0..20 {
            let (b, l) = (Arc::clone(&batcher), Arc::clone(&lane));
            tasks.push(tokio::spawn(async move { b.infer(&l, x(&[1.0]), 1, None, 0).await.map(drop) }));
        }
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_in_the_background_waits_but_not_for_ever() {
        let batcher = batcher(Limits::default());
        let (run, seen) = noting();
        let (run, began, go) = gated(run);
        let (lane, _heard) = lane(&batcher, false, run);
        let notes = Arc::clone(&seen);
        let other: Run = Box::new(move |inputs| {
            lock(&notes).push(-1.0);
            doubling(inputs)
        });
        let unheard = Box::new(|_, _, _, _| {});
        let limits = batcher.limits().clone();
        let background = Lane::new("m".to_owned(), Precision::Fp32, false, limits, other, unheard);
        let background = Arc::new(background.in_background());
        let (b, l) = (Arc::clone(&batcher), Arc::clone(&lane));
        let first = tokio::spawn(async move { b.infer(&l, x(&[0.0]), 1, None, 0).await.map(drop) });
        began.recv().unwrap();
        let mut tasks = line_up(&batcher, &background, &[(9.0, 0)]).await;
        let asks: Vec<(f32, u64)> = (0..2 * BACKGROUND_EVERY).map(|n| (n as f32, 0)).collect();
        tasks.extend(line_up(&batcher, &lane, &asks).await);
        drop(go);
        for task in tasks.into_iter().chain([first]) {
            task.await.unwrap().unwrap();
        }
        let at = lock(&seen).iter().position(|&v| v < 0.0).unwrap();
        assert!((10..=BACKGROUND_EVERY as usize + 2).contains(&at), "{at}");
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
