//! Work shared between threads: a static split of the output, on rayon's current pool, without allocating.
//! Knows nothing of what is computed.

use super::IntOutput;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A buffer that can be cut in two, so that each thread owns what it writes.
pub(in crate::engine) trait Split: Send + Sized {
    /// The elements before `mid` and those from it on.
    fn split(self, mid: usize) -> (Self, Self);
}

impl<T: Send> Split for &mut [T] {
    fn split(self, mid: usize) -> (Self, Self) {
        self.split_at_mut(mid)
    }
}

impl Split for IntOutput<'_, '_> {
    fn split(self, mid: usize) -> (Self, Self) {
        match self {
            IntOutput::U8(out, requant) => {
                let (left, right) = out.split_at_mut(mid);
                (IntOutput::U8(left, requant), IntOutput::U8(right, requant))
            }
            IntOutput::F32(out, dequant) => {
                let (left, right) = out.split_at_mut(mid);
                (IntOutput::F32(left, dequant), IntOutput::F32(right, dequant))
            }
            IntOutput::I32(out, bias) => {
                let (left, right) = out.split_at_mut(mid);
                (IntOutput::I32(left, bias), IntOutput::I32(right, bias))
            }
        }
    }
}

/// Looks for work this often before a thread that keeps a run company lets another program have its core.
const LOOKS: u32 = 64;

