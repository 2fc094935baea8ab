//! A task that wakes itself goes on at once.
//!
//! hyper hands over a body piece by piece, and wakes its own task for the next one. The runtime lets such a task stand in
//! line, and wakes another thread that may take it: for each 64 KiB two system calls, and a body that moves from core to
//! core.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// How often a task goes on before others have their turn: a MiB of a body.
const TIMES_MAX: u32 = 16;

/// Nobody polls: whoever wakes wakes the task.
const RESTS: u8 = 0;
/// It is polled, and nobody has woken it since.
const POLLED: u8 = 1;
/// It is polled, and must be again.
const AGAIN: u8 = 2;

/// Polls a future again, at once, where it was woken while it was polled.
pub(super) struct AtOnce<F> {
    future: Pin<Box<F>>,
    wakes: Arc<Wakes>,
    // The same as `wakes`, made once.
    waker: Waker,
}

struct Wakes {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let marked = self.state.compare_exchange(POLLED, AGAIN, Ordering::AcqRel, Ordering::Acquire);
        if marked == Err(RESTS) {
            self.task.wake();
        }
    }
}

impl<F: Future> AtOnce<F> {
    pub(super) fn new(future: F) -> AtOnce<F> {
        let wakes = Arc::new(Wakes { state: AtomicU8::new(RESTS), task: AtomicWaker::new() });
        AtOnce { future: Box::pin(future), waker: Waker::from(Arc::clone(&wakes)), wakes }
    }
}

impl<F: Future> Future for AtOnce<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let AtOnce { future, wakes, waker } = &mut *self;
        wakes.task.register(context.waker());
        for _ in 0..TIMES_MAX {
            wakes.state.store(POLLED, Ordering::Release);
            let polled = future.as_mut().poll(&mut Context::from_waker(waker));
            // Who wakes after this wakes the task.
            if wakes.state.swap(RESTS, Ordering::AcqRel) != AGAIN || polled.is_ready() {
                return polled;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use futures::channel::oneshot;

    use super::*;

    /// Counts how often the task is woken.
    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Wakes itself so many times before it ends.
    async fn wakes_itself(times: u32) {
        let mut left = times;
        std::future::poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn poll<F: Future>(future: &mut AtOnce<F>, count: &Arc<Count>) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(&Waker::from(Arc::clone(count))))
    }

    #[test]
    fn who_wakes_itself_goes_on_but_not_for_ever() {
        let count = Arc::new(Count::default());
        assert!(poll(&mut AtOnce::new(wakes_itself(TIMES_MAX - 1)), &count).is_ready());
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        let mut long = AtOnce::new(wakes_itself(2 * TIMES_MAX));
        for turns in 1..=2 {
            assert!(poll(&mut long, &count).is_pending());
            assert_eq!(count.0.load(Ordering::Relaxed), turns);
        }
        assert!(poll(&mut long, &count).is_ready());
    }

    #[test]
    fn who_rests_is_woken() {
        let count = Arc::new(Count::default());
        let (sender, receiver) = oneshot::channel();
        let mut future = AtOnce::new(receiver);
        assert!(poll(&mut future, &count).is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        sender.send(7).unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(poll(&mut future, &count), Poll::Ready(Ok(7)));
    }

    #[tokio::test]
    async fn no_wake_is_lost_between_two_threads() {
        for _ in 0..200 {
            let (sender, mut receiver) = futures::channel::mpsc::channel(1);
            let all = AtOnce::new(async move {
                let mut sum = 0;
                while let Ok(number) = receiver.recv().await {
                    sum += number;
                }
                sum
            });
            let sends = std::thread::spawn(move || {
                let mut sender = sender;
                for number in 1..=100 {
                    while sender.try_send(number).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            assert_eq!(all.await, 5050);
            sends.join().unwrap();
        }
    }
}
