//! Runs of a model side by side, each on a thread of its own: nothing waits within a run, and looking at its values is
//! shared as well. Results come in the order of what they were made of, so that no number depends on the threads.

use rayon::prelude::*;

use crate::engine::exec::session::Session;
use crate::engine::exec::{self, on_this_thread};
use crate::engine::tensor::dataset::{self, Batch};

/// What runs that go side by side may take in memory, about.
const BYTES_MAX: u64 = 1 << 30;

/// What a run over a batch takes in memory.
pub(super) fn run_bytes(session: &Session, batch: &Batch) -> u64 {
    let shape = |port: &exec::Port| {
        let found = batch.inputs.iter().find(|(name, _)| *name == port.name);
        found.map_or_else(Vec::new, |(_, tensor)| tensor.shape().to_vec())
    };
    let shapes: Vec<_> = session.inputs().iter().map(shape).collect();
    session.arena_bytes(&shapes).unwrap_or(u64::MAX)
}

/// How many runs of so many bytes go side by side: one for each thread, or one at a time on all threads where there is no
/// room for that.
fn width(bytes: u64) -> usize {
    let threads = rayon::current_num_threads();
    if bytes.saturating_mul(threads as u64) <= BYTES_MAX { threads } else { 1 }
}

/// What `work` makes of each item. Fewer items than there are threads take turns, each on all threads.
pub(super) fn each<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    if items.len() < rayon::current_num_threads() {
        return items.into_iter().map(work).collect();
    }
    items.into_par_iter().map(|item| on_this_thread(|| work(item))).collect()
}

/// Runs over batches side by side, as many as `width` says. `run` gives what it took in memory, about, and its result; it
/// is told a place below the number of threads that no other run has at the same time. `take` gets the results in the order
/// of the batches. The first batch runs alone.
///
/// # Errors
/// What reading, `run` or `take` gives first.
pub(super) fn batches<R: Send, E: From<dataset::Error> + Send>(
    mut all: impl Iterator<Item = Result<Batch, dataset::Error>>,
    run: impl Fn(usize, &Batch) -> Result<(u64, R), E> + Sync,
    mut take: impl FnMut(&Batch, R) -> Result<(), E>,
) -> Result<(), E> {
    let mut side_by_side = 1;
    loop {
        let round: Vec<Batch> = all.by_ref().take(side_by_side).collect::<Result<_, _>>()?;
        if round.is_empty() {
            return Ok(());
        }
        let results = each(round.iter().enumerate().collect(), |(place, batch)| run(place, batch));
        let mut most = 0;
        for (batch, result) in round.iter().zip(results) {
            let (bytes, result) = result?;
            most = bytes.max(most);
            take(batch, result)?;
        }
        side_by_side = width(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            for count in [0, 2, 3, 50] {
                let want: Vec<usize> = (0..count).map(|i| i * i).collect();
                assert_eq!(each((0..count).collect(), |i| i * i), want);
            }
            assert_eq!([width(0), width(BYTES_MAX / 3), width(BYTES_MAX / 2), width(u64::MAX)], [3, 3, 1, 1]);
        });
    }
}
