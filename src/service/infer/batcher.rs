//! Whose turn it is: shares the runs fairly among the lanes, refuses when a queue is full, takes the urgent first.
//! Does not know what a batch is or how it runs (`lane.rs`).

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::engine::exec::on_this_thread;
use crate::service::infer::lane::{Lane, Next, Waiting, lock, next_batch};
use crate::service::infer::{Answer, Error, Inputs, Limits, PRIORITY_DEFAULT};

/// A lane in the background gets a run after so many of the others, even if those are never done.
const BACKGROUND_EVERY: u32 = 16;

/// A run that takes no longer is not worth the waking of all threads.
const TOGETHER: Duration = Duration::from_micros(500);

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

fn dropped() -> Error {
    Error::Internal("the run was dropped".to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::sync::mpsc;

    use super::*;
    use crate::engine::tensor::Tensor;
    use crate::service::infer::lane::Run;
    use crate::service::store::Precision;

    /// A batcher over one thread for each run, and two for one that is alone.
    pub(in crate::service::infer) fn batcher(limits: Limits) -> Arc<Batcher> {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        Batcher::new(pool(limits.runs_max), pool(2), limits)
    }

    pub(in crate::service::infer) fn doubling(inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> {
        let x = inputs[0].1;
        let doubled: Vec<f32> = x.slice::<f32>().iter().map(|v| v * 2.0).collect();
        Ok(vec![Tensor::from_slice(x.shape(), &doubled)])
    }

    pub(in crate::service::infer) fn lane(
        batcher: &Batcher,
        batching: bool,
        run: Run,
    ) -> (Arc<Lane>, mpsc::Receiver<usize>) {
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

    pub(in crate::service::infer) fn x(values: &[f32]) -> Inputs {
        vec![("x".to_owned(), Tensor::from_slice(&[values.len(), 1], values))]
    }

    /// A run that waits until the test lets it go on; tells when it has begun.
    pub(in crate::service::infer) fn gated(run: Run) -> (Run, mpsc::Receiver<()>, mpsc::Sender<()>) {
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
}
