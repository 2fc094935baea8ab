//! The memory of runs, and what is kept of it between them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::buffer::Buffer;

use super::step::Scratch;

/// Arenas that a session keeps for its next runs.
const SPARE_MAX: usize = 8;

/// The memory of one run.
pub(super) struct Arena {
    pub(super) buffer: Buffer,
    pub(super) scratch: Scratch,
    /// Bytes of all arenas that were made with this one.
    all: Arc<AtomicU64>,
}

impl Arena {
    /// For runs of a plan that takes so many bytes.
    pub(super) fn of(bytes: usize) -> Arena {
        Arena::counted(bytes, Scratch::default(), &Arc::default())
    }

    fn counted(bytes: usize, scratch: Scratch, all: &Arc<AtomicU64>) -> Arena {
        all.fetch_add(bytes as u64, Ordering::Relaxed);
        Arena { buffer: Buffer::zeroed(bytes), scratch, all: Arc::clone(all) }
    }

    fn bytes(&self) -> usize {
        self.buffer.bytes().len()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes() as u64, Ordering::Relaxed);
    }
}

/// The arenas of runs that have ended, for the next ones of any plan: a batch of eight and one of seven lie in the same
/// memory.
#[derive(Default)]
pub(super) struct Arenas {
    spare: Mutex<Vec<Arena>>,
    all: Arc<AtomicU64>,
}

impl Arenas {
    /// The smallest that holds so many bytes; where none does, one is made in the place of the largest.
    pub(super) fn take(&self, bytes: usize) -> Arena {
        let found = {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            let size = |&i: &usize| spare[i].bytes();
            let holding = (0..spare.len()).filter(|i| size(i) >= bytes).min_by_key(size);
            holding.or_else(|| (0..spare.len()).max_by_key(size)).map(|i| spare.swap_remove(i))
        };
        match found {
            Some(arena) if arena.bytes() >= bytes => arena,
            Some(mut smaller) => {
                let scratch = std::mem::take(&mut smaller.scratch);
                drop(smaller);
                Arena::counted(bytes, scratch, &self.all)
            }
            None => Arena::counted(bytes, Scratch::default(), &self.all),
        }
    }

    /// Keeps an arena for the next run.
    pub(super) fn put(&self, arena: Arena) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(arena);
        }
    }

    /// Gives back those that are larger than any plan needs.
    pub(super) fn shrink(&self, most_bytes: usize) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.retain(|arena| arena.bytes() <= most_bytes);
    }

    /// Bytes of all arenas, in use or kept.
    pub(super) fn bytes(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_all_sizes_share_as_many_arenas_as_run_at_once() {
        let arenas = Arenas::default();
        let kept = || {
            let mut sizes: Vec<usize> = arenas.spare.lock().unwrap().iter().map(Arena::bytes).collect();
            sizes.sort_unstable();
            sizes
        };
        for bytes in [10, 1000, 100, 1000, 10] {
            arenas.put(arenas.take(bytes));
        }
        assert_eq!(kept(), [1000]);
        let (large, small) = (arenas.take(500), arenas.take(20));
        assert_eq!((large.bytes(), small.bytes(), arenas.bytes()), (1000, 20, 1020));
        arenas.put(large);
        arenas.put(small);
        assert_eq!(arenas.take(15).bytes(), 20);
        assert_eq!((kept(), arenas.bytes()), (vec![1000], 1000), "what is not put back is gone");
        (0..2 * SPARE_MAX).for_each(|_| arenas.put(Arena::of(7)));
        assert_eq!(kept().len(), SPARE_MAX);
        arenas.shrink(100);
        assert_eq!((kept(), arenas.bytes()), (vec![7; SPARE_MAX - 1], 0));
    }
}