/// Looks whether the other part is done, before a thread goes to sleep: a few hundred microseconds.
const WAITS: u32 = 1 << 14;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work`; nothing of it is shared with other threads, whatever it is told.
pub fn on_this_thread<R>(work: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Before(ALONE.replace(true));
    work()
}

/// Threads that may share work which is done here: those of the rayon pool, or 1 outside of one and within
/// [`on_this_thread`].
pub(in crate::engine) fn threads() -> usize {
    if ALONE.get() || rayon::current_thread_index().is_none() { 1 } else { rayon::current_num_threads() }
}

/// Calls `work` with up to `threads` threads of the rayon pool awake until it ends, so that what it shares is taken
/// at once: to wake a thread takes 50 us, longer than many a step.
///
/// They take whatever the pool has to do. A pool that other work is given to meanwhile may make this call wait for it.
pub(in crate::engine) fn in_company<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let threads = threads.min(self::threads());
    if threads <= 1 {
        return work();
    }
    let over = AtomicBool::new(false);
    company(threads - 1, &over, || {
        // Also where `work` panics.
        let _over = Over(&over);
        work()
    })
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The helpers lie one after another in the queue of this thread, under all that `work` shares, and are taken from there
/// first. So a thread that waits for what it has shared no longer has a helper of its own to take, in which it would wait
/// for itself. Helpers must not be shared out in any other way.
fn company<R: Send>(others: usize, over: &AtomicBool, work: impl FnOnce() -> R + Send) -> R {
    if others == 0 {
        return work();
    }
    rayon::join(|| company(others - 1, over, work), || help(over)).0
}

/// Does what the pool has to do until it is over.
fn help(over: &AtomicBool) {
    let mut looks = 0;
    while !over.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            looks = 0;
        } else if looks < LOOKS {
            looks += 1;
            std::hint::spin_loop();
        } else {
            looks = 0;
            std::thread::yield_now();
        }
    }
}

/// Like `rayon::join`, but where another thread has taken `second`, the caller waits for it awake for a while: rayon's
/// would sleep after some 10 us, and to be woken takes 50.
pub(super) fn join(first: impl FnOnce() + Send, second: impl FnOnce() + Send) {
    let (taken, done) = (AtomicBool::new(false), AtomicBool::new(false));
    rayon::join(
        || {
            first();
            for _ in 0..WAITS {
                if !taken.load(Ordering::Relaxed) || done.load(Ordering::Acquire) {
                    break;
                }
                std::hint::spin_loop();
            }
        },
        || {
            taken.store(true, Ordering::Relaxed);
            second();
            done.store(true, Ordering::Release);
        },
    );
}

/// What `work` makes of each item, in their order, with the threads of the pool where `threads` allows more than one: for
/// work of milliseconds, of which each takes what it comes to.
///
/// Who waits for the others is given whatever the pool has to do, so the caller must hold nothing that this may ask for.
pub(in crate::engine) fn map_each<T: Send, R: Send>(
    threads: usize,
    items: Vec<T>,
    work: impl Fn(T) -> R + Send + Sync,
) -> Vec<R> {
    match threads.min(self::threads()) {
        0 | 1 => items.into_iter().map(work).collect(),
        _ => items.into_par_iter().with_max_len(1).map(work).collect(),
    }
}

/// How many parts work of about `nanoseconds` is worth, at most `threads`.
///
/// Handing a part to another thread and waiting for it costs some microseconds, so work under 20 us stays here
/// and no part gets less than 10 us. Within [`on_this_thread`] there is one part.
pub(in crate::engine) fn parts(threads: usize, nanoseconds: usize) -> usize {
    if nanoseconds < 20_000 || ALONE.get() { 1 } else { threads.clamp(1, nanoseconds / 10_000) }
}

/// Cuts `rows` and `out`, of `row_len` elements a row, into `parts` of about equal size and calls `work` with
/// each. All parts but the last hold a multiple of `quantum` rows.
///
/// A caller that is not on a rayon thread waits for one to take the work, some 10 us; run models inside
/// `ThreadPool::install`.
///
/// `work` is behind a pointer, so that this is compiled once for each kind of buffer and not for hundreds of callers.
pub(in crate::engine) fn split_rows<O: Split>(
    out: O,
    rows: Range<usize>,
    row_len: usize,
    quantum: usize,
    parts: usize,
    work: &(dyn Fn(Range<usize>, O) + Sync),
) {
    let quanta = rows.len().div_ceil(quantum);
    let parts = parts.min(quanta);
    if parts <= 1 {
        return work(rows, out);
    }
    let left_parts = parts / 2;
    let mid = quanta * left_parts / parts * quantum;
    let (left, right) = out.split(mid * row_len);
    let (first, second) = (rows.start..rows.start + mid, rows.start + mid..rows.end);
    join(
        || split_rows(left, first, row_len, quantum, left_parts, work),
        || split_rows(right, second, row_len, quantum, parts - left_parts, work),
    );
}

/// Like [`split_rows`], for units of unequal size: unit `i` begins at element `start(i)`.
pub(in crate::engine) fn split_units<O: Split>(
    out: O,
    units: Range<usize>,
    start: &(dyn Fn(usize) -> usize + Sync),
    parts: usize,
    work: &(dyn Fn(Range<usize>, O) + Sync),
) {
    let parts = parts.min(units.len());
    if parts <= 1 {
        return work(units, out);
    }
    let left_parts = parts / 2;
    let mid = units.start + units.len() * left_parts / parts;
    let (left, right) = out.split(start(mid) - start(units.start));
    join(
        || split_units(left, units.start..mid, start, left_parts, work),
        || split_units(right, mid..units.end, start, parts - left_parts, work),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once_with_its_own_output() {
        for (rows, row_len, quantum, parts) in
            [(0, 3, 1, 2), (1, 1, 4, 8), (7, 2, 2, 3), (100, 1, 6, 2), (13, 5, 1, 16)]
        {
            let mut out = vec![0usize; rows * row_len];
            split_rows(&mut out[..], 0..rows, row_len, quantum, parts, &|range, out| {
                for (i, row) in range.zip(out.chunks_mut(row_len)) {
                    row.iter_mut().for_each(|v| *v += i + 1);
                }
            });
            let want: Vec<usize> = (0..rows * row_len).map(|i| i / row_len + 1).collect();
            assert_eq!(out, want, "{rows} rows in {parts} parts");
        }
    }

    #[test]
    fn results_are_in_the_order_of_the_items() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let want: Vec<usize> = (0..100).map(|i| i * i).collect();
        for threads in [0, 1, 2, 3] {
            let squares = || map_each(threads, (0..100).collect(), |i: usize| i * i);
            assert_eq!((squares(), pool.install(squares)), (want.clone(), want.clone()), "{threads}");
        }
    }

    #[test]
    fn company_shares_the_work_and_ends_with_it() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let mut out = vec![0usize; 3000];
        for _ in 0..20 {
            let sum = pool.install(|| {
                in_company(3, || {
                    split_rows(&mut out[..], 0..3000, 1, 1, 3, &|range, out: &mut [usize]| {
                        range.zip(out).for_each(|(i, v)| *v += i);
                    });
                    out.iter().sum::<usize>()
                })
            });
            assert_eq!(sum % 4_498_500, 0);
        }
        let failed = pool.install(|| std::panic::catch_unwind(|| in_company(3, || panic!("a run fails"))));
        assert!(failed.is_err(), "the others do not wait for what has failed");
    }

    #[test]
    fn runs_beside_each_other_in_one_pool_end() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let run = |n: usize| {
            in_company(3, || {
                let mut out = vec![0usize; 64];
                for _ in 0..20 {
                    split_rows(&mut out[..], 0..64, 1, 1, 4, &|_, out: &mut [usize]| {
                        out.iter_mut().for_each(|v| *v += n);
                    });
                }
                out.iter().sum::<usize>()
            })
        };
        for _ in 0..100 {
            let sums: usize = pool.install(|| (0..16).into_par_iter().map(run).sum());
            assert_eq!(sums, 64 * 20 * 120);
        }
    }

    #[test]
    fn work_on_this_thread_stays_there() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            assert_eq!((threads(), parts(2, 1 << 30)), (2, 2));
            let failed = std::panic::catch_unwind(|| {
                on_this_thread(|| {
                    assert_eq!((threads(), parts(2, 1 << 30)), (1, 1));
                    on_this_thread(|| ());
                    assert_eq!(threads(), 1, "as before the inner call");
                    panic!("a run fails");
                });
            });
            assert!(failed.is_err());
            assert_eq!(threads(), 2);
        });
        assert_eq!(threads(), 1, "outside of a pool");
    }

    #[test]
    fn little_work_stays_on_one_thread() {
        assert_eq!(
            [parts(8, 0), parts(8, 19_999), parts(8, 20_000), parts(8, 1 << 30), parts(0, 1 << 30)],
            [1, 1, 2, 8, 1]
        );
    }
}
